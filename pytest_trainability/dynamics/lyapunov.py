"""Lyapunov exponents of a map that the user provides: :func:`lyapunov_spectrum`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks.statistics import CONFIDENCE, Level, as_confidence, estimate
from ..engine.capture.rollout import refuse_time, refuse_unlike
from ..engine.isolation import default_device, derived_seed, preserved_world, seeded
from ..engine.runs.arguments import as_count
from ..engine.trees import map_tensors, tensors_in
from ..errors import ModelError, UsageError
from ..records.estimates import Estimate, Listed, Spectrum
from .presentation import MapPresentation
from .tangent import Map, random_frame, tangent_sweep

__all__ = ["LyapunovExponents", "lyapunov_spectrum"]


@dataclass(frozen=True, slots=True, repr=False)
class LyapunovExponents(MapPresentation, Listed[Estimate]):
    """Lyapunov exponents of a map, largest first: a sequence of estimates, with their history along the trajectory."""

    spectrum: Spectrum
    """One estimate per exponent, averaged over trajectories. With a single trajectory there is no confidence interval."""
    local: tuple[tuple[float, ...], ...]
    """Local exponents of each step, averaged over trajectories, in the order of :attr:`spectrum`."""
    history: tuple[tuple[float, ...], ...]
    """Running averages of :attr:`local` up to each step. The last one is :attr:`spectrum`."""
    state: Any
    """The last state, from which the iteration can be continued."""

    def _items(self) -> Sequence[Estimate]:
        return self.spectrum

    @property
    def kaplan_yorke_dimension(self) -> float:
        """Kaplan-Yorke dimension ``j + (λ_1 + … + λ_j) / |λ_{j+1}|``, for the largest j whose sum is not negative.

        NaN if the sum of all computed exponents is not negative: compute more of them.

        Source: Kaplan & Yorke, Lecture Notes in Mathematics 730, 204 (1979).
        """
        total = 0.0
        for j, exponent in enumerate(self.spectrum):
            if total + exponent.mean < 0:
                return j + (total / abs(exponent.mean) if math.isfinite(exponent.mean) else 0.0)
            total += exponent.mean
        return math.nan

    def _shown(self) -> tuple[Spectrum, tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], float]:
        return self.spectrum, self.local, self.history, self.kaplan_yorke_dimension

    def __repr__(self) -> str:
        return f"LyapunovExponents({len(self.local)} steps: {repr(self.spectrum).removeprefix('Spectrum(')}"


def lyapunov_spectrum(
    step: Callable[..., Any],
    state: Any,
    *,
    steps: int,
    inputs: Any = None,
    dt: float = 1.0,
    exponents: int | None = None,
    warmup: int = 0,
    alignment: int = 0,
    batched: bool = False,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> LyapunovExponents:
    """Compute the Lyapunov exponents of a differentiable map ``x_t = step(x_{t-1})``.

    ``λ_i = lim (1/(T dt)) Σ_t ln R_t[i, i]`` with ``J_t Q_{t-1} = Q_t R_t``, where ``J_t = ∂x_t/∂x_{t-1}``.

    >>> import torch
    >>> found = lyapunov_spectrum(lambda x: 4 * x * (1 - x), torch.rand(100, 1).double(), steps=300, batched=True)
    >>> bool(abs(found[0] - 0.6931) < 0.02)
    True

    Args:
        step: The map, a module or function of PyTorch: ``step(state)``, or ``step(state, input)`` if inputs are given. It must
            return a state with the same structure, shapes and dtype.
        state: Initial state: a tensor of floats, or a tuple, list or dict of such tensors.
        steps: Number of steps that are averaged over.
        inputs: A tensor or a tree of tensors whose first dimension counts the ``warmup + alignment + steps`` steps.
        dt: Time per step. Exponents are per unit of this time.
        exponents: Number of exponents; by default all, one per dimension of the state.
        warmup: Number of steps before, in which the state approaches its attractor.
        alignment: Number of steps after the warm-up, in which the random frame aligns with the Lyapunov directions.
        batched: Whether the first dimension of every tensor of the state counts trajectories, which must not interact.
        seed: Seed of the random frame and of the global generators while ``step`` runs.
        confidence: Confidence level of the intervals over trajectories, in (0, 1).

    Returns:
        The exponents, largest first, in nats per step, or per unit of time if ``dt`` is not 1.

    Raises:
        UsageError: An argument is invalid.
        ModelError: ``step`` returns another kind of state, one that is not finite, or one that carries no gradient.

    Source: Benettin et al., Meccanica 15, 9 (1980); Eckmann & Ruelle, Rev. Mod. Phys. 57, 617 (1985).
    """
    for name, value, least in (("steps", steps, 1), ("warmup", warmup, 0), ("alignment", alignment, 0)):
        as_count(name, value, least=least)
    if exponents is not None:
        as_count("exponents", exponents, otherwise="or None for all")
    refuse_time(dt)
    level = Level(as_confidence(confidence))
    total = warmup + alignment + steps
    advance = _map(step, inputs, total)
    device = next((tensor.device for tensor in tensors_in(state)), torch.device("cpu"))
    with preserved_world(), default_device(device):
        seeded(seed)
        state = _checked_state(state, batched=batched)
        with torch.no_grad():
            for number in range(warmup):
                state = map_tensors(_like(advance(state, number), state), Tensor.detach)
        frame = random_frame(state, exponents or 2**62, derived_seed(seed, "frame"), batched=batched)
        logs: list[Tensor] = []
        for after, growth in tangent_sweep(advance, state, frame, range(warmup, total), batched=batched):
            state = _like(after, state)
            logs.append(growth)
        local = torch.stack(logs[alignment:]).double().cpu() / dt
    return _result(local, state, "nats/step" if dt == 1 else "nats/time", level)


def _result(local: Tensor, state: Any, unit: str, level: Level) -> LyapunovExponents:
    """Average local exponents, ``(steps, trajectories, k)``, over steps and trajectories."""
    found = [estimate(values, unit=unit, level=level) for values in local.mean(0).T.tolist()]
    order = sorted(range(len(found)), key=lambda i: -found[i].mean)
    across = local.mean(1)[:, order]
    numbers = torch.arange(1, len(across) + 1, dtype=across.dtype, device=across.device)
    running = across.cumsum(0) / numbers.unsqueeze(1)
    return LyapunovExponents(
        Spectrum(tuple(found[i] for i in order)),
        tuple(map(tuple, across.tolist())),
        tuple(map(tuple, running.tolist())),
        state,
    )


def _map(step: Any, inputs: Any, total: int) -> Map:
    if not callable(step):
        msg = f"step must be a function step(state), or step(state, input) with inputs. Got {type(step).__name__}."
        raise UsageError(msg)
    if inputs is None:
        return lambda state, number: step(state)
    lengths = {len(t) if t.dim() else 0 for t in tensors_in(inputs)}
    if lengths != {total}:
        msg = (
            f"inputs must be tensors whose first dimension counts warmup + alignment + steps = {total} steps. Got "
            f"{', '.join(map(str, sorted(lengths))) or 'no tensor'}."
        )
        raise UsageError(msg)
    return lambda state, number: step(state, map_tensors(inputs, lambda t: t[number]))


def _checked_state(state: Any, *, batched: bool) -> Any:
    tensors = list(tensors_in(state))
    if not tensors or not all(t.is_floating_point() and t.numel() for t in tensors):
        msg = "state must be a tensor of floats that is not empty, or a tuple, list or dict of such tensors. "
        raise UsageError(
            msg + f"Got {', '.join(f'{tuple(t.shape)} {t.dtype}' for t in tensors) or type(state).__name__}."
        )
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        msg = "the tensors of a state must have one dtype and one device. Got "
        raise UsageError(msg + f"{', '.join(f'{t.dtype} on {t.device}' for t in tensors)}.")
    if batched and len({len(t) if t.dim() else 0 for t in tensors}) != 1:
        msg = "with batched=True the first dimension of every tensor of the state must count trajectories. Got shapes "
        raise UsageError(msg + f"{', '.join(str(tuple(t.shape)) for t in tensors)}.")
    return map_tensors(state, lambda t: t.detach().clone())


def _like(after: Any, before: Any) -> Any:
    """Return the new state; raise if its structure differs from the one before, or if it is not finite."""
    refuse_unlike(before, after)
    if not all(bool(t.isfinite().all()) for t in tensors_in(after)):
        msg = "the state must stay finite. It became infinite or NaN. Start elsewhere, or take smaller time steps."
        raise ModelError(msg)
    return after
