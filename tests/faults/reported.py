"""Faults after public reports, each with its healthy twin: the kinds of mistake that real projects have made.

Each entry names the report, which describes the mistake in a model of another size. The models here are small. A flawed model and
its twin come from the same builder. Some mistakes are invisible at initialization, and some reported mistakes are none: these
entries say why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import Bound, at_least, at_most

from .cases import (
    BuildTwin,
    Case,
    Family,
    Loss,
    Right,
    Task,
    fields,
    images,
    many_tokens,
    sequence,
    text,
    token_loss,
    vectors,
)
from .convolutions import CHANNELS
from .reported_models import (
    Between,
    Fields,
    LeakyReader,
    Listed,
    Quantizer,
    Scaled,
    Swish,
    Vdsr,
    WithLoss,
    alibi,
    best_over_itself,
    best_then_softmax,
    detector_extras,
    double_log_softmax,
    drawn_norms,
    filters,
    frozen_embedding,
    half_precision,
    head,
    ignored_gradient,
    inserted,
    masked,
    nan_in_a_weight,
    norm_of_one_element,
    orthogonal_lstm,
    rms_norms,
    routed,
    sine_positions,
    stochastic_depth,
    swapped_norms,
    vit_with_zero_head,
)
from .towers import gaussian, tower


@dataclass(frozen=True)
class ReportedFault:
    """A fault, the report that describes it, and how it can be seen."""

    flawed: Case
    report: str
    fault: str
    """What is wrong, in a line."""
    preset: tuple[str, ...] = ()
    """Bounds of the family's preset that the flawed model violates, on two seeds as on eight."""
    twin_preset: tuple[str, ...] = ()
    """Bounds of the family's preset that the healthy twin violates."""
    bound: tuple[str, Bound] | None = None
    """A bound that holds for the healthy twin and fails for the flawed model, where those of the preset hold."""
    why: str = ""
    """Why the preset does not flag it, and what does."""
    harmless: bool = False
    """Whether the report describes no fault: a check must not flag the model."""

    @property
    def slug(self) -> str:
        return self.flawed.id

    @property
    def healthy(self) -> Case:
        assert self.flawed.twin is not None
        return self.flawed.twin


# Tasks ------------------------------------------------------------------------------------------------------------


