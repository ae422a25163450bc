"""The jobs that the documentation offers to paste, run as a runner would: variables set, commands executed, files read back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from ci_formats import GITLAB, SARIF, commands_in

import pytest_trainability

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

jsonschema = pytest.importorskip("jsonschema")
yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the jobs run in a POSIX shell")

PAGE = Path(__file__).parents[2] / "docs" / "reports.md"
GITHUB, GITLAB_CI = (yaml.safe_load(text) for text in re.findall(r"(?s)```yaml\n(.*?)```", PAGE.read_text("utf-8")))
SUITE = """
import pytest
from pytest_trainability import within
from small_nets import images, tower

@pytest.mark.trainability(log_gain=within({bound}))
def test_tower(trainability):
    trainability(tower({depth}), images, seeds=2)
"""


@pytest.fixture
def shell(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    """A project, and a shell in which ``python`` and ``pytest`` are those of this session."""
    tools = project.mkdir("tools")
    for name, words in (("python", ""), ("pytest", " -m pytest")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    root = Path(pytest_trainability.__file__).parents[1]
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # The job sets PYTHONPATH itself, so that the package must be found without it.
    (tools / "sitecustomize.py").write_text(f"import sys\nsys.path[:0] = {[str(root), *known]!r}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tools))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly -p no:xdist --tb=no --trainability-cure=off")
    return project


def executed(command: str, folder: Path, **variables: str) -> tuple[int, str]:
    """Run the commands of a step, which ends at the first one that fails."""
    command = command.replace("PYTHONPATH=.", f"PYTHONPATH=.:{os.environ['PYTHONPATH']}")
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", command],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def write(project: Pytester, folder: Path, **values: Any) -> None:
    (folder / "test_it.py").write_text(SUITE.format(**values), encoding="utf-8")
    (folder / "small_nets.py").write_bytes((project.path / "small_nets.py").read_bytes())


def test_the_workflow_for_github_reports_a_pull_request(shell: Pytester) -> None:
    """The target branch is green, and the pull request makes the tower deeper."""
    workspace = shell.mkdir("workspace")
    write(shell, workspace, depth=2, bound=4)
    git(workspace, "init", "-q")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "target")
    git(workspace, "update-ref", "refs/remotes/origin/main", "HEAD")
    write(shell, workspace, depth=12, bound=4)
    summary = shell.path / "summary.md"
    variables = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(workspace),
        "GITHUB_BASE_REF": "main",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    steps = {step["name"]: step["run"] for step in GITHUB["jobs"]["trainability"]["steps"] if "name" in step}
    code, log = executed(steps["Measure"], workspace, **variables)
    (error,) = commands_in(log)
    assert (code, error["file"], error["line"]) == (1, "test_it.py", "6"), log
    assert summary.read_text(encoding="utf-8").startswith("## ✘ trainability: 1 failed")
    jsonschema.Draft202012Validator(SARIF).validate(json.loads((workspace / "report.sarif").read_text("utf-8")))
    before = summary.read_bytes()
    code, log = executed(steps["Measure the target branch"], workspace, **variables)
    assert (code, commands_in(log), summary.read_bytes()) == (0, [], before), log
    code, log = executed(steps["Write the comment"], workspace, **variables)
    assert code == 0, log
    text = (workspace / "comment.md").read_text(encoding="utf-8")
    assert text.startswith("### ✘ trainability: 1 worse against the target branch")
    assert "test_it.py::test_tower" in text
    # Once the pull request equals its target, there is nothing to say.
    (workspace / "report.json").write_bytes((workspace / "target.json").read_bytes())
    executed(steps["Write the comment"], workspace, **variables)
    assert not (workspace / "comment.md").exists()


def test_the_job_for_gitlab_writes_its_reports(shell: Pytester) -> None:
    workspace = shell.mkdir("workspace")
    write(shell, workspace, depth=12, bound=4)
    job = GITLAB_CI["trainability"]
    code, log = executed(job["script"][-1], workspace, CI_PROJECT_DIR=str(workspace))
    assert code == 1, log
    reports = job["artifacts"]["reports"]
    issues = json.loads((workspace / reports["codequality"]).read_text("utf-8"))
    jsonschema.Draft202012Validator(GITLAB).validate(issues)
    assert issues[0]["location"] == {"path": "test_it.py", "lines": {"begin": 6}}
    names = {p.get("name") for p in ElementTree.parse(workspace / reports["junit"]).iter("property")}
    assert {"trainability.log_gain", "trainability.model"} <= names
    assert all((workspace / path).is_file() for path in job["artifacts"]["paths"])
