"""Slopes of activation functions: the derivatives of all activations in a run, at the values of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import Node

from ...engine.capture.chain import dependent_nodes
from ...engine.capture.function_mode import FunctionObserver, numbered
from ...engine.capture.operators import PRODUCTS, operator_name
from ...engine.capture.products import Product, is_constant, nearest_products, root_mean_square
from ...engine.capture.recorder import Edge, Recorder, edge_of
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import (
    buffer_table,
    function_transforms_are_active,
    inputs_of_forward,
    intercepted_custom_functions,
    is_made_by,
    output_metadata,
    parameter_table,
    saved,
    version_of,
    without_torch_functions,
)
from ...engine.trees import carries_gradient, tensors_in
from ...records.causes import CauseRecord
from ...records.text import format_number
from ..measure import declare
from .elementwise import Application, generator_states, steepest_slope
from .input_scale import input_causes
from .unit_axes import Layout

__all__ = ["ACTIVATIONS", "IDLE_CAUSES", "Slopes"]


SATURATED = 0.01
"""A unit is saturated if its slope is below this fraction of the activation's largest slope."""
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
MOST_DROPPED = 0.6
"""Share of dropped entries from which on dropout is a cause."""
IDLE = 0.8
"""Share of saturated entries from which on an activation is explained."""
SHIFTED = 1.0
"""Size of a bias, in standard deviations of what an activation reads, from which on it explains that units are idle."""
LARGE_DEVIATION = 3.0
"""Standard deviation of what an activation reads from which on it explains that units are saturated."""


@dataclass(frozen=True, slots=True)
class Slopes:
    """Shares of saturated and dead units in one call of an activation with the derivative φ'."""

    saturated: float
    """Share of entries with ``|φ'|`` below 1 % of its maximum; NaN if a slope is NaN."""
    dead: float
    """Share of units with φ' = 0 in the whole batch; NaN if a slope is NaN."""


# Observation of the forward pass ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _ActivationCall:
    """One call of an activation."""

    name: str
    input: Edge
    output: Edge
    shape: tuple[int, ...]
    saturated: float
    dead: Mapping[tuple[int, ...], float]
    """Share of dead units, by the dimensions that may count units."""
    mean: float
    deviation: float
    """Mean and standard deviation of what the function reads."""


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
    found: list[_ActivationCall] = field(default_factory=list)
    """Calls of activations inside this call, in the order of their return."""


class _ActivationObserver(FunctionObserver):
    """Examines every module and every function that a model calls. Functions inside functions are not examined."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.paths = recorder.paths
        model = recorder.capture.model
        self.stack = [_ModuleCall(None, type(model).__name__)]
        self._modules_entered = 0
        self._custom_call: _CustomCall | None = None
        self._is_evaluating = False
        self._largest_slopes: dict[Hashable, float | None] = {}
        """Largest slope by function and place; None for a function that is not an activation."""

    @property
    def found(self) -> list[_ActivationCall]:
        """Calls of activations, in the order of their return."""
        return self.stack[0].found

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the forward pass, and examine whether it is an activation."""
        self.finish_custom_call()
        name = getattr(func, "__name__", type(func).__name__)
        parent, begun = self.stack[-1], self._modules_entered
        key = func, parent.path, _plain_arguments(args, kwargs)
        candidate = None
        if torch.is_grad_enabled():
            candidate = self._candidate(key, func, args, kwargs, may_overwrite=_may_overwrite(name, args, kwargs))
        result = func(*args, **kwargs)
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

    def _activation_call(
        self, key: Hashable, name: str, candidate: _Candidate, result: Tensor
    ) -> list[_ActivationCall]:
        """Return a list with the call if the function is an activation, and an empty list otherwise."""
        application = candidate.application
        # Other observers of functions must not see the following computations.
        with without_torch_functions(), self._evaluating():
            if key not in self._largest_slopes:
                self._largest_slopes[key] = steepest_slope(application)
            largest = self._largest_slopes[key]
            if largest is None:
                return []
            slope = application.slope()
            saturated, dead = _saturated(slope, largest), _dead(slope)
            read = application.values.double()
            mean, deviation = float(read.mean()), float(read.std(correction=0))
            shape = tuple(result.shape)
            return [_ActivationCall(name, candidate.input, edge_of(result), shape, saturated, dead, mean, deviation)]

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a call of a module. This is a forward pre-hook."""
        if module not in self.paths:
            return
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
def _observe_activations(recorder: Recorder) -> Iterator[_ActivationObserver]:
    observer = _ActivationObserver(recorder)
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


# Measures ---------------------------------------------------------------------------------------------------------
def _slopes_by_name(run: Run) -> dict[str, Slopes]:
    """Return the slopes of each call of an activation, with the dead units along the dimensions that count units."""
    calls: list[_ActivationCall] = run.capture.watched[_observe_activations].found
    layout = Layout(run.graph.nodes)
    slopes = {}
    for name, call in zip(numbered([call.name for call in calls]), calls):
        entries = tuple(range(1, len(call.shape)))
        units = layout.unit_axes(call.input, call.shape)
        slopes[name] = Slopes(call.saturated, call.dead[units if units in call.dead and units else entries])
    return slopes


ACTIVATIONS = Need("activations", _slopes_by_name, instruments=(_observe_activations,))
""":class:`Slopes` of each call of an activation whose input carries a gradient, in the order of their return.

