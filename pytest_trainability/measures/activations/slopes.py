"""Activations of a run, modules and functions, and their derivatives at the values that they were applied to."""

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

from ...engine.capture.function_mode import FunctionObserver, numbered
from ...engine.capture.recorder import Edge, Recorder, edge_of
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import (
    buffer_table,
    function_transforms_are_active,
    inputs_of_forward,
    intercepted_custom_functions,
    is_made_by,
    parameter_table,
    version_of,
    without_torch_functions,
)
from ...engine.trees import carries_gradient, tensors_in
from ..measure import declare
from .elementwise import Application, generator_states, steepest_slope
from .unit_axes import Layout

__all__ = ["ACTIVATIONS", "Slopes"]


SATURATED = 0.01
"""A slope below this part of the largest is that of a saturated unit."""


@dataclass(frozen=True, slots=True)
class Slopes:
    """What an activation's derivative φ' was in one call."""

    saturated: float
    """Share of entries with abs φ' below 1 % of the largest; NaN where a slope is NaN."""
    dead: float
    """Share of units with φ' = 0 in the whole batch; NaN where a slope is NaN."""


# What is written down while the model runs ------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Seen:
    """One call of one activation."""

    name: str
    given: Edge
    made: Edge
    shape: tuple[int, ...]
    saturated: float
    dead: Mapping[tuple[int, ...], float]
    """Share of dead units by the dimensions that these lie along."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """A call that may turn out to be one of an activation, as it began."""

    application: Application
    given: Edge
    version: int
    overwrites: bool
    """Whether it may; the values are then a copy."""

    def fits(self, result: Any) -> bool:
        """Whether it made one new tensor of the same shape, or overwrote the one that it was given."""
        tensor = self.application.tensor
        if not isinstance(result, Tensor) or not carries_gradient(result) or result.shape != tensor.shape:
            return False
        if version_of(tensor) != self.version:
            return self.overwrites
        return result.data_ptr() != tensor.data_ptr()


@dataclass(frozen=True, slots=True, eq=False)
class _Unreturned:
    """A call of a ``torch.autograd.Function`` whose forward has returned a tensor that has no gradient yet."""

    frame: _Frame
    key: Hashable
    function: type[Function]
    pending: _Pending
    result: Any


@dataclass(slots=True, eq=False)
class _Frame:
    """A call of a module that has not returned."""

    module: nn.Module | None
    path: str
    pending: _Pending | None = None
    operations: int = 0
    """How many functions were called that made a tensor of one with a gradient, those inside other modules aside."""
    found: list[_Seen] = field(default_factory=list)


class _Watch(FunctionObserver):
    """Sees each function that a model calls, the outermost one, and each module."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.paths = recorder.paths
        model = recorder.capture.model
        self.frames = [_Frame(None, type(model).__name__)]
        self._begun = 0
        self._unreturned: _Unreturned | None = None
        self._is_trying = False
        self._steepest: dict[Hashable, float | None] = {}
        """Largest slope by what is called and where; None of what is no activation."""

    @property
    def found(self) -> list[_Seen]:
        """Calls of activations, in the order of their return."""
        return self.frames[0].found

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that the model calls, and look at what it did."""
        self.settle()
        name = getattr(func, "__name__", type(func).__name__)
        frame, begun = self.frames[-1], self._begun
        key = func, frame.path, _constants(args, kwargs)
        pending = None
        if torch.is_grad_enabled():
            pending = self._pending(key, func, args, kwargs, overwrites=_may_overwrite(name, args, kwargs))
        result = func(*args, **kwargs)
        self.settle()
        if isinstance(result, Tensor) and any(map(carries_gradient, tensors_in((args, kwargs)))):
            frame.operations += 1
        # What calls modules in turn is no elementary function; they must not be called once more.
        if pending is not None and self._begun == begun and pending.fits(result):
            frame.found += self._judged(key, f"{frame.path} {name.strip('_')}", pending, result)
        return result

    def forward(self, cls: type[Function], forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run the forward of a ``torch.autograd.Function`` that the model applies; ``settle`` looks at what it did."""
        if self._is_trying:
            return forward(*args)
        self.settle()
        frame, begun, inputs = self.frames[-1], self._begun, inputs_of_forward(cls, args)
        key = cls, frame.path, _constants(inputs, {})
        pending = self._pending(key, cls.apply, inputs, {}, overwrites=True)
        result = forward(*args)
        self.settle()
        if isinstance(result, Tensor) and any(map(carries_gradient, tensors_in(inputs))):
            frame.operations += 1
        if pending is not None and self._begun == begun:
            self._unreturned = _Unreturned(frame, key, cls, pending, result)
        return result

    def setup_context(self, setup_context: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run what a ``torch.autograd.Function`` does after its forward: it has still not returned."""
        unreturned, self._unreturned = self._unreturned, None
        setup_context(*args)
        self.settle()
        self._unreturned = unreturned

    def settle(self) -> None:
        """Look at the last call of a ``torch.autograd.Function``, which has returned when anything else happens."""
        call, self._unreturned = self._unreturned, None
        if call is None or not isinstance(call.result, Tensor) or not is_made_by(call.result, call.function):
            return
        if call.pending.fits(call.result):
            name = f"{call.frame.path} {call.function.__name__}"
            call.frame.found += self._judged(call.key, name, call.pending, call.result)

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Ignore the functions that are called inside, none of which the model calls."""
        before, self._is_trying = self._is_trying, True
        try:
            yield
        finally:
            self._is_trying = before

    def _pending(
        self, key: Hashable, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, *, overwrites: bool
    ) -> _Pending | None:
        """Note what a call is given, where it is one tensor with a gradient beside constants and parameters."""
        if self._steepest.get(key, 0.0) is None:
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
        values = tensor.detach().clone() if overwrites else tensor.detach()
        states = generator_states(tensor.device)
        application = Application(function, args, kwargs, tensor, values, states)
        return _Pending(application, edge_of(tensor), version_of(tensor), overwrites)

    def _judged(self, key: Hashable, name: str, pending: _Pending, result: Tensor) -> list[_Seen]:
        """Return what was seen if the call was one of an activation, as a list of one, else an empty one."""
        application = pending.application
        # What is computed here is none of the model's doing, for whoever watches functions.
        with without_torch_functions(), self._trying():
            if key not in self._steepest:
                self._steepest[key] = steepest_slope(application)
            steepest = self._steepest[key]
            if steepest is None:
                return []
            slope = application.slope()
            saturated, dead = _saturated(slope, steepest), _dead(slope)
            return [_Seen(name, pending.given, edge_of(result), tuple(result.shape), saturated, dead)]

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a call of a module begins."""
        if module not in self.paths:
            return
        self.settle()
        self._begun += 1
        frame = _Frame(module, self.paths[module] or type(module).__name__)
        has_parts = any(True for _ in module.children()) or any(map(_is_weight, parameter_table(module).values()))
        if not has_parts and torch.is_grad_enabled():
            frame.pending = self._pending(module, module.forward, args, kwargs, overwrites=True)
        self.frames.append(frame)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note that it has returned: what it is written with is one activation if the whole is."""
        if module not in self.paths:
            return
        self.settle()
        # A model that catches an exception of its own leaves calls behind that never returned.
        while self.frames[-1].module is not module:
            self.frames.pop()
        frame = self.frames.pop()
        pending, found = frame.pending, frame.found
        if pending is not None and pending.fits(output):
            if [(seen.given, seen.made) for seen in found] == [(pending.given, edge_of(output))]:
                found = [replace(found[0], name=frame.path)]
            elif frame.operations > 1 and not _has_drawn(pending.application):
                with _lent(module):
                    found = self._judged(module, frame.path, pending, output) or found
        self.frames[-1].found += found


def _is_weight(value: Any) -> bool:
    """Whether this is a parameter that mixes units; those of an activation, a slope for each channel, do not."""
    return isinstance(value, nn.Parameter) and sum(size > 1 for size in value.shape) > 1


def _may_overwrite(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function may work in place: by PyTorch's convention ``relu_``, ``__iadd__`` or ``inplace=True``."""
    in_place = name.startswith("__i") if name.endswith("__") else name.endswith("_")
    return in_place or any(value is True for value in (*args, *kwargs.values()))


_PLAIN = (bool, int, float, str, type(None))


def _constants(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Return the plain arguments of a call, which tell a clamp at zero from one at infinity, and the kinds of the others."""
    given = (*enumerate(args), *kwargs.items())
    return tuple((place, value if isinstance(value, _PLAIN) else type(value)) for place, value in given)


def _has_drawn(application: Application) -> bool:
    """Whether random numbers have been drawn since: dropout behind an activation would be taken for a part of it."""
    return any(not torch.equal(generator.get_state(), state) for generator, state in application.generators)


def _saturated(slope: Tensor, steepest: float) -> float:
    """Return the share of entries whose slope is below a hundredth of the steepest; NaN where one is NaN."""
    if bool(slope.isnan().any()):
        return math.nan
    return float((slope.abs() < SATURATED * steepest).sum()) / slope.numel()


def _dead(slope: Tensor) -> dict[tuple[int, ...], float]:
    """Return the share of units without a slope if these lie along the first dimension, or along any others together.

    Those along all but the first are the entries of a sample. NaN where a slope is NaN.
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
def _lent(module: nn.Module) -> Iterator[None]:
    """Give a module copies of its buffers and tensors to change, and put its attributes back.

    Hooks are left alone: one of them is running. The buffers themselves may be what the backward pass reads.
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
def _watching(recorder: Recorder) -> Iterator[_Watch]:
    watch = _Watch(recorder)
    handles = []
    try:
        for module in recorder.paths:
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
                handles.append(module.register_forward_hook(watch.leave, with_kwargs=True))
        with intercepted_custom_functions(watch.forward, watch.setup_context), watch:
            yield watch
            watch.settle()
    finally:
        for handle in handles:
            handle.remove()


# What is made of it -----------------------------------------------------------------------------------------------
def _activations(run: Run) -> dict[str, Slopes]:
    """Name the calls of activations, and find which dimension counts the units of each."""
    watch: _Watch = run.capture.watched[_watching]
    layout = Layout(run.graph.nodes)
    found = {}
    for name, seen in zip(numbered([seen.name for seen in watch.found]), watch.found):
        entries = tuple(range(1, len(seen.shape)))
        units = layout.unit_axes(seen.given, seen.shape)
        found[name] = Slopes(seen.saturated, seen.dead[units if units in seen.dead and units else entries])
    return found


ACTIVATIONS = Need("activations", _activations, instruments=(_watching,))
"""Slopes of each call of an activation that carries the signal, by name, in the order of their return.

A module's is its path; a function's the path of the module that calls it and the function's own name
(``"layers.0 relu"``). Both are followed by the number of the call where there are several.
"""


@declare("profile", needs=[ACTIVATIONS], tolerance=0.05)
def saturated_fraction(run: Run) -> dict[str, float]:
    """Return the share of units whose activation is flat, ``|φ'(x)| < 0.01 max |φ'|``, averaged over samples.

    An activation is whatever acts on each entry alone with a bounded slope that depends on the entry: a module, or a
    function that a module calls. φ' is what autograd computes, at the values of the run and in their precision.

    It misleads where half of an activation is flat by design: one half is what a healthy ReLU has. What is written with
    several functions outside of a module of its own is not seen as a whole.

    Returns:
        Pure numbers from 0 to 1, by the path of the module, or the path of the module that calls the function and the
        function's name; in the order of their return. NaN where a slope is NaN.

    Source: Glorot & Bengio, AISTATS 2010, section 3; the threshold is ours.
    """
    return {name: slopes.saturated for name, slopes in run[ACTIVATIONS].items()}


@declare("profile", needs=[ACTIVATIONS], tolerance=0.05)
def dead_fraction(run: Run) -> dict[str, float]:
    """Return the share of units of each activation with ``φ'(x) = 0`` in the whole batch, at every position.

    A unit is what has weights of its own: a neuron, a feature of a sequence, a channel of an image. Along which dimension
    units lie is told by the nearest parameters that the activation's input was computed with, by their gradients; where none
    tells, each entry of a sample is a unit.

    It misleads on small batches: a healthy ReLU unit is off in all of n independent samples with probability 2⁻ⁿ. A slope
    that underflows to zero in the precision of the run counts as zero.

    Returns:
        Pure numbers from 0 to 1, named and ordered as in ``saturated_fraction``. NaN where a slope is NaN.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), of units in place of whole networks.
    """
    return {name: slopes.dead for name, slopes in run[ACTIVATIONS].items()}
