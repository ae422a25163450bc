"""Isolation: a measurement restores everything bit for bit, and its numbers depend on nothing else."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import models
import numpy as np
import pytest
import torch
from models import ARCHITECTURES, BATCH, WIDTH
from torch import Tensor, nn
from undisturbed import bits, look_around, look_at

from pytest_trainability import measure
from pytest_trainability.engine import isolation
from pytest_trainability.engine.isolation import (
    ModelState,
    default_device,
    derived_seed,
    digest,
    generator_of,
    generator_state,
    one_at_a_time,
    other_draws,
    preserved_generators,
    preserved_model,
    preserved_world,
    seeded,
    seeded_unless_seeded,
    uncompiled,
)
from pytest_trainability.errors import ModelError, TrainabilityError

EVERYTHING = ("lyapunov_max", "gradient_norm", "activation_rms", "nonfinite")


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    """Restore generators and settings that these tests change."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(mode=False)


class Busy(nn.Module):
    """Changes everything that a module can change in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)) for _ in range(3))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("nothing", None)
        self.calls = 0
        self.cache: Tensor | None = None
        self.kept = torch.zeros(WIDTH)
        self.scale = nn.Parameter(torch.tensor([1.0, float("nan")]))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.fresh = "made by the run"
        self.kept += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        for layer in self.layers:
            x = torch.tanh(layer(x)) + random.random() + np.random.rand() + torch.rand(())
        x = self.norm(x)
        self.cache = x
        with torch.no_grad():
            self.layers[0].bias.add_(1)
        return x


def busy() -> Busy:
    torch.manual_seed(0)
    return Busy()


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_the_model_is_restored(train: bool) -> None:
    """Parameters, buffers and attributes: values and identities."""
    model = busy()
    model(torch.randn(BATCH, WIDTH))
    model.cache = None
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), train=train, measures=EVERYTHING)
    assert look_at(model) == before


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in ARCHITECTURES])
def test_every_architecture_and_its_inputs_are_restored(case: models.Architecture) -> None:
    model, inputs = models.build(case)
    before, given = look_at(model), bits(inputs)
    measure(model, inputs, steps=case.steps, train=case.train, measures=("lyapunov_max", "gradient_norm"))
    assert look_at(model) == before
    assert bits(inputs) == given


def test_gradients_are_restored() -> None:
    """An accumulated gradient belongs to the user, and no other parameter gets one."""
    model = models.mlp()
    model[0].weight.grad = torch.full((WIDTH, WIDTH), 3.0)
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), measures=EVERYTHING)
    assert look_at(model) == before
    assert model[2].weight.grad is None


def test_gradients_that_the_model_clears_are_restored() -> None:
    """The model clears them in place, as ``zero_grad(set_to_none=False)`` in a training step does."""

    class Clearing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp()

        def forward(self, x: Tensor) -> Tensor:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            return self.layers(x)

    model = Clearing()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), measures=EVERYTHING)
    assert look_at(model) == before


def test_parameters_that_the_model_freezes_or_unfreezes_are_restored() -> None:
    class Freezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp()
            self.layers[2].bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.layers[0].bias.requires_grad_(False)
            self.layers[2].bias.requires_grad_(True)
            return self.layers(x)

    model = Freezing()
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), measures=EVERYTHING)
    assert look_at(model) == before


@pytest.mark.parametrize("name", ["update_ratio", "loss_drop"])
def test_a_graph_from_before_can_still_be_differentiated(name: str) -> None:
    """Optimizer steps are undone, and so are the version counters that autograd compares."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.linspace(-1, 1, 24).reshape(6, 4).sin()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    kept = model(x).square().sum()
    measure(model, x, loss=lambda output: (output - 1).square().mean(), measures=[name])
    kept.backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), expected))


def test_mixed_training_flags_are_restored() -> None:
    """A frozen BatchNorm in eval mode inside a model in train mode is measured in eval mode, and keeps it."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH).eval(), nn.Linear(WIDTH, WIDTH))
    seen: list[list[bool]] = []
    model[0].register_forward_hook(lambda *_: seen.append([m.training for m in model.modules()]))
    for train in (True, False):
        before = look_at(model)
        measure(model, torch.randn(BATCH, WIDTH), train=train)
        assert look_at(model) == before
    assert seen == [[True, True, False, True], [False] * 4]


def test_frozen_and_trainable_parameters_stay_so() -> None:
    model = models.frozen_backbone()
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH))
    assert look_at(model) == before


def test_hooks_of_the_user_see_one_forward_pass_and_stay() -> None:
    """The model runs once per measurement with the user's hooks, and no other hooks remain."""
    model = models.mlp()
    seen: list[str] = []
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), measures=EVERYTHING, exponents=3)
    assert seen == ["before", "after"]
    assert look_at(model) == before


