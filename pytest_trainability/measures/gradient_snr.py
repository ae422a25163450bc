"""How much of a parameter's gradient the samples agree on."""

from __future__ import annotations

import math

from ..engine.gradient_statistics import GRADIENT_MOMENTS
from ..engine.run import Run
from .measure import Measure


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


MEASURE = Measure("gradient_snr", "profile", "", "log", frozenset({GRADIENT_MOMENTS}), gradient_snr, tolerance=0.3)
