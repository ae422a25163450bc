"""Changes of models are undone where a factory shares modules or parameters between its models."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, measure, within
from pytest_trainability.checks.remedy import Remedy
from pytest_trainability.measurement.changes import apply, changed

SCALE = Remedy("scale", ("0.weight",), (2.0,), (1.0,))
FACTOR = Remedy("output", ("0",), (2.0,))
NORM = Remedy("layer norm", ("0",))


def sharing(kept: nn.Module) -> nn.Module:
    return nn.Sequential(kept, nn.Linear(4, 4))


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model[0](torch.arange(8.0).reshape(2, 4))  # type: ignore[index]
    return found


class Scaled(nn.Module):
    """Multiplies by 3 in its own code, in several ways, and contains a module that does so as well."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, nn.Linear(4, 4)
        self.register_buffer("three", torch.full((4,), 3.0))

    def times_three(self, x: Tensor) -> Tensor:
        ways = {
            "mul": lambda: 3 * x,
            "from the right": lambda: x * 3.0,
            "div": lambda: x / (1 / 3),
            "function": lambda: torch.mul(x, 3),
            "in place": lambda: x.clone().mul_(3),
            "buffer": lambda: self.three * x,
        }
        return ways[self.how]()

    def forward(self, x: Tensor) -> Tensor:
        return self.times_three(self.inner(x))


class Outer(nn.Module):
    def __init__(self, how: str = "mul") -> None:
        super().__init__()
        self.first, self.second = Scaled(how), Scaled(how)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.second(self.first(x)) + 0.5 * x


INLINE = Remedy("inline", ("first",), (3.0,))


@pytest.mark.parametrize("how", ["mul", "from the right", "div", "function", "in place", "buffer"])
def test_a_factor_is_left_out_of_the_code_of_its_module(how: str) -> None:
    torch.manual_seed(0)
    model, x = Outer(how), torch.ones(2, 4)
    expected = 3 * model.second(model.first.inner(x)) + 0.5 * x
    apply(INLINE, model)
    assert torch.allclose(model(x), expected)
    # Behind the model nothing is left out.
    assert torch.equal(3 * x, torch.full((2, 4), 3.0))


def test_a_factor_of_the_model_itself_is_left_out_of_its_own_code_only() -> None:
    torch.manual_seed(0)
    model, x = Outer(), torch.ones(2, 4)
    expected = model.second(model.first(x)) + 0.5 * x
    apply(Remedy("inline", ("",), (3.0,)), model)
    assert torch.allclose(model(x), expected)


def test_an_error_in_the_module_leaves_no_mode_behind() -> None:
    model = Outer()
    apply(INLINE, model)
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5))
    x = torch.ones(2, 4)
    assert torch.equal(3 * x, torch.full((2, 4), 3.0))
    assert model(x).shape == (2, 4)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    "remedy",
    [SCALE, FACTOR, NORM, Remedy("several", ("0", "0.weight"), parts=(SCALE, FACTOR))],
    ids=lambda remedy: remedy.kind,
)
def test_a_shared_module_is_changed_once_and_restored(remedy: Remedy) -> None:
    kept = nn.Linear(4, 4)
    before, weight = run(sharing(kept)), kept.weight.detach().clone()
    expected = nn.Linear(4, 4)
    expected.load_state_dict(kept.state_dict())
    once = sharing(expected)
    apply(remedy, once)
    with changed(lambda: sharing(kept), remedy) as source:
        assert not isinstance(source, nn.Module)
        models = [source() for _ in range(3)]
        assert all(torch.equal(run(model), run(once)) for model in models)
    assert torch.equal(run(sharing(kept)), before) and torch.equal(kept.weight, weight)
    assert hooks(kept) == 0


def test_a_shared_normalization_gets_its_constant_back() -> None:
    kept = nn.LayerNorm(4, eps=10.0)
    with changed(lambda: sharing(kept), Remedy("eps", ("0",), (1e-5,))) as source:
        assert not isinstance(source, nn.Module)
        model = source()
        assert model[0].eps == 1e-5  # type: ignore[index]
    assert kept.eps == 10.0


def test_hooks_of_the_user_stay() -> None:
    kept = nn.Linear(4, 4)
    kept.register_forward_hook(lambda *_: None)
    with changed(lambda: sharing(kept), FACTOR) as source:
        assert not isinstance(source, nn.Module)
        model = source()
        assert hooks(model) == 2
    assert hooks(kept) == 1


def test_a_shared_weight_that_the_factory_draws_anew_is_changed_again() -> None:
    kept = nn.Linear(4, 4)

    def build() -> nn.Module:
        nn.init.ones_(kept.weight)
        return sharing(kept)

    with changed(build, SCALE) as source:
        assert not isinstance(source, nn.Module)
        models = []
        for _ in range(2):
            models.append(source())
            assert torch.equal(kept.weight, torch.full((4, 4), 2.0))
    assert torch.equal(kept.weight, torch.ones(4, 4))


def test_an_error_in_a_run_leaves_a_shared_module_as_it_was() -> None:
    kept = nn.Linear(4, 4)
    weight = kept.weight.detach().clone()
    with suppress(ZeroDivisionError), changed(lambda: sharing(kept), SCALE) as source:
        assert not isinstance(source, nn.Module)
        assert source() is 1 / 0
    assert torch.equal(kept.weight, weight)


def test_a_graph_from_before_can_still_be_differentiated() -> None:
    kept = nn.Linear(4, 4)
    x = torch.ones(2, 4, requires_grad=True)
    loss = kept(x).sum()
    with changed(lambda: sharing(kept), SCALE) as source:
        assert not isinstance(source, nn.Module)
        source()
    loss.backward()
    assert x.grad is not None


def test_the_search_for_cures_leaves_a_shared_module_as_it_was() -> None:
    """A layer that every model contains: its weights and hooks are the same after the report."""
    torch.manual_seed(0)
    kept = nn.Linear(32, 32)
    before = {name: p.detach().clone() for name, p in kept.named_parameters()}

    def tower() -> nn.Module:
        return nn.Sequential(kept, nn.Tanh(), *[m for _ in range(15) for m in (nn.Linear(32, 32), nn.Tanh())])

    result = measure(tower, torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), seeds=2)
    with pytest.raises(TrainabilityFailure):
        result.check(log_gain=within(2))
    found = [cure.remedy for cure in result.cures()]
    assert {"0.weight", "0"} & {name for remedy in found for name in remedy.targets}
    assert all(torch.equal(before[name], p) for name, p in kept.named_parameters())
    assert hooks(kept) == 0 and not kept._forward_pre_hooks


def test_a_trial_of_drawn_weights_repeats_and_leaves_the_generators_as_they_were() -> None:
    model, state = nn.Linear(3, 3), torch.get_rng_state()
    remedy = Remedy("draw", ("weight",), (0.5,))
    drawn = []
    for _ in range(2):
        torch.manual_seed(len(drawn))
        before = torch.get_rng_state()
        with changed(model, remedy) as other:
            drawn.append(other.weight.detach().clone())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn) and not torch.equal(drawn[0], model.weight)
    torch.set_rng_state(state)
