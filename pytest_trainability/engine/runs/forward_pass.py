"""The forward pass of one seed: drawing its inputs, and running the model on them under observation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...errors import ModelError, TrainabilityError, UsageError
from ..capture.recorder import Capture, Instrument, Loss, Places, capture
from ..isolation import derived_seed, generator_of, one_at_a_time, seeded, uncompiled
from ..linalg.norms import stored_values
from ..torch_internals import is_lazy, is_unsupported_here
from ..trees import is_empty, map_tensors, tensors_in, to_tensor_like, with_tensors
from .building import device_of
from .recipe import NO_KERNEL, Recipe, did_not_fit, sentence

__all__ = ["call_arguments", "fingerprint", "forward_pass", "outlines"]


def forward_pass(
    recipe: Recipe,
    model: nn.Module,
    seed: int,
    *,
    instruments: Sequence[Instrument] = (),
    places: Places | None = None,
) -> Capture:
    """Return the captured forward pass: draw the inputs, run the model on them and compute the loss.

    Args:
        recipe: Inputs, target and loss.
        model: The model, already built and placed.
        seed: Seed of inputs, dropout and everything else that the forward pass draws.
        instruments: Context managers that observe the forward pass.
        places: Places of the tensors to observe; None for all.

    Raises:
        UsageError: The inputs or the target cannot be made.
        ModelError: The model cannot be run on them, or returns no tensor.
    """
    # A model without tensors runs where its inputs are.
    place = device_of(model) or recipe.device
    inputs, target = _inputs(recipe, model, seed, place)
    device = place or next(tensors_in(inputs)).device

    def restart() -> None:
        seeded(derived_seed(seed, "forward"))

    restart()
    args, kwargs = call_arguments(inputs)
    try:
        with uncompiled():
            captured = capture(
                model,
                args,
                kwargs,
                target=target,
                loss=recipe.loss,
                restart=restart,
                instruments=instruments,
                places=places,
            )
    except TrainabilityError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(did_not_fit(model, device)) from error
    except Exception as error:
        raise ModelError(_did_not_run(model, inputs, seed, device, error)) from _without_own_frames(error)
    _refuse_no_tensor(model, captured)
    captured.inputs, captured.target, captured.device = inputs, target, device
    if recipe.target is None and target is not None:
        captured.notes.append("the batch is a pair: its second part is taken as the target of the loss")
    return captured


def _refuse_no_tensor(model: nn.Module, captured: Capture) -> None:
    if captured.loss is None and not any(True for _ in tensors_in(captured.output)):
        msg = (
            f"the model must return a tensor, or a tuple, list, dict or dataclass with tensors in it. "
            f"{type(model).__name__} returned {type(captured.output).__name__}."
        )
        raise ModelError(msg)


def _without_own_frames(error: Exception) -> Exception:
    """Return a model's error with a traceback that begins where the model is called."""
    here, trace = str(Path(__file__).parents[1]), error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(here):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _inputs(recipe: Recipe, model: nn.Module, seed: int, device: torch.device | None) -> tuple[Any, Any]:
    """Return inputs and target, drawn by the seed, on the device and in the type of the recipe."""
    seeded(derived_seed(seed, "inputs"))
    generator = generator_of(seed, "inputs")
    inputs, target = (
        map_tensors(
            _made(given, what, generator), lambda tensor: to_tensor_like(tensor, device=device, dtype=recipe.dtype)
        )
        for given, what in ((recipe.inputs, "inputs"), (recipe.target, "target"))
    )
    if recipe.loss is not None and target is None and _is_labelled(model, recipe.loss, inputs):
        inputs, target = inputs
    _refuse_no_numbers(inputs)
    return inputs, target


