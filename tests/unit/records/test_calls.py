"""Calls in text: what is read, and that nothing is executed."""

from __future__ import annotations

import math

import pytest

from pytest_trainability.records.calls import Call, evaluated, parse_call


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("slow", Call("slow")),
        (" slow() ", Call("slow")),
        ("timeout(60)", Call("timeout", (60,))),
        ("nn.MSELoss(reduction='sum')", Call("nn.MSELoss", (), {"reduction": "sum"})),
        ("f(-1, [1, 'a'], (2,), None, True, -inf)", Call("f", (-1, [1, "a"], (2,), None, True, -math.inf))),
    ],
)
def test_names_and_literals(text: str, call: Call) -> None:
    assert parse_call(text) == call


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it must be written as name"),
        ("f(", "it must be written as name"),
        ("3", "it must begin with a name"),
        ("f()()", "it must begin with a name"),
        ("f(x)", "its arguments must be numbers, texts, lists or the like. Got 'x'"),
        ("f(g(1))", "its arguments must be numbers"),
        ("f(**{'a': 1})", "its arguments must be literals"),
        ("f(-x)", "Got 'x'"),
        ("f(" * 500, "it must be written as name"),
    ],
)
def test_other_forms_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_call(text)
    assert said in str(caught.value)


def test_only_given_functions_are_called() -> None:
    functions = {"add": lambda a, b=0: a + b, "one": lambda: 1}
    assert evaluated("add(one(), b=add(2))", functions) == 3
    assert evaluated("one", functions) == 1
    for text, said in (
        ("ad(1)", "unknown function 'ad'. Did you mean 'add'?"),
        ("exec('1')", "unknown function 'exec'. Known: add, one."),
        ("add(exec('1'))", "unknown function 'exec'."),
        ("one(1)", "one() does not take these arguments: "),
    ):
        with pytest.raises(ValueError) as caught:
            evaluated(text, functions)
        assert said in str(caught.value)
