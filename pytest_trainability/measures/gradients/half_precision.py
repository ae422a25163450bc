"""Underflow and overflow of gradients and states if they were cast to half precision.

A cast rounds to the nearest number of the narrower type, ties to even. The result is zero up to and including half of the
smallest subnormal number. It is infinite from the midpoint between the largest finite number and the next power of two on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...engine.capture.recorder import Edge, Recorder
from ...engine.linalg.formats import BFLOAT16, E5M2, FLOAT16, Format
from ...engine.linalg.norms import as_real, stored_values
from ...engine.runs.objective import trainable_parameters
from ...engine.runs.requirements import require_loss
from ...engine.runs.run import Need, Run
from ..measure import declare
from .classes import GRADIENT_CLASSES, cancelled_parameters

__all__ = [
    "GRADIENT_ENTRIES",
    "STATE_ENTRIES",
    "Entries",
    "StateEntries",
    "entries",
    "loss_scale",
    "real_numbers",
]


FORMATS = (FLOAT16, BFLOAT16)


# Entries of gradients ---------------------------------------------------------------------------------------------
_LOWEST, _HIGHEST = -2000, 1100
"""Range of exponents that entries are counted in. It contains those of float64, also after division by a scale of 2^768."""


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Numbers of entries of a gradient by absolute value. The tensors of one state are counted together."""

    counts: Tensor
    """Numbers of entries with ``2^(b - 1) < |g| ≤ 2^b`` for exponents b from :data:`_LOWEST` on, without round-off; on the
    CPU."""
    nonzero: int
    """Number of entries that are finite and nonzero, including round-off."""
    number: int
    """Number of entries, including zeros."""
    largest: float
    """Largest absolute value: 0 if all entries are zero, infinite if one is."""
    overflowing: tuple[int, ...]
    """For float16 and bfloat16, the number of entries that the format rounds to infinity, including infinite ones."""
    undefined: int
    """Number of entries that are NaN."""
    beyond_fp8: int = 0
    """The same as ``overflowing`` for the 8-bit format E5M2."""

    def flushed(self, exponent: int) -> int:
        """Return the number of nonzero entries up to ``2^exponent``, without round-off."""
        return int(self.counts[: max(0, exponent - _LOWEST + 1)].sum())

    def flush_exponent(self, share: float) -> float:
        """Return the largest exponent such that at most this share of the nonzero entries is flushed by ``2^exponent``."""
        exceeds = self.counts.cumsum(0) > math.floor(share * self.nonzero)
        return int(exceeds.int().argmax()) - 1 + _LOWEST if bool(exceeds.any()) else math.inf

    def __add__(self, other: Entries) -> Entries:
        return Entries(
            self.counts + other.counts,
            self.nonzero + other.nonzero,
            self.number + other.number,
            max(self.largest, other.largest),
            tuple(map(sum, zip(self.overflowing, other.overflowing))),
            self.undefined + other.undefined,
            self.beyond_fp8 + other.beyond_fp8,
        )


def entries(gradient: Tensor, *, exponent: int = 0, known: Tensor | None = None) -> Entries:
    """Count the entries of a gradient by size.

    Args:
        gradient: The gradient times ``2^exponent``, dense or sparse. The entries are counted without this factor.
        exponent: Exponent of the loss scale under which the gradient was computed.
        known: Which real numbers of the gradient, ``(n,)``, are more than round-off; all of them by default.

    Returns:
        The counts.
    """
    signed, number = real_numbers(gradient)
    values = signed.abs()
    nonzero = values.isfinite() & (values > 0)
    fraction, power = torch.frexp(values[nonzero if known is None else nonzero & known])
    # frexp writes 2^b as 0.5 · 2^(b + 1).
    bins = power - (fraction == 0.5).to(power.dtype) - exponent - _LOWEST
    counts = torch.bincount(bins.long(), minlength=_HIGHEST - _LOWEST)
    return Entries(
        counts.cpu(),
        int(nonzero.sum()),
        number,
        math.ldexp(float(values.nan_to_num(0.0, math.inf).max()), -exponent) if values.numel() else 0.0,
        tuple(_at_least(values, half.overflow, exponent) for half in FORMATS),
        int(values.isnan().sum()),
        _at_least(values, E5M2.overflow, exponent),
    )


