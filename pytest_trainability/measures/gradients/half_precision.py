"""What half precision would make of a run's numbers: flushed to zero, or beyond the largest finite one.

A number of a wider type is rounded to the nearest one of the narrower, ties to even. It becomes zero up to half of the
smallest subnormal, that one included, and infinite from halfway between the largest finite number and the next power of
two.
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
from ...engine.linalg.norms import as_real, stored_values
from ...engine.runs.objective import trainable_parameters
from ...engine.runs.requirements import require_loss
from ...engine.runs.run import Need, Run
from ..measure import declare

__all__ = [
    "Entries",
    "GRADIENT_ENTRIES",
    "STATE_ENTRIES",
    "entries",
    "loss_scale",
    "overflow_fractions",
    "underflow_fractions",
]


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating format of half width."""

    name: str
    digits: int
    """Of the significand, the hidden one included."""
    lowest: int
    """Exponent of the smallest subnormal number."""
    highest: int
    """Exponent of the power of two behind the largest finite number."""

    @property
    def overflow(self) -> float:
        """Smallest number that rounds to infinity."""
        return math.ldexp(1 - 2.0 ** -(self.digits + 1), self.highest)

    @property
    def underflow(self) -> int:
        """Exponent of the largest number that rounds to zero, a power of two."""
        return self.lowest - 1


FLOAT16 = Format("float16", digits=11, lowest=-24, highest=16)
BFLOAT16 = Format("bfloat16", digits=8, lowest=-133, highest=128)
FORMATS = (FLOAT16, BFLOAT16)


# Entries of gradients ---------------------------------------------------------------------------------------------
_LOWEST, _HIGHEST = -2000, 1100
"""Beyond the exponents of float64, and of float64 seen under a scale."""


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """The entries of a gradient, counted by size; several tensors of one state count together."""

    counts: Tensor
    """How many that are more than round-off have ``2^(b - 1) < |g| ≤ 2^b``, for b from :data:`_LOWEST` on; on the CPU."""
    nonzero: int
    """How many are finite and not zero, round-off included."""
    number: int
    """How many there are, zeros included."""
    largest: float
    """Of the absolute values; 0 where all are zero, infinite where one is."""
    overflowing: tuple[int, ...]
    """How many each format rounds to infinity, infinite ones included."""
    undefined: int
    """How many are NaN."""

    def flushed(self, exponent: int) -> int:
        """How many are more than round-off, and at most ``2^exponent``."""
        return int(self.counts[: max(0, exponent - _LOWEST + 1)].sum())

    def smallest_kept(self, share: float) -> float:
        """Return the largest exponent such that at most this share of non-zero entries is flushed by ``2^exponent``."""
        behind = self.counts.cumsum(0) > math.floor(share * self.nonzero)
        return int(behind.int().argmax()) - 1 + _LOWEST if bool(behind.any()) else math.inf

    def __add__(self, other: Entries) -> Entries:
        return Entries(
            self.counts + other.counts,
            self.nonzero + other.nonzero,
            self.number + other.number,
            max(self.largest, other.largest),
            tuple(map(sum, zip(self.overflowing, other.overflowing))),
            self.undefined + other.undefined,
        )


def entries(gradient: Tensor, *, exponent: int = 0, known: Tensor | None = None) -> Entries:
    """Count the entries of a gradient that was multiplied by ``2^exponent``, as they are without.

    Args:
        gradient: Any tensor.
        exponent: Of the scale.
        known: Which of its numbers, ``(n,)``, are more than round-off; all where left out.
    """
    signed, number = _numbers(gradient)
    values = signed.abs()
    nonzero = values.isfinite() & (values > 0)
    fraction, power = torch.frexp(values[nonzero if known is None else nonzero & known])
    # frexp has 2^b as 0.5 · 2^(b + 1).
    bins = power - (fraction == 0.5).to(power.dtype) - exponent - _LOWEST
    counts = torch.bincount(bins.long(), minlength=_HIGHEST - _LOWEST)
    return Entries(
        counts.cpu(),
        int(nonzero.sum()),
        number,
        math.ldexp(float(values.nan_to_num(0.0, math.inf).max()), -exponent) if values.numel() else 0.0,
        tuple(_at_least(values, half.overflow, exponent) for half in FORMATS),
        int(values.isnan().sum()),
    )


