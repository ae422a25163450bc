"""Layout of lines: labels, escapes, and the small pictures in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from pytest_trainability.records.reports import BaselineChange, CheckRecord, VerdictRecord
from pytest_trainability.records.text import visible
from pytest_trainability.report.changes import change_lines
from pytest_trainability.report.layout import BARS, labelled, shown_in, sparkline, to_ascii

NAN, INF = math.nan, math.inf
SOME = "finite on 1 of 8 seeds"
MakeRecord = Callable[..., CheckRecord]
MakeVerdict = Callable[..., VerdictRecord]


def test_a_sparkline_spans_from_lowest_to_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([7, 0]) == "█▁"
    assert sparkline([0, 1]) == "▁█"


def test_noise_does_not_look_like_a_trend() -> None:
    assert set(sparkline([0.0, 0.05, 0.0, 0.03])) <= {"▄", "▅"}


def test_a_sparkline_is_thinned_to_its_width_with_both_ends() -> None:
    drawn = sparkline(list(range(1000)), 10)
    assert len(drawn) == 10
    assert (drawn[0], drawn[-1]) == ("▁", "█")


def test_values_that_are_not_finite_are_crosses() -> None:
    assert sparkline([0.0, NAN, 9.0, -INF]) == "▁×█×"
    assert sparkline([NAN, INF]) == "××"
    assert sparkline([NAN] * 50, 10) == "×" * 10
    assert sparkline([]) == ""


def test_a_constant_is_drawn_in_the_middle() -> None:
    assert sparkline([2.0, 2.0]) in {"▄▄", "▅▅"}


def test_workflow_commands_are_broken_in_every_line() -> None:
    """GitHub obeys a line that begins with ``::`` after spaces, and ``##[`` anywhere. Lines are broken before long words."""
    hostile = "::error::a ##[error]b \n::warning::c " + "w" * 70 + " ::add-mask::d"
    change = BaselineChange(hostile, "new", elements=(hostile, "::debug::e"))
    moved = BaselineChange("x", "moved", hostile, old=1.0, new=2.0, shift=1.0, tolerance=0.1, unit=hostile)
    for width in (0, 30, 80):
        for line in (*labelled(hostile, hostile, width), *change_lines([change, moved], width)):
            assert not re.search(r"^\s*::|##\[", line)


def test_workflow_commands_do_not_arise_from_the_translation_to_ascii() -> None:
    assert shown_in("██[error]", "ascii") == r"#\x23[error]"
    assert shown_in("██[error]", None) == r"#\x23[error]"
    assert shown_in("██ x", "utf-8") == "██ x"


def test_control_characters_are_escaped() -> None:
    """Names may come from a baseline file that somebody else wrote."""
    hostile = "\x1b[2J\r\x07 \u202e\x9b31m"
    shown = r"\x1b[2J\r\x07 \u202e\x9b31m"
    assert visible(hostile) == shown
    assert labelled("note", hostile) == [f"note           {shown}"]
    assert labelled("\x1b[2J", "text") == [r"\x1b[2J        text"]
    assert visible("größe › 日本 ×") == "größe › 日本 ×"
    for change in (
        BaselineChange("x", "vanished", elements=(hostile,)),
        BaselineChange(hostile, "new"),
        BaselineChange("x", "moved", hostile, old=1.0, new=2.0, shift=1.0, tolerance=0.1, unit=hostile),
    ):
        assert all(line.isprintable() for line in change_lines([change], 80))
        assert shown in " ".join(" ".join(change_lines([change], 0)).split())


def test_the_lines_of_a_long_label_start_below_it() -> None:
    assert labelled("relative_gradient_norm", "a", 40) == ["relative_gradient_norm", "               a"]
    assert labelled("gradient_norms", "a", 40) == ["gradient_norms a"]


def test_labels_wrap_under_themselves() -> None:
    lines = labelled("note", "aaaa bbbb cccc dddd", 26)
    assert lines == ["note           aaaa bbbb", "               cccc dddd"]
    assert labelled("note", "") == []


def test_bars_differ_in_ascii() -> None:
    assert len(set(to_ascii(BARS))) == len(BARS)


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("größe ± 1", "utf-8", "größe ± 1"),
        ("größe ± 1", "latin-1", "größe ± 1"),
        ("a → b", "latin-1", "a -> b"),
        ("1 ± 2 ×", "ascii", "1 +- 2 x"),
        ("1 ×/÷ 2", "ascii", "1 x or / 2"),
        ("1 ± 2", "no such encoding", "1 +- 2"),
        ("plain", "ascii", "plain"),
    ],
)
def test_a_text_is_shown_in_ascii_only_if_necessary(text: str, encoding: str, shown: str) -> None:
    assert shown_in(text, encoding) == shown


def test_other_characters_are_escaped_in_ascii() -> None:
    assert to_ascii("λ") == "\\u03bb"
    assert re.fullmatch(r"[ -~]*", to_ascii("test_größe[日本]"))
