"""A zoo of small `transformers` architectures, to see what holds beyond the models one thinks of first.

Every case is built from its configuration, so nothing is ever downloaded, and is small enough that the
whole zoo is built, run and differentiated on one core in seconds. What is kept of each architecture is
what makes it hard to measure: its own block class, its own loss, its own kind of input and of output.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Build = Callable[[], nn.Module]
Inputs = Callable[[torch.Generator], dict[str, Tensor]]

BATCH = 3
VOCAB = 99
CLASSES = 10
FIRST_PLAIN_ID = 6  # ids below are left to padding, start, end and the like


@dataclass(frozen=True)
class Case:
    """One architecture, with what it is fed and what its maintainers would call its steps.

    `steps` counts calls, not modules, in the order of the first call: "4 × GPT2Block".
    """

    id: str
    build: Build
    inputs: Inputs
    steps: str
    note: str = ""


def _hf(model: str, config: str, *, fails_in: str = "", **settings: Any) -> Build:
    """Name the classes rather than import them: `transformers` is slow to load and not always there.

    A test of a model that cannot run with a version of `transformers`, `fails_in`, is skipped there.
    """

    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        if fails_in and f"{transformers.__version__}.".startswith(f"{fails_in}."):
            msg = f"{model} of transformers {fails_in} raises an error for these inputs, with and without this package"
            # Not an `Exception`, so that it passes through the measurement.
            pytest.skip(msg)
        # Configurations take nested dictionaries apart, hence the copy: a second build must see them whole.
        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**copy.deepcopy(settings)))
        return built

    return build


def _ids(generator: torch.Generator, length: int) -> Tensor:
    """Draw no special token: an early end or padding would switch off what is to be measured."""
    return torch.randint(FIRST_PLAIN_ID, VOCAB, (BATCH, length), generator=generator)


def _classes(generator: torch.Generator) -> Tensor:
    return torch.randint(0, CLASSES, (BATCH,), generator=generator)


def _causal(length: int = 12) -> Inputs:
    """The labels are the inputs: these models shift them by themselves."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        ids = _ids(generator, length)
        return {"input_ids": ids, "labels": ids.clone()}

    return inputs


def _tagged(length: int = 12, *, mask: bool = False) -> Inputs:
    """One label a position, as in masked language modelling; also what an encoder-decoder takes."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        batch = {"input_ids": _ids(generator, length), "labels": _ids(generator, length)}
        if mask:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        return batch

    return inputs


def _sentence(length: int = 12) -> Inputs:
    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {"input_ids": _ids(generator, length), "labels": _classes(generator)}

    return inputs


def _replaced(length: int = 12) -> Inputs:
    """ELECTRA's labels: was this token replaced or not."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "input_ids": _ids(generator, length),
            "labels": torch.randint(0, 2, (BATCH, length), generator=generator),
        }

    return inputs


def _translation(source: int = 12, target: int = 9, *, router_logits: bool = False) -> Inputs:
    """Lengths that differ, as in use: no tensor of the encoder then fits one of the decoder by accident."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        batch = {"input_ids": _ids(generator, source), "labels": _ids(generator, target)}
        if router_logits:
            batch["output_router_logits"] = torch.tensor(True)
        return batch

    return inputs


def _speech(*shape: int, target: int = 9) -> Inputs:
    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        features = torch.randn(BATCH, *shape, generator=generator)
        return {"input_features": features, "labels": _ids(generator, target)}

    return inputs


def _image(size: int, *, labels: bool = True) -> Inputs:
    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        batch = {"pixel_values": torch.randn(BATCH, 3, size, size, generator=generator)}
        if labels:
            batch["labels"] = _classes(generator)
        return batch

    return inputs


def _waveform(samples: int, target: int = 4) -> Inputs:
    """Few labels: CTC needs at least as many frames as labels, and one more for each repetition."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "input_values": torch.randn(BATCH, samples, generator=generator),
            "labels": torch.randint(FIRST_PLAIN_ID, 32, (BATCH, target), generator=generator),
        }

    return inputs


