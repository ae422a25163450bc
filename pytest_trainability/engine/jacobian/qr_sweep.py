"""QR sweep: orthonormal cotangents are pulled back through the whole chain, with a QR factorization after each step.

Without the factorization, all cotangents would collapse onto the fastest-growing direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ..capture.chain import Chain
from ..linalg.numerical_rank import maybe_short_of_rank, without_round_off
from .trajectories import Trajectories
from .vjp import Cotangents, gaussian_state, pull_back

__all__ = [
    "QRSweep",
    "cotangents_at_once",
    "is_round_off",
    "products_are_noise",
    "qr_sweep",
    "walk",
    "working_precision",
]

# Note [Round-off is no direction]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# A step may map a direction to zero: a dead ReLU unit, the mean in front of a LayerNorm. Arithmetic leaves round-off instead of
# zero, and the logarithm of round-off looks like an exponent of about -16 nats. A column whose part orthogonal to the earlier
# columns falls below the working precision of the step, 8 eps sqrt(n) with the coarsest eps on the way, has therefore vanished:
# its exponent is -inf. Where the diagonal of R is only near that threshold, a singular value decomposition of the step decides
# (linalg/numerical_rank.py). With a single cotangent there is no other column to compare with, and a random cotangent of the
# same state takes its place.
#
# A step whose Jacobian is zero may compute round-off that is far above that threshold: a normalization of one element divides the
# difference of equal numbers by √ε. Where a step shrinks a cotangent to less than √eps, its products are tested for additivity
# (`products_are_noise`).


@dataclass(frozen=True, slots=True)
class QRSweep:
    """Logarithms of the growth of each orthonormal cotangent in each step.

    ``logs`` is ``ln R_l[i, i]`` with shape ``(L, trajectories, k)``, in float64 on the CPU, in the order of the steps. For k = 1
    it is ``ln ‖u_{l-1}‖ / ‖u_l‖``. It is ``-inf`` at the step where cotangent i vanishes, and NaN in all steps before that one.
    """

    logs: Tensor
    trajectories: Trajectories

    def sums(self) -> Tensor:
        """Return the logarithms summed over the steps, ``(trajectories, k)``; ``-inf`` for a cotangent that vanished."""
        vanished = (self.logs == -math.inf).any(dim=0)
        return torch.where(vanished, -math.inf, self.logs.sum(dim=0))

    def running(self, warmup: int = 0, alignment: int = 0) -> Tensor:
        """Return the running averages of the growth per step, from the last step back to each step.

        Where steps have durations, growth is per unit of time. Each trajectory's average excludes the first ``warmup`` and the
        last ``alignment`` of the steps that act on it.

        Returns:
            Averages of shape ``(L, trajectories, k)``; ``-inf`` from the step where a cotangent vanishes, NaN where no step has
            been averaged yet.
        """
        acting = self.trajectories.acting()
        number, count = acting.cumsum(dim=0), acting.sum(dim=0)
        counted = acting & (number > warmup) & (number <= count - alignment)
        durations = torch.tensor(self.trajectories.chain.spans, dtype=torch.float64, device="cpu")
        total = torch.where(counted[:, :, None], self.logs, 0.0).flip(0)
        vanished = (self.logs == -math.inf).flip(0).cumsum(dim=0) > 0
        total = torch.where(vanished, -math.inf, total.cumsum(dim=0))
        time = (counted * durations[:, None]).flip(0).cumsum(dim=0)
        return (total / time[:, :, None]).flip(0).where((time > 0).flip(0)[:, :, None], math.nan)

    def averages(self, warmup: int = 0, alignment: int = 0) -> Tensor:
        """Return the growth per step or per unit of time, averaged over the steps that remain, ``(m, k)``.

        The m trajectories are those for which at least one step remains.
        """
        averages = self.running(warmup, alignment)[warmup]
        return averages[self.trajectories.acting().sum(dim=0) > warmup + alignment]


def qr_sweep(trajectories: Trajectories, columns: Cotangents, *, at_once: int | None = None) -> QRSweep:
    """Pull k cotangents back through the whole chain and orthonormalize them after every step.

    ``J_lᵀ Q_l = Q_{l-1} R_l`` for l = L … 1, starting from ``Q_L`` of the QR factorization of the given cotangents.

    Args:
        trajectories: The chain and its trajectories.
        columns: Cotangents of the last state: for each of its edges a tensor ``(k, *shape)``, or None for zero.
        at_once: Largest number of cotangents per backward pass; by default :func:`cotangents_at_once`.

    Returns:
        The logarithms of what each step does to each column.

    Raises:
        UsageError: k exceeds the number of dimensions of the last state.

    Source: Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15, 9 (1980), applied to the transposed cocycle, which
    has the same exponents.
    """
    chain = trajectories.chain
    at_once = at_once or cotangents_at_once(chain)
    count = next(len(c) for c in columns if c is not None)
    if count == 1:
        rates = list(walk(trajectories, columns, torch.ones(trajectories.count, device="cpu")))
        return QRSweep(torch.stack(rates[::-1]).unsqueeze(-1), trajectories)
    logs = torch.full((len(chain), trajectories.count, count), math.nan, dtype=torch.float64, device="cpu")
    smallest = trajectories.dimensions(len(chain))
    if count > smallest:
        msg = (
            f"exponents must be at most the number of dimensions of the last state, {smallest} per trajectory. "
            f"Got {count}."
        )
        raise UsageError(msg)
    alive = torch.ones((trajectories.count, count), dtype=torch.bool, device="cpu")
    columns, _, alive = _orthonormal(trajectories, len(chain), columns, alive)
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns, at_once=at_once)
        columns, logs[index - 1], living = _orthonormal(trajectories, index - 1, columns, alive)
        # If every column is round-off, none is long enough to show it.
        cancelled = is_round_off(trajectories, index, logs[index - 1].exp().nan_to_num(0.0).amax(dim=1))
        logs[index - 1] = torch.where(cancelled[:, None] & alive, -math.inf, logs[index - 1])
        alive = living & ~cancelled[:, None]
        if not alive.any():
            break
    return QRSweep(logs, trajectories)


def cotangents_at_once(chain: Chain) -> int | None:
    """Return how many cotangents one backward pass should carry: on the CPU as many as its caches hold, else None for all."""
    largest = max(sum(math.prod(shape) for shape, _ in chain.shapes(index)) for index in range(len(chain) + 1))
    return max(1, 2**20 // max(largest, 1)) if all(device.type == "cpu" for device in chain.devices(0)) else None


def walk(
    trajectories: Trajectories, columns: Cotangents, sizes: Tensor, *, start: int | None = None
) -> Iterator[Tensor]:
    """Pull one cotangent back through the chain; before every step, rescale each trajectory's part to its given norm.

    Args:
        trajectories: The chain and its trajectories.
        columns: One cotangent of the state to start from: for each of its edges a tensor ``(1, *shape)``, or None for zero.
        sizes: Norm of each trajectory's part, ``(trajectories,)``.
        start: Number of this state, 0 … L; by default that of the last state, L.

    Yields:
        ``ln ‖u_{l-1}‖ / ‖u_l‖`` of shape ``(trajectories,)`` for l = start … 1; ``-inf`` at the step where the part vanishes, and
        NaN in the steps before that one.
    """
    division = trajectories.division
    state = _only(columns)
    sizes = sizes.double()
    norms = division.norms(state)
    for index in range(len(trajectories.chain) if start is None else start, 0, -1):
        factors = torch.where(norms > 0, sizes / norms, 1.0)
        state = [None if c is None else division.multiply(c, factors) for c in state]
        state = _only(pull_back(trajectories.chain, index, _batch_of_one(state)))
        vanished = norms == 0
        norms = division.norms(state)
        norms = torch.where(is_round_off(trajectories, index, norms / sizes), 0.0, norms)
        yield torch.where(vanished, math.nan, (norms / sizes).log())


def is_round_off(trajectories: Trajectories, index: int, factors: Tensor) -> Tensor:
    """Return for which trajectories a step has reduced a cotangent to round-off; see Note [Round-off is no direction].

    A factor near the working precision is compared with the factor of a random cotangent of the same state. Where the step
    shrinks everything, both are small. Where the cotangent lies in the null space of the step (a mean behind a LayerNorm), only
    its own factor is small.

    Args:
        trajectories: The chain and its trajectories.
        index: Number of the segment, 1 … L.
        factors: ``‖J_lᵀ u‖ / ‖u‖`` of each trajectory, ``(trajectories,)``.

    Returns:
        Booleans of shape ``(trajectories,)``.
    """
    if not (factors < COARSEST).any():
        return torch.zeros_like(factors, dtype=torch.bool)
    chain, division = trajectories.chain, trajectories.division
    size = sum(math.prod(shape) for shape, _ in chain.shapes(index)) // trajectories.count
    precision = working_precision(chain.epsilon(index), size)
    found = products_are_noise(chain, index, factors, division.norms)
    if ((factors > 0) & (factors < precision)).any():
        drawn = gaussian_state(chain, index, torch.Generator("cpu").manual_seed(index))
        usual = division.norms(_only(pull_back(chain, index, _batch_of_one(drawn))))
        found |= factors < precision * usual / division.norms(drawn)
    return found


def products_are_noise(
    chain: Chain, index: int, factors: Tensor, norms: Callable[[Sequence[Tensor | None]], Tensor]
) -> Tensor:
    """Return for which trajectories a step computes round-off where its Jacobian is zero.

    A normalization of a single element has the Jacobian zero, and computes the difference of equal numbers, multiplied by up to
    ``1/√ε``. Round-off does not add up: products with u, v and u + v are then unrelated. Products with a Jacobian that is only
    small add up to many digits.

    Args:
        chain: The chain.
        index: Number of the segment, 1 … L.
        factors: ``‖J_lᵀ u‖ / ‖u‖`` of each trajectory. Factors above the square root of the precision are not round-off.
        norms: Function that returns the norm of each trajectory's part of a cotangent of either state.

    Returns:
        Booleans, one per trajectory.
    """
    largest = min(math.sqrt(chain.epsilon(index)), COARSEST)
    suspected = (factors > 0) & (factors < largest)
    if not suspected.any():
        return suspected
    generator = torch.Generator("cpu").manual_seed(index)
    u, v = (gaussian_state(chain, index, generator) for _ in range(2))
    both = [a + b for a, b in zip(u, v)]
    of_u, of_v, of_both = (_only(pull_back(chain, index, _batch_of_one(state))) for state in (u, v, both))
    # A backward pass that ignores what arrives returns the same three times. That is no round-off.
    moved = [None if s is None or a is None else s - a for s, a in zip(of_both, of_u)]
    excess = [None if m is None or b is None else m - b for m, b in zip(moved, of_v)]
    length = norms(of_u)
    return (
        suspected
        & (length < largest * norms(u))
        & (norms(excess) > UNRELATED * length)
        & (norms(moved) > UNRELATED * length)
    )


UNRELATED = 0.75
"""Relative error of a sum of products from which the products are unrelated. For independent round-off it is about √3."""
COARSEST = 0.05
"""Largest working precision that is assumed: half precision is trusted to a twentieth, all other types are far more precise."""


def working_precision(eps: float, size: int) -> float:
    """Return which fraction of a result of ``size`` terms can be round-off: ``8 eps √n``.

    Half precision accumulates in float32 and rounds once, to ``8 eps``.
    """
    return min(8 * eps, COARSEST) if eps > 1e-4 else 8 * eps * math.sqrt(size)


def _only(columns: Cotangents) -> Cotangents:
    return [None if column is None else column[0] for column in columns]


def _batch_of_one(state: Sequence[Tensor | None]) -> Cotangents:
    return [None if column is None else column.unsqueeze(0) for column in state]


def _orthonormal(
    trajectories: Trajectories, index: int, columns: Cotangents, alive: Tensor
) -> tuple[Cotangents, Tensor, Tensor]:
    """Factorize the cotangents of state ``index`` by QR, separately for each trajectory.

    A cotangent has vanished where its part orthogonal to the earlier ones is below the working precision of the longest one:
    that part is round-off. A cotangent in excess of the number of dimensions has vanished too, however long its rest is.

    Args:
        trajectories: The chain and its trajectories.
        index: Number of the state, 0 … L.
        columns: For each edge a tensor ``(k, *shape)``, or None for zero.
        alive: Which cotangents have not vanished yet, ``(trajectories, k)``.

    Returns:
        ``Q`` as columns, ``ln diag R`` of shape ``(trajectories, k)``, and which cotangents are still alive.
    """
    if all(column is None for column in columns):
        return columns, torch.where(alive, -math.inf, math.nan).double(), torch.zeros_like(alive)
    # In the memory order that LAPACK works in; padded where there are more cotangents than dimensions.
    matrix = trajectories.as_rows(index, columns, least=alive.shape[1])
    # Living cotangents come first: for a zero column QR makes up a direction, to which later columns would lose a part.
    alive = alive.to(matrix.device)
    order = alive.int().sort(dim=1, descending=True, stable=True).indices
    matrix = (matrix * alive[:, :, None]).gather(1, order[:, :, None].expand_as(matrix))
    Q, R = torch.linalg.qr(matrix.mT)
    # These cotangents have come through the segment after the state; those of the last state have come through none.
    eps = trajectories.chain.epsilon(min(index + 1, len(trajectories.chain)))
    least = working_precision(eps, matrix.shape[2]) * torch.linalg.vector_norm(matrix, dim=2).amax(dim=1)
    lengths = R.diagonal(dim1=-2, dim2=-1).abs().clone()
    ranks = alive.sum(dim=1)
    for number in maybe_short_of_rank(R, ranks, least):
        _cut_to_rank(matrix[number], Q[number], R[number], lengths[number], int(ranks[number]), float(least[number]))
    logs = torch.zeros_like(lengths).double().scatter(1, order, lengths.double().log()).where(alive, math.nan)
    Q = torch.zeros_like(matrix).scatter(1, order[:, :, None].expand_as(matrix), Q.mT)
    alive = alive & (logs != -math.inf)
    return trajectories.as_columns(index, Q * alive[:, :, None]), logs.cpu(), alive.cpu()


def _cut_to_rank(matrix: Tensor, Q: Tensor, R: Tensor, lengths: Tensor, rank: int, least: float) -> None:
    """Keep the first independent columns, as many as the numerical rank; set the lengths of all others to zero, in place."""
    _, B = without_round_off(R[:, :rank], least)
    leading = bool((lengths[: len(B)] > least).all())
    kept = list(range(len(B))) if leading else _independent(B, least)
    q, triangular = torch.linalg.qr(matrix[kept].T)
    lengths.zero_()
    lengths[kept] = triangular.diagonal().abs()
    Q[:, kept] = q


def _independent(B: Tensor, least: float) -> list[int]:
    """Return the columns whose part orthogonal to the earlier ones exceeds round-off, at most as many as there are rows."""
    kept: list[int] = []
    basis = B[:, :0]
    for number, column in enumerate(B.T):
        for _ in range(2):
            column = column - basis @ (basis.T @ column)
        length = torch.linalg.vector_norm(column)
        if len(kept) < len(B) and length > least:
            kept.append(number)
            basis = torch.cat([basis, (column / length)[:, None]], dim=1)
    return kept
