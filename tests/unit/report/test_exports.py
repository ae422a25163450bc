"""Data frames, plots and tables of results outside of a session, and the packages that they need."""

from __future__ import annotations

import json
import math
import sys

import pytest

from pytest_trainability.errors import UsageError
from pytest_trainability.records.estimates import Estimate
from pytest_trainability.report.exports import frame_of, html_table, new_axes, plain_estimate


@pytest.mark.parametrize(
    ("package", "call"),
    [("pandas", lambda: frame_of([(1,)], ["a"])), ("matplotlib", lambda: new_axes(None))],
    ids=["pandas", "matplotlib"],
)
def test_a_missing_package_is_named_with_its_installation(
    monkeypatch: pytest.MonkeyPatch, package: str, call: object
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs {package}, which cannot be imported.*pip install {package}\."):
        call()  # type: ignore[operator]


def test_given_axes_are_used() -> None:
    mine = object()
    assert new_axes(mine) is mine


def test_a_table_escapes_what_a_browser_or_a_log_would_execute() -> None:
    text = html_table("<script>", [["a&b", "\x1b[31m"]])
    assert "<script>" not in text
    assert "a&amp;b" in text and "\\x1b[31m" in text


def test_numbers_that_json_does_not_have_are_words() -> None:
    found = plain_estimate(Estimate(math.nan, -math.inf, math.inf, (1.0, math.nan), "nats"))
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "mean": "nan",
        "low": "-inf",
        "high": "inf",
        "values": [1.0, "nan"],
    }
