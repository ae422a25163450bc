"""Validation of plain data against a JSON Schema: the keywords that the schema of the report uses, with one-line messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

__all__ = ["InvalidError", "validator"]

Check: TypeAlias = "Callable[[Any], None]"

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
SHOWN = 40
"""Number of characters of a wrong value that a message shows."""


class InvalidError(Exception):
    """Plain data does not follow the schema. The message names the place and what was expected there."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.place: list[str] = []
        """Keys and numbers that lead to the place, innermost first."""

    def __str__(self) -> str:
        return f"{' › '.join(reversed(self.place)) or 'it'} {self.args[0]}"


def validator(schema: Mapping[str, Any]) -> Check:
    """Return a function that raises :class:`InvalidError` for data that does not follow a schema.

    >>> check = validator({"type": "object", "properties": {"line": {"type": "integer", "minimum": 0}}})
    >>> check({"line": 3})
    >>> check({"line": "three"})
    Traceback (most recent call last):
    ...
    pytest_trainability.report.schema.InvalidError: line must be a whole number; got 'three'

    Args:
        schema: JSON Schema with ``type``, ``const``, ``enum``, ``anyOf``, ``$ref`` to ``#/$defs``, ``properties``, ``required``,
            ``additionalProperties: false``, ``items``, ``prefixItems``, ``minItems`` and ``minimum``.
    """
    named: dict[str, Check] = {}

    def compiled(part: Mapping[str, Any]) -> Check:
        if "$ref" in part:
            name = part["$ref"].removeprefix("#/$defs/")
            return lambda value: named[name](value)
        checks = [make(part, compiled) for key, make in _KEYWORDS.items() if key in part]
        return checks[0] if len(checks) == 1 else lambda value: _all(checks, value)

    named.update({name: compiled(part) for name, part in schema.get("$defs", {}).items()})
    return compiled(schema)


def _all(checks: list[Check], value: Any) -> None:
    for check in checks:
        check(value)


def _error_of(check: Check, value: Any) -> InvalidError | None:
    try:
        check(value)
    except InvalidError as error:
        return error
    return None


def _refused(what: str, value: Any) -> InvalidError:
    shown = value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    text = repr(shown)
    return InvalidError(f"must be {what}; got {text if len(text) <= SHOWN else text[:SHOWN] + '…'}")


def _is_of_type(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _type(part: Mapping[str, Any], compiled: Callable[[Mapping[str, Any]], Check]) -> Check:
    name = part["type"]

    def check(value: Any) -> None:
        if not _is_of_type(value, name):
            raise _refused(_WORDS[name], value)

    return check


def _choice(part: Mapping[str, Any], compiled: Callable[[Mapping[str, Any]], Check]) -> Check:
    choices = part.get("enum", [part.get("const")])

    def check(value: Any) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise _refused(" or ".join(map(repr, choices)), value)

    return check


def _any_of(part: Mapping[str, Any], compiled: Callable[[Mapping[str, Any]], Check]) -> Check:
    checks = [compiled(other) for other in part["anyOf"]]

    def check(value: Any) -> None:
        errors = []
        for one in checks:
            error = _error_of(one, value)
            if error is None:
                return
            errors.append(error)
        # The one that got furthest says most.
        raise max(errors, key=lambda error: len(error.place))

    return check


def _minimum(part: Mapping[str, Any], compiled: Callable[[Mapping[str, Any]], Check]) -> Check:
    least = part["minimum"]

    def check(value: Any) -> None:
        if value < least:
            what = f"at least {least}"
            raise _refused(what, value)

    return check


def _fewest(part: Mapping[str, Any], compiled: Callable[[Mapping[str, Any]], Check]) -> Check:
    fewest = part["minItems"]

    def check(value: Any) -> None:
        if len(value) < fewest:
            msg = f"must have at least {fewest} item{'s' if fewest > 1 else ''}; got {len(value)}"
            raise InvalidError(msg)

    return check


def _items(part: Mapping[str, Any], compiled: Callable[[Mapping[str, Any]], Check]) -> Check:
    first = [compiled(other) for other in part.get("prefixItems", [])]
    rest = compiled(part["items"]) if part["items"] else None

    def check(value: Any) -> None:
        if rest is None and len(value) > len(first):
            msg = f"must have {len(first)} items; got {len(value)}"
            raise InvalidError(msg)
        for index, item in enumerate(value):
            one = first[index] if index < len(first) else rest
            if one is not None and (error := _error_of(one, item)) is not None:
                error.place.append(str(index + 1))
                raise error

    return check


def _properties(part: Mapping[str, Any], compiled: Callable[[Mapping[str, Any]], Check]) -> Check:
    known = {key: compiled(other) for key, other in part["properties"].items()}
    required, is_closed = part.get("required", []), part.get("additionalProperties") is False

    def check(value: Any) -> None:
        for key in required:
            if key not in value:
                msg = f"must have the key {key!r}"
                raise InvalidError(msg)
        for key, item in value.items():
            if key in known:
                if (error := _error_of(known[key], item)) is not None:
                    error.place.append(key)
                    raise error
            elif is_closed:
                msg = f"must not have the key {key[:SHOWN]!r}"
                raise InvalidError(msg)

    return check


_KEYWORDS: dict[str, Callable[[Mapping[str, Any], Callable[[Mapping[str, Any]], Check]], Check]] = {
    "type": _type,
    "const": _choice,
    "enum": _choice,
    "anyOf": _any_of,
    "minimum": _minimum,
    "minItems": _fewest,
    "items": _items,
    "properties": _properties,
}
"""In the order of the checks: that of the type comes first, so that the others need not ask for it."""
