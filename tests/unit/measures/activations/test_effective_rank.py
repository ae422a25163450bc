"""States as matrices: which dimension counts features, and which tensors are no longer known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.capture.recorder import Edge, edge_of
from pytest_trainability.measures.activations.effective_rank import _Observed


def observed(tensor: Tensor) -> tuple[_Observed, Edge]:
    found, edge = _Observed(), edge_of(tensor)
    found.observe(edge, tensor)
    return found, edge


def leaf(*shape: int, dtype: Any = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True).clone()


@pytest.mark.parametrize(
    ("shape", "channels_last", "expected"),
    [
        ((3, 5), True, (3, 5)),
        ((3, 5), False, (3, 5)),
        ((2, 3, 5), True, (6, 5)),
        ((2, 3, 5), False, (10, 3)),
        ((2, 3, 4, 5), False, (40, 3)),
    ],
)
def test_all_dimensions_except_that_of_features_are_rows(
    shape: tuple[int, ...], channels_last: bool, expected: tuple[int, int]
) -> None:
    tensor = leaf(*shape)
    found, edge = observed(tensor)
    matrix = found.matrix(edge, channels_last=channels_last)
    assert matrix is not None
    assert matrix.shape == expected
    assert torch.equal(
        matrix[0],
        tensor.reshape(-1, expected[1])[0] if channels_last or len(shape) == 2 else tensor[0].flatten(1)[:, 0],
    )


def test_a_complex_feature_is_a_pair_of_real_ones() -> None:
    found, edge = observed(leaf(4, 3, dtype=torch.complex64))
    matrix = found.matrix(edge, channels_last=True)
    assert matrix is not None
    assert matrix.shape == (4, 6)


def test_a_tensor_that_was_changed_in_place_is_not_known() -> None:
    tensor = leaf(4, 3)
    found, edge = observed(tensor)
    tensor.mul_(2)
    assert found.matrix(edge, channels_last=True) is None


def test_vectors_and_unknown_edges_are_no_matrices() -> None:
    found, edge = observed(leaf(4))
    assert found.matrix(edge, channels_last=True) is None
    assert _Observed().matrix(edge, channels_last=True) is None


def test_a_recurrence_has_a_rank_at_each_time_step() -> None:
    inputs = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    result = measure(
        lambda: nn.LSTM(3, 4, batch_first=True), inputs, steps="time", seeds=1, measures=["effective_rank"]
    )
    ranks = list(result.effective_rank.values())[1:]
    assert len(ranks) == 7
    assert all(1 < float(rank) <= 4 for rank in ranks)
