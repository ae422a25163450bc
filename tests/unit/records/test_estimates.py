"""Estimates and collections of them: arithmetic, comparison, text, pickling."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_trainability import Estimate, Names, Profile, Spectrum, Steps
from pytest_trainability.records.estimates import selected, value_text

NAN, INF = math.nan, math.inf


def one(mean: float, half: float = 0.5, **rest: Any) -> Estimate:
    return Estimate(mean=mean, low=mean - half, high=mean + half, values=(mean - half, mean + half), **rest)


def parts(e: Estimate) -> tuple[float, float, float, tuple[float, ...]]:
    return e.mean, e.low, e.high, e.values


def test_numbers_of_numpy_leave_arithmetic_to_an_estimate_without_an_interval() -> None:
    """NumPy before 2 would do it by itself, and warn of the NaN at the ends."""
    e = Estimate(mean=0.25, low=NAN, high=NAN, values=(0.25,))
    difference = np.float64(0.5) - e
    assert isinstance(difference, Estimate)
    assert (difference.mean, (np.float64(0.5) + e).mean) == (0.25, 0.75)


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


def test_comparison_with_another_type_is_an_error() -> None:
    assert one(1.0) != "one"
    assert one(1.0) != [1.0]
    with pytest.raises(TypeError):
        one(1.0) < "one"  # noqa: B015
    with pytest.raises(TypeError):
        one(1.0) < [2.0]  # noqa: B015


def test_an_estimate_does_not_compare_with_text() -> None:
    """As a float: ``1.0 == "1.0"`` is false."""
    assert one(1.0) != "1.0"
    with pytest.raises(TypeError):
        one(1.0) < "2.0"  # noqa: B015


@pytest.mark.parametrize("near", [0.1 + 1e-9, 0.1 - 1e-9])
def test_pytest_approx_accepts_an_estimate(near: float) -> None:
    assert one(near) == pytest.approx(0.1)
    assert pytest.approx(0.1) == one(near)
    assert one(0.2) != pytest.approx(0.1)
    assert math.isclose(one(near), 0.1, rel_tol=1e-6)


def test_estimates_of_equal_mean_have_the_same_hash() -> None:
    assert len({one(1.0), one(1.0, 0.7), 1.0}) == 1


def test_affine_maps_transform_the_interval() -> None:
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


def test_abs_folds_the_interval_at_zero() -> None:
    assert parts(abs(one(-2.0))) == (2.0, 1.5, 2.5, (2.5, 1.5))
    assert parts(abs(one(-0.25))) == (0.25, 0.0, 0.75, (0.75, 0.25))
    assert parts(abs(one(2.0))) == parts(one(2.0))


def test_arithmetic_of_two_estimates_returns_a_float() -> None:
    """Intervals do not add up in general."""
    a, b = one(6.0), one(2.0)
    for got, expected in ((a + b, 8.0), (a - b, 4.0), (a * b, 12.0), (a / b, 3.0), (12 / a, 2.0), (a**2, 36.0)):
        assert type(got) is float
        assert got == expected


def test_arithmetic_keeps_unit_and_name() -> None:
    e = one(1.0, unit="nats", name="layer.0") * 3
    assert (e.unit, e.name) == ("nats", "layer.0")


@pytest.mark.parametrize("operate", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_arithmetic_with_another_type_is_a_type_error(operate: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(TypeError):
        operate(one(1.0), "1")
    with pytest.raises(TypeError):
        operate("a", one(1.0))


def test_an_estimate_works_where_a_float_does() -> None:
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


def test_a_mean_over_seeds_of_which_some_are_nan_is_written_as_such() -> None:
    some, none = (Estimate(NAN, NAN, NAN, values, unit="nats", name="fc") for values in ((NAN, 1.0, NAN), (NAN, NAN)))
    assert str(some) == f"{some}" == "finite on 1 of 3 seeds"
    assert repr(some) == "finite on 1 of 3 seeds (fc)"
    assert repr(replace(some, name="")) == "finite on 1 of 3 seeds"
    assert repr(none) == "nan nats (fc, 2 seeds)"
    assert "min finite on 1 of 3 seeds (fc)" in repr(Profile({"fc": some}))
    assert repr(Spectrum((some, none))) == "Spectrum([finite on 1 of 3 seeds, nan] nats)"


def test_the_repr_counts_seeds() -> None:
    assert repr(Estimate(0.5, NAN, NAN, (0.5,), unit="nats")) == "+0.5 nats (1 seed)"
    assert repr(one(2.0, name="fc.weight")) == "2.00 ± 0.71 (fc.weight, 2 seeds)"


PROFILE = Profile({"a": one(1.0, name="a"), "b": one(3.0, name="b"), "c": one(2.0, name="c")})


def test_the_extremes_of_a_profile_have_names() -> None:
    assert (PROFILE.argmin, PROFILE.argmax) == ("a", "b")
    assert (PROFILE.min.name, PROFILE.max.name) == ("a", "b")
    assert list(PROFILE) == ["a", "b", "c"]
    assert PROFILE["c"] == 2.0


def test_a_profile_is_compared_element_by_element() -> None:
    assert PROFILE > 0.5
    assert PROFILE >= 1
    assert PROFILE < 3.5
    assert PROFILE <= 3
    assert not PROFILE > 1
    assert not PROFILE < 3
    assert 0.5 < PROFILE < 3.5
    assert not PROFILE > NAN


def test_nan_is_both_extremes_of_a_profile() -> None:
    broken = Profile({"a": one(1.0), "b": one(NAN)})
    assert broken.argmin == broken.argmax == "b"
    assert not broken > -INF
    assert not broken < INF


def test_an_empty_profile_satisfies_no_comparison() -> None:
    empty = PROFILE.excluding("*")
    assert len(empty) == 0
    assert not any((empty > 0, empty >= 0, empty < 0, empty <= 0))


def test_an_empty_profile_has_no_extremes() -> None:
    with pytest.raises(ValueError, match=r"^The profile is empty: it has no `\.min` and no `\.max`\."):
        Profile().min  # noqa: B018
    assert repr(Profile()) == "Profile(empty)"


def test_shell_patterns_filter_a_profile() -> None:
    names = Profile({n: one(1.0, name=n) for n in ("a.weight", "a.bias", "b.weight")})
    assert list(names.matching("*.weight")) == ["a.weight", "b.weight"]
    assert list(names.matching("a.*", "b.*")) == ["a.weight", "a.bias", "b.weight"]
    assert list(names.excluding("a.*")) == ["b.weight"]
    with pytest.raises(ValueError, match=r"^No name matches the pattern 'A\.\*'\."):
        names.excluding("A.*")


@pytest.mark.parametrize("choose", [Profile.matching, Profile.excluding])
def test_a_misspelt_pattern_is_refused_with_the_nearest_names(choose: Callable[..., Profile]) -> None:
    names = Profile({n: one(1.0, name=n) for n in ("a.key.weight", "a.key.bias", "b.weight")})
    with pytest.raises(ValueError, match=r"^No name matches the pattern '\*\.key\.bais'\. Nearest: a\.key\.bias, "):
        choose(names, "*.weight", "*.key.bais")
    assert list(selected(names, ["*.key.bais"], keep=False, every=False)) == list(names)


def test_a_spectrum_is_a_sequence() -> None:
    spectrum = Spectrum(tuple(one(float(-i), unit="nats/step") for i in range(10)))
    assert len(spectrum) == 10
    assert spectrum[0] == 0.0
    assert [e.mean for e in spectrum[1:3]] == [-1.0, -2.0]
    assert spectrum <= 0
    assert not spectrum < 0
    assert repr(spectrum) == "Spectrum([0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, … 2 more] nats/step)"
    assert repr(Spectrum(())) == "Spectrum([])"


def test_names_and_steps_are_sequences_of_strings() -> None:
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


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (one(1.0), "mean"),
        (PROFILE, "estimates"),
        (Spectrum((one(1.0),)), "exponents"),
        (Names(("a",), (1,)), "names"),
        (Steps(("0",), "1 × L"), "names"),
    ],
)
def test_values_are_frozen(value: Any, field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(value, field, None)


def test_an_unknown_element_is_reported_with_the_nearest_names() -> None:
    e = Estimate(1.0, 1.0, 1.0, (1.0,))
    profile = Profile({"0.weight": e, "0.bias": e})
    with pytest.raises(KeyError, match=r"No element '0\.wieght' in this profile \(2 elements\)\. Nearest: 0\.weight\."):
        profile["0.wieght"]
    assert "0.wieght" not in profile
    assert "0.weight" in profile
    assert profile.get("0.wieght") is None
    with pytest.raises(KeyError, match=r"No element 'x' in this profile \(1 element\)\."):
        Profile({"0.weight": e})["x"]


def test_integer_operations_use_the_mean() -> None:
    x = Estimate(7.5, 7.0, 8.0, (7.5,))
    assert (int(x), x // 2, x % 2) == (7, 3.0, 1.5)


def test_an_estimate_is_rounded_like_its_mean() -> None:
    x = Estimate(7.46, 7.0, 8.0, (7.46,))
    assert (round(x, 1), round(x)) == (7.5, 7)
    assert type(round(x)) is int


def test_the_text_of_a_profile_counts_the_elements_that_are_no_number() -> None:
    one, two, nan = (Estimate(x, x, x, (x,), name=name) for x, name in ((1.0, "a"), (2.0, "b"), (math.nan, "c.0")))
    assert value_text(Profile({"a": one, "b": two})) == "1 (a) to 2 (b)"
    assert value_text(Profile({"a": one, "c.0": nan})) == "no number in 1 of 2: c.0; else 1 (a)"
    assert value_text(Profile({"c.0": nan})) == "no number in 1 of 1: c.0"
