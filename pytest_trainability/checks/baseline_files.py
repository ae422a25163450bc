"""Baselines on disk: ``__trainability__/<test module>.json`` beside the tests.

A file is read as data and nothing else, checked to the last value, and replaced as a whole or not at all.
"""

from __future__ import annotations

import glob
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ..errors import BaselineError
from .baselines import Entry, NameSet, Recorded, Series

__all__ = [
    "FOLDER",
    "Contents",
    "baseline_path",
    "change_baselines",
    "entry_from_plain",
    "entry_to_plain",
    "module_of",
    "parse_baselines",
    "read_baselines",
    "render_baselines",
    "with_entry",
]

FOLDER = "__trainability__"
SCHEMA = 1
LARGEST_FILE = 16 * 2**20
"""Bytes. A hundred models of a thousand parameters each take less."""
LOCK_PATIENCE = 60.0
"""Seconds to wait for another session that writes the same file."""
DECIMALS, DIGITS = 4, 5
"""Of values as they are written: decimals of nats and fractions, significant digits of scales. Finer than any tolerance."""

Contents: TypeAlias = "Mapping[str, Mapping[str, Mapping[str, Entry]]]"
"""Entries by test (what follows the file in its node id), by name of the measurement, by environment."""

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def baseline_path(test_file: Path) -> Path:
    """Return where the baselines of a test module are kept."""
    return test_file.parent / FOLDER / f"{test_file.stem}.json"


def module_of(path: Path) -> Path:
    """Return the test module whose baselines a file holds: the way back from :func:`baseline_path`."""
    return path.parent.parent / f"{path.stem}.py"


def with_entry(contents: Contents, test: str, name: str, entry: Entry) -> Contents:
    """Return the contents with one entry added, or put in the place of the one of the same environment."""
    of_test = contents.get(test, {})
    return {**contents, test: {**of_test, name: {**of_test.get(name, {}), entry.key: entry}}}


# Reading --------------------------------------------------------------------------------------------------------------


def read_baselines(path: Path) -> Contents:
    """Read a file; one that is not there holds nothing.

    Raises:
        BaselineError: It is no regular file, too large, or not what :func:`render_baselines` writes.
    """
    try:
        _refuse_links(path)
        if not path.exists():
            return {}
        if not path.is_file():
            msg = f"{path}: a baseline must be a regular file. Move away what is there."
            raise BaselineError(msg)
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        msg = f"{path}: the baseline must be readable. {_reason(error)}."
        raise BaselineError(msg) from error
    if len(raw) > LARGEST_FILE:
        msg = (
            f"{path}: a baseline must be smaller than {LARGEST_FILE // 2**20} MB. This one has "
            f"{path.stat().st_size / 2**20:.0f} MB. Restore it from version control, or move it away and record anew."
        )
        raise BaselineError(msg)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(path, f"it must be UTF-8; byte {error.start} is not")
    return parse_baselines(text, path)


def _refuse_links(path: Path) -> None:
    """Keep to the folder beside the tests: a link may lead anywhere.

    Raises:
        BaselineError: The file or its folder is a symbolic link.
    """
    for part in (path.parent, path):
        if part.is_symlink():
            msg = (
                f"{part}: a baseline and its folder must be no symbolic link, which could lead out of the project. Replace "
                "it by what it points to."
            )
            raise BaselineError(msg)


def parse_baselines(text: str, path: Path) -> Contents:
    """Read the text of a file; ``path`` is named in errors.

    Raises:
        BaselineError: It is not what :func:`render_baselines` writes; the message says what must hold where.
    """
    try:
        plain = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant, parse_float=_finite_float
        )
    except (ValueError, RecursionError) as error:
        hint = "; it holds the marks of a merge conflict" if "<<<<<<<" in text else ""
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        _refuse(path, f"it must be JSON: {what}{hint}")
    try:
        return _contents(plain)
    except _UnexpectedError as error:
        _refuse(path, str(error))


