"""What a report says about known faults: the smallest cure, the true counts, the innermost place, and each cause once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import Bound, TrainabilityFailure, at_least, at_most, measure, within
from pytest_trainability.measurement import Measurement

X = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))


def failed(build: Callable[[], nn.Module], x: Any, bounds: dict[str, Bound], **options: Any) -> tuple[Measurement, str]:
    """Return a measurement that does not hold, and its message on one line."""
    result = measure(build, x, **{"seeds": 2, **options})
    given: dict[str, Any] = {**bounds}
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(**given)
    return result, " ".join(str(raised.value).split())


def cured(result: Measurement, build: Callable[[], nn.Module]) -> nn.Module:
    model = build()
    result.cures()[0].apply(model)
    return model


# Zeros ------------------------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """A bottleneck beside a skip connection, whose last part may be a gain."""

    def __init__(self, *, with_gain: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(24, 8), nn.Linear(8, 24)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        if with_gain:
            self.gain = nn.Parameter(torch.zeros(24))
        else:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.up(torch.tanh(self.down(x)))
        return x + (branch * self.gain if hasattr(self, "gain") else branch)


def adapters(*, with_gain: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(24, 24), *[Adapter(with_gain=with_gain) for _ in range(3)], nn.Linear(24, 24))


@pytest.mark.parametrize(("with_gain", "drawn", "kept"), [(False, "down", "up.weight"), (True, "up", "gain")])
@pytest.mark.parametrize("measured", ["asleep_parameters", "untrained_fraction"])
def test_of_two_zeros_in_a_branch_the_last_one_stays(with_gain: bool, drawn: str, kept: str, measured: str) -> None:
    """The last zero of a branch is a design. A zero before it leaves both without a gradient."""
    build = partial(adapters, with_gain=with_gain)
    result, text = failed(build, X, {measured: at_most(0)})
    assert [cure.remedy.targets for cure in result.cures()] == [tuple(f"{i}.{drawn}.weight" for i in (1, 2, 3))]
    model = cured(result, build)
    assert not any(bool(model.get_parameter(f"{i}.{kept}").any()) for i in (1, 2, 3))
    if measured == "asleep_parameters":
        # What is zero comes before what gets no gradient because of it.
        first = result.asleep_parameters
        assert not any(bool(build().get_parameter(name).any()) for name in first[:6])
    assert f"likely cause *.{drawn}.weight (3), *.{kept} (3): zero, and never trained" in text


def test_of_three_zero_layers_in_a_row_the_last_one_stays() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(24, 24), nn.Tanh())])
        for layer in (model[2], model[4], model[6]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return model

    result, _ = failed(build, X, {"asleep_parameters": at_most(0)})
    assert [cure.remedy.targets for cure in result.cures()] == [("2.weight", "4.weight")]


# Weights and factors ----------------------------------------------------------------------------------------------


class Sines(nn.Module):
    """Sine layers of frequency 20, of which all but the first are drawn 20 times too large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(*[nn.Linear(1 if i == 0 else 48, 48) for i in range(7)])
        for i, layer in enumerate(self.inner):
            bound = 1.0 if i == 0 else math.sqrt(6 / 48)
            nn.init.uniform_(layer.weight, -bound, bound)  # type: ignore[arg-type]
        self.out = nn.Linear(48, 2)
        nn.init.uniform_(self.out.weight, -math.sqrt(6 / 48), math.sqrt(6 / 48))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = torch.sin(20 * layer(x))
        return self.out(x)  # type: ignore[no-any-return]