def test_backward_hooks_of_the_user_do_not_change_the_numbers() -> None:
    """Full backward hooks wrap inputs and outputs in additional nodes."""
    torch.manual_seed(0)
    model = models.Tower(models.Block)
    x = torch.randn(BATCH, WIDTH)
    plain = measure(model, x, exponents=3)
    for block in model.blocks:
        block.register_full_backward_hook(lambda *_: None)
    hooked = measure(model, x, exponents=3)
    assert hooked.log_gain.values == pytest.approx(plain.log_gain.values, abs=1e-6)
    assert list(hooked.steps) == list(plain.steps)


class Failing(Busy):
    """Raises after changing everything."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        self.train(mode=not self.training)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        msg = "half-way"
        raise ValueError(msg)


def test_everything_is_restored_when_the_model_raises() -> None:
    """The exception of the model is the cause."""
    model, inputs = Failing(), torch.randn(BATCH, WIDTH)
    before, around = look_at(model), look_around()
    with pytest.raises(ModelError, match="half-way") as caught:
        measure(model, inputs)
    assert isinstance(caught.value.__cause__, ValueError)
    assert look_at(model) == before
    assert look_around() == around


class Interrupted(nn.Module):
    """Is interrupted by the user, in its forward pass or in its backward pass."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layers, self.where = models.mlp(), where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "forward":
            self.layers(x)
            raise KeyboardInterrupt
        x = self.layers(x)
        if self.where == "backward":
            x.register_hook(interrupt)
        return x


def interrupt(gradient: Tensor) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_everything_is_restored_when_the_user_interrupts(where: str) -> None:
    """The next measurement runs, also in another thread."""
    model, inputs = Interrupted(where), torch.randn(BATCH, WIDTH)
    before, around = look_at(model), look_around()
    with pytest.raises(KeyboardInterrupt):
        measure(model, inputs)
    assert look_at(model) == before
    assert look_around() == around
    assert len(in_threads(lambda: measure(models.mlp, inputs, seeds=1).log_gain.mean)) == 1


def test_everything_is_restored_when_the_steps_are_invalid() -> None:
    model, inputs = busy(), torch.randn(BATCH, WIDTH)
    before, around = look_at(model), look_around()
    with pytest.raises(TrainabilityError):
        measure(model, inputs, steps="no.such.name")
    assert look_at(model) == before
    assert look_around() == around


