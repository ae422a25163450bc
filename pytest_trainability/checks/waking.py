"""Bounds on gradients, and parameters whose gradient is zero by design until optimizer steps have moved what hides them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from ..records import Profile
from .verdicts import Value

__all__ = ["BY_GRADIENT", "judged_of", "may_sleep", "waking", "waking_texts"]

BY_GRADIENT = ("gradient_norm", "relative_gradient_norm", "update_ratio")
"""Measures by parameter that are zero or undefined where what lies behind a zero by design has no gradient yet. Bounds on them
leave those parameters out that wake within a few optimizer steps."""


def waking(steps: Profile) -> dict[str, int]:
    """Return the parameters that get no gradient at first, by design: a zero that optimizer steps move lies in front of them.

    Args:
        steps: ``waking_step``.

    Returns:
        By name the latest step, over seeds, after which the gradient is not zero. Of those only whose gradient is zero
        at initialization on some seed, and that wake on all.
    """
    return {
        name: int(max(step.values))
        for name, step in steps.items()
        if all(map(math.isfinite, step.values)) and max(step.values) > 0
    }


def may_sleep(measure: str, value: Value | None) -> bool:
    """Whether some parameter's gradient may be zero; weight decay moves a parameter without one, too."""
    if measure not in BY_GRADIENT or not isinstance(value, Profile):
        return False
    return measure == "update_ratio" or any(not v > 0 for element in value.values() for v in element.values)


def judged_of(measure: str, value: Value, woken: Collection[str]) -> Value:
    """Return what a bound judges of a measure: of gradients, those not in ``woken``, unless that would leave nothing to judge."""
    if measure not in BY_GRADIENT or not isinstance(value, Profile):
        return value
    kept = {name: element for name, element in value.items() if name not in woken}
    return Profile(kept) if kept else value


def waking_texts(woken: Mapping[str, int]) -> Iterator[str]:
    """Name what was set aside, by the step at which it wakes."""
    for step in sorted(set(woken.values())):
        names = [name for name, at in woken.items() if at == step]
        named = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
        count = f"{len(names)} parameters wake" if len(names) > 1 else "1 parameter wakes"
        yield f"{count} at optimizer step {step}, and no bound on gradients or updates counts them: {named}"
