"""Baseline files: round trips, refused files, and safe writing if a writer fails, waits or is killed."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pytest_trainability.checks import baseline_files
from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_files import (
    Contents,
    baseline_path,
    change_baselines,
    parse_baselines,
    read_baselines,
    render_baselines,
    with_entries,
    with_entry,
)
from pytest_trainability.checks.baseline_values import BaselineValues, NameSet, Series
from pytest_trainability.checks.baselines import compare
from pytest_trainability.checks.initial_values import InitialRow
from pytest_trainability.checks.locks import lock_path
from pytest_trainability.errors import BaselineError
from pytest_trainability.records.tensors import Projections

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX: fork, signals, permissions")
PLACE = Path("__trainability__") / "test_model.json"
RESTORE = "Restore it from version control, or move it away and record it again with --trainability-baseline=new."
VALUES = (-1.25, -math.inf, math.inf, math.nan, None, 0.0, 3.0)


def entry(value: float | None = -2.5, **changes: Any) -> Entry:
    """Return an entry of two seeds with some fields changed."""
    given: dict[str, Any] = {
        "environment": {"device": "cpu", "dtype": "float32", "torch": "2.13.0", "threads": "1"},
        "conditions": {"chain": "6 × Linear", "frame": "per sample", "mode": "train"},
        "seeds": (0, 1),
        "draws": ("3b8f2409", "37d1fbe5"),
        "measures": {
            "log_gain": Series("nats", "linear", {"": (value, -3.25)}),
            "gradient_norm": Series("", "log", {"0.weight": (0.5, 0.25), "0.bias": (0.125, None)}),
            "unused_parameters": NameSet(("head.bias", "head.weight")),
        },
    }
    return Entry(**{**given, **changes})


def holding(*tests: str) -> Contents:
    found: Contents = {}
    for test in tests:
        found = with_entry(found, test, "", entry())
    return found


def adding(test: str, new: Entry | None = None) -> Callable[[Contents], Contents]:
    return lambda contents: with_entry(contents, test, "", new or entry())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of a baseline in an empty project."""
    project = tmp_path / "project"
    project.mkdir()
    return project / PLACE


@pytest.fixture
def recorded(path: Path) -> Path:
    """Path of a baseline with one entry."""
    change_baselines(path, adding("test_old"))
    return path


def tree(path: Path) -> dict[str, bytes | None]:
    """Return the contents of all files of the project."""
    root = path.parent.parent
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def refused(path: Path, how: Callable[[], object]) -> str:
    """Return the message of the error that a function raises, after checking that no file has changed."""
    before = tree(path)
    with pytest.raises(BaselineError) as caught:
        how()
    assert tree(path) == before
    return str(caught.value)


# Round trips ----------------------------------------------------------------------------------------------------------

AWKWARD = {
    "empty": "",
    "space": " ",
    "unicode": "Übergröße 日本語 🜁",
    "composed and decomposed": "é e\u0301",
    "half a character": "\ud800",
    "halves in the wrong order": "\udfff\ud800",
    "node id": "TestA::test_b[c::d-[e]-2]",
    "separator of messages": "a › b",
    "quotes": "\"'\\",
    "control": "\x00\x1b[2J\r\n\t\x7f",
    "line separators": "\u2028\u2029\x85",
    "byte order mark": "\ufeff",
    "conflict": "<<<<<<< HEAD",
    "constant": "NaN",
    "key of a file": "schema",
    "path": "../../../etc/passwd",
    "long": "x" * 5000,
}


def everywhere(name: str) -> Contents:
    """Return contents with the name in every place that a file has for names."""
    awkward = entry(
        environment={"device": name, "dtype": name, "torch": name, "of a plugin": name},
        conditions={name: name},
        draws=(name, name),
        measures={
            name: Series(name, "log", {name: (0.5, 0.25), f"{name}, too": (0.5, None)}),
            f"{name} alone": NameSet((name, f"{name}, too")),
        },
        initial={
            name: InitialRow((2, 3), 0.5, math.nan, math.inf, 0.25, 8),
            f"{name}, too": InitialRow((), 1.0, 1.0, 0.0, 0.0, 1),
        },
        modules={name: name, f"{name}, too": name},
        tables={name: Projections((2, 3), 0.5, (0.25, -1.0)), f"{name}, too": Projections((6,), 1.0, (), "0badcafe")},
    )
    return {name: {name: {awkward.key: awkward}, f"{name}, too": {awkward.key: awkward}}}


@pytest.mark.parametrize("name", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_names_survive(path: Path, name: str) -> None:
    assert change_baselines(path, lambda _: everywhere(name))
    assert read_baselines(path) == everywhere(name)
    assert not change_baselines(path, lambda _: everywhere(name))


def random_contents(draw: random.Random) -> Contents:
    def name() -> str:
        return draw.choice(list(AWKWARD.values())) + "".join(
            chr(draw.randrange(0x3000)) for _ in range(draw.randrange(4))
        )

    def value() -> float | None:
        return draw.choice(
            [*VALUES, draw.gauss(0, 5), 10.0 ** draw.randint(-300, 300), -(10.0 ** draw.randint(0, 300))]
        )

    def row(count: int, *, complete: bool) -> tuple[float | None, ...]:
        """Return values, of which a scalar has one on every seed and an element of a profile has one on some seed."""
        values = tuple(value() for _ in range(count))
        rejected = None in values if complete else set(values) == {None}
        return row(count, complete=complete) if rejected else values

    def measure(count: int) -> BaselineValues:
        if draw.random() < 0.2:
            return NameSet(tuple(sorted({name() for _ in range(draw.randrange(3))})))
        elements = [""] if draw.random() < 0.4 else [name() for _ in range(draw.randrange(4))]
        rows = {element: row(count, complete=element == "") for element in elements}
        return Series(name(), draw.choice(["linear", "log"]), rows)

    found: Contents = {}
    for _ in range(draw.randrange(4)):
        count = draw.randint(1, 4)
        new = entry(
            environment={"device": name(), "dtype": name(), **{name(): name() for _ in range(draw.randrange(3))}},
            seeds=tuple(draw.sample(range(10**12), count)),
            draws=tuple(name() for _ in range(count)),
            measures={name(): measure(count) for _ in range(draw.randrange(4))},
        )
        found = with_entry(found, name(), name(), new)
    return found


def test_text_is_stable_and_strict_json() -> None:
    """The contents of a file are written as they were read, so that a file changes only where an entry does."""
    draw = random.Random(0)
    for _ in range(200):
        text = render_baselines(random_contents(draw))
        assert render_baselines(parse_baselines(text, PLACE)) == text
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        text.encode("utf-8")


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_infinity_and_nan_survive(scale: Any) -> None:
    row = tuple(VALUES)
    new = entry(seeds=tuple(range(len(row))), draws=("",) * len(row), measures={"m": Series("", scale, {"w": row})})
    text = render_baselines(with_entry({}, "t", "", new))
    assert '[-1.25, "-inf", "inf", "nan", null, 0.0, 3.0]' in text
    assert repr(parse_baselines(text, PLACE)["t"][""][new.key].measures["m"]) == repr(new.measures["m"])


@pytest.mark.parametrize(
    ("scale", "value", "written"),
    [
        ("linear", -37.891234567, "-37.8912"),
        ("linear", -0.00000001, "0.0"),
        ("linear", 2, "2.0"),
        ("linear", 1e300, "1e+300"),
        ("log", 1.7912345e-17, "1.7912e-17"),
        ("log", 123456789.0, "123460000.0"),
        ("log", 5e-324, "5e-324"),
        ("log", sys.float_info.max, "1.7976931348623157e+308"),
    ],
)
def test_values_are_rounded(scale: Any, value: float, written: str) -> None:
    """The largest floating-point number is not rounded, because that would overflow."""
    new = entry(measures={"m": Series("", scale, {"w": (value, None)})})
    text = render_baselines(with_entry({}, "t", "", new))
    assert f"[{written}, null]" in text
    assert render_baselines(parse_baselines(text, PLACE)) == text


def test_keys_are_sorted_and_every_list_is_one_line() -> None:
    contents = {**holding("test_b", "test_a"), "": {"z": {entry().key: entry()}, "a": {entry().key: entry()}}}
    text = render_baselines(contents)
    turned = {test: dict(reversed(list(names.items()))) for test, names in reversed(list(contents.items()))}
    assert render_baselines(turned) == text

    def ordered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=ordered)
    assert text.endswith("}\n")
    assert all(line.count("[") == line.count("]") for line in text.splitlines())


