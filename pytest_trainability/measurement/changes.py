"""Changes of a model, as remedies describe them, and their trial on the models of a factory or on a copy of a module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..checks.remedy import Remedy
from ..engine.isolation import derived_seed, preserved_generators, seeded
from ..engine.runs.constants import SIGNS
from ..engine.runs.recipe import ModelSource
from ..engine.torch_internals import tables_of, version_of

__all__ = ["apply", "changed"]


def apply(remedy: Remedy, model: nn.Module) -> None:
    """Change a model in place.

    Args:
        remedy: The change.
        model: A model of the class that was measured.

    Raises:
        LookupError: The model has no parameter or module of a name that is changed.
    """
    _CHANGES[remedy.kind](remedy, model)


@contextmanager
def changed(source: ModelSource, remedy: Remedy) -> Iterator[ModelSource]:
    """Yield a copy of a module, or a factory of models, that is changed as a remedy says.

    The models of a factory may share modules or parameters that it keeps. These are changed once, and restored on exit.

    Args:
        source: A finished module, which is copied, or a factory.
        remedy: The change.
    """
    if isinstance(source, nn.Module):
        with preserved_generators():
            seeded(derived_seed(0, "changed weights"))
            copied = deepcopy(source)
            apply(remedy, copied)
        yield copied
        return
    trial = _Trial()

    def build() -> nn.Module:
        model: nn.Module = source()
        for part in remedy.parts or (remedy,):
            trial.change(model, part)
        return model

    try:
        yield build
    finally:
        trial.undo()


@dataclass(frozen=True, slots=True)
class _Before:
    """What a parameter or a module was before it was changed."""

    values: Tensor | None = None
    version: int = 0
    hooks: Mapping[str, Mapping[int, Any]] | None = None
    eps: float | None = None

    @staticmethod
    def of(target: Tensor | nn.Module) -> _Before:
        if isinstance(target, Tensor):
            return _Before(target.detach().clone(), version_of(target))
        return _Before(hooks={k: v.copy() for k, v in _hooks_of(target).items()}, eps=getattr(target, "eps", None))

    def restore(self, target: Tensor | nn.Module) -> None:
        if isinstance(target, Tensor):
            assert self.values is not None
            target.data.copy_(self.values)
            return
        for name, table in _hooks_of(target).items():
            table.clear()
            table.update((self.hooks or {})[name])
        if self.eps is not None:
            norm: Any = target
            norm.eps = self.eps


class _Trial:
    """Changes that are undone. Models that are gone need no undoing, and are not kept."""

    def __init__(self) -> None:
        self._before: Any = WeakIdKeyDictionary()
        """The :class:`_Before` of each parameter and module."""

    def change(self, model: nn.Module, remedy: Remedy) -> None:
        """Apply a remedy to all of its targets that are not changed yet."""
        targets = {name: _target(model, name) for name in remedy.targets}
        now = remedy.without({name for name, target in targets.items() if self._is_changed(target)})
        if now.targets or not remedy.targets:
            for name in now.targets:
                self._before[targets[name]] = _Before.of(targets[name])
            apply(now, model)

    def _is_changed(self, target: Tensor | nn.Module) -> bool:
        """Return whether a target was changed before, and the factory has not written to it since."""
        before: _Before | None = self._before.get(target)
        return before is not None and (not isinstance(target, Tensor) or before.version == version_of(target))

    def undo(self) -> None:
        for target, before in list(self._before.items()):
            before.restore(target)


def _hooks_of(module: nn.Module) -> dict[str, Any]:
    return {name: table for name, table in tables_of(module).items() if name.endswith("_hooks")}


def _target(model: nn.Module, name: str) -> Tensor | nn.Module:
    found = _tensors(model).get(name)
    return model.get_submodule(name) if found is None else found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by all of their names."""
    return {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}


# Kinds ------------------------------------------------------------------------------------------------------------


def _scale(remedy: Remedy, model: nn.Module) -> None:
    for name, factor in zip(remedy.targets, remedy.factors):
        _parameter(model, name).mul_(factor)


def _ones(remedy: Remedy, model: nn.Module) -> None:
    for name in remedy.targets:
        _parameter(model, name).fill_(1.0)


