"""Two measurements compared without a file."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_trainability import BoundError, Measurement, UsageError, compare, measure

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def tower(std: float, act: type[nn.Module] = nn.Tanh, name: str = "tower") -> Measurement:
    def build() -> nn.Module:
        layers = [nn.Linear(8, 8, bias=False) for _ in range(4)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=std)
        return nn.Sequential(*[part for layer in layers for part in (layer, act())])

    return measure(build, X, seeds=4, name=name)


def test_a_measurement_equals_itself_and_its_repetition() -> None:
    one, other = tower(0.3), tower(0.3)
    for found in (compare(one, one), compare(one, other)):
        assert list(found) == []
        assert not found
        assert repr(found) == "<tower → tower: nothing has changed>"
        assert str(found) == "tower → tower: nothing has changed by these tolerances"


def test_larger_weights_come_first_and_their_consequences_follow() -> None:
    found = compare(tower(0.2), tower(0.4, name="<b>wide</b>"))
    assert found[0].measure == "initial values"
    assert found[0].new / found[0].old == pytest.approx(2, rel=1e-6), "the same draws, times two"
    assert {change.measure for change in found} >= {"log_gain", "gradient_norm"}
    assert repr(found) == f"<tower → <b>wide</b>: {len(found)} changes>"
    lines = str(found).splitlines()
    assert lines[0] == "tower → <b>wide</b>"
    assert lines[1].startswith("  initial values ")
    assert "<b>" not in found._repr_html_()


def test_another_activation_is_a_change_of_modules() -> None:
    found = compare(tower(0.3), tower(0.3, nn.ReLU))
    assert "modules" in {change.measure for change in found}
    assert "Tanh" in str(found)
    assert "ReLU" in str(found)


def test_a_tolerance_hides_a_shift_and_a_further_measure_is_read() -> None:
    one, other = tower(0.3), tower(0.4)
    measures = {change.measure for change in compare(one, other, "max_ftle", log_gain=99)}
    assert "log_gain" not in measures
    assert "max_ftle" in measures


@pytest.mark.parametrize(
    ("call", "error", "part"),
    [
        (lambda one: compare(one, nn.Linear(2, 2)), UsageError, "new must be a result of measure"),
        (lambda one: compare(one, one, "log_gian"), BoundError, "Did you mean 'log_gain'"),
        (lambda one: compare(one, one, log_gain=-1), UsageError, "log_gain"),
    ],
    ids=["a module", "a misspelt measure", "a negative tolerance"],
)
def test_a_wrong_argument_is_refused(call: Callable[[Measurement], object], error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        call(tower(0.3))
