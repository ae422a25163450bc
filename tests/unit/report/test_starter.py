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
        "seeds": tuple(range(8)),
        "bounds": BOUNDS,
        "preset": "",
        "contract": {"*.bias": "init.zeros()", "**": "init.normal(std=0.02 / math.sqrt(8))"},
        "trouble": "",
        "imports": ("from shop.net import build",),
        "setup": (),
        "functions": ("def inputs(generator):\n    return torch.randn(8, 16, generator=generator)",),
        "arguments": "inputs",
        "build": "build",
        "inputs": ("8x16",),
        "targets": (),
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


@pytest.mark.parametrize(
    ("seeds", "code", "said"),
    [
        ((0, 1), "2", "on 2 seeds."),
        ((0,), "1", "on 1 seed."),
        ((0, 3), "[0, 3]", "on 2 seeds."),
        ((4,), "[4]", "1 seed."),
    ],
)
def test_the_seeds_are_a_number_or_a_list(seeds: tuple[int, ...], code: str, said: str) -> None:
    found = starter(seeds=seeds)
    assert f"trainability(build, inputs, seeds={code})" in test_module(found) and said in test_module(found)
    assert f"\nseeds = {code}\n" in toml_table(found) and said in toml_table(found)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("inputs, loss=F.mse_loss", "from torch.nn import functional as F"),
        ("inputs, loss=nn.MSELoss()", "from torch import nn"),
    ],
)
def test_torch_is_imported_as_the_loss_is_written(arguments: str, line: str) -> None:
    lines = test_module(starter(arguments=arguments)).splitlines()
    assert line in lines and sum("import functional" in text or "import nn" in text for text in lines) == 1


def test_the_name_of_a_table_is_quoted_where_toml_demands_it() -> None:
    text = toml_table(starter(name="größe"))
    assert '[test."größe"]' in text and '[test."größe".bounds]' in text and '[test."größe".contract]' in text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is part of Python from 3.11 on")
@pytest.mark.parametrize("prefix", ["", "tool.trainability."])
def test_a_table_is_toml_of_the_same_test(prefix: str) -> None:
    import tomllib

    found = tomllib.loads(toml_table(starter(loss="mse_loss", targets=("8x10",), preset="mlp"), prefix=prefix))
    table = (found["tool"]["trainability"] if prefix else found)["test"]["net"]
    assert table == {
        "model": "shop.net:build",
        "inputs": "8x16",
        "targets": "8x10",
        "loss": "mse_loss",
        "seeds": 8,
        "preset": "mlp",
        "baseline": True,
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

    assert tomllib.loads(toml_table(starter(inputs=texts)))["test"]["net"]["inputs"] == value
