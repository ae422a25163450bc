"""Lyapunov exponents: growth of random cotangents and of the loss gradient along the chain, and along every recurrence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...engine.capture.recurrence import chain_along
from ...engine.jacobian.qr_sweep import QRSweep, qr_sweep, walk
from ...engine.jacobian.sample_independence import find_trajectories
from ...engine.jacobian.skips import is_multiplied_by_zero, vanishes_without_skips
from ...engine.jacobian.vjp import gaussian_state, loss_cotangent, random_cotangents
from ...engine.runs.common_needs import joint_sweep_observed
from ...engine.runs.requirements import require_loss
from ...engine.runs.run import Need, Run
from ...engine.trees import batch_size
from ...errors import CutError
from ...records.causes import CauseRecord
from ..measure import declare

__all__ = ["AROUND_ZEROS", "LOSS_SWEEP", "RECURRENCES", "SWEEP", "AroundZeros", "exponents", "horizon"]


def _random_sweep(run: Run) -> QRSweep:
    if run.first_sweep is not None and run.recipe.exponents == 1:
        return run.first_sweep
    with joint_sweep_observed(run):
        return qr_sweep(run.trajectories, random_cotangents(run.chain, run.recipe.exponents, run.seed))


SWEEP = Need("sweep", _random_sweep)
"""QR sweep of random cotangents of the last state, as many as the option ``exponents`` requests."""


def _sweep_of_the_loss(run: Run) -> QRSweep:
    loss = require_loss(run, "loss_log_gain")
    return qr_sweep(run.trajectories, loss_cotangent(run.chain, loss))


LOSS_SWEEP = Need("sweep of the loss", _sweep_of_the_loss)
"""QR sweep of one cotangent: the gradient of the loss with respect to the last state."""


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
            # One counts steps and the other one measures time.
            continue
        trajectories, sweep = find_trajectories(chain, batch_size(run.capture.inputs), run.seed)
        sweep = sweep or qr_sweep(trajectories, random_cotangents(chain, 1, run.seed))
        found[recurrence.name] = sweep.averages()
    return found


RECURRENCES = Need("recurrences", _exponents_of_recurrences, requires=(SWEEP,))
"""Leading exponents ``(trajectories, 1)`` of every recurrence along time, by its name."""


def exponents(run: Run) -> Tensor:
    """Return the exponents of each trajectory, ``(trajectories, k)``, in nats per step or per unit of time."""
    return run[SWEEP].averages(run.recipe.warmup, run.recipe.alignment)


def horizon(run: Run, nats: float) -> float:
    """Return the number of steps, or the time, after which a random cotangent has shrunk by ``exp(-nats)``.

    Each trajectory is followed back from its own last step, and the result is the geometric mean over trajectories. If a
    cotangent shrinks by less within the chain, the result is extrapolated at the trajectory's average rate; it is ``inf`` if
    that rate is not negative.
    """
    acting = run.trajectories.acting()
    averages = run[SWEEP].averages()[:, 0].tolist()
    found = []
    for number, average in enumerate(averages):
        rates = zip(run[SWEEP].logs[:, number, 0].tolist(), run.chain.spans, acting[:, number].tolist())
        steps = [(rate, duration) for rate, duration, acts in rates if acts]
        found.append(_time_to_lose(nats, reversed(steps), average))
    return math.exp(sum(map(math.log, found)) / len(found))


def _time_to_lose(nats: float, steps: Iterable[tuple[float, float]], average: float) -> float:
    remaining, elapsed = nats, 0.0
    for rate, duration in steps:
        if rate == -math.inf:
            return elapsed + duration
        if rate < 0 and remaining + rate <= 0:
            return elapsed + duration * remaining / -rate
        remaining, elapsed = remaining + rate, elapsed + duration
    return elapsed + remaining / -average if average < 0 else math.inf if average >= 0 else math.nan


@dataclass(frozen=True, slots=True)
class AroundZeros:
    """The log gain of a chain without the steps that pass nothing because a weight of theirs is zero."""

    log_gain: float
    """Of all other steps, nats, averaged over trajectories. A random cotangent starts anew in front of each step left out."""
    zeros: dict[str, tuple[str, ...]]
    """Parameters that are zero, by name of the step left out."""
    before: tuple[str, ...]
    """Trainable parameters of the steps in front of the last one that is left out."""


def _around_zeros(run: Run) -> AroundZeros | None:
    """Return the log gain without the steps that zero-initialized weights close; None if something else closes one."""
    chain, trajectories = run.chain, run.trajectories
    if chain.along != "depth":
        return None
    parameters = dict(run.capture.model.named_parameters())
    generator, sizes = torch.Generator("cpu").manual_seed(run.seed), torch.ones(trajectories.count, device="cpu")
    total, start, zeros = torch.zeros(trajectories.count, dtype=torch.float64, device="cpu"), len(chain), {}
    before: tuple[str, ...] | None = None
    while start:
        drawn: list[Tensor | None] = [column.unsqueeze(0) for column in gaussian_state(chain, start, generator)]
        for rates in walk(trajectories, drawn, sizes, start=start):
            start -= 1
            if not (rates == -math.inf).any():
                total += rates
                continue
            names = tuple(name for name, p in parameters.items() if _may_close(name, p, chain.steps[start].path))
            if not names:
                return None
            zeros[chain.names[start]] = names
            if before is None:
                modules = [earlier.module for earlier in chain.steps[:start]]
                held = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
                before = tuple(name for name, p in parameters.items() if id(p) in held)
            break
    return AroundZeros(float(total.mean()), zeros, before or ())


def _around_zeros_once(run: Run) -> AroundZeros | None:
    """Return what the first seed with a log gain of ``-inf`` finds; None where it is finite."""
    if not (run[SWEEP].sums()[:, 0] == -math.inf).any():
        return None
    return run.of_first_seed(AROUND_ZEROS.name, lambda: _around_zeros(run))


AROUND_ZEROS: Need[AroundZeros | None] = Need("log gain around zeros", _around_zeros_once, requires=(SWEEP,))
"""Log gain without the steps that zero-initialized weights close, from the first seed; None if there are none."""


def _may_close(name: str, parameter: nn.Parameter, path: str) -> bool:
    """Return whether a parameter is zero and may multiply all that passes a step: a weight or gate of it, or a gate around it."""
    if not parameter.requires_grad or bool(parameter.detach().any()):
        return False
    holder = name.rpartition(".")[0]
    is_inside = f"{holder}.".startswith(f"{path}.")
    is_around = not holder or path.startswith(f"{holder}.")
    return (parameter.dim() >= 2 and is_inside) or (parameter.numel() == 1 and (is_inside or is_around))


def _cut_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return the step behind which only paths around it carry a gradient."""
    has_skips = any(segment.passing for segment in run.chain.cut.segments)
    if run.chain.along != "depth" or not has_skips:
        return ()
    index = vanishes_without_skips(run.trajectories, run.seed)
    if index is None or is_multiplied_by_zero(run.chain, index):
        return ()
    behind, before = run.chain.names[index - 1], run.chain.names[index - 2] if index > 1 else "the inputs"
    text = (
        f"the gradient of {behind} does not reach {before}: what it reads cancels or is detached, as in a straight-through "
        "estimator without detach; only paths around it carry a gradient"
    )
    return (CauseRecord(text, is_first=True),)


