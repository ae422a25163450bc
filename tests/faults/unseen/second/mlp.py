"""Perceptrons: an autoencoder, two towers of pairs, actor and critic, a flow, binary layers, a graph network, a teacher."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from ...cases import CLASSES, WIDTH, Right, twins, vectors
from ...reported import squared_error
from ...towers import perceptron, weight_layers, xavier
from ..first.mlp import Autoencoder, Coupling, Flow, Graph, cloud, evidence_loss, itself, mean_loss, nodes

ACTIONS = 4

# Tasks and losses -------------------------------------------------------------------------------------------------


def views(generator: torch.Generator, *, batch: int = 32) -> tuple[dict[str, Tensor], Tensor]:
    """Draw vectors twice, with noise of its own each time; the label is the number of the other one."""
    drawn, _ = vectors(generator, batch=batch)
    one, other = (drawn + 0.2 * torch.randn(drawn.shape, generator=generator) for _ in range(2))
    return {"one": one, "other": other}, torch.arange(batch)


def acts(generator: torch.Generator, *, batch: int = 32) -> tuple[dict[str, Tensor], Tensor]:
    """Draw observations, actions that are some of their features in noise, and how much each action counts."""
    observed, _ = vectors(generator, batch=batch)
    noise = torch.randn(batch, ACTIONS, generator=generator)
    weights = 2 * torch.rand(batch, generator=generator)
    return {"observed": observed, "action": observed[:, :ACTIONS] + 0.5 * noise}, weights


def returns(generator: torch.Generator, *, batch: int = 32) -> tuple[Tensor, Tensor]:
    """Draw observations, and returns that are one of their features."""
    observed, _ = vectors(generator, batch=batch)
    return observed, observed[:, 0]


def evidence_per_feature(output: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    return evidence_loss(output, labels) / WIDTH


def loss_of_pairs(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over rows and over columns."""
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2


def weighted_likelihood(log_probability: Tensor, weights: Tensor) -> Tensor:
    return -(log_probability * weights).mean()


def distance(output: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    """Mean square of the distance between vectors of length one."""
    return (2 - 2 * (output[0] * output[1]).sum(-1)).mean()


# Models -----------------------------------------------------------------------------------------------------------


def latent(wrong: bool) -> nn.Module:
    """Build an autoencoder that draws by `Normal.rsample()`, or by `Normal.sample()`, which has no gradient."""

    def draw(mean: Tensor, deviation: Tensor) -> Tensor:
        normal = torch.distributions.Normal(mean, deviation)
        return normal.sample() if wrong else normal.rsample()

    return Autoencoder(draw)


class Pairs(nn.Module):
    """CLIP's scores: cosines times the exponential of a parameter, which may start from 1/0.07 itself."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.image, self.text = (perceptron(WIDTH, WIDTH, WIDTH, 32, activation=nn.GELU) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07 if wrong else math.log(1 / 0.07)))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        image, text = F.normalize(self.image(one), dim=-1), F.normalize(self.text(other), dim=-1)
        return self.logit_scale.exp() * image @ text.T


def body() -> nn.Sequential:
    """Build two tanh layers with orthogonal weights, as actors and critics have."""
    model = nn.Sequential(*perceptron(WIDTH, WIDTH, WIDTH, activation=nn.Tanh), nn.Tanh())
    for layer in weight_layers(model):
        nn.init.orthogonal_(layer.weight, math.sqrt(2))
        nn.init.zeros_(layer.bias)
    return model


class Actor(nn.Module):
    """Returns log-probabilities of actions; the logarithm of the deviation may start at the smallest value allowed."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.body, self.mean = body(), nn.Linear(WIDTH, ACTIONS)
        self.log_std = nn.Parameter(torch.full((ACTIONS,), -20.0 if wrong else 0.0))
        nn.init.orthogonal_(self.mean.weight, 0.01)
        nn.init.zeros_(self.mean.bias)

    def forward(self, observed: Tensor, action: Tensor) -> Tensor:
        mean = self.mean(self.body(observed))
        return torch.distributions.Normal(mean, self.log_std.exp().expand_as(mean)).log_prob(action).sum(-1)


class Critic(nn.Module):
    """Returns values of shape `(batch,)`, or `(batch, 1)`, of which each is compared with all returns."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.body, self.value, self.wrong = body(), nn.Linear(WIDTH, 1), wrong

    def forward(self, observed: Tensor) -> Tensor:
        value = self.value(self.body(observed))
        return value if self.wrong else value.squeeze(-1)


class ActNorm(nn.Module):
    """Divides by the standard deviation of the first batch (Kingma & Dhariwal, 2018), or multiplies by it."""

    def __init__(self, width: int, *, wrong: bool) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("ready", torch.tensor(False))
        self.wrong = wrong

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        log_deviation = x.std(0).log()
        self.shift.copy_(-x.mean(0))
        self.log_scale.copy_(log_deviation if self.wrong else -log_deviation)
        self.ready.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.measure(x)
        return (x + self.shift) * self.log_scale.exp()


class Normalized(Coupling):
    """A coupling behind such a normalization."""

    def __init__(self, mask: Tensor, *, wrong: bool) -> None:
        super().__init__(mask)
        self.actnorm = ActNorm(len(mask), wrong=wrong)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_scale = super().forward(self.actnorm(x))
        return y, log_scale + self.actnorm.log_scale.sum()


def actnorms(wrong: bool) -> nn.Module:
    return Flow(partial(Normalized, wrong=wrong))


def sign_function(*, wrong: bool) -> type[torch.autograd.Function]:
    """Return the sign, whose gradient is passed where `|x| ≤ 1` (Hubara and others, 2016), or where `|x| > 1`."""

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.where(x >= 0, 1.0, -1.0)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient * (x.abs() > 1 if wrong else x.abs() <= 1)

    return Sign


class Binary(nn.Linear):
    """Multiplies signs by signs."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__(WIDTH, WIDTH, bias=False)
        self.sign = sign_function(wrong=wrong)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.sign.apply(x), self.sign.apply(self.weight))


