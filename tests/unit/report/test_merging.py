"""Several reports as one: shards, repeated runs, and jobs in different environments."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reported import ENVIRONMENT, broken, changed, check, session, verdict

from pytest_trainability.records.reports import BaselineSummary
from pytest_trainability.records.session import CheckOutcome, ErrorRecord, SessionRecord
from pytest_trainability.records.suggestions import Suggestion, TestSuggestions
from pytest_trainability.report.document import document, rendered, schema
from pytest_trainability.report.merging import merged

jsonschema = pytest.importorskip("jsonschema")

ERROR = ErrorRecord("tests/test_a.py::test_tower", "ModelError", "no", "tests/test_a.py", 7)


def report(*checks: CheckOutcome, hour: int = 1, environment: dict[str, str] | None = None, **changes: Any) -> Any:
    created = f"2026-11-30T0{hour}:00:00+00:00"
    return document(session(*checks, created=created, environment={**ENVIRONMENT, **(environment or {})}, **changes))


def whole(*documents: Any) -> dict[str, Any]:
    """Return the merged report, which follows the schema and does not depend on the order of its parts."""
    found = merged(documents)
    jsonschema.Draft202012Validator(schema()).validate(found)
    assert rendered(merged(documents[::-1])) == rendered(found)
    assert list(found) == list(documents[0])
    return found


def test_shards_are_one_report_in_the_order_of_the_source() -> None:
    one = report(changed(), exit_status=1, required=1)
    two = report(check("passed", verdict()), broken(), hour=2, required=1)
    found = whole(one, two)
    assert [c["test"].partition("::")[2] for c in found["checks"]] == ["test_tower", "test_broken", "test_changed"]
    assert found["summary"] == {
        "checks": 3,
        "held": 1,
        "marginal": 0,
        "nothing asserted": 0,
        "failed": 2,
        "expected failure": 0,
        "not measured": 0,
        "seconds": 0.75,
        "required": 2,
        "measured": 3,
        "exit_status": 1,
    }
    assert [shard["created"][11:13] for shard in found["shards"]] == ["01", "02"]


def test_parameters_of_one_test_are_in_order_of_their_numbers() -> None:
    names = [f"tests/test_a.py::test_x[{number}]" for number in (10, 2, 1)]
    found = whole(*(report(check(test=name), hour=hour) for hour, name in enumerate(names)))
    assert [c["test"] for c in found["checks"]] == names[::-1]


def test_a_later_run_replaces_an_earlier_one_in_the_same_environment() -> None:
    first, again = report(broken(), changed()), report(check("passed", verdict(), test=broken().record.test), hour=2)
    assert [c["status"] for c in whole(first, again)["checks"]] == ["held", "failed"]


def test_the_suggestions_of_a_later_run_replace_earlier_ones_of_the_same_test() -> None:
    early, late, other = (
        TestSuggestions(f"test_a.py::{test}", "Net", seeds, (Suggestion("log_gain", "", -1.0, 1.0),))
        for test, seeds in (("test_x", 4), ("test_x", 8), ("test_y", 4))
    )
    found = whole(report(suggestions=(early, other)), report(hour=2, suggestions=(late,)))
    assert [(one["test"][-6:], one["seeds"]) for one in found["suggestions"]] == [("test_y", 4), ("test_x", 8)]
    assert found["suggestions"][0]["bounds"] == [
        {"measure": "log_gain", "code": "within(1)", "measured": "", "kept": ""}
    ]


def test_an_error_and_a_later_check_replace_each_other() -> None:
    good, bad = check("passed", verdict()), {"errors": (ERROR,)}
    found = whole(report(**bad), report(good, hour=2))
    assert (len(found["checks"]), found["errors"]) == (1, [])
    found = whole(report(good), report(**bad, hour=2))
    assert (found["checks"], len(found["errors"])) == ([], 1)
    assert len(whole(report(**bad), report(**bad, hour=2))["errors"]) == 1


def test_jobs_in_different_environments_keep_their_checks_and_say_where() -> None:
    one = report(check("passed", verdict()), environment={"python": "3.10.1"})
    two = report(check("passed", verdict()), hour=2)
    found = whole(one, two)
    test = "tests/test_a.py::test_tower"
    assert [c["id"] for c in found["checks"]] == [f"{test} › python 3.10.1", f"{test} › python 3.12.1"]
    assert found["environment"]["python"] == "3.10.1, 3.12.1"
    assert found["environment"]["torch"] == "2.13.0"


def test_another_device_is_another_check() -> None:
    one, two = report(check(name="a", device="cuda:0")), report(check(name="a"), hour=2)
    assert [c["id"].rpartition(" › ")[2] for c in whole(one, two)["checks"]] == ["a (cuda:0)", "a (cpu)"]


def test_another_processor_of_the_same_kind_is_the_same_environment() -> None:
    one, two = report(check(), environment={"processor": "other", "command": "x"}), report(check(), hour=2)
    found = whole(one, two)
    assert (len(found["checks"]), found["environment"]["processor"]) == (1, "other, a processor")


def test_merging_a_merged_report_keeps_its_shards() -> None:
    parts = [report(check(test=f"t.py::test_{hour}"), hour=hour) for hour in (1, 2, 3)]
    at_once, in_steps = merged(parts), merged([merged(parts[:2]), parts[2]])
    assert in_steps == at_once


def test_a_merged_report_alone_is_the_same() -> None:
    once = merged([report(check(), broken(), hour=1)])
    assert merged([once]) == once


def test_changes_of_baselines_are_listed_once() -> None:
    summary = BaselineSummary(written=(("a.json", 1, 0),), stale=("2.6",))
    other = BaselineSummary(written=(("b.json", 1, 0),), stale=("2.6",), pruned=True)
    found = whole(report(baselines=summary), report(baselines=other, hour=2), report(hour=3))["baselines"]
    assert (found["written"], found["stale"], found["pruned"]) == (
        [["a.json", 1, 0], ["b.json", 1, 0]],
        ["2.6"],
        True,
    )
    assert whole(report(), report(hour=2))["baselines"] is None


def test_the_parts_are_left_as_they_were() -> None:
    parts = [report(check()), report(check(), hour=2)]
    before = json.dumps(parts)
    merged(parts)
    assert json.dumps(parts) == before


def test_an_empty_session_can_be_merged() -> None:
    assert merged([document(SessionRecord())])["summary"]["checks"] == 0
