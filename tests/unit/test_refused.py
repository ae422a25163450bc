"""Models, inputs and options that cannot be measured: the error says what must hold, what came and what to do."""

from __future__ import annotations

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import FLOATS, IDS, VOCAB, Tail
from torch import Tensor, nn

from pytest_trainability.errors import CutError, ModelError, UsageError


class Silent(models.Tower):
    """Runs its blocks under torch.no_grad()."""

    def body(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().body(x)


class Unmoved(nn.Module):
    """Returns a value that depends neither on its input nor on the weights of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = models.mlp()
        self.answer = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        self.layers(x)
        return self.answer * 2


class IntegersOnly(nn.Module):
    """Has no float tensor."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids + 1


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(requires_grad=False)


def double_loss(output: Tensor) -> Tensor:
    return output * 2


def detached_loss(output: Tensor) -> Tensor:
    return output.detach().square().mean()


def failing_loss(output: Tensor) -> Tensor:
    msg = "targets do not fit"
    raise ValueError(msg)


@pytest.mark.parametrize(
    ("model", "inputs", "settings", "error", "parts"),
    [
        pytest.param(
            models.mlp,
            FLOATS,
            {"loss": double_loss},
            ModelError,
            ["the loss must be one number", "`double_loss` returned a tensor of shape (3, 6)", "Reduce it", ".mean()"],
            id="loss-of-many-numbers",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"loss": lambda y: 3.0},
            ModelError,
            ["the loss must be one number, a tensor", "returned float", "tensor itself, without .item()"],
            id="loss-that-is-a-float",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"loss": lambda y: None},
            ModelError,
            ["returned NoneType. A return statement is missing"],
            id="loss-that-is-none",
        ),
        pytest.param(
            lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU())),
            FLOATS,
            {},
            CutError,
            ["Calls inside a scripted module are not visible"],
            id="scripted",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"train": "eval"},
            UsageError,
            ["train must be True or False, for train or eval mode. Got 'eval'"],
            id="train-that-is-a-word",
        ),
        pytest.param(models.mlp, FLOATS, {"name": 3}, UsageError, ["name must be a string. Got 3"], id="name"),
        pytest.param(
            models.mlp,
            FLOATS,
            {"loss": detached_loss},
            ModelError,
            ["loss", "`detached_loss`", ".detach()"],
            id="loss-without-gradient",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"loss": failing_loss},
            ModelError,
            ["the loss must", "`failing_loss` raised ValueError: targets do not fit"],
            id="loss-that-raises",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"loss": F.cross_entropy},
            ModelError,
            ["the loss must", "cross_entropy", "target"],
            id="loss-without-its-target",
        ),
        pytest.param(
            IntegersOnly,
            IDS,
            {},
            ModelError,
            ["a parameter or an input must carry a gradient", "none of its inputs is a float tensor"],
            id="no-float-anywhere",
        ),
        pytest.param(
            lambda: Tail(lambda y: y.argmax(-1)),
            FLOATS,
            {},
            ModelError,
            ["the output must carry a gradient", "argmax"],
            id="integer-output",
        ),
        pytest.param(
            nn.Tanh,
            FLOATS,
            {},
            CutError,
            ["a chain needs steps", "Tanh called neither", "It calls no submodule"],
            id="no-step",
        ),
        pytest.param(
            Unmoved,
            FLOATS,
            {},
            CutError,
            ["the signal must flow from step 'layers.0' through step 'layers.6' to the output", "does not depend on"],
            id="output-without-input",
        ),
        pytest.param(
            lambda: Tail(torch.detach),
            FLOATS,
            {},
            ModelError,
            ["the output must carry a gradient", "torch.no_grad(), .detach()"],
            id="detached-output",
        ),
        pytest.param(
            lambda: Silent(models.Block),
            FLOATS,
            {},
            CutError,
            ["the signal must flow from step", "torch.no_grad", "to the output"],
            id="no-grad-inside",
        ),
        pytest.param(
            lambda: models.Reentrant(models.Block),
            FLOATS,
            {},
            CutError,
            ["checkpointed parts of the model must be part of the autograd graph", "use_reentrant=False"],
            id="reentrant",
        ),
        pytest.param(
            lambda: frozen(models.LanguageModel()),
            IDS,
            {},
            ModelError,
            [
                "a parameter or an input must carry a gradient",
                "All parameters of the model are frozen",
                "inputs_embeds",
            ],
            id="frozen-and-integers",
        ),
        pytest.param(
            "gpt2", FLOATS, {}, UsageError, ["the model must be a torch.nn.Module, a class", "Got str."], id="text"
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"exponents": 7},
            UsageError,
            ["exponents must be at most the number of dimensions of the last state, 6 per trajectory", "Got 7."],
            id="too-many-exponents",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"seeds": 0},
            UsageError,
            ["seeds must be a number of at least 1", "Got 0."],
            id="no-seeds",
        ),
        pytest.param(models.mlp, FLOATS, {"seeds": []}, UsageError, ["seeds must be", "Got []."], id="empty-seeds"),
        pytest.param(
            models.mlp, FLOATS, {"seeds": [-1]}, UsageError, ["seeds must be", "Got [-1]."], id="negative-seed"
        ),
        pytest.param(
            models.mlp, FLOATS, {"seeds": [0.5]}, UsageError, ["seeds must be", "Got [0.5]."], id="float-seed"
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"dtype": "int8"},
            UsageError,
            ["dtype must be a floating type", "'int8'"],
            id="int-dtype",
        ),
        pytest.param(models.mlp, FLOATS, {"dtype": "float"}, None, [], id="float-dtype"),
        pytest.param(
            models.mlp, FLOATS, {"measures": ["log_gian"]}, UsageError, ["log_gian", "log_gain"], id="measure"
        ),
    ],
)
def test_an_error_says_what_to_do(refused, model, inputs, settings, error, parts) -> None:
    refused(model, inputs, settings, error, parts)


def test_vocabulary_is_as_large_as_the_ids() -> None:
    """The inputs of this file fit the models of ``models.py``."""
    assert int(IDS.max()) < VOCAB
