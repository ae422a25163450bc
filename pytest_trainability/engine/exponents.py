"""Growth along the chain: of a random frame, of the loss's own cotangent, and of every recurrence."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from ..errors import CutError
from .frames import acting
from .framing import find_frame
from .products import loss_cotangent, random_cotangents
from .recurrence import chain_along
from .requirements import require_loss
from .run import Need, Run
from .sweep import Sweep, sweep
from .trees import batch_size

__all__ = ["LOSS_SWEEP", "RECURRENCES", "SWEEP", "exponents", "horizon"]


def _random_sweep(run: Run) -> Sweep:
    return sweep(run.chain, run.frame, random_cotangents(run.chain, run.recipe.exponents, run.seed))


SWEEP = Need("sweep", _random_sweep)
"""Of random cotangents, as many as exponents are asked for."""


def _sweep_of_the_loss(run: Run) -> Sweep:
    loss = require_loss(run, "loss_log_gain")
    return sweep(run.chain, run.frame, loss_cotangent(run.chain, loss))


LOSS_SWEEP = Need("sweep of the loss", _sweep_of_the_loss)
"""Of the loss's own cotangent."""


def _exponents_of_recurrences(run: Run) -> dict[str, Tensor]:
    found = {}
    for recurrence in run.recurrences:
        if recurrence is run.recurrence:
            found[recurrence.name] = run[SWEEP].averages(run.chain)[:, :1]
            continue
        try:
            chain = chain_along(recurrence)
        except CutError:
            continue
        if bool(chain.durations) != bool(run.chain.durations):
            # A time of another kind.
            continue
        frame, swept = find_frame(chain, batch_size(run.record.inputs), run.seed)
        swept = swept or sweep(chain, frame, random_cotangents(chain, 1, run.seed))
        found[recurrence.name] = swept.averages(chain)
    return found


RECURRENCES = Need("recurrences", _exponents_of_recurrences, of=(SWEEP,))
"""Leading exponents ``(samples, 1)`` of every recurrence along time, by the name of each."""


def exponents(run: Run) -> Tensor:
    """Return the exponents of each trajectory, ``(samples, k)``."""
    return run[SWEEP].averages(run.chain, run.recipe.warmup, run.recipe.alignment)


def horizon(run: Run, loss: float) -> float:
    """Return after how many steps, or how much time, a random cotangent has lost so many nats.

    It is the geometric mean over trajectories, each from its own end. Beyond the chain it is extrapolated at the trajectory's
    average rate; ``inf`` where that is not negative.
    """
    taken = acting(run.chain, run.frame)
    averages = run[SWEEP].averages(run.chain)[:, 0].tolist()
    found = []
    for sample, average in enumerate(averages):
        rates = zip(run[SWEEP].logs[:, sample, 0].tolist(), run.chain.spans, taken[:, sample].tolist())
        steps = [(rate, duration) for rate, duration, acts in rates if acts]
        found.append(_time_to_lose(loss, reversed(steps), average))
    return math.exp(sum(map(math.log, found)) / len(found))


def _time_to_lose(loss: float, steps: Iterable[tuple[float, float]], average: float) -> float:
    left, elapsed = loss, 0.0
    for rate, duration in steps:
        if rate == -math.inf:
            return elapsed + duration
        if rate < 0 and left + rate <= 0:
            return elapsed + duration * left / -rate
        left, elapsed = left + rate, elapsed + duration
    return elapsed + left / -average if average < 0 else math.inf if average >= 0 else math.nan
