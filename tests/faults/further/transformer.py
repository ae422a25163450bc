"""Further faults of transformers: masks, scales and norms of attention, experts, and what passes between layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from ..cases import (
    LENGTH,
    VOCAB,
    WIDTH,
    BuildTwin,
    Case,
    Right,
    images,
    many_tokens,
    text,
    token_loss,
    translation,
    twins,
)
from ..transformers import GPT, STD, Attention, FeedForward, Layer, Mixture, Translator, ViT

gpt = partial(GPT, 3)
"""Three layers are enough for what is wrong in each of them."""


def with_attention(attention: Callable[[bool], nn.Module]) -> BuildTwin:
    """Return a builder of a GPT whose attention is right or wrong."""
    return lambda wrong: gpt(layer=partial(Layer, attention=partial(attention, wrong)))


def with_layer(layer: Callable[[bool], nn.Module]) -> BuildTwin:
    return lambda wrong: gpt(layer=partial(layer, wrong))


# Attention --------------------------------------------------------------------------------------------------------


class TwiceScaled(Attention):
    """Attention whose queries may be scaled in front of a function that scales them."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q / math.sqrt(q.shape[-1]) if self.wrong else q
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Masked(Attention):
    """Attention with an additive mask that is computed by a function of the length."""

    def __init__(self, mask: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(q.shape[-2]))


def causal(length: int) -> Tensor:
    return torch.full((length, length), -math.inf).triu(1)


def mask_of_ones(length: int) -> Tensor:
    """Return ones for what may be seen, which is meant for multiplication."""
    return torch.ones(length, length).tril()


def late_mask(length: int) -> Tensor:
    """Hide what is more than one position ahead."""
    return torch.full((length, length), -math.inf).triu(2)


class MixedHeads(Attention):
    """Attention whose heads are split by a view; without the transposition each head takes some of the positions."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        if not self.wrong:
            return super().forward(x)
        batch, length, width = x.shape
        q, k, v = (part.reshape(batch, self.heads, length, -1) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(self.mix(q, k, v).reshape(batch, length, width))


class CosineAttention(Attention):
    """Attention with a temperature of 1/30, meant for queries and keys of length 1."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.wrong:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=5.0)


def fused_xavier(wrong: bool) -> nn.Module:
    """Build a GPT after Xavier; the three projections may be drawn as one matrix of three times as many outputs."""
    model = gpt()
    for layer in model.layers:
        for part in layer.attention.qkv.weight.data.chunk(1 if wrong else 3):
            nn.init.xavier_normal_(part)
    return model


# Embeddings and positions -----------------------------------------------------------------------------------------


def first_position(wrong: bool) -> nn.Module:
    """Build a vision transformer; all patches may look up the first position."""
    model = ViT(3)
    nn.init.normal_(model.positions, std=0.3)
    return Repositioned(model) if wrong else Repositioned(model, spread=True)


class Repositioned(nn.Module):
    """A vision transformer with positions that are looked up by number."""

    def __init__(self, model: ViT, *, spread: bool = False) -> None:
        super().__init__()
        self.model, self.spread = model, spread

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        x = model.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([model.token.expand(len(x), -1, -1), x], dim=1)
        numbers = torch.arange(x.shape[1]) if self.spread else torch.zeros(x.shape[1], dtype=torch.long)
        x = x + model.positions[:, numbers]
        for layer in model.layers:
            x = layer(x)
        return model.head(model.norm(x)[:, 0])


class SinePositions(nn.Module):
    """A GPT with sines for positions, and embeddings that are multiplied by √width, or are not."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.model = gpt(positions=False, embedding_std=WIDTH**-0.5)
        self.factor = 1.0 if wrong else math.sqrt(WIDTH)
        angles = torch.arange(LENGTH)[:, None] / 10000 ** (torch.arange(WIDTH // 2) / (WIDTH // 2))
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], dim=1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.factor * self.model.embedding(ids) + self.table
        for layer in self.model.layers:
            x = layer(x)
        return self.model.head(self.model.norm(x))


def untied(wrong: bool) -> nn.Module:
    """Build a GPT with a tied head, or with a copy of the embedding, as after loading a state."""
    model = gpt(tied=True)
    if wrong:
        model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
    return model


def padded(wrong: bool) -> nn.Module:
    """Build a GPT with a padding token, whose row a loop over all weights may have drawn again."""
    model = gpt()
    table = nn.Embedding(VOCAB, WIDTH, padding_idx=0)
    nn.init.normal_(table.weight, std=STD)
    if not wrong:
        nn.init.zeros_(table.weight.data[0])
    model.embedding = table
    return model


# Normalization ----------------------------------------------------------------------------------------------------


class NormalizedSkip(Layer):
    """A layer whose skip connection may start behind the normalization."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        for part, norm in ((self.attention, self.norm_1), (self.feed_forward, self.norm_2)):
            normalized = norm(x)
            x = (normalized if self.wrong else x) + part(normalized)
        return x


