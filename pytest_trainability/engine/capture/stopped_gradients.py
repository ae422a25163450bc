"""An instrument that notes where layers read what other layers have computed, without its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..torch_internals import function_transforms_are_active, without_torch_functions
from ..trees import carries_gradient, is_float, tensors_in
from .function_mode import FunctionObserver
from .recorder import Call, Recorder

__all__ = ["NO_GRAD", "StoppedGradient", "StoppedGradientObserver"]

# Note [Where a gradient stops]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# A tensor without a gradient may be a constant, a mask, an encoding of positions, or noise. It may also be what layers have
# computed, after `detach`, under `torch.no_grad`, or drawn by `sample`. The graph does not show the difference, so that the
# observer follows the tensors of a forward pass: which trained layers each was computed from, whether the model's inputs take
# part, and which function returned it without the gradient of its arguments. Whole numbers and comparisons pass no gradient by
# nature, and end the trace. A layer that reads such a tensor and nothing else with a gradient is noted if its result has one:
# a frozen layer, a target network under `torch.no_grad`, a straight-through estimator `x + (q - x).detach()`, and a state that is
# cut off in a recurrence, next to an input that is not, have none that could be missed.

NO_GRAD = "torch.no_grad() or sample()"
"""What stops a gradient where none is recorded. Distributions draw samples so."""
MOST_SOURCES = 3
"""Number of layers up to which those that a tensor was computed from are kept."""


@dataclass(frozen=True, slots=True)
class StoppedGradient:
    """A function that returned a tensor without the gradient of its arguments."""

    function: str
    """The function, such as ``detach()``; :data:`NO_GRAD` where no gradients are recorded."""
    path: str
    """Module that called it; the class of the model for the model itself."""
    sources: tuple[str, ...]
    """Trained layers that the arguments were computed from last."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a tensor was computed from."""

    layers: tuple[str, ...]
    """Modules whose trained parameters took part last."""
    of_inputs: bool
    """Whether the model's inputs took part."""
    stop: StoppedGradient | None
    caller: Call | None
    """Call of a module that computed it; None if it is not known."""


class StoppedGradientObserver(FunctionObserver):
    """Notes for each layer that reads a tensor without a gradient where the gradient was lost.

    See Note [Where a gradient stops].
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: dict[str, StoppedGradient] = {}
        """By the module that reads the tensor, in program order."""
        self._origins: MutableMapping[Tensor, _Origin] = WeakIdKeyDictionary()
        self._trained = {id(p): p for p in recorder.capture.model.parameters() if p.requires_grad}

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and follow what it returns."""
        result = func(*args, **kwargs)
        if self.caller is None or function_transforms_are_active():
            return result
        with without_torch_functions():
            name = getattr(func, "__name__", "").strip("_")
            self._follow(name, list(tensors_in((args, kwargs))), list(tensors_in(result)))
        return result

    def _follow(self, name: str, given: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        weights = [tensor for tensor in given if id(tensor) in self._trained]
        others = [tensor for tensor in given if id(tensor) not in self._trained]
        origins = [origin for tensor in others for origin in self._origin_of(tensor)]
        if not weights and not origins:
            return
        read = [tensor for tensor in others if carries_gradient(tensor)]
        layers = (self.path,) if weights else tuple(dict.fromkeys(n for o in origins for n in o.layers))[:MOST_SOURCES]
        of_inputs = "embedding" in name or any(origin.of_inputs for origin in origins)
        stops = [origin for origin in origins if origin.stop is not None]
        # Of several results, as of broadcasting, one may not depend on what carries a gradient.
        any_carries = any(map(carries_gradient, results))
        for result in results:
            carries = carries_gradient(result)
            if carries and not read and any(weight.dim() > 1 for weight in weights):
                self._note(stops)
            stop = None
            if is_float(result) and not carries and stops:
                stop = stops[0].stop
            elif is_float(result) and not any_carries and (read or weights):
                stop = StoppedGradient(self._function(name), self.path, layers)
            self._origins[result] = _Origin(layers, of_inputs, stop, self.caller)

    def _function(self, name: str) -> str:
        if not torch.is_grad_enabled():
            return NO_GRAD
        return ".data" if name == "get" else f"{name}()"

    def _origin_of(self, tensor: Tensor) -> Iterator[_Origin]:
        origin = self._origins.get(tensor)
        if origin is not None:
            yield origin
        elif carries_gradient(tensor):
            # An input of the model, or the result of a custom function.
            yield _Origin(layers=(), of_inputs=True, stop=None, caller=None)

    def _note(self, stops: Sequence[_Origin]) -> None:
        """Note that the calling module reads tensors without a gradient, unless it reads others with one."""
        caller = self.caller
        for origin in stops:
            is_argument = origin.caller is not caller
            is_other_read = is_argument and caller is not None and bool(caller.inputs)
            if origin.stop is not None and origin.of_inputs and origin.stop.sources and not is_other_read:
                self.found.setdefault(self.path, origin.stop)
