"""Weights that hold the same numbers without being tied."""

from __future__ import annotations

from ..engine.duplicates import DUPLICATES
from ..engine.run import Run
from .measure import Measure


def duplicate_parameters(run: Run) -> list[str]:
    """Return weights that equal an earlier one, and weights whose units are equal to each other.

    Units with equal weights compute the same, and layers that were cloned begin as one layer applied again and again:
    the draws that ought to break the symmetry have not been made. Compared are trainable weights that multiply,
    convolve or are looked up in; not what scales or adds, nor rows of zeros, nor weights that share their memory. Units
    lie along what a product leaves; where that cannot be told, nothing is said of them. Rows of tables, and short ones,
    count only if all are equal. A whole weight counts as equal to another only if it holds more than a few different
    numbers. It misleads where a copy is meant (experts that begin as one, a head that is initialized from the embedding).

    Returns:
        ``"layers.1.weight = layers.0.weight"``, ``"fc.weight: 64 equal rows"`` (``columns`` where the weight is the
        right factor of a product, ``units`` where they lie otherwise) and ``"experts.weight: 8 equal matrices"``, in the
        model's order.

    Source: Goodfellow, Bengio & Courville, Deep Learning (2016), section 8.4, on breaking symmetry.
    """
    return run[DUPLICATES]


MEASURE = Measure("duplicate_parameters", "names", "", "linear", frozenset({DUPLICATES}), duplicate_parameters)
