"""A measurement as plain data: the record that reports show, and the entry that baselines store.

No measure is read here. Every number that is written is already known, unless a baseline was not expected: then initial values
and operations are read first.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from ..checks.baseline_entries import CUSTOM_FUNCTIONS, CUT_OFF, OUTPUT, Entry
from ..checks.bounds import Bound
from ..checks.class_changes import CLASSES
from ..checks.copy_changes import copy_rows
from ..checks.diagnosis import diagnose, is_about_growth
from ..checks.initial_values import initial_rows
from ..checks.judged_elements import BY_PARAMETER, not_judged_texts
from ..checks.module_changes import folded_modules
from ..checks.operation_changes import operation_rows
from ..checks.setting_changes import setting_rows
from ..checks.table_changes import table_rows
from ..checks.verdicts import Value, first_outside
from ..engine.runs.description import Ensemble
from ..engine.runs.finiteness import faults, remarks
from ..errors import UsageError
from ..init.description import ModelDescription
from ..measures import MEASURES, Measure
from ..records.estimates import Estimate, Names, Profile, value_text
from ..records.gradient_classes import DEAD
from ..records.reports import BaselineRecord, CheckRecord, CureRecord, VerdictRecord
from ..records.tensors import Projections
from ..records.text import format_finite, format_names, format_number
from .context import Context
from .readings import recorded
from .seed_runs import SeedRuns
from .values import details

__all__ = [
    "DEAD_UNITS",
    "NOT_FINITE",
    "check_record",
    "entry",
    "explained_by_measures",
    "is_caused_by_growth",
    "with_settings",
]

DEAD_UNITS = "dead_fraction"
"""Measure that is asked for the cause where a function of each entry passes no gradient."""
NOT_FINITE = "nonfinite"
"""Measure that is asked for the first value that is not finite, whatever has failed."""
NOT_LISTED = frozenset(
    ("log_gain", "growth_rate", "unused_parameters", "gradient_classes", "untrained_fraction", "nonfinite")
)
"""Measures of every run whose values other parts of a report show."""
UNUSED, ASLEEP = "unused_parameters", "asleep_parameters"
"""Measures that are asked for the cause where parameters have lost their gradient since a baseline, or where it is zero now."""
NOTEWORTHY = 5.0
"""Absolute log gain, in nats, from which a record without verdicts names a likely cause: the test may fail by a plain assert."""


def entry(seed_runs: SeedRuns, measures: Sequence[Measure], added: Mapping[str, str]) -> Entry:
    """Return the entry that a baseline stores.

    Args:
        seed_runs: Runs that have read the measures. Initial values and operations are read again unless they are known.
        measures: Measures to store.
        added: Keys that plugins add to the environment.

    Raises:
        UsageError: A key of a plugin is one of the project's own, or the model has changed since the first run.
    """
    common = seed_runs.common
    environment = {
        "device": torch.device(common.device).type,
        "dtype": common.dtype,
        "platform": f"{sys.platform} {platform.machine()}",
        "torch": torch.__version__.partition("+")[0],
        # The setting of this process: an xdist worker uses its share of the cores while it measures.
        "threads": str(torch.get_num_threads()),
    }
    if taken := sorted(environment.keys() & added.keys()):
        msg = (
            "keys that plugins add to the environment must differ from the project's own. "
            f"pytest_trainability_environment returned {taken[0]!r}. Rename it."
        )
        raise UsageError(msg)
    # The number of steps of an ODE solver may differ between machines.
    chain = common.steps.description
    chain = chain if common.time is None else chain.partition(" × ")[2]
    descriptions = seed_runs.descriptions()
    return Entry(
        environment={**environment, **added},
        conditions={"chain": chain, "frame": common.plan.division.name, "mode": common.mode, **_code(common)},
        seeds=common.seeds,
        draws=common.draws,
        measures={m.name: recorded(seed_runs.with_unit_of_chain(m), _stored(seed_runs, m)) for m in measures},
        initial=initial_rows([{n: (d.shapes[n], v) for n, v in d.values.items()} for d in descriptions]),
        modules=folded_modules(descriptions[0].modules),
        copies=copy_rows([description.copies for description in descriptions]),
        operations=operation_rows(seed_runs.operations()),
        tables=table_rows([_tables(d, p) for d, p in zip(descriptions, seed_runs.projections())]),
    )


def _tables(description: ModelDescription, projections: Mapping[str, Projections]) -> dict[str, Projections]:
    """Return the projections of the tensors whose entries have places: all but constants and single numbers."""
    constants = {name for name, found in description.values.items() if found.is_constant}
    return {name: p for name, p in projections.items() if name not in constants and math.prod(p.shape) > 1}


def _code(common: Ensemble) -> dict[str, str]:
    """Return facts about the code that operations and constants do not show."""
    code = common.code
    found = {
        OUTPUT: code.output,
        CUSTOM_FUNCTIONS: ", ".join(code.custom_functions),
        CUT_OFF: ", ".join(code.cut_off),
    }
    return {name: text for name, text in found.items() if text}


def with_settings(found: Entry, seed_runs: SeedRuns) -> Entry:
    """Return an entry with the constants in the code of modules, which one more run of the first seeds finds.

    Args:
        found: The entry.
        seed_runs: The runs that it describes.
    """
    return replace(found, settings=setting_rows(rows) if (rows := seed_runs.settings()) else None)


def _stored(seed_runs: SeedRuns, m: Measure) -> Sequence[Any]:
    """Return the readings of a measure as a baseline stores them: round-off of gradients that are zero by algebra is zero."""
    readings, classes = seed_runs.readings[m.name], seed_runs.gradient_classes
    if m.zero_by_design not in BY_PARAMETER or classes is None:
        return readings
    return [
        {name: 0.0 if classes.is_round_off(name, seed) else value for name, value in reading.items()}
        for seed, reading in enumerate(readings)
    ]


def check_record(
    seed_runs: SeedRuns,
    name: str,
    context: Context,
    verdicts: Sequence[VerdictRecord],
    *,
    bounded: Mapping[str, Value],
    baseline: BaselineRecord | None,
    cures: Sequence[CureRecord] = (),
    asserted: bool = False,
) -> CheckRecord:
    """Return the record of a measurement and its verdicts.

    Args:
        seed_runs: Runs that have read at least ``log_gain``, ``growth_rate`` and ``unused_parameters``.
        name: Name of the model.
        context: The test.
        verdicts: Verdicts to show.
        bounded: Values of the measures that have bounds.
        baseline: Result of the comparison with the baseline, if there was one.
        cures: Changes that bring what has failed inside its bounds.
        asserted: Whether the test has read a value.
    """
    common, values = seed_runs.common, seed_runs.values
    log_gain, growth_rate = cast("Estimate", values["log_gain"]), cast("Profile", values["growth_rate"])
    growth = tuple(element.mean for element in growth_rate.values())
    about_growth = is_caused_by_growth(verdicts, seed_runs, baseline)
    failed = [*(verdict.measure for verdict in verdicts if not verdict.holds), *explained_by_measures(baseline)]
    nonfinite = tuple(cast("Names", values.get("nonfinite", ())))
    of_gradients = tuple(_remarks_on_gradients(seed_runs, bounded))
    # Biases that a softmax or a normalization cancels are in most transformers, and nothing can be done about them.
    are_harmless = seed_runs.gradient_classes is not None and seed_runs.gradient_classes.are_harmless()
    return CheckRecord(
        test=context.test,
        name=context.name,
        model=name,
        steps=common.steps.description,
        step_names=tuple(growth_rate),
        frame=common.plan.division.name,
        mode=common.mode,
        device=common.device,
        dtype=common.dtype,
        seeds=common.seeds,
        seeds_requested=common.seeds if common.interrupted else seed_runs.seeds_requested,
        fixed=seed_runs.recipe.fixed,
        seconds=seed_runs.seconds,
        log_gain=log_gain.mean,
        log_gain_low=log_gain.low,
        log_gain_high=log_gain.high,
        log_gain_finite=format_finite(log_gain.values),
        log_gain_spread=log_gain.spread,
        gradient_of=common.gradient_of,
        asserted=asserted,
        readings=tuple((n, value_text(v)) for n, v in values.items() if n not in NOT_LISTED and n not in bounded),
        growth=growth,
        verdicts=tuple(verdicts),
        leaves_band=_leaves_band(seed_runs, verdicts, growth, tuple(growth_rate)),
        cause=_cause(seed_runs, growth_rate, nonfinite, failed, about_growth=about_growth),
        cures=tuple(cures),
        notes=(*common.notes, *of_gradients) if are_harmless else common.notes,
        cautions=(
            *_cautions(seed_runs, () if are_harmless else of_gradients),
            *(() if baseline is None else baseline.remarks),
        ),
        reproduce=context.reproduce,
        baseline=baseline,
        along=common.along,
        lists=tuple(_lists(seed_runs)),
        file=context.file,
        line=context.line,
        **(details(seed_runs) if context.detailed else {}),
    )


def _lists(seed_runs: SeedRuns) -> Iterator[tuple[str, ...]]:
    """Yield all names that notes on gradients shorten, those without any gradient first."""
    unused = cast("Names", seed_runs.values["unused_parameters"])
    if len(unused) > 1:
        yield ("no gradient at all", *unused)
    classes = seed_runs.gradient_classes
    by_label = {} if classes is None else classes.by_label()
    yield from ((label, *names) for label, names in by_label.items() if len(names) > 1)


def _cause(
    seed_runs: SeedRuns, growth_rate: Profile, nonfinite: Sequence[str], failed: Sequence[str], *, about_growth: bool
) -> tuple[str, ...]:
    """Return lines on the likely cause: the first value that is not finite, growth along the chain, then other causes.

    An output or a loss that is not finite comes first, unless a value before it is known not to be.

    Args:
        seed_runs: Runs of all seeds.
        growth_rate: Growth rate of each step.
        nonfinite: The names of the measure ``nonfinite``; empty if it was not read.
        failed: Names of the measures whose bounds do not hold.
        about_growth: Whether growth along the chain can have caused the failure.
    """
    common = seed_runs.common
    origin = [cause.text for cause in seed_runs.causes.get(NOT_FINITE, ())]
    before = [name for name in nonfinite if not name.startswith(("gradient of ", "output")) and name != "loss"]
    at_end = faults(common.not_finite)
    of_growth: list[str] = []
    if about_growth or (before and at_end and not origin):
        growth = [element.mean for element in growth_rate.values()]
        of_growth = diagnose(growth, tuple(growth_rate), seed_runs.factors or (), before, along=common.along)
    if origin:
        return (*(() if before else at_end), *origin, *of_growth)
    if before:
        return tuple(of_growth)
    asked = dict.fromkeys((*failed, *([DEAD_UNITS] if of_growth else ())))
    causes = [cause for name in asked for cause in seed_runs.causes.get(name, ()) if cause.text]
    first, others = ([cause.text for cause in causes if cause.is_first is now] for now in (True, False))
    return tuple(dict.fromkeys([*at_end, *(() if at_end else first), *of_growth, *(() if at_end else others)]))


def explained_by_measures(baseline: BaselineRecord | None) -> list[str]:
    """Return the measures that are asked for the cause of changes since a baseline: of gradients that are gone or zero.

    Args:
        baseline: The comparison; None if there was none.
    """
    changes = () if baseline is None or baseline.holds else baseline.changes
    asked = [UNUSED] if any((change.measure, change.kind) == (UNUSED, "new") for change in changes) else []
    are_dead = any(change.measure == CLASSES and change.new_text == DEAD for change in changes)
    return [*asked, *([ASLEEP] if are_dead else [])]


def is_caused_by_growth(
    verdicts: Sequence[VerdictRecord], seed_runs: SeedRuns, baseline: BaselineRecord | None
) -> bool:
    """Return whether growth along the chain can have caused a failure.

    Args:
        verdicts: The verdicts. Without any, the test may fail by a plain assertion.
        seed_runs: Runs that have read ``log_gain``.
        baseline: Result of the comparison with the baseline, if there was one.
    """
    log_gain = cast("Estimate", seed_runs.values["log_gain"]).mean
    not_finite = seed_runs.causes.get(NOT_FINITE)
    if not_finite:
        # Growth up to the first value that is not finite explains an overflow, and no other operation that fails.
        return any(cause.is_growth for cause in not_finite)
    if baseline is not None and all(verdict.holds for verdict in verdicts):
        # The failure, if any, is a change from the baseline.
        return False
    if verdicts:
        failed = [verdict for verdict in verdicts if not verdict.holds]
        # The verdict on an initialization contract is that of no measure.
        of_measures = [(v, MEASURES[v.measure]) for v in failed if v.measure in MEASURES]
        of_states = any(cause.is_growth for v in failed for cause in seed_runs.causes.get(v.measure, ()))
        return of_states or any(is_about_growth(v, m.explained_by_growth, log_gain) for v, m in of_measures)
    return not abs(log_gain) < NOTEWORTHY


def _cautions(seed_runs: SeedRuns, of_gradients: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each thing that the verdicts do not cover, first those on outputs that are not finite.

    Args:
        seed_runs: Runs of all seeds.
        of_gradients: Remarks on the classes of gradients.
    """
    if seed_runs.common.interrupted:
        drawn, requested = len(seed_runs.common.seeds), len(seed_runs.seeds_requested)
        yield f"interrupted after {drawn} of {requested} seeds: no bound was judged"
    yield from remarks(seed_runs.common.not_finite)
    if seed_runs.caution:
        yield seed_runs.caution
    unused, left_out = cast("Names", seed_runs.values["unused_parameters"]), seed_runs.common.steps.left_out
    if unused:
        count = f"{len(unused)} parameters get" if len(unused) > 1 else "1 parameter gets"
        yield f"{count} no gradient at all: {format_names(unused)}"
    yield from of_gradients
    yield from seed_runs.common.cautions
    if left_out:
        yield f"not on the chain: {left_out}"


