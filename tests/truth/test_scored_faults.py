"""The scored faults declare what a report ought to say, in names that their models have, and the scores judge reports by that."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from faults import FURTHER, HEALTHY, MORE_HEALTHY, SCORED, UNSEEN, Case, Right, group, half, measured
from faults.scoring import Report, Score, fits, known_names, preset_report, words
from scripts import script

BY_NAME = {case.id: case for case in (*SCORED, *UNSEEN)}


def by_id(case: Case) -> str:
    return case.id


def test_there_are_eighty_faults_and_twice_as_many_healthy_models_as_before() -> None:
    assert len(BY_NAME) == len(SCORED) + len(UNSEEN)
    assert len(SCORED) >= 80
    assert len({case.id for case in (*HEALTHY, *MORE_HEALTHY)}) >= 2 * 38


def test_each_half_has_a_third_at_least_and_never_changes() -> None:
    counts = Counter(half(case) for case in SCORED)
    assert min(counts["A"], counts["B"]) >= len(SCORED) // 3
    assert half(BY_NAME["root-of-zero"]) == "B"
    assert half(BY_NAME["causal-leak"]) == half(replace(BY_NAME["causal-leak"], family="mlp"))


def test_a_fault_is_in_a_group_of_its_list_only_if_it_is_unseen() -> None:
    assert Counter(group(case) for case in UNSEEN) == {"C": 24, "D": 18}
    assert all(group(case) == half(case) for case in SCORED)


def found(name: str, half: str, *, preset: bool) -> Score:
    """Return a score of which only the group counts, and whether a preset finds the fault."""
    names = ("lint", "baseline", "asked", "cures", "lines", "baseline_lines")
    lists: dict[str, Any] = {name: [] for name in names}
    marks = dict.fromkeys(("contract", "place", "cause", "baseline_place", "baseline_cause", "back", "trains", "worse"))
    flags = ["log_gain"] if preset else []
    given: dict[str, Any] = {"visible": True, "has_cure": False, "preset": flags, "seconds": 0.0, **lists, **marks}
    return Score(name=name, family="mlp", half=half, **given)


def test_the_sums_have_a_column_for_each_group_and_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    scores = [found("a", "A", preset=True), found("b", "B", preset=False), found("c", "C", preset=True)]
    scores += [found("d", "D", preset=True)]
    head, _, first, *_ = script("benchmarks/faults.py").sums(scores)
    titles = head.strip("| ").split(" | ")[1:]
    assert titles[:2] == ["A (1 faults)", "B (1 faults)"]
    assert [title[:2] for title in titles[2:4]] == ["C:", "D:"]
    assert all(title.endswith("someone who had not seen the code (1 faults)") for title in titles[2:4])
    assert titles[4:] == ["all"]
    one, none = "1.00 (1 of 1)", "0.00 (0 of 1)"
    assert first.strip("| ").split(" | ")[2:] == [one, none, one, one, "0.75 (3 of 4)"]


@pytest.mark.parametrize("case", [*SCORED, *UNSEEN], ids=by_id)
def test_the_declared_place_is_in_the_model(case: Case) -> None:
    assert case.right is not None
    assert case.twin is not None
    re.compile(case.right.cause)
    known = known_names(case) | known_names(case.twin)
    assert [p for p in case.right.place if any(fits(name, p) for name in known)] != []


@pytest.mark.parametrize("case", [*FURTHER, *UNSEEN], ids=by_id)
def test_a_fault_and_its_twin_take_the_same_inputs(case: Case) -> None:
    assert case.twin is not None
    assert case.right is not None
    for one in (case, case.twin):
        torch.manual_seed(0)
        inputs, labels = one.task(torch.Generator().manual_seed(0))
        output = one.build()(**inputs) if isinstance(inputs, dict) else one.build()(inputs)
        assert one.loss is not None
        loss = one.loss(output, labels)
        assert loss.shape == ()
        overflows = one is case and (bool(loss.isinf()) or "NaN" in case.right.cause)
        assert bool(loss.isfinite()) or overflows


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("6 (Linear) multiplies the gradient by 0.000144: -8.85 of -9.93 nats", ["6", "Linear"]),
        ("12 × Conv2d (body.*) multiply the gradient by 0.1 each", ["Conv2d", "body.*"]),
        ("6.weight: rms 1.79e-05 over 64 inputs, rms × √inputs = 0.000143", ["6.weight"]),
        ("every step multiplies the gradient by 0.688, steadily", []),
    ],
)
def test_names_in_a_line_are_recognized(line: str, expected: list[str]) -> None:
    known = {"6", "Linear", "6.weight", "Conv2d", "body.0", "body.*"}
    assert [word for word in words(line) if word in known] == expected


@pytest.mark.parametrize(
    ("lines", "place", "cause"),
    [
        (("6 (Linear) multiplies the gradient by 0.0001", "6.weight: rms 1e-5"), True, True),
        (("every step multiplies the gradient by 0.7", "6.weight: rms 1e-5"), True, True),
        (("4 (Linear) multiplies the gradient by 0.0001", "6.weight: rms 1e-5"), False, True),
        (("6 (Linear) multiplies the gradient by 0.0001",), True, False),
        (("initial values 6.weight ×0.0001: rms 0.17 → 1.7e-05",), True, True),
        (("initial values 4.weight ×0.0001: rms 0.17 → 1.7e-05",), False, False),
        (("log_gain -9",), False, False),
    ],
)
def test_a_report_is_right_if_its_first_place_is(lines: tuple[str, ...], place: bool, cause: bool) -> None:
    case = replace(BY_NAME["layer-of-small-weights"], right=Right(("6", "6.weight"), r"6\.weight: rms"))
    report, known = Report(("log_gain",), lines), known_names(case)
    assert report.place_is_right(case, known) == place
    assert report.cause_is_right(case, known) == cause


def test_the_report_on_a_planted_fault_is_right_and_on_its_twin_empty() -> None:
    case = BY_NAME["layer-of-small-weights"]
    assert case.twin is not None
    report, known = preset_report(case, measured(case, range(2)), 0.0), known_names(case)
    assert report.place_is_right(case, known)
    assert report.cause_is_right(case, known)
    assert preset_report(case.twin, measured(case.twin, range(2)), 0.0).flags == ()
    elsewhere = replace(case, right=Right(("4", "4.weight"), "4.weight"))
    assert not report.place_is_right(elsewhere, known)
