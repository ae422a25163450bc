"""A remedy is plain data: its size, what it adds to another one, and its words."""

from __future__ import annotations

from pytest_trainability.checks.remedy import Remedy


def test_a_power_applies_to_every_factor() -> None:
    remedy = Remedy("scale", ("a", "b"), (4.0, 9.0), (1.0, 1.0), adjustable=True)
    assert remedy.to_the_power(0.5).factors == (2.0, 3.0)
    assert remedy.to_the_power(0.5).adjustable


def test_a_shift_is_multiplied_by_its_exponent() -> None:
    remedy = Remedy("shift", ("cell.decay",), (0.5,), (1.0,))
    assert remedy.to_the_power(4).text == "start cell.decay from 3 instead of 1 on average"


def test_a_change_of_more_than_is_needed_adds_nothing() -> None:
    small, large = Remedy("draw", ("a",), (1.0,)), Remedy("draw", ("a", "b"), (1.0, 1.0))
    assert large.adds_nothing_to(small) and small.adds_nothing_to(small)
    assert not small.adds_nothing_to(large)
    assert not Remedy("ones", ("a", "b")).adds_nothing_to(small)
    assert small.adds_nothing_to(Remedy("several", ("a", "c"), parts=(small, Remedy("ones", ("c",)))))


def test_fewer_gates_are_changed_in_the_same_part() -> None:
    both = Remedy("gate bias", ("a.bias", "b.bias"), (1.0, 4.0, 2.0))
    assert both.without({"a.bias"}).text == "nn.init.constant_(b.bias.chunk(4)[1], 2)"
    scaled = Remedy("scale", ("a.weight", "b.weight"), (2.0, 3.0), (0.1, 0.2))
    assert scaled.without({"a.weight"}) == Remedy("scale", ("b.weight",), (3.0,), (0.2,))
