"""What the gradients of samples say together: their mean, their spread and their inner products."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.linalg.gram import gram_matrix, pieces
from ...engine.runs.run import Need, Run, Stage
from ...errors import InapplicableError
from ..measure import declare
from .per_sample import PER_SAMPLE, ROUND_OFF

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
    if not run[PER_SAMPLE].draws:
        run[GRADIENT_GRAM]  # which sees that the gradient of the batch is made of those of the samples
    for gradients in run[PER_SAMPLE].chunks():
        for name, gradient in gradients.items():
            found.setdefault(name, _Accumulated(gradient[:1])).add(gradient)
    return {name: accumulated.moments() for name, accumulated in found.items()}


def _gram(run: Run) -> Tensor:
    samples = run[PER_SAMPLE]
    if not samples.parameters:
        return torch.zeros(len(samples.samples), len(samples.samples), dtype=torch.float64, device="cpu")
    count = len(samples.samples)
    rows = lambda first, last: list(samples.gradients(first, last).values())  # noqa: E731
    batch = [] if samples.draws else [gradient.unsqueeze(0) for gradient in samples.of_batch().values()]
    K = gram_matrix(rows, count, samples.size, further=batch)
    samples.require_mean_or_sum()
    if batch and bool(K.isfinite().all()):
        _require_in_span(K, max(torch.finfo(gradient.dtype).eps for gradient in batch), run.seed)
    return K[:count, :count]


GRADIENT_GRAM = Need("inner products of per-sample gradients", _gram, Stage.RERUN, requires=(PER_SAMPLE,))
"""``g_i · g_j`` over all parameters, ``(samples, samples)`` in float64."""


GRADIENT_MOMENTS = Need("moments of per-sample gradients", _moments, Stage.RERUN, requires=(PER_SAMPLE, GRADIENT_GRAM))
"""By parameter, of those that the loss depends on."""


# Whether the batch is made of its samples --------------------------------------------------------------------------
OUTSIDE = 1e-2
"""Share of the batch's squared gradient, a tenth of its length, that may come from no sample alone. Round-off is far below in
any precision, so is a small auxiliary loss of the whole batch, such as a router's; a loss that compares samples is far above."""


def _require_in_span(K: Tensor, eps: float, seed: int) -> None:
    """See that the batch's gradient is a sum of the samples' own, however weighted.

    ``min over a of ‖g − Σ_i a_i g_i‖² = ‖g‖² − cᵀ G⁺ c`` with ``G_ij = g_i · g_j`` and ``c_i = g_i · g``.

    Args:
        K: Inner products of the samples' gradients and, last, the batch's.
        eps: Working precision of the gradients.
        seed: Of the run.

    Raises:
        InapplicableError: It is none: the loss compares samples.
    """
    G, c, square = K[:-1, :-1], K[:-1, -1], float(K[-1, -1])
    # Where the samples' gradients cancel, what is left is their round-off.
    allowed = OUTSIDE * square + (ROUND_OFF * eps) ** 2 * float(G.diagonal().sqrt().sum()) ** 2 / len(c)
    # A mean or a sum needs no eigenvectors, which take long where samples are many.
    if square - float(c.sum()) ** 2 / max(float(G.sum()), torch.finfo(G.dtype).tiny) <= allowed:
        return
    values, vectors = torch.linalg.eigh(G)
    known = values > max((ROUND_OFF * eps) ** 2, len(c) * torch.finfo(G.dtype).eps) * values[-1]
    residual = square - float(((vectors.T @ c)[known].square() / values[known]).sum())
    if residual > allowed:
        msg = (
            "the loss must be a mean or a sum over samples for each to have a gradient of its own. Of the batch's gradient "
            f"(seed {seed}) {math.sqrt(residual / square):.0%} comes from no sample alone: the loss, or a part of it, compares "
            "samples, or is a regularizer beside a sum. Measure it without that part."
        )
        raise InapplicableError(msg)


