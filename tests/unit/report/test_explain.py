"""Text of a failed check: its lines, their widths, and the pictures and escapes in them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from pytest_trainability import Estimate, Profile, Spectrum
from pytest_trainability.checks.statistics import as_seeds
from pytest_trainability.records.reports import BaselineChange, BaselineRecord, CheckRecord, VerdictRecord
from pytest_trainability.records.text import visible
from pytest_trainability.report.explain import (
    BARS,
    accumulated,
    bound_text,
    change_lines,
    change_texts,
    depth_line,
    explain,
    explain_baseline,
    explain_comparison,
    explain_lines,
    labelled,
    measured_on,
    reproduce_command,
    seeds_text,
    shown_in,
    sparkline,
    to_ascii,
    violation_lines,
)

NAN, INF = math.nan, math.inf
SOME = "finite on 1 of 8 seeds"
MakeRecord = Callable[..., CheckRecord]
MakeVerdict = Callable[..., VerdictRecord]


def test_a_failure_shows_value_place_cause_and_command(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good = make_verdict(measure="lyapunov_max", holds=True)
    record = make_record(
        make_verdict(),
        good,
        cause=("too small", "make it larger"),
        notes=("tf32",),
        cautions=("not on the chain: 2 × Head",),
        leaves_band="at 4, 2 of 4 steps from the output",
    )
    assert explain(record).splitlines() == [
        "Tower: log_gain out of bounds",
        "  measured       4 × Linear, per sample, train mode, float32 on cpu, seeds 0-3",
        "  log_gain       -14.40 ± 0.30 nats, must lie in [-5, 5]: 9.4 outside",
        "  along depth    6 █▆▅▃▁ 0",
        "  leaves band    at 4, 2 of 4 steps from the output",
        "  likely cause   too small",
        "                 make it larger",
        "  note           not on the chain: 2 × Head",
        "  note           tf32",
        "  reproduce      pytest test_init.py::test_tower --trainability-seeds=0-3 --trainability-device=cpu",
    ]


def test_the_first_line_names_every_violated_measure(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    record = make_record(make_verdict(), make_verdict(measure="gradient_norm", unit="", where="0.bias"))
    assert explain(record).splitlines()[0] == "Tower: log_gain and gradient_norm out of bounds"


def test_outside_pytest_there_is_no_command(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    assert "reproduce" not in explain(make_record(make_verdict(), reproduce=""))


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("measure", ["log_gain", "relative_gradient_norm"])
def test_lines_stay_within_their_width(
    make_record: MakeRecord, make_verdict: MakeVerdict, width: int, measure: str
) -> None:
    """Also with the long names of real models and measures."""
    names = tuple(f"model.encoder.layer.{i}.attention.self.query" for i in range(12))
    worst = tuple((f"{name}.weight", 1e-9) for name in names[:5])
    record = make_record(
        make_verdict(measure=measure, elements=12, violations=7, where=worst[0][0], worst=worst),
        make_verdict(measure=measure, elements=0),
        step_names=names,
        growth=(-1.0,) * 12,
        leaves_band=names[3],
        seeds=tuple(range(0, 60, 2)),
        cause=(
            "residual steps should not shrink it: is the skip scaled, or the residual stream normalized (post-norm)?",
        ),
        notes=("the samples interact (BatchNorm in training mode), so that one joint frame was used for the batch",),
    )
    lines = explain(record, width=width).splitlines()
    assert [line for line in lines if len(line) > width and "reproduce" not in line] == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "seeds 0-3"),
        ({"seeds": (5,)}, "seed 5"),
        ({"seeds": (0, 3, 5)}, "seeds 0,3,5"),
        ({"seeds": (3, 4)}, "seeds 3-4"),
        ({"seeds": (4, 3)}, "seeds 4,3"),
        ({"seeds": (0, 3, 5, 7, 9, 11)}, "seeds 0,3,5,7,9,11"),
        ({"seeds": (0, 3, 5, 7, 9, 111)}, "6 seeds from 0 to 111"),
        ({"seeds": (0,), "fixed": True}, "finished module"),
    ],
)
def test_seeds_are_summarized(make_record: MakeRecord, changes: dict[str, Any], text: str) -> None:
    assert seeds_text(make_record(**changes)) == text


def test_a_check_that_was_settled_early_is_marked(make_record: MakeRecord) -> None:
    record = make_record(seeds=(0, 1), seeds_requested=(0, 1, 2, 3))
    assert measured_on(record).endswith("seeds 0-3, settled after 2")
    assert reproduce_command(record).endswith("--trainability-seeds=0-3 --trainability-device=cpu"), (
        "the command must request the same seeds"
    )


@pytest.mark.parametrize("seeds", [(0, 1, 2, 3), (0,), (5,), (0, 3, 5), (4, 3), (7, 8)])
def test_the_seeds_of_the_command_are_those_of_the_record(make_record: MakeRecord, seeds: tuple[int, ...]) -> None:
    command = reproduce_command(make_record(seeds=seeds))
    program, test, option, device = shlex.split(command)
    assert (program, test) == ("pytest", "test_init.py::test_tower")
    assert as_seeds(option.removeprefix("--trainability-seeds=")) == seeds
    assert device == "--trainability-device=cpu"


def test_the_command_names_the_device(make_record: MakeRecord) -> None:
    assert reproduce_command(make_record(device="cuda:1")).endswith(
        " --trainability-seeds=0-3 --trainability-device=cuda:1"
    )
    assert reproduce_command(make_record(fixed=True)) == "pytest test_init.py::test_tower"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "-14.40 ± 0.30 nats, must lie in [-5, 5]: 9.4 outside"),
        ({"marginal": True, "seeds_needed": 23}, "9.4 outside, marginal: about 23 seeds would settle it"),
        ({"marginal": True, "seeds_needed": 1234}, "marginal: about 1300 seeds would settle it"),
        ({"marginal": True, "seeds_needed": 10_000}, "marginal: about 10000 seeds would settle it"),
        ({"marginal": True, "seeds_needed": 10_001}, "marginal, and so close that no number of seeds would settle it"),
        ({"marginal": True, "seeds_needed": INF}, "marginal, and so close that no number of seeds would settle it"),
        ({"value": NAN}, "nan nats, must lie in [-5, 5]: not a number"),
        ({"value": -INF}, "-inf nats, must lie in [-5, 5]: outside"),
        (
            {"value": NAN, "finite": SOME},
            "finite on 1 of 8 seeds, must lie in [-5, 5]: NaN or infinite on the other seeds",
        ),
        ({"value": -INF, "finite": SOME}, "-inf nats, must lie in [-5, 5]: outside, finite on 1 of 8 seeds"),
        ({"low": None, "value": 7.0}, "must be ≤ 5: 2 outside"),
        ({"unit": "", "value": 1e-9, "low": 1e-6, "high": None}, "must be ≥ 1e-06: 1,000 times too small"),
        ({"unit": "", "value": 50.0, "low": None, "high": 5.0}, "must be ≤ 5: 10 times too large"),
        ({"unit": "", "value": 0.478, "low": 0.5, "high": None}, "must be ≥ 0.5: 4.6 % too small"),
        ({"unit": "", "value": 3.0, "low": None, "high": 0.0}, "must be ≤ 0: 3 outside"),
        ({"unit": "", "value": 0.0, "low": 1e-6, "high": None}, "must be ≥ 1e-06: 1e-06 outside"),
        ({"elements": 0}, "nothing was measured, must lie in [-5, 5]: no element to judge"),
    ],
)
def test_the_margin_of_a_violation_is_described(make_verdict: MakeVerdict, changes: dict[str, Any], said: str) -> None:
    verdict = make_verdict(**{"value_low": NAN, "value_high": NAN, **changes} if "value" in changes else changes)
    assert said in violation_lines(verdict, width=200)[0]


def test_the_two_worst_elements_are_named(make_verdict: MakeVerdict) -> None:
    verdict = make_verdict(elements=9, violations=3, where="a", worst=(("a", 1.0), ("b" * 30, 2.0), ("c" * 30, 3.0)))
    (*_, last) = violation_lines(verdict, width=78)
    assert last.split(None, 1)[1].startswith("of 9 outside, worst a 1")
    assert "c" * 30 not in last


def test_faulty_names_are_shown(make_verdict: MakeVerdict) -> None:
    lines = violation_lines(make_verdict(measure="nonfinite", where="loss, gradient of 0.bias"), width=78)
    assert lines[1].strip() == "loss, gradient of 0.bias"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (None, 0.9, "must be ≤ 0.9"),
        (1e-6, None, "must be ≥ 1e-06"),
        (-5, 5, "must lie in [-5, 5]"),
        (None, 0, "must be ≤ 0"),
    ],
)
def test_the_bound_of_a_verdict_is_shown(
    make_verdict: MakeVerdict, low: float | None, high: float | None, text: str
) -> None:
    assert bound_text(make_verdict(low=low, high=high)) == text


def test_the_gain_accumulates_from_the_last_step() -> None:
    assert accumulated([1.0, 2.0, 4.0]) == [0.0, 4.0, 6.0, 7.0]


def test_a_sparkline_spans_from_lowest_to_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([7, 0]) == "█▁"
    assert sparkline([0, 1]) == "▁█"


def test_noise_does_not_look_like_a_trend() -> None:
    assert set(sparkline([0.0, 0.05, 0.0, 0.03])) <= {"▄", "▅"}


def test_a_sparkline_is_thinned_to_its_width_with_both_ends() -> None:
    drawn = sparkline(list(range(1000)), 10)
    assert len(drawn) == 10
    assert (drawn[0], drawn[-1]) == ("▁", "█")


def test_values_that_are_not_finite_are_crosses() -> None:
    assert sparkline([0.0, NAN, 9.0, -INF]) == "▁×█×"
    assert sparkline([NAN, INF]) == "××"
    assert sparkline([NAN] * 50, 10) == "×" * 10
    assert sparkline([]) == ""


def test_a_constant_is_drawn_in_the_middle() -> None:
    assert sparkline([2.0, 2.0]) in {"▄▄", "▅▅"}


@pytest.mark.parametrize(
    ("width", "shown"),
    [(60, 17), (61, 17), (62, 18), (20, 8)],
)
def test_long_names_at_both_ends_of_the_sparkline_are_cut(make_record: MakeRecord, width: int, shown: int) -> None:
    """They share the columns that 24 bars and two spaces leave, and have at least 8."""
    record = make_record(growth=(-1.0,) * 7, step_names=("x" * 40, *"-----", "y" * 40))
    assert depth_line(record, width) == f"…{'y' * (shown - 1)} {BARS[::-1]} …{'x' * (shown - 1)}"


def test_long_chains_have_24_bars(make_record: MakeRecord) -> None:
    growth, names = (-1.0,) * 60, ("a", *["-"] * 58, "b")
    record = make_record(growth=growth, step_names=names)
    assert depth_line(record, 80).split()[1] == sparkline(accumulated(growth), 24)
    assert len(depth_line(record, 80).split()[1]) == 24
    # In a narrow terminal the bars get the columns that the names leave, 8 at least.
    assert len(depth_line(record, 20)) == 20
    assert len(depth_line(record, 5).split()[1]) == 8


def test_without_growth_there_is_no_sparkline(make_record: MakeRecord) -> None:
    assert depth_line(make_record(growth=(), step_names=()), 60) == ""


def test_lines_are_wrapped_at_the_given_width_only(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    """Violations, baselines, causes and notes of 90 characters are whole in a wide terminal and wrapped in a narrow one."""
    long = " ".join(["word"] * 18)
    moved = BaselineChange("gradient_norm", "vanished", elements=(long,))
    record = make_record(
        make_verdict(remark=long, where="x", elements=3, worst=((long, 1.0),)),
        baseline=BaselineRecord("changed", "f.json", long, (moved,), command="pytest"),
        cause=(long,),
        notes=(long,),
        leaves_band=long,
    )
    wide, narrow = (explain_lines(record, width=width) for width in (300, 60))
    assert sum(long in line for line in wide) == 7
    assert not any(long in line for line in narrow)
    assert all(len(line) <= 60 for line in narrow if "reproduce" not in line)


def test_a_change_of_finiteness_has_no_shift() -> None:
    dead = BaselineChange("log_gain", "moved", old=-1.5, new=-INF, shift=NAN, tolerance=0.3, unit="nats")
    assert change_lines([dead], 80) == ["log_gain       -1.5 → -inf nats: finite on one side only"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (BaselineChange("x", "vanished"), "no longer measured"),
        (BaselineChange("x", "new"), "not in the baseline"),
        (BaselineChange("x", "vanished", elements=("a",)), "1 gone: a"),
        (BaselineChange("x", "new", elements=("a", "b", "c")), "3 new: a, b, …"),
        (
            BaselineChange("x", "moved", old=1.0, new=0.5, shift=-0.5, tolerance=0.25),
            "1 → 0.5: by -0.5, more than 0.25",
        ),
        (
            BaselineChange("x", "moved", old=2.0, new=1.0, shift=-math.log(2), tolerance=0.1, scale="log"),
            "2 → 1: 2 times smaller, more than 1.11",
        ),
        (
            BaselineChange("x", "moved", old=1.0, new=INF, shift=800.0, tolerance=0.1, scale="log"),
            "1 → inf: inf times larger, more than 1.11",
        ),
        (
            BaselineChange("x", "moved", old=0.0, new=1.0, shift=9.0, tolerance=0.1, scale="log"),
            "0 → 1: no longer zero",
        ),
        (BaselineChange("x", "moved", old=1.0, new=0.0, shift=-9.0, tolerance=0.1, scale="log"), "1 → 0: zero now"),
        (BaselineChange("x", "moved", old=1.0, new=0.0, scale="log"), "1 → 0: zero now"),
        (
            BaselineChange("x", "moved", old=1.0, new=NAN, new_finite=SOME),
            f"1 → {SOME}: no longer finite on every seed",
        ),
        (BaselineChange("x", "moved", old=NAN, old_finite=SOME, new=1.0), f"{SOME} → 1: finite on every seed again"),
        (BaselineChange("x", "moved", old=NAN, new=NAN, new_finite=SOME), f"nan → {SOME}: finite on some seeds now"),
        (
            BaselineChange("x", "moved", old=NAN, old_finite=SOME, new=INF),
            f"{SOME} → inf: no longer finite on any seed",
        ),
        (
            BaselineChange("x", "moved", old=NAN, old_finite=SOME, new=NAN, new_finite=SOME),
            f"{SOME} → {SOME}: finite on other seeds",
        ),
    ],
)
def test_a_change_is_described(change: BaselineChange, text: str) -> None:
    assert change_texts([change]) == [text]


def test_the_worst_elements_are_shown_with_their_finite_seeds(make_verdict: MakeVerdict) -> None:
    worst, finite = (("a", NAN), ("b", NAN)), (SOME, "")
    verdict = make_verdict(
        value=NAN, where="a", elements=3, violations=2, worst=worst, worst_finite=finite, finite=SOME
    )
    assert any(f"2 of 3 outside, worst a {SOME}, b nan" in line for line in violation_lines(verdict, width=300))


def test_a_missing_baseline_names_the_command(make_record: MakeRecord) -> None:
    missing = BaselineRecord("missing", "__trainability__/test_init.json", "test_tower › Tower", command="pytest --new")
    assert explain_baseline(make_record(baseline=missing)).splitlines() == [
        "Tower: no baseline",
        "  measured       4 × Linear, per sample, train mode, float32 on cpu, seeds 0-3",
        "  baseline       none for test_tower › Tower in __trainability__/test_init.json.",
        "                 Record it and commit the file.",
        "  to record      pytest --new",
    ]


def test_a_changed_baseline_names_changes_and_command(make_record: MakeRecord) -> None:
    moved = BaselineChange("log_gain", "moved", old=0.22, new=1.77, shift=1.55, tolerance=0.3, unit="nats")
    changed = BaselineRecord("changed", "f.json", "test_tower › Tower", (moved,), "torch 2.6", "pytest --update")
    assert explain_baseline(make_record(baseline=changed)).splitlines()[2:] == [
        "  baseline       test_tower › Tower in f.json, recorded with torch 2.6",
        "  log_gain       +0.22 → +1.77 nats: by 1.55, more than 0.3",
        "  if intended    pytest --update",
    ]
    assert explain_baseline(make_record(baseline=changed)).splitlines()[0] == "Tower: changed since the baseline"


MODEL_CHANGES: dict[str, tuple[BaselineChange, str]] = {
    "a factor": (
        BaselineChange(
            "initial values", "moved", "b.*.w", old=0.02, new=0.08, shift=math.log(4), count=12, considered=12
        ),
        "initial values b.*.w ×4 (12 of 12): rms 0.02 → 0.08",
    ),
    "one tensor": (
        BaselineChange("initial values", "moved", "head", old=0.02, new=0.0204, shift=math.log(1.02)),
        "initial values head ×1.02: rms 0.02 → 0.0204",
    ),
    "zero now": (
        BaselineChange("initial values", "moved", "head", old=0.02, new=0.0, shift=-INF),
        "initial values head: rms 0.02 → 0",
    ),
    "a mean": (
        BaselineChange("initial values", "moved", "head", old=0.0, new=1.0, shift=1.0, unit="mean"),
        "initial values head: mean 0 → 1",
    ),
    "not finite": (
        BaselineChange("initial values", "moved", "inv", old=1.0, new=NAN, shift=NAN),
        "initial values inv: no longer finite",
    ),
    "finite again": (
        BaselineChange("initial values", "moved", "inv", old=NAN, new=1.0, shift=NAN),
        "initial values inv: finite again",
    ),
    "a shape": (
        BaselineChange("initial values", "moved", "w", old_text="shape 2×3", new_text="shape 2×4"),
        "initial values w: shape 2×3 → shape 2×4",
    ),
    "a class": (
        BaselineChange("modules", "moved", "b.*.act", old_text="GELU", new_text="Sigmoid", count=2, considered=12),
        "modules        b.*.act: GELU → Sigmoid (2 of 12)",
    ),
    "an operation": (
        BaselineChange("operations", "moved", "b.*", old_text="Gelu", new_text="Relu", count=2, considered=12),
        "operations     b.*: Gelu → Relu (2 of 12)",
    ),
    "an operation that is gone": (
        BaselineChange("operations", "moved", "b.3", old_text="Add"),
        "operations     b.3: Add gone",
    ),
    "a new operation": (
        BaselineChange("operations", "moved", "b.3", new_text="Mul"),
        "operations     b.3: Mul new",
    ),
    "gone": (BaselineChange("modules", "vanished", elements=("b.3.ln2",)), "modules        1 gone: b.3.ln2"),
}


@pytest.mark.parametrize(("change", "line"), MODEL_CHANGES.values(), ids=MODEL_CHANGES.keys())
def test_changes_of_the_model_have_one_line(change: BaselineChange, line: str) -> None:
    rest = ", all others unchanged" if change.kind == "moved" and change.measure != "operations" else ""
    assert change_lines([change], 200) == [line + rest]


def test_many_changes_of_the_model_are_counted() -> None:
    changes = [
        BaselineChange("initial values", "moved", f"w{i}", old=1.0, new=2.0, shift=math.log(2)) for i in range(9)
    ]
    assert change_lines(changes, 100)[-1] == "initial values and 4 more, all others unchanged"


MANY = tuple((f"blocks.{i}.attention.projection.{w}", 1e-9 * (i + 1)) for i in range(12) for w in ("weight", "bias"))


@pytest.mark.parametrize("width", [78, 200])
def test_elements_outside_that_differ_by_numbers_are_one(make_verdict: MakeVerdict, width: int) -> None:
    verdict = make_verdict(
        measure="gradient_norm", where=MANY[0][0], worst=(*MANY, ("head", 2e-8)), violations=25, elements=40
    )
    lines = violation_lines(verdict, width=width)
    assert " ".join(" ".join(lines[1:]).split()).endswith(
        "25 of 40 outside, worst blocks.0.attention.projection.weight 1e-09 and 11 more blocks.*.attention.projection.weight, "
        "blocks.0.attention.projection.bias 1e-09 and 11 more blocks.*.attention.projection.bias"
    )
    assert all(len(line) <= width for line in lines)
    full = violation_lines(verdict, width=width, full=True)
    assert full[: len(lines)] == lines
    assert [line.split() for line in full[len(lines) :]] == [[name, f"{value:.2g}"] for name, value in verdict.worst]


def test_names_that_are_counted_are_folded(make_verdict: MakeVerdict) -> None:
    names = tuple(f"blocks.{i}.norm.weight: a gain that is drawn" for i in range(12))
    verdict = make_verdict(
        measure="unusual_parameters", where="blocks.*.norm.weight: a gain that is drawn (12)", names=names
    )
    assert violation_lines(verdict, width=200)[-1].strip() == "blocks.*.norm.weight: a gain that is drawn (12)"
    assert [line.strip() for line in violation_lines(verdict, width=200, full=True)[-12:]] == list(names)


def moved_norms(count: int) -> list[BaselineChange]:
    how = {"old": 1.0, "new": 2.0, "shift": math.log(2), "tolerance": 0.3, "scale": "log", "considered": 24}
    return [BaselineChange("gradient_norm", "moved", f"blocks.{i}.w", **how) for i in range(count)]


@pytest.mark.parametrize("width", [78, 200])
def test_elements_that_moved_are_folded(width: int) -> None:
    lines = change_lines(moved_norms(12), width)
    assert " ".join(" ".join(lines).split()) == (
        "gradient_norm 12 of 24 moved, 2 times larger, more than 1.35: blocks.0.w (1 → 2) and 11 more blocks.*.w"
    )
    assert all(len(line) <= width for line in lines)
    full = change_lines(moved_norms(12), width, full=True)
    assert [line.strip() for line in full[len(lines) :]] == [f"blocks.{i}.w (1 → 2)" for i in range(12)]
    assert change_lines(moved_norms(1), width, full=True) == change_lines(moved_norms(1), width)


def test_parameters_of_another_class_are_folded_if_they_changed_alike() -> None:
    labels = ["dead", "dead", "waking at step 1", "dead"]
    changes = [
        BaselineChange("gradient_classes", "moved", f"b.{i}.w", old_text="signal", new_text=label, considered=9)
        for i, label in enumerate(labels)
    ]
    assert change_texts(changes) == [
        "4 of 9 changed: b.0.w (signal → dead) and 2 more b.*.w, b.2.w (signal → waking at step 1)"
    ]


def test_names_that_are_gone_are_counted_one_by_one_and_listed_as_patterns() -> None:
    gone = BaselineChange("initial values", "vanished", elements=("blocks.{0-11}.ln.weight", "head"))
    assert change_lines([gone], 100) == ["initial values 13 gone: blocks.*.ln.weight (12), head"]
    assert [line.strip() for line in change_lines([gone], 100, full=True)[1:]] == ["blocks.{0-11}.ln.weight", "head"]
    # Names of measures are names, whatever they look like.
    odd = BaselineChange("unused_parameters", "new", elements=("w.{0-99999999}",))
    assert change_lines([odd], 100, full=True) == ["unused_parameters", "               1 new: w.{0-99999999}"]


def test_a_failed_comparison_folds_its_elements() -> None:
    profile = Profile({f"b.{i}.w": one(float(i), f"b.{i}.w") for i in range(12)})
    lines = explain_comparison(">", profile, 20.0)
    assert lines is not None and lines[2:] == ["  b.0.w: 0 and 11 more b.*.w"]
    full = explain_comparison(">", profile, 20.0, full=True)
    assert full is not None and full[2:] == [f"  b.{i}.w: {i}" for i in range(12)]


def forward_changed(element: str, *folded: str) -> BaselineChange:
    return BaselineChange("operations", "moved", element, elements=folded, old_text="Gelu", new_text="Relu")


SHIFTS = [
    BaselineChange("activation_rms", "moved", name, old=1.0, new=2.0, shift=shift, tolerance=0.1, scale="log")
    for name, shift in (("b.3", 0.9), ("b.2", 0.7))
]
UNCHANGED: dict[str, tuple[dict[str, bool], list[BaselineChange], str]] = {
    # The first step in program order is named, although a later one has moved more.
    "numbers": (
        {"model_compared": True},
        SHIFTS,
        "initial values and modules unchanged: the forward pass, the loss or the inputs changed, first at b.2",
    ),
    "an old baseline": ({}, SHIFTS, ""),
    "no operation": (
        {"model_compared": True, "operations_compared": True},
        SHIFTS,
        (
            "initial values, modules and operations unchanged: a constant of the forward pass, the loss or the inputs changed, "
            "first at b.2"
        ),
    ),
    "operations": (
        {"model_compared": True, "operations_compared": True},
        [forward_changed("b.3", "b.3"), forward_changed("b.*", "b.{1,10}"), *SHIFTS],
        "initial values and modules unchanged: the forward code changed, first at b.1",
    ),
    "operations only": (
        {"model_compared": True, "operations_compared": True},
        [forward_changed("b.3", "b.3")],
        "initial values and modules unchanged, all numbers within tolerance: the forward code changed, first at b.3",
    ),
    "operations outside of the steps": (
        {"model_compared": True, "operations_compared": True},
        [forward_changed("after the last step", "after the last step"), *SHIFTS],
        "initial values and modules unchanged: the forward code changed after the last step",
    ),
    "a module": (
        {"model_compared": True, "operations_compared": True},
        [
            BaselineChange("modules", "moved", "b.1.act", old_text="GELU", new_text="ReLU"),
            forward_changed("b.1", "b.1"),
        ],
        "",
    ),
}


@pytest.mark.parametrize(("compared", "changes", "text"), UNCHANGED.values(), ids=UNCHANGED.keys())
def test_an_unchanged_model_points_to_the_code(
    make_record: MakeRecord, compared: dict[str, bool], changes: list[BaselineChange], text: str
) -> None:
    baseline = BaselineRecord("changed", "f.json", "t › T", tuple(changes), **compared)
    record = make_record(step_names=tuple(f"b.{i}" for i in range(12)), baseline=baseline)
    lines = [line for line in explain_baseline(record, width=200).splitlines() if line.startswith("  model ")]
    assert lines == ([f"  model          {text}"] if text else [])


def test_workflow_commands_are_broken_in_every_line() -> None:
    """GitHub obeys a line that begins with ``::`` after spaces, and ``##[`` anywhere. Lines are broken before long words."""
    hostile = "::error::a ##[error]b \n::warning::c " + "w" * 70 + " ::add-mask::d"
    change = BaselineChange(hostile, "new", elements=(hostile, "::debug::e"))
    moved = BaselineChange("x", "moved", hostile, old=1.0, new=2.0, shift=1.0, tolerance=0.1, unit=hostile)
    for width in (0, 30, 80):
        for line in (*labelled(hostile, hostile, width), *change_lines([change, moved], width)):
            assert not re.search(r"^\s*::|##\[", line)