class Careless(nn.Sequential):
    """Changes global settings and does not restore them."""

    def forward(self, x: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.mkldnn.enabled = not torch.backends.mkldnn.enabled
        torch.backends.cuda.enable_flash_sdp(not torch.backends.cuda.flash_sdp_enabled())
        torch.backends.cuda.enable_math_sdp(not torch.backends.cuda.math_sdp_enabled())
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        return super().forward(x)


@pytest.mark.parametrize(
    "model", [models.mlp, busy, lambda: Careless(*models.mlp())], ids=["plain", "busy", "careless"]
)
@pytest.mark.parametrize("factory", [True, False], ids=["factory", "module"])
@pytest.mark.parametrize(
    "mode",
    [nullcontext, torch.no_grad, torch.enable_grad, torch.inference_mode],
    ids=["plain", "no_grad", "enable_grad", "inference_mode"],
)
def test_global_state_is_restored(
    model: Callable[[], nn.Module], factory: bool, mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Generators, modes and flags, in every gradient mode."""
    source = model if factory else model()
    inputs = torch.randn(BATCH, WIDTH)
    with mode():
        before = look_around()
        measure(source, inputs, seeds=2, measures=EVERYTHING)
        assert look_around() == before


def flags() -> list[object]:
    """Return settings that a model may change."""
    return [
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_anomaly_check_nan_enabled(),
    ]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_flags_of_the_process_are_restored() -> None:
    before = flags()
    measure(lambda: Careless(*models.mlp()), torch.randn(BATCH, WIDTH), seeds=1)
    assert flags() == before


def test_weights_that_autocast_has_kept_are_not_those_after_a_step() -> None:
    """The context of the user lasts longer than a measurement. The zero head wakes the layers behind it after one step."""

    def steps() -> dict[str, float]:
        return {name: value.mean for name, value in measure(model, x, loss=torch.sum).waking_step.items()}

    model, x = nn.Sequential(models.mlp(), nn.Linear(WIDTH, 2)), torch.randn(BATCH, WIDTH)
    nn.init.zeros_(model[-1].weight)
    outside = steps()
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        assert steps() == steps() == outside
        assert torch.is_autocast_cache_enabled()
    assert outside["0.0.weight"] == 1


class Doubling(nn.Sequential):
    """Changes the default dtype."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch.set_default_dtype(torch.float64)
        return y


def test_every_seed_starts_from_the_same_global_state() -> None:
    """Settings that one seed's model changes are restored before the next seed."""
    result = measure(lambda: Doubling(*models.mlp()), torch.ones(BATCH, WIDTH), seeds=2)
    alone = measure(lambda: Doubling(*models.mlp()), torch.ones(BATCH, WIDTH), seeds=[1])
    assert result.log_gain.values[1:] == alone.log_gain.values
    assert torch.get_default_dtype() == torch.float32


# In separate processes: PyTorch refuses to read the old settings after old and new ones were mixed.
PRECISION = """
import torch
from torch import nn
from pytest_trainability import measure
{before}
first = look()
measure(lambda: nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), torch.ones(2, 4), seeds=1)
assert look() == first, (first, look())
"""


@pytest.mark.parametrize(
    "before",
    [
        "torch.set_float32_matmul_precision('high'); look = torch.get_float32_matmul_precision",
        "torch.backends.fp32_precision = 'tf32'; look = lambda: torch.backends.fp32_precision",
        pytest.param(
            "torch.backends.cuda.matmul.fp32_precision = 'tf32'; look = lambda: torch.backends.cuda.matmul.fp32_precision",
            marks=pytest.mark.skipif(
                not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has no such setting before 2.9"
            ),
        ),
    ],
    ids=["old", "new-global", "new-matmul"],
)
def test_float32_precision_is_restored(before: str) -> None:
    """With each of PyTorch's three interfaces, which keeps working."""
    script = PRECISION.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_mode_does_not_change_the_numbers(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    """Nor do inputs that were created in that mode."""
    plain = measure(models.mlp, torch.ones(BATCH, WIDTH), seeds=2)
    with mode():
        other = measure(models.mlp, torch.ones(BATCH, WIDTH), seeds=2)
    assert other.log_gain.values == plain.log_gain.values


def test_the_users_default_dtype_is_kept_and_used_by_the_factory() -> None:
    torch.set_default_dtype(torch.float64)
    result = measure(models.mlp, torch.randn(BATCH, WIDTH), seeds=2)
    assert torch.get_default_dtype() == torch.float64
    assert result.dtype == "float64"


def test_the_users_default_device_does_not_change_the_numbers() -> None:
    """A finished module on the CPU is measured on the CPU (``meta`` stands in for CUDA)."""
    model, inputs = models.mlp(), torch.randn(BATCH, WIDTH)
    wanted = ("lyapunov_max", "max_ftle", "linear_steps", "interacting_samples")
    plain = measure(model, inputs, measures=wanted)
    with torch.device("meta"):
        other = measure(model, inputs, measures=wanted)
    assert other.log_gain.values == plain.log_gain.values
    assert other.max_ftle.values == plain.max_ftle.values


class Masking(nn.Module):
    """Makes a tensor in its forward pass without a device, as most models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = models.mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * torch.ones(WIDTH)


def test_a_factory_and_a_function_of_inputs_do_not_depend_on_the_default_device() -> None:
    plain = measure(Masking, lambda generator: torch.randn(BATCH, WIDTH, generator=generator), seeds=2)
    with torch.device("meta"):
        other = measure(Masking, lambda generator: torch.randn(BATCH, WIDTH, generator=generator), seeds=2)
    assert other.log_gain.values == plain.log_gain.values


def test_the_default_device_is_replaced_by_another_kind_only() -> None:
    cpu = torch.device("cpu")
    with default_device(cpu):
        assert torch.ones(1).device == cpu
    with torch.device("meta"):
        with default_device(cpu):
            assert torch.ones(1).device == cpu
        with default_device(torch.device("meta")):
            assert torch.ones(1).is_meta


def test_thread_count_is_kept() -> None:
    before = torch.get_num_threads()
    measure(models.mlp, torch.randn(BATCH, WIDTH), seeds=1)
    assert torch.get_num_threads() == before


# Inputs ----------------------------------------------------------------------------------------------------------


class Overwriting(nn.Module):
    """Writes into its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, ids: Tensor, extra: dict[str, Any]) -> Tensor:
        x.mul_(2)
        ids.add_(1)
        extra["mask"].fill_(1.0)
        extra["new"] = ids
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x * extra["mask"]


def test_inputs_are_restored() -> None:
    """Even if the model writes into them; every seed gets the same ones."""
    x, ids, mask = torch.randn(BATCH, WIDTH), torch.arange(BATCH), torch.zeros(BATCH, WIDTH)
    extra = {"mask": mask}
    before = bits([x, ids, mask])
    measure(Overwriting, (x, ids, extra), seeds=2, measures=EVERYTHING)
    assert bits([x, ids, mask]) == before
    assert list(extra) == ["mask"]
    assert not x.requires_grad


def test_an_input_that_requires_grad_gets_no_gradient() -> None:
    x = torch.randn(BATCH, WIDTH, requires_grad=True)
    measure(models.mlp, x, seeds=1)
    assert x.grad is None
    assert x.requires_grad


def test_the_target_is_restored() -> None:
    """A loss that writes into its target changes neither the user's tensor nor that of the next seed."""
    target = torch.ones(BATCH, WIDTH)
    seen: list[float] = []

    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        seen.append(float(wanted.sum()))
        wanted.mul_(2)
        return (output - wanted).square().mean()

    measure(models.mlp, torch.randn(BATCH, WIDTH), loss=loss, target=target, seeds=3)
    assert bits(target) == bits(torch.ones(BATCH, WIDTH))
    assert len(set(seen)) == 1


# The same numbers ------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Dropout, random weights and noise from three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(models.Dropped() for _ in range(3))
        self.shift = random.random() + np.random.rand()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x + self.shift + random.random() + float(np.random.rand()) + torch.randn(()))
        return x


def noisy_inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=generator) + torch.rand(()) + random.random()


