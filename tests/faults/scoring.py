"""What a report on a fault says, and whether place, cause and cure are right."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn

from pytest_trainability import TrainabilityFailure, measure
from pytest_trainability.checks.bounds import Bound, at_most
from pytest_trainability.checks.presets import find_preset
from pytest_trainability.checks.remedy import Remedy
from pytest_trainability.errors import TrainabilityError
from pytest_trainability.init.rules import Rule
from pytest_trainability.init.writing import contract_of, rules_of
from pytest_trainability.measurement import Measurement
from pytest_trainability.measurement.cures import Cure
from pytest_trainability.measurement.initialization import judge_contract, models_of
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.names import template
from pytest_trainability.records.reports import BaselineChange, BaselineRecord, CheckRecord, VerdictRecord
from pytest_trainability.report.explain import baseline_lines

from .cases import Case
from .judging import changed, flagged, holds, measured
from .training import MARGIN, losses, trains_worse

RECOMMENDED: dict[str, Bound] = {
    "backward_error": at_most(0.01),
    "causal_leak": at_most(0),
    "mode_gap": at_most(0.05),
    "order_blindness": at_most(0.999),
}
"""Bounds that the pages of measures recommend and no preset has, as they hold for a part of all models."""
OF_PRESETS, OF_BASELINES = range(2), range(4)
"""Seeds of a preset, which must be violated on average, and of a baseline: as many as a test takes by default."""
FRESH = range(100, 102)
"""Seeds on which cures are tried again."""


@dataclass(frozen=True)
class Report:
    """What a check says about a model, most specific lines first."""

    flags: tuple[str, ...] = ()
    """Measures that are out of bounds or have changed."""
    lines: tuple[str, ...] = ()
    seconds: float = 0.0

    def place_is_right(self, case: Case, known: Collection[str]) -> bool:
        """Return whether the first line that names a part of the model names one that is at fault."""
        assert case.right is not None
        for line in self.lines:
            # The label of a line is no name, although a module may have it.
            named = named_in(re.sub(r"^model {2,}", "", line), known)
            if named:
                return any(fits(word, pattern) for word in named for pattern in case.right.place)
        return False

    def cause_is_right(self, case: Case, known: Collection[str]) -> bool:
        """Return whether a line explains the fault, or says that a part at fault has other values or another class."""
        assert case.right is not None
        if any(re.search(case.right.cause, line) for line in self.lines):
            return True
        of_model = [line for line in self.lines if line.startswith(("initial values", "modules"))]
        named = [word for line in of_model[:1] for word in named_in(line, known)]
        return any(fits(word, pattern) for word in named for pattern in case.right.place)


def words(line: str) -> list[str]:
    """Return the words of a line that may be names; counts such as ``3 ×`` and numbers with a decimal point are none."""
    line = re.sub(r"\d+ ×|[-+]?\d+\.\d+\S*|\d+ (of|nats|%|times|inputs)\b", " ", line)
    return [word.rstrip(".:") for word in re.split(r"[\s(),;]+", line) if word.rstrip(".:")]


def named_in(line: str, known: Collection[str]) -> list[str]:
    """Return the words of a line that name a part of a model, or an element of a list or of a sequence in it."""
    found = (word.replace("[", ".").replace("]", "") for word in words(line))
    return [word for word in found if word in known or re.sub(r"\.(\d+|\*)$", "", word) in known]


def fits(word: str, pattern: str) -> bool:
    """Return whether a name, or a name with stars for numbers, fits a pattern."""
    return fnmatchcase(word, pattern) or fnmatchcase(word.replace("*", "0"), pattern)


def known_names(case: Case) -> set[str]:
    """Return all words that name a part of the model: modules, parameters and buffers, classes, inputs, output and loss."""
    model = case.build()
    names = {name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())}
    names |= {template(name) for name in names} | {re.sub(r"\b\d+\b", "*", name) for name in names}
    classes = {type(module).__name__ for module in model.modules()}
    return (names | classes | {"input", "inputs", "output", "loss"}) - {""}


# Reports ----------------------------------------------------------------------------------------------------------


def preset_report(case: Case, found: Measurement, measuring: float) -> Report:
    """Judge the preset of the family; `measuring` is the time that the measurement has taken."""
    began = time.process_time()
    flags = flagged(case, found)
    seconds = measuring + time.process_time() - began
    if not flags:
        return Report(seconds=seconds)
    return Report(tuple(flags), tuple(lines_of(found._to_record(list(flags.values())))), seconds)


SYMPTOMS = {"nonfinite", "asleep_parameters", "unused_parameters", "interacting_samples"}
"""Measures whose names are symptoms. The names of the others come with the reason, or are one."""


def lines_of(record: CheckRecord) -> Iterator[str]:
    """Yield what a failed check says: names with their reasons, the likely cause, symptoms, then values with the worst place."""
    named = [verdict for verdict in record.verdicts if verdict.names]
    reasons = [verdict for verdict in named if verdict.measure not in SYMPTOMS]
    yield from (f"{verdict.measure}: {name}" for verdict in reasons for name in verdict.names)
    yield from record.cause
    yield from (f"{v.measure}: {name}" for v in named if v not in reasons for name in v.names)
    yield from (f"{v.measure}: {_worst(v)} {v.remark}" for v in record.verdicts if v not in named)


def _worst(verdict: VerdictRecord) -> str:
    return ", ".join(name for name, _ in verdict.worst[:5]) or verdict.where


def baseline_report(found: Measurement, changes: Mapping[str, list[BaselineChange]]) -> Report:
    """Return what a comparison with the healthy twin says."""
    if not changes:
        return Report()
    every = tuple(change for of_measure in changes.values() for change in of_measure)
    record = BaselineRecord("changed", "", "", every, model_compared=True, operations_compared=True)
    lines = baseline_lines(record, steps=tuple(found.growth_rate), width=10**6)
    order = ("initial values", "tables", "modules", "model", "operations")
    texts = [line for line in lines if not line.startswith(("baseline", "if intended"))]
    texts.sort(key=lambda line: next((i for i, word in enumerate(order) if line.startswith(word)), len(order)))
    return Report(tuple(changes), tuple(texts))


@cache
def contract_of_twin(twin: Case) -> dict[str, Rule]:
    return rules_of(contract_of(models_of(twin.build, range(8))))


def breaks_contract(case: Case, seeds: Sequence[int] = range(20, 24)) -> bool:
    """Return whether the parameters break the contract that was written for the healthy twin.

    A contract that cannot be applied, because the fault has no parameter that a rule is for, makes a test fail as well.
    """
    assert case.twin is not None
    try:
        return not judge_contract(contract_of_twin(case.twin), case.build, seeds).holds
    except TrainabilityError:
        return True


def recommended(case: Case) -> list[str]:
    """Return the measures of RECOMMENDED whose bounds the twin keeps and the fault does not."""
    assert case.twin is not None
    found = []
    for name, bound in RECOMMENDED.items():
        with suppress(TrainabilityError):
            if not holds(case, name, bound, range(2)) and holds(case.twin, name, bound, range(2)):
                found.append(name)
    return found


# Cures ------------------------------------------------------------------------------------------------------------


def with_cure(case: Case, cure: Cure) -> Case:
    """Return the case with a cure applied to every model that is built.

    Without an activation, the model returns what its twin returns, and its training is judged by the same.
    """

    def build() -> nn.Module:
        model = case.build()
        cure.apply(model)
        return model

    score = case.twin.score if cure.remedy.kind == "function" and case.twin is not None else case.score
    return replace(case, build=build, score=score)


def is_back(case: Case, bounds: Mapping[str, Bound]) -> bool:
    """Return whether bounds hold on other seeds than those on which the cure was found."""
    found = measure(case.build, seeds=FRESH, measures=list(bounds), **case.arguments)
    try:
        found.check(**bounds)
    except TrainabilityFailure:
        return False
    return True


def cure_is_right(case: Case, cures: Sequence[Cure], flags: Sequence[str], steps: int | None) -> tuple[bool, bool]:
    """Return whether a cure brings back what had failed, and whether the cured model trains no worse than the twin."""
    assert case.twin is not None
    preset = find_preset(case.family)
    bounds = {name: preset[name] for name in flags if name in MEASURES}
    cured = [with_cure(case, cure) for cure in cures]
    back = [one for one in cured if is_back(one, bounds)]
    most = max(losses(case.twin, steps=steps)) + MARGIN if back else 0.0
    return bool(back), any(min(losses(one, steps=steps)) <= most for one in back)


# One fault --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """All results of one fault, as plain data."""

    name: str
    family: str
    half: str
    """Its group: half A or B, or the list of an unseen fault."""
    visible: bool
    has_cure: bool
    preset: list[str]
    lint: list[str]
    contract: bool | None
    baseline: list[str]
    asked: list[str]
    """Recommended bounds outside of presets; not measured where the preset flags the fault."""
    place: bool | None
    """Whether the place is right, in the report of the preset, or else in that of the baseline; None if nothing is found."""
    cause: bool | None
    baseline_place: bool | None
    baseline_cause: bool | None
    cures: list[dict[str, Any]]
    """Text and remedy of each cure of the report."""
    back: bool | None
    """Whether a cure brings the measures back; None if there is none to be found, or before training."""
    trains: bool | None
    """Whether the cured model trains no worse than the twin."""
    worse: bool | None
    """Whether the fault trains worse than its twin; None if it was not trained."""
    seconds: float
    lines: list[str]
    """The report."""
    baseline_lines: list[str]


def _on_preset(case: Case) -> tuple[Report, tuple[Cure, ...]]:
    """Return the report of the preset, and the cures. A model that cannot be measured is reported, too: by an error."""
    began = time.process_time()
    try:
        found = measured(case, OF_PRESETS)
    except TrainabilityError as error:
        return Report(("error",), (f"error: {error}",), time.process_time() - began), ()
    report = preset_report(case, found, time.process_time() - began)
    return report, found.cures() if report.flags else ()


def score(case: Case, *, twin_of: Callable[[Case], Measurement], half: str) -> Score:
    """Score one fault, without its contract and without training.

    Args:
        case: The fault.
        twin_of: Measures the baseline of a twin; twins are shared.
        half: Its group.
    """
    assert case.right is not None
    assert case.twin is not None
    report, cures = _on_preset(case)
    against = Report()
    with suppress(TrainabilityError):
        now = measured(case, OF_BASELINES, bounds={})
        against = baseline_report(now, changed(twin_of(case.twin), now))
    known = known_names(case) | known_names(case.twin)
    best = report if report.flags else against
    return Score(
        name=case.id,
        family=case.family,
        half=half,
        visible=case.right.visible,
        has_cure=case.right.cure,
        preset=list(report.flags),
        lint=[name for name in report.flags if name in MEASURES and MEASURES[name].kind == "names"],
        contract=None,
        baseline=list(against.flags),
        asked=[] if report.flags else recommended(case),
        place=best.place_is_right(case, known) if best.flags else None,
        cause=best.cause_is_right(case, known) if best.flags else None,
        baseline_place=against.place_is_right(case, known) if against.flags else None,
        baseline_cause=against.cause_is_right(case, known) if against.flags else None,
        cures=[asdict(cure) for cure in cures],
        back=None,
        trains=None,
        worse=None,
        seconds=report.seconds,
        lines=list(report.lines),
        baseline_lines=list(against.lines),
    )


def with_cures_tried(case: Case, found: Score, *, steps: int | None = None) -> Score:
    """Return a score with what its cures bring about, on other seeds and in training.

    Args:
        case: The fault.
        found: Its score.
        steps: Training steps; None for those of the family.
    """
    if not (found.has_cure and found.preset):
        return found
    cures = [Cure(**{**cure, "remedy": _remedy(cure["remedy"])}) for cure in found.cures]
    back, trains = cure_is_right(case, cures, found.preset, steps)
    return replace(found, back=back, trains=trains)


def _remedy(plain: Mapping[str, Any]) -> Remedy:
    """Return the remedy of plain data, whose parts are remedies as well."""
    return Remedy(**{**plain, "parts": tuple(map(_remedy, plain["parts"]))})


def with_training(case: Case, found: Score, *, steps: int | None = None) -> Score:
    """Return a score with whether the fault trains worse than its twin."""
    return replace(found, worse=trains_worse(case, steps=steps))
