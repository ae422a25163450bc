"""Arguments of size sweeps: what is refused, and how inputs of a size are drawn."""

from __future__ import annotations

import re

import pytest
import torch
from families import ONES, perceptron, scaled, vectors
from torch import Tensor, nn

from pytest_trainability import (
    BoundError,
    UsageError,
    depth_sweep,
    width_sweep,
)
from pytest_trainability.measurement import DEFAULT_OPTIONS
from pytest_trainability.scaling.arguments import as_options, as_summaries, inputs_at, refuse_measure

SIZES = "widths must be two or more whole numbers of at least 1, increasing, such as [64, 128, 256]. Got "


@pytest.mark.parametrize(
    "sizes",
    [[64], [], [64, 64], [128, 64], [1.5, 2], ["64", "128"], [True, 2], [0, 1], [-2, 4], 64, None],
    ids=repr,
)
def test_invalid_sizes_are_refused(sizes):
    with pytest.raises(UsageError, match=re.escape(f"{SIZES}{sizes!r}.")):
        width_sweep(perceptron, sizes, vectors)


def test_ranges_and_tensors_of_sizes_are_taken():
    assert width_sweep(perceptron, torch.tensor([2, 4]), vectors, seeds=1).sizes == (2, 4)
    assert depth_sweep(lambda depth: scaled(*[1] * depth), range(2, 5), ONES, seeds=1).sizes == (2, 3, 4)


REFUSED = {
    "build": ({"build": nn.Linear(3, 3)}, UsageError, "a function that builds the model of a width. Got Linear"),
    "build None": (
        {"build": None},
        UsageError,
        "Got NoneType. For instance width_sweep(lambda width: Net(width=width)",
    ),
    "no inputs": (
        {"inputs": None},
        UsageError,
        "either inputs, or inputs_of=, a function of the size that makes them. Got neither.",
    ),
    "both": ({"inputs_of": lambda n: ONES}, UsageError, "Got both."),
    "inputs_of": (
        {"inputs": None, "inputs_of": ONES},
        UsageError,
        "inputs_of must be a function of the size. Got Tensor",
    ),
    "measure": ({"measure": "activation_rsm"}, BoundError, "Did you mean 'activation_rms'?"),
    "names": ({"measure": "nonfinite"}, UsageError, "'nonfinite' is a list of names. Check it at every size"),
    "change": ({"measure": "activation_change"}, UsageError, "activation_change must come with after_steps="),
    "summary": (
        {"summary": "median"},
        UsageError,
        "one or several of 'max', 'min', 'mean', 'first', 'last'. Got 'median'",
    ),
    "each and more": ({"summary": ("each", "max")}, UsageError, "summary must be 'each', or one or several of"),
    "pattern": ({"matching": "layers.*"}, UsageError, "No name matches the pattern 'layers.*'. Nearest: input, 0."),
    "steps": ({"after_steps": -1}, UsageError, "after_steps must be a whole number of at least 0. Got -1."),
    "steps float": ({"after_steps": 2.0}, UsageError, "after_steps must be a whole number"),
    "optimizer": ({"after_steps": 1, "optimizer": 0.1}, UsageError, "optimizer must be a function of the parameters"),
    "setting": ({"seed": 3}, UsageError, "unknown argument 'seed' of width_sweep(). Did you mean 'seeds'?"),
    "confidence": ({"confidence": 99}, UsageError, "the confidence must lie between 0 and 1"),
}


@pytest.mark.parametrize(("changes", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_argument_is_refused(changes, error, said):
    given = {"build": lambda n: scaled(n), "inputs": ONES, "seeds": 1, **changes}
    with pytest.raises(error, match=re.escape(said)):
        width_sweep(given.pop("build"), [2, 4], given.pop("inputs"), **given)


def test_the_seed_determines_inputs_of_a_size():
    def of_global(width: int) -> Tensor:
        return torch.randn(4, width)

    def of_generator(width: int):
        return lambda generator: torch.randn(4, width, generator=generator)

    for inputs_of in (of_global, of_generator):
        first, second = (width_sweep(lambda n: nn.Linear(n, n), [4, 8], inputs_of=inputs_of, seeds=2) for _ in range(2))
        values = [value["input"].values for value in first.values]
        assert values == [value["input"].values for value in second.values]
        assert len(set(values[0])) == 2  # another seed, other inputs


# Each function ------------------------------------------------------------------------------------------------------


def test_options_are_those_of_measure_with_its_defaults():
    found = as_options("width_sweep()", {"seeds": 3, "train": False})
    assert found == {**DEFAULT_OPTIONS, "seeds": 3, "train": False}


@pytest.mark.parametrize(
    ("given", "found"), [(None, ()), ("max", ("max",)), (["last", "min"], ("last", "min")), ((), ())]
)
def test_summaries_are_a_tuple(given, found):
    assert as_summaries(given) == found
    assert as_summaries("each") == ("each",)


def test_changes_are_a_measure_of_trained_models_only():
    refuse_measure("width_sweep()", "activation_change", trained=True)
    with pytest.raises(UsageError, match="after_steps="):
        refuse_measure("width_sweep()", "activation_change", trained=False)
    with pytest.raises(
        BoundError, match=r"measure= of width_sweep\(\): unknown measure .* Did you mean 'activation_change'"
    ):
        refuse_measure("width_sweep()", "activation_chnge", trained=True)
    with pytest.raises(BoundError) as caught:
        refuse_measure("width_sweep()", "activation_chnge", trained=False)
    assert "activation_change" not in str(caught.value)


def test_inputs_of_a_size():
    assert inputs_at(3, ONES, None) is ONES
    generator = torch.Generator()
    assert inputs_at(3, None, lambda n: torch.ones(n))(generator).shape == (3,)
    assert inputs_at(3, None, lambda n: {"x": torch.ones(n)})(generator)["x"].shape == (3,)
    assert inputs_at(3, None, lambda n: lambda g: (n, g))(generator) == (3, generator)
