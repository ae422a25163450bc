"""Tensors that the loss trains in the autograd graph, and that are no parameters of the model."""

from __future__ import annotations

import math
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ...engine.capture.function_mode import numbered
from ...engine.capture.operators import operator_name
from ...engine.modules import modules_of
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import buffer_table, child_table, leaf_of, parameter_table, tables_of
from ..measure import declare

__all__ = ["HELD", "UNREGISTERED", "Place", "held_leaves"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model, or its inputs, hold a tensor."""

    path: str
    """Attributes, items and names from the object on, such as ``hidden[2].weight``."""
    holder: Any
    """The first value on the path that is in no table of a module: a list, a dict, an object; None for a registered tensor."""
    in_module: bool
    """Whether the path leads through a module from the holder on."""


# Search -----------------------------------------------------------------------------------------------------------
MOST_OBJECTS = 20_000
"""Number of objects after which the search ends: a model may hold its data set."""
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, torch.Generator)
"""Values that are not searched, as what they hold belongs to them by coincidence."""


def held_leaves(root: Any) -> dict[int, Place]:
    """Return the leaves that require a gradient and that an object holds, by identity, each with its shortest path.

    Modules, lists, tuples, dicts and the attributes of other objects are searched, breadth first. No code of the objects runs.

    Args:
        root: A model, or the inputs of one.

    Returns:
        The places, the nearest first. Those that a module has registered as parameters or buffers are among them.
    """
    return {id(tensor): place for tensor, place in _held_tensors(root) if tensor.is_leaf}


def _held_tensors(root: Any) -> Iterator[tuple[Tensor, Place]]:
    """Yield the tensors that require a gradient and that an object holds, each with its shortest path, the nearest first."""
    seen: set[int] = set()
    pending: deque[tuple[Any, str, Any, bool]] = deque([(root, "", None, False)])
    while pending and len(seen) < MOST_OBJECTS:
        value, path, holder, in_module = pending.popleft()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.requires_grad:
                yield value, Place(path.removeprefix("."), holder, in_module)
            continue
        within = in_module or (holder is not None and isinstance(value, nn.Module))
        for step, child, is_registered in _children(value):
            outside = holder if holder is not None or is_registered else child
            pending.append((child, path + step, outside, within))


def _children(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield step, child and whether a module has registered the child."""
    if isinstance(value, nn.Module):
        for table in (parameter_table(value), buffer_table(value), child_table(value)):
            yield from ((f".{name}", child, True) for name, child in table.items())
        if not isinstance(value, torch.jit.ScriptModule):
            tables = tables_of(value)
            yield from ((f".{name}", child, False) for name, child in vars(value).items() if name not in tables)
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", child, False) for key, child in value.items())
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{index}]", child, False) for index, child in enumerate(value))
    elif not isinstance(value, _OPAQUE):
        own = getattr(value, "__dict__", None)
        yield from ((f".{name}", child, False) for name, child in own.items()) if isinstance(own, dict) else ()


@dataclass(frozen=True, slots=True)
class Result:
    """A tensor that a model holds and that was computed from others that require a gradient."""

    place: Place
    operation: str
    leaves: frozenset[int]
    """Identities of the leaves that it depends on."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a model holds before its forward pass, which may leave tensors of one run in attributes."""

    leaves: dict[int, Place]
    """The :func:`held_leaves`."""
    results: tuple[Result, ...]


def _held(run: Run) -> Held:
    tensors = list(_held_tensors(run.capture.model))
    results = (
        Result(place, operator_name(tensor.grad_fn), frozenset(_leaves_of(tensor.grad_fn)))
        for tensor, place in tensors
        if tensor.grad_fn is not None
    )
    return Held({id(tensor): place for tensor, place in tensors if tensor.is_leaf}, tuple(results))


def _leaves_of(node: Node) -> Iterator[int]:
    """Yield the identities of the leaves that a node depends on."""
    pending, seen = [node], {node}
    while pending:
        node = pending.pop()
        leaf = leaf_of(node)
        if leaf is not None:
            yield id(leaf)
        new = {producer for producer, _ in node.next_functions if producer is not None} - seen
        seen |= new
        pending += new


HELD: Need[Held] = Need("tensors that the model holds", _held, Stage.BUILD)
"""Leaves that the model holds, and tensors that were computed from leaves when it was built."""


# Comparison with the graph ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Use:
    """A leaf of the graph and its first reading."""

    leaf: Tensor
    moment: int
    """Place in program order of the first operation that reads it."""


def _unregistered(run: Run) -> list[str]:
    uses = _uses(run)
    if not uses:
        return []
    places = run[HELD].leaves
    if any(id(use.leaf) not in places for use in uses):
        # A module may build layers in its first forward pass.
        places = {**held_leaves(run.capture.model), **places}
    nearest = {identity: number for number, identity in enumerate(places)}
    uses.sort(key=lambda use: (nearest.get(id(use.leaf), len(nearest)), use.moment))
    found = [
        _described(use.leaf, places.get(id(use.leaf)), _computed(run, use), _reader(run, use.moment)) for use in uses
    ]
    return [f"{name}: {reason}" for name, (_, reason) in zip(numbered([name for name, _ in found]), found)]


