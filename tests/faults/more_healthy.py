"""More healthy models, which the benchmark must not flag: other designs, and other models of `transformers`."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from .cases import CLASSES, WIDTH, Case, images, sequence, text, token_loss, vectors
from .convolutions import CHANNELS, Pooled, conv
from .healthy import from_transformers
from .recurrent import Loop, Reader, rnn
from .towers import Branch, gaussian, shallow, tower, weight_layers
from .transformers import GPT, Attention, FeedForward, Layer, ViT

# Multi-layer perceptrons ------------------------------------------------------------------------------------------


def self_normalizing() -> nn.Module:
    """Build 24 layers of SELU (Klambauer and others, 2017)."""
    return tower(24, nn.SELU, partial(gaussian, 1.0))


class ReZero(nn.Module):
    """A branch with a factor that starts at zero (Bachlechner and others, 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.branch(x)


def rezero() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *(ReZero() for _ in range(10)), nn.Linear(WIDTH, CLASSES))


def normed(norm: type[nn.Module]) -> nn.Module:
    """Build a tower with a normalization in front of each activation."""
    layers = [part for _ in range(5) for part in (nn.Linear(WIDTH, WIDTH), norm(WIDTH), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def parametrized(by: object) -> nn.Module:
    """Build a tanh tower whose weights are normalized, or orthogonal."""
    model = tower(5, nn.Tanh, partial(gaussian, 1.0))
    for layer in weight_layers(model)[:-1]:
        by(layer)  # type: ignore[operator]
    return model


def bottleneck() -> nn.Module:
    """Build layers of 64, 16, 4, 16 and 64 units with PyTorch's weights."""
    widths = (WIDTH, 16, 4, 16, WIDTH)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


class Highway(nn.Module):
    """A gate chooses between a layer and its input (Srivastava and others, 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        open_ = self.gate(x).sigmoid()
        return open_ * torch.relu(self.layer(x)) + (1 - open_) * x


class Coupling(nn.Module):
    """A flow that changes half of its features, at first by nothing (Dinh and others, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.net = nn.Sequential(nn.Linear(half, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=-1)
        log_scale, shift = self.net(kept).chunk(2, dim=-1)
        return torch.cat([changed * log_scale.tanh().exp() + shift, kept], dim=-1)


class Maxout(nn.Module):
    """The largest of two linear functions (Goodfellow and others, 2013)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2 * WIDTH)
        nn.init.normal_(self.layer.weight, std=WIDTH**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).unflatten(-1, (WIDTH, 2)).amax(-1)


def low_rank() -> nn.Module:
    """Build a frozen tower with low-rank products, one factor of which is zero."""
    layers: list[nn.Module] = []
    for _ in range(4):
        down, up = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)
        nn.init.zeros_(up.weight)
        layers += [Added(nn.Linear(WIDTH, WIDTH).requires_grad_(False), nn.Sequential(down, up)), nn.LeakyReLU(0.5)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


class Added(nn.Module):
    """The sum of two modules."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


# Convolutions -----------------------------------------------------------------------------------------------------


def encoder_decoder() -> nn.Module:
    """Build strided convolutions and transposed ones with a skip connection between, as a U-Net."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.SiLU())
            self.up = nn.Sequential(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.GroupNorm(4, 16), nn.SiLU())
            self.out = nn.Conv2d(32, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(self.out(torch.cat([x, self.up(self.down(x))], dim=1)))

    return Pooled(nn.Conv2d(3, 16, 3, padding=1), UNet())


class Dense(nn.Module):
    """Adds channels to those it reads (Huang and others, 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), conv(channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], dim=1)


class Inverted(nn.Module):
    """An inverted residual block (Sandler and others, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        wide = 4 * CHANNELS
        self.branch = nn.Sequential(
            *(conv(CHANNELS, wide, size=1), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(conv(wide, wide, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(conv(wide, CHANNELS, size=1), nn.BatchNorm2d(CHANNELS)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Excited(nn.Module):
    """A residual branch with a gate for each channel (Hu and others, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = conv(CHANNELS, CHANNELS), nn.BatchNorm2d(CHANNELS), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm(self.conv(x))
        return torch.relu(x + branch * self.gate(branch.mean((2, 3))).sigmoid()[:, :, None, None])


class Standardized(nn.Conv2d):
    """A convolution with standardized weights (Qiao and others, 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, math.sqrt(2) * weight, self.bias, padding=1)


def body(block: type[nn.Module], count: int = 6) -> nn.Module:
    return Pooled(conv(3, CHANNELS), nn.Sequential(*(block() for _ in range(count))))


def dense_net() -> nn.Module:
    return Pooled(conv(3, 16), nn.Sequential(*(Dense(16 + 8 * i) for i in range(6))), 64)


def standardized() -> nn.Module:
    layers = [part for _ in range(5) for part in (Standardized(16, 16, 3), nn.ReLU())]
    return Pooled(nn.Sequential(conv(3, CHANNELS), nn.ReLU()), nn.Sequential(*layers))


# Transformers -----------------------------------------------------------------------------------------------------


class Rotary(Attention):
    """Attention with rotary positions (Su and others, 2021)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        half = q.shape[-1] // 2
        angle = torch.arange(q.shape[-2])[:, None] / 10000 ** (torch.arange(half) / half)

        def turned(x: Tensor) -> Tensor:
            a, b = x.chunk(2, dim=-1)
            return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)

        return F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)


class GatedFeedForward(FeedForward):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.silu(self.gate(x)) * self.inner(x))


class ParallelLayer(Layer):
    """Attention and feed-forward network read the same (Wang & Komatsuzaki, 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.norm_1(x)
        return x + self.attention(normalized) + self.feed_forward(self.norm_2(x))


class SandwichLayer(Layer):
    """Norms before and behind each part (Ding and others, 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_3, self.norm_4 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm_3(self.attention(self.norm_1(x)))
        return x + self.norm_4(self.feed_forward(self.norm_2(x)))


class CosineAttention(Attention):
    """Attention of normalized queries and keys with a temperature (Henry and others, 2020)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=5.0)


class Mixer(nn.Module):
    """Mixes positions, then channels (Tolstikhin and others, 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm_1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm_2(x))


class MixerNet(nn.Module):
    """Patches of images through mixers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mixers = nn.Conv2d(3, WIDTH, 2, stride=2), nn.Sequential(*(Mixer() for _ in range(4)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def deep_norm() -> nn.Module:
    """Build a post-LN model after DeepNorm (Wang and others, 2022)."""
    alpha, beta = (2 * 8) ** 0.25, (8 * 8) ** -0.25

    class Deep(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm_1(alpha * x + self.attention(x))
            return self.norm_2(alpha * x + self.feed_forward(x))

    model = GPT(8, layer=Deep)
    for layer in model.layers:
        for part in (layer.attention.out, layer.feed_forward.inner, layer.feed_forward.outer):
            nn.init.xavier_normal_(part.weight, gain=beta)
    return model


def frozen_embedding() -> nn.Module:
    model = GPT(3)
    model.embedding.requires_grad_(False)
    return model


def zero_vit_head() -> nn.Module:
    model = ViT(3)
    nn.init.zeros_(model.head.weight)
    return model


# Recurrence -------------------------------------------------------------------------------------------------------


class MinimalCell(nn.Module):
    """One step of a gated linear recurrence that keeps 0.98 of its state (Feng and others, 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inner = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.gate.bias, 4.0)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        kept = self.gate(x).sigmoid()
        return kept * h + (1 - kept) * self.inner(x)


def gru() -> nn.Module:
    """Build a GRU that keeps its state at first."""
    layer = nn.GRU(WIDTH, WIDTH, batch_first=True)
    nn.init.constant_(layer.bias_ih_l0.data.chunk(3)[1], 2.0)
    return Reader(layer)


_short = partial(sequence, length=20)


def _mlp(name: str, build: object) -> Case:
    return Case(name, "mlp", build, vectors)  # type: ignore[arg-type]


def _cnn(name: str, build: object) -> Case:
    return Case(name, "cnn", build, images)  # type: ignore[arg-type]


def _gpt(name: str, build: object) -> Case:
    return Case(name, "transformer", build, text, token_loss)  # type: ignore[arg-type]


def _rnn(name: str, build: object) -> Case:
    return Case(name, "rnn", build, _short, steps="time")  # type: ignore[arg-type]


MORE_HEALTHY: tuple[Case, ...] = (
    _mlp("SELU, 24 layers", self_normalizing),
    _mlp("ReZero", rezero),
    _mlp("LayerNorm and GELU", partial(normed, nn.LayerNorm)),
    _mlp("RMSNorm and GELU", partial(normed, nn.RMSNorm)),
    _mlp("weight norm", partial(parametrized, weight_norm)),
    _mlp("spectral norm", partial(parametrized, spectral_norm)),
    _mlp("orthogonal parametrization", partial(parametrized, orthogonal)),
    _mlp("bottleneck of four units", bottleneck),
    _mlp("highway layers", lambda: nn.Sequential(*(Highway() for _ in range(10)), nn.Linear(WIDTH, CLASSES))),
    _mlp(
        "coupling layers of a flow", lambda: nn.Sequential(*(Coupling() for _ in range(6)), nn.Linear(WIDTH, CLASSES))
    ),
    _mlp("maxout", lambda: nn.Sequential(*(Maxout() for _ in range(4)), nn.Linear(WIDTH, CLASSES))),
    _mlp("low-rank products on frozen layers", low_rank),
    _mlp("leaky ReLU", partial(shallow, nn.LeakyReLU)),
    _mlp("Hardswish", partial(shallow, nn.Hardswish)),
    _mlp("branches of a tenth", lambda: nn.Sequential(*(Branch(0.1) for _ in range(20)), nn.Linear(WIDTH, CLASSES))),
    _cnn("U-Net", encoder_decoder),
    _cnn("DenseNet", dense_net),
    _cnn("inverted residuals", partial(body, Inverted)),
    _cnn("squeeze and excitation", partial(body, Excited)),
    _cnn("standardized weights", standardized),
    _gpt("rotary positions", lambda: GPT(4, positions=False, layer=partial(Layer, attention=Rotary))),
    _gpt(
        "SwiGLU and RMSNorm",
        lambda: GPT(4, layer=partial(Layer, feed_forward=GatedFeedForward, normalization=nn.RMSNorm)),
    ),
    _gpt("parallel layers", partial(GPT, 4, layer=ParallelLayer)),
    _gpt("sandwich norms", partial(GPT, 4, layer=SandwichLayer)),
    _gpt("cosine attention", partial(GPT, 4, layer=partial(Layer, attention=CosineAttention))),
    _gpt("DeepNorm", deep_norm),
    _gpt("frozen embedding", frozen_embedding),
    Case("MLP-Mixer", "transformer", MixerNet, images),
    Case("ViT with a head of zeros", "transformer", zero_vit_head, images),
    _rnn("minimal gated recurrence", lambda: Loop(MinimalCell())),
    _rnn("GRU that keeps its state", gru),
    _rnn("tanh RNN of gain 0.95", partial(rnn, 0.95)),
    from_transformers("gpt-neox", "transformer"),
    from_transformers("mistral", "transformer"),
    from_transformers("bloom", "transformer"),
    from_transformers("roberta", "transformer"),
    from_transformers("electra", "transformer"),
    from_transformers("deit", "transformer"),
    from_transformers("regnet", "cnn"),
    from_transformers("poolformer", "cnn"),
)
