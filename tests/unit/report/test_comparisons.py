"""Text on a failed comparison of a profile or spectrum with a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pytest_trainability import Estimate, Profile, Spectrum
from pytest_trainability.records.reports import CheckRecord, VerdictRecord
from pytest_trainability.report.comparisons import explain_comparison

NAN, INF = math.nan, math.inf
SOME = "finite on 1 of 8 seeds"
MakeRecord = Callable[..., CheckRecord]
MakeVerdict = Callable[..., VerdictRecord]


def test_a_failed_comparison_folds_its_elements() -> None:
    profile = Profile({f"b.{i}.w": one(float(i), f"b.{i}.w") for i in range(12)})
    lines = explain_comparison(">", profile, 20.0)
    assert lines is not None and lines[2:] == ["  b.0.w: 0 and 11 more b.*.w"]
    full = explain_comparison(">", profile, 20.0, full=True)
    assert full is not None and full[2:] == [f"  b.{i}.w: {i}" for i in range(12)]


def one(mean: float, name: str = "") -> Estimate:
    return Estimate(mean, NAN, NAN, (mean,), name=name)


def test_a_failing_comparison_lists_the_worst_first() -> None:
    profile = Profile({n: one(v, n) for n, v in zip("abcdefgh", [1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])})
    lines = explain_comparison("<", profile, 2.5)
    assert lines is not None
    assert lines[1] == "6 of 8 elements are not < 2.5; the worst:"
    assert [line.strip().partition(":")[0] for line in lines[2:]] == [
        *["b", "d", "f", "h", "g"],
        "and 1 more, which -v lists",
    ]
    lines = explain_comparison(">=", profile, 2.5)
    assert lines is not None
    assert [line.strip() for line in lines[2:]] == ["a: 1", "c: 2"]


@pytest.mark.parametrize(
    ("empty", "kind"), [(Profile(), "profile"), (Spectrum(()), "spectrum")], ids=["profile", "spectrum"]
)
def test_an_empty_collection_is_reported(empty: Profile | Spectrum, kind: str) -> None:
    lines = explain_comparison(">", empty, 1e-7)
    assert lines == [
        f"{empty!r} > 1e-07",
        f"The {kind} is empty: no element to compare. Check the names or patterns that selected it.",
    ]


@pytest.mark.parametrize(("op", "mirrored"), [("<", ">"), ("<=", ">="), (">", "<"), (">=", "<=")])
def test_a_comparison_with_the_number_on_the_left_is_mirrored(op: str, mirrored: str) -> None:
    profile = Profile({n: one(v, n) for n, v in zip("abc", [1.0, 2.0, 3.0])})
    lines = explain_comparison(op, 2.0, profile)
    assert lines is not None
    assert lines == explain_comparison(mirrored, profile, 2.0)
    assert f"elements are not {mirrored} 2.0" in lines[1]


def test_exponents_are_counted_from_one() -> None:
    lines = explain_comparison(">", Spectrum((one(0.5), one(-2.0), one(-2.0))), 0)
    assert lines is not None
    assert [line.strip() for line in lines[2:]] == ["exponent 2: -2", "exponent 3: -2"]


def test_nan_is_listed_among_the_worst() -> None:
    profile = Profile({n: one(v, n) for n, v in zip("abcdefgh", [1.0, 1.0, 1.0, NAN, 1.0, 1.0, 1.0, 1.0])})
    lines = explain_comparison(">", profile, 2.0)
    assert lines is not None
    assert "8 of 8" in lines[1]
    assert any(line.strip().startswith("d: nan") for line in lines[2:])


@pytest.mark.parametrize(
    ("op", "left", "right"),
    [("==", Profile(), 1.0), ("<", one(1.0), 0.5), ("<", Profile(), "a"), ("in", Profile(), 1.0), ("<", 1.0, one(0.5))],
)
def test_other_comparisons_are_left_to_pytest(op: str, left: Any, right: Any) -> None:
    assert explain_comparison(op, left, right) is None
