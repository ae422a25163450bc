"""Names of the operations that the signal passes, by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from custom_functions import Doubled
from torch import Tensor, nn

from pytest_trainability.engine.capture.chain import chain_of, graph_of
from pytest_trainability.engine.capture.operations import AFTER, BEFORE, operations_by_step
from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.steps import StepChoice, choose_steps

WIDTH = 4


def operations(model: nn.Module, *inputs: Tensor, steps: StepChoice = "auto") -> dict[str, tuple[str, ...]]:
    captured = capture(model, inputs, {})
    graph = graph_of(captured)
    return operations_by_step(captured, graph, chain_of(captured, graph, choose_steps(captured, graph, steps)))


class Step(nn.Module):
    """A residual step that reads no parameter of its own in its skip."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x)) * self.layer.bias.exp()


class Net(nn.Module):
    """Ids, a stem, three steps, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.scale = nn.Embedding(10, WIDTH), nn.Parameter(torch.ones(WIDTH))
        self.steps = nn.ModuleList([Step(), Step(), Step()])

    def forward(self, ids: Tensor) -> Tensor:
        x = (self.embedding(ids) * self.scale.exp()).relu()
        for step in self.steps:
            x = step(x)
        return x.mean(1).softmax(-1)


def test_operations_are_listed_in_order_from_the_inputs_to_the_output() -> None:
    """What is computed from parameters alone, here the exponentials, is no signal."""
    step = ("Addmm", "Tanh", "Mul", "Add")
    found = operations(Net(), torch.arange(6).reshape(2, 3), steps=Step)
    assert list(found.items()) == [
        (BEFORE, ("Embedding", "Mul", "Relu")),
        *((f"steps.{i}", step) for i in range(3)),
        (AFTER, ("Mean", "Softmax[-1]")),
    ]


def test_without_operations_around_the_steps_there_are_only_steps() -> None:
    found = operations(nn.Sequential(Step(), nn.Identity(), Step()), torch.ones(2, WIDTH), steps=Step)
    assert list(found) == ["0", "2"]


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.reshape(-1).view(2, WIDTH),
        lambda x: x.unsqueeze(0).squeeze(0).clone(),
        lambda x: x[None].expand(3, 2, WIDTH).reshape(6, WIDTH),
        lambda x: x.view_as(x),
    ],
)
def test_layouts_are_left_out(layout) -> None:
    class Laid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return layout(x).tanh()

    assert operations(nn.Sequential(Laid()), torch.ones(2, WIDTH), steps=Laid)["0"] == ("Tanh",)


def test_hooks_of_modules_are_no_operations() -> None:
    model = nn.Sequential(Step(), Step())
    for module in model.modules():
        module.register_full_backward_hook(lambda module, gradients, outputs: None)
    assert operations(model, torch.ones(2, WIDTH), steps=Step) == operations(
        nn.Sequential(Step(), Step()), torch.ones(2, WIDTH), steps=Step
    )


def test_names_of_custom_functions_have_no_signs_that_separate_names() -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return type("Odd, (×)", (Doubled,), {}).apply(x)

    assert operations(nn.Sequential(Calls()), torch.ones(2, WIDTH), steps=Calls)["0"] == ("Odd_____Backward",)


def test_kernels_of_one_operation_have_one_name() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    found = operations(nn.Sequential(Attention()), torch.ones(1, 2, 3, WIDTH), steps=Attention)
    assert found["0"] == ("ScaledDotProductAttention",)
    layers = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.GroupNorm(1, 1))
    assert list(operations(layers, torch.randn(2, 1, 3, 3)).values()) == [("Convolution",), ("BatchNorm", "GroupNorm")]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.softmax(-1), "Softmax[-1]"),
        (lambda x: x.softmax(1), "Softmax[-2]"),
        (lambda x: x.softmax(-3), "Softmax[-3]"),
        (lambda x: F.log_softmax(x, 2), "LogSoftmax[-1]"),
        (lambda x: x.cumsum(0), "Cumsum[-3]"),
        (lambda x: x.mean(1, keepdim=True).expand_as(x), "Mean"),
    ],
)
def test_the_axis_of_an_operation_that_keeps_all_sizes_is_counted_from_the_last(function: Any, name: str) -> None:
    class Along(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](function(self.layers[0](x)))

    found = operations(Along(), torch.randn(WIDTH, WIDTH, WIDTH))
    assert name in [operation for names in found.values() for operation in names]
