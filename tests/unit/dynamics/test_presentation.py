"""Lyapunov exponents of a map outside of a session."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pytest_trainability import LyapunovExponents, lyapunov_spectrum

FACTORS = torch.tensor([4.0, 0.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def found() -> LyapunovExponents:
    state = torch.ones(2, dtype=torch.float64)
    return lyapunov_spectrum(lambda x: FACTORS * x, state, steps=10, alignment=60)


def test_the_report_has_a_line_for_each_exponent(found: LyapunovExponents) -> None:
    lines = found.report().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["exponent 1", "exponent 2", "Kaplan-Yorke dimension", "steps"]
    assert "+1.386 nats/step" in lines[0] and "-0.6931 nats/step" in lines[1]
    assert lines[-1].endswith(" 10")


def test_the_dictionary_holds_exponents_and_their_history(found: LyapunovExponents) -> None:
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [exponent["mean"] for exponent in written["exponents"]] == pytest.approx([math.log(4), -math.log(2)])
    assert written["unit"] == "nats/step"
    assert written["kaplan_yorke_dimension"] == "nan", "the sum is positive: more exponents are needed"
    assert [len(written[key]) for key in ("local", "history")] == [10, 10]
    assert written["history"][-1] == pytest.approx([math.log(4), -math.log(2)])


def test_a_notebook_shows_a_table(found: LyapunovExponents) -> None:
    text = found._repr_html_()
    assert text.count("<tr>") == 4
    assert "<td>exponent 1</td><td>+1.386 nats/step</td>" in text


def test_the_frame_has_a_row_for_each_step_and_exponent(found: LyapunovExponents) -> None:
    pytest.importorskip("pandas", reason="to_frame() needs pandas")
    frame = found.to_frame()
    assert list(frame.columns) == ["step", "exponent", "local", "average", "unit"]
    assert len(frame) == 10 * 2
    assert frame[(frame.step == 10) & (frame.exponent == 2)].average.item() == pytest.approx(-math.log(2))


def test_the_plot_has_a_line_for_each_exponent(found: LyapunovExponents) -> None:
    pytest.importorskip("matplotlib", reason="plot() needs matplotlib").use("agg")
    axes = found.plot()
    first, second, zero = axes.get_lines()
    assert list(first.get_xdata()) == list(range(1, 11))
    assert second.get_ydata()[-1] == pytest.approx(-math.log(2))
    assert list(zero.get_ydata()) == [0.0, 0.0]
    assert found.plot(axes) is axes
