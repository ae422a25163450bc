"""Singular values of the chain's Jacobian ``J = J_L … J_1``, in logarithms: at depth 1,000 most leave the range of floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...engine.capture.chain import Chain
from ...engine.isolation import generator_of
from ...engine.jacobian.jvp import push_forward
from ...engine.jacobian.qr_sweep import cotangents_at_once, is_round_off, working_precision
from ...engine.jacobian.trajectories import Trajectories, factorized_on
from ...engine.jacobian.vjp import pull_back
from ...engine.linalg.bidiagonalization import bidiagonalize, spread_of_squares
from ...engine.linalg.graded_products import Graded, log_singular_values
from ...engine.linalg.numerical_rank import near_rank_threshold, without_round_off
from ...engine.runs.objective import twice_differentiable
from ...engine.runs.run import Need, Run
from ...errors import CutError
from ..measure import declare

__all__ = ["SINGULAR_VALUES", "SingularValues", "singular_values"]


DENSE = 512
"""Dimensions of the smaller end up to which all are computed. So many backward passes cost what the iterative method does."""
ROWS = 4096
"""As many trajectories are looked at as have so many columns together; one at least."""
LARGE, FEW = 2**14, 4
"""Of the iterative method: dimensions of an end up to which four trajectories are looked at, beyond only one."""
TOLERANCE = 1e-3
"""Relative error of the iterative method."""
BLOCKS, PROBES, ATTEMPTS = 100, 16, 4
"""Of the iterative method: most steps, and of the estimate of traces vectors at once and how often."""
AT_ONCE = 64
"""Vectors that are carried through autograd together where memory is not the CPU's."""


@dataclass(frozen=True, slots=True)
class SingularValues:
    """What is known of ``s_1 ≥ … ≥ s_N ≥ 0`` of each trajectory's ``J``, ``N = min(n_0, n_L)``; NaN for what is not.

    ``logs`` is ``ln s``, ``(samples, k)`` in float64 on the CPU, largest first: all N, or where both ends are large the
    leading ones; ``-inf`` for zeros. ``smallest`` is ``ln s_N``, ``rank`` how many are above the working precision, ``spread``
    the variance of ``s²`` over its squared mean, all ``(samples,)``; ``time`` is how many steps act on each trajectory, or how
    long they last.
    """

    logs: Tensor
    smallest: Tensor
    rank: Tensor
    spread: Tensor
    time: Tensor


