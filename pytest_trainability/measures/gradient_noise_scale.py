"""From how many samples on a larger batch no longer pays."""

from __future__ import annotations

import math

from ..engine.gradient_statistics import GRADIENT_MOMENTS, total
from ..engine.run import Run
from .measure import Measure


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


MEASURE = Measure(
    "gradient_noise_scale",
    "scalar",
    "samples",
    "log",
    frozenset({GRADIENT_MOMENTS}),
    gradient_noise_scale,
    tolerance=0.3,
)
