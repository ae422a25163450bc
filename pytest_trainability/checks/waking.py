"""Exclusion of zeros by design from bounds on gradients and branches.

A parameter behind a zero-initialized weight has no gradient at initialization. It wakes when an optimizer step has moved that
weight: from then on it gets a gradient. Bounds exclude parameters and branches that are zero and wake.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from ..records.estimates import Profile
from ..records.text import format_names
from .verdicts import Value

__all__ = ["may_be_zero_by_design", "waking_texts", "without_zero_initialized"]

_BY_PARAMETER = frozenset({"gradient", "update"})
"""Values of ``zero_by_design`` of measures whose elements are parameters."""


def may_be_zero_by_design(zero_by_design: str, value: Value | None) -> bool:
    """Return whether an element that a bound judges may be zero by design.

    Args:
        zero_by_design: Declared by the measure: ``"gradient"``, ``"update"``, ``"branch"`` or empty.
        value: Measured value. Updates of any size count, because weight decay moves parameters without a gradient as well.
    """
    if not zero_by_design or not isinstance(value, Profile):
        return False
    return zero_by_design == "update" or any(not v > 0 for element in value.values() for v in element.values)


def without_zero_initialized(zero_by_design: str, value: Value, waking_step: Profile | None) -> Value:
    """Return the elements of a profile that a bound judges, without elements that are zero by design and wake.

    Args:
        zero_by_design: Declared by the measure: ``"gradient"``, ``"update"``, ``"branch"`` or empty.
        value: Measured value.
        waking_step: Optimizer step after which each parameter first gets a gradient; None if it was not measured.

    Returns:
        The profile without these elements. It is empty if all branches are zero by design: the bound has nothing to judge. If
        all parameters wake later, all of them are judged.
    """
    excluded = _excluded(zero_by_design, value, waking_step)
    if not isinstance(value, Profile) or not excluded:
        return value
    return Profile({name: element for name, element in value.items() if name not in excluded})


def _excluded(zero_by_design: str, value: Value, waking_step: Profile | None) -> Collection[str]:
    """Return the names of the elements that a bound does not judge."""
    if waking_step is None or not isinstance(value, Profile):
        return ()
    if zero_by_design in _BY_PARAMETER:
        waking = _waking(waking_step)
        return () if waking.keys() >= set(value) else waking
    if zero_by_design == "branch":
        return [name for name, e in value.items() if not any(e.values) and _will_move(name, waking_step)]
    return ()


def _waking(waking_step: Profile) -> dict[str, int]:
    """Return the parameters without a gradient at initialization on at least one seed that wake on every seed.

    Returns:
        Largest number of optimizer steps, over seeds, after which the gradient is not zero; by name.
    """
    return {
        name: int(max(step.values))
        for name, step in waking_step.items()
        if all(map(math.isfinite, step.values)) and max(step.values) > 0
    }


def _will_move(step: str, waking_step: Profile) -> bool:
    """Whether a step has parameters and all of them get a gradient within the measured optimizer steps."""
    module = step.partition("[")[0]
    own = [e for name, e in waking_step.items() if name.startswith(f"{module}.")]
    return bool(own) and all(math.isfinite(v) for e in own for v in e.values)


def waking_texts(bounded: Mapping[str, tuple[str, Value]], waking_step: Profile | None) -> Iterator[str]:
    """Yield a note for each optimizer step at which excluded parameters wake, and one for each measure with excluded branches.

    Args:
        bounded: ``zero_by_design`` and value of each measure that has a bound.
        waking_step: Optimizer step after which each parameter first gets a gradient; None if it was not measured.
    """
    if waking_step is None:
        return
    by_parameter = any(kind in _BY_PARAMETER and _excluded(kind, v, waking_step) for kind, v in bounded.values())
    waking = _waking(waking_step) if by_parameter else {}
    for step in sorted(set(waking.values())):
        names = [name for name, at in waking.items() if at == step]
        count, are = (f"{len(names)} parameters wake", "are") if len(names) > 1 else ("1 parameter wakes", "is")
        wake = f"{count} at optimizer step {step} and {are} excluded from bounds on gradients and updates"
        yield f"{wake}: {format_names(names)}"
    for measure, (kind, value) in bounded.items():
        names = list(_excluded(kind, value, waking_step)) if kind == "branch" else []
        if names:
            zero = f"{len(names)} branches are zero and wake" if len(names) > 1 else "1 branch is zero and wakes"
            yield f"{zero} later, excluded from the bound on {measure}: {format_names(names)}"
