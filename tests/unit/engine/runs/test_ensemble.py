"""Seeds, devices, and everything a user can hand in that cannot be measured: a clear error or an honest verdict."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import BATCH, VOCAB, WIDTH
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine import isolation
from pytest_trainability.engine.jacobian import vjp as products
from pytest_trainability.engine.runs.building import choose_device
from pytest_trainability.errors import CutError, ModelError, TrainabilityError, UsageError

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


class Silent(models.Tower):
    """Runs its blocks where autograd does not look."""

    def body(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().body(x)


class Unmoved(nn.Module):
    """Returns something, but not of its input or weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = models.mlp()
        self.answer = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        self.layers(x)
        return self.answer * 2


class Raising(nn.Module):
    """Raises."""

    def forward(self, x: Tensor) -> Tensor:
        msg = "no such luck"
        raise KeyError(msg)


class IntegersOnly(nn.Module):
    """No float anywhere."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids + 1


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(requires_grad=False)


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "under heavy development" since years
        return nn.Sequential(nn.LazyLinear(WIDTH), nn.Tanh(), nn.LazyLinear(WIDTH), nn.Tanh(), nn.LazyLinear(WIDTH))


def on_meta() -> nn.Module:
    return models.mlp().to("meta")


def double_loss(output: Tensor) -> Tensor:
    return output * 2


def detached_loss(output: Tensor) -> Tensor:
    return output.detach().square().mean()


def failing_loss(output: Tensor) -> Tensor:
    msg = "targets do not fit"
    raise ValueError(msg)


def raising_factory() -> nn.Module:
    msg = "no configuration"
    raise OSError(msg)


def raising_inputs(generator: torch.Generator) -> Tensor:
    msg = "no data"
    raise OSError(msg)


KEPT = models.mlp()


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
            ["returned NoneType. A return is missing"],
            id="loss-that-is-none",
        ),
        pytest.param(
            lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU())),
            FLOATS,
            {},
            CutError,
            ["Calls inside of a scripted module cannot be seen"],
            id="scripted",
        ),
        pytest.param(
            models.mlp,
            FLOATS,
            {"train": "eval"},
            UsageError,
            ["train must be True or False: the mode that it is measured in. Got 'eval'"],
            id="train-that-is-a-word",
        ),
        pytest.param(models.mlp, FLOATS, {"name": 3}, UsageError, ["name must be a text. Got 3"], id="name"),
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
            models.mlp, FLOATS, {"target": FLOATS}, UsageError, ["a target must come with the loss"], id="target-alone"
        ),
        pytest.param(
            models.mlp, FLOATS, {"loss": 3}, UsageError, ["the loss must be a function", "Got int."], id="loss-number"
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
            lambda: models.Reentrant(models.Block),
            FLOATS,
            {},
            CutError,
            ["checkpointed parts of the model must be visible", "use_reentrant=False"],
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
            models.mlp, FLOATS, {"exponents": 0}, UsageError, ["exponents must be", "Got 0."], id="no-exponents"
        ),
        pytest.param(
            models.mlp, FLOATS, {"exponents": True}, UsageError, ["exponents must be", "Got True."], id="bool-exponents"
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
            {"device": "gpu"},
            UsageError,
            ["the device must be", "Got 'gpu'", "has cpu"],
            id="device",
        ),
        pytest.param(models.mlp, FLOATS, {"device": "cuda:99"}, UsageError, ["Got 'cuda:99'"], id="device-number"),
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
def test_errors(
    model: Any, inputs: Any, settings: dict[str, Any], error: type[TrainabilityError] | None, parts: Sequence[str]
) -> None:
    """What must hold, what came, what to do; and in one piece."""
    settings = {"seeds": 1, **settings}
    if error is None:
        measure(model, inputs, **settings)
        return
    with pytest.raises(error) as caught:
        measure(model, inputs, **settings)
    text = str(caught.value)
    for part in parts:
        assert part in text
    assert "  " not in text
    assert re.match(r"[a-z']", text), "a message goes on where 'error:' stops"


# Honest verdicts -------------------------------------------------------------------------------------------------


def test_frozen_model_with_float_inputs_is_measured() -> None:
    """Its Jacobian is there whether or not it is trained; its parameters have no gradient to speak of."""
    plain = measure(models.mlp, FLOATS, seeds=2)
    result = measure(lambda: frozen(models.mlp()), FLOATS, seeds=2)
    assert result.log_gain.values == plain.log_gain.values
    assert len(result.gradient_norm) == 0
    assert len(result.unused_parameters) == 0


def test_one_step_is_measured_with_a_note() -> None:
    """A single layer has a gain, and no depth."""
    result = measure(lambda: nn.Linear(WIDTH, WIDTH), FLOATS, seeds=1)
    assert len(result.steps) == 1
    assert any("one step only" in note for note in result.notes)
    assert result.log_gain.mean == pytest.approx(float(result.lyapunov_max))


def test_finished_module_is_one_draw_with_a_note() -> None:
    """More seeds would repeat the same weights."""
    result = measure(models.mlp(), FLOATS, seeds=5)
    assert result.seeds == (0,)
    assert any("one draw of its weights" in note for note in result.notes)


def test_nan_in_weights_is_a_verdict() -> None:
    """Not an exception, never a pass, and it names what is at fault."""

    def broken() -> nn.Module:
        model = models.mlp()
        with torch.no_grad():
            model[2].weight[0, 0] = math.nan
        return model

    for exponents in (1, 3):
        result = measure(broken, FLOATS, seeds=2, exponents=exponents)
        assert math.isnan(result.log_gain.mean)
        assert not result.log_gain < 1e9
        assert not result.log_gain > -1e9
        assert "parameter 2.weight" in result.nonfinite
        assert "state after 2" in result.nonfinite
        assert "state after 0" not in result.nonfinite
        with pytest.raises(AssertionError, match="log_gain"):
            result.check(log_gain=(-1e300, 1e300))


def test_infinite_activations_are_a_verdict() -> None:
    """Overflow in the forward pass."""

    def exploding() -> nn.Module:
        model = models.mlp(4, activation=nn.Identity)
        with torch.no_grad():
            for layer in model[::2]:
                layer.weight.mul_(1e30)
        return model

    result = measure(exploding, FLOATS, seeds=1)
    assert "state after 4" in result.nonfinite
    assert result.log_gain > 200


def test_dead_network_is_minus_infinity() -> None:
    """Every unit dead: no gradient at all, in all that is reported."""

    def dead() -> nn.Module:
        model = models.mlp(3, activation=nn.ReLU)
        with torch.no_grad():
            model[2].bias.fill_(-1e3)
        return model

    for exponents in (1, 3):
        result = measure(dead, FLOATS, seeds=2, exponents=exponents)
        assert result.log_gain.mean == -math.inf
        assert result.lyapunov_max.mean == -math.inf
        assert result.growth_rate["0"].mean != result.growth_rate["0"].mean or result.growth_rate["0"].mean == -math.inf
        assert result.gradient_norm["0.weight"].mean == 0.0


def test_spectrum_is_sorted_also_with_vanished_exponents() -> None:
    """Largest first, minus infinity last."""
    bottleneck = lambda: nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH))  # noqa: E731
    found = [e.mean for e in measure(bottleneck, FLOATS, seeds=2, exponents=4).lyapunov_spectrum]
    assert found == sorted(found, reverse=True)
    assert [math.isfinite(value) for value in found] == [True, True, False, False]


def test_lazy_modules_from_a_factory_are_measured() -> None:
    """They get their shapes in the run itself."""
    result = measure(lazy, FLOATS, seeds=2)
    assert result.steps.description.startswith("3 × ")
    assert len(result.gradient_norm) == 6
    assert math.isfinite(result.log_gain.mean)


def test_factory_that_keeps_the_last_model_is_no_repeat() -> None:
    """A new model at the address of a freed one is a new model."""
    kept: dict[str, nn.Module] = {}

    def factory() -> nn.Module:
        kept["model"] = models.mlp(2)
        return kept["model"]

    result = measure(factory, FLOATS, seeds=12)
    assert len(set(result.log_gain.values)) == 12


def test_steps_that_a_seed_does_not_take_leave_the_others() -> None:
    """Stochastic depth: which blocks run is drawn in the run."""

    class Stochastic(models.Tower):
        def body(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                if torch.rand(()) < 0.7:
                    x = block(x)
            return x

    result = measure(lambda: Stochastic(models.Block, 12), FLOATS, seeds=4, steps="blocks.*")
    assert all(math.isfinite(e.mean) for e in result.growth_rate.values())
    assert all(math.isfinite(value) for value in result.log_gain.values)


# Lightning and dictionaries --------------------------------------------------------------------------------------


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


def test_loss_gain_without_a_loss_is_refused() -> None:
    """A random functional has no cotangent of its own."""
    with pytest.raises(UsageError, match="loss_log_gain needs a loss"):
        _ = measure(models.mlp, FLOATS, seeds=1).loss_log_gain


def test_loss_and_target_are_handed_over() -> None:
    """In this order; both may be functions of a generator."""
    result = measure(
        models.mlp,
        lambda g: torch.randn(BATCH, WIDTH, generator=g),
        target=lambda g: torch.randint(0, WIDTH, (BATCH,), generator=g),
        loss=F.cross_entropy,
        seeds=2,
    )
    assert len(set(result.loss_log_gain.values)) == 2


# Devices and types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", torch.float64, "torch.float64", torch.bfloat16])
def test_dtype_is_cast(dtype: Any) -> None:
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


def test_devices() -> None:
    """By name; a finished module stays where it is."""
    assert choose_device(None, fixed=True) is None
    assert choose_device("cpu", fixed=True) == torch.device("cpu")
    assert choose_device(torch.device("cpu"), fixed=False) == torch.device("cpu")
    assert choose_device("auto", fixed=False) is not None
    for name in ("", "CPU:0", "cuda:", "cpu:1"):
        with pytest.raises(UsageError, match="the device must be"):
            choose_device(name, fixed=False)


# Memory ----------------------------------------------------------------------------------------------------------


def test_columns_that_do_not_fit_are_carried_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """More memory is a matter of speed: fewer columns at once give the same spectrum."""
    expected = measure(models.mlp, FLOATS, seeds=1, exponents=5, dtype="float64")
    whole, sizes = products._one_call, []

    def small(outputs: Any, inputs: Any, columns: Sequence[Tensor], *hooked: Any) -> Any:
        sizes.append(len(columns[0]))
        if len(columns[0]) > 2:
            msg = "CUDA out of memory"
            raise torch.OutOfMemoryError(msg)
        return whole(outputs, inputs, columns, *hooked)

    monkeypatch.setattr(products, "_one_call", small)
    found = measure(models.mlp, FLOATS, seeds=1, exponents=5, dtype="float64")
    assert max(sizes) == 5
    assert [e.mean for e in found.lyapunov_spectrum] == pytest.approx(
        [e.mean for e in expected.lyapunov_spectrum], abs=1e-12
    )


def test_one_column_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing smaller."""

    def never(*_: Any) -> Any:
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)

    monkeypatch.setattr(products, "_one_call", never)
    with pytest.raises(ModelError, match="one cotangent must fit on the device") as caught:
        measure(models.mlp, FLOATS, seeds=1, exponents=5)
    assert "smaller batch" in str(caught.value)