@declare(
    "profile",
    scale="log",
    needs=[GRADIENT_MOMENTS],
    tolerance=0.3,
    zero_by_design="gradient",
    measured_with="waking_step",
)
def gradient_snr(run: Run) -> dict[str, float]:
    """Return ``‖ḡ‖ / √tr Σ`` for each parameter: mean over standard deviation of per-sample gradients, over all its entries.

    ``ḡ = Σ_i g_i / B`` and ``tr Σ = Σ_i ‖g_i − ḡ‖² / (B − 1)``, with ``g_i`` the gradient of the loss on sample i alone.

    It misleads where the batch is small: samples that agree on nothing still have ``1/√B``, for
    ``E ‖ḡ‖² = ‖E g‖² + tr Σ / B``. Dropout counts as noise. Where a gradient cancels, as that of the bias of attention's keys,
    it is the ratio of round-off.

    Returns:
        Pure numbers by parameter name; ``inf`` where all samples have the same gradient, NaN where all have none, or one
        that is not finite. Frozen and unused parameters are left out.

    Raises:
        InapplicableError: There is no loss, or samples have no gradients of their own (BatchNorm in training mode).

    Source: abs mean over standard deviation is the ratio of Rainforth et al., ICML 2018; its square, per entry, is the GSNR
    of Liu et al., ICLR 2020. We divide sums over entries: the mean of the entries' ratios is infinite in expectation for two
    samples, and 0/0 where an entry has no gradient.
    """
    ratios = {}
    for name, moments in run[GRADIENT_MOMENTS].items():
        if moments.agree:
            ratios[name] = math.inf if moments.mean_square > 0 else math.nan
        else:
            ratios[name] = math.sqrt(moments.mean_square / moments.variance)
    return ratios


@declare("scalar", needs=[GRADIENT_GRAM], tolerance=0.1)
def gradient_confusion(run: Run) -> float:
    """Return ``min over i ≠ j of cos(g_i, g_j)``, the most negative cosine between the gradients of two samples' losses.

    Gradients are of all parameters together. A step that lowers one sample's loss raises the other's where it is negative.

    It misleads when batches of different sizes are compared: it is a minimum over ``B (B − 1) / 2`` pairs, and falls with B. In a
    model of many parameters pairs that agree on nothing have cosines near zero.

    Returns:
        A pure number from -1 to 1; NaN where fewer than two samples have a gradient, or one is not finite.

    Raises:
        InapplicableError: There is no loss, or samples have no gradients of their own (BatchNorm in training mode).

    Source: Sankararaman, De, Xu, Huang & Goldstein, ICML 2020, who call η with ``g_i · g_j ≥ -η`` the confusion
    bound. We divide by both norms: a cosine does not depend on the loss's units.
    """
    K = run[GRADIENT_GRAM]
    if not bool(K.isfinite().all()):
        return math.nan
    K = K[K.diagonal() > 0][:, K.diagonal() > 0]
    if len(K) < 2:
        return math.nan
    lengths = K.diagonal().sqrt()
    first, second = torch.triu_indices(len(K), len(K), offset=1)
    cosines = K[first, second] / lengths[first] / lengths[second]
    return float(cosines.min().clamp(-1, 1))


@declare("scalar", unit="samples", scale="log", needs=[GRADIENT_MOMENTS], tolerance=0.3)
def gradient_noise_scale(run: Run) -> float:
    """Return ``B_simple = tr Σ / ‖G‖²``, the batch size at which noise and signal of the gradient are of one size.

    Both are estimated without bias from the gradients ``g_i`` of the loss on each of B samples:
    ``tr Σ = Σ_i ‖g_i − ḡ‖² / (B − 1)`` and ``‖G‖² = ‖ḡ‖² − tr Σ / B``, the mean of ``g_i · g_j`` over pairs.

    It misleads where it is larger than the batch it comes from: the estimate of ``‖G‖²`` is then mostly noise, zero and below
    included. At initialization it is far smaller than later in training.

    Returns:
        Samples; ``inf`` where the estimate of ``‖G‖²`` is not positive, zero where all samples have the same gradient, NaN
        where all have none, or one is not finite.

    Raises:
        InapplicableError: There is no loss, or samples have no gradients of their own (BatchNorm in training mode).

    Source: McCandlish, Kaplan, Amodei et al., arXiv:1812.06162 (2018), equation 2.9, and appendix A.1 with ``B_small = 1``.
    They average both estimates over batches before they divide; here each seed has a ratio of its own.
    """
    moments = total(run[GRADIENT_MOMENTS].values())
    if moments.agree:
        return 0.0 if moments.mean_square > 0 else math.nan
    signal = moments.mean_square - moments.variance / moments.samples
    return math.inf if signal <= 0 else moments.variance / signal
