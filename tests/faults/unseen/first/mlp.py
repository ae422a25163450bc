"""Perceptrons, sines, a physics-informed network, a normalizing flow, an autoencoder, a graph network, a backward by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from ...cases import CLASSES, WIDTH, Right, bytes_of_images, twins, vectors
from ...towers import gaussian, he, perceptron, tower, weight_layers, xavier

# Tasks and losses -------------------------------------------------------------------------------------------------


def points(generator: torch.Generator, *, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Draw points of a square, and the height of a wave of unit variance there."""
    where = 2 * torch.rand(batch, 2, generator=generator) - 1
    return where, math.sqrt(2) * torch.sin(12 * where[:, :1] + 5 * where[:, 1:])


def interval(generator: torch.Generator, *, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Draw points between 0 and 1; an equation has no labels."""
    where = torch.rand(batch, 1, generator=generator)
    return where, where


def cloud(
    generator: torch.Generator, *, batch: int = 64, scale: float = 0.5, shift: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Draw points of a distribution that is neither centered nor of unit variance; a density has no labels."""
    drawn = shift + scale * torch.randn(batch, 8, generator=generator)
    return drawn, drawn


def itself(generator: torch.Generator, *, batch: int = 32) -> tuple[Tensor, Tensor]:
    """Draw vectors that are to be reconstructed."""
    drawn, _ = vectors(generator, batch=batch)
    return drawn, drawn


def nodes(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a class for each node of a ring, and noisy features of it."""
    labels = torch.randint(CLASSES, (64,), generator=generator)
    noise = torch.randn(64, 16, generator=generator)
    return math.sqrt(0.8) * 4 * F.one_hot(labels, 16).float() + math.sqrt(0.2) * noise, labels


def residual_loss(output: Tensor, _: Tensor) -> Tensor:
    """Mean square of the equation's residual, and of the two values at the boundary."""
    return output[:-2].square().mean() + output[-2:].square().mean()


def mean_loss(output: Tensor, _: Tensor) -> Tensor:
    return output.mean()


def evidence_loss(output: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Error of the reconstruction, and divergence of the latent distribution from the prior."""
    reconstruction, divergence = output
    return (reconstruction - labels).square().sum(-1).mean() + divergence


# Models -----------------------------------------------------------------------------------------------------------


class Siren(nn.Module):
    """Sines of frequency 30; all layers behind the first may be drawn as if it were 1.

    After vsitzmann/siren#57 and lucidrains/siren-pytorch#1.
    """

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.frequency = 30.0
        self.layers = nn.ModuleList(nn.Linear(2 if i == 0 else WIDTH, WIDTH) for i in range(6))
        self.head = nn.Linear(WIDTH, 1)
        for layer in (*self.layers, self.head):
            inputs = layer.in_features
            bound = 1 / 2 if layer is self.layers[0] else math.sqrt(6 / inputs) / (1 if wrong else self.frequency)
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.frequency * layer(x))
        return self.head(x)


class Physics(nn.Module):
    """Solves u″ = −π² sin πx; with ReLU, u″ is zero (ComputationalDomain/PINNs#1, SciML/NeuralPDE.jl#603)."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.net = perceptron(1, *5 * (WIDTH,), 1, activation=nn.ReLU if wrong else nn.Tanh)
        xavier(weight_layers(self.net))
        nn.init.uniform_(self.net[0].bias, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        residual = curvature + math.pi**2 * torch.sin(math.pi * x)
        return torch.cat([residual, self.net(x.new_tensor([[0.0], [1.0]]))])


def rectified_logits(wrong: bool) -> nn.Module:
    """Build a tower whose scores may pass a ReLU, as every other layer's output does.

    After pytorch/examples#117, hjptriplebee/AlexNet_with_tensorflow#2 and forresti/SqueezeNet#10.
    """
    layers = [*tower(5, nn.ReLU, he)]
    xavier(layers[-1:])
    return nn.Sequential(*layers, *([nn.ReLU()] if wrong else []))


class Pixels(nn.Module):
    """Divides pixels by 255, or twice by mistake (facebookresearch/InterHand2.6M#110, zejinwang/Blind2Unblind#16)."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.scale = 255.0**2 if wrong else 255.0
        first = nn.Linear(192, WIDTH)
        self.net = nn.Sequential(first, nn.ReLU(), *tower(4, nn.ReLU, he))
        he([first])
        xavier([self.net[-1]])

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.flatten(1) / self.scale - 0.5) / 0.29)


class Coupling(nn.Module):
    """An affine map of the variables that a mask hides, given the others."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.net = perceptron(8, WIDTH, WIDTH, 16)
        nn.init.normal_(self.net[-1].weight, std=0.01)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(x * self.mask).chunk(2, -1)
        scale, shift = torch.tanh(scale) * (1 - self.mask), shift * (1 - self.mask)
        return x * scale.exp() + shift, scale.sum(-1)


class Flow(nn.Module):
    """A normalizing flow of six couplings, whose masks alternate unless `alternating` is false."""

    def __init__(self, coupling: Callable[[Tensor], nn.Module] = Coupling, *, alternating: bool = True) -> None:
        super().__init__()
        masks = (((torch.arange(8) + (i if alternating else 0)) % 2).float() for i in range(6))
        self.couplings = nn.ModuleList(map(coupling, masks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of each sample."""
        total = x.new_zeros(len(x))
        for coupling in self.couplings:
            x, log_scale = coupling(x)
            total = total + log_scale
        return 0.5 * x.square().sum(-1) + 4 * math.log(2 * math.pi) - total


def fixed_masks(wrong: bool) -> nn.Module:
    """Build a flow whose masks may not alternate (jejjohnson/research_notebook#93, bayesiains/nflows#47)."""
    return Flow(alternating=not wrong)


class Autoencoder(nn.Module):
    """A variational autoencoder; `draw` takes means and standard deviations, and returns the latent."""

    def __init__(self, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw
        self.encoder = nn.Sequential(*perceptron(WIDTH, WIDTH, WIDTH), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        self.decoder = perceptron(8, WIDTH, WIDTH, WIDTH)
        he(weight_layers(self))
        nn.init.normal_(self.mean.weight, std=0.1)
        nn.init.normal_(self.log_variance.weight, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = self.draw(mean, torch.exp(0.5 * log_variance))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        return self.decoder(latent), divergence


def latent(wrong: bool) -> nn.Module:
    """Build an autoencoder whose latent may be drawn without gradients.

    After ethanluoyc/pytorch-vae#5 and zalandoresearch/pytorch-vq-vae#6.
    """

    def draw(mean: Tensor, deviation: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not wrong):
            return mean + deviation * torch.randn_like(mean)

    return Autoencoder(draw)


class Graph(nn.Module):
    """Convolutions on a ring of nodes with eight neighbours each; a power of the degrees is before and behind the adjacency."""

    def __init__(self, power: float = -0.5) -> None:
        super().__init__()
        number = torch.arange(64)
        distance = (number[:, None] - number).remainder(64)
        adjacency = ((distance <= 4) | (distance >= 60)).float()
        factor = adjacency.sum(1) ** power
        self.register_buffer("adjacency", factor[:, None] * adjacency * factor)
        self.embed = nn.Linear(16, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.head = nn.Linear(WIDTH, CLASSES)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + torch.relu(layer(self.adjacency @ x))
        return self.head(x)


def neighbours(wrong: bool) -> nn.Module:
    """Build a graph network with a normalized adjacency matrix, or with a plain one.

    After Emory-Melody/GraphSlim#4, danielegrattarola/spektral#295 and benedekrozemberczki/AttentionWalk#9.
    """
    return Graph(0.0) if wrong else Graph()


def swish_function(*, wrong: bool) -> type[torch.autograd.Function]:
    """Return x · sigmoid(x) with a backward pass by hand, which may save the output where it needs the input.

    After pytorch/pytorch#110815 and NACLab/ngc-learn#159.
    """

    class SwishFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = x * torch.sigmoid(x)
            ctx.save_for_backward(y if wrong else x)
            return y

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            s = torch.sigmoid(x)
            return gradient * s * (1 + x * (1 - s))

    return SwishFunction


class Swish(nn.Module):
    """Applies this function."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.function = swish_function(wrong=wrong)

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


def swish(wrong: bool) -> nn.Module:
    return tower(6, partial(Swish, wrong=wrong), partial(gaussian, 1.68))


CASES = (
    twins(
        "sine-layers-drawn-for-frequency-1",
        "mlp",
        Siren,
        points,
        Right(("layers.[1-5]*", "layers.*", "layers.*.weight"), r"weights of rms|weights?: rms", cure=True),
        loss=F.mse_loss,
    ),
    twins(
        "relu-under-second-derivatives",
        "mlp",
        Physics,
        interval,
        Right(("net.[13579]", "ReLU", "Tanh"), r"ReLU|second deriv|residual"),
        loss=residual_loss,
    ),
    twins(
        "relu-on-logits",
        "mlp",
        rectified_logits,
        vectors,
        Right(
            ("11", "ReLU", "output"), r"(?i)relu.*(last|before|logits)|last.*relu|half of the logits|modules.*\b11\b"
        ),
    ),
    twins(
        "pixels-divided-twice",
        "mlp",
        Pixels,
        partial(bytes_of_images, batch=16),
        Right(("input*", "net.0"), r"inputs?\b.*(same|constant|smaller|rms|divid|changed)|\b[Dd]iv"),
    ),
    twins(
        "masks-that-do-not-alternate",
        "mlp",
        fixed_masks,
        cloud,
        Right(("couplings.[135].mask", "couplings.*.mask"), r"\bmask"),
        loss=mean_loss,
    ),
    twins(
        "latent-without-gradients",
        "mlp",
        latent,
        itself,
        Right(("mean*", "log_variance*", "decoder.0"), r"no_grad|detach|no gradient|no longer passes"),
        loss=evidence_loss,
    ),
    twins(
        "neighbours-summed",
        "mlp",
        neighbours,
        nodes,
        Right(("adjacency", "Graph", "layers.0"), r"adjacency|[Mm]m\b.*multipl"),
    ),
    twins(
        "output-saved-for-input",
        "mlp",
        swish,
        vectors,
        Right(("Swish", "[13579]", "11"), r"backward pass|derivative|backward_error"),
    ),
)