def test_workflow_commands_do_not_arise_from_the_translation_to_ascii() -> None:
    assert shown_in("██[error]", "ascii") == r"#\x23[error]"
    assert shown_in("██[error]", None) == r"#\x23[error]"
    assert shown_in("██ x", "utf-8") == "██ x"


def test_names_in_a_message_are_escaped(make_record: MakeRecord) -> None:
    hostile = "\x1b[31m\n::error::name"
    record = make_record(model=hostile, steps=hostile, step_names=(hostile,) * 4, cautions=(hostile,), notes=(hostile,))
    lines = explain(record).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(re.match(r"\s*::", line) for line in lines)


def test_control_characters_are_escaped() -> None:
    """Names may come from a baseline file that somebody else wrote."""
    hostile = "\x1b[2J\r\x07 \u202e\x9b31m"
    shown = r"\x1b[2J\r\x07 \u202e\x9b31m"
    assert visible(hostile) == shown
    assert labelled("note", hostile) == [f"note           {shown}"]
    assert labelled("\x1b[2J", "text") == [r"\x1b[2J        text"]
    assert visible("größe › 日本 ×") == "größe › 日本 ×"
    for change in (
        BaselineChange("x", "vanished", elements=(hostile,)),
        BaselineChange(hostile, "new"),
        BaselineChange("x", "moved", hostile, old=1.0, new=2.0, shift=1.0, tolerance=0.1, unit=hostile),
    ):
        assert all(line.isprintable() for line in change_lines([change], 80))
        assert shown in " ".join(" ".join(change_lines([change], 0)).split())


