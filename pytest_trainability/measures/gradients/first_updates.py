"""The first optimizer steps on a run's batch: updates of parameters, gradients that start at zero, and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ...engine.linalg.norms import norm, stored_values
from ...engine.runs.common_needs import PARAMETER_GRADIENTS
from ...engine.runs.requirements import require_loss, require_trainable
from ...engine.runs.run import Need, Run, Stage
from ...engine.runs.training import Gradients, Training
from ..measure import declare

__all__ = ["FIRST_UPDATES", "LOSSES", "LOSS_DROP_STEPS", "WAKING_LIMIT", "WAKING_STEPS", "Update"]


WAKING_LIMIT = 3
"""Number of optimizer steps after which a parameter whose gradient is still zero counts as asleep. Nested zeros need one step
each: in a diffusion transformer with a zero-initialized head, the gates get a gradient after step one, and the branches behind
the gates after step two."""
LOSS_DROP_STEPS = 10
"""Number of optimizer steps on one batch over which ``loss_drop`` compares the loss."""


def _is_zero(gradient: Tensor) -> bool:
    return not bool((stored_values(gradient) != 0).any())


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


# Gradients that start at zero -------------------------------------------------------------------------------------
def _waking_steps(run: Run) -> dict[str, float]:
    gradients = run[PARAMETER_GRADIENTS]
    found = {name: math.inf if _is_zero(g) else 0.0 for name, g in gradients.items() if g is not None}
    if math.inf not in found.values():
        return found
    for step, later in _gradients_after_steps(Training.of(run), gradients):
        if later is None:
            return {name: math.nan if at == math.inf else at for name, at in found.items()}
        awake = {name for name, g in later.items() if g is not None and not _is_zero(g)}
        found = {name: float(step) if at == math.inf and name in awake else at for name, at in found.items()}
        if math.inf not in found.values():
            break
    return found


def _gradients_after_steps(training: Training, gradients: Gradients) -> Iterator[tuple[int, Gradients | None]]:
    """Yield the number of each optimizer step, from 1, and the gradients after it; None once a parameter is not finite."""
    for step in range(1, WAKING_LIMIT + 1):
        if not training.step(gradients):
            yield step, None
            return
        training.draw_anew(step)
        gradients = training.objective.gradients(training.loss())
        yield step, gradients


WAKING_STEPS = Need("waking steps", _waking_steps, Stage.RERUN, requires=(PARAMETER_GRADIENTS,))
"""By parameter name, the number of optimizer steps after which the gradient is first nonzero: 0 at initialization; ``inf`` if it
is still zero after the last step; NaN if a step has made a parameter infinite or NaN. Frozen and unused parameters are absent."""


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


@declare(
    "profile", scale="log", needs=[FIRST_UPDATES], tolerance=0.3, zero_by_design="update", measured_with="waking_step"
)
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
        loses the step, if the gradient is zero (``waking_step`` reports whether by design), and if the optimizer does not hold
        the parameter. It is NaN if the step has made any parameter infinite or NaN. Parameters whose entries are all zero
        have no ratio; they are omitted, like frozen and unused ones.

    Raises:
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.

    Source: Karpathy, CS231n notes, Neural Networks part 3 (2015), "ratio of weights:updates".
    """
    return {name: update.change / update.size for name, update in run[FIRST_UPDATES].items() if update.size > 0}


@declare("profile", unit="optimizer steps", needs=[WAKING_STEPS])
def waking_step(run: Run) -> dict[str, float]:
    """Return the number of optimizer steps after which each parameter's gradient is first nonzero.

    It is 0 for a gradient that is nonzero at initialization. Where a branch, gate or head starts at zero by design (Fixup,
    ReZero, adaLN-zero, LoRA), the parameters behind it have no gradient until an optimizer step has moved it: one step for each
    zero on the way. Up to three steps are taken on the run's batch, each with its own dropout masks. The optimizer is the one
    that ``optimizer=`` creates; the default is AdamW with a learning rate of 1e-3.

    It misleads where a gradient consists of round-off (the bias of attention's keys, a bias before a BatchNorm): it is nonzero.

    Returns:
        Optimizer steps by parameter name in the model's order; ``inf`` if the gradient is zero after three steps, NaN if a step
        has made any parameter infinite or NaN. Frozen and unused parameters are omitted.

    Raises:
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.
        ModelError: The model raises an exception after a step.

    Source: Zhang, Dauphin & Ma, ICLR 2019 (Fixup); Bachlechner et al., UAI 2021 (ReZero); Peebles & Xie, ICCV 2023 (adaLN-zero).
    """
    return run[WAKING_STEPS]


@declare("names", needs=[WAKING_STEPS])
def asleep_parameters(run: Run) -> list[str]:
    """Return the trainable parameters whose gradient is zero at initialization and after three optimizer steps.

    Parameters behind a zero-initialized branch, gate or head get a gradient within these steps, and are not listed;
    ``waking_step`` reports when. The listed parameters are behind dead units, or behind a zero whose own gradient is zero, such
    as a zero before a ReLU. Parameters without a path from the loss are ``unused_parameters``, and are not listed either.

    It misleads where one batch does not use all of the model: an expert without tokens, an embedding of tokens that do not occur.

    Returns:
        Parameter names, in the model's order.

    Raises:
        UsageError: ``optimizer=`` does not create an optimizer of the parameters, or its step raises an exception.
        ModelError: The model raises an exception after a step.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), for ReLU networks that are born dead.
    """
    return [name for name, step in run[WAKING_STEPS].items() if step == math.inf]


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
