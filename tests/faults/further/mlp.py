"""Further faults of multi-layer perceptrons: initial values, reparametrizations, gates, and what cuts the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ..cases import CLASSES, WIDTH, BuildTwin, Case, Right, fields, twins, vectors
from ..reported_models import inserted
from ..towers import Branch, gaussian, he, tower, weight_layers

# Initial values ---------------------------------------------------------------------------------------------------


def drawn(draw: Callable[[Tensor, float], object], layers: Iterable[nn.Module]) -> None:
    """Draw weights with a function of the weight and its number of inputs; biases of 0."""
    for layer in layers:
        draw(layer.weight, layer.weight[0].numel())
        nn.init.zeros_(layer.bias)


def either(
    depth: int,
    activation: Callable[[], nn.Module],
    right: Callable[[Tensor, float], object],
    mistake: Callable[[Tensor, float], object],
) -> BuildTwin:
    return lambda wrong: tower(depth, activation, partial(drawn, mistake if wrong else right))


def he_normal(weight: Tensor, inputs: float) -> None:
    nn.init.normal_(weight, std=math.sqrt(2 / inputs))


def rescaled_layer(factor: float) -> BuildTwin:
    """Build a tower, one of whose layers may have weights of another size than its peers."""

    def build(wrong: bool) -> nn.Module:
        model = tower(8, nn.ReLU, he)
        with torch.no_grad():
            model[6].weight *= factor if wrong else 1.0
        return model

    return build


def wide_biases(wrong: bool) -> nn.Module:
    """Build a tanh tower; biases may be drawn with the standard deviation of inputs instead of that of weights."""
    model = tower(8, nn.Tanh, partial(gaussian, 1.0))
    for layer in weight_layers(model)[:-1]:
        nn.init.normal_(layer.bias, std=4.0 if wrong else 0.05)
    return model


class Sine(nn.Module):
    """The sine of `frequency · x` (Sitzmann and others, 2020)."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


def siren(wrong: bool) -> nn.Module:
    """Build sine layers of frequency 30; the weights may lack the division by the frequency."""
    scale = 1.0 if wrong else 1 / 30
    model = tower(5, partial(Sine, 30.0), partial(gaussian, math.sqrt(2) * scale))
    nn.init.normal_(model[0].weight, std=0.1 / math.sqrt(WIDTH))
    return model


def seeded(wrong: bool) -> nn.Module:
    """Build a tower that may seed the generator for itself."""
    if wrong:
        torch.manual_seed(1234)
    return tower(4, nn.ReLU, he)


def constant_embedding(wrong: bool) -> nn.Module:
    """Build a tower on embedded fields, whose table may be filled with a number."""
    table = nn.Embedding(100, 16)
    nn.init.normal_(table.weight, std=0.5)
    if wrong:
        nn.init.constant_(table.weight, 0.5)
    return nn.Sequential(table, nn.Flatten(), *tower(3, nn.ReLU, he))


def hot_head(wrong: bool) -> nn.Module:
    """Build a tower whose scores are divided by a temperature, of 1 or of 0.01."""
    model = tower(4, nn.ReLU, he)
    return nn.Sequential(*model, Scale(100.0 if wrong else 1.0))