The name of a module is its path. The name of a function is the path of the calling module and the function's own name
(``"layers.0 relu"``). Repeated calls are numbered.
"""


# Causes -----------------------------------------------------------------------------------------------------------
def _idle_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return why units are idle: inputs that are not standardized, else what makes the inputs of the idle activations."""
    calls: list[_ActivationCall] = run.capture.watched[_observe_activations].found
    found = [*input_causes(run)] if any(call.saturated > IDLE for call in calls) else []
    found = [*found, *_dropouts(run)]
    if found:
        return tuple(found)
    signal = dependent_nodes(run.capture, run.graph)
    constant = (c for call in calls if call.saturated > IDLE for c in _of_one_element(run, signal, call))
    found = [cause for cause in (next(constant, None),) if cause is not None]
    if found:
        return tuple(found)
    products = [next(nearest_products(run.graph, signal, call.input[0]), None) for call in calls]
    return tuple(_of_products(run, [(call, p) for call, p in zip(calls, products) if p is not None]))


def _of_one_element(run: Run, signal: Set[Node], call: _ActivationCall) -> Iterator[CauseRecord]:
    """Yield that a normalization of groups of one element makes what an activation reads constant."""
    node: Node | None = call.input[0]
    while node is not None and operator_name(node) not in PRODUCTS:
        inverse = next((t for i in (2, 1) if isinstance(t := saved(node, f"result{i}"), Tensor) and t.numel()), None)
        if "Norm" in operator_name(node) and inverse is not None:
            if inverse.numel() == math.prod(output_metadata(node)[0].shape):
                place = run.graph.place[node]
                calls = (c for c in run.capture.calls if c.path and not c.inner and c.start <= place < c.end)
                name = next((f"{c.path} ({type(c.module).__name__})" for c in calls), operator_name(node))
                text = f"{name} normalizes groups of one element, so that its output is constant"
                yield CauseRecord(text, is_first=True)
            return
        behind = [producer for producer, _ in run.graph.reads[node] if producer in signal]
        node = behind[0] if len(behind) == 1 else None


def _dropouts(run: Run) -> Iterator[CauseRecord]:
    """Yield that a module drops most entries: its argument is the share that is dropped, and not that which is kept."""
    for call in run.capture.calls:
        share = getattr(call.module, "p", 0.0) if isinstance(call.module, _DROPOUTS) and call.module.training else 0.0
        if share > MOST_DROPPED:
            name = f"{call.path} ({type(call.module).__name__})"
            text = f"{name} drops {100 * share:.0f} % of the entries: its argument is the share to drop, not to keep"
            yield CauseRecord(text, is_first=True)


