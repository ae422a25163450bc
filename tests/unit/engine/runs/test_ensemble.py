"""Runs of several seeds: verdicts on numbers that are not finite, skipped steps, and precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import loops
import models
import pytest
import torch
from models import FLOATS, WIDTH
from torch import Tensor, nn

from pytest_trainability import Rollout, measure
from pytest_trainability.engine import isolation
from pytest_trainability.engine.runs.description import Ensemble
from pytest_trainability.engine.runs.ensemble import _recurrence_name, _translated_errors, ensemble
from pytest_trainability.engine.runs.recipe import NO_KERNEL
from pytest_trainability.errors import CutError, ModelError, UsageError
from pytest_trainability.measurement import DEFAULT_OPTIONS, Context, as_recipe


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(requires_grad=False)


def test_a_frozen_model_with_float_inputs_is_measured() -> None:
    """Its Jacobian does not depend on what is trained. Its parameters have no gradients."""
    plain = measure(models.mlp, FLOATS, seeds=2)
    result = measure(lambda: frozen(models.mlp()), FLOATS, seeds=2)
    assert result.log_gain.values == plain.log_gain.values
    assert len(result.gradient_norm) == 0
    assert len(result.unused_parameters) == 0


def test_nan_in_weights_is_a_verdict() -> None:
    """It is not an exception, it never passes, and the tensors that hold NaN are named."""

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
    """The forward pass overflows."""

    def exploding() -> nn.Module:
        model = models.mlp(4, activation=nn.Identity)
        with torch.no_grad():
            for layer in model[::2]:
                layer.weight.mul_(1e30)
        return model

    result = measure(exploding, FLOATS, seeds=1)
    assert "state after 4" in result.nonfinite
    assert result.log_gain > 200


def test_a_dead_network_has_a_gain_of_minus_infinity() -> None:
    """All units are dead, so that no measure sees a gradient."""

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
    """The largest comes first, and minus infinity last."""
    bottleneck = lambda: nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH))  # noqa: E731
    found = [e.mean for e in measure(bottleneck, FLOATS, seeds=2, exponents=4).lyapunov_spectrum]
    assert found == sorted(found, reverse=True)
    assert [math.isfinite(value) for value in found] == [True, True, False, False]


def test_a_seed_may_skip_steps() -> None:
    """With stochastic depth, each forward pass draws the blocks that it runs."""

    class Stochastic(models.Tower):
        def body(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                if torch.rand(()) < 0.7:
                    x = block(x)
            return x

    result = measure(lambda: Stochastic(models.Block, 12), FLOATS, seeds=4, steps="blocks.*")
    assert all(math.isfinite(e.mean) for e in result.growth_rate.values())
    assert all(math.isfinite(value) for value in result.log_gain.values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("width", [64, 512])
def test_half_precision_gives_the_same_gain(dtype: str, width: int) -> None:
    """A healthy tower has the same gain in half precision, up to its two or three digits."""

    def tower() -> nn.Module:
        return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(width, width), nn.Tanh())])

    inputs = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    half, full = measure(tower, inputs, seeds=2, dtype=dtype), measure(tower, inputs, seeds=2)
    # Each of six products rounds to 2^-8 (bfloat16) a few times over.
    assert float(half.log_gain) == pytest.approx(float(full.log_gain), abs=6 * 8 * 2**-8)


def test_the_rank_is_judged_at_the_precision_of_the_states() -> None:
    def rank_one() -> nn.Module:
        layers = [nn.Linear(16, 16, bias=False) for _ in range(3)]
        for layer in layers:
            nn.init.constant_(layer.weight, 0.1)
        return nn.Sequential(*layers)

    for dtype in ("float32", "bfloat16"):
        spectrum = measure(rank_one, torch.randn(2, 16), seeds=1, exponents=3, dtype=dtype).lyapunov_spectrum
        assert [math.isfinite(e) for e in spectrum] == [True, False, False]


def test_a_seed_that_drops_all_layers_is_named() -> None:
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


# Warm-up and alignment -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("warmup", "alignment"), [(4, 0), (0, 4), (2, 2), (9, 9)])
def test_warmup_and_alignment_must_leave_a_step(warmup: int, alignment: int) -> None:
    with pytest.raises(UsageError, match=rf"must leave a step.*Got {warmup} and {alignment} for a chain of 4"):
        measure(
            loops.Loop(loops.gru_loop, cell=loops.cell()).double(),
            loops.inputs(loops.BATCH, loops.LENGTH, loops.FEATURES),
            steps="time",
            warmup=warmup,
            alignment=alignment,
        )


@pytest.mark.parametrize("what", ["warmup", "alignment"])
@pytest.mark.parametrize("value", [-1, 1.0, True])
def test_warmup_and_alignment_must_be_counts(what: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{what} must be a whole number of at least 0"):
        measure(
            loops.Loop(loops.gru_loop, cell=loops.cell()).double(),
            loops.inputs(loops.BATCH, loops.LENGTH, loops.FEATURES),
            steps="time",
            **{what: value},
        )


# Seeds --------------------------------------------------------------------------------------------------------------


def run(model: Any, seeds: Sequence[int], read: Any = lambda run: {"seed": run.seed}, **given: Any) -> Ensemble:
    options = {**DEFAULT_OPTIONS, "device": "cpu", **given.pop("options", {})}
    recipe = as_recipe(given.pop("context", Context()), model, given.pop("inputs", FLOATS), options)
    return ensemble(recipe, seeds, given.pop("needs", ()), read, **given)


def test_every_seed_is_read_in_order() -> None:
    found = run(models.mlp, [5, 2, 9])
    assert found.seeds == (5, 2, 9)
    assert found.readings == ({"seed": 5}, {"seed": 2}, {"seed": 9})
    assert len(set(found.draws)) == 3


def test_enough_readings_stop_the_runs() -> None:
    found = run(models.mlp, [5, 2, 9], enough=lambda readings: len(readings) == 2)
    assert found.seeds == (5, 2) and len(found.readings) == len(found.draws) == 2


def test_the_first_run_plans_those_of_all_seeds() -> None:
    """A second call takes the steps of the first one, even if it would choose others."""
    first = run(models.mlp, [0], options={"steps": ["0", "2"]})
    again = run(models.mlp, [0], lambda run: {"steps": run.chain.names}, known=first, options={"steps": "layers"})
    assert again.readings[0]["steps"] == ("0", "2") and again.plan is first.plan and again.draws == first.draws


def test_draws_of_build_inputs_and_forward_pass_are_distinguished() -> None:
    def of(model: Any, inputs: Any = FLOATS) -> list[str]:
        return run(model, [0], inputs=inputs).draws[0].split()

    plain, dropout = (lambda p=p: nn.Sequential(nn.Linear(6, 6), nn.Dropout(p)) for p in (0.0, 0.5))
    assert of(plain) == of(plain)
    # The weights need as many numbers, and the forward pass more of them.
    assert of(plain)[0] == of(dropout)[0] and of(plain)[1] != of(dropout)[1]
    assert of(plain)[0] != of(lambda: nn.Sequential(nn.Linear(6, 7)))[0]
    assert of(plain)[0] != of(plain, FLOATS + 1)[0] and of(plain)[1] == of(plain, FLOATS + 1)[1]


def test_threads_are_limited_during_the_runs_and_never_increased() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for limit, expected in ((1, 1), (3, 2)):
            found = run(
                models.mlp, [0], lambda run: {"threads": torch.get_num_threads()}, context=Context(threads=limit)
            )
            assert found.readings[0]["threads"] == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_invalid_step_choice_of_a_plugin_names_its_hook() -> None:
    context = Context(choose_steps=lambda model: ["0", "4"])
    assert run(models.mlp, [0], context=context).steps.names == ("0", "4")
    wrong = Context(choose_steps=lambda model: ["encoder"])
    with pytest.raises(
        UsageError, match=r"the hook pytest_trainability_steps of a plugin must return steps .*\['encoder'\]: "
    ):
        run(models.mlp, [0], context=wrong)
    with pytest.raises(UsageError) as caught:
        run(models.mlp, [0], options={"steps": ["encoder"]})
    assert "plugin" not in str(caught.value)


# Cuts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "rollout", "name"),
    [
        ("auto", False, None),
        ("auto", True, ""),
        ("layers", True, None),
        ("time", False, ""),
        ("time:l0", False, "l0"),
        ("timed", False, None),
        (["time"], True, None),
        (nn.Linear, True, None),
    ],
)
def test_the_recurrence_to_cut_along(steps: Any, rollout: bool, name: str | None) -> None:
    model = Rollout(lambda x: x, steps=2) if rollout else nn.Linear(2, 2)
    recipe = as_recipe(Context(), model, FLOATS, {**DEFAULT_OPTIONS, "steps": steps})
    assert _recurrence_name(recipe, model) == name


# Errors of backward passes ------------------------------------------------------------------------------------------


class Overwriting(nn.Module):
    """Overwrites a tensor that the backward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = models.mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x).exp()
        z = y * 2
        y.mul_(3)
        return z


