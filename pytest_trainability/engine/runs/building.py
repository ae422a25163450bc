"""Building the model of one seed, and placing it on its device."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ...errors import ModelError, UsageError
from ..isolation import generator_state, preserved_model, seeded
from .recipe import Recipe, did_not_fit

__all__ = ["built", "choose_device"]


def choose_device(name: str | torch.device | None, *, fixed: bool, worker: int = 0) -> torch.device | None:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    ``auto`` is CUDA where there is one, else the CPU; a finished module stays where it is. ``cuda`` shares the GPUs out
    among xdist workers by their number.

    Raises:
        UsageError: There is no such device.
    """
    name = None if name is None else str(name)
    if name is None or name == "auto":
        if fixed:
            return None
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name == "cuda" and count:
        return torch.device("cuda", worker % count)
    if name in there and (number or kind != "cuda"):
        return torch.device(name)
    msg = f"the device must be auto, cpu, cuda, cuda:N or mps, and be there. Got {name!r}; this machine has {', '.join(there)}."
    raise UsageError(msg)


@contextmanager
def built(recipe: Recipe, seed: int, previous: list[weakref.ref[nn.Module]]) -> Iterator[tuple[nn.Module, bytes]]:
    """Yield the model of one seed, placed and in the right mode, and the generator's state once it was built.

    The user's own model is left as it was.
    """
    drawn = b""
    with ExitStack() as stack:
        if isinstance(recipe.loss, nn.Module):
            # A loss may keep statistics of its own.
            stack.enter_context(preserved_model(recipe.loss))
        if isinstance(recipe.model, nn.Module):
            model = recipe.model
            _refuse_unmaterialized(model, fixed=True)
            stack.enter_context(preserved_model(model))
            if recipe.device not in {None, place_of(model)} or recipe.dtype is not None:
                model = _copied(model)
        else:
            model = _build(recipe.model, seed)
            drawn = generator_state()
            _refuse_unmaterialized(model, fixed=False)
            if any(reference() is model for reference in previous):
                msg = (
                    "the factory must build a new model each time it is called. It returned the same object twice. Build "
                    "inside it (lambda: Net(width=64)), or hand in the module itself, which is measured as one draw."
                )
                raise UsageError(msg)
            # Someone else holds the model too: whatever the run changes must be put back.
            if sys.getrefcount(model) > _references_of_a_local():
                previous.append(weakref.ref(model))
                stack.enter_context(preserved_model(model))
        if recipe.device is not None or recipe.dtype is not None:
            try:
                model = model.to(device=recipe.device, dtype=recipe.dtype)
            except torch.OutOfMemoryError as error:
                raise ModelError(did_not_fit(model, recipe.device)) from error
        if model.training != recipe.train:
            model.train(recipe.train)
        yield model, drawn


def _references_of_a_local() -> int:
    """Return what ``sys.getrefcount`` says of an object that one local variable holds."""
    alone = object()
    return sys.getrefcount(alone)


def _build(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    seeded(seed)
    name = getattr(factory, "__name__", type(factory).__name__)
    try:
        model: object = factory()
    except Exception as error:
        msg = f"the factory must build a model when called without arguments. `{name}` raised {type(error).__name__}: {error}"
        if isinstance(error, TypeError) and isinstance(factory, type):
            msg += f". Give it its arguments in a lambda: lambda: {name}(...)."
        raise ModelError(msg) from error
    if not isinstance(model, nn.Module):
        msg = f"the factory must return a torch.nn.Module. `{name}` returned {type(model).__name__}."
        raise ModelError(msg)
    return model


def _copied(model: nn.Module) -> nn.Module:
    # Tensors that the model keeps from its last run cannot be copied with their history.
    kept = [
        t
        for module in model.modules()
        for t in vars(module).values()
        if isinstance(t, Tensor) and t.grad_fn is not None
    ]
    try:
        return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})
    except Exception as error:
        msg = (
            "a finished module is copied before it is moved or cast, and must be one that can be. Copying "
            f"{type(model).__name__} raised {type(error).__name__}: {error} Hand in a factory, or leave out device= and dtype=."
        )
        raise ModelError(msg) from error


def _refuse_unmaterialized(model: nn.Module, *, fixed: bool) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            if not fixed:
                continue
            what = "has no shape yet (a lazy module)"
        elif parameter.is_meta:
            what = "lives on the meta device"
        else:
            continue
        msg = (
            f"the parameters of a model must hold numbers. {name!r} {what}. Materialize it first: run the model "
            "once, or load its weights; a lazy module may also come as a factory."
        )
        raise ModelError(msg)


def place_of(model: nn.Module) -> torch.device | None:
    """Device of the model's first parameter or buffer; None for a model without any."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
