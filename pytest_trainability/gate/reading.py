"""Reading ``trainability.toml``, or ``[tool.trainability]`` in ``pyproject.toml``: the tests in it, or all errors in it."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ..errors import TrainabilityError
from ..records.calls import Call
from ..records.text import visible
from .keys import KEYS, Condition, unknown_key
from .places import key_lines, line_of

__all__ = ["FILE", "PROJECT", "GateError", "GateTest", "InvalidGateError", "named_baselines", "read_gate", "table_of"]

FILE, PROJECT = "trainability.toml", "pyproject.toml"
"""Files whose tables are tests."""
_NAME = re.compile(r"[\w.-]+")
_QUOTED = re.compile(r"'[^']*'|`[^`]*`")
_SYNONYMS = {"factory": "model", "target": "targets"}
"""Words of messages, by the key that they stand for."""


@dataclass(frozen=True, slots=True)
class GateError:
    """What is wrong at a key of a file."""

    line: int
    """Counted from 1."""
    key: str
    """Key with dots; empty for the file."""
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class InvalidGateError(Exception):
    """A file has errors.

    Args:
        errors: All of them, in the order of their lines.
    """

    def __init__(self, errors: list[GateError]) -> None:
        super().__init__("\n".join(f"line {error.line}: {error}" for error in errors))
        self.errors = errors


@dataclass(frozen=True, slots=True)
class GateTest:
    """A test of a file: the values of its keys, or their defaults."""

    name: str
    line: int
    """Line of its table, counted from 1."""
    model: str
    key: str = ""
    """Key of its table, such as ``test.gpt``."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each of its keys, and of the keys of tables in it, such as ``bounds.log_gain``."""
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    loss: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the measurement: steps, exponents and train."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What a marker would set: seeds, device, dtype, preset, bounds by measure, and tolerances."""
    contract: Any = None
    """A text that names a contract, a table of rules, or None."""
    baseline: bool | str = False
    marks: tuple[Call, ...] = ()
    skip: Condition | None = None
    parameters: Mapping[str, list[Any]] = field(default_factory=dict)

    def cases(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of each case with its arguments of the factory: ``gpt[width=64]``, or ``gpt`` without parameters."""
        if not self.parameters:
            yield self.name, {}
            return
        used: set[str] = set()
        values = (list(enumerate(choices)) for choices in self.parameters.values())
        for case in itertools.product(*values):
            chosen = dict(zip(self.parameters, case, strict=True))
            label = "-".join(f"{name}={_label(value, index)}" for name, (index, value) in chosen.items())
            if label in used:
                # The text "1" looks like the number 1. The places of the values in their lists tell them apart.
                label += "-" + ",".join(str(index) for index, _ in case)
            used.add(label)
            yield f"{self.name}[{label}]", {name: value for name, (_, value) in chosen.items()}

    def line_for(self, error: TrainabilityError) -> int:
        """Return the line of the key that an error of the test is about: the one that its message names first, else ``model``.

        >>> test = GateTest("gpt", 1, "nets:GPT", lines={"model": 2, "steps": 3, "bounds.log_gain": 5})
        >>> test.line_for(TrainabilityError("steps='h.*' must match a module of GPT."))
        3
        """
        keys = [key for key in self.lines if not key.startswith("parameters.")]
        words = _SYNONYMS | {key.rpartition(".")[2]: key for key in reversed(keys)}
        named = (words.get(word, "") for word in re.findall(r"\w+", _QUOTED.sub("", str(error))))
        found = (self.lines[key] for key in (error.key, *named) if key in self.lines)
        return next(found, self.lines.get("model", self.line))


def _label(value: Any, index: int) -> str:
    """Return a value in a name, as the file writes it; the number of its place for lists and tables."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(index) if isinstance(value, (list, dict)) else visible(str(value)).replace("::", ":")


def table_of(path: Path, text: str) -> tuple[Mapping[str, Any], tuple[str, ...]] | None:
    """Return the table of a file that holds tests, and its key; None for a ``pyproject.toml`` without one.

    Raises:
        InvalidGateError: The file is no TOML.
    """
    try:
        table: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"\(at line (\d+)", str(error))
        at_end = text.count("\n") + 1
        raise InvalidGateError(
            [GateError(int(line[1]) if line else at_end, "", f"the file is no valid TOML: {error}")]
        ) from None
    if path.name == FILE:
        return table, ()
    found = table.get("tool", {}).get("trainability")
    return None if found is None else (found, ("tool", "trainability"))


def read_gate(path: Path) -> list[GateTest]:
    """Return the tests of a file.

    Args:
        path: ``trainability.toml`` or ``pyproject.toml``.

    Returns:
        The tests, in the order of the file; none for a ``pyproject.toml`` without them.

    Raises:
        InvalidGateError: The file has errors. It holds all of them.
    """
    text = _text_of(path)
    found = table_of(path, text)
    return [] if found is None else _Reader(text, found[1]).tests(found[0])


