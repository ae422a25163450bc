"""How sharply the loss curves where its gradient first changes."""

from __future__ import annotations

from ..engine.curvature import LARGEST_CURVATURE
from ..engine.run import Run
from .measure import Measure


def sharpness(run: Run) -> float:
    """Return the largest eigenvalue of the loss's Hessian, ``λ_max(∂²loss/∂w²)``, over all trainable parameters together.

    It is the algebraically largest one, found by Lanczos' method from a random vector: the norm of its residual is at most a
    thousandth of it, so that some eigenvalue is as near as that, and the error is mostly about the square of that. That no
    larger one was missed is likely, not certain. The Hessian is that of the run's batch, in its mode and with its dropout masks.

    It misleads for adaptive optimizers, which do not move along the gradient; where activation functions are piecewise linear,
    whose kinks have no curvature; and where a LayerNorm is fed zeros, whose derivative is then ``1/√ε``.

    Returns:
        Loss units per squared weight. Zero where the loss is linear in the weights; NaN where the iteration has not
        converged after 100 products, or where a derivative is not finite. It is averaged over seeds by its logarithm, which
        a negative one, of a loss that curves down in all directions, does not have: the average is then NaN.

    Raises:
        InapplicableError: There is no loss or nothing to train; or the loss cannot be differentiated twice, or its second
            derivative is not symmetric.

    Source: Lanczos, J. Res. Natl. Bur. Stand. 45, 255 (1950), on products after Pearlmutter, Neural Computation 6, 147 (1994);
    Cohen et al., ICLR 2021, for the name.
    """
    return run[LARGEST_CURVATURE].value


MEASURE = Measure("sharpness", "scalar", "", "log", frozenset({LARGEST_CURVATURE}), sharpness, tolerance=0.3)
