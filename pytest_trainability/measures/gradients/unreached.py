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
    return tuple(_texts(modules))


def _why(run: Run, path: str) -> str:
    """Return why the parameters of a module get no gradient."""
    calls = [call for call in run.capture.calls if call.path == path and not call.inner]
    if not calls:
        return NEVER
    outputs = [edge for call in calls for edge in call.outputs]
    if not outputs:
        return WITHOUT_GRAPH
    return CUT_OFF


def _texts(modules: Mapping[str, Sequence[str]]) -> Iterator[CauseRecord]:
    for why, paths in modules.items():
        yield CauseRecord(f"{format_names(paths)}: {why}")


UNREACHED_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of missing gradients", _unreached_causes)
"""Why parameters have no path from the loss."""
