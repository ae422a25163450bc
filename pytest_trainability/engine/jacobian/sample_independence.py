"""Decides by measurement whether samples are independent, so that each has its own trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain as one_after_the_other

import torch
from torch import Tensor

from ..capture.chain import Chain
from ..isolation import generator_of
from .qr_sweep import QRSweep, walk
from .trajectories import Division, Trajectories, possible_divisions
from .vjp import Cotangents, gaussian_state, random_cotangents

__all__ = ["find_trajectories"]

# Note [Sizes reveal interaction]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Whether samples interact is measured, not looked up in a list of modules. One random cotangent is pulled back while the part of
# each sample is kept at its own size, a power of two between 1 and 2^30 in random order. Without interaction the sizes cancel,
# and the growth rates are those at equal sizes. With interaction, large parts leak into small ones, whose growth rates jump by
# up to 20 nats. The pass is not wasted: without interaction it is the QR sweep of the first exponent.
#
# The part of a sample may vanish on the way, behind a dead unit for instance. A part that is zero shows nothing about the steps
# before: these are compared with a new random cotangent of the state at which the part vanished.


def find_trajectories(chain: Chain, batch: int | None, seed: int) -> tuple[Trajectories, QRSweep | None]:
    """Decide by measurement whether each sample has its own trajectory.

    The first random cotangent is pulled back at a different size for each sample (see Note [Sizes reveal interaction]). Where
    growth rates differ much between samples, a second pass at equal sizes decides whether interaction is the cause (BatchNorm
    in training mode, a softmax over the batch, attention over a first dimension that is time). If so, there is one joint
    trajectory. There is one joint trajectory, too, if the tensors of the states cannot be divided into samples.

    An influence in one direction only can be missed, where the leaking part is small relative to the part that it leaks into.
    Looking in both directions would cost another pass; the measure ``interacting_samples`` does that.

    Args:
        chain: The chain.
        batch: Number of samples in the inputs, None if unknown.
        seed: Seed of the random cotangent and of the sizes.

    Returns:
        The trajectories and, if they are per sample, the QR sweep of the first random cotangent, which this has computed.
    """
    drawn = random_cotangents(chain, 1, seed)
    is_half = any(dtype == torch.float16 for index in range(len(chain) + 1) for _, dtype in chain.shapes(index))
    for division in _candidates(chain, batch):
        trajectories = Trajectories(chain, division)
        sizes = _sizes(division.count, seed, HALF_RANGE if is_half else RANGE)
        sized = walk(trajectories, drawn, sizes)
        found, are_similar = _rates_within_spread(sized)
        rates: list[Tensor] | None = found
        if not are_similar:
            rates = _undisturbed_rates(trajectories, drawn, sizes, one_after_the_other(found, sized))
        if rates is not None:
            return trajectories, QRSweep(torch.stack(rates[::-1]).unsqueeze(-1), trajectories)
    return Trajectories(chain, Division(1)), None


def _candidates(chain: Chain, batch: int | None) -> list[Division]:
    shapes = [shape for index in range(len(chain) + 1) for shape, _ in chain.shapes(index)]
    # A one-dimensional tensor alone holds the units of one sample; next to others it may hold a number per sample (the
    # log-determinant of a flow).
    if any(len(shape) < 1 for shape in shapes) or all(len(shape) < 2 for shape in shapes):
        return []
    found = []
    first = {shape[0] for shape in shapes}
    if chain.along == "time":
        # Inputs may be ordered (time, samples, …). Recurrent states are ordered (samples, …) or (layers, samples, …).
        lengths = set.intersection(*({shape[0], *shape[1:2]} if len(shape) > 2 else {shape[0]} for shape in shapes))
        found += [Division(n, 0 if first == {n} else None) for n in sorted(lengths - {1}, reverse=True)]
    if batch is not None and batch > 1:
        found += possible_divisions(shapes, batch)
    if len(first) == 1 and max(first) > 1:
        found.append(Division(max(first)))
    return list(dict.fromkeys(found))


RANGE, HALF_RANGE = 30, 10
"""The largest part is 2^30 times the smallest; in float16, whose range is short, 2^10 times."""
MAX_RATE_SPREAD = 3.0
"""Nats by which growth rates may differ between samples without a second pass. If one sample influences another by 2e-8 or
more, they differ by more."""
SAME_RATE = 1e-3
"""Nats by which round-off may change a growth rate."""


def _sizes(count: int, seed: int, spread: int) -> Tensor:
    """Return a power of two for each trajectory, spread evenly over ``2^0 … 2^spread`` in random order."""
    generator = generator_of(seed, "sizes")
    order = torch.randperm(count, generator=generator, device="cpu").double() / max(count - 1, 1)
    return torch.exp2((spread * order).round())


def _rates_within_spread(sized: Iterator[Tensor]) -> tuple[list[Tensor], bool]:
    """Return growth rates up to the first step at which they differ much between samples, and whether there is none."""
    rates = []
    for rate in sized:
        rates.append(rate)
        if not rate.isfinite().all() or rate.max() - rate.min() > MAX_RATE_SPREAD:
            return rates, False
    return rates, True


def _undisturbed_rates(
    trajectories: Trajectories, columns: Cotangents, sizes: Tensor, sized: Iterator[Tensor]
) -> list[Tensor] | None:
    """Return the growth rates of steps L … 1 at equal sizes, or None if those at the given sizes differ from them.

    Args:
        trajectories: The chain and its trajectories.
        columns: One cotangent of the last state.
        sizes: Norm of each trajectory's part, ``(trajectories,)``.
        sized: Growth rates of this cotangent at these sizes.
    """
    chain, equal = trajectories.chain, torch.ones(trajectories.count, device="cpu")
    plain = compared = _until_one_vanishes(walk(trajectories, columns, equal), sized)
    index = len(chain) - len(plain or ())
    while index and compared is not None:
        drawn = gaussian_state(chain, index, torch.Generator("cpu").manual_seed(index))
        random: Cotangents = [column.unsqueeze(0) for column in drawn]
        compared = _until_one_vanishes(*(walk(trajectories, random, each, start=index) for each in (equal, sizes)))
        index -= len(compared or ())
    if plain is None or compared is None:
        return None
    return plain if len(plain) == len(chain) else list(walk(trajectories, columns, equal))


def _until_one_vanishes(at_equal_sizes: Iterator[Tensor], at_sizes: Iterator[Tensor]) -> list[Tensor] | None:
    """Compare growth rates at sizes that differ with those at equal sizes, up to the step where a trajectory's part vanishes.

    Args:
        at_equal_sizes: Growth rates of one cotangent, with parts of equal sizes.
        at_sizes: Those of the same cotangent, with parts of different sizes.

    Returns:
        The growth rates at equal sizes, or None if the others differ from them.
    """
    found: list[Tensor] = []
    for plain, sized in zip(at_equal_sizes, at_sizes):
        if not torch.allclose(plain, sized, rtol=0, atol=SAME_RATE, equal_nan=True):
            return None
        found.append(plain)
        if (plain == -torch.inf).any():
            break
    return found
