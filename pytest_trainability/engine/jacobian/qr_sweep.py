"""The sweep: a frame of cotangents pulled back through the whole chain, with QR against collapse onto the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ..capture.chain import Chain
from ..linalg.numerical_rank import near_rank_threshold, without_round_off
from .trajectories import Frame, acting, as_columns, as_rows, dimensions
from .vjp import Cotangents, gaussian_state, pull_back

__all__ = ["Sweep", "is_round_off", "sweep", "usual_number", "walk", "working_precision"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Logarithms of what each step does to each column of the frame, in float64.

    ``logs`` is ``(L, samples, k)``: ``ln R_l[i, i]``, for k = 1 ``ln ‖u_{l-1}‖ / ‖u_l‖``, in the order of the steps. It is
    ``-inf`` where a column vanishes, NaN upstream of that.
    """

    logs: Tensor
    frame: Frame

    def sums(self) -> Tensor:
        """Return the logarithms summed over the steps, ``(samples, k)``; ``-inf`` for a column that vanished."""
        vanished = (self.logs == -math.inf).any(dim=0)
        return torch.where(vanished, -math.inf, self.logs.sum(dim=0))

    def running(self, chain: Chain, warmup: int = 0, alignment: int = 0) -> Tensor:
        """Return the growth per step, or per unit of time where steps have durations, averaged from the last step to each.

        Each sample's average is over the steps that act on it, but for its first and last ones.

        Returns:
            Of shape ``(L, samples, k)``; ``-inf`` from where a column vanishes on, NaN where nothing counts yet.
        """
        taken = acting(chain, self.frame)
        number, count = taken.cumsum(dim=0), taken.sum(dim=0)
        counted = taken & (number > warmup) & (number <= count - alignment)
        durations = torch.tensor(chain.spans, dtype=torch.float64, device="cpu")
        total = torch.where(counted[:, :, None], self.logs, 0.0).flip(0)
        vanished = (self.logs == -math.inf).flip(0).cumsum(dim=0) > 0
        total = torch.where(vanished, -math.inf, total.cumsum(dim=0))
        time = (counted * durations[:, None]).flip(0).cumsum(dim=0)
        return (total / time[:, :, None]).flip(0).where((time > 0).flip(0)[:, :, None], math.nan)

    def averages(self, chain: Chain, warmup: int = 0, alignment: int = 0) -> Tensor:
        """Return the growth per step, or per unit of time, over the steps that are left: ``(samples, k)``.

        Samples without any are left out.
        """
        found = self.running(chain, warmup, alignment)[warmup]
        return found[acting(chain, self.frame).sum(dim=0) > warmup + alignment]


def sweep(chain: Chain, frame: Frame, columns: Cotangents, *, at_once: int | None = None) -> Sweep:
    """Pull a frame of k cotangents back through the whole chain, orthonormalised after every step.

    ``J_lᵀ Q_l = Q_{l-1} R_l`` for l = L … 1, from the QR factors ``Q_L`` of the columns given.

    Source: Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15, 9 (1980), applied to the transposed cocycle, which
    has the same exponents.
    """
    at_once = at_once or usual_number(chain)
    count = next(len(c) for c in columns if c is not None)
    if count == 1:
        rates = list(walk(chain, frame, columns, torch.ones(frame.samples, device="cpu")))
        return Sweep(torch.stack(rates[::-1]).unsqueeze(-1), frame)
    logs = torch.full((len(chain), frame.samples, count), math.nan, dtype=torch.float64, device="cpu")
    smallest = dimensions(chain, frame, len(chain))
    if count > smallest:
        msg = (
            f"exponents must be at most the number of dimensions of the last state, {smallest} per trajectory. "
            f"Got {count}."
        )
        raise UsageError(msg)
    alive = torch.ones((frame.samples, count), dtype=torch.bool, device="cpu")
    columns, _, alive = _orthonormal(chain, frame, len(chain), columns, alive)
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns, at_once=at_once)
        columns, logs[index - 1], living = _orthonormal(chain, frame, index - 1, columns, alive)
        cancelled = is_round_off(chain, frame, index, logs[index - 1, :, 0].exp())
        logs[index - 1] = torch.where(cancelled[:, None] & alive, -math.inf, logs[index - 1])
        alive = living & ~cancelled[:, None]
        if not alive.any():
            break
    return Sweep(logs, frame)


