"""Models that are named by text: ``package.module:build``, ``hf:gpt2``, ``hf-tiny:gpt2`` or ``timm:resnet18``.

Nothing is downloaded: weights are drawn as the library draws them.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from ..errors import UsageError
from .declared import Inputs, by_forward, declared_inputs
from .places import imported
from .sample import Sample

__all__ = ["LIBRARIES", "NamedModel", "named_model"]

IMAGE = (3, 224, 224)
"""Shape of an image for models of torchvision."""
_AUTO_CLASSES = (
    "ForImageClassification",
    "ForPreTraining",
    "ForCausalLM",
    "ForSeq2SeqLM",
    "ForAudioClassification",
    "",
)
"""Auto classes of transformers, in the order in which they are tried."""
_OF_ENCODER_AND_DECODER = ("ForPreTraining", "ForSeq2SeqLM", "ForSpeechSeq2Seq")
"""Those that are tried first for encoders with decoders, of which the others build a half."""
_TINY = {
    64: (
        "hidden_size",
        "n_embd",
        "d_model",
        "embed_dim",
        "dim",
        "projection_dim",
        "embedding_size",
        "decoder_hidden_size",
    ),
    128: (
        "intermediate_size",
        "n_inner",
        "d_ff",
        "ffn_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "moe_intermediate_size",
    ),
    4: (
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "num_decoder_layers",
        "encoder_layers",
        "decoder_layers",
        "num_attention_heads",
        "n_head",
        "num_heads",
        "num_key_value_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "num_local_experts",
        "num_experts",
    ),
    16: ("head_dim", "d_kv"),
    1000: ("vocab_size", "decoder_vocab_size"),
    32: ("image_size",),
    8: ("patch_size",),
}
"""Largest values in small configurations, by the name of the setting."""
_Found: TypeAlias = "tuple[Any, Sample, Inputs | None]"
"""Factory, sample, and a function that draws inputs where the model declares none itself."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model that a text names."""

    build: Any
    """Factory without arguments, or a finished module."""
    name: str
    sample: Sample
    draw: Inputs | None = None
    """Function that draws inputs, of a model that declares none itself."""

    @property
    def forward(self) -> Any:
        """The factory, whose models are measured by ``forward``, which takes the inputs that they declare."""
        return by_forward(self.build)

    @property
    def inputs(self) -> Inputs | None:
        """Inputs that the model declares; None if it declares none."""
        return self.draw or declared_inputs(self.sample)


def named_model(text: str) -> NamedModel:
    """Return the model that a text names.

    Args:
        text: ``package.module:build`` (a factory, a class or a module), ``hf:MODEL_TYPE`` (from the default configuration of
            transformers), ``hf-tiny:MODEL_TYPE`` (the same architecture, small), ``timm:NAME`` or ``torchvision:NAME``.

    Raises:
        UsageError: The library is not installed or has no such model, or the place names nothing that builds one.
    """
    library, _, name = text.partition(":")
    if library in LIBRARIES:
        build, sample, draw = LIBRARIES[library](name, text)
        # Reports and baselines name the model by its factory.
        build.__name__ = name
        return NamedModel(build, name, sample, draw)
    if ":" not in text and "." not in text:
        msg = (
            "the model must be given as MODULE:NAME, such as package.module:build, or as a model of a library: hf:gpt2, "
            f"timm:resnet18 or torchvision:resnet18. Got {text!r}."
        )
        raise UsageError(msg)
    found = imported(text, what="the model")
    if not isinstance(found, nn.Module) and not callable(found):
        msg = f"the model must be a factory, a class or a torch.nn.Module. {text!r} is of class {type(found).__name__}."
        raise UsageError(msg)
    return NamedModel(found, text.partition(":")[2], Sample(found))


