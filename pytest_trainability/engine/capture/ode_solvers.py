"""Neural ODEs: the steps that a solver of ``torchdiffeq`` takes.

``odeint`` looks its solvers up in a table. While a model is watched along time, that table holds subclasses which have every
step recorded. The adjoint method solves the same equation twice, forward without a graph; it is replaced by the plain
``odeint`` then, whose backward pass is the adjoint of the solver's own steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .recorder import Call, Recorder, as_signal

__all__ = ["solver_steps"]


@contextmanager
def solver_steps(recorder: Recorder) -> Iterator[None]:
    """Have every accepted step of a solver recorded, where ``torchdiffeq`` is installed."""
    try:
        from torchdiffeq import odeint
        from torchdiffeq._impl import adjoint
        from torchdiffeq._impl.odeint import SOLVERS
        from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver
        from torchdiffeq._impl.solvers import FixedGridODESolver
    except ImportError:
        yield
        return
    if not all(
        hasattr(cls, name)
        for cls, names in (
            (RKAdaptiveStepsizeODESolver, ("_before_integrate", "_adaptive_step", "_advance", "_advance_until_event")),
            (FixedGridODESolver, ("_step_func", "_linear_interp", "_cubic_hermite_interp")),
            (adjoint, ("OdeintAdjointMethod",)),
        )
        for name in names
    ):
        recorder.capture.notes.append("this version of torchdiffeq is not known: the steps of its solvers are not seen")
        yield
        return
    known, method = dict(SOLVERS), adjoint.OdeintAdjointMethod
    try:
        for name, solver in known.items():
            if issubclass(solver, RKAdaptiveStepsizeODESolver):
                SOLVERS[name] = _adaptive(solver, name, recorder)
            elif issubclass(solver, FixedGridODESolver):
                SOLVERS[name] = _fixed(solver, name, recorder)
        adjoint.OdeintAdjointMethod = _without_adjoint(recorder, odeint)
        yield
    finally:
        SOLVERS.update(known)
        adjoint.OdeintAdjointMethod = method


def _without_adjoint(recorder: Recorder, odeint: Any) -> Any:
    class Direct:
        """In the place of the autograd function behind ``odeint_adjoint``."""

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
            note = "odeint_adjoint is measured through the solver's own steps, as odeint"
            if note not in recorder.capture.notes:
                recorder.capture.notes.append(note)
            return odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event)

    return Direct


class _Watch:
    """Of one solution: the step that is being taken."""

    def __init__(self, recorder: Recorder, name: str, func: Any) -> None:
        while hasattr(func, "base_func"):
            func = func.base_func
        self._recorder, self._name = recorder, name
        known = isinstance(func, nn.Module) and func in recorder.paths
        caller = recorder.running[-1] if recorder.running else None
        self._module: nn.Module = func if known else (caller.module if caller else recorder.capture.model)
        self._path = recorder.paths.get(self._module, "") or "odeint"
        self.call: Call | None = None

    def begin(self, state: Tensor) -> None:
        self.call = self._recorder.begin(self._module, self._path, [state], inner=f"{self._name} step")

    def end(self, state: Tensor, duration: Tensor | float) -> None:
        assert self.call is not None
        self.call.duration = abs(float(duration.detach() if isinstance(duration, Tensor) else duration))
        self._recorder.end(self.call, [state])
        self.call = None


def _fixed(solver: Any, name: str, recorder: Recorder) -> Any:
    """A solver with a grid of its own."""

    class Fixed(solver):  # type: ignore[misc]
        def __init__(self, func: Any, y0: Tensor, **options: Any) -> None:
            super().__init__(func=func, y0=as_signal(y0) if torch.is_grad_enabled() else y0, **options)
            self._watch = _Watch(recorder, name, func)
            self._since: Any = 0.0

        def _step_func(self, func: Any, t0: Tensor, dt: Any, t1: Tensor, y0: Tensor) -> Any:
            if self._watch.call is not None:
                self._watch.end(y0, self._since)
            self._watch.begin(y0)
            self._since = dt
            return super()._step_func(func, t0, dt, t1, y0)

        def integrate(self, t: Tensor) -> Any:
            return self._ended(super().integrate(t))

        def integrate_until_event(self, t0: Tensor, event_fn: Any) -> Any:
            return self._ended(super().integrate_until_event(t0, event_fn))

        def _ended(self, solution: Any) -> Any:
            if self._watch.call is not None:
                # What was interpolated last ends at the end of the last step.
                self._watch.end(self._last, self._since)
            return solution

        def _linear_interp(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, t: Tensor) -> Tensor:
            self._last = y1
            found: Tensor = super()._linear_interp(t0, t1, y0, y1, t)
            return found

        def _cubic_hermite_interp(
            self, t0: Tensor, y0: Tensor, f0: Tensor, t1: Tensor, y1: Tensor, f1: Tensor, t: Tensor
        ) -> Tensor:
            self._last = y1
            found: Tensor = super()._cubic_hermite_interp(t0, y0, f0, t1, y1, f1, t)
            return found

    return Fixed


def _adaptive(solver: Any, name: str, recorder: Recorder) -> Any:
    """A solver that chooses its steps. Their sizes are taken as given: no gradient flows through the choice of the first.

    The last step reaches beyond the last point of time, where the solution is interpolated: the chain ends there.
    """

    class Adaptive(solver):  # type: ignore[misc]
        def __init__(self, func: Any, y0: Tensor, **options: Any) -> None:
            super().__init__(func=func, y0=as_signal(y0) if torch.is_grad_enabled() else y0, **options)
            self._watch = _Watch(recorder, name, func)
            self._accepted: Any = None
            self._interpolated: Any = None

        def _before_integrate(self, t: Tensor) -> None:
            # The slope at the start is part of the first step.
            self._watch.begin(self.y0)
            super()._before_integrate(t)
            state = vars(self)["rk_state"]
            self.rk_state = state._replace(dt=state.dt.detach())

        def _adaptive_step(self, rk_state: Any) -> Any:
            if self._accepted is not None:
                self._watch.end(*self._accepted)
                self._watch.begin(rk_state.y1)
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

        def integrate(self, t: Tensor) -> Any:
            return self._ended(super().integrate(t))

        def integrate_until_event(self, t0: Tensor, event_fn: Any) -> Any:
            return self._ended(super().integrate_until_event(t0, event_fn))

        def _ended(self, solution: Any) -> Any:
            if self._accepted is not None and self._interpolated is not None:
                self._watch.end(*self._interpolated)
            return solution

    return Adaptive
