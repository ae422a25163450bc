"""Inputs that a model declares: ``example_input_array``, ``default_cfg``, or the kind of its main input in transformers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .sample import Sample

__all__ = ["Inputs", "by_forward", "declared_inputs", "declares_inputs_of_forward"]

BATCH, LENGTH, AUDIO, FRAMES = 4, 32, 16000, 200
"""Number of samples, of tokens in a text, and of values and frames in a piece of audio."""

Inputs: TypeAlias = "Callable[[torch.Generator], Any]"
"""Draws inputs."""


def declared_inputs(source: Any) -> Inputs | None:
    """Return a function that makes the inputs which a model declares; None if it declares none.

    A Lightning module has ``example_input_array``, a model of timm the size of its images in ``default_cfg``, a model of
    transformers its main input and its configuration, and other models may have ``dummy_inputs``. Language models of transformers
    get their inputs as labels.

    Args:
        source: A factory, a module, or a :class:`~pytest_trainability.sources.sample.Sample`.
    """
    sample = Sample.of(source)
    source, model = sample.source, sample.model
    if model is None:
        return None
    if getattr(model, "example_input_array", None) is not None:
        return _as_declared("example_input_array", source)
    settings = getattr(model, "default_cfg", None)
    if isinstance(settings, Mapping) and "input_size" in settings:
        size = tuple(settings["input_size"])
        return lambda generator: torch.randn(BATCH, *size, generator=generator)
    if hasattr(model, "main_input_name") and hasattr(model, "config"):
        return _of_transformers(model)
    return _as_declared("dummy_inputs", source) if _has_dummy_inputs(model) else None


def declares_inputs_of_forward(sample: Sample) -> bool:
    """Return whether a model declares inputs of ``forward``, although it computes its loss in ``training_step``.

    Args:
        sample: The model of a factory. A finished module is measured as it is.
    """
    model = sample.model
    has_example = getattr(model, "example_input_array", None) is not None
    return has_example and callable(getattr(model, "training_step", None)) and not isinstance(sample.source, nn.Module)


def by_forward(build: Callable[[], Any]) -> Callable[[], Any]:
    """Return a factory of the same models that are measured by ``forward``, without their ``training_step``.

    Args:
        build: The factory.
    """

    @functools.wraps(build, updated=())
    def build_for_forward() -> Any:
        model = build()
        model.training_step = None
        return model

    return build_for_forward


def _has_dummy_inputs(model: nn.Module) -> bool:
    """Whether a model has inputs of this name. The property of some models raises an error instead."""
    try:
        return getattr(model, "dummy_inputs", None) is not None
    except Exception:
        return False


def _as_declared(name: str, source: Any) -> Inputs:
    def inputs(generator: torch.Generator) -> Any:
        # On the meta device the example holds no numbers.
        found = getattr(source if isinstance(source, nn.Module) else source(), name)
        return found() if inspect.isroutine(found) else found

    return inputs


def _of_transformers(model: Any) -> Inputs | None:
    config, name = model.config, model.main_input_name
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    drawn: dict[str, Callable[[torch.Generator], Tensor]] = {}
    vocabulary = getattr(text, "vocab_size", None)
    if name == "input_ids" and vocabulary:
        drawn["input_ids"] = lambda g: torch.randint(vocabulary // 10, vocabulary, (BATCH, LENGTH), generator=g)
    size = getattr(vision, "image_size", None) or 224
    if name == "pixel_values" or vision is not config:
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(vision, "num_channels", 3)
        drawn["pixel_values"] = lambda g: torch.randn(BATCH, channels, *sides, generator=g)
    if name == "input_values":
        drawn["input_values"] = lambda g: torch.randn(BATCH, AUDIO, generator=g)
    if name == "input_features":
        drawn["input_features"] = _features(config)
    if not drawn:
        return None
    labels = _labels(model, drawn)

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        found = {key: draw(generator) for key, draw in drawn.items()}
        return {**found, **labels(found, generator)}

    return inputs


def _features(config: Any) -> Callable[[torch.Generator], Tensor]:
    """Return a function that makes spectrograms: as long as the model demands, or frames first where it takes any length."""
    if hasattr(config, "input_feat_per_channel"):
        return lambda g: torch.randn(BATCH, FRAMES, config.input_feat_per_channel, generator=g)
    length = 2 * getattr(config, "max_source_positions", 500)
    return lambda g: torch.randn(BATCH, config.num_mel_bins, length, generator=g)


def _part(config: Any, name: str) -> Any:
    part = getattr(config, name, None)
    return config if part is None or isinstance(part, Mapping) else part


def _labels(model: Any, drawn: Mapping[str, Any]) -> Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]:
    """Return a function that makes the labels by which a model computes its own loss; none for other heads."""
    kind = type(model).__name__
    if kind.endswith(("LMHeadModel", "ForCausalLM", "ForConditionalGeneration", "MTModel")) and set(drawn) == {
        "input_ids"
    }:
        return lambda found, generator: {"labels": found["input_ids"].clone()}
    if kind.endswith("ForImageClassification"):
        count = model.config.num_labels
        return lambda found, generator: {"labels": torch.randint(count, (BATCH,), generator=generator)}
    if kind.endswith("ForConditionalGeneration") and getattr(model.config, "is_encoder_decoder", False):
        vocabulary = model.config.vocab_size
        return lambda found, generator: {"labels": torch.randint(vocabulary, (BATCH, LENGTH), generator=generator)}
    if getattr(model.config, "is_encoder_decoder", False) and "input_ids" in drawn:
        return lambda found, generator: {"decoder_input_ids": found["input_ids"].clone()}
    return lambda found, generator: {}