def numbers(**settings: Any) -> dict[int, Any]:
    result = measure(Noisy, noisy_inputs, **{"seeds": [3], **settings})
    columns = zip(result.log_gain.values, *(e.values for e in result.gradient_norm.values()))
    return dict(zip(result.seeds, columns))


def test_the_same_seed_gives_the_same_numbers() -> None:
    """To the last bit, twice in one process."""
    assert numbers() == numbers()


def test_numbers_do_not_depend_on_what_was_drawn_before() -> None:
    """Test order and other plugins draw from the global generators."""
    first = numbers()
    torch.manual_seed(99)
    torch.rand(17)
    random.seed(99)
    np.random.seed(99)
    assert numbers() == first


def test_numbers_do_not_depend_on_the_other_seeds() -> None:
    """A seed may be measured alone, first, in the middle or last."""
    alone = numbers()[3]
    for seeds in ([3, 0, 1], [0, 3, 1], [7, 1, 3]):
        assert numbers(seeds=seeds)[3] == alone


def test_numbers_do_not_depend_on_what_else_is_measured() -> None:
    """A measure that is read later repeats the same run."""
    result = measure(Noisy, noisy_inputs, seeds=[3, 4])
    at_once = measure(Noisy, noisy_inputs, seeds=[3, 4], measures=("relative_gradient_norm",))
    assert {k: e.values for k, e in result.relative_gradient_norm.items()} == {
        k: e.values for k, e in at_once.relative_gradient_norm.items()
    }


def test_different_seeds_differ() -> None:
    """In weights, inputs and cotangents."""
    result = measure(Noisy, noisy_inputs, seeds=4)
    assert len(set(result.log_gain.values)) == 4


def test_finished_module_repeats_its_numbers_and_depends_on_no_earlier_measurement() -> None:
    """Statistics that a run changes are restored before the next one."""
    model = busy()
    model.scale = nn.Parameter(torch.ones(2))
    x = torch.randn(BATCH, WIDTH)
    assert measure(model, x).log_gain.values == measure(model, x).log_gain.values


