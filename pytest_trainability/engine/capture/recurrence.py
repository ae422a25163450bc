"""Chains along time: which calls of a run are time steps, and which edges carry the state from one to the next."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from torch import nn
from torch.autograd.graph import Node

from ...errors import CutError, UsageError
from ..torch_internals import output_metadata
from .chain import Chain, call_name, custom_functions, inner_eps, refuse_nested
from .gradient_hooks import edges_with_hooks_apart, hooked_edges
from .graph import Graph
from .recorder import Call, Capture, Edge, unique

__all__ = ["Recurrence", "chain_along", "choose_recurrence", "find_recurrences"]

# Note [What a recurrence carries]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# The chain along time is cut out of the graph behind the last time step, not out of the graph of the whole run. In the graph of
# the run, everything that the loss reads later would cross every following moment: all outputs of the earlier steps, in the
# end. In the graph of the last step only the state remains, that is, what flows from one step into the next.
#
# The graph does not show the state at its two ends. Before the first step, the state is what the first call receives at the
# places where the second call receives a result of the first (`_initial`). After the last step, it is what the last call
# returns at the places where the call before returned its state (`_carried_out`). If a module creates its initial state itself,
# or keeps its state in an attribute, one end is not visible. The chain is then one step shorter at that end.


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """Calls of one module, or of several modules in turn, each of which depends on the call before it."""

    steps: tuple[tuple[Call, ...], ...]
    """The calls of each time step, in program order."""
    sequences: int = 1
    """Number of sequences of such calls that do not depend on each other. ``steps`` is the longest one."""
    name: str = ""
    """Name to choose it by: the path of the module that ends a step, numbered if it is not unique."""
    copied_constants: Set[Edge] = frozenset()
    """Edges of the copies that replaced constant arguments. See Note [Initial states of recurrences] in initial_states.py."""

    @property
    def calls(self) -> tuple[Call, ...]:
        """The call that ends each time step."""
        return tuple(step[-1] for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


# Which calls -----------------------------------------------------------------------------------------------------
def find_recurrences(capture: Capture, graph: Graph) -> list[Recurrence]:
    """Return all recurrences, in the order in which they begin.

    A module is recurrent if its calls depend on earlier ones. Modules that take turns, such as the cells of two layers, form one
    step together. A module inside a recurrent one is part of it.
    """
    kept: set[Call] = set()
    found: list[Recurrence] = []
    for calls in _candidates(capture):
        if any(parent in kept for call in calls for parent in _parents(call)):
            continue
        longest, sequences = _longest_sequence(graph, calls)
        if len(longest) > 1 or (longest and calls[0].inner):
            kept.update(calls)
            steps = tuple((call,) for call in longest)
            found.append(Recurrence(steps, sequences, copied_constants=capture.copied_constants))
    return _named(_merged(sorted(found, key=lambda recurrence: recurrence.steps[0][0].start)))


def _candidates(capture: Capture) -> list[list[Call]]:
    """Return the calls of each module that may be recurrent: inner steps first, then outer modules before those inside them."""
    groups: dict[tuple[str, str], list[Call]] = {}
    around: set[Call] = set()
    for call in sorted(capture.calls, key=lambda c: (c.start, len(_parents(c)))):
        groups.setdefault((call.path, call.inner), []).append(call)
        if call.inner:
            around.update(_parents(call))

    def is_candidate(calls: list[Call]) -> bool:
        if calls[0].inner:
            return True
        # A call with inner steps is not a step itself.
        return len(calls) > 1 and not any(call in around for call in calls) and not _is_elementary(calls[0].module)

    return sorted(filter(is_candidate, groups.values()), key=lambda calls: not calls[0].inner)


def _is_elementary(module: nn.Module) -> bool:
    """Whether it is a module of ``torch.nn`` without parameters, such as an activation, which all layers of a tower may share."""
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.parameters())


def _parents(call: Call) -> list[Call]:
    found = []
    while call.parent is not None:
        call = call.parent
        found.append(call)
    return found


def _longest_sequence(graph: Graph, calls: Sequence[Call]) -> tuple[list[Call], int]:
    """Return the longest sequence of calls of which each depends on the one before, and the number of independent sequences.

    A call follows the latest earlier call that it depends on. That need not be the call right before it: one cell may serve two
    streams in turn.
    """
    before, reaching = _predecessors(graph, calls)
    path = _longest_path(before, [i for i, call in enumerate(calls) if i in reaching or _returns_state(graph, call)])
    beginnings = sum(1 for i in reaching if before[i] < 0)
    return [calls[i] for i in path], max(beginnings, 1) if path else 0


def _predecessors(graph: Graph, calls: Sequence[Call]) -> tuple[list[int], set[int]]:
    """Return the latest earlier call that each call depends on, by index (-1 for none), and the calls with nodes in the graph."""
    starts = [call.start for call in calls]
    before, reaching = [-1] * len(calls), set()
    newest: dict[Node, int] = {}  # the latest call that a node depends on
    for node in graph.nodes:
        index = bisect_right(starts, graph.place[node]) - 1
        sources = [newest.get(producer, -1) for producer, _ in graph.reads[node]]
        if index >= 0 and graph.place[node] < calls[index].end:
            reaching.add(index)
            before[index] = max([before[index], *(source for source in sources if source < index)])
            newest[node] = index
        elif (latest := max(sources, default=-1)) >= 0:
            newest[node] = latest
    for index in range(1, len(calls)):
        # An inner step may return its state unchanged, which leaves no node.
        if calls[index].inner and set(calls[index].inputs) & set(calls[index - 1].outputs):
            before[index] = index - 1
    return before, reaching


def _returns_state(graph: Graph, call: Call) -> bool:
    """Whether it is an inner step whose state is part of the graph, be it only passed on."""
    return bool(call.inner) and any(edge[0] in graph.place for edge in call.outputs)


def _longest_path(before: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the longest path along the predecessors to one of the ends, the first one among equals."""
    lengths: list[int] = []
    for previous in before:
        lengths.append(1 + (lengths[previous] if previous >= 0 else 0))
    index = max(ends, key=lengths.__getitem__, default=-1)
    path = []
    while index >= 0:
        path.append(index)
        index = before[index]
    return path[::-1]


