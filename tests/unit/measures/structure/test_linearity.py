"""Linear steps: layers without an activation between them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from structures import BATCH, FAMILIES, WIDTH, Build, architecture, tower, vectors
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.structure.linearity import _is_dropout


def linear_steps(model: Any, inputs: Any, **how: Any) -> list[str]:
    return list(measure(model, inputs, seeds=2, measures=["linear_steps"], **how).linear_steps)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def written(x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape)
    mask[x > 0] = 2.0
    return x * mask


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "relu in place": lambda x: F.relu_(x),
    "leaky": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softmax": lambda x: x.softmax(-1),
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "mask": lambda x: x * (x > 0),
    "mask as numbers": lambda x: (x > 0).float() * x,
    "leaky mask": lambda x: x * torch.where(x > 0, 1.0, 0.1),
    "mask with a gain": lambda x: x * ((x > 0) * 2**0.5),
    "mask with a gain, chosen": lambda x: x * torch.where(x > 0, 2.0, 0.0),
    "mask with a gain, in place": lambda x: x * torch.zeros_like(x).masked_fill_(x.detach() > 0, 2.0),
    "mask with a gain, written": written,
    "mask of the largest": lambda x: x * torch.zeros_like(x).scatter(1, x.topk(4)[1], 2.0),
    "divided by a mask": lambda x: x / torch.where(x > 0, 0.5, torch.inf),
    "normalized by the size of all": lambda x: x / x.detach().norm(),
    "plus its sign": lambda x: x + x.detach().sign(),
    "in its order": lambda x: x.gather(1, x.argsort(1)),
    "gate": lambda x: x * x.sigmoid(),
    "square": lambda x: x * x,
    "normalized by its own size": lambda x: x / x.detach().abs().mean(1, keepdim=True),
    "sort": lambda x: x.sort(1)[0],
    "layer norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "maxout": lambda x: x.reshape(len(x), WIDTH // 2, 2).amax(2).repeat(1, 2),
    "in numpy": lambda x: models.NumpyTanh.apply(x),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_recognized(activation: str) -> None:
    """With every activation no step is listed. Without the third activation, only the fourth step is."""
    kind = lambda: Function(ACTIVATIONS[activation])  # noqa: E731
    assert linear_steps(lambda: tower(5, activation=kind), vectors) == []
    assert linear_steps(lambda: tower(5, activation=kind, without=(2,)), vectors) == ["5"]


class Pruned(nn.Module):
    """Keeps some units, by a mask that is computed from a parameter and not from the signal."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.linspace(-1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * ((self.scores > 0) * 2.0)


LINEAR_BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "dropout": lambda: nn.Dropout(0.3),
    "scaling": lambda: Function(lambda x: 0.5 * x / 3),
    "flip": lambda: Function(lambda x: x.flip(1)),
    "shape": lambda: nn.Unflatten(1, (4, WIDTH // 4)),
    "mean": lambda: Function(lambda x: x - x.mean(1, keepdim=True)),
    "drop path": lambda: Function(lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.7).div_(0.7)),
    "pruning": Pruned,
    "something else's size": lambda: Function(lambda x: x * torch.randn(WIDTH).abs().max()),
    "dropout by hand": lambda: Function(lambda x: x * ((torch.rand_like(x) > 0.3) / 0.7)),
    "leaky without a leak": lambda: nn.LeakyReLU(1.0),
    "shuffled": lambda: Function(lambda x: F.channel_shuffle(x.view(-1, 4, 4, 1), 2)),
    "unshuffled pixels": lambda: Function(lambda x: F.pixel_unshuffle(x.view(-1, 1, 4, 4), 2)),
    "resized": lambda: Function(lambda x: F.interpolate(x.view(-1, 1, 4, 4), (4, 4), mode="bicubic", antialias=True)),
    "resized as bicubic": lambda: Function(lambda x: F.interpolate(x.view(-1, 1, 4, 4), (2, 8), mode="bicubic")),
    "resized as exact": lambda: Function(lambda x: F.interpolate(x.view(-1, 1, 4, 4), (2, 8), mode="nearest-exact")),
    "resized in space": lambda: Function(lambda x: F.interpolate(x.view(-1, 1, 4, 2, 2), (2, 2, 4), mode="trilinear")),
}


