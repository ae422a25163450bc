"""A size sweep outside of a session."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pytest_trainability import Scaling, width_sweep


@pytest.fixture(scope="module")
def scaling() -> Scaling:
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 1))

    return width_sweep(build, [8, 16, 32], torch.ones(2, 4), seeds=2)


def test_the_dictionary_holds_values_and_slopes(scaling: Scaling) -> None:
    found = json.loads(json.dumps(scaling.to_dict(), allow_nan=False))
    assert found["sizes"] == [8, 16, 32]
    assert [element["name"] for element in found["elements"]] == list(scaling.slope)
    first = found["elements"][0]
    assert len(first["values"]) == 3
    assert first["slope"]["mean"] == scaling.slope["input"].mean


def test_the_report_has_the_slope_and_the_values_of_each_element_by_size(scaling: Scaling) -> None:
    first, *lines = scaling.report().splitlines()
    assert first == scaling.reading
    assert sum(line.startswith("by width") for line in lines) == len(scaling.slope)
    assert all(any(line.split()[:1] == [str(size)] for line in lines) for size in scaling.sizes)


def test_the_table_has_a_row_for_each_element(scaling: Scaling) -> None:
    text = scaling._repr_html_()
    assert text.count("<tr>") == 1 + len(scaling.slope)
    assert "width 16" in text


def test_the_frame_has_a_row_for_each_size_element_and_seed(scaling: Scaling) -> None:
    pytest.importorskip("pandas", reason="to_frame() needs pandas")
    frame = scaling.to_frame()
    assert len(frame) == 3 * len(scaling.slope) * 2
    assert set(frame.width) == {8, 16, 32}


def test_the_plot_has_logarithmic_axes(scaling: Scaling) -> None:
    pytest.importorskip("matplotlib", reason="plot() needs matplotlib").use("agg")
    axes = scaling.plot()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert len(axes.get_lines()) == len(scaling.slope) * (2 + 1)
