"""Likely cause of a failure and usual remedy, from facts about the steps of the chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, pstdev

from ..records.reports import StepFacts, VerdictRecord
from ..records.text import format_number

__all__ = ["diagnose", "is_about_growth"]

NEGLIGIBLE = 0.02
"""Absolute growth rate, in nats per step, below which the gradient counts as constant."""

_ACTIVATIONS = {
    "Tanh": "tanh",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Gelu": "gelu",
    "Silu": "silu",
    "Elu": "elu",
    "LeakyRelu": "leaky_relu",
    "Hardtanh": "hardtanh",
    "Softplus": "softplus",
}
_PRODUCTS = ("Convolution", "Addmm", "Mm", "Bmm", "MkldnnConvolution", "CudnnConvolution")
_NORMALIZATIONS = ("BatchNorm", "LayerNorm", "GroupNorm", "RmsNorm", "RMSNorm")


def is_about_growth(verdict: VerdictRecord, explained_by_growth: int, gain: float) -> bool:
    """Return whether growth along the chain can explain a verdict that does not hold.

    A measure that increases with the log gain is too small if gradients shrink and too large if they grow. For a measure that
    decreases with the log gain it is the other way round.

    Args:
        verdict: A verdict that does not hold.
        explained_by_growth: 1 if the measure increases with the log gain, -1 if it decreases, 0 if it does not depend on it.
        gain: Log gain of the chain, nats.
    """
    if not explained_by_growth:
        return False
    if not (math.isfinite(gain) and math.isfinite(verdict.value)):
        return True
    too_small = verdict.low is not None and verdict.value < verdict.low
    shrinks = too_small == (explained_by_growth > 0)
    return gain < 0 if shrinks else gain > 0


def diagnose(growth: Sequence[float], facts: Sequence[StepFacts], not_finite: Sequence[str] = ()) -> list[str]:
    """Return one or two lines on why the gradient grows or shrinks along the chain.

    Args:
        growth: Growth rate of each step, nats, in program order.
        facts: Facts about the same steps.
        not_finite: Names of values that contain NaN or infinity, in the order of the forward pass, then of gradients.

    Returns:
        Lines of text; none if there is no growth to explain.
    """
    if not growth or len(growth) != len(facts):
        return []
    for index in range(len(growth) - 1, -1, -1):
        if math.isnan(growth[index]) or growth[index] == math.inf:
            return [_not_finite(facts[index].name, not_finite)]
        if growth[index] == -math.inf:
            return [_dead(facts[index])]
    outlier = _outlier(growth)
    if outlier is not None:
        share = f"{growth[outlier]:+.2g} of {sum(growth):+.2g} nats"
        where = "its input at this time step" if facts[outlier].recurrent else "its initialization"
        return [f"{facts[outlier].name} alone contributes {share}: check {where}"]
    return _steady(growth, facts)


def _not_finite(step: str, holders: Sequence[str]) -> str:
    forward = [holder for holder in holders if not holder.startswith("gradient of ")]
    if forward:
        return f"first value that is not finite: {forward[0]}"
    return f"the gradient is not finite from {step} on: check this step for overflow or NaN"


def _dead(facts: StepFacts) -> str:
    if facts.weight_std == 0:
        return f"{facts.name} has constant weights and passes no gradient: is it initialized?"
    return f"{facts.name} passes no gradient: dead units, a zero branch without a skip connection, or a detach"


def _outlier(growth: Sequence[float]) -> int | None:
    """Return the step with more than half of the total growth and a rate far from the others; None if there is none."""
    if len(growth) < 4:
        return None
    index = max(range(len(growth)), key=lambda i: abs(growth[i]))
    middle = median(growth)
    spread = median(abs(g - middle) for g in growth)
    rest = sum(growth) - growth[index]
    far = abs(growth[index] - middle) > 10 * max(spread, NEGLIGIBLE)
    return index if far and abs(growth[index]) > abs(rest) else None


def _steady(growth: Sequence[float], facts: Sequence[StepFacts]) -> list[str]:
    rate = fmean(growth)
    if abs(rate) < NEGLIGIBLE:
        return []
    steadily = "steadily" if pstdev(growth) < abs(rate) / 2 else "on average"
    if abs(rate) > 100:
        return [f"every step changes the gradient by {rate:+.0f} nats, {steadily}"]
    what = f"every step multiplies the gradient by {format_number(math.exp(rate))}, {steadily}"
    middle = facts[len(facts) // 2]
    if middle.recurrent:
        remedy = _recurrent_remedy(rate, middle)
    else:
        remedy = _residual_remedy(rate, len(growth), middle) if _is_residual(middle) else _plain_remedy(rate, middle)
    return [what, *remedy]


def _recurrent_remedy(rate: float, facts: StepFacts) -> list[str]:
    if not math.isnan(facts.forget_bias) and rate < 0:
        kept = 1 / (1 + math.exp(-facts.forget_bias))
        have = f"forget gates of mean bias {format_number(facts.forget_bias)} keep {format_number(kept)} of the cell per step"
        return [f"{have}: raise the bias (1 is usual, ln(T - 1) for T steps)"]
    if facts.kind.startswith("GRU") and rate < 0:
        return ["the update gates of a GRU decide how much it keeps: raise their biases, the second third of bias_ih"]
    if math.isnan(facts.weight_std) or facts.weight_std == 0:
        return []
    have = (
        f"recurrent weights of std {format_number(facts.weight_std)}"
        if facts.kind.startswith("RNN")
        else f"the weights of {facts.kind}"
    )
    if rate > 0:
        return [f"{have}: scale them down until spectral_radius is about 1, or clip gradients"]
    activation = next((_ACTIVATIONS[name] for name in facts.operations if name in _ACTIVATIONS), "")
    slope = f" and {activation} slopes below 1" if activation in {"tanh", "sigmoid", "hardtanh"} else ""
    return [f"{have}{slope}: orthogonal weights of gain 1 (nn.init.orthogonal_) keep more, gated cells most"]


def _is_residual(facts: StepFacts) -> bool:
    return facts.weights > 1 and "Add" in facts.operations


def _residual_remedy(rate: float, count: int, facts: StepFacts) -> list[str]:
    norms = [i for i, name in enumerate(facts.operations) if any(mark in name for mark in _NORMALIZATIONS)]
    products = [i for i, name in enumerate(facts.operations) if name.startswith(_PRODUCTS)]
    if rate < 0:
        return [
            "residual steps should not shrink it: is the skip scaled, or the residual stream normalized (post-norm)?"
        ]
    scale = 1 / math.sqrt(2 * count)
    if norms and products and norms[-1] > products[-1]:
        # This normalization undoes the scale of the weights before it, so that its own gain decides.
        gain = f"1/sqrt({count}) = {format_number(1 / math.sqrt(count))}"
        return [f"initialize the gain of each branch's last normalization with {gain}"]
    remedy = f"scale the branch's last projection by 1/sqrt(2 × {count}) = {format_number(scale)}"
    return [remedy if norms else f"the branches have no normalization: add one before each, or {remedy}"]


def _plain_remedy(rate: float, facts: StepFacts) -> list[str]:
    if math.isnan(facts.weight_std) or facts.weight_std == 0 or facts.weights != 1:
        return []
    activation = next((_ACTIVATIONS[name] for name in facts.operations if name in _ACTIVATIONS), "no activation")
    have = f"{facts.kind} weights of std {format_number(facts.weight_std)} with {activation}"
    if activation == "sigmoid":
        return [f"{have}: its slope is at most 1/4; use tanh or relu, or normalize each layer"]
    if activation in {"relu", "leaky_relu"}:
        he = math.sqrt(2 / facts.fan_in)
        return [
            f"{have}: He initialization for fan-in {facts.fan_in} has std {format_number(he)} (nn.init.kaiming_normal_)"
        ]
    needed = facts.weight_std * math.exp(-rate)
    if rate > 0 and activation == "tanh":
        needed = 1 / math.sqrt(facts.fan_in)
    return [f"{have}: a gain of 1 at fan-in {facts.fan_in} needs a std of about {format_number(needed)}"]
