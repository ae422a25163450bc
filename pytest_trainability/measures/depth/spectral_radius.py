"""Spectral radii: eigenvalues of the Jacobians of single steps, which map a state to one of the same shapes."""

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
"""Largest number of steps, evenly spread along the chain."""
LARGE = 256
"""Dimensions of a state up to which four trajectories are averaged; for larger states only the first one."""
DENSE = 1024
"""Dimensions up to which all eigenvalues are computed; for larger states only the largest, iteratively."""
SOUGHT, RESTARTS, TOLERANCE = 6, 100, 1e-3
"""Settings of the iterative method: number of eigenvalues (several, so that the largest is not missed), restarts, and relative
tolerance."""


def spectral_radii(trajectories: Trajectories, seed: int) -> dict[str, float]:
    """Return the spectral radius ``max |eigenvalue of J_l|`` of up to five steps, by step.

    The steps are evenly spread over those whose states before and after have the same shapes. All eigenvalues are computed up to
    1024 dimensions, beyond that the largest ones iteratively.

    Args:
        trajectories: The chain and its trajectories.
        seed: Seed of the starting vector of the iterative method.

    Returns:
        Pure numbers by step, in program order: geometric means over up to four trajectories, over one for states of more than
        256 dimensions. NaN if the iterative method does not converge.

    Source: Saad, Numerical Methods for Large Eigenvalue Problems (2011), and ARPACK by way of scipy.
    """
    chain = trajectories.chain
    if any(dtype.is_complex for _, dtype in chain.shapes(0)):
        # Not implemented: over the reals, a state of n complex numbers has 2n dimensions.
        return {}
    orders = {index: chain.order(index) for index in range(1, len(chain) + 1)}
    known = [index for index, order in orders.items() if order is not None]
    count = min(PROBES, len(known))
    chosen = [known[round(i * (len(known) - 1) / max(count - 1, 1))] for i in range(count)]
    return {chain.names[index - 1]: _radius(trajectories, index, orders[index] or (), seed) for index in chosen}


SPECTRAL_RADII = Need("spectral radii", lambda run: spectral_radii(run.trajectories, run.seed))
"""Spectral radii of up to five steps, by step."""


def _radius(trajectories: Trajectories, index: int, order: Sequence[int], seed: int) -> float:
    chain, size = trajectories.chain, trajectories.dimensions(index)
    # A step of a packed batch acts on the first samples only.
    active = chain.active[index - 1] if chain.active else None
    count = min(trajectories.count, active or trajectories.count, 4 if size <= LARGE else 1)
    if size <= DENSE:
        found = _dense(trajectories, index, order, size, count)
    else:
        found = [_iterated(trajectories, index, order, size, number, seed) for number in range(count)]
    return math.exp(sum(math.log(radius) if radius else -math.inf for radius in found) / len(found))


def _dense(trajectories: Trajectories, index: int, order: Sequence[int], size: int, count: int) -> list[float]:
    """Return the spectral radius of the first trajectories' Jacobians, all eigenvalues computed."""
    parts = [
        _pulled_back(trajectories, index, order, units.expand(trajectories.count, *units.shape))[:count]
        for units in torch.eye(size, device="cpu").chunk(-(-size // 64))
    ]
    # LAPACK would not terminate on a matrix that is not finite.
    return [
        float(torch.linalg.eigvals(jacobian).abs().max()) if bool(jacobian.isfinite().all()) else math.nan
        for jacobian in torch.cat(parts, dim=1)
    ]


def _iterated(trajectories: Trajectories, index: int, order: Sequence[int], size: int, number: int, seed: int) -> float:
    """Return the spectral radius of one trajectory's Jacobian by Arnoldi's method; NaN if it does not converge."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigs

    def apply(vector: Any) -> Any:
        rows = torch.zeros(trajectories.count, 1, size, dtype=torch.float64, device="cpu")
        rows[number, 0] = torch.from_numpy(vector.reshape(-1))
        return _pulled_back(trajectories, index, order, rows)[number, 0].numpy()

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
    """Apply ``J_lᵀ`` to vectors ``(trajectories, k, n)``, with the tensors of both states in the same order."""
    found = pull_back(trajectories.chain, index, trajectories.as_columns(index, rows))
    # In this order the tensors have the shapes of the state after the step.
    ordered = [found[i] for i in order]
    return trajectories.as_rows(index, ordered, count=rows.shape[1], dtype=torch.float64).cpu()


@declare("profile", scale="log", needs=[SPECTRAL_RADII], tolerance=0.05)
def spectral_radius(run: Run) -> dict[str, float]:
    """Return the spectral radius of the Jacobian of up to five steps, evenly spread along the chain.

    ``ρ(J_l) = max |eigenvalue of ∂x_l/∂x_{l-1}|``, for steps whose states before and after have the same shapes.

    It misleads as a substitute for ``lyapunov_max``. Only for a tied linear recurrence is it the exponential of the exponent. A
    product of matrices whose spectral radii are below one can grow (non-normal matrices, eigenvectors that turn from step to
    step), and a product of matrices with radii above one can shrink.

    Returns:
        Pure numbers by name of the step, in program order: geometric means over up to four trajectories, over one for states of
        more than 256 dimensions. Beyond 1024 dimensions they come from an iterative method, to 0.1 %, and are NaN if it does not
        converge. Empty if no step maps a state to one of the same shapes, if states are complex, or if the chain is too short
        to match the tensors of a state with those of the next.

    Source: Pascanu, Mikolov & Bengio, ICML 2013.
    """
    return run[SPECTRAL_RADII]