def test_a_measure_of_a_model_that_renormalizes_its_embedding_can_be_read_later() -> None:
    """``max_norm`` changes the weight in the forward pass. The measurement restored it, so that the model is unchanged."""
    model = nn.Sequential(nn.Embedding(11, WIDTH, max_norm=0.5), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    before = look_at(model)
    result = measure(model, torch.arange(6).reshape(2, 3))
    assert look_at(model) == before
    assert result.relative_gradient_norm.min >= 0


def test_a_measure_cannot_be_read_after_the_model_was_trained() -> None:
    """Its numbers would belong to another model."""
    model = models.mlp()
    result = measure(model, torch.randn(BATCH, WIDTH))
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(TrainabilityError, match="have changed since"):
        _ = result.relative_gradient_norm


def test_a_measure_that_is_read_after_the_inputs_changed_is_refused_or_the_same() -> None:
    """A batch may be refilled in place. One result must not mix two batches."""
    x = torch.randn(BATCH, WIDTH)
    at_once = measure(models.mlp, x, seeds=1, measures=("relative_gradient_norm",))
    result = measure(models.mlp, x, seeds=1)
    x.mul_(100)
    try:
        later = result.relative_gradient_norm
    except TrainabilityError:
        return
    assert later.max.values == at_once.relative_gradient_norm.max.values


def test_the_first_exponent_does_not_depend_on_their_number() -> None:
    """Up to the rounding of a QR factorization in float32."""
    x = torch.ones(BATCH, WIDTH)
    one, eight = (measure(models.mlp, x, seeds=[2], exponents=k) for k in (1, 5))
    assert eight.log_gain.values == pytest.approx(one.log_gain.values, abs=1e-5)


def test_derived_seeds_are_fixed_and_distinct() -> None:
    """Stored baselines depend on them."""
    assert derived_seed(0, "inputs") == 8143717454296392468
    assert derived_seed(0, "inputs") == derived_seed(0, "inputs")
    drawn = {derived_seed(seed, purpose) for seed in range(50) for purpose in ("inputs", "forward", "cotangent 0")}
    assert len(drawn) == 150
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_finished_module_in_another_dtype_is_copied() -> None:
    """The user's module stays float32. A tensor that it keeps from an earlier run does not prevent copying."""
    model = busy()
    model.scale = nn.Parameter(torch.ones(2))
    model(torch.randn(BATCH, WIDTH))
    assert model.cache is not None and model.cache.requires_grad
    result = measure(model, torch.randn(BATCH, WIDTH), dtype="float64")
    assert result.dtype == "float64"
    assert next(model.parameters()).dtype == torch.float32


def test_finished_module_with_old_weight_norm_in_another_dtype() -> None:
    """The old function stores the computed weight as an attribute, which ``copy.deepcopy`` refuses."""
    model = models.wrapped(nn.utils.weight_norm)()
    with warnings.catch_warnings(), pytest.raises(RuntimeError):
        copy.deepcopy(model)
    assert measure(model, torch.randn(BATCH, WIDTH), dtype="float64").dtype == "float64"


def test_a_model_that_its_factory_keeps_is_restored() -> None:
    """Other code holds the model, which therefore counts as the user's."""
    kept = busy()
    before = look_at(kept)
    measure(lambda: kept, torch.randn(BATCH, WIDTH), seeds=1)
    assert look_at(kept) == before


def test_a_model_that_its_factory_keeps_is_cast_back() -> None:
    """Casting a model to another dtype works in place."""
    kept = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    measure(lambda: kept, torch.randn(4, 3), seeds=1, dtype="float64")
    after = kept.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )


# Function by function ---------------------------------------------------------------------------------------------


def drawn() -> list[float]:
    """Draw one number from each global generator."""
    return [float(torch.rand(())), random.random(), float(np.random.rand())]


def test_seeding_sets_all_three_generators() -> None:
    seeded(2**40)
    first = drawn()
    seeded(2**40)
    assert drawn() == first
    seeded(1)
    assert all(one != other for one, other in zip(drawn(), first))


def test_a_generator_for_a_purpose_depends_on_seed_and_purpose() -> None:
    first, again, other, seed = (
        float(torch.rand((), generator=generator_of(*key))) for key in [(0, "a"), (0, "a"), (0, "b"), (1, "a")]
    )
    assert first == again and len({first, other, seed}) == 3


def test_generators_are_restored() -> None:
    seeded(0)
    expected = drawn()
    seeded(0)
    with preserved_generators():
        seeded(5)
        drawn()
    assert drawn() == expected