def real_numbers(tensor: Tensor) -> tuple[Tensor, int]:
    """Return the stored real numbers of a tensor, ``(n,)`` in float32 or float64, and the number of all its entries.

    A complex entry counts as two. A sparse tensor has more entries than stored numbers.
    """
    number = tensor.numel() * (2 if tensor.is_complex() else 1)
    values = as_real(stored_values(tensor))
    return (values if values.dtype == torch.float64 else values.float()).flatten(), number


def _at_least(values: Tensor, bound: float, exponent: int = 0) -> int:
    return int((values >= math.ldexp(bound, exponent)).sum())


# Gradients of parameters and states -------------------------------------------------------------------------------
_RESCUE = {torch.float16: 12, torch.bfloat16: 96, torch.float32: 96, torch.float64: 768}
"""By type of the loss, the exponent of a loss scale with which gradients that are entirely zero are computed a second time: in
the first layers of a deep chain, even float32 underflows."""


def _gradient_entries(run: Run) -> dict[str, Entries]:
    # Without a loss, the size of gradients depends on an arbitrary functional.
    loss = require_loss(run, "underflow_fraction", "smallest_loss_scale")
    found = _counted(run, exponent=0)
    lost = [name for name, counted in found.items() if counted.nonzero == 0 and counted.undefined == 0]
    if lost:
        again = _counted(run, exponent=_RESCUE[loss.dtype])
        # If the scaled gradient overflows, it says nothing about the unscaled one.
        found |= {
            name: again[name] for name in lost if not again[name].undefined and math.isfinite(again[name].largest)
        }
    return found


GRADIENT_ENTRIES: Need[dict[str, Entries]] = Need("gradient entries", _gradient_entries)
"""The :class:`Entries` of the loss's gradient with respect to each parameter, ``"NAME"``, and each state, ``"input"`` and
``"state after STEP"``."""


def _counted(run: Run, *, exponent: int) -> dict[str, Entries]:
    """Run the backward pass from the loss times ``2^exponent``, in the types of the model, and count the gradients' entries."""
    gradients = _backward(run, 2.0**exponent)
    counted = {wanted: entries(g, exponent=exponent) for wanted, g in gradients.items()}
    if any(gradient.flushed(FLOAT16.underflow) for gradient in counted.values()):
        known = _known_entries(run, gradients, 2.0**exponent)
        counted = {wanted: entries(g, exponent=exponent, known=known[wanted]) for wanted, g in gradients.items()}
    of_edges = {edge: part for edge, part in counted.items() if not isinstance(edge, str)}
    of_parameters = {name: part for name, part in counted.items() if isinstance(name, str)}
    return of_parameters | dict(_of_states(run, of_edges))


def _backward(run: Run, factor: float) -> dict[str | Edge, Tensor]:
    """Return the gradients of the loss times a factor, by parameter name and by edge of a state; absent where there is none."""
    loss = run.capture.loss
    assert loss is not None
    parameters = trainable_parameters(run.capture.model)
    edges = list(dict.fromkeys(edge for state in run.chain.cut.states for edge in state))
    wanted: list[Any] = [*parameters.values(), *(GradientEdge(*edge) for edge in edges)]
    seed = torch.full_like(loss, factor)
    gradients = torch.autograd.grad([loss], wanted, [seed], retain_graph=True, allow_unused=True)
    names: list[str | Edge] = [*parameters, *edges]
    return {name: g for name, g in zip(names, gradients) if g is not None}


def _known_entries(run: Run, gradients: Mapping[str | Edge, Tensor], factor: float) -> dict[str | Edge, Tensor]:
    """Return which entries of the gradients are more than round-off, ``(n,)`` booleans by parameter name or edge.

    The gradient of attention's key bias is zero because of the softmax, and that of a bias before a normalization because of the
    normalization. The computed value is round-off that cancellation has left, and losing it does no harm. To find such entries,
    the backward pass is repeated from the loss times factors that are not powers of two, which changes every rounding. An entry
    that changes by more than a hundredth is not known to two digits, and is round-off. Round-off is a small whole number of last
    bits, and may grow by a whole factor together with a sum. The factors are therefore irrational, and no small multiple of
    them is close to a whole number. Subnormal entries, which have fewer digits, count as known.
    """
    chain = run.chain
    coarsest = max(chain.epsilon(index) for index in range(1, len(chain) + 1))
    tolerance = max(UNKNOWN, 32 * coarsest)
    numbers = {wanted: real_numbers(g)[0] for wanted, g in gradients.items()}
    known = {wanted: torch.ones_like(g, dtype=torch.bool) for wanted, g in numbers.items()}
    for irrational in IRRATIONAL:
        for wanted, g in _backward(run, irrational * factor).items():
            plain = numbers[wanted]
            changed = (real_numbers(g)[0] / irrational - plain).abs() > tolerance * plain.abs()
            known[wanted] &= ~changed | (plain.abs() < 2**8 * torch.finfo(gradients[wanted].dtype).tiny)
    return known


