"""The leading exponent of every recurrence."""

from __future__ import annotations

from ..engine.exponents import RECURRENCES
from ..engine.run import Run
from .measure import Measure


def recurrence_lyapunov_max(run: Run) -> dict[str, float]:
    """Return ``λ_1`` of every recurrence along time: each direction of a bidirectional layer, each layer that stands alone.

    ``lyapunov_max`` is that of one of them, which ``steps="time:NAME"`` chooses. No warm-up is left out here.

    Returns:
        Nats per step, or per unit of time where steps have durations, by recurrence; empty where the chain is along depth.
    """
    return {name: float(exponents.mean()) for name, exponents in run[RECURRENCES].items()}


MEASURE = Measure(
    "recurrence_lyapunov_max",
    "profile",
    "nats/step",
    "linear",
    frozenset({RECURRENCES}),
    recurrence_lyapunov_max,
    tolerance=0.02,
)