def _library(name: str, *, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        msg = f"{name} must be importable: pip install {install}. Importing it raised {_reason(error)}"
        raise UsageError(msg) from error


def _reason(error: BaseException) -> str:
    """Return the error that led to another one, in one line, with advice on a library that was built for another PyTorch."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if "torchvision::" in text:
        text += ". This torchvision was built for another PyTorch: install both together, or uninstall torchvision."
    return text


def _transformers(name: str, text: str) -> _Found:
    library = _library("transformers", install="transformers")
    try:
        config = library.AutoConfig.for_model(name)
    except ValueError:
        near = difflib.get_close_matches(name, list(library.CONFIG_MAPPING), n=3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        msg = f"{text!r} must name a model type of transformers, such as hf:gpt2 or hf:bert.{hint}"
        raise UsageError(msg) from None
    except Exception as error:
        msg = f"transformers must make the configuration of {text!r}. It raised {_reason(error)}"
        raise UsageError(msg) from error
    if text.startswith("hf-tiny:"):
        _shrink(config)
    if getattr(config, "is_encoder_decoder", False):
        # A checkpoint sets them. The model needs them to make the decoder's inputs of the labels.
        for token in ("pad_token_id", "decoder_start_token_id"):
            if getattr(config, token, None) is None:
                setattr(config, token, getattr(config, "pad_token_id", None) or 0)
    auto, on_meta = _auto_class(library, config, text)

    def build() -> nn.Module:
        model: nn.Module = auto.from_config(config)
        return model

    return build, Sample(build, on_meta), None


def _auto_class(library: Any, config: Any, text: str) -> tuple[Any, nn.Module]:
    """Return the first auto class that builds a model of a configuration, and this model, on the meta device."""
    first = _OF_ENCODER_AND_DECODER if getattr(config, "is_encoder_decoder", False) else ()
    for suffix in (*first, *_AUTO_CLASSES):
        auto: Any = getattr(library, f"AutoModel{suffix}")
        try:
            with torch.device("meta"):
                model = auto.from_config(config)
        except ValueError as error:
            # The configuration has no such head.
            if "Unrecognized configuration class" in str(error):
                continue
            reason = _reason(error)
        except Exception as error:
            reason = _reason(error)
        else:
            return auto, model
        msg = f"the configuration of {text!r} must build a model. {auto.__name__}.from_config raised {reason}"
        raise UsageError(msg)
    msg = f"transformers has no model for {text!r}."
    raise UsageError(msg)


def _shrink(config: Any) -> None:
    """Reduce the sizes of a configuration and of the configurations in it."""
    for part in [value for value in vars(config).values() if hasattr(value, "to_dict")]:
        _shrink(part)
    if isinstance(getattr(config, "depths", None), (list, tuple)):
        config.depths = [2] * len(config.depths)
    if hasattr(config, "window_size"):
        # Windows must fit into the image, and the heads of each stage divide its width.
        return
    for most, names in _TINY.items():
        for name in names:
            value = getattr(config, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > most:
                setattr(config, name, most)
    for name, value in vars(config).items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= getattr(config, "vocab_size", math.inf):
            setattr(config, name, 0)
    if isinstance(getattr(config, "hidden_sizes", None), (list, tuple)):
        config.hidden_sizes = [16 * 2**stage for stage in range(len(config.hidden_sizes))]


def _timm(name: str, text: str) -> _Found:
    library = _library("timm", install="timm")
    if not library.is_model(name):
        near = difflib.get_close_matches(name, library.list_models(), n=3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        msg = f"timm must have the model {text!r}.{hint}"
        raise UsageError(msg)

    def build() -> nn.Module:
        model: nn.Module = library.create_model(name, pretrained=False)
        return model

    return build, Sample(build), None


def _torchvision(name: str, text: str) -> _Found:
    library = _library("torchvision", install="torchvision").models
    try:
        library.get_model_builder(name)
    except ValueError as error:
        msg = f"torchvision must have the model {text!r}. {error}."
        raise UsageError(msg) from None

    def build() -> nn.Module:
        model: nn.Module = library.get_model(name, weights=None)
        return model

    return build, Sample(build), lambda generator: torch.randn(4, *IMAGE, generator=generator)


LIBRARIES: dict[str, Callable[[str, str], _Found]] = {
    "hf": _transformers,
    "hf-tiny": _transformers,
    "timm": _timm,
    "torchvision": _torchvision,
}
"""Function that finds a model, by the word before the colon. Other words are modules of Python."""
