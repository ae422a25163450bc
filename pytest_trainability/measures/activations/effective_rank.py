"""The effective rank of the states: in how many directions samples and tokens differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine.capture.recorder import Edge, Recorder
from ...engine.linalg.norms import as_float64, as_real
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import version_of
from ..measure import declare
from .similarity import are_channels_last

__all__ = ["EFFECTIVE_RANKS", "effective_rank_of"]


def effective_rank_of(matrix: Tensor) -> float:
    """Return ``exp(-Σ p_i ln p_i)`` with ``p_i = σ_i / Σ σ_j`` for the singular values σ of a matrix.

    The singular values are the square roots of the eigenvalues of the smaller Gram matrix. Eigenvalues below its round-off, that
    is σ below about 10⁻⁷ of the largest one, count as zero.

    Args:
        matrix: Real numbers, ``(rows, columns)``.

    Returns:
        A number from 1 to the number of rows or columns, whichever is smaller; NaN for a matrix of zeros, and if an entry is not
        finite.
    """
    wide = as_float64(matrix)
    largest = wide.abs().max() if wide.numel() else torch.zeros(())
    if not bool(largest.isfinite()) or float(largest) == 0:
        return math.nan
    wide = wide / largest
    squares = torch.linalg.eigvalsh(wide @ wide.mT if len(wide) < wide.shape[1] else wide.mT @ wide)
    values = squares[squares > len(squares) * torch.finfo(torch.float64).eps * squares.max()].sqrt()
    shares = values / values.sum()
    return math.exp(-float((shares * shares.log()).sum()))


# States -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class _Observed:
    """The tensors with a gradient that modules took or returned, as they were."""

    tensors: dict[Edge, tuple[Tensor, int]] = field(default_factory=dict)
    """Tensor and version, by edge. A tensor that has been changed in place has another version later."""

    def observe(self, edge: Edge, tensor: Tensor) -> None:
        """Keep a tensor, without a copy."""
        self.tensors[edge] = tensor.detach(), version_of(tensor)

    def matrix(self, edge: Edge, *, channels_last: bool) -> Tensor | None:
        """Return a tensor as ``(samples and tokens, features)``; None if it has no two dimensions or is not known any more."""
        values, version = self.tensors.get(edge, (None, 0))
        if values is None or values.layout is not torch.strided or values.dim() < 2 or version_of(values) != version:
            return None
        axis = values.dim() - 1 if channels_last or values.dim() == 2 else 1
        # A complex feature is a pair of real ones.
        return as_real(values.movedim(axis, -1)).reshape(values.numel() // values.shape[axis], -1)


@contextmanager
def _observe_states(recorder: Recorder) -> Iterator[_Observed]:
    found = _Observed()
    recorder.observers.append(found.observe)
    yield found


def _effective_ranks(run: Run) -> dict[str, float]:
    observed: _Observed = run.capture.watched[_observe_states]
    channels_last = are_channels_last(run)
    known: dict[Edge, tuple[float, int] | None] = {}
    for edge in dict.fromkeys(edge for state in run.chain.cut.states for edge in state):
        matrix = observed.matrix(edge, channels_last=channels_last.get(edge, False))
        known[edge] = None if matrix is None else (effective_rank_of(matrix), matrix.numel())
    observed.tensors.clear()
    states = dict(zip(("input", *run.chain.names), run.chain.cut.states))
    found = {name: [rank for edge in state if (rank := known[edge]) is not None] for name, state in states.items()}
    return {name: _average(ranks) for name, ranks in found.items() if ranks}


def _average(ranks: Sequence[tuple[float, int]]) -> float:
    """Return the average, weighted by numbers of entries."""
    return sum(rank * size for rank, size in ranks) / sum(size for _, size in ranks)


EFFECTIVE_RANKS = Need("effective ranks", _effective_ranks, instruments=(_observe_states,))
"""Effective rank by state, ``"input"`` and the names of steps; states of which no tensor is known are absent."""


@declare("profile", scale="log", needs=[EFFECTIVE_RANKS], tolerance=0.1)
def effective_rank(run: Run) -> dict[str, float]:
    """Return ``exp(H)`` with ``H = -Σ p_i ln p_i`` and ``p_i = σ_i / Σ σ_j``, for the singular values σ of each state.

    A state is a matrix with a row for each token of each sample (each pixel), and a column for each feature (channel). A state
    with several tensors has the average, weighted by numbers of entries. Rows are not centered.

    It misleads in comparison of states of different shapes: no rank exceeds the number of rows or of columns. A mean that all
    rows share counts as a direction, and its size lowers the value.

    Returns:
        Pure numbers from 1 (all rows are parallel) to the smaller dimension (orthogonal rows or columns of equal length), by
        ``"input"`` and by step, in program order. NaN for a state of zeros or with entries that are not finite. States are
        omitted if no module reads or writes them, if they have a single dimension, or if they were changed in place afterwards.

    Source: Roy & Vetterli, EUSIPCO 2007; Dong, Cordonnier & Loukas, ICML 2021, for the collapse of rank in attention.
    """
    return run[EFFECTIVE_RANKS]
