"""Models of single seeds: factories, finished and lazy modules, devices and types."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
from models import BATCH, WIDTH
from torch import nn

from pytest_trainability import measure
from pytest_trainability.engine.runs.building import choose_device
from pytest_trainability.errors import ModelError, TrainabilityError, UsageError

FLOATS = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
IDS = torch.arange(6).reshape(2, 3)


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "under heavy development" since years
        return nn.Sequential(nn.LazyLinear(WIDTH), nn.Tanh(), nn.LazyLinear(WIDTH), nn.Tanh(), nn.LazyLinear(WIDTH))


def on_meta() -> nn.Module:
    return models.mlp().to("meta")


def raising_factory() -> nn.Module:
    msg = "no configuration"
    raise OSError(msg)


KEPT = models.mlp()


@pytest.mark.parametrize(
    ("model", "inputs", "settings", "error", "parts"),
    [
        pytest.param(
            lazy(),
            FLOATS,
            {},
            ModelError,
            ["the parameters of a model must hold numbers", "'0.weight'", "lazy", "run the model"],
            id="lazy-module",
        ),
        pytest.param(
            on_meta(),
            FLOATS,
            {},
            ModelError,
            ["the parameters of a model must hold numbers", "'0.weight' lives on the meta device"],
            id="module-on-meta",
        ),
        pytest.param(
            on_meta, FLOATS, {}, TrainabilityError, ["'0.weight' lives on the meta device"], id="factory-on-meta"
        ),
        pytest.param(
            raising_factory,
            FLOATS,
            {},
            ModelError,
            ["the factory must build a model", "`raising_factory` raised OSError: no configuration"],
            id="factory-raises",
        ),
        pytest.param(
            lambda: 3,
            FLOATS,
            {},
            ModelError,
            ["the factory must return a torch.nn.Module", "returned int."],
            id="factory-of-int",
        ),
        pytest.param(
            models.Tower,
            FLOATS,
            {},
            ModelError,
            ["the factory must build a model when called without arguments", "`Tower` raised TypeError", "lambda"],
            id="class-with-arguments",
        ),
        pytest.param(
            lambda: KEPT,
            FLOATS,
            {"seeds": 2},
            UsageError,
            [
                "the factory must build a new model each time",
                "returned the same object twice",
                "hand in the module itself",
            ],
            id="same-object",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"device": "gpu"},
            UsageError,
            ["the device must be", "Got 'gpu'", "has cpu"],
            id="device",
        ),
        pytest.param(models.mlp, FLOATS, {"device": "cuda:99"}, UsageError, ["Got 'cuda:99'"], id="device-number"),
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


def test_lazy_modules_from_a_factory_are_measured() -> None:
    """They get their shapes in the run itself."""
    result = measure(lazy, FLOATS, seeds=2)
    assert result.steps.description.startswith("3 × ")
    assert len(result.gradient_norm) == 6
    assert math.isfinite(result.log_gain.mean)


def test_a_factory_may_keep_its_last_model() -> None:
    """A new model at the address of a freed one is a new model."""
    kept: dict[str, nn.Module] = {}

    def factory() -> nn.Module:
        kept["model"] = models.mlp(2)
        return kept["model"]

    result = measure(factory, FLOATS, seeds=12)
    assert len(set(result.log_gain.values)) == 12


@pytest.mark.parametrize("dtype", ["float64", torch.float64, "torch.float64", torch.bfloat16])
def test_parameters_and_float_inputs_are_cast(dtype: Any) -> None:
    """Parameters and float inputs; integer ones stay."""
    result = measure(models.LanguageModel, (IDS, torch.ones(2, 3, WIDTH)), seeds=1, dtype=dtype)
    assert result.dtype in str(dtype)
    assert math.isfinite(result.log_gain.mean)


def test_float64_and_float32_agree() -> None:
    """The same draws, rounded."""
    wide, narrow = (measure(models.mlp, FLOATS, seeds=2, dtype=d, exponents=3) for d in ("float64", "float32"))
    assert narrow.log_gain.values == pytest.approx(wide.log_gain.values, abs=1e-4)
    spectra = [[e.mean for e in r.lyapunov_spectrum] for r in (narrow, wide)]
    assert spectra[0] == pytest.approx(spectra[1], abs=1e-4)


def test_a_device_is_chosen_by_name() -> None:
    """By name; a finished module stays where it is."""
    assert choose_device(None, fixed=True) is None
    assert choose_device("cpu", fixed=True) == torch.device("cpu")
    assert choose_device(torch.device("cpu"), fixed=False) == torch.device("cpu")
    assert choose_device("auto", fixed=False) is not None
    for name in ("", "CPU:0", "cuda:", "cpu:1"):
        with pytest.raises(UsageError, match="the device must be"):
            choose_device(name, fixed=False)


def test_gradients_of_a_kept_model_are_restored_in_their_type() -> None:
    kept = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    kept(torch.randn(2, 3)).sum().backward()
    before = [parameter.grad.clone() for parameter in kept.parameters() if parameter.grad is not None]
    measure(lambda: kept, torch.randn(4, 3), seeds=1, dtype="float64")
    after = [parameter.grad for parameter in kept.parameters()]
    assert all(a is not None and torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(after, before))


def test_a_lazy_factory_is_measured() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(8))

    assert str(measure(lazy, torch.randn(4, 5), seeds=2).steps) == "3 × Linear"


@pytest.mark.parametrize("device", [torch.device("cuda", 99), "cuda:99", 0])
def test_an_unavailable_device_is_refused(device: Any) -> None:
    with pytest.raises(UsageError, match="the device must be auto, cpu, cuda"):
        measure(models.mlp, FLOATS, device=device)
