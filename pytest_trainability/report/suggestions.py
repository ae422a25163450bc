"""Suggested bounds as text: the marker to paste, and what was kept as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..checks.bounds import Bound
from ..records.suggestions import Suggestion, TestSuggestions
from ..records.text import as_code, as_toml, visible

__all__ = ["SuggestedBound", "bound_code", "imports_of", "suggested_bounds", "suggestion_lines"]


FEWEST_SEEDS = 4
"""Number of seeds below which the prediction intervals are so wide that it is said: Student's t of one degree is 13."""


@dataclass(frozen=True, slots=True)
class SuggestedBound:
    """One bound of a suggested marker."""

    measure: str
    code: str
    """The bound as Python code, such as ``within(-0.62, 0.31)``."""
    measured: str
    """The values that support it."""
    kept: str = ""
    """Why the present bound is kept; empty if the seeds support this one."""


def bound_code(bound: Bound) -> str:
    """Return a bound as Python code, with numbers as short as they are exact.

    >>> bound_code(Bound(-3, 3)), bound_code(Bound(0.5, None)), bound_code(Bound(-0.62, 0.31, excluding="*.bias"))
    ('within(3)', 'at_least(0.5)', 'within(-0.62, 0.31, excluding="*.bias")')
    """
    given = {"matching": bound.matching, "excluding": bound.excluding}
    codes = {name: as_code(found[0] if len(found) == 1 else tuple(found)) for name, found in given.items() if found}
    patterns = "".join(f", {name}={code}" for name, code in codes.items())
    if bound.low is None:
        return f"at_most({_number(bound.high)}{patterns})"
    if bound.high is None:
        return f"at_least({_number(bound.low)}{patterns})"
    if bound.low == -bound.high and bound.high >= 0:
        return f"within({_number(bound.high)}{patterns})"
    return f"within({_number(bound.low)}, {_number(bound.high)}{patterns})"


def _number(value: float | None) -> str:
    assert value is not None
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else repr(value)


def suggested_bounds(suggestions: Iterable[Suggestion]) -> Iterator[SuggestedBound]:
    """Yield the bounds of a marker: those that the seeds support, never wider than the present ones, which are kept otherwise.

    A default that nothing narrows is left out, as it holds without a marker.
    """
    for found in suggestions:
        if found.current is None:
            if not found.missing:
                yield SuggestedBound(found.measure, bound_code(Bound(*found.ends)), found.measured)
            continue
        current = Bound(*found.current, matching=found.matching, excluding=found.excluding)
        is_kept = not found.holds or bool(found.missing)
        ends = found.current if is_kept else _narrowed(found.current, found.ends)
        if found.is_default and ends == found.current:
            continue
        code = bound_code(replace(current, low=ends[0], high=ends[1]))
        yield SuggestedBound(found.measure, code, found.measured, _kept(found))


def _kept(found: Suggestion) -> str:
    """Return why a present bound, or an end of it, is kept; empty if the seeds support no wider one."""
    if not found.holds:
        return "fails now, and is kept: bring the model back, or change it by hand"
    if found.missing:
        return f"kept: {found.missing}"
    assert found.current is not None
    if any(_is_wider(sign, now, new) for sign, now, new in zip((-1, 1), found.current, found.ends)):
        wider = bound_code(Bound(*found.ends))
        return f"kept where it is narrower than {wider}, which the seeds support: other seeds may fail it"
    return ""


def _is_wider(sign: int, now: float | None, new: float | None) -> bool:
    return now is not None and new is not None and sign * new > sign * now


def _narrowed(
    current: tuple[float | None, float | None], supported: tuple[float | None, float | None]
) -> tuple[float | None, float | None]:
    low = max((end for end in (current[0], supported[0]) if end is not None), default=None)
    high = min((end for end in (current[1], supported[1]) if end is not None), default=None)
    return low, high


def imports_of(bounds: Iterable[SuggestedBound]) -> str:
    """Return the line that imports what the bounds use; empty without a bound."""
    names = sorted({bound.code.partition("(")[0] for bound in bounds})
    return f"from pytest_trainability import {', '.join(names)}" if names else ""


def suggestion_lines(tests: Sequence[TestSuggestions]) -> list[str]:
    """Return the lines of the section: for each test its marker as Python code, or its bounds as TOML, and remarks.

    The tests of one function or table that differ by parameters share a marker, which holds for all of them.

    Args:
        tests: Suggestions by test, in the order of the session.
    """
    lines: list[str] = []
    needed: list[SuggestedBound] = []
    for members in _by_function(tests):
        bounds = list(suggested_bounds(_joined(members)))
        if members[0].table:
            code = _table(members[0], bounds)
        else:
            needed += bounds
            code = _marker(members[0], bounds)
        lines += [*_heading(members), *code, *_remarks(members), ""]
    return [imports_of(needed), "", *lines[:-1]] if needed else lines[:-1]