def test_a_new_entry_adds_lines_and_changes_no_others() -> None:
    """Except for the comma of the line before, if the entry is the last one."""
    before = render_baselines(holding("test_a", "test_c")).splitlines()
    after = render_baselines(holding("test_a", "test_b", "test_c")).splitlines()
    left = iter(after)
    assert all(line in left for line in before)


def test_a_missing_file_is_empty(path: Path) -> None:
    assert read_baselines(path) == {}
    assert read_baselines(baseline_path(path.parent / "nowhere" / "test_model.py")) == {}


# Refused files ---------------------------------------------------------------------------------------------------------

KEY = "cpu float32"
TO_ENTRY = ("tests", "test_old", "", KEY)


def plain() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(render_baselines(holding("test_old")))
    return found


def edited(*place: str | int, to: Any) -> str:
    """Return the text of a file with one value replaced."""
    document = plain()
    *way, last = place
    at: Any = document
    for part in way:
        at = at[part]
    at[last] = to
    return json.dumps(document)


def in_text(old: str, new: str) -> str:
    text = render_baselines(holding("test_old"))
    assert text.count(old) == 1
    return text.replace(old, new)


TEXT = render_baselines(holding("test_old"))
AT = "test_old ›  › cpu float32"
HAND_EDITED = {
    "a newer schema": (
        in_text('"schema": 2', '"schema": 3'),
        "it has schema 3, but this version reads schemas up to 2; upgrade",
    ),
    "an older schema": (in_text('"schema": 2', '"schema": 0'), "its schema must be 1 or 2; got 0"),
    "schema as text": (in_text('"schema": 2', '"schema": "1"'), "its schema must be 1 or 2; got '1'"),
    "schema true": (in_text('"schema": 2', '"schema": true'), "its schema must be 1 or 2; got True"),
    "no schema": (json.dumps({"tests": {}}), "its schema must be 1 or 2; got None"),
    "no tests": ('{"schema": 1}', "tests must be an object; got NoneType"),
    "a list": ("[]", "the file must be an object; got list"),
    "a number": ("1", "the file must be an object; got int"),
    "an unknown key": (edited("more", to=1), "the file must have only the keys schema, tests; got 'more'"),
    "tests a list": (edited("tests", to=[]), "tests must be an object; got list"),
    "a test a text": (edited("tests", "test_old", to="x"), "test_old must be an object; got str"),
    "a name a list": (edited("tests", "test_old", "", to=[1]), "test_old ›  must be an object; got list"),
    "an entry null": (edited(*TO_ENTRY, to=None), f"{AT} must be an object; got NoneType"),
    "an entry with more": (
        edited(*TO_ENTRY, "code", to="import os"),
        (
            f"{AT} must have only the keys conditions, copies, draws, environment, initial, measures, modules, operations, "
            "seeds, settings, tables; got 'code'"
        ),
    ),
    "another key": (
        in_text('"cpu float32"', '"cuda float32"'),
        "test_old ›  › cuda float32 must have the key of its environment, 'cpu float32'",
    ),
    "environment a list": (edited(*TO_ENTRY, "environment", to=[]), f"{AT} › environment must be an object; got list"),
    "environment of numbers": (
        edited(*TO_ENTRY, "environment", "threads", to=1),
        f"{AT} › environment must contain strings",
    ),
    "no device": (
        edited(*TO_ENTRY, "environment", to={"dtype": "float32"}),
        f"{AT} › environment must have 'device'",
    ),
    "no dtype": (edited(*TO_ENTRY, "environment", to={"device": "cpu"}), f"{AT} › environment must have 'dtype'"),
    "conditions null": (edited(*TO_ENTRY, "conditions", to=None), f"{AT} › conditions must be an object; got NoneType"),
    "conditions nested": (edited(*TO_ENTRY, "conditions", "mode", to={}), f"{AT} › conditions must contain strings"),
    "seeds a number": (edited(*TO_ENTRY, "seeds", to=2), f"{AT} › seeds must be a list; got int"),
    "seeds twice": (
        edited(*TO_ENTRY, "seeds", to=[0, 0]),
        f"{AT} › seeds must be distinct whole numbers of at least 0",
    ),
    "seeds negative": (edited(*TO_ENTRY, "seeds", to=[0, -1]), f"{AT} › seeds must be distinct whole numbers"),
    "seeds true": (edited(*TO_ENTRY, "seeds", to=[0, True]), f"{AT} › seeds must be distinct whole numbers"),
    "seeds fractions": (edited(*TO_ENTRY, "seeds", to=[0, 0.5]), f"{AT} › seeds must be distinct whole numbers"),
    "seeds nested": (edited(*TO_ENTRY, "seeds", to=[0, [1]]), f"{AT} › seeds must be distinct whole numbers"),
    "no seeds": (edited(*TO_ENTRY, "seeds", to=[]), f"{AT} › seeds must be distinct whole numbers"),
    "a draw less": (edited(*TO_ENTRY, "draws", to=["a"]), f"{AT} › draws must be one string for each of 2 seeds"),
    "draws of numbers": (edited(*TO_ENTRY, "draws", to=[1, 2]), f"{AT} › draws must be one string for each of 2 seeds"),
    "measures a list": (edited(*TO_ENTRY, "measures", to=[]), f"{AT} › measures must be an object; got list"),
    "a measure a number": (
        edited(*TO_ENTRY, "measures", "log_gain", to=-2.5),
        f"{AT} › log_gain must be an object; got float",
    ),
    "a measure with more": (
        edited(*TO_ENTRY, "measures", "log_gain", "eval", to=""),
        f"{AT} › log_gain must have only the keys scale, unit, values; got 'eval'",
    ),
    "names and values": (
        edited(*TO_ENTRY, "measures", "log_gain", "names", to=[]),
        f"{AT} › log_gain must have only the keys names; got 'scale'",
    ),
    "names of numbers": (
        edited(*TO_ENTRY, "measures", "unused_parameters", to={"names": [1]}),
        f"{AT} › unused_parameters › names must be strings",
    ),
    "another scale": (
        edited(*TO_ENTRY, "measures", "log_gain", "scale", to="cubic"),
        f"{AT} › log_gain must have a scale ('linear' or 'log') and a unit",
    ),
    "scale a list": (
        edited(*TO_ENTRY, "measures", "log_gain", "scale", to=["log"]),
        "must have a scale ('linear' or 'log')",
    ),
    "no unit": (
        edited(*TO_ENTRY, "measures", "log_gain", "unit", to=None),
        "must have a scale ('linear' or 'log') and a unit",
    ),
    "values a number": (
        edited(*TO_ENTRY, "measures", "log_gain", "values", to=1),
        f"{AT} › log_gain › values must be an object; got int",
    ),
    "a row a number": (
        edited(*TO_ENTRY, "measures", "gradient_norm", "values", "0.bias", to=1),
        f"{AT} › gradient_norm › 0.bias must be a list; got int",
    ),
    "a value less": (
        edited(*TO_ENTRY, "measures", "log_gain", "values", to=[1.0]),
        f"{AT} › log_gain must have one value for each of 2 seeds; got 1",
    ),
    "a value of text": (
        in_text("-2.5", '"-2.5"'),
        f"{AT} › log_gain must contain numbers, null, 'inf', '-inf' or 'nan'; got '-2.5'",
    ),
    "a number null": (in_text("-2.5", "null"), f"{AT} › log_gain must have a number on every seed; got null"),
    "all of a scalar null": (
        in_text("-2.5, -3.25", "null, null"),
        f"{AT} › log_gain must have a number on some seed; got null on all 2, which compares nothing",
    ),
    "all of an element null": (
        in_text("0.5, 0.25", "null, null"),
        f"{AT} › gradient_norm › 0.weight must have a number on some seed; got null on all 2",
    ),
    "a value true": (in_text("-2.5", "true"), f"{AT} › log_gain must contain numbers, null, 'inf', '-inf' or 'nan'"),
    "a value nested": (in_text("-2.5", "[-2.5]"), "must contain numbers, null, 'inf', '-inf' or 'nan'; got '[-2.5]'"),
    "Infinity spelled out": (in_text("-2.5", '"Infinity"'), "must contain numbers, null, 'inf', '-inf' or 'nan'"),
    "a whole number beyond all": (
        in_text("-2.5", "1" + "0" * 400),
        "must contain numbers, null, 'inf', '-inf' or 'nan'",
    ),
    "more digits than Python reads": (in_text("-2.5", "1" * 10_000), "it must be JSON: "),
    "NaN": (in_text("-2.5", "NaN"), "NaN is not a JSON number; write 'inf', '-inf' or 'nan' as text"),
    "Infinity": (in_text("-2.5", "Infinity"), "Infinity is not a JSON number"),
    "-Infinity": (in_text("-2.5", "-Infinity"), "-Infinity is not a JSON number"),
    "1e999": (in_text("-2.5", "1e999"), "1e999 is too large for a floating-point number"),
    "-1e999": (in_text("-2.5", "-1e999"), "-1e999 is too large for a floating-point number"),
    "a test twice": (
        '{"schema": 1, "tests": {"test_a": {}, "test_a": {}}}',
        "the key 'test_a' occurs twice in one object",
    ),
    "a key twice, once escaped": (
        r'{"schema": 1, "tests": {}, "t\u0065sts": {}}',
        "the key 'tests' occurs twice in one object",
    ),
    "a merge conflict": (
        f"<<<<<<< HEAD\n{TEXT}=======\n{TEXT}>>>>>>> theirs\n",
        "it must be JSON: Expecting value: line 1 column 1 (char 0); it contains the markers of a merge conflict",
    ),
    "a comment": (f"// by hand\n{TEXT}", "it must be JSON: Expecting value: line 1 column 1"),
    "single quotes": (TEXT.replace('"', "'"), "it must be JSON: Expecting property name"),
    "something after it": (f"{TEXT}{TEXT}", "it must be JSON: Extra data"),
    "nothing in it": ("", "it must be JSON: Expecting value: line 1 column 1"),
    "names that a terminal would obey": (
        r'{"schema": 1, "tests": {"\u001b[2J\n\ud800": 5}}',
        r"\x1b[2J\n\ud800 must be an object; got int",
    ),
    "deep lists": ("[" * 100_000, "it must be JSON: nested too deeply"),
    "deep lists that end": ("[" * 100_000 + "]" * 100_000, "it must be JSON: nested too deeply"),
    "deep objects": ('{"a":' * 100_000, "it must be JSON: nested too deeply"),
}
ENCODED = {
    "UTF-16": (TEXT.encode("utf-16"), "it must be UTF-8; byte 0 is not"),
    "UTF-16 without a mark": (TEXT.replace("×", "x").encode("utf-16-le"), "it must be JSON: "),
    "Latin-1": (TEXT.encode("latin-1"), f"it must be UTF-8; byte {TEXT.index('×')} is not"),
    "a byte order mark": (TEXT.encode("utf-8-sig"), "it must be JSON: Unexpected UTF-8 BOM"),
    "half a character": (TEXT.replace("×", "\ud800").encode("utf-8", "surrogatepass"), "it must be UTF-8; byte "),
    "zeros": (b"\0" * 1000, "it must be JSON: "),
    "compressed": (b"\x1f\x8b\x08\0\0\0\0\0", "it must be UTF-8; byte 1 is not"),
    "pickled": (b"\x80\x04\x95\x1c\0\0\0\0\0\0\0\x8c\x05posix", "it must be UTF-8; byte 0 is not"),
}
REFUSED = {name: (text.encode(), said) for name, (text, said) in HAND_EDITED.items()} | ENCODED


