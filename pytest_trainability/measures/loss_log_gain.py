"""The chain's amplification of the real loss's gradient."""

from __future__ import annotations

import torch

from ..engine.exponents import LOSS_SWEEP
from ..engine.run import Run
from .measure import Measure


def loss_log_gain(run: Run) -> float:
    """Return ``ln ‖∂loss/∂x_0‖ / ‖∂loss/∂x_L‖``, averaged over trajectories that the loss reaches.

    The loss's own cotangent can be non-generic: it may lie in a subspace that grows at a smaller rate than a random
    one (Furstenberg & Kifer, Israel J. Math. 46, 12 (1983)), so that this and ``log_gain`` may differ by more than noise.

    Returns:
        Nats; ``-inf`` where the gradient vanishes, NaN where the loss has none at the last state.
    """
    reached = ~torch.isnan(run[LOSS_SWEEP].logs[-1, :, 0])
    return float(run[LOSS_SWEEP].sums()[reached, 0].mean())


MEASURE = Measure("loss_log_gain", "scalar", "nats", "linear", frozenset({LOSS_SWEEP}), loss_log_gain, tolerance=0.3)