def _numbers(tensor: Tensor) -> tuple[Tensor, int]:
    """Return the real numbers ``(n,)``, in float32 at least, and how many there are; of a sparse tensor the stored ones."""
    number = tensor.numel() * (2 if tensor.is_complex() else 1)
    values = as_real(stored_values(tensor))
    return (values if values.dtype == torch.float64 else values.float()).flatten(), number


def _at_least(values: Tensor, bound: float, exponent: int = 0) -> int:
    return int((values >= math.ldexp(bound, exponent)).sum())


# Gradients of parameters and states -------------------------------------------------------------------------------
_LOST = {torch.float16: 12, torch.bfloat16: 96, torch.float32: 96, torch.float64: 768}
"""By type, the exponent of a scale under which gradients are looked at again that are zero throughout: of a deep
chain's first layers float32 itself leaves nothing."""


def _gradient_entries(run: Run) -> dict[str, Entries]:
    # Without one gradients have no size of their own.
    loss = require_loss(run, "underflow_fraction", "smallest_loss_scale")
    found = _counted(run, exponent=0)
    lost = [name for name, counted in found.items() if counted.nonzero == 0 and counted.undefined == 0]
    if lost:
        again = _counted(run, exponent=_LOST[loss.dtype])
        # Where the scale itself overflows, what it shows is no gradient.
        found |= {
            name: again[name] for name in lost if not again[name].undefined and math.isfinite(again[name].largest)
        }
    return found


GRADIENT_ENTRIES: Need[dict[str, Entries]] = Need("gradient entries", _gradient_entries)
"""Of the loss's gradient by each parameter and each state: ``"NAME"``, ``"input"``, ``"state after STEP"``."""


def _counted(run: Run, *, exponent: int) -> dict[str, Entries]:
    """Run the backward pass from the loss times ``2^exponent``, in the types of the model, and count what arrives."""
    gradients = _backward(run, 2.0**exponent)
    counted = {wanted: entries(g, exponent=exponent) for wanted, g in gradients.items()}
    if any(gradient.flushed(FLOAT16.underflow) for gradient in counted.values()):
        known = _more_than_round_off(run, gradients, 2.0**exponent)
        counted = {wanted: entries(g, exponent=exponent, known=known[wanted]) for wanted, g in gradients.items()}
    of_edges = {edge: part for edge, part in counted.items() if not isinstance(edge, str)}
    of_parameters = {name: part for name, part in counted.items() if isinstance(name, str)}
    return of_parameters | dict(_of_states(run, of_edges))


def _backward(run: Run, factor: float) -> dict[str | Edge, Tensor]:
    """Return the gradients of the loss times a factor, by parameter name and by edge of a state, where there is one."""
    loss = run.capture.loss
    assert loss is not None
    parameters = trainable_parameters(run.capture.model)
    edges = list(dict.fromkeys(edge for state in run.chain.cut.states for edge in state))
    wanted: list[Any] = [*parameters.values(), *(GradientEdge(*edge) for edge in edges)]
    seed = torch.full_like(loss, factor)
    gradients = torch.autograd.grad([loss], wanted, [seed], retain_graph=True, allow_unused=True)
    names: list[str | Edge] = [*parameters, *edges]
    return {name: g for name, g in zip(names, gradients) if g is not None}


