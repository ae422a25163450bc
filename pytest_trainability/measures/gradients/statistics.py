"""Statistics of per-sample gradients: mean, variance and inner products."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.linalg.gram import gram_matrix, pieces
from ...engine.linalg.norms import as_float64, norm
from ...engine.linalg.outer_products import OuterProducts, first_samples
from ...engine.runs.common_needs import PARAMETER_GRADIENTS
from ...engine.runs.run import Need, Run, Stage
from ...errors import InapplicableError
from ..measure import declare
from .per_sample import PER_SAMPLE, ROUND_OFF

__all__ = ["GRADIENT_GRAM", "GRADIENT_MOMENTS", "Moments", "sum_of_moments"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of the per-sample gradients of one or several parameters, summed over all entries."""

    mean_square: float
    """``‖ḡ‖²`` of the mean ``ḡ`` over samples."""
    variance: float
    """``tr Σ = Σ_i ‖g_i − ḡ‖² / (B − 1)``."""
    samples: int
    """The number of samples, B."""
    eps: float
    """Relative precision of the gradients' type."""

    @property
    def are_equal(self) -> bool:
        """Whether the gradients of all samples are equal, up to round-off."""
        return self.variance <= (ROUND_OFF * self.eps) ** 2 * self.mean_square


def sum_of_moments(moments: Iterable[Moments]) -> Moments:
    """Return the moments of several parameters' gradients, taken as one vector."""
    parts = list(moments)
    return Moments(
        math.fsum(part.mean_square for part in parts),
        math.fsum(part.variance for part in parts),
        max((part.samples for part in parts), default=0),
        max((part.eps for part in parts), default=0.0),
    )


