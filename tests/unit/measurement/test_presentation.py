"""A measurement outside of a session: its report, dictionary, frame, table and plot."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from pytest_trainability import Measurement, TrainabilityFailure, measure, within
from pytest_trainability.measurement import presentation
from pytest_trainability.measurement.presentation import Presentation


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(5) for layer in (nn.Linear(8, 8), nn.Tanh())])


@pytest.fixture(scope="module")
def result() -> Measurement:
    return measure(tower, torch.linspace(-1, 1, 32).reshape(4, 8), seeds=3, name="a <tower>")


def test_the_report_of_a_model_that_holds_is_that_of_the_section(result: Measurement) -> None:
    lines = result.report().splitlines()
    assert lines[0] == "a <tower> · cpu · float32 · train · per sample · seeds 0-2"
    assert lines[1] == "  gradient of a random functional of the output"
    assert lines[2].split()[0] in {"○", "✔"}
    assert {line.split()[0] for line in lines[3:]} >= {"gradient_norm", "activation_rms", "along", "took"}
    assert all(len(line) <= 80 for line in lines)
    assert max(map(len, result.report(width=200).splitlines())) <= 200


def test_the_dictionary_is_strict_json_with_a_value_for_each_seed(result: Measurement) -> None:
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["conditions"]["gradient_of"] == "a random functional of the output"
    assert found["steps"]["names"] == list(result.steps)
    values = {value["measure"]: value for value in found["values"]}
    assert values["log_gain"]["elements"][0]["values"] == pytest.approx(result.log_gain.values)
    assert values["gradient_norm"]["by"] == "parameter"
    assert values["growth_rate"]["by"] == "step"
    assert [element["name"] for element in values["gradient_norm"]["elements"]] == list(result.gradient_norm)


def test_numbers_that_are_not_finite_are_words() -> None:
    found = measure(nn.Linear(3, 3), torch.full((2, 3), math.inf)).to_dict()
    assert "nan" in json.dumps(found, allow_nan=False) or "inf" in json.dumps(found, allow_nan=False)


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_table_escapes_names(result: Measurement) -> None:
    parser = _Cells()
    parser.feed(result._table())
    assert parser.tags == {"table", "caption", "tr", "td"}
    assert parser.text[0].startswith("a <tower>: 5 × Linear, per sample, train mode, gradient of a random functional")
    assert "lyapunov_max" in parser.text


def test_the_table_shows_bounds_and_verdicts() -> None:
    result = measure(tower, torch.ones(4, 8), seeds=2)
    with pytest.raises(TrainabilityFailure):
        result.check(log_gain=within(0.1))
    parser = _Cells()
    parser.feed(result._table())
    assert "must lie in [-0.1, 0.1]" in parser.text
    assert "no" in parser.text
    assert result.to_dict()["explanation"]


@pytest.mark.parametrize(
    ("name", "near"), [("log_gian", "log_gain"), ("to_dcit", "to_dict"), ("grad_norm", "gradient_norm")]
)
def test_a_misspelt_attribute_has_a_suggestion(result: Measurement, name: str, near: str) -> None:
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'. Did you mean '{near}'\?$"):
        getattr(result, name)


def test_an_unknown_attribute_does_not_list_all_measures(result: Measurement) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(result, "xyzzy")  # noqa: B009 - the attribute does not exist
    assert len(str(caught.value)) < 120


def test_the_frame_has_a_row_for_each_measure_element_and_seed(result: Measurement) -> None:
    pytest.importorskip("pandas", reason="to_frame() needs pandas")
    frame = result.to_frame("log_gain", "gradient_norm")
    assert list(frame.columns) == ["measure", "element", "seed", "value", "unit"]
    assert len(frame) == 3 * (1 + 10)
    assert list(frame[frame.measure == "log_gain"].value) == list(result.log_gain.values)
    assert set(result.to_frame().measure) >= {"log_gain", "lyapunov_max", "activation_rms"}


def test_the_plot_has_a_line_for_each_seed_that_ends_at_its_log_gain() -> None:
    pytest.importorskip("matplotlib", reason="plot() needs matplotlib").use("agg")
    result = measure(tower, torch.ones(4, 8), seeds=3)
    with pytest.raises(TrainabilityFailure):
        result.check(log_gain=within(0.1))
    axes = result.plot()
    *of_seeds, median, mark = axes.get_lines()
    assert [line.get_ydata()[-1] for line in of_seeds] == pytest.approx(result.log_gain.values, rel=1e-6)
    assert list(median.get_ydata()) == [sorted(column)[1] for column in zip(*(line.get_ydata() for line in of_seeds))]
    assert mark.get_xdata()[0] == 1, "every step multiplies by about a half: the first one leaves the bound"
    assert result.plot(axes) is axes


def test_the_plot_says_on_how_many_seeds_the_gain_is_not_finite() -> None:
    pytest.importorskip("matplotlib", reason="plot() needs matplotlib").use("agg")

    def build() -> nn.Module:
        model = tower()
        nn.init.constant_(model[4].bias, math.nan)
        return model

    texts = [text.get_text() for text in measure(build, torch.ones(4, 8), seeds=3).plot().texts]
    assert texts == ["not finite on 3 of 3 seeds"]


def test_a_course_is_the_running_sum_of_growth_rates(result: Measurement) -> None:
    courses = list(presentation._courses(result.growth_rate, 3))
    assert [course[0] for course in courses] == [0.0] * 3
    assert [course[-1] for course in courses] == pytest.approx(result.log_gain.values, rel=1e-6)
    assert len(courses[0]) == 1 + len(result.steps)


def test_a_presentation_needs_a_measurement() -> None:
    with pytest.raises(NotImplementedError):
        Presentation().report()
