"""How much of the gain of a chain passes by some of its steps, through skips or parallel branches."""

from __future__ import annotations

from dataclasses import replace

from ..capture.chain import Chain
from .qr_sweep import QRSweep, qr_sweep
from .trajectories import Trajectories
from .vjp import pull_back, random_cotangents

__all__ = ["log_gain_without_skips", "vanishes_without_skips"]


def log_gain_without_skips(trajectories: Trajectories, sweep: QRSweep | None, seed: int) -> tuple[float, float] | None:
    """Return the log gain of a random cotangent, with and without the edges that pass by a step.

    Without them, the cotangent of each edge that lies in the states at both ends of a segment is dropped in this segment. What
    remains are the paths through every segment. An edge of the first state that the second segment is the last to read is
    kept: where ``x = x + layer(x)`` is repeated and the layers are the steps, each sum belongs to the segment after its layer.

    Args:
        trajectories: The chain and its trajectories.
        sweep: QR sweep of the first random cotangent of this seed, if it has been computed.
        seed: Seed of the cotangent.

    Returns:
        Both log gains in nats, averaged over trajectories; ``-inf`` where the cotangent of a trajectory vanishes. None if no edge
        passes by a step.
    """
    without = _without_skips(trajectories.chain)
    if without.cut == trajectories.chain.cut:
        return None
    with_skips = float(sweep.sums().mean()) if sweep is not None else _log_gain(trajectories, seed)
    return with_skips, _log_gain(replace(trajectories, chain=without), seed)


def vanishes_without_skips(trajectories: Trajectories, seed: int) -> int | None:
    """Return the number of the step that passes nothing of a random cotangent once skips are left out; None if there is none.

    Args:
        trajectories: The chain and its trajectories.
        seed: Seed of the cotangent.
    """
    chain = _without_skips(trajectories.chain)
    columns = random_cotangents(chain, 1, seed)
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
        if not any(column is not None and bool(column.any()) for column in columns):
            return index
    return None


def _without_skips(chain: Chain) -> Chain:
    cut = chain.cut
    later = cut.states[2] if len(cut.states) > 2 else cut.states[1]
    kept = tuple((i, j) for i, j in cut.segments[0].passing if cut.states[1][i] not in later)
    passing = [kept] + [()] * (len(chain) - 1)
    segments = tuple(replace(segment, passing=p) for segment, p in zip(cut.segments, passing))
    return replace(chain, cut=replace(cut, segments=segments))


def _log_gain(trajectories: Trajectories, seed: int) -> float:
    return float(qr_sweep(trajectories, random_cotangents(trajectories.chain, 1, seed)).sums().mean())
