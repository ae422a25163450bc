"""Adding a table to a file: what stands in it stays, and what takes no table is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_trainability.errors import UsageError
from pytest_trainability.gate.appending import refuse_unusable, with_table
from pytest_trainability.gate.reading import tomllib

TABLE = '[test.net]\nmodel = "a:b"\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", TABLE),
        (b"\n", f"\n{TABLE}"),
        (b"[test.other]", f"[test.other]\n\n{TABLE}"),
        (b"[test.other]\n", f"[test.other]\n\n{TABLE}"),
        (b"[test.other]\r\nseeds = 1\r\n", "[test.other]\nseeds = 1\n\n{TABLE}".replace("{TABLE}", TABLE)),
    ],
)
def test_the_table_stands_at_the_end(tmp_path: Path, before: bytes, after: str) -> None:
    path = tmp_path / "trainability.toml"
    path.write_bytes(before)
    refuse_unusable(path, "net")
    text = with_table(path, TABLE)
    assert text == (after.replace("\n", "\r\n") if b"\r" in before else after)
    assert tomllib.loads(text)["test"]["net"] == {"model": "a:b"}


def test_a_file_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    refuse_unusable(tmp_path / "trainability.toml", "net")
    assert with_table(tmp_path / "trainability.toml", TABLE) == TABLE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trainability.toml", "[test.net]"),
        ("trainability.toml", "[ test . 'net' . bounds ]"),
        ("trainability.toml", "test.net.model = 'a:b'"),
        ("trainability.toml", "test = {net = {model = 'a:b'}}"),
        ("pyproject.toml", "[tool]\ntrainability = {test = {net = {model = 'a:b'}}}"),
    ],
)
def test_a_test_of_the_name_is_found_in_any_spelling(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=r"has a table \[test.net\], which is never overwritten"):
        refuse_unusable(path, "net")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trainability.toml", "test = {other = {model = 'a:b'}}"),
        ("trainability.toml", "test = {}"),
        ("pyproject.toml", "[tool]\ntrainability = {test = {}}"),
        ("pyproject.toml", "tool = {trainability = {}}"),
        ("pyproject.toml", "[tool.trainability]\ntest = {}"),
    ],
)
def test_an_inline_table_around_it_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    key = "test.net" if name == "trainability.toml" else "tool.trainability.test.net"
    with pytest.raises(UsageError) as caught:
        refuse_unusable(path, "net")
    assert f"must be a file to which the table [{key}] can be added. A table around it is written as a value" in str(
        caught.value
    )


def test_a_file_that_is_no_toml_or_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trainability.toml"
    path.write_text("[test.a\n")
    with pytest.raises(UsageError, match=r"must be valid before a table is added\. line 1: the file is no valid TOML"):
        refuse_unusable(path, "net")
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="must be a file in UTF-8"):
        refuse_unusable(path, "net")
