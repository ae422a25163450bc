"""Files of reports: what a session writes, when it refuses, and what it tells GitHub Actions, GitLab and JUnit."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

import pytest
from ci_formats import GITLAB, SARIF, commands_in

from pytest_trainability.report.document import read_document, schema

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.pytester import Pytester, RunResult

jsonschema = pytest.importorskip("jsonschema")

SUITE = """
import pytest, torch
from pytest_trainability import within
from small_nets import images, tower


@pytest.mark.trainability(log_gain=within(100))
def test_holds(trainability):
    trainability(tower(3), images, seeds=2).lyapunov_spectrum


@pytest.mark.trainability(log_gain=within(0.1), gradient_norm=within(5, 6))
def test_fails(trainability):
    trainability(tower(3), images, seeds=2)


@pytest.mark.parametrize("depth", [10, 2])
def test_nothing(trainability, depth):
    trainability(tower(depth), images, seeds=2, name="a|b `c`")


def test_broken(trainability):
    trainability(tower(3), torch.zeros(3, 3), seeds=2)


@pytest.mark.xfail(reason="known")
@pytest.mark.trainability(log_gain=within(0.1))
def test_expected(trainability):
    trainability(tower(3), images, seeds=2)
"""
QUIET = ("--trainability-cure=off", "--tb=no")
EARLIER = "# Earlier\n"


@pytest.fixture
def suite(project: Pytester) -> Pytester:
    """A project outside of any CI service."""
    project.makepyfile(test_it=SUITE)
    return project


def run(suite: Pytester, *arguments: str) -> RunResult:
    return suite.runpytest_inprocess("-p", "no:xdist", *QUIET, *arguments)


def report(suite: Pytester, name: str = "report.json") -> dict[str, Any]:
    return read_document(suite.path / name)


# JSON ---------------------------------------------------------------------------------------------------------------


def test_the_file_has_every_check_with_values_modules_and_place(suite: Pytester) -> None:
    result = run(suite, "--trainability-json=out/report.json")
    result.stdout.fnmatch_lines(["report written to *report.json"])
    found = report(suite, "out/report.json")
    jsonschema.Draft202012Validator(schema()).validate(found)
    names = [check["test"].partition("::")[2] for check in found["checks"]]
    assert names == ["test_holds", "test_fails", "test_nothing[2]", "test_nothing[10]", "test_expected"]
    statuses = [check["status"] for check in found["checks"]]
    assert statuses == ["held", "failed", "nothing asserted", "nothing asserted", "expected failure"]
    assert found["summary"]["exit_status"] == 1
    first = found["checks"][0]
    assert (first["file"], SUITE.splitlines()[first["line"]]) == (
        "test_it.py",
        "@pytest.mark.trainability(log_gain=within(100))",
    )
    values = {value["measure"]: value for value in first["values"]}
    assert values["growth_rate"]["by"] == values["activation_rms"]["by"] == "step"
    assert values["gradient_norm"]["by"] == "parameter"
    assert values["lyapunov_spectrum"]["by"] == "exponent"
    assert all(len(element["values"]) == 2 for value in values.values() for element in value["elements"])
    assert first["modules"][0] == {"name": "", "kind": "Sequential", "count": 1}
    assert {"name": "{0,2,4}", "kind": "Linear", "count": 3} in first["modules"]
    assert {tensor["name"] for tensor in first["tensors"]} >= {"{0,2,4}.weight"}
    assert found["environment"]["command"].endswith("--trainability-json=out/report.json")
    assert found["environment"]["torch"] and found["environment"]["devices"] == ["cpu"]


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    """Return a report without what differs from session to session: times, and the command line."""
    text = re.sub(r'("seconds": )[0-9.e-]+', r"\g<1>0", json.dumps(found))
    found = json.loads(text)
    found["created"] = found["environment"]["command"] = ""
    return found


def untimed(page: Path) -> str:
    """Return an HTML page without dates, durations and the command line."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'data-seconds="[^"]+"|[\d.]+ s</span>|\d{4}-\d\d-\d\dT[\d:+]+', "", text)
    return re.sub(r"<dt>(measured in|command)</dt><dd>[^<]*", "", text)


def files_named(name: str) -> tuple[str, ...]:
    """Return options that write each kind of file that is compared."""
    return (
        f"--trainability-json={name}.json",
        f"--trainability-html={name}.html",
        "--trainability-junit",
        f"--junitxml={name}.xml",
    )


def test_workers_write_the_same_files_and_tell_github_once(runner: Pytester) -> None:
    pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    run(runner, *files_named("one"))
    (runner.path / "summary.md").write_text(EARLIER, encoding="utf-8")
    result = runner.runpytest_subprocess(*QUIET, "-n", "2", *files_named("two"))
    assert properties(runner.path / "one.xml") == properties(runner.path / "two.xml")
    assert without_times(report(runner, "one.json")) == without_times(report(runner, "two.json"))
    keys = [list(check) for name in ("one.json", "two.json") for check in report(runner, name)["checks"]]
    assert all(each == keys[0] for each in keys)
    assert untimed(runner.path / "one.html") == untimed(runner.path / "two.html")
    assert_told_github_once(runner, result)


def test_records_hold_no_values_unless_a_file_shows_them(suite: Pytester) -> None:
    class Seen:
        records: ClassVar[list[Any]] = []

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            Seen.records += getattr(report, "trainability", [])

    suite.inline_run("-p", "no:xdist", *QUIET, "-k", "holds", "--trainability-markdown=x.md", plugins=[Seen()])
    (record,) = Seen.records
    assert record["values"] == record["modules"] == record["tensors"] == []
    assert record["file"] == "test_it.py"


def test_a_changed_baseline_has_its_old_values(suite: Pytester) -> None:
    text = "from small_nets import images, tower\n\ndef test_a(trainability):\n    {}\n"
    call = "trainability(tower({}), images, seeds=2).check_baseline()"
    suite.makepyfile(test_it=text.format(call.format(3)))
    run(suite, "--trainability-baseline=new").assert_outcomes(passed=1)
    suite.makepyfile(test_it=text.format(call.format(6)))
    run(suite, "--trainability-json=report.json").assert_outcomes(failed=1)
    baseline = report(suite)["checks"][0]["baseline"]
    assert baseline["status"] == "changed"
    old = {value["measure"]: value for value in baseline["old_values"]}
    assert (old["log_gain"]["kind"], old["growth_rate"]["by"], old["gradient_norm"]["by"]) == (
        *("estimate", "step"),
        "parameter",
    )
    assert len(old["growth_rate"]["elements"]) == 3
    assert all(change["text"] for change in baseline["changes"] if change["kind"] == "moved")


def test_an_ini_value_is_relative_to_its_file(suite: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.makeini("[pytest]\ntrainability_json = reports/it.json\n")
    below = suite.mkdir("below")
    monkeypatch.chdir(below)
    run(suite, str(suite.path / "test_it.py"), "-k", "holds", f"--rootdir={suite.path}")
    assert report(suite, "reports/it.json")["summary"]["checks"] == 1


def test_a_session_that_was_interrupted_writes_what_it_has(suite: Pytester) -> None:
    suite.makepyfile(test_it=SUITE + "\n\ndef test_stop():\n    raise KeyboardInterrupt\n")
    options = ("-k", "holds or stop", "--trainability-json=report.json")
    suite.inline_run("-p", "no:xdist", *QUIET, *options, no_reraise_ctrlc=True)
    assert report(suite)["summary"]["checks"] == 1
    assert report(suite)["summary"]["exit_status"] == 2


def test_collecting_writes_nothing(suite: Pytester) -> None:
    run(suite, "--collect-only", "--trainability-json=report.json")
    assert not (suite.path / "report.json").exists()


# What cannot be written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainability-json="], "--trainability-json must name a file. Got ''."),
        (["--trainability-json=."], "is a folder."),
        (["--trainability-sarif=test_it.py/x.sarif"], "test_it.py is no folder."),
        (
            ["--trainability-json=a.json", "--trainability-gitlab=below/../a.json"],
            "--trainability-gitlab and --trainability-json must name different files.",
        ),
        (["--junitxml=a.xml", "--trainability-json=a.xml"], "--junitxml and --trainability-json must name different"),
    ],
    ids=["empty", "folder", "file as folder", "twice", "JUnit's"],
)
def test_a_file_that_cannot_be_written_is_refused_before_a_test_runs(
    suite: Pytester, options: list[str], message: str
) -> None:
    result = suite.runpytest_inprocess("-p", "no:xdist", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in " ".join(result.stderr.str().split())
    assert "test session starts" not in result.stdout.str()


def test_a_page_without_its_package_is_refused_before_a_test_runs(
    suite: Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pytest_trainability.report.html", "pytest_trainability.report.html.page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = suite.runpytest_inprocess("-p", "no:xdist", "--trainability-html=page.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--trainability-html: HTML needs the package jinja2, *pip install 'pytest-trainability?html?'"]
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_refused(suite: Pytester) -> None:
    suite.mkdir("locked").chmod(0o500)
    result = suite.runpytest_inprocess("-p", "no:xdist", "--trainability-json=locked/report.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is not writable*"])


def test_a_report_that_cannot_be_written_fails_the_session_and_loses_nothing_else(suite: Pytester) -> None:
    suite.makepyfile(
        test_it="from small_nets import images, tower\nfrom pathlib import Path\n\n"
        "def test_a(trainability):\n    trainability(tower(2), images, seeds=2)\n    Path('late.md').mkdir()\n"
    )
    result = run(suite, "--trainability-markdown=late.md", "--trainability-json=report.json", "--junitxml=x.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    line = "the report *late.md could not be written. IsADirectoryError: Is a directory"
    result.stdout.fnmatch_lines([line])
    assert report(suite)["summary"]["exit_status"] == 1
    assert (suite.path / "x.xml").exists()
    (suite.path / "late.md").rmdir()
    run(suite, "--trainability-markdown=late.md", "-qqq").stdout.fnmatch_lines([line])


# Other formats ------------------------------------------------------------------------------------------------------


def test_markdown_gitlab_and_sarif_follow_their_formats(suite: Pytester) -> None:
    options = [f"--trainability-{kind}={kind}" for kind in ("markdown", "gitlab", "sarif")]
    result = run(suite, *options)
    page = (suite.path / "markdown").read_text(encoding="utf-8")
    assert page.startswith("## ✘ trainability: 1 failed, ")
    assert "<details><summary><code>test_it.py::test_fails</code></summary>" in page
    issues = json.loads((suite.path / "gitlab").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(GITLAB).validate(issues)
    log = json.loads((suite.path / "sarif").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SARIF).validate(log)
    for rules in (
        [issue["check_name"].split()[-1] for issue in issues],
        [r["ruleId"] for r in log["runs"][0]["results"]],
    ):
        assert rules[:2] == ["log_gain", "gradient_norm"]
    assert result.ret == 1


def test_paths_are_relative_to_the_repository(suite: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PROJECT_DIR", str(suite.path.parent))
    run(suite, "--trainability-gitlab=quality.json", "-k", "fails")
    issues = json.loads((suite.path / "quality.json").read_text(encoding="utf-8"))
    assert {issue["location"]["path"] for issue in issues} == {f"{suite.path.name}/test_it.py"}


def test_a_green_session_has_no_findings(suite: Pytester) -> None:
    run(suite, "--trainability-gitlab=quality.json", "--trainability-sarif=x.sarif", "-k", "holds")
    assert json.loads((suite.path / "quality.json").read_text()) == []
    jsonschema.Draft202012Validator(SARIF).validate(json.loads((suite.path / "x.sarif").read_text()))


def properties(path: Path) -> dict[str | None, dict[str | None, str | None]]:
    """Return the properties of each test in a file of JUnit."""
    cases = ElementTree.parse(path).iter("testcase")
    return {case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")} for case in cases}


def test_properties_reach_the_file_of_junit(suite: Pytester) -> None:
    run(suite, "--trainability-junit", "--junitxml=x.xml", "-k", "fails or holds")
    found = properties(suite.path / "x.xml")
    assert found["test_fails"]["trainability.gradient_norm"].endswith("must lie in [5, 6]: does not hold")
    assert "must lie in [-100, 100]" in found["test_holds"]["trainability.log_gain"]
    names = [p.get("name") for p in next(ElementTree.parse(suite.path / "x.xml").iter("testcase")).iter("property")]
    assert sorted(names) == sorted(set(names)), "readers of JUnit's XML keep one of several properties of a name"


def test_without_the_option_junit_gets_no_properties(suite: Pytester) -> None:
    run(suite, "--junitxml=x.xml", "-k", "holds")
    assert not list(ElementTree.parse(suite.path / "x.xml").iter("property"))


# GitHub Actions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def runner(suite: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    """A job of GitHub Actions: the variables that the runner sets, and a summary that another step has begun."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(suite.path.parent))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(suite.path / "summary.md"))
    (suite.path / "summary.md").write_text(EARLIER, encoding="utf-8")
    return suite


def test_github_gets_one_summary_and_one_annotation_for_each_failure(runner: Pytester) -> None:
    assert_told_github_once(runner, run(runner))


def assert_told_github_once(runner: Pytester, result: RunResult) -> None:
    summary = (runner.path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("# Earlier\n## ✘ trainability: 1 failed, ")
    assert summary.count("## ") == 1
    found = commands_in(result.stdout.str() + result.stderr.str())
    assert {command["command"] for command in found} == {"error"}
    failed = [command for command in found if "test_fails" in command["message"]]
    (error,) = failed
    line = SUITE.splitlines().index("@pytest.mark.trainability(log_gain=within(0.1), gradient_norm=within(5, 6))")
    assert (error["file"], int(error["line"])) == (f"{runner.path.name}/test_it.py", line)
    assert "log_gain" in error["message"] and "gradient_norm" in error["message"]
    assert not [command for command in found if "test_expected" in command["message"]]


@pytest.mark.parametrize("name", ["pytest_github_actions_annotate_failures"])
def test_another_plugin_that_annotates_failures_is_left_to_it(runner: Pytester, name: str) -> None:
    runner.makeconftest(
        f"class Annotator: ...\n\ndef pytest_configure(config):\n    config.pluginmanager.register(Annotator(), {name!r})\n"
    )
    result = run(runner, "-k", "fails")
    assert commands_in(result.stdout.str()) == []
    assert "trainability" in (runner.path / "summary.md").read_text(encoding="utf-8")


def test_a_summary_that_is_nearly_full_is_not_broken(runner: Pytester) -> None:
    """GitHub shows no summary above 1 MiB."""
    (runner.path / "summary.md").write_bytes(b"x" * (2**20 - 100))
    run(runner, "-k", "fails")
    assert (runner.path / "summary.md").stat().st_size == 2**20 - 100


def test_a_summary_that_cannot_be_written_fails_the_session(runner: Pytester) -> None:
    (runner.path / "summary.md").unlink()
    runner.mkdir("summary.md")
    result = run(runner, "-k", "holds")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["GITHUB_STEP_SUMMARY could not be written. *"])


def test_a_session_without_measurements_tells_github_nothing(runner: Pytester) -> None:
    runner.makepyfile(test_it="def test_a():\n    pass\n")
    result = run(runner)
    assert commands_in(result.stdout.str()) == []
    assert (runner.path / "summary.md").read_text(encoding="utf-8") == EARLIER


def test_hostile_parameters_give_no_command(runner: Pytester) -> None:
    """A parameter's id is printed by pytest with escapes; in annotations and the summary it is the project's to escape."""
    runner.makepyfile(
        test_it="import pytest\nfrom small_nets import images, tower\nfrom pytest_trainability import within\n\n"
        "HOSTILE = 'x %0A::warning::no,line=3 | `b` @me <img>'\n\n"
        "@pytest.mark.parametrize('p', [HOSTILE])\n"
        "def test_a(trainability, p):\n"
        "    trainability(tower(2), images, seeds=2, name=HOSTILE).check(log_gain=within(1e-3))\n"
    )
    result = run(runner, "-q")
    (error,) = commands_in(result.stdout.str())
    assert error["file"].endswith("/test_it.py")
    assert "%0A::warning::no" in error["message"]
    summary = (runner.path / "summary.md").read_text(encoding="utf-8")
    assert "<img>" not in re.sub(r"(?s)```text.*?```|``.*?``", "", summary)
