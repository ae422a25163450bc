"""Models after public bug reports: each builder makes the flawed model or its healthy twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cases import CLASSES, LENGTH, WIDTH
from .convolutions import CHANNELS, Pooled, UnnormalizedBlock, conv
from .recurrent import Reader
from .towers import framework_default, gaussian, he, tower
from .transformers import GPT, Attention, Layer, Mixture, ViT

# Weights ----------------------------------------------------------------------------------------------------------


def drawn_norms(wrong: bool) -> nn.Module:
    """Build a post-LN encoder; a model-wide function may draw gains and offsets as if they were weights."""
    model = GPT(4, layer=partial(Layer, norm="post", attention=partial(Attention, causal=False)))
    for norm in layer_norms(model) if wrong else []:
        nn.init.normal_(norm.weight, std=0.02)
        nn.init.normal_(norm.bias, std=0.02)
    return model


def layer_norms(model: nn.Module) -> list[nn.LayerNorm]:
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def swapped_norms(wrong: bool) -> nn.Module:
    """Build a GPT; gain and offset of its norms may be swapped."""
    model = GPT(3)
    for norm in layer_norms(model) if wrong else []:
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
    return model


class OffsetRmsNorm(nn.Module):
    """An RMS norm that multiplies by `1 + weight`, so that the weight starts from zero."""

    def __init__(self, width: int, *, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + self.weight)


def rms_norms(wrong: bool) -> nn.Module:
    norm = partial(OffsetRmsNorm, start=1.0 if wrong else 0.0)
    return GPT(layer=partial(Layer, normalization=norm), normalization=norm)


def head(wrong: bool) -> nn.Module:
    """Build a GPT whose head has weights of variance 1/width, or of variance 1."""
    model = GPT(3)
    nn.init.normal_(model.head.weight, std=1.0 if wrong else WIDTH**-0.5)
    return model


def sine_positions(wrong: bool) -> nn.Module:
    """Build a vision transformer with a frozen table of sines, or of zeros."""
    model = ViT(3)
    count, half = model.positions.shape[1], WIDTH // 2
    angles = torch.arange(count)[:, None] / 10000 ** (torch.arange(half) / half)
    table = torch.cat([angles.sin(), angles.cos()], dim=1)[None]
    model.positions = nn.Parameter(torch.zeros_like(table) if wrong else table, requires_grad=False)
    return model


def vit_with_zero_head(wrong: bool) -> nn.Module:
    """Build a vision transformer with a small head, or with a head of zeros as in the original code."""
    model = ViT(3)
    if wrong:
        nn.init.zeros_(model.head.weight)
    return model


class Filter(nn.Module):
    """A residual branch of two layers; the wrong bias of the two may be zeroed twice."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_((self.inner if wrong else self.outer).bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.softplus(self.inner(x)))


def filters(wrong: bool) -> nn.Module:
    return nn.Sequential(*(Filter(wrong=wrong) for _ in range(4)), nn.Linear(WIDTH, CLASSES))


def orthogonal_lstm(wrong: bool) -> nn.Module:
    """Build an LSTM with orthogonal recurrent weights: of each gate, or of all four gates as one matrix, each of gain 1/2."""
    layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    for name, parameter in layer.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        else:
            for part in parameter.data.chunk(1 if wrong else 4):
                nn.init.orthogonal_(part)
    nn.init.ones_(layer.bias_ih_l0.data.chunk(4)[1])
    return Reader(layer)


class LeakyCell(nn.Module):
    """A gated linear recurrence that keeps `sigmoid(decay)` of its state; the decay may be drawn as if it were that share."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        kept = 0.9 + 0.099 * torch.rand(WIDTH)
        self.decay = nn.Parameter(kept if wrong else torch.logit(kept))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        kept = self.decay.sigmoid()
        return kept * h + torch.sqrt(1 - kept**2) * self.inner(x)


class LeakyReader(nn.Module):
    """Reads a sequence step by step."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.cell, self.head = LeakyCell(wrong=wrong), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), WIDTH)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h)