def _spectrogram(frames: int, bins: int) -> Inputs:
    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "input_values": torch.randn(BATCH, frames, bins, generator=generator),
            "labels": _classes(generator),
        }

    return inputs


def _pair(size: int, length: int, *, return_loss: bool) -> Inputs:
    """Pairs of text and image; `return_loss` is a tensor so that it can travel with the other inputs."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        batch = {
            "input_ids": _ids(generator, length),
            "pixel_values": torch.randn(BATCH, 3, size, size, generator=generator),
        }
        if return_loss:
            batch["return_loss"] = torch.tensor(True)
        return batch

    return inputs


def _question(size: int, length: int) -> Inputs:
    """Soft answers, as in visual question answering."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "input_ids": _ids(generator, length),
            "pixel_values": torch.randn(BATCH, 3, size, size, generator=generator),
            "labels": torch.rand(BATCH, CLASSES, generator=generator),
        }

    return inputs


def _probabilistic_forecast(past: int, future: int) -> Inputs:
    """The future is fed to the decoder (teacher forcing) and is the label as well."""

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "past_values": torch.randn(BATCH, past, generator=generator),
            "past_time_features": torch.randn(BATCH, past, 2, generator=generator),
            "past_observed_mask": torch.ones(BATCH, past),
            "future_values": torch.randn(BATCH, future, generator=generator),
            "future_time_features": torch.randn(BATCH, future, 2, generator=generator),
        }

    return inputs


def _forecast(past: int, future: int, channels: int) -> Inputs:
    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "past_values": torch.randn(BATCH, past, channels, generator=generator),
            "future_values": torch.randn(BATCH, future, channels, generator=generator),
        }

    return inputs


_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
_BERT_SIZE: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 192,
}
_BERT: dict[str, Any] = {**_BERT_SIZE, "vocab_size": VOCAB, "max_position_embeddings": 40}
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 192,
    "decoder_ffn_dim": 192,
}
_VIT: dict[str, Any] = {**_BERT_SIZE, "image_size": 32, "patch_size": 8}
_WAV2VEC2: dict[str, Any] = {
    **_BERT_SIZE,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}

_DECODERS: tuple[Case, ...] = (
    Case(
        "gpt2",
        _hf(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=VOCAB,
            n_positions=32,
            n_embd=48,
            n_layer=4,
            n_head=4,
            **_ENDS,
        ),
        _causal(),
        "4 × GPT2Block",
        "head tied to the embedding",
    ),
    Case(
        "gpt-neox",
        _hf("GPTNeoXForCausalLM", "GPTNeoXConfig", **_LLAMA, num_hidden_layers=3, bos_token_id=0),
        _causal(),
        "3 × GPTNeoXLayer",
    ),
    Case(
        "llama",
        _hf("LlamaForCausalLM", "LlamaConfig", **_LLAMA, num_hidden_layers=4, num_key_value_heads=2),
        _causal(),
        "4 × LlamaDecoderLayer",
    ),
    Case(
        "mistral",
        _hf(
            "MistralForCausalLM",
            "MistralConfig",
            **_LLAMA,
            num_hidden_layers=3,
            num_key_value_heads=2,
            sliding_window=8,
        ),
        _causal(),
        "3 × MistralDecoderLayer",
    ),
    Case(
        "qwen3",
        _hf(
            "Qwen3ForCausalLM",
            "Qwen3Config",
            **_LLAMA,
            num_hidden_layers=4,
            num_key_value_heads=2,
            head_dim=12,
        ),
        _causal(),
        "4 × Qwen3DecoderLayer",
    ),
    Case(
        "gemma2",
        _hf(
            "Gemma2ForCausalLM",
            "Gemma2Config",
            **_LLAMA,
            num_hidden_layers=4,
            num_key_value_heads=2,
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=8,
        ),
        _causal(),
        "4 × Gemma2DecoderLayer",
    ),
    Case(
        "phi",
        _hf("PhiForCausalLM", "PhiConfig", **_LLAMA, num_hidden_layers=3, pad_token_id=None),
        _causal(),
        "3 × PhiDecoderLayer",
    ),
    Case(
        "opt",
        _hf(
            "OPTForCausalLM",
            "OPTConfig",
            vocab_size=VOCAB,
            hidden_size=48,
            num_hidden_layers=4,
            ffn_dim=192,
            max_position_embeddings=32,
            num_attention_heads=4,
        ),
        _causal(),
        "4 × OPTDecoderLayer",
    ),
    Case(
        "bloom",
        _hf("BloomForCausalLM", "BloomConfig", vocab_size=VOCAB, hidden_size=48, n_layer=3, n_head=4),
        _causal(),
        "3 × BloomBlock",
        "the block returns (hidden state, attention); its GELU is a custom autograd function without jvp",
    ),
    Case(
        "falcon",
        _hf(
            "FalconForCausalLM",
            "FalconConfig",
            vocab_size=VOCAB,
            hidden_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            **_ENDS,
        ),
        _causal(),
        "4 × FalconDecoderLayer",
        "the block returns (hidden state, attention)",
    ),
    Case(
        "gpt-j",
        _hf(
            "GPTJForCausalLM",
            "GPTJConfig",
            vocab_size=VOCAB,
            n_positions=32,
            n_embd=48,
            n_layer=3,
            n_head=4,
            rotary_dim=8,
            **_ENDS,
        ),
        _causal(),
        "3 × GPTJBlock",
        "the block returns (hidden state, attention)",
    ),
    Case(
        "mpt",
        _hf("MptForCausalLM", "MptConfig", vocab_size=VOCAB, d_model=48, n_heads=4, n_layers=4, max_seq_len=32),
        _causal(),
        "4 × MptBlock",
        "the block returns (hidden state, attention)",
    ),
)

