"""Parts of a tensor with different entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_trainability.init.parts import ERROR, parts_of
from pytest_trainability.init.statistics import statistics_of


def parts(tensor: Tensor) -> tuple[tuple[float, float], ...]:
    return parts_of(tensor, statistics_of(tensor))


def stacked(*values: float, size: int = 32) -> Tensor:
    return torch.tensor(values).repeat_interleave(size)


def drawn(*stds: float, seed: int = 0, rows: int = 32, columns: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([std * torch.randn(rows, columns, generator=generator) for std in stds])


@pytest.mark.parametrize(
    "values",
    [(0.0, 4.0, 0.0, 0.0), (1.0, 0.0, 2.0, 0.0), (0.0, 3.0, 0.0), (1.0, -1.0), (0.0, 1.0)],
    ids=str,
)
def test_constant_parts_are_found_in_their_order(values: tuple[float, ...]) -> None:
    expected = [(value, pytest.approx(abs(value), rel=1e-12)) for value in values]
    assert list(parts(stacked(*values))) == expected


def test_the_smaller_number_of_parts_is_preferred_where_it_explains_as_much() -> None:
    assert parts(stacked(0.0, 0.0, 5.0, 5.0)) == ((0.0, 0.0), (5.0, 5.0))


def test_drawn_parts_have_the_sizes_that_they_were_drawn_with() -> None:
    # 2048 entries: a root mean square has a standard deviation of 1.6 %.
    assert [rms for _, rms in parts(drawn(1.0, 1.0, 0.2))] == pytest.approx([1.0, 1.0, 0.2], rel=0.06)


def test_parts_that_differ_in_sign_only_are_parts() -> None:
    assert len(parts(drawn(0.1, 0.1) + stacked(1.0, -1.0)[:, None])) == 2


@pytest.mark.parametrize("law", ["normal", "uniform", "heavy"])
def test_entries_that_are_drawn_alike_have_no_parts(law: str) -> None:
    """In a thousand tensors: with an error of 10⁻⁹ each, a millionth of such tests fails by chance."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(1000):
        tensor = torch.randn(48, 8, generator=generator)
        if law == "uniform":
            tensor = torch.rand(48, 8, generator=generator) - 0.5
        if law == "heavy":
            tensor = tensor**3
        assert parts(tensor) == ()
    assert ERROR <= 1e-9


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(8),
        torch.ones(8, 4),
        torch.tensor(1.0),
        torch.empty(0, 4),
        torch.randn(8, 4, 3, 3) * torch.arange(8.0)[:, None, None, None],
        torch.tensor([float("nan"), 1, 2, 3]),
        torch.tensor([0.0, 1, 2, 3, 4]),
    ],
    ids=["zeros", "a constant", "a number", "nothing", "a kernel", "not finite", "five entries"],
)
def test_other_tensors_have_none(tensor: Tensor) -> None:
    assert parts(tensor) == ()


def test_half_precision_is_summed_in_full() -> None:
    (mean, rms), *_ = parts(stacked(300.0, 0.0, size=4096).half())
    assert (mean, rms) == (300.0, 300.0)
