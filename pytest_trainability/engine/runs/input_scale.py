"""Whether the model's inputs are standardized, and which table makes the first state large."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ...records.causes import CauseRecord
from ...records.text import format_number
from ..capture.products import leaves_read, root_mean_square
from ..trees import is_float, tensors_in
from .run import Run

__all__ = ["input_causes", "table_causes"]

LARGE = 5.0
"""Root mean square from which on inputs, or entries of a table, count as large. That of standardized ones is 1."""


def input_causes(run: Run) -> Iterator[CauseRecord]:
    """Yield that the float inputs are not standardized, if they are not.

    Args:
        run: The run.
    """
    for tensor in tensors_in(run.capture.inputs):
        if is_float(tensor) and tensor.numel() > 1 and root_mean_square(tensor) > LARGE:
            values: Tensor = tensor.detach().double()
            mean, deviation = float(values.mean()), float(values.std())
            sizes = f"mean {format_number(mean)} and standard deviation {format_number(deviation)}"
            rms = format_number(root_mean_square(tensor))
            text = f"the inputs have rms {rms} ({sizes}): standardize them"
            yield CauseRecord(text, input_mean=mean, input_deviation=deviation)
            return


def table_causes(run: Run) -> Iterator[CauseRecord]:
    """Yield the tables, such as embeddings, that the first state is read from and whose entries are large.

    Args:
        run: The run.
    """
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    first = {node for node, _ in run.chain.cut.states[0]}
    before = [node for node in run.graph.nodes if run.graph.place[node] <= max(run.graph.place[n] for n in first)]
    tables = {id(leaf): leaf for leaf in leaves_read(run.graph, set(), before) if leaf.dim() >= 2 and id(leaf) in names}
    large = [(names[key], root_mean_square(leaf)) for key, leaf in tables.items() if root_mean_square(leaf) > LARGE]
    if large:
        found, sizes = zip(*large)
        text = f"{' and '.join(found)} has rms {format_number(max(sizes))}, which the first state inherits: 1 is usual"
        yield CauseRecord(text, found, tuple(1 / rms for rms in sizes), sizes)
