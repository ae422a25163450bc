"""The comment on a pull request: only changes, the worst first, of a limited length."""

from __future__ import annotations

import re

from reported import CHANGE, HOSTILE, broken, changed, check, session, verdict, whole

from pytest_trainability.records.session import ErrorRecord, SessionChange
from pytest_trainability.report.comment import baseline_changes, change_text, comment_text

AGAINST = "the target branch"


def change(old: str, new: str, number: int = 0, **given: object) -> SessionChange:
    return SessionChange(f"tests/test_a.py::test_{number}", "", old, new, **given)  # type: ignore[arg-type]


def test_without_a_change_there_is_no_comment() -> None:
    assert comment_text(session(check("passed", verdict())), (), against=AGAINST) == ""


def test_the_verdict_comes_first_and_the_worst_change_next() -> None:
    changes = [
        change("", "held", 1),
        change("failed", "held", 2),
        change("held", "", 3),
        change("held", "held", 4, changes=(CHANGE,)),
        change("held", "failed", 5, check=broken()),
    ]
    text = comment_text(session(broken()), changes, against=AGAINST)
    assert text.startswith("### ✘ trainability: 1 worse, 2 changed, 1 better, 1 gone against the target branch\n")
    assert re.findall(r"test_(\d)`", text) == ["5", "4", "1", "3", "2"]
    assert "| ✔ → ✘ failed | `tests/test_a.py::test_5` | `log_gain" in text
    assert "+0.22 → +1.77 nats" in text
    assert "<details><summary><code>tests/test_a.py::test_5</code></summary>" in text
    assert text.endswith("</details>\n")


def test_ten_rows_at_most_and_the_rest_is_counted() -> None:
    text = comment_text(session(), [change("held", "failed", number) for number in range(23)], against=AGAINST)
    assert len(re.findall(r"^\| ✔ →", text, re.MULTILINE)) == 10
    assert "\nand 13 more\n" in text


def test_a_comment_stays_below_the_limit() -> None:
    long = broken(cause=tuple(HOSTILE * 40 for _ in range(20)))
    changes = [SessionChange(f"t.py::test_{'x' * 9000}{n}", "`" * 500, "", "failed", check=long) for n in range(50)]
    text = comment_text(session(long), changes, against=AGAINST)
    assert 20_000 < len(text) < 60_000
    assert text.count("<details>") == text.count("</details>")
    assert "More details are in the report" in text


def test_the_command_to_accept_names_the_tests() -> None:
    text = comment_text(session(changed()), baseline_changes(session(changed())), against="the baselines")
    assert "If the changes are intended: `pytest tests/test_a.py::test_changed --trainability-baseline=update`" in text
    many = session(*(changed(f"tests/test_a.py::test_{number}") for number in range(12)))
    text = comment_text(many, baseline_changes(many), against="the baselines")
    assert "If the changes are intended: `pytest --trainability-baseline=update`" in text


def test_without_a_changed_baseline_there_is_nothing_to_accept() -> None:
    text = comment_text(session(broken()), [change("held", "failed", check=broken())], against=AGAINST)
    assert "intended" not in text


def test_changes_of_baselines_and_errors_are_those_of_the_session() -> None:
    error = ErrorRecord("t.py::test_e", "ModelError", "no")
    expected = ErrorRecord("t.py::test_x", "ModelError", "no", expected=True)
    found = baseline_changes(session(check("passed", verdict()), changed(), errors=(error, expected)))
    assert [(c.test.partition("::")[2], c.new, len(c.changes)) for c in found] == [
        *(("test_changed", "failed", 2), ("test_e", "not measured", 0))
    ]


def test_how_a_status_has_changed() -> None:
    assert change_text(change("held", "failed")) == "held → failed"
    assert change_text(change("held", "held")) == "held"
    assert (change_text(change("", "held")), change_text(change("held", ""))) == ("held", "gone")


def test_hostile_names_stay_in_code() -> None:
    found = whole()
    changes = [SessionChange(c.record.test, c.record.name, "held", c.status, check=c) for c in found.checks]
    text = comment_text(found, changes, against=AGAINST)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$|<code>[^<>]*</code>|(?<!`)(`+)(?!`).*?(?<!`)\2(?!`)", "", text)
    assert not any(piece in outside for piece in ("@", "img", "#1", "[l]"))