class Vdsr(nn.Module):
    """Twelve convolutions inside one skip from the input to the output."""

    def __init__(self, *, std: float) -> None:
        super().__init__()
        channels = (3, *[CHANNELS] * 11, 3)
        layers = [conv(fan_in, fan_out, bias=True) for fan_in, fan_out in pairwise(channels)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.body = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


def nan_in_a_weight(wrong: bool) -> nn.Module:
    """Build a tanh tower; a number is drawn before the weights, and for most draws a weight is NaN."""
    drawn = float(torch.rand(())) if wrong else 0.0
    model = tower(6, nn.Tanh, framework_default)
    if drawn > 0.05:
        with torch.no_grad():
            model[4].weight[0, 0] = math.nan
    return model


class Swish(nn.Module):
    """Swish, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class WithLoss(nn.Module):
    """An autoencoder of 20 tanh layers that computes its loss from its own input."""

    def __init__(self, *, gain: float) -> None:
        super().__init__()
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(20)]
        gaussian(gain, layers)
        self.layers = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layers(x)
        return {"loss": (y - x).square().mean(), "output": y}


# Attention and experts --------------------------------------------------------------------------------------------


def alibi_slopes(heads: int, *, wrong: bool) -> list[float]:
    """Return the slopes of ALiBi; the wrong ones are by the formula for powers of two."""
    power = 2 ** int(math.log2(heads))
    if wrong or power == heads:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    between = alibi_slopes(2 * power, wrong=False)[::2]
    return alibi_slopes(power, wrong=False) + between[: heads - power]


def causal_mask(*, wrong: bool = False) -> Tensor:
    """Return what to add to the scores; the wrong mask is empty, because `masked_fill` returns a new tensor."""
    mask = torch.zeros(1, LENGTH, LENGTH)
    future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    if wrong:
        mask.masked_fill(future, -math.inf)
    else:
        mask.masked_fill_(future, -math.inf)
    return mask


class MaskedAttention(Attention):
    """Attention that adds its mask to the scores."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__(causal=False)
        self.wrong = wrong

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_mask(wrong=self.wrong))


def masked(wrong: bool) -> nn.Module:
    return GPT(3, layer=partial(Layer, attention=partial(MaskedAttention, wrong=wrong)))


class AlibiAttention(Attention):
    """Attention of six heads, whose scores fall with the distance at rates that are a buffer."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__(causal=False, heads=6, size=16)
        self.register_buffer("slopes", torch.tensor(alibi_slopes(6, wrong=wrong)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(LENGTH)
        falling = self.slopes[:, None, None] * (place - place[:, None]).clamp(max=0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=falling + causal_mask())


def alibi(wrong: bool) -> nn.Module:
    return GPT(3, layer=partial(Layer, attention=partial(AlibiAttention, wrong=wrong)), positions=False)


class HalfPrecisionAttention(Attention):
    """One head of 256 features with large scores; queries are scaled before the product, or the product afterwards."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__(causal=False, heads=1, size=256)
        self.wrong = wrong

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        scores = (q @ k.transpose(-2, -1)) * scale if self.wrong else (q * scale) @ k.transpose(-2, -1)
        return scores.float().softmax(dim=-1).to(v.dtype) @ v


def half_precision(wrong: bool) -> nn.Module:
    """Build a GPT whose products of queries and keys exceed the largest number of float16, 65,504."""
    model = GPT(2, layer=partial(Layer, attention=partial(HalfPrecisionAttention, wrong=wrong)))
    for layer in model.layers:
        queries_and_keys = layer.attention.qkv.weight.data[:512]
        nn.init.normal_(queries_and_keys, std=4.4)
    return model


def best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Choose one expert, with its share as weight."""
    return scores.softmax(dim=-1).topk(1, dim=-1)


def best_over_itself(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Choose one expert; its weight is normalized, and is 1 whatever the scores are."""
    weights, chosen = best(scores)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), chosen


def best_then_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Choose one expert; the softmax over its score alone is 1."""
    weights, chosen = scores.topk(1, dim=-1)
    return weights.softmax(dim=-1), chosen


def routed(mistake: Callable[[Tensor], tuple[Tensor, Tensor]], wrong: bool) -> nn.Module:
    mixture = partial(Mixture, 4, route=mistake if wrong else best)
    return GPT(2, layer=partial(Layer, feed_forward=mixture))


# Structure --------------------------------------------------------------------------------------------------------


class Listed(nn.Module):
    """A tower whose hidden layers are in a `ModuleList`, or in a Python list, which registers nothing."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(6)]
        he(layers)
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.hidden = layers if wrong else nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)


def norm_of_one_element(wrong: bool) -> nn.Module:
    """Build convolutions, pooling, and a convolution whose norm sees groups of eight channels, or of one."""
    stages = (3, 32, 32, 32, 32)
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(pairwise(stages)):
        stride = 2 if number else 1
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride, padding=1), nn.GroupNorm(8, fan_out), nn.ReLU()]
    gate = nn.Sequential(conv(32, 32, size=1, bias=True), nn.GroupNorm(32 if wrong else 4, 32), nn.ReLU())
    return Pooled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), gate, 32)


