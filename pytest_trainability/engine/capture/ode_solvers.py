"""An instrument that records the steps that the ODE solvers of ``torchdiffeq`` take.

``odeint`` looks its solvers up by name in a table. While a model is measured along time, this table holds subclasses that record
every accepted step. ``odeint_adjoint`` solves the equation without a graph and a second time in its backward pass; it is replaced
by the plain ``odeint``, whose backward pass is the adjoint of the steps that were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .recorder import Call, Recorder, as_signal

__all__ = ["solver_steps"]


@contextmanager
def solver_steps(recorder: Recorder) -> Iterator[None]:
    """Record every accepted step of a solver of ``torchdiffeq``. Does nothing if ``torchdiffeq`` is not installed."""
    try:
        from torchdiffeq import odeint
        from torchdiffeq._impl import adjoint
        from torchdiffeq._impl.odeint import SOLVERS
        from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver
        from torchdiffeq._impl.solvers import FixedGridODESolver
    except ImportError:
        yield
        return
    if not _are_known(RKAdaptiveStepsizeODESolver, FixedGridODESolver, adjoint):
        recorder.capture.notes.append(
            "the steps of ODE solvers are not recorded: this version of torchdiffeq is unknown"
        )
        yield
        return
    solvers, method = dict(SOLVERS), adjoint.OdeintAdjointMethod
    try:
        for name, solver in solvers.items():
            if issubclass(solver, RKAdaptiveStepsizeODESolver):
                SOLVERS[name] = _recording(solver, _AdaptiveSteps, recorder, name)
            elif issubclass(solver, FixedGridODESolver):
                SOLVERS[name] = _recording(solver, _FixedGridSteps, recorder, name)
        adjoint.OdeintAdjointMethod = _without_adjoint(recorder, odeint)
        yield
    finally:
        SOLVERS.update(solvers)
        adjoint.OdeintAdjointMethod = method


def _are_known(adaptive: type, fixed: type, adjoint: ModuleType) -> bool:
    """Whether these internals of ``torchdiffeq`` have the attributes that are overridden here."""
    overridden = {
        adaptive: ("_before_integrate", "_adaptive_step", "_advance", "_advance_until_event"),
        fixed: ("_step_func", "_linear_interp", "_cubic_hermite_interp"),
        adjoint: ("OdeintAdjointMethod",),
    }
    return all(hasattr(owner, name) for owner, names in overridden.items() for name in names)


def _without_adjoint(recorder: Recorder, odeint: Any) -> Any:
    """Return a replacement for the autograd function behind ``odeint_adjoint`` that calls ``odeint``."""

    class Direct:
        @staticmethod
        def apply(
            _shapes: Any,
            func: Any,
            y0: Any,
            t: Any,
            rtol: Any,
            atol: Any,
            method: Any,
            options: Any,
            event: Any,
            *_: Any,
        ) -> Any:
            note = "odeint_adjoint is measured as odeint: through the steps that its solver takes"
            if note not in recorder.capture.notes:
                recorder.capture.notes.append(note)
            return odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event)

    return Direct


class _Steps:
    """Records the steps of one solution, one at a time."""

    def __init__(self, recorder: Recorder, method: str, func: Any) -> None:
        while hasattr(func, "base_func"):
            func = func.base_func
        self._recorder, self._method = recorder, method
        known = isinstance(func, nn.Module) and func in recorder.paths
        caller = recorder.running[-1] if recorder.running else None
        self._module: nn.Module = func if known else (caller.module if caller else recorder.capture.model)
        self._path = recorder.paths.get(self._module, "") or "odeint"
        self.call: Call | None = None
        """The step that is being taken."""

    def begin(self, state: Tensor) -> None:
        self.call = self._recorder.begin(self._module, self._path, [state], inner=f"{self._method} step")

    def end(self, state: Tensor, duration: Tensor | float) -> None:
        assert self.call is not None
        self.call.duration = abs(float(duration.detach() if isinstance(duration, Tensor) else duration))
        self._recorder.end(self.call, [state])
        self.call = None


def _recording(solver: type, mixin: type, recorder: Recorder, method: str) -> type:
    """Return a subclass of a solver that records its steps."""
    return type(solver.__name__, (mixin, solver), {"_steps_of": staticmethod(partial(_Steps, recorder, method))})


_Solver: Any = object
"""Stands for the solver that a mixin precedes in the order of base classes."""


class _RecordedSolver(_Solver):  # type: ignore[misc]
    """What the mixins for both kinds of solver share."""

    _steps_of: Callable[[Any], _Steps]

    def __init__(self, func: Any, y0: Tensor, **options: Any) -> None:
        super().__init__(func=func, y0=as_signal(y0) if torch.is_grad_enabled() else y0, **options)
        self._steps = self._steps_of(func)

    def integrate(self, t: Tensor) -> Any:
        solution = super().integrate(t)
        self._end_last_step()
        return solution

    def integrate_until_event(self, t0: Tensor, event_fn: Any) -> Any:
        solution = super().integrate_until_event(t0, event_fn)
        self._end_last_step()
        return solution

    def _end_last_step(self) -> None:
        raise NotImplementedError


class _FixedGridSteps(_RecordedSolver):
    """Records the steps of a solver with a fixed grid. A step ends when the next one begins."""

    _dt: Any = 0.0
    _y1: Tensor

    def _step_func(self, func: Any, t0: Tensor, dt: Any, t1: Tensor, y0: Tensor) -> Any:
        if self._steps.call is not None:
            self._steps.end(y0, self._dt)
        self._steps.begin(y0)
        self._dt = dt
        return super()._step_func(func, t0, dt, t1, y0)

    def _linear_interp(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, t: Tensor) -> Any:
        self._y1 = y1
        return super()._linear_interp(t0, t1, y0, y1, t)

    def _cubic_hermite_interp(
        self, t0: Tensor, y0: Tensor, f0: Tensor, t1: Tensor, y1: Tensor, f1: Tensor, t: Tensor
    ) -> Any:
        self._y1 = y1
        return super()._cubic_hermite_interp(t0, y0, f0, t1, y1, f1, t)

    def _end_last_step(self) -> None:
        if self._steps.call is not None:
            # The last interpolation is between the ends of the last step.
            self._steps.end(self._y1, self._dt)


class _AdaptiveSteps(_RecordedSolver):
    """Records the accepted steps of a solver that chooses their sizes. No gradient flows through the choice of the first size.

    The last step reaches beyond the last point of time. The chain ends at this point, where the solution is interpolated.
    """

    _accepted: tuple[Tensor, Tensor] | None = None
    """State after the last accepted step, and the time that it spans."""
    _interpolated: tuple[Tensor, Tensor] | None = None
    """State at the last point of time, and the time since the last step began."""

    def _before_integrate(self, t: Tensor) -> None:
        # The slope at the start is part of the first step.
        self._steps.begin(self.y0)
        super()._before_integrate(t)
        state = vars(self)["rk_state"]
        self.rk_state = state._replace(dt=state.dt.detach())

    def _adaptive_step(self, rk_state: Any) -> Any:
        if self._accepted is not None:
            self._steps.end(*self._accepted)
            self._steps.begin(rk_state.y1)
            self._accepted = None
        after = super()._adaptive_step(rk_state)
        if after.t1 > rk_state.t1:
            self._accepted = after.y1, after.t1 - rk_state.t1
        return after

    def _advance(self, next_t: Tensor) -> Any:
        y = super()._advance(next_t)
        self._interpolated = y, next_t - self.rk_state.t0
        return y

    def _advance_until_event(self, event_fn: Any) -> Any:
        t, y = super()._advance_until_event(event_fn)
        self._interpolated = y, t - self.rk_state.t0
        return t, y

    def _end_last_step(self) -> None:
        if self._accepted is not None and self._interpolated is not None:
            self._steps.end(*self._interpolated)
