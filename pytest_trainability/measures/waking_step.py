"""After how many optimizer steps a parameter gets a gradient."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.updates import WAKING_STEPS
from .measure import Measure


def waking_step(run: Run) -> dict[str, float]:
    """Return the number of optimizer steps after which a parameter's gradient is first not zero.

    It is 0 where it is not zero at initialization. Where branches, gates or heads start at zero by design (Fixup, ReZero,
    adaLN-zero, LoRA), what lies behind them has no gradient until these have moved: one step per zero on the way. Up to three
    steps are taken, on the run's batch, with other dropout masks each time, by the optimizer that ``optimizer=`` makes; without
    it AdamW with a learning rate of 1e-3.

    It misleads where round-off is all there is to a gradient (the bias of a key, a bias before a BatchNorm): that is not zero.

    Returns:
        Optimizer steps by parameter name; ``inf`` where the gradient is zero after three, NaN where a step has left a
        parameter that is not finite. Frozen and unused parameters are left out.

    Raises:
        UsageError: ``optimizer=`` makes no optimizer of the parameters, or it cannot step on these gradients.
        ModelError: The model does not run after a step.

    Source: Zhang, Dauphin & Ma, ICLR 2019 (Fixup); Bachlechner et al., UAI 2021 (ReZero); Peebles & Xie, ICCV 2023 (adaLN-zero).
    """
    return run[WAKING_STEPS]


MEASURE = Measure("waking_step", "profile", "optimizer steps", "linear", frozenset({WAKING_STEPS}), waking_step)
