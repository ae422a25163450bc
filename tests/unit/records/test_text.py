"""Numbers, names and intervals as text."""

from __future__ import annotations

import math
import sys

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pytest_trainability.records.text import (
    as_code,
    as_toml,
    format_finite,
    format_names,
    format_number,
    format_value,
    short_repr,
    short_text,
    visible,
)

NAN, INF = math.nan, math.inf


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
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_negative_zero_has_no_sign() -> None:
    assert format_number(-0.0) == "0"


@pytest.mark.parametrize(
    ("args", "unit", "scale", "text"),
    [
        ((-14.41, -14.7, -14.12), "nats", "linear", "-14.41 ± 0.29 nats"),
        ((0.22, 0.2, 0.24), "nats", "linear", "+0.220 ± 0.020 nats"),
        ((0.22, 0.2, 0.24), "", "linear", "0.220 ± 0.020"),
        ((120.0, 90.0, 150.0), "nats", "linear", "+120 ± 30 nats"),
        # without decimals, but with all digits in front of them
        ((1234.0, 1204.0, 1264.0), "nats", "linear", "+1234 ± 30 nats"),
        ((1234.0, 1034.0, 1434.0), "nats", "linear", "+1.23e+03 ± 2e+02 nats"),
        # six decimals at most
        ((0.5, 0.5 - 2e-5, 0.5 + 2e-5), "", "linear", "0.500000 ± 0.000020"),
        ((0.5, 0.5 - 2e-6, 0.5 + 2e-6), "", "linear", "0.5 ± 2e-06"),
        ((-0.5, NAN, NAN), "nats/step", "linear", "-0.5 nats/step"),
        ((-INF, NAN, NAN), "nats", "linear", "-inf nats"),
        ((NAN, NAN, NAN), "", "linear", "nan"),
        ((3e-9, 2e-9, 4.5e-9), "", "log", "3.00e-09 ×/÷ 1.5"),
        ((0.25, 0.125, 0.5), "", "log", "0.25 ×/÷ 2"),
        ((0.0, NAN, NAN), "", "log", "0"),
        ((2.0, 2.0, 2.0), "", "linear", "2"),
    ],
)
def test_values_are_formatted_with_their_interval(
    args: tuple[float, float, float], unit: str, scale: str, text: str
) -> None:
    assert format_value(*args, unit=unit, scale=scale) == text


@pytest.mark.parametrize("half", [10.0**k for k in range(-12, 13)])
@pytest.mark.parametrize("mean", [0.0, 1e-9, -14.4, 1e6])
def test_the_mean_has_as_many_decimals_as_the_interval(mean: float, half: float) -> None:
    """At any magnitude the text is within a tenth of the half-width of the mean."""
    if mean + half == mean:
        pytest.skip("no such interval in float64")
    text = format_value(mean, mean - half, mean + half)
    written, _, width = text.partition(" ± ")
    assert float(width) == pytest.approx((mean + half - (mean - half)) / 2, rel=0.06)
    assert float(written) == pytest.approx(mean, rel=1e-2, abs=0.1 * half)


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b, …")],
)
def test_at_most_two_names_are_listed(names: list[str], text: str) -> None:
    assert format_names(names) == text


def test_the_number_of_names_can_be_chosen() -> None:
    assert format_names(["a", "b", "c"], most=3) == "a, b, c"
    assert format_names(["a", "b", "c"], most=1) == "a, …"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([f"blocks.{i}.{w}" for i in range(12) for w in ("q", "k")], "blocks.*.q (12), blocks.*.k (12)"),
        (["blocks.3.q", "head", *(f"blocks.{i}.k" for i in range(2))], "blocks.3.q, head, …"),
        (["blocks.0.n: drawn", "blocks.1.n: drawn"], "blocks.*.n: drawn (2)"),
        (
            ["blocks.0.w: gain 7.2", "blocks.1.w: gain 10", "w: gain 7.2"],
            "blocks.0.w: gain 7.2 and 1 more blocks.*.w, w: gain 7.2",
        ),
    ],
)
def test_names_that_differ_by_numbers_are_one(names: list[str], text: str) -> None:
    assert format_names(names) == text


