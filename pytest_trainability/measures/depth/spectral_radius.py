"""Eigenvalues of single steps, whose states before and after are of one kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine.isolation import generator_of
from ...engine.jacobian.trajectories import Trajectories
from ...engine.jacobian.vjp import pull_back
from ...engine.runs.run import Need, Run
from ..measure import declare

__all__ = ["SPECTRAL_RADII", "spectral_radii"]


PROBES = 5
"""So many steps at most, evenly spread, are looked at."""
LARGE = 256
"""Dimensions of a state up to which four trajectories are looked at, beyond only one."""
DENSE = 1024
"""Dimensions up to which all eigenvalues are computed."""
SOUGHT, RESTARTS, TOLERANCE = 6, 100, 1e-3
"""Of the iterative method beyond: eigenvalues, so that none of the largest is missed, attempts, and relative error."""


def spectral_radii(trajectories: Trajectories, seed: int) -> dict[str, float]:
    """Return the largest modulus of the eigenvalues of some steps' Jacobians, by step.

    Up to five steps are taken, evenly spread along the chain, of those whose states before and after have the same shapes;
    of each the geometric mean over up to four trajectories, one where there are more than 256 dimensions. All eigenvalues are
    computed up to 1024 dimensions, beyond that the largest iteratively; NaN where that does not converge.

    Source: Saad, Numerical Methods for Large Eigenvalue Problems (2011), and ARPACK by way of scipy.
    """
    chain = trajectories.chain
    if any(dtype.is_complex for _, dtype in chain.shapes(0)):
        # Over the reals, a state of n complex numbers has 2n dimensions; not done.
        return {}
    orders = {index: chain.order(index) for index in range(1, len(chain) + 1)}
    known = [index for index, order in orders.items() if order is not None]
    count = min(PROBES, len(known))
    chosen = [known[round(i * (len(known) - 1) / max(count - 1, 1))] for i in range(count)]
    return {chain.names[index - 1]: _radius(trajectories, index, orders[index] or (), seed) for index in chosen}


SPECTRAL_RADII = Need("spectral radii", lambda run: spectral_radii(run.trajectories, run.seed))
"""By step, of some along the chain."""


def _radius(trajectories: Trajectories, index: int, order: Sequence[int], seed: int) -> float:
    chain, size = trajectories.chain, trajectories.dimensions(index)
    # The first samples are those that a packed sequence's step acts on.
    active = chain.active[index - 1] if chain.active else None
    samples = min(trajectories.count, active or trajectories.count, 4 if size <= LARGE else 1)
    if size <= DENSE:
        found = _dense(trajectories, index, order, size, samples)
    else:
        found = [_iterated(trajectories, index, order, size, sample, seed) for sample in range(samples)]
    return math.exp(sum(math.log(radius) if radius else -math.inf for radius in found) / len(found))


def _dense(trajectories: Trajectories, index: int, order: Sequence[int], size: int, samples: int) -> list[float]:
    """Return the spectral radius of the first trajectories' Jacobians, from all their columns."""
    parts = [
        _pulled_back(trajectories, index, order, units.expand(trajectories.count, *units.shape))[:samples]
        for units in torch.eye(size, device="cpu").chunk(-(-size // 64))
    ]
    # Of what is not finite LAPACK would look for eigenvalues for ever.
    return [
        float(torch.linalg.eigvals(jacobian).abs().max()) if bool(jacobian.isfinite().all()) else math.nan
        for jacobian in torch.cat(parts, dim=1)
    ]


def _iterated(trajectories: Trajectories, index: int, order: Sequence[int], size: int, sample: int, seed: int) -> float:
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigs

    def apply(vector: Any) -> Any:
        rows = torch.zeros(trajectories.count, 1, size, dtype=torch.float64, device="cpu")
        rows[sample, 0] = torch.from_numpy(vector.reshape(-1))
        return _pulled_back(trajectories, index, order, rows)[sample, 0].numpy()

    generator = generator_of(seed, "eigenvector")
    start = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").numpy()
    image = torch.from_numpy(apply(start))
    if not bool(image.isfinite().all()):
        return math.nan
    if not bool(image.any()):
        return 0.0
    operator = LinearOperator((size, size), matvec=apply, dtype="float64")
    try:
        values = eigs(
            operator, SOUGHT, which="LM", v0=start, tol=TOLERANCE, maxiter=RESTARTS, return_eigenvectors=False
        )
    except ArpackError:
        return math.nan
    return float(abs(values).max())


def _pulled_back(trajectories: Trajectories, index: int, order: Sequence[int], rows: Tensor) -> Tensor:
    """Apply ``J_lᵀ`` to vectors ``(samples, k, n)``; the tensors of the state before are put in the order of those after."""
    found = pull_back(trajectories.chain, index, trajectories.as_columns(index, rows))
    # In that order they have the shapes of the state after.
    ordered = [found[i] for i in order]
    return trajectories.as_rows(index, ordered, count=rows.shape[1], dtype=torch.float64).cpu()


@declare("profile", scale="log", needs=[SPECTRAL_RADII], tolerance=0.05)
def spectral_radius(run: Run) -> dict[str, float]:
    """Return ``ρ(J_l) = max |eigenvalue of ∂x_l/∂x_{l-1}|`` at up to five steps, evenly spread along the chain.

    Of a tied linear recurrence it is the exponential of the exponent. Of any other it is not: a product of matrices whose
    spectral radii are below one may grow (non-normal matrices; ones whose eigenvectors turn), and one of matrices above one
    may shrink. It says where a recurrence stands, ``lyapunov_max`` where it goes.

    Returns:
        A pure number by step, the geometric mean over up to four trajectories, one for states of more than 256 dimensions; beyond
        1024 from an iterative method, to 0.1 %, NaN where it does not converge. Empty where no step maps a state to one of the
        same shape, or the chain is too short to tell which of a state's tensors is which.

    Source: Pascanu, Mikolov & Bengio, ICML 2013.
    """
    return run[SPECTRAL_RADII]
