"""The JSON report: its schema, its text, and files that are no report."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from reported import HOSTILE, broken, check, session, verdict, whole

from pytest_trainability import ReportError
from pytest_trainability.report.document import document, read_document, rendered, schema

jsonschema = pytest.importorskip("jsonschema")


def written(path: Path, found: Any) -> Path:
    path.write_text(found if isinstance(found, str) else json.dumps(found), encoding="utf-8")
    return path


def test_the_schema_is_a_valid_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_a_report_follows_the_schema_and_has_no_more_keys_than_it() -> None:
    found = document(whole())
    jsonschema.Draft202012Validator(schema()).validate(found)
    assert list(found) == list(schema()["properties"])
    for key, part in (("checks", "check"), ("errors", "error")):
        assert all(list(item) == list(schema()["$defs"][part]["properties"]) for item in found[key])


def test_a_text_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    text = rendered(document(whole()))
    assert text.endswith("}\n")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = read_document(written(tmp_path / "report.json", text))
    assert rendered(found) == text


def test_numbers_have_six_digits_and_words_where_they_are_not_finite() -> None:
    found = document(
        session(check("passed", verdict(value=1 / 3, value_low=-math.inf, value_high=math.nan, low=-30.0, high=None)))
    )["checks"][0]["verdicts"][0]
    assert [found[key] for key in ("value", "value_low", "value_high", "low", "high")] == [
        *(0.333333, "-inf", "nan", -30, None)
    ]


def test_the_summary_counts() -> None:
    assert document(whole())["summary"] == {
        "checks": 8,
        "held": 2,
        "marginal": 1,
        "nothing asserted": 1,
        "failed": 3,
        "expected failure": 1,
        "not measured": 1,
        "seconds": 2,
        "required": 3,
        "measured": 8,
        "exit_status": 1,
    }


def test_a_failure_has_its_explanation_and_a_green_check_has_none() -> None:
    red, green = document(session(broken(), check("passed", verdict())))["checks"]
    assert any("must lie in [-5, 5]" in line for line in red["explanation"])
    assert red["explanation"][-1].startswith("reproduce")
    assert green["explanation"] == []
    assert red["reproduce"].endswith("--trainability-seeds=0-3 --trainability-device=cpu")


def test_two_checks_of_one_name_have_different_ids() -> None:
    assert [c["id"] for c in document(session(check(), check(), check(name="b")))["checks"]] == [
        "tests/test_a.py::test_tower",
        "tests/test_a.py::test_tower'",
        "tests/test_a.py::test_tower › b",
    ]


def test_half_characters_are_escaped() -> None:
    assert "\\ud800" in document(whole())["checks"][7]["name"]
    assert HOSTILE.startswith("a|b")


# Files that are no report -------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ReportError) as caught:
        read_document(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400 + len(str(path))
    return text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is not JSON, or cut short"),
        ("hello", "it is not JSON, or cut short"),
        ("[1, 2]", "it must have the key 'schema'"),
        ("{}", "it must have the key 'schema'"),
        ('{"schema": 2, "tests": {}}', "it must have the key 'schema'"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[1e999]", "1e999 is too large for a number"),
        (f"[{'9' * 5000}]", "is too large for a whole number"),
        ('{"a": 1, "a": 2}', "a key occurs twice"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(written(tmp_path / "x.json", text))


def test_a_report_that_was_cut_short_is_refused_wherever_the_cut_is(tmp_path: Path) -> None:
    text = rendered(document(session(check("passed", verdict()))))
    for length in range(0, len(text) - 2, 97):
        assert "it is not JSON, or cut short" in refusal(written(tmp_path / "x.json", text[:length]))


def test_bytes_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{}")
    assert "it must be UTF-8; byte 0 is not" in refusal(tmp_path / "bytes")
    assert "it is not a regular file" in refusal(tmp_path)
    assert "it does not exist" in refusal(tmp_path / "missing.json")


def test_a_newer_report_is_refused_by_its_version(tmp_path: Path) -> None:
    newer = {**document(whole()), "schema": "urn:pytest-trainability:report:2", "version": 2, "more": True}
    assert "it has version 2, but this pytest-trainability reads versions up to 1: upgrade it" in refusal(
        written(tmp_path / "x.json", newer)
    )


def changes(found: Any, place: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return places in a report, each with a value of another type; one item of each list stands for all."""
    wrong: Any = 3 if isinstance(found, (str, list, dict)) or found is None else {"x": 1}
    items = (
        list(found.items())
        if isinstance(found, dict)
        else list(enumerate(found[:1]))
        if isinstance(found, list)
        else []
    )
    return [(place, wrong), *(more for key, item in items for more in changes(item, (*place, key)))]


def test_a_value_of_a_wrong_type_is_refused_anywhere(tmp_path: Path) -> None:
    """By the project's own reader as by a full validator."""
    good = document(session(broken(), errors=whole().errors, baselines=whole().baselines))
    full = jsonschema.Draft202012Validator(schema())
    found = changes(good)[1:]
    assert len(found) > 150
    for place, wrong in found:
        bad = copy.deepcopy(good)
        parent = bad
        for key in place[:-1]:
            parent = parent[key]
        if parent[place[-1]] is None and place[-1] not in {"baseline", "baselines"}:
            continue
        parent[place[-1]] = wrong
        if full.is_valid(bad):
            continue  # another number where any number may stand
        message = refusal(written(tmp_path / "x.json", bad))
        if len(place) > 2:
            assert str(place[-2] + 1 if isinstance(place[-2], int) else place[-2]) in message, place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"growth": [1.0]}, "one growth rate for each step"),
        (
            {"modules": [{"name": "a.{0-99999999}", "kind": "x", "count": 1}]},
            "patterns that stand for at most 10000000 names",
        ),
        (
            {"modules": [{"name": f"a.{{0-{'9' * 5000}}}", "kind": "x", "count": 1}]},
            "patterns that stand for at most 10000000 names",
        ),
        (
            {"modules": [{"name": f"a{i}.{{0-999998}}", "kind": "x", "count": 1} for i in range(11)]},
            "patterns that stand for at most 10000000 names",
        ),
    ],
    ids=["growth", "one pattern", "a long number", "many patterns"],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    found = document(session(check("passed", verdict())))
    found["checks"][0].update(change)
    assert message in refusal(written(tmp_path / "x.json", found))


def test_two_checks_with_one_id_are_refused(tmp_path: Path) -> None:
    found = document(session(check("passed", verdict())))
    found["checks"] *= 2
    assert "occurs twice" in refusal(written(tmp_path / "x.json", found))
