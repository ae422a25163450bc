"""The keyword arguments of a measurement: one list of them, and what each may be."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pytest_trainability import UsageError, depth_sweep, measure
from pytest_trainability.engine.runs.recipe import Recipe
from pytest_trainability.measurement import DEFAULT_OPTIONS, Context, Options, as_recipe, measure_in, refuse_unknown
from pytest_trainability.measurement.options import as_dtype
from pytest_trainability.plugin import collection

X = torch.eye(3)


def recipe(model: Any = lambda: nn.Linear(3, 3), inputs: Any = X, context: Any = None, **given: Any) -> Recipe:
    return as_recipe(context or Context(), model, inputs, {**DEFAULT_OPTIONS, **given})  # type: ignore[typeddict-item]


def test_every_argument_of_measure_is_an_option_or_belongs_to_measure_alone() -> None:
    arguments = {p.name for p in inspect.signature(measure).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert arguments == Options.__optional_keys__ | {"measures", "confidence"}
    assert DEFAULT_OPTIONS.keys() == Options.__optional_keys__


def test_a_marker_refuses_the_options_that_it_cannot_set() -> None:
    """It names the fixture's argument instead of an unknown measure."""
    assert {"model", "inputs"} | Options.__optional_keys__ - {"seeds", "device", "dtype"} == collection._ARGUMENTS


def test_options_reach_the_recipe() -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean()

    context = Context(threads=2, choose_steps=lambda model: "layers")
    found = recipe(
        context=context,
        target=X,
        loss=loss,
        steps="time",
        exponents=2,
        warmup=3,
        alignment=4,
        device="cpu",
        dtype="float64",
        train=False,
        optimizer=torch.optim.SGD,
        classes=5,
    )
    assert (found.inputs is X, found.target is X, found.loss, found.steps) == (True, True, loss, "time")
    assert (found.exponents, found.warmup, found.alignment, found.classes) == (2, 3, 4, 5)
    assert (found.device, found.dtype, found.train) == (torch.device("cpu"), torch.float64, False)
    assert (found.optimizer, found.threads, found.choose_steps) == (torch.optim.SGD, 2, context.choose_steps)


def test_defaults_make_a_recipe() -> None:
    found = recipe(device="cpu")
    assert (found.steps, found.exponents, found.warmup, found.alignment, found.train) == ("auto", 1, 0, 0, True)
    assert (found.target, found.loss, found.dtype, found.optimizer, found.classes) == (None,) * 5


def test_a_finished_module_stays_on_its_device() -> None:
    assert recipe(nn.Linear(3, 3)).device is None
    assert recipe(lambda: nn.Linear(3, 3)).device is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": (
        {"model": "gpt2"},
        "the model must be a torch.nn.Module, a class or a factory without arguments. Got str.",
    ),
    "train": ({"train": "eval"}, "train must be True or False, for train or eval mode. Got 'eval'."),
    "train, a number": ({"train": 1}, "train must be True or False"),
    "name": ({"name": 3}, "name must be a string. Got 3."),
    "exponents": ({"exponents": 0}, "exponents must be a whole number of at least 1. Got 0."),
    "exponents, a truth value": ({"exponents": True}, "exponents must be a whole number of at least 1. Got True."),
    "warmup": ({"warmup": -1}, "warmup must be a whole number of at least 0. Got -1."),
    "alignment": ({"alignment": 0.5}, "alignment must be a whole number of at least 0. Got 0.5."),
    "classes": ({"classes": 1}, "classes must be a whole number of at least 2. Got 1."),
    "dtype": ({"dtype": "int8"}, "dtype must be a floating type: float32, float64, bfloat16 or float16. Got 'int8'."),
    "device": ({"device": "gpu"}, "the device must be auto, cpu, cuda, cuda:N or mps"),
    "loss": ({"loss": 3}, "the loss must be a function"),
    "target": ({"target": X}, "a target must come with the loss"),
    "optimizer": ({"optimizer": 0.1}, "optimizer must be a function of the parameters"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_option_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(**given)
    assert message in str(caught.value)


def test_an_unknown_argument_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"unknown argument 'seed' of trainability\(\)\. Did you mean 'seeds'\?$"):
        measure_in(Context(), nn.Linear(3, 3), X, seed=3)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"unknown argument 'clases' of depth_sweep\(\)\. Did you mean 'classes'\?$"):
        depth_sweep(lambda depth: nn.Linear(3, depth), [1, 2], X, clases=3)
    with pytest.raises(
        UsageError, match=r"unknown argument 'log_gian' of trainability\(\)\. Did you mean 'log_gain'\?$"
    ):
        refuse_unknown({"log_gian": (-3, 3)}, where="trainability()")
    with pytest.raises(UsageError, match=r"unknown argument 'log_gian' of measure\(\)\.$"):
        refuse_unknown({"log_gian": (-3, 3)}, where="measure()")
    with pytest.raises(UsageError, match=r"unknown argument 'xyz' of measure\(\)\.$"):
        refuse_unknown({"steps": "auto", "xyz": 1}, where="measure()")
    refuse_unknown(dict.fromkeys(Options.__optional_keys__), where="measure()")


@pytest.mark.parametrize("name", ["measures", "confidence"])
def test_arguments_of_measure_alone_are_not_options(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown argument {name!r}"):
        refuse_unknown({name: 1}, where="trainability()")


@pytest.mark.parametrize("given", ["float64", "torch.float64", "double", torch.float64])
def test_a_floating_type_may_be_given_by_name(given: Any) -> None:
    assert as_dtype(given) is torch.float64


@pytest.mark.parametrize("given", [None, ""])
def test_without_a_floating_type_models_keep_theirs(given: Any) -> None:
    assert as_dtype(given) is None


def test_a_loader_gives_its_first_batch_and_keeps_the_random_numbers() -> None:
    loader = DataLoader(torch.arange(12.0).reshape(4, 3), batch_size=2, shuffle=True)
    before = torch.get_rng_state()
    first, second = recipe(inputs=loader).inputs, recipe(inputs=loader).inputs
    assert torch.equal(first, second) and first.shape == (2, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^a DataLoader given as inputs must hold at least one batch\."):
        recipe(inputs=DataLoader([], batch_size=2))
