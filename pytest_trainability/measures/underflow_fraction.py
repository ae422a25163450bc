"""How much of each gradient half precision would flush to zero."""

from __future__ import annotations

from ..engine.precision import GRADIENT_ENTRIES, underflow_fractions
from ..engine.run import Run
from .measure import Measure


def underflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of each gradient's non-zero entries that a cast to half precision rounds to zero.

    Those are ``|g| ≤ 2^-25`` for float16 and ``2^-134`` for bfloat16, half of the smallest subnormal number, ties to
    even. Gradients of the loss with respect to every parameter and every state ``x_0 … x_L`` are taken in the model's
    own type. For Gaussian entries of standard deviation σ it is ``erf(2^-25 / (σ √2))``. Entries that are round-off
    themselves, for they change by more than 1 % when everything is rounded otherwise, are no loss (the gradient of a
    key's bias, which softmax makes zero). It misleads where the model itself is in half
    precision: what that has flushed already is zero here.

    Returns:
        Pure numbers by ``"float16 gradient of NAME"``, ``"float16 gradient of state after STEP"``, and the same for
        bfloat16; gradients that are zero throughout are left out. NaN where an entry is NaN.

    Raises:
        InapplicableError: There is no loss.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """
    return underflow_fractions(run)


MEASURE = Measure(
    "underflow_fraction", "profile", "", "linear", frozenset({GRADIENT_ENTRIES}), underflow_fraction, tolerance=0.05
)
