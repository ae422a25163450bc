"""Text of a failed check: its lines and their widths."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_trainability.checks.statistics import as_seeds
from pytest_trainability.records.reports import BaselineChange, BaselineRecord, CheckRecord, VerdictRecord
from pytest_trainability.report.explain import (
    accumulated,
    bound_text,
    depth_line,
    explain,
    explain_baseline,
    explain_lines,
    headline,
    measured_on,
    reproduce_command,
    seeds_text,
    violation_lines,
)
from pytest_trainability.report.layout import BARS, sparkline, to_ascii

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
        "log_gain -14.4 must lie in [-5, 5]",
        "  measured       Tower: 4 × Linear, per sample, train mode, float32 on cpu,",
        "                 seeds 0-3",
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
    assert explain(record).splitlines()[0] == "log_gain -14.4 must lie in [-5, 5]; gradient_norm fails, too"
    many = make_record(*(make_verdict(measure=f"{'measure' * 6}_{i}") for i in range(3)))
    assert explain(many).splitlines()[0].endswith("_0 -14.4 must lie in [-5, 5]; 2 more")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"value": -23.04}, "log_gain -23.0 must lie in [-5, 5]"),
        ({"value": 5.0004}, "log_gain 5.0004 must lie in [-5, 5]"),
        ({"value": 123.4}, "log_gain 123 must lie in [-5, 5]"),
        ({"value": 3.0, "low": None, "high": 0, "where": "a, b, …"}, "log_gain 3 (a, b, …) must be ≤ 0"),
        ({"value": 3.2e-9, "low": 1e-6, "high": None, "where": "0.w"}, "log_gain 3.20e-09 (0.w) must be ≥ 1e-06"),
        ({"value": INF}, "log_gain inf must lie in [-5, 5]"),
        ({"value": NAN}, "log_gain nan must lie in [-5, 5]"),
        ({"value": NAN, "finite": SOME}, "log_gain is finite on 1 of 8 seeds, must lie in [-5, 5]"),
        ({"value": NAN, "elements": 0}, "log_gain: nothing was measured, must lie in [-5, 5]"),
    ],
)
def test_a_failure_begins_with_the_shortest_true_sentence(
    make_record: MakeRecord, make_verdict: MakeVerdict, changes: dict[str, Any], sentence: str
) -> None:
    """A value just outside has as many digits as show it."""
    assert headline(make_record(make_verdict(**changes))) == sentence


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


def test_the_worst_elements_are_shown_with_their_finite_seeds(make_verdict: MakeVerdict) -> None:
    worst, finite = (("a", NAN), ("b", NAN)), (SOME, "")
    verdict = make_verdict(
        value=NAN, where="a", elements=3, violations=2, worst=worst, worst_finite=finite, finite=SOME
    )
    assert any(f"2 of 3 outside, worst a {SOME}, b nan" in line for line in violation_lines(verdict, width=300))


def test_a_missing_baseline_names_the_command(make_record: MakeRecord) -> None:
    missing = BaselineRecord("missing", "__trainability__/test_init.json", "test_tower › Tower", command="pytest --new")
    assert explain_baseline(make_record(baseline=missing)).splitlines() == [
        "no baseline for test_tower › Tower",
        "  measured       Tower: 4 × Linear, per sample, train mode, float32 on cpu,",
        "                 seeds 0-3",
        "  baseline       none for test_tower › Tower in __trainability__/test_init.json.",
        "                 Record it and commit the file.",
        "  to record      pytest --new",
    ]


def test_a_changed_baseline_names_changes_and_command(make_record: MakeRecord) -> None:
    moved = BaselineChange("log_gain", "moved", old=0.22, new=1.77, shift=1.55, tolerance=0.3, unit="nats")
    changed = BaselineRecord("changed", "f.json", "test_tower › Tower", (moved,), "torch 2.6", "pytest --update")
    assert explain_baseline(make_record(baseline=changed)).splitlines()[3:] == [
        "  baseline       test_tower › Tower in f.json, recorded with torch 2.6",
        "  log_gain       +0.22 → +1.77 nats: by 1.55, more than 0.3",
        "  if intended    pytest --update",
    ]
    assert (
        explain_baseline(make_record(baseline=changed)).splitlines()[0]
        == "log_gain changed since the baseline: +0.22 → +1.77 nats: by 1.55, more than 0.3"
    )
    several = replace(changed, changes=(moved, replace(moved, measure="activation_rms")))
    assert explain_baseline(make_record(baseline=several)).splitlines()[0].endswith("more than 0.3; 1 more differs")


MANY = tuple((f"blocks.{i}.attention.projection.{w}", 1e-9 * (i + 1)) for i in range(12) for w in ("weight", "bias"))


@pytest.mark.parametrize("width", [78, 200])
def test_elements_outside_that_differ_by_numbers_are_one(make_verdict: MakeVerdict, width: int) -> None:
    verdict = make_verdict(
        measure="gradient_norm", where=MANY[0][0], worst=(*MANY, ("head", 2e-8)), violations=25, elements=40
    )
    lines = violation_lines(verdict, width=width)
    assert " ".join(" ".join(lines[1:]).split()).endswith(
        "25 of 40 outside, worst blocks.0.attention.projection.weight 1e-09 and 11 more blocks.*.attention.projection.weight, "
        "blocks.0.attention.projection.bias 1e-09 and 11 more blocks.*.attention.projection.bias, …"
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


def test_names_in_a_message_are_escaped(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    hostile = "\x1b[31m\n::error::name"
    record = make_record(
        make_verdict(where=hostile, measure=hostile),
        model=hostile,
        steps=hostile,
        step_names=(hostile,) * 4,
        cautions=(hostile,),
        notes=(hostile,),
    )
    lines = explain(record).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(re.match(r"\s*::", line) for line in lines)


def test_every_sign_of_a_message_has_an_ascii_spelling(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    scale = make_verdict(value=3e-9, value_low=2e-9, value_high=4.5e-9, unit="", scale="log", low=1e-6, high=None)
    text = to_ascii(explain(make_record(make_verdict(), scale, make_verdict(low=None), growth=(1.0, NAN, -9.0, 3.0))))
    assert text.isascii()
    assert "\\" not in text
    assert "4 x Linear" in text
    assert "must be >= 1e-06" in text


def test_a_headline_has_as_many_of_the_first_names_as_fit(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    names = ("control.proj.weight", "zero_conv.weight", "control.c1.weight", "control.c1.bias")
    verdict = make_verdict(measure="asleep_parameters", value=4.0, where=", ".join(names), names=names)
    assert "(control.proj.weight, zero_conv.weight, …)" in headline(make_record(verdict), width=100)
    # The reason is left out before a name is.
    reasons = tuple(f"blocks.{i}.q.a: both factors of a low-rank product are 0" for i in range(4))
    verdict = make_verdict(measure="unusual_parameters", where="long " * 40, names=reasons)
    assert "(blocks.*.q.a (4))" in headline(make_record(verdict), width=80)
