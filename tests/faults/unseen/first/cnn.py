"""Convolutions: a denoising network with a control branch, a decoder, a residual network, and squeeze-and-excitation."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from ...cases import WIDTH, Build, Right, images, twins
from ...convolutions import BasicBlock, Pooled, resnet
from ...towers import perceptron

CHANNELS = 32
STEPS = 1000
"""Of the noise of a denoising model."""


def zero(layer: nn.Module) -> nn.Module:
    """Set weights and biases of a layer to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def noised(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mix what is given with noise, the more the later; return the mixture, the times and the noise."""
    time = torch.randint(STEPS, (len(clean),), generator=generator).float()
    angle = (0.5 * math.pi * time / STEPS).reshape(-1, *(1 for _ in clean.shape[1:]))
    noise = torch.randn(clean.shape, generator=generator)
    return angle.cos() * clean + angle.sin() * noise, time, noise


def waves(time: Tensor) -> Tensor:
    """Return 16 sines and 16 cosines of the time."""
    phase = time[:, None] * torch.exp(-math.log(10000) * torch.arange(16) / 16)
    return torch.cat([phase.sin(), phase.cos()], 1)


def controlled(generator: torch.Generator, *, batch: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    """Draw noisy gratings, with the gratings as control; the noise is asked for."""
    clean, _ = images(generator, batch=batch, size=16)
    mixture, time, noise = noised(clean, generator)
    return {"x": mixture, "time": time, "control": clean}, noise


def rendered(generator: torch.Generator, *, batch: int = 8) -> tuple[Tensor, Tensor]:
    """Draw vectors, and coarse images that are linear in them."""
    code = torch.randn(batch, 48, generator=generator)
    return code, F.interpolate(code.unflatten(1, (3, 4, 4)), scale_factor=8.0)


class Residual(nn.Module):
    """A block with an embedding of the time, and a branch that may start from zero."""

    def __init__(self, *, zero_branch: bool) -> None:
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(8, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.embedding = nn.Linear(WIDTH, CHANNELS)
        self.norm_2, self.conv_2 = nn.GroupNorm(8, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        if zero_branch:
            zero(self.conv_2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        inner = self.conv_1(F.silu(self.norm_1(x))) + self.embedding(F.silu(time))[:, :, None, None]
        return x + self.conv_2(F.silu(self.norm_2(inner)))


class Control(nn.Module):
    """Encodes the control; its last layer may be zero, as the one behind it is."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.projection = nn.Conv2d(CHANNELS, CHANNELS, 1)
        if wrong:
            zero(self.projection)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(F.silu(self.conv_2(F.silu(self.conv_1(x)))))


class Waves(nn.Module):
    """Sines and cosines of a multiple of the time."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, time: Tensor) -> Tensor:
        return waves(self.factor * time)


class Denoiser(nn.Module):
    """A U-Net that predicts the noise of an image; a convolution of zeros adds a control branch (Zhang and others, 2023)."""

    def __init__(self, *, factor: float = 1.0, control: Build | None = None, zero_branches: bool = True) -> None:
        super().__init__()
        self.time = nn.Sequential(Waves(factor), *perceptron(32, WIDTH, WIDTH, activation=nn.SiLU))
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.controlled = control is not None
        if control is not None:
            self.control, self.zero_conv = control(), zero(nn.Conv2d(CHANNELS, CHANNELS, 1))
        self.fine, self.coarse, self.last = (Residual(zero_branch=zero_branches) for _ in range(3))
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)
        self.up = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.merge = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.norm, self.head = nn.GroupNorm(8, CHANNELS), nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, control: Tensor | None = None) -> Tensor:
        embedded, stem = self.time(time), self.stem(x)
        fine = self.fine(stem + self.zero_conv(self.control(control)) if self.controlled else stem, embedded)
        coarse = self.up(F.interpolate(self.coarse(self.down(fine), embedded), scale_factor=2))
        x = self.last(self.merge(torch.cat([coarse, fine], 1)), embedded)
        return self.head(F.silu(self.norm(x)))


def two_zeros(wrong: bool) -> nn.Module:
    """Build a denoiser whose control branch ends with one convolution of zeros, or with two (lllyasviel/ControlNet#510)."""
    return Denoiser(control=partial(Control, wrong=wrong))


class Decoder(nn.Module):
    """Transposed convolutions of a vector; He's function takes outputs for inputs, and the whole kernel for what reaches a pixel.

    After Lasagne/Lasagne#858 and ClementPinard/FlowNetPytorch#19.
    """

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(4):
            layer = nn.ConvTranspose2d(48, 48, 4, 1 if i == 0 else 2, 0 if i == 0 else 1)
            # One entry of a kernel reaches each pixel of the first, four of sixteen those of the others.
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (48 if i == 0 else 4 * 48)))
            if wrong:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(48, 3, 3, padding=1))

    def forward(self, code: Tensor) -> Tensor:
        return self.net(code[:, :, None, None])


def zero_gains(wrong: bool) -> nn.Module:
    """Build a residual network whose branches end with gains of zero, or have no others.

    After numenta/nupic.research#158 and tensorpack/tensorpack#420.
    """
    model = resnet(blocks=5)
    for block in model.modules():
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.norm_2.weight)
            if wrong:
                nn.init.zeros_(block.norm_1.weight)
    return model


class Excitation(nn.Module):
    """Multiplies channels by a hard sigmoid, which may lack its shift.

    After PaddlePaddle/PaddleSeg#1332 and open-mmlab/mmpretrain#193.
    """

    def __init__(self, channels: int, *, wrong: bool) -> None:
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        score = self.expand(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * F.relu6(score if self.wrong else score + 3) / 6


class Inverted(nn.Module):
    """A depthwise convolution between an expansion and a projection, with an excitation."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        wide = 2 * CHANNELS
        self.expand, self.norm_1 = nn.Conv2d(CHANNELS, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norm_2, self.excitation = nn.BatchNorm2d(wide), Excitation(wide, wrong=wrong)
        self.project, self.norm_3 = nn.Conv2d(wide, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.hardswish(self.norm_2(self.depthwise(F.hardswish(self.norm_1(self.expand(x))))))
        return x + self.norm_3(self.project(self.excitation(wide)))


def mobile(wrong: bool) -> nn.Module:
    """Build a network of four of these blocks."""
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.Hardswish())
    return Pooled(stem, nn.Sequential(*(Inverted(wrong=wrong) for _ in range(4))), CHANNELS)


CASES = (
    twins(
        "two-zero-convolutions",
        "cnn",
        two_zeros,
        controlled,
        Right(
            ("control.projection*", "zero_conv*"),
            r"zero.*(neither|both|never)|(neither|both|never).*zero",
            cure=True,
        ),
        loss=F.mse_loss,
    ),
    twins(
        "decoder-of-another-fan",
        "cnn",
        Decoder,
        rendered,
        Right(("net.[0246]*", "net.*", "ConvTranspose2d"), r"weights? of rms|fan", cure=True),
        loss=F.mse_loss,
    ),
    twins(
        "all-gains-of-zero",
        "cnn",
        zero_gains,
        images,
        Right(("*norm_1.weight", "*norm_1"), r"norm_1.*zero|zero.*norm_1", cure=True),
    ),
    twins(
        "hard-sigmoid-without-shift",
        "cnn",
        mobile,
        partial(images, batch=8, size=16),
        Right(("*excitation*", "Excitation"), r"\bAdd\b|gate|closed|dead|exactly zero"),
    ),
)