UNKNOWN = 0.01
"""Relative change under other roundings above which an entry counts as round-off. About one round-off entry in 10^7 changes by
less under all of :data:`IRRATIONAL`."""
IRRATIONAL = ((1 + math.sqrt(5)) / 2, math.sqrt(2), math.sqrt(3))
"""Factors of the loss. The distance of k times one of them from the nearest whole number is at least about ``1/(3 k)``."""


def _of_states(run: Run, of_edges: Mapping[Edge, Entries]) -> Iterator[tuple[str, Entries]]:
    for name, state in zip(state_names(run), run.chain.cut.states):
        reached = [of_edges[edge] for edge in state if edge in of_edges]
        if reached:
            yield name, _sum(reached)


def _sum(parts: Iterable[Entries]) -> Entries:
    total, *others = parts
    for part in others:
        total += part
    return total


def state_names(run: Run) -> list[str]:
    """Return the names of the states ``x_0 … x_L``."""
    return ["input", *(f"state after {name}" for name in run.chain.names)]


# Entries of states ------------------------------------------------------------------------------------------------
@dataclass(slots=True, eq=False)
class StateEntries:
    """Numbers of entries of each tensor that carries a gradient: all, those that each format rounds to infinity, and NaNs."""

    counts: dict[Edge, tuple[int, Tensor]] = field(default_factory=dict)

    def count(self, edge: Edge, tensor: Tensor) -> None:
        """Count the entries of one tensor."""
        values, number = real_numbers(tensor)
        values = values.abs()
        beyond = [(values >= half.overflow).sum() for half in FORMATS]
        self.counts[edge] = number, torch.stack([*beyond, values.isnan().sum()])

    def fractions(self, state: Iterable[Edge]) -> dict[str, float]:
        """Return the share of entries that overflows, by format, over the observed tensors of a state; empty without any."""
        seen = [self.counts[edge] for edge in state if edge in self.counts]
        number = sum(count for count, _ in seen)
        if not number:
            return {}
        *beyond, undefined = torch.stack([counts for _, counts in seen]).sum(dim=0).tolist()
        return {f.name: math.nan if undefined else count / number for f, count in zip(FORMATS, beyond)}


@contextmanager
def _count_state_entries(recorder: Recorder) -> Iterator[StateEntries]:
    found = StateEntries()
    recorder.observers.append(found.count)
    yield found


STATE_ENTRIES: Need[StateEntries] = Need(
    "state entries", lambda run: run.capture.watched[_count_state_entries], instruments=(_count_state_entries,)
)
"""The :class:`StateEntries` of the forward pass."""


# Shares and loss scale --------------------------------------------------------------------------------------------
TOLERATED = 0.01
"""Share of a gradient's nonzero entries that may be lost under a sufficient loss scale."""
_LARGEST_SCALE = 127
"""Largest exponent of a loss scale, which is a float32 number."""


def loss_scale(found: Iterable[Entries]) -> float:
    """Return the power of two nearest to 1 under which, in float16, no gradient loses more than 1 % and none overflows.

    Returns:
        1 if no scale is needed, ``inf`` if no scale suffices, NaN if a gradient is infinite or NaN without a scale.
    """
    lowest, highest = -math.inf, float(_LARGEST_SCALE)
    for counted in found:
        if counted.undefined or math.isinf(counted.largest):
            return math.nan
        if counted.nonzero:
            lowest = max(lowest, FLOAT16.underflow - counted.flush_exponent(TOLERATED))
            fraction, power = math.frexp(counted.largest)
            room = FLOAT16.highest - power
            highest = min(highest, room - (fraction >= math.ldexp(FLOAT16.overflow, -FLOAT16.highest)))
    if lowest > highest:
        return math.inf
    return math.pow(2, min(max(0.0, lowest), highest))


