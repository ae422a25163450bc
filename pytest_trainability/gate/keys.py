"""The keys of a test in ``trainability.toml``, and how the value of each is read.

A reader gets the value, and a function that takes complaints: it goes on after the first one, so that all are told at once.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from ..checks.bounds import Bound, as_bound
from ..checks.devices import as_device_name
from ..checks.dtypes import as_dtype_name
from ..checks.presets import find_preset
from ..checks.statistics import as_seeds
from ..checks.tolerances import as_tolerance
from ..errors import UsageError
from ..records.calls import Call, parse_call
from ..records.text import short_repr

__all__ = ["CONDITIONS", "KEYS", "Complain", "Condition", "nearest", "unknown_key"]

Complain: TypeAlias = "Callable[..., None]"
"""Takes a message, and the parts of the key below the one that is read, such as a measure in ``bounds``."""

_WORDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}
_DEVICES = ("cuda", "mps")
_MARKS = ("filterwarnings", "flaky", "skipif", "timeout", "usefixtures", "xfail", "xdist_group")
"""Common marks of pytest and of its plugins, which are no keys."""
_REFUSED_MARKS = {
    "parametrize": "write parameters = {width = [64, 128]}",
    "trainability": "bounds and settings are keys of the table",
}


def nearest(name: str, known: Collection[str]) -> str:
    """Return a sentence with the name that resembles another one most, or with all names."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."


def unknown_key(name: str) -> str:
    """Return the message for a key that a test does not have.

    >>> print(unknown_key("timeout"))
    unknown key 'timeout'. A mark of pytest is written as marks = ['timeout(...)'].
    """
    cure = f"A mark of pytest is written as marks = ['{name}(...)']." if name in _MARKS else nearest(name, KEYS)
    return f"unknown key {name!r}. {cure}"


def _refuse(complain: Complain, expected: str, value: Any, *key: str) -> None:
    complain(f"it must be {expected}. Got {_WORDS.get(type(value), type(value).__name__)}: {short_repr(value)}.", *key)


def _text(expected: str) -> Callable[[Any, Complain], Any]:
    def read(value: Any, complain: Complain) -> Any:
        if not isinstance(value, str) or not value.strip():
            _refuse(complain, expected, value)
        return value

    return read


def _texts(expected: str) -> Callable[[Any, Complain], tuple[str, ...]]:
    """Return a reader of a text, a list of texts, or a table of texts by argument, which become ``name=text``."""

    def read(value: Any, complain: Complain) -> tuple[str, ...]:
        given = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if not given or not all(isinstance(text, str) and text.strip() for text in given):
            _refuse(complain, expected, value)
            return ()
        return tuple(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else tuple(given)

    return read


def _attempt(read: Callable[[], Any], complain: Complain, *key: str) -> Any:
    """Return the result of a function; None, with a complaint, if it raises an error of usage."""
    try:
        return read()
    except UsageError as error:
        complain(str(error), *key)
        return None


def _tensors(expected: str) -> Callable[[Any, Complain], tuple[str, ...]]:
    """Return a reader of texts that describe tensors, or of a text that names an object."""
    texts = _texts(expected)

    def read(value: Any, complain: Complain) -> tuple[str, ...]:
        from ..sources.inputs import drawn_inputs, is_place

        found = texts(value, complain)
        if found and not (len(found) == 1 and is_place(found[0])):
            _attempt(lambda: drawn_inputs(found), complain)
        return found

    return read


def _loss(value: Any, complain: Complain) -> Any:
    from ..sources.losses import named_loss

    if not isinstance(value, str) or not value.strip():
        _refuse(complain, "a text such as 'cross_entropy', 'nn.CrossEntropyLoss' or 'package.module:loss'", value)
    elif ":" not in value:
        _attempt(lambda: named_loss(value), complain)
    return value


def _model(value: Any, complain: Complain) -> Any:
    if not isinstance(value, str) or not all(value.partition(":")):
        expected = "a text such as 'package.module:build', 'hf:gpt2' or 'timm:resnet18'"
        is_dotted = isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)+", value) is not None
        with_colon = f", with a colon: '{':'.join(value.rsplit('.', 1))}'" if is_dotted else ""
        _refuse(complain, expected + with_colon, value)
    return value


def _checked(check: Callable[[Any], Any], expected: str, *kinds: type) -> Callable[[Any, Complain], Any]:
    """Return a reader of values of some types, which a function checks further."""

    def read(value: Any, complain: Complain) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            _refuse(complain, expected, value)
            return None
        return _attempt(lambda: check(value), complain)

    return read


def _steps(value: Any, complain: Complain) -> Any:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
    if not is_list and not (isinstance(value, str) and value.strip()):
        expected = (
            "'auto', 'blocks', 'layers', 'time', 'time:NAME', a pattern of module names, or a list of these names"
        )
        _refuse(complain, expected, value)
    return value


def _count(value: int) -> int:
    if value < 1:
        msg = f"it must be a whole number of at least 1. Got {value}."
        raise UsageError(msg)
    return value


def _contract(value: Any, complain: Complain) -> Any:
    rules = value.values() if isinstance(value, dict) else [value]
    is_named = isinstance(value, str) and (":" in value or value.endswith(".py"))
    if (
        not rules
        or not (is_named or isinstance(value, dict))
        or not all(isinstance(rule, str) and rule.strip() for rule in rules)
    ):
        expected = "a file such as 'contracts.py:GPT', MODULE:NAME, or a table of rules such as {'*.bias' = 'zeros()'}"
        _refuse(complain, expected, value)
    return value


