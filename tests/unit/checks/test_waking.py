"""Zeros by design that bounds on gradients and branches exclude."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import at_least, measure
from pytest_trainability.checks.waking import waking_texts, without_zero_initialized
from pytest_trainability.records.estimates import Estimate, Profile

INF = math.inf


def profile(**values: tuple[float, ...]) -> Profile:
    return Profile(
        {n.replace("_", "."): Estimate(mean=v[0], low=v[0], high=v[0], values=v, name=n) for n, v in values.items()}
    )


STEPS = profile(h_0_up=(1.0, 1.0), h_0_down=(0.0, 0.0), h_1_up=(INF, INF), h_1_down=(0.0, 0.0), head=(0.0, 0.0))


def test_parameters_that_wake_are_excluded() -> None:
    value = profile(h_0_up=(0.0, 0.0), h_0_down=(1.0, 1.0), h_1_up=(0.0, 0.0), head=(1.0, 1.0))
    assert list(without_zero_initialized("gradient", value, STEPS)) == ["h.0.down", "h.1.up", "head"]


def test_branches_are_excluded_if_all_their_parameters_wake() -> None:
    """A branch stays if it is dead, so that some of its parameters never get a gradient, or if it has no parameters."""
    value = profile(h_0=(0.0, 0.0), h_1=(0.0, 0.0), h_2=(0.0, 0.0))
    assert list(without_zero_initialized("branch", value, STEPS)) == ["h.1", "h.2"]
    # If all branches are excluded, nothing is left to judge.
    assert not without_zero_initialized("branch", profile(h_0=(0.0, 0.0)), STEPS)
    # A branch stays if it is zero on one seed only, or NaN.
    for values in ((0.0, 0.1), (math.nan, math.nan)):
        assert list(without_zero_initialized("branch", profile(h_0=values), STEPS)) == ["h.0"]


def test_later_calls_of_a_shared_block_are_excluded_with_the_first() -> None:
    """Step ``cell[3]`` is the fourth call of ``cell``, and has its parameters."""
    value = profile(**{"cell": (0.0,), "cell[3]": (0.0,), "other": (1.0,)})
    assert list(without_zero_initialized("branch", value, profile(cell_weight=(1.0,)))) == ["other"]
    assert list(without_zero_initialized("branch", value, profile(cell_weight=(INF,)))) == ["cell", "cell[3]", "other"]


def test_without_waking_steps_everything_is_judged() -> None:
    value = profile(h_0=(0.0, 0.0))
    assert without_zero_initialized("branch", value, None) is value
    assert list(waking_texts({"branch_ratio": ("branch", value)}, None)) == []


def test_excluded_elements_are_named() -> None:
    bounded = {
        "gradient_norm": ("gradient", profile(head=(1.0, 1.0))),
        "branch_ratio": ("branch", profile(h_0=(0.0, 0.0))),
    }
    assert list(waking_texts(bounded, STEPS)) == [
        "1 parameter wakes at optimizer step 1 and is excluded from bounds on gradients and updates: h.0.up",
        "1 branch is zero and wakes later, excluded from the bound on branch_ratio: h.0",
    ]
    assert list(waking_texts({"log_gain": ("", profile(head=(1.0, 1.0)))}, STEPS)) == []
    # If all parameters wake later, all are judged and there is no note.
    assert list(waking_texts({"gradient_norm": ("gradient", profile(h_0_up=(0.0, 0.0)))}, STEPS)) == []


# On real models ----------------------------------------------------------------------------------------------------

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
LOSS = {"loss": F.cross_entropy, "target": torch.tensor([0, 1, 2, 0, 1, 2])}


class Block(nn.Module):
    def __init__(self, *, dead: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        if dead:
            nn.init.constant_(self.up.bias, -100.0)
            nn.init.zeros_(self.down.bias)
        else:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def blocks(*, dead: bool) -> nn.Module:
    return nn.Sequential(Block(dead=False), Block(dead=dead), nn.Linear(8, 3))


@pytest.mark.parametrize("name", ["branch_ratio", "branch_gradient_share", "gradient_snr"])
def test_zero_initialized_branches_need_no_exceptions(name: str) -> None:
    result = measure(lambda: blocks(dead=False), X, steps=Block, seeds=2, **LOSS)
    result.check(**{name: at_least(1e-9)})


@pytest.mark.parametrize("name", ["branch_ratio", "branch_gradient_share"])
def test_a_dead_branch_fails_next_to_one_that_wakes(name: str) -> None:
    result = measure(lambda: blocks(dead=True), X, steps=Block, seeds=2, **LOSS)
    with pytest.raises(AssertionError, match=f"{name} out of bounds") as failure:
        result.check(**{name: at_least(1e-9)})
    text = " ".join(str(failure.value).split())
    assert "1 branch is zero and wakes later" in text and "must be ≥ 1e-09: 1e-09 outside 1 " in text