CUT_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of a cut", _cut_causes)
"""Where the gradient stops that does not take a path around a step."""


@declare(
    "scalar",
    unit="nats",
    needs=[SWEEP, AROUND_ZEROS],
    tolerance=0.3,
    explained_by_growth=1,
    recorded=["depth", "time"],
    explained_by=CUT_CAUSES,
)
def log_gain(run: Run) -> float:
    """Return the logarithm of the factor by which the whole chain amplifies a random cotangent of the last state.

    ``ln ‖u_0‖ / ‖u_L‖`` with ``u_{l-1} = J_lᵀ u_l`` and a Gaussian ``u_L``, averaged over trajectories.

    It misleads where one part of the chain grows as much as another one shrinks: see ``growth_rate``. Where a zero-initialized
    weight passes nothing at first, and an optimizer can move it and all that is in front of it, bounds judge the other steps.

    Returns:
        A number in nats; ``-inf`` if the cotangent vanishes.

    Source: Schoenholz, Gilmer, Ganguli & Sohl-Dickstein, ICLR 2017, for its mean-field limit.
    """
    return float(run[SWEEP].sums()[:, 0].mean())


@declare("scalar", unit="nats/step", needs=[SWEEP], tolerance=0.02, explained_by_growth=1, recorded=["time"])
def lyapunov_max(run: Run) -> float:
    """Return the growth rate of a random cotangent per step, averaged over trajectories.

    ``λ_1 = (1/L) Σ_l ln ‖u_{l-1}‖ / ‖u_l‖`` with ``u_{l-1} = J_lᵀ u_l``. The first ``warmup`` and the last ``alignment`` steps
    are left out. Where steps have durations (an ODE solver, a rollout with ``dt``), the rate is per unit of time.

    It misleads as a substitute for other exponents. It is the quenched exponent at finite depth. The maximal finite-time
    exponent ``(1/L) ln σ_max(J_L … J_1)`` is larger (``max_ftle``). The annealed exponent of mean-field theory, from
    ``½ ln E‖u‖²``, is a different number at finite width, and the two become equal as width grows.

    Returns:
        A number in nats per step or per unit of time; ``-inf`` if the cotangent vanishes.

    Source: Oseledets, Trans. Moscow Math. Soc. 19, 197 (1968); Pennington, Schoenholz & Ganguli, NeurIPS 2017, for
    the annealed relative.
    """
    return float(exponents(run)[:, 0].mean())


