"""Faults from published taxonomies (Humbatova 2020, DeepCrime, TheDeepChecker, AUTOTRAINER) and from issues of real projects."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from .cases import WIDTH, Build, Case, Right, bytes_of_images, bytes_of_vectors, of_probabilities, token_loss
from .convolutions import conv_tower, depthwise_tower, resnet, unnormalized_resnet
from .healthy import (
    CONVOLUTIONS_TWIN,
    DEEP_GPT_TWIN,
    DEEP_TWIN,
    DEPTHWISE_TWIN,
    ENCODER_TWIN,
    GPT_TWIN,
    HALF_TWIN,
    LSTM_TWIN,
    MLP_TWIN,
    MOE_TWIN,
    RELU_TWIN,
    RESIDUAL_TWIN,
    RESNET_TWIN,
    RNN_TWIN,
    SHALLOW_TANH_TWIN,
    TANH_TWIN,
    TRANSLATOR_TWIN,
    UNNORMALIZED_TWIN,
)
from .recurrent import lstm, rnn
from .towers import constant, framework_default, gaussian, he, residual_tower, shallow, tower, xavier
from .transformers import GPT, Attention, Layer, Mixture, TorchEncoder, Translator, through_meta_device


def _fault(number: int, name: str, twin: Case, build: Build, *caught_by: str, **changes: Any) -> Case:
    """Change what is wrong with a healthy model, and nothing else."""
    return replace(twin, id=name, build=build, number=number, twin=twin, caught_by=caught_by, **changes)


def _mean_of_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Divide by the million tokens of all accumulated batches what is a mean over tokens already."""
    return token_loss(logits, labels) / 2**20


