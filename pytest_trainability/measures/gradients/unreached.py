"""Why parameters get no gradient: their module does not run, runs without a graph, or its results do not reach the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
    return tuple(_texts(modules, _first_reached(run, unused)))


def _why(run: Run, path: str) -> str:
    """Return why the parameters of a module get no gradient."""
    calls = [call for call in run.capture.calls if call.path == path and not call.inner]
    if not calls:
        return NEVER
    outputs = [edge for call in calls for edge in call.outputs]
    if not outputs:
        return WITHOUT_GRAPH
    return CUT_OFF


def _first_reached(run: Run, unused: Sequence[str]) -> str:
    """Return the first module behind all of those that get no gradient, where the gradient stops; empty if there is none."""
    owners = {name.rpartition(".")[0] for name in unused}
    calls = [call for call in run.capture.calls if call.path and not call.inner]
    numbers = [number for number, call in enumerate(calls) if call.path in owners]
    behind = calls[numbers[-1] + 1 :] if numbers else []
    around = [calls[numbers[-1]].parent] if numbers else []
    while around and around[-1] is not None:
        around.append(around[-1].parent)
    entered = [call for call in behind if call not in around]
    if not entered:
        return ""
    first = entered[0]
    while first.parent is not None and first.parent.path and first.parent not in around:
        first = first.parent
    return first.path


def _texts(modules: Mapping[str, Sequence[str]], stop: str) -> Iterator[CauseRecord]:
    for why, paths in modules.items():
        where = f"the gradient stops in {stop}, or before it; " if stop and why == CUT_OFF else ""
        yield CauseRecord(f"{where}{format_names(paths)}: {why}")


UNREACHED_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of missing gradients", _unreached_causes)
"""Why parameters have no path from the loss."""
