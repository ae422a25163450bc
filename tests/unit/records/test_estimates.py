"""Numbers with names: arithmetic, comparison, writing, and the way to another process and back."""

from __future__ import annotations

import copy
import json
import math
import operator
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_trainability import Estimate, Names, Profile, Spectrum, Steps
from pytest_trainability.records.reports import CheckRecord, VerdictRecord
from pytest_trainability.records.text import format_number, format_value

NAN, INF = math.nan, math.inf


def one(mean: float, half: float = 0.5, **rest: Any) -> Estimate:
    return Estimate(mean=mean, low=mean - half, high=mean + half, values=(mean - half, mean + half), **rest)


def parts(e: Estimate) -> tuple[float, float, float, tuple[float, ...]]:
    return e.mean, e.low, e.high, e.values


COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize("number", [-3, -2.0, -1.5, NAN, INF, -INF, np.float64(-2), np.float32(-3), True])
def test_an_estimate_compares_like_its_mean(compare: Callable[[Any, Any], bool], number: float) -> None:
    e = one(-2.0)
    assert bool(compare(e, number)) is bool(compare(-2.0, number))
    assert bool(compare(number, e)) is bool(compare(number, -2.0))
    assert bool(compare(e, one(float(number)))) is bool(compare(-2.0, number))


@pytest.mark.parametrize("compare", COMPARISONS[:4])
def test_nan_satisfies_no_comparison(compare: Callable[[Any, Any], bool]) -> None:
    assert not compare(one(NAN), 0.0)
    assert not compare(0.0, one(NAN))


def test_comparison_with_what_is_no_number_is_an_error() -> None:
    assert one(1.0) != "one"
    assert one(1.0) != [1.0]
    with pytest.raises(TypeError):
        one(1.0) < "one"  # noqa: B015
    with pytest.raises(TypeError):
        one(1.0) < [2.0]  # noqa: B015


def test_text_is_no_number() -> None:
    """``1.0 == "1.0"`` is false, too."""
    assert one(1.0) != "1.0"
    with pytest.raises(TypeError):
        one(1.0) < "2.0"  # noqa: B015


@pytest.mark.parametrize("near", [0.1 + 1e-9, 0.1 - 1e-9])
def test_pytest_approx_takes_an_estimate(near: float) -> None:
    """What a user of pytest reaches for first."""
    assert one(near) == pytest.approx(0.1)
    assert pytest.approx(0.1) == one(near)
    assert one(0.2) != pytest.approx(0.1)
    assert math.isclose(one(near), 0.1, rel_tol=1e-6)


def test_equal_means_hash_alike() -> None:
    assert len({one(1.0), one(1.0, 0.7), 1.0}) == 1


def test_an_affine_map_takes_the_interval_along() -> None:
    e = one(2.0)
    assert parts(e + 1) == parts(1 + e) == (3.0, 2.5, 3.5, (2.5, 3.5))
    assert parts(e - 1) == (1.0, 0.5, 1.5, (0.5, 1.5))
    assert parts(1 - e) == (-1.0, -1.5, -0.5, (-0.5, -1.5))
    assert parts(-e) == (-2.0, -2.5, -1.5, (-1.5, -2.5))
    assert parts(e * 2) == parts(2 * e) == (4.0, 3.0, 5.0, (3.0, 5.0))
    assert parts(e * -2) == (-4.0, -5.0, -3.0, (-3.0, -5.0))
    assert parts(e / 2) == (1.0, 0.75, 1.25, (0.75, 1.25))
    assert +e is e
    assert e.half_width == 0.5


def test_magnitude_folds_the_interval() -> None:
    assert parts(abs(one(-2.0))) == (2.0, 1.5, 2.5, (2.5, 1.5))
    assert parts(abs(one(-0.25))) == (0.25, 0.0, 0.75, (0.75, 0.25))
    assert parts(abs(one(2.0))) == parts(one(2.0))


def test_two_estimates_give_a_number() -> None:
    """Their intervals do not add up in general, so none is claimed."""
    a, b = one(6.0), one(2.0)
    for got, expected in ((a + b, 8.0), (a - b, 4.0), (a * b, 12.0), (a / b, 3.0), (12 / a, 2.0), (a**2, 36.0)):
        assert type(got) is float
        assert got == expected


def test_arithmetic_keeps_unit_and_name() -> None:
    e = one(1.0, unit="nats", name="layer.0") * 3
    assert (e.unit, e.name) == ("nats", "layer.0")


