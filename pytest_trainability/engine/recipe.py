"""What to measure: building, placing and running a model as a recipe says."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from ..errors import ModelError, TrainabilityError, UsageError
from .capture import Capture, Instrument, Loss, capture
from .isolation import derived_seed, generator_of, generator_state, preserved_model, seeded, uncompiled
from .steps import StepChoice
from .trees import is_empty, map_tensors, tensors_in, to_tensor_like

__all__ = [
    "ModelSource",
    "OptimizerFactory",
    "Recipe",
    "arguments",
    "built",
    "choose_device",
    "did_not_fit",
    "fingerprint",
    "is_fixed",
    "outlines",
    "recorded",
    "sentence",
]

ModelSource: TypeAlias = "nn.Module | Callable[[], nn.Module]"
OptimizerFactory: TypeAlias = "Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a measurement: model, inputs and how to run and cut it."""

    model: ModelSource
    inputs: Any
    target: Any
    loss: Loss | None
    steps: StepChoice
    exponents: int
    device: torch.device | None
    """None leaves a finished module where it is."""
    dtype: torch.dtype | None
    train: bool
    threads: int | None = None
    cut_by: Callable[[nn.Module], StepChoice | None] = lambda model: None
    """Asked, where ``steps`` is ``"auto"``, how a model is cut; None where it does not know."""
    told: bool = False
    """Whether ``steps`` is what was answered."""
    warmup: int = 0
    """First steps that the exponents are not averaged over: the state finds its attractor."""
    alignment: int = 0
    """Last steps that they are not averaged over: the frame, which comes from there, turns to its directions."""
    optimizer: OptimizerFactory | None = None
    """Makes the optimizer of the parameters it is given."""
    classes: int | None = None
    """How many there are to choose from; None to find it out from the loss."""

    def of(self, model: nn.Module) -> Recipe:
        """Return the recipe with what is to be found out from the model: how it is cut."""
        steps = self.cut_by(model) if self.steps == "auto" else None
        return self if steps is None else replace(self, steps=steps, told=True)

    @property
    def fixed(self) -> bool:
        """As :func:`is_fixed`."""
        return is_fixed(self.model, self.inputs)


def is_fixed(model: ModelSource, inputs: Any) -> bool:
    """Whether the model is a finished module, one draw of its weights; one without weights may be measured on several inputs."""
    return isinstance(model, nn.Module) and (not callable(inputs) or any(True for _ in model.parameters()))


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
            if recipe.device not in {None, _place_of(model)} or recipe.dtype is not None:
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