def _refuse(path: Path, what: str) -> NoReturn:
    # Names from the file are somebody else's: no terminal must obey them, and xdist must be able to send them.
    what = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in what)
    msg = (
        f"{path}: the baseline cannot be used: {what}. Restore it from version control, or move it away and record anew "
        "with --trainability-baseline=new."
    )
    raise BaselineError(msg) from None


class _UnexpectedError(Exception):
    """What a file holds is not what must be there."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            msg = f"the key {key!r} stands twice in one object"
            raise ValueError(msg)
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON number; a value that is not finite is written as text"
    raise ValueError(msg)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text} is too large for a number"
        raise ValueError(msg)
    return value


def _contents(plain: Any) -> Contents:
    document = _mapping(plain, "the file")
    schema = document.get("schema")
    if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA:
        msg = f"it has schema {schema} and this version reads {SCHEMA}: upgrade pytest-trainability"
        raise _UnexpectedError(msg)
    if schema != SCHEMA or isinstance(schema, bool):
        msg = f"its schema must be {SCHEMA}; got {schema!r}"
        raise _UnexpectedError(msg)
    _only(document, {"schema", "tests"}, "the file")
    found: dict[str, dict[str, dict[str, Entry]]] = {}
    for test, names in _mapping(document.get("tests"), "tests").items():
        for name, environments in _mapping(names, test).items():
            for key, entry in _mapping(environments, f"{test} › {name}").items():
                where = f"{test} › {name} › {key}"
                read = entry_from_plain(entry, where)
                if read.key != key:
                    msg = f"{where} must stand under the key of its environment, {read.key!r}"
                    raise _UnexpectedError(msg)
                found.setdefault(test, {}).setdefault(name, {})[key] = read
    return found


def entry_from_plain(plain: Any, where: str = "an entry") -> Entry:
    """Rebuild what :func:`entry_to_plain` wrote."""
    entry = _mapping(plain, where)
    _only(entry, {"conditions", "draws", "environment", "measures", "seeds"}, where)
    environment = _texts(entry.get("environment"), f"{where} › environment")
    for name in ("device", "dtype"):
        if name not in environment:
            msg = f"{where} › environment must have {name!r}"
            raise _UnexpectedError(msg)
    seeds = _list(entry.get("seeds"), f"{where} › seeds")
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) != len(seeds):
        msg = f"{where} › seeds must be different whole numbers from 0 on"
        raise _UnexpectedError(msg)
    draws = _list(entry.get("draws"), f"{where} › draws")
    if len(draws) != len(seeds) or not all(isinstance(draw, str) for draw in draws):
        msg = f"{where} › draws must be one text for each of {len(seeds)} seeds"
        raise _UnexpectedError(msg)
    measures = {
        name: _recorded(value, len(seeds), f"{where} › {name}")
        for name, value in _mapping(entry.get("measures"), f"{where} › measures").items()
    }
    conditions = _texts(entry.get("conditions"), f"{where} › conditions")
    return Entry(environment, conditions, tuple(seeds), tuple(draws), measures)


def _recorded(plain: Any, count: int, where: str) -> Recorded:
    given = _mapping(plain, where)
    if "names" in given:
        _only(given, {"names"}, where)
        names = _list(given["names"], where)
        if not all(isinstance(name, str) for name in names):
            msg = f"{where} › names must be texts"
            raise _UnexpectedError(msg)
        return NameSet(tuple(names))
    _only(given, {"scale", "unit", "values"}, where)
    scale, unit, values = given.get("scale"), given.get("unit"), given.get("values")
    if scale not in ("linear", "log") or not isinstance(unit, str):
        msg = f"{where} must have a scale, linear or log, and a unit"
        raise _UnexpectedError(msg)
    elements = {"": values} if isinstance(values, list) else _mapping(values, f"{where} › values")
    read = {name: _values(row, count, f"{where} › {name}" if name else where) for name, row in elements.items()}
    return Series(unit, scale, read)


def _values(plain: Any, count: int, where: str) -> tuple[float | None, ...]:
    row = _list(plain, where)
    if len(row) != count:
        msg = f"{where} must have one value for each of {count} seeds; got {len(row)}"
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
    msg = f"{where} must hold numbers, null, 'inf', '-inf' or 'nan'; got {str(plain)[:40]!r}"
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


def _texts(plain: Any, where: str) -> dict[str, str]:
    given = _mapping(plain, where)
    if not all(isinstance(value, str) for value in given.values()):
        msg = f"{where} must hold texts"
        raise _UnexpectedError(msg)
    return given


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        msg = f"{where} must have no key but {', '.join(sorted(known))}; got {unknown[0]!r}"
        raise _UnexpectedError(msg)


# Writing --------------------------------------------------------------------------------------------------------------


def entry_to_plain(entry: Entry) -> dict[str, Any]:
    """Return dictionaries, lists, texts and finite numbers only, rounded to what is significant."""
    return {
        "conditions": dict(entry.conditions),
        "draws": list(entry.draws),
        "environment": dict(entry.environment),
        "measures": {name: _recorded_to_plain(recorded) for name, recorded in entry.measures.items()},
        "seeds": list(entry.seeds),
    }


def _recorded_to_plain(recorded: Recorded) -> dict[str, Any]:
    if isinstance(recorded, NameSet):
        return {"names": sorted(recorded.names)}
    rows = {name: [_rounded(v, recorded.scale) for v in row] for name, row in recorded.values.items()}
    return {"scale": recorded.scale, "unit": recorded.unit, "values": rows[""] if list(rows) == [""] else rows}


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
    """Write the text of a file: sorted, indented, one line for each list of numbers, so that a change reads well in a diff."""
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
    if not isinstance(plain, dict) or all(isinstance(value, str) for value in plain.values()):
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False, sort_keys=True)
        return text if _encodable(text) else json.dumps(plain, allow_nan=False, sort_keys=True)
    inner = indent + " "
    lines = (f"{inner}{_rendered(key)}: {_rendered(plain[key], inner)}" for key in sorted(plain))
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _encodable(text: str) -> bool:
    """Whether the text can be UTF-8: a name may hold half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def change_baselines(path: Path, change: Callable[[Contents], Contents]) -> bool:
    """Replace a file by what ``change`` makes of what it holds at that moment.

    Sessions that write at once wait for each other. The new text is written beside the file, flushed to the disk and put
    in its place in one step: whoever is killed, or runs out of disk, leaves the old file as it was.

    Returns:
        Whether the file has changed.

    Raises:
        BaselineError: The file cannot be used or written; it is as it was.
    """
    try:
        _refuse_links(path)
        with _alone(path):
            old = read_baselines(path)
            new = change(old)
            if render_baselines(new) == render_baselines(old) and (new or not path.exists()):
                return False
            path.parent.mkdir(exist_ok=True)
            _refuse_links(path)
            _replace(path, render_baselines(new) if new else "")
    except OSError as error:
        msg = f"{path}: the baseline could not be written; what was there is as it was. {_reason(error)}."
        raise BaselineError(msg) from error
    return True


def _reason(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for other sessions of this user that write. The one lock lies outside the projects, which it would litter."""
    from filelock import FileLock, Timeout

    user = os.getuid() if hasattr(os, "getuid") else 0
    lock = FileLock(Path(tempfile.gettempdir()) / f"pytest-trainability-{user}.lock")
    try:
        lock.acquire(timeout=LOCK_PATIENCE)
    except Timeout:
        msg = (
            f"{path}: the baseline could not be written: another session has held it for {LOCK_PATIENCE:.0f} seconds. Run "
            "again when it has ended."
        )
        raise BaselineError(msg) from None
    try:
        yield
    finally:
        lock.release()


def _replace(path: Path, text: str) -> None:
    """Put a text in the place of a file; an empty one removes it, and its folder where nothing else is in it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        # We are alone: its writer was killed.
        left.unlink(missing_ok=True)
    if not text:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Return the permissions that new files shall not have. They can only be read by setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
