"""Seeded factories of the systems whose exponents are known, all in float64.

A factory draws its weights from the global generator, which `measure` seeds before it builds: one seed, one draw.
Layers are built in float64 at once; weights drawn in float32 and cast would be orthogonal to 1e-7 only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

F64 = torch.float64

Layer = Callable[[], nn.Module]
"""Draws one step."""

Draw = Callable[[torch.Generator], Tensor]
"""Draws the inputs of one seed."""


def stacked(*layers: Layer) -> Layer:
    """Draw the steps in program order, one module each."""
    return lambda: nn.Sequential(*[layer() for layer in layers])


def repeated(layer: Layer, depth: int) -> Layer:
    """Draw the same kind of step `depth` times."""
    return stacked(*[layer] * depth)


def gaussian(fan_in: int, fan_out: int, *, variance: float, bias_variance: float | None = None) -> nn.Linear:
    """Draw a linear layer with Gaussian entries of this variance; it has a bias only where one is asked for."""
    layer = skip_init(nn.Linear, fan_in, fan_out, bias=bias_variance is not None, dtype=F64)
    nn.init.normal_(layer.weight, std=math.sqrt(variance))
    if bias_variance is not None:
        nn.init.normal_(layer.bias, std=math.sqrt(bias_variance))
    return layer


def orthogonal(width: int, gain: float) -> nn.Linear:
    """Draw a Haar orthogonal matrix times `gain`."""
    layer = skip_init(nn.Linear, width, width, bias=False, dtype=F64)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


def linear(matrix: Tensor) -> nn.Linear:
    """Make a layer of a given matrix."""
    layer = skip_init(nn.Linear, matrix.shape[1], matrix.shape[0], bias=False, dtype=F64)
    layer.weight.data.copy_(matrix)
    return layer


class Elementwise(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """A layer and what follows it, as one step: `J = D W`, so that the last step has its activation, too."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Residual(Block):
    """`x + scale · branch(x)`."""

    def __init__(self, *parts: nn.Module, scale: float = 1.0) -> None:
        super().__init__(*parts)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * super().forward(x)


def normal(*shape: int) -> Draw:
    """Draw standard normal inputs."""
    return lambda generator: torch.randn(shape, generator=generator, dtype=F64)


def on_sphere(batch: int, width: int, *, rms: float = 1.0) -> Draw:
    """Draw inputs whose every sample has exactly this root mean square: the start of a mean-field recursion."""

    def draw(generator: torch.Generator) -> Tensor:
        x = torch.randn((batch, width), generator=generator, dtype=F64)
        return x * (rms / x.square().mean(dim=1, keepdim=True).sqrt())

    return draw


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean over seeds, where the variance has no closed form."""
    return float(torch.tensor(values, dtype=F64).std()) / math.sqrt(len(values))