def final_norm(wrong: bool) -> nn.Module:
    model = gpt()
    if wrong:
        model.norm = nn.Identity()
    return model


def large_epsilon(wrong: bool) -> nn.Module:
    """Build a GPT with small embeddings; the ε of its norms may be 10 instead of 10⁻⁵."""
    norm = partial(nn.LayerNorm, eps=10.0 if wrong else 1e-5)
    return GPT(3, embedding_std=0.02, layer=partial(Layer, normalization=norm), normalization=norm)


class WideNorm(nn.Module):
    """Divides by the root mean square of the features, or of features and positions."""

    def __init__(self, width: int, *, wrong: bool) -> None:
        super().__init__()
        self.weight, self.wrong = nn.Parameter(torch.ones(width)), wrong

    def forward(self, x: Tensor) -> Tensor:
        dims = (-2, -1) if self.wrong else (-1,)
        return self.weight * x / (x.square().mean(dims, keepdim=True) + 1e-6).sqrt()


class BatchStandardized(nn.Module):
    """A norm by hand, over the last dimension or over the first."""

    def __init__(self, width: int, *, wrong: bool) -> None:
        super().__init__()
        self.weight, self.dim = nn.Parameter(torch.ones(width)), 0 if wrong else -1

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(self.dim, keepdim=True)
        return self.weight * centered / (centered.square().mean(self.dim, keepdim=True) + 1e-5).sqrt()


def with_norm(norm: Callable[..., nn.Module]) -> BuildTwin:
    return lambda wrong: gpt(layer=partial(Layer, normalization=partial(norm, wrong=wrong)))


# Between layers ---------------------------------------------------------------------------------------------------


class RoundedLayer(Layer):
    """A layer whose result may be cast to bfloat16 and back."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x.to(torch.bfloat16).to(x.dtype) if self.wrong else x


class CutLayer(Layer):
    """A layer whose input may have been detached."""

    wrong = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() if self.wrong else x)


def cut_stream(wrong: bool) -> nn.Module:
    model = GPT(6, layer=CutLayer)
    model.layers[4].wrong = wrong
    return model


def zero_twice(wrong: bool) -> nn.Module:
    """Build a GPT with LayerScale of 0.1; scales and last projections may both be zero, so that neither gets a gradient."""
    model = gpt(layer=partial(Layer, layer_scale=0.0 if wrong else 0.1))
    for layer in model.layers if wrong else ():
        nn.init.zeros_(layer.attention.out.weight)
        nn.init.zeros_(layer.feed_forward.outer.weight)
    return model


class MemoryLess(Translator):
    """A translator whose memory may be computed without gradients."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.wrong):
            memory = self.encoder(self.embedding(source))
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.decoder(self.embedding(target), memory, tgt_mask=mask, tgt_is_causal=True))


# Experts ----------------------------------------------------------------------------------------------------------


def weighted(scores: Tensor) -> tuple[Tensor, Tensor]:
    return scores.softmax(dim=-1).topk(2, dim=-1)


