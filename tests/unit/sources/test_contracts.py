"""Contracts that are named by text."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_trainability import UsageError, init
from pytest_trainability.sources.contracts import named_contract


def test_rules_by_patterns() -> None:
    found = named_contract({"*.bias": "zeros", "norm.*": "init.ones()", "**": "normal(std=0.02)"}, Path())
    assert repr(found) == repr({"*.bias": init.zeros(), "norm.*": init.ones(), "**": init.normal(std=0.02)})


def test_rules_of_rules_are_read(tmp_path: Path) -> None:
    text = "init.packed(init.zeros(), normal(std=0.5))"
    assert repr(named_contract({"**": text}, tmp_path)) == repr({"**": init.packed(init.zeros(), init.normal(std=0.5))})


def test_a_file_is_relative_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "contracts.py").write_text(
        "from pytest_trainability import init\nCONTRACT = {'**': init.zeros()}\nOTHER = {'**': init.ones()}\nNONE = 3\n"
    )
    assert repr(named_contract("contracts.py", tmp_path)) == repr({"**": init.zeros()})
    assert repr(named_contract("contracts.py:OTHER", tmp_path)) == repr({"**": init.ones()})
    for text, said in (
        ("contracts.py:NONE", r"^the contract must be a dictionary of rules .* is of class int"),
        ("contracts.py:MISSING", r"^the file of the contract must hold 'MISSING': "),
        ("missing.py", r"^the file of the contract must exist: .*missing.py\. The command contract prints one\.$"),
        ("no_such_module:A", r"^the contract must be importable"),
    ):
        with pytest.raises(UsageError, match=said):
            named_contract(text, tmp_path)


def test_a_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_contracts.py").write_text("A = {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert named_contract("module_of_contracts:A", tmp_path) == {}


def test_an_unknown_rule_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        named_contract({"*.bias": "zeroes()"}, Path())
    assert "the rule of '*.bias'" in str(caught.value) and "Did you mean 'zeros'?" in str(caught.value)
