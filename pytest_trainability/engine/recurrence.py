"""Time as depth: which calls of a run are its time steps, and the chain of what is carried from one to the next."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from ..errors import CutError, UsageError
from .capture import Call, Capture, Edge, Recorder, unique, with_gradient
from .chain import Chain, call_name, inner_eps
from .graph import Cut, Graph
from .hooks import hooked_edges
from .rollout import Rollout
from .trees import carries_gradient, map_tensors

__all__ = ["Recurrence", "chain_along", "choose_recurrence", "find_recurrences", "initial_states"]


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """Calls of one module, or of several in turn, each of which depends on the one before."""

    steps: tuple[tuple[Call, ...], ...]
    """The calls of each time step, in program order."""
    runs: int = 1
    """How many stretches of calls there are that do not depend on each other; the longest one is this."""

    @property
    def name(self) -> str:
        """Path of the module that ends a step."""
        return self.steps[0][-1].path

    @property
    def calls(self) -> tuple[Call, ...]:
        """The call that ends each time step."""
        return tuple(step[-1] for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


@contextmanager
def initial_states(recorder: Recorder) -> Iterator[None]:
    """Let the constant tensors that a module is called with at first carry a gradient, as an initial state of zeros.

    The cells of ``torch.nn`` are handed the zeros that they would make themselves. Numbers are not changed.
    """
    handed: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor, int]]] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module in handed or not torch.is_grad_enabled():
            return None
        copies = handed[module] = []

        def given(tensor: torch.Tensor) -> torch.Tensor:
            if carries_gradient(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
                return tensor
            copy = with_gradient(tensor)
            copies.append((tensor, copy, copy._version))
            return copy

        if isinstance(module, nn.RNNCellBase) and args and args[1:] in {(), (None,)} and kwargs.get("hx") is None:
            zeros = args[0].new_zeros(*args[0].shape[:-1], module.hidden_size)
            args, kwargs = args[:1], {"hx": (zeros, zeros) if isinstance(module, nn.LSTMCell) else zeros}
        return map_tensors(args, given), map_tensors(kwargs, given)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # A step may write its new state into the tensor that it was given.
        for tensor, copy, version in handed.get(module, ()):
            if copy._version != version:
                tensor.copy_(copy)
        handed[module] = []

    handles = []
    try:
        if recorder.record.inputs_carry_gradient:
            for module in recorder.paths:
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
                    handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


# Which calls -----------------------------------------------------------------------------------------------------


def find_recurrences(record: Capture, graph: Graph) -> list[Recurrence]:
    """Return all recurrences, in the order of their beginning.

    A module is recurrent when its calls depend on its earlier ones. Modules that take turns, as the cells of two layers do,
    make one step together; a module inside of a recurrent one belongs to it.
    """
    groups: dict[tuple[str, str], list[Call]] = {}
    around: set[Call] = set()
    for call in sorted(record.calls, key=lambda c: (c.start, len(_parents(c)))):
        groups.setdefault((call.path, call.inner), []).append(call)
        if call.inner:
            around.update(_parents(call))
    kept: set[Call] = set()
    found: list[Recurrence] = []
    # What makes its inner steps known is no step itself; then the outer ones first.
    for calls in sorted(groups.values(), key=lambda group: not group[0].inner):
        alone = len(calls) < 2 and not calls[0].inner and not _is_of_rollout(calls[0])
        if alone or (not calls[0].inner and any(call in around for call in calls)):
            continue
        if any(parent in kept for call in calls for parent in _parents(call)):
            continue
        runs = _runs(graph, calls)
        longest = max(runs, key=len)
        if len(longest) > 1 or longest[0].inner or _is_of_rollout(longest[0]):
            kept.update(calls)
            found.append(Recurrence(tuple((call,) for call in longest), len(runs)))
    return _merged(sorted(found, key=lambda recurrence: recurrence.steps[0][0].start))


def _is_of_rollout(call: Call) -> bool:
    return call.parent is not None and isinstance(call.parent.module, Rollout)


def _parents(call: Call) -> list[Call]:
    found = []
    while call.parent is not None:
        call = call.parent
        found.append(call)
    return found


def _runs(graph: Graph, calls: Sequence[Call]) -> list[list[Call]]:
    """Split the calls of one module where one does not depend on the one before."""
    starts = [call.start for call in calls]
    newest: dict[Node, int] = {}
    linked = [False] * len(calls)
    for node in graph.nodes:
        place = graph.place[node]
        index = bisect_right(starts, place) - 1
        inside = index >= 0 and place < calls[index].end
        latest = -1
        for producer, _ in graph.reads[node]:
            number = newest.get(producer, -1)
            if inside and number == index - 1 >= 0:
                linked[index] = True
            latest = max(latest, number)
        if inside or latest >= 0:
            newest[node] = index if inside else latest
    runs = [[calls[0]]]
    for call, follows in zip(calls[1:], linked[1:]):
        if follows:
            runs[-1].append(call)
        else:
            runs.append([call])
    return runs


def _merged(found: Sequence[Recurrence]) -> list[Recurrence]:
    """Join recurrences whose calls take turns."""
    merged: list[Recurrence] = []
    for recurrence in found:
        for index, other in enumerate(merged):
            if _take_turns(other, recurrence):
                steps = tuple(a + b for a, b in zip(other.steps, recurrence.steps))
                merged[index] = Recurrence(steps, max(other.runs, recurrence.runs))
                break
        else:
            merged.append(recurrence)
    return merged


def _take_turns(a: Recurrence, b: Recurrence) -> bool:
    return (
        len(a) == len(b)
        and all(one[-1].end <= other[0].start for one, other in zip(a.steps, b.steps))
        and all(other[-1].end <= one[0].start for one, other in zip(a.steps[1:], b.steps))
    )


def choose_recurrence(record: Capture, found: Sequence[Recurrence], name: str) -> Recurrence:
    """Return the recurrence of that name, or the longest one, the first among equals, where none is given.

    Raises:
        CutError: There is no recurrence.
        UsageError: There is none of that name.
    """
    if not found:
        msg = (
            "steps='time' needs a recurrence: a module that is called once per time step with what its last call has made, "
            f"an nn.RNN, nn.LSTM or nn.GRU, or a solver of torchdiffeq. {type(record.model).__name__} has none that the "
            "output depends on. Put one time step into a module of its own and call it in a loop; look for .detach() or "
            "torch.no_grad() in the loop."
        )
        raise CutError(msg)
    if not name:
        return max(found, key=len)
    for recurrence in found:
        if name in {call.path for call in recurrence.steps[0]}:
            return recurrence
    names = ", ".join(repr(f"time:{recurrence.name}") for recurrence in found)
    msg = f"steps='time:{name}' must name a recurrence of {type(record.model).__name__}. It has {names}."
    raise UsageError(msg)


# The chain -------------------------------------------------------------------------------------------------------


def chain_along(recurrence: Recurrence) -> Chain:
    """Return the chain of what is carried from step to step: the initial state, then the state after each.

    Only what flows on to the last step counts. What a step gives out beside, to be read after the last one, is not carried.

    Where a module makes its initial state itself, or keeps its state to itself, the first or the last state cannot be told from
    its other tensors; the chain then lacks a step at that end.

    Raises:
        CutError: Nothing is carried through two steps.
    """
    steps = recurrence.steps
    graph = Graph([edge for call in steps[-1] for edge in call.outputs])
    ends = [step[-1].end for step in steps]
    begin = steps[0][0].start
    if steps[0][0].inner:
        x0, last = steps[0][0].inputs, steps[-1][0].outputs
    elif len(steps) == 1:
        # Of a rollout: what comes in beside the state comes after it.
        last = steps[0][0].outputs
        x0 = unique(edge for edge in steps[0][0].slots[: len(last)] if edge is not None)
    else:
        first = _made_between(graph, begin, ends[0])
        if not first:
            raise CutError(_not_carried(recurrence))
        states = graph.cut(first, ends[:-1], ()).states
        x0 = _initial(graph, steps, first)
        last = _carried_out(graph, steps, states[-1])
    skipped = 0 if x0 else 1
    moments = [*([begin] if x0 else []), *ends[:-1], *([ends[-1]] if last else [])]
    if len(moments) < 2:
        raise CutError(_not_carried(recurrence))
    cut: Cut = graph.cut(x0 or first, moments, last)
    calls = recurrence.calls[skipped : skipped + len(cut.segments)]
    among = recurrence.calls
    durations = tuple(_duration(call) for call in calls)
    return Chain(
        calls,
        tuple(call_name(call, among) for call in calls),
        cut,
        hooked=hooked_edges({edge for state in cut.states[1:-1] for edge in state}),
        inner_eps=inner_eps(graph, cut, [call.end for call in calls]),
        along="time",
        durations=tuple(d for d in durations if d is not None) if None not in durations else (),
        active=tuple(call.active for call in calls) if any(call.active is not None for call in calls) else (),
    )


def _not_carried(recurrence: Recurrence) -> str:
    return (
        f"a state must be carried through two time steps at least. {recurrence.name!r} is called {len(recurrence)} times, "
        "and no more than one of these calls has both what it takes from the last one and what it hands on in plain sight. "
        "Measure a longer sequence, or hand the state in and out."
    )


def _made_between(graph: Graph, begin: int, end: int) -> tuple[Edge, ...]:
    """Return the edges that were made between two moments and are read later."""
    return unique(
        edge
        for node in graph.nodes
        if graph.place[node] >= end
        for edge in graph.reads[node]
        if begin <= graph.place[edge[0]] < end
    )


def _initial(graph: Graph, steps: Sequence[Sequence[Call]], first: Sequence[Edge]) -> tuple[Edge, ...]:
    """Return what the first step is given where the second one is given what the first one made; nothing if that is unclear."""
    reached = graph.downstream(first, since=steps[0][-1].end)
    made = {node for call in steps[0] for node in graph.nodes if call.start <= graph.place[node] < call.end}
    inside = graph.downstream((node, n) for node in made for n in range(len(node._input_metadata))) | made
    entering: dict[Edge, None] = {}
    for early, late in zip(steps[0], steps[1]):
        for mine, edge in zip(early.slots, late.slots):
            carried = edge is not None and (edge in first or edge[0] in reached)
            if carried and mine is not None and mine[0] in graph.place and mine[0] not in inside:
                entering[mine] = None
    return tuple(entering) if _sizes(entering) == _sizes(first) else ()


def _sizes(edges: Sequence[Edge] | dict[Edge, None]) -> list[tuple[int, ...]]:
    return sorted(tuple(node._input_metadata[number].shape) for node, number in edges)


def _carried_out(graph: Graph, steps: Sequence[Sequence[Call]], state: Sequence[Edge]) -> tuple[Edge, ...]:
    """Return what the last step gives out where the one before gave out its state; nothing if that is unclear."""
    where = {edge: (i, j) for i, call in enumerate(steps[-2]) for j, edge in enumerate(call.outputs)}
    last: list[Edge] = []
    for edge in state:
        if edge in where:
            i, j = where[edge]
            last += steps[-1][i].outputs[j : j + 1]
        elif graph.place[edge[0]] >= steps[-2][0].start:
            return ()
    return unique(last)


def _duration(call: Call) -> float | None:
    if call.duration is not None:
        return call.duration
    return call.parent.module.dt if call.parent is not None and isinstance(call.parent.module, Rollout) else None