@pytest.mark.parametrize(("raw", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_an_invalid_file_is_refused_and_left_unchanged(recorded: Path, raw: bytes, said: str) -> None:
    recorded.write_bytes(raw)
    by_reader = refused(recorded, lambda: read_baselines(recorded))
    by_writer = refused(recorded, lambda: change_baselines(recorded, adding("test_new")))
    assert by_reader == by_writer
    assert by_reader.startswith(f"{recorded}: the baseline is not valid: ")
    assert said in by_reader
    assert by_reader.endswith(f". {RESTORE}")
    assert by_reader.isprintable()
    assert ".." not in by_reader.removeprefix(str(recorded))


def test_the_text_of_these_tests_is_valid_without_edits(recorded: Path) -> None:
    """So that the files above are refused because of their edits."""
    recorded.write_text(TEXT, encoding="utf-8")
    assert read_baselines(recorded) == holding("test_old")
    assert parse_baselines(json.dumps(plain()), PLACE) == holding("test_old")


def test_a_truncated_file_is_refused(recorded: Path) -> None:
    whole = recorded.read_bytes()
    for size in range(len(whole) - 1):
        recorded.write_bytes(whole[:size])
        with pytest.raises(BaselineError, match=re.escape(RESTORE)):
            change_baselines(recorded, adding("test_new"))
        assert recorded.read_bytes() == whole[:size]
    recorded.write_bytes(whole[:-1])  # only the last newline is missing
    assert read_baselines(recorded) == holding("test_old")


def test_a_file_with_any_byte_replaced_is_read_or_refused() -> None:
    """It raises no other exception, and valid contents survive writing."""
    whole = TEXT.encode()
    for at in range(len(whole)):
        for byte in b'\0"09-[}\xff':
            raw = whole[:at] + bytes([byte]) + whole[at + 1 :]
            read_or_refused(raw.decode("utf-8", "replace"))


def read_or_refused(text: str) -> None:
    try:
        found = parse_baselines(text, PLACE)
    except BaselineError:
        return
    assert parse_baselines(render_baselines(found), PLACE).keys() == found.keys()


def places(value: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if way:
        yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*way, key))


@pytest.mark.parametrize(
    "other", [None, True, 0, 7, 0.5, "x", "inf", [], [[]], [None], {}, {"x": 1}, {"": []}], ids=repr
)
def test_another_type_in_any_place_is_read_or_refused(other: Any) -> None:
    for place in places(plain()):
        read_or_refused(edited(*place, to=other))


def test_a_value_nested_to_any_depth_is_refused() -> None:
    """Also at depths where parsing succeeds, but the repr of the value would not."""
    for depth in range(1, 1200, 1):
        nested = "[" * depth + "]" * depth
        for old in ("-2.5", '"schema": 2'):
            with pytest.raises(BaselineError):
                parse_baselines(TEXT.replace(old, nested if old == "-2.5" else f'"schema": {nested}'), PLACE)


@pytest.mark.parametrize("draws", [("3b8f2409", "37d1fbe5"), ("other", "draws")], ids=["the same draws", "others"])
@pytest.mark.parametrize("value", ["1e200", "-1.7e308"])
def test_a_number_whose_square_overflows_is_a_change(value: str, draws: tuple[str, str]) -> None:
    old = parse_baselines(in_text("-2.5, -3.25", f"{value}, {value}"), PLACE)["test_old"][""][KEY]
    (change,) = compare(old, entry(draws=draws), {"log_gain": 0.1, "gradient_norm": 0.1})
    assert (change.measure, change.kind) == ("log_gain", "moved")


def test_a_huge_file_is_refused_without_parsing(recorded: Path) -> None:
    with recorded.open("r+b") as file:
        file.truncate(100 * 2**20)  # a sparse file needs no space
    before = recorded.stat()
    for use in (read_baselines, lambda path: change_baselines(path, adding("test_new"))):
        with pytest.raises(BaselineError) as caught:
            use(recorded)  # type: ignore[operator]
        assert str(caught.value) == (
            f"{recorded}: a baseline must be smaller than 64 MB. This one has 100 MB. Restore it from version control, or "
            "move it away and record it again."
        )
    after = recorded.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


REGULAR = "a baseline must be a regular file. Move away the folder or device at this path."


def put_fifo(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "put", [lambda path: path.mkdir(parents=True), pytest.param(put_fifo, marks=posix)], ids=["a folder", "a pipe"]
)
def test_a_folder_or_pipe_is_refused(path: Path, put: Callable[[Path], None]) -> None:
    """Reading a pipe would never end."""
    put(path)
    assert refused(path, lambda: read_baselines(path)) == f"{path}: {REGULAR}"
    assert refused(path, lambda: change_baselines(path, adding("test_new"))) == f"{path}: {REGULAR}"


def test_a_file_in_place_of_the_folder_is_left_unchanged(path: Path) -> None:
    path.parent.write_text("somebody's notes")
    assert read_baselines(path) == {}
    said = refused(path, lambda: change_baselines(path, adding("test_new")))
    assert said.startswith(f"{path}: the baseline could not be written. The file is unchanged. ")


def test_a_name_that_the_file_system_rejects_is_refused(recorded: Path) -> None:
    long = recorded.with_name("test_" + "x" * 300 + ".json")
    for use in (lambda: read_baselines(long), lambda: change_baselines(long, adding("test_new"))):
        assert refused(recorded, use).startswith(f"{long}: ")


# Links and other attacks by an untrusted pull request ------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside the project, with a baseline."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / PLACE.name).write_text(TEXT, encoding="utf-8")
    return folder


LINKS: dict[str, Callable[[Path, Path], Path]] = {
    "of the file": lambda path, outside: link(path, outside / PLACE.name),
    "of the file to nothing": lambda path, outside: link(path, outside / "new.json"),
    "of the file to itself": lambda path, outside: link(path, path),
    "of the file to its neighbour": lambda path, outside: link(path, path.with_name("test_other.json")),
    "of the file to a device": lambda path, outside: link(path, Path("/dev/zero")),
    "of the folder": lambda path, outside: link(path.parent, outside),
    "of the folder to nothing": lambda path, outside: link(path.parent, outside / "new"),
    "of the folder to the project": lambda path, outside: link(path.parent, path.parent.parent),
}


def link(at: Path, to: Path) -> Path:
    at.parent.mkdir(exist_ok=True)
    at.symlink_to(to)
    return at


@posix
@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS.keys())
def test_a_symbolic_link_is_neither_followed_nor_replaced(
    path: Path, outside: Path, make: Callable[[Path, Path], Path]
) -> None:
    made = make(path, outside)
    before = {p.name: p.read_bytes() for p in outside.iterdir()}
    for use in (lambda: read_baselines(path), lambda: change_baselines(path, adding("test_new"))):
        with pytest.raises(BaselineError) as caught:
            use()
        assert str(caught.value) == (
            f"{made}: a baseline and its folder must not be symbolic links, which could lead out of the project. Replace the "
            "link by its target."
        )
    assert made.is_symlink()
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == before


