"""Size sweeps as a whole: what the session hears, and the page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families import ONES, scaled

from pytest_trainability import (
    TrainabilityFailure,
    within,
)
from pytest_trainability.measurement import Context
from pytest_trainability.records.reports import CheckRecord
from pytest_trainability.scaling import size_sweep_in


def test_a_size_sweep_is_one_check_of_the_session():
    heard: list[CheckRecord] = []
    context = Context(test="test_a.py::test_b", report=heard.append, reproduce="pytest test_a.py::test_b")
    found = size_sweep_in(
        context,
        "width",
        lambda n: scaled(n, 1.0),
        [2, 4],
        ONES,
        seeds=2,
        name="net",
    )
    (record,) = heard
    assert (record.test, record.model, record.steps, record.verdicts) == ("test_a.py::test_b", "net", "widths 2, 4", ())
    assert record.log_gain == found.measurements[-1].log_gain.mean
    assert record.notes[:2] == ("activation_rms of 0 grows like width^1", "the log gain is that of width 4")
    found.matching("input").check(within(0.1))
    with pytest.raises(TrainabilityFailure, match=r"reproduce +pytest test_a\.py::test_b --trainability-seeds=0-1"):
        found.check(within(0.1))
    assert [v.holds for v in heard[-1].verdicts] == [True, False]
    assert heard[-1].notes[0] == "activation_rms of 0 grows like width^1"
    assert CheckRecord.from_plain(heard[-1].to_plain()) == heard[-1]


HOW_TO = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_page_on_scaling_runs_and_shows_what_it_prints():
    """The examples run one after the other, and print the shown text except for digits, which depend on the machine."""
    blocks = re.findall(r"```(python|text)\n(.*?)```", HOW_TO, re.DOTALL)
    names: dict[str, object] = {}
    for (kind, text), (after, shown) in zip(blocks, [*blocks[1:], ("", "")]):
        if kind == "text":
            continue
        if after != "text":
            exec(text, names)
            continue
        with pytest.raises(TrainabilityFailure) as failure:
            exec(text, names)
        assert _without_digits(str(failure.value)) == _without_digits(shown)


def _without_digits(text: str) -> str:
    return re.sub(r"[\d.]+( ±| ×/÷)? *", "#", " ".join(text.split()))