def _named(found: Sequence[Recurrence]) -> list[Recurrence]:
    """Give each recurrence a unique name: the path of the module that ends a step, numbered from its second occurrence on."""
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
                merged[index] = replace(other, steps=steps, sequences=max(other.sequences, recurrence.sequences))
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
    """Return the recurrence of the given name, or without a name the longest one, the first among equals.

    Raises:
        CutError: The model has no recurrence.
        UsageError: No recurrence has this name.
    """
    model = type(capture.model).__name__
    if not found:
        msg = (
            "steps='time' needs a recurrence: a module that is called once per time step with the result of its last call, "
            f"an nn.RNN, nn.LSTM or nn.GRU, or a solver of torchdiffeq. {model} has none that the output depends on. "
            "Put one time step into a module and call it in a loop over at least two steps. Look for .detach() or "
            "torch.no_grad() in the loop."
        )
        raise CutError(msg)
    if not name:
        return max(found, key=len)
    for recurrence in found:
        if name == recurrence.name or name in {call.path for call in recurrence.steps[0][:-1]}:
            return recurrence
    names = ", ".join(repr(f"time:{recurrence.name}") for recurrence in found)
    msg = f"steps='time:{name}' must name a recurrence of {model}. It has {names}."
    raise UsageError(msg)


# The chain -------------------------------------------------------------------------------------------------------
def chain_along(recurrence: Recurrence) -> Chain:
    """Return the chain of the states that a recurrence carries: the initial state, then the state after each step.

    The chain lacks its first or its last step if the initial or the last state is not visible. See
    Note [What a recurrence carries].

    Raises:
        CutError: No state is carried through two steps.
    """
    steps = recurrence.steps
    graph = Graph([edge for call in steps[-1] for edge in call.outputs])
    between = _moments_between(graph, steps)
    first, skipped = _first_state(graph, recurrence, between)
    moments = between if skipped else [steps[0][0].start, *between]
    # Without a moment before it, the last step is not part of the chain.
    last = _last_state(graph, steps, first, moments) if len(between) == len(steps) - 1 else ()
    if last:
        moments = [*moments, steps[-1][-1].end]
    if len(moments) < 2:
        raise CutError(_not_carried(recurrence))
    cut = graph.cut(first, moments, last)
    ends = recurrence.calls
    calls = ends[skipped:][: len(cut.segments)]
    names = tuple(call_name(call, ends) for call in calls)
    refuse_nested(cut, names)
    durations = tuple(call.duration for call in calls if call.duration is not None)
    return Chain(
        calls,
        names,
        cut,
        hooked=hooked_edges(edges_with_hooks_apart(cut)),
        custom=custom_functions(graph, cut),
        inner_eps=inner_eps(graph, cut, moments[1:]),
        along="time",
        durations=durations if len(durations) == len(calls) else (),
        roles=_roles(steps, cut.states, skipped),
        active=tuple(call.active for call in calls) if any(call.active is not None for call in calls) else (),
    )


