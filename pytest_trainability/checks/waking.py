"""Bounds on gradients and branches that are zero by design until optimizer steps have moved what hides them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from ..records import Profile, format_names
from .verdicts import Value

__all__ = ["BY_GRADIENT", "OF_BRANCHES", "judged_of", "may_sleep", "waking_texts"]

BY_GRADIENT = ("gradient_norm", "relative_gradient_norm", "update_ratio", "gradient_snr")
"""Measures by parameter that are zero or undefined where what lies behind a zero by design has no gradient yet. Bounds on them
leave those parameters out that wake within a few optimizer steps."""
OF_BRANCHES = ("branch_ratio", "branch_gradient_share")
"""Measures by residual step that are zero where its branch is, by design. Bounds on them leave those steps out whose parameters
all get a gradient within a few optimizer steps."""


def may_sleep(measure: str, value: Value | None) -> bool:
    """Whether something that a bound judges may be zero by design; weight decay moves a parameter without a gradient, too."""
    if measure not in {*BY_GRADIENT, *OF_BRANCHES} or not isinstance(value, Profile):
        return False
    return measure == "update_ratio" or any(not v > 0 for element in value.values() for v in element.values)


def judged_of(measure: str, value: Value, waking_step: Profile | None) -> Value:
    """Return what a bound judges of a measure: not what is set aside.

    Args:
        measure: Its name.
        value: What it is.
        waking_step: By parameter, where it was measured.

    Returns:
        A profile without those elements. It is empty where all branches are zero by design, which no bound on them is about;
        where all parameters wake later, they are judged.
    """
    aside = _set_aside(measure, value, waking_step)
    if not isinstance(value, Profile) or not aside:
        return value
    return Profile({name: element for name, element in value.items() if name not in aside})


def _set_aside(measure: str, value: Value, waking_step: Profile | None) -> Collection[str]:
    if waking_step is None or not isinstance(value, Profile):
        return ()
    if measure in BY_GRADIENT:
        woken = _waking(waking_step)
        return () if woken.keys() >= set(value) else woken
    if measure in OF_BRANCHES:
        return [name for name, e in value.items() if not any(e.values) and _will_move(name, waking_step)]
    return ()


def _waking(waking_step: Profile) -> dict[str, int]:
    """Return the parameters that get no gradient at first, by design: a zero that optimizer steps move lies in front of them.

    Returns:
        By name the latest step, over seeds, after which the gradient is not zero. Of those only whose gradient is zero
        at initialization on some seed, and that wake on all.
    """
    return {
        name: int(max(step.values))
        for name, step in waking_step.items()
        if all(map(math.isfinite, step.values)) and max(step.values) > 0
    }


def _will_move(step: str, waking_step: Profile) -> bool:
    """Whether a step has parameters and all get a gradient in time."""
    module = step.partition("[")[0]
    own = [e for name, e in waking_step.items() if name.startswith(f"{module}.")]
    return bool(own) and all(math.isfinite(v) for e in own for v in e.values)


def waking_texts(bounded: Mapping[str, Value], waking_step: Profile | None) -> Iterator[str]:
    """Name what was set aside of measures that have bounds: parameters by the step at which they wake, and branches."""
    if waking_step is None:
        return
    aside = any(_set_aside(name, value, waking_step) for name, value in bounded.items() if name in BY_GRADIENT)
    woken = _waking(waking_step) if aside else {}
    for step in sorted(set(woken.values())):
        names = [name for name, at in woken.items() if at == step]
        count = f"{len(names)} parameters wake" if len(names) > 1 else "1 parameter wakes"
        yield f"{count} at optimizer step {step}, and no bound on gradients or updates counts them: {format_names(names)}"
    for measure in OF_BRANCHES:
        names = list(_set_aside(measure, bounded[measure], waking_step)) if measure in bounded else []
        if names:
            count = f"{len(names)} branches are" if len(names) > 1 else "1 branch is"
            yield f"{count} zero at first, and no bound on {measure} counts what wakes: {format_names(names)}"