@pytest.mark.parametrize("between", LINEAR_BETWEEN)
def test_linear_functions_are_not_activations(between: str) -> None:
    """Fault 35, with a linear function instead of the activation."""

    def build() -> nn.Module:
        first, last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(WIDTH, WIDTH), LINEAR_BETWEEN[between](), nn.Flatten(), last)

    assert linear_steps(build, vectors) == ["5"]


class Adding(nn.Linear):
    """A layer that adds a tensor which it does not take as an argument."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.added[0]


class Bypassed(nn.Module):
    """Three layers. The second one adds what the first one reads, which is the result of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(WIDTH, WIDTH), Adding(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        self.b.added = [x]
        return self.c(self.b(self.a(x)))


def test_an_activation_before_the_first_state_is_in_no_step() -> None:
    """The third layer follows the second one, which is linear in the first state, without an activation."""
    assert "c" in linear_steps(Bypassed, vectors)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([0.0, 2.0, 2.0], True),
        ([0.0, 0.0, 2.0], True),
        ([0.0, 0.0, 0.0], False),
        ([0.0, 1.0, 1.0], False),
        ([0.0, 2.0, 3.0], False),
        ([0, 2, 2], False),
    ],
    ids=["two kept", "one kept", "none kept", "a relu's mask", "a factor", "whole numbers"],
)
def test_dropout_masks_are_recognized_by_their_values(mask: list[float], expected: bool) -> None:
    """A mask of ones may be that of an activation."""
    assert _is_dropout(torch.tensor(mask)) is expected


def test_batch_norm_with_running_averages_is_linear() -> None:
    """BatchNorm is affine in eval mode. In train mode it divides by a statistic of the batch."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    assert linear_steps(build, vectors, train=False) == ["2"]
    assert linear_steps(build, vectors) == []
    without = nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False)
    assert linear_steps(nn.Sequential(*build()[:1], without, *build()[2:]), vectors, train=False) == []


PARAMETRIZATIONS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("steps", ["auto", "layers"])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_parametrized_layers_are_layers(parametrization: str, steps: str) -> None:
    """A parametrized layer has its own class, and a submodule that computes its weight."""

    def build(between: Callable[[], nn.Module]) -> Build:
        def layer() -> nn.Module:
            return PARAMETRIZATIONS[parametrization](nn.Linear(WIDTH, WIDTH))

        return lambda: nn.Sequential(*[m for _ in range(3) for m in (layer(), between())], layer())

    assert linear_steps(build(nn.Identity), vectors, steps=steps) == ["2", "4", "6"]
    assert linear_steps(build(nn.Tanh), vectors, steps=steps) == []


def test_every_layer_after_the_first_is_listed_without_activations() -> None:
    """The first step is linear by construction, and so is a head after an activation. Neither is listed."""
    assert linear_steps(lambda: tower(4, without=(0, 1, 2, 3)), vectors) == ["1", "2", "3"]
    assert linear_steps(lambda: tower(4, without=(3,)), vectors) == []
    assert linear_steps(lambda: tower(4), vectors, dtype="float64") == []
    assert linear_steps(lambda: tower(4, without=(1,)), vectors, train=False) == ["3"]


CONVOLUTIONS: dict[str, tuple[Callable[[], list[nn.Module]], list[str]]] = {
    "two": (lambda: [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)], ["3"]),
    "pooled": (lambda: [nn.Conv2d(8, 8, 3), nn.AvgPool2d(2), nn.Conv2d(8, 8, 1)], ["4"]),
    "pooled by the largest": (lambda: [nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)], []),
    "depthwise and pointwise": (lambda: [nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)], []),
    "rows and columns": (lambda: [nn.Conv2d(8, 8, (1, 3)), nn.Conv2d(8, 8, (3, 1))], []),
    "bottleneck": (lambda: [nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 3)], []),
    "normalized": (lambda: [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)], []),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_without_an_activation(case: str) -> None:
    layers, expected = CONVOLUTIONS[case]

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *layers(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))

    assert linear_steps(build, lambda g: torch.randn(BATCH, 3, 12, 12, generator=g)) == expected


def test_bottlenecks_are_linear_by_design() -> None:
    """A code or a low-rank layer is narrower than both its neighbors. A stack that narrows at every layer is not a bottleneck."""

    def stack(*widths: int) -> Build:
        return lambda: nn.Sequential(*[nn.Linear(*pair) for pair in pairwise(widths)])

    assert linear_steps(stack(WIDTH, 2, WIDTH), vectors) == []
    assert linear_steps(stack(WIDTH, 8, 4), vectors) == ["1"]


class Block(nn.Module):
    """A residual branch of two layers."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner, self.activation, self.outer = nn.Linear(WIDTH, WIDTH), activation(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.activation(self.inner(x)))


