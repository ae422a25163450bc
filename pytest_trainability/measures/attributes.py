"""The measures as typed attributes, for type checkers and editors.

Written by ``make generated`` from the declarations of the measures; do not edit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..records.estimates import Estimate, Names, Profile, Spectrum

__all__ = ["Attributes"]


class Attributes:
    """One attribute per measure, by its kind."""

    if TYPE_CHECKING:
        log_gain: Estimate
        lyapunov_max: Estimate
        lyapunov_spectrum: Spectrum
        growth_rate: Profile
        lyapunov_history: Profile
        loss_log_gain: Estimate
        memory_horizon: Estimate
        precision_horizon: Estimate
        recurrence_lyapunov_max: Profile
        branch_ratio: Profile
        branch_gradient_share: Profile
        spectral_radius: Profile
        jacobian_singular_values: Spectrum
        max_ftle: Estimate
        condition_number: Estimate
        numerical_rank: Estimate
        isometry_gap: Estimate
        angle_exponent: Estimate
        attention_entropy: Profile
        attention_logit_max: Profile
        causal_leak: Profile
        effective_rank: Profile
        idle_normalizations: Names
        largest_value: Profile
        leaked_targets: Names
        mode_gap: Profile
        order_blindness: Estimate
        expert_usage: Profile
        sample_similarity: Profile
        saturated_fraction: Profile
        dead_fraction: Profile
        activation_rms: Profile
        forward_log_gain: Estimate
        unnormalized_attention: Names
        backward_error: Profile
        gradient_classes: Names
        waking_step: Profile
        asleep_parameters: Names
        untrained_fraction: Estimate
        update_ratio: Profile
        loss_drop: Estimate
        fp8_overflow_fraction: Profile
        fp8_underflow_fraction: Profile
        underflow_fraction: Profile
        overflow_fraction: Profile
        smallest_loss_scale: Estimate
        largest_learning_rate: Estimate
        gradient_norm: Profile
        relative_gradient_norm: Profile
        unused_parameters: Names
        gradient_snr: Profile
        gradient_confusion: Estimate
        gradient_noise_scale: Estimate
        initial_loss: Estimate
        excess_loss: Estimate
        sharpness: Estimate
        stable_learning_rate: Estimate
        squashed_scores: Names
        ntk_condition_number: Estimate
        uninitialized_parameters: Names
        duplicate_parameters: Names
        nonfinite: Names
        linear_steps: Names
        meta_device_differences: Names
        unregistered_parameters: Names
        interacting_samples: Names
        parameter_rms: Profile
        parameter_mean: Profile
        parameter_outlier: Profile
        unusual_parameters: Names
