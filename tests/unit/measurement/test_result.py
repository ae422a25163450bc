"""What is measured beside a bounded measure: what wakes by design, and what a guess would cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import at_least, at_most, measure, within


class Residual(nn.Module):
    """Its branch is zero at first, by design."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def residual() -> nn.Module:
    return nn.Sequential(Residual(), Residual(), nn.Linear(8, 3))


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(model[0].bias, -100.0)
    return model


X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
LOSS = {"loss": F.cross_entropy, "target": Y}


@pytest.mark.parametrize("name", ["gradient_norm", "relative_gradient_norm", "update_ratio"])
def test_what_wakes_by_design_is_set_aside_and_named(name: str) -> None:
    result = measure(residual, X, seeds=2, **LOSS)
    result.check(**{name: at_least(1e-9)})
    zero = result.gradient_norm["0.up.weight"].mean
    assert zero == 0, "the number itself stays what it is"


def test_what_sleeps_on_is_not() -> None:
    result = measure(dead, X, seeds=2, **LOSS)
    with pytest.raises(AssertionError, match=r"3 of 4 outside, worst 0\.weight"):
        result.check(gradient_norm=at_least(1e-9))


def test_what_wakes_later_on_some_seed_wakes_that_late() -> None:
    """The latest step of all seeds: behind a head that is zero on every other seed everything takes one step more."""

    def sometimes() -> nn.Module:
        late = torch.initial_seed() % 2
        model = residual()
        if late:
            nn.init.zeros_(model[2].weight)
        return model

    result = measure(sometimes, X, seeds=2, **LOSS)
    assert sorted(result.waking_step["0.up.weight"].values) == [1, 2]
    with pytest.raises(AssertionError) as failure:
        result.check(gradient_norm=at_least(1e6))
    text = " ".join(str(failure.value).split())
    assert "parameters wake at optimizer step 1" in text and "0.down.weight" in text.partition("step 2")[0]
    assert "4 parameters wake at optimizer step 2" in text and "0.up.weight" in text.partition("step 2")[2]


def test_where_all_wake_later_the_bound_still_judges() -> None:
    """Of a product `a b` one factor is zero on every other seed, and the other one on the others: both wake by design."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.full((8, 1), float(i == torch.initial_seed() % 2))) for i in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.a) * (x @ self.b)

    loss = {"loss": lambda output: (output - 1).square().mean()}
    result = measure(Product, X, seeds=2, steps=Product, **loss)
    assert {name: max(step.values) for name, step in result.waking_step.items()} == {"a": 1, "b": 1}
    with pytest.raises(AssertionError, match="2 of 2 outside, worst a 0, b 0"):
        result.check(gradient_norm=at_least(1e-9))


def test_a_failure_elsewhere_says_what_was_set_aside() -> None:
    result = measure(residual, X, seeds=2, **LOSS)
    with pytest.raises(AssertionError) as failure:
        result.check(gradient_norm=at_least(1e6))
    assert "parameters wake at optimizer step 1 and are excluded from bounds on gradients and updates:" in " ".join(
        str(failure.value).split()
    )
    assert "0.up.weight" in str(failure.value)


def test_an_optimizer_that_cannot_probe_leaves_the_bound_as_it_is() -> None:
    def model() -> nn.Module:
        # AdamW, which probes where no optimizer is given, takes no sparse gradients.
        tower = nn.Sequential(nn.Embedding(5, 8, sparse=True), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        nn.init.constant_(tower[1].bias, -100.0)
        return tower

    result = measure(model, torch.tensor([0, 1, 2, 3, 4, 0]), seeds=2, **LOSS)
    with pytest.raises(AssertionError, match="gradient_norm out of bounds"):
        result.check(gradient_norm=at_least(1e-9))


def test_the_initial_loss_stands_beside_that_of_a_guess() -> None:
    result = measure(lambda: nn.Linear(8, 3), X * 50, seeds=2, **LOSS)
    with pytest.raises(AssertionError, match=r"\(a guess among 3 classes costs 1\.099\)"):
        result.check(initial_loss=at_most(1.2))


def test_where_there_are_no_classes_there_is_no_guess() -> None:
    result = measure(lambda: nn.Linear(8, 1), X, seeds=2, loss=lambda y: y.square().mean())
    result.check(initial_loss=within(0, 5))
    with pytest.raises(AssertionError, match=r"initial_loss +\d") as failure:
        result.check(initial_loss=at_most(0))
    assert "guess" not in str(failure.value)