@declare("spectrum", unit="nats/step", needs=[SWEEP], tolerance=0.05, explained_by_growth=1)
def lyapunov_spectrum(run: Run) -> list[float]:
    """Return the k leading Lyapunov exponents ``λ_1 ≥ … ≥ λ_k`` of the backward pass, averaged over trajectories.

    ``λ_i = (1/L) Σ_l ln R_l[i, i]`` with ``J_lᵀ Q_l = Q_{l-1} R_l``, from a random orthonormal frame ``Q_L``. The option
    ``exponents`` is k. The first ``warmup`` and the last ``alignment`` steps are left out. Where steps have durations, exponents
    are per unit of time.

    It misleads over a few steps, in which exponents do not converge: see ``lyapunov_history``.

    Returns:
        k numbers in nats per step or per unit of time. One run gives them in the order of the frame's columns; averages over
        seeds are sorted, largest first. ``-inf`` beyond the numerical rank of the product.

    Source: Benettin et al., Meccanica 15, 9 (1980).
    """
    means = exponents(run).mean(dim=0)
    # Not sorted: sorting each seed's exponents before averaging would bias the first up and the last down.
    return [float(mean) for mean in means]


@declare("profile", unit="nats", needs=[SWEEP], tolerance=0.05, explained_by_growth=1, recorded=["depth"])
def growth_rate(run: Run) -> dict[str, float]:
    """Return the logarithmic growth of a random cotangent in each step, averaged over trajectories.

    ``ln ‖u_{l-1}‖ / ‖u_l‖`` with ``u_{l-1} = J_lᵀ u_l``. The values of one seed add up to its ``log_gain``. A step that
    stochastic depth skips on some seeds is averaged over the other seeds.

    It misleads at the ends of a chain whose first or last states hold other tensors than the states between.

    Returns:
        Nats by name of the step, in program order; ``-inf`` at a step through which no gradient passes, and NaN for the steps
        before that one, which no gradient reaches.

    Source: Eckmann & Ruelle, Rev. Mod. Phys. 57, 617 (1985), for local exponents.
    """
    rates = run[SWEEP].logs[:, :, 0].mean(dim=1)
    return dict(zip(run.chain.names, rates.tolist()))


