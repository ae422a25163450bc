"""The forward pass: inputs, losses, and errors of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import BATCH, WIDTH
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.errors import ModelError, TrainabilityError, UsageError

FLOATS = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
IDS = torch.arange(6).reshape(2, 3)


class Tail(nn.Module):
    """A tower with something after it."""

    def __init__(self, function: Callable[[Tensor], Any], depth: int = 3) -> None:
        super().__init__()
        self.layers = models.mlp(depth)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers(x))


class Raising(nn.Module):
    """Raises."""

    def forward(self, x: Tensor) -> Tensor:
        msg = "no such luck"
        raise KeyError(msg)


def raising_inputs(generator: torch.Generator) -> Tensor:
    msg = "no data"
    raise OSError(msg)


@pytest.mark.parametrize(
    ("model", "inputs", "settings", "error", "parts"),
    [
        pytest.param(
            lambda: Tail(lambda y: "text"),
            FLOATS,
            {},
            ModelError,
            ["the model must return a tensor, or a tuple, list, dict or dataclass with tensors", "Tail returned str."],
            id="no-tensor",
        ),
        pytest.param(
            lambda: Tail(lambda y: None),
            FLOATS,
            {},
            ModelError,
            ["the model must return a tensor", "Tail returned NoneType."],
            id="none",
        ),
        pytest.param(
            Raising,
            FLOATS,
            {},
            ModelError,
            ["the model must run on its inputs", "Raising (seed 0, cpu)", "(3, 6) float32", "KeyError: 'no such luck'"],
            id="model-raises",
        ),
        pytest.param(
            models.mlp,
            {"input": FLOATS, "labels": IDS},
            {},
            ModelError,
            ["the model must run on its inputs", "TypeError", "keyword arguments"],
            id="wrong-arguments",
        ),
        pytest.param(
            models.mlp,
            torch.ones(2, 5),
            {},
            ModelError,
            ["the model must run on its inputs", "Sequential", "(2, 5) float32", "RuntimeError"],
            id="wrong-shape",
        ),
        pytest.param(
            models.mlp,
            torch.empty(0, WIDTH),
            {},
            UsageError,
            ["inputs must hold at least one element", "(0, 6)", "empty batch"],
            id="empty-batch",
        ),
        pytest.param(
            models.mlp,
            "text",
            {},
            UsageError,
            ["inputs must be a tensor, a tuple, a dict", "Got str."],
            id="text-inputs",
        ),
        pytest.param(models.mlp, None, {}, UsageError, ["inputs must be a tensor", "Got NoneType."], id="no-inputs"),
        pytest.param(
            models.mlp,
            FLOATS.to("meta"),
            {},
            TrainabilityError,
            ["inputs must", "meta"],
            id="inputs-on-meta",
        ),
        pytest.param(
            models.mlp,
            raising_inputs,
            {},
            TrainabilityError,
            ["inputs", "raising_inputs", "OSError: no data"],
            id="inputs-raise",
        ),
    ],
)
def test_an_error_says_what_to_do(
    refused: Callable[..., None],
    model: Any,
    inputs: Any,
    settings: dict[str, Any],
    error: type[TrainabilityError] | None,
    parts: Sequence[str],
) -> None:
    refused(model, inputs, settings, error, parts)


class Lightning(nn.Module):
    """What a LightningModule looks like to us."""

    def __init__(self, pack: Callable[[Tensor], Any] = lambda loss: loss) -> None:
        super().__init__()
        self.layers = models.mlp()
        self.pack = pack

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        x, y = batch
        return self.pack(F.mse_loss(self(x), y))


@pytest.mark.parametrize("pack", [lambda loss: loss, lambda loss: {"loss": loss}], ids=["tensor", "dict"])
def test_training_step_gives_the_loss(pack: Callable[[Tensor], Any]) -> None:
    """A batch as the trainer would hand it over; the loss is the module's own."""
    result = measure(lambda: Lightning(pack), (FLOATS, torch.zeros_like(FLOATS)), seeds=2)
    expected = measure(lambda: Lightning().layers, FLOATS, loss=lambda y: y.square().mean(), seeds=2)
    assert result.steps.description == "4 × Linear"
    assert result.log_gain.values == expected.log_gain.values
    assert result.loss_log_gain.values == expected.loss_log_gain.values
    assert [e.values for e in result.gradient_norm.values()] == [e.values for e in expected.gradient_norm.values()]


def test_loss_of_the_output_is_used() -> None:
    """``output["loss"]``, as in transformers."""
    result = measure(lambda: models.EarlyLoss(models.Block), FLOATS, seeds=1)
    assert math.isfinite(result.loss_log_gain.mean)


def test_loss_and_target_may_be_functions_of_a_generator() -> None:
    """In this order; both may be functions of a generator."""
    result = measure(
        models.mlp,
        lambda g: torch.randn(BATCH, WIDTH, generator=g),
        target=lambda g: torch.randint(0, WIDTH, (BATCH,), generator=g),
        loss=F.cross_entropy,
        seeds=2,
    )
    assert len(set(result.loss_log_gain.values)) == 2


def test_a_model_that_does_not_fit_is_named() -> None:
    """The forward pass itself."""

    def too_large(y: Tensor) -> Tensor:
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)

    with pytest.raises(
        ModelError, match=r"Tail, one forward pass and what is measured must fit .* cpu ran out of memory"
    ):
        measure(lambda: Tail(too_large), FLOATS, seeds=1)


def test_changes_through_data_are_part_of_the_fingerprint() -> None:
    model = models.mlp()
    result = measure(model, FLOATS)
    model[0].weight.data.mul_(2)
    with pytest.raises(UsageError, match="have changed since"):
        _ = result.relative_gradient_norm


def test_a_loss_may_read_any_output() -> None:
    class Answer:
        def __init__(self, y: Tensor) -> None:
            self.y = y

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.layers(x))

    assert math.isfinite(measure(Model, torch.randn(3, 4), loss=lambda answer: answer.y.sum(), seeds=1).log_gain)


def test_a_compiled_model_runs_uncompiled() -> None:
    compiled = measure(lambda: torch.compile(models.mlp()), FLOATS, seeds=1)
    assert float(compiled.log_gain) == pytest.approx(float(measure(models.mlp, FLOATS, seeds=1).log_gain))
