"""No harm: whatever a measurement touches is afterwards bit for bit what it was, and its numbers depend on nothing else."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import models
import numpy as np
import pytest
import torch
from models import ARCHITECTURES, BATCH, WIDTH
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.isolation import derived_seed
from pytest_trainability.engine.jacobian.vjp import random_cotangents
from pytest_trainability.errors import ModelError, TrainabilityError

BY_ID = {case.id: case for case in ARCHITECTURES}
EVERYTHING = ("lyapunov_max", "gradient_norm", "activation_rms", "nonfinite")


def bits(value: Any) -> Any:
    """Make anything comparable to the last bit, NaN included."""
    if isinstance(value, Tensor):
        flat = value.detach().clone().contiguous().reshape(-1)
        return value.dtype, tuple(value.shape), flat.view(torch.uint8).tolist() if flat.numel() else []
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    return value


def look_at(model: nn.Module) -> dict[str, Any]:
    """Everything that a user could see of a model."""
    seen: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in {"_parameters", "_buffers"}:
                seen[f"{path}.{name}"] = {k: (id(v), bits(v)) for k, v in value.items() if v is not None}
            elif name == "_modules" or name.endswith("_hooks"):
                seen[f"{path}.{name}"] = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, Tensor):
                seen[f"{path}.{name}"] = id(value), bits(value)
            else:
                seen[f"{path}.{name}"] = repr(value)
    for name, p in model.named_parameters():
        seen[f"{name}.grad"] = None if p.grad is None else (id(p.grad), bits(p.grad))
        seen[f"{name}.requires_grad"] = p.requires_grad
        seen[f"{name}.hooks"] = repr(p._backward_hooks)
    return seen


def look_around() -> dict[str, Any]:
    """Everything global that a model can change or be changed by."""
    return {
        "torch": bits(torch.get_rng_state()),
        "random": random.getstate(),
        "numpy": bits(np.random.get_state()),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "precision": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
        "global hooks": len(torch.nn.modules.module._global_forward_hooks),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    """These tests draw and set things; the next one starts where this one did."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(mode=False)


class Busy(nn.Module):
    """Changes all that a module can change in a forward pass."""

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
def test_model_is_left_as_it_was(train: bool) -> None:
    """Parameters, buffers, attributes: values and identities."""
    model = busy()
    model(torch.randn(BATCH, WIDTH))
    model.cache = None
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), train=train, measures=EVERYTHING)
    assert look_at(model) == before


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in ARCHITECTURES])
def test_every_architecture_is_left_as_it_was(case: models.Architecture) -> None:
    """Inputs, too."""
    model, inputs = models.build(case)
    before, given = look_at(model), bits(inputs)
    measure(model, inputs, steps=case.steps, train=case.train, measures=("lyapunov_max", "gradient_norm"))
    assert look_at(model) == before
    assert bits(inputs) == given


def test_gradients_are_left_as_they_were() -> None:
    """An accumulated gradient is the user's; none is put where there was none."""
    model = models.mlp()
    model[0].weight.grad = torch.full((WIDTH, WIDTH), 3.0)
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), measures=EVERYTHING)
    assert look_at(model) == before
    assert model[2].weight.grad is None


def test_gradients_that_the_model_itself_clears_are_left_as_they_were() -> None:
    """In place, as an optimizer's `zero_grad(set_to_none=False)` in a training step does."""

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


def test_what_the_model_itself_freezes_or_thaws_is_left_as_it_was() -> None:
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
def test_graph_that_the_user_has_kept_can_be_differentiated(name: str) -> None:
    """Optimizer steps are taken back, and so is the number of changes that autograd compares."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.linspace(-1, 1, 24).reshape(6, 4).sin()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    kept = model(x).square().sum()
    measure(model, x, loss=lambda output: (output - 1).square().mean(), measures=[name])
    kept.backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), expected))


def test_mixed_training_flags_are_left_as_they_were() -> None:
    """A frozen BatchNorm in eval mode inside a model in train mode is measured like that, and stays."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH).eval(), nn.Linear(WIDTH, WIDTH))
    seen: list[list[bool]] = []
    model[0].register_forward_hook(lambda *_: seen.append([m.training for m in model.modules()]))
    for train in (True, False):
        before = look_at(model)
        measure(model, torch.randn(BATCH, WIDTH), train=train)
        assert look_at(model) == before
    assert seen == [[True, True, False, True], [False] * 4]


def test_frozen_parameters_stay_frozen() -> None:
    """And trainable ones trainable."""
    model = models.frozen_backbone()
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH))
    assert look_at(model) == before


def test_hooks_of_the_user_see_one_forward_pass_and_stay() -> None:
    """The model runs once per measurement, under the user's hooks, and ours are gone afterwards."""
    model = models.mlp()
    seen: list[str] = []
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    before = look_at(model)
    measure(model, torch.randn(BATCH, WIDTH), measures=EVERYTHING, exponents=3)
    assert seen == ["before", "after"]
    assert look_at(model) == before


