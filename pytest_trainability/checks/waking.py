"""Bounds on gradients and branches that are zero by design until optimizer steps have moved the zero in front of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from ..records.estimates import Profile
from ..records.text import format_names
from .verdicts import Value

__all__ = ["may_be_zero_by_design", "waking_texts", "without_zero_initialized"]

_BY_PARAMETER = frozenset({"gradient", "update"})


def may_be_zero_by_design(zero_by_design: str, value: Value | None) -> bool:
    """Whether an element that a bound judges may be zero by design.

    Args:
        zero_by_design: As the measure declares it.
        value: What was measured. An update may be not zero and still be without a gradient: weight decay moves it, too.
    """
    if not zero_by_design or not isinstance(value, Profile):
        return False
    return zero_by_design == "update" or any(not v > 0 for element in value.values() for v in element.values)


def without_zero_initialized(zero_by_design: str, value: Value, waking_step: Profile | None) -> Value:
    """Return the elements of a profile that a bound judges: without those that are zero by design and wake.

    Args:
        zero_by_design: As the measure declares it.
        value: What was measured.
        waking_step: Optimizer steps by parameter, where they were measured.

    Returns:
        A profile without those elements. It is empty where all branches are zero by design, so that the bound has nothing to
        judge; where all parameters wake later, all of them are judged.
    """
    excluded = _excluded(zero_by_design, value, waking_step)
    if not isinstance(value, Profile) or not excluded:
        return value
    return Profile({name: element for name, element in value.items() if name not in excluded})


def _excluded(zero_by_design: str, value: Value, waking_step: Profile | None) -> Collection[str]:
    if waking_step is None or not isinstance(value, Profile):
        return ()
    if zero_by_design in _BY_PARAMETER:
        waking = _waking(waking_step)
        return () if waking.keys() >= set(value) else waking
    if zero_by_design == "branch":
        return [name for name, e in value.items() if not any(e.values) and _will_move(name, waking_step)]
    return ()


def _waking(waking_step: Profile) -> dict[str, int]:
    """Return the parameters without a gradient at initialization, by design: a zero that optimizer steps move hides them.

    Returns:
        By name the latest optimizer step, over seeds, after which the gradient is not zero. Only parameters whose gradient is
        zero at initialization on some seed, and that wake on all seeds.
    """
    return {
        name: int(max(step.values))
        for name, step in waking_step.items()
        if all(map(math.isfinite, step.values)) and max(step.values) > 0
    }


def _will_move(step: str, waking_step: Profile) -> bool:
    """Whether a step has parameters and all of them get a gradient within the optimizer steps that were taken."""
    module = step.partition("[")[0]
    own = [e for name, e in waking_step.items() if name.startswith(f"{module}.")]
    return bool(own) and all(math.isfinite(v) for e in own for v in e.values)


def waking_texts(bounded: Mapping[str, tuple[str, Value]], waking_step: Profile | None) -> Iterator[str]:
    """Name the parameters that no bound judged, by the optimizer step at which they wake, and the branches.

    Args:
        bounded: By measure that has a bound: its ``zero_by_design``, and its value.
        waking_step: Optimizer steps by parameter, where they were measured.
    """
    if waking_step is None:
        return
    by_parameter = any(kind in _BY_PARAMETER and _excluded(kind, v, waking_step) for kind, v in bounded.values())
    waking = _waking(waking_step) if by_parameter else {}
    for step in sorted(set(waking.values())):
        names = [name for name, at in waking.items() if at == step]
        count = f"{len(names)} parameters wake" if len(names) > 1 else "1 parameter wakes"
        yield f"{count} at optimizer step {step}, and no bound on gradients or updates counts them: {format_names(names)}"
    for measure, (kind, value) in bounded.items():
        names = list(_excluded(kind, value, waking_step)) if kind == "branch" else []
        if names:
            count = f"{len(names)} branches are" if len(names) > 1 else "1 branch is"
            yield f"{count} zero at first, and no bound on {measure} counts what wakes: {format_names(names)}"
