"""Whether samples have trajectories of their own, decided by measurement."""

from __future__ import annotations

import torch
from torch import Tensor

from ..capture.chain import Chain
from ..isolation import generator_of
from .qr_sweep import Sweep, walk
from .trajectories import Frame, divisions
from .vjp import Cotangents, random_cotangents

__all__ = ["find_frame"]


def find_frame(chain: Chain, batch: int | None, seed: int) -> tuple[Frame, Sweep | None]:
    """Decide by measurement whether samples have trajectories of their own.

    The first random cotangent is pulled back with every sample's part kept at a size of its own, a power of two. Where
    samples do not interact, that changes nothing. Where they do, however few and whichever (BatchNorm in training mode, a
    softmax over the batch, attention over a first dimension that is time), large parts leak into small ones, whose growth
    rates jump. Where rates differ much between samples, a second sweep at equal sizes tells whether that is why. If so, there
    is one joint frame; there is one, too, where the tensors of the states cannot be divided into samples at all.

    An influence in one direction only may be missed, where the part that leaks is small beside the one that it leaks into. To
    look at both would cost another sweep; :mod:`.interaction` does.

    Returns:
        The frame and, where it is per sample, the sweep of the first random cotangent, which this has cost already.
    """
    drawn = random_cotangents(chain, 1, seed)
    half = any(dtype == torch.float16 for index in range(len(chain) + 1) for _, dtype in chain.shapes(index))
    for frame in _possible_frames(chain, batch):
        sizes = _sizes(frame, seed, HALF_RANGE if half else RANGE)
        rates = _rates_within_spread(chain, frame, drawn, sizes)
        if rates is None:
            rates = _undisturbed_rates(chain, frame, drawn, sizes)
        if rates is not None:
            return frame, Sweep(torch.stack(rates[::-1]).unsqueeze(-1), frame)
    return Frame(samples=1), None


def _possible_frames(chain: Chain, batch: int | None) -> list[Frame]:
    shapes = [shape for index in range(len(chain) + 1) for shape, _ in chain.shapes(index)]
    # One dimension alone is one sample's units; beside others it may hold a number per sample (a flow's log-determinant).
    if any(len(shape) < 1 for shape in shapes) or all(len(shape) < 2 for shape in shapes):
        return []
    frames = []
    first = {shape[0] for shape in shapes}
    if chain.along == "time":
        # A sequence may come with time before samples; a recurrent state has samples first, or layers and then samples.
        lengths = set.intersection(*({shape[0], *shape[1:2]} if len(shape) > 2 else {shape[0]} for shape in shapes))
        frames += [Frame(n, 0 if first == {n} else None) for n in sorted(lengths - {1}, reverse=True)]
    if batch is not None and batch > 1:
        frames += divisions(shapes, batch)
    if len(first) == 1 and max(first) > 1:
        frames.append(Frame(max(first)))
    return list(dict.fromkeys(frames))


RANGE, HALF_RANGE = 30, 10
"""The largest part is 2^30 times the smallest; in float16, whose range is short, 2^10."""
MAX_RATE_SPREAD = 3.0
"""Nats by which growth rates of samples may differ without a question. An influence of 2e-8 of one sample on another makes
them differ by more."""
SAME_RATE = 1e-3
"""A growth rate that changes by less has changed by round-off."""


def _sizes(frame: Frame, seed: int, spread: int) -> Tensor:
    """Return a power of two for each trajectory, spread evenly over ``2^0 … 2^spread`` in random order."""
    generator = generator_of(seed, "sizes")
    order = torch.randperm(frame.samples, generator=generator, device="cpu").double() / max(frame.samples - 1, 1)
    return torch.exp2((spread * order).round())


def _rates_within_spread(chain: Chain, frame: Frame, columns: Cotangents, sizes: Tensor) -> list[Tensor] | None:
    """Return the growth rates of steps L … 1 at the given sizes, or None where they differ much between samples."""
    rates = []
    for rate in walk(chain, frame, columns, sizes):
        if not rate.isfinite().all() or rate.max() - rate.min() > MAX_RATE_SPREAD:
            return None
        rates.append(rate)
    return rates


def _undisturbed_rates(chain: Chain, frame: Frame, columns: Cotangents, sizes: Tensor) -> list[Tensor] | None:
    """Return the growth rates of steps L … 1 at equal sizes, or None where they are others at the given sizes."""
    rates = []
    equal = torch.ones(frame.samples, device="cpu")
    for plain, sized in zip(walk(chain, frame, columns, equal), walk(chain, frame, columns, sizes)):
        if not torch.allclose(plain, sized, rtol=0, atol=SAME_RATE, equal_nan=True):
            return None
        rates.append(plain)
    return rates