def _of_products(run: Run, made: Sequence[tuple[_ActivationCall, Product]]) -> Iterator[CauseRecord]:
    """Yield what products with weights and their biases have to do with idle activations."""
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    constant = {names[id(p.weight)]: p for _, p in made if id(p.weight) in names and is_constant(p.weight)}
    if constant:
        first = f"{next(iter(constant))}{_more([*constant])}"
        text = f"constant weights: all entries of {first} are equal, and so are all units of a layer"
        yield CauseRecord(text, drawn=(*constant,), deviations=tuple((2 / p.fan_in) ** 0.5 for p in constant.values()))
    idle = [(call, p) for call, p in made if call.saturated > IDLE]
    shifted = [(call, p) for call, p in idle if id(p.bias) in names and _is_shifted(call, p)]
    steep = [(call, p) for call, p in idle if id(p.weight) in names and call.deviation > LARGE_DEVIATION]
    if shifted:
        call, product = shifted[0]
        biases = tuple(dict.fromkeys(names[id(p.bias)] for _, p in shifted))
        mean = format_number(_mean_bias(product))
        yield CauseRecord(f"{_reads(call)}: {biases[0]} has mean {mean}{_more(biases)}", zeros=biases)
    elif steep:
        call, product = steep[0]
        weights = {names[id(p.weight)]: (1 / c.deviation, root_mean_square(p.weight)) for c, p in steep}
        factors, rms = zip(*weights.values())
        text = (
            f"{_reads(call)}: {names[id(product.weight)]} has rms {format_number(rms[0])} over {product.fan_in} inputs; an "
            f"rms of {format_number(rms[0] * factors[0])} gives a deviation of 1{_more([*weights])}"
        )
        yield CauseRecord(text, tuple(weights), factors, rms)


def _reads(call: _ActivationCall) -> str:
    return f"{call.name} reads values of mean {format_number(call.mean)} and deviation {format_number(call.deviation)}"


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _mean_bias(product: Product) -> float:
    return 0.0 if product.bias is None else float(product.bias.detach().double().mean())


def _is_shifted(call: _ActivationCall, product: Product) -> bool:
    """Return whether a bias moves all units of an activation to where they are idle."""
    bias = _mean_bias(product)
    return abs(bias) > SHIFTED * call.deviation and abs(bias) > abs(call.mean) / 2


IDLE_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of idle units", _idle_causes, instruments=(_observe_activations,)
)
"""Which inputs, weights or biases make units dead or saturated."""


@declare("profile", needs=[ACTIVATIONS], tolerance=0.05, explained_by=IDLE_CAUSES)
def saturated_fraction(run: Run) -> dict[str, float]:
    """Return the share of saturated entries of each activation, with ``|φ'(x)| < 0.01 max |φ'|``, over all samples.

    An activation is a module or a function that acts elementwise, with a bounded slope that depends on the value. Autograd
    computes φ' at the values of the run, in their precision.

    It misleads for activations that are half flat by design: a healthy ReLU has a value of one half. An activation that consists
    of several functions is recognized only if it is a separate module.

    Returns:
        Pure numbers from 0 to 1, by the path of the module, or by the path of the calling module and the function's name
        (``"layers.0 relu"``), in the order of their return. NaN if a slope is NaN.

    Source: Glorot & Bengio, AISTATS 2010, section 3; the threshold is ours.
    """
    return {name: slopes.saturated for name, slopes in run[ACTIVATIONS].items()}


@declare("profile", needs=[ACTIVATIONS], tolerance=0.05, explained_by=IDLE_CAUSES)
def dead_fraction(run: Run) -> dict[str, float]:
    """Return the share of units of each activation with ``φ'(x) = 0`` in the whole batch, at every position.

    A unit has separate weights: a neuron, a feature of a sequence, a channel of an image. The gradients of the nearest parameters
    that the activation's input depends on show which dimension counts units. If no parameter shows it, each entry of a sample is
    a unit.

    It misleads on small batches: a healthy ReLU unit is off in all of n independent samples with probability 2⁻ⁿ. A slope
    that underflows to zero in the precision of the run counts as zero.

    Returns:
        Pure numbers from 0 to 1, with the names and the order of ``saturated_fraction``. NaN if a slope is NaN.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), who count dead networks instead of dead units.
    """
    return {name: slopes.dead for name, slopes in run[ACTIVATIONS].items()}
