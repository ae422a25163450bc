"""The keyword arguments of a measurement, and the recipe that they make."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..checks.dtypes import as_dtype_name
from ..engine.isolation import preserved_generators, seeded
from ..engine.runs.arguments import as_count, as_loss, as_optimizer, refuse_type
from ..engine.runs.building import choose_device
from ..engine.runs.recipe import OptimizerFactory, Recipe, StepChoice, is_fixed
from ..errors import UsageError
from ..measures import MEASURES
from .context import Context

__all__ = ["Options", "as_dtype", "as_recipe", "factory_name", "refuse_no_model", "refuse_unknown"]


class Options(TypedDict, total=False):
    """Keyword arguments that ``measure``, the fixture and the size sweeps share. ``measure`` documents them."""

    target: Any
    loss: Callable[..., Any] | None
    seeds: int | Sequence[int] | None
    steps: StepChoice
    exponents: int
    warmup: int
    alignment: int
    device: str | torch.device | None
    dtype: torch.dtype | str | None
    train: bool
    name: str | None
    optimizer: OptimizerFactory | None
    classes: int | None


def refuse_unknown(options: Mapping[str, Any], *, where: str) -> None:
    """Refuse keyword arguments that are no options.

    Args:
        options: Keyword arguments of a call.
        where: The function that was called, for the message.

    Raises:
        UsageError: A name is unknown. The message suggests the nearest one.
    """
    known = sorted(Options.__optional_keys__)
    # The fixture takes bounds as well.
    bounded = sorted(MEASURES) if where == "trainability()" else []
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *bounded], n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"unknown argument {name!r} of {where}.{hint}"
            raise UsageError(msg)


def as_recipe(context: Context, model: Any, inputs: Any, options: Options) -> Recipe:
    """Return the recipe of a measurement, after validation of all options.

    Raises:
        UsageError: The model is neither a module nor a factory, or an option has an invalid value.
    """
    refuse_no_model(model)
    refuse_type("train", options["train"], bool, "True or False, for train or eval mode")
    refuse_type("name", options["name"], (str, type(None)), "a string")
    classes = options["classes"]
    return Recipe(
        model=model,
        inputs=_first_batch(inputs),
        target=options["target"],
        loss=as_loss(options["loss"], options["target"]),
        steps=options["steps"],
        exponents=as_count("exponents", options["exponents"]),
        warmup=as_count("warmup", options["warmup"], least=0),
        alignment=as_count("alignment", options["alignment"], least=0),
        device=choose_device(options["device"], fixed=is_fixed(model, inputs), worker=context.worker),
        dtype=as_dtype(options["dtype"]),
        train=options["train"],
        threads=context.threads,
        choose_steps=context.choose_steps,
        watch=partial(context.watch, options["name"] or factory_name(model)),
        optimizer=as_optimizer(options["optimizer"]),
        classes=None if classes is None else as_count("classes", classes, least=2),
    )


def _first_batch(inputs: Any) -> Any:
    """Return the first batch of a DataLoader, drawn under a fixed seed; other inputs as they are."""
    if not isinstance(inputs, DataLoader):
        return inputs
    with preserved_generators():
        seeded(0)
        for batch in inputs:
            return batch
    msg = "a DataLoader given as inputs must hold at least one batch. This one is empty."
    raise UsageError(msg)


def refuse_no_model(model: object) -> None:
    """Refuse what is neither a module nor a factory.

    Raises:
        UsageError: It is.
    """
    if not isinstance(model, nn.Module) and not callable(model):
        msg = (
            f"the model must be a torch.nn.Module, a class or a factory without arguments. Got {type(model).__name__}."
        )
        raise UsageError(msg)


def factory_name(model: Any) -> str:
    """Return the name of a factory; empty for a module and a lambda, which the model's class names."""
    name = "" if isinstance(model, nn.Module) else str(getattr(model, "__name__", ""))
    return "" if name == "<lambda>" else name


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the floating type of that name; None and the empty text mean that models keep their type.

    Raises:
        UsageError: The argument is not a floating type.
    """
    if dtype in {None, ""}:
        return None
    found: torch.dtype = getattr(torch, as_dtype_name(dtype))
    return found
