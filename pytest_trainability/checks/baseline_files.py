"""Baseline files: ``__trainability__/<test module>.json`` next to the test modules.

A file is read as data, never executed, and validated completely. Writing replaces the whole file or leaves it unchanged.
"""

from __future__ import annotations

import glob
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ..errors import BaselineError
from ..records.names import MOST_NAMES, expanded
from ..records.tensors import Projections
from ..records.text import visible
from .atomic_files import replace_file
from .baseline_entries import OUTPUT, Entry
from .baseline_values import BaselineValues, NameSet, Series
from .initial_values import InitialRow
from .locks import locked

__all__ = [
    "FOLDER",
    "Contents",
    "baseline_path",
    "change_baselines",
    "entry_from_plain",
    "entry_to_plain",
    "find_test_file",
    "parse_baselines",
    "read_baselines",
    "render_baselines",
    "with_entries",
    "with_entry",
]

FOLDER = "__trainability__"
SCHEMA = 2
"""Version of the format that is written. Version 1, without initial values, modules and operations, is read as well."""
LARGEST_FILE = 64 * 2**20
"""Largest size of a file in bytes. Thirty thousand small models need less, or four hundred with a thousand parameters each."""
LOCK_PATIENCE = 60.0
"""Seconds to wait for another session that writes baselines."""
LONGEST_OBJECT = 200
"""Number of characters up to which an object without further objects and lists stands in one line."""
DECIMALS, DIGITS = 4, 5
"""Decimals of linear values and significant digits of log-scale values in a file. They are finer than any tolerance."""
SPREAD_DIGITS = 3
"""Significant digits of the standard deviations of initial values."""
PROJECTED = 7
"""Decimals of projections, whose size is about 1."""

Contents: TypeAlias = "Mapping[str, Mapping[str, Mapping[str, Entry]]]"
"""Entries by test (its node id without the file), by name of the measurement, by key of the environment."""

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def baseline_path(test_file: Path) -> Path:
    """Return the path of the baseline file of a test file: ``test_a.json`` for ``test_a.py``, ``a.rst.json`` for ``a.rst``."""
    name = test_file.stem if test_file.suffix == ".py" else test_file.name
    return test_file.parent / FOLDER / f"{name}.json"


def find_test_file(path: Path) -> Path | None:
    """Return an existing test file to which a baseline file may belong; None if there is none.

    Any file with the stem of the baseline file counts, such as ``a.rst`` for ``a.json`` and for ``a.rst.json``.
    """
    folder = path.parent.parent
    same_stem = (file for file in sorted(folder.glob(f"{glob.escape(path.stem)}.*")) if file.stem == path.stem)
    candidates = [folder / f"{path.stem}.py", folder / path.stem, *same_stem]
    return next((file for file in candidates if file.is_file()), None)


def with_entry(contents: Contents, test: str, name: str, entry: Entry) -> Contents:
    """Return the contents with one entry added. It replaces an entry of the same environment."""
    return with_entries(contents, [(test, name, entry)])


def with_entries(contents: Contents, entries: Iterable[tuple[str, str, Entry]]) -> Contents:
    """Return the contents with entries added, each given with its test and its name. The contents are copied once."""
    found = {test: {name: {**of_name} for name, of_name in names.items()} for test, names in contents.items()}
    for test, name, entry in entries:
        found.setdefault(test, {}).setdefault(name, {})[entry.key] = entry
    return found


# Reading --------------------------------------------------------------------------------------------------------------


def read_baselines(path: Path) -> Contents:
    """Return the contents of a file; empty if the file does not exist.

    Raises:
        BaselineError: The file is not a regular file, too large, unreadable or invalid.
    """
    raw = _bytes(path)
    if raw is None:
        return {}
    if len(raw) > LARGEST_FILE:
        msg = (
            f"{path}: a baseline must be smaller than {LARGEST_FILE // 2**20} MB. This one has "
            f"{path.stat().st_size / 2**20:.0f} MB. Restore it from version control, or move it away and record it again."
        )
        raise BaselineError(msg)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(path, f"it must be UTF-8; byte {error.start} is not")
    return parse_baselines(text, path)


def _bytes(path: Path) -> bytes | None:
    """Return the first bytes of a file, one more than are allowed; None if the file does not exist."""
    try:
        _refuse_links(path)
        if not path.exists():
            return None
        if not path.is_file():
            msg = f"{path}: a baseline must be a regular file. Move away the folder or device at this path."
            raise BaselineError(msg)
        with path.open("rb") as file:
            return file.read(LARGEST_FILE + 1)
    except OSError as error:
        msg = f"{path}: the baseline cannot be read. {_reason(error)}."
        raise BaselineError(msg) from error