def test_model_that_runs_out_of_memory_is_an_error() -> None:
    """The forward pass itself."""

    def too_large(y: Tensor) -> Tensor:
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)

    with pytest.raises(
        ModelError, match=r"Tail, one forward pass and what is measured must fit .* cpu ran out of memory"
    ):
        measure(lambda: Tail(too_large), FLOATS, seeds=1)


def test_vocabulary_is_as_large_as_the_ids() -> None:
    """The inputs of this file fit the models of the other one."""
    assert int(IDS.max()) < VOCAB


# What a review found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("width", [64, 512])
def test_half_precision_is_no_round_off(dtype: str, width: int) -> None:
    """A healthy tower has the same gain in half precision, to its two or three digits."""

    def tower() -> nn.Module:
        return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(width, width), nn.Tanh())])

    inputs = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    half, full = measure(tower, inputs, seeds=2, dtype=dtype), measure(tower, inputs, seeds=2)
    # Each of six products rounds to 2^-8 (bfloat16) a few times over.
    assert float(half.log_gain) == pytest.approx(float(full.log_gain), abs=6 * 8 * 2**-8)


def test_rank_is_judged_at_the_states_own_precision() -> None:
    def rank_one() -> nn.Module:
        layers = [nn.Linear(16, 16, bias=False) for _ in range(3)]
        for layer in layers:
            nn.init.constant_(layer.weight, 0.1)
        return nn.Sequential(*layers)

    for dtype in ("float32", "bfloat16"):
        spectrum = measure(rank_one, torch.randn(2, 16), seeds=1, exponents=3, dtype=dtype).lyapunov_spectrum
        assert [math.isfinite(e) for e in spectrum] == [True, False, False]


