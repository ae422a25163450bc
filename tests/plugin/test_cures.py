"""Cures in the report of a session, and the file that ``--trainability-cure=patch`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

TOWER = """
import torch
from torch import nn
from pytest_trainability import within

def tower():
    return nn.Sequential(*[layer for _ in range(16) for layer in (nn.Linear(16, 16), nn.Tanh())])

def test_tower(trainability):
    trainability(tower, torch.randn(4, 16), seeds=2).check(log_gain=within(2))

def test_fine(trainability):
    trainability(tower, torch.randn(4, 16), seeds=2).check(log_gain=within(100))
"""

XDIST = pytest.mark.parametrize("xdist", [(), ("-n", "1")], ids=["one process", "a worker"])


@pytest.fixture
def session(project: pytest.Pytester) -> pytest.Pytester:
    project.makepyfile(test_it=TOWER)
    return project


@XDIST
def test_a_failure_shows_a_cure_with_its_effect_and_patch_writes_a_page(
    session: pytest.Pytester, xdist: tuple[str, ...]
) -> None:
    before = {p.name: p.read_bytes() for p in session.path.glob("*.py")}
    run = session.runpytest_subprocess if xdist else session.runpytest_inprocess
    text = " ".join(run("--trainability-cure=patch", *xdist).stdout.str().split())
    assert "cure nn.init.normal_(model[i].weight, std=" in text and "on the same seeds" in text
    assert "suggestions written to trainability-cures.md" in text
    page = (session.path / "trainability-cures.md").read_text(encoding="utf-8")
    assert "## `test_it.py::test_tower`" in page and "test_fine" not in page
    assert {p.name: p.read_bytes() for p in session.path.glob("*.py")} == before


def test_off_looks_for_none(session: pytest.Pytester) -> None:
    text = session.runpytest_inprocess("--trainability-cure=off").stdout.str()
    assert "likely cause" in text and "  cure  " not in text


def test_a_session_without_a_failure_removes_the_page_of_an_earlier_one(session: pytest.Pytester) -> None:
    page = session.path / "trainability-cures.md"
    page.write_text("old", encoding="utf-8")
    session.runpytest_inprocess("--trainability-cure=patch", "-k", "fine")
    assert not page.exists()


def test_a_page_that_cannot_be_written_is_said(session: pytest.Pytester) -> None:
    Path(session.path / "trainability-cures.md").mkdir()
    result = session.runpytest_inprocess("--trainability-cure=patch")
    assert "trainability-cures.md could not be written: Is a directory" in result.stdout.str()
    assert result.ret == 1


def test_a_plain_assertion_is_explained_by_the_factors(project: pytest.Pytester) -> None:
    """The steps are taken apart when the assertion has failed, and only then."""
    project.makepyfile(
        test_it="""
        import torch
        from torch import nn

        def tower():
            return nn.Sequential(*[layer for _ in range(16) for layer in (nn.Linear(16, 16), nn.Tanh())])

        def test_tower(trainability):
            assert trainability(tower, torch.randn(4, 16), seeds=2).log_gain > -5
        """
    )
    text = " ".join(project.runpytest_inprocess().stdout.str().split())
    assert "16 × Linear (0, 2, …) multiply the gradient by" in text
