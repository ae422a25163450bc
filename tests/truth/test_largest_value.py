"""The largest result of every operation: models of a few operations whose results are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import at_most, measure
from pytest_trainability.engine.runs.allocation import allocated_as_nan


class Identity(nn.Module):
    """A linear layer with the identity as its weight, times a constant."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Between(nn.Module):
    """An operation between two layers that keep their inputs."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.operation = Identity(2), Identity(2), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)))


INPUTS = torch.tensor([[3.0, -4.0]])


def largest(model, inputs=INPUTS, **options) -> dict[str, float]:
    found = measure(model, inputs, seeds=1, measures=["largest_value"], **options).largest_value
    return {name: float(value) for name, value in found.items()}


def mask(value: float) -> Callable[[Tensor], Tensor]:
    """Return a softmax over scores of which the first is masked by a number."""
    return lambda h: (h * 10).masked_fill(torch.tensor([True, False]), value).softmax(-1)


OPERATIONS = {
    "none": (lambda h: h, {"first": 4.0, "last": 4.0}),
    "cube and root": (lambda h: (h**3).sign() * h, {"first": 4.0, "Between": 64.0, "last": 16.0 - 12.0}),
    "in place": (lambda h: h.clone().mul_(100.0).div_(100.0), {"first": 4.0, "Between": 400.0, "last": 4.0}),
    "moved entries": (lambda h: torch.cat([h, h])[:1].flip(-1).view(1, 2), {"first": 4.0, "last": 4.0}),
    "masked by -inf": (mask(-math.inf), {"first": 4.0, "Between": 40.0, "last": 1.0}),
    "masked by the smallest number": (
        mask(torch.finfo(torch.float32).min),
        {"first": 4.0, "Between": 40.0, "last": 1.0},
    ),
    "masked by -1e9": (mask(-1e9), {"first": 4.0, "Between": 40.0, "last": 1.0}),
    "complex": (lambda h: (h * 8j).abs(), {"first": 4.0, "Between": 32.0, "last": 32.0}),
    "both signs large": (lambda h: h * 1e9 / 1e9, {"first": 4.0, "Between": 4e9, "last": 4.0}),
    "overflow": (lambda h: torch.sigmoid(h.abs() * 1e38 * 10) * h, {"first": 4.0, "Between": math.inf, "last": 4.0}),
    "not a number": (lambda h: torch.where(h > 0, h, h / 0 * 0), {"first": 4.0, "Between": math.nan, "last": math.nan}),
}


@pytest.mark.parametrize(("operation", "expected"), OPERATIONS.values(), ids=OPERATIONS)
def test_results_of_operations_between_modules_count(operation, expected):
    # All numbers are exact in float32, up to the rounding of a quotient.
    assert largest(lambda: Between(operation)) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_memory_that_was_only_allocated_does_not_count():
    with allocated_as_nan():
        found = largest(lambda: Between(lambda h: torch.empty(1, 2).copy_(h) + torch.empty_like(h).zero_()))
    assert found == {"first": 4.0, "Between": 4.0, "last": 4.0}


def test_several_calls_of_a_module_have_their_largest_result():
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = Identity(2, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.twice(x)
            return x

    assert largest(Repeated) == {"twice": 32.0}


class Attention(nn.Module):
    """Attention over two tokens e_1 and e_2 times a number s: with q = k = x, the scores are s² on the diagonal."""

    def __init__(self, size: float, *, scaled_first: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = Identity(2, size), Identity(2, size), Identity(2)
        self.scaled_first = scaled_first

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = (q / 1024) @ k.mT if self.scaled_first else (q @ k.mT) / 1024
        return scores.softmax(-1) @ v + x


@pytest.mark.parametrize(("scaled_first", "expected"), [(True, 512.0), (False, 512.0 * 1024)])
def test_scores_that_are_scaled_too_late_leave_the_range_of_float16(scaled_first, expected):
    """512² · 2 = 524288 does not fit into float16, whichever module is asked; scaled before, the largest value is 512."""
    tokens = torch.eye(2)[None]
    size = math.sqrt(512.0 * 1024)

    def build() -> nn.Module:
        return nn.Sequential(Attention(size, scaled_first=scaled_first), Identity(2))

    result = measure(build, tokens, seeds=1, measures=["largest_value"])
    value = float(result.largest_value["0"])
    assert value == pytest.approx(expected, rel=1e-6)
    if scaled_first:
        result.check(largest_value=at_most(65504))
    else:
        with pytest.raises(AssertionError, match=r"largest_value(?s:.*)\b0\b"):
            result.check(largest_value=at_most(65504))
        half = measure(build, tokens, seeds=1, dtype="float16", measures=["largest_value"])
        assert not math.isfinite(float(half.largest_value["0"]))


def test_the_inner_operations_of_multi_head_attention_are_seen():
    """With weights of the identity times 40 and two tokens, the scores (40 e_i)·(40 e_j)/√2 reach 1600/√2."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(2, 1, bias=False, batch_first=True)
            with torch.no_grad():
                self.attention.in_proj_weight.copy_(torch.cat([40 * torch.eye(2), 40 * torch.eye(2), torch.eye(2)]))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x)[0]

    found = largest(lambda: nn.Sequential(Block(), Block(), Block()), torch.eye(2)[None])
    assert found["0.attention"] == pytest.approx(1600 / math.sqrt(2), rel=1e-6)


def test_the_observation_changes_nothing():
    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)), torch.randn(3, 4)
    settings = {"seeds": 1, "target": torch.zeros(3, 4), "loss": F.mse_loss}
    alone = measure(model, inputs, measures=["log_gain"], **settings)
    together = measure(model, inputs, measures=["log_gain", "largest_value"], **settings)
    assert alone.log_gain == together.log_gain
