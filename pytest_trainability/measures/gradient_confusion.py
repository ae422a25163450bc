"""How much samples pull against each other."""

from __future__ import annotations

import math

import torch

from ..engine.gradient_statistics import GRADIENT_GRAM
from ..engine.run import Run
from .measure import Measure


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


MEASURE = Measure(
    "gradient_confusion", "scalar", "", "linear", frozenset({GRADIENT_GRAM}), gradient_confusion, tolerance=0.1
)