def _by_function(tests: Sequence[TestSuggestions]) -> list[list[TestSuggestions]]:
    """Return the tests in groups that can share a marker: those of one function, with the same present bounds and settings."""
    groups: dict[object, list[TestSuggestions]] = {}
    for test in tests:
        present = frozenset((s.measure, s.current, s.matching, s.excluding) for s in test.suggestions if s.current)
        groups.setdefault((test.test.partition("[")[0], present, test.settings), []).append(test)
    return list(groups.values())


def _joined(members: Sequence[TestSuggestions]) -> list[Suggestion]:
    """Return the suggestions that hold for all members. Without a present bound, a measure that some lack is left out."""
    if len(members) == 1:
        return list(members[0].suggestions)
    by_measure: dict[str, list[Suggestion]] = {}
    for member in members:
        for found in member.suggestions:
            by_measure.setdefault(found.measure, []).append(found)
    return [_join(found) for found in by_measure.values() if len(found) == len(members) or found[0].current]


def _join(found: Sequence[Suggestion]) -> Suggestion:
    missing = next((one.missing for one in found if one.missing), "")
    lows, highs = [one.low for one in found], [one.high for one in found]
    return replace(
        found[0],
        low=None if missing or None in lows else min(low for low in lows if low is not None),
        high=None if missing or None in highs else max(high for high in highs if high is not None),
        missing=missing,
        holds=all(one.holds for one in found),
        measured=found[0].measured if len({one.measured for one in found}) == 1 else "",
    )


def _heading(members: Sequence[TestSuggestions]) -> list[str]:
    first, tests = members[0], {member.test for member in members}
    what = "table" if first.table else "marker"
    test = first.test if len(tests) == 1 else f"{first.test.partition('[')[0]}, one {what} for {len(tests)} tests"
    if len(members) > len(tests):
        test += f", for {len(members)} measurements"
    seeds = "a finished module" if first.fixed else f"{first.seeds} seeds" if first.seeds > 1 else "1 seed"
    failed = "" if all(member.passed for member in members) else ": the test has failed, its numbers may not be healthy"
    return [f"# {visible(test)}, {seeds}{failed}"]


def _table(test: TestSuggestions, bounds: Sequence[SuggestedBound]) -> list[str]:
    if not bounds:
        return ["# its numbers support no bound"]
    codes = [(f"{bound.measure} = {as_toml(bound.code)}", bound.measured) for bound in bounds]
    lines = [f"{code}  # {visible(comment)}" if comment else code for code, comment in codes]
    return [f"[{test.table}.bounds]", *lines]


def _marker(test: TestSuggestions, bounds: Sequence[SuggestedBound]) -> list[str]:
    arguments = [(f"{name}={code},", "") for name, code in test.settings]
    arguments += [(f"{bound.measure}={bound.code},", bound.measured) for bound in bounds]
    if not bounds:
        return ["# its numbers support no bound"]
    lines = [f"    {code}  # {visible(comment)}" if comment else f"    {code}" for code, comment in arguments]
    return ["@pytest.mark.trainability(", *lines, ")"]


def _remarks(members: Sequence[TestSuggestions]) -> Iterator[str]:
    """Yield what is kept, what has no bound and why, and where the tests of a function differ, as comments."""
    joined = _joined(members)
    if not members[0].fixed and 1 < members[0].seeds < FEWEST_SEEDS:
        yield f"# {members[0].seeds} seeds support wide bounds only: measure with seeds = 8 for narrower ones"
    for bound in suggested_bounds(joined):
        if bound.kept:
            yield f"# {bound.measure}: {visible(bound.kept)}"
    for found in joined:
        if found.missing and found.current is None:
            yield f"# {found.measure}: no bound, because {found.missing}{_cure(members[0], found)}"
    for measure in [found.measure for found in joined] if len(members) > 1 else []:
        ranges = [(_label(m), s) for m in members for s in m.suggestions if s.measure == measure and not s.missing]
        if _are_apart([found for _, found in ranges]):
            texts = (f"{bound_code(Bound(*found.ends))} for {label}" for label, found in ranges)
            yield f"# {measure} differs: {visible(', '.join(texts))}"


def _label(test: TestSuggestions) -> str:
    """Return the parameters of a test, or the model."""
    _, bracket, parameters = test.test.partition("[")
    return f"[{parameters}" if bracket else test.model


def _cure(test: TestSuggestions, found: Suggestion) -> str:
    if found.missing != "one draw has no spread":
        return ""
    return ": pass a factory instead of a finished module" if test.fixed else ": pass seeds=8"


def _are_apart(found: Sequence[Suggestion]) -> bool:
    """Return whether two tests support ranges without a common point."""
    lows = [one.low for one in found if one.low is not None]
    highs = [one.high for one in found if one.high is not None]
    return bool(lows and highs) and max(lows) > min(highs)