def _refuse_links(path: Path) -> None:
    """Raise an error if the file or its folder is a symbolic link, which may lead out of the project.

    Raises:
        BaselineError: The file or its folder is a symbolic link.
    """
    for part in (path.parent, path):
        if part.is_symlink():
            msg = (
                f"{part}: a baseline and its folder must not be symbolic links, which could lead out of the project. Replace "
                "the link by its target."
            )
            raise BaselineError(msg)


def parse_baselines(text: str, path: Path) -> Contents:
    """Return the contents that the text of a file describes.

    Args:
        text: Text of the file.
        path: Path of the file, named in the message.

    Raises:
        BaselineError: The text is not valid. The message names the place and what was expected there.
    """
    try:
        plain = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant, parse_float=_finite_float
        )
    except (ValueError, RecursionError) as error:
        hint = "; it contains the markers of a merge conflict" if "<<<<<<<" in text else ""
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        _refuse(path, f"it must be JSON: {what}{hint}")
    try:
        return _contents(plain)
    except _UnexpectedError as error:
        _refuse(path, str(error))


def _refuse(path: Path, what: str) -> NoReturn:
    # In one line: names in the file are untrusted, and surrogates must not reach xdist.
    what = visible(what)
    msg = (
        f"{path}: the baseline is not valid: {what}. Restore it from version control, or move it away and record it again "
        "with --trainability-baseline=new."
    )
    raise BaselineError(msg) from None


