"""Models of single seeds: factories, finished and lazy modules, devices and types."""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any

import models
import pytest
import torch
from models import BATCH, FLOATS, IDS, WIDTH
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.runs.building import _held_elsewhere, built, choose_device, device_of, drawn
from pytest_trainability.errors import ModelError, TrainabilityError, UsageError
from pytest_trainability.measurement import DEFAULT_OPTIONS, Context, as_recipe


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "under heavy development" since years
        return nn.Sequential(nn.LazyLinear(WIDTH), nn.Tanh(), nn.LazyLinear(WIDTH), nn.Tanh(), nn.LazyLinear(WIDTH))


def on_meta() -> nn.Module:
    return models.mlp().to("meta")


def with_meta_buffer() -> nn.Module:
    model = models.mlp()
    model[0].register_buffer("table", torch.empty(3, device="meta"))
    return model


META = "'0.table' lives on the meta device"


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
            with_meta_buffer,
            FLOATS,
            {},
            ModelError,
            ["the buffers of a model must hold numbers", META],
            id="buffer-on-meta",
        ),
        pytest.param(
            with_meta_buffer(), FLOATS, {}, ModelError, [META, "Materialize it first"], id="module-with-buffer-on-meta"
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
def test_an_error_says_what_to_do(refused, model, inputs, settings, error, parts) -> None:
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
    """Integer inputs are not."""
    result = measure(models.LanguageModel, (IDS, torch.ones(2, 3, WIDTH)), seeds=1, dtype=dtype)
    assert result.dtype in str(dtype)
    assert math.isfinite(result.log_gain.mean)


def test_complex_parameters_stay_complex() -> None:
    """``Module.to`` with a float type would discard imaginary parts."""

    class Rotation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
            self.register_buffer("phase", torch.tensor(1j))
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            types = {x.dtype, z.dtype, self.weight.dtype, self.phase.dtype, self.layer.weight.dtype}  # type: ignore[union-attr]
            assert types == {torch.float64, torch.complex128}
            return self.layer(((x + z) @ self.weight * self.phase).abs())  # type: ignore[operator]

    inputs = (torch.randn(4, 3), torch.randn(4, 3, dtype=torch.complex64))
    assert math.isfinite(measure(Rotation, inputs, seeds=1, dtype="float64", steps="layers").log_gain)


def test_float64_and_float32_agree() -> None:
    """The same draws, rounded."""
    wide, narrow = (measure(models.mlp, FLOATS, seeds=2, dtype=d, exponents=3) for d in ("float64", "float32"))
    assert narrow.log_gain.values == pytest.approx(wide.log_gain.values, abs=1e-4)
    spectra = [[e.mean for e in r.lyapunov_spectrum] for r in (narrow, wide)]
    assert spectra[0] == pytest.approx(spectra[1], abs=1e-4)


def test_a_device_is_chosen_by_name() -> None:
    """A finished module stays where it is unless a device is named."""
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


# Models that someone else holds -------------------------------------------------------------------------------------


def test_a_kept_model_is_left_as_it_was() -> None:
    """The factory's owner has the model too, with BatchNorm statistics that the forward pass changes."""
    kept: list[nn.Module] = []

    def factory() -> nn.Module:
        kept.append(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)))
        return kept[-1]

    measure(factory, FLOATS, seeds=2, train=True)
    assert len(kept) == 2
    assert all(not bool(model[1].running_mean.any()) and int(model[1].num_batches_tracked) == 0 for model in kept)


def test_a_new_model_is_not_held_after_its_run() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def factory() -> nn.Module:
        model = models.mlp()
        alive.append(weakref.ref(model))
        return model

    with built_by(factory) as (model, drawn):
        assert alive[0]() is model and len(drawn) > 0
    del model
    assert alive[0]() is None


def built_by(model: Any, previous: list[Any] | None = None, seed: int = 0, **changes: Any) -> Any:
    recipe = as_recipe(Context(), model, FLOATS, {**DEFAULT_OPTIONS, "device": None, **changes})
    return built(recipe, seed, [] if previous is None else previous)


def test_only_kept_models_are_remembered() -> None:
    previous: list[Any] = []
    with built_by(models.mlp, previous):
        assert previous == []
    keeping = models.mlp()
    with built_by(lambda: keeping, previous):
        assert [reference() for reference in previous] == [keeping]
    with pytest.raises(UsageError, match="returned the same object twice"), built_by(lambda: keeping, previous):
        pass


