"""Sessions without a measurement, for tests of reports: every kind of check, hostile names, and numbers that are not finite."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pytest_trainability.records.reports import (
    BaselineChange,
    BaselineRecord,
    BaselineSummary,
    CheckRecord,
    CureRecord,
    VerdictRecord,
)
from pytest_trainability.records.session import CheckOutcome, ErrorRecord, Outcome, SessionRecord
from pytest_trainability.records.values import ElementRecord, ModuleRecord, TensorRecord, ValueRecord

HOSTILE = (
    "a|b `c` <img src=x onerror=alert(1)> @someone ::error::x %0A #1\n## h\r\x1b[31m [l](u) *b* ~s~ \ud800 ##[error]y"
)
"""A name with everything that Markdown, HTML, a terminal or the log of a CI service could take for something else."""
ENVIRONMENT: dict[str, Any] = {
    "python": "3.12.1",
    "pytest": "9.2.0",
    "torch": "2.13.0",
    "numpy": "2.4.0",
    "pytest_trainability": "0.1.0",
    "platform": "linux x86_64",
    "processor": "a processor",
    "devices": ["cpu"],
    "command": "pytest",
    "threads": "1",
}
CREATED = "2026-11-30T03:50:00+00:00"


def verdict(measure: str = "log_gain", **changes: Any) -> VerdictRecord:
    """Return a verdict that holds."""
    given: dict[str, Any] = {
        "measure": measure,
        "value": -1.0,
        "value_low": -1.5,
        "value_high": -0.5,
        "unit": "nats",
        "scale": "linear",
        "low": -5.0,
        "high": 5.0,
        "holds": True,
        "marginal": False,
        "margin": 4.0,
        "seeds_needed": 0.0,
    }
    return VerdictRecord(**{**given, **changes})


BROKEN = verdict(value=-23.0, value_low=-23.5, value_high=-22.5, holds=False, margin=-18.0, violations=1)
CHANGE = BaselineChange("log_gain", "moved", old=0.22, new=1.77, shift=1.55, tolerance=0.3, unit="nats")
GAIN = ValueRecord(
    "log_gain", "estimate", "nats", "linear", "", (ElementRecord("", -1.0, -1.5, -0.5, (-0.9, -1.1, -0.8, -1.2)),)
)
RATES = ValueRecord(
    "growth_rate",
    "profile",
    "nats",
    "linear",
    "step",
    tuple(ElementRecord(name, -0.5, -0.6, -0.4, (-0.5, -0.5, -0.5, math.nan)) for name in ("0", "2")),
)


def record(test: str = "tests/test_a.py::test_tower", *verdicts: VerdictRecord, **changes: Any) -> CheckRecord:
    """Return the record of a tower of two layers."""
    given: dict[str, Any] = {
        "test": test,
        "name": "",
        "model": "Tower",
        "steps": "2 × Linear",
        "step_names": ("0", "2"),
        "frame": "per sample",
        "mode": "train",
        "device": "cpu",
        "dtype": "float32",
        "seeds": (0, 1, 2, 3),
        "seeds_requested": (0, 1, 2, 3),
        "fixed": False,
        "seconds": 0.25,
        "log_gain": -1.0,
        "log_gain_low": -1.5,
        "log_gain_high": -0.5,
        "growth": (-0.5, -0.5),
        "gradient_of": "the loss",
        "reproduce": f"pytest '{test}'",
        "file": "tests/test_a.py",
        "line": 7,
        "values": (GAIN, RATES),
        "modules": (ModuleRecord("", "Sequential", 1), ModuleRecord("{0,2}", "Linear", 2)),
        "tensors": (TensorRecord("{0,2}.weight", 2, (8, 8), 0.2, 0.0, ""),),
    }
    return CheckRecord(**{**given, **changes}, verdicts=verdicts)


def check(outcome: Outcome = "passed", *verdicts: VerdictRecord, **changes: Any) -> CheckOutcome:
    """Return a check of a tower."""
    return CheckOutcome(record(changes.pop("test", "tests/test_a.py::test_tower"), *verdicts, **changes), outcome)


def session(*checks: CheckOutcome, **changes: Any) -> SessionRecord:
    """Return a session of some checks."""
    return replace(SessionRecord(checks, measured=len(checks), environment=ENVIRONMENT, created=CREATED), **changes)


def broken(test: str = "tests/test_a.py::test_broken", **changes: Any) -> CheckOutcome:
    """Return a check that fails, with a cause and a cure."""
    given: dict[str, Any] = {
        "log_gain": -23.0,
        "cause": ("every step multiplies the gradient by 0.1",),
        "cures": (CureRecord("std=0.4", "log_gain", -23.0, -0.3),),
        "leaves_band": "at 2, 1 of 2 steps from the output",
        "line": 12,
    }
    return check("failed", BROKEN, test=test, **{**given, **changes})


def changed(test: str = "tests/test_a.py::test_changed", **changes: Any) -> CheckOutcome:
    """Return a check that differs from its baseline."""
    baseline = BaselineRecord(
        "changed",
        "tests/__trainability__/test_a.json",
        "test_changed › Tower › cpu float32",
        (CHANGE, BaselineChange("modules", "new", elements=("extra.{0-3}",))),
        command=f"pytest {test} --trainability-baseline=update",
        measures=("log_gain",),
        old_values=(GAIN,),
    )
    return check("failed", test=test, baseline=baseline, line=20, **changes)


def whole() -> SessionRecord:
    """Return a session with every kind of check, an error, numbers that are not finite, and hostile names."""
    infinite = math.inf
    marginal = verdict("gradient_norm", marginal=True, seeds_needed=infinite, worst=(("0.weight", math.nan),))
    return session(
        check("passed", verdict()),
        check("passed", marginal, verdict(low=None), test="tests/test_a.py::test_marginal"),
        check("passed", test="tests/test_a.py::test_nothing", log_gain=math.nan, log_gain_low=-infinite),
        check("passed", test="tests/test_a.py::test_assert", asserted=True),
        broken(),
        changed(),
        check("xfailed", BROKEN, test="tests/test_a.py::test_expected"),
        broken(f"tests/test_a.py::test_x[{HOSTILE}]", name=HOSTILE, model=HOSTILE, steps=HOSTILE, cause=(HOSTILE,)),
        errors=(ErrorRecord("tests/test_a.py::test_error", "ModelError", HOSTILE, "tests/test_a.py", 30),),
        baselines=BaselineSummary(written=(("a.json", 1, 0),), unused=(("a.json", "test_b", ""),), stale=("2.6",)),
        required=3,
        exit_status=1,
    )