def usual_number(chain: Chain) -> int | None:
    """Return how many cotangents are best carried at once: on the CPU as many as its caches hold, elsewhere all."""
    largest = max(sum(math.prod(shape) for shape, _ in chain.shapes(index)) for index in range(len(chain) + 1))
    return max(1, 2**20 // max(largest, 1)) if all(device.type == "cpu" for device in chain.devices(0)) else None


def walk(chain: Chain, frame: Frame, columns: Cotangents, sizes: Tensor) -> Iterator[Tensor]:
    """Pull one cotangent back, each trajectory's part renormalized to its size before every step.

    Yields:
        Growth rates ``(samples,)`` of steps L … 1; ``-inf`` where the part vanishes, NaN upstream of that.
    """
    state = _only(columns)
    sizes = sizes.double()
    norms = frame.norms(state)
    for index in range(len(chain), 0, -1):
        factors = torch.where(norms > 0, sizes / norms, 1.0)
        state = [None if c is None else frame.scale(c, factors) for c in state]
        state = _only(pull_back(chain, index, _batch_of_one(state)))
        vanished = norms == 0
        norms = frame.norms(state)
        norms = torch.where(is_round_off(chain, frame, index, norms / sizes), 0.0, norms)
        yield torch.where(vanished, math.nan, (norms / sizes).log())


def is_round_off(chain: Chain, frame: Frame, index: int, factors: Tensor) -> Tensor:
    """Whether what a step leaves of a unit cotangent is what cancellation leaves of it.

    A factor near the working precision is compared with that of a random cotangent of the same state: where the step shrinks
    everything, both are small; where the first lies in the step's null space (a mean behind a LayerNorm), only it is.

    Args:
        chain: The chain.
        frame: Its trajectories.
        index: Which segment.
        factors: ``‖J_lᵀ u‖ / ‖u‖`` of each trajectory, ``(samples,)``.
    """
    if not (factors < COARSEST).any():
        return torch.zeros_like(factors, dtype=torch.bool)
    size = sum(math.prod(shape) for shape, _ in chain.shapes(index)) // frame.samples
    precision = working_precision(chain.epsilon(index), size)
    if not ((factors > 0) & (factors < precision)).any():
        return torch.zeros_like(factors, dtype=torch.bool)
    drawn = gaussian_state(chain, index, torch.Generator("cpu").manual_seed(index))
    usual = frame.norms(_only(pull_back(chain, index, _batch_of_one(drawn))))
    return factors < precision * usual / frame.norms(drawn)


COARSEST = 0.05
"""Half precision is taken to be good for a twentieth at least; the others are far better."""


def working_precision(eps: float, size: int) -> float:
    """Return the part of a result of ``size`` terms that may be round-off: ``8 eps √n``.

    Half precision accumulates in float32 and rounds once, to ``8 eps``.
    """
    return min(8 * eps, COARSEST) if eps > 1e-4 else 8 * eps * math.sqrt(size)


def _only(columns: Cotangents) -> Cotangents:
    return [None if column is None else column[0] for column in columns]


def _batch_of_one(state: Sequence[Tensor | None]) -> Cotangents:
    return [None if column is None else column.unsqueeze(0) for column in state]


def _orthonormal(
    chain: Chain, frame: Frame, index: int, columns: Cotangents, alive: Tensor
) -> tuple[Cotangents, Tensor, Tensor]:
    """QR of each trajectory's columns of state ``index``, those that are alive.

    Returns:
        ``Q`` as columns, ``ln diag R`` as ``(samples, k)``, and which columns live on.

    A column whose part orthogonal to the earlier ones is below the working precision of the largest column has vanished:
    what is left of it is round-off. So has one more than there are dimensions, however long what is left of it.
    """
    if all(column is None for column in columns):
        return columns, torch.where(alive, -math.inf, math.nan).double(), torch.zeros_like(alive)
    # Column after column, as LAPACK wants them; padded where there are more of them than dimensions.
    matrix = as_rows(chain, frame, index, columns, least=alive.shape[1])
    # Those that are alive come first: QR makes up a direction for a zero column, which later ones would lose a part to.
    alive = alive.to(matrix.device)
    order = alive.int().sort(dim=1, descending=True, stable=True).indices
    matrix = (matrix * alive[:, :, None]).gather(1, order[:, :, None].expand_as(matrix))
    Q, R = torch.linalg.qr(matrix.mT)
    # What has come here came through the segment behind the state; at the end of the chain nothing has.
    eps = chain.epsilon(min(index + 1, len(chain)))
    least = working_precision(eps, matrix.shape[2]) * torch.linalg.vector_norm(matrix, dim=2).amax(dim=1)
    lengths = R.diagonal(dim1=-2, dim2=-1).abs().clone()
    ranks = alive.sum(dim=1)
    for sample in near_rank_threshold(R, ranks, least):
        _cut_to_rank(matrix[sample], Q[sample], R[sample], lengths[sample], int(ranks[sample]), float(least[sample]))
    logs = torch.zeros_like(lengths).double().scatter(1, order, lengths.double().log()).where(alive, math.nan)
    Q = torch.zeros_like(matrix).scatter(1, order[:, :, None].expand_as(matrix), Q.mT)
    alive = alive & (logs != -math.inf)
    return as_columns(chain, frame, index, Q * alive[:, :, None]), logs.cpu(), alive.cpu()


def _cut_to_rank(matrix: Tensor, Q: Tensor, R: Tensor, lengths: Tensor, rank: int, least: float) -> None:
    """Keep as many columns as the matrix has dimensions, the first that are independent; zero is the length of others."""
    _, B = without_round_off(R[:, :rank], least)
    leading = bool((lengths[: len(B)] > least).all())
    kept = list(range(len(B))) if leading else _independent(B, least)
    q, triangular = torch.linalg.qr(matrix[kept].T)
    lengths.zero_()
    lengths[kept] = triangular.diagonal().abs()
    Q[:, kept] = q


def _independent(B: Tensor, least: float) -> list[int]:
    """Return the columns of which more than round-off is left beside the earlier ones, as many as there are rows at most."""
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
