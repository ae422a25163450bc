"""The command ``start``: the tests that it writes pass at once, and fail for a fault of the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_trainability.commands import CANNOT, DIFFERS, main

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.pytester import Pytester

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        nn.init.normal_(self.linear.weight, std=0.05)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


def build():
    return nn.Sequential(*[Block(16) for _ in range(4)], nn.Linear(16, 5))


def batch(generator):
    return torch.randn(8, 16, generator=generator)


module = build()
"""
FAULTS = {
    "larger weights": ("std=0.05", "std=0.5"),
    "a skip that is gone": ("x + torch.tanh", "torch.tanh"),
    "weights of another law": (
        "nn.init.normal_(self.linear.weight, std=0.05)",
        "nn.init.uniform_(self.linear.weight, -0.0866, 0.0866)",
    ),
    "a block that is gone": ("range(4)", "range(3)"),
}
CALL = ("start", "shop.net:build", "--input", "8x16")


@pytest.fixture
def shop(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of the user, which is not installed."""
    folder = project.path / "shop"
    folder.mkdir()
    (folder / "net.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder / "net.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_the_written_module_passes_and_fails_for_each_fault(project: Pytester, shop: Path) -> None:
    words = (*CALL, "--target", "ids:8<5", "--loss", "cross_entropy", "--seeds", "4")
    assert main(words) == 0
    test = project.path / "tests" / "test_trainability_net.py"
    assert "from shop.net import build" in test.read_text(encoding="utf-8")
    assert (project.path / "tests" / "__trainability__" / "test_trainability_net.json").is_file()
    project.runpytest_inprocess("tests").assert_outcomes(passed=2)
    for fault, (healthy, faulty) in FAULTS.items():
        assert healthy in MODEL
        shop.write_text(MODEL.replace(healthy, faulty), encoding="utf-8")
        for name in ("shop", "shop.net"):
            sys.modules.pop(name, None)
        result = project.runpytest_inprocess("tests", "--trainability-cure=off", "-p", "no:cacheprovider")
        assert result.ret == 1, fault


def test_nothing_is_overwritten(project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = project.path / "tests" / "test_trainability_net.py"
    test.parent.mkdir()
    test.write_text("# mine\n", encoding="utf-8")
    assert main(CALL) == CANNOT
    assert (
        "test_trainability_net.py exists, and is never overwritten. Choose another file: --output FILE"
        in capsys.readouterr().err
    )
    assert test.read_text(encoding="utf-8") == "# mine\n"


def test_it_prints_instead(project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main((*CALL, "--output", "-", "--seeds", "3")) == 0
    compile(capsys.readouterr().out, "printed", "exec")
    assert not (project.path / "tests").exists()


def test_a_table_is_appended_and_not_written_twice(
    project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project.path / "trainability.toml"
    file.write_text('[test.other]\nmodel = "hf:gpt2"', encoding="utf-8")
    words = (*CALL, "--toml", "--seeds", "3")
    assert main(words) == 0
    text = file.read_text(encoding="utf-8")
    assert text.startswith('[test.other]\nmodel = "hf:gpt2"\n\n# 4 × Block')
    assert '[test.net]\nmodel = "shop.net:build"\ninputs = "8x16"\n' in text
    assert "[test.net.bounds]" in text and '"**" = "normal(' not in text and "[test.net.contract]" in text
    assert main(words) == CANNOT
    assert "trainability.toml has a table [test.net], which is never overwritten." in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == text


def test_a_model_that_fails_its_preset_gets_no_test(
    project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.write_text(MODEL.replace("std=0.05", "std=0.05").replace("x + torch.tanh(", "1000 * ("), encoding="utf-8")
    assert main((*CALL, "--preset", "mlp", "--seeds", "2")) == DIFFERS
    message = capsys.readouterr().err
    assert "shop.net:build fails the preset 'mlp'. A gate begins with a healthy model:" in message
    assert "log_gain" in message and not (project.path / "tests").exists()


def test_inputs_and_a_finished_module_of_the_user(
    project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("start", "shop.net:module", "--input", "shop.net:batch", "--name", "My net")
    assert main(words) == 0
    output = capsys.readouterr()
    assert "log_gain gets no bound: one draw has no spread" in output.err
    text = (project.path / "tests" / "test_trainability_my_net.py").read_text(encoding="utf-8")
    assert "from shop.net import module, batch" in text
    project.runpytest_inprocess("tests").assert_outcomes(passed=2)


def test_a_model_of_a_library_brings_its_inputs(project: Pytester) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    assert main(("start", "hf-tiny:gpt2", "--seeds", "3")) == 0
    text = (project.path / "tests" / "test_trainability_gpt2.py").read_text(encoding="utf-8")
    assert (
        'MODEL = named_model("hf-tiny:gpt2")' in text
        and 'trainability(MODEL.build, MODEL.inputs, seeds=3)' in text
    )
    assert "sys.path" not in text
    project.runpytest_inprocess("tests").assert_outcomes(passed=2)
