"""Modules by identity: the same as PyTorch finds, and those that are equal to another one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from pytest_trainability import measure
from pytest_trainability.engine.isolation import preserved_model
from pytest_trainability.engine.modules import ByModule, children_of, modules_behind, modules_of, named_modules_of


class Block(nn.Module):
    """A block that equals every block of the same width, as a dataclass of its settings does."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, width)
        self.register_buffer("calls", torch.zeros(()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and other.width == self.width

    def __hash__(self) -> int:
        return hash(self.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(self.linear(x))


class Different(Block):
    """The same block, without the equality."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def tower(cls: type[Block], depth: int = 5) -> nn.Module:
    return nn.Sequential(*[cls() for _ in range(depth)])


def shared() -> nn.Module:
    one = nn.Linear(2, 2)
    return nn.ModuleDict({"a": one, "b": nn.Sequential(one, nn.ReLU()), "c": nn.ModuleList()})


def cyclic() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].add_module("back", model)
    model[0].register_module("none", None)
    return model


@pytest.mark.parametrize(
    "make", [shared, cyclic, lambda: tower(Different), lambda: nn.TransformerEncoderLayer(8, 2, 8)]
)
def test_modules_are_those_that_pytorch_finds(make: object) -> None:
    model = make()  # type: ignore[operator]
    assert [(path, id(module)) for path, module in named_modules_of(model)] == [
        (path, id(module)) for path, module in model.named_modules()
    ]
    assert list(map(id, children_of(model))) == list(map(id, model.children()))


def test_equal_modules_are_several() -> None:
    model = tower(Block)
    assert len(list(model.modules())) == 3, "PyTorch leaves them out"
    assert len(list(modules_of(model))) == 1 + 5 * 2
    assert len(list(children_of(model))) == 5


def test_values_are_held_by_identity() -> None:
    first, second = Block(), Block()
    values = ByModule([(first, 1)])
    assert first in values and second not in values and "first" not in values
    values[second] = 2
    assert (values[first], values[second], len(values)) == (1, 2, 2)
    assert values.get(Block(), 3) == 3
    assert [module is other for module, other in zip(values, (first, second))] == [True, True]


def test_equal_blocks_are_separate_steps_with_the_same_numbers() -> None:
    """The numbers are those of a tower whose blocks differ only in that they are not equal."""
    x = torch.linspace(-1, 1, 32).reshape(4, 8)
    equal, different = (measure(lambda cls=cls: tower(cls), x, seeds=2) for cls in (Block, Different))
    assert equal.steps.description == "5 × Block"
    assert list(equal.growth_rate) == list(different.growth_rate)
    assert equal.log_gain.values == different.log_gain.values
    assert [e.values for e in equal.growth_rate.values()] == [e.values for e in different.growth_rate.values()]


def test_equal_blocks_are_restored_after_a_run() -> None:
    model = tower(Block)
    with preserved_model(model):
        model(torch.zeros(1, 8))
    assert [float(block.calls) for block in model] == [0.0] * 5


class Counting(nn.Module):
    """A loss that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return y.sum()

    def scaled(self, scale: float, y: torch.Tensor) -> torch.Tensor:
        return scale * self(y)


def applied(loss: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return loss(y)


def test_the_modules_behind_a_function_are_found() -> None:
    first, second = Counting(), Counting()
    assert modules_behind(first) == modules_behind(first.scaled) == modules_behind(first.forward) == [first]
    assert modules_behind(partial(partial(applied, loss=first), second)) in ([first, second], [second, first])
    assert modules_behind(applied) == modules_behind(None) == modules_behind(len) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda loss: loss,
        lambda loss: loss.forward,
        lambda loss: partial(loss.scaled, 2.0),
        lambda loss: partial(applied, loss),
    ],
    ids=["module", "method", "partial method", "bound module"],
)
def test_a_loss_behind_a_function_is_left_as_it_was(function) -> None:
    loss = Counting()
    result = measure(lambda: nn.Sequential(nn.Linear(2, 2)), torch.ones(3, 2), loss=function(loss), seeds=2)
    assert result.loss_drop.mean and loss.calls == 0
