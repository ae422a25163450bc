"""Recurrent networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .cases import CLASSES, WIDTH


class Reader(nn.Module):
    """Reads a sequence, and says what it was at the end."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def rnn(gain: float) -> nn.Module:
    """Build a tanh layer with an orthogonal recurrence times `gain`."""
    layer = nn.RNN(WIDTH, WIDTH, batch_first=True)
    nn.init.orthogonal_(layer.weight_hh_l0, gain=gain)
    nn.init.normal_(layer.weight_ih_l0, std=1 / math.sqrt(WIDTH))
    nn.init.zeros_(layer.bias_ih_l0)
    nn.init.zeros_(layer.bias_hh_l0)
    return Reader(layer)


def lstm(forget_bias: float | None) -> nn.Module:
    """Build an LSTM whose forget gates start from a bias; None leaves the framework's."""
    layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    if forget_bias is not None:
        nn.init.constant_(layer.bias_ih_l0.data.chunk(4)[1], forget_bias)
        nn.init.zeros_(layer.bias_hh_l0.data.chunk(4)[1])
    return Reader(layer)


class Loop(nn.Module):
    """Applies a cell step by step; its state may be detached at each."""

    def __init__(self, cell: nn.Module, *, detached: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.detached = cell, nn.Linear(WIDTH, CLASSES), detached

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), WIDTH)
        for step in x.unbind(1):
            h = self.cell(step, h.detach() if self.detached else h)
        return self.head(h)
