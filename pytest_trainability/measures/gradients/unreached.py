"""Why parameters get no gradient: their module does not run, runs without a graph, or its results do not reach the loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import nn
from torch.autograd.graph import Node

from ...engine.capture.recorder import Call
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import leaf_of
from ...engine.trees import tensors_in
from ...records.causes import CauseRecord
from ...records.text import format_names

__all__ = ["UNREACHED_CAUSES"]

NEVER, WITHOUT_GRAPH, CUT_OFF = (
    "never run in the forward pass",
    "run without recording a gradient: under torch.no_grad(), or inside a re-entrant checkpoint whose inputs need none",
    "run, but their results reach the loss without a gradient (detach, .data, .item), or not at all",
)


def _unreached_causes(run: Run) -> tuple[CauseRecord, ...]:
    reached = {id(leaf) for node in run.graph.nodes if (leaf := leaf_of(node)) is not None}
    unused = [n for n, p in run.capture.model.named_parameters() if p.requires_grad and id(p) not in reached]
    modules: dict[str, list[str]] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in unused):
        modules.setdefault(_why(run, path), []).append(path or type(run.capture.model).__name__)
    return tuple(_texts(modules, *_where_it_stops(run, unused)))


def _why(run: Run, path: str) -> str:
    """Return why the parameters of a module get no gradient."""
    calls = [call for call in run.capture.calls if call.path == path and not call.inner]
    if not calls:
        return NEVER
    outputs = [edge for call in calls for edge in call.outputs]
    if not outputs:
        return WITHOUT_GRAPH
    return CUT_OFF


def _where_it_stops(run: Run, unused: Sequence[str]) -> tuple[str, str]:
    """Return what to say on where the gradient stops, in front of the other texts and behind them.

    That is in the modules that read the results, or between the last module whose results depend on the parameters and the first
    one behind it.
    """
    parameters = dict(run.capture.model.named_parameters())
    calls = sorted((call for call in run.capture.calls if not call.inner), key=lambda call: call.start)
    alive = _dependent(calls, {id(parameters[name]) for name in unused})
    readers = list(dict.fromkeys(call.path for call in _stopping(run, calls, alive) if call.path))
    if readers:
        return (
            "",
            f"; the gradient stops in {format_names(readers)}, which {'get' if len(readers) > 1 else 'gets'} them",
        )
    last = _last_alive(calls, alive)
    if last is None or _are_returned(run, alive):
        return "", ""
    following = _first_behind(run, calls, last)
    place = f"between {last.path} and {following.path}" if following is not None else f"behind {last.path}"
    return f"the gradient stops {place}; ", ""


def _stopping(run: Run, calls: Sequence[Call], alive: Collection[Node]) -> list[Call]:
    """Return the calls that read results which depend on the parameters, and through which no gradient gets there.

    A gradient reaches their own results, or these carry none. Of calls inside each other the innermost ones count.
    """
    reached = {*run.graph.nodes}

    def stops(call: Call) -> bool:
        if any(node in reached for node, _ in call.outputs):
            return any(node in alive and node not in reached for node, _ in call.inputs)
        return bool(call.results) and not call.outputs and any(node in alive for node, _ in call.inputs)

    found = [call for call in calls if call.path and stops(call)]
    around = {id(call.parent) for call in found}
    return [call for call in found if id(call) not in around]


def _dependent(calls: Sequence[Call], leaves: Collection[int]) -> set[Node]:
    """Return the nodes of the graphs of some calls that depend on one of some leaves, which are given by identity."""
    pending = list(dict.fromkeys(node for call in calls for node, _ in (*call.inputs, *call.outputs)))
    seen, readers = {*pending}, dict[Node, list[Node]]()
    found: set[Node] = set()
    while pending:
        node = pending.pop()
        leaf = leaf_of(node)
        if leaf is not None and id(leaf) in leaves:
            found.add(node)
        for producer, _ in node.next_functions:
            if producer is not None:
                readers.setdefault(producer, []).append(node)
                if producer not in seen:
                    seen.add(producer)
                    pending.append(producer)
    pending = [*found]
    while pending:
        new = {*readers.get(pending.pop(), ())} - found
        found |= new
        pending += new
    return found


def _last_alive(calls: Sequence[Call], alive: Collection[Node]) -> Call | None:
    """Return the last call whose results depend on the parameters; None if there is none."""
    found = [call for call in calls if call.path and any(node in alive for node, _ in call.outputs)]
    return _inside(max(found, key=lambda call: (call.end, -call.start)), calls, -1) if found else None


def _first_behind(run: Run, calls: Sequence[Call], last: Call) -> Call | None:
    """Return the first call behind another one that a gradient reaches and that reads a tensor without; None without any."""
    reached = {*run.graph.nodes}
    around = []
    parent = last.parent
    while parent is not None:
        around.append(parent)
        parent = parent.parent
    # A module that looks numbers up reads no results, and one that ran before gets a gradient from there.
    behind = [
        call
        for call in calls
        if call.path and call.start >= last.end and call not in around and not call.index and not _looks_up(call.module)
    ]
    found = [call for call in behind if None in call.slots and any(node in reached for node, _ in call.outputs)]
    return _inside(min(found, key=lambda call: (call.start, -call.end)), calls, 0) if found else None


def _inside(call: Call, calls: Sequence[Call], number: int) -> Call:
    """Return the first or the last call inside a sequence of modules, or the call itself."""
    while isinstance(call.module, nn.Sequential):
        inner = [other for other in calls if other.parent is call]
        if not inner:
            break
        call = inner[number]
    return call


def _are_returned(run: Run, alive: Collection[Node]) -> bool:
    """Return whether the model returns results that depend on the parameters, so that the loss leaves them out."""
    return any(tensor.grad_fn in alive for tensor in tensors_in(run.capture.output) if tensor.grad_fn is not None)


def _looks_up(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def _texts(modules: Mapping[str, Sequence[str]], before: str, behind: str) -> Iterator[CauseRecord]:
    for why, paths in modules.items():
        text = f"{format_names(paths)}: {why}"
        yield CauseRecord(f"{before}{text}{behind}" if why == CUT_OFF else text)


UNREACHED_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of missing gradients", _unreached_causes)
"""Why parameters have no path from the loss."""