def test_a_tensor_that_is_overwritten_is_an_error_of_the_model() -> None:
    message = r"needs tensors of the forward pass as they were\. Overwriting overwrites one"
    with pytest.raises(ModelError, match=message) as caught:
        measure(Overwriting, FLOATS, seeds=1)
    assert "modified by an inplace operation" in str(caught.value.__cause__)


def raised(error: Exception, along: str | None = None) -> BaseException:
    with pytest.raises(Exception) as caught, _translated_errors(nn.Linear(2, 2), torch.device("cpu"), along):
        raise error
    return caught.value


class CheckpointError(RuntimeError):
    """Has the name of PyTorch's error."""


def test_errors_of_pytorch_are_translated() -> None:
    memory = torch.OutOfMemoryError("CUDA out of memory")
    found = raised(memory)
    assert isinstance(found, ModelError) and "cpu ran out of memory" in str(found) and found.__cause__ is memory
    assert isinstance(raised(CheckpointError("recomputed"), along=""), CutError)


def test_a_missing_kernel_is_an_error_of_pytorch_on_this_processor() -> None:
    found = raised(RuntimeError("could not create a primitive descriptor for an LSTM backward propagation primitive"))
    assert isinstance(found, ModelError)
    message = str(found)
    assert message.startswith(
        "the backward pass of Linear raised RuntimeError: could not create a primitive descriptor for"
    )
    assert message.endswith(NO_KERNEL)