def test_backward_hooks_of_the_user_do_not_change_the_numbers() -> None:
    """Full backward hooks wrap inputs and outputs in nodes of their own."""
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
    """Raises after it has changed everything."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        self.train(mode=not self.training)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        msg = "half-way"
        raise ValueError(msg)


def test_nothing_is_left_behind_when_the_model_raises() -> None:
    """The user's own exception is the cause, the world is as before."""
    model, inputs = Failing(), torch.randn(BATCH, WIDTH)
    before, around = look_at(model), look_around()
    with pytest.raises(ModelError, match="half-way") as caught:
        measure(model, inputs)
    assert isinstance(caught.value.__cause__, ValueError)
    assert look_at(model) == before
    assert look_around() == around


def test_nothing_is_left_behind_when_the_cut_fails() -> None:
    """Neither on errors of ours."""
    model, inputs = busy(), torch.randn(BATCH, WIDTH)
    before, around = look_at(model), look_around()
    with pytest.raises(TrainabilityError):
        measure(model, inputs, steps="no.such.name")
    assert look_at(model) == before
    assert look_around() == around


class Careless(nn.Sequential):
    """Changes global settings and forgets them."""

    def forward(self, x: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
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
def test_world_is_left_as_it_was(
    model: Callable[[], nn.Module], factory: bool, mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Generators, modes and flags, under every grad mode."""
    source = model if factory else model()
    inputs = torch.randn(BATCH, WIDTH)
    with mode():
        before = look_around()
        measure(source, inputs, seeds=2, measures=EVERYTHING)
        assert look_around() == before


class Doubling(nn.Sequential):
    """Leaves another default type behind."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch.set_default_dtype(torch.float64)
        return y


def test_every_seed_starts_from_the_same_world() -> None:
    """What one seed's model does to global settings must not reach the next one's."""
    result = measure(lambda: Doubling(*models.mlp()), torch.ones(BATCH, WIDTH), seeds=2)
    alone = measure(lambda: Doubling(*models.mlp()), torch.ones(BATCH, WIDTH), seeds=[1])
    assert result.log_gain.values[1:] == alone.log_gain.values
    assert torch.get_default_dtype() == torch.float32


# In processes of their own: PyTorch refuses to read the old settings once old and new ones were mixed.
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
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; look = lambda: torch.backends.cuda.matmul.fp32_precision",
    ],
    ids=["old", "new-global", "new-matmul"],
)
def test_float32_precision_is_left_as_it_was(before: str) -> None:
    """Whichever of PyTorch's three interfaces the user chose, it still works and says the same."""
    script = PRECISION.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_mode_does_not_change_the_numbers(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    """Also for inputs that were made under it."""
    plain = measure(models.mlp, torch.ones(BATCH, WIDTH), seeds=2)
    with mode():
        other = measure(models.mlp, torch.ones(BATCH, WIDTH), seeds=2)
    assert other.log_gain.values == plain.log_gain.values


def test_default_dtype_of_the_user_is_kept() -> None:
    """And used by the factory."""
    torch.set_default_dtype(torch.float64)
    result = measure(models.mlp, torch.randn(BATCH, WIDTH), seeds=2)
    assert torch.get_default_dtype() == torch.float64
    assert result.dtype == "float64"


def test_default_device_of_the_user_does_not_reach_our_draws() -> None:
    """A finished module on the CPU is measured there, wherever new tensors would go (``meta`` stands in for CUDA)."""
    model, inputs = models.mlp(), torch.randn(BATCH, WIDTH)
    plain = measure(model, inputs)
    with torch.device("meta"):
        other = measure(model, inputs)
    assert other.log_gain.values == plain.log_gain.values


def test_thread_count_is_kept() -> None:
    """Whatever it was."""
    before = torch.get_num_threads()
    measure(models.mlp, torch.randn(BATCH, WIDTH), seeds=1)
    assert torch.get_num_threads() == before


# Inputs ----------------------------------------------------------------------------------------------------------


class Overwriting(nn.Module):
    """Writes into whatever it is given."""

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


def test_inputs_are_left_as_they_were() -> None:
    """Also where the model writes into them; every seed gets the same ones."""
    x, ids, mask = torch.randn(BATCH, WIDTH), torch.arange(BATCH), torch.zeros(BATCH, WIDTH)
    extra = {"mask": mask}
    before = bits([x, ids, mask])
    measure(Overwriting, (x, ids, extra), seeds=2, measures=EVERYTHING)
    assert bits([x, ids, mask]) == before
    assert list(extra) == ["mask"]
    assert not x.requires_grad


def test_input_that_requires_grad_gets_none() -> None:
    """A leaf of the user's own."""
    x = torch.randn(BATCH, WIDTH, requires_grad=True)
    measure(models.mlp, x, seeds=1)
    assert x.grad is None
    assert x.requires_grad


def test_target_is_left_as_it_was() -> None:
    """A loss that writes into its target must not change the user's tensor, nor what the next seed sees."""
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


def test_same_seed_same_numbers() -> None:
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
    """A seed measured alone, first, in the middle or last."""
    alone = numbers()[3]
    for seeds in ([3, 0, 1], [0, 3, 1], [7, 1, 3]):
        assert numbers(seeds=seeds)[3] == alone


def test_numbers_do_not_depend_on_what_else_is_measured() -> None:
    """A measure read later repeats the same run."""
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
    """Statistics that a run moves are put back before the next one."""
    model = busy()
    model.scale = nn.Parameter(torch.ones(2))
    x = torch.randn(BATCH, WIDTH)
    assert measure(model, x).log_gain.values == measure(model, x).log_gain.values


def test_measure_read_later_of_a_model_that_renormalises_its_embedding() -> None:
    """``max_norm`` changes the weight in the forward pass. The measurement itself did that, and put it back."""
    model = nn.Sequential(nn.Embedding(11, WIDTH, max_norm=0.5), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    before = look_at(model)
    result = measure(model, torch.arange(6).reshape(2, 3))
    assert look_at(model) == before
    assert result.relative_gradient_norm.min >= 0


def test_measure_read_later_of_a_model_that_was_trained_since_is_refused() -> None:
    """Its numbers would belong to another model."""
    model = models.mlp()
    result = measure(model, torch.randn(BATCH, WIDTH))
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(TrainabilityError, match="the inputs have changed"):
        _ = result.relative_gradient_norm


def test_measure_read_later_of_inputs_that_changed_since_is_refused_or_the_same() -> None:
    """A batch that is refilled in place: the later run must not mix two batches in one result."""
    x = torch.randn(BATCH, WIDTH)
    at_once = measure(models.mlp, x, seeds=1, measures=("relative_gradient_norm",))
    result = measure(models.mlp, x, seeds=1)
    x.mul_(100)
    try:
        later = result.relative_gradient_norm
    except TrainabilityError:
        return
    assert later.max.values == at_once.relative_gradient_norm.max.values


def test_first_cotangents_are_the_same_whichever_number_is_drawn() -> None:
    """So that asking for more exponents changes none of the others' draws."""
    chain = models.cut_case(BY_ID["lstm-loop"]).chain
    one, eight = (random_cotangents(chain, count, 5) for count in (1, 8))
    for a, b in zip(one, eight):
        assert torch.equal(a[0], b[0])
        assert not torch.equal(b[0], b[1])


def test_first_exponent_is_the_same_whichever_number_is_asked_for() -> None:
    """Up to the rounding of a QR factorisation in float32."""
    x = torch.ones(BATCH, WIDTH)
    one, eight = (measure(models.mlp, x, seeds=[2], exponents=k) for k in (1, 5))
    assert eight.log_gain.values == pytest.approx(one.log_gain.values, abs=1e-5)


def test_derived_seeds_are_fixed_for_ever_and_apart() -> None:
    """Baselines depend on them."""
    assert derived_seed(0, "inputs") == derived_seed(0, "inputs")
    drawn = {derived_seed(seed, purpose) for seed in range(50) for purpose in ("inputs", "forward", "cotangent 0")}
    assert len(drawn) == 150
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_finished_module_in_another_dtype_is_copied() -> None:
    """The user's stays float32, and what it keeps of an earlier run does not stand in the way."""
    model = busy()
    model.scale = nn.Parameter(torch.ones(2))
    model(torch.randn(BATCH, WIDTH))
    assert model.cache is not None and model.cache.requires_grad
    result = measure(model, torch.randn(BATCH, WIDTH), dtype="float64")
    assert result.dtype == "float64"
    assert next(model.parameters()).dtype == torch.float32


def test_finished_module_with_old_weight_norm_in_another_dtype() -> None:
    """The old function keeps the computed weight as an attribute, which ``copy.deepcopy`` refuses."""
    model = models.wrapped(nn.utils.weight_norm)()
    with warnings.catch_warnings(), pytest.raises(RuntimeError):
        copy.deepcopy(model)
    assert measure(model, torch.randn(BATCH, WIDTH), dtype="float64").dtype == "float64"


def test_factory_that_keeps_its_model_gets_it_back_unchanged() -> None:
    """Someone else holds the model: it is the user's."""
    kept = busy()
    before = look_at(kept)
    measure(lambda: kept, torch.randn(BATCH, WIDTH), seeds=1)
    assert look_at(kept) == before


def test_a_model_that_its_factory_keeps_is_cast_back() -> None:
    """A factory may hand out what somebody else holds; casting works in place."""
    kept = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    measure(lambda: kept, torch.randn(4, 3), seeds=1, dtype="float64")
    after = kept.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )
