"""Calls that are written as text, such as ``within(3)`` or ``timeout(60)``: a name and literal arguments. Nothing is executed."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "evaluated", "parse_call"]

_NUMBERS = {"inf": math.inf, "nan": math.nan}


@dataclass(frozen=True, slots=True)
class Call:
    """A name, which may have dots, and the arguments behind it."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def parse_call(text: str, functions: Mapping[str, Callable[..., Any]] | None = None) -> Call:
    """Return the call that a text describes. A name alone is a call without arguments.

    >>> parse_call("timeout(60, method='thread')")
    Call(name='timeout', args=(60,), kwargs={'method': 'thread'})

    Args:
        text: ``name`` or ``name(1, "two", three=[3])``.
        functions: Functions by name that may be called in an argument; none by default.

    Raises:
        ValueError: The text has another form, or an argument is no literal.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        msg = f"it must be written as name or name(1, two='three'). Got {text!r}."
        raise ValueError(msg) from None
    if isinstance(tree, ast.Call):
        return _call(tree, functions or {})
    return Call(_dotted(tree))


def evaluated(text: str, functions: Mapping[str, Callable[..., Any]]) -> Any:
    """Return the result of a call of one of some functions.

    >>> evaluated("max(-1, 2)", {"max": max})
    2

    Args:
        text: The call, or the name of a function, which is called without arguments.
        functions: The functions by name. Their arguments may be such calls as well.

    Raises:
        ValueError: The text has another form, names another function, or the function does not take the arguments.
    """
    return _applied(parse_call(text, functions), functions)


def _applied(call: Call, functions: Mapping[str, Callable[..., Any]]) -> Any:
    if call.name not in functions:
        near = difflib.get_close_matches(call.name, functions, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(functions)}."
        msg = f"unknown function {call.name!r}. {hint}"
        raise ValueError(msg)
    try:
        return functions[call.name](*call.args, **call.kwargs)
    except TypeError as error:
        msg = f"{call.name}() does not take these arguments: {error}."
        raise ValueError(msg) from None


def _call(tree: ast.Call, functions: Mapping[str, Callable[..., Any]]) -> Call:
    args = tuple(_value(argument, functions) for argument in tree.args)
    kwargs = {keyword.arg or "**": _value(keyword.value, functions) for keyword in tree.keywords}
    if "**" in kwargs:
        msg = f"its arguments must be literals. Got {ast.unparse(tree)!r}."
        raise ValueError(msg)
    return Call(_dotted(tree.func), args, kwargs)


def _dotted(tree: ast.expr) -> str:
    """Return a name, or names joined by dots."""
    parts: list[str] = []
    inner = tree
    while isinstance(inner, ast.Attribute):
        parts.insert(0, inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name):
        msg = f"it must begin with a name, as in name or name(1, two='three'). Got {ast.unparse(tree)!r}."
        raise ValueError(msg)
    return ".".join([inner.id, *parts])


def _value(tree: ast.expr, functions: Mapping[str, Callable[..., Any]]) -> Any:
    if isinstance(tree, ast.Call) and functions:
        return _applied(_call(tree, functions), functions)
    if isinstance(tree, ast.Name) and tree.id in _NUMBERS:
        return _NUMBERS[tree.id]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub) and isinstance(tree.operand, ast.Name):
        return -_value(tree.operand, functions)
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError):
        msg = f"its arguments must be numbers, texts, lists or the like. Got {ast.unparse(tree)!r}."
        raise ValueError(msg) from None
