"""Records: their properties, and their conversion to plain data and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_trainability.records.reports import (
    BaselineChange,
    BaselineRecord,
    BaselineSummary,
    CheckRecord,
    VerdictRecord,
    plain,
)

NAN, INF = math.nan, math.inf
SOME = "finite on 1 of 8 seeds"


def only_plain(value: Any) -> bool:
    """Whether execnet, which compares exact types, can send a value to another process."""
    if type(value) is dict:
        return all(type(key) is str and only_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(only_plain, value))
    return value is None or type(value) in {str, int, float, bool}


@pytest.mark.parametrize("odd", [INF, -INF, NAN, 0.0, -1e-300])
def test_a_record_survives_json(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord], odd: float
) -> None:
    verdict = make_verdict(value=odd, margin=odd, low=None, worst=(("a", odd), ("b", 1.0)), where="a")
    sent = make_record(verdict, make_verdict(), log_gain=odd, growth=(odd, 1.0), cause=("because",), notes=("a", "b"))
    written = sent.to_plain()
    assert only_plain(written)
    received = CheckRecord.from_plain(json.loads(json.dumps(written)))
    assert repr(received) == repr(sent)
    if not math.isnan(odd):
        assert received == sent


def test_numpy_numbers_become_plain_numbers(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord]
) -> None:
    """A bound such as ``within(np.log(10))`` contains them."""
    assert only_plain(make_record(make_verdict(high=np.float64(3.0))).to_plain())


MOVED = BaselineChange("log_gain", "moved", old=0.22, new=1.77, shift=1.55, tolerance=0.3, unit="nats")
GONE = BaselineChange("gradient_norm", "vanished", elements=("a", "b"))


def baseline(status: Any, *changes: BaselineChange) -> BaselineRecord:
    return BaselineRecord(status, "__trainability__/test_init.json", "test_tower › Tower › cpu float32", changes)


def test_a_record_with_a_baseline_survives_json(make_record: Callable[..., CheckRecord]) -> None:
    sent = make_record(baseline=baseline("changed", MOVED, replace(GONE, shift=0.0, old=0.0, new=0.0, tolerance=0.0)))
    written = sent.to_plain()
    assert only_plain(written)
    assert CheckRecord.from_plain(json.loads(json.dumps(written))) == sent


def test_half_characters_are_escaped_for_other_processes() -> None:
    """Names from a file may contain surrogates, which UTF-8 cannot encode."""
    assert plain({"a\ud800": ("b\udfff", 1, None, True)}) == {"a\\ud800": ["b\\udfff", 1, None, True]}


@pytest.mark.parametrize(
    ("status", "holds"),
    [("same", True), ("recorded", True), ("updated", True), ("changed", False), ("missing", False)],
)
def test_a_changed_or_missing_baseline_does_not_hold(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord], status: str, *, holds: bool
) -> None:
    assert baseline(status).holds is holds
    assert make_record(make_verdict(holds=True), baseline=baseline(status)).holds is holds
    assert not make_record(make_verdict(), baseline=baseline(status)).holds


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (MOVED, "+0.22 → +1.77 nats"),
        (replace(MOVED, unit="", old=-0.0), "0 → 1.77"),
        (replace(MOVED, unit="nats/step", new=-math.inf), "+0.22 → -inf nats/step"),
        (replace(MOVED, new=NAN, new_finite=SOME), "+0.22 nats → finite on 1 of 8 seeds"),
        (replace(MOVED, new=INF, new_finite=SOME), "+0.22 nats → finite on 1 of 8 seeds"),
        (replace(MOVED, old=NAN, old_finite=SOME), "finite on 1 of 8 seeds → +1.77 nats"),
        (
            replace(MOVED, old=NAN, old_finite=SOME, new=NAN, new_finite="finite on 2 of 8 seeds"),
            "finite on 1 of 8 seeds → finite on 2 of 8 seeds",
        ),
        (
            replace(MOVED, old_finite=SOME, new_finite=SOME),
            "+0.22 (finite on 1 of 8 seeds) → +1.77 (finite on 1 of 8 seeds) nats",
        ),
    ],
)
def test_a_change_shows_both_means_with_sign_and_unit(change: BaselineChange, text: str) -> None:
    assert change.old_to_new == text


def test_a_verdict_is_settled_unless_it_is_marginal(make_verdict: Callable[..., VerdictRecord]) -> None:
    verdict = make_verdict()
    assert (verdict.seeds_needed, verdict.elements, verdict.worst, verdict.where) == (0, 1, (), "")


def test_records_are_frozen(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord]
) -> None:
    frozen = [(make_record(), "test"), (make_verdict(), "holds"), (MOVED, "shift"), (baseline("same"), "status")]
    for record, field in [*frozen, (BaselineSummary(), "pruned")]:
        with pytest.raises(AttributeError):
            setattr(record, field, None)


def test_a_remark_follows_the_value(make_verdict: Callable[..., VerdictRecord]) -> None:
    assert make_verdict().value_text == "-14.40 ± 0.30 nats"
    assert make_verdict(remark="ln 10 = 2.3").value_text == "-14.40 ± 0.30 nats (ln 10 = 2.3)"


def test_the_log_gain_of_a_record_is_shown_with_its_interval(make_record: Callable[..., CheckRecord]) -> None:
    assert make_record().log_gain_text == "-14.40 ± 0.30 nats"


def test_a_mean_over_seeds_of_which_some_are_nan_is_shown_as_such(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord]
) -> None:
    record = make_record(log_gain=NAN, log_gain_low=NAN, log_gain_high=NAN, log_gain_finite=SOME)
    verdict = make_verdict(value=NAN, value_low=NAN, value_high=NAN, finite=SOME)
    assert record.log_gain_text == verdict.value_text == SOME


def test_a_record_holds_when_every_verdict_does(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord]
) -> None:
    good = replace(make_verdict(), holds=True)
    assert make_record().holds
    assert make_record(good, good).holds
    assert not make_record(good, make_verdict()).holds


def test_a_number_that_is_none_has_no_sign() -> None:
    assert BaselineChange("growth_rate", "moved", "b", old=0.0, new=NAN, unit="nats").old_to_new == "+0 → nan nats"
