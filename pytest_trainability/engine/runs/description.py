"""The description of a measurement that all seeds share: steps, mode, device and notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from ...records.estimates import Steps
from ...records.names import with_stars
from ..capture.chain import Chain, dependent_nodes, describe
from ..capture.graph import Graph
from ..capture.operators import operator_name
from ..capture.recorder import Call, Capture, Edge, Places
from ..capture.recurrence import Recurrence, find_recurrences
from ..capture.weights import WeightLayers
from ..isolation import digest
from ..jacobian.skips import runs_side_by_side
from ..jacobian.trajectories import Division
from ..torch_internals import custom_function_of, is_batch_norm, is_lazy
from ..trees import batch_size, tensors_in
from .finiteness import NotFinite
from .recipe import Recipe

__all__ = ["CodeFacts", "Cutting", "Ensemble", "Plan", "described"]

_SHOWN = 3
"""Number of names that a note lists."""
_MOST_SHAPES = 8
"""Number of shapes of an output that are recorded."""
NOTABLE_SKIPS = 1.0
"""Nats by which the log gain must differ without skips for a note."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions of the first seed's run that hold for all seeds."""

    calls: frozenset[tuple[str, int]]
    """Calls that are steps: path of the module and index of the call."""
    division: Division
    """Division of the states into trajectories."""
    recurrence: str = ""
    """Along time, the name of the recurrence that is measured."""
    places: Places | None = field(default=None, compare=False)
    """Along depth, the places of the tensors that belong to states."""
    architecture: str = field(default="", compare=False)
    """Digest of the names, classes and shapes of the first seed's model."""
    findings: dict[str, Any] = field(default_factory=dict, compare=False)
    """Findings about the architecture, which later seeds reuse, by the name of the need that made them."""

    def findings_about(self, model: nn.Module) -> dict[str, Any]:
        """Return the findings, to which others may be added; none about a model of another architecture than the first one's."""
        return self.findings if _architecture(model) == self.architecture else {}


@dataclass(frozen=True, slots=True)
class Cutting:
    """The chain of a run, and the calls that it was made from."""

    chain: Chain
    calls: Sequence[Call]
    """Calls that were chosen as steps; some of them may not lie on the chain."""
    recurrences: Sequence[Recurrence] = ()
    """Along time, all recurrences of the model."""
    recurrence: Recurrence | None = None
    """Along time, the chosen recurrence."""


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """Facts about the code of a model that neither its operations nor its constants show."""

    output: str = ""
    """Shapes of the tensors that the model returns, such as ``(32, 10)``."""
    custom_functions: tuple[str, ...] = ()
    """Names of the custom autograd functions, whose backward pass is their own."""
    cut_off: tuple[str, ...] = ()
    """Modules like the steps that a gradient reaches, and that read nothing through which it would get to the inputs."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The description that all runs of a measurement share, and the readings of each run."""

    model_name: str
    """Class of the model."""
    steps: Steps
    mode: str
    """``"train"`` or ``"eval"``."""
    device: str
    dtype: str
    gradient_of: str
    """The function whose gradient is measured: ``"the loss"`` or ``"a random functional of the output"``."""
    along: str
    """``"depth"`` or ``"time"``."""
    time: float | None
    """Time that the chain spans; None where steps have no duration."""
    parameters: int
    """Number of entries of all parameters."""
    notes: tuple[str, ...]
    """Remarks for readers of the numbers."""
    cautions: tuple[str, ...]
    """Remarks that limit what a verdict means, and are always printed."""
    plan: Plan
    seeds: tuple[int, ...] = ()
    """Seeds that were run."""
    readings: tuple[Mapping[str, Any], ...] = ()
    """Result of ``read`` for each seed."""
    not_finite: tuple[tuple[NotFinite, ...], ...] = ()
    """Entries of the output and of the loss that are not finite, for each seed."""
    code: CodeFacts = field(default_factory=lambda: CodeFacts())
    """What baselines record of the code besides its operations."""
    interrupted: bool = False
    """Whether Ctrl-C has ended the runs before all seeds were drawn."""
    draws: tuple[str, ...] = ()
    """Two digests per seed, separated by a space. The first one is of the CPU generators after the build of the model and of the
    inputs' shapes and means: it is equal where the same seed drew as many numbers, for the same inputs. The second one is of the
    generators after the forward pass: it is equal where the forward pass drew as many numbers, such as dropout masks."""


