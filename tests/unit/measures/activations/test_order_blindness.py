"""Permutations of positions and of patches."""

from __future__ import annotations

import pytest
import torch

from pytest_trainability.measures.activations.order_blindness import cycle, with_patches_moved


@pytest.mark.parametrize("length", [2, 3, 10])
def test_a_cycle_moves_every_position(length):
    order = cycle(length, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == [*range(length)]
    assert not bool((order == torch.arange(length)).any())


def test_patches_are_moved_as_a_whole():
    images = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    order = torch.tensor([1, 2, 3, 0])
    found = with_patches_moved(images, (2, 3), order)
    blocks = [(0, 0), (0, 3), (2, 0), (2, 3)]
    for place, source in enumerate(order.tolist()):
        (i, j), (k, m) = blocks[place], blocks[source]
        assert torch.equal(found[..., i : i + 2, j : j + 3], images[..., k : k + 2, m : m + 3])
