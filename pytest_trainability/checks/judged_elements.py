"""Elements that bounds judge: gradients and branches without those that are zero by algebra, or by design and waking.

A parameter behind a zero-initialized weight has no gradient at initialization. It wakes when an optimizer step has moved that
weight. The gradient of a bias that a softmax or a normalization cancels is zero, but for round-off. Bounds do not judge either.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import BoundError
from ..records.estimates import Estimate, Profile
from ..records.gradient_classes import GradientClasses
from ..records.names import unmatched
from ..records.text import format_names
from .bounds import Bound, at_most
from .verdicts import Value

__all__ = ["BY_PARAMETER", "COVERAGE", "judged_elements", "not_judged_texts", "selected_elements", "untrained_text"]

BY_PARAMETER = frozenset({"gradient", "ratio", "update"})
"""Values of ``zero_by_design`` of measures whose elements are parameters."""
COVERAGE: Bound = at_most(0.49)
"""Bound on ``untrained_fraction`` of every preset, which also comes with every bound on gradients.

If half of the parameters or more have no gradient, other bounds say little about the model. Experts without tokens, mask tokens
and poolers are fewer: at most 0.29 in the small models of ``transformers`` in ``tests/zoo.py``.
"""


def selected_elements(measure: str, value: Value, bound: Bound) -> Value:
    """Return the elements that the patterns of a bound select.

    Args:
        measure: Name of the measure, for the messages.
        value: Measured value.
        bound: Bound with patterns, or without.

    Raises:
        BoundError: A pattern matches no name, or the value has no names.
    """
    if not bound.selection:
        return value
    if not isinstance(value, Profile):
        msg = f"the bound of {measure} has patterns of names ({bound.selection}), and {measure} is no profile by name."
        raise BoundError(msg)
    if message := unmatched((*bound.matching, *bound.excluding), value):
        msg = f"the bound of {measure}: {message}"
        raise BoundError(msg)
    chosen = value.matching(*bound.matching) if bound.matching else value
    return chosen.excluding(*bound.excluding) if bound.excluding else chosen


def judged_elements(zero_by_design: str, value: Value, classes: GradientClasses | None) -> Value:
    """Return the elements of a profile that a bound judges.

    Args:
        zero_by_design: Declared by the measure: ``"gradient"``, ``"ratio"``, ``"update"``, ``"branch"`` or empty.
        value: Measured value.
        classes: Classes of the parameters' gradients; None if they are not known.

    Returns:
        The profile without elements that are zero by algebra, or by design and waking. It is empty if all branches are: the bound
        has nothing to judge. If all parameters are, all of them are judged. A weight whose gradient is zero by algebra, and stays
        so, is judged as zero.
    """
    if classes is None or not isinstance(value, Profile) or not zero_by_design:
        return value
    excluded = _excluded(zero_by_design, value, classes)
    round_off = {n for n in value if zero_by_design in BY_PARAMETER and classes.is_cancelled_weight(n)}
    if not excluded and not round_off:
        return value
    return Profile({n: _zero(e) if n in round_off else e for n, e in value.items() if n not in excluded})


def _zero(element: Estimate) -> Estimate:
    """Return an element as if its values were zero. The round-off that it holds instead has no meaning."""
    return replace(element, mean=0.0, low=0.0, high=0.0, values=(0.0,) * len(element.values))


def _excluded(zero_by_design: str, value: Value, classes: GradientClasses | None) -> Collection[str]:
    """Return the names of the elements that a bound does not judge."""
    if classes is None or not isinstance(value, Profile):
        return ()
    if zero_by_design in BY_PARAMETER:
        excluded = set(classes.not_judged())
        if zero_by_design == "ratio":
            # A parameter that is zero has no ratio. What is infinite otherwise, such as a gradient, is NaN here.
            further = excluded | {name for name, element in value.items() if set(element.values) == {math.inf}}
            excluded = excluded if further >= set(value) else further
        return () if excluded >= set(value) else excluded
    if zero_by_design == "branch":
        return [name for name, e in value.items() if not any(e.values) and _will_move(name, classes)]
    return ()


def _will_move(step: str, classes: GradientClasses) -> bool:
    """Whether a step has parameters and all of them get a gradient within the measured optimizer steps."""
    module = step.partition("[")[0]
    return classes.moves([name for name in classes.trainable() if name.startswith(f"{module}.")])


def not_judged_texts(bounded: Mapping[str, tuple[str, Value]], classes: GradientClasses | None) -> Iterator[str]:
    """Yield notes on the elements that bounds do not judge.

    Args:
        bounded: ``zero_by_design`` and value of each measure that has a bound.
        classes: Classes of the parameters' gradients; None if they are not known.

    Yields:
        A note for each optimizer step at which parameters wake, one for parameters that are zero by algebra, and one for each
        measure with branches that are not judged.
    """
    if classes is None:
        return
    if any(kind in BY_PARAMETER and _excluded(kind, value, classes) for kind, value in bounded.values()):
        yield from _parameter_texts(classes)
    for measure, (kind, value) in bounded.items():
        names = list(_excluded(kind, value, classes)) if kind == "branch" else []
        if names:
            zero = f"{len(names)} branches are zero and wake" if len(names) > 1 else "1 branch is zero and wakes"
            yield f"{zero} later, excluded from the bound on {measure}: {format_names(names)}"


def _parameter_texts(classes: GradientClasses) -> Iterator[str]:
    waking = {name: classes.step(name) for name in classes.not_judged() if classes.wakes(name)}
    for step in sorted(set(waking.values())):
        names = [name for name, at in waking.items() if at == step]
        count, are = (f"{len(names)} parameters wake", "are") if len(names) > 1 else ("1 parameter wakes", "is")
        wake = f"{count} at optimizer step {step} and {are} excluded from bounds on gradients and updates"
        yield f"{wake}: {format_names(names)}"
    names = [name for name in classes.not_judged() if name not in waking]
    if names:
        zero = (
            f"{len(names)} gradients are zero by algebra and" if len(names) > 1 else "1 gradient is zero by algebra and"
        )
        yield f"{zero} excluded from bounds on gradients and updates: {format_names(names)}"


def untrained_text(classes: GradientClasses | None, first: Sequence[str] = ()) -> str:
    """Return a sentence with the numbers of parameters that ``untrained_fraction`` is computed from.

    Args:
        classes: Classes of the parameters' gradients; None if they are not known.
        first: Names that come first where they get no gradient, such as those that are zero.

    Returns:
        The sentence, with the names of the first ones that no design explains; empty if there are none.

    >>> untrained_text(GradientClasses.of([["a: dead"]], ["a", "b"]))
    '1 of 2 parameters get no gradient at initialization: a'
    """
    if classes is not None and not classes.trainable():
        return "all parameters are frozen"
    shares = [] if classes is None else classes.largest_shares()
    largest = max(shares, key=lambda share: share.share, default=None)
    if largest is None or not largest.names:
        return ""
    names = [*(name for name in first if name in largest.names), *(n for n in largest.names if n not in first)]
    counts = f"{len(names)} of {largest.judged} parameters" + (f" of the {largest.block}" if largest.block else "")
    up_to = "" if len({(len(share.names), share.judged, share.block) for share in shares}) == 1 else "up to "
    design = ", and not by design" if largest.by_design else ""
    return f"{up_to}{counts} get no gradient at initialization{design}: {format_names(names)}"