FAULTS: tuple[Case, ...] = (
    _fault(
        1,
        "tanh tower of gain 0.7",
        TANH_TWIN,
        partial(tower, 40, nn.Tanh, partial(gaussian, 0.7)),
        "log_gain",
        right=Right(("Linear", "*.weight"), r"weights of rms", cure=True),
    ),
    _fault(
        2,
        "tanh tower of gain 2",
        TANH_TWIN,
        partial(tower, 40, nn.Tanh, partial(gaussian, 2.0)),
        "log_gain",
        right=Right(("Linear", "*.weight"), r"weights of rms", cure=True),
    ),
    _fault(
        3,
        "He dropped",
        RELU_TWIN,
        partial(tower, 40, nn.ReLU, framework_default),
        "log_gain",
        right=Right(("Linear", "*.weight"), r"weights of rms", cure=True),
    ),
    _fault(
        4,
        "Xavier where He belongs",
        RELU_TWIN,
        partial(tower, 40, nn.ReLU, xavier),
        "log_gain",
        right=Right(("Linear", "ReLU", "*.weight"), r"weights of rms|slopes of rms 0\.7", cure=True),
    ),
    _fault(
        5,
        "weights of N(0, 1)",
        DEEP_TWIN,
        partial(tower, 60, nn.ReLU, partial(gaussian, math.sqrt(WIDTH))),
        "nonfinite",
        "log_gain",
        right=Right(("Linear", "*.weight"), r"weights of rms|not finite", cure=True),
    ),
    _fault(
        6,
        "sigmoid hidden units",
        MLP_TWIN,
        partial(tower, 8, nn.Sigmoid, framework_default),
        "log_gain",
        "saturated_fraction",
        right=Right(("Sigmoid",), r"slopes of rms 0\.2", cure=True),
    ),
    _fault(
        7,
        "constant weights",
        MLP_TWIN,
        partial(tower, 8, nn.ReLU, constant),
        "duplicate_parameters",
        right=Right(("Linear", "*.weight"), r"duplicate_parameters|units are equal", cure=True),
    ),
    _fault(
        8,
        "bias of -1 before ReLU",
        MLP_TWIN,
        partial(tower, 8, nn.ReLU, he, bias=-1.0),
        "dead_fraction",
        right=Right(("ReLU", "*.bias"), r"slopes are zero|dead_fraction", cure=True),
    ),
    _fault(
        9,
        "softmax before the cross-entropy",
        MLP_TWIN,
        partial(tower, 8, nn.ReLU, he, softmax=True),
        "squashed_scores",
        score=of_probabilities,
        right=Right(("Softmax", "output", "loss", "17"), r"[Ss]oftmax", cure=True),
    ),
    _fault(
        10,
        "inputs of 0–255 into an MLP",
        SHALLOW_TANH_TWIN,
        partial(shallow, nn.Tanh),
        "saturated_fraction",
        task=bytes_of_vectors,
        right=Right(("input*", "0", "1", "Tanh"), r"inputs?\b.*(rms|scale|large|147|142)", cure=True),
    ),
    _fault(
        11,
        "inputs of 0–255 into a ResNet without normalization",
        UNNORMALIZED_TWIN,
        unnormalized_resnet,
        "activation_rms",
        "gradient_norm",
        task=bytes_of_images,
        right=Right(("input*", "stem"), r"inputs?\b.*(rms|scale|large|147|142)", cure=True),
    ),
    _fault(
        12,
        "residual branches without scaling",
        RESIDUAL_TWIN,
        partial(residual_tower, scale=1.0),
        "log_gain",
        right=Right(("Branch",), r"branch", cure=True),
    ),
    _fault(
        13,
        "scaling of output projections lost",
        GPT_TWIN,
        partial(GPT, scaled_projections=False),
        "baseline",
        right=Right(
            ("*.out", "*.outer", "*.out.weight", "*.outer.weight"), r"in the branch|out(er)?\.weight", cure=True
        ),
    ),
    _fault(
        14,
        "layers cloned",
        ENCODER_TWIN,
        partial(TorchEncoder, redrawn=False),
        "duplicate_parameters",
        right=Right(("encoder.layers*",), r"duplicate_parameters", cure=True),
    ),
    _fault(
        15,
        "residual connection forgotten",
        GPT_TWIN,
        partial(GPT, layer=partial(Layer, skip=False)),
        "baseline",
        "log_gain",
        right=Right(("Layer", "layers.*"), r"skip|residual|\bAdd\b"),
    ),
    _fault(
        16,
        "normalization dropped",
        GPT_TWIN,
        partial(GPT, layer=partial(Layer, norm="none")),
        "baseline",
        right=Right(("*norm_1", "*norm_2", "LayerNorm", "layers.*"), r"[Nn]orm", cure=True),
    ),
    _fault(
        17,
        "post-LN, 24 layers",
        DEEP_GPT_TWIN,
        partial(GPT, 24, layer=partial(Layer, norm="post")),
        "baseline",
        right=Right(("*norm_1", "*norm_2", "LayerNorm", "layers.*"), r"[Nn]orm", cure=True),
    ),
    _fault(
        18,
        "1/√d_k missing",
        GPT_TWIN,
        partial(GPT, layer=partial(Layer, attention=partial(Attention, scaled=False))),
        "attention_entropy",
        "log_gain",
        right=Right(
            ("*attention*", "Attention", "layers.*"),
            r"scores|logits|scale|attention_entropy|constant of the forward",
            cure=True,
        ),
    ),
    _fault(
        19,
        "all weights of std 1",
        GPT_TWIN,
        partial(GPT, std=1.0),
        "log_gain",
        "excess_loss",
        right=Right(("Linear", "*.weight"), r"weights?\b.*rms|gain of", cure=True),
    ),
    _fault(
        20,
        "embedding of std 30",
        GPT_TWIN,
        partial(GPT, embedding_std=30.0),
        "activation_rms",
        "branch_ratio",
        right=Right(
            ("embedding*", "Embedding", "positions*"), r"embedding.* rms|rms .*embedding|activation_rms", cure=True
        ),
    ),
    _fault(
        21,
        "BatchNorm removed",
        RESNET_TWIN,
        partial(resnet, norm=False),
        "excess_loss",
        "log_gain",
        right=Right(("*norm_1", "*norm_2", "BatchNorm2d", "body*"), r"[Nn]orm|branch", cure=True),
    ),
    _fault(
        22,
        "skips removed, BatchNorm kept",
        RESNET_TWIN,
        partial(resnet, skip=False),
        "baseline",
        "log_gain",
        right=Right(("body*", "BasicBlock"), r"skip|residual|\bAdd\b"),
    ),
    _fault(
        23,
        "convolutions of std 0.01",
        CONVOLUTIONS_TWIN,
        partial(conv_tower, std=0.01),
        "log_gain",
        right=Right(("Conv2d", "body*"), r"weights of rms|rms .* over", cure=True),
    ),
    _fault(
        24,
        "RNN of gain 0.7",
        RNN_TWIN,
        partial(rnn, 0.7),
        "log_gain",
        right=Right(("layer*", "RNN"), r"recurrent weights|weight_hh", cure=True),
    ),
    _fault(
        25,
        "RNN of gain 1.6",
        RNN_TWIN,
        partial(rnn, 1.6),
        "log_gain",
        right=Right(("layer*", "RNN"), r"recurrent weights|weight_hh", cure=True),
    ),
    _fault(
        26,
        "fan of depthwise convolutions",
        DEPTHWISE_TWIN,
        partial(depthwise_tower, counts_groups=False),
        "log_gain",
        right=Right(("Conv2d", "body*"), r"weights of rms|rms .* over", cure=True),
    ),
    _fault(
        27,
        "a parameter of torch.empty",
        GPT_TWIN,
        partial(GPT, layer=partial(Layer, gain=True)),
        "uninitialized_parameters",
        right=Right(("layers.*.gain",), r"never written|uninitialized_parameters", cure=True),
    ),
    _fault(
        28,
        "initialization through the meta device",
        GPT_TWIN,
        through_meta_device,
        "baseline",
        right=Right(("*.weight", "embedding*", "Linear"), r"initial values"),
    ),
    _fault(
        29,
        "one BatchNorm missing",
        RESNET_TWIN,
        partial(resnet, missing=10),
        "baseline",
        right=Right(("body.10*",), r"[Nn]orm", cure=True),
    ),
    _fault(
        30,
        "decoder never initialized",
        TRANSLATOR_TWIN,
        partial(Translator, slip=True),
        "duplicate_parameters",
        right=Right(("encoder*", "decoder*"), r"duplicate_parameters|decoder.* rms", cure=True),
    ),
    _fault(
        31,
        "branches detached",
        RESIDUAL_TWIN,
        partial(residual_tower, detached=True),
        "unused_parameters",
        right=Right(("*inner*", "*outer*", "Branch"), r"unused|detach|no gradient"),
    ),
    _fault(
        32,
        "softmax over the batch",
        GPT_TWIN,
        partial(GPT, layer=partial(Layer, attention=partial(Attention, across=0))),
        "interacting_samples",
        right=Right(("*attention*", "Attention", "layers.*"), r"interacting|batch|samples"),
    ),
    _fault(
        33,
        "LSTM with forget bias -5",
        LSTM_TWIN,
        partial(lstm, -5.0),
        "log_gain",
        right=Right(("layer*", "LSTM"), r"forget gates of mean bias", cure=True),
    ),
    _fault(
        34,
        "gradients that float16 flushes",
        HALF_TWIN,
        GPT,
        "underflow_fraction",
        loss=_mean_of_mean,
        score=token_loss,
        right=Right(("loss", "*"), r"loss|underflow"),
    ),
    _fault(
        35,
        "activation function missing",
        MLP_TWIN,
        partial(tower, 8, None, he),
        "linear_steps",
        right=Right(("Linear", "*"), r"linear_steps|activation"),
    ),
    _fault(
        36,
        "router that favors two experts",
        MOE_TWIN,
        partial(GPT, 2, layer=partial(Layer, feed_forward=partial(Mixture, favored=8.0))),
        "expert_usage",
        right=Right(("*router*",), r"expert_usage|router.*bias", cure=True),
    ),
)
