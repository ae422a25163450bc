"""Round-off: candidates, the comparison of precisions, and what decides where the other precision is missing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.runs.gradient_terms import Terms
from pytest_trainability.measures.gradients.round_off import _follows_precision, cancels, small_gradients

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
LOSS = {"loss": F.cross_entropy, "target": torch.arange(12) % 4}
EPS = 2.0**-23


def test_candidates_are_small_relative_to_the_largest_gradient() -> None:
    """The square root of 2^-23 is 3.5e-4."""
    parameters = {name: nn.Parameter(torch.ones(1)) for name in "abcd"}
    gradients = {"a": torch.ones(1), "b": torch.full((1,), 3e-4), "c": torch.full((1,), 4e-4), "d": torch.zeros(1)}
    assert small_gradients(parameters, gradients, eps=EPS) == {"b"}
    assert small_gradients(parameters, {**gradients, "d": None}, eps=2.0**-8) == {"b", "c"}
    # No gradient can be felt in a loss of 1e6.
    assert small_gradients(parameters, gradients, eps=EPS, loss=1e6) == {"a", "b", "c"}
    for value in (torch.inf, torch.nan):
        for name in "abd":
            assert small_gradients(parameters, {**gradients, name: torch.tensor([value])}, eps=EPS) == set()
    assert small_gradients({}, {}, eps=EPS) == set()


@pytest.mark.parametrize(
    ("size", "there", "dtype", "follows"),
    [
        # From float32 to float64, round-off shrinks by 2^-29, and half of the digits are 2^-14.5.
        (1.0, 2.0**-14, torch.float64, False),
        (1.0, 2.0**-15, torch.float64, True),
        # From float64 to float32 it grows.
        (1.0, 2.0**14, torch.float32, False),
        (1.0, 2.0**15, torch.float32, True),
        (1.0, torch.inf, torch.float32, False),
        # In the same precision it does not grow.
        (1.0, 2.0, torch.float64, False),
        (1.0, 0.5, torch.float64, True),
    ],
)
def test_round_off_follows_the_precision(size: float, there: float, dtype: torch.dtype, follows: bool) -> None:
    own = torch.float32 if dtype == torch.float64 and abs(there) < 0.1 else torch.float64
    assert _follows_precision(torch.full((1,), size, dtype=own), torch.full((1,), there), dtype) is follows
    assert not _follows_precision(torch.ones(1), None, dtype)


class OnlyFloat32(nn.Module):
    """Does not run in float64, so that only other roundings can be compared."""

    def __init__(self, *, cancels: bool) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.small, self.cancels = nn.Linear(8, 4), cancels

    def forward(self, x: Tensor) -> Any:
        if x.dtype == torch.float64:
            raise NotImplementedError
        x = self.first(x)
        return self.head(self.norm(x).relu() if self.cancels else x.relu()) + 1e-10 * self.small(x)


@pytest.mark.parametrize("cancels", [True, False])
def test_where_the_other_precision_is_missing_other_roundings_decide(cancels: bool) -> None:
    result = measure(lambda: OnlyFloat32(cancels=cancels), X, seeds=1, **LOSS)
    expected = ["first.bias: zero by algebra"] if cancels else []
    found = [line for line in result.gradient_classes if not line.startswith("norm")]
    # The small layer reads the input of the normalization: its 1e-10 is the true gradient of the bias, and is round-off's size.
    assert found == expected


class Squeezed(nn.Module):
    """A gate that reads the mean over space of an instance normalization, which is zero by algebra."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8)
        self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        gate = self.gate(x.mean((2, 3))).sigmoid()
        scores: Tensor = self.head((x * gate[:, :, None, None]).relu().mean((2, 3)))
        return scores


def test_a_weight_that_reads_round_off_has_round_off_as_its_gradient() -> None:
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classes = [*measure(Squeezed, images, seeds=1, **LOSS).gradient_classes]
    assert "gate.weight: zero by algebra, a weight" in classes


def test_a_gradient_without_entries_is_missing_nothing() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.queries, self.head = (nn.Linear(8, n) for n in (8, 8, 4))
            self.none = nn.Parameter(torch.empty(8, 0))

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.queries(x) @ self.keys(x).mT).softmax(-1)
            return torch.cat([self.head(weights @ x), x @ self.none], -1)

    found = measure(Empty, X, seeds=1, **LOSS)
    assert [*found.gradient_classes] == ["keys.bias: zero by algebra"]
    assert [*found.asleep_parameters] == []


def test_a_coarse_type_leaves_open_whether_a_sum_cancels() -> None:
    """In bfloat16, sixteen roundings are an eighth of the terms."""
    sums = (0.03, 0.05)
    assert cancels(Terms(1e-3, sums, 2.0**-8)) is None
    assert cancels(Terms(1e-5, (EPS, 3 * EPS), EPS)) is True


def test_nested_tensors_have_no_shape_and_are_measured() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.first(x)
            ragged = torch.nested.as_nested_tensor([rows[:3], rows[3:]])
            return self.last(torch.nested.to_padded_tensor(self.norm(ragged), 0.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
        found = measure(Ragged, X, seeds=1, loss=lambda y: y.square().sum())
        assert "last.weight" in found.gradient_norm
