"""Convolutional networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .cases import CLASSES, WIDTH
from .towers import gaussian, he, weight_layers

CHANNELS = 16


class Pooled(nn.Module):
    """A stem, a body, and a head on what is left when positions are averaged."""

    def __init__(self, stem: nn.Module, body: nn.Module, channels: int = CHANNELS) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, body, nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def conv(fan_in: int, fan_out: int, *, size: int = 3, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, padding=size // 2, groups=groups, bias=bias)


class BasicBlock(nn.Module):
    """A block of He and others (2016), without what is taken from it."""

    def __init__(self, *, norm: tuple[bool, bool] = (True, True), skip: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = conv(CHANNELS, CHANNELS), conv(CHANNELS, CHANNELS)
        self.norm_1, self.norm_2 = (nn.BatchNorm2d(CHANNELS) if kept else nn.Identity() for kept in norm)
        self.skip, self.drop = skip, drop
        he([self.conv_1, self.conv_2])

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm_2(self.conv_2(torch.relu(self.norm_1(self.conv_1(x)))))
        if self.drop and self.training:
            # Stochastic depth, sample by sample (Huang and others, 2016).
            kept = torch.rand(len(x), 1, 1, 1) >= self.drop
            branch = branch * kept / (1 - self.drop)
        return torch.relu(x + branch if self.skip else branch)


def resnet(
    *, blocks: int = 20, norm: bool = True, skip: bool = True, missing: int | None = None, drop: float = 0.0
) -> nn.Module:
    """Build a residual network with batch normalization; `missing` is a block that has lost its second one."""
    body = [BasicBlock(norm=(norm, norm and i != missing), skip=skip, drop=drop * i / blocks) for i in range(blocks)]
    stem = nn.Sequential(conv(3, CHANNELS), nn.BatchNorm2d(CHANNELS) if norm else nn.Identity(), nn.ReLU())
    he([stem[0]])
    return Pooled(stem, nn.Sequential(*body))


class UnnormalizedBlock(nn.Module):
    """A pre-activation block whose branch is scaled by a number; Fixup (Zhang and others, 2019) starts from 0."""

    def __init__(self, scale: float, *, fixup: int | None = None) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = conv(CHANNELS, CHANNELS), conv(CHANNELS, CHANNELS)
        he([self.conv_1, self.conv_2])
        self.scale = scale
        if fixup is not None:
            self.biases = nn.Parameter(torch.zeros(4))
            self.multiplier = nn.Parameter(torch.ones(()))
            with torch.no_grad():
                self.conv_1.weight *= fixup**-0.5
                self.conv_2.weight.zero_()
        self.fixup = fixup is not None

    def forward(self, x: Tensor) -> Tensor:
        if self.fixup:
            b = self.biases
            branch = self.conv_2(torch.relu(self.conv_1(x + b[0]) + b[1]) + b[2]) * self.multiplier + b[3]
            return torch.relu(x + branch)
        return x + self.scale * self.conv_2(torch.relu(self.conv_1(torch.relu(x))))


def unnormalized_resnet(*, blocks: int = 8, fixup: bool = False) -> nn.Module:
    """Build a residual network without normalization, with branches of a shared variance or after Fixup."""
    body = [UnnormalizedBlock(1 / math.sqrt(blocks), fixup=blocks if fixup else None) for _ in range(blocks)]
    stem = conv(3, CHANNELS, bias=True)
    gaussian(1.0, [stem])
    model = Pooled(stem, nn.Sequential(*body))
    if fixup:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    return model


def conv_tower(*, depth: int = 12, std: float | None = None) -> nn.Module:
    """Build a plain tower of convolutions, after He or with weights of one standard deviation for all."""
    convolutions = [conv(3 if i == 0 else CHANNELS, CHANNELS, bias=True) for i in range(depth)]
    he(convolutions)
    if std is not None:
        for layer in convolutions:
            nn.init.normal_(layer.weight, std=std)
    layers = [part for layer in convolutions for part in (layer, nn.ReLU())]
    return Pooled(nn.Identity(), nn.Sequential(*layers))


def lenet() -> nn.Module:
    """Build LeNet-5 as everybody does, with the framework's own weights."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)),
    )


def depthwise_tower(*, pairs: int = 8, counts_groups: bool = True) -> nn.Module:
    """Build depthwise and pointwise convolutions in turn, after He with fan-out.

    `nn.init` takes the fan-out of a depthwise convolution for that of a full one, if nobody divides it by the groups.
    """
    layers: list[nn.Module] = [conv(3, CHANNELS), nn.ReLU()]
    for _ in range(pairs):
        layers += [conv(CHANNELS, CHANNELS, groups=CHANNELS), nn.ReLU(), conv(CHANNELS, CHANNELS, size=1), nn.ReLU()]
    model = nn.Sequential(*layers)
    for layer in weight_layers(model):
        assert isinstance(layer, nn.Conv2d)
        fan_out = layer.kernel_size[0] ** 2 * layer.out_channels // (layer.groups if counts_groups else 1)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
    return Pooled(nn.Identity(), model)


class FilmBlock(nn.Module):
    """A residual block that a condition scales and shifts, from the identity on (Perez and others, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(CHANNELS, CHANNELS), nn.BatchNorm2d(CHANNELS, affine=False)
        self.film = nn.Linear(WIDTH, 2 * CHANNELS)
        he([self.conv])
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return x + torch.relu((1 + gain) * self.norm(self.conv(x)) + shift)


class FilmNet(nn.Module):
    """Conditioned convolutions."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.stem = conv(3, CHANNELS)
        self.blocks = nn.ModuleList(FilmBlock() for _ in range(blocks))
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x.mean((2, 3)))
