"""Seeded faults that are visible at initialization, each beside its healthy twin, and healthy models that must not be flagged.

The faults come from published taxonomies (Humbatova 2020, DeepCrime, TheDeepChecker, AUTOTRAINER) or from issues of real
projects. A fault and its twin come from the same builder, and differ in one argument. What they are fed can be learned, so
that it can be told whether a fault trains worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  its own name
import zoo
from torch import Tensor, nn

from pytest_trainability.checks.baselines import compare
from pytest_trainability.checks.bounds import Bound
from pytest_trainability.checks.presets import find_preset
from pytest_trainability.errors import TrainabilityFailure
from pytest_trainability.measurement import Context, Measurement, measure_in
from pytest_trainability.measures import MEASURES, recorded_along
from pytest_trainability.records.reports import BaselineChange, VerdictRecord

RECORDED = tuple(m.name for m in recorded_along("depth"))

Build = Callable[[], nn.Module]
Task = Callable[[torch.Generator], tuple[Any, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Family = Literal["mlp", "cnn", "transformer", "rnn"]

WIDTH = 64
CLASSES = 10
VOCAB = 32
LENGTH = 16


@dataclass(frozen=True)
class Case:
    """One model with what it is fed.

    `task` draws inputs and labels; models that compute their loss take the labels with their inputs, and have no `loss`.
    """

    id: str
    family: Family
    build: Build
    task: Task
    loss: Loss | None = F.cross_entropy
    steps: str = "auto"
    number: int | None = None
    """In the list of faults; None for a healthy model."""
    twin: Case | None = None
    """The same without the fault; None for a healthy model."""
    caught_by: tuple[str, ...] = ()
    """Measures that ought to catch it; "baseline" stands for a comparison with the twin."""
    score: Loss | None = None
    """What training is judged by, where it is not the loss; in nats."""
    rounded: torch.dtype | None = None
    """Type that gradients pass through in training."""
    dtype: str | None = None
    """Type that the model is measured in; None for the type of its weights."""
    train: bool = True
    """Whether the model is measured in training mode."""

    def inputs(self, generator: torch.Generator) -> Any:
        """Draw what the model is fed."""
        return self.task(generator)[0]

    def labels(self, generator: torch.Generator) -> Tensor:
        """Draw the labels of what the generator has drawn from its seed on."""
        return self.task(torch.Generator().manual_seed(generator.initial_seed()))[1]

    @property
    def arguments(self) -> dict[str, Any]:
        """What `measure` takes beside the seeds."""
        given: dict[str, Any] = {"inputs": self.inputs, "steps": self.steps, "name": self.id}
        given |= {"dtype": self.dtype, "train": self.train}
        return given | ({"loss": self.loss, "target": self.labels} if self.loss is not None else {})


# Tasks ------------------------------------------------------------------------------------------------------------


def _fixed(*shape: int) -> Tensor:
    """Draw what defines a task, the same for all seeds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(12345 + shape[0]))


