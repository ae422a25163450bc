"""Whole measurements that are named by texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_trainability import UsageError, measure
from pytest_trainability.sources.requests import IN_FILE, IN_PYTEST, ON_COMMAND_LINE, Words, pytest_options, requested

MODULE = """
import torch
from torch import nn

def build(width=4, depth=2):
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

def needs(width, *, depth=2):
    return build(width, depth)

def takes_all(**arguments):
    return build(**arguments)

net = build()
declaring = build()
declaring.example_input_array = torch.ones(2, 4)

def batch():
    return torch.randn(3, 4)

def drawn(generator):
    return torch.randn(3, 4, generator=generator)

pairs = torch.ones(3, 4), torch.zeros(3, dtype=torch.long)

class Module(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.net = build(width)
        self.example_input_array = torch.ones(2, width)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requested_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_request_can_be_measured() -> None:
    found = requested("requested_models:build", inputs=["3x4"], targets=["ids:3<4"], loss="cross_entropy")
    result = measure(found.build, found.inputs, target=found.target, loss=found.loss, seeds=1)
    assert result.gradient_of == "the loss" and len(result.steps) == 2


def test_parameters_are_arguments_of_the_factory() -> None:
    found = requested("requested_models:needs", inputs=["3x8"], parameters={"width": 8, "depth": 3})
    assert [tuple(layer.weight.shape) for layer in found.build()] == [(8, 8)] * 3
    assert found.build.__name__ == "needs"
    assert len(requested("requested_models:takes_all", inputs=["3x8"], parameters={"depth": 5}).build()) == 5


def test_declared_inputs_are_used() -> None:
    found = requested("requested_models:declaring")
    assert torch.equal(found.inputs(torch.Generator()), torch.ones(2, 4))


def test_the_example_of_a_lightning_module_goes_to_its_forward() -> None:
    found = requested("requested_models:Module")
    assert measure(found.build, found.inputs, seeds=1).gradient_of == "a random functional of the output"
    # A batch goes to its training step.
    found = requested("requested_models:Module", inputs=["requested_models:pairs"])
    assert measure(found.build, found.inputs, seeds=1).gradient_of == "the loss"


def test_what_a_model_declares_depends_on_the_parameters() -> None:
    found = requested("requested_models:Module", parameters={"width": 7})
    assert found.inputs(torch.Generator()).shape == (2, 7)
    assert found.build().net[0].weight.shape == (7, 7)


@pytest.mark.parametrize(
    ("words", "loss"),
    [
        (IN_FILE, "loss = 'cross_entropy'"),
        (ON_COMMAND_LINE, "--loss cross_entropy"),
        (IN_PYTEST, "--trainability-loss=cross_entropy"),
    ],
)
def test_targets_without_a_loss_are_refused_in_the_words_of_the_user(words: Words, loss: str) -> None:
    with pytest.raises(UsageError, match=rf"^targets must come with the loss that takes them\. Write {loss}\.$"):
        requested("requested_models:build", inputs=["3x4"], targets=["ids:3<4"], words=words)


@pytest.mark.parametrize("name", ["batch", "drawn"])
def test_a_function_makes_inputs_with_and_without_a_generator(name: str) -> None:
    found = requested("requested_models:build", inputs=[f"requested_models:{name}"])
    assert found.inputs(torch.Generator()).shape == (3, 4)


def test_a_batch_may_hold_the_target() -> None:
    found = requested("requested_models:build", inputs=["requested_models:pairs"], loss="cross_entropy")
    assert measure(found.build, found.inputs, loss=found.loss, seeds=1).gradient_of == "the loss"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "needs"}, "the model must be built without arguments. 'requested_models:needs' needs width."),
        ({"model": "needs", "parameters": {"depth": 1}}, "needs width"),
        ({"model": "build", "parameters": {"widht": 1}}, "It has no argument widht. Did you mean 'width'?"),
        ({"model": "net", "parameters": {"width": 1}}, "'requested_models:net' is a finished module."),
        (
            {"model": "build", "inputs": []},
            "'requested_models:build' declares no inputs, and none are given. Write inputs = ",
        ),
        (
            {"model": "build", "loss": "cross_entropy"},
            "the loss cross_entropy takes a target, and none is given. Write targets",
        ),
        ({"model": "pairs"}, "the model must be a factory, a class or a torch.nn.Module."),
    ],
)
def test_what_is_missing_is_named(arguments: dict[str, str], said: str) -> None:
    model = arguments.pop("model")
    with pytest.raises(UsageError) as caught:
        requested(f"requested_models:{model}", words=IN_FILE, **{"inputs": ["3x4"], **arguments})  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_options_of_pytest_name_the_same() -> None:
    assert pytest_options("m:b", inputs=["8x3"], targets=["ids:8<3"], loss="mse", steps="layers") == [
        "--trainability-model=m:b",
        "--trainability-input=8x3",
        "--trainability-targets=ids:8<3",
        "--trainability-loss=mse",
        "--trainability-steps=layers",
    ]
    assert pytest_options("hf:gpt2", steps="auto") == ["--trainability-model=hf:gpt2"]
