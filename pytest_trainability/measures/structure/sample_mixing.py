"""Steps of the chain that mix samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, finfo, nn

from ...engine.capture.chain import Chain
from ...engine.isolation import generator_of
from ...engine.jacobian.trajectories import Division, Trajectories, possible_divisions
from ...engine.jacobian.vjp import Cotangents, gaussian_state, pull_back
from ...engine.linalg.norms import is_zero
from ...engine.runs.run import Need, Run
from ...engine.trees import batch_size
from ...errors import InapplicableError
from ..measure import declare

__all__ = ["INTERACTING_STEPS", "mixes_samples", "separating_powers", "separating_subsets"]

LEVELS = 16
"""Number of different powers of two by which samples are scaled at once; the largest one is far from overflow."""


def separating_powers(samples: int) -> Iterator[Tensor]:
    """Yield powers of two for each sample such that for any samples a ≠ b, their powers differ in one of the tensors.

    Two numbers differ in at least one digit to the base :data:`LEVELS`, which is the exponent.

    Yields:
        Numbers ``(samples,)`` in float64, from 1 to ``2 ** (LEVELS - 1)``.
    """
    numbers = torch.arange(samples, device="cpu")
    while int(numbers.max()) > 0:
        yield 2.0 ** (numbers % LEVELS).double()
        numbers = numbers // LEVELS


def separating_subsets(samples: int) -> Iterator[Tensor]:
    """Yield subsets of samples such that for any samples a ≠ b, one subset contains a and not b.

    Two numbers differ in at least one binary digit. The ``2 ⌈log₂ samples⌉`` sets of samples with the same digit at the same
    position are therefore sufficient.

    Yields:
        Booleans ``(samples,)``, never all True or all False.
    """
    numbers = torch.arange(samples, device="cpu")
    for place in range((samples - 1).bit_length()):
        digit = (numbers >> place) % 2 == 1
        yield digit
        yield ~digit


def mixes_samples(trajectories: Trajectories, index: int, seed: int) -> bool | None:
    """Whether step ``index`` (1 … L) pulls a cotangent on some samples back to other samples.

    A Gaussian cotangent of the state after the step is pulled back, as it is and with each sample multiplied by a power of two.
    If samples are independent, each result is multiplied by the same power, bit for bit. Otherwise the cotangent is restricted
    to each of the :func:`separating_subsets`, which finds every pair of samples. A norm on other samples counts if it exceeds
    the working precision relative to the largest norm.

    Returns:
        None if the pulled back cotangent is not finite.
    """
    sent = _gaussian_cotangent(trajectories.chain, index, seed)
    if _scales_with_samples(trajectories, index, sent):
        return False
    return _reaches_other_samples(trajectories, index, sent)


def _scales_with_samples(trajectories: Trajectories, index: int, sent: Cotangents) -> bool:
    """Whether powers of two on the samples of a cotangent are exactly those of what is pulled back."""
    division = trajectories.division
    returned = _pulled_back(trajectories, index, sent)
    if not bool(division.norms(returned).isfinite().all()):
        return False
    for powers in separating_powers(division.count):
        scaled = _pulled_back(trajectories, index, _multiplied(division, sent, powers))
        pairs = zip(scaled, _multiplied(division, returned, powers))
        if any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs):
            return False
    return True


def _reaches_other_samples(trajectories: Trajectories, index: int, sent: Cotangents) -> bool | None:
    chain, division = trajectories.chain, trajectories.division
    eps = max(finfo(dtype).eps for state in (index - 1, index) for _, dtype in chain.shapes(state))
    for subset in separating_subsets(division.count):
        norms = division.norms(_pulled_back(trajectories, index, _multiplied(division, sent, subset.double())))
        if not bool(norms.isfinite().all()):
            return None
        if norms[~subset].max() > eps * norms.max():
            return True
    return False


def _multiplied(division: Division, columns: Cotangents, factors: Tensor) -> Cotangents:
    return [None if column is None else division.multiply(column, factors) for column in columns]


def _pulled_back(trajectories: Trajectories, index: int, columns: Cotangents) -> Cotangents:
    """Pull back one cotangent of a state, and return that of the state before; None for tensors that belong to no sample."""
    chain = trajectories.chain
    returned = pull_back(chain, index, [None if column is None else column.unsqueeze(0) for column in columns])
    return [
        None if column is None or not shape else column[0]
        for column, (shape, _) in zip(returned, chain.shapes(index - 1))
    ]


def _gaussian_cotangent(chain: Chain, index: int, seed: int) -> Cotangents:
    """Draw a Gaussian cotangent of a state; None for tensors without dimensions, which belong to no sample (a loss)."""
    columns = gaussian_state(chain, index, generator_of(seed, f"interaction {index}"))
    return [column if column.dim() else None for column in columns]


def _division(chain: Chain, index: int, batch: int) -> Division | None:
    """Return the division into samples of the states before and after a step; None if they have none."""
    shapes = [shape for state in (index - 1, index) for shape, _ in chain.shapes(state) if shape]
    if all(len(shape) < 2 for shape in shapes):
        # A single dimension counts the units of one sample.
        return None
    return next(possible_divisions(shapes, batch), None)


def _zeros(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters and buffers that are entirely zero."""
    named = (*model.named_parameters(), *model.named_buffers())
    return frozenset(name for name, tensor in named if is_zero(tensor))