def test_weights_of_one_rule_are_rescaled_before_the_factor_of_the_design_is_removed() -> None:
    x = torch.rand(64, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result, text = failed(Sines, x, {"log_gain": within(5)})
    # A uniform weight in ±sqrt(6 / n) has rms sqrt(2 / n); 20 times smaller, sin(20 x) has slopes near 14 and a gain of 1.
    usual = math.sqrt(2 / 48)
    assert re.search(r"weights of rms 0\.20\d? over 48 inputs in 6 × Linear \(inner\.\*, not inner\.0\)", text)
    first = result.cures()[0]
    assert first.remedy.targets == (*(f"inner.{i}.weight" for i in range(1, 7)), "out.weight")
    assert "(inner.0.weight stays)" in first.text
    assert text.index("weights of rms") < text.index("Mul in Sines multiplies the gradient by 20")
    assert first.remedy.rms[0] * first.remedy.factors[0] == pytest.approx(usual / 20, rel=0.2)
    assert not any(cure.text.startswith("remove") for cure in result.cures()[:1])


class Mixing(nn.Module):
    """Sums over eight neighbours in each layer, by a buffer, with weights of the usual size."""

    def __init__(self) -> None:
        super().__init__()
        distance = (torch.arange(32)[:, None] - torch.arange(32)[None]).remainder(32)
        self.register_buffer("neighbours", (distance < 8).float())
        self.first, self.last = nn.Linear(24, 40), nn.Linear(40, 3)
        self.hidden = nn.ModuleList(nn.Linear(40, 40) for _ in range(5))
        for layer in self.hidden:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(x)
        for layer in self.hidden:
            h = h + torch.relu(layer(self.get_buffer("neighbours") @ h))
        return self.last(h)  # type: ignore[no-any-return]


class Weighted(nn.Module):
    """Multiplies every entry by a buffer between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(6))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
        self.register_buffer("window", torch.linspace(3, 9, 24))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:3]:
            x = layer(x) * self.get_buffer("window")
        for layer in self.layers[3:]:
            x = layer(x)
        return x


def test_a_buffer_that_the_signal_is_multiplied_with_is_named_and_healthy_weights_are_not() -> None:
    x = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    result, text = failed(Mixing, x, {"log_gain": within(3)})
    assert not any("weight" in cure.text for cure in result.cures())
    assert "multiplied with the buffer neighbours, whose rows sum to 8 on average" in text
    assert "a gain of 1 needs" not in text
    _, text = failed(Weighted, X, {"log_gain": within(2)})
    assert "multiplied with the buffer window, whose entries have rms 6." in text
    assert "a gain of 1 needs" not in text


class Decaying(nn.Module):
    """A state that decays in steps whose size depends on the input: five parameters set them, and two matter."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.step = nn.Linear(6, 24), nn.Linear(24, 24, bias=False)
        nn.init.normal_(self.step.weight, std=0.02)
        self.offset, self.rate = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.linspace(0.2, 1.0, 24))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        u = torch.tanh(self.values(x))
        size = nn.functional.softplus(self.step(u) + self.offset)
        return torch.exp(-size * self.rate.exp()) * h + size * u


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = Decaying(), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 24)
        for now in x.unbind(1):
            h = self.cell(now, h)
        return self.head(h)  # type: ignore[no-any-return]


def test_parameters_that_set_a_decay_are_ranked_and_the_one_that_is_zero_is_changed_first() -> None:
    x = torch.randn(8, 30, 6, generator=torch.Generator().manual_seed(0))
    result, text = failed(Reader, x, {"log_gain": at_least(-20)}, steps="time")
    # ln of a decay exp(-softplus(b) * exp(r)) at b = 0 has the derivatives -exp(r) / 2 and -exp(r) * ln 2: the rate comes first.
    found = re.search(r"which cell\.rate \((-[\d.]+)\), cell\.offset \((-[\d.]+)\) determine", text)
    assert found is not None, text
    print(text)
    assert float(found[1]) / float(found[2]) == pytest.approx(2 * math.log(2), rel=0.1)
    assert [cure.text.split(" from")[0] for cure in result.cures()] == ["start cell.offset", "start cell.rate"]
    assert result.cures()[0].remedy.factors[0] < 0


# Counts and places ------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A residual layer with a normalization, which cancels the bias in front of it."""

    def __init__(self, *, cancels: bool = False) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(24, 24), nn.Linear(24, 24, bias=False)
        self.norm = nn.BatchNorm1d(24) if cancels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.norm(self.inner(x))))  # type: ignore[no-any-return]


class TwoTowers(nn.Module):
    """Both towers read one table; each layer of the second gets the result of the first, and uses it only if asked to."""

    def __init__(self, *, first: int, second: int, cancels: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 24)
        self.first = nn.ModuleList(Layer(cancels=cancels) for _ in range(first))
        self.second = nn.ModuleList(Reading() for _ in range(second))
        self.head = nn.Linear(24, 11)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        memory = self.table(one)
        for layer in self.first:
            memory = layer(memory)
        x = self.table(two)
        for layer in self.second:
            x = layer(x, memory)
        return self.head(x)  # type: ignore[no-any-return]


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


IDS = torch.arange(16).remainder(11), torch.arange(16).flip(0).remainder(11)


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize(("first", "second"), [(3, 3), (4, 2), (5, 1)])
def test_the_counts_are_those_that_the_share_without_a_gradient_is_computed_from(
    first: int, second: int, cancels: bool
) -> None:
    build = partial(TwoTowers, first=first, second=second, cancels=cancels)
    result, text = failed(build, IDS, {"untrained_fraction": at_most(0.3)})
    found = re.search(r"\((\d+) of (\d+) parameters", text)
    assert found is not None, text
    print(text)
    assert int(found[1]) / int(found[2]) == pytest.approx(result.untrained_fraction.mean, abs=1e-12)
    assert "× Layer get no gradient" in text


@pytest.mark.parametrize("second", [1, 3])
def test_a_gradient_stops_where_results_are_read_and_not_used(second: int) -> None:
    build = partial(TwoTowers, first=2, second=second)
    _, text = failed(build, IDS, {"unused_parameters": at_most(0)})
    where = "second.* (3), which get them" if second > 1 else "second.0, which gets them"
    assert f"the gradient stops in {where}" in text
    assert "stops in table" not in text


