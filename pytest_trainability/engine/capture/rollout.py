"""Iterated maps and simulators as models: each iteration is one step of the chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ..trees import map_tensors, tensors_in

__all__ = ["Rollout", "kind_of", "refuse_time", "refuse_unlike"]


class Rollout(nn.Module):
    """An iterated map or a simulator as a model, which is measured and tested like a network.

    ``x_t = step(x_{t-1})`` or ``x_t = step(x_{t-1}, input_t)`` for t = 1 … T. The model maps ``x_0`` to ``x_T``. With
    ``steps="auto"`` or ``steps="time"``, its chain has one step per iteration.

    >>> import torch
    >>> from pytest_trainability import Rollout, measure
    >>> henon = lambda x: torch.stack([1 - 1.4 * x[..., 0] ** 2 + x[..., 1], 0.3 * x[..., 0]], -1)
    >>> start = 0.1 * torch.rand(8, 2, dtype=torch.float64)
    >>> result = measure(Rollout(henon, steps=200), start, exponents=2, warmup=50, alignment=20)
    >>> bool(abs(sum(result.lyapunov_spectrum) - math.log(0.3)) < 1e-9)  # the map contracts areas by 0.3
    True

    The initial state is the input of the model. As for every model, a tuple of inputs holds positional arguments, and a
    dictionary holds keyword arguments. Pass a state that is a tuple as ``((x, y),)``, and a dictionary as ``({"x": x},)``.

    All steps are kept in memory for one backward pass. :func:`~pytest_trainability.lyapunov_spectrum` needs the memory of one
    step, and returns exponents without a verdict.

    Args:
        step: A function or a module, called as ``step(state)``, or as ``step(state, input)`` if the model receives inputs. States
            are tensors, or tuples, lists or dictionaries of tensors. The returned state has the structure, shapes and dtypes of
            its argument. The parameters of a module are measured as well.
        steps: Number of iterations T. By default the length of the sequence of inputs.
        dt: Time per iteration. Exponents are per unit of this time; by default they are per step.

    Raises:
        UsageError: ``step`` is not callable as described, or ``steps`` or ``dt`` is not positive.
    """

    def __init__(self, step: Callable[..., Any], steps: int | None = None, *, dt: float | None = None) -> None:
        super().__init__()
        _refuse_step(step)
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            msg = f"steps must be a whole number of at least 1, or None for the number of inputs. Got {steps!r}."
            raise UsageError(msg)
        if dt is not None:
            refuse_time(dt)
        self.step = step if isinstance(step, nn.Module) else Function(step)
        self.steps = steps
        self.dt = dt

    def forward(self, state: Any, inputs: Any = None) -> Any:
        """Return the last state.

        Args:
            state: The initial state.
            inputs: A tensor or a tree of tensors whose first dimension counts steps; None if ``step`` takes the state only.
        """
        steps = self._count(inputs)
        for number in range(steps):
            before = state
            state = self.step(state) if inputs is None else self.step(state, map_tensors(inputs, _entry(number)))
            refuse_unlike(before, state)
        return state

    def _count(self, inputs: Any) -> int:
        """Return the number of steps, by ``steps`` and by the length of the inputs."""
        lengths = {len(t) if t.dim() else 0 for t in tensors_in(inputs)}
        steps = self.steps if self.steps is not None else min(lengths, default=0)
        if isinstance(inputs, list):
            msg = f"inputs must be tensors whose first dimension counts steps. Got a list of {len(inputs)}: stack it."
            raise UsageError(msg)
        if steps < 1 or (lengths and lengths != {steps}):
            length = ", ".join(map(str, sorted(lengths))) or "none"
            msg = (
                "a rollout needs steps=, or inputs whose first dimension counts the steps; if both are given, they must agree. "
                f"Got steps={self.steps} and inputs of length {length}. Pass a state that is a tuple as ((x, y),)."
            )
            raise UsageError(msg)
        return steps


def _refuse_step(step: Any) -> None:
    """Check that ``step`` can be called as ``step(state)`` or ``step(state, input)``.

    Raises:
        UsageError: It is not callable, a class, or a cell of torch.nn.
    """
    if isinstance(step, type):
        got = f"the class {step.__name__}. Pass an instance, {step.__name__}(...), or a factory, lambda: Rollout(...)"
    elif isinstance(step, nn.RNNCellBase):
        got = "a cell of torch.nn, which is called with (input, state). Wrap it in a module that is called with (state, input)"
    elif not callable(step):
        got = type(step).__name__
    else:
        return
    msg = f"step must be a function or a module, step(state) or step(state, input). Got {got}."
    raise UsageError(msg)


def refuse_time(dt: float) -> None:
    """Check that ``dt`` can be the time of one step.

    Raises:
        UsageError: It is not a positive, finite number.
    """
    if not 0 < dt < math.inf:
        msg = f"dt must be a positive number: the time of one step. Got {dt!r}."
        raise UsageError(msg)


def refuse_unlike(before: Any, after: Any) -> None:
    """Check that a step has returned a state like its argument.

    Raises:
        ModelError: Their tensors differ in number, shape or dtype.
    """
    shapes = [[(tuple(t.shape), str(t.dtype)) for t in tensors_in(state)] for state in (before, after)]
    if shapes[0] != shapes[1]:
        msg = f"step must return a state like its argument, and nothing else. It received {shapes[0]} and returned {shapes[1]}."
        raise ModelError(msg)


def _entry(number: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[number]


def kind_of(step: nn.Module) -> str:
    """Return the name of the function or the class of a step; ``"step"`` for a lambda."""
    if not isinstance(step, Function):
        return type(step).__name__
    name = getattr(step.function, "__name__", type(step.function).__name__)
    return "step" if name == "<lambda>" else str(name)


class Function(nn.Module):
    """A function as a module, so that its calls are recorded."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Call the function."""
        return self.function(*args)