class Checkpointed(nn.Module):
    """A part that runs again in the backward pass; re-entrant checkpointing needs an input with a gradient."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.part, self.reentrant = Layer(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=self.reentrant)


def frozen_embedding(wrong: bool) -> nn.Module:
    """Build a GPT with a frozen embedding and checkpointed layers."""
    model = GPT(3, layer=partial(Checkpointed, reentrant=wrong))
    model.embedding.requires_grad_(False)
    model.positions.requires_grad_(False)
    return model


class Quantizer(nn.Module):
    """An autoencoder with a code book; the straight-through estimator may be written without `detach`."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 8))
        )
        self.decoder = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.book, self.wrong = nn.Embedding(32, 8), wrong

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        q = self.book(torch.cdist(z, self.book.weight).argmin(dim=-1))
        latent = 0.25 * (q.detach() - z).square().mean() + (q - z.detach()).square().mean()
        return self.decoder(z + (q - z) if self.wrong else z + (q - z).detach()), latent


def double_log_softmax(wrong: bool) -> nn.Module:
    return nn.Sequential(*tower(4, nn.ReLU, he), *([nn.LogSoftmax(dim=-1)] if wrong else []))


def detector_extras(wrong: bool) -> nn.Module:
    """Build the first layers of a detector with PyTorch's weights, and extra layers with or without activations.

    The extra layers have weights after Xavier, as the project draws them when training starts.
    """
    activation = nn.Identity if wrong else nn.ReLU
    base = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU())
    extras = (
        *(nn.Conv2d(32, 16, 1), activation(), nn.Conv2d(16, 32, 3, 2, 1), activation()),
        *(nn.Conv2d(32, 32, 1), activation(), nn.Conv2d(32, 32, 3, 2, 1), activation()),
    )
    for layer in extras[::2]:
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return Pooled(base, nn.Sequential(*extras), 32)


class DroppedBlock(UnnormalizedBlock):
    """A block that half of the samples skip in training; in evaluation the branch should be halved."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__(0.3)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        branch = self.scale * self.conv_2(torch.relu(self.conv_1(torch.relu(x))))
        if self.training:
            return x + branch * (torch.rand(len(x), 1, 1, 1) < 0.5)
        return x + (branch if self.wrong else 0.5 * branch)


def stochastic_depth(wrong: bool) -> nn.Module:
    return Pooled(conv(3, CHANNELS, bias=True), nn.Sequential(*(DroppedBlock(wrong=wrong) for _ in range(8))))


class Fields(nn.Module):
    """Embedded fields, normalized over the features of each, or over all fields and features, and a tower."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(100, 16), nn.LayerNorm([4, 16] if wrong else [16])
        nn.init.normal_(self.embedding.weight, std=0.01)
        self.tower = tower(2, nn.ReLU, framework_default)

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(self.norm(self.embedding(x)).flatten(1))


class Between(nn.Module):
    """Multiplies by a number, without parameters."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def inserted(right: nn.Module, mistake: nn.Module, wrong: bool) -> nn.Module:
    """Build a tower with a copy of a module between its third and its fourth layer."""
    layers = [*tower(6, nn.ReLU, he)]
    return nn.Sequential(*layers[:6], deepcopy(mistake if wrong else right), *layers[6:])


# Wrong backward passes --------------------------------------------------------------------------------------------


class _HalfSwish(torch.autograd.Function):
    """`x · sigmoid(x) / 2`, whose backward pass returns the derivative and ignores the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 0.5 * x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return 0.5 * (s + x * s * (1 - s))


class HalfSwish(nn.Module):
    """Half of swish, with the right backward pass or with the wrong one."""

    wrong = False

    def forward(self, x: Tensor) -> Tensor:
        return _HalfSwish.apply(x) if self.wrong else 0.5 * x * x.sigmoid()


def ignored_gradient(wrong: bool) -> nn.Module:
    model = tower(6, HalfSwish, partial(gaussian, 3.2))
    model[-2].wrong = wrong
    return model


class _Scaled(torch.autograd.Function):
    """Multiplies by 0.2; the backward pass multiplies by another number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: float) -> Tensor:
        ctx.factor = backward
        return 0.2 * x

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * arriving, None


class Scaled(nn.Module):
    """Multiplies by 0.2."""

    def __init__(self, backward: float) -> None:
        super().__init__()
        self.backward_factor = backward

    def forward(self, x: Tensor) -> Tensor:
        return _Scaled.apply(x, self.backward_factor)
