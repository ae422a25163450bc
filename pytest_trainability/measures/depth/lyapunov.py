"""Growth along the chain: of a random frame, of the loss's own cotangent, and of every recurrence."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ...engine.capture.recurrence import chain_along
from ...engine.jacobian.qr_sweep import QRSweep, qr_sweep
from ...engine.jacobian.sample_independence import find_trajectories
from ...engine.jacobian.vjp import loss_cotangent, random_cotangents
from ...engine.runs.requirements import require_loss
from ...engine.runs.run import Need, Run
from ...engine.trees import batch_size
from ...errors import CutError
from ..measure import declare

__all__ = ["LOSS_SWEEP", "RECURRENCES", "SWEEP", "exponents", "horizon"]


def _random_sweep(run: Run) -> QRSweep:
    if run.first_sweep is not None and run.recipe.exponents == 1:
        return run.first_sweep
    return qr_sweep(run.trajectories, random_cotangents(run.chain, run.recipe.exponents, run.seed))


SWEEP = Need("sweep", _random_sweep)
"""Of random cotangents, as many as exponents are asked for."""


def _sweep_of_the_loss(run: Run) -> QRSweep:
    loss = require_loss(run, "loss_log_gain")
    return qr_sweep(run.trajectories, loss_cotangent(run.chain, loss))


LOSS_SWEEP = Need("sweep of the loss", _sweep_of_the_loss)
"""Of the loss's own cotangent."""


def _exponents_of_recurrences(run: Run) -> dict[str, Tensor]:
    found = {}
    for recurrence in run.recurrences:
        if recurrence is run.recurrence:
            found[recurrence.name] = run[SWEEP].averages()[:, :1]
            continue
        try:
            chain = chain_along(recurrence)
        except CutError:
            continue
        if bool(chain.durations) != bool(run.chain.durations):
            # A time of another kind.
            continue
        trajectories, sweep = find_trajectories(chain, batch_size(run.capture.inputs), run.seed)
        sweep = sweep or qr_sweep(trajectories, random_cotangents(chain, 1, run.seed))
        found[recurrence.name] = sweep.averages()
    return found


RECURRENCES = Need("recurrences", _exponents_of_recurrences, requires=(SWEEP,))
"""Leading exponents ``(samples, 1)`` of every recurrence along time, by the name of each."""


def exponents(run: Run) -> Tensor:
    """Return the exponents of each trajectory, ``(samples, k)``."""
    return run[SWEEP].averages(run.recipe.warmup, run.recipe.alignment)


def horizon(run: Run, loss: float) -> float:
    """Return after how many steps, or how much time, a random cotangent has lost so many nats.

    It is the geometric mean over trajectories, each from its own end. Beyond the chain it is extrapolated at the trajectory's
    average rate; ``inf`` where that is not negative.
    """
    taken = run.trajectories.acting()
    averages = run[SWEEP].averages()[:, 0].tolist()
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


@declare("scalar", unit="nats", needs=[SWEEP], tolerance=0.3, explained_by_growth=1, recorded=["depth", "time"])
def log_gain(run: Run) -> float:
    """Return ``ln ‖u_0‖ / ‖u_L‖`` of a random Gaussian cotangent of the last state, averaged over trajectories.

    Returns:
        Nats; ``-inf`` where the cotangent vanishes.
    """
    return float(run[SWEEP].sums()[:, 0].mean())


@declare("scalar", unit="nats/step", needs=[SWEEP], tolerance=0.02, explained_by_growth=1, recorded=["time"])
def lyapunov_max(run: Run) -> float:
    """Return the growth of a random cotangent per step, averaged over trajectories.

    ``λ_1 = (1/L) Σ_l ln ‖u_{l-1}‖ / ‖u_l‖`` with ``u_{l-1} = J_lᵀ u_l``, over the steps that ``warmup`` and ``alignment`` leave;
    per unit of time where steps have durations (a solver's, a rollout's with ``dt``).

    This is the quenched exponent at finite depth. It is not ``(1/L) ln σ_max(J_L … J_1)``, the maximal finite-time
    exponent, which is larger, and not ``½ ln E‖u‖²``, the annealed one of mean-field theory, which it approaches as
    width grows.

    Returns:
        Nats per step or unit of time; ``-inf`` where the cotangent vanishes.

    Source: Oseledets, Trans. Moscow Math. Soc. 19, 197 (1968); Pennington, Schoenholz & Ganguli, NeurIPS 2017, for
    the annealed relative.
    """
    return float(exponents(run)[:, 0].mean())


@declare("spectrum", unit="nats/step", needs=[SWEEP], tolerance=0.05, explained_by_growth=1)
def lyapunov_spectrum(run: Run) -> list[float]:
    """Return ``λ_1 ≥ … ≥ λ_k``, averaged over trajectories.

    ``λ_i = (1/L) Σ_l ln R_l[i, i]`` from ``J_lᵀ Q_l = Q_{l-1} R_l``, with ``Q_L`` drawn at random; k is ``exponents=``.
    The average is over the steps that ``warmup`` and ``alignment`` leave, per unit of time where steps have durations.

    Returns:
        Nats per step or unit of time, in the order of the columns, which the averages over seeds are then sorted by; ``-inf``
        beyond the numerical rank of the product.

    Source: Benettin et al., Meccanica 15, 9 (1980).
    """
    means = exponents(run).mean(dim=0)
    # Sorted after the average over seeds: sorting each seed's would bias the first up and the last down.
    return [float(mean) for mean in means]