def test_the_seed_determines_the_model_and_the_state_of_the_generator() -> None:
    def first_weight(seed: int) -> tuple[torch.Tensor, bytes]:
        with built_by(models.mlp, seed=seed) as (model, drawn):
            return model[0].weight.detach().clone(), drawn

    (one, state), (again, same), (other, third) = map(first_weight, (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert state == same != third


@pytest.mark.parametrize("train", [True, False])
def test_the_mode_is_that_of_the_recipe(train: bool) -> None:
    kept = models.mlp().train(not train)
    with built_by(kept, train=train) as (model, drawn):
        assert model is kept and model.training is train and drawn == b""
    assert kept.training is not train


class Trained(nn.Linear):
    """Has a ``train`` of another meaning, as detectors do that train themselves."""

    def train(self, data: object, epochs: int = 1) -> None:  # type: ignore[override]
        raise AssertionError("nobody has asked for training")


def test_a_model_in_the_mode_of_the_recipe_is_left_as_it_is() -> None:
    kept = nn.Sequential(Trained(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH).eval())
    with built_by(kept) as (model, _):
        assert [module.training for module in model.modules()] == [True, True, False]


def test_a_finished_module_is_copied_where_it_is_cast() -> None:
    kept = models.mlp()
    kept.history = kept(FLOATS)  # a tensor that cannot be copied with its history
    with built_by(kept, dtype="float64") as (model, _):
        assert model is not kept and model[0].weight.dtype == torch.float64
        assert model.history.grad_fn is None
    assert kept[0].weight.dtype == torch.float32


def test_a_finished_module_on_the_requested_device_is_not_copied() -> None:
    kept = models.mlp()
    with built_by(kept, device="cpu") as (model, _):
        assert model is kept


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    class Once(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            msg = "only one"
            raise TypeError(msg)

    with pytest.raises(
        ModelError, match=r"must allow that\. Copying Once raised TypeError: only one Hand in a factory"
    ):
        measure(Once(WIDTH, WIDTH), FLOATS, dtype="float64")


def test_a_loss_with_buffers_is_restored() -> None:
    loss = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Flatten(0), nn.AvgPool1d(BATCH * WIDTH))
    loss.forward = lambda y: loss[0](y).square().mean()  # type: ignore[method-assign]
    measure(models.mlp, FLOATS, loss=loss, seeds=1)
    assert int(loss[0].num_batches_tracked) == 0


def test_the_device_of_a_model_is_that_of_its_first_tensor() -> None:
    assert device_of(nn.Tanh()) is None
    assert device_of(nn.Linear(2, 2)) == torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False)) == torch.device("cpu")


@pytest.mark.parametrize(("worker", "number"), [(0, 0), (1, 1), (2, 0), (5, 1)])
def test_workers_share_the_gpus(monkeypatch: pytest.MonkeyPatch, worker: int, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda", fixed=False, worker=worker) == torch.device("cuda", number)
    assert choose_device("auto", fixed=False, worker=worker) == torch.device("cuda", number)
    assert choose_device("auto", fixed=True, worker=worker) is None
    assert choose_device("cuda:1", fixed=False, worker=worker) == torch.device("cuda", 1)
    with pytest.raises(UsageError, match=r"Got 'cuda:2'\. This machine has cpu, cuda:0, cuda:1"):
        choose_device("cuda:2", fixed=False)


def made_for_inference() -> nn.Module:
    with torch.inference_mode():
        model = models.mlp()
        model[0].register_buffer("table", torch.ones(2))
        model[0].kept = torch.ones(2)
    return model


def test_a_model_made_in_inference_mode_is_measured_on_a_copy() -> None:
    plain = measure(models.mlp, FLOATS, seeds=2, measures=["gradient_norm"])
    made = measure(made_for_inference, FLOATS, seeds=2, measures=["gradient_norm"])
    assert made.log_gain.values == plain.log_gain.values
    assert made.gradient_norm.max == plain.gradient_norm.max
    model = made_for_inference()
    assert measure(model, FLOATS).log_gain.values == measure(model, FLOATS).log_gain.values
    assert all(p.is_inference() and p.requires_grad for p in model.parameters())


class WithBackbone(nn.Module):
    """A head on a backbone that all models share."""

    BACKBONE = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)).eval()

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(self.BACKBONE, nn.Tanh()), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_what_models_of_a_factory_share_is_left_as_it_was() -> None:
    backbone = WithBackbone.BACKBONE
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    places = [p.data_ptr() for p in backbone.parameters()]
    result = measure(WithBackbone, FLOATS, loss=lambda y: y.sin().sum(), dtype=torch.float64, seeds=2)
    assert len(result.waking_step) == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert [p.data_ptr() for p in backbone.parameters()] == places
    assert not any(module.training for module in backbone.modules())


def test_modules_that_are_held_elsewhere_are_found_at_their_top() -> None:
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    inner = shared[0]
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), shared), nn.Linear(2, 2))
    assert _held_elsewhere(model) == [shared]
    del shared
    assert _held_elsewhere(model) == [inner]
    del inner
    assert _held_elsewhere(model) == []


def test_a_model_that_is_only_read_is_not_copied() -> None:
    model = models.mlp()
    assert drawn(model, 0, []) is model
    first, second = (drawn(models.mlp, seed, []) for seed in (0, 1))
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_a_model_that_is_only_read_must_hold_numbers_and_be_new() -> None:
    for build in (lazy, on_meta):
        with pytest.raises(ModelError, match="must hold numbers"):
            drawn(build, 0, [])
    previous: list[weakref.ref[nn.Module]] = []
    drawn(lambda: KEPT, 0, previous)
    with pytest.raises(UsageError, match="must build a new model"):
        drawn(lambda: KEPT, 1, previous)
