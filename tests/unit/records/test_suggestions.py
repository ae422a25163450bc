"""Records of suggestions as plain data."""

from __future__ import annotations

import json

from pytest_trainability.records.reports import plain
from pytest_trainability.records.suggestions import Suggestion, TestSuggestions


def test_a_record_survives_its_way_through_xdist() -> None:
    found = (
        Suggestion("log_gain", "-0.2 ± 0.1 nats", -0.5, 0.1, current=(None, 3.0), holds=False),
        Suggestion("gradient_norm", "1e-5", 1e-6, matching=("*.weight",), excluding=("a", "b"), is_default=True),
        Suggestion("initial_loss", "2.3", missing="one draw has no spread"),
    )
    record = TestSuggestions("test_a.py::test_b", "Net", 8, found, (("seeds", "8"),), passed=False, fixed=True)
    assert TestSuggestions.from_plain(json.loads(json.dumps(plain(record)))) == record


def test_ends_are_those_that_the_seeds_support() -> None:
    assert Suggestion("log_gain", "", -1.0, None, current=(-3.0, 3.0)).ends == (-1.0, None)