@posix
def test_a_link_that_appears_during_a_change_is_refused(path: Path, outside: Path) -> None:
    """``change`` runs between the first check for links and the writing."""

    def change(contents: Contents) -> Contents:
        path.parent.rename(path.parents[1] / "moved")
        link(path.parent, outside)
        return adding("test_new")(contents)

    with pytest.raises(BaselineError, match="must not be symbolic links"):
        change_baselines(path, change)
    assert [p.name for p in outside.iterdir()] == [PLACE.name]
    assert (outside / PLACE.name).read_text(encoding="utf-8") == TEXT


WATCH = """
import json, sys
from pathlib import Path
from pytest_trainability.checks import baseline_files
from pytest_trainability.errors import BaselineError

seen = []
watching = False
def watch(event, args):
    if watching and event not in ("object.__getattr__", "sys._getframe"):
        seen.append([event, str(args[0]) if args else "", args[2] if event == "open" else 0])
sys.addaudithook(watch)
path = Path(sys.argv[1])
watching = True
try:
    baseline_files.read_baselines(path)
except BaselineError:
    pass
{planted}
watching = False
print(json.dumps(seen))
"""


def watched(path: Path, planted: str = "") -> list[tuple[str, str, bool]]:
    """Return the audit events of the interpreter while it reads a file."""
    done = run(WATCH.replace("{planted}", planted), path)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return [(event, what, bool(flags & writing)) for event, what, flags in json.loads(done)]