def _moments_between(graph: Graph, steps: Sequence[Sequence[Call]]) -> list[int]:
    """Return the moments between the steps: after each call, or before the next call if the state is smaller there.

    ``x = x + dt * f(x)`` in a loop carries x and f(x) after each call of f, but only x before the next call.
    """
    ends = [step[-1].end for step in steps[:-1]]
    if len(steps) < 3 or all(call.inner for call in steps[0]):
        return ends
    starts = [step[0].start for step in steps[1:]]

    def sizes(moments: Sequence[int]) -> list[int]:
        first = _made_by(graph, steps[0], moments[0])
        states = graph.cut(first, moments, ()).states if first else ()
        return [sum(map(math.prod, _shapes(state))) for state in states[-2:]]

    before, after = sizes(starts), sizes(ends)
    if not before or not after or before[0] >= after[0]:
        return ends
    # The last call need not read the whole state. The moment before it is then no boundary.
    return starts if before[-1] >= before[0] else starts[:-1]


def _first_state(graph: Graph, recurrence: Recurrence, between: Sequence[int]) -> tuple[tuple[Edge, ...], int]:
    """Return the first state of the chain, and the number of steps before it: 0, or 1 if the initial state is not visible.

    Raises:
        CutError: Neither the initial state nor the state after the first step is visible.
    """
    step = recurrence.steps[0]
    after: tuple[Edge, ...] = ()
    if all(call.inner for call in step):
        initial = _not_made_by(graph, step)
    else:
        after = _made_by(graph, step, between[0])
        initial = _initial(graph, recurrence, after) if after else ()
    if not initial and not after:
        raise CutError(_not_carried(recurrence))
    return (initial, 0) if initial else (after, 1)


def _last_state(
    graph: Graph, steps: Sequence[Sequence[Call]], first: Sequence[Edge], moments: Sequence[int]
) -> tuple[Edge, ...]:
    """Return the state after the last step; nothing if it is not visible."""
    if len(steps) == 1 or (len(steps[-1]) == 1 and steps[-1][0].inner):
        return steps[-1][-1].outputs
    return _carried_out(graph, steps, graph.cut(first, moments, ()).states[-1])


def _roles(
    steps: Sequence[Sequence[Call]], states: Sequence[Sequence[Edge]], skipped: int
) -> tuple[tuple[tuple[int, int] | None, ...], ...]:
    """Return ``Chain.roles``. The roles in the initial state are not known."""
    initial = () if skipped else ((None,) * len(states[0]),)
    return (*initial, *map(_roles_in, steps, states[len(initial) :]))


def _roles_in(step: Sequence[Call], state: Sequence[Edge]) -> tuple[tuple[int, int] | None, ...]:
    where = _results_of(step)
    return tuple(where.get(edge) for edge in state)