def _remarks_on_gradients(seed_runs: SeedRuns, bounded: Mapping[str, Value]) -> Iterator[str]:
    """Yield the numbers of parameters by class, and which of them bounds do not judge."""
    classes = seed_runs.gradient_classes
    zero_by_design = {name: (MEASURES[name].zero_by_design, value) for name, value in bounded.items()}
    yield from not_judged_texts(zero_by_design, classes)
    if "log_gain" in bounded and (around := seed_runs.gain_around_zeros()) is not None:
        names = format_names(list(around.zeros))
        steps = f"step {names} is" if len(around.zeros) == 1 else f"steps {names} are"
        others = len(seed_runs.readings["growth_rate"][0]) - len(around.zeros)
        rest = f": bounds on log_gain judge the other {others}, {format_number(around.log_gain)} nats" if others else ""
        yield f"{steps} zero by design{rest}"
    if classes is not None and (counts := classes.counts_text()):
        yield counts


def _leaves_band(
    seed_runs: SeedRuns, verdicts: Sequence[VerdictRecord], growth: Sequence[float], names: Sequence[str]
) -> str:
    """Return the step at which the accumulated log gain leaves the band of a failed bound; empty if no bound gives a band.

    A bound on ``lyapunov_max`` bounds the log gain by its ends times the number of steps, or times the time that the chain spans.
    """
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
