"""From readings of single runs to values, and to the form that baselines store."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import Measure, UsageError, measure
from pytest_trainability.checks.baseline_values import NameSet, Series
from pytest_trainability.checks.statistics import Level, estimate
from pytest_trainability.errors import InapplicableError, ModelError
from pytest_trainability.measurement.readings import assemble, read, recorded
from pytest_trainability.records.estimates import Estimate, Names, Profile, Spectrum

LEVEL = Level(0.9)


def of_kind(kind: Any, *, scale: Any = "linear", returned: Any = None, **settings: Any) -> Measure:
    return Measure("odd", kind, "nats", scale, frozenset(), lambda run: returned, **settings)


def raising(error: Exception) -> Measure:
    def fails(run: Any) -> float:
        raise error

    return Measure("odd", "scalar", "", "linear", frozenset(), fails)


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.3), nn.Tanh(), nn.Linear(5, 3))


def batch(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 5, generator=generator)


# read ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "found", "says"),
    [
        ("scalar", None, "of kind 'scalar' must read a number. It returned None"),
        ("scalar", "3", "of kind 'scalar' must read a number"),
        ("profile", [1.0], "of kind 'profile' must read numbers by name"),
        ("profile", {"a": None}, "of kind 'profile' must read numbers by name"),
        ("profile", {1: 1.0}, "of kind 'profile' must read numbers by name"),
        ("spectrum", 1.0, "of kind 'spectrum' must read a list of numbers"),
        ("spectrum", [1.0, "2"], "of kind 'spectrum' must read a list of numbers"),
        ("names", "abc", "of kind 'names' must read a list of names"),
        ("names", [1.0], "of kind 'names' must read a list of names"),
    ],
)
def test_a_reading_must_be_of_the_kind_of_its_measure(
    added: Callable[..., Measure], kind: str, found: Any, says: str
) -> None:
    added("odd", read=lambda run: found, kind=kind)
    with pytest.raises(UsageError, match=f"the measure 'odd' {says}"):
        measure(tower, batch, seeds=1, measures=["odd"])


@pytest.mark.parametrize(
    ("kind", "found"),
    [("scalar", 3), ("profile", {"a": 1.0}), ("profile", {}), ("spectrum", (2, 1.0)), ("names", ["a"]), ("names", ())],
)
def test_a_reading_is_returned_as_it_is(kind: str, found: Any) -> None:
    run: Any = None
    assert read(of_kind(kind, returned=found), run, None) is found


def test_only_tolerated_errors_mean_that_there_is_no_reading() -> None:
    run: Any = None
    inapplicable = raising(InapplicableError("no attention"))
    assert read(inapplicable, run, InapplicableError) is None
    with pytest.raises(InapplicableError, match="no attention"):
        read(inapplicable, run, None)
    with pytest.raises(ModelError):
        read(raising(ModelError("does not run")), run, InapplicableError)


# assemble -----------------------------------------------------------------------------------------------------------


def test_a_scalar_is_averaged_on_its_scale() -> None:
    linear, log = (assemble(of_kind("scalar", scale=scale), [1.0, 4.0], LEVEL) for scale in ("linear", "log"))
    assert isinstance(linear, Estimate) and isinstance(log, Estimate)
    assert (linear.mean, log.mean) == (2.5, pytest.approx(2.0))
    assert (linear.unit, linear.values) == ("nats", (1.0, 4.0))
    assert linear.half_width == estimate([1.0, 4.0], level=LEVEL).half_width != estimate([1.0, 4.0]).half_width


def test_a_spectrum_is_averaged_one_by_one_and_then_sorted() -> None:
    found = assemble(of_kind("spectrum", element="singular value"), [[3.0, 0.0, 1.0], [1.0, 2.0, 5.0]], LEVEL)
    assert isinstance(found, Spectrum)
    assert [e.mean for e in found] == [3.0, 2.0, 1.0]
    assert [e.values for e in found] == [(1.0, 5.0), (3.0, 1.0), (0.0, 2.0)]
    assert [e.name for e in found] == ["singular value 1", "singular value 2", "singular value 3"]


def test_names_are_united_and_counted_by_seed() -> None:
    found = assemble(of_kind("names"), [["b", "a"], [], ["c", "a", "d"]], LEVEL)
    assert found == Names(("b", "c", "a", "d"), (2, 0, 3)), "the order agrees with that of each seed"
    for lists, order in (
        (
            [["loss"], ["state 1", "loss"], ["state 0", "state 1", "loss", "gradient"]],
            ("state 0", "state 1", "loss", "gradient"),
        ),
        ([["state 0", "state 2"], ["state 0", "state 1", "state 2"]], ("state 0", "state 1", "state 2")),
        ([["a", "b"], ["b", "a"]], ("a", "b")),
        ([[], []], ()),
    ):
        assert assemble(of_kind("names"), lists, LEVEL).names == order


def test_an_element_of_a_profile_is_averaged_over_the_seeds_that_have_it() -> None:
    found = assemble(of_kind("profile"), [{"a": 1.0}, {"b": 5.0, "a": 3.0}], LEVEL)
    assert isinstance(found, Profile)
    assert {name: e.values for name, e in found.items()} == {"a": (1.0, 3.0), "b": (5.0,)}
    assert found["a"].name == "a" and found["a"].mean == 2.0


# recorded -----------------------------------------------------------------------------------------------------------


def test_a_baseline_holds_the_names_that_every_seed_has() -> None:
    """A name that one seed has by accident is not recorded."""
    assert recorded(of_kind("names"), [["c", "a", "b"], ["b", "c"]]) == NameSet(("b", "c"))
    assert recorded(of_kind("names"), [["a"], []]) == NameSet(())


def test_a_baseline_holds_the_values_of_every_seed() -> None:
    assert recorded(of_kind("scalar"), [1.0, -math.inf]) == Series("nats", "linear", {"": (1.0, -math.inf)})
    assert recorded(of_kind("spectrum", scale="log"), [[3.0, 1.0], [2.0, 4.0]]) == Series(
        "nats", "log", {"exponent 1": (3.0, 2.0), "exponent 2": (1.0, 4.0)}
    )


def test_a_seed_without_an_element_has_no_value_in_a_baseline() -> None:
    found = recorded(of_kind("profile"), [{"a": 1.0}, {"b": 2.0, "a": 3.0}])
    assert found == Series("nats", "linear", {"a": (1.0, 3.0), "b": (None, 2.0)})