def test_the_lines_of_a_long_label_start_below_it() -> None:
    assert labelled("relative_gradient_norm", "a", 40) == ["relative_gradient_norm", "               a"]
    assert labelled("gradient_norms", "a", 40) == ["gradient_norms a"]


def test_labels_wrap_under_themselves() -> None:
    lines = labelled("note", "aaaa bbbb cccc dddd", 26)
    assert lines == ["note           aaaa bbbb", "               cccc dddd"]
    assert labelled("note", "") == []


def one(mean: float, name: str = "") -> Estimate:
    return Estimate(mean, NAN, NAN, (mean,), name=name)


def test_a_failing_comparison_lists_the_worst_first() -> None:
    profile = Profile({n: one(v, n) for n, v in zip("abcdefgh", [1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])})
    lines = explain_comparison("<", profile, 2.5)
    assert lines is not None
    assert lines[1] == "6 of 8 elements are not < 2.5; the worst:"
    assert [line.strip().partition(":")[0] for line in lines[2:]] == ["b", "d", "f", "h", "g"]
    lines = explain_comparison(">=", profile, 2.5)
    assert lines is not None
    assert [line.strip() for line in lines[2:]] == ["a: 1", "c: 2"]


@pytest.mark.parametrize(
    ("empty", "kind"), [(Profile(), "profile"), (Spectrum(()), "spectrum")], ids=["profile", "spectrum"]
)
def test_an_empty_collection_is_reported(empty: Profile | Spectrum, kind: str) -> None:
    lines = explain_comparison(">", empty, 1e-7)
    assert lines == [
        f"{empty!r} > 1e-07",
        f"The {kind} is empty: no element to compare. Check the names or patterns that selected it.",
    ]