def described(
    recipe: Recipe,
    capture: Capture,
    graph: Graph,
    cutting: Cutting,
    division: Division,
    skipped: tuple[float, float] | None = None,
) -> Ensemble:
    """Return the description of all runs, given the first one; without readings yet.

    Args:
        recipe: Settings of the measurement.
        capture: The first run.
        graph: Its graph.
        cutting: Its chain.
        division: Division of the states into trajectories.
        skipped: Log gain of the chain with and without the edges that pass by a step; None if there are none.
    """
    chain, chosen = cutting.chain, cutting.recurrence
    parameters = list(capture.model.parameters())
    dtype = parameters[0].dtype if parameters else next(tensors_in(capture.inputs)).dtype
    return Ensemble(
        model_name=type(capture.model).__name__,
        steps=Steps(chain.names, describe(chain.steps), _left_out(cutting)),
        mode="train" if capture.model.training else "eval",
        device=str(capture.device),
        dtype=str(dtype).removeprefix("torch."),
        gradient_of="a random functional of the output" if capture.loss is None else "the loss",
        along=chain.along,
        time=sum(chain.durations) if chain.durations else None,
        parameters=sum(parameter.numel() for parameter in capture.model.parameters()),
        notes=tuple(_notes(recipe, capture, cutting, WeightLayers(capture, graph), skipped)),
        cautions=tuple(_cautions(capture, graph, chain)),
        plan=Plan(
            frozenset((call.path, call.index) for call in cutting.calls),
            division,
            chosen.name if chosen is not None else "",
            _places_of_states(capture, chain) if chain.along == "depth" else None,
            _architecture(capture.model),
        ),
        code=CodeFacts(_shapes(capture.output), _custom_functions(graph), _cut_off(capture, graph, chain)),
    )


def _architecture(model: nn.Module) -> str:
    modules = (f"{name} {type(module).__qualname__}" for name, module in model.named_modules())
    held = (*model.named_parameters(), *model.named_buffers())
    tensors = (f"{name} {'lazy' if is_lazy(t) else tuple(t.shape)} {t.requires_grad}" for name, t in held)
    return digest("\n".join((*modules, *tensors)).encode())


def _shapes(output: Any) -> str:
    """Return the shapes of tensors as text, those that follow each other and are equal with their number."""
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_in(output)]
    counted = [(shape, len(list(group))) for shape, group in groupby(shapes)]
    text = ", ".join(shape if count == 1 else f"{shape} ×{count}" for shape, count in counted[:_MOST_SHAPES])
    return text + (", …" if len(counted) > _MOST_SHAPES else "")


def _custom_functions(graph: Graph) -> tuple[str, ...]:
    found = (custom_function_of(node) for node in graph.nodes)
    return tuple(sorted({f.__name__ for f in found if f is not None and not f.__module__.startswith("torch.")}))


def _cut_off(capture: Capture, graph: Graph, chain: Chain) -> tuple[str, ...]:
    reached = {*graph.nodes}
    calls = [c for c in chain.left_out if not c.inner and c.slots and any(node in reached for node, _ in c.outputs)]
    known = dependent_nodes(capture, graph) if calls else set()
    found: list[str] = []
    for call in sorted(calls, key=lambda call: call.start):
        if not any(node in known for node, _ in call.inputs):
            found.append(call.path)
            # What follows reads the results of this one.
            known |= {node for node, _ in call.outputs} | graph.downstream(e for e in call.outputs if e[0] in reached)
    return tuple(dict.fromkeys(found))


def _places_of_states(capture: Capture, chain: Chain) -> Places:
    """Return where calls read or return tensors of states. A tensor may have several places, of which another seed needs one."""
    states = {edge for state in chain.cut.states for edge in state}

    def positions(edges: Sequence[Edge | None]) -> frozenset[int]:
        return frozenset(i for i, edge in enumerate(edges) if edge in states)

    return {(call.path, call.index): (positions(call.slots), positions(call.results)) for call in capture.calls}


def _left_out(cutting: Cutting) -> str:
    """Return a description of the calls, or the recurrences, that could have been steps and are not on the chain."""
    chain, chosen = cutting.chain, cutting.recurrence
    if chosen is not None:
        others = [f"steps='time:{recurrence.name}'" for recurrence in cutting.recurrences if recurrence is not chosen]
        return f"other recurrences, {_first_of(others)}" if others else ""
    calls = _like_steps(chain)
    on_chain = {call.path for call in chain.steps}
    modules = {call.path: call for call in calls}
    # A second call of a module, such as one for boundary conditions or a second view, is no module that was missed.
    again = [modules[path] for path in modules if path in on_chain]
    missed = [modules[path] for path in modules if path not in on_chain]
    texts = [_with_place(missed)] if missed else []
    return "; ".join([*texts, f"other calls of {_with_place(again)}, which are on it"] if again else texts)


def _like_steps(chain: Chain) -> list[Call]:
    """Return the calls of modules of the steps' classes that are not on the chain."""
    return [call for call in chain.left_out if type(call.module) in {type(step.module) for step in chain.steps}]


def _with_place(calls: Sequence[Call]) -> str:
    """Return a description of one call of each module, with the name of the module, or of what holds the first one of several."""
    place = calls[0].path.rpartition(".")[0] if len(calls) > 1 else calls[0].path
    return describe(calls) + (f" ({place})" if place else "")


