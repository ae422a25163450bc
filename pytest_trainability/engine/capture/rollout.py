"""Maps that are iterated, as models: a rollout's every step is a step of its chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ..trees import map_tensors, tensors_in

__all__ = ["Rollout", "kind_of", "refuse_time", "refuse_unlike"]


class Rollout(nn.Module):
    """A map that is iterated, or a simulator, as a model: a test takes it as it takes a network.

    >>> import torch
    >>> from pytest_trainability import Rollout, measure
    >>> henon = lambda x: torch.stack([1 - 1.4 * x[..., 0] ** 2 + x[..., 1], 0.3 * x[..., 0]], -1)
    >>> start = 0.1 * torch.rand(8, 2, dtype=torch.float64)
    >>> result = measure(Rollout(henon, steps=200), start, exponents=2, warmup=50, alignment=20)
    >>> bool(abs(sum(result.lyapunov_spectrum) - math.log(0.3)) < 1e-9)  # the map contracts areas by 0.3
    True

    The chain's steps are those of the map, which is what ``steps="auto"`` and ``steps="time"`` take. All of them are kept for one
    backward pass; :func:`~pytest_trainability.lyapunov_spectrum` needs no more than one at a time, and gives no verdict.

    The first state is the model's input. A tuple of inputs holds positional arguments, as for every model, and a dictionary
    named ones: hand a state that is a tuple as ``((x, y),)``, one that is a dictionary as ``({"x": x},)``.

    Args:
        step: ``step(state)``, or ``step(state, input)`` where the model is given a sequence of inputs, too. A module, whose
            parameters are then measured, or any function in PyTorch. States are tensors, or tuples, lists or dicts of them.
        steps: How many; with a sequence of inputs as many as it has unless given.
        dt: Time of one step; exponents are per unit of it.

    Raises:
        UsageError: ``step`` is no function, ``steps`` or ``dt`` are not positive.
    """

    def __init__(self, step: Callable[..., Any], steps: int | None = None, *, dt: float | None = None) -> None:
        super().__init__()
        given: Any = step
        if isinstance(given, (type, nn.RNNCellBase)):
            how = (
                f"a class: hand in one of it, {given.__name__}(...), or a factory of the whole, lambda: Rollout(...)"
                if isinstance(given, type)
                else "a cell of torch.nn, which takes (input, state): wrap it in a module that takes (state, input)"
            )
            msg = f"step must be a function or a module step(state), or step(state, input). Got {how}."
            raise UsageError(msg)
        if not callable(given):
            msg = f"step must be a function step(state), or step(state, input). Got {type(given).__name__}."
            raise UsageError(msg)
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            msg = f"steps must be a whole number of at least 1, or None for as many as there are inputs. Got {steps!r}."
            raise UsageError(msg)
        if dt is not None:
            refuse_time(dt)
        self.step = step if isinstance(step, nn.Module) else Function(step)
        self.steps = steps
        self.dt = dt

    def forward(self, state: Any, inputs: Any = None) -> Any:
        """Return the last state.

        Args:
            state: The first one.
            inputs: A tensor, or a tree of them, whose first dimension counts steps.
        """
        lengths = {len(t) if t.dim() else 0 for t in tensors_in(inputs)}
        steps = self.steps if self.steps is not None else min(lengths, default=0)
        if isinstance(inputs, list):
            msg = f"inputs must be tensors whose first dimension counts steps. Got a list of {len(inputs)}: stack it."
            raise UsageError(msg)
        if steps < 1 or (lengths and lengths != {steps}):
            msg = (
                "a rollout needs steps=, or inputs whose first dimension counts the steps, as many as steps= says if both are "
                f"given. Got steps={self.steps} and inputs of length {', '.join(map(str, sorted(lengths))) or 'none'}. A state "
                "that is a tuple is handed over as ((x, y),)."
            )
            raise UsageError(msg)
        for number in range(steps):
            before = state
            state = self.step(state) if inputs is None else self.step(state, map_tensors(inputs, _entry(number)))
            refuse_unlike(before, state)
        return state


def refuse_time(dt: float) -> None:
    """See that ``dt`` can be the time of one step.

    Raises:
        UsageError: It is no positive number.
    """
    if not 0 < dt < math.inf:
        msg = f"dt must be a positive number: the time of one step. Got {dt!r}."
        raise UsageError(msg)


def refuse_unlike(before: Any, after: Any) -> None:
    """See that a step has made a state of a state.

    Raises:
        ModelError: Their tensors differ in number, shape or type.
    """
    shapes = [[(tuple(t.shape), str(t.dtype)) for t in tensors_in(state)] for state in (before, after)]
    if shapes[0] != shapes[1]:
        msg = f"step must map a state to its like, and return nothing else. It made {shapes[1]} of {shapes[0]}."
        raise ModelError(msg)


def _entry(number: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[number]


def kind_of(step: nn.Module) -> str:
    """Name what is iterated: a function or a class."""
    if not isinstance(step, Function):
        return type(step).__name__
    name = getattr(step.function, "__name__", type(step.function).__name__)
    return "step" if name == "<lambda>" else str(name)


class Function(nn.Module):
    """Any function as a module, whose calls can be seen."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Call it."""
        return self.function(*args)
