"""Idle normalizations: several dimensions and groups, low precision, and what is overwritten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure

X = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0))


class Through(nn.Module):
    """A layer behind a normalization, and a function of it."""

    def __init__(self, norm: nn.Module, function: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.norm, self.function, self.head = norm, function, nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.norm(x)))


def listed(norm: Callable[[], nn.Module], x: Tensor = X, **settings: object) -> list[str]:
    return [*measure(lambda: Through(norm()), x, seeds=1, **settings).idle_normalizations]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "norm",
    [
        lambda eps: nn.LayerNorm(10, eps=eps),
        lambda eps: nn.LayerNorm((6, 10), eps=eps),
        lambda eps: nn.GroupNorm(3, 6, eps=eps),
        lambda eps: nn.BatchNorm1d(6, eps=eps),
        lambda eps: nn.InstanceNorm1d(6, eps=eps),
        lambda eps: nn.LayerNorm(10, eps=eps, elementwise_affine=False),
    ],
    ids=["the last dimension", "two dimensions", "groups", "a batch", "instances", "without gains"],
)
def test_each_division_into_rows_has_its_own_variance(norm: Callable[[float], nn.Module]) -> None:
    (line,) = listed(lambda: norm(100.0))
    assert line.startswith("norm (") and ": ε of 100 is added to a variance of " in line
    assert 0.5 < float(line.rpartition(" ")[2]) < 1.3
    assert listed(lambda: norm(1e-5)) == []


def test_half_precision_and_a_small_variance_are_judged_by_their_ratio() -> None:
    assert listed(lambda: nn.LayerNorm(10), dtype="bfloat16") == []
    assert listed(lambda: nn.LayerNorm(10), 0.02 * X) == []
    assert len(listed(lambda: nn.LayerNorm(10, eps=0.1), 0.1 * X)) == 1


def test_most_rows_decide() -> None:
    """A few tokens that are nearly constant, such as padding, do not make a normalization idle."""
    scales = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-4, 1e-4])[:, None]
    assert listed(lambda: nn.LayerNorm(10), scales * X) == []


def test_an_input_that_is_changed_in_place_is_left_out() -> None:
    """Autograd refuses to read it, and the backward pass as well: the normalization is that of a result without a gradient."""

    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(10, eps=100.0), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head.bias.mean() * x
            z: Tensor = self.norm(y)
            y.mul_(2)
            return self.head(y) + 0 * z.detach().mean()

    assert [*measure(Overwritten, X, seeds=1).idle_normalizations] == []