def named_baselines(path: Path) -> set[Path]:
    """Return the absolute paths of the baseline files that the tests of a file name. Nothing else in it is validated.

    Raises:
        InvalidGateError: The file cannot be read, or is no TOML.
    """
    found = table_of(path, _text_of(path))
    tests = found[0].get("test") if found is not None and isinstance(found[0], dict) else None
    given = (
        (test.get("baseline") for test in tests.values() if isinstance(test, dict)) if isinstance(tests, dict) else ()
    )
    return {(path.parent / name).resolve() for name in given if isinstance(name, str)}


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        wrong = GateError(1, "", f"the file cannot be read. {type(error).__name__}: {error}")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"the file must be UTF-8, as TOML is. Byte 0x{content[error.start]:02x} is not: save it as UTF-8."
        wrong = GateError(line, "", message)
    raise InvalidGateError([wrong])


class _Reader:
    """Reads the tests of one file, and collects its errors."""

    def __init__(self, text: str, prefix: tuple[str, ...]) -> None:
        self._lines = key_lines(text)
        self._prefix = prefix
        self._errors: list[GateError] = []

    def tests(self, table: Any) -> list[GateTest]:
        found = list(self._tests(table))
        if self._errors:
            raise InvalidGateError(sorted(self._errors, key=lambda error: error.line))
        return found

    def _complain(self, message: str, *key: str) -> None:
        self._errors.append(GateError(self._line(*key), self._shown(*key), message))

    def _shown(self, *key: str) -> str:
        return ".".join(part if re.fullmatch(r"[\w-]+", part) else f'"{part}"' for part in (*self._prefix, *key))

    def _line(self, *key: str) -> int:
        return line_of(self._lines, (*self._prefix, *key))

    def _tests(self, table: Any) -> Iterator[GateTest]:
        if not isinstance(table, dict):
            self._complain("it must be a table. Write [tool.trainability.test.NAME].")
            return
        header = ".".join([*self._prefix, "test", "NAME"])
        for key in (key for key in table if key != "test"):
            self._complain(f"unknown key {key!r}. Tests are tables [{header}].", key)
        tests = table.get("test", {})
        if not isinstance(tests, dict):
            self._complain(f"it must be a table of tests, [{header}].", "test")
            return
        without_name = [key for key, given in tests.items() if key in KEYS and not isinstance(given, dict)]
        if without_name:
            message = f"a test must have a name: [{header}]. Got a table without one, with {', '.join(without_name)}."
            self._complain(message, "test")
            return
        for name, given in tests.items():
            test = self._test(name, given)
            if test is not None:
                yield test

    def _test(self, name: str, given: Any) -> GateTest | None:
        if not isinstance(given, dict):
            self._complain(f"it must be a table: [test.NAME] with the key model. Got {given!r}.", "test", name)
            return None
        if not _NAME.fullmatch(name):
            self._complain("the name of a test must have letters, digits, '_', '-' and '.' only.", "test", name)
        if "model" not in given:
            self._complain("it must have the key model, such as model = 'package.module:build'.", "test", name)
        before = len(self._errors)
        values = {key: self._value(name, key, value) for key, value in given.items()}
        self._compare(name, given)
        if len(self._errors) > before or "model" not in given:
            return None
        inner = {
            f"{key}.{part}": (key, part) for key, value in given.items() if isinstance(value, dict) for part in value
        }
        keys = {**{key: (key,) for key in given}, **inner}
        lines = {key: self._line("test", name, *parts) for key, parts in keys.items()}
        return _test_of(name, self._shown("test", name), self._line("test", name), lines, values)

    def _value(self, name: str, key: str, value: Any) -> Any:
        if key not in KEYS:
            self._complain(unknown_key(key), "test", name, key)
            return None
        return KEYS[key](value, lambda message, *below: self._complain(message, "test", name, key, *below))

    def _compare(self, name: str, given: Mapping[str, Any]) -> None:
        """Complain about keys that contradict each other."""
        if "targets" in given and "loss" not in given:
            self._complain(
                "targets must come with the loss that takes them. Write loss as well.", "test", name, "targets"
            )
        if "tolerances" in given and not given.get("baseline"):
            message = "tolerances must come with a baseline. Write baseline = true as well."
            self._complain(message, "test", name, "tolerances")
        library = str(given.get("model", "")).partition(":")[0]
        if "parameters" in given and _is_of_library(library):
            message = f"a model of {library}: takes no parameters. Name a factory: model = 'package.module:build'."
            self._complain(message, "test", name, "parameters")


def _is_of_library(word: str) -> bool:
    from ..sources.models import LIBRARIES

    return word in LIBRARIES


_OPTIONS = ("steps", "exponents", "train")
_SETTINGS = ("seeds", "device", "dtype", "preset", "tolerances")


def _test_of(name: str, key: str, line: int, lines: dict[str, int], values: dict[str, Any]) -> GateTest:
    settings = {key: values.pop(key) for key in _SETTINGS if key in values} | values.pop("bounds", {})
    options = {key: values.pop(key) for key in _OPTIONS if key in values}
    return GateTest(name, line, key=key, lines=lines, options=options, settings=settings, **values)
