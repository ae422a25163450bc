"""Gradients that consist of round-off, because they are sums that cancel."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...engine.isolation import generator_of, preserved_model
from ...engine.linalg.norms import is_zero, norm
from ...engine.runs.gradient_terms import Terms, sums_with_terms
from ...engine.runs.objective import Objective
from ...engine.runs.other_precision import (
    gradients_in_other_precision,
    gradients_under_other_roundings,
    other_precision,
    replaced_values,
)
from ...engine.runs.training import Gradients

__all__ = [
    "RoundOff",
    "cancels",
    "gradient_norms",
    "round_off",
    "rounded_sums",
    "small_gradients",
    "zero_sums",
]

# Note [What zero is]
# ~~~~~~~~~~~~~~~~~~~
# A gradient that is exactly zero is dead, or it wakes: up to three optimizer steps tell these apart. A gradient that is zero by
# algebra is a sum that cancels, as for the bias of a key, which a softmax does not see. What is computed is round-off. No
# threshold on the norm separates it from a small gradient: a deep network has gradients of 1e-23 that are correct to six digits.
# Round-off depends on the precision, and a gradient does not. So the gradient is computed again in another precision, where
# round-off is 2^29 times smaller or larger. Half of these digits decide. Where the true gradient is smaller than its round-off
# but not zero, as behind p / (p + 1e-9), the norm may stay and the entries change. Changed entries decide if those of the other
# parameters do not change: in a chaotic network all do. Where the model does not run in another precision, all roundings are
# changed instead. None of this is computed unless a gradient is so small that it might be round-off, and the backward passes of
# the measurement do not decide it themselves: Note [Terms of a gradient] in gradient_terms.py.
#
# A sum may also cancel to exactly zero: that of a bias in f(a) - f(b), where each term meets its negative. It is told from the
# gradient of dead units by its terms, which are not zero. Whether it cancels by algebra or only at the present values is told by
# the loss: what cancels by algebra does not show in it, however far the bias is moved. While all samples of a hinge loss are
# within the margin, their terms are 1 and -1, and cancel as well; but a bias that moves the scores beyond the margin shows.

UNCHANGED, CHANGED = 0.1, 0.5
"""Relative change of the entries up to which a gradient is the same in another precision, and from which it is another one."""

ROUNDING = 16
"""Largest sum of terms, in units of their norm times the precision, that is no more than their rounding. That of the terms of key
biases in transformers is 3 to 10."""


@dataclass(frozen=True, slots=True)
class RoundOff:
    """Names of parameters whose computed gradients are not the true ones."""

    cancelled: frozenset[str]
    """The gradient is the round-off of a sum that cancels."""
    underflowed: frozenset[str]
    """The gradient is exactly zero, because its entries are too small for the format."""


def cancels(terms: Terms) -> bool | None:
    """Return whether a gradient is a sum that cancels, by the terms that it is the sum of; None if they leave it open.

    Args:
        terms: The gradient in comparison with its terms.

    Returns:
        False if it is a larger part of its terms than half of the digits. True if it is the sum of one cotangent, and is as small
        as the rounding of its terms, both in the backward pass of the loss and for random cotangents. A coarse type such as
        bfloat16 leaves it open, because the rounding of many terms is as large as a small signal.
    """
    if math.sqrt(terms.eps) < terms.share < math.inf:
        return False
    is_coarse = terms.eps > torch.finfo(torch.float32).eps
    return True if terms.sums and not is_coarse and max(terms.sums) <= ROUNDING * terms.eps else None


def round_off(
    objective: Objective,
    gradients: Gradients,
    *,
    eps: float,
    loss: float = 0.0,
    among: Collection[str] | None = None,
) -> RoundOff:
    """Find the gradients that are nonzero and consist of round-off. See Note [What zero is].

    Args:
        objective: The loss, at the parameters that the gradients were computed at.
        gradients: Gradients by parameter name.
        eps: Coarsest relative precision of the model's arithmetic.
        loss: Value of the loss, a further scale: all gradients may be round-off if no relative change of a parameter matters to
            it; 0 for none.
        among: Names of the parameters in question; all by default.

    Returns:
        Names of parameters. None, without further backward passes, if no gradient in question is small.
    """
    small = small_gradients(objective.parameters, gradients, eps=eps, loss=loss)
    if not (small if among is None else small & set(among)):
        return RoundOff(frozenset(), frozenset())
    other = gradients_in_other_precision(objective)
    if other is None:
        other = gradients_under_other_roundings(objective) or {}
        return RoundOff(frozenset(_changed(gradients, other, small)), frozenset())
    dtype = other_precision(objective.model)
    following = {name for name in small if _follows_precision(gradients[name], other[name], dtype)}
    underflowed = {name for name, g in gradients.items() if _has_underflowed(g, other[name])}
    return RoundOff(frozenset(following | _changed(gradients, other, small)), frozenset(underflowed))


def zero_sums(objective: Objective, names: Collection[str], *, eps: float) -> dict[str, bool]:
    """Find the gradients of exactly zero that are sums of terms that are not zero. See Note [What zero is].

    Args:
        objective: The loss, at parameters where these gradients are zero.
        names: Parameters whose gradients are exactly zero.
        eps: Coarsest relative precision of the model's arithmetic.

    Returns:
        By name, whether the loss changes when the parameter is moved: False for a sum that is zero by algebra. Parameters whose
        gradients are no such sums are left out.
    """
    with preserved_model(objective.model):
        found = sums_with_terms(objective.model, objective, names)
    return _shown_in_loss(objective, found, lambda precision: ROUNDING * precision, eps)


def rounded_sums(objective: Objective, names: Collection[str], *, eps: float) -> dict[str, bool]:
    """Find the gradients that consist of round-off, but only at the present values. See Note [What zero is].

    Args:
        objective: The loss.
        names: Parameters whose gradients are round-off.
        eps: Coarsest relative precision of the model's arithmetic.

    Returns:
        By name, whether the loss changes by more than half of its digits when the parameter is moved.
    """
    return _shown_in_loss(objective, names, math.sqrt, eps)


def _shown_in_loss(
    objective: Objective, names: Collection[str], rounding: Callable[[float], float], eps: float
) -> dict[str, bool]:
    if not names:
        return {}
    loss = _value(objective)
    if not math.isfinite(loss) or not _shows(objective, names, loss, rounding, eps):
        return dict.fromkeys(names, False)
    return {name: len(names) == 1 or _shows(objective, [name], loss, rounding, eps) for name in names}


def _shows(
    objective: Objective, names: Collection[str], loss: float, rounding: Callable[[float], float], eps: float
) -> bool:
    """Return whether the loss changes by more than rounding if parameters are moved far; True where it cannot be evaluated."""
    generator, largest, values = generator_of(objective.seed, "moved sums"), abs(loss), dict[Tensor, Tensor]()
    for name in sorted(names):
        parameter = objective.parameters[name]
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
        values[parameter] = parameter.data + (FAR * (drawn + drawn.sign())).to(parameter)
        largest, eps = max(largest, float(values[parameter].abs().max())), max(eps, torch.finfo(parameter.dtype).eps)
    try:
        with replaced_values(values):
            moved = _value(objective)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # A loss need not accept what the model has not returned.
        return True
    return not abs(moved - loss) <= rounding(eps) * largest


def _value(objective: Objective) -> float:
    """Return the loss. What a forward pass changes, such as the vectors of a spectral normalization, is as before afterwards."""
    with preserved_model(objective.model):
        return float(objective().detach())


FAR = 16.0
"""How far parameters are moved, to see whether the loss depends on them: beyond the margin of a hinge loss, which is 1."""


def small_gradients(
    parameters: Mapping[str, nn.Parameter],
    gradients: Gradients,
    *,
    eps: float,
    loss: float = 0.0,
    sizes: Mapping[str, float] | None = None,
) -> set[str]:
    """Return the parameters whose gradients are nonzero, and less than half of the digits of the largest one.

    Round-off is a few times ``eps`` of the terms that cancel. That they are as large as the gradients of other parameters is an
    assumption. It fails if all gradients are round-off, which shows in a loss that depends on no parameter.

    Args:
        parameters: Parameters by name.
        gradients: Gradients by name.
        eps: Coarsest relative precision of the model's arithmetic.
        loss: Value of the loss; 0 for none.
        sizes: Norms of the gradients by name, if they are known.

    Returns:
        Names of parameters; empty if a gradient is not finite.
    """
    sizes = gradient_norms(gradients) if sizes is None else sizes
    if not sizes or not all(map(math.isfinite, sizes.values())):
        return set()
    largest, coarsest = max(sizes.values()), max(eps, *(_eps(g) for g in gradients.values()))
    # One parameter with an effect is enough, and it is nearly always the first one: norms of all weights take a while.
    by_size = sorted(sizes, key=lambda name: -sizes[name])
    effects = (sizes[name] * float(norm(parameters[name])) for name in by_size)
    has_effect = any(effect > math.sqrt(coarsest) * abs(loss) for effect in effects)
    effect = math.inf if has_effect else max(sizes[name] * float(norm(parameters[name])) for name in by_size)

    def is_small(name: str) -> bool:
        precision = math.sqrt(max(eps, _eps(gradients[name])))
        return sizes[name] <= precision * largest or effect <= precision * abs(loss)

    return {name for name, size in sizes.items() if size > 0 and is_small(name)}


def gradient_norms(gradients: Gradients) -> dict[str, float]:
    """Return the norms of gradients by parameter name, without those that are None."""
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


def _changed(gradients: Gradients, other: Gradients, small: Collection[str]) -> set[str]:
    """Return the small gradients whose entries are others in another computation; none if those of large gradients change too."""
    changes = {
        name: _relative_change(g, other.get(name)) for name, g in gradients.items() if g is not None and not is_zero(g)
    }
    large = [change for name, change in changes.items() if name not in small]
    if not large or not max(large) <= UNCHANGED:
        return set()

    def is_representable(name: str) -> bool:
        return not any(_is_subnormal(g, g) for g in (gradients[name], other.get(name)))

    return {name for name in small if changes[name] > CHANGED and is_representable(name)}


def _relative_change(gradient: Tensor, other: Tensor | None) -> float:
    if other is None or other.shape != gradient.shape:
        return math.nan
    here, there = (g.to_dense() if g.is_sparse else g for g in (gradient, other))
    wide = torch.promote_types(here.dtype, there.dtype)
    return float(norm(there.to(wide) - here.to(wide))) / float(norm(gradient))


def _has_underflowed(gradient: Tensor | None, other: Tensor | None) -> bool:
    return gradient is not None and is_zero(gradient) and _is_subnormal(other, gradient) and not is_zero(other)


def _is_subnormal(gradient: Tensor | None, of_format: Tensor | None) -> bool:
    """Whether entries are so small that the format of another gradient keeps few of their digits."""
    if gradient is None or of_format is None or not gradient.numel():
        return False
    rms = float(norm(gradient)) / math.sqrt(gradient.numel())
    return rms < 2**8 * torch.finfo(of_format.dtype).tiny
