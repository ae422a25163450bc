"""What the first optimizer steps on a run's batch do: to each parameter, to gradients that are zero, and to the loss."""

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

__all__ = ["FIRST_UPDATES", "LOSSES", "LOSS_DROP_STEPS", "PROBING_STEPS", "Update", "WAKING_STEPS"]


PROBING_STEPS = 3
"""Optimizer steps after which a gradient that is still zero counts as asleep. Zeros behind zeros wake one after the other: the
gates of a diffusion transformer at step one, for its head is zero, and what lies behind the gates at step two."""
LOSS_DROP_STEPS = 10
"""Optimizer steps on one batch over which the loss is to fall."""


def _is_zero(gradient: Tensor) -> bool:
    return not bool((stored_values(gradient) != 0).any())


# The first step ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step has done to one parameter."""

    change: float
    """``‖Δw‖₂``, of what rounding has left of it; NaN where the step has left some parameter that is not finite."""
    size: float
    """``‖w‖₂`` before the step."""


def _first_updates(run: Run) -> dict[str, Update]:
    gradients = run[PARAMETER_GRADIENTS]
    if not gradients:
        return {}
    training = Training.of(run)
    before = {name: p.detach().clone() for name, p in training.parameters.items() if gradients[name] is not None}
    taken = training.step(gradients)
    # Of two neighbors of one type the difference is of that type, too, and exact (Sterbenz).
    changes = {n: float(norm(training.parameters[n].detach() - old)) for n, old in before.items()}
    return {n: Update(changes[n] if taken else math.nan, float(norm(old))) for n, old in before.items()}


FIRST_UPDATES = Need("first updates", _first_updates, Stage.RERUN, requires=(PARAMETER_GRADIENTS,))
"""By parameter, of the first optimizer step. Frozen and unused parameters are absent."""


# Zeros by design --------------------------------------------------------------------------------------------------
def _waking_steps(run: Run) -> dict[str, float]:
    gradients = run[PARAMETER_GRADIENTS]
    found = {name: math.inf if _is_zero(g) else 0.0 for name, g in gradients.items() if g is not None}
    if math.inf not in found.values():
        return found
    for step, later in _probed(Training.of(run), gradients):
        if later is None:
            return {name: math.nan if at == math.inf else at for name, at in found.items()}
        awake = {name for name, g in later.items() if g is not None and not _is_zero(g)}
        found = {name: float(step) if at == math.inf and name in awake else at for name, at in found.items()}
        if math.inf not in found.values():
            break
    return found


def _probed(training: Training, gradients: Gradients) -> Iterator[tuple[int, Gradients | None]]:
    """Yield the number of each optimizer step and the gradients after it; None once a parameter is not finite."""
    for step in range(1, PROBING_STEPS + 1):
        if not training.step(gradients):
            yield step, None
            return
        training.draw_anew(step)
        gradients = training.objective.gradients(training.loss())
        yield step, gradients


WAKING_STEPS = Need("waking steps", _waking_steps, Stage.RERUN, requires=(PARAMETER_GRADIENTS,))
"""By parameter, after how many optimizer steps its gradient is not zero: 0 at initialization; ``inf`` where it still is
after the last one, NaN where that could not be told for a parameter that is not finite. Frozen and unused ones are absent."""


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
"""Before and after some optimizer steps on the run's batch, with the dropout masks of the run."""


@declare(
    "profile", scale="log", needs=[FIRST_UPDATES], tolerance=0.3, zero_by_design="update", measured_with="waking_step"
)
def update_ratio(run: Run) -> dict[str, float]:
    """Return ``‖Δw‖ / ‖w‖`` for each parameter, of one step of the optimizer on the run's gradients.

    The optimizer is what ``optimizer=`` makes; without it AdamW with a learning rate of 1e-3. About 1e-3 is the usual rule for
    weight matrices. Without a loss the step is one on a random functional of the outputs.

    It misleads for parameters that are small by design (LayerScale, gates), which are to move by much more than they are; for
    Adam, whose first step has the learning rate's length in every entry, however small the gradient (down to its ``eps``);
    and where a schedule starts lower than the optimizer does.

    Returns:
        Pure numbers by parameter name, of what rounding has left of the step: 0 where the step is lost in the parameter's type,
        where the gradient is zero (``waking_step`` tells whether by design), and where the optimizer does not hold it. NaN
        where the step has left anything that is not finite. A parameter that is all zeros has no ratio and is left out, as are
        frozen and unused ones.

    Raises:
        UsageError: ``optimizer=`` makes no optimizer of the parameters, or it cannot step on these gradients.

    Source: Karpathy, CS231n notes, Neural Networks part 3 (2015), "ratio of weights:updates".
    """
    return {name: update.change / update.size for name, update in run[FIRST_UPDATES].items() if update.size > 0}


@declare("profile", unit="optimizer steps", needs=[WAKING_STEPS])
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


@declare("names", needs=[WAKING_STEPS])
def asleep_parameters(run: Run) -> list[str]:
    """Return the trainable parameters whose gradient is zero at initialization and after three optimizer steps.

    Parameters that start behind a zero which is meant to move (a zero-initialized branch, gate or head) wake by then, and are
    not among them; ``waking_step`` says when. What is left lies behind dead units, or behind a zero that has no gradient
    itself, such as a zero in front of a ReLU. Parameters that no path leads to are ``unused_parameters``, and not listed here.

    It misleads where one batch does not reach all of the model: an expert that no token is sent to, an embedding of kinds that do
    not occur.

    Returns:
        Parameter names, in the model's order.

    Raises:
        UsageError: ``optimizer=`` makes no optimizer of the parameters, or it cannot step on these gradients.
        ModelError: The model does not run after a step.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), for ReLU networks that are born dead.
    """
    return [name for name, step in run[WAKING_STEPS].items() if step == math.inf]


@declare("scalar", needs=[LOSSES], tolerance=0.1)
def loss_drop(run: Run) -> float:
    """Return ``(loss_0 - loss_10) / |loss_0|``: by which part the loss falls in ten optimizer steps on the run's batch.

    The optimizer is what ``optimizer=`` makes; without it AdamW with a learning rate of 1e-3. All steps see the same batch and
    the same dropout masks, so that it is one function that is to fall.

    It misleads as a forecast: ten steps on one batch say that the network can fit it, not that it generalizes, and a large drop
    may be the head alone. A loss that can be negative or starts near zero has no natural unit: look at the sign.

    Returns:
        A pure number: 1 where the loss falls to zero, 0 where it stays, negative where it grows. NaN where the loss or a
        parameter is not finite, or the first loss is zero.

    Raises:
        InapplicableError: There is no loss, or nothing to train.
        UsageError: ``optimizer=`` makes no optimizer of the parameters, or it cannot step on these gradients.
        ModelError: The model does not run after a step.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "overfit one batch"; ten steps and the unit are our choice.
    """
    before, after = run[LOSSES]
    return (before - after) / abs(before) if before and math.isfinite(before) and math.isfinite(after) else math.nan
