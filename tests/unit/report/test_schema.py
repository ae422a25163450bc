"""Validation against a schema: the same verdicts as a full validator, and messages that name the place."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pytest_trainability.report.document import schema
from pytest_trainability.report.schema import InvalidError, validator

jsonschema = pytest.importorskip("jsonschema")

SCHEMA: dict[str, Any] = {
    "$defs": {"number": {"anyOf": [{"type": "number"}, {"enum": ["inf", "nan"]}]}},
    "type": "object",
    "required": ["name", "values"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "version": {"const": 1},
        "line": {"type": "integer", "minimum": 0},
        "values": {"type": "array", "items": {"$ref": "#/$defs/number"}, "minItems": 1},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "integer"}],
            "items": False,
            "minItems": 2,
        },
        "maybe": {"anyOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}}, {"type": "null"}]},
    },
}
GOOD: dict[str, Any] = {
    "name": "a",
    "version": 1,
    "line": 0,
    "values": [1, 2.5, "inf"],
    "pair": ["a", 1],
    "maybe": {"a": True},
}
BAD = [
    ({"name": 3}, "name must be a text; got 3"),
    ({"name": None}, "name must be a text; got None"),
    ({"version": 2}, "version must be 1; got 2"),
    ({"version": True}, "version must be 1; got True"),
    ({"line": -1}, "line must be at least 0; got -1"),
    ({"line": 1.5}, "line must be a whole number; got 1.5"),
    ({"line": True}, "line must be a whole number; got True"),
    ({"values": []}, "values must have at least 1 item; got 0"),
    ({"values": [1, "infinite"]}, "values › 2 must be a number; got 'infinite'"),
    ({"values": [1, [2]]}, "values › 2 must be a number; got 'list'"),
    ({"values": {"a": 1}}, "values must be a list; got 'dict'"),
    ({"pair": ["a"]}, "pair must have at least 2 items; got 1"),
    ({"pair": ["a", 1, 2]}, "pair must have 2 items; got 3"),
    ({"pair": [1, 1]}, "pair › 1 must be a text; got 1"),
    ({"maybe": {"a": 1}}, "maybe › a must be true or false; got 1"),
    ({"maybe": 3}, "maybe must be an object; got 3"),
    ({"other": 1}, "it must not have the key 'other'"),
    ({"name": 10**50}, f"name must be a text; got {str(10**50)[:40]}…"),
]


def agrees(of: dict[str, Any], value: Any) -> bool:
    """Return whether the data is valid, if both validators agree on that."""
    try:
        validator(of)(value)
    except InvalidError:
        valid = False
    else:
        valid = True
    assert jsonschema.Draft202012Validator(of).is_valid(value) == valid
    return valid


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_what_does_not_follow_the_schema_is_named(change: dict[str, Any], message: str) -> None:
    bad = {**GOOD, **change}
    assert not agrees(SCHEMA, bad)
    with pytest.raises(InvalidError) as caught:
        validator(SCHEMA)(bad)
    assert str(caught.value) == message


@pytest.mark.parametrize("change", [{}, {"maybe": None}, {"values": ["nan"]}, {"line": 10**20}])
def test_what_follows_the_schema_is_valid(change: dict[str, Any]) -> None:
    assert agrees(SCHEMA, {**GOOD, **change})


def test_a_required_key_is_missing() -> None:
    bad = copy.deepcopy(GOOD)
    del bad["values"]
    assert not agrees(SCHEMA, bad)
    with pytest.raises(InvalidError, match="it must have the key 'values'"):
        validator(SCHEMA)(bad)


def test_every_keyword_of_the_published_schema_is_understood() -> None:
    """One that is skipped would let invalid data pass."""
    known = {"type", "const", "enum", "anyOf", "$ref", "properties", "required", "additionalProperties", "items"}
    known |= {"prefixItems", "minItems", "minimum", "description"}

    def keywords(part: Any) -> set[str]:
        if not isinstance(part, dict):
            return set()
        inner = [*part.get("properties", {}).values(), *part.get("anyOf", []), *part.get("prefixItems", [])]
        return set(part).union(*map(keywords, [*inner, part.get("items")]))

    whole = schema()
    found = set().union(*map(keywords, whole["$defs"].values())) | keywords(whole)
    assert found - known == {"$schema", "$id", "$defs", "title"}
