"""Terms of gradients: bounds on their sizes, by hand, and sums of biases in two backward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import Measure, Run, measure
from pytest_trainability.engine.capture.recorder import Capture
from pytest_trainability.engine.runs.common_needs import GRADIENT_TERMS
from pytest_trainability.engine.runs.gradient_terms import Terms, gradients_with_terms
from pytest_trainability.engine.runs.objective import Objective

EPS = 2.0**-23
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(12) % 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def terms_of(added: Callable[..., Measure]) -> Callable[..., dict[str, Terms]]:
    """Return a function that measures a model, and returns the terms of its gradients."""
    found: list[Mapping[str, Terms]] = []

    def read(run: Run) -> float:
        found.append(run[GRADIENT_TERMS])
        return 0.0

    added("reading", GRADIENT_TERMS, read=read)

    def terms(model: Any, inputs: Any = X, **settings: Any) -> dict[str, Terms]:
        measure(model, inputs, measures=["reading"], **{"loss": F.cross_entropy, "target": TARGET, **settings})
        return dict(found[-1])

    return terms


class Branch(nn.Module):
    """A branch that is multiplied by small numbers, or by none."""

    def __init__(self, shrink: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.gain = nn.Parameter(torch.full((8,), 1e-6))
        self.shrink = shrink

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x + self.shrink(self, self.branch(x)))
        return out


@pytest.mark.parametrize(
    ("shrink", "share"),
    [
        (lambda _, x: x, 1.0),
        (lambda model, x: model.gain * x, 1.0),
        (lambda model, x: x * model.gain.unsqueeze(0), 1.0),
        (lambda _, x: 1e-6 * x, 1.0),
        (lambda _, x: 1e-3 * (1e-3 * x), 1.0),
        (lambda model, x: F.layer_norm(x, (8,), model.gain), 1.0),
        (lambda model, x: F.group_norm(x, 2, model.gain), 1.0),
        # Divided by the standard deviation of 1e-3, the weight of 1e-6 multiplies by 1e-3.
        (lambda model, x: F.layer_norm(1e-3 * x, (8,), model.gain, eps=1e-12), 1.0),
        # What a normalization with fixed statistics divides by is not looked at.
        (lambda model, x: F.batch_norm(x, torch.zeros(8), torch.ones(8), model.gain), 1.0),
        # A quotient is not looked at, and a large factor in another place makes up for nothing.
        (lambda _, x: x / 1e6, 1e-6),
        (lambda _, x: (1e6 * x) / 1e12, 1e-6),
    ],
    ids=[
        *("none", "layer scale", "view of layer scale", "number", "two numbers", "layer norm", "group norm"),
        *("layer norm of small numbers", "fixed statistics", "quotient", "large factor"),
    ],
)
def test_a_product_shrinks_terms_and_gradient_alike(terms_of: Any, shrink: Any, share: float) -> None:
    """With one label for all, the cotangents of 12 samples add up to a gradient of their own size, up to a factor of √12."""
    found = terms_of(Branch(shrink), target=torch.zeros(12, dtype=torch.long))
    assert share / 20 < found["branch.weight"].share < 20 * share
    assert share / 20 < found["branch.bias"].share < 20 * share
    assert 0.05 < found["head.weight"].share < 20
    assert all(terms.eps == EPS for terms in found.values())


def test_a_normalization_over_the_batch_shrinks_terms_and_gradient_alike(terms_of: Any) -> None:
    """Its weights are looked at with the standard deviation of their own channel. It cancels the bias in front of it."""
    gain = torch.full((8,), 1e-6).index_fill(0, torch.tensor([0]), 1.0)
    scale = torch.ones(8).index_fill(0, torch.tensor([0]), 1e6)
    found = terms_of(Branch(lambda _, x: F.batch_norm(scale * x, None, None, gain, training=True)))
    assert 0.05 < found["branch.weight"].share < 20
    assert found["branch.bias"].share < 1e-4


def test_gradients_with_terms_are_those_of_autograd() -> None:
    model = Branch(lambda model, x: F.layer_norm(x, (8,), model.gain))
    model.head.bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    objective = Objective(Capture(model), None, seed=0)
    gradients, terms = gradients_with_terms(objective, F.cross_entropy(model(X), TARGET))
    F.cross_entropy(model(X), TARGET).backward()
    assert gradients.keys() == {"gain", "branch.weight", "branch.bias", "head.weight", "unused"}
    assert all(torch.equal(g, model.get_parameter(n).grad) for n, g in gradients.items() if g is not None)
    assert gradients["unused"] is None and terms.keys() == gradients.keys() - {"unused"}
    assert terms["branch.weight"].share > 0.05 and terms["branch.bias"].sums == ()


def test_the_mean_of_a_loss_is_no_loss_of_digits(terms_of: Any) -> None:
    """The gradient is the mean of a thousand terms over a million samples: 1e-6 of the gradient of the loss, which is 1."""
    found = terms_of(nn.Linear(1, 1), torch.ones(1000, 1), loss=lambda y: (y.sum() / 1e3).square() * 1e-3, target=None)
    assert 0.01 < found["weight"].share < 100


class TwoSums(nn.Module):
    """The difference of two sums of the same numbers: the cotangents of each cancel those of the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).exp()
        third = torch.tensor(1 / 3)
        return self.other(x).sum() + (third * y.sum() + 2 * third * y.sum() - y.sum())


