"""What the first optimizer steps on a run's batch do: to each parameter, to gradients that are zero, and to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .gradients import PARAMETER_GRADIENTS
from .requirements import require_loss, require_trainable
from .run import Need, Run, Stage
from .training import Gradients, Training
from .trees import norm, stored_values

__all__ = ["FIRST_UPDATES", "LOSSES", "LOSS_DROP_STEPS", "PROBING_STEPS", "WAKING_STEPS", "Update"]

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


FIRST_UPDATES = Need("first updates", _first_updates, Stage.AGAIN, of=(PARAMETER_GRADIENTS,))
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


WAKING_STEPS = Need("waking steps", _waking_steps, Stage.AGAIN, of=(PARAMETER_GRADIENTS,))
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


LOSSES = Need("losses", _losses, Stage.AGAIN)
"""Before and after some optimizer steps on the run's batch, with the dropout masks of the run."""