def _uses(run: Run) -> list[_Use]:
    """Return the leaves that are no parameters of the model, and that the model reads.

    A leaf counts if the model held it before it ran, or if it is an ``nn.Parameter``. Other tensors that require a gradient are
    made in the forward pass in order to differentiate with respect to them: inputs, initial states, positions of atoms.
    """
    known = {id(p) for module in modules_of(run.capture.model) for p in parameter_table(module).values()}
    known |= {id(p) for p in run.capture.model.parameters()}
    leaves = {node: leaf for node in run.graph.nodes if (leaf := leaf_of(node)) is not None and id(leaf) not in known}
    kept = {n: leaf for n, leaf in leaves.items() if isinstance(leaf, nn.Parameter) or id(leaf) in run[HELD].leaves}
    if not kept:
        return []
    given, consumers, end = held_leaves(run.capture.inputs), run.graph.consumers(), _end_of_model(run)
    uses = [
        _Use(leaf, min(run.graph.place[reader] for reader, _ in consumers[node]))
        for node, leaf in kept.items()
        if node in consumers and id(leaf) not in given
    ]
    return [use for use in uses if use.moment < end]


def _end_of_model(run: Run) -> float:
    """Return the moment at which the model has returned and the loss begins; infinite if the model computes the loss itself."""
    ends = [call.end for call in run.capture.calls if call.module is run.capture.model and not call.inner]
    return max(ends) if ends and run.recipe.loss is not None else math.inf


def _reader(run: Run, moment: int) -> str:
    """Return the path of the innermost module that was running at a moment; the class of the model outside of all others."""
    call = run.capture.call_at(moment)
    return (call.path if call is not None else "") or type(run.capture.model).__name__


def _computed(run: Run, use: _Use) -> Result | None:
    """Return what the model holds that was computed from a leaf when it was built; None for nothing."""
    return next((result for result in run[HELD].results if id(use.leaf) in result.leaves), None)


def _described(leaf: Tensor, place: Place | None, computed: Result | None, reader: str) -> tuple[str, str]:
    """Return a name for a leaf, and its shape with the reason why it is no parameter."""
    shape = tuple(leaf.shape)
    if place is None and computed is not None:
        name = computed.place.path
        cure = f"make the result one, self.{name.rpartition('.')[2]} = nn.Parameter(...)"
        return name, f"{shape} computed from an nn.Parameter ({computed.operation}), and so none itself: {cure}"
    if place is None:
        return f"{reader} reads a parameter", f"{shape} that the model does not hold: make it an attribute"
    return place.path, f"{shape} {_reason(place)}"


def _reason(place: Place) -> str:
    if place.holder is None:
        return "in a buffer, which no optimizer trains: use nn.Parameter"
    if isinstance(place.holder, Tensor):
        if isinstance(place.holder, nn.Parameter):
            return "in an attribute set without registration: assign it with self.NAME = ..."
        return "in a plain tensor: use nn.Parameter"
    if isinstance(place.holder, nn.Module):
        return "in an attribute set without registration: assign the module with self.NAME = ..."
    kind = "Module" if place.in_module else "Parameter"
    if isinstance(place.holder, Mapping):
        return f"in a plain {type(place.holder).__name__}: use nn.{kind}Dict"
    if isinstance(place.holder, (list, tuple, deque)):
        return f"in a plain {type(place.holder).__name__}: use nn.{kind}List"
    return f"in a {type(place.holder).__name__}, which is no nn.Module: derive it from nn.Module"


UNREGISTERED: Need[list[str]] = Need("unregistered parameters", _unregistered, requires=(HELD,))
"""Leaves of the graph that are no parameters of the model: ``"PATH: SHAPE and reason"``, those in the model first."""


@declare("names", needs=[UNREGISTERED])
def unregistered_parameters(run: Run) -> list[str]:
    """Return the tensors that the loss trains in the autograd graph, and that are no parameters of the model.

    They require a gradient, the model reads them, and ``model.parameters()`` lacks them, so that no optimizer changes them:
    layers in a Python list or dict, a plain tensor or a buffer with ``requires_grad=True``, layers that the forward pass builds,
    an attribute that was computed from an ``nn.Parameter``, such as ``nn.Parameter(...) * 0.02``.
    A tensor counts if an attribute of the model leads to it, or if it is an ``nn.Parameter``.

    It misleads where another optimizer trains them by design, such as those of a second network in a list. Not listed are what
    the loss function alone reads, what the inputs hold, and tensors that the forward pass itself makes.

    Returns:
        ``"hidden[0].weight: (64, 64) in a plain list: use nn.ModuleList"``,
        ``"pos: (1, 16, 64) computed from an nn.Parameter (Mul), and so none itself: make the result one, …"``, or for a tensor to
        which no attribute leads,
        ``"MODULE reads a parameter: (64, 64) that the model does not hold…"`` with the innermost module that reads it. Those that
        the model holds come first, in the order of its modules and attributes.

    Source: pytorch/pytorch#666.
    """
    return run[UNREGISTERED]