def _first_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _cautions(capture: Capture, graph: Graph, chain: Chain) -> Iterator[str]:
    """Yield a remark on a chain of one step, with the option that may find more of them."""
    if len(chain) == 1:
        cure = "; steps='time' measures its time steps" if chain.along == "depth" and _has_time(capture, graph) else ""
        yield f"the chain has one step only, {chain.names[0]}: its gain says nothing about the rest of the model{cure}"


def _has_time(capture: Capture, graph: Graph) -> bool:
    """Whether the model has time steps: a recurrent layer, an adjoint solver of an ODE, or calls that depend on each other."""
    return (
        any(isinstance(call.module, (nn.RNNBase, nn.RNNCellBase)) for call in capture.calls)
        or any(operator_name(node) == "OdeintAdjointMethodBackward" for node in graph.nodes)
        or bool(find_recurrences(capture, graph))
    )


# Notes ------------------------------------------------------------------------------------------------------------


def _notes(
    recipe: Recipe, capture: Capture, cutting: Cutting, weights: WeightLayers, skipped: tuple[float, float] | None
) -> Iterator[str]:
    chain, chosen = cutting.chain, cutting.recurrence
    if recipe.fixed and list(capture.model.parameters()):
        yield "a finished module is one draw of its weights; hand in a factory to average over seeds"
    if chosen is None:
        yield from _notes_on_depth(capture, chain, weights)
        yield from _notes_on_skips(chain, skipped)
    yield from _notes_on_batch_norm(capture)
    if capture.rewritten:
        names = [form for form, _, _ in with_stars(list(capture.rewritten), list(capture.rewritten))]
        yield f"the first forward pass has changed parameters, whose new values are measured: {_first_of(names)}"
    yield from capture.notes
    if chosen is not None:
        yield from _notes_on_time(chosen, chain, capture.device)


def _notes_on_depth(capture: Capture, chain: Chain, weights: WeightLayers) -> Iterator[str]:
    if stem := _stem(capture, chain, weights):
        yield f"layers with weights before the chain: {_first_of(stem)}"
    if any(isinstance(call.module, (nn.RNNBase, nn.RNNCellBase)) for call in capture.calls):
        yield "the model is recurrent and was cut along depth; steps='time' cuts it along time"
    if not capture.inputs_carry_gradient:
        yield "the model accepts no inputs that require grad, so that the first state begins at the first parameter"


def _notes_on_skips(chain: Chain, skipped: tuple[float, float] | None) -> Iterator[str]:
    """Yield a note on what passes by all steps, and one on what passes by some, if the gain depends on it."""
    if chain.cut.bypasses:
        steps = f"all {len(chain)} steps" if len(chain) > 1 else "the step"
        yield f"the input also passes by {steps}: this path is no part of the chain, whose gain is that of the steps"
    if skipped is None or skipped[0] == skipped[1] or abs(skipped[0] - skipped[1]) < NOTABLE_SKIPS:
        return
    if skipped[1] == -math.inf and runs_side_by_side(chain):
        yield "no path leads through all steps: some of them run side by side, and the gain is that of all paths together"
    else:
        yield (
            f"skips pass by some of the steps: without them, the log gain of the first seed would be {skipped[1]:+.1f} nats "
            f"instead of {skipped[0]:+.1f}"
        )


def _stem(capture: Capture, chain: Chain, weights: WeightLayers) -> list[str]:
    """Return the layers with weights that ran before the first step, except embeddings, and those that another note names."""
    missed = {id(call) for call in _like_steps(chain)}
    calls = [
        call
        for call in capture.calls
        if call.end <= chain.steps[0].start
        and not isinstance(call.module, (nn.Embedding, nn.EmbeddingBag))
        and call.module in weights
        and id(call) not in missed
    ]
    names = list(dict.fromkeys(call.path for call in calls))
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _notes_on_batch_norm(capture: Capture) -> Iterator[str]:
    batch_norm = any(is_batch_norm(m) and m.training for m in capture.model.modules())
    if batch_norm and batch_size(capture.inputs) == 1 and capture.device.type == "cpu":
        yield (
            "BatchNorm on a batch of one: PyTorch 2.13 on the CPU can compute a wrong gradient here; use two samples "
            "or more"
        )


def _notes_on_time(chosen: Recurrence, chain: Chain, device: torch.device) -> Iterator[str]:
    if chain.steps[0] is not chosen.calls[0]:
        yield "the chain begins with the second step: the initial state cannot be distinguished from other tensors"
    if chain.steps[-1] is not chosen.calls[-1]:
        yield "the chain ends before the last step: its state cannot be distinguished from other tensors"
    if chosen.sequences > 1:
        yield (
            f"{chosen.name!r} runs on {chosen.sequences} sequences that do not depend on each other, or .detach() cuts its "
            "gradient: the longest sequence is measured"
        )
    module = chosen.calls[0].module
    if isinstance(module, nn.RNNBase) and module.training and module.dropout and device.type != "cpu":
        yield f"{chosen.name!r} draws other dropout masks than its fused kernel does"
