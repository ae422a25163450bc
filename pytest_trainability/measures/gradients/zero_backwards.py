"""Nodes of the graph whose backward pass returns zeros, although the gradient that arrives at them is not zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...engine.capture.operators import PRODUCTS, operator_name
from ...engine.linalg.norms import norm
from ...engine.runs.objective import functional, trainable_parameters
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import custom_function_of, leaf_of
from ...records.causes import CauseRecord
from ...records.text import format_names

__all__ = ["ZERO_BACKWARDS", "ZeroBackward", "zero_backward_causes"]


_MULTIPLYING = PRODUCTS | {"Mul", "Div"}


@dataclass(frozen=True, slots=True)
class ZeroBackward:
    """One node that stops the gradient of parameters."""

    operation: str
    """Name of the custom function, or of the operation."""
    is_custom: bool
    place: str
    """The module that runs it, with its class."""
    parameter: str


class _Passed:
    """What has passed nodes in one backward pass."""

    def __init__(self) -> None:
        self.arrived: set[Node] = set()
        """Nodes at which a gradient has arrived that is not zero."""
        self.left: set[tuple[Node, int]] = set()
        """Nodes, and numbers of their inputs, to which a gradient has gone on that is not zero."""

    def hook_of(self, node: Node) -> Callable[..., None]:
        def note(sent: Sequence[Tensor | None], came: Sequence[Tensor | None]) -> None:
            self.arrived.update([node] if any(map(_is_nonzero, came)) else [])
            self.left.update((node, number) for number, gradient in enumerate(sent) if _is_nonzero(gradient))

        return note


def _is_nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(norm(gradient.detach()) != 0)


def _zero_backwards(run: Run) -> tuple[ZeroBackward, ...]:
    parameters = trainable_parameters(run.capture.model)
    roots, weights = functional(run.capture.output, run.capture.loss, run.seed)
    passed = _Passed()
    handles: list[Any] = [node.register_hook(passed.hook_of(node)) for node in run.graph.nodes if leaf_of(node) is None]
    try:
        found = torch.autograd.grad(roots, list(parameters.values()), weights, allow_unused=True, retain_graph=True)
    except RuntimeError:
        # A backward pass that runs only once, such as that of a fused function. There is no cause then.
        return ()
    finally:
        for handle in handles:
            handle.remove()
    zero = {id(p): name for (name, p), g in zip(parameters.items(), found) if g is not None and not _is_nonzero(g)}
    return tuple(_stopping(run, zero, passed))


def _stopping(run: Run, zero: Mapping[int, str], passed: _Passed) -> Iterator[ZeroBackward]:
    """Yield the nodes that the gradient of each parameter does not pass, the ones next to it first."""
    readers: dict[Node, list[tuple[Node, int]]] = {}
    for node in run.graph.nodes:
        for number, (producer, _) in enumerate(node.next_functions):
            if producer is not None:
                readers.setdefault(producer, []).append((node, number))
    leaves = {
        node: zero[id(leaf)] for node in run.graph.nodes if (leaf := leaf_of(node)) is not None and id(leaf) in zero
    }
    for start, name in leaves.items():
        for node in _first_reached(start, readers, passed):
            function = custom_function_of(node)
            operation = operator_name(node) if function is None else function.__name__
            place = run.capture.place_of(run.graph.place[node])
            yield ZeroBackward(operation, function is not None, place, name)


def _first_reached(start: Node, readers: Mapping[Node, Sequence[tuple[Node, int]]], passed: _Passed) -> Iterator[Node]:
    """Yield the nodes at which a gradient arrives, and from which none gets to a node."""
    pending, seen = [start], {start}
    while pending:
        for node, number in readers.get(pending.pop(), ()):
            if node in passed.arrived and (node, number) not in passed.left:
                yield node
            elif node not in passed.arrived and node not in seen:
                seen.add(node)
                pending.append(node)


ZERO_BACKWARDS: Need[tuple[ZeroBackward, ...]] = Need("backward passes that return zeros", _zero_backwards)
"""The nodes that stop the gradients of parameters, one for each node and parameter."""


def zero_backward_causes(
    found: Sequence[ZeroBackward], names: Sequence[str], *, custom_only: bool = False
) -> Iterator[CauseRecord]:
    """Yield a cause for each custom function, or operation of a module, that stops the gradient of parameters.

    Args:
        found: The nodes.
        names: The parameters to explain, in the model's order.
        custom_only: Whether operations of PyTorch are left out, as where a weight that is zero explains them.
    """
    stopped: dict[str, list[str]] = {}
    for one in sorted(found, key=lambda one: names.index(one.parameter) if one.parameter in names else -1):
        # A product with a parameter passes nothing on to it where what it multiplies is zero.
        is_named = one.is_custom or not (custom_only or one.operation in _MULTIPLYING)
        if one.parameter in names and is_named:
            of_torch = f"{one.operation} in {one.place} passes no gradient"
            what = f"{one.operation}.backward returns zeros" if one.is_custom else of_torch
            stopped.setdefault(what, []).append(one.parameter)
    for what, parameters in stopped.items():
        shown = format_names(list(dict.fromkeys(parameters)))
        yield CauseRecord(f"{what} for {shown}, although the gradient that arrives is not zero")
