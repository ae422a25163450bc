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
from torch.utils.data import DataLoader, TensorDataset


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


def same():
    return torch.linspace(-1, 1, 128).reshape(8, 16)


def loss(output, target):
    return (output - target).abs().mean()


def width(size):
    return nn.Linear(size, size)


class Tokens(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(9, 16), *build())


class Scores(Tokens):
    def forward(self, ids):
        return Output(super().forward(ids))


class Output:
    def __init__(self, logits):
        self.logits = logits


module = build()
pairs = DataLoader(TensorDataset(torch.randn(16, 16), torch.randint(5, (16,))), batch_size=8)
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


def written(project: Pytester, *words: str) -> str:
    """Return the written test, module or table. It passes."""
    assert main(("start", *words, "--seeds", "2", "--name", "it")) == 0
    file = "trainability.toml" if "--toml" in words else "tests/test_trainability_it.py"
    for name in ("shop", "shop.net"):
        sys.modules.pop(name, None)
    result = project.runpytest_inprocess(file, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1 if "--toml" in words else 2)
    return (project.path / file).read_text(encoding="utf-8")


LOSSES = {
    "cross_entropy": ("shop.net:build", "8x16", "ids:8<5", "loss=F.cross_entropy,"),
    "mse": ("shop.net:build", "8x16", "8x5", "loss=F.mse_loss,"),
    "nn.CrossEntropyLoss": ("shop.net:build", "8x16", "ids:8<5", "loss=nn.CrossEntropyLoss(),"),
    "nn.CrossEntropyLoss(label_smoothing=0.1)": (
        *("shop.net:build", "8x16", "ids:8<5"),
        "loss=nn.CrossEntropyLoss(label_smoothing=0.1),",
    ),
    "shop.net:loss": ("shop.net:build", "8x16", "8x5", "loss=loss,"),
}


@pytest.mark.parametrize("table", [False, True], ids=["module", "table"])
@pytest.mark.parametrize(("loss", "case"), LOSSES.items(), ids=LOSSES)
def test_every_loss_is_written(project: Pytester, shop: Path, loss: str, case: tuple[str, ...], table: bool) -> None:
    model, inputs, target, code = case
    words = (model, "--input", inputs, "--target", target, "--loss", loss, *(["--toml"] if table else []))
    text = written(project, *words)
    assert (f'loss = "{loss}"\n' if table else f"trainability(build, inputs, target=targets, {code} seeds=2)") in text


@pytest.mark.parametrize("model", ["Tokens", "Scores"])
def test_a_loss_of_tokens_is_written(project: Pytester, shop: Path, model: str) -> None:
    words = (f"shop.net:{model}", "--input", "ids:4x5<9", "--target", "ids:4x5<5", "--loss", "cross_entropy")
    text = written(project, *words)
    assert 'loss=named_loss("cross_entropy")' in text and "functional" not in text
    assert 'targets = "ids:4x5<5"\nloss = "cross_entropy"\n' in written(project, *words, "--toml")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--input", "shop.net:same"), "trainability(build, lambda generator: same(), seeds=2)"),
        (("--input", "shop.net:batch", "--steps", "layers"), 'trainability(build, batch, steps="layers", seeds=2)'),
        (("--input", "shop.net:pairs", "--loss", "cross_entropy"), "trainability(build, pairs, loss=F.cross_entropy"),
    ],
    ids=["function", "function of a generator", "loader"],
)
def test_every_batch_is_written(project: Pytester, shop: Path, words: tuple[str, ...], code: str) -> None:
    assert code in written(project, "shop.net:build", *words)
    assert f'inputs = "{words[1]}"\n' in written(project, "shop.net:build", *words, "--toml")