def test_gradients_of_a_kept_model_come_back_in_their_type() -> None:
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
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises(UsageError, match="the device must be auto, cpu, cuda"):
        measure(models.mlp, FLOATS, device=device)


def test_layers_that_are_all_dropped_are_said_to_be() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layers = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            if torch.initial_seed() == isolation.derived_seed(0, "forward"):
                for layer in self.layers:
                    x = layer(x)
            return x

    with pytest.raises(CutError, match="Seed 1 takes none"):
        measure(Dropped, torch.randn(2, 4), steps="layers.*", seeds=2)


def test_numbers_that_changed_behind_autograds_back_are_seen() -> None:
    model = models.mlp()
    result = measure(model, FLOATS)
    model[0].weight.data.mul_(2)
    with pytest.raises(UsageError, match="have changed since"):
        _ = result.relative_gradient_norm


# What a newcomer found -------------------------------------------------------------------------------------------


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


def test_sparse_gradients_have_norms() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.bag(ids))

    result = measure(Bag, torch.randint(9, (3, 5)), seeds=1, measures=["nonfinite"])
    assert result.gradient_norm["bag.weight"] > 0
    assert not result.nonfinite


def test_a_number_per_sample_in_the_state_keeps_samples_apart() -> None:
    """A flow carries its log-determinant along."""

    class Coupling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

        def forward(self, x: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
            scale = self.net(x[:, :2]).tanh()
            return torch.cat([x[:, 2:] * scale.exp(), x[:, :2]], 1), volume + scale.sum(1)

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.couplings = nn.ModuleList(Coupling() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            volume = x.sum(1) * 0
            for coupling in self.couplings:
                x, volume = coupling(x, volume)
            return volume - x.square().sum(1)

    result = measure(Flow, torch.randn(5, 4), seeds=1)
    assert (str(result.steps), result.frame) == ("4 × Coupling", "per sample")


def test_a_compiled_model_is_run_as_it_was_written() -> None:
    compiled = measure(lambda: torch.compile(models.mlp()), FLOATS, seeds=1)
    assert float(compiled.log_gain) == pytest.approx(float(measure(models.mlp, FLOATS, seeds=1).log_gain))


def test_two_layers_of_a_stack_are_blocks() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    assert str(measure(Two, torch.randn(2, 3, 8), seeds=1).steps) == "2 × TransformerEncoderLayer"


def test_what_a_detach_cuts_off_is_named() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                x = layer(x.detach() if index == 3 else x).tanh()
            return x

    result = measure(Cut, torch.randn(2, 4), seeds=1)
    assert result.steps.description.startswith("2 × Linear")
    assert result.steps.left_out == "4 × Linear (layers)"
    assert list(result.unused_parameters)[:2] == ["layers.0.weight", "layers.0.bias"]


def test_facts_about_a_step_are_what_they_say() -> None:
    """The spread of the weights, not their size: constant ones have none, and complex ones have one, too."""

    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 3), 1 + 1j))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex64) @ self.weight).real

    def constant() -> nn.Module:
        layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
        nn.init.constant_(layers[0].weight, 0.5)
        return nn.Sequential(*layers, Complex())

    facts = measure(constant, torch.randn(2, 3), seeds=1)._seed_runs.common.facts
    assert [fact.weight_std == 0 for fact in facts] == [True, False, True]


def test_a_stem_before_the_first_block_is_named() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x).relu()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.blocks = nn.Sequential(*[Block() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.stem(x))

    result = measure(Net, torch.randn(2, 3, 8, 8), seeds=1)
    assert result.steps.description == "3 × Block"
    assert "before the chain begins, with weights of their own: stem.0" in result.notes
    whole = measure(Net, torch.randn(2, 3, 8, 8), seeds=1, steps="layers")
    assert not any("before the chain" in note for note in whole.notes)
