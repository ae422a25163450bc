"""The tutorial is correct: its first test fails with the printed message, and its second test passes."""

from __future__ import annotations

import re
from pathlib import Path

from pytest import Pytester  # noqa: PT013

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_tutorial(project: Pytester) -> None:
    red, green = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", TUTORIAL, re.DOTALL)
    project.makepyfile(test_tower=red)
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    # All lines of the tutorial are printed. The numbers are not compared: their last digits depend on the machine.
    printed = [re.sub(r"[\d.]+", "#", line) for line in result.outlines]
    assert [line for line in shown.splitlines() if re.sub(r"[\d.]+", "#", line) not in printed] == []
    project.makepyfile(test_tower=green)
    project.runpytest_inprocess().assert_outcomes(passed=1)