def _fill(remedy: Remedy, model: nn.Module) -> None:
    for name, value in zip(remedy.targets, remedy.factors):
        _parameter(model, name).fill_(value)


def _draw(remedy: Remedy, model: nn.Module) -> None:
    for name, deviation in zip(remedy.targets, remedy.factors):
        _parameter(model, name).normal_(0.0, deviation)


def _padding(remedy: Remedy, model: nn.Module) -> None:
    for name in remedy.targets:
        table: Any = model.get_submodule(name.rpartition(".")[0])
        _parameter(model, name)[table.padding_idx].fill_(0.0)


def _eps(remedy: Remedy, model: nn.Module) -> None:
    for name, eps in zip(remedy.targets, remedy.factors):
        norm: Any = model.get_submodule(name)
        if not hasattr(norm, "eps"):
            msg = f"{name!r} must have an attribute eps. Change the constant where it is written."
            raise LookupError(msg)
        norm.eps = eps


def _shift(remedy: Remedy, model: nn.Module) -> None:
    for name, added in zip(remedy.targets, remedy.factors):
        _parameter(model, name).add_(added)


def _several(remedy: Remedy, model: nn.Module) -> None:
    for part in remedy.parts:
        apply(part, model)


def _zeros(remedy: Remedy, model: nn.Module) -> None:
    for name in remedy.targets:
        _parameter(model, name).fill_(0.0)


def _orthogonal_gates(remedy: Remedy, model: nn.Module) -> None:
    for name, gates in zip(remedy.targets, remedy.factors):
        for gate in _parameter(model, name).chunk(round(gates)):
            nn.init.orthogonal_(gate)


def _forget_bias(remedy: Remedy, model: nn.Module) -> None:
    for name, bias in zip(remedy.targets, remedy.factors):
        _parameter(model, name).chunk(4)[1].fill_(bias)


def _update_bias(remedy: Remedy, model: nn.Module) -> None:
    for name, bias in zip(remedy.targets, remedy.factors):
        _parameter(model, name).chunk(3)[1].fill_(bias)


def _gate_bias(remedy: Remedy, model: nn.Module) -> None:
    part, parts, value = remedy.factors
    for name in remedy.targets:
        _parameter(model, name).chunk(round(parts))[round(part)].fill_(value)


def _other_gate(remedy: Remedy, model: nn.Module) -> None:
    for name, now in zip(remedy.targets, remedy.factors):
        module = model.get_submodule(name.rpartition(".")[0])
        parts = _parameter(model, name).chunk(3 if isinstance(module, (nn.GRU, nn.GRUCell)) else 4)
        misplaced = parts[round(now)].clone()
        parts[round(now)].copy_(parts[1])
        parts[1].copy_(misplaced)


def _output(remedy: Remedy, model: nn.Module) -> None:
    for name, factor in zip(remedy.targets, remedy.factors):
        model.get_submodule(name).register_forward_hook(_multiplied_by(factor))


def _multiplied_by(factor: float) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, args, output: output * factor if isinstance(output, Tensor) else None


def _inline(remedy: Remedy, model: nn.Module) -> None:
    for name, number in zip(remedy.targets, remedy.factors):
        _run_inside(model.get_submodule(name), partial(_Without, number=number))


def _sum(remedy: Remedy, model: nn.Module) -> None:
    for name, number in zip(remedy.targets, remedy.factors):
        _run_inside(model.get_submodule(name), partial(_WithoutSum, number=number))


def _function(remedy: Remedy, model: nn.Module) -> None:
    calls: dict[str, set[int]] = {}
    for name, index in zip(remedy.targets, remedy.factors):
        calls.setdefault(name, set()).add(round(index))
    for name, indices in calls.items():
        _run_inside(model.get_submodule(name), partial(_WithoutCalls, function=remedy.function, indices=indices))


