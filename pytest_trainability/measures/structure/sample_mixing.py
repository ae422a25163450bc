"""Which steps mix samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, finfo

from ...engine.capture.chain import Chain
from ...engine.isolation import generator_of
from ...engine.jacobian.trajectories import Division, Trajectories, possible_divisions
from ...engine.jacobian.vjp import gaussian_state, pull_back
from ...engine.runs.run import Need, Run
from ...engine.trees import batch_size
from ...errors import InapplicableError
from ..measure import declare

__all__ = ["INTERACTING_STEPS", "halves", "mixes"]


def halves(samples: int) -> Iterator[Tensor]:
    """Yield sets of samples such that of any two samples each is without the other in one of them.

    Two numbers differ in a binary digit: the sets of samples with the same digit at the same place, ``2 ⌈log₂ samples⌉``
    of them, are enough.

    Yields:
        Booleans ``(samples,)``, never all True or all False.
    """
    numbers = torch.arange(samples, device="cpu")
    for place in range((samples - 1).bit_length()):
        digit = (numbers >> place) % 2 == 1
        yield digit
        yield ~digit


def mixes(trajectories: Trajectories, index: int, seed: int) -> bool | None:
    """Whether a cotangent that lives on some samples comes back from step ``index`` (1 … L) on others.

    Gaussian cotangents of the state after the step are pulled back from each half of the samples in turn, which misses no pair.
    What comes back on others counts from the working precision of what comes back at all.

    Returns:
        None where what comes back is not finite: zero times NaN is none.
    """
    chain, division = trajectories.chain, trajectories.division
    drawn = _drawn(chain, index, seed)
    own = [len(shape) > 0 for shape, _ in chain.shapes(index - 1)]
    eps = max(finfo(dtype).eps for state in (index - 1, index) for _, dtype in chain.shapes(state))
    for half in halves(division.count):
        sent = [None if column is None else division.multiply(column, half.double()).unsqueeze(0) for column in drawn]
        returned = pull_back(chain, index, sent)
        norms = division.norms([column[0] for column, kept in zip(returned, own) if kept and column is not None])
        if not bool(norms.isfinite().all()):
            return None
        if norms[~half].max() > eps * norms.max():
            return True
    return False


def _drawn(chain: Chain, index: int, seed: int) -> list[Tensor | None]:
    """Draw a Gaussian cotangent of a state; none of a number without dimensions, a loss so far, which is of no sample."""
    columns = gaussian_state(chain, index, generator_of(seed, f"interaction {index}"))
    return [column if column.dim() else None for column in columns]


def _division(chain: Chain, index: int, batch: int) -> Division | None:
    """Return how the states before and after a step are made of samples; None where they are not."""
    shapes = [shape for state in (index - 1, index) for shape, _ in chain.shapes(state) if shape]
    if all(len(shape) < 2 for shape in shapes):
        # One dimension alone is one sample's units.
        return None
    return next(possible_divisions(shapes, batch), None)


def _interacting_steps(run: Run) -> list[str]:
    batch = batch_size(run.capture.inputs) or 1
    # That samples were found to have trajectories of their own does not mean that none is influenced at all.
    known = run.trajectories.division if run.trajectories.count > 1 else None
    if known is None and batch < 2:
        return []
    found = []
    operations: list[tuple[str, ...]] = []
    for index, name in enumerate(run.chain.names, 1):
        division = known or _division(run.chain, index, batch)
        if division is None:
            shapes = ", ".join(
                str(tuple(shape)) for state in (index - 1, index) for shape, _ in run.chain.shapes(state)
            )
            msg = (
                "interacting_samples needs states in which samples have places of their own, along the first dimension or the "
                f"second. Around step {name!r} of a batch of {batch} they have the shapes {shapes}. Bound another measure."
            )
            raise InapplicableError(msg)
        is_mixed = mixes(Trajectories(run.chain, division), index, run.seed)
        if is_mixed is None:
            found.append(f"{name}: not finite")
        elif is_mixed:
            # A walk over the whole graph, which most models need not take.
            operations = operations or run.chain.operations(run.graph)
            normalized = any("BatchNorm" in operation for operation in operations[index - 1])
            found.append(f"{name}: BatchNorm" if normalized else name)
    return found


INTERACTING_STEPS = Need("interacting steps", _interacting_steps)
"""Names of the steps across which samples interact, in program order; ``"NAME: BatchNorm"`` of those that have one, and
``"NAME: not finite"`` where that cannot be told."""


@declare("names", needs=[INTERACTING_STEPS])
def interacting_samples(run: Run) -> list[str]:
    """Return the steps across which samples interact: ``∂x_l[a] / ∂x_{l-1}[b] ≠ 0`` for some samples ``a ≠ b``.

    It misleads where samples are meant to interact: BatchNorm in training mode is listed, and so is everything that looks at the
    whole batch on purpose. What comes before the first state and after the last one (a softmax over the batch in the loss) is
    not looked at. Samples are what lies along the batch's dimension: of a graph network's batch these are nodes.

    Returns:
        Names of steps in program order; none for a batch of one. It is looked at in any case, for the frame may be
        ``"per sample"`` where one sample reads others that do not read it. ``"NAME: BatchNorm"`` where the step has one,
        ``"NAME: not finite"`` where its Jacobian holds NaN or infinity, so that nobody can tell.

    Raises:
        InapplicableError: The states cannot be divided into samples.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "use backprop to chart dependencies".
    """
    return run[INTERACTING_STEPS]
