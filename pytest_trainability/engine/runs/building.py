"""Building the model of one seed, and placing it on its device."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ..isolation import generator_state, other_draws, preserved_model, seeded
from ..modules import modules_behind
from ..torch_internals import convert, is_lazy
from ..trees import to_tensor_like
from .recipe import ModelSource, Recipe, did_not_fit

__all__ = ["built", "choose_device", "device_of", "drawn"]


def choose_device(name: str | torch.device | None, *, fixed: bool, worker: int = 0) -> torch.device | None:
    """Return an available device.

    Args:
        name: ``"auto"`` (CUDA where available, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``. None means
            ``"auto"``.
        fixed: Whether the model is a finished module, for which ``"auto"`` means its own device.
        worker: Number of the xdist worker; ``"cuda"`` distributes the GPUs among them.

    Returns:
        The device; None for the module's own one.

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
    available = ["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name == "cuda" and count:
        return torch.device("cuda", worker % count)
    if name in available and (number or kind != "cuda"):
        return torch.device(name)
    msg = (
        f"the device must be auto, cpu, cuda, cuda:N or mps, and available. Got {name!r}. This machine has "
        f"{', '.join(available)}."
    )
    raise UsageError(msg)


@contextmanager
def built(recipe: Recipe, seed: int, previous: list[weakref.ref[nn.Module]]) -> Iterator[tuple[nn.Module, bytes]]:
    """Build the model of one seed, on its device and in its mode. The user's own model is restored on exit.

    Args:
        recipe: Model, device, dtype and mode.
        seed: Seed of the build.
        previous: Models of earlier seeds that the user keeps, which a factory must not return again.

    Yields:
        The model, and the states of the CPU generators after the build: that of torch, and those of ``random`` and numpy if the
        build drew from them. Empty for a finished module.

    Raises:
        ModelError: The factory does not build a model, or the model does not fit on the device.
        UsageError: The factory returned the same object twice.
    """
    with ExitStack() as stack:
        for module in modules_behind(recipe.loss):
            # A loss may have buffers, too.
            stack.enter_context(preserved_model(module))
        if isinstance(recipe.model, nn.Module):
            model, drawn = _finished(recipe.model, recipe, stack), b""
        else:
            model, drawn = _drawn(recipe.model, seed, previous, stack)
        model = _placed(model, recipe)
        yield model, drawn


def drawn(source: ModelSource, seed: int, previous: list[weakref.ref[nn.Module]]) -> nn.Module:
    """Return the model of one seed as it is, for a caller who only reads its parameters. A finished module is not copied.

    Args:
        source: A finished module, or a factory.
        seed: Seed of the build.
        previous: Models of earlier seeds that the user keeps, which a factory must not return again.

    Returns:
        The model, on its device and with all parameters materialized.

    Raises:
        ModelError: The factory does not build a model, or a parameter holds no numbers.
        UsageError: The factory returned the same object twice.
    """
    if isinstance(source, nn.Module):
        _refuse_unmaterialized(source, fixed=True)
        return source
    model = _build(source, seed)
    _refuse_unmaterialized(model, fixed=True)
    _refuse_repeated(model, previous)
    if sys.getrefcount(model) > _references_of_a_local():
        previous.append(weakref.ref(model))
    return model


def _finished(model: nn.Module, recipe: Recipe, stack: ExitStack) -> nn.Module:
    """Return the user's module, or a copy where it will be moved or cast."""
    _refuse_unmaterialized(model, fixed=True)
    stack.enter_context(preserved_model(model))
    stays = recipe.device in {None, device_of(model)} and recipe.dtype is None
    return model if stays and not _was_made_for_inference(model) else _copied(model)


def _drawn(
    factory: Callable[[], nn.Module], seed: int, previous: list[weakref.ref[nn.Module]], stack: ExitStack
) -> tuple[nn.Module, bytes]:
    """Return a new model, and the states of the generators. What someone else holds of it is restored afterwards."""
    model = _build(factory, seed)
    drawn = generator_state() + other_draws(seed)
    _refuse_unmaterialized(model, fixed=False)
    _refuse_repeated(model, previous)
    if _was_made_for_inference(model):
        return _copied(model), drawn
    if sys.getrefcount(model) > _references_of_a_local():
        previous.append(weakref.ref(model))
        stack.enter_context(preserved_model(model))
        return model, drawn
    for module in _held_elsewhere(model):
        stack.enter_context(preserved_model(module))
    return model, drawn


def _held_elsewhere(model: nn.Module) -> list[nn.Module]:
    """Return the modules within a new model that something else refers to as well, such as a backbone that models share.

    Modules within these are left out. A model may itself refer to a module twice, which then is one of them as well.
    """
    found, within = list[nn.Module](), set[int]()
    parent, modules = nn.Sequential(nn.Identity()), [*model.modules()]
    (alone,) = _references([*parent.children()])
    for module, count in zip(modules, _references(modules)):
        if module is not model and count > alone and id(module) not in within:
            found.append(module)
            within |= set(map(id, module.modules()))
    return found


def _references(modules: list[nn.Module]) -> list[int]:
    return [sys.getrefcount(module) for module in modules]


def _was_made_for_inference(model: nn.Module) -> bool:
    """Return whether a tensor of the model was made in inference mode. A gradient can pass through a copy of it only."""
    kept = (t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor))
    held = (*model.parameters(), *model.buffers(), *kept)
    return any(tensor.is_inference() for tensor in held if not is_lazy(tensor))


def _references_of_a_local() -> int:
    """Return what ``sys.getrefcount`` returns for an object that only one local variable holds."""
    alone = object()
    return sys.getrefcount(alone)


def _refuse_repeated(model: nn.Module, previous: Sequence[weakref.ref[nn.Module]]) -> None:
    if any(reference() is model for reference in previous):
        msg = (
            "the factory must build a new model each time it is called. It returned the same object twice. Build "
            "inside it (lambda: Net(width=64)), or hand in the module itself, which is measured as one draw."
        )
        raise UsageError(msg)


def _placed(model: nn.Module, recipe: Recipe) -> nn.Module:
    if recipe.device is not None or recipe.dtype is not None:
        try:
            if recipe.dtype is not None and any(t.is_complex() for t in (*model.parameters(), *model.buffers())):
                # `Module.to` discards imaginary parts.
                convert(model, lambda t: to_tensor_like(t, device=recipe.device, dtype=recipe.dtype))
            else:
                model = model.to(device=recipe.device, dtype=recipe.dtype)
        except torch.OutOfMemoryError as error:
            raise ModelError(did_not_fit(model, recipe.device)) from error
    if model.training != recipe.train:
        model.train(recipe.train)
    return model


def _build(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    seeded(seed)
    name = getattr(factory, "__name__", type(factory).__name__)
    try:
        model: object = factory()
    except (Exception, SystemExit) as error:
        msg = f"the factory must build a model when called without arguments. `{name}` raised {type(error).__name__}: {error}"
        if isinstance(error, TypeError) and isinstance(factory, type):
            msg += f". Give it its arguments in a lambda: lambda: {name}(...)."
        raise ModelError(msg) from error
    if not isinstance(model, nn.Module):
        msg = f"the factory must return a torch.nn.Module. `{name}` returned {type(model).__name__}."
        raise ModelError(msg)
    return model


def _copied(model: nn.Module) -> nn.Module:
    # PyTorch does not copy tensors with a history, which a module may keep as attributes from its last run.
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
            "a finished module is copied before it is moved or cast, and must allow that. Copying "
            f"{type(model).__name__} raised {type(error).__name__}: {error} Hand in a factory, or leave out device= and dtype=."
        )
        raise ModelError(msg) from error


def _refuse_unmaterialized(model: nn.Module, *, fixed: bool) -> None:
    """Refuse parameters and buffers on the meta device and, in a finished module, lazy ones."""
    held: dict[str, Iterable[tuple[str, Tensor]]] = {
        "parameters": model.named_parameters(),
        "buffers": model.named_buffers(),
    }
    for kind, name, tensor in ((kind, *named) for kind, tensors in held.items() for named in tensors):
        if is_lazy(tensor):
            if not fixed:
                continue
            what = "has no shape yet (a lazy module)"
        elif tensor.is_meta:
            what = "lives on the meta device"
        else:
            continue
        msg = (
            f"the {kind} of a model must hold numbers. {name!r} {what}. Materialize it first: run the model "
            "once, or load its weights. A lazy module may also be built by a factory."
        )
        raise ModelError(msg)


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the model's first parameter or buffer; None for a model without any."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
