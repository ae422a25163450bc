"""Recurrent cells: gates in another order, and steps of a state-space model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from ...cases import CLASSES, WIDTH, Right, twins
from ...towers import uniform_xavier

INPUTS = 16
STATES = 8
"""Of a state-space cell, for each of its features."""


def cue(generator: torch.Generator, *, batch: int = 8) -> tuple[Tensor, Tensor]:
    """Draw a class at the first step, and noise on other features at all later ones; unit variance of all that is not zero."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    signal = torch.randn(batch, 40, INPUTS, generator=generator)
    signal[:, 0] = 4 * F.one_hot(labels, INPUTS).float()
    signal[:, 1:, :CLASSES] = 0
    return signal, labels


class Reading(nn.Module):
    """An LSTM's cell step by step; its bias of 2 may be at the gate that is second in TensorFlow's order.

    After pytorch/pytorch#750 and coetaur0/ESIM#2.
    """

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(INPUTS, WIDTH), nn.Linear(WIDTH, CLASSES)
        nn.init.xavier_uniform_(self.cell.weight_ih)
        for gate in self.cell.weight_hh.data.chunk(4):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        nn.init.constant_(self.cell.bias_hh.data.chunk(4)[2 if wrong else 1], 2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), WIDTH)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


class StateSpace(nn.Module):
    """A cell with several states a feature, whose steps follow from the input (Gu & Dao, 2023)."""

    def __init__(self, inputs: int = INPUTS) -> None:
        super().__init__()
        self.inner, self.step = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.maps = nn.Linear(WIDTH, 2 * STATES, bias=False)
        self.log_rate = nn.Parameter(torch.arange(1.0, 1 + STATES).log().repeat(WIDTH, 1))
        self.skip = nn.Parameter(torch.ones(WIDTH))

    def draw_steps(self) -> None:
        """Draw steps between 0.001 and 0.1, and set the bias that softplus maps to them."""
        step = torch.empty(WIDTH).uniform_(math.log(0.001), math.log(0.1)).exp()
        with torch.no_grad():
            self.step.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def terms(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the state is multiplied by, what is added to it, and what it is read with."""
        step = F.softplus(self.step(u))[..., None]
        into, out = self.maps(u)[..., None, :].chunk(2, -1)
        return torch.exp(-step * self.log_rate.exp()), step * into * u[..., None], out

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        u = F.silu(self.inner(x))
        decay, added, out = self.terms(u)
        state = decay * state + added
        return state, (state * out).sum(-1) + self.skip * u


class Selective(nn.Module):
    """Such a cell step by step; a loop over all layers may have overwritten the bias (zymissy/CCViM#6, athms/mad-lab#3)."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.cell, self.norm, self.head = StateSpace(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.cell.draw_steps()
        uniform_xavier(self)
        nn.init.normal_(self.cell.step.weight, std=0.02)
        if not wrong:
            self.cell.draw_steps()

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), WIDTH, STATES)
        for step in x.unbind(1):
            state, y = self.cell(step, state)
        return self.head(self.norm(y))


CASES = (
    twins(
        "forget-bias-of-another-order",
        "rnn",
        Reading,
        cue,
        Right(("cell.bias_hh", "cell", "LSTMCell"), r"forget gates?|bias_hh", cure=True),
        steps="time",
    ),
    twins(
        "steps-of-a-zero-bias",
        "rnn",
        Selective,
        cue,
        Right(("cell.step*",), r"step\.bias|decay|keeps", cure=True),
        steps="time",
    ),
)