@pytest.mark.parametrize("operate", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_arithmetic_with_what_is_no_number_is_a_type_error(operate: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(TypeError):
        operate(one(1.0), "1")
    with pytest.raises(TypeError):
        operate("a", one(1.0))


def test_an_estimate_serves_where_a_float_does() -> None:
    e = one(2.0)
    assert float(e) == 2.0
    assert math.sqrt(e) == math.sqrt(2.0)
    assert f"{e:.3f}" == "2.000"
    assert max([one(1.0), e]) is e
    assert round(e, 1) == 2.0
    assert 2**e == 4.0
    assert not one(0.0), "a float of zero is false"


def test_infinite_and_undefined_estimates_survive_arithmetic() -> None:
    gone = Estimate(-INF, NAN, NAN, (-INF, -1.0))
    assert abs(gone).mean == INF
    assert (gone + 1).mean == -INF
    assert str(gone) == "-inf"
    assert repr(gone) == "-inf (2 seeds)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345, "0.0123"),
        (3.14159e-9, "3.14e-09"),
        (-14.4042, "-14.4"),
        (0.0, "0"),
        (5, "5"),
        (1e6, "1e+06"),
        (INF, "inf"),
        (-INF, "-inf"),
        (NAN, "nan"),
    ],
)
def test_numbers_are_written_as_a_person_would(value: float, text: str) -> None:
    assert format_number(value) == text


def test_a_bound_at_zero_has_no_sign() -> None:
    assert format_number(-0.0) == "0"


@pytest.mark.parametrize(
    ("args", "unit", "scale", "text"),
    [
        ((-14.41, -14.7, -14.12), "nats", "linear", "-14.41 ± 0.29 nats"),
        ((0.22, 0.2, 0.24), "nats", "linear", "+0.220 ± 0.020 nats"),
        ((0.22, 0.2, 0.24), "", "linear", "0.220 ± 0.020"),
        ((120.0, 90.0, 150.0), "nats", "linear", "+120 ± 30 nats"),
        ((-0.5, NAN, NAN), "nats/step", "linear", "-0.5 nats/step"),
        ((-INF, NAN, NAN), "nats", "linear", "-inf nats"),
        ((NAN, NAN, NAN), "", "linear", "nan"),
        ((3e-9, 2e-9, 4.5e-9), "", "log", "3.00e-09 ×/÷ 1.5"),
        ((0.25, 0.125, 0.5), "", "log", "0.25 ×/÷ 2"),
        ((0.0, NAN, NAN), "", "log", "0"),
        ((2.0, 2.0, 2.0), "", "linear", "2"),
    ],
)
def test_values_are_written_with_their_interval(
    args: tuple[float, float, float], unit: str, scale: str, text: str
) -> None:
    assert format_value(*args, unit=unit, scale=scale) == text


@pytest.mark.parametrize("half", [10.0**k for k in range(-12, 13)])
@pytest.mark.parametrize("mean", [0.0, 1e-9, -14.4, 1e6])
def test_the_interval_has_two_digits_and_the_mean_no_more(mean: float, half: float) -> None:
    """Whatever the sizes, what is written lies within a tenth of the interval's own width of the truth."""
    if mean + half == mean:
        pytest.skip("no such interval in float64")
    text = format_value(mean, mean - half, mean + half)
    written, _, width = text.partition(" ± ")
    assert float(width) == pytest.approx((mean + half - (mean - half)) / 2, rel=0.06)
    assert float(written) == pytest.approx(mean, rel=1e-2, abs=0.1 * half)


def test_one_seed_is_singular() -> None:
    assert repr(Estimate(0.5, NAN, NAN, (0.5,), unit="nats")) == "+0.5 nats (1 seed)"
    assert repr(one(2.0, name="fc.weight")) == "2.00 ± 0.50 (fc.weight, 2 seeds)"


PROFILE = Profile({"a": one(1.0, name="a"), "b": one(3.0, name="b"), "c": one(2.0, name="c")})


def test_a_profile_knows_its_extremes_by_name() -> None:
    assert (PROFILE.argmin, PROFILE.argmax) == ("a", "b")
    assert (PROFILE.min.name, PROFILE.max.name) == ("a", "b")
    assert list(PROFILE) == ["a", "b", "c"]
    assert PROFILE["c"] == 2.0


def test_comparing_a_profile_asks_every_element() -> None:
    assert PROFILE > 0.5
    assert PROFILE >= 1
    assert PROFILE < 3.5
    assert PROFILE <= 3
    assert not PROFILE > 1
    assert not PROFILE < 3
    assert 0.5 < PROFILE < 3.5
    assert not PROFILE > NAN


def test_nan_is_the_worst_element() -> None:
    broken = Profile({"a": one(1.0), "b": one(NAN)})
    assert broken.argmin == broken.argmax == "b"
    assert not broken > -INF
    assert not broken < INF


