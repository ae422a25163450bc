"""Findings at lines of test files, in the formats of GitHub, GitLab and SARIF."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ci_formats import GITLAB, SARIF, commands_in
from reported import BROKEN, HOSTILE, broken, changed, check, session, verdict, whole

from pytest_trainability.records.reports import BaselineRecord
from pytest_trainability.records.session import ErrorRecord
from pytest_trainability.report.findings import findings, gitlab_text, sarif_text, workflow_commands

jsonschema = pytest.importorskip("jsonschema")


def test_each_verdict_each_baseline_and_each_error_is_a_finding() -> None:
    two = check("failed", BROKEN, verdict("gradient_norm", holds=False, where="0.weight"), verdict())
    plain = check("failed", test="tests/test_a.py::test_plain", line=0)
    error = ErrorRecord("tests/test_a.py::test_e", "ModelError", "a\nb", "", 3)
    found = findings(session(two, changed(), plain, check("passed", verdict()), errors=(error,)))
    assert [(finding.rule, finding.line) for finding in found] == [
        *(("log_gain", 7), ("gradient_norm", 7), ("baseline", 20), ("assertion", 1), ("ModelError", 3))
    ]
    assert "log_gain" in found[0].message and "must lie in [-5, 5]" in found[0].message
    assert found[1].message.endswith("worst 0.weight")
    assert "+0.22 → +1.77 nats" in found[2].message
    assert (found[4].message, found[4].file) == ("ModelError: a b", "tests/test_a.py")
    assert all("\n" not in finding.message for finding in found)


def test_a_missing_baseline_says_so() -> None:
    found = findings(session(check("failed", baseline=BaselineRecord("missing", "a.json", "a"))))
    assert [finding.message for finding in found] == ["Tower: there is no baseline"]


def test_expected_failures_and_green_checks_are_none() -> None:
    error = ErrorRecord("t.py::test_e", "ModelError", "no", expected=True)
    assert findings(session(check("xfailed", BROKEN), check("passed", verdict()), check(), errors=(error,))) == []


def test_a_failure_that_no_bound_explains_says_what_pytest_says() -> None:
    held = check("failed", verdict(holds=True))
    told, unknown = findings(session(replace(held, failure="KeyError: 'a'"), held))
    assert (told.rule, told.message) == ("assertion", "Tower: KeyError: 'a'")
    assert unknown.message == "Tower: the test failed"


def test_files_stand_below_the_root_of_the_repository() -> None:
    assert findings(session(broken()), "python/package")[0].file == "python/package/tests/test_a.py"


def test_fingerprints_differ_and_do_not_depend_on_numbers_and_lines() -> None:
    def prints(*checks: object) -> list[str]:
        return [issue["fingerprint"] for issue in json.loads(gitlab_text(findings(session(*checks))))]  # type: ignore[arg-type]

    first, second = prints(broken(), broken())
    assert first != second
    assert prints(broken(line=90, log_gain=-7.0)) == [first]
    assert prints(broken(name="b")) != [first]


def test_the_formats_follow_their_schemas_for_a_hostile_session() -> None:
    found = findings(whole())
    jsonschema.Draft202012Validator(GITLAB).validate(json.loads(gitlab_text(found)))
    log = json.loads(sarif_text(found, "0.1.0"))
    jsonschema.Draft202012Validator(SARIF).validate(log)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    gitlab_text(found).encode("utf-8")


def test_a_path_with_blanks_is_a_uri_and_a_green_session_is_valid() -> None:
    odd = findings(session(broken(file="tests/ä b%.py")))
    log = json.loads(sarif_text(odd, ""))
    jsonschema.Draft202012Validator(SARIF).validate(log)
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "tests/%C3%A4%20b%25.py"
    jsonschema.Draft202012Validator(SARIF).validate(json.loads(sarif_text([], "")))
    assert json.loads(gitlab_text([])) == []


def test_a_runner_reads_one_command_for_each_check() -> None:
    found = findings(whole())
    log = "\n".join(workflow_commands(found))
    commands = commands_in(log)
    assert len(commands) == len(log.splitlines()) == len({finding.test for finding in found})
    assert {command["command"] for command in commands} == {"error"}
    assert {command["file"] for command in commands} == {"tests/test_a.py"}
    (hostile,) = [command for command in commands if "test_x" in command["message"]]
    assert hostile["line"] == "12"
    assert "%0A #1" in hostile["message"], "what looks like an escape is no line break"
    assert HOSTILE[:20] in hostile["message"]


def test_properties_of_a_command_are_escaped() -> None:
    (command,) = commands_in(workflow_commands(findings(session(broken(file="a,line=3:b%.py"))))[0])
    assert (command["file"], command["line"]) == ("a,line=3:b%.py", "12")