def run(code: str, *args: object) -> str:
    """Run a program in a separate interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HOSTILE = ["a test a text", "an entry with more", "deep lists", "a value nested", "1e999", "pickled", "nothing in it"]


@pytest.mark.parametrize("name", ["what we write", *HOSTILE])
def test_reading_opens_one_file_and_executes_nothing(recorded: Path, name: str) -> None:
    if name in REFUSED:
        recorded.write_bytes(REFUSED[name][0])
    assert watched(recorded) == [("open", str(recorded), False)]


def test_code_that_reading_executes_is_noticed(recorded: Path) -> None:
    """The check above can fail."""
    planted = "eval('1 + 1'); import colorsys; open(path.with_name('more'), 'w').close()"
    seen = watched(recorded, planted)
    assert {"compile", "exec", "import"} <= {event for event, _, _ in seen}
    assert ("open", str(recorded.with_name("more")), True) in seen


def test_names_in_a_file_are_not_used_as_paths(path: Path) -> None:
    """The only file that is written is that of the test module."""
    change_baselines(path, lambda _: everywhere("../../escaped"))
    change_baselines(path, adding("/escaped"))
    assert [name for name in tree(path) if name.endswith(".json")] == [str(PLACE)]
    assert not list(path.parent.parent.parent.glob("*escaped*"))


# Writing --------------------------------------------------------------------------------------------------------------


def test_writing_leaves_only_the_baseline_in_the_project(recorded: Path) -> None:
    assert sorted(tree(recorded)) == [str(PLACE.parent), str(PLACE)]


def test_unchanged_contents_are_not_written(recorded: Path) -> None:
    before = recorded.stat()
    assert not change_baselines(recorded, adding("test_old"))
    assert not change_baselines(recorded, lambda contents: contents)
    after = recorded.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_change_keeps_other_entries(recorded: Path) -> None:
    elsewhere = entry(environment={"device": "cuda", "dtype": "float32"})
    change_baselines(recorded, adding("test_old", elsewhere))
    change_baselines(recorded, adding("test_new"))
    change_baselines(recorded, adding("test_new", entry(-9.0)))
    found = read_baselines(recorded)
    assert found["test_old"][""] == {KEY: entry(), elsewhere.key: elsewhere}
    assert found["test_new"][""] == {KEY: entry(-9.0)}


def test_a_change_that_fails_changes_nothing(recorded: Path) -> None:
    before = tree(recorded)

    def change(contents: Contents) -> Contents:
        raise LookupError

    with pytest.raises(LookupError):
        change_baselines(recorded, change)
    assert tree(recorded) == before
    assert change_baselines(recorded, adding("test_new")), "the lock was not released"


def test_removing_the_last_entry_removes_file_and_folder(recorded: Path) -> None:
    assert change_baselines(recorded, lambda _: {})
    assert tree(recorded) == {}


@pytest.mark.parametrize("kept", ["test_other.json", "README.md"])
def test_a_folder_with_another_file_is_kept(recorded: Path, kept: str) -> None:
    recorded.with_name(kept).write_text("somebody's")
    assert change_baselines(recorded, lambda _: {})
    assert sorted(tree(recorded)) == [str(PLACE.parent), str(PLACE.parent / kept)]


def test_a_file_without_entries_can_be_removed(recorded: Path) -> None:
    """Such as the file of a removed module."""
    recorded.write_text('{"schema": 1, "tests": {}}', encoding="utf-8")
    change_baselines(recorded, lambda _: {})
    assert tree(recorded) == {}


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_permissions_are_kept(recorded: Path, mode: int) -> None:
    recorded.chmod(mode)
    change_baselines(recorded, adding("test_new"))
    assert stat.S_IMODE(recorded.stat().st_mode) == mode


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o000, 0o666)])
def test_a_new_file_has_the_permissions_of_the_umask(path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        change_baselines(path, adding("test_new"))
    finally:
        after = os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert after == mask


@pytest.mark.parametrize("name", ["test_model.json", "test_[m]odel.json", "test_model*.json"])
def test_only_temporary_files_of_this_baseline_are_removed(path: Path, name: str) -> None:
    """Those of another baseline may be in use."""
    path = path.with_name(name)
    path.parent.mkdir()
    path.with_name(f".{name}.x1y2z3.tmp").write_text("half a bas")
    others = [".test_m.json.x1y2z3.tmp", ".test_mmodel.json.x.tmp", ".test_model2.json.x.tmp", "test_model.json.tmp"]
    for other in others:
        path.with_name(other).write_text("not ours")
    change_baselines(path, adding("test_new"))
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([name, *others])


# Failing writes -------------------------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("where", "name"),
    [(os, "fsync"), (tempfile, "mkstemp"), (Path, "replace"), (Path, "chmod"), (os, "fdopen")],
    ids=["flushing", "creating", "replacing", "permissions", "opening"],
)
def test_a_write_that_fails_anywhere_leaves_the_old_file(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(where, name, failing(FULL))
        said = refused(recorded, lambda: change_baselines(recorded, adding("test_new")))
    assert said == (
        f"{recorded}: the baseline could not be written. The file is unchanged. OSError: No space left on device."
    )
    assert change_baselines(recorded, adding("test_new"))


def test_a_folder_that_cannot_be_created_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(FULL))
    assert "No space left on device" in refused(path, lambda: change_baselines(path, adding("test_new")))


def test_an_interruption_leaves_the_old_file_and_no_lock(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(recorded)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            change_baselines(recorded, adding("test_new"))
    assert tree(recorded) == before
    assert change_baselines(recorded, adding("test_new"))


PRELUDE = """
import json, os, resource, signal, sys, time
from pathlib import Path
from pytest_trainability.checks import baseline_files
from pytest_trainability.checks.baseline_files import change_baselines, read_baselines, with_entry
from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_values import Series
from pytest_trainability.errors import BaselineError