def reconstruction(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ask for the input."""
    inputs, _ = vectors(generator)
    return inputs, inputs


def denoising(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ask for an image without its noise."""
    clean, _ = images(generator)
    return clean + 0.3 * torch.randn(clean.shape, generator=generator), clean


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def with_latent_loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """Add the loss of the code book to that of the reconstruction."""
    return squared_error(output[0], target) + output[1]


def own_loss(output: dict[str, Tensor], _: Tensor) -> Tensor:
    """Take the loss that the model has computed."""
    return output["loss"]


larger_images = partial(images, batch=8, size=16)


# The list ---------------------------------------------------------------------------------------------------------


def _reported(
    slug: str,
    report: str,
    fault: str,
    family: Family,
    build: BuildTwin,
    task: Task,
    *,
    loss: Loss | None = F.cross_entropy,
    steps: str = "auto",
    dtype: str | None = None,
    right: Right | None = None,
    **judgement: Any,
) -> ReportedFault:
    """Describe both twins, which differ in the argument of `build` only."""
    healthy = Case(f"{slug}, twin", family, partial(build, False), task, loss, steps, dtype=dtype)
    flawed = replace(healthy, id=slug, build=partial(build, True), twin=healthy, right=right)
    return ReportedFault(flawed, report, fault, **judgement)


REPORTED: tuple[ReportedFault, ...] = (
    _reported(
        "drawn-norms",
        "huggingface/transformers#143",
        "gains and offsets of LayerNorms drawn from N(0, 0.02²) like weights",
        "transformer",
        drawn_norms,
        text,
        loss=token_loss,
        preset=("unusual_parameters",),
        right=Right(("*norm*", "LayerNorm"), r"gain of a normalization|gain .*rms", cure=True),
    ),
    _reported(
        "head-of-variance-1",
        "huggingface/transformers#26441",
        "head with weights of variance 1 instead of 1/width",
        "transformer",
        head,
        text,
        loss=token_loss,
        preset=("excess_loss",),
        right=Right(("head*",), r"head.*rms|rms.*head|initial values", cure=True),
    ),
    _reported(
        "zero-positions",
        "zhu-xlab/DOFA#10",
        "frozen position embedding of zeros instead of sines",
        "transformer",
        sine_positions,
        images,
        preset=("unusual_parameters",),
        right=Right(("positions*",), r"entries are 0|zero", cure=True),
    ),
    _reported(
        "second-bias",
        "pyg-team/pytorch_geometric#3523",
        "bias of the first layer zeroed twice, that of the second layer never",
        "mlp",
        filters,
        vectors,
        why="no measure differs from the twin: a bias of ±0.12 is harmless. A baseline of the initial values sees it",
        right=Right(("*outer.bias",), r"outer\.bias", cure=True),
    ),
    _reported(
        "doubled-gain",
        "huggingface/transformers#40796, huggingface/transformers#40449",
        "weight of ones in a norm that multiplies by 1 + weight",
        "transformer",
        rms_norms,
        text,
        loss=token_loss,
        bound=("log_gain", at_most(1.6)),
        why="the gradient grows by 2.2 instead of 1.2 nats; the stream of a healthy Llama grows by more",
        right=Right(("*norm*", "OffsetRmsNorm"), r"gain|norm.*weight", cure=True),
    ),
    _reported(
        "gates-as-one-matrix",
        "vwxyzjn/cleanrl#358, keras-team/keras#9149",
        "recurrent weights of four gates drawn orthogonal as one matrix",
        "rnn",
        orthogonal_lstm,
        partial(sequence, length=30),
        steps="time",
        bound=("memory_horizon", at_least(30)),
        why="the LSTM remembers 21 steps instead of 60; PyTorch's weights remember less",
        right=Right(("layer*", "LSTM"), r"orthogonal|rms × √inputs|weight_hh", cure=True),
    ),
    _reported(
        "alibi-slopes",
        "ml-explore/mlx#3071",
        "ALiBi slopes of 6 heads by the formula for powers of two",
        "transformer",
        alibi,
        text,
        loss=token_loss,
        why="`attention_entropy` rises by 2 %: a constant is wrong. A baseline of its value sees it",
        right=Right(("*slopes*", "*attention*"), r"slopes"),
    ),
    _reported(
        "decay-in-the-wrong-space",
        "proger/hippogriff#5",
        "decay drawn as a share, but used through a sigmoid: the state keeps 0.7 per step",
        "rnn",
        LeakyReader,
        partial(sequence, length=60),
        steps="time",
        preset=("log_gain",),
        right=Right(("cell*", "LeakyCell"), r"decay|keeps?|slopes from", cure=True),
    ),
    _reported(
        "python-list",
        "LianpoWang/SLIIF#13, pytorch/pytorch#666",
        "layers in a Python list, which does not register them",
        "mlp",
        Listed,
        vectors,
        preset=("unregistered_parameters",),
        right=Right(("hidden*", "*hidden*", "*Linear*", "step*", "*"), r"unregistered"),
    ),
    _reported(
        "float16-scores",
        "ultralytics/ultralytics#24990, pytorch/pytorch#60939",
        "queries and keys multiplied before they are scaled: overflow in float16",
        "transformer",
        half_precision,
        text,
        loss=token_loss,
        dtype="float16",
        preset=(
            *("log_gain", "nonfinite", "unusual_parameters", "activation_rms", "excess_loss"),
            *("attention_entropy", "interacting_samples"),
        ),
        twin_preset=("unusual_parameters", "attention_entropy"),
        right=Right(("*attention*", "HalfPrecisionAttention"), r"not finite|overflow|float16"),
    ),
    _reported(
        "norm-of-one-element",
        "pytorch/pytorch#19250",
        "GroupNorm with as many groups as channels on a 1×1 map: its output is its offset",
        "cnn",
        norm_of_one_element,
        larger_images,
        preset=("log_gain", "untrained_fraction", "asleep_parameters"),
        right=Right(("body.1*", "GroupNorm"), r"one element"),
    ),
    _reported(
        "reentrant-checkpoint",
        "pytorch/pytorch#7617, huggingface/transformers#21381, mlfoundations/open_clip#573",
        "re-entrant checkpoints behind a frozen embedding: no gradient in the layers",
        "transformer",
        frozen_embedding,
        text,
        loss=token_loss,
        preset=("untrained_fraction",),
        right=Right(("layers.*", "Checkpointed", "Layer"), r"no gradient|checkpoint|untrained"),
    ),
    _reported(
        "ignored-gradient",
        "k2-fsa/k2#341",
        "custom backward pass that ignores the gradient that arrives",
        "mlp",
        ignored_gradient,
        vectors,
        preset=("log_gain", "backward_error"),
        right=Right(("11", "HalfSwish"), r"backward|derivative|multiplies the gradient"),
    ),
    _reported(
        "straight-through",
        "NTU-AIoT-Lab/EfficientFi#4",
        "straight-through estimator without detach: the reconstruction does not train the encoder",
        "mlp",
        Quantizer,
        reconstruction,
        loss=with_latent_loss,
        preset=("log_gain",),
        right=Right(("encoder*",), r"no gradient|cancel|detach|round-off"),
    ),
    _reported(
        "weight-over-itself",
        "jingyaogong/minimind#859",
        "weight of the only chosen expert divided by itself: the router gets round-off",
        "transformer",
        partial(routed, best_over_itself),
        many_tokens,
        loss=token_loss,
        preset=("asleep_parameters",),
        right=Right(("*router*",), r"round-off|asleep|cancel|no gradient"),
    ),
    _reported(
        "softmax-of-one",
        "davidmrau/mixture-of-experts#27",
        "softmax over the score of the only chosen expert: the router gets no gradient",
        "transformer",
        partial(routed, best_then_softmax),
        many_tokens,
        loss=token_loss,
        preset=("asleep_parameters",),
        right=Right(("*router*",), r"round-off|asleep|cancel|no gradient"),
    ),
    _reported(
        "double-log-softmax",
        "speedinghzl/Pytorch-Deeplab#2",
        "log-softmax in front of the cross-entropy",
        "mlp",
        double_log_softmax,
        vectors,
        harmless=True,
        why="no fault: the log-softmax of a log-softmax is itself",
    ),
    _reported(
        "linear-extras",
        "amdegroot/ssd.pytorch#134, Nota-NetsPresso/netspresso-trainer#320",
        "no activations between the extra convolutions of a detector",
        "cnn",
        detector_extras,
        larger_images,
        preset=("linear_steps",),
        right=Right(("body*",), r"linear_steps|activation"),
    ),
    _reported(
        "causal-leak",
        "huggingface/pytorch-image-models#2236, QwenLM/Qwen#933, facebookresearch/xformers#103",
        "masked_fill, which is not in place: each position sees the token that it predicts",
        "transformer",
        masked,
        text,
        loss=token_loss,
        preset=("leaked_targets",),
        right=Right(("*attention*", "layers.*"), r"mask|leak|later positions"),
    ),
    _reported(
        "stochastic-depth",
        "mosaicml/composer#372",
        "branches kept with probability 0.5 in training, and not halved in evaluation",
        "cnn",
        stochastic_depth,
        images,
        why="only evaluation is wrong. A baseline with `train=False` sees it (`activation_rms`, `gradient_norm`)",
        right=Right(("body*",), r"evaluation|mode"),
    ),
    _reported(
        "zero-head",
        "pytorch/vision#5804",
        "head of zeros, as in the original vision transformer",
        "transformer",
        vit_with_zero_head,
        images,
        harmless=True,
        why="no fault: all gradients are zero at first, but after one step of the optimizer none is",
    ),
    _reported(
        "nan-on-most-draws",
        "allenai/OLMo-core#698, huggingface/transformers#45902",
        "a weight that is NaN on most draws, and one more number drawn",
        "mlp",
        nan_in_a_weight,
        vectors,
        loss=None,
        preset=("log_gain", "nonfinite", "activation_rms", "dead_fraction", "saturated_fraction"),
        right=Right(("4*",), r"4\.weight|not finite"),
    ),
    _reported(
        "loss-inside",
        "NTU-AIoT-Lab/EfficientFi#4",
        "tanh layers of gain 0.5, in a model that computes its loss from its input",
        "mlp",
        lambda wrong: WithLoss(gain=0.5 if wrong else 1.1),
        vectors,
        loss=own_loss,
        preset=("log_gain",),
        right=Right(("Linear", "layers*"), r"weights of rms", cure=True),
    ),
    _reported(
        "swapped-norms",
        "google/objax#94",
        "gain and offset of LayerNorms swapped: gain 0, offset 1",
        "transformer",
        swapped_norms,
        text,
        loss=token_loss,
        preset=("unusual_parameters", "untrained_fraction"),
        right=Right(("*norm*", "LayerNorm"), r"exchanged|gain", cure=True),
    ),
    _reported(
        "small-weights-before-swish",
        "k2-fsa/k2#341",
        "20 layers of gain 1 before a swish that is written by hand",
        "mlp",
        lambda wrong: tower(20, Swish, partial(gaussian, 1.0 if wrong else 1.6)),
        vectors,
        loss=None,
        preset=("log_gain",),
        right=Right(("Linear", "Swish", "*.weight"), r"weights of rms|slopes of rms", cure=True),
    ),
    _reported(
        "global-skip",
        "jSm449g4d/Research#15, twtygqyy/pytorch-vdsr#36",
        "12 convolutions of std 0.01 inside a skip from the input to the output",
        "cnn",
        lambda wrong: Vdsr(std=0.01 if wrong else math.sqrt(2 / (9 * CHANNELS))),
        denoising,
        loss=squared_error,
        preset=("log_gain",),
        right=Right(("body*", "Conv2d"), r"rms|branch", cure=True),
    ),
    _reported(
        "factor-between-layers",
        "pytorch/pytorch#19250, NTU-AIoT-Lab/EfficientFi#4",
        "a factor of 10⁻⁴ between two layers",
        "mlp",
        partial(inserted, nn.Identity(), Between(1e-4)),
        vectors,
        preset=("log_gain",),
        right=Right(("6", "Between"), r"multiplies the gradient by 0\.0001", cure=True),
    ),
    _reported(
        "norm-over-fields",
        "reczoo/FuxiCTR#23",
        "LayerNorm over fields and features instead of features",
        "mlp",
        Fields,
        fields,
        why="the values are normalized either way; only the shape of the weight, (4, 16) instead of (16,), shows it",
        right=Right(("norm*", "LayerNorm"), r"norm"),
    ),
    _reported(
        "wrong-factor-backward",
        "zergtant/pytorch-handbook#69, pytorch/pytorch#995",
        "custom function that multiplies by 0.2 forward and by 1 backward",
        "mlp",
        partial(inserted, Scaled(0.2), Scaled(1.0)),
        vectors,
        preset=("backward_error",),
        right=Right(("6", "Scaled"), r"backward|derivative|multiplies the gradient"),
    ),
)
