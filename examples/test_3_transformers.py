"""Architectures of transformers, built from their configuration: a model, inputs with labels, and bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_trainability import at_least, at_most, within

transformers = pytest.importorskip("transformers")

# Bounds for every architecture here. A test can add bounds, and the nearest marker wins.
pytestmark = pytest.mark.trainability(lyapunov_max=within(0.6), nonfinite=at_most(0))


def text(vocabulary: int = 512, *, length: int = 32) -> dict[str, Tensor]:
    """Return a batch of token ids that are their own labels."""
    ids = torch.randint(10, vocabulary, (4, length))
    return {"input_ids": ids, "labels": ids}


def images(size: int = 64) -> dict[str, Tensor]:
    """Return a batch of images with class labels."""
    return {"pixel_values": torch.randn(4, 3, size, size), "labels": torch.randint(10, (4,))}


def gpt2(**settings: float):
    """Return GPT-2 in its default configuration, but narrower."""
    config = transformers.GPT2Config(
        vocab_size=512, n_positions=64, n_embd=192, n_head=6, bos_token_id=0, eos_token_id=0, **settings
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.trainability(log_gain=within(1.5), gradient_norm=at_least(1e-4))
def test_gpt2(trainability):
    measured = trainability(gpt2, text())
    assert str(measured.steps) == "12 × GPT2Block"


def test_bert(trainability):
    config = transformers.BertConfig(vocab_size=512, hidden_size=192, intermediate_size=768, num_attention_heads=6)
    bert = trainability(lambda: transformers.BertForMaskedLM(config), text())
    # The bias of a key shifts all scores of a query by the same amount, which softmax cancels: its gradient is round-off.
    assert bert.gradient_norm.excluding("*.key.bias") > 1e-5


@pytest.mark.trainability(gradient_norm=at_least(1e-4))
def test_t5(trainability):
    config = transformers.T5Config(
        vocab_size=512, d_model=192, d_ff=768, d_kv=32, num_heads=6, decoder_start_token_id=0
    )
    t5 = trainability(lambda: transformers.T5ForConditionalGeneration(config), text())
    # Encoder and decoder form one chain, because the decoder reads the output of the encoder.
    assert str(t5.steps) == "12 × T5Block"


def test_vit(trainability):
    config = transformers.ViTConfig(
        hidden_size=192, intermediate_size=768, num_attention_heads=6, image_size=64, num_labels=10
    )
    vit = trainability(lambda: transformers.ViTForImageClassification(config), images())
    assert vit.gradient_norm.matching("*.weight") > 1e-5


@pytest.mark.trainability(gradient_norm=at_least(1e-3))
def test_resnet50(trainability):
    config = transformers.ResNetConfig(num_labels=10)
    resnet = trainability(lambda: transformers.ResNetForImageClassification(config), images())
    assert str(resnet.steps) == "16 × ResNetBottleNeckLayer"


def test_convnext(trainability):
    config = transformers.ConvNextConfig(hidden_sizes=[32, 64, 128, 256], num_labels=10)
    convnext = trainability(lambda: transformers.ConvNextForImageClassification(config), images())
    # LayerScale (1e-6) nearly switches its layers off at first: gradients in them are small, but reach the first layer.
    assert abs(convnext.log_gain) < 2
    assert convnext.gradient_norm.matching("*.layer_scale_parameter") > 1e-5


@pytest.mark.trainability(gradient_norm=at_least(1e-5))
def test_mamba(trainability):
    config = transformers.MambaConfig(vocab_size=512, hidden_size=128, num_hidden_layers=12)
    mamba = trainability(lambda: transformers.MambaForCausalLM(config), text(length=16))
    assert str(mamba.steps) == "12 × MambaBlock"


@pytest.mark.broken_on_purpose
@pytest.mark.trainability(log_gain=within(1.5), gradient_norm=at_least(1e-4))
def test_gpt2_decimal_slip(trainability):
    """0.2 instead of 0.02: nothing crashes and the loss decreases, but the gradient grows in every block."""
    trainability(lambda: gpt2(initializer_range=0.2), text())
