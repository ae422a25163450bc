"""Isolation: a measurement restores the model and the global state that it changes, bit for bit."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .saved_values import Saved, SavedModule, SavedTensor, saved_values
from .torch_internals import compiler_is_loaded, set_version, version_of

__all__ = [
    "ModelState",
    "default_device",
    "derived_seed",
    "digest",
    "generator_of",
    "generator_state",
    "one_at_a_time",
    "other_draws",
    "preserved_generators",
    "preserved_model",
    "preserved_world",
    "seeded",
    "seeded_unless_seeded",
    "uncompiled",
]


def derived_seed(seed: int, purpose: str) -> int:
    """Return the seed for one purpose ("inputs", "cotangent 0"), independent of the seeds for all other purposes."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_of(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose. It is on the CPU, so that its numbers are the same for every device."""
    return torch.Generator("cpu").manual_seed(derived_seed(seed, purpose))


def seeded(seed: int) -> None:
    """Seed every global generator that a model may draw from: torch, ``random`` and, if it is imported, numpy."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def generator_state(device: torch.device | None = None) -> bytes:
    """Return the state of torch's default generator on a CUDA device, or on the CPU for every other device."""
    if device is not None and device.type == "cuda":
        return bytes(torch.cuda.get_rng_state(device).numpy())
    return bytes(torch.default_generator.get_state().numpy())


def other_draws(seed: int) -> bytes:
    """Return the states of ``random`` and numpy's generator that differ from those after :func:`seeded`; empty for none."""
    found = b""
    if (state := random.getstate()) != random.Random(seed).getstate():
        found += repr(state).encode()
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"].random
        drawn, fresh = numpy.get_state(), numpy.RandomState(seed % 2**32).get_state()
        if not _same_state(drawn, fresh):
            # The text of a state takes milliseconds.
            found += repr(drawn).encode()
    return found


def _same_state(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Return whether two states of numpy's generator are equal: a name, an array and some numbers."""
    return (*one[:1], *one[2:]) == (*other[:1], *other[2:]) and bool((one[1] == other[1]).all())


def digest(*parts: bytes) -> str:
    """Return eight hexadecimal digits of a hash of the parts."""
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:8]


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global generators of torch, ``random`` and numpy on exit."""
    with ExitStack() as stack:
        stack.callback(torch.default_generator.set_state, torch.default_generator.get_state())
        if torch.cuda.is_available():
            # This initializes CUDA: without it there would be no state to restore.
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        if torch.backends.mps.is_available():
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        stack.callback(random.setstate, random.getstate())
        if "numpy" in sys.modules:
            generator = sys.modules["numpy"].random
            stack.callback(generator.set_state, generator.get_state())
        yield


@contextmanager
def seeded_unless_seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and restore it on exit, unless the code inside the context has seeded it anew."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if torch.default_generator.initial_seed() == seed:
            torch.default_generator.set_state(state)


# Note [One run at a time]
# ~~~~~~~~~~~~~~~~~~~~~~~~
# A run seeds the global generators, changes global settings, and restores both. Two threads that run at the same time would draw
# each other's numbers, and each would restore what the other has set. A lock of the process therefore admits one thread at a
# time. The same thread may enter again: a factory or a loss may measure another model, but must not wait for a thread that does.
# A process that is forked while a thread runs gets a new lock, as that thread does not exist there. Nothing holds the lock while
# a test's own code runs.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread runs a model. See Note [One run at a time]."""
    with _lock:
        yield


@contextmanager
def preserved_world() -> Iterator[None]:
    """Restore the global state of torch, ``random`` and numpy on exit: generators, gradient modes, default dtype, flags.

    Inside the context, gradients are enabled and TF32 is disabled, so that float32 models have the same precision on every
    device. Other threads wait. See Note [One run at a time].
    """
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        stack.enter_context(preserved_generators())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(_set_backend_flags, _backend_flags())
        _set_precision(_without_tf32(_precision()))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        # Autocast keeps the cast weights for as long as the user's context lasts: those of an earlier step, without a gradient.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        torch.clear_autocast_cache()
        yield