@pytest.mark.parametrize(("op", "mirrored"), [("<", ">"), ("<=", ">="), (">", "<"), (">=", "<=")])
def test_a_comparison_with_the_number_on_the_left_is_mirrored(op: str, mirrored: str) -> None:
    profile = Profile({n: one(v, n) for n, v in zip("abc", [1.0, 2.0, 3.0])})
    lines = explain_comparison(op, 2.0, profile)
    assert lines is not None
    assert lines == explain_comparison(mirrored, profile, 2.0)
    assert f"elements are not {mirrored} 2.0" in lines[1]


def test_exponents_are_counted_from_one() -> None:
    lines = explain_comparison(">", Spectrum((one(0.5), one(-2.0), one(-2.0))), 0)
    assert lines is not None
    assert [line.strip() for line in lines[2:]] == ["exponent 2: -2", "exponent 3: -2"]


def test_nan_is_listed_among_the_worst() -> None:
    profile = Profile({n: one(v, n) for n, v in zip("abcdefgh", [1.0, 1.0, 1.0, NAN, 1.0, 1.0, 1.0, 1.0])})
    lines = explain_comparison(">", profile, 2.0)
    assert lines is not None
    assert "8 of 8" in lines[1]
    assert any(line.strip().startswith("d: nan") for line in lines[2:])


