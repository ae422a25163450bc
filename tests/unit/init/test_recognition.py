"""Rules that parameters are seen to keep."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.init.places import tensors_of
from pytest_trainability.init.recognition import Seen, eval_rule, recognized, see

I = nn.init  # noqa: E741


class Layer(nn.Module):
    def __init__(self, fill: Callable[[Tensor], object], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        with torch.no_grad():
            fill(self.weight)


def seen(
    fill: Callable[[Tensor], object], *shape: int, dtype: torch.dtype = torch.float32, layers: int = 1
) -> list[Seen]:
    known: dict[str, Seen] = {}
    with torch.random.fork_rng(devices=[]):
        for seed in range(8):
            torch.manual_seed(seed)
            see(tensors_of(nn.ModuleList(Layer(fill, shape, dtype) for _ in range(layers))), known)
    return list(known.values())


CASES: dict[str, tuple[Callable[[Tensor], object], tuple[int, ...]]] = {
    "init.zeros()": (I.zeros_, (7,)),
    "init.ones()": (I.ones_, (7,)),
    "init.constant(0.1)": (lambda t: I.constant_(t, 0.1), (7,)),
    "init.identity()": (I.eye_, (7, 5)),
    "init.dirac()": (I.dirac_, (7, 5, 3)),
    "init.orthogonal()": (I.orthogonal_, (40, 30)),
    "init.orthogonal(gain=1.4)": (lambda t: I.orthogonal_(t, 1.4), (40, 30)),
    "init.normal(std=0.02)": (lambda t: I.normal_(t, std=0.02), (80, 50)),
    "init.normal(std=0.02, mean=1.0)": (lambda t: I.normal_(t, 1.0, 0.02), (80, 50)),
    "init.kaiming_uniform(a=math.sqrt(5))": (lambda t: I.kaiming_uniform_(t, a=math.sqrt(5)), (37, 53)),
    "init.xavier_uniform()": (I.xavier_uniform_, (37, 53)),
    "init.xavier_normal()": (I.xavier_normal_, (37, 93)),
    "init.kaiming_normal(mode='fan_out')": (lambda t: I.kaiming_normal_(t, mode="fan_out"), (37, 93)),
    "init.uniform(-0.1, 0.1)": (lambda t: I.uniform_(t, -0.1, 0.1), (80, 50)),
    "init.uniform(0.0, 1.0)": (I.uniform_, (80, 50)),
    "init.truncated_normal(std=0.5, a=-2 * 0.5, b=2 * 0.5)": (
        lambda t: I.trunc_normal_(t, std=0.5, a=-1.0, b=1.0),
        (80, 50),
    ),
    "init.uniform(-1 / math.sqrt(30), 1 / math.sqrt(30))": (
        lambda t: I.uniform_(t, -1 / math.sqrt(30), 1 / math.sqrt(30)),
        (120, 17),
    ),
}


@pytest.mark.parametrize("text", CASES)
def test_a_usual_rule_is_recognized(text: str) -> None:
    fill, shape = CASES[text]
    assert recognized(seen(fill, *shape))[0] == text


@pytest.mark.parametrize("text", ["init.normal(std=0.02)", "init.uniform(-0.1, 0.1)", "init.constant(0.1)"])
def test_rules_are_recognized_in_bfloat16(text: str) -> None:
    fill, shape = CASES[text]
    assert recognized(seen(fill, *shape, dtype=torch.bfloat16))[0] == text


def test_the_scaling_by_the_number_of_layers() -> None:
    found = recognized(seen(lambda t: I.normal_(t, std=0.02 / math.sqrt(12)), 80, 50, layers=6))
    assert found[0] == "init.normal(std=0.02 / math.sqrt(2 * 6))"


def test_the_gain_of_an_orthogonal_matrix_is_precise() -> None:
    """A check allows a relative error of 1e-4 of ``W Wᵀ``, which is twice that of the gain."""
    (text,) = recognized(seen(lambda t: I.orthogonal_(t, 0.718070), 40, 30))
    assert abs(float(text.split("=")[1].rstrip(")")) - 0.718070) < 2e-5


def test_a_padding_row() -> None:
    def fill(weight: Tensor) -> None:
        I.normal_(weight, std=0.02)
        weight[3] = 0

    assert recognized(seen(fill, 80, 50))[0] == "init.normal(std=0.02).with_zero_row(3)"


def test_unknown_distributions_have_no_rule() -> None:
    assert recognized(seen(lambda t: t.exponential_(), 80, 50)) == []
    assert recognized(seen(lambda t: t.copy_(torch.linspace(0, 1, t.numel()).view_as(t)), 80, 50)) == []


def test_texts_are_rules() -> None:
    assert repr(eval_rule("init.normal(std=1 / math.sqrt(4))")) == "init.normal(std=0.5)"
