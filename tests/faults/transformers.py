"""Small transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from .cases import CLASSES, LENGTH, VOCAB, WIDTH
from .towers import weight_layers

HEADS = 2
STD = 0.02 * math.sqrt(768 / WIDTH)
"""What GPT-2's weights have, at the width of these: they multiply as much."""


class Attention(nn.Module):
    """Causal self-attention, or not causal; `across` is the dimension that a mistaken softmax goes along."""

    def __init__(
        self,
        *,
        causal: bool = True,
        scaled: bool = True,
        across: int | None = None,
        heads: int = HEADS,
        size: int = WIDTH // HEADS,
    ) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * heads * size), nn.Linear(heads * size, WIDTH)
        self.causal, self.scaled, self.across, self.heads = causal, scaled, across, heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(self.mix(q, k, v).transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Average the values of each head, with the weights of the scores."""
        if self.across is None:
            scale = None if self.scaled else 1.0
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=scale)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return scores.softmax(dim=self.across) @ v


class FeedForward(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x)))


Route = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Takes the scores of the experts, and returns the weights and the numbers of the chosen ones."""


def best_two(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Choose two experts, whose weights add up to one."""
    weights, chosen = scores.softmax(dim=-1).topk(2, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), chosen


class Mixture(nn.Module):
    """Feed-forward networks, some of which a router takes per token; `favored` adds to the scores of the first two."""

    def __init__(self, experts: int = 8, *, favored: float = 0.0, route: Route = best_two) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts)
        self.experts = nn.ModuleList(FeedForward() for _ in range(experts))
        self.favored, self.route = favored, route

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(self.router(x))
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, rank = (chosen.flatten(0, 1) == number).nonzero(as_tuple=True)
            if len(token):
                found = expert(x.flatten(0, 1)[token]) * weights.flatten(0, 1)[token, rank, None]
                mixed = mixed.flatten(0, 1).index_add(0, token, found).view_as(x)
        return mixed


class Layer(nn.Module):
    """A transformer's layer, and what may be wrong with it."""

    def __init__(
        self,
        *,
        norm: Literal["pre", "post", "none"] = "pre",
        skip: bool = True,
        layer_scale: float | None = None,
        attention: Callable[[], nn.Module] = Attention,
        feed_forward: Callable[[], nn.Module] = FeedForward,
        normalization: Callable[[int], nn.Module] = nn.LayerNorm,
        gain: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention(), feed_forward()
        self.norm_1, self.norm_2 = (nn.Identity() if norm == "none" else normalization(WIDTH) for _ in range(2))
        self.norm, self.skip = norm, skip
        if layer_scale is not None:
            self.scale_1, self.scale_2 = (nn.Parameter(torch.full((WIDTH,), layer_scale)) for _ in range(2))
        self.layer_scale = layer_scale is not None
        if gain:
            self.gain = nn.Parameter(torch.empty(WIDTH))
        self.has_gain = gain

    def forward(self, x: Tensor) -> Tensor:
        scales = (self.scale_1, self.scale_2) if self.layer_scale else (1.0, 1.0)
        for part, norm, scale in zip((self.attention, self.feed_forward), (self.norm_1, self.norm_2), scales):
            branch = scale * part(x if self.norm == "post" else norm(x))
            x = x + branch if self.skip else branch
            x = norm(x) if self.norm == "post" else x
        return x * (1 + self.gain) if self.has_gain else x


class GPT(nn.Module):
    """A small language model, initialized as GPT-2 is."""

    def __init__(
        self,
        layers: int = 6,
        *,
        tied: bool = False,
        scaled_projections: bool = True,
        embedding_std: float = STD,
        std: float | None = None,
        dropout: float = 0.0,
        positions: bool = True,
        layer: Callable[[], nn.Module] = Layer,
        normalization: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH) if positions else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.norm = normalization(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self._initialize(std or STD, embedding_std, scaled_projections)

    def _initialize(self, std: float, embedding_std: float, scaled_projections: bool) -> None:
        if self.head.weight.is_meta:
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                ends_branch = name.endswith((".out", ".outer")) and scaled_projections
                nn.init.normal_(module.weight, std=std / math.sqrt(2 * len(self.layers)) if ends_branch else std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Mixture):
                nn.init.constant_(module.router.bias[:2], module.favored)
        for embedding in (self.embedding, self.positions):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=embedding_std)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions.weight[: ids.shape[1]]
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def through_meta_device() -> nn.Module:
    """Build without memory, then let every module draw its own weights: what the model itself would draw is lost."""
    with torch.device("meta"):
        model = GPT()
    model.to_empty(device="cpu")
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return model


class ViT(nn.Module):
    """A vision transformer that reads its class token only."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, WIDTH))
        self.layers = nn.ModuleList(Layer(attention=partial(Attention, causal=False)) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        for module in weight_layers(self):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the vectors of the patches, a row each."""
        return self.patches(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class AdaptiveLayer(nn.Module):
    """A layer that a condition scales, shifts and gates; the gates start at zero (Peebles & Xie, 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(causal=False), FeedForward()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        given = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + given[2] * self.attention(self.norm(x) * (1 + given[0]) + given[1])
        return x + given[5] * self.feed_forward(self.norm(x) * (1 + given[3]) + given[4])


class DiT(nn.Module):
    """A conditioned transformer on patches."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.layers = nn.ModuleList(AdaptiveLayer() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, condition)
        return self.head(self.norm(x).mean(dim=1))


class TorchEncoder(nn.Module):
    """PyTorch's own encoder, whose layers are copies of one; redrawn, they differ."""

    def __init__(self, layers: int = 6, *, redrawn: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCAB)
        if redrawn:
            redraw(self.encoder)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.encoder(self.embedding(ids), mask=mask, is_causal=True))


def redraw(module: nn.Module) -> None:
    """Draw as PyTorch's tutorials do."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class Translator(nn.Module):
    """PyTorch's encoder and decoder; a slip of the pen draws the encoder's weights twice."""

    def __init__(self, layers: int = 3, *, slip: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        given: dict[str, Any] = {"batch_first": True, "dropout": 0.0}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, **given), layers, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, **given), layers)
        self.head = nn.Linear(WIDTH, VOCAB)
        redraw(self.encoder)
        redraw(self.encoder if slip else self.decoder)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.encoder(self.embedding(source))
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.decoder(self.embedding(target), memory, tgt_mask=mask, tgt_is_causal=True))
