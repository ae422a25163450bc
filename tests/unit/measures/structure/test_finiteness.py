"""NaN and infinity in parameters, states, the loss and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from structures import WIDTH, tower, vectors
from torch import Tensor, nn

from pytest_trainability import at_most, measure


class Times(nn.Module):
    """Multiplies by a constant, which is not a parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def mean_square(output: Tensor) -> Tensor:
    return output.square().mean()


def nonfinite(model: nn.Module, loss: Callable[[Tensor], Tensor] = mean_square) -> list[str]:
    inputs = vectors(torch.Generator().manual_seed(0))
    return list(measure(model, inputs, loss=loss, steps="layers", measures=["nonfinite"]).nonfinite)


def test_a_finite_run_has_no_names() -> None:
    assert nonfinite(tower(3)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_parameter_is_listed_with_everything_behind_it(value: float) -> None:
    model = tower(3)
    model[2].bias.data[0] = value
    found = nonfinite(model)
    assert found[0] == "parameter 2.bias"
    assert "input" not in found
    assert "state after 0" not in found
    # tanh maps infinity to one, and NaN to NaN.
    assert [name for name in found if name.startswith("state")] == (
        ["state after 2", "state after 4"] if math.isnan(value) else ["state after 2"]
    )


def test_names_are_in_the_order_of_parameters_states_outputs_loss_and_gradients() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Times(math.nan), nn.Linear(WIDTH, WIDTH))
    model[0].bias.data[0] = math.inf
    found = nonfinite(model)
    kinds = [name.partition(" ")[0] for name in found]
    assert kinds == sorted(kinds, key=["parameter", "state", "output", "loss", "gradient"].index)
    assert set(kinds) == {"parameter", "state", "output", "loss", "gradient"}


def test_a_parameter_whose_sum_overflows_is_finite() -> None:
    """The sum of its entries decides unless it is not finite itself."""
    model = tower(2)
    model[0].bias.data.fill_(3e38)
    assert not any(name.startswith("parameter") for name in nonfinite(model))
    model[0].bias.data[1] = -math.inf
    assert "parameter 0.bias" in nonfinite(model)


def test_a_loss_that_overflows_is_listed_without_the_states() -> None:
    found = nonfinite(tower(3), loss=lambda output: output.square().mean() + math.inf)
    assert found == ["loss"]


def test_a_gradient_that_is_not_finite_is_listed_although_the_loss_is_finite() -> None:
    """The derivative of the square root is infinite at zero."""
    model = tower(2)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    found = nonfinite(model, loss=lambda output: output.square().sum().sqrt())
    assert found
    assert all(name.startswith("gradient of ") for name in found)


def test_sparse_gradients_are_examined() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.table, self.layers, self.factor = nn.Embedding(9, WIDTH, sparse=True), tower(3), factor

        def forward(self, ids: Tensor) -> Tensor:
            return self.layers(self.table(ids) * self.factor)

    def found(factor: float) -> list[str]:
        ids = torch.arange(6)
        return list(measure(lambda: Scaled(factor), ids, loss=mean_square, seeds=1, measures=["nonfinite"]).nonfinite)

    assert found(1.0) == []
    assert "gradient of table.weight" in found(math.nan)


def test_a_bound_counts_the_names() -> None:
    model = tower(3)
    model[2].bias.data[0] = math.nan
    with pytest.raises(AssertionError, match=r"parameter 2\.bias"):
        measure(model, vectors, loss=mean_square, seeds=1).check(nonfinite=at_most(0))


def test_an_output_without_a_loss_is_listed() -> None:
    """What is computed behind the last step is no state. Masked scores, of which some are -inf, are no fault."""

    class Ending(nn.Module):
        def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.body, self.end = tower(3), end

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.body(x)
            return {"scores": self.end(y), "features": y}

    def names(end: Callable[[Tensor], Tensor]) -> list[str]:
        inputs = vectors(torch.Generator().manual_seed(0))
        found = measure(Ending(end), inputs, steps="layers", measures=["nonfinite"]).nonfinite
        return [name for name in found if not name.startswith("gradient of ")]

    assert names(lambda y: y * 1) == []
    assert names(lambda y: y + math.nan) == ["output['scores']"]
    assert names(lambda y: y / 0) == ["output['scores']"]
    assert names(lambda y: y.masked_fill(torch.arange(y.shape[-1]) > 0, -math.inf)) == []
