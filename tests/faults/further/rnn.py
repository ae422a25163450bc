"""Further faults of recurrent networks: gates, decays, recurrent weights, and the axis of time."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from ..cases import WIDTH, Case, Right, sequence, twins
from ..recurrent import Loop, Reader

short = partial(sequence, length=30)


def gru(wrong: bool) -> nn.Module:
    """Build a GRU that keeps its state, or overwrites it, because the sign of the bias is that of another convention."""
    layer = nn.GRU(WIDTH, WIDTH, batch_first=True)
    nn.init.orthogonal_(layer.weight_hh_l0)
    nn.init.constant_(layer.bias_ih_l0.data.chunk(3)[1], -3.0 if wrong else 3.0)
    return Reader(layer)


def wrong_quarter(wrong: bool) -> nn.Module:
    """Build an LSTM with a bias of 4 at the forget gate, or at the gate that is third in PyTorch's order."""
    layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    for gate in layer.weight_hh_l0.data.chunk(4):
        nn.init.orthogonal_(gate)
    nn.init.zeros_(layer.bias_hh_l0)
    nn.init.zeros_(layer.bias_ih_l0)
    nn.init.constant_(layer.bias_ih_l0.data.chunk(4)[0 if wrong else 1], 4.0)
    return Reader(layer)


def recurrent_weights(wrong: bool) -> nn.Module:
    """Build a tanh layer whose recurrent weights have a variance of 1/n, or a standard deviation of 1/n."""
    layer = nn.RNN(WIDTH, WIDTH, batch_first=True)
    nn.init.zeros_(layer.bias_ih_l0)
    nn.init.zeros_(layer.bias_hh_l0)
    nn.init.normal_(layer.weight_hh_l0, std=1 / WIDTH if wrong else WIDTH**-0.5)
    return Reader(layer)


def identity_recurrence(wrong: bool) -> nn.Module:
    """Build a ReLU layer that starts from the identity (Le and others, 2015), or from one and a half times the identity."""
    layer = nn.RNN(WIDTH, WIDTH, nonlinearity="relu", batch_first=True)
    nn.init.normal_(layer.weight_ih_l0, std=0.01)
    nn.init.zeros_(layer.bias_ih_l0)
    nn.init.zeros_(layer.bias_hh_l0)
    with torch.no_grad():
        layer.weight_hh_l0.copy_((1.5 if wrong else 1.0) * torch.eye(WIDTH))
    return Reader(layer)


def time_axis(wrong: bool) -> nn.Module:
    """Build a layer that reads along the second dimension, or along the samples."""
    layer = nn.GRU(WIDTH, WIDTH, batch_first=not wrong)
    return Reader(layer)


def detached_state(wrong: bool) -> nn.Module:
    cell = nn.RNNCell(WIDTH, WIDTH)
    nn.init.orthogonal_(cell.weight_hh)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)
    return Loop(cell, detached=wrong)


class TimeConstant(nn.Module):
    """A leaky unit with a time constant that is learned as its logarithm: in steps, or in hundreds of them by mistake."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.log_tau = nn.Parameter(torch.full((WIDTH,), math.log(tau)))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        kept = torch.exp(-1 / self.log_tau.exp())
        return kept * h + (1 - kept) * torch.tanh(self.inner(x))


def time_constants(wrong: bool) -> nn.Module:
    return Loop(TimeConstant(0.3 if wrong else 30.0))


_WEIGHTS = Right(("layer*", "RNN"), r"recurrent weights|weight_hh", cure=True)

CASES: tuple[Case, ...] = (
    twins(
        "gru-bias-of-the-other-sign",
        "rnn",
        gru,
        short,
        Right(("layer*", "GRU"), r"bias|keeps?", cure=True),
        steps="time",
    ),
    twins(
        "bias-of-another-gate",
        "rnn",
        wrong_quarter,
        partial(sequence, length=40),
        Right(("layer*", "LSTM"), r"forget gates of mean bias", cure=True),
        steps="time",
    ),
    twins("recurrent-std-1-over-n", "rnn", recurrent_weights, short, _WEIGHTS, steps="time"),
    twins("identity-times-1.5", "rnn", identity_recurrence, short, _WEIGHTS, steps="time"),
    twins(
        "samples-for-time",
        "rnn",
        time_axis,
        partial(sequence, length=16),
        Right(("layer*", "GRU"), r"interacting|samples|batch"),
        steps="time",
    ),
    twins(
        "state-detached",
        "rnn",
        detached_state,
        partial(sequence, length=16),
        Right(("cell*", "RNNCell", "Loop"), r"detach|no gradient|recurrence"),
        steps="time",
    ),
    twins(
        "time-constant-in-another-unit",
        "rnn",
        time_constants,
        short,
        Right(("cell*", "TimeConstant"), r"log_tau|keeps|multiplies", cure=True),
        steps="time",
    ),
)
