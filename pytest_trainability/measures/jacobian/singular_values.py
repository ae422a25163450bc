"""Singular values of the chain's Jacobian ``J = J_L … J_1``, as logarithms: at depth 1,000 most exceed the range of floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...engine.jacobian.chain_product import ChainProduct
from ...engine.jacobian.qr_sweep import COARSEST, is_round_off
from ...engine.jacobian.trajectories import Trajectories
from ...engine.linalg.bidiagonalization import Krylov, bidiagonalize, spread_of_squares
from ...engine.linalg.graded_products import Graded, log_singular_values
from ...engine.linalg.numerical_rank import maybe_short_of_rank, without_round_off
from ...engine.runs.objective import twice_differentiable
from ...engine.runs.run import Need, Run
from ...errors import CutError
from ..measure import declare

__all__ = ["SINGULAR_VALUES", "SPREAD", "SingularValues", "singular_values"]


DENSE = 512
"""Dimensions of the smaller end state up to which all singular values are computed. Beyond, the iterative method is cheaper."""
ROWS = 4096
"""Total number of columns of the first trajectories, to which the computation is limited; at least one trajectory is used."""
LARGE, FEW = 2**14, 4
"""Iterative method: dimensions of the larger end state up to which four trajectories are used; beyond, only one."""
TOLERANCE = 1e-3
"""Iterative method: largest relative error of a singular value."""
BLOCKS, PROBES, ATTEMPTS = 100, 16, 4
"""Iterative method: largest number of blocks. Estimate of traces: number of vectors per attempt, and of attempts."""
ITERATED, BLOCK = 64, 4
"""Number of singular values beyond which the largest one alone is computed by the iterative method, and its block size there."""


@dataclass(frozen=True, slots=True)
class SingularValues:
    """Singular values ``s_1 ≥ … ≥ s_N ≥ 0`` of each trajectory's ``J``, with ``N = min(n_0, n_L)``; NaN where unknown.

    All fields are float64 tensors on the CPU, for the first m trajectories.
    """

    logs: Tensor
    """``ln s`` of shape ``(m, k)``, largest first: all N values, or the leading ones if both end states are large; ``-inf`` for
    zeros."""
    smallest: Tensor
    """``ln s_N``, ``(m,)``."""
    rank: Tensor
    """Number of values above the working precision, ``(m,)``."""
    spread: Tensor
    """Variance of ``s²`` over its squared mean, ``(m,)``; NaN where it has not been estimated yet."""
    time: Tensor
    """Number of steps that act on each trajectory, or the time that they span, ``(m,)``."""
    subspace: _Subspace | None = None
    """What the iterative method has found, from which the spread is estimated; None where it is known."""


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest singular value of each trajectory's ``J``, for the first m trajectories, in float64 on the CPU."""

    logs: Tensor
    """``ln s_1``, ``(m,)``."""
    time: Tensor
    """Number of steps that act on each trajectory, or the time that they span, ``(m,)``."""


@dataclass(frozen=True, slots=True)
class _Subspace:
    """Bidiagonalization of ``J``, divided by ``e^scale``."""

    krylov: Krylov
    scale: Tensor
    """Nats, ``(m,)``."""


def singular_values(trajectories: Trajectories, seed: int, wanted: int = 1) -> SingularValues:
    """Compute the singular values of the whole chain's Jacobian.

    If an end state has up to 512 dimensions, all values are computed: an orthonormal frame that spans the last state is pulled
    back, ``J_lᵀ Q_l = Q_{l-1} R_l`` (or one that spans the first state is pushed forward), and the triangular factors are
    multiplied with separate logarithms for their rows. If both end states are larger, the extreme values are computed by
    bidiagonalization, to 0.1 %, and the traces for the spread are estimated.

    Args:
        trajectories: The chain and its trajectories. Only the first trajectories are used, up to 4096 columns in total.
        seed: Seed of the frame and of starting vectors.
        wanted: Number of leading values, if not all are computed.

    Returns:
        The logarithms of the singular values, largest first, with rank and spread.

    Raises:
        CutError: Products with ``J`` itself are needed, and a backward pass cannot be differentiated.
    """
    if not _all_are_computed(trajectories):
        return _extreme(_chosen(trajectories), seed, wanted)
    return _all(_chosen(trajectories), seed)


def _all_are_computed(trajectories: Trajectories) -> bool:
    return min(trajectories.dimensions(index) for index in (0, len(trajectories.chain))) <= DENSE


