"""Classes of gradients: what they mean for the share of untrained parameters, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, TrainabilityFailure, UsageError, at_least, at_most, measure

X = torch.tensor([[1.0]], dtype=torch.float64)


def chain(*factors: float) -> nn.Module:
    """Return ``x · a · b · …``, with scalar factors."""
    layers = [nn.Linear(1, 1, bias=False).double() for _ in factors]
    for layer, factor in zip(layers, factors):
        nn.init.constant_(layer.weight, factor)
    return nn.Sequential(*layers)


def test_an_optimizer_that_cannot_be_made_leaves_the_classes_unknown() -> None:
    """The measurement stands; the classes are refused when they are asked for."""

    def unmade(_: object) -> torch.optim.Optimizer:
        raise ValueError

    result = measure(chain(2.0, 0.0), X, loss=torch.sum, optimizer=unmade)
    assert result.gradient_norm["0.weight"] == 0
    with pytest.raises(UsageError, match="optimizer must be a function"):
        _ = result.gradient_classes


def test_a_frozen_model_is_untrained() -> None:
    """A preset must not hold where there is nothing to train."""
    frozen = chain(2.0).requires_grad_(requires_grad=False)
    result = measure(frozen, X, loss=torch.sum)
    assert list(result.gradient_classes) == ["0.weight: frozen"]
    assert result.untrained_fraction == 1
    with pytest.raises(TrainabilityFailure, match="all parameters are frozen"):
        result.check(untrained_fraction=at_most(0.5))


def test_a_model_of_which_half_is_detached_fails_every_bound_on_gradients() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for number, block in enumerate(self.blocks):
                x = x + (block(x.detach()).detach() if number % 2 else block(x))
            return x

    result = measure(Half, torch.randn(2, 3), loss=torch.sum)
    assert result.untrained_fraction == 0.5
    with pytest.raises(TrainabilityFailure, match=r"(?s)untrained_fraction .*4 of 8 parameters get no gradient"):
        result.check(gradient_norm=at_least(1e-9))


def test_a_model_without_parameters_has_no_untrained_fraction() -> None:
    result = measure(lambda: nn.Sequential(Fixed(), Fixed(), Fixed()), X, steps="*", seeds=1)
    with pytest.raises(InapplicableError, match="untrained_fraction needs parameters"):
        _ = result.untrained_fraction


class Fixed(nn.Module):
    """A step without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_the_repeated_block_counts_by_itself() -> None:
    """All blocks are detached. They hold most of the weights, in less than half of the parameters."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(x).tanh()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(Block() for _ in range(3)))
            self.head = nn.Sequential(*(nn.Linear(n, m) for n, m in ((32, 4), (4, 4), (4, 4))))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.blocks(x).detach())
            return out

    result = measure(Net, torch.randn(4, 32), seeds=1)
    assert len(result.unused_parameters) == 3 and len(result.gradient_norm) == 6
    assert result.untrained_fraction == 1