def entry(elements=1):
    rows = {str(i): (0.5, 0.25) for i in range(elements)}
    series = {"gradient_norm": Series("", "log", rows)}
    return Entry({"device": "cpu", "dtype": "float32"}, {}, (0, 1), ("a", "b"), series)

def add(path, test, elements=1):
    return change_baselines(path, lambda contents: with_entry(contents, test, "", entry(elements)))

def said(do):
    try:
        do()
    except BaselineError as error:
        return str(error)
    return "nothing"

path = Path(sys.argv[1])
"""


@posix
def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(recorded: Path) -> None:
    """The kernel refuses to write beyond a limit in the middle of the text."""
    before = tree(recorded)
    code = f"""{PRELUDE}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
print(said(lambda: add(path, "test_new", 10_000)))
"""
    assert run(code, recorded).strip() == (
        f"{recorded}: the baseline could not be written. The file is unchanged. OSError: File too large."
    )
    assert tree(recorded) == before
    assert change_baselines(recorded, adding("test_new"))


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A baseline that a user without privileges can reach, unlike the temporary folders of pytest."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    (root / "tmp").mkdir()
    path = root / "project" / PLACE
    path.parent.mkdir(parents=True)
    path.write_text(TEXT, encoding="utf-8")
    for made in (root, *root.rglob("*")):
        if os.getuid() == 0:
            os.chown(made, 65534, 65534)
        made.chmod(0o755 if made.is_dir() else 0o644)
    yield path
    for made in (root / "project", path.parent):
        made.chmod(0o755)
    shutil.rmtree(root)


UNPRIVILEGED = f"""{PRELUDE}
os.environ["TMPDIR"] = str(path.parents[2] / "tmp")
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
if not os.access(path.parents[2], os.R_OK | os.W_OK | os.X_OK):
    raise SystemExit("no way to " + str(path))
print(json.dumps([said(lambda: read_baselines(path)), said(lambda: add(path, "test_new"))]))
"""


def unprivileged(path: Path) -> list[str]:
    """Return the messages of reading and writing for a user without privileges."""
    if os.getuid() == 0 and not can_drop_privileges():
        pytest.skip("root here cannot become another user, and is refused nothing")
    found: list[str] = json.loads(run(UNPRIVILEGED, path))
    return found


def can_drop_privileges() -> bool:
    code = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


CLOSED = {
    "a folder to write to": (PLACE.parent, 0o555, "nothing", "could not be written. The file is unchanged"),
    "a folder to look into": (PLACE.parent, 0o000, "the baseline cannot be read", "Permission denied"),
    "a file to read": (PLACE, 0o000, "the baseline cannot be read. PermissionError", "the baseline cannot be read"),
    "the folder of the tests": (Path(), 0o555, "nothing", "nothing"),
}


@posix
@pytest.mark.parametrize(("closed", "mode", "reading", "writing"), CLOSED.values(), ids=CLOSED.keys())
def test_missing_permissions_are_reported_and_nothing_changes(
    open_to_all: Path, closed: Path, mode: int, reading: str, writing: str
) -> None:
    place = open_to_all.parents[1] / closed
    place.chmod(mode)
    by_reader, by_writer = unprivileged(open_to_all)
    place.chmod(0o755)
    assert reading in by_reader
    assert writing in by_writer
    if writing != "nothing":
        assert by_writer.startswith(f"{open_to_all}: ")
        assert "Permission denied" in by_writer
        assert open_to_all.read_text(encoding="utf-8") == TEXT
        assert sorted(tree(open_to_all)) == [str(PLACE.parent), str(PLACE)]


@posix
def test_a_missing_permission_to_create_the_folder_is_reported(open_to_all: Path) -> None:
    shutil.rmtree(open_to_all.parent)
    project = open_to_all.parents[1]
    project.chmod(0o555)
    by_reader, by_writer = unprivileged(open_to_all)
    assert by_reader == "nothing"
    assert by_writer.startswith(f"{open_to_all}: the baseline could not be written. ")
    assert tree(open_to_all) == {}
    open_to_all.parent.mkdir()  # the fixture removes it


# Killed while writing -------------------------------------------------------------------------------------------------

KILLED = """
import shutil

PLANTED
NAMES = sys.argv[2:]
room = path.parents[1]
WRITING = {"change_baselines", "_locked", "locked", "_attempt", "_open", "_hold", "replace_file", "_umask", "_refuse_links"}

def die_in(steps):
    '''Kill this process at one of its steps: a line that writes, or something that an auditor would see.'''
    left = steps

    def step():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, args):
        if event.startswith(("open", "os.", "tempfile.", "fcntl.", "shutil.")):
            step()

    def lines(frame, event, arg):
        if {frame.f_code.co_name, frame.f_back.f_code.co_name} & WRITING:
            step()
            return lines

    sys.addaudithook(audit)
    sys.settrace(lines)

def in_child(do):
    child = os.fork()
    if child == 0:
        try:
            do()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

def killed_at(steps):
    def write():
        die_in(steps)
        add(path, "test_new")
    return in_child(write)

def files():
    found = {}
    for p in sorted(room.rglob("*")):
        if p.is_file():
            found[p.name] = p.read_text(encoding="utf-8")
    return found

found = []
for steps in range(1, 1_000):
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    for name in NAMES:
        add(path, name)
    if not killed_at(steps):
        break
    after = files()
    in_child(lambda: add(path, "test_next"))
    found.append([after, files()])
print(json.dumps(found))
"""


def killed_anywhere(path: Path, *names: str, planted: str = "") -> list[tuple[dict[str, str], dict[str, str]]]:
    """Kill a writer at each of its steps. Return the files after each kill, and after the next write."""
    found = json.loads(run(PRELUDE + KILLED.replace("PLANTED", planted), path, *names))
    assert 20 < len(found) < 900, "the writer was killed too rarely or every time"
    return [(after, later) for after, later in found]


@posix
@pytest.mark.parametrize("names", [("test_old",), ()], ids=["a file that was there", "a new file"])
def test_a_writer_killed_anywhere_leaves_the_old_file_or_the_new(path: Path, names: tuple[str, ...]) -> None:
    killed = killed_anywhere(path, *names)
    states = [after.pop(PLACE.name, None) for after, _ in killed]
    read = [set(parse_baselines(text, path)) if text is not None else set() for text in states]
    assert all(state in (set(names), {*names, "test_new"}) for state in read)
    assert read[0] == set(names)
    assert read[-1] == {*names, "test_new"}, "it was never killed after the file had been put in place"
    assert any(after for after, _ in killed), "it was never killed before that"
    for (_, later), state in zip(killed, read):
        assert list(later) == [PLACE.name], "what the killed writer left is still there"
        assert set(parse_baselines(later[PLACE.name], path)) == {*state, "test_next"}


IN_PLACE = """
def replace_file(path, text):
    path.write_text(text, encoding="utf-8")
