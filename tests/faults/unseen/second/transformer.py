"""Transformers: rotary positions, a mask of the padding, adapters, a state-space model, and patches."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from ...cases import LENGTH, WIDTH, Right, images, text, token_loss, twins
from ...transformers import GPT, Attention, Layer, ViT
from ..first.rnn import STATES, StateSpace
from ..first.transformer import Crossing, Masked, Patches, adapted, large_images, padded_sentences


class Rotating(Attention):
    """Attention with tables of rotary positions, whose layout may not be that of the halves that are rotated.

    GPT-J pairs neighbouring features, GPT-NeoX a feature of the first half with one of the second.
    """

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        size = WIDTH // self.heads
        angle = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
        angle = angle.repeat_interleave(2, -1) if wrong else torch.cat([angle, angle], -1)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rotated(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().mix(self.rotated(q), self.rotated(k), v)


def rotary_tables(wrong: bool) -> nn.Module:
    layer = partial(Layer, attention=partial(Rotating, wrong=wrong), normalization=nn.RMSNorm)
    return GPT(4, positions=False, layer=layer, normalization=nn.RMSNorm)


def adapters_and_head(wrong: bool) -> nn.Module:
    """Build a frozen vision transformer with a head to be trained, and adapters of which one factor or both are zero."""
    model = adapted(Patches(nn.Parameter(0.5 * torch.randn(1, LENGTH, WIDTH)), Crossing), wrong=wrong)
    model.head.requires_grad_(True)
    return model


class Mamba(StateSpace):
    """A gated layer of states, on a whole sequence (Gu & Dao, 2023)."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.norm, self.gate, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.norm(x)
        u = F.silu(self.inner(normalized))
        decay, added, out = self.terms(u)
        state, read = torch.zeros(len(x), WIDTH, STATES), []
        for step in range(x.shape[1]):
            state = decay[:, step] * state + added[:, step]
            read.append((state * out[:, step]).sum(-1))
        return x + self.out((torch.stack(read, 1) + self.skip * u) * F.silu(self.gate(normalized)))


def overwritten_steps(wrong: bool) -> nn.Module:
    """Build a language model that sets all biases to zero; those of the steps should be drawn afterwards."""
    model = GPT(3, positions=False, layer=Mamba)
    if not wrong:
        for layer in model.layers:
            layer.draw_steps()
    return model


class Reshaped(ViT):
    """Reshapes the features of patches to rows, which mixes features and patches, or transposes them."""

    def __init__(self, wrong: bool) -> None:
        super().__init__(4)
        self.wrong = wrong

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x).reshape(len(x), -1, WIDTH) if self.wrong else super().tokens(x)


_text = partial(twins, family="transformer", task=text, loss=token_loss)

CASES = (
    _text(
        "rotary-tables-of-another-layout",
        build=rotary_tables,
        right=Right(
            ("layers.*.attention", "layers.*.attention.cos", "layers.*.attention.sin", "Rotating"),
            r"[Ii]nterleav|repeat|twice in a row|\btables?\b|\b(cos|sin)\b",
        ),
    ),
    twins(
        "padding-only-attended",
        "transformer",
        Masked,
        partial(padded_sentences, least=2),
        Right(
            ("layers.*.self_attn*", "layers.[0-9]", "MultiheadAttention", "TransformerEncoderLayer"),
            r"\bmask|padding|invert",
        ),
    ),
    twins(
        "two-zero-factors-beside-a-head",
        "transformer",
        adapters_and_head,
        large_images,
        Right(
            ("*attention.[qv].[ab]", "*.a", "*.b", "Adapted"),
            r"both (factors|zero|are zero)|factors.*zero|neither",
            cure=True,
        ),
    ),
    _text(
        "steps-overwritten-by-a-loop",
        build=overwritten_steps,
        right=Right(("layers.*.step.bias", "layers.*.step"), r"step\.bias|forgets?\b|decay", cure=True),
    ),
    twins(
        "patches-reshaped",
        "transformer",
        Reshaped,
        partial(images, batch=8),
        Right(("patches*", "Conv2d", "Reshaped"), r"[Rr]eshape|[Tt]ranspose|mixes"),
    ),
)
