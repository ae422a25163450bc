"""Parameter gradients and the RMS of states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_trainability import measure


def test_sparse_gradients_have_norms() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.bag(ids))

    result = measure(Bag, torch.randint(9, (3, 5)), seeds=1, measures=["nonfinite"])
    assert result.gradient_norm["bag.weight"] > 0
    assert not result.nonfinite