@pytest.mark.parametrize(
    ("op", "left", "right"),
    [("==", Profile(), 1.0), ("<", one(1.0), 0.5), ("<", Profile(), "a"), ("in", Profile(), 1.0), ("<", 1.0, one(0.5))],
)
def test_other_comparisons_are_left_to_pytest(op: str, left: Any, right: Any) -> None:
    assert explain_comparison(op, left, right) is None


def test_every_sign_of_a_message_has_an_ascii_spelling(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    scale = make_verdict(value=3e-9, value_low=2e-9, value_high=4.5e-9, unit="", scale="log", low=1e-6, high=None)
    text = to_ascii(explain(make_record(make_verdict(), scale, make_verdict(low=None), growth=(1.0, NAN, -9.0, 3.0))))
    assert text.isascii()
    assert "\\" not in text
    assert "4 x Linear" in text
    assert "must be >= 1e-06" in text


def test_bars_differ_in_ascii() -> None:
    assert len(set(to_ascii(BARS))) == len(BARS)


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("größe ± 1", "utf-8", "größe ± 1"),
        ("größe ± 1", "latin-1", "größe ± 1"),
        ("a → b", "latin-1", "a -> b"),
        ("1 ± 2 ×", "ascii", "1 +- 2 x"),
        ("1 ± 2", "no such encoding", "1 +- 2"),
        ("plain", "ascii", "plain"),
    ],
)
def test_a_text_is_shown_in_ascii_only_if_necessary(text: str, encoding: str, shown: str) -> None:
    assert shown_in(text, encoding) == shown


def test_other_characters_are_escaped_in_ascii() -> None:
    assert to_ascii("λ") == "\\u03bb"
    assert re.fullmatch(r"[ -~]*", to_ascii("test_größe[日本]"))
