"""Print the table of docs/time.md: log gain and memory horizon of recurrent layers at initialization.

python benchmarks/horizons.py
python benchmarks/horizons.py --tiny    # one seed and ten steps: checks that the benchmark runs
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import nn

from pytest_trainability import measure

FEATURES, UNITS, STEPS = 16, 64, 100


def rnn(gain: float) -> nn.Module:
    """Return a layer with orthogonal recurrent weights times a gain, and input weights of variance 1/features."""
    layer = nn.RNN(FEATURES, UNITS, bias=False, batch_first=True)
    nn.init.orthogonal_(layer.weight_hh_l0, gain=gain)
    nn.init.normal_(layer.weight_ih_l0, std=1 / math.sqrt(FEATURES))
    return layer


def lstm(forget: float) -> nn.Module:
    """Return a layer with PyTorch's default weights and the given bias of the forget gate."""
    layer = nn.LSTM(FEATURES, UNITS, batch_first=True)
    nn.init.zeros_(layer.bias_hh_l0)
    nn.init.constant_(layer.bias_ih_l0[UNITS : 2 * UNITS].detach(), forget)
    return layer


MODELS: dict[str, Callable[[], nn.Module]] = {
    "orthogonal RNN, gain 0.7": lambda: rnn(0.7),
    "orthogonal RNN, gain 1": lambda: rnn(1),
    "orthogonal RNN, gain 1.6": lambda: rnn(1.6),
    "`nn.RNN`, default weights": lambda: nn.RNN(FEATURES, UNITS, batch_first=True),
    "`nn.GRU`, default weights": lambda: nn.GRU(FEATURES, UNITS, batch_first=True),
    "`nn.LSTM`, forget bias −5": lambda: lstm(-5),
    "`nn.LSTM`, forget bias 0": lambda: lstm(0),
    "`nn.LSTM`, forget bias 1": lambda: lstm(1),
    "`nn.LSTM`, forget bias 4.6 = ln 99": lambda: lstm(4.6),
}


def main() -> None:
    """Measure all models, eight seeds each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="one seed and ten steps: checks that the benchmark runs")
    tiny = parser.parse_args().tiny
    steps, seeds = (10, 1) if tiny else (STEPS, 8)
    for name, build in MODELS.items():
        found = measure(build, lambda g: torch.randn(8, steps, FEATURES, generator=g), steps="time", seeds=seeds)
        print(f"| {name} | {found.log_gain} | {found.memory_horizon} |")


if __name__ == "__main__":
    main()