_ENCODERS: tuple[Case, ...] = (
    Case(
        "bert",
        _hf("BertForMaskedLM", "BertConfig", **_BERT, num_hidden_layers=4),
        _tagged(mask=True),
        "4 × BertLayer",
    ),
    Case(
        "roberta",
        _hf(
            "RobertaForSequenceClassification",
            "RobertaConfig",
            **_BERT,
            num_hidden_layers=3,
            num_labels=CLASSES,
        ),
        _sentence(),
        "3 × RobertaLayer",
    ),
    Case(
        "distilbert",
        _hf(
            "DistilBertForMaskedLM",
            "DistilBertConfig",
            vocab_size=VOCAB,
            max_position_embeddings=40,
            n_layers=3,
            n_heads=4,
            dim=48,
            hidden_dim=192,
        ),
        _tagged(),
        "3 × TransformerBlock",
    ),
    Case(
        "albert",
        _hf("AlbertForMaskedLM", "AlbertConfig", **_BERT, embedding_size=24, num_hidden_layers=4),
        _tagged(),
        "4 × AlbertLayerGroup",
        "one group of weights, called four times",
    ),
    Case(
        "electra",
        _hf("ElectraForPreTraining", "ElectraConfig", **_BERT, embedding_size=24, num_hidden_layers=3),
        _replaced(),
        "3 × ElectraLayer",
    ),
    Case(
        "deberta-v2",
        _hf(
            "DebertaV2ForMaskedLM",
            "DebertaV2Config",
            **_BERT,
            num_hidden_layers=3,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        ),
        _tagged(),
        "3 × DebertaV2Layer",
        "the block returns (hidden state, None)",
    ),
    Case(
        "mpnet",
        _hf("MPNetForMaskedLM", "MPNetConfig", **_BERT, num_hidden_layers=3),
        _tagged(),
        "3 × MPNetLayer",
    ),
    Case(
        "xlnet",
        _hf("XLNetLMHeadModel", "XLNetConfig", vocab_size=VOCAB, d_model=48, n_layer=3, n_head=4, d_inner=192),
        _tagged(),
        "3 × XLNetLayer",
        "inside, the batch is the second dimension; two-stream parameters stay without gradient",
    ),
    Case(
        "longformer",
        _hf(
            "LongformerForMaskedLM",
            "LongformerConfig",
            **_BERT,
            num_hidden_layers=3,
            attention_window=[4, 4, 4],
        ),
        _tagged(16),
        "3 × LongformerLayer",
        "projections of the global attention stay without gradient",
    ),
    Case(
        "funnel",
        _hf(
            "FunnelForMaskedLM",
            "FunnelConfig",
            vocab_size=VOCAB,
            block_sizes=[2, 2, 2],
            num_decoder_layers=2,
            d_model=48,
            n_head=4,
            d_head=12,
            d_inner=192,
        ),
        _tagged(16),
        "8 × FunnelLayer",
        "the sequence is halved between encoder blocks, restored for the decoder of the same class",
    ),
    Case(
        "big-bird",
        _hf(
            "BigBirdForMaskedLM",
            "BigBirdConfig",
            **_BERT,
            num_hidden_layers=3,
            block_size=2,
            num_random_blocks=1,
        ),
        _tagged(16),
        "3 × BigBirdLayer",
        "block-sparse attention seeds NumPy's global generator; the pooler stays without gradient",
    ),
)

