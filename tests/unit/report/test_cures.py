"""The page of suggestions: what changed what, and nothing that a name could inject."""

from __future__ import annotations

from collections.abc import Callable

from pytest_trainability.records.reports import CheckRecord, CureRecord
from pytest_trainability.report.cures import cures_page

CURE = CureRecord("nn.init.normal_(model[i].weight, std=0.24)", "log_gain", -12.8, -0.3)


def test_without_cures_there_is_no_page() -> None:
    assert cures_page([]) == ""


def test_a_page_names_test_cause_change_and_effect(make_record: Callable[..., CheckRecord]) -> None:
    page = cures_page([make_record(cures=(CURE,), cause=("weights too small: *.weight",))])
    assert page.splitlines()[0] == "# Suggestions of pytest-trainability"
    assert "## `test_init.py::test_tower`" in page
    assert r"- likely cause: weights too small: \*.weight" in page
    assert "`nn.init.normal_(model[i].weight, std=0.24)`\n\nlog_gain: -12.8 → -0.3\n" in page


def test_names_cannot_end_the_code_that_they_stand_in(make_record: Callable[..., CheckRecord]) -> None:
    page = cures_page([make_record(cures=(CURE,), test="test_a.py::test_b[`x`<script>\x1b[31m]")])
    assert "\x1b" not in page
    assert r"## ``test_a.py::test_b[`x`<script>\x1b[31m]``" in page
