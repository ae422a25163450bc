"""Further faults of convolutional networks: fans, normalizations, gates, and the scale of images."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..cases import Case, Right, images, twins
from ..convolutions import CHANNELS, BasicBlock, Pooled, conv, conv_tower, depthwise_tower, resnet
from ..towers import gaussian, he


def transposed(wrong: bool) -> nn.Module:
    """Build a decoder of transposed convolutions; He's function takes their outputs for inputs, and ignores the stride."""
    widths = (256, 128, 64, 32, 16)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1)
        # Four of the sixteen entries of a kernel reach each pixel.
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (4 * fan_in)))
        if wrong:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    seed = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Unflatten(1, (256, 1, 1)))
    return Pooled(seed, nn.Sequential(*layers), 16)


def activations(wrong: bool) -> nn.Module:
    """Build eight convolutions with ReLU, or with sigmoid."""
    layers = [conv(3 if i == 0 else CHANNELS, CHANNELS, bias=True) for i in range(8)]
    he(layers)
    activation = nn.Sigmoid if wrong else nn.ReLU
    return Pooled(nn.Identity(), nn.Sequential(*(part for layer in layers for part in (layer, activation()))))


class EvaluatedNorm(nn.BatchNorm2d):
    """Batch normalization that stays in evaluation mode, as before fine-tuning, without statistics that were learned."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(mode=False)


def frozen_norms(wrong: bool) -> nn.Module:
    model = resnet(blocks=12)
    if wrong:
        for module in list(model.modules()):
            if isinstance(module, BasicBlock):
                module.norm_1, module.norm_2 = EvaluatedNorm(CHANNELS), EvaluatedNorm(CHANNELS)
    return model


def normed_tower(*, eps: float = 1e-5, gain: float = 1.0) -> nn.Module:
    """Build six convolutions, each with a normalization."""
    layers: list[nn.Module] = []
    for _ in range(6):
        norm = nn.GroupNorm(4, CHANNELS, eps=eps)
        nn.init.constant_(norm.weight, gain)
        layers += [conv(CHANNELS, CHANNELS), norm, nn.ReLU()]
    he(layer for layer in layers if isinstance(layer, nn.Conv2d))
    stem = conv(3, CHANNELS, bias=True)
    gaussian(1.0, [stem])
    return Pooled(nn.Sequential(stem, nn.ReLU()), nn.Sequential(*layers))


def depthwise(wrong: bool) -> nn.Module:
    """Build depthwise convolutions, whose weights may be drawn as if each saw all channels."""
    model = depthwise_tower()
    for layer in model.modules():
        if wrong and isinstance(layer, nn.Conv2d) and layer.groups > 1:
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (9 * CHANNELS)))
    return model


class Excited(nn.Module):
    """A block whose branch is multiplied by a gate for each channel (Hu and others, 2018)."""

    def __init__(self, *, bias: float) -> None:
        super().__init__()
        self.conv, self.norm = conv(CHANNELS, CHANNELS), nn.BatchNorm2d(CHANNELS)
        self.gate = nn.Linear(CHANNELS, CHANNELS)
        he([self.conv])
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm(self.conv(x))
        gate = nn.functional.hardsigmoid(self.gate(branch.mean((2, 3))))
        return torch.relu(x + branch * gate[:, :, None, None])


def excited(wrong: bool) -> nn.Module:
    """Build gated blocks; a bias of −6 closes a gate that is 0 below −3."""
    return Pooled(conv(3, CHANNELS), nn.Sequential(*(Excited(bias=-6.0 if wrong else 1.0) for _ in range(6))))


class OneFeatureNorm(nn.Module):
    """Normalizes the channels of each pixel, or each number alone where a dimension has been added at the end."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.norm, self.wrong = nn.LayerNorm(1 if wrong else CHANNELS), wrong

    def forward(self, x: Tensor) -> Tensor:
        if self.wrong:
            return self.norm(x[..., None])[..., 0]
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def one_feature(wrong: bool) -> nn.Module:
    layers = [*(conv(CHANNELS, CHANNELS, bias=True) for _ in range(3))]
    he(layers)
    stem = conv(3, CHANNELS, bias=True)
    body = nn.Sequential(layers[0], nn.ReLU(), layers[1], OneFeatureNorm(wrong=wrong), nn.ReLU(), layers[2], nn.ReLU())
    return Pooled(nn.Sequential(stem, nn.ReLU()), body)


class PooledOverBatch(Pooled):
    """Averages positions; a sum over the wrong dimensions averages samples with them."""

    wrong = False

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(self.stem(x))
        if self.wrong:
            return self.head(maps.mean((0, 2, 3), keepdim=True)[0, :, 0, 0].expand(len(x), -1))
        return self.head(maps.mean((2, 3)))


def pooled_over_batch(wrong: bool) -> nn.Module:
    found = conv_tower(depth=4)
    model = PooledOverBatch(found.stem, found.body)
    model.wrong = wrong
    return model


_TOWER = Case("images divided twice, twin", "cnn", partial(conv_tower, depth=6), images)

CASES: tuple[Case, ...] = (
    twins(
        "fan-of-transposed-convolutions",
        "cnn",
        transposed,
        images,
        Right(("body*", "ConvTranspose2d"), r"weights? of rms|body.*\.weight", cure=True),
    ),
    twins(
        "sigmoid-convolutions",
        "cnn",
        activations,
        images,
        Right(("Sigmoid", "body*"), r"slopes of rms 0\.2", cure=True),
    ),
    twins(
        "norms-in-evaluation-mode",
        "cnn",
        frozen_norms,
        images,
        Right(("*norm_1", "*norm_2", "EvaluatedNorm", "body*"), r"[Nn]orm|mode"),
    ),
    twins(
        "epsilon-of-1e5",
        "cnn",
        lambda wrong: normed_tower(eps=1e5 if wrong else 1e-5),
        images,
        Right(("GroupNorm", "body*"), r"eps", cure=True),
    ),
    twins(
        "gains-of-zero-without-skips",
        "cnn",
        lambda wrong: normed_tower(gain=0.0 if wrong else 1.0),
        images,
        Right(("GroupNorm", "body*"), r"is zero|gain", cure=True),
    ),
    twins(
        "depthwise-drawn-as-full",
        "cnn",
        depthwise,
        images,
        Right(("Conv2d", "body*"), r"weights of rms|rms .* over", cure=True),
    ),
    twins("closed-excitation", "cnn", excited, images, Right(("*gate*",), r"gate|dead|slopes are zero", cure=True)),
    twins(
        "norm-of-a-single-feature",
        "cnn",
        one_feature,
        images,
        Right(("body.3*", "OneFeatureNorm", "LayerNorm"), r"one element"),
    ),
    twins(
        "mean-over-samples",
        "cnn",
        pooled_over_batch,
        images,
        Right(("PooledOverBatch", "head*", "output"), r"samples|batch|Mean"),
    ),
    replace(
        _TOWER,
        id="images-divided-twice",
        task=partial(images, scale=1 / 255),
        twin=_TOWER,
        right=Right(("input*", "body.0", "stem"), r"inputs?"),
    ),
)
