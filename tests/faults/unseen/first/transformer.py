"""Transformers: adapters, axes and masks of attention, layers that are shared or unused, overwritten initial values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from ...cases import CLASSES, LENGTH, VOCAB, WIDTH, Right, images, text, token_loss, translation, twins
from ...towers import perceptron, uniform_xavier
from ...transformers import GPT, STD, AdaptiveLayer, Attention, FeedForward, Layer
from .cnn import noised, waves

HEADS = 4
large_images = partial(images, batch=8, size=16)


# Tasks ------------------------------------------------------------------------------------------------------------


def padded_sentences(generator: torch.Generator, *, batch: int = 8, least: int = 0) -> tuple[Tensor, Tensor]:
    """Draw tokens that tell their class, with `least` zeros behind, and one more in each sequence than in that before it."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    ids = 1 + 3 * labels[:, None] + torch.randint(3, (batch, LENGTH), generator=generator)
    padding = least + torch.arange(batch)[:, None] % 8
    return ids.masked_fill(torch.arange(LENGTH) >= LENGTH - padding, 0), labels


def padded_text(generator: torch.Generator, *, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Draw text without the token 0, with four zeros behind two of the sequences; the last token has no next one."""
    ids, _ = text(generator, batch=batch)
    ids = ids.clamp_min(1)
    ids[:2, -4:] = 0
    labels = ids.roll(-1, 1)
    labels[:, -1] = 0
    return ids, labels


def noised_patches(generator: torch.Generator, *, batch: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    """Draw noisy patches of gratings; the noise is asked for."""
    clean, _ = images(generator, batch=batch)
    patches = F.unfold(clean, 2, stride=2).transpose(1, 2)
    mixture, time, noise = noised(patches, generator)
    return {"x": mixture, "time": time}, noise


def loss_without_padding(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)


# Attention --------------------------------------------------------------------------------------------------------


class Crossing(nn.Module):
    """Attention with a projection each for queries, keys and values; keys and values may be of another sequence."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        given = (self.q(x), self.k(memory), self.v(memory))
        mixed = self.mix(*(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in given))
        return self.out(mixed.transpose(1, 2).flatten(2))


class Separate(Crossing):
    """The same, causal and with the products written out."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        later = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
        return self.scores(q, k).masked_fill(later, -math.inf).softmax(-1) @ v


class Adapted(nn.Module):
    """A layer and a low-rank product (Hu and others, 2022), of which one factor or both are zero.

    After Guitaricet/relora#18 and NovaSky-AI/SkyRL#852.
    """

    def __init__(self, base: nn.Linear, *, wrong: bool) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.zeros(4, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, 4))
        if not wrong:
            nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * (x @ self.a.T @ self.b.T)


def adapted(model: nn.Module, *, wrong: bool) -> nn.Module:
    """Freeze a model, and adapt the queries and values of its layers."""
    model.requires_grad_(False)
    for layer in model.layers:
        attention = layer.attention
        attention.q, attention.v = Adapted(attention.q, wrong=wrong), Adapted(attention.v, wrong=wrong)
    return model


def adapters(wrong: bool) -> nn.Module:
    return adapted(GPT(4, layer=partial(Layer, attention=Separate)), wrong=wrong)


class Cosine(Separate):
    """Attention to the cosine of queries and keys, times 10; or divided by √d, as if the lengths were left.

    After lucidrains/x-transformers#190 and lucidrains/DALLE2-pytorch#297.
    """

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.factor = (WIDTH // HEADS) ** -0.5 if wrong else 10.0

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return self.factor * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1))


def cosines(wrong: bool) -> nn.Module:
    return GPT(6, layer=partial(Layer, attention=partial(Cosine, wrong=wrong)))


# Vision transformers ----------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """A vision transformer that averages its patches, initialized as GPT-2 is."""

    def __init__(self, positions: Tensor, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, WIDTH, 4, stride=4), positions
        model = GPT(6, layer=partial(Layer, attention=attention))
        self.layers, self.norm, self.head = model.layers, model.norm, nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(self.head.weight, std=STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def softmax_across(dimension: int) -> Callable[[], nn.Module]:
    return partial(Attention, causal=False, heads=HEADS, size=WIDTH // HEADS, across=dimension)


def over_queries(wrong: bool) -> nn.Module:
    """Build a vision transformer with a softmax over the keys, or over the queries.

    After labmlai/annotated_deep_learning_paper_implementations#146 and nerminnuraydogan/vision-transformer#1.
    """
    return Patches(nn.Parameter(0.02 * torch.randn(1, LENGTH, WIDTH)), softmax_across(-2 if wrong else -1))


def product_of_parameter(wrong: bool) -> nn.Module:
    """Build a vision transformer whose positions are a parameter, or a product of one, which nobody trains.

    After pytorch/pytorch#17484, pytorch/pytorch#20089 and pytorch/pytorch#39062.
    """
    drawn = torch.randn(1, LENGTH, WIDTH)
    return Patches(nn.Parameter(drawn) * 0.02 if wrong else nn.Parameter(drawn * 0.02), softmax_across(-1))


# Layers -----------------------------------------------------------------------------------------------------------


def repeated(wrong: bool) -> nn.Module:
    """Build a GPT of six layers, or of one in a list that is multiplied (IDEA-Research/DAB-DETR#17, habla-liaa/encodecmae#3)."""
    model = GPT()
    if wrong:
        model.layers = nn.ModuleList([model.layers[0]] * 6)
    return model


class GatedByItself(FeedForward):
    """A gated layer, which may take the gate for the value as well (Rishit-dagli/GLU#2, Nijikadesu/breakdown-minimind#3)."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.gate, self.inner = (nn.Linear(WIDTH, 160, bias=False) for _ in range(2))
        self.outer = nn.Linear(160, WIDTH, bias=False)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return self.outer(F.silu(gate) * (gate if self.wrong else self.inner(x)))


def unused_values(wrong: bool) -> nn.Module:
    layer = partial(Layer, feed_forward=partial(GatedByItself, wrong=wrong), normalization=nn.RMSNorm)
    return GPT(6, layer=layer, normalization=nn.RMSNorm)


class HalfNorm(nn.Module):
    """Divides by the root mean square, in float32 or in float16, where an ε of 1e-8 is zero.

    After pytorch/pytorch#32137 and kornia/kornia#3966.
    """

    def __init__(self, width: int, *, wrong: bool) -> None:
        super().__init__()
        self.weight, self.wrong = nn.Parameter(torch.ones(width)), wrong

    def forward(self, x: Tensor) -> Tensor:
        h, eps = (x.half(), 1e-8) if self.wrong else (x, 1e-6)
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * self.weight


def half_eps(wrong: bool) -> nn.Module:
    """Build a GPT whose padding is a row of zeros."""
    norm = partial(HalfNorm, wrong=wrong)
    model = GPT(4, positions=False, layer=partial(Layer, normalization=norm), normalization=norm)
    nn.init.zeros_(model.embedding.weight.data[0])
    model.embedding.padding_idx = 0
    return model


class Masked(nn.Module):
    """PyTorch's layers with a mask of the padding, or of everything else.

    After pytorch/pytorch#24816, pytorch/pytorch#64525 and facebookresearch/detr#96.
    """

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.embedding = nn.Embedding(VOCAB, WIDTH, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(1, LENGTH, WIDTH))
        build: Callable[[], nn.Module] = partial(
            nn.TransformerEncoderLayer, WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(build() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(self.embedding.weight, std=STD)
        nn.init.zeros_(self.embedding.weight.data[0])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=ids != 0 if self.wrong else ids == 0)
        kept = (ids != 0).float()[..., None]
        return self.head((self.norm(x) * kept).sum(1) / kept.sum(1))


class Diffusion(nn.Module):
    """A transformer whose modulations start from zero, unless a later loop over all layers overwrites them.

    After huggingface/transformers#42418 and nvidia-cosmos/cosmos-predict2.5#15.
    """

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(12, WIDTH), nn.Parameter(0.02 * torch.randn(1, LENGTH, WIDTH))
        self.time = perceptron(32, WIDTH, WIDTH, activation=nn.SiLU)
        self.layers = nn.ModuleList(AdaptiveLayer() for _ in range(6))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12)
        uniform_xavier(self)
        if not wrong:
            for layer in self.layers:
                nn.init.zeros_(layer.modulation[1].weight)
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, condition = self.embed(x) + self.positions, self.time(waves(time))
        for layer in self.layers:
            x = layer(x, condition)
        return self.head(self.norm(x))


# Encoder and decoder ----------------------------------------------------------------------------------------------


class Encoding(nn.Module):
    """A layer that sees its own sequence."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(WIDTH), Crossing(causal=causal)
        self.norm_2, self.feed_forward = nn.LayerNorm(WIDTH), FeedForward()

    def cross(self, x: Tensor, memory: Tensor | None) -> Tensor:
        """Return what is known of another sequence; nothing by default."""
        return x

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = self.cross(x + self.attention(self.norm_1(x)), memory)
        return x + self.feed_forward(self.norm_2(x))


class Decoding(Encoding):
    """A layer that sees the encoder's sequence as well, or its own once more."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__(causal=True)
        self.wrong = wrong
        self.norm_cross, self.crossing = nn.LayerNorm(WIDTH), Crossing(causal=wrong)

    def cross(self, x: Tensor, memory: Tensor | None) -> Tensor:
        normalized = self.norm_cross(x)
        assert memory is not None
        return x + self.crossing(normalized, normalized if self.wrong else memory)


class Bilingual(nn.Module):
    """An encoder and a decoder, which may ignore it (keitakurita/Practical_NLP_in_PyTorch#1)."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.encoder = nn.ModuleList(Encoding() for _ in range(3))
        self.decoder = nn.ModuleList(Decoding(wrong=wrong) for _ in range(3))
        self.norm_encoder, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        uniform_xavier(self.encoder)
        uniform_xavier(self.decoder)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        for table in (self.embedding, self.positions, self.head):
            nn.init.normal_(table.weight, std=STD)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.embedding(source) + self.positions.weight[: source.shape[1]]
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.norm_encoder(memory)
        x = self.embedding(target) + self.positions.weight[: target.shape[1]]
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(self.norm(x))


_text = partial(twins, family="transformer", task=text, loss=token_loss)
_ATTENTION = ("layers.*.attention*", "Attention")

CASES = (
    _text(
        "adapters-of-two-zeros",
        build=adapters,
        right=Right(("*attention.[qv].[ab]", "*.a", "*.b"), r"both factors of a low-rank|both zero", cure=True),
    ),
    twins(
        "softmax-over-queries",
        "transformer",
        over_queries,
        large_images,
        Right(_ATTENTION, r"[Ss]oftmax"),
    ),
    _text(
        "list-times-six",
        build=repeated,
        right=Right(("layers.[1-5]*",), r"shared|same module|one module|\bgone\b|are now"),
    ),
    twins(
        "modulation-overwritten",
        "transformer",
        Diffusion,
        noised_patches,
        Right(("*modulation*", "head*"), r"modulation.*(zero|rms)|overwritten", cure=True),
        loss=F.mse_loss,
    ),
    twins(
        "padding-mask-inverted",
        "transformer",
        Masked,
        padded_sentences,
        Right(("layers.*.self_attn*", "MultiheadAttention"), r"mask|not finite|NaN"),
    ),
    _text(
        "gate-for-value",
        build=unused_values,
        right=Right(("*feed_forward.inner*",), r"no gradient|unused|never used"),
    ),
    twins(
        "encoder-ignored",
        "transformer",
        Bilingual,
        translation,
        Right(("encoder*", "decoder.*.crossing*", "norm_encoder*"), r"no gradient|unused|not at all"),
        loss=token_loss,
    ),
    twins(
        "product-of-a-parameter",
        "transformer",
        product_of_parameter,
        large_images,
        Right(("positions",), r"no [Pp]arameter|not registered|(product|computed|result) .*Parameter|gone.*positions"),
    ),
    twins(
        "epsilon-of-zero-in-float16",
        "transformer",
        half_eps,
        padded_text,
        Right(("layers.*.norm_1*", "HalfNorm"), r"not finite|NaN|float16"),
        loss=loss_without_padding,
    ),
    _text("cosines-divided", build=cosines, right=Right((*_ATTENTION, "Cosine"), r"factor|scale|\bMul\b|constant")),
)
