"""Sweeps over width and depth: what they refuse, what they follow, what a verdict says, and what they leave alone."""

from __future__ import annotations

import math
import random
import re
from collections import OrderedDict
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import (
    BoundError,
    Estimate,
    ModelError,
    Profile,
    TrainabilityFailure,
    UsageError,
    at_least,
    at_most,
    depth_sweep,
    measure,
    width_sweep,
    within,
)
from pytest_trainability.measurement import Context
from pytest_trainability.records.reports import CheckRecord
from pytest_trainability.scaling import size_sweep_in


class Scaled(nn.Module):
    """`factor · x` by a weight of its own."""

    def __init__(self, factor: float, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(factor * torch.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def scaled(*factors: float) -> nn.Module:
    return nn.Sequential(*[Scaled(factor) for factor in factors])


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


def vectors(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 6, generator=generator)


ONES = torch.ones(2, 3)


# What is refused ----------------------------------------------------------------------------------------------------

SIZES = "widths must be two or more whole numbers of at least 1, increasing, such as [64, 128, 256]. Got "


@pytest.mark.parametrize(
    "sizes",
    [[64], [], [64, 64], [128, 64], [1.5, 2], ["64", "128"], [True, 2], [0, 1], [-2, 4], 64, None],
    ids=repr,
)
def test_sizes_that_are_none(sizes):
    with pytest.raises(UsageError, match=re.escape(f"{SIZES}{sizes!r}.")):
        width_sweep(perceptron, sizes, vectors)


def test_sizes_of_other_libraries_and_ranges_are_taken():
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
    "pattern": ({"matching": "layers.*"}, UsageError, "activation_rms must have an element to follow at every width"),
    "steps": ({"after_steps": -1}, UsageError, "after_steps must be a whole number of at least 0. Got -1."),
    "steps float": ({"after_steps": 2.0}, UsageError, "after_steps must be a whole number"),
    "optimizer": ({"after_steps": 1, "optimizer": 0.1}, UsageError, "optimizer must be a function of the parameters"),
    "setting": ({"seed": 3}, UsageError, "unknown argument 'seed' of width_sweep(). Did you mean 'seeds'?"),
    "confidence": ({"confidence": 99}, UsageError, "the confidence must lie between 0 and 1"),
}


@pytest.mark.parametrize(("changes", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(changes, error, said):
    given = {"build": lambda n: scaled(n), "inputs": ONES, "seeds": 1, **changes}
    with pytest.raises(error, match=re.escape(said)):
        width_sweep(given.pop("build"), [2, 4], given.pop("inputs"), **given)


FAILING = {
    "build raises": ({"build": lambda n: nn.Linear(n, -n)}, ModelError, "at width 2: the function must build a model."),
    "no model": ({"build": lambda n: n}, ModelError, "at width 2: the function must return a torch.nn.Module"),
    "does not run": ({"build": lambda n: nn.Linear(n, n)}, ModelError, "at width 2: the model must run on its inputs"),
    "inputs_of raises": (
        {"inputs": None, "inputs_of": lambda n: torch.ones(-n)},
        UsageError,
        "at width 2: inputs_of must make the inputs of every size. inputs_of(2) raised RuntimeError",
    ),
    "no loss": ({"after_steps": 1}, UsageError, "at width 2: after_steps= must come with a loss to train on"),
    "no optimizer": (
        {"after_steps": 1, "loss": Tensor.sum, "optimizer": lambda parameters: None},
        UsageError,
        "at width 2: optimizer must be a function of the parameters that makes a torch.optim.Optimizer of them.",
    ),
    "does not train": (
        {"after_steps": 1, "loss": Tensor.sum, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=-1)},
        UsageError,
        "at width 2: optimizer must be a function of the parameters that makes a torch.optim.Optimizer of them.",
    ),
}


@pytest.mark.parametrize(("changes", "error", "said"), FAILING.values(), ids=FAILING)
def test_what_fails_names_the_size(changes, error, said):
    given = {"build": lambda n: scaled(n), "inputs": ONES, "seeds": 1, **changes}
    with pytest.raises(error, match=re.escape(said)):
        width_sweep(given.pop("build"), [2, 4], given.pop("inputs"), **given)


def test_a_model_that_is_kept_is_not_trained():
    """One seed alone would never see that the second build is the same object."""
    kept = {n: scaled(n) for n in (2, 4)}
    with pytest.raises(UsageError, match="must build a new model each time it is called, which is then trained"):
        width_sweep(kept.__getitem__, [2, 4], ONES, seeds=1, after_steps=1, loss=Tensor.sum)
    assert torch.equal(kept[2][0].weight, 2 * torch.eye(3))


# What is followed ---------------------------------------------------------------------------------------------------


def test_each_size_is_measured_with_the_same_seeds_and_settings():
    found = width_sweep(perceptron, [4, 8], vectors, seeds=[3, 1, 7], dtype="float64", train=False)
    assert found.seeds == (3, 1, 7)
    for size, value, measurement in zip(found.sizes, found.values, found.measurements):
        alone = measure(lambda size=size: perceptron(size), vectors, seeds=[3, 1, 7], dtype="float64", train=False)
        assert (measurement.seeds, measurement.dtype, measurement.mode) == ((3, 1, 7), "float64", "eval")
        assert {n: e.values for n, e in value.items()} == {n: e.values for n, e in alone.activation_rms.items()}
    # Seed by seed: the slope of one is not mixed with the value of another.
    (small, large), slope = (value["2"].values for value in found.values), found.slope["2"]
    assert slope.values == pytest.approx([math.log(b / a) / math.log(2) for a, b in zip(small, large)])


def test_inputs_of_a_size_are_drawn_by_the_seed():
    def of_global(width: int) -> Tensor:
        return torch.randn(4, width)

    def of_generator(width: int):
        return lambda generator: torch.randn(4, width, generator=generator)

    for inputs_of in (of_global, of_generator):
        first, second = (width_sweep(lambda n: nn.Linear(n, n), [4, 8], inputs_of=inputs_of, seeds=2) for _ in range(2))
        values = [value["input"].values for value in first.values]
        assert values == [value["input"].values for value in second.values]
        assert len(set(values[0])) == 2  # another seed, other inputs


def test_elements_that_are_not_everywhere_are_named_and_left_out():
    found = width_sweep(lambda n: scaled(*[2] * n), [2, 3], ONES, seeds=1)
    assert list(found.slope) == ["input", "0", "1"]
    assert found.left_out == ("2",)
    with pytest.raises(TrainabilityFailure, match="not at every width and seed, and not followed: 2"):
        found.check(at_least(1))


def test_nothing_in_common_says_what_else_can_be_followed():
    def build(n: int) -> nn.Module:
        return nn.Sequential(OrderedDict({f"{letter}{n}": Scaled(n) for letter in "ab"}))

    said = re.escape("activation_rms has none. Follow a summary, which does not depend on names: summary='max'")
    with pytest.raises(UsageError, match=said):
        width_sweep(build, [2, 3], ONES, seeds=1, excluding="input")
    assert abs(width_sweep(build, [2, 3], ONES, seeds=1, summary="last").slope - 2) < 1e-6


@pytest.mark.parametrize(
    ("summary", "expected"),
    # States 1, n, n/8: the largest is n, the smallest 1 or n/8, the geometric mean (n²/8)^(1/3).
    [("max", 1), ("min", 1 / 3), ("mean", 2 / 3), ("first", 0), ("last", 1)],
)
def test_summaries(summary, expected):
    found = width_sweep(lambda n: scaled(n, 1 / 8), [4, 8, 16], ONES, seeds=1, summary=summary)
    if summary == "min":  # ½, 1, 1
        expected = math.log(2) * math.log(4) / 2 / (2 * math.log(2) ** 2)
    assert isinstance(found.slope, Estimate)
    assert float(found.slope) == pytest.approx(expected, abs=1e-6)
    assert found.reading.startswith({"max": "largest", "min": "smallest"}.get(summary, summary) + " activation_rms ")


def test_a_profile_over_depths_is_followed_by_its_largest_and_smallest_element():
    found = depth_sweep(lambda depth: scaled(*[2] * depth), [2, 4], ONES, seeds=1, measure="activation_rms")
    assert isinstance(found.slope, Profile)
    assert {name: round(float(e), 6) for name, e in found.slope.items()} == {"max": 2.0, "min": 0.0}
    assert list(depth_sweep(lambda depth: scaled(*[2] * depth), [2, 4], ONES, measure="growth_rate").slope) == [
        "max",
        "min",
    ]


def test_exponents_are_followed_one_by_one():
    found = depth_sweep(
        lambda depth: scaled(*[2] * depth), [2, 4], ONES, seeds=1, measure="lyapunov_spectrum", exponents=2
    )
    assert list(found.slope) == ["exponent 1", "exponent 2"]
    assert found.slope["exponent 2"].unit == "nats/step per e-fold"
    assert abs(found.slope["exponent 1"]) < 1e-6  # ln 2 per step, whatever the depth


def test_elements_that_are_zero_by_design_can_be_left_out():
    def build(depth: int) -> nn.Module:
        return nn.Sequential(*scaled(*[2] * depth), scaled(0.0), nn.Linear(3, 3))

    zero = depth_sweep(build, [2, 4], ONES, seeds=1, measure="gradient_norm")
    assert math.isnan(zero.slope["min"].mean)
    rest = depth_sweep(build, [2, 4], ONES, seeds=1, measure="gradient_norm", matching="?.bias")
    assert abs(rest.slope["min"]) < 1


def test_other_measures_of_the_same_models():
    found = width_sweep(perceptron, [4, 8, 16], vectors, seeds=2)
    again = found.of("gradient_norm", matching="*.weight")
    assert list(again.slope) == ["0.weight", "2.weight", "4.weight"]
    assert again.measurements == found.measurements
    assert found.last.of("log_gain").sizes == (8, 16)
    with pytest.raises(BoundError, match="Did you mean 'log_gain'"):
        found.of("log_gian")
    with pytest.raises(UsageError, match="activation_change must come with after_steps="):
        found.of("activation_change")


@pytest.mark.parametrize("name", ["activation_rms", "gradient_norm"])
def test_a_function_that_ignores_the_size_is_refused(name):
    with pytest.raises(
        UsageError, match=r"build must use the width: models of width 4 and 16 are equal. At every width `<lambda>`"
    ):
        width_sweep(lambda _: perceptron(8), [4, 8, 16], vectors, seeds=2, measure=name)


def test_one_layer_that_is_applied_several_times_is_no_such_function():
    class Looped(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.depth, self.layer = depth, nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.depth):
                x = self.layer(x)
            return x

    assert depth_sweep(Looped, [2, 4], vectors, seeds=1).slope < 0


def test_parts_of_a_scaling():
    found = width_sweep(lambda n: scaled(n, n), [2, 4, 16], ONES, seeds=1)
    assert list(found.matching("[01]").slope) == ["0", "1"]
    assert list(found.excluding("input", "1").slope) == ["0"]
    assert found.last.sizes == (4, 16)
    assert len(found.local_slopes) == 2
    with pytest.raises(
        UsageError, match=re.escape("leave an element of input, 0, 1. Got 'layers.*', which leave none.")
    ):
        found.matching("layers.*")
    with pytest.raises(UsageError, match=r"only a profile has elements to select. log_gain is one number here"):
        found.of("log_gain").matching("0")
    with pytest.raises(FrozenInstanceError):
        found.sizes = ()
    assert repr(found).startswith("<activation_rms over widths 2, 4, 16: slope Profile(3 elements, ")
    assert str(found) == "activation_rms of 1 grows like width^2 (widths 2, 4, 16)"


@pytest.mark.parametrize("sizes", [(2, 4), (4, 16), (2, 4, 16)])
def test_another_measure_of_a_part_is_of_the_same_part(sizes):
    found = width_sweep(lambda n: scaled(n, n), [2, 4, 16], ONES, seeds=1)
    first = found.sizes.index(sizes[0])
    part = replace(found, sizes=sizes, values=found.values[first : first + len(sizes)])
    again = part.of("activation_rms", matching="0")
    assert again.sizes == sizes
    assert [value["0"].mean for value in again.values] == pytest.approx(sizes, rel=1e-6)


# Verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "word"), [(0.0, "zero"), (math.nan, "not a number"), (math.inf, "infinite")])
@pytest.mark.parametrize("bad", [2, 4, 8])
def test_what_has_no_slope_never_passes(factor, word, bad):
    found = width_sweep(lambda n: scaled(factor if n == bad else n, 1.0), [2, 4, 8], ONES, seeds=2)
    broken = found.matching("0")
    assert math.isnan(broken.slope["0"].mean)
    for bound in (at_most(1e9), at_least(-1e9), within(-math.inf, math.inf)):
        with pytest.raises(TrainabilityFailure) as failure:
            broken.check(bound)
        # Infinity times the zeros beside the diagonal is not a number either.
        words = f"is ({word}|not a number) at width {bad}: it has no slope, and no bound holds"
        assert re.search(words, " ".join(str(failure.value).split()))
    found.matching("input").check(within(0))


def test_one_seed_that_vanishes_is_not_averaged_away():
    def build(n: int) -> nn.Module:
        return scaled(0.0 if torch.initial_seed() == 1 else n, 1.0)

    found = width_sweep(build, [2, 4], ONES, seeds=3, matching="0")
    assert [math.isnan(value) for value in found.slope["0"].values] == [False, True, False]
    with pytest.raises(TrainabilityFailure, match="is zero at width 2"):
        found.check(at_least(0))


def test_a_minus_infinite_gain_has_no_slope():
    found = depth_sweep(lambda depth: scaled(*[0.0] * depth), [2, 4], ONES, seeds=1)
    with pytest.raises(TrainabilityFailure, match="log_gain is infinite at depth 2"):
        found.check(at_most(0))


def test_the_message_of_a_failure():
    found = width_sweep(lambda n: scaled(n**0.5, n**-0.25), [4, 16, 64], ONES, seeds=1)
    with pytest.raises(TrainabilityFailure) as failure:
        found.check(within(0.1))
    assert str(failure.value).splitlines() == [
        "Sequential: slope of activation_rms out of bounds",
        "  measured       widths 4, 16, 64, per sample, train mode, float32 on cpu, seed",
        "                 0",
        "  slope of activation_rms",
        "                 0.5, must lie in [-0.1, 0.1]: 5 times too large",
        "                 2 of 3 outside, worst 0 0.5, 1 0.25",
        "  by width       activation_rms of 0",
        "                 4   2",
        "                 16  4  slope 0.5",
        "                 64  8  slope 0.5",
        "  reading        activation_rms of 0 grows like width^0.5",
    ]


@pytest.mark.parametrize(
    ("factors", "reading"),
    [
        (lambda n: (n**-0.5,), "activation_rms of 0 shrinks like width^-0.5"),
        (
            lambda n: (1.25**n,),
            "activation_rms of 0 grows exponentially with width: by a factor of 1.25 per unit of width",
        ),
        (
            lambda n: (n + 4,),
            "activation_rms of 0 grows like width^0.58, and bends: the local slope goes from 0.415 to 0.737",
        ),
    ],
    ids=["power", "exponential", "bent"],
)
def test_readings(factors, reading):
    assert width_sweep(lambda n: scaled(*factors(n)), [2, 4, 8, 16], ONES, seeds=1).matching("0").reading == reading


def test_a_slope_within_its_noise_says_so():
    found = width_sweep(perceptron, [8, 16, 32], vectors, seeds=4).matching("2")
    assert found.reading.endswith(", and 0 lies in the interval of the slope")


@pytest.mark.parametrize("bound", [0.1, "wide", (1, -1)])
def test_a_bound_that_is_none(bound):
    found = width_sweep(lambda n: scaled(n), [2, 4], ONES, seeds=1)
    with pytest.raises(BoundError, match=r"check\(\): .*slope of activation_rms"):
        found.check(bound)


def test_what_a_session_hears():
    heard: list[CheckRecord] = []
    context = Context(test="test_a.py::test_b", report=heard.append, reproduce="pytest test_a.py::test_b")
    found = size_sweep_in(
        context,
        "width",
        lambda n: scaled(n, 1.0),
        [2, 4],
        ONES,
        seeds=2,
        name="net",
    )
    (record,) = heard
    assert (record.test, record.model, record.steps, record.verdicts) == ("test_a.py::test_b", "net", "widths 2, 4", ())
    assert record.log_gain == found.measurements[-1].log_gain.mean
    assert record.notes[:2] == ("activation_rms of 0 grows like width^1", "the log gain is that of width 4")
    found.matching("input").check(within(0.1))
    with pytest.raises(TrainabilityFailure, match=r"reproduce +pytest test_a\.py::test_b --trainability-seeds=0-1"):
        found.check(within(0.1))
    assert [v.holds for v in heard[-1].verdicts] == [True, False]
    assert heard[-1].notes[0] == "activation_rms of 0 grows like width^1"
    assert CheckRecord.from_plain(heard[-1].to_plain()) == heard[-1]


# Training before ----------------------------------------------------------------------------------------------------


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def test_no_step_changes_nothing_and_each_step_is_one():
    """y = w x, loss = mean y over two samples and three units: each step takes 0.1/3 off every weight of a row."""
    values = {}
    for steps in (0, 1, 2):
        found = width_sweep(
            lambda n: scaled(n), [2, 4], ONES, seeds=1, after_steps=steps, optimizer=sgd, loss=Tensor.mean
        )
        values[steps] = [value["0"].mean for value in found.values]
    assert values[0] == pytest.approx([2, 4], rel=1e-6)
    assert values[1] == pytest.approx([2 - 0.1, 4 - 0.1], rel=1e-6)
    assert values[2] == pytest.approx([2 - 0.2, 4 - 0.2], rel=1e-6)


def test_optimizers_that_want_a_closure_get_one():
    found = width_sweep(
        lambda n: nn.Linear(3, n),
        [2, 4],
        ONES,
        seeds=1,
        loss=lambda output: output.square().sum(),
        after_steps=5,
        optimizer=lambda parameters: torch.optim.LBFGS(list(parameters), lr=0.1),
    )
    assert all(value["output" if "output" in value else list(value)[-1]] < 1 for value in found.values)


class Noisy(nn.Module):
    """With everything that a forward pass may change or draw."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(width, width)
        )
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) + random.random())


def test_changes_are_seen_by_module_call_and_are_the_same_twice():
    def sweep():
        return width_sweep(
            Noisy,
            [8, 16],
            vectors,
            seeds=2,
            measure="activation_change",
            after_steps=2,
            loss=lambda output: output.square().mean(),
        )

    state = torch.get_rng_state(), random.getstate()
    first, second = sweep(), sweep()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    # Of a module that works in place what came before is kept; the same masks are drawn before and after.
    assert set(first.slope) == {*(f"body.{i}" for i in range(5)), "body", "head", "output"}
    for one, other in zip(first.values, second.values):
        assert {n: e.values for n, e in one.items()} == {n: e.values for n, e in other.items()}
        assert all(e > 0 for e in one.values())
    assert (
        first.of("activation_rms", summary="max").slope.values
        == second.of("activation_rms", summary="max").slope.values
    )


def test_what_works_in_place_hides_no_change():
    """The output of a layer is taken before the next one overwrites it."""

    def sweep(*, inplace: bool):
        return width_sweep(
            lambda n: nn.Sequential(nn.Linear(6, n), nn.ReLU(inplace=inplace), nn.Linear(n, 2)),
            [8, 16],
            vectors,
            seeds=2,
            measure="activation_change",
            after_steps=1,
            loss=lambda output: output.square().mean(),
        )

    first, second = sweep(inplace=True), sweep(inplace=False)
    assert [value["0"].values for value in first.values] == [value["0"].values for value in second.values]
    assert first.values[0]["0"] > first.values[0]["1"]


def test_the_model_is_trained_on_the_batch_that_is_measured():
    drawn = []

    def inputs(generator: torch.Generator) -> Tensor:
        drawn.append(torch.randn(4, 6, generator=generator))
        return drawn[-1]

    width_sweep(perceptron, [4, 8], inputs, seeds=2, after_steps=2, loss=Tensor.mean)
    # For each of two sizes and two seeds: once for training, once for the measurement.
    assert len(drawn) == 8
    assert len({tuple(tensor.flatten().tolist()) for tensor in drawn}) == 2


class Counting(Scaled):
    """Multiplies by how often it was called in train mode, as BatchNorm counts."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x) * float(self.calls)


@pytest.mark.parametrize("measure", ["activation_rms", "activation_change"])
def test_only_training_steps_are_seen_by_buffers(measure):
    """A forward pass of each step, and the measured one: what else was run has left no trace."""
    found = width_sweep(
        lambda n: nn.Sequential(Counting(n), nn.Identity()),
        [2, 4],
        ONES,
        seeds=1,
        measure=measure,
        after_steps=3,
        loss=Tensor.mean,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    rms = found.of("activation_rms").values
    assert [value["0"].mean for value in rms] == pytest.approx([2 * 4, 4 * 4], rel=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_a_rate_of_zero_changes_nothing(train):
    """What is compared before and after training has the same dropout masks, or none."""
    found = width_sweep(
        lambda n: nn.Sequential(nn.Linear(6, n), nn.Dropout(0.5), nn.Linear(n, 2)),
        [8, 16],
        vectors,
        seeds=1,
        measure="activation_change",
        after_steps=2,
        loss=lambda output: output.square().mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        train=train,
    )
    assert [[change.mean for change in value.values()] for value in found.values] == [[0.0] * 4] * 2


def test_training_is_in_train_mode_though_the_measurement_is_not():
    """With a momentum of 1 BatchNorm knows the batch by then: four samples of variance 1, up to Bessel's correction."""
    found = width_sweep(
        lambda n: nn.Sequential(nn.Linear(6, n), nn.BatchNorm1d(n, momentum=1.0, eps=1e-12)),
        [8, 16],
        vectors,
        seeds=1,
        after_steps=1,
        loss=Tensor.mean,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        train=False,
        steps=["0", "1"],
    )
    # float32: means over four numbers of size one.
    assert [value["1"].mean for value in found.values] == pytest.approx([math.sqrt(3 / 4)] * 2, rel=1e-5)


def test_a_change_cannot_be_asked_for_afterwards():
    found = width_sweep(perceptron, [4, 8], vectors, seeds=1, after_steps=1, loss=Tensor.mean)
    with pytest.raises(UsageError, match=re.escape("width_sweep(..., measure='activation_change')")):
        found.of("activation_change")


# Documentation ------------------------------------------------------------------------------------------------------

HOW_TO = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_how_to():
    """Its examples run, one after the other, and say what it shows, but for digits that depend on the machine."""
    blocks = re.findall(r"```(python|text)\n(.*?)```", HOW_TO, re.DOTALL)
    names: dict[str, object] = {}
    for (kind, text), (after, shown) in zip(blocks, [*blocks[1:], ("", "")]):
        if kind == "text":
            continue
        if after != "text":
            exec(text, names)
            continue
        with pytest.raises(TrainabilityFailure) as failure:
            exec(text, names)
        assert _without_digits(str(failure.value)) == _without_digits(shown)


def _without_digits(text: str) -> str:
    return re.sub(r"[\d.]+( ±| ×/÷)? *", "#", " ".join(text.split()))
