"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .cases import CLASSES, WIDTH


def gaussian(gain: float, layers: Iterable[nn.Module]) -> None:
    """Draw weights of variance `gain² / fan_in`, and zero biases."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def weight_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def constant(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        nn.init.zeros_(layer.bias)


def xavier(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)


def uniform_xavier(model: nn.Module) -> None:
    """Draw the weights of all layers of a model uniformly after Xavier, and set biases to zero."""
    for layer in weight_layers(model):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def framework_default(layers: Iterable[nn.Module]) -> None:
    """Leave the layers as they were built."""


he = partial(gaussian, math.sqrt(2))


def tower(
    depth: int,
    activation: Callable[[], nn.Module] | None,
    initialize: Callable[[Iterable[nn.Module]], None],
    *,
    bias: float = 0.0,
    softmax: bool = False,
) -> nn.Module:
    """Build a plain tower: `depth` hidden layers, and a head."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH)] + ([activation()] if activation is not None else [])
    model = nn.Sequential(*layers)
    initialize(weight_layers(model))
    if bias:
        for layer in weight_layers(model):
            nn.init.constant_(layer.bias, bias)
    return nn.Sequential(*model, nn.Linear(WIDTH, CLASSES), *([nn.Softmax(dim=-1)] if softmax else []))


def perceptron(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Build layers of these widths, with an activation between any two of them and none behind the last."""
    pairs = ((nn.Linear(*sizes), activation()) for sizes in pairwise(widths))
    return nn.Sequential(*[part for pair in pairs for part in pair][:-1])


class Branch(nn.Module):
    """`x + scale · branch(x)`; the branch may be cut off the graph."""

    def __init__(self, scale: float, *, detached: bool = False) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        he([self.inner])
        gaussian(1.0, [self.outer])
        self.scale, self.detached = scale, detached

    def forward(self, x: Tensor) -> Tensor:
        branch = self.scale * self.outer(torch.relu(self.inner(x)))
        return x + (branch.detach() if self.detached else branch)


def residual_tower(*, blocks: int = 24, scale: float | None = None, detached: bool = False) -> nn.Module:
    """Build a residual tower without normalization; its branches share a variance of one by default."""
    scale = 1 / math.sqrt(blocks) if scale is None else scale
    body = [Branch(scale, detached=detached) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *body, nn.Linear(WIDTH, CLASSES))


def shallow(activation: Callable[[], nn.Module] = nn.ReLU, *, dropout: float = 0.0) -> nn.Module:
    """Build a multi-layer perceptron as everybody does, with the framework's own weights."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(WIDTH, WIDTH), activation()] + ([nn.Dropout(dropout)] if dropout else [])
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def zero_head() -> nn.Module:
    """Zero branches and head: all of it wakes within two steps."""
    model = residual_tower(blocks=12)
    for module in model.modules():
        if isinstance(module, Branch):
            nn.init.zeros_(module.outer.weight)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def frozen_backbone() -> nn.Module:
    """Freeze all but the head."""
    model = residual_tower(blocks=12)
    model.requires_grad_(False)
    model[-1].requires_grad_(True)
    return model
