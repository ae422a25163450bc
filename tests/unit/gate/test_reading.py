"""Whole files of tests, their errors, and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from gate_values import INVALID, VALID

import pytest_trainability
from pytest_trainability.gate.keys import CONDITIONS, KEYS
from pytest_trainability.gate.reading import GateError, GateTest, InvalidGateError, read_gate, table_of, tomllib
from pytest_trainability.records.calls import Call

SCHEMA = json.loads(
    (Path(pytest_trainability.__file__).parent / "gate" / "trainability-1.schema.json").read_text(encoding="utf-8")
)


def written(folder: Path, text: str, name: str = "trainability.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def errors_of(path: Path) -> list[GateError]:
    with pytest.raises(InvalidGateError) as caught:
        read_gate(path)
    return caught.value.errors


def test_a_test_has_its_values(tmp_path: Path) -> None:
    text = '[test.a]\nmodel = "m:b"\nseeds = 2\nsteps = "layers"\npreset = "mlp"\nmarks = ["slow"]\n[test.b]\nmodel = "m:c"\n'
    first, second = read_gate(written(tmp_path, text))
    assert (first.name, first.line, first.model, first.marks) == ("a", 1, "m:b", (Call("slow"),))
    assert first.settings == {"seeds": (0, 1), "preset": "mlp"}
    assert first.options == {"steps": "layers"}
    assert first.lines["marks"] == 6
    assert second == GateTest("b", 7, "m:c", key="test.b", lines={"model": 8})


def test_cases_are_all_combinations_in_order(tmp_path: Path) -> None:
    text = '[test.a]\nmodel = "m:b"\nparameters = {width = [64, 128], bias = [true], layers = [[1, 2]]}\n'
    (test,) = read_gate(written(tmp_path, text))
    assert list(test.cases()) == [
        ("a[width=64-bias=true-layers=0]", {"width": 64, "bias": True, "layers": [1, 2]}),
        ("a[width=128-bias=true-layers=0]", {"width": 128, "bias": True, "layers": [1, 2]}),
    ]
    assert list(GateTest("b", 1, "m:b").cases()) == [("b", {})]


def test_cases_whose_values_look_alike_have_different_names() -> None:
    alike = {"width": [1, "1"], "path": ["a::b", "a:b"], "flag": [True, "true"]}
    cases = list(GateTest("a", 1, "m:b", parameters=alike).cases())
    names = [name for name, _ in cases]
    assert len(set(names)) == len(names) == 8
    assert names[:2] == ["a[width=1-path=a:b-flag=true]", "a[width=1-path=a:b-flag=true-0,0,1]"]
    # A separator inside a value is no way to the name of another case.
    nested = {"a": ["1-b=2", "1"], "b": ["3", "2-b=3"]}
    assert len({name for name, _ in GateTest("a", 1, "m:b", parameters=nested).cases()}) == 4


@pytest.mark.parametrize("content", [b"[test.a]\nmodel = 'm:\xe9'\n", "[test.a]\n".encode("utf-16")])
def test_a_file_in_another_encoding_is_refused_at_its_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trainability.toml"
    path.write_bytes(content)
    (error,) = errors_of(path)
    assert error.line == (2 if b"model" in content else 1)
    assert str(error).startswith("the file must be UTF-8, as TOML is. Byte 0x")


def test_pyproject_has_a_table_of_its_own(tmp_path: Path) -> None:
    text = '[project]\nname = "x"\n[tool.trainability.test.a]\nmodel = "m:b"\nmodle = "m:b"\n'
    path = written(tmp_path, text, "pyproject.toml")
    assert [str(error) for error in errors_of(path)] == [
        "tool.trainability.test.a.modle: unknown key 'modle'. Did you mean 'model'?"
    ]
    (test,) = read_gate(
        written(tmp_path, text.replace("modle", "loss").replace('"m:b"\n', '"m:b"\n', 1), "pyproject.toml")
    )
    assert test.model == "m:b"
    assert read_gate(written(tmp_path, "[project]\n", "pyproject.toml")) == []


def test_all_errors_are_told_with_their_lines(tmp_path: Path) -> None:
    text = """\
