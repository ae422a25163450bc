"""The custom autograd functions of a model: where they act, and whether their forward pass changes anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.graph import Node

from ...engine.isolation import preserved_model
from ...engine.runs.objective import Objective
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import custom_function_of, inputs_of_forward, intercepted_custom_functions
from ...engine.trees import is_float, tensors_in

__all__ = ["CUSTOM_BACKWARD", "CUSTOM_FUNCTIONS", "CustomFunction"]


@dataclass(frozen=True, slots=True)
class CustomFunction:
    """One use of a custom autograd function."""

    name: str
    module: str
    """Path of the innermost module that calls it; empty for the model itself."""
    step: str
    """Name of the step that it belongs to; ``"loss"`` or ``"output"`` behind the last one."""


def _custom_functions(run: Run) -> tuple[CustomFunction, ...]:
    found = []
    for node in run.graph.nodes:
        function = custom_function_of(node)
        if function is not None and not function.__module__.startswith("torch."):
            found.append(CustomFunction(function.__name__, _module(run, node), _step(run, node)))
    return tuple(found)


def _module(run: Run, node: Node) -> str:
    call = run.capture.call_at(run.graph.place[node])
    return "" if call is None else call.path


def _step(run: Run, node: Node) -> str:
    place, chain = run.graph.place[node], run.chain
    last = "output" if run.capture.loss is None else "loss"
    return next((name for name, step in zip(chain.names, chain.steps) if place < step.end), last)


CUSTOM_FUNCTIONS: Need[tuple[CustomFunction, ...]] = Need("custom functions", _custom_functions)
"""The uses of custom autograd functions, except those of PyTorch."""


class _Forwards:
    """Observes whether custom functions return what they read."""

    def __init__(self) -> None:
        self.changes_nothing = False

    def forward(self, cls: type[Function], forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        inputs = [t.detach().clone() for t in tensors_in(inputs_of_forward(cls, args)) if is_float(t)]
        result = forward(*args)
        outputs = [t for t in tensors_in(result) if is_float(t)]
        if any(a.shape == b.shape and torch.equal(a, b) for a in inputs for b in outputs):
            self.changes_nothing = True
        return result

    def setup_context(self, setup_context: Callable[..., Any], args: tuple[Any, ...]) -> None:
        setup_context(*args)


def _has_custom_backward(run: Run) -> bool:
    """Return whether there are custom functions, and all of them change their inputs.

    One that returns what it reads exists for its backward pass: it reverses, scales or clips a gradient by design.
    """
    if not run[CUSTOM_FUNCTIONS]:
        return False
    observer = _Forwards()
    with (
        preserved_model(run.capture.model),
        intercepted_custom_functions(observer.forward, observer.setup_context),
    ):
        Objective.of(run)()
    return not observer.changes_nothing


CUSTOM_BACKWARD: Need[bool] = Need(
    "custom backward pass",
    lambda run: run.of_first_seed(CUSTOM_BACKWARD.name, lambda: _has_custom_backward(run)),
    Stage.RERUN,
    requires=(CUSTOM_FUNCTIONS,),
    once=True,
)
"""Whether the model has custom functions whose backward pass ought to be the derivative of their forward pass."""