_ENCODER_DECODERS: tuple[Case, ...] = (
    Case(
        "t5",
        _hf(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=VOCAB,
            d_model=48,
            d_kv=12,
            d_ff=192,
            num_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
        ),
        _translation(),
        "6 × T5Block",
        "the block returns (hidden state, position bias, cross position bias)",
    ),
    Case(
        "bart",
        _hf(
            "BartForConditionalGeneration",
            "BartConfig",
            **_BART,
            encoder_layers=3,
            decoder_layers=3,
            max_position_embeddings=32,
        ),
        _translation(),
        "3 × BartEncoderLayer + 3 × BartDecoderLayer",
    ),
    Case(
        "mbart",
        _hf(
            "MBartForConditionalGeneration",
            "MBartConfig",
            **_BART,
            encoder_layers=4,
            decoder_layers=3,
            max_position_embeddings=32,
        ),
        _translation(),
        "4 × MBartEncoderLayer + 3 × MBartDecoderLayer",
    ),
    Case(
        "whisper",
        _hf(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **_BART,
            encoder_layers=3,
            decoder_layers=4,
            num_mel_bins=20,
            max_source_positions=16,
            max_target_positions=16,
            decoder_start_token_id=3,
            pad_token_id=0,
            **_ENDS,
        ),
        _speech(20, 32),
        "3 × WhisperEncoderLayer + 4 × WhisperDecoderLayer",
        "frozen sinusoidal positions in the encoder",
    ),
    Case(
        "speech2text",
        _hf(
            "Speech2TextForConditionalGeneration",
            "Speech2TextConfig",
            **_BART,
            encoder_layers=4,
            decoder_layers=3,
            input_feat_per_channel=20,
            conv_channels=48,
            max_source_positions=64,
            max_target_positions=32,
        ),
        _speech(40, 20),
        "4 × Speech2TextEncoderLayer + 3 × Speech2TextDecoderLayer",
    ),
)