# Reparametrizations and gates -------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Multiplies by a number that is no parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class LogScale(nn.Module):
    """Multiplies by the exponential of a parameter, which may start from 1 as if it were the factor."""

    def __init__(self, *, start: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((WIDTH,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_scale.exp()


def log_scales(wrong: bool) -> nn.Module:
    layers = [*tower(8, nn.ReLU, he)]
    scales = [LogScale(start=1.0 if wrong else 0.0) for _ in range(8)]
    return nn.Sequential(
        *(part for i in range(8) for part in (layers[2 * i], scales[i], layers[2 * i + 1])), layers[-1]
    )


def weight_normed(wrong: bool) -> nn.Module:
    """Build a tower with normalized weights, whose lengths may start from zero."""
    model = tower(5, nn.Tanh, partial(gaussian, 1.0))
    for layer in weight_layers(model)[:-1]:
        weight_norm(layer)
        if wrong:
            nn.init.zeros_(layer.parametrizations.weight.original0)
    return model


class LowRank(nn.Module):
    """A frozen layer and a low-rank product; one factor should be drawn, and the other zero (Hu and others, 2022)."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.zeros(4, WIDTH))
        self.lora_B = nn.Parameter(torch.zeros(WIDTH, 4))
        he([self.base])
        if not wrong:
            nn.init.normal_(self.lora_A, std=WIDTH**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.base(x) + x @ self.lora_A.T @ self.lora_B.T)


def low_rank(wrong: bool) -> nn.Module:
    return nn.Sequential(*(LowRank(wrong=wrong) for _ in range(4)), nn.Linear(WIDTH, CLASSES))


class Gated(nn.Module):
    """A residual branch that a sigmoid gate opens."""

    def __init__(self, *, bias: float) -> None:
        super().__init__()
        self.gate, self.branch = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate(x).sigmoid() * torch.relu(self.branch(x))


def gates(wrong: bool) -> nn.Module:
    """Build gated branches (Srivastava and others, 2015); the gates may start from −20 instead of −2."""
    return nn.Sequential(*(Gated(bias=-20.0 if wrong else -2.0) for _ in range(6)), nn.Linear(WIDTH, CLASSES))


class ScaledSum(Branch):
    """A branch and its skip connection, of which only the branch should be scaled."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x + self.outer(torch.relu(self.inner(x))))


def scaled_sums(wrong: bool) -> nn.Module:
    block = ScaledSum if wrong else Branch
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *(block(0.3) for _ in range(10)), nn.Linear(WIDTH, CLASSES))


# Structure --------------------------------------------------------------------------------------------------------


def repeated(wrong: bool) -> nn.Module:
    """Build a tower of six layers, or of one layer that a list repeats."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(6)]
    he(layers)
    if wrong:
        layers = [layers[0]] * 6
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Linear(WIDTH, CLASSES))


class Detach(nn.Module):
    """Returns its input without its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Round(nn.Module):
    """Rounds to sixteenths, with a straight-through estimator or without."""

    def __init__(self, *, estimates: bool) -> None:
        super().__init__()
        self.estimates = estimates

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.round(16 * x) / 16
        return x + (rounded - x).detach() if self.estimates else rounded


class Standardize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, over the features or over the batch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(self.dim, keepdim=True)
        return centered / (centered.square().mean(self.dim, keepdim=True) + 1e-5).sqrt()


class Neighbours(nn.Module):
    """Averages the samples with weights that fall with their distance; the root of a distance of 0 has no slope."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.added = 0.0 if wrong else 1e-6

    def forward(self, x: Tensor) -> Tensor:
        square = (x[:, None] - x[None]).square().mean(-1)
        return (-(square + self.added).sqrt()).softmax(dim=-1) @ x


def neighbours(wrong: bool) -> nn.Module:
    layers = [*tower(4, nn.ReLU, he)]
    return nn.Sequential(*layers[:4], Neighbours(wrong=wrong), *layers[4:])


def dropped(wrong: bool) -> nn.Module:
    """Build a tower with dropout, whose argument is the share that is dropped, and not that which is kept."""
    layers = [*tower(4, nn.ReLU, he)]
    drop = nn.Dropout(0.9 if wrong else 0.1)
    return nn.Sequential(*layers[:4], drop, *layers[4:])


# Losses -----------------------------------------------------------------------------------------------------------


def binary_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compare each score with whether the class is the right one."""
    return F.binary_cross_entropy_with_logits(scores, F.one_hot(labels, CLASSES).float())


def with_sigmoid(wrong: bool) -> nn.Module:
    """Build a tower whose scores may pass a sigmoid in front of a loss that applies it."""
    return nn.Sequential(*tower(4, nn.ReLU, he), *([nn.Sigmoid()] if wrong else []))


def summed_loss(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, reduction="sum")


def rolled_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compare each score with the label of the sample before, as after a shuffle of the inputs alone."""
    return F.cross_entropy(scores, labels.roll(1))


def in_loss(name: str, loss: Any, right: Right) -> Case:
    healthy = Case(f"{name}, twin", "mlp", partial(tower, 4, nn.ReLU, he), vectors)
    return replace(healthy, id=name, loss=loss, twin=healthy, right=right, score=F.cross_entropy)


_WEIGHTS = Right(("Linear", "*.weight"), r"weights of rms|weights?: rms", cure=True)

CASES: tuple[Case, ...] = (
    twins(
        "variance-for-std",
        "mlp",
        either(8, nn.ReLU, he_normal, lambda w, n: nn.init.normal_(w, std=2 / n)),
        vectors,
        _WEIGHTS,
    ),
    twins(
        "bound-for-std",
        "mlp",
        either(20, nn.ReLU, he_normal, lambda w, n: nn.init.uniform_(w, -math.sqrt(2 / n), math.sqrt(2 / n))),
        vectors,
        _WEIGHTS,
    ),
    twins(
        "orthogonal-without-gain",
        "mlp",
        either(
            24,
            nn.ReLU,
            lambda w, n: nn.init.orthogonal_(w, math.sqrt(2)),
            lambda w, n: nn.init.orthogonal_(w),
        ),
        vectors,
        Right(("Linear", "ReLU", "*.weight"), r"weights of rms|slopes of rms 0\.7", cure=True),
    ),
    twins(
        "he-before-selu",
        "mlp",
        either(24, nn.SELU, lambda w, n: nn.init.normal_(w, std=n**-0.5), he_normal),
        vectors,
        _WEIGHTS,
    ),
    twins(
        "layer-of-small-weights",
        "mlp",
        rescaled_layer(1e-4),
        vectors,
        Right(("6", "6.weight"), r"6\.weight", cure=True),
    ),
    twins(
        "layer-of-large-weights",
        "mlp",
        rescaled_layer(300.0),
        vectors,
        Right(("6", "6.weight"), r"6\.weight", cure=True),
    ),
    twins("wide-biases", "mlp", wide_biases, vectors, Right(("*.bias", "Tanh"), r"bias|saturated|slopes", cure=True)),
    twins(
        "sine-weights-not-divided",
        "mlp",
        siren,
        vectors,
        Right(("Linear", "Sine"), r"weights of rms|Sin|slopes", cure=True),
    ),
    twins("seeded-inside", "mlp", seeded, vectors, Right(("*.weight", "*"), r"seeded inside")),
    twins(
        "constant-embedding",
        "mlp",
        constant_embedding,
        fields,
        Right(("0", "0.weight", "Embedding"), r"rows are equal", cure=True),
    ),
    twins(
        "temperature", "mlp", hot_head, vectors, Right(("9", "Scale", "output"), r"multiplies .*100|factor", cure=True)
    ),
    twins(
        "log-scale-of-one",
        "mlp",
        log_scales,
        vectors,
        Right(("*log_scale", "LogScale"), r"log_scale|by 2\.7", cure=True),
    ),
    twins(
        "weight-norm-of-zero",
        "mlp",
        weight_normed,
        vectors,
        Right(
            ("*parametrizations*", "Linear", "ParametrizedLinear", "0", "2", "4", "6", "8"),
            r"is zero|original0",
            cure=True,
        ),
    ),
    twins(
        "low-rank-of-zeros",
        "mlp",
        low_rank,
        vectors,
        Right(("*lora_A", "*lora_B"), r"both factors of a low-rank", cure=True),
    ),
    twins("closed-gates", "mlp", gates, vectors, Right(("*gate*", "Gated"), r"gate|saturated|[Ss]igmoid", cure=True)),
    twins(
        "scaled-sums",
        "mlp",
        scaled_sums,
        vectors,
        Right(("ScaledSum", "[1-9]*"), r"skip connection|multipl.* 0\.3|factor"),
    ),
    twins("one-layer-repeated", "mlp", repeated, vectors, Right(("[0-9]*", "Linear"), r"shared|tied|gone|same")),
    twins(
        "detached-between",
        "mlp",
        partial(inserted, nn.Identity(), Detach()),
        vectors,
        Right(("6", "Detach", "[0-4].weight", "[0-4]"), r"unused|no gradient|detach"),
    ),
    twins(
        "rounded-between",
        "mlp",
        partial(inserted, Round(estimates=True), Round(estimates=False)),
        vectors,
        Right(("6", "Round"), r"step function|slopes are zero"),
    ),
    twins(
        "standardized-over-the-batch",
        "mlp",
        partial(inserted, Standardize(-1), Standardize(0)),
        vectors,
        Right(("6", "Standardize"), r"samples|batch|constant of the forward"),
    ),
    twins("root-of-zero", "mlp", neighbours, vectors, Right(("4", "Neighbours"), r"not finite|NaN|[Ss]qrt")),
    twins("dropout-for-kept", "mlp", dropped, vectors, Right(("4", "Dropout"), r"[Dd]rop")),
    twins(
        "sigmoid-before-its-loss",
        "mlp",
        with_sigmoid,
        vectors,
        Right(("9", "Sigmoid", "output", "loss"), r"[Ss]igmoid", cure=True),
        loss=binary_loss,
    ),
    in_loss("summed-loss", summed_loss, Right(("loss",), r"loss")),
    in_loss("labels-of-others", rolled_loss, Right(("loss",), r"loss|label", visible=False)),
)