def blocks(*linear: int) -> Build:
    return lambda: nn.Sequential(*[Block(nn.Identity if number in linear else nn.Tanh) for number in range(5)])


class Conditioned(nn.Module):
    """A layer reads the sum of two layers: one of a condition, the other, with an activation, of the inputs."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.inputs, self.condition = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layer, self.head, self.alone = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), alone
        self.inputs.requires_grad_(False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        added = torch.ones(WIDTH) if self.alone else torch.tanh(self.inputs(x))
        out: Tensor = self.head(torch.tanh(self.layer(self.condition(c) + added)))
        return out


def test_a_layer_that_also_reads_another_input_is_no_linear_step() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = (vectors(generator), vectors(generator))
    how = {"steps": ["condition", "layer", "head"]}
    assert linear_steps(lambda: Conditioned(alone=False), inputs, **how) == []
    assert linear_steps(lambda: Conditioned(alone=True), inputs, **how) == ["layer"]


def test_linear_blocks_among_nonlinear_ones_are_listed() -> None:
    """The first block is listed as well, because it has two layers. If all blocks are linear, they are equal to one."""
    assert linear_steps(blocks(), vectors) == []
    assert linear_steps(blocks(0, 3), vectors) == ["0", "3"]
    assert linear_steps(blocks(0, 1, 2, 3, 4), vectors) == ["1", "2", "3", "4"]
    # Along layers, the second layer of the block is listed. Skip connections separate the blocks.
    assert linear_steps(blocks(0, 3), vectors, steps="layers") == ["0.outer", "3.outer"]


class Adapted(nn.Module):
    """A layer and a low-rank product, without an activation in it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_modules_that_are_linear_by_design_are_listed_only_without_an_activation_between() -> None:
    """The first one is linear from the input on, and the others are not. They are linear themselves, all of them."""

    def build(*between: nn.Module) -> nn.Module:
        return nn.Sequential(*[layer for activation in between for layer in (Adapted(), activation)])

    assert linear_steps(lambda: build(nn.Tanh(), nn.Tanh(), nn.Tanh()), vectors) == []
    assert linear_steps(lambda: build(nn.Tanh(), nn.Identity(), nn.Tanh()), vectors, steps=Adapted) == ["4"]


@pytest.mark.parametrize("steps", ["auto", "layers"])
@pytest.mark.parametrize("name", [*FAMILIES, "resnet", "xlnet", "electra", "detr"])
def test_no_step_of_a_real_model_is_linear(name: str, steps: str) -> None:
    """Parallel projections of queries, keys and values, projections with several readers, gates, downsampling on the skip."""
    case = architecture(name)
    assert linear_steps(case.build, case.inputs, steps=steps) == []


def test_parametrized_blocks_have_one_class() -> None:
    """Each block has a parametrized weight of its own."""

    class Scaled(Block):
        def __init__(self, activation: Callable[[], nn.Module]) -> None:
            super().__init__(activation)
            self.scale = nn.Parameter(torch.ones(1, WIDTH))
            nn.utils.parametrize.register_parametrization(self, "scale", nn.Softplus())

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    def build(*linear: int) -> Build:
        return lambda: nn.Sequential(*[Scaled(nn.Identity if number in linear else nn.Tanh) for number in range(4)])

    assert linear_steps(build(), vectors, steps=["0", "1", "2", "3"]) == []
    assert linear_steps(build(2), vectors, steps=["0", "1", "2", "3"]) == ["2"]


def test_a_feed_forward_layer_without_activation_is_listed_along_layers() -> None:
    """GPT-2 with an identity instead of a GELU. The block is nonlinear because of norm and attention; along layers it shows."""

    def build() -> nn.Module:
        model = architecture("gpt2").build()
        model.transformer.h[2].mlp.act = nn.Identity()
        return model

    inputs = architecture("gpt2").inputs
    assert linear_steps(build, inputs) == []
    assert linear_steps(build, inputs, steps="layers") == ["transformer.h.2.mlp.c_proj"]


def test_no_step_is_listed_along_time() -> None:
    """A linear recurrence reads an input at every step."""
    assert linear_steps(models.LstmLoop, models.sequence, steps="time") == []