def singular_values(trajectories: Trajectories, seed: int, wanted: int = 1) -> SingularValues:
    """Find the singular values of the whole chain's Jacobian.

    Up to 512 dimensions of one end all are computed: an orthonormal frame that spans the last state is pulled back,
    ``J_lᵀ Q_l = Q_{l-1} R_l`` (or one of the first state pushed forward), and the triangular factors are multiplied with the
    logarithms of their rows kept apart. Beyond, the extreme ones are found by bidiagonalization, to 0.1 %, and the traces that
    the spread needs are estimated.

    Args:
        trajectories: The chain and its trajectories; the first ones are looked at, with 4096 columns together.
        seed: Of the frame, and of starting vectors.
        wanted: How many leading values, where not all are computed.

    Raises:
        CutError: Products with ``J`` itself are needed and a backward pass cannot be differentiated.
    """
    first, last = trajectories.dimensions(0), trajectories.dimensions(len(trajectories.chain))
    if min(first, last) <= DENSE:
        end = last if last <= DENSE else first
        samples = min(trajectories.count, max(1, ROWS // end))
        return _all(_product_of(trajectories, samples, forward=last > DENSE), seed)
    samples = min(trajectories.count, FEW if max(first, last) <= LARGE else 1)
    return _extreme(_product_of(trajectories, samples, forward=first <= last), seed, wanted)


def _of_run(run: Run) -> SingularValues:
    return singular_values(run.trajectories, run.seed, run.recipe.exponents)


SINGULAR_VALUES = Need("singular values", _of_run, instruments=(twice_differentiable,))
"""Of the whole chain's Jacobian."""


@dataclass(frozen=True, slots=True)
class _Product:
    """``J`` as an operator on vectors of the first trajectories, applied segment by segment."""

    trajectories: Trajectories
    samples: int
    forward: bool
    """Whether it begins at the first state, by ``J``, or at the last, by ``Jᵀ``."""
    at_once: int
    """How many vectors are carried through autograd together."""

    @property
    def chain(self) -> Chain:
        return self.trajectories.chain

    @property
    def size(self) -> int:
        """Dimensions of where it begins."""
        return self.trajectories.dimensions(0 if self.forward else len(self.chain))

    @property
    def least(self) -> int:
        """Dimensions of the smallest state on the way: the rank is not larger."""
        return min(self.trajectories.dimensions(index) for index in range(len(self.chain) + 1))

    @property
    def count(self) -> int:
        """How many singular values there are."""
        return min(self.trajectories.dimensions(index) for index in (0, len(self.chain)))

    @property
    def device(self) -> torch.device:
        return factorized_on(self.chain.devices(0)[0])

    def order(self, *, forward: bool) -> Sequence[int]:
        """Return the numbers of the segments in the order in which they are applied."""
        return range(1, len(self.chain) + 1) if forward else range(len(self.chain), 0, -1)

    def step(self, index: int, rows: Tensor, *, forward: bool) -> Tensor:
        """Apply ``J_l`` or ``J_lᵀ`` to vectors ``(samples, k, n)`` in float64, as many at once as memory is good for."""
        before, after = (index - 1, index) if forward else (index, index - 1)
        parts = []
        for part in torch.split(rows, self.at_once, dim=1):
            padded = part.new_zeros(self.trajectories.count, *part.shape[1:])
            padded[: self.samples] = part
            columns = self.trajectories.as_columns(before, padded)
            found = (push_forward if forward else pull_back)(self.chain, index, columns)
            images = self.trajectories.as_rows(after, found, count=part.shape[1], dtype=torch.float64)
            parts.append(images[: self.samples].to(self.device))
        return torch.cat(parts, dim=1)

    def apply(self, rows: Tensor, *, forward: bool) -> tuple[Tensor, Tensor]:
        """Apply ``J`` or ``Jᵀ``; return unit vectors, and the logarithms of the factors ``(samples, k)``."""
        logs = rows.new_zeros(rows.shape[:2])
        for index in self.order(forward=forward):
            rows = self.step(index, rows, forward=forward)
            lengths = torch.linalg.vector_norm(rows, dim=2)
            logs = logs + lengths.log()
            rows = rows / torch.where(lengths > 0, lengths, 1.0)[:, :, None]
        return rows, logs

    def precision(self, index: int, size: int) -> float:
        """Return the part of what a segment makes of a vector that may be round-off."""
        return working_precision(self.chain.epsilon(index), size)

    def draw(self, count: int, seed: int, purpose: str, index: int | None = None) -> Tensor:
        """Draw Gaussian vectors of a state, by default of where it begins; the same for every trajectory."""
        size = self.size if index is None else self.trajectories.dimensions(index)
        drawn = torch.randn(count, size, generator=generator_of(seed, purpose), dtype=torch.float64, device="cpu")
        return drawn.to(self.device).expand(self.samples, count, size)

    def time(self) -> Tensor:
        """Return how many steps act on each trajectory, or how long they last."""
        spans = torch.tensor(self.chain.spans, dtype=torch.float64, device="cpu")
        return (self.trajectories.acting() * spans[:, None]).sum(dim=0)[: self.samples]


def _product_of(trajectories: Trajectories, samples: int, *, forward: bool) -> _Product:
    """Return the whole chain's Jacobian, of the first so many trajectories."""
    return _Product(trajectories, samples, forward, cotangents_at_once(trajectories.chain) or AT_ONCE)


# All of them -----------------------------------------------------------------------------------------------------
def _all(product: _Product, seed: int) -> SingularValues:
    logs = log_singular_values(_triangular(product, seed))
    # Zeros that stand for a larger end's surplus of dimensions are none of them.
    logs = torch.nn.functional.pad(logs, (0, product.count), value=-math.inf)[:, : product.count]
    lost = logs.isnan().any(dim=1)
    logs = torch.where(lost[:, None], math.nan, logs)
    rank = torch.where(lost, math.nan, (logs > -math.inf).sum(dim=1).double())
    squares = (2 * (logs - logs[:, :1])).exp()
    spread = product.count * squares.square().sum(dim=1) / squares.sum(dim=1).square() - 1
    return SingularValues(logs, logs[:, -1], rank, spread, product.time())


def _triangular(product: _Product, seed: int) -> Graded:
    """Carry an orthonormal basis through the chain; return the product of its triangular factors.

    The basis is drawn at random, so that the first columns of a step of rank r are those that live on.

    Source: Demmel, Dumitriu & Holtz, Numer. Math. 108, 59 (2007), for rank from a random basis and QR without pivoting.
    """
    drawn = product.draw(product.size, seed, "basis")
    Q = torch.linalg.qr(drawn[0].mT).Q.mT.expand_as(drawn)
    if product.forward:
        _check_adjoint(product, seed)
    found = Graded.identity(product.samples, product.size, product.device)
    for index in product.order(forward=product.forward):
        Q, R = _factored(product, index, Q)
        found = found.times(R)
    return found


def _factored(product: _Product, index: int, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the orthonormal rows that a step makes of orthonormal rows, and ``R``; both zero beyond a trajectory's rank."""
    images = product.step(index, Q, forward=product.forward)
    lost = ~images.isfinite().all(dim=2).all(dim=1)
    images = torch.where(lost[:, None, None], 0.0, images)
    longest = torch.linalg.vector_norm(images, dim=2).amax(dim=1)
    least = product.precision(index, max(images.shape[1:])) * longest
    if not product.forward:
        # Of the other trajectories nothing is known: they count as ordinary.
        factors = torch.nn.functional.pad(longest.cpu(), (0, product.trajectories.count - product.samples), value=1.0)
        cancelled = is_round_off(product.trajectories, index, factors)[: product.samples]
        least = torch.where(cancelled.to(least.device), math.inf, least)
    basis, R = torch.linalg.qr(images.mT)
    basis, ranks = basis.mT.contiguous(), Q.any(dim=2).sum(dim=1).clamp(max=R.shape[1])
    for sample, rank in enumerate(ranks.tolist()):
        basis[sample, rank:], R[sample, rank:] = 0.0, 0.0
    for sample in near_rank_threshold(R, ranks, least):
        basis[sample], R[sample] = _cut_to_rank(basis[sample], R[sample], float(least[sample]))
    R[lost] = math.nan
    most = max(1, int(basis.any(dim=2).sum(dim=1).max()))
    return basis[:, :most], R[:, :most]


def _cut_to_rank(basis: Tensor, R: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Drop directions that are round-off, without which ``R`` is made triangular again.

    Args:
        basis: Orthonormal rows, ``(m, n)``.
        R: Upper triangular, ``(m, k)``.
        least: Singular values not above it are round-off.
    """
    W, B = without_round_off(R, least)
    rank = len(B)
    if rank == int(R.any(dim=1).sum()):
        return basis, R
    turned, triangular = torch.linalg.qr(B)
    new_basis, new_R = torch.zeros_like(basis), torch.zeros_like(R)
    new_basis[:rank] = (W @ turned).mT @ basis
    new_R[:rank] = triangular
    return new_basis, new_R


# The extreme ones ------------------------------------------------------------------------------------------------
def _extreme(product: _Product, seed: int, wanted: int) -> SingularValues:
    start = product.draw(wanted, seed, "singular vectors")
    start = start / torch.linalg.vector_norm(start, dim=2, keepdim=True)
    _check_adjoint(product, seed)
    scale = product.apply(start, forward=product.forward)[1].amax(dim=1)
    scale = torch.where(scale > -math.inf, scale, 0.0)

    def scaled(rows: Tensor, *, forward: bool) -> Tensor:
        units, logs = product.apply(rows, forward=forward)
        return units * (logs - scale[:, None]).exp()[:, :, None]

    there = partial(scaled, forward=product.forward)
    back = partial(scaled, forward=not product.forward)
    noise = max(product.precision(index, product.size) for index in product.order(forward=True))
    if not bool(scale.isfinite().all()):
        return _unknown(product, wanted)
    found = bidiagonalize(there, back, start, wanted, tolerance=TOLERANCE, noise=noise, limit=BLOCKS)
    draw: Callable[[int], Tensor] = lambda attempt: product.draw(PROBES, seed, f"probes {attempt}")  # noqa: E731
    spread = spread_of_squares(there, back, found, draw, attempts=ATTEMPTS)
    smallest = found.smallest.log() + scale
    rank = torch.where(smallest.isnan(), math.nan, float(product.count))
    if product.least < product.count:
        smallest, rank = torch.full_like(smallest, -math.inf), torch.full_like(rank, math.nan)
    logs = found.largest.log() + scale[:, None]
    return SingularValues(logs.cpu(), smallest.cpu(), rank.cpu(), spread.cpu(), product.time())


def _unknown(product: _Product, wanted: int) -> SingularValues:
    nothing = torch.full((product.samples,), math.nan, dtype=torch.float64, device="cpu")
    return SingularValues(nothing[:, None].expand(-1, wanted), nothing, nothing, nothing, product.time())


def _check_adjoint(product: _Product, seed: int) -> None:
    """Compare ``⟨u, J_l v⟩`` with ``⟨J_lᵀ u, v⟩`` for random vectors.

    A backward pass that leaves autograd (numpy, ``.detach()``) loses its derivative without a word.
    """
    for index in product.order(forward=True):
        v = product.draw(1, seed, "tangent", index - 1)
        u = product.draw(1, seed, "probe", index)
        back = product.step(index, u, forward=False)
        difference = (product.step(index, v, forward=True) * u).sum(dim=2) - (back * v).sum(dim=2)
        allowed = (1e-3 + 16 * product.chain.epsilon(index)) * torch.linalg.vector_norm(back, dim=2)
        if bool((difference.abs() > allowed).any()):
            msg = (
                "the backward pass must be differentiable itself where both ends of the chain are large, or the last state is. "
                f"Differentiating that of step {product.chain.names[index - 1]!r} does not give its Jacobian: something on "
                "the way leaves autograd (numpy, .detach(), .data in a custom backward). Choose steps whose last state has "
                f"at most {DENSE} numbers per trajectory, or differentiable operators for the measurement."
            )
            raise CutError(msg)


@declare("spectrum", scale="log", needs=[SINGULAR_VALUES], tolerance=0.3, element="singular value")
def jacobian_singular_values(run: Run) -> list[float]:
    """Return ``s_1 ≥ s_2 ≥ …`` of ``J = J_L … J_1``, each a geometric mean over trajectories.

    All ``min(n_0, n_L)`` of them where the first or the last state has at most 512 numbers per trajectory, to about the working
    precision of each step, the smallest ones included. Where both are larger the leading ``exponents=``, to 0.1 %.

    It misleads at depth: the largest one grows with the logarithm of the width even where every random gradient keeps its length.

    Returns:
        Pure numbers, largest first; zero beyond the numerical rank of a trajectory, and below 1e-308, where ``max_ftle`` and
        ``condition_number`` still tell numbers apart; ``inf`` beyond 1e308. NaN for what the iterative method does not settle.

    Source: Saxe, McClelland & Ganguli, ICLR 2014; Pennington, Schoenholz & Ganguli, NeurIPS 2017.
    """
    return [float(value) for value in torch.exp(run[SINGULAR_VALUES].logs.mean(dim=0))]


@declare("scalar", unit="nats/step", needs=[SINGULAR_VALUES], tolerance=0.02, explained_by_growth=1)
def max_ftle(run: Run) -> float:
    """Return ``(1/L) ln σ_max(J_L … J_1)``, averaged over trajectories: what the worst cotangent grows by per step.

    Over all L steps, whatever ``warmup`` and ``alignment`` leave to other measures; per unit of time where steps have durations.
    On one trajectory it is never below ``lyapunov_max``, which is that of a random cotangent.

    It misleads as a substitute for ``lyapunov_max``: for wide, shallow nets it lies far above it, by
    ``½ [ψ(N/2) - ψ(½)] / L`` for Gaussian linear ones with ``L ≫ N``.

    Returns:
        Nats per step or unit of time; ``-inf`` where the Jacobian vanishes, NaN where the iterative method for large states does
        not settle it.

    Source: Newman, Commun. Math. Phys. 103, 121 (1986), for Gaussian products.
    """
    found = run[SINGULAR_VALUES]
    reached = found.time > 0
    return float((found.logs[reached, 0] / found.time[reached]).mean())


@declare("scalar", scale="log", needs=[SINGULAR_VALUES], tolerance=0.5)
def condition_number(run: Run) -> float:
    """Return ``κ = σ_max / σ_min`` of ``J = J_L … J_1``, a geometric mean over trajectories.

    ``σ_min`` is the smallest of all ``N = min(n_0, n_L)`` singular values, zeros included. From logarithms: it is right where
    both ends of the fraction are far outside the range of floats.

    It misleads for ReLU nets, whose product is rank deficient: it is infinite, whatever their health. Look at
    ``numerical_rank`` and ``isometry_gap``.

    Returns:
        A pure number; ``inf`` where some trajectory's product is rank deficient (a single step cuts a direction to round-off,
        or a state on the way has fewer than N numbers), and beyond 1e308: ``numerical_rank`` tells which. NaN where both end
        states have more than 512 numbers per trajectory and the smallest value is not settled.

    Source: Saxe, McClelland & Ganguli, ICLR 2014.
    """
    found = run[SINGULAR_VALUES]
    logs = torch.where(found.smallest == -math.inf, math.inf, found.logs[:, 0] - found.smallest)
    return float(logs.mean().exp())


@declare("scalar", needs=[SINGULAR_VALUES], tolerance=0.5)
def numerical_rank(run: Run) -> float:
    """Return how many singular values of ``J = J_L … J_1`` are above the working precision, averaged over trajectories.

    Judged step by step: of the directions that have come so far, those count on that the step does not cut to
    ``8 eps √n`` of the longest. A product whose singular values span thousands of nats has full rank as long as every
    step has, and a ReLU layer has not.

    It misleads as a measure of what can be learned: a direction that is 1e-30 of another counts. Look at
    ``condition_number`` and ``lyapunov_spectrum``.

    Returns:
        A number of dimensions, ``min(n_0, n_L)`` at most. NaN where both end states have more than 512 numbers per trajectory,
        unless the smallest singular value is settled: then it is full.

    Source: Demmel, Dumitriu & Holtz, Numer. Math. 108, 59 (2007), for rank from a random basis.
    """
    return float(run[SINGULAR_VALUES].rank.mean())


@declare("scalar", needs=[SINGULAR_VALUES], tolerance=0.2)
def isometry_gap(run: Run) -> float:
    """Return the variance of the squared singular values over their squared mean, averaged over trajectories.

    ``(1/N) Σ s⁴ / ((1/N) Σ s²)² - 1``, over all ``N = min(n_0, n_L)`` singular values of ``J = J_L … J_1``, zeros included:
    0 where all are equal (an isometry times any gain), N - 1 where only one is not zero. In the limit of width it is L for
    Gaussian linear layers, 2 L for ReLU ones with Gaussian weights and L with orthogonal ones; near 0 it can be for linear or
    hard-tanh layers with orthogonal weights, never for ReLU.

    It misleads once it comes near N - 1, where it says no more than that one direction outweighs all others.

    Returns:
        A pure number. NaN where the Jacobian vanishes. Where both end states have more than 512 numbers per trajectory it is an
        estimate with a standard error below 5 % of it plus 0.01, NaN where that is not reached.

    Source: Pennington, Schoenholz & Ganguli, NeurIPS 2017 (variance and mean of the spectrum of ``JJᵀ``).
    """
    return float(run[SINGULAR_VALUES].spread.mean())