def test_an_empty_profile_satisfies_nothing() -> None:
    """A bound on it does not hold either; ``matching("*.wieght") > 1e-7`` must not be a green light."""
    empty = PROFILE.matching("*.wieght")
    assert len(empty) == 0
    assert not any((empty > 0, empty >= 0, empty < 0, empty <= 0))


def test_an_empty_profile_says_so() -> None:
    with pytest.raises(ValueError, match=r"must have an element for `\.min`"):
        Profile().min  # noqa: B018
    assert repr(Profile()) == "Profile(empty)"


def test_profiles_are_filtered_by_shell_patterns() -> None:
    names = Profile({n: one(1.0, name=n) for n in ("a.weight", "a.bias", "b.weight")})
    assert list(names.matching("*.weight")) == ["a.weight", "b.weight"]
    assert list(names.matching("a.*", "b.*")) == ["a.weight", "a.bias", "b.weight"]
    assert list(names.excluding("a.*")) == ["b.weight"]
    assert list(names.excluding("A.*")) == ["a.weight", "a.bias", "b.weight"]


def test_a_spectrum_is_a_sequence() -> None:
    spectrum = Spectrum(tuple(one(float(-i), unit="nats/step") for i in range(10)))
    assert len(spectrum) == 10
    assert spectrum[0] == 0.0
    assert [e.mean for e in spectrum[1:3]] == [-1.0, -2.0]
    assert spectrum <= 0
    assert not spectrum < 0
    assert repr(spectrum) == "Spectrum([0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, … 2 more] nats/step)"
    assert repr(Spectrum(())) == "Spectrum([])"


def test_names_and_steps_are_sequences_of_text() -> None:
    assert list(Names(("a", "b"), (1, 2))) == ["a", "b"]
    assert not Names((), (0,))
    steps = Steps(("0", "2"), "2 × Linear")
    assert (len(steps), steps[1], steps[:1], str(steps)) == (2, "2", ("0",), "2 × Linear")


@pytest.mark.parametrize(
    "value", [one(1.0), PROFILE, Spectrum((one(1.0),)), Names(("a",), (1,)), Steps(("0",), "1 × L")]
)
def test_values_can_be_pickled_and_copied(value: Any) -> None:
    assert repr(pickle.loads(pickle.dumps(value))) == repr(value)
    assert repr(copy.deepcopy(value)) == repr(value)


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        one(1.0).mean = 2.0  # type: ignore[misc]


def only_plain(value: Any) -> bool:
    """Whether execnet, which looks at exact types, carries a value to another process."""
    if type(value) is dict:
        return all(type(key) is str and only_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(only_plain, value))
    return value is None or type(value) in {str, int, float, bool}


@pytest.mark.parametrize("odd", [INF, -INF, NAN, 0.0, -1e-300])
def test_a_record_survives_the_way_through_json(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord], odd: float
) -> None:
    verdict = make_verdict(value=odd, margin=odd, low=None, worst=(("a", odd), ("b", 1.0)), where="a")
    sent = make_record(verdict, make_verdict(), log_gain=odd, growth=(odd, 1.0), cause=("because",), notes=("a", "b"))
    plain = sent.to_plain()
    assert only_plain(plain)
    received = CheckRecord.from_plain(json.loads(json.dumps(plain)))
    assert repr(received) == repr(sent)
    if not math.isnan(odd):
        assert received == sent


def test_a_record_of_numpy_numbers_is_sent_as_plain_ones(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord]
) -> None:
    """``within(np.log(10))`` ends up here."""
    assert only_plain(make_record(make_verdict(high=np.float64(3.0))).to_plain())


def test_a_record_holds_when_every_verdict_does(
    make_record: Callable[..., CheckRecord], make_verdict: Callable[..., VerdictRecord]
) -> None:
    good = replace(make_verdict(), holds=True)
    assert make_record().holds
    assert make_record(good, good).holds
    assert not make_record(good, make_verdict()).holds


def test_an_unknown_element_names_the_nearest() -> None:
    e = Estimate(1.0, 1.0, 1.0, (1.0,))
    profile = Profile({"0.weight": e, "0.bias": e})
    with pytest.raises(KeyError, match=r"'0\.wieght' is none of 2\. Nearest: 0\.weight"):
        profile["0.wieght"]
    assert "0.wieght" not in profile
    assert profile.get("0.wieght") is None


def test_whole_numbers_of_an_estimate() -> None:
    x = Estimate(7.5, 7.0, 8.0, (7.5,))
    assert (int(x), x // 2, x % 2) == (7, 3.0, 1.5)