def _is_labelled(model: nn.Module, loss: Loss, batch: Any) -> bool:
    """Return whether a batch is a pair of inputs and target, as a loader gives it.

    That is so if the model cannot be called with both, and can be called with the first one, whereas the loss can with both.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    if hasattr(batch, "_fields") and _accepts(loss.forward if isinstance(loss, nn.Module) else loss, None):
        # A named tuple may be the only argument of the model.
        return False
    inputs, keywords = call_arguments(batch[0])
    takes_both = isinstance(batch, tuple) and not hasattr(batch, "_fields") and _accepts(model.forward, *batch)
    return not takes_both and _accepts(model.forward, *inputs, **keywords) and _accepts(loss, None, batch[1])


def _accepts(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Return whether the signature of a function admits a call."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def _way_to_tensors(inputs: Any) -> str:
    """Return how a user gets tensors of an object that holds none; empty if nothing is known about it."""
    if isinstance(inputs, Dataset):
        return " Hand in a DataLoader of the data set, which gives its first batch: DataLoader(dataset, batch_size=8)."
    if isinstance(inputs, Iterator):
        return " Hand in what it gives: next(iterator)."
    if isinstance(inputs, (str, tuple, list)) and inputs:
        return " Numbers become a tensor by torch.tensor(numbers). A random one has sizes: torch.randn(4, 8)."
    return ""


def _refuse_no_numbers(inputs: Any) -> None:
    if not any(True for _ in tensors_in(inputs)):
        found = type(inputs).__name__
        if isinstance(inputs, (tuple, list)):
            found += f" of {', '.join(sorted({type(item).__name__ for item in inputs})) or 'nothing'}"
        msg = (
            "inputs must be a tensor, a tuple, a dict, or a function of a torch.Generator that makes one, with at least "
            f"one tensor in it. Got {found}. Tensors are found in tuples, lists, dicts, dataclasses, numpy arrays, graphs of "
            "PyTorch Geometric and classes that are registered with torch.utils._pytree.register_pytree_node, not in other "
            f"objects.{_way_to_tensors(inputs)}"
        )
        raise UsageError(msg)
    if is_empty(inputs):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
        msg = f"inputs must hold at least one element in every tensor. Got shapes {shapes}: an empty batch cannot be measured."
        raise UsageError(msg)


def _made(given: Any, what: str, generator: torch.Generator) -> Any:
    """Return the inputs or the target; if a function is given, the value that it returns."""
    made = given
    # Mappings and graphs of PyTorch Geometric can be called, too.
    if callable(given) and not isinstance(given, (Tensor, Mapping)) and not any(True for _ in tensors_in(given)):
        try:
            made = given(generator)
        except UsageError:
            # Inputs that a text describes say themselves what is wrong.
            raise
        except Exception as error:
            name = getattr(given, "__name__", "It")
            msg = (
                f"{what}, given as a function, must take a torch.Generator and return tensors. `{name}` "
                f"raised {type(error).__name__}: {error}"
            )
            raise UsageError(msg) from error
    made = with_tensors(made)
    for tensor in tensors_in(made):
        if tensor.is_meta:
            msg = f"{what} must hold numbers. A tensor in them lives on the meta device."
            raise UsageError(msg)
        if tensor.is_nested or tensor.is_quantized:
            kind = "nested" if tensor.is_nested else "quantized"
            msg = f"{what} must be dense or sparse tensors. Got a {kind} one. Pad or dequantize it."
            raise UsageError(msg)
    return made


def outlines(inputs: Any) -> Iterator[bytes]:
    """Yield shape and rounded mean of each tensor: properties of the inputs that rounding errors do not change."""
    for tensor in tensors_in(inputs):
        values = stored_values(tensor)
        mean = float((values.abs() if values.is_complex() else values).float().mean())
        yield f"{tuple(tensor.shape)} {mean:.4g}".encode()


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the positional and the keyword arguments that inputs stand for.

    A tuple holds positional arguments and a mapping keyword arguments. Everything else, a named tuple included, is one positional
    argument.
    """
    if isinstance(inputs, Mapping):
        return (), inputs
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return inputs, {}
    return (inputs,), {}


def _did_not_run(model: nn.Module, inputs: Any, seed: int, device: torch.device, error: Exception) -> str:
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(inputs))
    hint = ""
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = " The model receives a dict of inputs as keyword arguments, a tuple as positional ones, anything else as one."
    if is_unsupported_here(error):
        hint = f" {NO_KERNEL}"
    return (
        f"the model must run on its inputs. {type(model).__name__} (seed {seed}, {device}) with inputs {shapes} raised "
        f"{type(error).__name__}: {sentence(error)}{hint}"
    )


def fingerprint(recipe: Recipe) -> tuple[str, ...]:
    """Return the sums of all tensors of a recipe: inputs, target, and parameters and buffers of a finished module."""
    held = [*tensors_in(recipe.inputs), *tensors_in(recipe.target)]
    if isinstance(recipe.model, nn.Module):
        held += [*recipe.model.parameters(), *recipe.model.buffers()]
    # A run of the same model in another thread changes its tensors until it has ended.
    with one_at_a_time():
        return tuple(_sum(stored_values(tensor)) for tensor in held if not (is_lazy(tensor) or tensor.is_meta))


def _sum(tensor: torch.Tensor) -> str:
    short = tensor.dtype in {torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8}
    return str((tensor.float() if short else tensor).sum().item())
