"""Why parameters get no gradient: their module does not run, runs without a graph, or its results do not reach the loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import nn
from torch.autograd.graph import Node

from ...engine.capture.recorder import Call
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import leaf_of
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

    That is in the modules that read the results. If none does, it may be in the first one that follows.
    """
    readers = list(dict.fromkeys(call.path for call in _reading(run, unused) if call.path))
    if readers:
        return (
            "",
            f"; the gradient stops in {format_names(readers)}, which {'read' if len(readers) > 1 else 'reads'} them",
        )
    stop = _first_reached(run, unused)
    return (f"the gradient stops in {stop}, or before it; " if stop else ""), ""


def _reading(run: Run, unused: Sequence[str]) -> list[Call]:
    """Return the calls that a gradient reaches, and that read results of modules to which it does not get from there."""
    parameters, reached = dict(run.capture.model.named_parameters()), {*run.graph.nodes}
    leaves = {id(parameters[name]) for name in unused}
    calls = [call for call in run.capture.calls if not call.inner and any(n in reached for n, _ in call.outputs)]
    outside = [call for call in calls if any(n not in reached and _depends_on(n, leaves) for n, _ in call.inputs)]
    return sorted(outside, key=lambda call: call.start)


def _depends_on(node: Node, leaves: Collection[int]) -> bool:
    """Return whether a node depends on one of some leaves, which are given by identity."""
    pending, seen = [node], {node}
    while pending:
        node = pending.pop()
        leaf = leaf_of(node)
        if leaf is not None and id(leaf) in leaves:
            return True
        new = {producer for producer, _ in node.next_functions if producer is not None} - seen
        seen |= new
        pending += new
    return False


def _looks_up(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def _first_reached(run: Run, unused: Sequence[str]) -> str:
    """Return the first module behind all of those that get no gradient, which may stop it; empty if there is none."""
    owners = {name.rpartition(".")[0] for name in unused}
    calls = [call for call in run.capture.calls if call.path and not call.inner]
    numbers = [number for number, call in enumerate(calls) if call.path in owners]
    behind = calls[numbers[-1] + 1 :] if numbers else []
    around = [calls[numbers[-1]].parent] if numbers else []
    while around and around[-1] is not None:
        around.append(around[-1].parent)
    # A module that ran before gets a gradient from there, and one that looks numbers up reads no results.
    entered = [call for call in behind if call not in around and not call.index and not _looks_up(call.module)]
    if not entered:
        return ""
    first = entered[0]
    while first.parent is not None and first.parent.path and first.parent not in around:
        first = first.parent
    return first.path


def _texts(modules: Mapping[str, Sequence[str]], before: str, behind: str) -> Iterator[CauseRecord]:
    for why, paths in modules.items():
        text = f"{format_names(paths)}: {why}"
        yield CauseRecord(f"{before}{text}{behind}" if why == CUT_OFF else text)


UNREACHED_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of missing gradients", _unreached_causes)
"""Why parameters have no path from the loss."""