@declare("profile", unit="nats/step", needs=[SWEEP], tolerance=0.05, explained_by_growth=1)
def lyapunov_history(run: Run) -> dict[str, float]:
    """Return the running averages of the exponents, from the last averaged step back to each step.

    ``(1/(L - l)) Σ_{m>l} ln R_m[i, i]`` without ``warmup`` and ``alignment``. At the first averaged step it is the exponent. If
    it still changes there, the exponent has not converged: the chain is too short, or ``warmup`` and ``alignment`` are.

    It misleads where it looks flat over a short chain: growth with the logarithm of the length looks flat, too.

    Returns:
        Nats per step or per unit of time by name of the step, in program order, averaged over trajectories. Entries of further
        exponents are named ``"STEP exponent 2"``. ``-inf`` from the step where a cotangent vanishes back to the first step.

    Source: Benettin et al., Meccanica 15, 9 (1980).
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
    """Return the logarithm of the factor by which the whole chain amplifies the gradient of the loss.

    ``ln ‖∂loss/∂x_0‖ / ‖∂loss/∂x_L‖``, averaged over the trajectories that the loss depends on.

    It differs from ``log_gain`` where the gradient of the loss is not generic: it can lie in a subspace that grows at a smaller
    rate than a random cotangent. It misleads as a property of the model: it depends on this batch and these labels.

    Returns:
        A number in nats; ``-inf`` if the gradient vanishes, NaN if the loss has no gradient at the last state.

    Raises:
        InapplicableError: There is no loss.

    Source: Furstenberg & Kifer, Israel J. Math. 46, 12 (1983), on non-random filtrations.
    """
    reached = ~torch.isnan(run[LOSS_SWEEP].logs[-1, :, 0])
    return float(run[LOSS_SWEEP].sums()[reached, 0].mean())


FRACTION = 0.01
"""Fraction of a cotangent that remains at the memory horizon."""


@declare("scalar", unit="steps", scale="log", needs=[SWEEP], tolerance=0.2, explained_by_growth=1)
def memory_horizon(run: Run) -> float:
    """Return the number of steps after which 1 % remains of a random cotangent of the last state.

    ``min {t : ‖u_{L-t}‖ ≤ 0.01 ‖u_L‖}``, interpolated within a step, geometric mean over trajectories. If more than 1 % remains
    at the first state, it is extrapolated at the average growth rate of the chain.

    It misleads where the last steps differ from the others, and for a loss whose gradient is not generic: compare
    ``loss_log_gain`` with ``log_gain``.

    Returns:
        A number of steps, or of units of time where steps have durations; ``inf`` if it would have to be extrapolated at a growth
        rate that is not negative.

    Source: Bengio, Simard & Frasconi, IEEE Trans. Neural Networks 5, 157 (1994).
    """
    return horizon(run, -math.log(FRACTION))


@declare("scalar", unit="steps", scale="log", needs=[SWEEP], tolerance=0.2, explained_by_growth=1)
def precision_horizon(run: Run) -> float:
    """Return the number of steps after which a random cotangent of the last state has shrunk to the working precision.

    ``min {t : ‖u_{L-t}‖ ≤ eps ‖u_L‖}`` with ``eps`` of the dtype of the last state, 1.2e-7 for float32; interpolated and
    extrapolated like ``memory_horizon``. Beyond it, the contribution of a step to the gradient of tied weights is lost in the
    round-off of the contributions of later steps.

    It misleads where ``memory_horizon`` does.

    Returns:
        A number of steps, or of units of time where steps have durations; ``inf`` as for ``memory_horizon``.

    Source: Bengio, Simard & Frasconi, IEEE Trans. Neural Networks 5, 157 (1994).
    """
    eps = max(torch.finfo(dtype).eps for _, dtype in run.chain.shapes(len(run.chain)))
    return horizon(run, -math.log(eps))


@declare(
    "profile",
    unit="nats/step",
    needs=[RECURRENCES],
    tolerance=0.02,
    explained_by_growth=1,
    if_empty="the model carries no state from one time step to the next: it has no recurrence",
)
def recurrence_lyapunov_max(run: Run) -> dict[str, float]:
    """Return the leading exponent ``λ_1`` of every recurrence along time.

    Each direction of a bidirectional layer is one recurrence, and so is each recurrent layer that does not feed another one step
    by step. ``lyapunov_max`` is the exponent of one of them, which ``steps="time:NAME"`` selects. Here all steps are averaged,
    whatever ``warmup`` and ``alignment`` are.

    It misleads for recurrences that feed each other: they form one chain.

    Returns:
        Nats per step, or per unit of time where steps have durations, by name of the recurrence, averaged over trajectories.
        Empty if the chain is along depth.

    Source: as ``lyapunov_max``.
    """
    return {name: float(exponents.mean()) for name, exponents in run[RECURRENCES].items()}
