"""The functions that make rules: text, distribution, and errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import UsageError, init
from pytest_trainability.init.places import Place
from pytest_trainability.init.rules import Drawn, Fixed, Rule

FILLED: dict[str, tuple[Rule, Callable[[Tensor], Tensor]]] = {
    "xavier_normal": (init.xavier_normal(gain=2.0), lambda t: nn.init.xavier_normal_(t, gain=2.0)),
    "xavier_uniform": (init.xavier_uniform(), nn.init.xavier_uniform_),
    "kaiming_normal": (
        init.kaiming_normal(mode="fan_out", nonlinearity="relu"),
        lambda t: nn.init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"),
    ),
    "kaiming_uniform": (
        init.kaiming_uniform(a=0.3, nonlinearity="leaky_relu"),
        lambda t: nn.init.kaiming_uniform_(t, a=0.3),
    ),
    "truncated_normal": (
        init.truncated_normal(std=0.5, mean=0.2, a=-1.0, b=0.8),
        lambda t: nn.init.trunc_normal_(t, std=0.5, mean=0.2, a=-1.0, b=0.8),
    ),
    "uniform": (init.uniform(-1.0, 2.0), lambda t: nn.init.uniform_(t, -1.0, 2.0)),
    "normal": (init.normal(std=0.1, mean=1.0), lambda t: nn.init.normal_(t, 1.0, 0.1)),
}


@pytest.mark.parametrize("name", FILLED)
def test_moments_are_those_of_torch(name: str) -> None:
    """120,000 entries: the relative standard error of a standard deviation is 0.2 %, five of them are 1 %."""
    rule, fill = FILLED[name]
    assert isinstance(rule, Drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = fill(torch.empty(100, 40, 6, 5)).double()
    law = rule.law(Place("w", (100, 40, 6, 5)))
    assert drawn.std().item() == pytest.approx(law.std, rel=0.01)
    assert drawn.mean().item() == pytest.approx(law.mean, abs=5 * law.std / math.sqrt(drawn.numel()))
    assert law.low <= drawn.min().item() and drawn.max().item() <= law.high


def test_lecun_normal_keeps_its_standard_deviation_when_truncated() -> None:
    plain, cut = init.lecun_normal(), init.lecun_normal(truncated=True)
    assert isinstance(plain, Drawn) and isinstance(cut, Drawn)
    place = Place("w", (7, 25))
    assert plain.law(place).std == cut.law(place).std == pytest.approx(0.2)
    assert cut.law(place).high == pytest.approx(0.4 / 0.8796256610342398)


def test_default_bias_is_that_of_a_linear_layer() -> None:
    rule = init.default_bias()
    assert isinstance(rule, Drawn)
    assert rule.law(Place("b", (7,), (7, 16))).high == 0.25
    with pytest.raises(UsageError, match="'gate' has none"):
        rule.law(Place("gate", (7,)))


@pytest.mark.parametrize(
    ("rule", "shape", "expected"),
    [
        (init.zeros(), (2,), torch.zeros(())),
        (init.constant(0.5), (2,), torch.tensor(0.5, dtype=torch.float64)),
        (init.identity(), (2, 3), torch.eye(2, 3)),
        (init.dirac(2), (4, 2, 3), nn.init.dirac_(torch.empty(4, 2, 3), 2)),
    ],
)
def test_exact_rules(rule: Rule, shape: tuple[int, ...], expected: Tensor) -> None:
    assert isinstance(rule, Fixed)
    assert torch.equal(rule.values(Place("w", shape)), expected)


TEXTS = {
    "init.normal(std=0.02)": init.normal(0.02),
    "init.normal(std=0.02, mean=1.0)": init.normal(0.02, 1.0),
    "init.truncated_normal(std=0.02)": init.truncated_normal(0.02),
    "init.uniform(-0.1, 0.1)": init.uniform(-0.1, 0.1),
    "init.kaiming_uniform(a=math.sqrt(5))": init.kaiming_uniform(a=math.sqrt(5)),
    "init.orthogonal()": init.orthogonal(),
    "init.orthogonal(gain=2.0)": init.orthogonal(2.0),
    "init.tied()": init.tied(),
    "init.packed(init.zeros(), init.ones(), dim=1, sizes=(2, 3))": init.packed(
        init.zeros(), init.ones(), dim=1, sizes=[2, 3]
    ),
    "init.normal(std=0.02).with_zero_row(0)": init.normal(0.02).with_zero_row(0),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_rule_prints_as_its_call(text: str) -> None:
    assert repr(TEXTS[text]) == text
    assert repr(eval(text, {"init": init, "math": math})) == text


WRONG: dict[str, Callable[[], object]] = {
    "normal() needs a std above 0. Got 0. A constant parameter is init.zeros()": lambda: init.normal(std=0),
    "normal() needs a std above 0. Got -1": lambda: init.normal(std=-1),
    "normal() needs a finite number as mean. Got nan": lambda: init.normal(mean=math.nan),
    "uniform() needs low below high. Got low=1.0 and high=-1.0": lambda: init.uniform(1.0, -1.0),
    "truncated_normal() needs a below b": lambda: init.truncated_normal(a=2.0, b=2.0),
    "within six standard deviations": lambda: init.truncated_normal(std=0.02, a=1.0, b=2.0),
    "orthogonal() needs a gain above 0": lambda: init.orthogonal(0),
    "constant() needs a finite number as value. Got 'x'": lambda: init.constant("x"),  # type: ignore[arg-type]
    "mode='fan_in' or mode='fan_out'. Got 'fan'": lambda: init.kaiming_normal(mode="fan"),
    "nonlinearity that torch.nn.init.calculate_gain knows. Got 'swish'": lambda: init.kaiming_normal(
        nonlinearity="swish"
    ),
    "anything() needs a reason": lambda: init.anything(" "),
    "tied() needs the name of a parameter. Got 3": lambda: init.tied(3),  # type: ignore[arg-type]
    "copied() needs the name of a parameter": lambda: init.copied(""),
    "dirac() needs a number of groups": lambda: init.dirac(0),
    "packed() needs one size per rule": lambda: init.packed(init.zeros(), sizes=[1, 2]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused(message: str) -> None:
    with pytest.raises(UsageError) as caught:
        WRONG[message]()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "shape"), [(init.identity(), (3,)), (init.dirac(), (3, 3)), (init.dirac(2), (3, 1, 3))]
)
def test_exact_rules_refuse_other_shapes(rule: Rule, shape: tuple[int, ...]) -> None:
    assert isinstance(rule, Fixed)
    with pytest.raises(UsageError, match="has the shape"):
        rule.values(Place("w", shape))