def _place_of(model: nn.Module) -> torch.device | None:
    """Device of the model's first parameter or buffer; None for a model without any."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)


def recorded(recipe: Recipe, model: nn.Module, seed: int, *, instruments: Sequence[Instrument] = ()) -> Capture:
    """Draw the inputs, run the model on them and compute the loss."""
    # A map without parameters runs where its state is.
    place = _place_of(model) or recipe.device
    inputs, target = _inputs(recipe, seed, place)
    device = place or next(tensors_in(inputs)).device

    def restart() -> None:
        seeded(derived_seed(seed, "forward"))

    restart()
    args, kwargs = arguments(inputs)
    try:
        with uncompiled():
            record = capture(
                model,
                args,
                kwargs,
                target=target,
                loss=recipe.loss,
                restart=restart,
                instruments=instruments,
            )
    except TrainabilityError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(did_not_fit(model, device)) from error
    except Exception as error:
        raise ModelError(_did_not_run(model, inputs, seed, device, error)) from _without_own_frames(error)
    if record.loss is None and not any(True for _ in tensors_in(record.output)):
        msg = (
            f"the model must return a tensor, or a tuple, list, dict or dataclass with tensors in it. "
            f"{type(model).__name__} returned {type(record.output).__name__}."
        )
        raise ModelError(msg)
    record.inputs, record.target, record.device = inputs, target, device
    return record


def sentence(error: Exception) -> str:
    """Return what an error says, with a full stop."""
    text = str(error).strip()
    return text if text.endswith((".", "!", "?")) else text + "."


def _without_own_frames(error: Exception) -> Exception:
    """Let the traceback of a model's error begin where the model is called."""
    here, trace = str(Path(__file__).parent), error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(here):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _inputs(recipe: Recipe, seed: int, device: torch.device | None) -> tuple[Any, Any]:
    seeded(derived_seed(seed, "inputs"))
    generator = generator_of(seed, "inputs")

    def made(given: Any, what: str) -> Any:
        if callable(given) and not isinstance(given, (Tensor, Mapping)):
            try:
                given = given(generator)
            except Exception as error:
                name = getattr(recipe.inputs if what == "inputs" else recipe.target, "__name__", "It")
                msg = (
                    f"{what}, given as a function, must be one that takes a torch.Generator and makes tensors. `{name}` "
                    f"raised {type(error).__name__}: {error}"
                )
                raise UsageError(msg) from error
        if any(tensor.is_meta for tensor in tensors_in(given)):
            msg = f"{what} must hold numbers. A tensor of them lives on the meta device."
            raise UsageError(msg)
        return map_tensors(given, lambda t: to_tensor_like(t, device=device, dtype=recipe.dtype))

    inputs, target = made(recipe.inputs, "inputs"), made(recipe.target, "target")
    if not any(True for _ in tensors_in(inputs)):
        msg = (
            "inputs must be a tensor, a tuple, a dict, or a function of a torch.Generator that makes one, with at least "
            f"one tensor in it. Got {type(inputs).__name__}."
        )
        raise UsageError(msg)
    if is_empty(inputs):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
        msg = f"inputs must hold at least one element in every tensor. Got shapes {shapes}: an empty batch cannot be measured."
        raise UsageError(msg)
    return inputs, target


def outlines(inputs: Any) -> Iterator[bytes]:
    """Tell inputs apart by what arithmetic does not change: their shapes and rounded means."""
    for tensor in tensors_in(inputs):
        values = tensor.detach()
        mean = float((values.abs() if values.is_complex() else values).float().mean())
        yield f"{tuple(values.shape)} {mean:.4g}".encode()


def arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Turn inputs into positional and keyword arguments of the model."""
    if isinstance(inputs, Mapping):
        return (), inputs
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return inputs, {}
    return (inputs,), {}


def did_not_fit(model: nn.Module, device: torch.device | None) -> str:
    """Say that the device ran out of memory."""
    return (
        f"{type(model).__name__}, one forward pass and what is measured must fit on the device. {device} ran out of memory. "
        "Measure with a smaller batch, or on the CPU (device='cpu', --trainability-device=cpu)."
    )


def _did_not_run(model: nn.Module, inputs: Any, seed: int, device: torch.device, error: Exception) -> str:
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(inputs))
    hint = ""
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = (
            " A dict of inputs is handed over as keyword arguments, a tuple as positional ones, anything else as one."
        )
    return (
        f"the model must run on its inputs. {type(model).__name__} (seed {seed}, {device}) with inputs {shapes} raised "
        f"{type(error).__name__}: {sentence(error)}{hint}"
    )


def fingerprint(recipe: Recipe) -> tuple[str, ...]:
    """Sums over the tensors that a recipe holds: inputs, target and a finished module's parameters and buffers."""
    held = [*tensors_in(recipe.inputs), *tensors_in(recipe.target)]
    if isinstance(recipe.model, nn.Module):
        held += [*recipe.model.parameters(), *recipe.model.buffers()]
    return tuple(_sum(tensor.detach()) for tensor in held if not (is_lazy(tensor) or tensor.is_meta))


def _sum(tensor: torch.Tensor) -> str:
    short = tensor.dtype in {torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8}
    return str((tensor.float() if short else tensor).sum().item())