def test_a_generator_that_the_code_seeds_keeps_its_seed() -> None:
    torch.manual_seed(3)
    expected = float(torch.rand(()))
    torch.manual_seed(3)
    with seeded_unless_seeded(0):
        inside = float(torch.rand(()))
    assert float(torch.rand(())) == expected != inside
    with seeded_unless_seeded(0):
        torch.manual_seed(3)
    assert float(torch.rand(())) == expected
    torch.manual_seed(3)
    with suppress(KeyError), seeded_unless_seeded(0):
        raise KeyError
    assert float(torch.rand(())) == expected


def test_a_digest_distinguishes_parts_and_their_order() -> None:
    assert digest(b"a", b"b") == digest(b"a", b"b")
    assert len({digest(b"a", b"b"), digest(b"b", b"a"), digest(b"ab"), digest()}) == 4
    assert len(digest(b"a")) == 8 and int(digest(b"a"), 16) >= 0


def test_the_state_of_a_generator_changes_with_every_number() -> None:
    before = generator_state()
    assert generator_state() == generator_state(torch.device("cpu")) == before
    torch.rand(())
    assert generator_state() != before


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.normal(size=3)], ids=["random", "numpy"])
def test_draws_from_other_generators_are_noticed(draw: Callable[[], object]) -> None:
    states = []
    with preserved_generators():
        for seed, draws in ((3, 0), (3, 1), (3, 1), (3, 2), (4, 1)):
            seeded(seed)
            for _ in range(draws):
                draw()
            states.append(other_draws(seed))
    assert states[0] == b"" and states[1] == states[2]
    assert len(set(states)) == 4


def test_a_state_of_numpy_from_which_nothing_was_drawn_is_not_written_as_text() -> None:
    """The text of a state takes milliseconds, at every build."""
    written = []

    def note(number: int) -> str:
        written.append(number)
        return str(number)

    with preserved_generators(), np.printoptions(formatter={"int_kind": note}):
        seeded(5)
        assert other_draws(5) == b"" and not written
        np.random.normal()
        assert other_draws(5) and written


def test_weights_that_numpy_draws_count_as_other_draws() -> None:
    """A baseline then expects other numbers, although PyTorch's generator drew as many."""

    def build(before: int) -> nn.Module:
        layer = nn.Linear(4, 4)
        np.random.normal(size=before)
        layer.weight.data = torch.from_numpy(np.random.normal(size=(4, 4))).float()
        return layer

    inputs = torch.randn(2, 4)
    runs = [measure(partial(build, n), inputs, seeds=2, device="cpu")._seed_runs.common for n in (0, 0, 5)]
    weights, again, others = ({draw.split()[0] for draw in run.draws} for run in runs)
    assert weights == again and not weights & others


def test_draws_of_the_forward_pass_count_whichever_generator_they_are_from() -> None:
    class Net(nn.Linear):
        def __init__(self, draws: int) -> None:
            super().__init__(4, 4)
            self.draws = draws

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + sum(random.random() for _ in range(self.draws)))

    inputs = torch.randn(2, 4)
    runs = [measure(partial(Net, n), inputs, seeds=2, device="cpu")._seed_runs.common for n in (0, 0, 1)]
    assert runs[0].draws == runs[1].draws
    assert [draw.split()[0] for draw in runs[0].draws] == [draw.split()[0] for draw in runs[2].draws]
    assert all(a.split()[1] != b.split()[1] for a, b in zip(runs[0].draws, runs[2].draws))


def test_gradients_are_enabled_and_tf32_is_disabled_inside() -> None:
    allowed = torch.backends.cudnn.allow_tf32
    with torch.inference_mode(), preserved_world():
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert (torch.ones(1, requires_grad=True) * 2).requires_grad
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_a_module_is_restored_with_its_attributes_submodules_and_hooks() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].counter = 1
    before = look_at(model)
    with suppress(ValueError), preserved_model(model):
        model[0].counter = 2
        model[0].added = "new"
        model[0].weight.data.zero_()
        model[0].bias.grad = torch.ones(2)
        model[0].register_forward_hook(lambda *_: None)
        model[0].weight = nn.Parameter(torch.ones(2, 2))
        model.append(nn.Linear(2, 2))
        model.eval()
        raise ValueError
    assert look_at(model) == before


