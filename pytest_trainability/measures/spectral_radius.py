"""How large the eigenvalues of the recurrent Jacobian are along the trajectory."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.spectra import SPECTRAL_RADII
from .measure import Measure


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


MEASURE = Measure("spectral_radius", "profile", "", "log", frozenset({SPECTRAL_RADII}), spectral_radius, tolerance=0.05)
