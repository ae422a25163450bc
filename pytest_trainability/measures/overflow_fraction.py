"""How much of each gradient and state half precision would turn into infinity."""

from __future__ import annotations

from ..engine.precision import GRADIENT_ENTRIES, STATE_ENTRIES, overflow_fractions
from ..engine.run import Run
from .measure import Measure


def overflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of entries with absolute values from 65520 on (float16), or ``(2 - 2^-8) 2^127`` (bfloat16).

    From there on a cast rounds to infinity: it is halfway between the largest finite number and the next power of two.
    Without a loss gradients have no size, and only states are judged. It misleads where a tensor inside of a step is
    larger than the states around it (attention scores, squares in a norm).

    Returns:
        Pure numbers by ``"float16 gradient of NAME"``, ``"float16 gradient of state after STEP"`` and ``"float16 state
        after STEP"``, and the same for bfloat16. NaN where an entry is NaN.

    Source: IEEE 754-2019, section 4.3.1, roundTiesToEven.
    """
    return overflow_fractions(run)


MEASURE = Measure(
    "overflow_fraction",
    "profile",
    "",
    "linear",
    frozenset({GRADIENT_ENTRIES, STATE_ENTRIES}),
    overflow_fraction,
    tolerance=0.01,
)