_VISION: tuple[Case, ...] = (
    Case(
        "vit",
        _hf("ViTForImageClassification", "ViTConfig", **_VIT, num_hidden_layers=4, num_labels=CLASSES),
        _image(32),
        "4 × ViTLayer",
    ),
    Case(
        "deit",
        _hf("DeiTForImageClassification", "DeiTConfig", **_VIT, num_hidden_layers=3, num_labels=CLASSES),
        _image(32),
        "3 × DeiTLayer",
    ),
    Case(
        "beit",
        _hf(
            "BeitForImageClassification",
            "BeitConfig",
            **_VIT,
            num_hidden_layers=4,
            num_labels=CLASSES,
            use_relative_position_bias=True,
        ),
        _image(32),
        "4 × BeitLayer",
        "stochastic depth in training mode",
    ),
    Case(
        "swin",
        _hf(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2, 2],
            num_heads=[2, 2, 4],
            window_size=4,
            num_labels=CLASSES,
        ),
        _image(32),
        "6 × SwinLayer",
        "stochastic depth in training mode; patch merging changes the shape between stages",
    ),
    Case(
        "convnext",
        _hf(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[16, 24, 32, 48],
            depths=[1, 1, 3, 1],
            num_labels=CLASSES,
        ),
        _image(64),
        "6 × ConvNextLayer",
        "layer scale of 1e-6: each block is close to the identity",
    ),
    Case(
        "resnet",
        _hf(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=16,
            hidden_sizes=[32, 48, 64, 96],
            depths=[2, 2, 2, 2],
            num_labels=CLASSES,
        ),
        _image(64),
        "8 × ResNetBottleNeckLayer",
        "batch normalization updates its statistics in training mode",
    ),
    Case(
        "mobilenet-v2",
        _hf(
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            depth_multiplier=0.25,
            finegrained_output=False,
            num_labels=CLASSES,
        ),
        _image(64),
        "16 × MobileNetV2InvertedResidual",
        "batch normalization; dropout of 0.8 before the head",
    ),
    Case(
        "efficientnet",
        _hf(
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            image_size=64,
            width_coefficient=0.25,
            depth_coefficient=1.0,
            kernel_sizes=[3, 3, 5, 3],
            in_channels=[32, 16, 24, 40],
            out_channels=[16, 24, 40, 80],
            strides=[1, 2, 2, 2],
            num_block_repeats=[1, 2, 2, 3],
            expand_ratios=[1, 6, 6, 6],
            hidden_dim=320,
            num_labels=CLASSES,
        ),
        _image(64),
        "8 × EfficientNetBlock",
        "batch normalization; the signal all but vanishes at initialization, so loss is log(10) in any mode",
    ),
    Case(
        "segformer",
        _hf(
            "SegformerForImageClassification",
            "SegformerConfig",
            hidden_sizes=[16, 24, 40, 64],
            num_attention_heads=[1, 2, 5, 8],
            num_labels=CLASSES,
        ),
        _image(64),
        "8 × SegformerLayer",
        "stochastic depth in training mode; strided embeddings change the shape between stages",
    ),
    Case(
        "poolformer",
        _hf(
            "PoolFormerForImageClassification",
            "PoolFormerConfig",
            hidden_sizes=[16, 24, 40, 64],
            depths=[2, 2, 2, 2],
            num_labels=CLASSES,
        ),
        _image(64),
        "8 × PoolFormerLayer",
        "layer scale of 1e-5: each block is close to the identity",
    ),
    Case(
        "dinov2",
        _hf(
            "Dinov2ForImageClassification",
            "Dinov2Config",
            hidden_size=48,
            num_attention_heads=4,
            num_hidden_layers=4,
            image_size=32,
            patch_size=8,
            num_labels=CLASSES,
        ),
        _image(32),
        "4 × Dinov2Layer",
        "the mask token stays without gradient",
    ),
    Case(
        "regnet",
        _hf(
            "RegNetForImageClassification",
            "RegNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 2, 3, 2],
            groups_width=8,
            num_labels=CLASSES,
        ),
        _image(64),
        "8 × RegNetYLayer",
        "batch normalization updates its statistics in training mode",
    ),
    Case(
        "detr",
        _hf(
            "DetrForObjectDetection",
            "DetrConfig",
            d_model=48,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=192,
            decoder_ffn_dim=192,
            num_queries=10,
            # By default, transformers 5.0 also names a pretrained backbone of timm.
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config={
                "model_type": "resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16, 24, 32],
                "depths": [1, 1, 1, 1],
                "layer_type": "basic",
                "out_features": ["stage4"],
            },
        ),
        _image(64, labels=False),
        "3 × DetrEncoderLayer + 3 × DetrDecoderLayer",
        "no loss, as labels are a list of dictionaries; backbone partly frozen, queries start at 0",
    ),
)

