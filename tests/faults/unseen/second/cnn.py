"""Convolutions: a generator and its discriminator, a denoising network, normalized weights, and a scale for each layer."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from ...cases import WIDTH, Right, images, twins
from ...convolutions import CHANNELS, Pooled, conv_tower
from ...towers import he, perceptron, weight_layers
from ..first.cnn import STEPS, Denoiser, controlled

# Tasks ------------------------------------------------------------------------------------------------------------


def codes(generator: torch.Generator, *, batch: int = 16) -> tuple[Tensor, Tensor]:
    """Draw codes of images that should pass for real ones."""
    return torch.randn(batch, CHANNELS, 1, 1, generator=generator), torch.ones(batch, 1)


def noisy_images(generator: torch.Generator, *, batch: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    """Draw noisy gratings, and times between 0 and 1; the noise is asked for."""
    drawn, noise = controlled(generator, batch=batch)
    return {"x": drawn["x"], "time": drawn["time"] / STEPS}, noise


# Models -----------------------------------------------------------------------------------------------------------


def up(inputs: int, outputs: int, *, first: bool = False) -> list[nn.Module]:
    """Return a transposed convolution that doubles the size of an image, or makes 4 × 4 of a code, and what is behind it."""
    convolution = nn.ConvTranspose2d(inputs, outputs, 4, 1 if first else 2, 0 if first else 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def down(inputs: int, outputs: int) -> list[nn.Module]:
    """Return a convolution that halves the size of an image, with normalized weights."""
    return [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]


class Adversaries(nn.Module):
    """What a discriminator says of generated images; they may be detached, as in the step of the discriminator."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        wide, self.wrong = 2 * CHANNELS, wrong
        last = [nn.ConvTranspose2d(CHANNELS, 3, 4, 2, 1), nn.Tanh()]
        self.generator = nn.Sequential(*up(CHANNELS, wide, first=True), *up(wide, CHANNELS), *last)
        parts = [*down(3, CHANNELS), *down(CHANNELS, wide), nn.Flatten()]
        self.discriminator = nn.Sequential(*parts, nn.Linear(wide * 16, 1))

    def forward(self, code: Tensor) -> Tensor:
        image = self.generator(code)
        return self.discriminator(image.detach() if self.wrong else image)


def small_times(wrong: bool) -> nn.Module:
    """Build a denoiser that takes times between 0 and 1 for its waves of up to 1000 steps, or multiplies them by 1000."""
    return Denoiser(factor=1.0 if wrong else float(STEPS), zero_branches=False)


def lost_draw(wrong: bool) -> nn.Module:
    """Build a tower whose weights are drawn after He and then normalized, or the other way around.

    A normalized weight is computed from its length and its direction, so that what is drawn into it is lost.
    """
    model = conv_tower(depth=16)
    for layer in weight_layers(model.body):
        if wrong:
            layer.reset_parameters()
            nn.init.zeros_(layer.bias)
        weight_norm(layer)
        if wrong:
            with torch.no_grad():
                he([layer])
    return model


class Scaled(nn.Module):
    """A block of ConvNeXt (Liu and others, 2022), whose scale may multiply the skip connection as well."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3, groups=CHANNELS)
        self.norm, self.pointwise = nn.LayerNorm(CHANNELS), perceptron(CHANNELS, WIDTH, CHANNELS, activation=nn.GELU)
        self.gamma, self.wrong = nn.Parameter(torch.full((CHANNELS,), 1e-6)), wrong

    def forward(self, x: Tensor) -> Tensor:
        branch = self.pointwise(self.norm(self.depthwise(x).movedim(1, -1)))
        if self.wrong:
            return (self.gamma * (x.movedim(1, -1) + branch)).movedim(-1, 1)
        return x + (self.gamma * branch).movedim(-1, 1)


def scaled_skips(wrong: bool) -> nn.Module:
    """Build four such blocks on what a first layer sees, with a normalization in front of the head."""
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 4, 2), nn.ReLU())
    model = Pooled(stem, nn.Sequential(*(Scaled(wrong=wrong) for _ in range(4))))
    for layer in weight_layers(model):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    model.head = nn.Sequential(nn.LayerNorm(CHANNELS), model.head)
    return model


CASES = (
    twins(
        "generator-behind-detach",
        "cnn",
        Adversaries,
        codes,
        Right(("generator*",), r"detach|no gradient|without a gradient"),
        loss=F.binary_cross_entropy_with_logits,
    ),
    twins(
        "time-between-0-and-1",
        "cnn",
        small_times,
        noisy_images,
        Right(
            ("time", "time.[01]*", "Waves"), r"\b1000\b|hardly depends?|depends? on the time|\bsines?\b|\bcosines?\b"
        ),
        loss=F.mse_loss,
    ),
    twins(
        "draw-lost-to-weight-norm",
        "cnn",
        lost_draw,
        images,
        Right(
            ("body.*.parametrizations*", "body.*.weight", "body.[02468]", "body.[0-9]*[02468]", "ParametrizedConv2d"),
            r"weights? of rms|weights?: rms|\bHe('s)?\b|weights.* smaller|original0.*(rms|×)",
            cure=True,
        ),
    ),
    twins(
        "layer-scale-on-the-skip",
        "cnn",
        scaled_skips,
        partial(images, batch=8, size=16),
        Right(("body.*.gamma", "body.[0-9]", "Scaled"), r"gamma\b.*multipl|multipl.*\bgamma|\bskip", cure=True),
    ),
)