def _baseline(value: Any, complain: Complain) -> Any:
    if not isinstance(value, bool) and not (isinstance(value, str) and value.endswith(".json")):
        _refuse(complain, "true, false or the path of a file such as 'baselines/gpt.json'", value)
    return value


def _marks(value: Any, complain: Complain) -> tuple[Call, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(mark, str) for mark in given):
        _refuse(complain, "a list of marks, such as ['slow', 'timeout(60)']", value)
        return ()
    return tuple(mark for text in given if (mark := _mark(text, complain)) is not None)


def _mark(text: str, complain: Complain) -> Call | None:
    try:
        mark = parse_call(text)
    except ValueError as error:
        complain(f"a mark is invalid: {error}")
        return None
    if "." in mark.name or mark.name in _REFUSED_MARKS:
        why = _REFUSED_MARKS.get(mark.name, "write it without pytest.mark")
        complain(f"the mark {mark.name!r} cannot be set here: {why}.")
    return mark


@dataclass(frozen=True, slots=True)
class Condition:
    """When a test is skipped, and why. Without a condition it is always skipped."""

    missing: tuple[str, ...] = ()
    """Modules: it is skipped if one of them is not installed."""
    unless: str = ""
    """Device without which it is skipped."""
    reason: str = ""

    def absent(self) -> str:
        """Return the first module that is not installed; empty if there is none."""
        return next((name for name in self.missing if not _is_installed(name)), "")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _device_of_condition(value: str) -> str:
    if value not in _DEVICES:
        msg = f"it must be a device: {' or '.join(_DEVICES)}. Got {value!r}."
        raise UsageError(msg)
    return value


def _modules(value: Any, complain: Complain) -> tuple[str, ...]:
    expected = "the name of a module, such as 'timm', or a list of names"
    if isinstance(value, dict):
        _refuse(complain, expected, value)
        return ()
    return _texts(expected)(value, complain)


CONDITIONS: dict[str, Callable[[Any, Complain], Any]] = {
    "missing": _modules,
    "unless": _checked(_device_of_condition, "a device: 'cuda' or 'mps'", str),
    "reason": _text("a text"),
}
"""Reader by key of ``skip``."""


def _skip(value: Any, complain: Complain) -> Condition:
    if not isinstance(value, dict) or not value:
        _refuse(complain, "a table with missing, unless or reason, such as {missing = 'timm'}", value)
        return Condition()
    found = {}
    for key, given in value.items():
        if key in CONDITIONS:
            found[key] = CONDITIONS[key](given, lambda message, key=key: complain(message, key))
        else:
            complain(f"unknown key {key!r}. {nearest(key, CONDITIONS)}", key)
    return Condition(**found)


def _parameters(value: Any, complain: Complain) -> Mapping[str, list[Any]]:
    if not isinstance(value, dict) or not value:
        _refuse(complain, "a table of lists by argument of the factory, such as {width = [64, 128]}", value)
        return {}
    for name, choices in value.items():
        if not isinstance(choices, list) or not choices:
            _refuse(complain, "a list of one value or more, such as [64, 128]", choices, name)
        elif len(set(map(repr, choices))) < len(choices):
            complain(f"its values must differ from each other. Got {short_repr(choices)}.", name)
        if not name.isidentifier():
            complain(f"it must be the name of an argument of the factory. Got {name!r}.", name)
    return value


def _by_measure(example: str, read: Callable[[str, Any], Any]) -> Callable[[Any, Complain], dict[str, Any]]:
    def reader(value: Any, complain: Complain) -> dict[str, Any]:
        from ..measures import find_measure

        if not isinstance(value, dict):
            _refuse(complain, f"a table by measure, such as {example}", value)
            return {}
        found = {}
        for name, given in value.items():
            measure = _attempt(partial(find_measure, name), complain, name)
            setting = _attempt(partial(read, name, given), complain, name)
            if measure is not None:
                found[measure.name] = setting
        return found

    return reader


def _bound(measure: str, value: Any) -> Bound:
    return as_bound(value, measure=measure)


def _tolerance(measure: str, value: Any) -> float:
    return as_tolerance(value, measure=measure, where="it is invalid")


_SEEDS = "a number of seeds, a list of seeds, or a text such as '0-7'"
KEYS: dict[str, Callable[[Any, Complain], Any]] = {
    "model": _model,
    "inputs": _tensors("a text such as '8x3x224x224', a list of texts, or a table of texts by argument"),
    "targets": _tensors("a text such as 'ids:8<1000', a list of texts, or a table of texts"),
    "loss": _loss,
    "steps": _steps,
    "seeds": _checked(as_seeds, _SEEDS, int, str, list),
    "exponents": _checked(_count, "a whole number of at least 1", int),
    "train": _checked(bool, "true (train mode) or false (eval mode)", bool),
    "device": _checked(as_device_name, "a device: 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'", str),
    "dtype": _checked(as_dtype_name, "a floating type, such as 'float32'", str),
    "preset": _checked(lambda name: (find_preset(name), name)[1], "the name of a preset, such as 'transformer'", str),
    "bounds": _by_measure("{log_gain = 'within(3)'}", _bound),
    "tolerances": _by_measure("{log_gain = 0.5}", _tolerance),
    "contract": _contract,
    "baseline": _baseline,
    "marks": _marks,
    "skip": _skip,
    "parameters": _parameters,
}
"""Reader by key of a test."""