@declare("profile", unit="nats", needs=[SWEEP], tolerance=0.05, explained_by_growth=1, recorded=["depth"])
def growth_rate(run: Run) -> dict[str, float]:
    """Return ``ln ‖u_{l-1}‖ / ‖u_l‖`` for each step, averaged over trajectories.

    Returns:
        Nats by step, in program order. Each seed's sum to its log gain; a step that stochastic depth
        leaves out is averaged over the seeds that took it. ``-inf`` at a step that lets no gradient through, NaN
        for the steps before it, where none arrives.
    """
    rates = run[SWEEP].logs[:, :, 0].mean(dim=1)
    return dict(zip(run.chain.names, rates.tolist()))


@declare("profile", unit="nats/step", needs=[SWEEP], tolerance=0.05, explained_by_growth=1)
def lyapunov_history(run: Run) -> dict[str, float]:
    """Return the running average of the exponents, in the order of the sweep: from the last step that counts to each.

    At the first step that counts it is the exponent itself. What still moves there has not converged: the sequence is too short,
    or ``warmup`` and ``alignment`` are.

    Returns:
        Nats per step or unit of time, by step in program order; of further exponents as ``"STEP exponent 2"``. ``-inf`` from
        where a column vanishes on.
    """
    averages = run[SWEEP].running(run.recipe.warmup, run.recipe.alignment).nanmean(dim=1).tolist()
    counted = slice(run.recipe.warmup, len(run.chain) - run.recipe.alignment)
    return {
        name + (f" exponent {number}" if number > 1 else ""): value
        for name, values in zip(run.chain.names[counted], averages[counted])
        for number, value in enumerate(values, 1)
    }


@declare("scalar", unit="nats", needs=[LOSS_SWEEP], tolerance=0.3, explained_by_growth=1)
def loss_log_gain(run: Run) -> float:
    """Return ``ln ‖∂loss/∂x_0‖ / ‖∂loss/∂x_L‖``, averaged over trajectories that the loss reaches.

    The loss's own cotangent can be non-generic: it may lie in a subspace that grows at a smaller rate than a random
    one (Furstenberg & Kifer, Israel J. Math. 46, 12 (1983)), so that this and ``log_gain`` may differ by more than noise.

    Returns:
        Nats; ``-inf`` where the gradient vanishes, NaN where the loss has none at the last state.
    """
    reached = ~torch.isnan(run[LOSS_SWEEP].logs[-1, :, 0])
    return float(run[LOSS_SWEEP].sums()[reached, 0].mean())


FRACTION = 0.01


@declare("scalar", unit="steps", scale="log", needs=[SWEEP], tolerance=0.2, explained_by_growth=1)
def memory_horizon(run: Run) -> float:
    """Return the number of steps after which 1 % is left of a random cotangent that starts at the last state.

    It misleads where the last steps are not like the others, and for a loss whose own cotangent is not generic: compare
    ``loss_log_gain`` with ``log_gain``.

    Returns:
        Steps, or units of time where steps have durations; a fraction of a step is interpolated. Where the chain ends before, it
        is extrapolated at the rate of the exponent; ``inf`` where that is not negative.

    Source: Bengio, Simard & Frasconi, IEEE Trans. Neural Networks 5, 157 (1994).
    """
    return horizon(run, -math.log(FRACTION))


@declare("scalar", unit="steps", scale="log", needs=[SWEEP], tolerance=0.2, explained_by_growth=1)
def precision_horizon(run: Run) -> float:
    """Return the number of steps after which a random cotangent has fallen below the working precision.

    What is left is then less than the round-off of what a nearer step adds to the same weights' gradient: ``eps`` of the state's
    type, 1.2e-7 for float32.

    Returns:
        Steps, or units of time where steps have durations, as ``memory_horizon``.
    """
    eps = max(torch.finfo(dtype).eps for _, dtype in run.chain.shapes(len(run.chain)))
    return horizon(run, -math.log(eps))


@declare("profile", unit="nats/step", needs=[RECURRENCES], tolerance=0.02, explained_by_growth=1)
def recurrence_lyapunov_max(run: Run) -> dict[str, float]:
    """Return ``λ_1`` of every recurrence along time: each direction of a bidirectional layer, each layer that stands alone.

    ``lyapunov_max`` is that of one of them, which ``steps="time:NAME"`` chooses. No warm-up is left out here.

    Returns:
        Nats per step, or per unit of time where steps have durations, by recurrence; empty where the chain is along depth.
    """
    return {name: float(exponents.mean()) for name, exponents in run[RECURRENCES].items()}
