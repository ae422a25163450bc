"""The measures, one quantity a file, and the registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import BoundError
from . import (
    activation_rms,
    excess_loss,
    forward_log_gain,
    gradient_norm,
    growth_rate,
    initial_loss,
    log_gain,
    loss_log_gain,
    lyapunov_history,
    lyapunov_max,
    lyapunov_spectrum,
    memory_horizon,
    nonfinite,
    precision_horizon,
    recurrence_lyapunov_max,
    relative_gradient_norm,
    spectral_radius,
    unused_parameters,
)
from .measure import Measure

__all__ = ["DEFAULT", "MEASURES", "RECORDED", "RECORDED_ALONG_TIME", "Measure", "find_measure"]

MEASURES: dict[str, Measure] = {
    module.MEASURE.name: module.MEASURE
    for module in (
        lyapunov_max,
        lyapunov_spectrum,
        lyapunov_history,
        log_gain,
        growth_rate,
        loss_log_gain,
        gradient_norm,
        relative_gradient_norm,
        activation_rms,
        forward_log_gain,
        memory_horizon,
        precision_horizon,
        spectral_radius,
        recurrence_lyapunov_max,
        nonfinite,
        unused_parameters,
        initial_loss,
        excess_loss,
    )
}

DEFAULT: tuple[str, ...] = ("lyapunov_max", "gradient_norm", "activation_rms")
"""What is measured when nothing is asked for."""

RECORDED: tuple[str, ...] = ("log_gain", "growth_rate", "activation_rms", "gradient_norm", "unused_parameters")
"""What a baseline holds beside the measures that a test has bounds for."""

RECORDED_ALONG_TIME: tuple[str, ...] = ("log_gain", "lyapunov_max", "gradient_norm", "unused_parameters")
"""The same along time, where steps are many and alike."""


def find_measure(name: str, *, where: str = "", known: Iterable[str] = MEASURES) -> Measure:
    """Return the measure of that name.

    Raises:
        BoundError: There is none; the message names ``where`` it was asked for, and the nearest names.
    """
    if name in MEASURES:
        return MEASURES[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    msg = f"{where or 'A bound'} must name a measure. {name!r} is none.{hint} Measures: {', '.join(sorted(known))}."
    raise BoundError(msg)
