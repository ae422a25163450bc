"""How much of the gain of a chain passes by some of its steps, through skips or parallel branches, and why nothing else may."""

from __future__ import annotations

from dataclasses import replace

from torch.autograd.graph import Node

from ..capture.chain import Chain
from ..capture.operators import operator_name
from ..torch_internals import leaf_of
from .qr_sweep import QRSweep, qr_sweep
from .trajectories import Trajectories
from .vjp import pull_back, random_cotangents

__all__ = ["is_multiplied_by_zero", "log_gain_without_skips", "runs_side_by_side", "vanishes_without_skips"]


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


def runs_side_by_side(chain: Chain) -> bool:
    """Return whether no path leads through all steps, as where two networks or two calls of one run on the same inputs.

    Unlike a gradient that is zero on its way through all steps, it has no way there.

    Args:
        chain: The chain.
    """
    without = _without_skips(chain)
    columns = random_cotangents(without, 1, 0)
    for index in range(len(without), 0, -1):
        columns = pull_back(without, index, columns)
        if all(column is None for column in columns):
            return True
    return False


def is_multiplied_by_zero(chain: Chain, index: int) -> bool:
    """Return whether a segment multiplies by a parameter that is zero, such as the weight of a layer or a gate.

    Args:
        chain: The chain.
        index: Number of the segment, 1 … L.
    """
    segment, later, earlier = chain.cut.segments[index - 1], chain.cut.states[index], chain.cut.states[index - 1]
    ends = {node for node, _ in earlier}
    # Whether what a node returns is only added to the rest, as it is or after one view or function of it after the other.
    is_added = {later[i][0]: False for i in segment.roots}
    pending = [*is_added]
    while pending:
        node = pending.pop()
        producers = [(place, one) for place, (one, _) in enumerate(node.next_functions) if one is not None]
        for place, producer in producers:
            if producer in is_added or producer in ends:
                continue
            added = _adds(node, place) or (is_added[node] and len(producers) == 1)
            leaf = leaf_of(producer)
            if leaf is None:
                is_added[producer] = added
                pending.append(producer)
            elif not added and leaf.numel() and not bool(leaf.any()):
                return True
    return False


def _adds(node: Node, place: int) -> bool:
    """Return whether an operation adds the operand at a place to the result, as it does with a bias."""
    operation = operator_name(node)
    if "Convolution" in operation or "Norm" in operation:
        return place > 1
    return operation in {"Add", "Sub", "Rsub"} or (operation.startswith(("Add", "Badd")) and place == 0)


def _without_skips(chain: Chain) -> Chain:
    cut = chain.cut
    later = cut.states[2] if len(cut.states) > 2 else cut.states[1]
    kept = tuple((i, j) for i, j in cut.segments[0].passing if cut.states[1][i] not in later)
    passing = [kept] + [()] * (len(chain) - 1)
    segments = tuple(replace(segment, passing=p) for segment, p in zip(cut.segments, passing))
    return replace(chain, cut=replace(cut, segments=segments))


def _log_gain(trajectories: Trajectories, seed: int) -> float:
    return float(qr_sweep(trajectories, random_cotangents(trajectories.chain, 1, seed)).sums().mean())
