"""Slopes, verdicts on them, and their description in words."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import FrozenInstanceError, replace
from itertools import takewhile

import pytest
import torch
from families import ONES, Scaled, perceptron, scaled, vectors
from torch import nn

from pytest_trainability import (
    BoundError,
    TrainabilityFailure,
    UsageError,
    at_least,
    at_most,
    depth_sweep,
    width_sweep,
    within,
)


def test_other_measures_of_the_same_models():
    found = width_sweep(perceptron, [4, 8, 16], vectors, seeds=2)
    again = found.of("gradient_norm", matching="*.weight")
    assert list(again.slope) == ["0.weight", "2.weight", "4.weight"]
    assert again.measurements == found.measurements
    assert found.last.of("log_gain").sizes == (8, 16)
    with pytest.raises(BoundError, match="Did you mean 'log_gain'"):
        found.of("log_gian")
    with pytest.raises(UsageError, match="activation_change must come with after_steps="):
        found.of("activation_change")


def test_parts_of_a_scaling():
    found = width_sweep(lambda n: scaled(n, n), [2, 4, 16], ONES, seeds=1)
    assert list(found.matching("[01]").slope) == ["0", "1"]
    assert list(found.excluding("input", "1").slope) == ["0"]
    assert found.last.sizes == (4, 16)
    assert len(found.local_slopes) == 2
    with pytest.raises(UsageError, match=re.escape("leave an element of input, 0, 1. Got '*', which leave none.")):
        found.excluding("*")
    with pytest.raises(UsageError, match=re.escape("No name matches the pattern 'layers.*'. Nearest: input, 0, 1.")):
        found.matching("layers.*")
    with pytest.raises(UsageError, match=r"only a profile has elements to select. log_gain is one number here"):
        found.of("log_gain").matching("0")
    with pytest.raises(FrozenInstanceError):
        found.sizes = ()
    assert repr(found).startswith("<activation_rms over widths 2, 4, 16: slope Profile(3 elements, ")
    assert str(found) == "activation_rms of 1 grows like width^2 (widths 2, 4, 16)"


@pytest.mark.parametrize("sizes", [(2, 4), (4, 16), (2, 4, 16)])
def test_another_measure_of_some_sizes_is_of_the_same_sizes(sizes):
    found = width_sweep(lambda n: scaled(n, n), [2, 4, 16], ONES, seeds=1)
    first = found.sizes.index(sizes[0])
    part = replace(found, sizes=sizes, values=found.values[first : first + len(sizes)])
    again = part.of("activation_rms", matching="0")
    assert again.sizes == sizes
    assert [value["0"].mean for value in again.values] == pytest.approx(sizes, rel=1e-6)


@pytest.mark.parametrize(("factor", "word"), [(0.0, "zero"), (math.nan, "not a number"), (math.inf, "infinite")])
@pytest.mark.parametrize("bad", [2, 4, 8])
def test_a_value_without_slope_never_passes(factor, word, bad):
    found = width_sweep(lambda n: scaled(factor if n == bad else n, 1.0), [2, 4, 8], ONES, seeds=2)
    broken = found.matching("0")
    assert math.isnan(broken.slope["0"].mean)
    for bound in (at_most(1e9), at_least(-1e9), within(-math.inf, math.inf)):
        with pytest.raises(TrainabilityFailure) as failure:
            broken.check(bound)
        # Infinity times the zeros next to the diagonal is not a number either.
        words = f"is ({word}|not a number) at width {bad}: it has no slope, and no bound holds"
        assert re.search(words, " ".join(str(failure.value).split()))
    found.matching("input").check(within(0))


def test_one_seed_that_vanishes_is_not_averaged_away():
    def build(n: int) -> nn.Module:
        return scaled(0.0 if torch.initial_seed() == 1 else n, 1.0)

    found = width_sweep(build, [2, 4], ONES, seeds=3, matching="0")
    assert [math.isnan(value) for value in found.slope["0"].values] == [False, True, False]
    with pytest.raises(TrainabilityFailure, match="is zero at width 2"):
        found.check(at_least(0))


def test_a_minus_infinite_gain_has_no_slope():
    found = depth_sweep(lambda depth: scaled(*[0.0] * depth), [2, 4], ONES, seeds=1)
    with pytest.raises(TrainabilityFailure, match="log_gain is infinite at depth 2"):
        found.check(at_most(0))


def test_the_message_of_a_failure():
    found = width_sweep(lambda n: scaled(n**0.5, n**-0.25), [4, 16, 64], ONES, seeds=1)
    with pytest.raises(TrainabilityFailure) as failure:
        found.check(within(0.1))
    assert str(failure.value).splitlines() == [
        "slope of activation_rms 0.500 (0) must lie in [-0.1, 0.1]",
        "  measured       Sequential: widths 4, 16, 64, per sample, train mode, float32",
        "                 on cpu, gradient of a random functional of the output, seed 0",
        "  slope of activation_rms",
        "                 0.5, must lie in [-0.1, 0.1]: 5 times too large",
        "                 2 of 3 outside, worst 0 0.5, 1 0.25",
        "  by width       activation_rms of 0",
        "                 4   2",
        "                 16  4  slope 0.5",
        "                 64  8  slope 0.5",
        "  reading        activation_rms of 0 grows like width^0.5",
    ]


@pytest.mark.parametrize(("longer", "lines"), [(0, 1), (1, 2)])
def test_a_line_of_a_message_has_up_to_80_characters(longer, lines):
    """The label has 15, the indentation 2, and the words around the name of the module 37, so that 26 are left for the name."""
    name = "x" * (26 + longer)
    found = width_sweep(lambda n: nn.Sequential(OrderedDict({name: Scaled(n)})), [2, 4], ONES, seeds=1, matching="x*")
    with pytest.raises(TrainabilityFailure) as failure:
        found.check(within(0.1))
    message = str(failure.value).splitlines()
    place = next(i for i, line in enumerate(message) if line.startswith("  reading"))
    reading = [message[place], *takewhile(lambda line: line.startswith(" " * 17), message[place + 1 :])]
    assert " ".join(" ".join(reading).split()) == f"reading activation_rms of {name} grows like width^1"
    assert len(reading) == lines
    assert len(reading[0]) == (80 if lines == 1 else 80 + longer - len(" width^1"))


def test_scalings_of_equal_values_are_equal():
    """The measurements behind them are not compared."""
    first, second, other = (width_sweep(lambda n, c=c: scaled(c * n), [2, 4], ONES, seeds=1) for c in (1, 1, 2))
    assert first == second
    assert first != other


@pytest.mark.parametrize(
    ("factors", "reading"),
    [
        (lambda n: (n**-0.5,), "activation_rms of 0 shrinks like width^-0.5"),
        (
            lambda n: (1.25**n,),
            "activation_rms of 0 grows exponentially with width: by a factor of 1.25 per unit of width",
        ),
        (
            lambda n: (n + 4,),
            "activation_rms of 0 grows like width^0.58, and bends: the local slope goes from 0.415 to 0.737",
        ),
    ],
    ids=["power", "exponential", "bent"],
)
def test_readings(factors, reading):
    assert width_sweep(lambda n: scaled(*factors(n)), [2, 4, 8, 16], ONES, seeds=1).matching("0").reading == reading


def test_the_reading_of_a_slope_within_its_noise():
    found = width_sweep(perceptron, [8, 16, 32], vectors, seeds=4).matching("2")
    assert found.reading.endswith(", and 0 lies in the interval of the slope")


@pytest.mark.parametrize("bound", [0.1, "wide", (1, -1)])
def test_an_invalid_bound_is_refused(bound):
    found = width_sweep(lambda n: scaled(n), [2, 4], ONES, seeds=1)
    with pytest.raises(BoundError, match=r"check\(\): .*slope of activation_rms"):
        found.check(bound)


def test_the_reading_of_a_profile_is_that_of_its_steepest_element():
    """Also where it falls; one without a slope comes first."""
    found = width_sweep(lambda n: scaled(1 / n, n**1.5), [2, 4, 8], ONES, seeds=1)
    assert found.reading == "activation_rms of 0 shrinks like width^-1"
    broken = width_sweep(lambda n: scaled(1 / n, 0.0 if n == 4 else n), [2, 4, 8], ONES, seeds=1)
    assert broken.reading.startswith("activation_rms of 1 is zero at width 4")
