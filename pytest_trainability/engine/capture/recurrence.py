"""Time as depth: which calls of a run are its time steps, and the chain of what is carried from one to the next."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from ...errors import CutError, UsageError
from ..trees import carries_gradient, is_float
from .chain import Chain, call_name, inner_eps
from .gradient_hooks import hooked_edges
from .graph import Graph
from .recorder import Call, Capture, Edge, Recorder, edge_of, unique, with_gradient

__all__ = ["Recurrence", "chain_along", "choose_recurrence", "find_recurrences", "initial_states"]


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """Calls of one module, or of several in turn, each of which depends on the one before."""

    steps: tuple[tuple[Call, ...], ...]
    """The calls of each time step, in program order."""
    runs: int = 1
    """How many stretches of calls there are that do not depend on each other; the longest one is this."""
    name: str = ""
    """By which it is chosen: the path of the module that ends a step."""
    given: Set[Edge] = frozenset()
    """Edges of constants that were given a gradient, by copies that nobody else has."""

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
    capture = recorder.capture
    handed: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor, int, Node | None]]] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module in handed or not torch.is_grad_enabled():
            return None
        copies = handed[module] = []

        def given(tensor: torch.Tensor) -> torch.Tensor:
            if carries_gradient(tensor) or not is_float(tensor):
                return tensor
            copy = with_gradient(tensor)
            copies.append((tensor, copy, copy._version, copy.grad_fn))
            capture.given.add(edge_of(copy))
            return copy

        if isinstance(module, nn.RNNCellBase):
            args, kwargs = _with_initial_state(module, args, kwargs)
        return _changed(args, given), {name: _changed(value, given) for name, value in kwargs.items()}

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # A step may write its new state into the tensor that it was given.
        for tensor, copy, version, node in handed.get(module, ()):
            if copy._version != version:
                tensor.copy_(copy.detach() if copy.grad_fn is node else copy)
        handed[module] = []

    handles = []
    try:
        if recorder.capture.inputs_carry_gradient:
            for module in recorder.paths:
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
                    handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changed(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Change the tensors in nested tuples; lists and dictionaries are left alone: a step may put its new state there."""
    if isinstance(tree, tuple):
        items = [_changed(item, change) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return change(tree) if isinstance(tree, torch.Tensor) else tree


def _with_initial_state(
    cell: nn.RNNCellBase, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand a cell the zeros that it starts from where it is called without a state."""
    x, state = [*args, None, None][:2]
    x, state = kwargs.get("input", x), kwargs.get("hx", state)
    if state is not None or not isinstance(x, torch.Tensor):
        return args, kwargs
    zeros = x.new_zeros(*x.shape[:-1], cell.hidden_size)
    return (x,), {"hx": (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros}


# Which calls -----------------------------------------------------------------------------------------------------
def find_recurrences(capture: Capture, graph: Graph) -> list[Recurrence]:
    """Return all recurrences, in the order of their beginning.

    A module is recurrent when its calls depend on its earlier ones. Modules that take turns, as the cells of two layers do,
    make one step together; a module inside of a recurrent one belongs to it.
    """
    groups: dict[tuple[str, str], list[Call]] = {}
    around: set[Call] = set()
    for call in sorted(capture.calls, key=lambda c: (c.start, len(_parents(c)))):
        groups.setdefault((call.path, call.inner), []).append(call)
        if call.inner:
            around.update(_parents(call))
    kept: set[Call] = set()
    found: list[Recurrence] = []
    # What makes its inner steps known is no step itself; then the outer ones first.
    for calls in sorted(groups.values(), key=lambda group: not group[0].inner):
        if not calls[0].inner and (len(calls) < 2 or any(call in around for call in calls)):
            continue
        if not calls[0].inner and _is_elementary(calls[0].module):
            continue
        if any(parent in kept for call in calls for parent in _parents(call)):
            continue
        longest, runs = _longest_run(graph, calls)
        if len(longest) > 1 or (longest and calls[0].inner):
            kept.update(calls)
            found.append(Recurrence(tuple((call,) for call in longest), runs, given=capture.given))
    return _named(_merged(sorted(found, key=lambda recurrence: recurrence.steps[0][0].start)))


def _is_elementary(module: nn.Module) -> bool:
    """Whether it is an activation, a dropout or the like of ``torch.nn``, which all layers of a tower may share."""
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.parameters())


def _parents(call: Call) -> list[Call]:
    found = []
    while call.parent is not None:
        call = call.parent
        found.append(call)
    return found


def _longest_run(graph: Graph, calls: Sequence[Call]) -> tuple[list[Call], int]:
    """Return the longest stretch of a module's calls in which each depends on one before, and how many begin anew.

    A call follows the latest earlier one that it depends on, which need not be the one right before: one cell may serve two
    streams in turns.
    """
    starts = [call.start for call in calls]
    newest: dict[Node, int] = {}
    before = [-1] * len(calls)
    alive = [False] * len(calls)
    for node in graph.nodes:
        place = graph.place[node]
        index = bisect_right(starts, place) - 1
        inside = index >= 0 and place < calls[index].end
        latest = -1
        for producer, _ in graph.reads[node]:
            number = newest.get(producer, -1)
            if inside and number < index:
                before[index] = max(before[index], number)
            latest = max(latest, number)
        if inside:
            alive[index] = True
        if inside or latest >= 0:
            newest[node] = index if inside else latest
    for index in range(1, len(calls)):
        # An inner step may hand its state on untouched.
        if calls[index].inner and set(calls[index].inputs) & set(calls[index - 1].outputs):
            before[index] = index - 1
    lengths: list[int] = []
    for previous in before:
        lengths.append(1 + (lengths[previous] if previous >= 0 else 0))
    reaching = [
        i
        for i in range(len(calls))
        if alive[i] or (calls[i].inner and any(e[0] in graph.place for e in calls[i].outputs))
    ]
    if not reaching:
        return [], 0
    index = max(reaching, key=lambda i: (lengths[i], -i))
    run = []
    while index >= 0:
        run.append(calls[index])
        index = before[index]
    begun = sum(1 for index, previous in enumerate(before) if previous < 0 and alive[index])
    return run[::-1], max(begun, 1)


def _named(found: Sequence[Recurrence]) -> list[Recurrence]:
    """Give each a name of its own: the path of the module that ends a step, numbered where it comes again."""
    seen: dict[str, int] = {}
    named = []
    for recurrence in found:
        path = recurrence.steps[0][-1].path or recurrence.steps[0][-1].kind
        seen[path] = seen.get(path, 0) + 1
        named.append(replace(recurrence, name=path if seen[path] == 1 else f"{path}#{seen[path]}"))
    return named


def _merged(found: Sequence[Recurrence]) -> list[Recurrence]:
    """Join recurrences whose calls take turns."""
    merged: list[Recurrence] = []
    for recurrence in found:
        for index, other in enumerate(merged):
            if _take_turns(other, recurrence):
                steps = tuple(a + b for a, b in zip(other.steps, recurrence.steps))
                merged[index] = replace(other, steps=steps, runs=max(other.runs, recurrence.runs))
                break
        else:
            merged.append(recurrence)
    return merged


def _take_turns(a: Recurrence, b: Recurrence) -> bool:
    return (
        len(a) == len(b) > 1
        and all(one[-1].end <= other[0].start for one, other in zip(a.steps, b.steps))
        and all(other[-1].end <= one[0].start for one, other in zip(a.steps[1:], b.steps))
    )


def choose_recurrence(capture: Capture, found: Sequence[Recurrence], name: str) -> Recurrence:
    """Return the recurrence of that name, or the longest one, the first among equals, where none is given.

    Raises:
        CutError: There is no recurrence.
        UsageError: There is none of that name.
    """
    if not found:
        msg = (
            "steps='time' needs a recurrence: a module that is called once per time step with what its last call has made, "
            f"an nn.RNN, nn.LSTM or nn.GRU, or a solver of torchdiffeq. {type(capture.model).__name__} has none that the "
            "output depends on. Put one time step into a module of its own and call it in a loop, over two steps at least; look "
            "for .detach() or torch.no_grad() in the loop."
        )
        raise CutError(msg)
    if not name:
        return max(found, key=len)
    for recurrence in found:
        if name == recurrence.name or name in {call.path for call in recurrence.steps[0][:-1]}:
            return recurrence
    names = ", ".join(repr(f"time:{recurrence.name}") for recurrence in found)
    msg = f"steps='time:{name}' must name a recurrence of {type(capture.model).__name__}. It has {names}."
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
    begin, between = steps[0][0].start, _boundaries(graph, steps)
    first: tuple[Edge, ...] = ()
    if all(call.inner for call in steps[0]):
        x0 = _not_made_by(graph, steps[0])
    else:
        first = _made_by(graph, steps[0], between[0])
        x0 = _initial(graph, recurrence, first) if first else ()
    if not x0 and not first:
        raise CutError(_not_carried(recurrence))
    last: tuple[Edge, ...] = ()
    if len(steps) == 1 or (len(steps[-1]) == 1 and steps[-1][0].inner):
        last = steps[-1][-1].outputs
    elif len(between) == len(steps) - 1:
        state = graph.cut(x0 or first, [*([begin] if x0 else []), *between], ()).states[-1]
        last = _carried_out(graph, steps, state)
    moments = [*([begin] if x0 else []), *between, *([steps[-1][-1].end] if last else [])]
    if len(moments) < 2:
        raise CutError(_not_carried(recurrence))
    cut = graph.cut(x0 or first, moments, last)
    begun = 0 if x0 else 1
    calls = recurrence.calls[begun:][: len(cut.segments)]
    # Of the first state nothing is known but what it becomes.
    unknown = tuple(None for _ in cut.states[0]) if x0 else _roles(steps[0], cut.states[0])
    roles = [_roles(step, state) for step, state in zip(steps[begun:], cut.states[1:])]
    durations = tuple(call.duration for call in calls if call.duration is not None)
    return Chain(
        calls,
        tuple(call_name(call, recurrence.calls) for call in calls),
        cut,
        hooked=hooked_edges({edge for state in cut.states[1:-1] for edge in state}),
        inner_eps=inner_eps(graph, cut, moments[1:]),
        along="time",
        durations=durations if len(durations) == len(calls) else (),
        roles=(unknown, *roles),
        active=tuple(call.active for call in calls) if any(call.active is not None for call in calls) else (),
    )


def _boundaries(graph: Graph, steps: Sequence[Sequence[Call]]) -> list[int]:
    """Return the moments between steps: after each call, or before the next one where fewer numbers are carried there.

    ``x = x + dt * f(x)`` in a loop carries x and f(x) after each call of f, and only x before the next.
    """
    ends = [step[-1].end for step in steps[:-1]]
    if len(steps) < 3 or all(call.inner for call in steps[0]):
        return ends
    starts = [step[0].start for step in steps[1:]]

    def carried(moments: Sequence[int]) -> list[int]:
        first = _made_by(graph, steps[0], moments[0])
        states = graph.cut(first, moments, ()).states if first else ()
        return [sum(map(math.prod, _sizes(state))) for state in states[-2:]]

    before, after = carried(starts), carried(ends)
    if not before or not after or before[0] >= after[0]:
        return ends
    # The last call need not read all that is carried beside it.
    return starts if before[-1] >= before[0] else starts[:-1]


def _roles(step: Sequence[Call], state: Sequence[Edge]) -> tuple[tuple[int, int] | None, ...]:
    where = {edge: (i, j) for i, call in enumerate(step) for j, edge in enumerate(call.results) if edge is not None}
    return tuple(where.get(edge) for edge in state)


def _not_carried(recurrence: Recurrence) -> str:
    return (
        f"a state must be carried through two time steps at least. {recurrence.name!r} is called {len(recurrence)} times, "
        "and no more than one of these calls has both what it takes from the last one and what it hands on in plain sight. "
        "Measure a longer sequence, or hand the state in and out."
    )


def _made_by(graph: Graph, step: Sequence[Call], end: int) -> tuple[Edge, ...]:
    """Return the edges that come of a step's calls, made before a moment and read later."""
    inside = _reach(graph, step)
    return unique(
        edge
        for node in graph.nodes
        if graph.place[node] >= end
        for edge in graph.reads[node]
        if edge[0] in inside and graph.place[edge[0]] < end
    )


def _reach(graph: Graph, step: Sequence[Call]) -> set[Node]:
    """Return the nodes that a step's calls have made, and all that come of them."""
    made = {node for call in step for node in graph.nodes if call.start <= graph.place[node] < call.end}
    return made | graph.downstream((node, n) for node in made for n in range(len(node._input_metadata)))


def _not_made_by(graph: Graph, step: Sequence[Call]) -> tuple[Edge, ...]:
    """Return what the calls of a step are given and none of them has made."""
    inside = _reach(graph, step)
    return unique(edge for call in step for edge in call.inputs if edge[0] not in inside)


def _initial(graph: Graph, recurrence: Recurrence, first: Sequence[Edge]) -> tuple[Edge, ...]:
    """Return what the first step is given where the second one is given what the first one made; nothing if that is unclear."""
    steps = recurrence.steps
    reached = graph.downstream(first, since=steps[0][-1].end)
    outside = set(_not_made_by(graph, steps[0]))
    entering: dict[Edge, None] = {}
    for early, late in zip(steps[0], steps[1]):
        for mine, edge in zip(early.slots, late.slots):
            if edge is None or mine not in outside or mine[0] not in graph.place:
                continue
            if edge not in first and edge[0] not in reached:
                continue
            if mine in recurrence.given and _is_read_beside(graph, edge, late, steps[0][-1].end):
                # The module has a copy, and what reads the state beside it has not.
                return ()
            entering[mine] = None
    return tuple(entering) if _sizes(entering) == _sizes(first) else ()


def _is_read_beside(graph: Graph, edge: Edge, call: Call, since: int) -> bool:
    return any(
        edge in reads and graph.place[node] >= since and not call.start <= graph.place[node] < call.end
        for node, reads in graph.reads.items()
    )


def _sizes(edges: Sequence[Edge] | dict[Edge, None]) -> list[tuple[int, ...]]:
    return sorted(tuple(node._input_metadata[number].shape) for node, number in edges)


def _carried_out(graph: Graph, steps: Sequence[Sequence[Call]], state: Sequence[Edge]) -> tuple[Edge, ...]:
    """Return what the last step gives out where the one before gave out its state; nothing if that is unclear."""
    where = {
        edge: (i, j) for i, call in enumerate(steps[-2]) for j, edge in enumerate(call.results) if edge is not None
    }
    # What was made before that passes by.
    made_since = steps[-3][-1].end if len(steps) > 2 else steps[-2][0].start
    last: list[Edge] = []
    for edge in state:
        if edge in where:
            i, j = where[edge]
            last += [e for e in steps[-1][i].results[j : j + 1] if e is not None]
        elif graph.place[edge[0]] >= made_since and not all(call.inner for call in steps[-2]):
            return ()
    return unique(last)
