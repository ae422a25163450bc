"""Text on what has changed since a baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from pytest_trainability.records.reports import BaselineChange, BaselineRecord, CheckRecord, VerdictRecord
from pytest_trainability.report.changes import baseline_headline, baseline_lines, change_lines, change_texts
from pytest_trainability.report.explain import (
    explain_baseline,
)

NAN, INF = math.nan, math.inf
SOME = "finite on 1 of 8 seeds"
MakeRecord = Callable[..., CheckRecord]
MakeVerdict = Callable[..., VerdictRecord]


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
    "a constant tensor": (
        BaselineChange("initial values", "moved", "log_std", old=0.0, new=-20.0, shift=INF, unit="value"),
        "initial values log_std: 0 → -20",
    ),
    "another sign": (
        BaselineChange("initial values", "moved", "s", old=1.0, new=-2.0, shift=math.log(2), unit="value"),
        "initial values s: 1 → -2",
    ),
    "a larger constant": (
        BaselineChange("initial values", "moved", "s", old=-1.0, new=-2.0, shift=math.log(2), unit="value"),
        "initial values s ×2: -1 → -2",
    ),
    "other draws": (
        BaselineChange(
            "initial values", "moved", "w", old=0.1, new=0.2, shift=0.1, unit="mean", remark="which chance explains"
        ),
        "initial values w: mean 0.1 → 0.2, which chance explains",
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
    "a constant": (
        BaselineChange("settings", "moved", "b.*", old_text="mul(2)", new_text="mul(3)", count=2, considered=12),
        "settings       b.*: mul(2) → mul(3) (2 of 12)",
    ),
    "a new call": (BaselineChange("settings", "moved", "b.3", new_text="mul(3)"), "settings       b.3: mul(3) new"),
    "gone": (BaselineChange("modules", "vanished", elements=("b.3.ln2",)), "modules        1 gone: b.3.ln2"),
}


@pytest.mark.parametrize(("change", "line"), MODEL_CHANGES.values(), ids=MODEL_CHANGES.keys())
def test_changes_of_the_model_have_one_line(change: BaselineChange, line: str) -> None:
    rest = (
        ", all others unchanged" if change.kind == "moved" and change.measure not in {"operations", "settings"} else ""
    )
    assert change_lines([change], 200) == [line + rest]


def test_many_changes_of_the_model_are_counted() -> None:
    changes = [
        BaselineChange("initial values", "moved", f"w{i}", old=1.0, new=2.0, shift=math.log(2)) for i in range(9)
    ]
    assert change_lines(changes, 100)[-1] == "initial values and 4 more, all others unchanged"


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


def test_the_first_step_that_moved_is_named_before_the_largest() -> None:
    def moved(name: str, factor: float) -> BaselineChange:
        given = {"tolerance": 0.1, "scale": "log", "considered": 7}
        return BaselineChange("activation_rms", "moved", name, old=1.0, new=factor, shift=math.log(factor), **given)  # type: ignore[arg-type]

    text = "3 of 7 moved, first at flow.1 (1 → 1.5), 1e+31 times larger, more than 1.11: flow.5 (1 → 1e+31) and 1 more flow.*"
    assert change_texts([moved("flow.1", 1.5), moved("flow.5", 1e31), moved("flow.2", 20.0)]) == [text]
    text = "2 of 7 moved, 20 times larger, more than 1.11: flow.1 (1 → 20) and 1 more flow.*"
    assert change_texts([moved("flow.1", 20.0), moved("flow.2", 2.0)]) == [text]


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
    assert change_lines([odd], 100, full=True) == [
        "unused_parameters",
        "               1 parameter gets no gradient now: w.{0-99999999}",
    ]


def forward_changed(element: str, *folded: str, measure: str = "operations") -> BaselineChange:
    return BaselineChange(measure, "moved", element, elements=folded, old_text="Gelu", new_text="Relu")


SHIFTS = [
    BaselineChange("activation_rms", "moved", name, old=1.0, new=2.0, shift=shift, tolerance=0.1, scale="log")
    for name, shift in (("b.3", 0.9), ("b.2", 0.7))
]


def growth(name: str) -> BaselineChange:
    return BaselineChange("growth_rate", "moved", name, old=0.0, new=0.5, shift=0.5, tolerance=0.05, unit="nats")


def gradients(*shifts: float, considered: int | None = None) -> list[BaselineChange]:
    given = {"tolerance": 0.3, "scale": "log", "considered": considered or len(shifts)}
    return [
        BaselineChange("gradient_norm", "moved", f"w{i}", old=1.0, new=math.exp(shift), shift=shift, **given)  # type: ignore[arg-type]
        for i, shift in enumerate(shifts)
    ]


NOT_SEEN = (
    "a constant, a mask, a reshape, another operand, a detach, code under no_grad, the inputs or the loss changed"
)
ALL = f"initial values, modules and operations unchanged: {NOT_SEEN}"
LOST = BaselineChange("unused_parameters", "new", elements=("b.5.weight", "b.5.bias"))
GONE = BaselineChange("growth_rate", "vanished", elements=("b.4", "b.5"))
COMPARED = {"model_compared": True, "operations_compared": True}
UNCHANGED: dict[str, tuple[dict[str, bool], list[BaselineChange], str]] = {
    # The first step in program order is named, although a later one has moved more.
    "numbers": (
        {"model_compared": True},
        SHIFTS,
        f"initial values and modules unchanged: {NOT_SEEN}, first at b.2",
    ),
    "an old baseline": ({}, SHIFTS, ""),
    "no operation": (
        {"model_compared": True, "operations_compared": True},
        SHIFTS,
        f"{ALL}, first at b.2",
    ),
    "operations": (
        {"model_compared": True, "operations_compared": True},
        [forward_changed("b.3", "b.3"), forward_changed("b.*", "b.{1,10}"), *SHIFTS],
        "initial values and modules unchanged: the forward code changed, first at b.1",
    ),
    "operations of a part of a step": (
        {"model_compared": True, "operations_compared": True},
        [
            forward_changed("b.*", "b.{1,10}"),
            forward_changed("b.*.gate", "b.{1,10}.gate", measure="settings"),
            forward_changed("b.*.gate.norm", "b.{1,10}.gate.norm", measure="settings"),
            *SHIFTS,
        ],
        "initial values and modules unchanged: the forward code changed, first at b.1.gate",
    ),
    "operations of several parts of a step": (
        {"model_compared": True, "operations_compared": True},
        [
            forward_changed("b.1", "b.1"),
            forward_changed("b.1.gate", "b.1.gate", measure="settings"),
            forward_changed("b.1.norm", "b.1.norm", measure="settings"),
        ],
        "initial values and modules unchanged, all numbers within tolerance: the forward code changed, first at b.1",
    ),
    "a gradient that ends": (
        {"model_compared": True, "operations_compared": True},
        [
            forward_changed("b.3", "b.3"),
            BaselineChange("settings", "moved", "b.1", old_text="mul(x, 2)", new_text="mul(x, 2, no_grad), add(1)"),
            *SHIFTS,
        ],
        (
            "initial values and modules unchanged: the forward code changed, and a gradient ends in b.1 at "
            "mul(x, 2, no_grad)"
        ),
    ),
    "a gradient that ends, without other operations": (
        {"model_compared": True, "operations_compared": True},
        [BaselineChange("settings", "moved", "b.1", new_text="detach(inner) (read by out)"), *SHIFTS],
        (
            "initial values, modules and operations unchanged: the forward code changed, and a gradient ends in b.1 at "
            "detach(inner)"
        ),
    ),
    "a gradient that ended before": (
        {"model_compared": True, "operations_compared": True},
        [BaselineChange("settings", "moved", "b.1", old_text="detach(a)", new_text="detach(b)"), *SHIFTS],
        "initial values, modules and operations unchanged: a constant of the forward pass changed",
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
    "operations that cut parameters off": (
        {"model_compared": True, "operations_compared": True},
        [
            forward_changed("b.3", "b.3"),
            LOST,
        ],
        "initial values and modules unchanged: the forward code changed, so that b.5.weight, b.5.bias get no gradient",
    ),
    "growth in front of the states": (
        COMPARED,
        [growth("b.1"), *SHIFTS, growth("b.3")],
        f"{ALL}, first at b.2, or in what later steps read of its output",
    ),
    "growth behind the states": (COMPARED, [*SHIFTS, growth("b.3")], f"{ALL}, first at b.2"),
    "growth alone": (COMPARED, [growth("b.1"), growth("b.2")], f"{ALL}, in the backward pass first at b.2"),
    "the first state": (
        {"model_compared": True, "operations_compared": True},
        [replace(SHIFTS[0], element="input"), *SHIFTS],
        f"{ALL}, first at input",
    ),
    "a constant in the code": (
        COMPARED,
        [BaselineChange("settings", "moved", "b.1", old_text="mul(2)", new_text="mul(3)"), *SHIFTS],
        "initial values, modules and operations unchanged: a constant of the forward pass changed",
    ),
    "a call that is gone": (
        COMPARED,
        [BaselineChange("settings", "moved", "b.1", old_text="squeeze(dim=-1)"), *SHIFTS],
        "initial values, modules and operations unchanged: a call in the forward pass changed",
    ),
    "another shape of the output": (
        COMPARED,
        [BaselineChange("output", "moved", old_text="(32,)", new_text="(32, 1)"), *SHIFTS],
        "initial values and modules unchanged: the forward code changed",
    ),
    "parameters without a gradient": (
        COMPARED,
        [LOST, *SHIFTS],
        (
            "initial values, modules and operations unchanged: the gradient is cut, as by a detach, code under no_grad, a draw "
            "without gradient, or a loss that leaves results out, so that b.5.weight, b.5.bias get no gradient"
        ),
    ),
    # Only what both sides have is compared.
    "steps that are gone": (
        COMPARED,
        [BaselineChange("gradient path", "vanished", elements=("b.4",)), GONE, *SHIFTS],
        (
            "initial values, modules and operations of the steps that remain unchanged: the gradient is cut in front of b.4, as "
            "by a detach, code under no_grad or a draw without gradient"
        ),
    ),
    "gradients and states": (COMPARED, [*gradients(2.7, 2.7, 2.7), *SHIFTS], f"{ALL}, first at b.2"),
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
    lines = [line for line in explain_baseline(record, width=250).splitlines() if line.startswith("  model ")]
    assert lines == ([f"  model          {text}"] if text else [])


def test_a_custom_function_may_have_another_backward_pass(make_record: MakeRecord) -> None:
    baseline = BaselineRecord("changed", "f.json", "t › T", tuple(SHIFTS), custom_functions=("SignSTE",), **COMPARED)
    text = explain_baseline(make_record(step_names=("b.2", "b.3"), baseline=baseline), width=250)
    assert "code under no_grad, the backward pass of SignSTE, the inputs or the loss changed, first at b.2" in text


FRAME = BaselineChange("frame", "moved", old_text="joint", new_text="per sample")
PATH = BaselineChange("gradient path", "vanished", elements=("judge.0",))


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        (
            [FRAME, *SHIFTS, LOST],
            "unused_parameters changed since the baseline: 2 parameters get no gradient now: b.5",
        ),
        (
            [FRAME, PATH, *SHIFTS, LOST],
            "gradient path changed since the baseline: no gradient passes into judge.0 any longer; 3",
        ),
        ([FRAME, *SHIFTS], "activation_rms changed since the baseline: "),
        ([forward_changed("b.1", "b.1"), FRAME, LOST], "unused_parameters changed since the baseline: "),
        (
            [BaselineChange("initial values", "moved", "w", old=1.0, new=0.0, shift=-INF), FRAME, LOST],
            "initial values changed since the baseline: w: rms 1 → 0, all others unchanged; 2 more differ",
        ),
    ],
)
def test_the_headline_is_the_weightiest_change(changes: list[BaselineChange], headline: str) -> None:
    assert baseline_headline(BaselineRecord("changed", "f.json", "t › T", tuple(changes), **COMPARED)).startswith(
        headline
    )


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (
            ("per sample", "joint"),
            "per sample → joint: samples have no gradients of their own any longer, as where they interact",
        ),
        (
            ("joint", "per sample"),
            "joint → per sample: samples have gradients of their own now, as where they do not interact",
        ),
    ],
)
def test_another_frame_says_whether_samples_interact(frames: tuple[str, str], text: str) -> None:
    change = BaselineChange("frame", "moved", old_text=frames[0], new_text=frames[1])
    assert change_lines([change], 200) == [f"frame          {text}"]


SCALED = "times {}, but states and growth are as before: the loss or the output is scaled"
SCALES: dict[str, tuple[list[BaselineChange], str]] = {
    "a loss of another scale": (gradients(2.75, 2.77, 2.78), f"all are 16.1 {SCALED.format('larger')}"),
    "gradients that a type rounds": (
        gradients(-6.9, -4.6, -9.2),
        f"all are up to 9.9e+03 {SCALED.format('smaller')}",
    ),
    "operations": ([forward_changed("b.3"), *gradients(1.0, 1.0, 1.0)], f"all are 2.72 {SCALED.format('larger')}"),
    "gradients of both signs": (gradients(2.7, 2.7, -2.7), ""),
    "some gradients": (gradients(2.7, 2.7, 2.7, considered=4), ""),
    "gradients of two parameters": (gradients(2.7, 2.7), ""),
    "gradients that vanish": (gradients(-2.7, -2.7, -math.inf), ""),
    "an initial value": ([BaselineChange("initial values", "moved", "b.3.bias"), *gradients(2.7, 2.7, 2.7)], ""),
    "gradients and states": ([*gradients(2.7, 2.7, 2.7), *SHIFTS], ""),
    "states": (SHIFTS, ""),
}


@pytest.mark.parametrize(("changes", "text"), SCALES.values(), ids=SCALES.keys())
def test_gradients_that_change_alone_are_those_of_another_loss(changes: list[BaselineChange], text: str) -> None:
    record = BaselineRecord("changed", "f.json", "t › T", tuple(changes))
    lines = [line for line in baseline_lines(record, steps=(), width=200) if line.startswith("gradients ")]
    assert lines == ([f"gradients      {text}"] if text else [])