def _interacting_steps(run: Run) -> list[str]:
    batch = batch_size(run.capture.inputs) or 1
    # Even if each sample has its own trajectory, one sample may depend on another that does not depend on it.
    known = run.trajectories.division if run.trajectories.count > 1 else None
    if known is None and batch < 2:
        return []
    found = []
    operations = run.chain.operations(run.graph)
    # Operations decide whether a step mixes samples, unless a weight of zero closes what mixes them: it is examined on the first
    # seed that does the same in it with the same zeros.
    zeros = _zeros(run.capture.model)
    verdicts: dict[tuple[str, tuple[str, ...], frozenset[str]], bool]
    verdicts = run.findings.setdefault(INTERACTING_STEPS.name, {})
    for index, name in enumerate(run.chain.names, 1):
        division = known or _division(run.chain, index, batch)
        if division is None:
            shapes = ", ".join(
                str(tuple(shape)) for state in (index - 1, index) for shape, _ in run.chain.shapes(state)
            )
            msg = (
                "interacting_samples needs states whose first or second dimension counts samples. The states before and after "
                f"step {name!r} have the shapes {shapes} for a batch of {batch}. Bound another measure."
            )
            raise InapplicableError(msg)
        key = name, operations[index - 1], zeros
        mixes = verdicts.get(key)
        if mixes is None:
            mixes = mixes_samples(Trajectories(run.chain, division), index, run.seed)
        if mixes is None:
            found.append(f"{name}: not finite")
            continue
        verdicts[key] = mixes
        if mixes:
            normalized = any("BatchNorm" in operation for operation in operations[index - 1])
            found.append(f"{name}: BatchNorm" if normalized else name)
    return found


INTERACTING_STEPS = Need("interacting steps", _interacting_steps)
"""Names of the steps in which samples interact, in program order: ``"NAME"``, ``"NAME: BatchNorm"`` for steps with a BatchNorm,
and ``"NAME: not finite"`` for steps whose Jacobian is not finite."""


@declare("names", needs=[INTERACTING_STEPS])
def interacting_samples(run: Run) -> list[str]:
    """Return the steps in which samples interact: ``∂x_l[a] / ∂x_{l-1}[b] ≠ 0`` for some samples ``a ≠ b``.

    It misleads if samples interact by design: BatchNorm in training mode is listed, like every other operation on the whole
    batch. Operations before the first state and after the last one (a softmax over the batch in the loss) are not examined. The
    entries of the batch dimension count as samples; in a batch of a graph network these are nodes.

    Returns:
        Names of steps in program order: ``"NAME"``, ``"NAME: BatchNorm"`` for a step with a BatchNorm, and ``"NAME: not
        finite"`` for a step whose Jacobian contains NaN or infinity. The list is empty for a batch of one sample. It may
        contain steps although the measurement's ``frame`` is ``"per sample"``: one sample may depend on another that does not
        depend on it.

    Raises:
        InapplicableError: The states cannot be divided into samples.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "use backprop to chart dependencies".
    """
    return run[INTERACTING_STEPS]