class _MomentSums:
    """Sums over samples of the differences from the first sample's gradient. The variance of equal gradients is exactly zero."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.clone()
        self.eps = torch.finfo(reference.dtype).eps
        self.sums: list[Tensor] = []
        self.squares, self.samples = 0.0, 0

    def add(self, gradients: Tensor | OuterProducts) -> None:
        """Add the gradients of further samples, ``(samples, *shape)``."""
        assert isinstance(gradients, Tensor), "gradients of one kind only"
        self.samples += len(gradients)
        both = zip(pieces(gradients, wide=False), pieces(self.reference, wide=False))
        for number, (piece, reference) in enumerate(both):
            differences = piece - reference
            self.squares += float(norm(differences)) ** 2
            total = as_float64(differences.sum(dim=0))
            if number == len(self.sums):
                self.sums.append(torch.zeros_like(total))
            self.sums[number] += total

    def means(self) -> Iterator[Tensor]:
        """Yield the mean of the gradients added so far, in pieces."""
        return (ref[0] + total / self.samples for ref, total in zip(pieces(self.reference), self.sums))

    def moments(self) -> Moments:
        """Return the moments of the gradients added so far."""
        count = self.samples
        square_of_sum = sum(float(total.square().sum()) for total in self.sums)
        mean_square = sum(float(mean.square().sum()) for mean in self.means())
        variance = (
            max(self.squares - square_of_sum / count, 0.0) / (count - 1) if math.isfinite(self.squares) else math.nan
        )
        return Moments(mean_square, variance, count, self.eps)


class _OuterMomentSums(_MomentSums):
    """The same for outer products ``g_i = δ_i a_iᵀ``: ``g_i − g_0 = δ_i (a_i − a_0)ᵀ + (δ_i − δ_0) a_0ᵀ``."""

    def __init__(self, reference: OuterProducts) -> None:
        self.eps = torch.finfo(reference.right.dtype).eps
        self._first = as_float64(reference.left), as_float64(reference.right)
        (delta_0, a_0), self.squares, self.samples = self._first, 0.0, 0
        self._total = delta_0.new_zeros(delta_0.shape[1], a_0.shape[1])
        self.sums = [piece[0] for piece in pieces(self._total[None])]

    def add(self, gradients: Tensor | OuterProducts) -> None:
        """Add the gradients of further samples."""
        assert isinstance(gradients, OuterProducts), "gradients of one kind only"
        self.samples += len(gradients)
        (delta_0, a_0), delta, a = self._first, as_float64(gradients.left), as_float64(gradients.right)
        moved, alpha = delta - delta_0, a - a_0
        squares = _inner(delta, delta) * _inner(alpha, alpha)
        mixed = 2 * _inner(delta, moved) * _inner(alpha, a_0)
        others = _inner(moved, moved) * _inner(a_0, a_0)
        found = squares + mixed + others
        for number in (found < CANCELLED * (squares + others)).nonzero()[:, 0].tolist():
            found[number] = (
                (torch.outer(delta[number], alpha[number]) + torch.outer(moved[number], a_0[0])).square().sum()
            )
        self.squares += float(found.sum())
        left, right = torch.cat([delta, moved.sum(dim=0, keepdim=True)]), torch.cat([alpha, a_0])
        self._total.addmm_(left.T, right)

    def means(self) -> Iterator[Tensor]:
        """Yield the mean of the gradients added so far, in pieces."""
        delta_0, a_0 = self._first
        mean = torch.addr(self._total, delta_0[0], a_0[0], beta=1 / self.samples)
        return (piece[0] for piece in pieces(mean[None]))


CANCELLED = 1e-8
"""Part of its terms from which a squared difference is computed entry by entry: eight of float64's sixteen digits remain."""


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of each row with the same one of the other, ``(samples,)``."""
    return (left * right).sum(dim=1)


def _moment_sums(gradients: Tensor | OuterProducts) -> _MomentSums:
    """Return empty sums of differences from the gradient of the first sample."""
    first = first_samples(gradients, 1)
    return _MomentSums(first) if isinstance(first, Tensor) else _OuterMomentSums(first)


def _moments(run: Run) -> dict[str, Moments]:
    per_sample = run[PER_SAMPLE]
    sums: dict[str, _MomentSums] = {}
    for gradients in per_sample.chunks():
        for name, gradient in gradients.items():
            if name not in sums:
                sums[name] = _moment_sums(gradient)
            sums[name].add(gradient)
    found = {name: accumulated.moments() for name, accumulated in sums.items()}
    is_settled = per_sample.is_random or not sums or GRADIENT_GRAM in run.found
    if not is_settled and not any(_is_mean_or_sum(gradient, sums) for gradient in _batch_gradients(run)):
        run[GRADIENT_GRAM]  # refuses a batch gradient that is not a sum of the samples' gradients with any weights
    return found


def _batch_gradients(run: Run) -> Iterator[Mapping[str, Tensor]]:
    """Yield the batch's gradient in the run, which is known, and the one with the buffers that the samples' belong to."""
    yield {name: gradient.to_dense() for name, gradient in run[PARAMETER_GRADIENTS].items() if gradient is not None}
    yield run[PER_SAMPLE].batch_gradient()


def _is_mean_or_sum(batch: Mapping[str, Tensor], sums: Mapping[str, _MomentSums]) -> bool:
    """Return whether the batch's gradient is a multiple of the mean of the samples' gradients."""
    square = product = mean_square = 0.0
    for name, gradient in batch.items():
        for piece, mean in zip(pieces(gradient.unsqueeze(0)), sums[name].means()):
            square += float(piece[0] @ piece[0])
            product += float(piece[0] @ mean)
            mean_square += float(mean @ mean)
    return square * mean_square - product**2 <= OUTSIDE * square * mean_square


def _gram(run: Run) -> Tensor:
    per_sample = run[PER_SAMPLE]
    count = len(per_sample.batch)
    if not per_sample.parameters:
        return torch.zeros(count, count, dtype=torch.float64, device="cpu")
    rows = lambda first, last: list(per_sample.gradients(first, last).values())  # noqa: E731
    batch = [] if per_sample.is_random else [gradient.unsqueeze(0) for gradient in per_sample.batch_gradient().values()]
    K = gram_matrix(rows, count, per_sample.size, further=batch)
    per_sample.require_mean_or_sum()
    if batch and bool(K.isfinite().all()):
        _require_in_span(K, max(torch.finfo(gradient.dtype).eps for gradient in batch), run.seed)
    return K[:count, :count]


GRADIENT_GRAM = Need("inner products of per-sample gradients", _gram, Stage.RERUN, requires=(PER_SAMPLE,))
"""``g_i · g_j`` over all parameters, ``(samples, samples)`` in float64."""


GRADIENT_MOMENTS = Need("moments of per-sample gradients", _moments, Stage.RERUN, requires=(PER_SAMPLE,))
""":class:`Moments` by parameter name, for the parameters that the loss depends on."""


# Is the batch's gradient a sum of the samples' gradients? ----------------------------------------------------------
OUTSIDE = 1e-2
"""Share of the batch's squared gradient (a tenth of its length) that may lie outside the span of the samples' gradients.
Round-off is far below in any precision, and so is a small auxiliary loss of the whole batch, such as a router's. A loss that
compares samples is far above."""


def _require_in_span(K: Tensor, eps: float, seed: int) -> None:
    """Require a batch gradient that is a weighted sum of the samples' gradients, with any weights.

    ``min over a of ‖g − Σ_i a_i g_i‖² = ‖g‖² − cᵀ G⁺ c`` with ``G_ij = g_i · g_j`` and ``c_i = g_i · g``.

    Args:
        K: Inner products of the samples' gradients and, in the last row and column, of the batch's gradient.
        eps: Relative precision of the gradients' type.
        seed: Seed of the run, for the message.

    Raises:
        InapplicableError: The batch's gradient is not in their span, because the loss compares samples.
    """
    G, c, square = K[:-1, :-1], K[:-1, -1], float(K[-1, -1])
    # Where the samples' gradients cancel, the batch's gradient consists of their round-off.
    allowed = OUTSIDE * square + (ROUND_OFF * eps) ** 2 * float(G.diagonal().sqrt().sum()) ** 2 / len(c)
    # A mean or a sum is recognized without eigenvectors, which are slow for many samples.
    if square - float(c.sum()) ** 2 / max(float(G.sum()), torch.finfo(G.dtype).tiny) <= allowed:
        return
    values, vectors = torch.linalg.eigh(G)
    known = values > max((ROUND_OFF * eps) ** 2, len(c) * torch.finfo(G.dtype).eps) * values[-1]
    residual = square - float(((vectors.T @ c)[known].square() / values[known]).sum())
    if residual > allowed:
        msg = (
            "Per-sample gradients need a loss that is a mean or a sum over samples. "
            f"{math.sqrt(residual / square):.0%} of the batch's gradient (seed {seed}) comes from no sample alone: a part of the "
            "loss compares samples, or is a regularizer that is added to a sum. Measure the loss without that part."
        )
        raise InapplicableError(msg)


@declare(
    "profile",
    scale="log",
    needs=[GRADIENT_MOMENTS],
    tolerance=0.3,
    zero_by_design="gradient",
)
def gradient_snr(run: Run) -> dict[str, float]:
    """Return ``‖ḡ‖ / √tr Σ`` for each parameter: the ratio of mean and standard deviation of per-sample gradients.

    ``ḡ = Σ_i g_i / B`` and ``tr Σ = Σ_i ‖g_i − ḡ‖² / (B − 1)``, with ``g_i`` the gradient of the loss on sample i alone, over all
    entries of the parameter.

    It misleads for small batches: independent gradients with mean zero have a ratio of ``1/√B``, because
    ``E ‖ḡ‖² = ‖E g‖² + tr Σ / B``. Dropout counts as noise. If a gradient cancels, as that of attention's key bias, it is a
    ratio of round-off.

    Returns:
        Pure numbers by parameter name in the model's order; ``inf`` if the gradients of all samples are equal, NaN if all are
        zero or one is not finite. Frozen and unused parameters are omitted.

    Raises:
        InapplicableError: The model has no loss, or samples have no separate gradients (BatchNorm in training mode).

    Source: Rainforth et al., ICML 2018, use the ratio of absolute mean and standard deviation. Its square for each entry is the
    GSNR of Liu et al., ICLR 2020. We divide sums over entries, because the mean of the entries' ratios has an infinite
    expectation for two samples, and is 0/0 for an entry without gradient.
    """
    ratios = {}
    for name, moments in run[GRADIENT_MOMENTS].items():
        if moments.are_equal:
            ratios[name] = math.inf if moments.mean_square > 0 else math.nan
        else:
            ratios[name] = math.sqrt(moments.mean_square / moments.variance)
    return ratios


@declare("scalar", needs=[GRADIENT_GRAM], tolerance=0.1)
def gradient_confusion(run: Run) -> float:
    """Return ``min over i ≠ j of cos(g_i, g_j)``, the smallest cosine between the gradients of two samples' losses.

    The gradients contain all parameters. If the cosine of two samples is negative, a step that lowers the loss of one raises the
    loss of the other.

    It misleads when batches of different sizes are compared: it is a minimum over ``B (B − 1) / 2`` pairs, and decreases with
    B. In a model with many parameters, unrelated samples have cosines near zero.

    Returns:
        A pure number from -1 to 1; NaN if fewer than two samples have a nonzero gradient, or if one is not finite.

    Raises:
        InapplicableError: The model has no loss, or samples have no separate gradients (BatchNorm in training mode).

    Source: Sankararaman, De, Xu, Huang & Goldstein, ICML 2020, who call η with ``g_i · g_j ≥ -η`` the confusion bound. We
    divide by both norms, because a cosine does not depend on the unit of the loss.
    """
    K = run[GRADIENT_GRAM]
    if not bool(K.isfinite().all()):
        return math.nan
    nonzero = K.diagonal() > 0
    K = K[nonzero][:, nonzero]
    if len(K) < 2:
        return math.nan
    lengths = K.diagonal().sqrt()
    first, second = torch.triu_indices(len(K), len(K), offset=1)
    cosines = K[first, second] / lengths[first] / lengths[second]
    return float(cosines.min().clamp(-1, 1))


@declare("scalar", unit="samples", scale="log", needs=[GRADIENT_MOMENTS], tolerance=0.3)
def gradient_noise_scale(run: Run) -> float:
    """Return ``B_simple = tr Σ / ‖G‖²``, the batch size at which the gradient's noise is as large as its mean.

    Numerator and denominator are estimated without bias from the gradients ``g_i`` of the loss on each of B samples:
    ``tr Σ = Σ_i ‖g_i − ḡ‖² / (B − 1)`` and ``‖G‖² = ‖ḡ‖² − tr Σ / B``, which is the mean of ``g_i · g_j`` over pairs.

    It misleads if it is larger than the measured batch: the estimate of ``‖G‖²`` is then mostly noise, and may be zero or
    negative. At initialization it is far smaller than later in training.

    Returns:
        Number of samples; ``inf`` if the estimate of ``‖G‖²`` is not positive, 0 if the gradients of all samples are equal, NaN
        if all are zero or one is not finite.

    Raises:
        InapplicableError: The model has no loss, or samples have no separate gradients (BatchNorm in training mode).

    Source: McCandlish, Kaplan, Amodei et al., arXiv:1812.06162 (2018), equation 2.9, and appendix A.1 with ``B_small = 1``.
    They average both estimates over batches before they divide. Here each seed has its own ratio.
    """
    moments = sum_of_moments(run[GRADIENT_MOMENTS].values())
    if moments.are_equal:
        return 0.0 if moments.mean_square > 0 else math.nan
    signal = moments.mean_square - moments.variance / moments.samples
    return math.inf if signal <= 0 else moments.variance / signal
