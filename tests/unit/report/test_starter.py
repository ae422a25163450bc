"""The text of a first test."""

from __future__ import annotations

import ast
import sys
from typing import Any

import pytest

from pytest_trainability.report.starter import Starter, test_module, toml_table
from pytest_trainability.report.suggestions import SuggestedBound

BOUNDS = (
    SuggestedBound("log_gain", "within(-0.5, 0.1)", "-0.20 ± 0.05 nats"),
    SuggestedBound("unused_parameters", "at_most(0)", "none"),
)


def starter(**changes: Any) -> Starter:
    given: dict[str, Any] = {
        "name": "net",
        "command": "python -m pytest_trainability start shop.net:build --input 8x16",
        "model": "shop.net:build",
        "steps": "6 × Block",
        "seeds": 8,
        "bounds": BOUNDS,
        "preset": "",
        "contract": {"*.bias": "init.zeros()", "**": "init.normal(std=0.02 / math.sqrt(8))"},
        "trouble": "",
        "imports": ("from shop.net import build",),
        "setup": (),
        "functions": ("def inputs(generator):\n    return torch.randn(8, 16, generator=generator)",),
        "arguments": "inputs",
        "build": "build",
        "named": "",
        "input": ("8x16",),
        "target": (),
        "loss": "",
        "options": (),
    }
    return Starter(**{**given, **changes})


def test_a_module_is_python_with_bounds_reasons_contract_and_baseline() -> None:
    text = test_module(starter())
    tree = ast.parse(text)
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == [
        "inputs",
        "test_net",
        "test_initialization_of_net",
    ]
    assert (
        "# The gradient neither vanishes nor explodes" in text
        and "-0.20 ± 0.05 nats.\n    log_gain=within(-0.5, 0.1)," in text
    )
    assert "result.check_baseline()" in text and ".check(CONTRACT)" in text
    assert all(f"\n{line}\n" in text for line in ("import math", "import torch", "from shop.net import build"))
    assert "from pytest_trainability import at_most, init, within\n" in text
    assert "import sys" not in text and "functional" not in text


def test_imports_after_a_change_of_the_path_are_marked_for_linters() -> None:
    text = test_module(starter(setup=("sys.path.insert(0, 'x')",)))
    assert "import sys\nfrom pathlib import Path\n" in text and "from shop.net import build  # noqa: E402\n" in text


def test_without_a_contract_the_reason_is_written() -> None:
    text = test_module(starter(contract={}, trouble="one\ntwo"))
    assert "# No initialization contract holds on other seeds: one\n# two\n" in text
    assert "CONTRACT" not in text and "init" not in text.split("\n\n\n")[0].split('"""')[2]


def test_parameters_that_are_counted_are_named() -> None:
    bound = SuggestedBound("unused_parameters", "at_most(1)", "1: head.spare")
    assert "# By design, or to be mended: 1: head.spare.\n" in test_module(starter(bounds=(bound,)))


def test_a_preset_stands_first_in_the_marker() -> None:
    assert '@pytest.mark.trainability(\n    preset="cnn",\n' in test_module(starter(preset="cnn"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is part of Python from 3.11 on")
@pytest.mark.parametrize("prefix", ["", "tool.trainability."])
def test_a_table_is_toml_of_the_same_test(prefix: str) -> None:
    import tomllib

    found = tomllib.loads(toml_table(starter(loss="mse_loss", target=("8x10",), preset="mlp"), prefix=prefix))
    table = (found["tool"]["trainability"] if prefix else found)["test"]["net"]
    assert table == {
        "model": "shop.net:build",
        "inputs": "8x16",
        "targets": "8x10",
        "loss": "mse_loss",
        "seeds": 8,
        "preset": "mlp",
        "bounds": {"log_gain": "within(-0.5, 0.1)", "unused_parameters": "at_most(0)"},
        "contract": {"*.bias": "init.zeros()", "**": "init.normal(std=0.02 / math.sqrt(8))"},
    }


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is part of Python from 3.11 on")
@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (("4x8", "mask:4x8"), ["4x8", "mask:4x8"]),
        (("ids=ids:4x8<9", "m=mask:4x8"), {"ids": "ids:4x8<9", "m": "mask:4x8"}),
    ],
)
def test_several_inputs_are_a_list_or_a_table(texts: tuple[str, ...], value: object) -> None:
    import tomllib

    assert tomllib.loads(toml_table(starter(input=texts)))["test"]["net"]["inputs"] == value
