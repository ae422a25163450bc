"""Healthy models, which must not be flagged: the twins of faults, and models that look like faults."""

from __future__ import annotations

from functools import partial

import torch
import zoo
from torch import nn

from .cases import Case, Family, conditioned, images, sequence, text, token_loss, translation, vectors
from .convolutions import FilmNet, conv_tower, depthwise_tower, lenet, resnet, unnormalized_resnet
from .recurrent import lstm, rnn
from .towers import frozen_backbone, gaussian, he, residual_tower, shallow, tower, zero_head
from .transformers import GPT, DiT, Layer, Mixture, TorchEncoder, Translator, ViT


def from_transformers(name: str, family: Family) -> Case:
    """Take a small model of `transformers`, initialized as its authors do."""
    case = next(case for case in zoo.CASES if case.id == name)
    return Case(f"transformers {name}", family, case.build, lambda g: (case.inputs(g), torch.zeros(())), loss=None)


_MIXTURE = partial(Layer, feed_forward=Mixture)

TANH_TWIN = Case("tanh tower of gain 1", "mlp", partial(tower, 40, nn.Tanh, partial(gaussian, 1.0)), vectors)
RELU_TWIN = Case("ReLU tower of 40 layers after He", "mlp", partial(tower, 40, nn.ReLU, he), vectors)
DEEP_TWIN = Case("ReLU tower of 60 layers after He", "mlp", partial(tower, 60, nn.ReLU, he), vectors)
MLP_TWIN = Case("ReLU tower of 8 layers after He", "mlp", partial(tower, 8, nn.ReLU, he), vectors)
SHALLOW_TANH_TWIN = Case("shallow tanh network", "mlp", partial(shallow, nn.Tanh), vectors)
RESIDUAL_TWIN = Case("residual tower of shared variance", "mlp", residual_tower, vectors)

UNNORMALIZED_TWIN = Case("ResNet without normalization", "cnn", unnormalized_resnet, images)
RESNET_TWIN = Case("BatchNorm ResNet of 20 blocks", "cnn", resnet, images)
CONVOLUTIONS_TWIN = Case("tower of convolutions after He", "cnn", conv_tower, images)
DEPTHWISE_TWIN = Case("depthwise and pointwise convolutions", "cnn", depthwise_tower, images)

GPT_TWIN = Case("pre-LN GPT", "transformer", GPT, text, token_loss)
DEEP_GPT_TWIN = Case("pre-LN GPT of 24 layers", "transformer", partial(GPT, 24), text, token_loss)
MOE_TWIN = Case("GPT with a mixture of experts", "transformer", partial(GPT, 2, layer=_MIXTURE), text, token_loss)
ENCODER_TWIN = Case(
    "torch.nn.TransformerEncoder, redrawn", "transformer", partial(TorchEncoder, redrawn=True), text, token_loss
)
TRANSLATOR_TWIN = Case("encoder and decoder", "transformer", Translator, translation, token_loss)
HALF_TWIN = Case("pre-LN GPT in float16", "transformer", GPT, text, token_loss, rounded=torch.float16)

RNN_TWIN = Case("orthogonal tanh RNN over 100 steps", "rnn", partial(rnn, 1.0), sequence, steps="time")
LSTM_TWIN = Case("LSTM with forget bias 1", "rnn", partial(lstm, 1.0), partial(sequence, length=30), steps="time")

_IMAGES_OF_A_CONDITION = partial(conditioned, images)

HEALTHY: tuple[Case, ...] = (
    # Twins of the faults
    *(TANH_TWIN, RELU_TWIN, DEEP_TWIN, MLP_TWIN, SHALLOW_TANH_TWIN, RESIDUAL_TWIN),
    *(UNNORMALIZED_TWIN, RESNET_TWIN, CONVOLUTIONS_TWIN, DEPTHWISE_TWIN),
    *(GPT_TWIN, DEEP_GPT_TWIN, MOE_TWIN, ENCODER_TWIN, TRANSLATOR_TWIN),
    *(RNN_TWIN, LSTM_TWIN),
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