def _more_than_round_off(run: Run, gradients: Mapping[str | Edge, Tensor], factor: float) -> dict[str | Edge, Tensor]:
    """Tell numbers from what cancellation leaves of them, which nobody misses.

    Softmax makes the gradient of a key's bias zero, and a normalization that of a bias in front of it. What is computed is the
    round-off of larger numbers. Under factors that are no powers of two everything is rounded otherwise: what changes by more
    than a hundredth is not known to two digits. Round-off is a small whole number of last bits, often three times as many in
    a sum three times as large: multiples of the factors taken are not near whole numbers. Numbers so small that they have fewer
    digits themselves count as known.
    """
    chain = run.chain
    coarsest = max(chain.epsilon(index) for index in range(1, len(chain) + 1))
    tolerance = max(UNKNOWN, 32 * coarsest)
    numbers = {wanted: _numbers(g)[0] for wanted, g in gradients.items()}
    known = {wanted: torch.ones_like(g, dtype=torch.bool) for wanted, g in numbers.items()}
    for irrational in IRRATIONAL:
        for wanted, g in _backward(run, irrational * factor).items():
            plain = numbers[wanted]
            changed = (_numbers(g)[0] / irrational - plain).abs() > tolerance * plain.abs()
            known[wanted] &= ~changed | (plain.abs() < 2**8 * torch.finfo(gradients[wanted].dtype).tiny)
    return known


UNKNOWN = 0.01
"""An entry that other roundings change by more is round-off itself; of pure round-off one in 10^7 does not, each time."""
IRRATIONAL = ((1 + math.sqrt(5)) / 2, math.sqrt(2), math.sqrt(3))
"""No multiple of these by k is nearer to a whole number than some ``1/(3 k)``."""


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
    """Name the states ``x_0 … x_L``."""
    return ["input", *(f"state after {name}" for name in run.chain.names)]


# Entries of states ------------------------------------------------------------------------------------------------
@dataclass(slots=True, eq=False)
class StateEntries:
    """How many entries each grad-carrying tensor has, how many each format rounds to infinity, how many are NaN."""

    counts: dict[Edge, tuple[int, Tensor]] = field(default_factory=dict)

    def look(self, edge: Edge, tensor: Tensor) -> None:
        """Take in one tensor."""
        values, number = _numbers(tensor)
        values = values.abs()
        beyond = [(values >= half.overflow).sum() for half in FORMATS]
        self.counts[edge] = number, torch.stack([*beyond, values.isnan().sum()])

    def fractions(self, state: Iterable[Edge]) -> dict[str, float]:
        """Return by format the share that overflows, over the tensors of a state that were seen; empty if none was."""
        seen = [self.counts[edge] for edge in state if edge in self.counts]
        number = sum(count for count, _ in seen)
        if not number:
            return {}
        *beyond, undefined = torch.stack([counts for _, counts in seen]).sum(dim=0).tolist()
        return {f.name: math.nan if undefined else count / number for f, count in zip(FORMATS, beyond)}


@contextmanager
def _watching(recorder: Recorder) -> Iterator[StateEntries]:
    found = StateEntries()
    recorder.observers.append(found.look)
    yield found


STATE_ENTRIES: Need[StateEntries] = Need(
    "state entries", lambda run: run.capture.watched[_watching], instruments=(_watching,)
)


# What is read off -------------------------------------------------------------------------------------------------
def underflow_fractions(run: Run) -> dict[str, float]:
    """Return by format and gradient the share of non-zero entries, round-off aside, that are rounded to zero.

    Gradients that are zero throughout are left out: nothing is lost of them. NaN where an entry is NaN.
    """
    return {
        f"{half.name} gradient of {name}": (
            math.nan if counted.undefined else counted.flushed(half.underflow) / counted.nonzero
        )
        for half in FORMATS
        for name, counted in run[GRADIENT_ENTRIES].items()
        if counted.nonzero or counted.undefined
    }


def overflow_fractions(run: Run) -> dict[str, float]:
    """Return by format the share of entries that become infinite: of gradients, if there is a loss, and of states."""
    gradients = {} if run.capture.loss is None else run[GRADIENT_ENTRIES]
    states = {n: run[STATE_ENTRIES].fractions(state) for n, state in zip(state_names(run), run.chain.cut.states)}
    found = {}
    for number, half in enumerate(FORMATS):
        for name, counted in gradients.items():
            share = math.nan if counted.undefined else counted.overflowing[number] / counted.number
            found[f"{half.name} gradient of {name}"] = share
        found |= {f"{half.name} {name}": shares[half.name] for name, shares in states.items() if shares}
    return found