def default_device(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which tensors are made on a device unless another one is named.

    Does nothing where the default device is the CPU, as it is unless the user has set another one, or of the same kind. A default
    device such as ``meta`` would otherwise receive tensors of the measurement and of the model.
    """
    # `torch.get_default_device` overlooks `with torch.device(...)` in PyTorch 2.6.
    if torch.empty(0).device.type in {"cpu", device.type}:
        return nullcontext()
    return device


def _backend_flags() -> dict[str, Any]:
    return {
        "precision": _precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "attention": [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _ATTENTION],
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "fill": _deterministic().fill_uninitialized_memory,
    }


def _precision() -> dict[str, Any]:
    """Return the precision settings of float32 products: PyTorch's older ones, if they can be read, and its newer ones."""
    found: dict[str, Any] = {"newer": [backend.fp32_precision for backend in _precise_backends()]}
    try:
        found["older"] = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # Reading the older settings raises once the user has set the newer ones.
        found["older"] = None
    return found


def _set_precision(settings: dict[str, Any]) -> None:
    """Restore the settings of :func:`_precision`. The older ones come first: the newer ones express more, and take precedence."""
    if settings["older"] is not None:
        matmul, torch.backends.cudnn.allow_tf32 = settings["older"]
        torch.set_float32_matmul_precision(matmul)
    for backend, value in zip(_precise_backends(), settings["newer"]):
        backend.fp32_precision = value


def _without_tf32(settings: dict[str, Any]) -> dict[str, Any]:
    if settings["older"] is not None:
        return {"older": ("highest", False), "newer": []}
    return {"older": None, "newer": ["ieee"] * len(settings["newer"])}


def _precise_backends() -> list[Any]:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return []
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _set_backend_flags(flags: dict[str, Any]) -> None:
    _set_precision(flags["precision"])
    torch.backends.cudnn.benchmark = flags["cudnn_benchmark"]
    torch.backends.cudnn.deterministic = flags["cudnn_deterministic"]
    if torch.are_deterministic_algorithms_enabled() != flags["deterministic"]:
        torch.use_deterministic_algorithms(flags["deterministic"], warn_only=flags["deterministic_warn_only"])
    if torch.get_num_threads() != flags["threads"]:
        torch.set_num_threads(flags["threads"])
    if torch.backends.mkldnn.enabled != flags["mkldnn"]:
        torch.backends.mkldnn.enabled = flags["mkldnn"]
    for name, enabled in zip(_ATTENTION, flags["attention"]):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)
    if (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()) != flags["anomaly"]:
        torch.autograd.set_detect_anomaly(*flags["anomaly"])
    _deterministic().fill_uninitialized_memory = flags["fill"]


def _deterministic() -> Any:
    """Return the module whose attributes are settings, which type checkers do not know."""
    return torch.utils.deterministic


_ATTENTION = ("flash", "math", "mem_efficient", "cudnn")
"""Kernels of attention that can be switched off."""


@contextmanager
def preserved_model(model: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers, ``.grad``, ``requires_grad``, attributes, flags and hooks of a user's module on exit.

    So are the class of a module, which a parametrization changes; memory, shape, hooks and attributes of tensors; the items of
    tuples, lists, dictionaries, sets and deques, also within each other; the attributes of dataclasses and namespaces; numpy
    arrays; the model's own generators of random numbers; the attributes of scripted modules; and all of this for modules that
    ``modules()`` does not list. The version counters of tensors are restored as well, so that an autograd graph from before can
    still be differentiated.

    What objects of other classes hold, and what functions hold, stays as the run has left it. See Note [What is saved].

    Raises:
        ModelError: Something could not be restored. All else was. It is not raised in place of an error of the body.
    """
    with ModelState(model).kept():
        yield


class ModelState:
    """The state of a module, to which it returns after each of several changes. See :func:`preserved_model`."""

    def __init__(self, model: nn.Module) -> None:
        self._saved = saved_values(model)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Return to this state on exit. On entry, the module must be in it.

        Raises:
            ModelError: Something could not be restored.
        """
        tensors = [saved.value for saved in self._saved if isinstance(saved, SavedTensor)]
        # Tensors created in inference mode have no version counter.
        versions = [(tensor, version_of(tensor)) for tensor in tensors if not tensor.is_inference()]
        try:
            yield
        except BaseException as error:
            failed = self._return(versions)
            if failed and hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(self._text(failed))
            raise
        failed = self._return(versions)
        if failed:
            raise ModelError(self._text(failed)) from failed[0][1]

    def _return(self, versions: list[tuple[Tensor, int]]) -> list[tuple[Saved, Exception]]:
        """Restore everything, whatever happens with one part, and return what could not be restored and why."""
        failed: list[tuple[Saved, Exception]] = []
        interrupt: BaseException | None = None
        for saved in self._saved:
            error = _failure(saved)
            if error is not None and not isinstance(error, Exception):
                # The user has pressed Ctrl-C. That waits.
                interrupt, error = error, _failure(saved)
            if isinstance(error, Exception):
                failed.append((saved, error))
        for tensor, version in versions:
            if version_of(tensor) != version:
                set_version(tensor, version)
        if interrupt is not None:
            raise interrupt
        return failed

    def _text(self, failed: list[tuple[Saved, Exception]]) -> str:
        saved, error = failed[0]
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        others = f", nor did {len(failed) - 1} more" if len(failed) > 1 else ""
        return (
            f"a model must return to its former state after a run. {self._name(saved.value)} did not{others}: "
            f"{reason}. All else is restored. A factory, which builds a new model for each seed, helps."
        )

    def _name(self, value: Any) -> str:
        """Return where the model holds an object."""
        for saved in self._saved:
            if isinstance(saved, SavedModule):
                tables = (items for _, items in saved.tables.values() if items)
                for name, held in chain(saved.attributes.items(), *(items.items() for items in tables)):
                    if held is value:
                        return f"{name!r} of {type(saved.value).__name__}"
        return f"an object of type {type(value).__name__}"


def _failure(saved: Saved) -> BaseException | None:
    """Restore one part, and return the error if that fails."""
    try:
        saved.restore()
    except BaseException as error:  # of any type: a key may raise when it is hashed
        return error
    return None


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context that runs compiled models eagerly, because a compiled region hides its steps.

    Does nothing if the compiler is not imported.
    """
    if not compiler_is_loaded():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
