"""What the gradients of samples say together: their mean, their spread and their inner products."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .gram import gram_matrix, pieces
from .per_sample import PER_SAMPLE, ROUND_OFF
from .run import Need, Run, Stage

__all__ = ["GRADIENT_GRAM", "GRADIENT_MOMENTS", "Moments", "total"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the per-sample gradients of a parameter, or of several, over all entries."""

    mean_square: float
    """``‖ḡ‖²``, of the mean over samples."""
    variance: float
    """``tr Σ = Σ_i ‖g_i − ḡ‖² / (B − 1)``."""
    samples: int
    """B."""
    eps: float
    """Working precision."""

    @property
    def agree(self) -> bool:
        """Whether all samples have the same gradient, up to round-off."""
        return self.variance <= (ROUND_OFF * self.eps) ** 2 * self.mean_square


def total(moments: Iterable[Moments]) -> Moments:
    """Return the moments of several parameters' gradients as one vector."""
    parts = list(moments)
    return Moments(
        math.fsum(part.mean_square for part in parts),
        math.fsum(part.variance for part in parts),
        max((part.samples for part in parts), default=0),
        max((part.eps for part in parts), default=0.0),
    )


class _Accumulated:
    """Sums of what differs from the first sample's gradient, so that equal gradients have no variance at all."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.clone()
        self.eps = torch.finfo(reference.dtype).eps
        self.sums: list[Tensor] = []
        self.squares, self.samples = 0.0, 0

    def add(self, gradients: Tensor) -> None:
        """Take in gradients ``(samples, *shape)``."""
        self.samples += len(gradients)
        for number, (piece, reference) in enumerate(zip(pieces(gradients), pieces(self.reference))):
            differences = piece - reference
            self.squares += float(differences.square().sum())
            if number == len(self.sums):
                self.sums.append(torch.zeros_like(differences[0]))
            self.sums[number] += differences.sum(dim=0)

    def moments(self) -> Moments:
        """Return what the sums come to."""
        count = self.samples
        of_sums = sum(float(total.square().sum()) for total in self.sums)
        means = (ref[0] + total / count for ref, total in zip(pieces(self.reference), self.sums))
        mean_square = sum(float(mean.square().sum()) for mean in means)
        variance = max(self.squares - of_sums / count, 0.0) / (count - 1) if math.isfinite(self.squares) else math.nan
        return Moments(mean_square, variance, count, self.eps)


def _moments(run: Run) -> dict[str, Moments]:
    found: dict[str, _Accumulated] = {}
    for gradients in run[PER_SAMPLE].chunks():
        for name, gradient in gradients.items():
            found.setdefault(name, _Accumulated(gradient[:1])).add(gradient)
    return {name: accumulated.moments() for name, accumulated in found.items()}


GRADIENT_MOMENTS = Need("moments of per-sample gradients", _moments, Stage.AGAIN, of=(PER_SAMPLE,))
"""By parameter, of those that the loss depends on."""


def _gram(run: Run) -> Tensor:
    samples = run[PER_SAMPLE]
    if not samples.parameters:
        return torch.zeros(len(samples.samples), len(samples.samples), dtype=torch.float64, device="cpu")
    rows = lambda first, last: list(samples.gradients(first, last).values())  # noqa: E731
    K = gram_matrix(rows, len(samples.samples), samples.size)
    samples.require_mean_or_sum()
    return K


GRADIENT_GRAM = Need("inner products of per-sample gradients", _gram, Stage.AGAIN, of=(PER_SAMPLE,))
"""``g_i · g_j`` over all parameters, ``(samples, samples)`` in float64."""