class Aligned(nn.Module):
    """Multiplies the inputs by a matrix that layers make of them, or rounds them, around which another path leads."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.hidden, self.matrix = nn.Linear(24, 24), nn.Linear(24, 24 * 24)
        self.head = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4))
        if kind == "zero":
            nn.init.zeros_(self.matrix.weight)
            nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.hidden(x).tanh())
        if self.kind == "cancels":
            matrix = matrix + (matrix.round() - matrix)
        found: Tensor = self.head((matrix.view(-1, 24, 24) @ x.unsqueeze(-1)).squeeze(-1))
        return found


@pytest.mark.parametrize("kind", ["zero", "cancels"])
def test_a_zero_layer_is_told_from_an_estimator_that_cancels(kind: str) -> None:
    # The layer of zeros wakes, so that a bound judges the others.
    _, text = failed(partial(Aligned, kind), X, {"log_gain": Bound(9, 99)})
    assert ("what it reads cancels or is detached" in text) is (kind == "cancels")
    assert ("its weight matrix.weight is zero" in text) is (kind == "zero")
    assert ("skips pass by" in text) is (kind == "cancels")


class Scaled(nn.Module):
    """Adds what was computed from a parameter when the module was built, and is no parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(24)).exp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


def test_an_attribute_that_was_computed_from_a_parameter_is_named() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(24, 24), nn.Tanh(), Scaled(), nn.Linear(24, 3))

    result = measure(build, X, measures=["unregistered_parameters"], seeds=2)
    why = (
        "computed from an nn.Parameter (Exp), and so none itself: make the result one, self.offset = nn.Parameter(...)"
    )
    assert list(result.unregistered_parameters) == [f"2.offset: (24,) {why}"]


class Cube(torch.autograd.Function):
    """A cube whose backward pass takes the result for the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x * x * x
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 3 * y * y * gradients[0]  # type: ignore[no-any-return]


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(x) / 3 + x  # type: ignore[no-any-return, no-untyped-call]


def test_a_wrong_backward_pass_is_one_cause_for_all_modules_and_needs_no_more_seeds() -> None:
    def build() -> nn.Module:
        return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(24, 24), Cubed())], nn.Linear(24, 3))

    result, text = failed(build, X, {"backward_error": at_most(0.01)}, seeds=3)
    assert text.count("is not the derivative of the forward pass") == 1
    assert "the backward pass of Cube in 1, 3, 5 is not the derivative" in text
    assert all(value > 0.01 for value in result.backward_error.max.values)
    assert "marginal" not in text


class Twice(nn.Module):
    """Calls one tower on the inputs, and on points of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for view in (x, torch.ones(1, 24)):
            for layer in self.tower:
                view = torch.tanh(layer(view))
            results.append(view)
        return torch.cat(results)


def test_second_calls_of_the_modules_on_the_chain_are_no_modules_that_were_missed() -> None:
    result = measure(Twice, X, seeds=1)
    assert result.steps.left_out == "other calls of 4 × Linear (tower), which are on it"


# Data-dependent initialization ------------------------------------------------------------------------------------
class Standardized(nn.Module):
    """Takes its shift and its scale from the first batch, so that each feature has mean 0 and standard deviation 1."""

    def __init__(self, *, sign: float) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(24))
        self.sign, self.is_new = sign, True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_new:
            self.is_new = False
            self.shift.data.copy_(-x.detach().mean(0))
            self.log_scale.data.copy_(self.sign * x.detach().std(0).log())
        return (x + self.shift) * self.log_scale.exp(), self.log_scale.sum()


class Flow(nn.Module):
    """A flow of steps that each return a term of the loss, which the flow sums."""

    def __init__(self, *, sign: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([Standardized(sign=sign) for _ in range(5)])
        self.mixes = nn.ModuleList([nn.Linear(24, 24, bias=False) for _ in range(5)])
        for mix in self.mixes:
            nn.init.orthogonal_(mix.get_parameter("weight"))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        total = x.new_zeros(())
        for norm, mix in zip(self.norms, self.mixes):
            x, term = norm(mix(x))
            total = total + term
        return {"z": x, "loss": x.square().mean() - total / 24}


def test_parameters_that_the_first_forward_pass_has_written_are_named_with_their_values() -> None:
    """Scales of σ instead of 1/σ square the standard deviation in each step: from 3 to 3^32 in five steps."""
    x = 3 * torch.randn(64, 24, generator=torch.Generator().manual_seed(0)) + 1
    measure(partial(Flow, sign=-1.0), x, seeds=2).check(log_gain=within(3))
    _, text = failed(partial(Flow, sign=1.0), x, {"log_gain": within(3)})
    found = re.search(r"has changed norms\.\*\.log_scale \(means (\S+) to (\S+)\), which it reads", text)
    assert found is not None, text
    # The logarithms of the standard deviations double, from ln 3 to 8 ln 3: the fifth scale is behind the last step. Those of 64
    # samples have an error of 1/√128, which doubles as well.
    logarithms = [float(number) for number in found.groups()]
    assert logarithms == pytest.approx([math.log(3), 8 * math.log(3)], rel=0.1)
    assert "whose new values are measured: norms.*.shift, norms.*.log_scale" in text
