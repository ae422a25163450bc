"""Small models and inputs for the tests of structural faults."""

from __future__ import annotations

from collections.abc import Callable

import torch
import zoo
from torch import Tensor, nn

WIDTH, BATCH, LENGTH = 16, 4, 6


Build = Callable[[], nn.Module]


def vectors(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=generator)


def sequences(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, generator=generator)


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, 3, 8, 8, generator=generator)


def tower(
    depth: int = 4, *, activation: Callable[[], nn.Module] = nn.Tanh, without: tuple[int, ...] = (), width: int = WIDTH
) -> nn.Sequential:
    """Build linear layers with activations between them, but for those after some."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers.append(nn.Linear(width, width))
        if number not in without:
            layers.append(activation())
    return nn.Sequential(*layers)


FAMILIES = ["gpt2", "llama", "bert", "t5", "vit", "swin", "convnext", "mixtral", "mamba", "wav2vec2"]


def architecture(name: str) -> zoo.Case:
    return next(case for case in zoo.CASES if case.id == name)
