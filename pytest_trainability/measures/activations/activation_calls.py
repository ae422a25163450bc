"""Calls of activations in a forward pass: which functions act on each entry alone, and how many entries they saturate."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import Node

from ...engine.capture.function_mode import FunctionObserver
from ...engine.capture.recorder import Edge, Recorder, edge_of
from ...engine.torch_internals import (
    apply_node,
    buffer_table,
    function_transforms_are_active,
    inputs_of_forward,
    intercepted_custom_functions,
    is_custom,
    is_leaf_node,
    is_made_by,
    output_metadata,
    parameter_table,
    version_of,
    without_torch_functions,
)
from ...engine.trees import carries_gradient, tensors_in
from .elementwise import Application, generator_states, steepest_slope

__all__ = ["ActivationCall", "ActivationObserver", "observe_activations"]


SATURATED = 0.01
"""A unit is saturated if its slope is below this fraction of the activation's largest slope."""


@dataclass(frozen=True, slots=True)
class ActivationCall:
    """One call of an activation."""

    name: str
    input: Edge
    output: Edge
    shape: tuple[int, ...]
    saturated: float
    dead: Mapping[tuple[int, ...], float]
    """Share of dead units, by the dimensions that may count units."""
    mean: float = math.nan
    deviation: float = math.nan
    """Mean and standard deviation of what the function reads; NaN unless the observer was asked for them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """The arguments of a call that may be a call of an activation."""

    application: Application
    input: Edge
    version: int
    """Version of the input tensor, which counts in-place changes."""
    may_overwrite: bool
    """Whether the function may change its input in place. The values of the application are a copy then."""

    def fits(self, result: Any) -> bool:
        """Whether the result is one new tensor with the shape of the input, or the overwritten input."""
        tensor = self.application.tensor
        if not isinstance(result, Tensor) or not carries_gradient(result) or result.shape != tensor.shape:
            return False
        if version_of(tensor) != self.version:
            return self.may_overwrite
        return result.data_ptr() != tensor.data_ptr()

    def slope(self, result: Tensor) -> Tensor:
        """Return ``φ'`` at the values of the call, in their shape.

        The graph has the derivative if one operator of PyTorch made the result from the input, and from nothing else that depends
        on it. Otherwise, the function is called again.
        """
        node = result.grad_fn
        reads = [] if node is None else list(node.next_functions)
        others = (read for read, _ in reads if read is not None and not is_leaf_node(read))
        if node is None or [*others] != [self.input[0]] or self.input not in reads or not _is_plain(node):
            return self.application.slope()
        try:
            slope = apply_node(node, [torch.ones_like(result)])[reads.index(self.input)]
        except RuntimeError:  # what the operator has saved is overwritten
            return self.application.slope()
        return self.application.slope() if slope is None else slope


@dataclass(frozen=True, slots=True, eq=False)
class _CustomCall:
    """A call of a ``torch.autograd.Function`` whose ``forward`` has returned, but whose result has no ``grad_fn`` yet."""

    parent: _ModuleCall
    key: Hashable
    function: type[Function]
    candidate: _Candidate
    result: Any


@dataclass(slots=True, eq=False)
class _ModuleCall:
    """A call of a module that has not returned yet."""

    module: nn.Module | None
    path: str
    candidate: _Candidate | None = None
    operations: int = 0
    """Number of functions that were applied to a tensor with a gradient, without those inside submodules."""
    found: list[ActivationCall] = field(default_factory=list)
    """Calls of activations inside this call, in the order of their return."""


class ActivationObserver(FunctionObserver):
    """Examines every module and every function that a model calls. Functions inside functions are not examined.

    Args:
        recorder: The recorder of the forward pass.
        reads_inputs: Whether to compute mean and standard deviation of what each activation reads.
    """

    def __init__(self, recorder: Recorder, *, reads_inputs: bool = False) -> None:
        super().__init__(recorder)
        self._reads_inputs = reads_inputs
        self.paths = recorder.paths
        model = recorder.capture.model
        self.stack = [_ModuleCall(None, type(model).__name__)]
        self._modules_entered = 0
        self._custom_call: _CustomCall | None = None
        self._is_evaluating = False
        self._largest_slopes: dict[Hashable, float | None] = {}
        """Largest slope by function and place; None for a function that is not an activation."""

    @property
    def found(self) -> list[ActivationCall]:
        """Calls of activations, in the order of their return."""
        return self.stack[0].found

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the forward pass, and examine whether it is an activation."""
        name = getattr(func, "__name__", type(func).__name__)
        parent, begun = self.stack[-1], self._modules_entered
        key = func, parent.path, _plain_arguments(args, kwargs)
        candidate = None
        # Other observers of functions must not see what this one computes.
        with without_torch_functions():
            self.finish_custom_call()
            if torch.is_grad_enabled():
                candidate = self._candidate(key, func, args, kwargs, may_overwrite=_may_overwrite(name, args, kwargs))
        result = func(*args, **kwargs)
        with without_torch_functions():
            self.finish_custom_call()
            if isinstance(result, Tensor) and any(map(carries_gradient, tensors_in((args, kwargs)))):
                parent.operations += 1
            # A function that calls modules is not elementary, and the modules must not be called again.
            if candidate is not None and self._modules_entered == begun and candidate.fits(result):
                parent.found += self._activation_call(key, f"{parent.path} {name.strip('_')}", candidate, result)
        return result

    def forward(self, cls: type[Function], forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run the ``forward`` of a ``torch.autograd.Function``; ``finish_custom_call`` examines it later."""
        if self._is_evaluating:
            return forward(*args)
        self.finish_custom_call()
        parent, begun, inputs = self.stack[-1], self._modules_entered, inputs_of_forward(cls, args)
        key = cls, parent.path, _plain_arguments(inputs, {})
        candidate = self._candidate(key, cls.apply, inputs, {}, may_overwrite=True)
        result = forward(*args)
        self.finish_custom_call()
        if isinstance(result, Tensor) and any(map(carries_gradient, tensors_in(inputs))):
            parent.operations += 1
        if candidate is not None and self._modules_entered == begun:
            self._custom_call = _CustomCall(parent, key, cls, candidate, result)
        return result

    def setup_context(self, setup_context: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run the ``setup_context`` of a ``torch.autograd.Function``, which follows its ``forward``."""
        custom_call, self._custom_call = self._custom_call, None
        setup_context(*args)
        self.finish_custom_call()
        self._custom_call = custom_call

    def finish_custom_call(self) -> None:
        """Examine the last call of a ``torch.autograd.Function``, which has returned by the time of the next event."""
        call, self._custom_call = self._custom_call, None
        if call is None or not isinstance(call.result, Tensor) or not is_made_by(call.result, call.function):
            return
        if call.candidate.fits(call.result):
            name = f"{call.parent.path} {call.function.__name__}"
            call.parent.found += self._activation_call(call.key, name, call.candidate, call.result)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Ignore functions that are called inside this context: the model does not call them."""
        before, self._is_evaluating = self._is_evaluating, True
        try:
            yield
        finally:
            self._is_evaluating = before

    def _candidate(
        self, key: Hashable, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, *, may_overwrite: bool
    ) -> _Candidate | None:
        """Return the call as a candidate if exactly one argument carries a gradient, except parameters; None otherwise."""
        if self._largest_slopes.get(key, 0.0) is None:
            return None
        signals = {}
        for tensor in tensors_in((args, kwargs)):
            if _is_weight(tensor):
                return None
            if carries_gradient(tensor) and not tensor.is_leaf:
                signals[id(tensor)] = tensor
        if len(signals) != 1 or function_transforms_are_active():
            return None
        (tensor,) = signals.values()
        if tensor.is_complex() or tensor.numel() == 0 or tensor.layout is not torch.strided or tensor.is_nested:
            return None
        values = tensor.detach().clone() if may_overwrite else tensor.detach()
        states = generator_states(tensor.device)
        application = Application(function, args, kwargs, tensor, values, states)
        return _Candidate(application, edge_of(tensor), version_of(tensor), may_overwrite)

    def _activation_call(self, key: Hashable, name: str, candidate: _Candidate, result: Tensor) -> list[ActivationCall]:
        """Return a list with the call if the function is an activation, and an empty list otherwise."""
        application = candidate.application
        # Other observers of functions must not see the following computations.
        with without_torch_functions(), self._evaluating():
            if key not in self._largest_slopes:
                self._largest_slopes[key] = steepest_slope(application)
            largest = self._largest_slopes[key]
            if largest is None:
                return []
            slope = candidate.slope(result)
            saturated, dead = _saturated(slope, largest), _dead(slope)
            call = ActivationCall(name, candidate.input, edge_of(result), tuple(result.shape), saturated, dead)
            if self._reads_inputs:
                read = application.values.double()
                call = replace(call, mean=float(read.mean()), deviation=float(read.std(correction=0)))
            return [call]

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a call of a module. This is a forward pre-hook."""
        if module not in self.paths:
            return
        with without_torch_functions():
            self._enter(module, args, kwargs)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.finish_custom_call()
        self._modules_entered += 1
        call = _ModuleCall(module, self.paths[module] or type(module).__name__)
        is_composite = any(True for _ in module.children()) or any(map(_is_weight, parameter_table(module).values()))
        if not is_composite and torch.is_grad_enabled():
            call.candidate = self._candidate(module, module.forward, args, kwargs, may_overwrite=True)
        self.stack.append(call)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """End a call of a module. This is a forward hook. If the whole module is one activation, its parts are not counted."""
        if module not in self.paths:
            return
        with without_torch_functions():
            self._leave(module, output)

    def _leave(self, module: nn.Module, output: Any) -> None:
        self.finish_custom_call()
        # If the model has caught an exception, there may be calls above this one that never returned.
        while self.stack[-1].module is not module:
            self.stack.pop()
        call = self.stack.pop()
        candidate, found = call.candidate, call.found
        if candidate is not None and candidate.fits(output):
            if [(part.input, part.output) for part in found] == [(candidate.input, edge_of(output))]:
                found = [replace(found[0], name=call.path)]
            elif call.operations > 1 and not _has_drawn_random_numbers(candidate.application):
                with _preserved_attributes(module):
                    found = self._activation_call(module, call.path, candidate, output) or found
        self.stack[-1].found += found


def _is_weight(value: Any) -> bool:
    """Whether a value is a parameter that mixes units. A parameter of an activation, such as a slope per channel, does not."""
    return isinstance(value, nn.Parameter) and sum(size > 1 for size in value.shape) > 1


def _is_plain(node: Node) -> bool:
    """Whether a node is an operator of PyTorch with one result, and holds what it has saved, as outside of a checkpoint."""
    if is_custom(node) or len(output_metadata(node)) != 1:
        return False
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("no hooks"):
            return True
    except RuntimeError:
        return False


def _may_overwrite(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function may work in place, by PyTorch's conventions: ``relu_``, ``__iadd__`` or ``inplace=True``."""
    in_place = name.startswith("__i") if name.endswith("__") else name.endswith("_")
    return in_place or any(value is True for value in (*args, *kwargs.values()))


_PLAIN = (bool, int, float, str, type(None))


def _plain_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Return the plain arguments of a call, and the types of others. They distinguish a clamp at zero from one at infinity."""
    arguments = (*enumerate(args), *kwargs.items())
    return tuple((place, value if isinstance(value, _PLAIN) else type(value)) for place, value in arguments)


def _has_drawn_random_numbers(application: Application) -> bool:
    """Whether random numbers have been drawn since the call. Dropout after an activation is not a part of it."""
    return any(not torch.equal(generator.get_state(), state) for generator, state in application.generators)


def _saturated(slope: Tensor, largest: float) -> float:
    """Return the share of entries whose slope is below a hundredth of the largest slope; NaN if a slope is NaN."""
    if bool(slope.isnan().any()):
        return math.nan
    return float((slope.abs() < SATURATED * largest).sum()) / slope.numel()


def _dead(slope: Tensor) -> dict[tuple[int, ...], float]:
    """Return the share of units with slopes of zero, by the dimensions that may count units; NaN if a slope is NaN.

    These are the first dimension alone, and every set of other dimensions. All dimensions but the first together count the
    entries of a sample.
    """
    alive = (slope if slope.dim() else slope.reshape(1)) != 0
    entries = alive.any(dim=0)
    further = range(1, alive.dim())
    units: dict[tuple[int, ...], Tensor] = {(0,): alive.flatten(1).any(dim=1) if further else alive}
    for count in range(len(further) + 1):
        for along in combinations(further, count):
            others = [axis - 1 for axis in further if axis not in along]
            units[along] = entries.any(dim=others) if others else entries
    is_known = not bool(slope.isnan().any())
    return {along: 1 - float(u.sum()) / u.numel() if is_known else math.nan for along, u in units.items()}


@contextmanager
def _preserved_attributes(module: nn.Module) -> Iterator[None]:
    """Let a module change copies of its buffers and tensors inside the context, and restore its attributes afterwards.

    Hooks stay as they are, because one of them is running. The buffers themselves are not overwritten, because the backward pass
    may read them.
    """
    attributes, buffers = dict(vars(module)), dict(buffer_table(module))
    copies = {name: value.detach().clone() for name, value in attributes.items() if isinstance(value, Tensor)}
    vars(module).update(copies)
    buffer_table(module).update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        vars(module).update(attributes)
        buffer_table(module).update(buffers)


@contextmanager
def observe_activations(recorder: Recorder, *, reads_inputs: bool = False) -> Iterator[ActivationObserver]:
    """Observe the calls of activations in a forward pass: an instrument.

    Args:
        recorder: The recorder of the forward pass.
        reads_inputs: As in :class:`ActivationObserver`.

    Yields:
        The observer, whose attribute ``found`` lists the calls.
    """
    observer = ActivationObserver(recorder, reads_inputs=reads_inputs)
    handles = []
    try:
        for module in recorder.paths:
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(observer.enter, with_kwargs=True))
                handles.append(module.register_forward_hook(observer.leave, with_kwargs=True))
        with intercepted_custom_functions(observer.forward, observer.setup_context), observer:
            yield observer
            observer.finish_custom_call()
    finally:
        for handle in handles:
            handle.remove()