class _UnexpectedError(Exception):
    """A file contains something unexpected."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            msg = f"the key {key!r} occurs twice in one object"
            raise ValueError(msg)
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number; write 'inf', '-inf' or 'nan' as text"
    raise ValueError(msg)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text} is too large for a floating-point number"
        raise ValueError(msg)
    return value


def _contents(plain: Any) -> Contents:
    document = _mapping(plain, "the file")
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        msg = f"its schema must be 1 or {SCHEMA}; got {schema!r}"
        raise _UnexpectedError(msg)
    if schema > SCHEMA:
        msg = f"it has schema {schema}, but this version reads schemas up to {SCHEMA}; upgrade pytest-trainability"
        raise _UnexpectedError(msg)
    _only(document, {"schema", "tests"}, "the file")
    found: dict[str, dict[str, dict[str, Entry]]] = {}
    for test, names in _mapping(document.get("tests"), "tests").items():
        for name, environments in _mapping(names, test).items():
            for key, entry in _mapping(environments, f"{test} › {name}").items():
                where = f"{test} › {name} › {key}"
                read = entry_from_plain(entry, where)
                if read.key != key:
                    msg = f"{where} must have the key of its environment, {read.key!r}"
                    raise _UnexpectedError(msg)
                found.setdefault(test, {}).setdefault(name, {})[key] = read
    return found


_MODEL = ("modules", "operations", "settings", "copies")
_OF_ENTRY = {"conditions", "draws", "environment", "initial", "measures", "seeds", "tables", *_MODEL}


def entry_from_plain(plain: Any, where: str = "an entry") -> Entry:
    """Return the entry for a result of :func:`entry_to_plain`.

    Args:
        plain: Plain data, which is validated.
        where: Place of the data, named in the message.
    """
    entry = _mapping(plain, where)
    _only(entry, _OF_ENTRY, where)
    environment = _environment(entry.get("environment"), f"{where} › environment")
    seeds = _seeds(entry.get("seeds"), f"{where} › seeds")
    draws = _draws(entry.get("draws"), len(seeds), f"{where} › draws")
    measures = {
        name: _values_from_plain(value, len(seeds), f"{where} › {name}")
        for name, value in _mapping(entry.get("measures"), f"{where} › measures").items()
    }
    conditions = _strings(entry.get("conditions"), f"{where} › conditions")
    initial = {
        pattern: _row_from_plain(row, len(expanded(pattern)) * len(seeds), f"{where} › initial › {pattern}")
        for pattern, row in _patterns(entry.get("initial", {}), f"{where} › initial").items()
    }
    modules, operations, settings, copies = (
        _strings(_patterns(entry.get(part, {}), f"{where} › {part}"), f"{where} › {part}") for part in _MODEL
    )
    tables = {
        pattern: _table_from_plain(row, f"{where} › tables › {pattern}")
        for pattern, row in _patterns(entry.get("tables", {}), f"{where} › tables").items()
    }
    return Entry(
        environment,
        conditions,
        seeds,
        draws,
        measures,
        initial,
        modules,
        operations,
        # Output shapes are recorded since a later version than constants: where there are no constants, the code has none.
        settings if settings or OUTPUT in conditions else None,
        tables if "tables" in entry else None,
        copies,
    )


def _patterns(plain: Any, where: str) -> dict[str, Any]:
    """Return an object whose keys are patterns of names that do not overlap."""
    given = _mapping(plain, where)
    names: set[str] = set()
    for pattern in given:
        try:
            found = expanded(pattern)
        except ValueError as error:
            msg = f"{where}: {error}"
            raise _UnexpectedError(msg) from None
        if not names.isdisjoint(found):
            msg = f"{where} › {pattern} must not stand for a name of another pattern"
            raise _UnexpectedError(msg)
        names.update(found)
        if len(names) > MOST_NAMES:
            msg = f"{where} must stand for at most {MOST_NAMES} names"
            raise _UnexpectedError(msg)
    return given


def _row_from_plain(plain: Any, tensors: int, where: str) -> InitialRow:
    """Return a row. The file omits the number of draws if it is that of tensors and seeds, and numbers that are 0."""
    row = _mapping(plain, where)
    _only(row, {"chance", "draws", "mean", "part_means", "part_rms", "rms", "shape", "spread"}, where)
    sizes, draws = _sizes(row.get("shape"), f"{where} › shape"), row.get("draws", tensors)
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
        msg = f"{where} › draws must be a whole number of at least 1; got {str(draws)[:40]!r}"
        raise _UnexpectedError(msg)
    rms, mean, chance, spread = (
        _number(row.get(key, default), f"{where} › {key}")
        for key, default in {"rms": None, "mean": 0.0, "chance": 0.0, "spread": 0.0}.items()
    )
    if any(value < 0 for value in (rms, chance, spread)):
        msg = f"{where} must have an rms, a chance and a spread of at least 0"
        raise _UnexpectedError(msg)
    means, sizes_of_parts = (_numbers(row.get(key, ""), f"{where} › {key}") for key in ("part_means", "part_rms"))
    if len(means) != len(sizes_of_parts) or len(means) not in {0, 2, 3, 4}:
        msg = f"{where} must have a mean and an rms for each of 2, 3 or 4 parts; got {len(means)} and {len(sizes_of_parts)}"
        raise _UnexpectedError(msg)
    return InitialRow(sizes, rms, mean, chance, spread, draws, tuple(zip(means, sizes_of_parts)))


def _table_from_plain(plain: Any, where: str) -> Projections:
    row = _mapping(plain, where)
    _only(row, {"digest", "projections", "rms", "shape"}, where)
    rms, digest = _number(row.get("rms"), f"{where} › rms"), row.get("digest", "")
    if rms < 0 or not isinstance(digest, str) or not re.fullmatch(r"([0-9a-f]{8})?", digest, re.ASCII):
        msg = f"{where} must have an rms of at least 0, and a digest of eight hexadecimal digits, if any"
        raise _UnexpectedError(msg)
    sizes = _sizes(row.get("shape"), f"{where} › shape")
    return Projections(sizes, rms, tuple(_numbers(row.get("projections", ""), f"{where} › projections")), digest)


def _sizes(shape: Any, where: str) -> tuple[int, ...]:
    """Return the sizes of a shape such as ``64 × 32``."""
    if not isinstance(shape, str) or not re.fullmatch(r"(\d{1,18}( × \d{1,18})*)?", shape, re.ASCII):
        msg = f"{where} must be a text like '64 × 32'; got {str(shape)[:40]!r}"
        raise _UnexpectedError(msg)
    return tuple(int(size) for size in shape.split(" × ") if size)


def _numbers(plain: Any, where: str) -> list[float]:
    """Return the numbers of a text such as ``0, 4, 0, 0``."""
    numbers = plain.split(", ") if isinstance(plain, str) and plain else []
    try:
        found = [float(number) for number in numbers]
    except ValueError:
        found = [math.nan]
    if not isinstance(plain, str) or not all(map(math.isfinite, found)):
        msg = f"{where} must be a text like '0, 4, 0, 0'; got {str(plain)[:40]!r}"
        raise _UnexpectedError(msg)
    return found


def _number(plain: Any, where: str) -> float:
    value = _value(plain, where)
    if value is None:
        msg = f"{where} must be a number"
        raise _UnexpectedError(msg)
    return value


def _environment(plain: Any, where: str) -> dict[str, str]:
    environment = _strings(plain, where)
    for name in ("device", "dtype"):
        if name not in environment:
            msg = f"{where} must have {name!r}"
            raise _UnexpectedError(msg)
    return environment


def _seeds(plain: Any, where: str) -> tuple[int, ...]:
    seeds = _list(plain, where)
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) != len(seeds):
        msg = f"{where} must be distinct whole numbers of at least 0"
        raise _UnexpectedError(msg)
    return tuple(seeds)


def _draws(plain: Any, count: int, where: str) -> tuple[str, ...]:
    draws = _list(plain, where)
    if len(draws) != count or not all(isinstance(draw, str) for draw in draws):
        msg = f"{where} must be one string for each of {count} seeds"
        raise _UnexpectedError(msg)
    return tuple(draws)


def _values_from_plain(plain: Any, count: int, where: str) -> BaselineValues:
    given = _mapping(plain, where)
    if "names" in given:
        _only(given, {"names"}, where)
        names = _list(given["names"], where)
        if not all(isinstance(name, str) for name in names):
            msg = f"{where} › names must be strings"
            raise _UnexpectedError(msg)
        return NameSet(tuple(names))
    _only(given, {"scale", "unit", "values"}, where)
    scale, unit, values = given.get("scale"), given.get("unit"), given.get("values")
    if scale not in ("linear", "log") or not isinstance(unit, str):
        msg = f"{where} must have a scale ('linear' or 'log') and a unit"
        raise _UnexpectedError(msg)
    elements = {"": values} if isinstance(values, list) else _mapping(values, f"{where} › values")
    read = {name: _row(row, count, f"{where} › {name}" if name else where) for name, row in elements.items()}
    if isinstance(values, list) and None in read[""]:
        # Only an element of a profile may be missing on a seed, such as a step that was dropped at random.
        msg = f"{where} must have a number on every seed; got null"
        raise _UnexpectedError(msg)
    return Series(unit, scale, read)


def _row(plain: Any, count: int, where: str) -> tuple[float | None, ...]:
    row = _list(plain, where)
    if len(row) != count:
        msg = f"{where} must have one value for each of {count} seeds; got {len(row)}"
        raise _UnexpectedError(msg)
    if all(value is None for value in row):
        msg = f"{where} must have a number on some seed; got null on all {count}, which compares nothing"
        raise _UnexpectedError(msg)
    return tuple(_value(value, where) for value in row)


def _value(plain: Any, where: str) -> float | None:
    if plain is None:
        return None
    if isinstance(plain, str) and plain in _NOT_FINITE:
        return _NOT_FINITE[plain]
    if isinstance(plain, (int, float)) and not isinstance(plain, bool):
        with suppress(OverflowError):
            return float(plain)
    msg = f"{where} must contain numbers, null, 'inf', '-inf' or 'nan'; got {str(plain)[:40]!r}"
    raise _UnexpectedError(msg)


def _mapping(plain: Any, where: str) -> dict[str, Any]:
    if not isinstance(plain, dict):
        msg = f"{where} must be an object; got {type(plain).__name__}"
        raise _UnexpectedError(msg)
    return plain


def _list(plain: Any, where: str) -> list[Any]:
    if not isinstance(plain, list):
        msg = f"{where} must be a list; got {type(plain).__name__}"
        raise _UnexpectedError(msg)
    return plain


def _strings(plain: Any, where: str) -> dict[str, str]:
    given = _mapping(plain, where)
    if not all(isinstance(value, str) for value in given.values()):
        msg = f"{where} must contain strings"
        raise _UnexpectedError(msg)
    return given


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        msg = f"{where} must have only the keys {', '.join(sorted(known))}; got {unknown[0]!r}"
        raise _UnexpectedError(msg)


# Writing --------------------------------------------------------------------------------------------------------------


def entry_to_plain(entry: Entry) -> dict[str, Any]:
    """Return an entry as dictionaries, lists, strings and finite numbers. Numbers are rounded to the precision of files."""
    model = {
        "initial": {
            pattern: _row_to_plain(row, len(expanded(pattern)) * len(entry.seeds))
            for pattern, row in entry.initial.items()
        },
        "modules": dict(entry.modules),
        "operations": dict(entry.operations),
        "settings": dict(entry.settings or {}),
        "copies": dict(entry.copies),
    }
    return {
        "conditions": dict(entry.conditions),
        "draws": list(entry.draws),
        "environment": dict(entry.environment),
        "measures": {name: _values_to_plain(values) for name, values in entry.measures.items()},
        "seeds": list(entry.seeds),
        **{name: part for name, part in model.items() if part},
        **({} if entry.tables is None else {"tables": {p: _table_to_plain(row) for p, row in entry.tables.items()}}),
    }


def _table_to_plain(row: Projections) -> dict[str, Any]:
    digest = {"digest": row.digest} if row.digest else {}
    values = ", ".join(f"{round(value, PROJECTED) + 0.0:.{PROJECTED}f}" for value in row.values)
    return {"projections": values, "rms": _rounded(row.rms, "log"), "shape": " × ".join(map(str, row.shape)), **digest}


def _row_to_plain(row: InitialRow, tensors: int) -> dict[str, Any]:
    numbers = {"mean": _rounded(row.mean, "log"), "chance": _spread(row.chance), "spread": _spread(row.spread)}
    plain = {"rms": _rounded(row.rms, "log"), "shape": " × ".join(map(str, row.shape))}
    draws = {} if row.draws == tensors else {"draws": row.draws}
    if row.parts:
        plain |= {
            key: ", ".join(f"{part[i]:.{DIGITS}g}" for part in row.parts)
            for i, key in enumerate(("part_means", "part_rms"))
        }
    return {**plain, **draws, **{name: value for name, value in numbers.items() if value}}


def _spread(value: float) -> float | str | None:
    """Return a standard deviation with the digits that some seeds can tell."""
    return float(f"{value:.{SPREAD_DIGITS - 1}e}") if math.isfinite(value) else _rounded(value, "log")


def _values_to_plain(values: BaselineValues) -> dict[str, Any]:
    if isinstance(values, NameSet):
        return {"names": sorted(values.names)}
    rows = {name: [_rounded(v, values.scale) for v in row] for name, row in values.values.items()}
    return {"scale": values.scale, "unit": values.unit, "values": rows[""] if list(rows) == [""] else rows}


def _rounded(value: float | None, scale: str) -> float | str | None:
    if value is None:
        return None
    if not math.isfinite(value):
        return str(float(value))
    if scale != "log":
        return round(float(value), DECIMALS) + 0.0
    rounded = float(f"{value:.{DIGITS - 1}e}")
    return rounded if math.isfinite(rounded) else float(value)


def render_baselines(contents: Contents) -> str:
    """Return the text of a file: sorted, indented, one line for each list of numbers, so that diffs are readable."""
    tests = {
        test: {
            name: {key: entry_to_plain(entry) for key, entry in environments.items()}
            for name, environments in names.items()
            if environments
        }
        for test, names in contents.items()
    }
    return _rendered({"schema": SCHEMA, "tests": {test: names for test, names in tests.items() if names}}) + "\n"


def _rendered(plain: Any, indent: str = "") -> str:
    if not isinstance(plain, dict) or not any(isinstance(value, (dict, list)) for value in plain.values()):
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False, sort_keys=True)
        text = text if _encodable(text) else json.dumps(plain, allow_nan=False, sort_keys=True)
        if not isinstance(plain, dict) or len(text) <= LONGEST_OBJECT:
            return text
    inner = indent + " "
    lines = (f"{inner}{_rendered(key)}: {_rendered(plain[key], inner)}" for key in sorted(plain))
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _encodable(text: str) -> bool:
    """Whether UTF-8 can encode the text. Names may contain surrogates, which it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def change_baselines(path: Path, change: Callable[[Contents], Contents]) -> bool:
    """Replace the contents of a file by a function of its present contents.

    Sessions that write at the same time wait for each other. The new text is written to a temporary file in the same folder,
    flushed to the disk and moved into place in one step. If the process is killed or the disk is full, the old file remains.

    Args:
        path: The file. It is removed if it has no more contents, and its folder if that is empty.
        change: Returns the new contents for the present ones.

    Returns:
        Whether the file has changed.

    Raises:
        BaselineError: The file cannot be read or written, or would be too large to be read. It is left unchanged.
    """
    try:
        _refuse_links(path)
        with _locked(path):
            old = read_baselines(path)
            new = change(old)
            text = render_baselines(new)
            if text == render_baselines(old) and (new or not path.exists()):
                return False
            _refuse_size(path, text)
            path.parent.mkdir(exist_ok=True)
            _refuse_links(path)
            replace_file(path, text if new else "")
    except OSError as error:
        msg = f"{path}: the baseline could not be written. The file is unchanged. {_reason(error)}."
        raise BaselineError(msg) from error
    return True


def _refuse_size(path: Path, text: str) -> None:
    size = len(text.encode())
    if size > LARGEST_FILE:
        msg = (
            f"{path}: a baseline must be smaller than {LARGEST_FILE // 2**20} MB. With what was measured now, it would have "
            f"{size / 2**20:.0f} MB. It is unchanged. Divide {path.stem}.py into several files of tests."
        )
        raise BaselineError(msg)


def _reason(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"


def _locked(path: Path) -> AbstractContextManager[None]:
    """Hold the lock of a baseline file."""
    return locked(path, patience=LOCK_PATIENCE)
