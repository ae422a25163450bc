"""Mean cosines between samples and between tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.activations.similarity import Similarities, mean_cosine

F64 = torch.float64


def vectors(*rows: list[float]) -> Tensor:
    return torch.tensor([rows], dtype=F64)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 0.0], [1.0, 0.0]], 1.0),
        ([[1.0, 0.0], [0.0, 2.0]], 0.0),
        ([[1.0, 0.0], [-3.0, 0.0]], -1.0),
        ([[1.0, 0.0], [1.0, 1.0]], math.sqrt(0.5)),
        # Zero vectors do not count.
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], 1.0),
        ([[1.0, 0.0], [0.0, 0.0]], math.nan),
        ([[1.0, 0.0]], math.nan),
        ([[math.inf, 0.0], [1.0, 0.0]], math.nan),
    ],
)
def test_mean_cosine(rows: list[list[float]], expected: float) -> None:
    assert mean_cosine(vectors(*rows)) == pytest.approx(expected, abs=1e-15, nan_ok=True)


def test_pairs_of_all_sets_count_equally() -> None:
    """One pair with a cosine of 1 and three pairs with a cosine of 0."""
    sets = torch.zeros(2, 3, 4, dtype=F64)
    sets[0, :2, 0] = 1.0
    sets[1] = torch.eye(3, 4, dtype=F64)
    assert mean_cosine(sets) == pytest.approx(1 / 4)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_scale_does_not_matter(scale: float) -> None:
    assert mean_cosine(scale * vectors([1.0, 0.0], [1.0, 1.0])) == pytest.approx(math.sqrt(0.5))


def observe(*shape: int, batch: int | None = None) -> Similarities:
    found = Similarities(batch)
    edge: tuple = ("edge", 0)
    found.observe(edge, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    return found


def test_the_first_dimension_counts_samples() -> None:
    found = observe(4, 6)
    assert list(found.between_samples.values()) == [{(4, 0): pytest.approx(found.between_samples["edge", 0][4, 0])}]
    assert found.between_tokens == {}


def test_three_dimensions_may_have_samples_in_the_second() -> None:
    found = observe(5, 4, 6)
    assert set(found.between_samples["edge", 0]) == {(5, 0), (4, 1)}
    assert set(found.between_tokens["edge", 0]) == {0, 1}


def test_a_multiple_of_the_batch_is_divided_into_samples() -> None:
    assert set(observe(8, 6, batch=4).between_samples["edge", 0]) == {(8, 0), (4, 0)}


@pytest.mark.parametrize("shape", [(), (4,), (4, 0)])
def test_tensors_without_vectors_are_ignored(shape: tuple[int, ...]) -> None:
    assert observe(*shape).between_samples == {}


def test_identical_samples_are_similar_in_every_state() -> None:
    x = torch.ones(4, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    found = measure(model, x).sample_similarity
    assert list(found) == ["input", "0", "2"]
    assert [e.mean for e in found.values()] == pytest.approx([1, 1, 1])


def test_tokens_have_their_own_names() -> None:
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    assert list(measure(model, x).sample_similarity) == ["input", "input tokens", "0", "0 tokens", "2", "2 tokens"]
