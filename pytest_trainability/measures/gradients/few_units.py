"""Layers of so few units that a draw may leave all of them dead by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["are_few_units"]

ENOUGH = 10
"""Number of units from which on it is no chance that all are dead. Each of n units is dead with probability 1/2 where the inputs
of a batch are alike, as averages over positions are. All of ten are on one draw in a thousand."""
SHIFTED = 3.0
"""Mean of a bias, in its standard deviations, from which on it shifts all units, so that they are dead by no chance."""


def are_few_units(parameters: Mapping[str, Tensor]) -> bool:
    """Return whether parameters without a gradient belong to layers of a few units, whose values do not explain why.

    Args:
        parameters: Parameters by name.

    Returns:
        False if one belongs to units that are enough, is a zero weight, or a bias that shifts all units; or if a weight stands
        alone: dead units leave the layer in front of them and the one behind them without a gradient.
    """
    are_few = all(_has_few_units(p) and not _is_reason(name, p) for name, p in parameters.items())
    return are_few and _come_in_pairs([p for p in parameters.values() if p.dim() > 1])


def _come_in_pairs(weights: Sequence[Tensor]) -> bool:
    """Return whether each weight has another one that reads its outputs, or makes its inputs."""
    pairs = [(a, b) for a in weights for b in weights if a is not b and a.shape[0] == b.shape[1]]
    paired = {id(weight) for pair in pairs for weight in pair}
    return all(id(weight) in paired for weight in weights)


def _has_few_units(parameter: Tensor) -> bool:
    """Return whether a parameter has few outputs or, as the layer behind dead units has, few inputs."""
    return min(parameter.shape[:2], default=1) < ENOUGH


def _is_reason(name: str, parameter: Tensor) -> bool:
    values = parameter.detach().double()
    if "bias" not in name.rpartition(".")[2]:
        return not bool(values.any())
    deviation = float(values.std()) if values.numel() > 1 else 0.0
    return abs(float(values.mean())) > SHIFTED * deviation
