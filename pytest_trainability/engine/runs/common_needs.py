"""Needs that no family of measures owns.

Parameter gradients, the RMS of states, and the operations and constants that baselines record.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...records.names import with_stars
from ..capture.operations import operations_by_step
from ..capture.recorder import Edge, Recorder
from ..capture.settings import SettingsObserver
from ..jacobian.vjp import backward
from ..linalg.norms import norm
from ..trees import carries_gradient, tensors_in
from .gradient_terms import TermObserver, Terms, observe_terms
from .objective import functional, trainable_parameters
from .run import Need, Run, Stage

__all__ = [
    "GRADIENT_NORMS",
    "GRADIENT_TERMS",
    "OPERATIONS",
    "PARAMETER_GRADIENTS",
    "SETTINGS",
    "STATE_RMS",
    "SquareSums",
    "grows_by",
    "joint_sweep_observed",
]


MOST_READERS = 2
"""Number of modules that are named as the readers of a result."""


def _parameter_gradients(run: Run) -> dict[str, Tensor | None]:
    capture = run.capture
    parameters = trainable_parameters(capture.model)
    if not parameters:
        return {}
    roots, weights = functional(capture.output, capture.loss, run.seed)

    def differentiated() -> dict[str, Tensor | None]:
        found = torch.autograd.grad(roots, list(parameters.values()), weights, allow_unused=True)
        return dict(zip(parameters, found))

    observer: TermObserver | None = capture.watched.get(observe_terms)
    if observer is None or GRADIENT_TERMS.name in run.findings or run.chain.along == "time":
        return differentiated()
    with observer.loss_gradient(capture.model, run.graph) as terms:
        found = differentiated()
    run.findings[GRADIENT_TERMS.name] = terms(found)
    return found


PARAMETER_GRADIENTS = Need("parameter gradients", _parameter_gradients, Stage.BACKWARD)
"""Gradients by the name of the trainable parameter; None for a parameter that the loss does not depend on.

Without a loss they are gradients of a random functional of the output.
"""


GRADIENT_NORMS: Need[Mapping[str, float]] = Need(
    "norms of parameter gradients",
    lambda run: {name: float(norm(g)) for name, g in run[PARAMETER_GRADIENTS].items() if g is not None},
    Stage.BACKWARD,
    requires=(PARAMETER_GRADIENTS,),
)
"""Norms of the parameter gradients by name, without those that are None."""

GRADIENT_TERMS: Need[Mapping[str, Terms]] = Need(
    "terms of gradients",
    lambda run: run.findings.get(GRADIENT_TERMS.name, {}),
    Stage.BACKWARD,
    instruments=(observe_terms,),
    requires=(PARAMETER_GRADIENTS,),
)
"""Parameter gradients of the first seed, by name, in comparison with the terms that they are sums of.

Parameters whose terms are not known are left out. They are all of them along time, where most operations take less time than it
takes to observe them, and in a model with custom autograd functions.
"""


@contextmanager
def joint_sweep_observed(run: Run) -> Iterator[None]:
    """Observe the pass of a random cotangent through a joint chain for :data:`GRADIENT_TERMS`, on the first seed.

    See Note [Terms of a gradient] in gradient_terms.py.
    """
    observer: TermObserver | None = run.capture.watched.get(observe_terms)
    is_known = run.first_sweep is not None or GRADIENT_TERMS.name in run.findings
    if observer is None or is_known or run.chain.along == "time":
        yield
        return
    model, graph, chain = run.capture.model, run.graph, run.chain
    begin = chain.steps[-2].end if len(chain) > 1 else -math.inf
    with observer.random_cotangents(model, graph, until=begin):
        yield
    outputs = [t for t in tensors_in(run.capture.output) if carries_gradient(t) and t.numel() > 1]
    # A part of the output that the loss does not depend on may have no backward pass.
    with observer.random_cotangents(model, graph, since=begin), suppress(RuntimeError):
        if outputs:
            roots, weights = functional(outputs, None, run.seed)
            edges = [GradientEdge(*edge) for edge in chain.cut.states[-2]]
            backward(roots, edges, [weight.unsqueeze(0) for weight in weights])


@dataclass(slots=True, eq=False)
class SquareSums:
    """Sums of squares of the tensors with a gradient that modules took or returned."""

    square_sums: dict[Edge, tuple[Tensor, int]] = field(default_factory=dict)
    """Sum of squares and number of elements, by the edge of the autograd graph that stands for the tensor."""

    def observe(self, edge: Edge, tensor: Tensor) -> None:
        """Add one tensor."""
        self.square_sums[edge] = norm(tensor).square(), tensor.numel()

    def root_mean_square(self, state: Iterable[Edge]) -> float:
        """Return the RMS over all elements of a state, of those tensors that modules took or returned; NaN without any."""
        seen = [self.square_sums[edge] for edge in state if edge in self.square_sums]
        count = sum(size for _, size in seen)
        return math.sqrt(sum(float(total) for total, _ in seen) / count) if count else math.nan


@contextmanager
def _square_sums(recorder: Recorder) -> Iterator[SquareSums]:
    found = SquareSums()
    recorder.observers.append(found.observe)
    yield found


STATE_RMS: Need[SquareSums] = Need(
    "state RMS", lambda run: run.capture.watched[_square_sums], instruments=(_square_sums,)
)
"""Sums of squares that give the RMS of each state."""

OPERATIONS: Need[dict[str, tuple[str, ...]]] = Need(
    "operations of the steps", lambda run: operations_by_step(run.capture, run.graph, run.chain)
)
"""Names of the operations that the signal passes, by step. No measure reads them, but baselines record them."""


def _settings(run: Run) -> dict[str, tuple[str, ...]]:
    observer: SettingsObserver = run.capture.watched[SettingsObserver]
    read_by = {call: _readers_text(readers) for call, readers in observer.readers.items()}
    return {
        name: tuple(call + read_by.get((name, call), "") for call in calls) for name, calls in observer.found.items()
    }


def _readers_text(readers: Collection[tuple[str, str]]) -> str:
    """Return the modules that read the result of a call, as in `` read by layers.*.attention as mask``."""
    by_argument: dict[str, list[str]] = {}
    for name, argument in readers:
        by_argument.setdefault(argument, []).append(name)
    forms = [
        form + (f" as {argument}" if argument else "")
        for argument, names in by_argument.items()
        for form, _, _ in with_stars(names, names)
    ]
    return f" read by {', '.join(forms[:MOST_READERS])}{', …' if len(forms) > MOST_READERS else ''}"


SETTINGS: Need[dict[str, tuple[str, ...]]] = Need(
    "constants in the code of modules",
    _settings,
    instruments=(SettingsObserver,),
)
"""Calls that are given constants, by module, with the inner modules that read the results.

No measure reads them, but baselines record them.
"""


def grows_by(run: Run) -> float:
    """Return the logarithm of the RMS of the last state over that of the first one; NaN if one is unknown or zero.

    Args:
        run: A run with the need :data:`STATE_RMS`.
    """
    first, *_, last = run.chain.cut.states
    sizes = [run[STATE_RMS].root_mean_square(state) for state in (first, last)]
    return math.log(sizes[1] / sizes[0]) if all(size > 0 for size in sizes) else math.nan
