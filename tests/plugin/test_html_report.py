"""The HTML report of real sessions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

TESTS = """
import pytest
from pytest_trainability import *
from small_nets import net, images

@pytest.mark.trainability(log_gain=within(1.0))
def test_vanishes(trainability):
    trainability(net, images, seeds=2)

@pytest.mark.trainability(log_gain=at_most(5.0))
def test_holds(trainability):
    trainability(net, images, seeds=2)
"""


def test_a_session_writes_its_page(project: Pytester) -> None:
    project.makepyfile(TESTS)
    project.makeini("[pytest]\ntrainability_html = of_ini.html")
    page = Path(project.path, "folder", "page.html")
    result = project.runpytest_inprocess("-p", "no:xdist", f"--trainability-html={page}")
    result.assert_outcomes(passed=1, failed=1)
    text = page.read_text(encoding="utf-8")
    assert "<h1>1 of 2 checks failed</h1>" in text
    assert re.findall(r'data-id="[^"]*::(\w+)', text) == ["test_vanishes", "test_holds"]
    for part in ("Accumulated log gain along depth", "leaves the bound at", "Sequential", "Likely cause", "reproduce"):
        assert part in text.partition("test_holds")[0]
    assert list(page.parent.iterdir()) == [page], "no temporary file is left"
    assert not Path(project.path, "of_ini.html").exists(), "the command line wins"
