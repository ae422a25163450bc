"""A measurement as plain numbers: what reports show and baselines keep."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..checks.baselines import Entry
from ..checks.bounds import Bound
from ..checks.diagnosis import diagnose, is_about_growth
from ..checks.verdicts import Value, first_outside
from ..checks.waking import waking_texts
from ..errors import TrainabilityError, UsageError
from ..measures import MEASURES, Measure
from ..records.estimates import Profile
from ..records.reports import BaselineRecord, CheckRecord, VerdictRecord
from ..records.text import format_names
from .context import Context
from .readings import recorded
from .seed_runs import SeedRuns

if TYPE_CHECKING:
    from .result import Measurement

__all__ = ["check_record", "entry"]

NOTEWORTHY = 5.0
"""Nats of log gain from which a failed plain assert is given a likely cause."""


def entry(seed_runs: SeedRuns, measures: Sequence[Measure], added: Mapping[str, str]) -> Entry:
    """Return what a baseline records of some measures.

    Args:
        samples: Where they were read.
        measures: Which.
        added: What plugins add to the environment.

    Raises:
        UsageError: They add what is the project's.
    """
    common = seed_runs.common
    environment = {
        "device": torch.device(common.device).type,
        "dtype": common.dtype,
        "platform": f"{sys.platform} {platform.machine()}",
        "torch": torch.__version__.partition("+")[0],
        # As torch is set up in this process: a worker of xdist takes its share of the cores while it measures.
        "threads": str(torch.get_num_threads()),
    }
    if taken := sorted(environment.keys() & added.keys()):
        msg = f"what plugins add to the environment must have names of its own. {taken[0]!r} is the project's."
        raise UsageError(msg)
    # Of a solver without how many steps it takes, which may differ between machines.
    chain = common.steps.description
    chain = chain if common.time is None else chain.partition(" × ")[2]
    return Entry(
        environment={**environment, **added},
        conditions={"chain": chain, "frame": common.plan.division.name, "mode": common.mode},
        seeds=common.seeds,
        draws=common.draws,
        measures={m.name: recorded(seed_runs.in_its_unit(m), seed_runs.readings[m.name]) for m in measures},
    )


def check_record(
    result: Measurement,
    seed_runs: SeedRuns,
    context: Context,
    verdicts: Sequence[VerdictRecord],
    *,
    bounded: Mapping[str, Value],
    baseline: BaselineRecord | None,
) -> CheckRecord:
    """Write a measurement and what was judged of it.

    Args:
        result: The measurement.
        samples: Where it was read.
        context: The test.
        verdicts: Those to show.
        bounded: Measures that have a bound.
        baseline: What the comparison with it has found.
    """
    growth = tuple(e.mean for e in result.growth_rate.values())
    about_growth = _is_about_growth(verdicts, result.log_gain.mean, baseline)
    return CheckRecord(
        test=context.test,
        name=context.name,
        model=result.name,
        steps=result.steps.description,
        step_names=tuple(result.growth_rate),
        frame=result.frame,
        mode=result.mode,
        device=result.device,
        dtype=result.dtype,
        seeds=result.seeds,
        asked=seed_runs.asked,
        fixed=seed_runs.recipe.fixed,
        seconds=seed_runs.seconds,
        log_gain=result.log_gain.mean,
        log_gain_low=result.log_gain.low,
        log_gain_high=result.log_gain.high,
        growth=growth,
        verdicts=tuple(verdicts),
        leaves_band=_leaves_band(seed_runs, verdicts, growth, tuple(result.growth_rate)),
        cause=tuple(diagnose(growth, seed_runs.common.facts, _not_finite(result, growth))) if about_growth else (),
        notes=result.notes,
        cautions=tuple(_cautions(result, bounded, seed_runs.waking_step)),
        reproduce=context.reproduce,
        baseline=baseline,
        along=seed_runs.common.along,
    )


def _is_about_growth(verdicts: Sequence[VerdictRecord], log_gain: float, baseline: BaselineRecord | None) -> bool:
    if baseline is not None and all(verdict.holds for verdict in verdicts):
        # What has changed, or is not recorded, is no fault of the growth.
        return False
    if verdicts:
        failed = [verdict for verdict in verdicts if not verdict.holds]
        return any(is_about_growth(v, MEASURES[v.measure].explained_by_growth, log_gain) for v in failed)
    return not abs(log_gain) < NOTEWORTHY


def _not_finite(result: Measurement, growth: Sequence[float]) -> Sequence[str]:
    """Return what holds NaN or infinity, in the order of the forward pass, where the gradient does."""
    if all(rate < math.inf for rate in growth):
        return ()
    try:
        return result.nonfinite
    except TrainabilityError:
        return ()


def _cautions(result: Measurement, bounded: Mapping[str, Value], waking_step: Profile | None) -> Iterator[str]:
    unused = result.unused_parameters
    if unused:
        count = f"{len(unused)} parameters get" if len(unused) > 1 else "1 parameter gets"
        yield f"{count} no gradient at all: {format_names(unused)}"
    yield from waking_texts({n: (MEASURES[n].zero_by_design, v) for n, v in bounded.items()}, waking_step)
    if result.steps.left_out:
        yield f"not on the chain: {result.steps.left_out}"


def _leaves_band(
    seed_runs: SeedRuns, verdicts: Sequence[VerdictRecord], growth: Sequence[float], names: Sequence[str]
) -> str:
    """Say at which step the accumulated log gain leaves the band that a failed bound gives it."""
    factors = {"log_gain": 1.0}
    if seed_runs.recipe.warmup == seed_runs.recipe.alignment == 0:
        factors["lyapunov_max"] = seed_runs.common.time or len(growth)
    for verdict in verdicts:
        if verdict.measure in factors and not verdict.holds:
            ends = (None if end is None else factors[verdict.measure] * end for end in (verdict.low, verdict.high))
            index = first_outside(growth, Bound(*ends))
            if index is not None:
                return f"at {names[index]}, {len(growth) - index} of {len(growth)} steps from the output"
    return ""
