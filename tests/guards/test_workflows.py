"""The workflows test what the metadata promises, and publish nothing that has not been tested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS: dict[str, dict[Any, Any]] = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yml"))
}
TESTS, RELEASE = WORKFLOWS["tests.yml"], WORKFLOWS["release.yml"]
MATRIX = TESTS["jobs"]["tests"]["strategy"]["matrix"]
ON = True
"""YAML reads the key ``on`` as a truth value."""


def commands(workflow: dict[Any, Any]) -> str:
    """Return the commands of all steps."""
    return "\n".join(step.get("run", "") for job in workflow["jobs"].values() for step in job.get("steps", ()))


def test_the_oldest_and_the_newest_versions_are_tested_everywhere() -> None:
    versions = re.findall(r'Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert MATRIX["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert MATRIX["versions"] == ["oldest", "newest"]
    pythons = {entry["versions"]: entry["python-version"] for entry in MATRIX["include"]}
    assert pythons == {"oldest": versions[0], "newest": versions[-1]}
    for name in MATRIX["versions"]:
        pins = (ROOT / f"constraints-{name}.txt").read_text(encoding="utf-8")
        assert {"torch", "pytest", "scipy"} <= set(re.findall(r"^([\w-]+)==", pins, re.MULTILINE))
    assert "--constraint constraints-${{ matrix.versions }}.txt" in commands(TESTS)


def test_one_job_runs_what_must_pass_before_a_change_is_merged() -> None:
    assert ".ci/run" in commands(TESTS) and (ROOT / ".ci" / "run").stat().st_mode & 0o111
    targets = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets == ["lint", "types", "docs", "package", "demo", "race", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_pull_requests_and_releases_are_tested() -> None:
    assert {"pull_request", "push", "workflow_call"} <= set(TESTS[ON])
    assert RELEASE["jobs"]["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert set(RELEASE["jobs"]["publish"]["needs"]) == {"tests", "build"}
    assert RELEASE[ON] == {"push": {"tags": ["v*"]}}


def test_only_the_last_job_of_a_release_may_do_more_than_read() -> None:
    rights = [(name, workflow["permissions"]) for name, workflow in WORKFLOWS.items()]
    assert rights == [(name, {"contents": "read"}) for name in WORKFLOWS]
    more = {
        job: content["permissions"]
        for workflow in WORKFLOWS.values()
        for job, content in workflow["jobs"].items()
        if "permissions" in content
    }
    assert more == {"publish": {"id-token": "write", "attestations": "write", "contents": "read"}}
    assert RELEASE["jobs"]["publish"]["environment"] == "pypi"


def test_no_expression_is_pasted_into_a_command() -> None:
    """Names of branches and tags come from anyone: they reach a shell as variables only."""
    assert re.findall(r"\$\{\{(?! *matrix\.)", "".join(commands(workflow) for workflow in WORKFLOWS.values())) == []


def test_publishing_needs_no_password_and_attests() -> None:
    uses = [step["uses"] for step in RELEASE["jobs"]["publish"]["steps"]]
    assert [name.partition("@")[0] for name in uses] == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]
    text = (FOLDER / "release.yml").read_text(encoding="utf-8")
    assert "secrets." not in text and "password:" not in text
