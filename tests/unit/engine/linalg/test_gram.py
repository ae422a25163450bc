"""Gram matrices in chunks, against one plain product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_trainability.engine.linalg import gram
from pytest_trainability.engine.linalg.gram import at_once, gram_matrix, pieces

Parts = list[Tensor]


def rows_in_parts(count: int, seed: int = 0) -> Parts:
    """Return rows of 11 numbers in three parts, one of them complex."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [((2, 3), torch.float32), ((1,), torch.float64), ((2,), torch.complex64)]
    return [torch.randn(count, *shape, generator=generator, dtype=dtype) for shape, dtype in shapes]


def flat(parts: Parts) -> Tensor:
    """Return the same rows as one matrix of real numbers in float64."""
    real = [torch.view_as_real(p) if p.is_complex() else p for p in parts]
    return torch.cat([p.flatten(1).double() for p in real], dim=1)


@pytest.mark.parametrize("numbers", [10_000, 60, 11])
@pytest.mark.parametrize("further", [0, 2])
def test_in_chunks_it_is_the_plain_product(monkeypatch: pytest.MonkeyPatch, numbers: int, further: int) -> None:
    """All seven rows in memory, two at a time, or one at a time. The products are exact to a few roundings of eleven terms."""
    monkeypatch.setattr(gram, "NUMBERS", numbers)
    monkeypatch.setattr(gram, "PIECE", 4)
    parts, more = rows_in_parts(7), rows_in_parts(further, seed=1)
    requested: list[tuple[int, int]] = []

    def rows(first: int, last: int) -> Parts:
        requested.append((first, last))
        return [p[first:last] for p in parts]

    K = gram_matrix(rows, 7, 11, further=more if further else ())
    G = torch.cat([flat(parts), flat(more)])
    assert K.dtype == torch.float64
    torch.testing.assert_close(K, G @ G.T, rtol=1e-14, atol=1e-14)
    assert torch.equal(K, K.T)
    assert max(last - first for first, last in requested) == at_once(7, 11) == {10_000: 7, 60: 2, 11: 1}[numbers]


def test_rows_that_fit_are_computed_once() -> None:
    requested: list[tuple[int, int]] = []

    def rows(first: int, last: int) -> Parts:
        requested.append((first, last))
        return rows_in_parts(last - first)

    gram_matrix(rows, 5, 11)
    assert requested == [(0, 5)]


def test_half_of_what_fits_is_held_at_once() -> None:
    """Two chunks are multiplied with each other."""
    assert at_once(4, gram.NUMBERS // 4) == 4
    assert at_once(5, gram.NUMBERS // 4) == 2
    assert at_once(5, 2 * gram.NUMBERS) == 1
    assert at_once(0, 10) == 0


def test_gradients_in_memory_fill_half_a_gibibyte_in_float32() -> None:
    assert gram.NUMBERS * torch.float32.itemsize == 2**29


def test_pieces_are_the_columns_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "PIECE", 4)
    part = rows_in_parts(3)[0].requires_grad_()
    found = list(pieces(part))
    assert [tuple(p.shape) for p in found] == [(3, 4), (3, 2)]
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in found)
    assert torch.equal(torch.cat(found, dim=1), part.detach().reshape(3, 6).double())


def test_no_more_rows_are_held_than_fit() -> None:
    for count, size in [(8, 10), (8, 2**25), (8, 2**26), (3, 2**30), (1000, 2**20)]:
        step = at_once(count, size)
        assert 1 <= step <= count
        held = count if step == count else 2 * step
        assert step == 1 or held * size <= gram.NUMBERS


def test_a_complex_number_counts_as_two_real_ones() -> None:
    """The length of a gradient of complex parameters counts real and imaginary parts."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(4, 3, 2, generator=generator, dtype=torch.complex128)
    K = gram_matrix(lambda first, last: [G[first:last]], 4, 6)
    truth = (G.flatten(1) @ G.flatten(1).mH).real
    assert torch.allclose(K, truth, rtol=1e-14)


def test_further_rows_come_last() -> None:
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)
    g = torch.randn(1, 3, 2, generator=generator, dtype=torch.float64)
    K = gram_matrix(lambda first, last: [G[first:last]], 4, 2**26, further=[g])
    joined = torch.cat([G, g]).flatten(1)
    assert torch.allclose(K, joined @ joined.T, rtol=1e-14)