@declare("profile", needs=[GRADIENT_ENTRIES, GRADIENT_CLASSES], tolerance=0.05, explained_by_growth=-1)
def underflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of each gradient's nonzero entries that a cast to half precision rounds to zero.

    These are the entries with ``|g| ≤ 2^-25`` (float16) or ``|g| ≤ 2^-134`` (bfloat16), half of the smallest subnormal number.
    The gradients are those of the loss with respect to every parameter and every state ``x_0 … x_L``, computed in the model's
    own type. For Gaussian entries with standard deviation σ the share is ``erf(2^-25 / (σ √2))``. Entries that are round-off,
    such as the gradient of attention's key bias, do not count as lost. An entry is round-off if it changes by more than 1 %
    when all roundings of the backward pass change, and if the whole gradient is zero by algebra (``gradient_classes``).

    It misleads if the model itself is in half precision: entries that have already underflowed are zero.

    Returns:
        Pure numbers from 0 to 1 by ``"float16 gradient of NAME"`` and ``"float16 gradient of state after STEP"``, then the same
        for bfloat16; parameters come before states. NaN if an entry is NaN. Gradients that are entirely zero are omitted.

    Raises:
        InapplicableError: The model has no loss.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """
    cancelled = cancelled_parameters(run)

    def share(half: Format, name: str, counted: Entries) -> float:
        if counted.undefined:
            return math.nan
        return 0.0 if name in cancelled else counted.flushed(half.underflow) / counted.nonzero

    return {
        f"{half.name} gradient of {name}": share(half, name, counted)
        for half in FORMATS
        for name, counted in run[GRADIENT_ENTRIES].items()
        if counted.nonzero or counted.undefined
    }


@declare("profile", needs=[GRADIENT_ENTRIES, STATE_ENTRIES], tolerance=0.01)
def overflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of entries of each gradient and state that a cast to half precision rounds to infinity.

    These are the entries with absolute values of at least 65520 (float16) or ``(2 - 2^-8) 2^127`` (bfloat16), the midpoint
    between the largest finite number and the next power of two. Without a loss, only states are judged, because the size of
    gradients is arbitrary.

    It misleads where a tensor inside a step is larger than the states before and after the step (attention scores, squares in a
    norm).

    Returns:
        Pure numbers from 0 to 1 by ``"float16 gradient of NAME"``, ``"float16 gradient of state after STEP"`` and ``"float16
        state after STEP"``, then the same for bfloat16. NaN if an entry is NaN.

    Source: IEEE 754-2019, section 4.3.1, roundTiesToEven.
    """
    gradients = {} if run.capture.loss is None else run[GRADIENT_ENTRIES]
    states = {n: run[STATE_ENTRIES].fractions(state) for n, state in zip(state_names(run), run.chain.cut.states)}
    found = {}
    for number, half in enumerate(FORMATS):
        for name, counted in gradients.items():
            share = math.nan if counted.undefined else counted.overflowing[number] / counted.number
            found[f"{half.name} gradient of {name}"] = share
        found |= {f"{half.name} {name}": shares[half.name] for name, shares in states.items() if shares}
    return found


@declare("scalar", scale="log", needs=[GRADIENT_ENTRIES], tolerance=0.7)
def smallest_loss_scale(run: Run) -> float:
    """Return the smallest power of two S for which the gradients of ``S · loss`` survive float16.

    With such a scale, at most 1 % of the nonzero entries of every parameter's and every state's gradient are rounded to zero, and
    none to infinity. If gradients overflow without a scale, it is the largest power of two below 1 that prevents this.

    It misleads if the loss itself or a tensor inside a step overflows first.

    Returns:
        A pure number: 1 if no scale is needed; ``inf`` if no scale suffices, because some gradients underflow where others
        overflow; NaN if a gradient is infinite or NaN without a scale.

    Raises:
        InapplicableError: The model has no loss.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """
    return loss_scale(run[GRADIENT_ENTRIES].values())