def binary(wrong: bool) -> nn.Module:
    """Build three binary layers with batch normalization between a first and a last layer that are not binary."""
    inner = [part for _ in range(3) for part in (Binary(wrong=wrong), nn.BatchNorm1d(WIDTH))]
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), *inner, nn.Linear(WIDTH, CLASSES))


def degrees(wrong: bool) -> nn.Module:
    """Build a graph network whose adjacency is multiplied by roots of the degrees, where it should be divided by them."""
    return Graph(0.5) if wrong else Graph()


def normalized() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.ReLU())


class Taught(nn.Module):
    """A student that predicts a frozen copy of itself (Grill and others, 2020), which may be drawn anew after copying."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.student = perceptron(WIDTH, WIDTH, WIDTH, 16, activation=normalized)
        self.predictor = perceptron(16, WIDTH, 16, activation=normalized)
        xavier(weight_layers(self))
        self.teacher = deepcopy(self.student).requires_grad_(False)
        if wrong:
            xavier(weight_layers(self))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        predicted = F.normalize(self.predictor(self.student(one)), dim=-1)
        with torch.no_grad():
            return predicted, F.normalize(self.teacher(other), dim=-1)


CASES = (
    twins(
        "latent-from-sample",
        "mlp",
        latent,
        itself,
        Right(
            ("mean*", "log_variance*", "decoder.0*", "encoder*"),
            r"\br?sample\(|no gradient|without (a )?gradient|detach|does not train|\bKL\b",
        ),
        loss=evidence_per_feature,
    ),
    twins(
        "temperature-without-logarithm",
        "mlp",
        Pairs,
        views,
        Right(("logit_scale",), r"logit_scale|[Ee]xponential|\b[Ee]xp\b|1\.\d+e\+0?6", cure=True),
        loss=loss_of_pairs,
    ),
    twins(
        "deviation-at-its-lower-clamp",
        "mlp",
        Actor,
        acts,
        Right(("log_std",), r"log_std|standard deviation of \d\S*e-0?9", cure=True),
        loss=weighted_likelihood,
    ),
    twins(
        "values-against-all-returns",
        "mlp",
        Critic,
        returns,
        Right(("loss", "output", "Critic"), r"[Bb]roadcast|shape|[Ss]queeze|\(\d+, 1\)|all returns"),
        loss=squared_error,
    ),
    twins(
        "actnorm-that-multiplies",
        "mlp",
        actnorms,
        partial(cloud, scale=3.0, shift=1.0),
        Right(
            ("couplings.*.actnorm*", "ActNorm"),
            r"deviation instead|instead of dividing|multiplies by the standard|squared by|actnorm.*multipl|multipl.*actnorm",
            cure=True,
        ),
        loss=mean_loss,
    ),
    twins(
        "straight-through-outside-of-1",
        "mlp",
        binary,
        partial(vectors, batch=32),
        Right(("[246]", "[246].weight", "Binary"), r"backward pass|\bSign\w*\b.*(backward|gradient|zero)|\|x\|"),
    ),
    twins(
        "degrees-to-the-wrong-power",
        "mlp",
        degrees,
        nodes,
        Right(("adjacency", "layers.*", "Graph"), r"adjacency|degree"),
    ),
    twins(
        "teacher-drawn-anew",
        "mlp",
        Taught,
        views,
        Right(("teacher*",), r"\bcop(y|ies)\b|drawn anew|no longer (equal|the same|shared)", cure=True),
        loss=distance,
    ),
)