def vectors(
    generator: torch.Generator, *, batch: int = 16, scale: float = 1.0, shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw four clusters a class, in a space of eight dimensions that no hyperplanes divide; about unit variance."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    which = torch.randint(4, (batch,), generator=generator)
    centers = _fixed(CLASSES * 4, 8) @ _fixed(8, WIDTH) / math.sqrt(8)
    noise = torch.randn(batch, WIDTH, generator=generator)
    standard = math.sqrt(0.9) * centers[4 * labels + which] + math.sqrt(0.1) * noise
    return scale * standard + shift, labels


def images(
    generator: torch.Generator, *, batch: int = 12, size: int = 8, scale: float = 1.0, shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw gratings of ten wave vectors, of any phase, in noise; unit variance."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    angle = math.pi * (labels % 5) / 5
    rate = 0.8 + 0.9 * (labels // 5)
    phase = 2 * math.pi * torch.rand(batch, generator=generator)
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    wave = torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y
    grating = math.sqrt(2) * torch.sin(rate[:, None, None] * wave + phase[:, None, None])
    noise = torch.randn(batch, 3, size, size, generator=generator)
    standard = math.sqrt(0.8) * grating[:, None] + math.sqrt(0.2) * noise
    return scale * standard + shift, labels


bytes_of_vectors = partial(vectors, scale=64.0, shift=127.5)
bytes_of_images = partial(images, scale=64.0, shift=127.5)


def _walk(generator: torch.Generator, batch: int, length: int) -> Tensor:
    """Draw walks on a ring of tokens whose step is drawn once each: the next token follows from the two before it."""
    start, stride = torch.randint(VOCAB, (2, batch, 1), generator=generator)
    stride = 1 + stride % 4
    return (start + stride * torch.arange(length)) % VOCAB


def text(generator: torch.Generator, *, batch: int = 4) -> tuple[Tensor, Tensor]:
    walk = _walk(generator, batch, LENGTH + 1)
    return walk[:, :-1], walk[:, 1:]


def labelled_text(generator: torch.Generator, *, batch: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the same for models that shift their labels and compute their loss."""
    walk = _walk(generator, batch, LENGTH)
    return {"input_ids": walk, "labels": walk}, walk


def translation(generator: torch.Generator, *, batch: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    """Draw a walk as source, and the walk backward as target."""
    source = _walk(generator, batch, LENGTH)
    target = source.flip(1)
    return {"source": source, "target": target[:, :-1]}, target[:, 1:]


def sequence(generator: torch.Generator, *, batch: int = 8, length: int = 100) -> tuple[Tensor, Tensor]:
    """Draw a vector of some class, then noise only; the label is asked for at the end."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    signal = torch.randn(batch, length, WIDTH, generator=generator)
    signal[:, 1:] *= 0.1
    signal[:, 0] = _fixed(CLASSES, WIDTH)[labels]
    return signal, labels


def conditioned(draw: Task, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Add a condition to what is drawn."""
    inputs, labels = draw(generator)
    return (inputs, torch.randn(len(labels), WIDTH, generator=generator)), labels


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over all positions."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def of_probabilities(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a model that has applied the softmax itself."""
    return F.nll_loss(probabilities.clamp_min(1e-30).log(), labels)


# Towers -----------------------------------------------------------------------------------------------------------


def gaussian(gain: float, layers: Iterable[nn.Module]) -> None:
    """Draw weights of variance `gain² / fan_in`, and zero biases."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def weight_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def constant(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        nn.init.zeros_(layer.bias)


def xavier(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)


def framework_default(layers: Iterable[nn.Module]) -> None:
    """Leave the layers as they were built."""


he = partial(gaussian, math.sqrt(2))


def tower(
    depth: int,
    activation: Callable[[], nn.Module] | None,
    initialize: Callable[[Iterable[nn.Module]], None],
    *,
    bias: float = 0.0,
    softmax: bool = False,
) -> nn.Module:
    """Build a plain tower: `depth` hidden layers, and a head."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH)] + ([activation()] if activation is not None else [])
    model = nn.Sequential(*layers)
    initialize(weight_layers(model))
    if bias:
        for layer in weight_layers(model):
            nn.init.constant_(layer.bias, bias)
    return nn.Sequential(*model, nn.Linear(WIDTH, CLASSES), *([nn.Softmax(dim=-1)] if softmax else []))


class Branch(nn.Module):
    """`x + scale · branch(x)`; the branch may be cut off the graph."""

    def __init__(self, scale: float, *, detached: bool = False) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        he([self.inner])
        gaussian(1.0, [self.outer])
        self.scale, self.detached = scale, detached

    def forward(self, x: Tensor) -> Tensor:
        branch = self.scale * self.outer(torch.relu(self.inner(x)))
        return x + (branch.detach() if self.detached else branch)


def residual_tower(*, blocks: int = 24, scale: float | None = None, detached: bool = False) -> nn.Module:
    """Build a residual tower without normalization; its branches share a variance of one by default."""
    scale = 1 / math.sqrt(blocks) if scale is None else scale
    body = [Branch(scale, detached=detached) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *body, nn.Linear(WIDTH, CLASSES))


def shallow(activation: Callable[[], nn.Module] = nn.ReLU, *, dropout: float = 0.0) -> nn.Module:
    """Build a multi-layer perceptron as everybody does, with the framework's own weights."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(WIDTH, WIDTH), activation()] + ([nn.Dropout(dropout)] if dropout else [])
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def zero_head() -> nn.Module:
    """Zero branches and head: all of it wakes within two steps."""
    model = residual_tower(blocks=12)
    for module in model.modules():
        if isinstance(module, Branch):
            nn.init.zeros_(module.outer.weight)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def frozen_backbone() -> nn.Module:
    """Freeze all but the head."""
    model = residual_tower(blocks=12)
    model.requires_grad_(False)
    model[-1].requires_grad_(True)
    return model


# Convolutions -----------------------------------------------------------------------------------------------------

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


# Transformers -----------------------------------------------------------------------------------------------------

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

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
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


# Recurrence -------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads a sequence, and says what it was at the end."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def rnn(gain: float) -> nn.Module:
    """Build a tanh layer with an orthogonal recurrence times `gain`."""
    layer = nn.RNN(WIDTH, WIDTH, batch_first=True)
    nn.init.orthogonal_(layer.weight_hh_l0, gain=gain)
    nn.init.normal_(layer.weight_ih_l0, std=1 / math.sqrt(WIDTH))
    nn.init.zeros_(layer.bias_ih_l0)
    nn.init.zeros_(layer.bias_hh_l0)
    return Reader(layer)


def lstm(forget_bias: float | None) -> nn.Module:
    """Build an LSTM whose forget gates start from a bias; None leaves the framework's."""
    layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    if forget_bias is not None:
        nn.init.constant_(layer.bias_ih_l0.data.chunk(4)[1], forget_bias)
        nn.init.zeros_(layer.bias_hh_l0.data.chunk(4)[1])
    return Reader(layer)


# Healthy models ---------------------------------------------------------------------------------------------------


def from_transformers(name: str, family: Family) -> Case:
    """Take a small model of `transformers`, initialized as its authors do."""
    case = next(case for case in zoo.CASES if case.id == name)
    return Case(f"transformers {name}", family, case.build, lambda g: (case.inputs(g), torch.zeros(())), loss=None)


_MIXTURE = partial(Layer, feed_forward=Mixture)

_TANH = Case("tanh tower of gain 1", "mlp", partial(tower, 40, nn.Tanh, partial(gaussian, 1.0)), vectors)
_RELU = Case("ReLU tower of 40 layers after He", "mlp", partial(tower, 40, nn.ReLU, he), vectors)
_DEEP = Case("ReLU tower of 60 layers after He", "mlp", partial(tower, 60, nn.ReLU, he), vectors)
_MLP = Case("ReLU tower of 8 layers after He", "mlp", partial(tower, 8, nn.ReLU, he), vectors)
_SHALLOW_TANH = Case("shallow tanh network", "mlp", partial(shallow, nn.Tanh), vectors)
_RESIDUAL = Case("residual tower of shared variance", "mlp", residual_tower, vectors)

_UNNORMALIZED = Case("ResNet without normalization", "cnn", unnormalized_resnet, images)
_RESNET = Case("BatchNorm ResNet of 20 blocks", "cnn", resnet, images)
_CONVOLUTIONS = Case("tower of convolutions after He", "cnn", conv_tower, images)
_DEPTHWISE = Case("depthwise and pointwise convolutions", "cnn", depthwise_tower, images)

_GPT = Case("pre-LN GPT", "transformer", GPT, text, token_loss)
_DEEP_GPT = Case("pre-LN GPT of 24 layers", "transformer", partial(GPT, 24), text, token_loss)
_MOE = Case("GPT with a mixture of experts", "transformer", partial(GPT, 2, layer=_MIXTURE), text, token_loss)
_ENCODER = Case(
    "torch.nn.TransformerEncoder, redrawn", "transformer", partial(TorchEncoder, redrawn=True), text, token_loss
)
_TRANSLATOR = Case("encoder and decoder", "transformer", Translator, translation, token_loss)
_HALF = Case("pre-LN GPT in float16", "transformer", GPT, text, token_loss, rounded=torch.float16)

_RNN = Case("orthogonal tanh RNN over 100 steps", "rnn", partial(rnn, 1.0), sequence, steps="time")
_LSTM = Case("LSTM with forget bias 1", "rnn", partial(lstm, 1.0), partial(sequence, length=30), steps="time")

_IMAGES_OF_A_CONDITION = partial(conditioned, images)

HEALTHY: tuple[Case, ...] = (
    # Twins of the faults
    *(_TANH, _RELU, _DEEP, _MLP, _SHALLOW_TANH, _RESIDUAL),
    *(_UNNORMALIZED, _RESNET, _CONVOLUTIONS, _DEPTHWISE),
    *(_GPT, _DEEP_GPT, _MOE, _ENCODER, _TRANSLATOR),
    *(_RNN, _LSTM),
    # What looks like a fault
    Case("zero branches and head", "mlp", zero_head, vectors),
    Case("shallow network of default weights", "mlp", shallow, vectors),
    Case("dropout in training mode", "mlp", partial(shallow, dropout=0.5), vectors),
    Case("frozen backbone", "mlp", frozen_backbone, vectors),
    Case("LeNet of default weights", "cnn", lenet, partial(images, size=16)),
    Case("Fixup", "cnn", partial(unnormalized_resnet, fixup=True), images),
    Case("stochastic depth", "cnn", partial(resnet, blocks=12, drop=0.3), images),
    Case("FiLM", "cnn", FilmNet, _IMAGES_OF_A_CONDITION),
    Case("LayerScale 1e-6", "transformer", partial(GPT, layer=partial(Layer, layer_scale=1e-6)), text, token_loss),
    Case("adaLN-zero", "transformer", DiT, _IMAGES_OF_A_CONDITION),
    Case("tied embeddings", "transformer", partial(GPT, tied=True, dropout=0.1), text, token_loss),
    Case("ViT with a class token", "transformer", ViT, images),
    # What nobody here wrote
    Case("torch.nn.LSTM of default weights", "rnn", partial(lstm, None), partial(sequence, length=20), steps="time"),
    from_transformers("gpt2", "transformer"),
    from_transformers("llama", "transformer"),
    from_transformers("mixtral", "transformer"),
    from_transformers("bert", "transformer"),
    from_transformers("t5", "transformer"),
    from_transformers("vit", "transformer"),
    from_transformers("resnet", "cnn"),
    from_transformers("convnext", "cnn"),
)


# Faults -----------------------------------------------------------------------------------------------------------


def _fault(number: int, name: str, twin: Case, build: Build, *caught_by: str, **changes: Any) -> Case:
    """Change what is wrong with a healthy model, and nothing else."""
    return replace(twin, id=name, build=build, number=number, twin=twin, caught_by=caught_by, **changes)


def _mean_of_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Divide by the million tokens of all accumulated batches what is a mean over tokens already."""
    return token_loss(logits, labels) / 2**20


FAULTS: tuple[Case, ...] = (
    _fault(1, "tanh tower of gain 0.7", _TANH, partial(tower, 40, nn.Tanh, partial(gaussian, 0.7)), "log_gain"),
    _fault(2, "tanh tower of gain 2", _TANH, partial(tower, 40, nn.Tanh, partial(gaussian, 2.0)), "log_gain"),
    _fault(3, "He dropped", _RELU, partial(tower, 40, nn.ReLU, framework_default), "log_gain"),
    _fault(4, "Xavier where He belongs", _RELU, partial(tower, 40, nn.ReLU, xavier), "log_gain"),
    _fault(
        5,
        "weights of N(0, 1)",
        _DEEP,
        partial(tower, 60, nn.ReLU, partial(gaussian, math.sqrt(WIDTH))),
        "nonfinite",
        "log_gain",
    ),
    _fault(
        6,
        "sigmoid hidden units",
        _MLP,
        partial(tower, 8, nn.Sigmoid, framework_default),
        "log_gain",
        "saturated_fraction",
    ),
    _fault(7, "constant weights", _MLP, partial(tower, 8, nn.ReLU, constant), "duplicate_parameters"),
    _fault(8, "bias of -1 before ReLU", _MLP, partial(tower, 8, nn.ReLU, he, bias=-1.0), "dead_fraction"),
    _fault(
        9,
        "softmax before the cross-entropy",
        _MLP,
        partial(tower, 8, nn.ReLU, he, softmax=True),
        "baseline",
        score=of_probabilities,
    ),
    _fault(
        10,
        "inputs of 0–255 into an MLP",
        _SHALLOW_TANH,
        partial(shallow, nn.Tanh),
        "saturated_fraction",
        task=bytes_of_vectors,
    ),
    _fault(
        11,
        "inputs of 0–255 into a ResNet without normalization",
        _UNNORMALIZED,
        unnormalized_resnet,
        "activation_rms",
        "gradient_norm",
        task=bytes_of_images,
    ),
    _fault(12, "residual branches without scaling", _RESIDUAL, partial(residual_tower, scale=1.0), "log_gain"),
    _fault(13, "scaling of output projections lost", _GPT, partial(GPT, scaled_projections=False), "baseline"),
    _fault(14, "layers cloned", _ENCODER, partial(TorchEncoder, redrawn=False), "duplicate_parameters"),
    _fault(
        15,
        "residual connection forgotten",
        _GPT,
        partial(GPT, layer=partial(Layer, skip=False)),
        "baseline",
        "log_gain",
    ),
    _fault(16, "normalization dropped", _GPT, partial(GPT, layer=partial(Layer, norm="none")), "baseline"),
    _fault(17, "post-LN, 24 layers", _DEEP_GPT, partial(GPT, 24, layer=partial(Layer, norm="post")), "baseline"),
    _fault(
        18,
        "1/√d_k missing",
        _GPT,
        partial(GPT, layer=partial(Layer, attention=partial(Attention, scaled=False))),
        "attention_entropy",
        "log_gain",
    ),
    _fault(19, "all weights of std 1", _GPT, partial(GPT, std=1.0), "log_gain", "excess_loss"),
    _fault(20, "embedding of std 30", _GPT, partial(GPT, embedding_std=30.0), "activation_rms", "branch_ratio"),
    _fault(21, "BatchNorm removed", _RESNET, partial(resnet, norm=False), "excess_loss", "log_gain"),
    _fault(22, "skips removed, BatchNorm kept", _RESNET, partial(resnet, skip=False), "baseline", "log_gain"),
    _fault(23, "convolutions of std 0.01", _CONVOLUTIONS, partial(conv_tower, std=0.01), "log_gain"),
    _fault(24, "RNN of gain 0.7", _RNN, partial(rnn, 0.7), "log_gain"),
    _fault(25, "RNN of gain 1.6", _RNN, partial(rnn, 1.6), "log_gain"),
    _fault(26, "fan of depthwise convolutions", _DEPTHWISE, partial(depthwise_tower, counts_groups=False), "log_gain"),
    _fault(
        27,
        "a parameter of torch.empty",
        _GPT,
        partial(GPT, layer=partial(Layer, gain=True)),
        "uninitialized_parameters",
    ),
    _fault(28, "initialization through the meta device", _GPT, through_meta_device, "baseline"),
    _fault(29, "one BatchNorm missing", _RESNET, partial(resnet, missing=10), "baseline"),
    _fault(
        30,
        "decoder never initialized",
        _TRANSLATOR,
        partial(Translator, slip=True),
        "duplicate_parameters",
    ),
    _fault(31, "branches detached", _RESIDUAL, partial(residual_tower, detached=True), "unused_parameters"),
    _fault(
        32,
        "softmax over the batch",
        _GPT,
        partial(GPT, layer=partial(Layer, attention=partial(Attention, across=0))),
        "interacting_samples",
    ),
    _fault(33, "LSTM with forget bias -5", _LSTM, partial(lstm, -5.0), "log_gain"),
    _fault(
        34, "gradients that float16 flushes", _HALF, GPT, "underflow_fraction", loss=_mean_of_mean, score=token_loss
    ),
    _fault(35, "activation function missing", _MLP, partial(tower, 8, None, he), "linear_steps"),
    _fault(
        36,
        "router that favors two experts",
        _MOE,
        partial(GPT, 2, layer=partial(Layer, feed_forward=partial(Mixture, favored=8.0))),
        "expert_usage",
    ),
)


# Judging ----------------------------------------------------------------------------------------------------------


def measured(case: Case, seeds: range, *, bounds: Mapping[str, Bound] | None = None) -> Measurement:
    """Measure what the family's preset asks for, or other bounds, and what a baseline records, on all seeds."""
    given: dict[str, Any] = dict.fromkeys(("target", "loss"))
    given |= {"exponents": 1, "device": "cpu", **case.arguments}
    until = find_preset(case.family) if bounds is None else bounds
    found = measure_in(Context(), case.build, seeds=seeds, until=until, measures=RECORDED, **given)
    found.complete()
    return found


def flagged(case: Case, found: Measurement) -> dict[str, VerdictRecord]:
    """Judge the family's preset, and return the verdicts that do not hold."""
    with suppress(TrainabilityFailure):
        found.check(preset=case.family)
    return {name: verdict for name, verdict in found._verdicts.items() if not verdict.holds}


def changed(old: Measurement, new: Measurement) -> dict[str, list[BaselineChange]]:
    """Compare with a baseline, and return what has changed by measure."""
    recorded = [MEASURES[name] for name in RECORDED]
    changes = compare(old._entry(recorded), new._entry(recorded), {m.name: m.tolerance for m in recorded})
    found: dict[str, list[BaselineChange]] = {}
    for change in changes:
        found.setdefault(change.measure, []).append(change)
    return found