_AUDIO: tuple[Case, ...] = (
    Case(
        "wav2vec2",
        _hf("Wav2Vec2ForCTC", "Wav2Vec2Config", **_WAV2VEC2, num_hidden_layers=3),
        _waveform(600),
        "3 × Wav2Vec2EncoderLayer",
        "in training mode the waveform may not require grad, and masks come from NumPy's generator",
    ),
    Case(
        "hubert",
        _hf("HubertForCTC", "HubertConfig", **_WAV2VEC2, num_hidden_layers=4, apply_spec_augment=False),
        _waveform(600),
        "4 × HubertEncoderLayer",
        "in training mode the waveform may not require grad; masks off, so their embedding is unused",
    ),
    Case(
        "ast",
        _hf(
            "ASTForAudioClassification",
            "ASTConfig",
            **_BERT_SIZE,
            num_hidden_layers=3,
            patch_size=8,
            frequency_stride=6,
            time_stride=6,
            max_length=32,
            num_mel_bins=20,
            num_labels=CLASSES,
        ),
        _spectrogram(32, 20),
        "3 × ASTLayer",
    ),
)

_TWO_TOWERS: tuple[Case, ...] = (
    Case(
        "clip",
        _hf(
            "CLIPModel",
            "CLIPConfig",
            projection_dim=32,
            text_config={**_BERT, **_ENDS, "num_hidden_layers": 3, "projection_dim": 32},
            vision_config={**_VIT, "num_hidden_layers": 4, "projection_dim": 32},
        ),
        _pair(32, 10, return_loss=True),
        "4 × CLIPEncoderLayer",
        "three more calls of the class make up the text tower, which runs second; return_loss is a tensor",
    ),
    Case(
        "siglip",
        _hf(
            "SiglipModel",
            "SiglipConfig",
            text_config={**_BERT, **_ENDS, "num_hidden_layers": 4},
            vision_config={**_VIT, "num_hidden_layers": 3},
        ),
        _pair(32, 10, return_loss=True),
        "4 × SiglipEncoderLayer",
        "four more calls of the class make up the text tower, which runs second; return_loss is a tensor",
    ),
    Case(
        "vision-text-dual",
        _hf(
            "VisionTextDualEncoderModel",
            "VisionTextDualEncoderConfig",
            projection_dim=32,
            vision_config={**_VIT, "model_type": "vit", "num_hidden_layers": 4},
            text_config={**_BERT, "model_type": "bert", "num_hidden_layers": 3},
        ),
        _pair(32, 10, return_loss=True),
        "4 × ViTLayer",
        "the text tower, 3 × BertLayer, runs second and takes nothing from the first",
    ),
    Case(
        "vilt",
        _hf(
            "ViltForQuestionAnswering",
            "ViltConfig",
            **_VIT,
            vocab_size=VOCAB,
            num_hidden_layers=4,
            num_labels=CLASSES,
        ),
        _question(32, 10),
        "4 × ViltLayer",
    ),
)

_EXPERTS: tuple[Case, ...] = (
    Case(
        "mixtral",
        _hf(
            "MixtralForCausalLM",
            "MixtralConfig",
            **_LLAMA,
            num_hidden_layers=3,
            num_key_value_heads=2,
            num_local_experts=4,
            output_router_logits=True,
        ),
        _causal(),
        "3 × MixtralDecoderLayer",
        "the loss includes an auxiliary one for the routers",
    ),
    Case(
        "qwen2-moe",
        _hf(
            "Qwen2MoeForCausalLM",
            "Qwen2MoeConfig",
            **_LLAMA,
            num_hidden_layers=4,
            num_key_value_heads=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
            num_experts=4,
            num_experts_per_tok=2,
            output_router_logits=True,
        ),
        _causal(),
        "4 × Qwen2MoeDecoderLayer",
        "the loss includes an auxiliary one for the routers",
    ),
    Case(
        "switch",
        _hf(
            "SwitchTransformersForConditionalGeneration",
            "SwitchTransformersConfig",
            vocab_size=VOCAB,
            d_model=48,
            d_kv=12,
            d_ff=96,
            num_layers=3,
            num_decoder_layers=3,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            num_heads=4,
            num_experts=4,
            decoder_start_token_id=0,
            fails_in="5.0",
        ),
        _translation(router_logits=True),
        "6 × SwitchTransformersBlock",
        "output_router_logits is a tensor; an expert that no token chooses stays without gradient",
    ),
)