TOLERATED = 0.01
"""Share of a gradient's non-zero entries that may be lost."""
_LARGEST_SCALE = 127
"""A loss scale is a float32 number."""


def loss_scale(found: Iterable[Entries]) -> float:
    """Return the power of two nearest to 1 under which, in float16, no gradient loses more than 1 % and none overflows.

    Returns:
        1 where none is needed, ``inf`` where there is none, NaN where a gradient is infinite or NaN as it is.
    """
    lowest, highest = -math.inf, float(_LARGEST_SCALE)
    for counted in found:
        if counted.undefined or math.isinf(counted.largest):
            return math.nan
        if counted.nonzero:
            lowest = max(lowest, FLOAT16.underflow - counted.smallest_kept(TOLERATED))
            fraction, power = math.frexp(counted.largest)
            room = FLOAT16.highest - power
            highest = min(highest, room - (fraction >= math.ldexp(FLOAT16.overflow, -FLOAT16.highest)))
    if lowest > highest:
        return math.inf
    return math.pow(2, min(max(0.0, lowest), highest))


@declare("profile", needs=[GRADIENT_ENTRIES], tolerance=0.05, explained_by_growth=-1)
def underflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of each gradient's non-zero entries that a cast to half precision rounds to zero.

    Those are ``|g| ≤ 2^-25`` for float16 and ``2^-134`` for bfloat16, half of the smallest subnormal number, ties to
    even. Gradients of the loss with respect to every parameter and every state ``x_0 … x_L`` are taken in the model's
    own type. For Gaussian entries of standard deviation σ it is ``erf(2^-25 / (σ √2))``. Entries that are round-off
    themselves, for they change by more than 1 % when everything is rounded otherwise, are no loss (the gradient of a
    key's bias, which softmax makes zero). It misleads where the model itself is in half
    precision: what that has flushed already is zero here.

    Returns:
        Pure numbers by ``"float16 gradient of NAME"``, ``"float16 gradient of state after STEP"``, and the same for
        bfloat16; gradients that are zero throughout are left out. NaN where an entry is NaN.

    Raises:
        InapplicableError: There is no loss.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """
    return underflow_fractions(run)


@declare("profile", needs=[GRADIENT_ENTRIES, STATE_ENTRIES], tolerance=0.01)
def overflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of entries with absolute values from 65520 on (float16), or ``(2 - 2^-8) 2^127`` (bfloat16).

    From there on a cast rounds to infinity: it is halfway between the largest finite number and the next power of two.
    Without a loss gradients have no size, and only states are judged. It misleads where a tensor inside of a step is
    larger than the states around it (attention scores, squares in a norm).

    Returns:
        Pure numbers by ``"float16 gradient of NAME"``, ``"float16 gradient of state after STEP"`` and ``"float16 state
        after STEP"``, and the same for bfloat16. NaN where an entry is NaN.

    Source: IEEE 754-2019, section 4.3.1, roundTiesToEven.
    """
    return overflow_fractions(run)


@declare("scalar", scale="log", needs=[GRADIENT_ENTRIES], tolerance=0.7)
def smallest_loss_scale(run: Run) -> float:
    """Return the smallest power of two S for which gradients of ``S · loss`` survive float16.

    That is: of every parameter's and every state's gradient at most 1 % of the non-zero entries are rounded to zero,
    and none to infinity. Where gradients overflow as they are, it is the largest one below 1. It misleads where the
    loss itself or something between two states overflows first.

    Returns:
        1 where no scale is needed; ``inf`` where none exists, because some gradients vanish where others overflow; NaN
        where a gradient is infinite or NaN already.

    Raises:
        InapplicableError: There is no loss.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """
    return loss_scale(run[GRADIENT_ENTRIES].values())