def test_items_of_containers_in_attributes_are_restored() -> None:
    """A model may keep a history, a cache of keys and values, or counts."""
    model = nn.Sequential(nn.Linear(2, 2))
    layer, first = model[0], torch.zeros(2)
    layer.history, layer.cache, layer.counts = [1.0], {"keys": [first]}, Counter("ab")
    layer.window, layer.seen, layer.nested = deque([1, 2], maxlen=2), {3}, ({"steps": deque([1])},)
    containers = [layer.history, layer.cache, layer.cache["keys"], layer.nested[0]["steps"]]
    with preserved_model(model):
        layer.history.append(2.0)
        layer.cache["keys"].append(torch.ones(2))
        layer.cache["values"] = []
        layer.cache["keys"][0].add_(1)
        layer.counts["a"] += 5
        layer.window.append(3)
        layer.seen.clear()
        layer.nested[0]["steps"].append(2)
    assert containers == [[1.0], {"keys": [first]}, [first], deque([1])]
    assert torch.equal(first, torch.zeros(2))
    assert (layer.counts, layer.window, layer.seen) == (Counter("ab"), deque([1, 2]), {3})
    assert all(
        now is then for now, then in zip([layer.history, layer.cache, layer.cache["keys"]], containers[:3], strict=True)
    )


def test_a_history_does_not_grow_when_a_finished_module_is_measured() -> None:
    class Recorder(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.history: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.history.append(super().forward(x))
            return self.history[-1]

    model = Recorder()
    measure(model, torch.randn(2, 3))
    assert model.history == []


def test_a_module_that_was_cast_is_restored() -> None:
    model = nn.Linear(2, 2)
    before = look_at(model)
    with preserved_model(model):
        model.double()
        model.weight.data.mul_(3)
    assert look_at(model) == before


def test_a_module_returns_to_one_state_several_times() -> None:
    """A sparse tensor, which is replaced, gets a copy that a later change does not reach."""
    model = nn.BatchNorm1d(3)
    before, state = look_at(model), ModelState(model)
    held = nn.Module()
    held.register_buffer("sparse", torch.eye(3).to_sparse())
    of_held = ModelState(held)
    for _ in range(3):
        with state.kept(), of_held.kept():
            model.double()
            model.weight.data.mul_(3)
        with state.kept(), of_held.kept():
            model(torch.randn(5, 3))
            held.sparse.data.mul_(2)
            model.weight.data.mul_(3)
        assert look_at(model) == before
        assert torch.equal(held.sparse.to_dense(), torch.eye(3))


def test_a_tensor_created_in_inference_mode_is_restored() -> None:
    """It has no version counter."""
    model = nn.Linear(2, 2)
    with torch.inference_mode():
        model.register_buffer("table", torch.ones(2))
    with torch.inference_mode(), preserved_model(model):
        model.table.add_(1)
    assert model.table.tolist() == [1, 1]


def test_a_module_of_inference_mode_is_left_as_it_was() -> None:
    """The error of the body is raised, and none of restoring."""
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    before = look_at(model)
    with pytest.raises(KeyError), preserved_model(model):
        raise KeyError
    assert look_at(model) == before


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=["coo", "csr"])
def test_sparse_buffers_are_restored(layout: torch.layout) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "in beta state"
        model = nn.Linear(2, 2)
        model.register_buffer("graph", torch.eye(2).to_sparse(layout=layout))
        with preserved_model(model):
            model.graph.values().mul_(3) if layout is torch.sparse_csr else model.graph.mul_(3)
        assert model.graph.to_dense().tolist() == [[1, 0], [0, 1]]


def test_tensors_without_numbers_are_left_alone() -> None:
    """A buffer and an attribute on the meta device."""
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.empty(3, device="meta"))
    model.shape_of = torch.empty(4, device="meta")
    table, shape = model.table, model.shape_of
    with preserved_model(model):
        model.weight.data.zero_()
    assert model.table is table and model.shape_of is shape
    assert model.weight.abs().sum() > 0


def test_uncompiled_does_nothing_without_the_compiler() -> None:
    with uncompiled() as found:
        assert found is None or "torch._dynamo" in sys.modules


