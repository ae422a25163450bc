"""A recurrent cell with gates."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ...cases import WIDTH, Right, sequence, twins
from ...recurrent import Loop


class Gated(nn.Module):
    """A cell whose update gate starts from a bias of 3, and keeps the state, or replaces it as in Cho and others (2014)."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.r, self.z, self.n = (nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))
        nn.init.constant_(self.z.bias, 3.0)
        self.wrong = wrong

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        both = torch.cat([x, h], -1)
        r, z = self.r(both).sigmoid(), self.z(both).sigmoid()
        n = self.n(torch.cat([x, r * h], -1)).tanh()
        return (1 - z) * h + z * n if self.wrong else z * h + (1 - z) * n


def update_gate(wrong: bool) -> nn.Module:
    return Loop(Gated(wrong=wrong))


CASES = (
    twins(
        "update-gate-of-another-convention",
        "rnn",
        update_gate,
        partial(sequence, length=24),
        Right(("cell.z*",), r"\bz\.bias|update gate|\bkeeps\b|replaces", cure=True),
        steps="time",
    ),
)