baseline_files.replace_file = replace_file
"""


@posix
def test_a_writer_that_leaves_half_a_file_is_noticed(path: Path) -> None:
    """The check above can fail."""
    killed = killed_anywhere(path, "test_old", planted=IN_PLACE)
    assert "" in [after.get(PLACE.name) for after, _ in killed]


# Several writers ------------------------------------------------------------------------------------------------------


def test_threads_that_write_one_file_lose_nothing(path: Path) -> None:
    tests = [[f"test_{thread}_{i}" for i in range(5)] for thread in range(6)]
    writers = [
        threading.Thread(target=lambda names=names: [change_baselines(path, adding(n)) for n in names])
        for names in tests
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(read_baselines(path)) == {name for names in tests for name in names}
    assert sorted(tree(path)) == [str(PLACE.parent), str(PLACE)]


MANY = f"""{PRELUDE}
print("ready", flush=True)
sys.stdin.readline()
for i in range(10):
    add(path, f"test_{{sys.argv[2]}}_{{i}}")
"""


def start(code: str, *args: object, temporary: Path | None = None) -> subprocess.Popen[str]:
    """Start a program, with a folder for temporary files if given, and wait until it prints that it waits for a line."""
    command = [sys.executable, "-c", code, *map(str, args)]
    env = {**os.environ, **({"TMPDIR": str(temporary)} if temporary else {})}
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "ready"
    return writer


def test_processes_that_write_one_file_lose_nothing(path: Path, tmp_path: Path) -> None:
    """Their folders for temporary files differ, as those of containers and users do."""
    folders = [tmp_path / f"tmp{i}" for i in range(4)]
    for folder in folders:
        folder.mkdir()
    writers = [start(MANY, path, i, temporary=folder) for i, folder in enumerate(folders)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.communicate()[0] for writer in writers] == [""] * 4
    assert set(read_baselines(path)) == {f"test_{writer}_{i}" for writer in range(4) for i in range(10)}
    assert sorted(tree(path)) == [str(PLACE.parent), str(PLACE)]


def nested(contents: Contents, path: Path) -> Contents:
    """Write to the file during another change of it, as a second session does."""
    other = threading.Thread(target=change_baselines, args=(path, adding("test_of_the_other")))
    other.start()
    other.join(timeout=0.5)
    OTHERS.append(other)
    return adding("test_of_this")(contents)


OTHERS: list[threading.Thread] = []


def test_a_second_writer_waits_for_the_first(path: Path) -> None:
    change_baselines(path, lambda contents: nested(contents, path))
    OTHERS.pop().join()
    assert set(read_baselines(path)) == {"test_of_this", "test_of_the_other"}


def test_without_the_lock_a_second_write_is_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail."""
    monkeypatch.setattr(baseline_files, "_locked", lambda path: nullcontext())
    change_baselines(path, lambda contents: nested(contents, path))
    OTHERS.pop().join()
    assert set(read_baselines(path)) == {"test_of_this"}


HOLDER = f"""{PRELUDE}
def change(contents):
    print("ready", flush=True)
    sys.stdin.readline()
    return with_entry(contents, "test_of_the_holder", "", entry())
change_baselines(path, change)
"""


def test_a_writer_that_waits_too_long_fails_and_can_retry(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_files, "LOCK_PATIENCE", 0.2)
    holder = start(HOLDER, recorded)
    said = refused(recorded, lambda: change_baselines(recorded, adding("test_new")))
    assert said == (
        f"{recorded}: the baseline could not be written. Another session has held the lock {lock_path(recorded)} for 0 "
        "seconds. Run again when that session has ended. If there is none, remove the lock."
    )
    assert set(read_baselines(recorded)) == {"test_old"}, "reading does not wait for the lock"
    holder.communicate("go\n")
    assert change_baselines(recorded, adding("test_new"))
    assert set(read_baselines(recorded)) == {"test_old", "test_of_the_holder", "test_new"}


@posix
def test_the_lock_of_a_killed_holder_is_free(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_files, "LOCK_PATIENCE", 5.0)
    holder = start(HOLDER, recorded)
    holder.kill()
    holder.communicate()
    assert change_baselines(recorded, adding("test_new"))


# Schemas --------------------------------------------------------------------------------------------------------------
SCHEMA_1 = Path(__file__).parent / "data" / "schema_1.json"
"""A file that version 1 of the format has written."""


def of_schema_1() -> Entry:
    contents = read_baselines(SCHEMA_1)
    return contents["test_gpt2_is_as_recorded"]["gpt2"]["cpu float32"]


def test_an_entry_of_schema_1_is_read_and_has_no_initial_values() -> None:
    old = of_schema_1()
    assert old.seeds == tuple(range(8))
    assert {"log_gain", "activation_rms", "gradient_norm"} <= old.measures.keys()
    assert (old.initial, old.modules, old.operations) == ({}, {}, {})


def test_what_schema_1_has_not_recorded_is_no_change() -> None:
    old = of_schema_1()
    new = Entry(
        old.environment,
        old.conditions,
        old.seeds,
        old.draws,
        old.measures,
        initial={"w": InitialRow((2,), 1.0, 0.0, 0.5, 0.1, 8)},
        modules={"": "GPT2LMHeadModel"},
        operations={"transformer.h.{0-3}": "Addmm"},
    )
    assert compare(old, new, {}) == ()
    assert compare(new, old, {}) == ()


def test_an_entry_of_schema_1_is_written_unchanged_in_a_file_of_schema_2() -> None:
    text = SCHEMA_1.read_text(encoding="utf-8")
    assert render_baselines(parse_baselines(text, SCHEMA_1)) == text.replace('"schema": 1', '"schema": 2')


ROW = {"chance": 0.01, "draws": 8, "mean": 0.0, "rms": 0.02, "shape": "4 × 8", "spread": 0.011}
INVALID_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "a further key": (
        {**ROW, "code": 1},
        "must have only the keys chance, draws, mean, part_means, part_rms, rms, shape, spread; got 'code'",
    ),
    "no rms": ({k: v for k, v in ROW.items() if k != "rms"}, "rms must be a number"),
    "a negative rms": ({**ROW, "rms": -1.0}, "must have an rms, a chance and a spread of at least 0"),
    "a text": ({**ROW, "mean": "0"}, "mean must contain numbers"),
    "no draws": ({**ROW, "draws": 0}, "draws must be a whole number of at least 1; got '0'"),
    "draws as a flag": ({**ROW, "draws": True}, "draws must be a whole number of at least 1; got 'True'"),
    "a shape as a list": ({**ROW, "shape": [4, 8]}, "shape must be a text like '64 × 32'; got '[4, 8]'"),
    "one part": (
        {**ROW, "part_means": "1", "part_rms": "1"},
        "must have a mean and an rms for each of 2, 3 or 4 parts; got 1 and 1",
    ),
    "fewer sizes than means": (
        {**ROW, "part_means": "1, 2", "part_rms": ""},
        "for each of 2, 3 or 4 parts; got 2 and 0",
    ),
    "parts of words": (
        {**ROW, "part_means": "1, many", "part_rms": "1, 2"},
        "part_means must be a text like '0, 4, 0, 0'; got '1, many'",
    ),
    "parts as a list": (
        {**ROW, "part_means": [1, 2], "part_rms": "1, 2"},
        "part_means must be a text like '0, 4, 0, 0'; got '[1, 2]'",
    ),
    "infinite parts": (
        {**ROW, "part_means": "1, inf", "part_rms": "1, 2"},
        "part_means must be a text like '0, 4, 0, 0'; got '1, inf'",
    ),
    "a shape of words": ({**ROW, "shape": "4 × many"}, "shape must be a text like '64 × 32'; got '4 × many'"),
}