# Threads ---------------------------------------------------------------------------------------------------------


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Return the results of functions that run at the same time, each in a thread."""
    results: dict[int, Any] = {}

    def keep(number: int, call: Callable[[], Any]) -> None:
        results[number] = call()

    threads = [threading.Thread(target=keep, args=(number, call)) for number, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in sorted(results)]


class Counted(nn.Sequential):
    """Counts how many of its kind run at the same time, and gives other threads the time to begin."""

    running = 0
    most = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.running += 1
        Counted.most = max(Counted.most, Counted.running)
        time.sleep(0.02)
        found = super().forward(x) + torch.rand(()) * 0
        Counted.running -= 1
        return found


def measured_at_once() -> tuple[list[Any], int]:
    """Return the log gains of three depths, measured in three threads, and how many models ran at the same time at most."""
    Counted.running = Counted.most = 0
    inputs = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)

    def gain(depth: int) -> tuple[float, ...]:
        return measure(lambda: Counted(*models.mlp(depth)), inputs, seeds=3).log_gain.values

    return in_threads(*(lambda depth=depth: gain(depth) for depth in (2, 3, 4))), Counted.most  # type: ignore[misc]


def test_threads_get_the_numbers_of_one_thread_and_leave_the_generators_alone() -> None:
    inputs = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
    expected = [measure(lambda d=d: models.mlp(d), inputs, seeds=3).log_gain.values for d in (2, 3, 4)]  # type: ignore[misc]
    around = look_around()
    assert measured_at_once() == (expected, 1)
    assert look_around() == around


def test_threads_that_run_at_the_same_time_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: no lock."""
    monkeypatch.setattr(isolation, "_lock", nullcontext())
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert measured_at_once()[1] == 1
    assert Counted.most > 1


def test_threads_may_measure_one_finished_module() -> None:
    """Its BatchNorm changes in every run, which the other threads must not see."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
    inputs = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
    before = look_at(model)

    def gains() -> tuple[float, float]:
        result = measure(model, inputs)
        return result.log_gain.mean, result.forward_log_gain.mean

    expected = gains()
    assert in_threads(*[gains] * 3) == [expected] * 3
    assert look_at(model) == before


def test_a_factory_and_a_loss_may_measure_other_models() -> None:
    """In the thread that measures, which holds the lock already."""
    inputs = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
    inner = measure(models.mlp, inputs, seeds=1).log_gain.mean
    found: list[float] = []

    def scaled() -> nn.Module:
        found.append(measure(models.mlp, inputs, seeds=1).log_gain.mean)
        return models.mlp()

    def loss(output: Tensor) -> Tensor:
        found.append(measure(models.mlp, inputs, seeds=1).log_gain.mean)
        return output.sum()

    outer = measure(scaled, inputs, loss=loss, seeds=1).log_gain.mean
    assert outer == pytest.approx(inner)
    assert found == [inner] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_during_a_run_can_measure() -> None:
    """The thread that holds the lock does not exist in the new process."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with one_at_a_time():
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # "may lead to deadlocks in the child"
        child = os.fork()
    if not child:
        os._exit(0 if isolation._lock.acquire(timeout=10) else 1)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


CONTAINERS: dict[str, Callable[[], Any]] = {
    "list": lambda: ["a", "b", "b"],
    "set": lambda: {"a", "b"},
    "deque": lambda: deque("abb", maxlen=3),
    "dict": lambda: {"a": 2, "b": 0},
    "OrderedDict": lambda: OrderedDict(a=2, b=0),
    "defaultdict": lambda: defaultdict(int, a=2, b=0),
    "Counter": lambda: Counter(a=2, b=0),
}


def emptied(container: Any) -> None:
    container.clear()


def grown(container: Any) -> None:
    if isinstance(container, dict):
        container["new"] = 1
    else:
        (container.add if isinstance(container, set) else container.append)("new")


def reordered(container: Any) -> None:
    kept = [*container.items()] if isinstance(container, dict) else [*container]
    container.clear()
    if isinstance(container, dict):
        for key, value in reversed(kept):
            container[key] = value
    else:
        (container.update if isinstance(container, set) else container.extend)(reversed(kept))


@pytest.mark.parametrize("change", [emptied, grown, reordered])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_of_every_kind_get_their_items_back_in_order(kind: str, change: Callable[[Any], None]) -> None:
    layer = nn.Linear(1, 1)
    layer.held = held = CONTAINERS[kind]()
    expected = CONTAINERS[kind]()
    with preserved_model(layer):
        change(held)
    assert layer.held is held and held == expected and len(held) == len(expected)
    assert isinstance(held, set) or [*held] == [*expected]
    if isinstance(held, dict):
        assert [*held.items()] == [*expected.items()]
        # Where its order is kept elsewhere, it can be changed again.
        held["new"] = 1
        assert [*held] == [*expected, "new"]
