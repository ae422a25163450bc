"""The first optimizer steps on a run's batch: updates of parameters, and the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...engine.linalg.norms import norm
from ...engine.runs.common_needs import PARAMETER_GRADIENTS
from ...engine.runs.requirements import require_loss, require_trainable
from ...engine.runs.run import Need, Run, Stage
from ...engine.runs.training import Training
from ..measure import declare

__all__ = ["FIRST_UPDATES", "LOSSES", "LOSS_DROP_STEPS", "Update"]


LOSS_DROP_STEPS = 10
"""Number of optimizer steps on one batch over which ``loss_drop`` compares the loss."""


# The first step ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Update:
    """Size of one parameter and of its change in one optimizer step."""

    change: float
    """``‖Δw‖₂`` after rounding to the parameter's type; NaN if the step has made any parameter infinite or NaN."""
    size: float
    """``‖w‖₂`` before the step."""


def _first_updates(run: Run) -> dict[str, Update]:
    gradients = run[PARAMETER_GRADIENTS]
    if not gradients:
        return {}
    training = Training.of(run)
    before = {name: p.detach().clone() for name, p in training.parameters.items() if gradients[name] is not None}
    is_finite = training.step(gradients)
    # The difference of two floating-point numbers within a factor of two is exact (Sterbenz).
    changes = {n: float(norm(training.parameters[n].detach() - old)) for n, old in before.items()}
    return {n: Update(changes[n] if is_finite else math.nan, float(norm(old))) for n, old in before.items()}


FIRST_UPDATES = Need("first updates", _first_updates, Stage.RERUN, requires=(PARAMETER_GRADIENTS,))
"""An :class:`Update` by parameter name, for the first optimizer step. Frozen and unused parameters are absent."""


# The loss ---------------------------------------------------------------------------------------------------------
def _losses(run: Run) -> tuple[float, float]:
    require_loss(run, "loss_drop")
    require_trainable(run, "loss_drop")
    training = Training.of(run)
    before, loss = math.nan, training.loss()
    for step in range(LOSS_DROP_STEPS):
        before = before if step else float(loss.detach())
        if not training.step(training.objective.gradients(loss)):
            return before, math.nan
        loss = training.loss()
    return before, float(loss.detach())


LOSSES = Need("losses", _losses, Stage.RERUN)
"""The loss before and after ``LOSS_DROP_STEPS`` optimizer steps on the run's batch, with the dropout masks of the run."""


@declare("profile", scale="log", needs=[FIRST_UPDATES], tolerance=0.3, zero_by_design="update")
def update_ratio(run: Run) -> dict[str, float]:
    """Return ``‖Δw‖₂ / ‖w‖₂`` for each parameter, after one optimizer step on the run's gradients.

    The optimizer is the one that ``optimizer=`` creates; the default is AdamW with a learning rate of 1e-3. A common rule of
    thumb for weight matrices is a ratio of about 1e-3. Without a loss, the step follows the gradient of a random functional of
    the outputs.

    It misleads for parameters that are small by design (LayerScale, gates), which should change by much more than their own size;
    for Adam, whose first step moves every entry by the learning rate, however small its gradient is (down to ``eps``); and if a
    schedule starts with a lower learning rate than the optimizer's.

    Returns:
        Pure numbers by parameter name in the model's order, after rounding to the parameter's type. The ratio is 0 if rounding
        loses the step, if the gradient is zero (``gradient_classes`` reports why), and if the optimizer does not hold
        the parameter. It is NaN if the step has made any parameter infinite or NaN. Parameters whose entries are all zero
        have no ratio; they are omitted, like frozen and unused ones.

    Raises:
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.

    Source: Karpathy, CS231n notes, Neural Networks part 3 (2015), "ratio of weights:updates".
    """
    return {name: update.change / update.size for name, update in run[FIRST_UPDATES].items() if update.size > 0}


@declare("scalar", needs=[LOSSES], tolerance=0.1)
def loss_drop(run: Run) -> float:
    """Return ``(loss_0 - loss_10) / |loss_0|``: the relative decrease of the loss in ten optimizer steps on the run's batch.

    The optimizer is the one that ``optimizer=`` creates; the default is AdamW with a learning rate of 1e-3. All steps use the
    same batch and the same dropout masks, so that they minimize one function.

    It misleads as a forecast: a drop within ten steps on one batch shows that the network can fit the batch, not that it
    generalizes, and a large drop may come from the head alone. The ratio means little for a loss that starts near zero or can be
    negative: use only its sign.

    Returns:
        A pure number: 1 if the loss falls to zero, 0 if it does not change, negative if it grows. NaN if a loss or a parameter is
        not finite, or if the first loss is zero.

    Raises:
        InapplicableError: The model has no loss, or no trainable parameters.
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.
        ModelError: The model raises an exception after a step.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "overfit one batch"; the ten steps and the ratio are our
    choice.
    """
    before, after = run[LOSSES]
    return (before - after) / abs(before) if before and math.isfinite(before) and math.isfinite(after) else math.nan