@pytest.mark.parametrize(("row", "message"), INVALID_ROWS.values(), ids=INVALID_ROWS.keys())
def test_an_invalid_row_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BaselineError, match=re.escape(message)):
        parse_baselines(edited(*TO_ENTRY, "initial", to={"w": row}), PLACE)


TABLE = {"digest": "00000000", "projections": "0.1, -0.2", "rms": 0.5, "shape": "4 × 8"}
INVALID_TABLES: dict[str, tuple[Any, str]] = {
    "a text": ("Linear", "w must be an object; got str"),
    "a further key": ({**TABLE, "code": 1}, "must have only the keys digest, projections, rms, shape; got 'code'"),
    "no rms": ({k: v for k, v in TABLE.items() if k != "rms"}, "rms must be a number"),
    "a negative rms": ({**TABLE, "rms": -1.0}, "must have an rms of at least 0"),
    "a digest of words": ({**TABLE, "digest": "all zero"}, "a digest of eight hexadecimal digits"),
    "a digest as a number": ({**TABLE, "digest": 12345678}, "a digest of eight hexadecimal digits"),
    "a shape as a list": ({**TABLE, "shape": [4, 8]}, "shape must be a text like '64 × 32'; got '[4, 8]'"),
    "infinite": ({**TABLE, "projections": "1, inf"}, "projections must be a text like '0, 4, 0, 0'; got '1, inf'"),
}


@pytest.mark.parametrize(("row", "message"), INVALID_TABLES.values(), ids=INVALID_TABLES.keys())
def test_an_invalid_table_is_refused(row: Any, message: str) -> None:
    with pytest.raises(BaselineError, match=re.escape(message)):
        parse_baselines(edited(*TO_ENTRY, "tables", to={"w": row}), PLACE)


def test_an_older_entry_has_no_tables_and_a_new_one_may_have_none() -> None:
    for tables in (None, {}, {"w": Projections((2,), 1.0, (0.5, -0.25))}):
        contents = with_entry({}, "test_a", "", entry(tables=tables))
        (read,) = parse_baselines(render_baselines(contents), PLACE)["test_a"][""].values()
        assert read.tables == tables


@pytest.mark.parametrize("section", ["initial", "modules", "operations", "settings", "tables"])
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["w.{0-9999999}"], "stands for more than 1000000 names"),
        (["w.{0-3}", "w.2"], "w.2 must not stand for a name of another pattern"),
        (["a.{0-599999}", "b.{0-599999}"], "must stand for at most 1000000 names"),
    ],
    ids=["too many", "twice", "too many together"],
)
def test_patterns_of_too_many_or_the_same_names_are_refused(section: str, patterns: list[str], message: str) -> None:
    part = dict.fromkeys(patterns, {"initial": ROW, "tables": TABLE}.get(section, "Linear"))
    with pytest.raises(BaselineError, match=re.escape(message)):
        parse_baselines(edited(*TO_ENTRY, section, to=part), PLACE)


def test_rows_have_one_line_each() -> None:
    rows = {f"blocks.{i}.w": InitialRow((64, 32), 0.02, 1e-5, 0.01234, 0.011, 8) for i in range(3)}
    text = render_baselines(with_entry({}, "test_a", "", entry(initial=rows, modules={"": "Net", "head": "Linear"})))
    assert sum("blocks." in line for line in text.splitlines()) == 3
    assert (
        '"blocks.0.w": {"chance": 0.0123, "draws": 8, "mean": 1e-05, "rms": 0.02, "shape": "64 × 32", "spread": 0.011}'
        in text
    )


def test_a_row_omits_what_is_zero_and_what_follows_from_names_and_seeds() -> None:
    """The entry has two seeds, and the first row three tensors."""
    rows = {
        "blocks.{0-2}.w": InitialRow((64,), 1.0, 1.0, 0.0, 0.0, 6),
        "b": InitialRow((64,), 0.0, 0.0, 0.0, 0.0, 2),
        "gate": InitialRow((), 0.5, 0.25, math.inf, math.nan, 2),
    }
    contents = with_entry({}, "test_a", "", entry(initial=rows))
    text = render_baselines(contents)
    assert '"blocks.{0-2}.w": {"mean": 1.0, "rms": 1.0, "shape": "64"}' in text
    assert '"b": {"rms": 0.0, "shape": "64"}' in text
    (read,) = parse_baselines(text, PLACE)["test_a"][""].values()
    assert repr(dict(sorted(read.initial.items()))) == repr(dict(sorted(rows.items())))


class Counted(dict[str, Any]):
    """Counts how often its items are read."""

    reads = 0

    def items(self) -> Any:
        self.reads += 1
        return super().items()

    def keys(self) -> Any:
        self.reads += 1
        return super().keys()


def test_contents_are_copied_once_for_any_number_of_entries() -> None:
    """A copy for each entry would make a session quadratic in the number of its tests."""
    contents = Counted(holding(*(f"test_{number}" for number in range(20))))
    added = [(f"test_{number}", name, entry()) for number in range(10, 30) for name in ("", "b")]
    found = with_entries(contents, added)
    assert contents.reads == 1
    assert len(found) == 30 and len(contents) == 20
    assert [len(found[f"test_{number}"]) for number in (9, 10, 29)] == [1, 2, 2]
    assert found["test_10"][""] is not contents["test_10"][""], "the contents are left as they were"


def test_a_file_that_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written can be read: a file grows up to the largest size, and not beyond."""
    path = tmp_path / PLACE
    change_baselines(path, lambda contents: with_entry(contents, "test_a", "model", entry()))
    before = path.read_bytes()
    larger = with_entry(read_baselines(path), "test_b", "model", entry())
    size = len(render_baselines(larger).encode())
    monkeypatch.setattr(baseline_files, "LARGEST_FILE", size - 1)
    with pytest.raises(BaselineError, match=r"It is unchanged\. Divide test_model\.py into several files of tests\."):
        change_baselines(path, lambda _: larger)
    assert path.read_bytes() == before
    monkeypatch.setattr(baseline_files, "LARGEST_FILE", size)
    assert change_baselines(path, lambda _: larger) and read_baselines(path) == larger
