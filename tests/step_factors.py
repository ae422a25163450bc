"""Factors of steps without a model, for tests of causes: layers with activations between them, residual blocks."""

from __future__ import annotations

import math
from typing import Any

from pytest_trainability.records.factors import FactorRecord, SlopeRecord

RELU = SlopeRecord(0.7, 0.0, 1.0, 0.5)


def factor(kind: str = "weights", gain: float = 0.0, step: int = 0, **changes: Any) -> FactorRecord:
    """Return a factor of a linear layer, with some fields changed."""
    given: dict[str, Any] = {"module": f"{2 * step}", "module_kind": "Linear", "operations": ("Addmm",)}
    if kind == "weights":
        given |= {"weight": f"{2 * step}.weight", "weight_rms": 0.125, "fan_in": 64}
    return FactorRecord(step=step, kind=kind, gain=gain, **{**given, **changes})  # type: ignore[arg-type]


def activation(gain: float, step: int, *, slopes: SlopeRecord = RELU, **changes: Any) -> FactorRecord:
    """Return a factor of the activation in front of a linear layer, with some fields changed."""
    given = {"module": f"{2 * step - 1}", "module_kind": "ReLU", "operations": ("Relu",), "slopes": slopes}
    return factor("entrywise", gain, step, **{**given, **changes})


def tower(count: int, weights: float, slopes: float) -> list[FactorRecord]:
    """Return the factors of linear layers with activations between them."""
    pairs = [[activation(slopes, i), factor(gain=weights, step=i)] for i in range(count)]
    return [f for pair in pairs for f in pair][1:]


def scaled(gain: float, step: int = 3) -> FactorRecord:
    """Return a module that multiplies the signal with one number."""
    c = math.exp(gain)
    slopes = SlopeRecord(c, c, c, 0.0)
    return factor("entrywise", gain, step, module="shrink", module_kind="Shrink", operations=("Mul",), slopes=slopes)


def residual(step: int, sizes: dict[str, float], gain: float = 0.5) -> FactorRecord:
    """Return a residual block whose branch is one gated product of weights over 16 inputs."""
    products = tuple((f"blocks.{step}.{name}.weight", size, 16) for name, size in sizes.items())
    inner = factor("other", step=step, module=f"blocks.{step}.mlp", operations=("Mm", "Mul"), products=products)
    return factor(
        "parallel",
        gain,
        step,
        module=f"blocks.{step}",
        module_kind="Block",
        branches=((), (inner,)),
        branch_gains=(0.0, gain),
    )
