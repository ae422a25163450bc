"""Bounds that the values of a healthy model support.

A bound must hold for other draws of the same model, and fail for another model. It is a prediction interval for one further draw
of the weights, widened by the tolerance that baselines grant the measure, and rounded outwards. With n seeds of mean m and spread
s, it reaches from ``m - h`` to ``m + h``, with ``h = t s sqrt(1 + 1/n) + tolerance``. The quantile t of Student's
distribution with n - 1 degrees of freedom is taken at the error that all bounds of a test share (Bonferroni). Log-scale measures
are treated by their logarithms. A verdict is on the mean over seeds, which spreads less than one draw.

A bound on a profile holds for each element. Its lower end is that of the smallest element of each seed, its upper end that of the
largest: the mean of each element lies between the means of these two.

Source: Hahn & Meeker, Statistical Intervals (Wiley 1991), section 4.7, for the prediction interval of one further observation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Literal, TypeAlias

from .statistics import FIXED, Level, prediction_interval

__all__ = ["LEFT_OUT", "Ends", "Sides", "sides_of", "supported_ends"]

Sides: TypeAlias = Literal["both", "low", "high"]
"""Which ends a bound has."""
Ends: TypeAlias = "tuple[float | None, float | None]"
"""Lower and upper end; None for an open end."""

AT_LEAST = frozenset(
    {
        "attention_entropy",
        "branch_gradient_share",
        "effective_rank",
        "expert_usage",
        "gradient_norm",
        "gradient_snr",
        "loss_drop",
        "memory_horizon",
        "numerical_rank",
        "precision_horizon",
        "relative_gradient_norm",
        "stable_learning_rate",
    }
)
"""Measures that are unhealthy if they are small."""
SHARES = frozenset(
    {
        "causal_leak",
        "dead_fraction",
        "fp8_overflow_fraction",
        "fp8_underflow_fraction",
        "mode_gap",
        "order_blindness",
        "overflow_fraction",
        "sample_similarity",
        "saturated_fraction",
        "underflow_fraction",
        "untrained_fraction",
    }
)
"""Measures between 0 and 1 that are unhealthy if they are large."""
AT_MOST = SHARES | frozenset(
    {
        "attention_logit_max",
        "backward_error",
        "condition_number",
        "excess_loss",
        "gradient_confusion",
        "isometry_gap",
        "largest_value",
        "ntk_condition_number",
        "parameter_outlier",
        "sharpness",
        "smallest_loss_scale",
        "waking_step",
    }
)
"""Measures that are unhealthy if they are large."""
LEFT_OUT = frozenset(
    {
        "gradient_classes",
        "gradient_noise_scale",
        "jacobian_singular_values",
        "lyapunov_history",
        "parameter_mean",
        "parameter_rms",
    }
)
"""Measures that explain others, or that a baseline compares and no bound can judge."""
DIGITS = 2
"""Significant digits of a suggested end."""


def sides_of(measure: str, kind: str) -> Sides:
    """Return which ends a bound on a measure has: one where only small or only large values are unhealthy."""
    if measure in AT_LEAST:
        return "low"
    return "high" if measure in AT_MOST or kind == "names" else "both"


def supported_ends(
    measure: str,
    draws: Sequence[Sequence[float]],
    *,
    sides: Sides,
    scale: str = "linear",
    tolerance: float = 0.0,
    level: Level = FIXED,
) -> Ends | str:
    """Return the ends of the bound that the values over seeds support.

    Args:
        measure: Name of the measure.
        draws: Values of all judged elements, for each seed.
        sides: Which ends the bound has.
        scale: ``"log"`` for a measure that is averaged by logarithms.
        tolerance: Tolerance of the measure, in its unit; for the log scale in nats of a ratio.
        level: Confidence level that a further draw of the weights satisfies the bound.

    Returns:
        The ends, with an open one where the measure has one side; or the reason why no bound is supported.
    """
    if not all(draws):
        return "there is nothing to judge"
    lows, highs = [min(values) for values in draws], [max(values) for values in draws]
    finite = [_is_usable(low, scale) and _is_usable(high, scale) for low, high in zip(lows, highs)]
    if not all(finite):
        return f"its values are {'finite' if scale != 'log' else 'finite and positive'} on {sum(finite)} of {len(finite)} seeds"
    if len(draws) < 2:
        return "one draw has no spread"
    # Two ends share the error.
    confidence = level.confidence if sides == "both" else 2 * level.confidence - 1
    low = _end(lows, -1, confidence, scale, tolerance) if sides != "high" else None
    high = _end(highs, 1, confidence, scale, tolerance) if sides != "low" else None
    if sides == "low" and low is not None and low <= 0:
        return "its seeds differ so much that they support no positive bound"
    if measure in SHARES and high is not None and high >= 1:
        return "the bound that its seeds support is not below 1, which every model satisfies"
    return low, high


def _is_usable(value: float, scale: str) -> bool:
    return math.isfinite(value) and (scale != "log" or value > 0)


def _end(values: Sequence[float], sign: int, confidence: float, scale: str, tolerance: float) -> float:
    """Return one end, rounded outwards."""
    numbers = [math.log(value) for value in values] if scale == "log" else list(values)
    mean, half = prediction_interval(numbers, confidence)
    end = mean + sign * (half + tolerance)
    if scale == "log":
        # A range of more than hundreds of nats is as good as none, and has no float.
        end = math.exp(max(-700.0, min(end, 700.0)))
    return _rounded(end, up=sign > 0)


def _rounded(value: float, *, up: bool) -> float:
    """Return a number with two significant digits, rounded up or down."""
    return float(Context(prec=DIGITS, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(repr(value))) + 0.0
