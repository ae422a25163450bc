"""Gradients that consist of round-off, because they are sums that cancel."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ...engine.linalg.norms import norm
from ...engine.runs.objective import Objective
from ...engine.runs.other_precision import (
    gradients_in_other_precision,
    gradients_under_other_roundings,
    other_precision,
)
from ...engine.runs.training import Gradients

__all__ = ["round_off", "small_gradients"]

# Note [What zero is]
# ~~~~~~~~~~~~~~~~~~~
# A gradient that is exactly zero is dead, or it wakes: up to three optimizer steps tell these apart. A gradient that is zero by
# algebra is a sum that cancels, as for the bias of a key, which a softmax does not see. What is computed is round-off. No
# threshold on the norm separates it from a small gradient: a deep network has gradients of 1e-23 that are correct to six digits.
# Round-off depends on the precision, and a gradient does not. So the gradient is computed again in another precision, where
# round-off is 2^29 times smaller or larger. Half of these digits decide. Where the true gradient is smaller than its round-off
# but not zero, as behind p / (p + 1e-9), the norm may stay and the entries change. Changed entries decide if those of the other
# parameters do not change: in a chaotic network all do. Where the model does not run in another precision, all roundings are
# changed instead. None of this is computed unless a gradient is so small that it might be round-off.

UNCHANGED, CHANGED = 0.1, 0.5
"""Relative change of the entries up to which a gradient is the same in another precision, and from which it is another one."""


def round_off(
    objective: Objective,
    gradients: Gradients,
    *,
    eps: float,
    loss: float = 0.0,
    among: Collection[str] | None = None,
) -> set[str]:
    """Return the parameters whose gradients are nonzero and consist of round-off. See Note [What zero is].

    Args:
        objective: The loss, at the parameters that the gradients were computed at.
        gradients: Gradients by parameter name.
        eps: Coarsest relative precision of the model's arithmetic.
        loss: Value of the loss, a further scale: all gradients may be round-off if no relative change of a parameter matters to
            it; 0 for none.
        among: Names of the parameters in question; all by default.

    Returns:
        Names of parameters. Empty, without further backward passes, if no gradient is small.
    """
    small = small_gradients(objective.parameters, gradients, eps=eps, loss=loss)
    if not (small if among is None else small & set(among)):
        return set()
    sizes = _sizes(gradients)
    found = _found(objective, gradients, sizes, small)
    return found if among is None else found & set(among)


def _found(objective: Objective, gradients: Gradients, sizes: Mapping[str, float], small: set[str]) -> set[str]:
    other = gradients_in_other_precision(objective)
    if other is None:
        other = gradients_under_other_roundings(objective)
        return set() if other is None else _changed(gradients, other, sizes, small)
    dtype = other_precision(objective.model)
    return {n for n in small if _follows_precision(gradients[n], other[n], dtype)} | _changed(
        gradients, other, sizes, small
    )


def small_gradients(
    parameters: Mapping[str, nn.Parameter], gradients: Gradients, *, eps: float, loss: float = 0.0
) -> set[str]:
    """Return the parameters whose gradients are nonzero, and less than half of the digits of the largest one.

    Round-off is a few times ``eps`` of the terms that cancel. That they are as large as the gradients of other parameters is an
    assumption. It fails if all gradients are round-off, which shows in a loss that depends on no parameter.

    Args:
        parameters: Parameters by name.
        gradients: Gradients by name.
        eps: Coarsest relative precision of the model's arithmetic.
        loss: Value of the loss; 0 for none.

    Returns:
        Names of parameters; empty if a gradient is not finite.
    """
    sizes = _sizes(gradients)
    largest = max(sizes.values(), default=0.0)
    if not math.isfinite(largest):
        return set()
    effect = max((size * float(norm(parameters[name])) for name, size in sizes.items()), default=0.0)

    def is_small(name: str) -> bool:
        precision = math.sqrt(max(eps, _eps(gradients[name])))
        return sizes[name] <= precision * largest or effect <= precision * abs(loss)

    return {name for name, size in sizes.items() if size > 0 and is_small(name)}


def _sizes(gradients: Gradients) -> dict[str, float]:
    return {name: float(norm(g)) for name, g in gradients.items() if g is not None}


def _eps(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else torch.finfo(gradient.dtype).eps


def _follows_precision(gradient: Tensor | None, other: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether a gradient grows or shrinks with the precision of its computation, by more than half of the digits."""
    if gradient is None or other is None:
        return False
    size, size_there = float(norm(gradient)), float(norm(other))
    expected = _eps(gradient) / torch.finfo(dtype).eps
    if expected < 1:
        return math.isfinite(size_there) and size_there * math.sqrt(expected) >= size
    return size_there * math.sqrt(expected) <= size


def _changed(gradients: Gradients, other: Gradients, sizes: Mapping[str, float], small: Collection[str]) -> set[str]:
    """Return the small gradients whose entries are others in another computation; none if those of large gradients change too."""
    changes = {
        n: _relative_change(g, other[n], sizes[n]) for n, g in gradients.items() if g is not None and sizes[n] > 0
    }
    large = [change for name, change in changes.items() if name not in small]
    if not large or not max(large) <= UNCHANGED:
        return set()
    return {name for name in small if changes[name] > CHANGED and not _is_subnormal(gradients[name], sizes[name])}


def _relative_change(gradient: Tensor, other: Tensor | None, size: float) -> float:
    if other is None or other.shape != gradient.shape:
        return math.nan
    there = other.to_dense() if other.is_sparse else other
    here = gradient.to_dense() if gradient.is_sparse else gradient
    wide = torch.promote_types(here.dtype, there.dtype)
    return float(norm(there.to(wide) - here.to(wide))) / size


def _is_subnormal(gradient: Tensor | None, size: float) -> bool:
    """Whether the entries are so small that the format keeps few of their digits."""
    assert gradient is not None
    rms = size / math.sqrt(gradient.numel())
    return rms < 2**8 * torch.finfo(gradient.dtype).tiny
