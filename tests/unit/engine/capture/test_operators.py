"""Names of operators: the same for all variants of an operator of PyTorch, and separate for functions of the user."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from custom_functions import Doubled
from torch import Tensor
from torch.autograd.graph import Node

from pytest_trainability.engine.capture.operators import CONVOLUTIONS, MOVES, TRANSPOSES, operator_name

IMAGE = torch.ones(1, 2, 4, 4, requires_grad=True)


def node(tensor: Tensor) -> Node:
    assert tensor.grad_fn is not None
    return tensor.grad_fn


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x + x, "Add"),
        (lambda x: x + 1.0, "Add"),
        (lambda x: x - x, "Sub"),
        (torch.tanh, "Tanh"),
        (lambda x: F.linear(x, torch.ones(3, 4), torch.ones(3)), "View"),
        (lambda x: F.leaky_relu(2 * x), "LeakyRelu"),
        (lambda x: F.leaky_relu_(2 * x), "LeakyRelu"),
        (lambda x: F.elu_(2 * x), "Elu"),
        (lambda x: x.squeeze(), "Squeeze"),
        (lambda x: x.squeeze(0), "Squeeze"),
        (lambda x: x.squeeze((0, 1)), "Squeeze"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), None),
    ],
)
def test_variants_of_an_operator_have_one_name(function: Callable[[Tensor], Tensor], name: str | None) -> None:
    """Numbered variants, such as those in place, are one operator. No name has a suffix."""
    found = operator_name(node(function(IMAGE)))
    assert name is None or found == name
    assert "Backward" not in found


class Add(Doubled):
    """A function of the user with the name of an operator of PyTorch."""


def test_functions_of_the_user_are_not_operators() -> None:
    assert operator_name(node(Add.apply(IMAGE))) == "AddBackward"


def test_leaves_have_the_name_of_their_node() -> None:
    (leaf, _), *_ = node(IMAGE.exp()).next_functions
    assert leaf is not None and operator_name(leaf) == "AccumulateGrad"


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.permute(3, 2, 1, 0),
        lambda x: x.movedim(0, 1),
        lambda x: x[0, 0].t(),
        lambda x: x.view(-1),
        lambda x: x.reshape(4, 8),
        lambda x: x.transpose(0, 3).reshape(-1),
        lambda x: x.expand(3, 2, 4, 4),
        lambda x: x.unsqueeze(0),
        lambda x: x.to(torch.float64),
        lambda x: x.clone(),
        lambda x: x[:, :1],
        lambda x: x[0],
        lambda x: x.split(1, 1)[0],
        lambda x: x.split([1, 3], 2)[0],
        lambda x: x.unbind(2)[0],
        lambda x: x.narrow(2, 0, 1),
        lambda x: torch.cat([x, x]),
        lambda x: torch.stack([x, x]),
        lambda x: x.as_strided((2, 2), (1, 1)),
    ],
)
def test_moves_keep_all_values(move: Callable[[Tensor], Tensor]) -> None:
    """Each of these nodes, down to the leaf, is of an operator that moves entries."""
    pending = [node(move(IMAGE))]
    names = set()
    while pending:
        current = pending.pop()
        names.add(operator_name(current))
        pending += [producer for producer, _ in current.next_functions if producer is not None]
    assert names - {"AccumulateGrad"} <= MOVES


def test_transposes_and_convolutions_are_recognized() -> None:
    assert operator_name(node(IMAGE.mT)) in TRANSPOSES
    assert operator_name(node(F.conv2d(IMAGE, torch.ones(3, 2, 1, 1)))) in CONVOLUTIONS
    assert operator_name(node(F.conv_transpose2d(IMAGE, torch.ones(2, 3, 1, 1)))) in CONVOLUTIONS