_RECURRENT: tuple[Case, ...] = (
    Case(
        "mamba",
        _hf(
            "MambaForCausalLM",
            "MambaConfig",
            vocab_size=VOCAB,
            hidden_size=48,
            state_size=8,
            num_hidden_layers=4,
        ),
        _causal(8),
        "4 × MambaBlock",
    ),
    Case(
        "mamba2",
        _hf(
            "Mamba2ForCausalLM",
            "Mamba2Config",
            vocab_size=VOCAB,
            hidden_size=48,
            num_heads=8,
            head_dim=12,
            state_size=8,
            num_hidden_layers=3,
            n_groups=2,
            chunk_size=4,
        ),
        _causal(8),
        "3 × Mamba2Block",
    ),
    Case(
        "falcon-mamba",
        _hf(
            "FalconMambaForCausalLM",
            "FalconMambaConfig",
            vocab_size=VOCAB,
            hidden_size=48,
            state_size=8,
            num_hidden_layers=3,
        ),
        _causal(8),
        "3 × FalconMambaBlock",
    ),
    Case(
        "rwkv",
        _hf(
            "RwkvForCausalLM",
            "RwkvConfig",
            vocab_size=VOCAB,
            hidden_size=48,
            num_hidden_layers=4,
            context_length=32,
        ),
        _causal(8),
        "4 × RwkvBlock",
        "in evaluation mode a state is written in place, so backward() fails there unless use_cache=False",
    ),
    Case(
        "jamba",
        _hf(
            "JambaForCausalLM",
            "JambaConfig",
            **_LLAMA,
            num_hidden_layers=6,
            num_key_value_heads=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=4,
            mamba_d_state=8,
            mamba_dt_rank=3,
            # transformers 5.0 would require kernels for CUDA. Later versions ignore this.
            use_mamba_kernels=False,
            output_router_logits=True,
        ),
        _causal(8),
        "3 × JambaMambaDecoderLayer + 3 × JambaAttentionDecoderLayer",
        "mamba and attention alternate; the loss includes an auxiliary one for the routers",
    ),
)

_SERIES: tuple[Case, ...] = (
    Case(
        "time-series-transformer",
        _hf(
            "TimeSeriesTransformerForPrediction",
            "TimeSeriesTransformerConfig",
            prediction_length=6,
            context_length=10,
            lags_sequence=[1, 2, 3],
            num_time_features=2,
            d_model=32,
            encoder_layers=3,
            decoder_layers=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            encoder_layerdrop=0.0,
            decoder_layerdrop=0.0,
        ),
        _probabilistic_forecast(13, 6),
        "3 × TimeSeriesTransformerEncoderLayer + 4 × TimeSeriesTransformerDecoderLayer",
        "frozen positions; the output has a tuple of distribution parameters and no logits",
    ),
    Case(
        "patchtst",
        _hf(
            "PatchTSTForPrediction",
            "PatchTSTConfig",
            num_input_channels=2,
            context_length=32,
            patch_length=4,
            patch_stride=4,
            num_hidden_layers=3,
            d_model=48,
            ffn_dim=192,
            prediction_length=6,
        ),
        _forecast(32, 6, 2),
        "3 × PatchTSTEncoderLayer",
        "hidden states have four dimensions; frozen positions; the output has no logits",
    ),
)

CASES: tuple[Case, ...] = (
    *_DECODERS,
    *_ENCODERS,
    *_ENCODER_DECODERS,
    *_VISION,
    *_AUDIO,
    *_TWO_TOWERS,
    *_EXPERTS,
    *_RECURRENT,
    *_SERIES,
)