def test_sums_that_cancel_one_another_show_their_terms(terms_of: Any) -> None:
    found = terms_of(TwoSums(), loss=lambda y: y, target=None)
    assert found["layer.weight"].share < 1e-5
    assert found["other.weight"].share > 0.01


class Attention(nn.Module):
    """One head of attention over five positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ self.key(x).mT / 4).softmax(-1)
        out: Tensor = self.head(torch.tanh(weights @ self.value(x)).mean(1))
        return out


@pytest.mark.parametrize("kernel", ["operations", "fused"])
def test_the_bias_of_a_key_sums_to_its_rounding_for_every_cotangent(terms_of: Any, kernel: str) -> None:
    class Fused(Attention):
        def forward(self, x: Tensor) -> Tensor:
            found = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
            out: Tensor = self.head(torch.tanh(found).mean(1))
            return out

    x = torch.randn(12, 5, 16, generator=torch.Generator().manual_seed(1))
    found = terms_of((Attention if kernel == "operations" else Fused)(), x)
    assert len(found["key.bias"].sums) == 2
    assert max(found["key.bias"].sums) < 16 * EPS
    for name in ("query.bias", "value.bias"):
        assert min(found[name].sums) > 0.01


@pytest.mark.parametrize("dims", [1, 2])
def test_the_bias_before_a_normalization_over_the_batch(terms_of: Any, dims: int) -> None:
    """For a convolution, the second dimension of the cotangent counts units."""
    layers = (nn.Linear(8, 6), nn.BatchNorm1d(6)) if dims == 1 else (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    x = X if dims == 1 else torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    pooled = [] if dims == 1 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    found = terms_of(nn.Sequential(*layers, nn.Tanh(), *pooled, nn.Linear(6, 4)), x)
    assert found["0.bias"].share < 1e-5 < 0.01 < found["0.weight"].share
    assert all(size < 16 * EPS for size in found["0.bias"].sums[:1])


def test_targets_that_sum_to_zero_show_in_the_loss_only(terms_of: Any) -> None:
    model = nn.Linear(8, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    target = torch.cat([torch.ones(6, 1), -torch.ones(6, 1)])
    of_loss, random = terms_of(model, loss=F.mse_loss, target=target)["bias"].sums
    assert of_loss < EPS and random > 0.01


def test_a_parameter_that_is_read_twice_has_the_larger_terms(terms_of: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(x) + 1e-6 * self.layer(x.tanh()))
            return out

    found = terms_of(Twice())
    assert found["layer.weight"].share > 0.01
    assert not found["layer.bias"].sums


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.layer(x))


def test_nothing_is_known_behind_custom_functions_and_along_time(terms_of: Any) -> None:
    assert terms_of(Custom()) == {}

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0][:, -1]

    assert terms_of(Recurrent(), torch.randn(12, 7, 4), steps="time") == {}


def test_the_coarsest_precision_of_the_graph_counts(terms_of: Any) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(x).half().float())
            return out

    assert {terms.eps for terms in terms_of(Inside()).values()} == {2.0**-10}


def test_unknown_operators_leave_the_share_open(terms_of: Any) -> None:
    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.power = nn.Linear(8, 4), nn.Parameter(torch.full((4,), 1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).exp().clamp(max=3.0) ** self.power

    found = terms_of(Power())
    assert math.isnan(found["power"].share) and found["layer.weight"].share > 0.01


def test_the_output_shows_whether_the_last_bias_of_a_joint_chain_cancels(terms_of: Any) -> None:
    """Where samples interact, it is a random functional of the output that meets the biases behind the last state.

    The gradient of the loss with respect to the last bias is zero by the choice of the targets, and not by algebra.
    """
    body = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()) for _ in range(3)]
    head = nn.Linear(8, 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    model = nn.Sequential(nn.Sequential(*body), nn.Linear(8, 8), nn.BatchNorm1d(8), head)
    target = torch.cat([torch.ones(6, 1), -torch.ones(6, 1)])
    found = terms_of(model, loss=F.mse_loss, target=target, steps=["0.0", "0.1", "0.2"])
    of_loss, random = found["3.bias"].sums
    assert of_loss < EPS and random > 0.01
    nn.init.normal_(head.weight)
    found = terms_of(model, loss=F.mse_loss, target=target, steps=["0.0", "0.1", "0.2"])
    for name in ("0.0.0.bias", "0.1.0.bias", "0.2.0.bias", "1.bias"):
        assert 0 < max(found[name].sums) < 16 * EPS