def _chosen(trajectories: Trajectories) -> ChainProduct:
    """Return the chain's Jacobian for the first trajectories, in the direction in which vectors are cheaper."""
    first, last = trajectories.dimensions(0), trajectories.dimensions(len(trajectories.chain))
    if _all_are_computed(trajectories):
        end = last if last <= DENSE else first
        used = min(trajectories.count, max(1, ROWS // end))
        return ChainProduct.of(trajectories, used, forward=last > DENSE)
    used = min(trajectories.count, FEW if max(first, last) <= LARGE else 1)
    return ChainProduct.of(trajectories, used, forward=first <= last)


def _of_run(run: Run) -> SingularValues:
    trajectories, seed = run.trajectories, run.seed
    if _all_are_computed(trajectories):
        return _all(_chosen(trajectories), seed)
    return _without_spread(_chosen(trajectories), seed, run.recipe.exponents)


SINGULAR_VALUES = Need("singular values", _of_run, instruments=(twice_differentiable,))
"""Singular values of the whole chain's Jacobian, without the spread where it is to be estimated."""


def _extremes_of_run(run: Run) -> SingularValues:
    if _all_are_computed(run.trajectories) or run.recipe.exponents == 1:
        return run[SINGULAR_VALUES]
    return _without_spread(_chosen(run.trajectories), run.seed, 1)


EXTREME_SINGULAR_VALUES = Need("extreme singular values", _extremes_of_run, instruments=(twice_differentiable,))
"""The same without the values between the largest and the smallest, where not all are computed: one vector suffices."""


def _largest_of_run(run: Run) -> Largest:
    if _all_are_computed(run.trajectories):
        product = _chosen(run.trajectories)
        found = _iterated(product, run.seed) if product.count > ITERATED else None
        if found is not None:
            return Largest(found, product.time())
    values = run[EXTREME_SINGULAR_VALUES]
    return Largest(values.logs[:, 0], values.time)


LARGEST_SINGULAR_VALUE = Need("largest singular value", _largest_of_run, instruments=(twice_differentiable,))
"""The :class:`Largest` singular value of the whole chain's Jacobian."""


def _spread_of_run(run: Run) -> Tensor:
    found = run[SINGULAR_VALUES]
    return found.spread if found.subspace is None else _spread(_chosen(run.trajectories), run.seed, found.subspace)


SPREAD = Need("spread of singular values", _spread_of_run, requires=(SINGULAR_VALUES,))
"""Variance of the squared singular values over their squared mean, ``(m,)``. Its estimate costs more than the extreme values."""


# All singular values --------------------------------------------------------------------------------------------------
def _all(product: ChainProduct, seed: int) -> SingularValues:
    logs = log_singular_values(_triangular(product, seed))
    # The larger end state has more dimensions than J has singular values: drop the zeros in excess.
    logs = torch.nn.functional.pad(logs, (0, product.count), value=-math.inf)[:, : product.count]
    lost = logs.isnan().any(dim=1)
    logs = torch.where(lost[:, None], math.nan, logs)
    rank = torch.where(lost, math.nan, (logs > -math.inf).sum(dim=1).double())
    squares = (2 * (logs - logs[:, :1])).exp()
    spread = product.count * squares.square().sum(dim=1) / squares.sum(dim=1).square() - 1
    return SingularValues(logs, logs[:, -1], rank, spread, product.time())


def _triangular(product: ChainProduct, seed: int) -> Graded:
    """Carry an orthonormal basis through the chain; return the product of its triangular factors.

    The basis is random. After a step of rank r, its first r columns therefore span the image, and QR needs no pivoting.

    Returns:
        The product, with the singular values of the chain's Jacobian.

    Source: Demmel, Dumitriu & Holtz, Numer. Math. 108, 59 (2007), for rank from a random basis and QR without pivoting.
    """
    drawn = product.draw(product.size, seed, "basis")
    Q = torch.linalg.qr(drawn[0].mT).Q.mT.expand_as(drawn)
    if product.forward:
        _check_adjoint(product, seed)
    found = Graded.identity(product.used, product.size, product.device)
    for index in product.order(forward=product.forward):
        Q, R = _factored(product, index, Q)
        found = found.times(R, upper=True)
    return found


def _factored(product: ChainProduct, index: int, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a step to orthonormal rows and factorize: return orthonormal rows and ``R``, both zero beyond a trajectory's rank."""
    images = product.step(index, Q, forward=product.forward)
    lost = ~images.isfinite().all(dim=2).all(dim=1)
    images = torch.where(lost[:, None, None], 0.0, images)
    longest = torch.linalg.vector_norm(images, dim=2).amax(dim=1)
    least = product.precision(index, max(images.shape[1:])) * longest
    if not product.forward:
        # The other trajectories were not computed: their factors are set to 1, which is not round-off.
        factors = torch.nn.functional.pad(longest.cpu(), (0, product.trajectories.count - product.used), value=1.0)
        cancelled = is_round_off(product.trajectories, index, factors)[: product.used]
        least = torch.where(cancelled.to(least.device), math.inf, least)
    basis, R = torch.linalg.qr(images.mT)
    basis, ranks = basis.mT.contiguous(), Q.any(dim=2).sum(dim=1).clamp(max=R.shape[1])
    for number, rank in enumerate(ranks.tolist()):
        basis[number, rank:], R[number, rank:] = 0.0, 0.0
    for number in maybe_short_of_rank(R, ranks, least):
        basis[number], R[number] = _cut_to_rank(basis[number], R[number], float(least[number]))
    R[lost] = math.nan
    most = max(1, int(basis.any(dim=2).sum(dim=1).max()))
    return basis[:, :most], R[:, :most]


def _cut_to_rank(basis: Tensor, R: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Drop directions that are round-off, and make ``R`` triangular again.

    Args:
        basis: Orthonormal rows, ``(m, n)``.
        R: Upper triangular matrix, ``(m, k)``.
        least: Largest singular value that counts as round-off.

    Returns:
        The new basis and the new ``R``, with the same shapes; rows beyond the rank are zero.
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


# Extreme singular values ----------------------------------------------------------------------------------------------
def _extreme(product: ChainProduct, seed: int, wanted: int) -> SingularValues:
    found = _without_spread(product, seed, wanted)
    return (
        found
        if found.subspace is None
        else replace(found, spread=_spread(product, seed, found.subspace), subspace=None)
    )


def _without_spread(product: ChainProduct, seed: int, wanted: int) -> SingularValues:
    wanted = min(wanted, product.count)
    scaled, found = _bidiagonalized(product, seed, wanted, wanted)
    smallest = found.smallest.log() + scaled.scale
    rank = torch.where(smallest.isnan(), math.nan, float(product.count))
    if product.least < product.count:
        smallest, rank = torch.full_like(smallest, -math.inf), torch.full_like(rank, math.nan)
    logs, unknown = found.largest.log() + scaled.scale[:, None], torch.full_like(rank, math.nan)
    return SingularValues(
        logs.cpu(), smallest.cpu(), rank.cpu(), unknown.cpu(), product.time(), _Subspace(found, scaled.scale)
    )


def _iterated(product: ChainProduct, seed: int) -> Tensor | None:
    """Return ``ln s_1`` by the iterative method, ``(used,)``; None where all singular values are needed to know it.

    That is so if the method does not converge, if the backward pass cannot be differentiated, or if a step shortens the vectors
    so much that round-off must be told from small numbers. See Note [Round-off is no direction].
    """
    try:
        scaled, found = _bidiagonalized(product, seed, BLOCK, 1)
    except CutError:
        return None
    logs = found.largest[:, 0].log() + scaled.scale
    return logs.cpu() if scaled.shortest >= COARSEST and bool(logs.isfinite().all()) else None


def _bidiagonalized(product: ChainProduct, seed: int, block: int, wanted: int) -> tuple[_Scaled, Krylov]:
    """Bidiagonalize ``J`` from a block of random vectors.

    Returns:
        The products, with their scale, and the bidiagonalization of ``J`` divided by it.

    Raises:
        CutError: A backward pass cannot be differentiated.
    """
    start = product.draw(block, seed, "singular vectors")
    noise = max(product.precision(index, product.size) for index in product.order(forward=True))
    scaled = _Scaled(product)
    found = bidiagonalize(*scaled.there_and_back(), start, wanted, tolerance=TOLERANCE, noise=noise, limit=BLOCKS)
    coarsest = max(product.chain.epsilon(index) for index in product.order(forward=True))
    if bool((found.asymmetry > _allowed_asymmetry(coarsest)).any()):
        _check_adjoint(product, seed)
    return scaled, found


class _Scaled:
    """Products with ``J`` and ``Jᵀ``, divided by ``e^scale`` so that they neither overflow nor underflow."""

    def __init__(self, product: ChainProduct, scale: Tensor | None = None) -> None:
        self._product = product
        self._scale = scale
        self.shortest = math.inf
        """Smallest factor by which a step lengthened the longest one of the first vectors."""

    @property
    def scale(self) -> Tensor:
        """Nats, ``(used,)``: the logarithm of the length of the longest one of the first products, 0 if that vanishes."""
        assert self._scale is not None, "known from the first product"
        return self._scale

    def there_and_back(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return the product in the direction in which vectors are cheaper, and its adjoint."""
        forward = self._product.forward
        return partial(self._apply, forward=forward), partial(self._apply, forward=not forward)

    def _apply(self, rows: Tensor, *, forward: bool) -> Tensor:
        """Apply ``J`` or ``Jᵀ`` to vectors ``(used, k, n)``."""
        units, factors = self._product.steps(rows, forward=forward)
        logs = factors.log().sum(dim=0)
        if self._scale is None:
            longest = logs.amax(dim=1)
            self._scale = torch.where(longest > -math.inf, longest, 0.0)
            self.shortest = float(factors.amax(dim=2).amin())
        return units * (logs - self._scale[:, None]).exp()[:, :, None]


def _spread(product: ChainProduct, seed: int, subspace: _Subspace) -> Tensor:
    there, back = _Scaled(product, subspace.scale).there_and_back()
    draw: Callable[[int], Tensor] = lambda attempt: product.draw(PROBES, seed, f"probes {attempt}")  # noqa: E731
    return spread_of_squares(there, back, subspace.krylov, draw, attempts=ATTEMPTS).cpu()


def _allowed_asymmetry(eps: float) -> float:
    return 1e-3 + 16 * eps


def _check_adjoint(product: ChainProduct, seed: int) -> None:
    """Compare ``⟨u, J_l v⟩`` with ``⟨J_lᵀ u, v⟩`` for random vectors.

    A backward pass that leaves autograd (numpy, ``.detach()``) silently has a wrong derivative.

    Raises:
        CutError: The two differ at some step.
    """
    for index in product.order(forward=True):
        v = product.draw(1, seed, "tangent", index - 1)
        u = product.draw(1, seed, "probe", index)
        back = product.step(index, u, forward=False)
        difference = (product.step(index, v, forward=True) * u).sum(dim=2) - (back * v).sum(dim=2)
        allowed = _allowed_asymmetry(product.chain.epsilon(index)) * torch.linalg.vector_norm(back, dim=2)
        if bool((difference.abs() > allowed).any()):
            msg = (
                "the backward pass must itself be differentiable where the last state or both ends of the chain are large. "
                f"The derivative of that of step {product.chain.names[index - 1]!r} is not the step's Jacobian: an operation "
                "leaves autograd (numpy, .detach() or .data in a custom backward). Choose steps whose last state has at most "
                f"{DENSE} numbers per trajectory, or differentiable operators for this measurement."
            )
            raise CutError(msg)


@declare("spectrum", scale="log", needs=[SINGULAR_VALUES], tolerance=0.3, element="singular value")
def jacobian_singular_values(run: Run) -> list[float]:
    """Return the singular values ``s_1 ≥ s_2 ≥ …`` of the chain's Jacobian ``J = J_L … J_1``.

    Each is a geometric mean over trajectories. All ``N = min(n_0, n_L)`` values are computed if the first or the last state has
    at most 512 numbers per trajectory, to about the working precision of each step, including the smallest ones. If both states
    are larger, the leading values are computed to 0.1 %, as many as the option ``exponents``.

    It misleads at depth: the largest value grows with the logarithm of the width even if every random gradient keeps its length.

    Returns:
        Pure numbers, largest first. Zero beyond the numerical rank of a trajectory and below 1e-308, and ``inf`` above 1e308;
        ``max_ftle`` and ``condition_number`` use logarithms and have no such limits. NaN if the iterative method does not
        converge.

    Raises:
        CutError: Products with ``J`` itself are needed, and a backward pass cannot be differentiated.

    Source: Saxe, McClelland & Ganguli, ICLR 2014; Pennington, Schoenholz & Ganguli, NeurIPS 2017.
    """
    return [float(value) for value in torch.exp(run[SINGULAR_VALUES].logs.mean(dim=0))]


@declare("scalar", unit="nats/step", needs=[LARGEST_SINGULAR_VALUE], tolerance=0.02, explained_by_growth=1)
def max_ftle(run: Run) -> float:
    """Return the maximal finite-time Lyapunov exponent: the growth rate of the fastest-growing cotangent.

    ``(1/L) ln σ_max(J_L … J_1)``, averaged over trajectories, over all L steps: ``warmup`` and ``alignment`` have no effect.
    If both end states have more than 64 numbers, ``σ_max`` comes from an iterative method, to 0.1 %; if that does not converge
    and a state has at most 512 numbers, from all singular values. Where steps have durations, it is per unit of time. On one
    trajectory it is at least the growth rate of a random cotangent, ``lyapunov_max``.

    It misleads as a substitute for ``lyapunov_max``. For wide, shallow networks it is far larger, for Gaussian linear ones with
    ``L ≫ N`` by ``½ [ψ(N/2) - ψ(½)] / L``.

    Returns:
        A number in nats per step or per unit of time. ``-inf`` if the Jacobian vanishes, NaN if the iterative method for large
        states does not converge.

    Raises:
        CutError: Products with ``J`` itself are needed, and a backward pass cannot be differentiated.

    Source: Newman, Commun. Math. Phys. 103, 121 (1986), for Gaussian products.
    """
    found = run[LARGEST_SINGULAR_VALUE]
    reached = found.time > 0
    return float((found.logs[reached] / found.time[reached]).mean())


@declare("scalar", scale="log", needs=[EXTREME_SINGULAR_VALUES], tolerance=0.5)
def condition_number(run: Run) -> float:
    """Return the condition number of the chain's Jacobian ``J = J_L … J_1``.

    ``κ = σ_max / σ_min``, a geometric mean over trajectories. ``σ_min`` is the smallest of all ``N = min(n_0, n_L)`` singular
    values, zeros included. The ratio is computed from logarithms, so that both values may be far outside the range of floats.

    It misleads for ReLU networks. Their Jacobians are rank deficient, so that it is infinite however trainable they are. Use
    ``numerical_rank`` and ``isometry_gap`` instead.

    Returns:
        A pure number. ``inf`` above 1e308, and if a trajectory's Jacobian is rank deficient (a single step reduces a direction to
        round-off, or a state of the chain has fewer than N numbers); ``numerical_rank`` distinguishes these cases. NaN if both
        end states have more than 512 numbers per trajectory and the smallest value does not converge.

    Raises:
        CutError: Products with ``J`` itself are needed, and a backward pass cannot be differentiated.

    Source: Saxe, McClelland & Ganguli, ICLR 2014.
    """
    found = run[EXTREME_SINGULAR_VALUES]
    logs = torch.where(found.smallest == -math.inf, math.inf, found.logs[:, 0] - found.smallest)
    return float(logs.mean().exp())


@declare("scalar", needs=[EXTREME_SINGULAR_VALUES], tolerance=0.5)
def numerical_rank(run: Run) -> float:
    """Return the number of singular values of ``J = J_L … J_1`` above the working precision, averaged over trajectories.

    It is decided step by step: a direction is lost if a step reduces it to less than ``8 eps √n`` of the longest one. The product
    of many steps of full rank therefore has full rank, even if its singular values span thousands of nats. A ReLU layer does
    not have full rank.

    It misleads as a measure of what can be learned: a direction counts even if its gradient is 1e-30 of another one's. See
    ``condition_number`` and ``lyapunov_spectrum``.

    Returns:
        A number of dimensions, at most ``min(n_0, n_L)``. If both end states have more than 512 numbers per trajectory, it is
        full if the smallest singular value converges, else NaN.

    Raises:
        CutError: Products with ``J`` itself are needed, and a backward pass cannot be differentiated.

    Source: Demmel, Dumitriu & Holtz, Numer. Math. 108, 59 (2007), for rank from a random basis.
    """
    return float(run[EXTREME_SINGULAR_VALUES].rank.mean())


@declare("scalar", needs=[SINGULAR_VALUES, SPREAD], tolerance=0.2)
def isometry_gap(run: Run) -> float:
    """Return the variance of the squared singular values over their squared mean, averaged over trajectories.

    ``(1/N) Σ s⁴ / ((1/N) Σ s²)² - 1``, over all ``N = min(n_0, n_L)`` singular values of ``J = J_L … J_1``, zeros included. It is
    0 if all are equal (an isometry times any gain), and N - 1 if only one is not zero. As width grows, it tends to L for Gaussian
    linear layers, 2 L for ReLU layers with Gaussian weights, and L for ReLU layers with orthogonal weights. Linear and hard-tanh
    layers with orthogonal weights can come near 0, ReLU layers cannot.

    It misleads near N - 1: there it only means that one direction outweighs all others.

    Returns:
        A pure number. NaN if the Jacobian vanishes. If both end states have more than 512 numbers per trajectory, it is an
        estimate with a standard error below 5 % of its value plus 0.01, or NaN if that precision is not reached.

    Raises:
        CutError: Products with ``J`` itself are needed, and a backward pass cannot be differentiated.

    Source: Pennington, Schoenholz & Ganguli, NeurIPS 2017 (variance and mean of the spectrum of ``JJᵀ``).
    """
    return float(run[SPREAD].mean())