def _run_inside(module: nn.Module, mode: Callable[[nn.Module], TorchFunctionMode]) -> None:
    """Enter a mode whenever a module runs.

    Args:
        module: The module.
        mode: Makes the mode, given the module that runs.
    """
    entered: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        entered.append(mode(module))
        entered[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        entered.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


_POWERS = {"mul": 1, "rmul": 1, "imul": 1, "multiply": 1, "div": -1, "truediv": -1, "itruediv": -1, "divide": -1}
"""Functions of PyTorch that multiply or divide, by the power of what they multiply with."""


class _Without(TorchFunctionMode):
    """Leaves out the multiplications with one number, or divisions by its inverse, that the code of a module itself performs."""

    powers: Mapping[str, int] = _POWERS
    """Functions to leave out, by the power or the sign of the number."""

    def __init__(self, module: nn.Module, number: float) -> None:
        super().__init__()
        self.module, self.number = module, number

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        power = self.powers.get(getattr(func, "__name__", "").strip("_"))
        if power is not None and len(args) == 2 and not kwargs:
            for value, other in ((args[0], args[1]), (args[1], args[0])):
                is_number = isinstance(value, Tensor) and self._is_number(other, power)
                if is_number and _calling_module(inspect.currentframe()) is self.module:
                    return value
        return func(*args, **(kwargs or {}))

    def _is_number(self, value: Any, power: int) -> bool:
        if isinstance(value, Tensor):
            is_constant = not value.requires_grad and value.numel() and value.is_floating_point()
            value = float(value.flatten()[0]) if is_constant and bool((value == value.flatten()[0]).all()) else 0.0
        return isinstance(value, (int, float)) and value != 0 and math.isclose(value**power, self.number, rel_tol=1e-3)


class _WithoutSum(_Without):
    """Leaves out the additions of one number, or subtractions of its negative, that the code of a module itself performs."""

    powers = SIGNS

    def _is_number(self, value: Any, power: int) -> bool:
        return isinstance(value, (int, float)) and power * value == self.number


class _WithoutCalls(TorchFunctionMode):
    """Returns the first argument of some calls of a function that the code of a module itself performs, instead of the result."""

    def __init__(self, module: nn.Module, function: str, indices: Set[int]) -> None:
        super().__init__()
        self.module, self.function, self.indices = module, function, indices
        self.called = 0
        """Number of calls so far."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_").removeprefix("special_")
        if name == self.function and _calling_module(inspect.currentframe()) is self.module:
            self.called += 1
            if self.called - 1 in self.indices:
                return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def _calling_module(frame: FrameType | None) -> nn.Module | None:
    """Return the innermost module whose code runs."""
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return owner
        frame = frame.f_back
    return None


def _layer_norm(remedy: Remedy, model: nn.Module) -> None:
    for name in remedy.targets:
        model.get_submodule(name).register_forward_pre_hook(_normalized_input)


def _normalized_input(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """Normalize the first argument over its features: the last dimension, or channels and positions of images."""
    if not args or not isinstance(args[0], Tensor):
        return None
    x = args[0]
    shape = x.shape[1:] if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else x.shape[-1:]
    return (F.layer_norm(x, shape), *args[1:])


def _standard_inputs(remedy: Remedy, model: nn.Module) -> None:
    mean, deviation = remedy.factors

    def one(value: Any) -> Any:
        return (value - mean) / deviation if isinstance(value, Tensor) and value.is_floating_point() else value

    def standardized(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(one, args)), {name: one(value) for name, value in kwargs.items()}

    model.register_forward_pre_hook(standardized, with_kwargs=True)


def _parameter(model: nn.Module, name: str) -> Tensor:
    """Return the values of a parameter or buffer. Writing to them keeps its version, so that earlier graphs stay valid."""
    found = _tensors(model).get(name)
    if found is None:
        msg = (
            f"the model must have the parameter or buffer {name!r} that the cure changes. "
            "Apply it to a model of the measured class."
        )
        raise LookupError(msg)
    return found.data


_CHANGES = {
    "scale": _scale,
    "ones": _ones,
    "fill": _fill,
    "orthogonal gates": _orthogonal_gates,
    "forget bias": _forget_bias,
    "output": _output,
    "inline": _inline,
    "layer norm": _layer_norm,
    "standard inputs": _standard_inputs,
    "zeros": _zeros,
    "draw": _draw,
    "several": _several,
    "padding": _padding,
    "eps": _eps,
    "shift": _shift,
    "update bias": _update_bias,
    "sum": _sum,
    "gate bias": _gate_bias,
    "function": _function,
    "other gate": _other_gate,
}