[test.a]
modle = "m:b"
preset = "mpl"
[test.a.bounds]
log_gian = "within(3)"
[tests.b]
model = "m:b"
[test.c]
model = "m:b"
targets = "ids:8<3"
tolerances = {log_gain = 1}
[test."d e"]
model = "hf:gpt2"
parameters = {width = [1]}
"""
    found = [(error.line, error.key) for error in errors_of(written(tmp_path, text))]
    assert found == [
        (1, "test.a"),
        (2, "test.a.modle"),
        (3, "test.a.preset"),
        (5, "test.a.bounds.log_gian"),
        (6, "tests"),
        (10, "test.c.targets"),
        (11, "test.c.tolerances"),
        (12, 'test."d e"'),
        (14, 'test."d e".parameters'),
    ]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[test.a]\nmodel =\n", 2, "the file is no valid TOML"),
        ("[test.a", 1, "the file is no valid TOML"),
        ("test = 3\n", 1, "test: it must be a table of tests, [test.NAME]"),
        ("\n[test]\na = 3\n", 3, "test.a: it must be a table"),
        (
            "\n[test]\nmodel = 'm:b'\nseeds = 3\n",
            2,
            "test: a test must have a name: [test.NAME]. Got a table without one, with model, seeds.",
        ),
    ],
)
def test_files_that_hold_no_tests(tmp_path: Path, text: str, line: int, said: str) -> None:
    (error,) = errors_of(written(tmp_path, text))
    assert error.line == line
    assert said in str(error)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "trainability.toml").write_bytes(b"\xff\xfe")
    assert "the file must be UTF-8, as TOML is. Byte 0xff is not" in str(errors_of(tmp_path / "trainability.toml")[0])
    assert "the file cannot be read. FileNotFoundError" in str(errors_of(tmp_path / "pyproject.toml")[0])


def test_windows_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "trainability.toml").write_bytes(b'\xef\xbb\xbf[test.a]\r\nmodel = "m:b"\r\n')
    assert [test.line for test in read_gate(tmp_path / "trainability.toml")] == [1]


# Schema ---------------------------------------------------------------------------------------------------------------


def test_the_schema_has_the_keys_that_are_read() -> None:
    test = SCHEMA["$defs"]["test"]["properties"]
    assert list(test) == list(KEYS)
    assert list(test["skip"]["properties"]) == list(CONDITIONS)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def follows_schema(test: dict[str, Any]) -> bool:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return bool(validator.is_valid({"test": {"a": test}}))


@pytest.mark.parametrize(("key", "value"), [(k, value) for k, cases in VALID.items() for value, _ in cases])
def test_valid_values_follow_the_schema(key: str, value: Any) -> None:
    assert follows_schema({"model": "m:b", key: value})


UNSEEN = (
    "inputs must be sizes",
    "Did you mean 'cross_entropy'",
    "Did you mean 'log_gain'",
    "cannot be set here",
    "a mark is invalid",
)
"""What a schema does not know: forms of texts, names of measures and losses, and marks."""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (k, value)
        for k, cases in INVALID.items()
        for value, said in cases
        if not any(unseen in said for unseen in UNSEEN)
    ],
)
def test_invalid_values_do_not(key: str, value: Any) -> None:
    assert not follows_schema({"model": "m:b", key: value})


@pytest.mark.parametrize(
    "given", [{"tests": {}}, {"test": {"a": {}}}, {"test": {"a b": {"model": "m:b"}}}, {"test": 3}]
)
def test_invalid_files_do_not_follow_the_schema(given: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(given)


def test_the_table_of_a_file() -> None:
    text = "[tool.trainability.test]\n"
    assert table_of(Path("pyproject.toml"), text) == ({"test": {}}, ("tool", "trainability"))
    assert table_of(Path("trainability.toml"), text) == (tomllib.loads(text), ())