def through(backward: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """Return a factory of a network with an identity between two layers that has its own backward pass."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return backward(gradient)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Any:
            return self.last(Own.apply(self.first(x)))

    return Net


def unwritten(gradient: Tensor) -> Tensor:
    raise NotImplementedError("no backward pass yet")


@pytest.mark.parametrize("measures", [(), ("max_ftle", "gradient_norm", "update_ratio")], ids=["default", "more"])
@pytest.mark.parametrize(
    ("backward", "said"),
    [
        (unwritten, "It raised NotImplementedError: no backward pass yet."),
        (lambda g: g[:, :3], "expected shape compatible with"),
        (lambda g: (g, g), "incorrect number of gradients"),
        (lambda g: "gradient", "It raised RuntimeError: "),
        (lambda g: {}[0], "It raised KeyError: 0."),
    ],
    ids=["raises", "shape", "count", "no tensor", "KeyError"],
)
def test_a_backward_pass_that_fails_is_an_error_of_the_model(
    backward: Callable[[Tensor], Any], said: str, measures: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError, match=r"^the backward pass of Net must run\.") as caught:
        measure(through(backward), FLOATS, seeds=1, measures=measures)
    assert said in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_gradient_of_another_type_is_converted_and_none_is_zero() -> None:
    plain = measure(through(lambda g: g), FLOATS, seeds=1)
    assert measure(through(lambda g: g.double()), FLOATS, seeds=1).log_gain.values == plain.log_gain.values
    assert measure(through(lambda g: None), FLOATS, seeds=1).log_gain.mean == -math.inf


def hooked(register: Callable[[nn.Sequential, Callable[..., Any]], Any]) -> Callable[[], nn.Module]:
    def fails(*_: Any) -> None:
        raise ValueError("the hook's own error")

    def build() -> nn.Module:
        model = models.mlp()
        register(model, fails)
        return model

    return build


@pytest.mark.parametrize(
    "register",
    [
        lambda model, hook: model[0].weight.register_hook(hook),
        lambda model, hook: model[0].register_full_backward_hook(hook),
        lambda model, hook: model[1].register_full_backward_pre_hook(hook),
        lambda model, hook: model[1].register_forward_hook(lambda m, i, output: output.register_hook(hook) and None),
    ],
    ids=["parameter", "module", "module before", "tensor"],
)
def test_a_gradient_hook_that_fails_is_an_error_of_the_model(register: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"of Sequential must run\. It raised ValueError: the hook's own"):
        measure(hooked(register), FLOATS, seeds=1)


def test_other_errors_are_raised_as_they_are() -> None:
    for error in (
        RuntimeError("size mismatch"),
        ValueError("modified by an inplace operation"),
        CheckpointError("depth"),
    ):
        assert raised(error) is error


def test_a_backward_pass_inside_the_model_is_an_error_that_says_so() -> None:
    """It frees the graph."""

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp()

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.layers(x)
            z.sum().backward()
            return z

    with pytest.raises(
        ModelError, match=r"Inside frees it: it calls backward\(\) or autograd\.grad\(\) inside forward\(\)"
    ):
        measure(Inside, FLOATS, seeds=1)