@pytest.mark.parametrize("file", ["trainability.toml", "pyproject.toml"])
def test_the_written_table_passes_and_fails_for_each_fault(project: Pytester, shop: Path, file: str) -> None:
    words = (*CALL, "--target", "ids:8<5", "--loss", "cross_entropy", "--seeds", "4", "--toml", "--output", file)
    assert main(words) == 0
    assert "baseline = true\n" in (project.path / file).read_text(encoding="utf-8")
    assert (project.path / "__trainability__" / f"{file}.json").is_file()
    project.runpytest_inprocess("--trainability-baseline=check").assert_outcomes(passed=1)
    for fault, (healthy, faulty) in FAULTS.items():
        shop.write_text(MODEL.replace(healthy, faulty), encoding="utf-8")
        for name in ("shop", "shop.net"):
            sys.modules.pop(name, None)
        result = project.runpytest_inprocess("--trainability-cure=off", "-p", "no:cacheprovider")
        assert result.ret == 1, fault
        result.assert_outcomes(failed=1)


def test_chosen_seeds_are_written(project: Pytester, shop: Path) -> None:
    assert main((*CALL, "--seeds", "0,3", "--toml")) == 0
    assert "seeds = [0, 3]\n" in (project.path / "trainability.toml").read_text(encoding="utf-8")
    project.runpytest_inprocess("--trainability-baseline=check").assert_outcomes(passed=1)


def test_a_project_with_an_inline_table_stays_as_it_is(
    project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project.path / "pyproject.toml"
    text = "[tool]\ntrainability = {test = {other = {model = 'hf:gpt2'}}}\n"
    file.write_text(text, encoding="utf-8")
    assert main((*CALL, "--toml", "--output", "pyproject.toml")) == CANNOT
    assert "to which the table [tool.trainability.test.net] can be added" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == text and not (project.path / "__trainability__").exists()


def test_a_table_goes_where_pytest_finds_it(project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main((*CALL, "--toml", "--output", "gates.toml")) == CANNOT
    assert "--toml must write into trainability.toml or pyproject.toml" in capsys.readouterr().err


def test_a_model_that_fails_its_preset_gets_no_test(
    project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.write_text(MODEL.replace("std=0.05", "std=0.05").replace("x + torch.tanh(", "1000 * ("), encoding="utf-8")
    assert main((*CALL, "--preset", "mlp", "--seeds", "2")) == DIFFERS
    message = capsys.readouterr().err
    assert "shop.net:build fails the preset 'mlp'. A gate begins with a healthy model:" in message
    assert "log_gain" in message and not (project.path / "tests").exists()


def test_it_says_where_look_finds_the_model_unhealthy(
    project: Pytester, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*CALL, "--seeds", "2", "--output", "-")
    assert main(words) == 0
    assert "fails the preset" not in capsys.readouterr().err
    shop.write_text(MODEL.replace("x + torch.tanh(", "1000 * ("), encoding="utf-8")
    for name in ("shop", "shop.net"):
        sys.modules.pop(name, None)
    assert main(words) == 0
    said = "shop.net:build fails the preset 'mlp' (it has neither attention, convolutions nor recurrence). The test guards it"
    assert said in capsys.readouterr().err
    assert main(("look", *words[1:-2])) == DIFFERS


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


def test_the_example_of_a_lightning_module_goes_to_its_forward(project: Pytester, shop: Path) -> None:
    module = """

class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()
        self.example_input_array = torch.ones(8, 16)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)
"""
    shop.write_text(MODEL + module, encoding="utf-8")
    assert "trainability(MODEL.forward, MODEL.inputs, seeds=2)" in written(project, "shop.net:Module")
    assert "inputs" not in written(project, "shop.net:Module", "--toml")


def test_a_model_of_a_library_brings_its_inputs(project: Pytester) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    assert main(("start", "hf-tiny:gpt2", "--seeds", "3")) == 0
    text = (project.path / "tests" / "test_trainability_gpt2.py").read_text(encoding="utf-8")
    assert 'MODEL = named_model("hf-tiny:gpt2")' in text and "trainability(MODEL.build, MODEL.inputs, seeds=3)" in text
    assert "sys.path" not in text
    project.runpytest_inprocess("tests").assert_outcomes(passed=2)