@pytest.mark.parametrize(
    ("args", "text"),
    [
        # a narrow interval of a log-scale measure needs three digits of its factor
        ((1.0, 1 / 1.05, 1.05), "1 ×/÷ 1.05"),
        ((1.0, 1 / 1.5, 1.5), "1 ×/÷ 1.5"),
        ((9.99e-4, 9e-4, 1.1e-3), "9.99e-04 ×/÷ 1.1"),
        ((1e-3, 9e-4, 1.1e-3), "0.001 ×/÷ 1.1"),
        # a factor down to zero cannot be written
        ((1.0, 0.0, math.inf), "1"),
        ((1.0, 0.0, 1e300), "1"),
    ],
)
def test_a_log_scale_value_has_a_factor(args: tuple[float, float, float], text: str) -> None:
    assert format_value(*args, scale="log") == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.0, NAN, INF, -INF, 0.0), "finite on 2 of 5 seeds"),
        ((NAN, None, 1.0), "finite on 1 of 2 seeds"),
        ((1.0, 2.0, None), ""),
        ((NAN, NAN), ""),
        ((None,), ""),
        ((), ""),
    ],
)
def test_seeds_of_which_some_are_finite_are_counted(values: tuple[float | None, ...], text: str) -> None:
    assert format_finite(values) == text


def test_the_number_of_finite_seeds_replaces_a_mean_that_is_nan() -> None:
    assert format_value(NAN, NAN, NAN, unit="nats", finite="finite on 1 of 8 seeds") == "finite on 1 of 8 seeds"
    assert format_value(-INF, NAN, NAN, unit="nats", finite="finite on 1 of 8 seeds") == "-inf nats"
    assert format_value(NAN, NAN, NAN, unit="nats") == "nan nats"


class Hostile:
    """A value of a user whose text cannot be had."""

    def __repr__(self) -> str:
        raise RuntimeError


def test_values_are_shown_in_any_case_and_shortened() -> None:
    assert short_repr("a") == "'a'"
    assert short_text("a") == "a"
    assert short_repr(Hostile()) == short_text(Hostile()) == "a value of class Hostile that cannot be shown"
    assert "int" in short_repr(10**10_000), "Python refuses to write so many digits"
    long = short_text("a" * 1000 + "b" * 1000)
    assert len(long) < 250
    assert long.startswith("aaa") and long.endswith("bbb") and "…" in long


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("::error::a", r"\x3a:error::a"),
        ("  ::error::a", r"  \x3a:error::a"),
        ("a ::error::b", r"a \x3a:error::b"),
        ("a\n::error::b", r"a\n::error::b"),
        ("\ufeff::error::b", r"\ufeff::error::b"),
        ("##[error]a", r"#\x23[error]a"),
        ("a###[group]b", r"a##\x23[group]b"),
        ("##vso[task.setvariable]a", r"#\x23vso[task.setvariable]a"),
        ("##teamcity[testFailed]", r"#\x23teamcity[testFailed]"),
        ("test_a.py::TestB::test_c[::]", "test_a.py::TestB::test_c[::]"),
        ("## heading, a ## b", "## heading, a ## b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_log_would_obey_is_escaped_once(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("cnn", '"cnn"'),
        ("it's", '"it\'s"'),
        ('a "b"', "'a \"b\"'"),
        ("a\nb\\", '"a\\nb\\\\"'),
        ({"a": [1, 2.5], "b": ("c",), "d": ()}, '{"a": [1, 2.5], "b": ("c",), "d": ()}'),
        (range(3), "range(0, 3)"),
        (None, "None"),
    ],
)
def test_code_has_double_quotes_and_gives_the_value_back(value: object, code: str) -> None:
    assert as_code(value) == code
    assert eval(code) == value


@pytest.mark.parametrize("text", ["within(3)", 'a "b"', 'it\'s "b"', "é\n", '"\u0007'])
def test_toml_gives_the_text_back(text: str) -> None:
    assert tomllib.loads(f"a = {as_toml(text)}") == {"a": text}