def _results_of(step: Sequence[Call]) -> dict[Edge, tuple[int, int]]:
    """Return for each edge that a step returns the index of the call and of its result."""
    return {edge: (i, j) for i, call in enumerate(step) for j, edge in enumerate(call.results) if edge is not None}


def _not_carried(recurrence: Recurrence) -> str:
    return (
        f"a state must be carried through at least two time steps. {recurrence.name!r} is called {len(recurrence)} times, and at "
        "most one of these calls has a visible state both before and after it. Measure a longer sequence, or pass the state to "
        "the module and return it."
    )


def _made_by(graph: Graph, step: Sequence[Call], end: int) -> tuple[Edge, ...]:
    """Return the edges that depend on nodes of a step, were made before the moment ``end`` and are read after it."""
    inside = _reach(graph, step)
    return unique(
        edge
        for node in graph.nodes
        if graph.place[node] >= end
        for edge in graph.reads[node]
        if edge[0] in inside and graph.place[edge[0]] < end
    )


def _reach(graph: Graph, step: Sequence[Call]) -> set[Node]:
    """Return the nodes that the calls of a step created, and all nodes that depend on them."""
    made = {node for call in step for node in graph.nodes if call.start <= graph.place[node] < call.end}
    return made | graph.downstream((node, n) for node in made for n in range(len(output_metadata(node))))


def _not_made_by(graph: Graph, step: Sequence[Call]) -> tuple[Edge, ...]:
    """Return the edges among the arguments of a step's calls that do not depend on this step."""
    inside = _reach(graph, step)
    return unique(edge for call in step for edge in call.inputs if edge[0] not in inside)


def _initial(graph: Graph, recurrence: Recurrence, first: Sequence[Edge]) -> tuple[Edge, ...]:
    """Return the initial state: the arguments of the first step at the places where the second one receives ``first``.

    Returns:
        Nothing if the initial state is not visible: if these arguments differ in shape from ``first``, the state after the first
        step, or if the original of a copied constant is read outside of the module.
    """
    steps = recurrence.steps
    reached = graph.downstream(first, since=steps[0][-1].end)
    outside = set(_not_made_by(graph, steps[0]))
    entering: dict[Edge, None] = {}
    for early, late in zip(steps[0], steps[1]):
        for initial, edge in zip(early.slots, late.slots):
            if edge is None or initial not in outside or initial[0] not in graph.place:
                continue
            if edge not in first and edge[0] not in reached:
                continue
            is_copy = initial in recurrence.copied_constants
            if is_copy and _is_read_outside(graph, edge, late, steps[0][-1].end):
                return ()
            entering[initial] = None
    return tuple(entering) if _shapes(entering) == _shapes(first) else ()


def _is_read_outside(graph: Graph, edge: Edge, call: Call, since: int) -> bool:
    """Whether a node outside of the call, and not before ``since``, reads the edge."""
    return any(
        edge in reads and graph.place[node] >= since and not call.start <= graph.place[node] < call.end
        for node, reads in graph.reads.items()
    )


def _shapes(edges: Iterable[Edge]) -> list[tuple[int, ...]]:
    return sorted(tuple(output_metadata(node)[number].shape) for node, number in edges)


def _carried_out(graph: Graph, steps: Sequence[Sequence[Call]], state: Sequence[Edge]) -> tuple[Edge, ...]:
    """Return the results of the last step at the places where the step before returned its state.

    Returns:
        Nothing if the last state is not visible: if the step before made a part of its state that it did not return.
    """
    where = _results_of(steps[-2])
    # Edges made earlier pass by.
    made_since = steps[-3][-1].end if len(steps) > 2 else steps[-2][0].start
    last: list[Edge] = []
    for edge in state:
        if edge in where:
            i, j = where[edge]
            last += [e for e in steps[-1][i].results[j : j + 1] if e is not None]
        elif graph.place[edge[0]] >= made_since and not all(call.inner for call in steps[-2]):
            return ()
    return unique(last)