def unweighted(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Choose two experts, and forget their weights."""
    chosen = scores.topk(2, dim=-1).indices
    return torch.full(chosen.shape, 0.5), chosen


def over_tokens(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize the scores of each expert over the tokens."""
    return scores.softmax(dim=1).topk(2, dim=-1)


def routed(mistake: Callable[[Tensor], tuple[Tensor, Tensor]]) -> BuildTwin:
    def build(wrong: bool) -> nn.Module:
        mixture = partial(Mixture, 4, route=mistake if wrong else weighted)
        return GPT(2, layer=partial(Layer, feed_forward=mixture))

    return build


class ZeroGated(FeedForward):
    """A gated layer (Shazeer, 2020), whose gate may start from zero weights."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.gate, self.wrong = nn.Linear(WIDTH, 4 * WIDTH, bias=False), wrong

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.silu(self.gate(x)) * self.inner(x))


def zero_gates(wrong: bool) -> nn.Module:
    model = gpt(layer=partial(Layer, feed_forward=partial(ZeroGated, wrong)))
    for layer in model.layers if wrong else ():
        nn.init.zeros_(layer.feed_forward.gate.weight)
        nn.init.zeros_(layer.feed_forward.inner.weight)
    return model


# Losses -----------------------------------------------------------------------------------------------------------


def same_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Compare with the token that was read, and not with the next one."""
    return token_loss(logits[:, 1:], labels[:, :-1])


_ATTENTION = ("*attention*", "layers.*", "Layer")
_GPT = Case("labels that are not shifted, twin", "transformer", gpt, text, token_loss)
_text = partial(twins, family="transformer", task=text, loss=token_loss)

CASES: tuple[Case, ...] = (
    _text(
        "attention-scaled-twice",
        build=with_attention(TwiceScaled),
        right=Right(_ATTENTION, r"scale|\b(Mul|Div)\b|constant"),
    ),
    _text(
        "mask-of-ones",
        build=with_attention(lambda wrong: Masked(mask_of_ones if wrong else causal)),
        right=Right(_ATTENTION, r"mask|leak|constant|later"),
    ),
    _text(
        "mask-one-late",
        build=with_attention(lambda wrong: Masked(late_mask if wrong else causal)),
        right=Right(_ATTENTION, r"mask|leak|constant|later"),
    ),
    _text(
        "heads-of-other-positions",
        build=with_attention(MixedHeads),
        right=Right(_ATTENTION, r"leak|later|[Tt]ranspose|View|Reshape"),
    ),
    _text(
        "cosine-without-lengths",
        build=with_attention(CosineAttention),
        right=Right(_ATTENTION, r"attention_entropy|logits|scores|Norm|Div", cure=True),
    ),
    _text("three-projections-as-one", build=fused_xavier, right=Right(("*qkv*",), r"qkv\.weight", cure=True)),
    twins(
        "one-position-for-all",
        "transformer",
        first_position,
        images,
        Right(("*positions*", "input"), r"position|order|constant"),
    ),
    _text(
        "embedding-not-multiplied",
        build=SinePositions,
        right=Right(("*embedding*", "Embedding"), r"embedding|constant", cure=True),
    ),
    _text("tie-broken", build=untied, right=Right(("head*", "embedding*"), r"head\.weight|tied|shared")),
    _text("padding-row-drawn", build=padded, right=Right(("embedding*",), r"padding row", cure=True)),
    _text(
        "skip-behind-the-norm",
        build=with_layer(NormalizedSkip),
        right=Right(("layers.*", "NormalizedSkip"), r"[Nn]orm|skip"),
    ),
    _text("final-norm-missing", build=final_norm, right=Right(("norm", "norm.*"), r"\bnorm\b", cure=True)),
    _text("epsilon-of-ten", build=large_epsilon, right=Right(("*norm*", "LayerNorm", "layers.*"), r"eps|ε", cure=True)),
    _text(
        "norm-over-positions",
        build=with_norm(WideNorm),
        right=Right(("*norm_*", "WideNorm", "layers.*"), r"leak|later|constant|Mean"),
    ),
    _text(
        "norm-over-the-batch",
        build=with_norm(BatchStandardized),
        right=Right(("*norm_*", "BatchStandardized", "layers.*"), r"interacting|samples|batch"),
    ),
    _text(
        "stream-in-bfloat16",
        build=with_layer(RoundedLayer),
        right=Right(("layers.*", "RoundedLayer"), r"bfloat16|ToCopy|cast"),
    ),
    _text(
        "stream-cut",
        build=cut_stream,
        right=Right(("layers.[0-4]*", "layers.*", "CutLayer"), r"unused|no gradient|untrained|detach"),
    ),
    _text(
        "zero-twice",
        build=zero_twice,
        right=Right(("*scale_*", "*out.weight", "*outer.weight"), r"asleep|never|zero", cure=True),
    ),
    twins(
        "encoder-without-gradients",
        "transformer",
        MemoryLess,
        translation,
        Right(("encoder*",), r"unused|no gradient|untrained"),
        loss=token_loss,
    ),
    _text(
        "experts-without-weights",
        build=routed(unweighted),
        task=many_tokens,
        right=Right(("*router*",), r"unused|no gradient|untrained"),
    ),
    _text(
        "router-over-tokens",
        build=routed(over_tokens),
        task=many_tokens,
        right=Right(("*router*", "*feed_forward*", "layers.*"), r"leak|later|[Ss]oftmax|constant"),
    ),
    _text(
        "gates-and-values-of-zero",
        build=zero_gates,
        right=Right(("*gate*", "*inner*"), r"asleep|never|zero", cure=True),
    ),
    replace(
        _GPT,
        id="labels-not-shifted",
        loss=same_token,
        score=same_token,
        twin=_GPT,
        right=Right(("loss",), r"loss|label", visible=False),
    ),
)
