"""The measures, one quantity a file, and the registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import BoundError
from . import (
    activation_rms,
    asleep_parameters,
    attention_entropy,
    branch_gradient_share,
    branch_ratio,
    condition_number,
    dead_fraction,
    duplicate_parameters,
    excess_loss,
    expert_usage,
    forward_log_gain,
    gradient_confusion,
    gradient_noise_scale,
    gradient_norm,
    gradient_snr,
    growth_rate,
    initial_loss,
    interacting_samples,
    isometry_gap,
    jacobian_singular_values,
    linear_steps,
    log_gain,
    loss_drop,
    loss_log_gain,
    lyapunov_history,
    lyapunov_max,
    lyapunov_spectrum,
    max_ftle,
    memory_horizon,
    meta_device_differences,
    nonfinite,
    ntk_condition_number,
    numerical_rank,
    overflow_fraction,
    precision_horizon,
    recurrence_lyapunov_max,
    relative_gradient_norm,
    sample_similarity,
    saturated_fraction,
    sharpness,
    smallest_loss_scale,
    spectral_radius,
    stable_learning_rate,
    underflow_fraction,
    uninitialized_parameters,
    unused_parameters,
    update_ratio,
    waking_step,
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
        saturated_fraction,
        dead_fraction,
        sample_similarity,
        memory_horizon,
        precision_horizon,
        jacobian_singular_values,
        max_ftle,
        condition_number,
        numerical_rank,
        isometry_gap,
        spectral_radius,
        recurrence_lyapunov_max,
        attention_entropy,
        branch_gradient_share,
        branch_ratio,
        expert_usage,
        interacting_samples,
        nonfinite,
        unused_parameters,
        initial_loss,
        excess_loss,
        underflow_fraction,
        overflow_fraction,
        smallest_loss_scale,
        gradient_snr,
        gradient_confusion,
        gradient_noise_scale,
        ntk_condition_number,
        sharpness,
        stable_learning_rate,
        update_ratio,
        loss_drop,
        waking_step,
        asleep_parameters,
        duplicate_parameters,
        uninitialized_parameters,
        meta_device_differences,
        linear_steps,
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
    hint = f"Did you mean {near[0]!r}?" if near else f"Measures: {', '.join(sorted(known))}."
    msg = f"{where or 'A bound'} must name a measure. {name!r} is none. {hint}"
    raise BoundError(msg)
