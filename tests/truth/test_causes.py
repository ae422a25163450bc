"""Causes of known faults: the place, the reason and the cure are those of the fault, and the shares add up to the log gain.

The faults are those of ``tests/faults``, each made by one argument of a builder that also makes its healthy twin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from faults import FAULTS, measured
from faults.transformers import GPT, STD
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  its own name

from pytest_trainability import Bound, TrainabilityFailure, at_most, compare, measure, within
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.records.reports import BaselineRecord
from pytest_trainability.report.changes import baseline_lines

BY_NUMBER = {fault.number: fault for fault in FAULTS}

# Number of the fault: what the cause must say, and how a cure must begin.
EXPECTED: dict[int, tuple[tuple[str, ...], str]] = {
    1: (
        ("41 × Linear (0, 2, …) multiply the gradient by 0.", "weights of rms 0.08"),
        "nn.init.normal_(model[i].weight",
    ),
    4: (("40 × ReLU (1, 3, …) have slopes of rms 0.7", "a gain of 1 needs an rms of about 0.18"), "nn.init.normal_("),
    5: (("61 × Linear (0, 2, …) multiply the gradient by 7.",), "nn.init.normal_(model[i].weight"),
    6: (("8 × Sigmoid (1, 3, …) have slopes of rms 0.24",), ""),
    8: (("(ReLU) passes no gradient: all its slopes are zero",), ""),
    12: (
        ("Branch (1, 2, …) multiply the gradient by 1.", "the skip connection by 1"),
        "nn.init.normal_(model[i].outer.weight",
    ),
    23: (
        ("12 × Conv2d (body.*) multiply the gradient by 0.1", "over 144 inputs in 11 × Conv2d (body.*, not body.0)"),
        "nn.init.normal_(body[i].weight",
    ),
    24: (("layer (RNN) multiplies the gradient by 0.7", "per time step"), "nn.init.normal_(layer.weight_hh_l0"),
    33: (("forget gates of mean bias -5 keep 0.00669 of the cell",), "a forget bias of 3.37"),
}


@pytest.mark.parametrize("number", EXPECTED)
def test_the_cause_and_the_cure_of_a_known_fault(number: int) -> None:
    says, begins = EXPECTED[number]
    result = measured(BY_NUMBER[number], range(2))
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(log_gain=within(1.5))
    text = " ".join(str(raised.value).split())
    cause = text[text.index("likely cause") :]
    assert [part for part in says if part not in cause] == [], cause
    if begins:
        assert any(cure.text.startswith(begins) for cure in result.cures()), [cure.text for cure in result.cures()]


@pytest.mark.parametrize("number", [13, 17, 22, 29])
def test_shares_add_up_to_the_log_gain(number: int) -> None:
    """Of residual networks with BatchNorm, whose samples interact, and of transformers with LayerNorm before and after."""
    result = measured(BY_NUMBER[number], range(1))
    factors = result._seed_runs.take_apart()
    # float32: a few units in the last place for each factor, whose logarithms are of order one.
    assert sum(factor.gain for factor in factors) == pytest.approx(result.log_gain.mean, abs=1e-6 * len(factors))


# Number of the fault: what the report of the preset must say, and how a cure must begin.
OF_PRESETS: dict[int, tuple[str, str]] = {
    7: (
        "constant weights: all entries of 0.weight (and 7 more) are equal",
        "draw each anew: nn.init.normal_(model[i].weight",
    ),
    8: ("reads values of mean -1 and deviation", "nn.init.zeros_(model[i].bias)"),
    10: ("the inputs have rms 14", "standardize the inputs: (x - 12"),
    14: ("the module was copied after it was drawn", "draw each anew: nn.init.normal_(encoder.layers[i].self_attn"),
    20: ("positions.weight and embedding.weight has rms 30", "nn.init.normal_(positions.weight, std=1)"),
    31: ("*.inner (24), *.outer (24): run, but their results reach the loss without a gradient", ""),
    36: ("see layers.0.feed_forward.router.bias", "nn.init.zeros_(layers[i].feed_forward.router.bias)"),
}


@pytest.mark.parametrize("number", OF_PRESETS)
def test_the_cause_and_the_cure_of_what_a_preset_finds(number: int) -> None:
    says, begins = OF_PRESETS[number]
    fault = BY_NUMBER[number]
    result = measured(fault, range(2))
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(preset=fault.family)
    text = " ".join(str(raised.value).split())
    assert says in text[text.index("likely cause") :]
    assert [cure.text.startswith(begins) for cure in result.cures()][:1] == ([True] if begins else [])
    assert all(not math.isnan(cure.after) for cure in result.cures())


class Applied(nn.Module):
    """Applies a function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def broken(function: Callable[[Tensor], Tensor], *, parameter: float = 0.0) -> nn.Module:
    """Build a ReLU tower of gain 2, which needs an explanation of its own, with a function in the middle."""
    layers: list[nn.Module] = [nn.Linear(16, 16, bias=False) for _ in range(6)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 2.0)  # type: ignore[arg-type]
    layers[4].register_parameter("bias", nn.Parameter(torch.full((16,), parameter)))
    return nn.Sequential(*layers[:3], Applied(function), *layers[3:5], nn.ReLU(), layers[5])


NOT_FINITE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "logarithm of numbers below zero": (
        lambda: broken(lambda x: x.detach().log() + x),
        "log in 3 (Applied) returns the first value that is not finite, nan, and reads values from -",
    ),
    "overflow of an exponential, then a quotient": (
        lambda: broken(lambda x: (1e3 * x.detach()).exp() / (1e3 * x.detach()).exp().sum(-1, keepdim=True) + x),
        "exp in 3 (Applied) returns the first value that is not finite, inf, and reads values from",
    ),
    "zero by zero": (lambda: broken(lambda x: x + (x - x) / (x - x)), "div in 3 (Applied) returns the first value"),
    "all scores masked": (
        lambda: broken(lambda x: x + x.masked_fill(x == x, -math.inf).softmax(-1)),
        "softmax in 3 (Applied) returns the first value that is not finite, nan, and reads values from -inf to -inf",
    ),
    "a parameter": (
        lambda: broken(lambda x: x.masked_fill(x > 9, -math.inf).exp() + x, parameter=math.nan),
        "first value that is not finite: parameter 5.bias",
    ),
}


@pytest.mark.parametrize("name", NOT_FINITE)
@pytest.mark.parametrize("bounds", [{"log_gain": within(0.1)}, {"nonfinite": at_most(0)}], ids=["growth", "values"])
def test_a_value_that_is_not_finite_is_the_cause_and_growth_is_none(name: str, bounds: dict[str, Bound]) -> None:
    build, expected = NOT_FINITE[name]
    result = measure(build, torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), seeds=2)
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(**bounds)
    cause = " ".join(str(raised.value).split("likely cause")[1].split())
    assert expected in cause
    assert "the gradient by" not in cause
    assert result.cures() == ()


def test_a_baseline_that_is_not_finite_any_more_has_the_same_cause() -> None:
    build, expected = NOT_FINITE["overflow of an exponential, then a quotient"]
    changed = BaselineRecord("changed", "f.json", "test_b", ())
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TrainabilityFailure) as raised:
        measure_in(Context(baseline=lambda *_: changed), build, x, seeds=1).check_baseline()
    assert expected in " ".join(str(raised.value).split("likely cause")[1].split())


@pytest.mark.parametrize("weight", ["attention.qkv", "feed_forward.outer"])
def test_weights_in_branches_that_are_ten_times_too_large_are_named_and_cured(weight: str) -> None:
    def build() -> nn.Module:
        model = GPT(4)
        for name, p in model.named_parameters():
            if name.endswith(f"{weight}.weight"):
                nn.init.normal_(p, std=10 * STD)
        return model

    case = BY_NUMBER[13]
    result = measured(replace(case, build=build), range(2))
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(log_gain=within(2))
    assert f"in the branches, layers.*.{weight}.weight has rms " in " ".join(str(raised.value).split())
    (cure,) = result.cures()
    assert cure.remedy.targets == tuple(f"layers.{i}.{weight}.weight" for i in range(4))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.BatchNorm1d])
@pytest.mark.parametrize("gain", [nn.init.zeros_, partial(nn.init.normal_, std=0.02)], ids=["zero", "drawn"])
@pytest.mark.parametrize("bounds", [{"log_gain": within(2)}, {"unusual_parameters": at_most(0)}], ids=["gain", "lint"])
def test_exchanged_gains_and_shifts_are_cured_together(
    kind: Callable[[int], nn.Module], gain: Callable[[Tensor], Tensor], bounds: dict[str, Bound]
) -> None:
    def build() -> nn.Module:
        norms = [kind(16) for _ in range(3)]
        for norm in norms:
            gain(norm.weight)  # type: ignore[arg-type]
            nn.init.ones_(norm.bias)  # type: ignore[arg-type]
        return nn.Sequential(*[layer for norm in norms for layer in (nn.Linear(16, 16), norm, nn.Tanh())])

    result = measure(build, torch.randn(16, 16, generator=torch.Generator().manual_seed(0)), seeds=2)
    with pytest.raises(TrainabilityFailure):
        result.check(**bounds)
    (cure,) = result.cures()
    model = build()
    cure.apply(model)
    # The last normalization is behind the chain.
    for index in (1, 4):
        assert torch.equal(model[index].weight, torch.ones(16)) and torch.equal(model[index].bias, torch.zeros(16))  # type: ignore[index]


def relu_tower(change: Callable[[nn.Sequential], None] = lambda model: None) -> nn.Sequential:
    model = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 10))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    change(model)
    return model


class Shifted(nn.Module):
    """Two factors, of which a sigmoid is one, or a ReLU behind a constant."""

    def __init__(self, *, constant: float, gated: bool = True, bias: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.constant, self.gated = constant, gated
        nn.init.constant_(self.second.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.second(x) - self.constant
        return torch.tanh(self.first(x)) * torch.sigmoid(shifted) if self.gated else torch.relu(shifted)


def with_bias(model: nn.Sequential) -> None:
    nn.init.normal_(model[-1].bias, std=20.0)  # type: ignore[arg-type]


def of_one_sign(model: nn.Sequential) -> None:
    weight = model[2].weight
    assert isinstance(weight, Tensor)
    weight.detach().copy_(-weight.detach().abs())


VECTORS = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(1))

# Model, inputs, bound, what the cause must say, and how the first cure must begin.
OF_ONE_BOUND: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Bound], str, str]] = {
    "weights of one sign behind a ReLU": (
        partial(relu_tower, of_one_sign),
        VECTORS,
        {"dead_fraction": at_most(0.5)},
        "the entries of 2.weight have mean -0.",
        "draw each anew: nn.init.normal_(model[2].weight, std=0.25)",
    ),
    "inputs below zero": (
        lambda: nn.Sequential(nn.ReLU(), *relu_tower()),
        -VECTORS.abs(),
        {"dead_fraction": at_most(0.5)},
        "which are the inputs: standardize them",
        "standardize the inputs",
    ),
    "a constant in front of a ReLU": (
        lambda: nn.Sequential(Shifted(constant=5, gated=False), *relu_tower()),
        VECTORS,
        {"dead_fraction": at_most(0.5)},
        "the constant -5 in the forward code of 0 is added",
        "remove the constant -5 that is added in 0",
    ),
    "a constant in front of a saturated sigmoid": (
        lambda: nn.Sequential(Shifted(constant=8), *relu_tower()),
        VECTORS,
        {"saturated_fraction": at_most(0.9)},
        "the constant -8 in the forward code of 0 is added",
        "remove the constant -8 that is added in 0",
    ),
    "a gain of zero in front of a ReLU": (
        lambda: relu_tower(lambda m: nn.init.zeros_(m.insert(1, nn.RMSNorm(32))[1].weight)),  # type: ignore[arg-type]
        VECTORS,
        {"dead_fraction": at_most(0.5)},
        "they are multiplied by 1.weight, which is zero",
        "nn.init.ones_(model[1].weight)",
    ),
    "constants in front of gates": (
        lambda: nn.Sequential(*[Shifted(constant=4) for _ in range(6)]),
        VECTORS,
        {"log_gain": within(13)},
        "the constant -4 in the forward code of",
        "remove the constant -4 that is added in",
    ),
    "biases of gates": (
        lambda: nn.Sequential(*[Shifted(constant=0, bias=-4) for _ in range(6)]),
        VECTORS,
        {"log_gain": within(13)},
        ".second.bias has mean -4",
        "nn.init.constant_(model[i].second.bias, 4) (the other sign)",
    ),
    "a bias of the head": (
        partial(relu_tower, with_bias),
        VECTORS,
        {"excess_loss": at_most(1)},
        "6.bias has a standard deviation of",
        "nn.init.zeros_(model[6].bias)",
    ),
    "large inputs of a classifier": (
        relu_tower,
        100 * VECTORS,
        {"excess_loss": at_most(1)},
        "the inputs have rms 10",
        "standardize the inputs",
    ),
}


@pytest.mark.parametrize("name", OF_ONE_BOUND)
def test_the_cause_and_the_cure_of_a_single_bound(name: str) -> None:
    build, inputs, bounds, says, begins = OF_ONE_BOUND[name]
    loss = {"target": LABELS, "loss": nn.functional.cross_entropy} if "excess_loss" in bounds else {}
    result = measure(build, inputs, seeds=2, **loss)  # type: ignore[arg-type]
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(**bounds)
    text = " ".join(str(raised.value).split())
    assert says in text[text.index("likely cause") :]
    cure = result.cures()[0]
    assert cure.text.startswith(begins)
    model = build()
    cure.apply(model)
    assert bool(model(inputs).isfinite().all())


class HandWritten(nn.Module):
    """An LSTM of a single layer, with all gates in one matrix; the forget gate may have a constant or a bias."""

    def __init__(self, *, constant: float = 0.0, bias: float = 0.0) -> None:
        super().__init__()
        self.inputs, self.recurrent = nn.Linear(4, 128), nn.Linear(32, 128, bias=False)
        nn.init.zeros_(self.inputs.bias)
        self.inputs.bias.data[32:64] = bias
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 32)
        for now in x.unbind(1):
            i, f, g, o = (self.inputs(now) + self.recurrent(h)).chunk(4, -1)
            c = torch.sigmoid(f + self.constant) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


class ByCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 32)
        self.cell.bias_hh.data[32:64] = -6.0

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 32)
        for now in x.unbind(1):
            h = self.cell(now, h)
        return h


@pytest.mark.parametrize(
    ("build", "says", "begins"),
    [
        (
            partial(HandWritten, bias=-5),
            "part 2 of 4 of inputs.bias has mean -5",
            "nn.init.constant_(inputs.bias.chunk(4)[1], 5) (the other sign)",
        ),
        (
            partial(HandWritten, constant=-5),
            "the constant -5 in the forward code of the model",
            "remove the constant -5",
        ),
        (ByCell, "update gates of mean bias -6", "nn.init.constant_(cell.bias_hh.chunk(3)[1], 6) (the other sign)"),
    ],
    ids=["bias", "constant", "cell"],
)
def test_what_closes_the_gate_of_a_recurrence_is_named_and_removed(
    build: Callable[[], nn.Module], says: str, begins: str
) -> None:
    x = torch.randn(8, 20, 4, generator=torch.Generator().manual_seed(0))
    result = measure(build, x, seeds=2, steps="time")
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(log_gain=within(15))
    assert says in " ".join(str(raised.value).split())
    assert result.cures()[0].text.startswith(begins)


# What a comparison with a baseline says of code that only its constants tell apart -----------------------------------
class AttentionPooling(nn.Module):
    """A recurrent layer whose outputs are averaged with weights, which should sum to one over time."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer, self.score, self.dim = nn.RNN(8, 8, batch_first=True), nn.Linear(8, 1), dim
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(x)
        return self.head((states * self.score(states).softmax(self.dim)).sum(1))


class TimedConvolutions(nn.Module):
    """Convolutions in time on a signal to which embedded times are added; all times may be read as the first one."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.times, self.first = nn.Embedding(12, 8), first
        nn.init.normal_(self.times.weight, std=2.0)
        self.layers = nn.Sequential(*(part for _ in range(3) for part in (nn.Conv1d(8, 8, 3, padding=1), nn.Tanh())))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        number = torch.arange(x.shape[1])
        times = self.times(torch.zeros_like(number) if self.first else number)
        return self.head(self.layers((x + times).transpose(1, 2)).mean(2))


class Scaled(nn.Module):
    """Embedded words, multiplied by a factor, as input of a recurrent layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.words, self.factor = nn.Embedding(20, 8), factor
        self.layer, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.words(ids) * self.factor)[0][:, -1])


def normalized(eps: float) -> nn.Module:
    """Build a perceptron whose small states are normalized with some ε."""
    layers = [part for _ in range(4) for part in (nn.Linear(8, 8), nn.RMSNorm(8, eps=eps), nn.Tanh())]
    for layer in layers[::3]:
        nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.Linear(8, 4))


def pooled(dims: tuple[int, ...]) -> nn.Module:
    class Pooled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self[1](self[0](x[:, None]))
            return self[2](hidden.amax(dims, keepdim=True).flatten(1).expand(len(x), -1))

    return Pooled(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Linear(8, 4))


def gated(quarter: int, kind: type[nn.Module] = nn.GRU) -> nn.Module:
    """Build a recurrent layer with a bias of 3 at one of its gates."""
    parts = 3 if kind is nn.GRU else 4

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = kind(8, 16, batch_first=True), nn.Linear(16, 4)
            nn.init.zeros_(self.layer.bias_ih_l0)
            self.layer.bias_ih_l0.data.chunk(parts)[quarter].fill_(3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0][:, -1])

    return Last()


def signals(generator: torch.Generator) -> Tensor:
    return torch.randn(6, 12, 8, generator=generator)


def words(generator: torch.Generator) -> Tensor:
    return torch.randint(20, (6, 12), generator=generator)


def flat(generator: torch.Generator) -> Tensor:
    return torch.randn(6, 8, generator=generator)


CHANGED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[..., Tensor], tuple[str, ...]]] = {
    "a softmax over samples": (
        partial(AttentionPooling, 1),
        partial(AttentionPooling, 0),
        signals,
        (
            "settings AttentionPooling: softmax(score, dim=1) → softmax(score, dim=0)",
            "frame per sample → joint: samples have no gradients of their own",
        ),
    ),
    "a maximum over samples": (
        partial(pooled, (2, 3)),
        partial(pooled, (0, 2, 3)),
        signals,
        ("settings Pooled:", "dim=(2, 3)", "dim=(0, 2, 3)", "as where they interact"),
    ),
    "times that are all the first": (
        partial(TimedConvolutions, first=False),
        partial(TimedConvolutions, first=True),
        signals,
        ("settings times: embedding(0…11) → embedding(0…0)",),
    ),
    "embeddings that are not multiplied": (
        partial(Scaled, 8.0),
        partial(Scaled, 1.0),
        words,
        ("settings Scaled: mul(words, 8) → mul(words, 1)",),
    ),
    "an ε that decides": (
        partial(normalized, 1e-6),
        partial(normalized, 1.0),
        flat,
        ("settings *: rms_norm((8), eps=1e-06) → rms_norm((8), eps=1) (4 of 4)",),
    ),
    "the bias of another gate": (
        partial(gated, 1),
        partial(gated, 2),
        signals,
        ("initial values layer.bias_ih_l0: thirds of mean 0, 3, 0 → 0, 0, 3",),
    ),
    "the bias of another gate of four": (
        partial(gated, 1, nn.LSTM),
        partial(gated, 3, nn.LSTM),
        signals,
        ("initial values layer.bias_ih_l0: quarters of mean 0, 3, 0, 0 → 0, 0, 0, 3",),
    ),
    "a mask for its opposite": (
        lambda: Marked(torch.eq),
        lambda: Marked(torch.ne),
        words,
        ("settings Marked: eq(0) → ne(0) (read by layers.*.self_attn as key_padding_mask)",),
    ),
    "inputs that are divided again": (
        lambda: Divided(4.0),
        lambda: Divided(16.0),
        flat,
        ("settings Divided: div(4) → div(16) (read by net.0)",),
    ),
    "a sample without a gradient": (
        lambda: Sampled("gradient"),
        lambda: Sampled("no_grad"),
        flat,
        (
            "the forward code changed, and a gradient ends in Sampled at mul(spread, 0.5, no_grad), add(mean, no_grad)",
            "settings Sampled: mul(spread, 0.5) → mul(spread, 0.5, no_grad), add(mean, no_grad) (read by decoder)",
        ),
    ),
    "a sample that is detached": (
        lambda: Sampled("gradient"),
        lambda: Sampled("detach"),
        flat,
        ("the forward code changed, and a gradient ends in Sampled at detach()", "detach() (read by decoder) new"),
    ),
    "a factor in an inner module": (
        lambda: nn.Sequential(*(Outer(1.0) for _ in range(4))),
        lambda: nn.Sequential(*(Outer(0.1) for _ in range(4))),
        flat,
        ("the forward code changed, first at 0.inner", "settings *.inner: mul(layer, 0.1) new (4 of 4)"),
    ),
    "samples for time": (
        lambda: Scan(batch_first=True),
        lambda: Scan(batch_first=False),
        signals,
        ("lstm(batch_first=True) → ", "lstm(batch_first=False)"),
    ),
}


class Marked(nn.Module):
    """PyTorch's layers with a mask of the words that are 0, or of all others, which the model makes once."""

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.words, self.function = nn.Embedding(20, 8), function
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        ids = torch.cat([ids[:, :6] % 19 + 1, torch.zeros_like(ids[:, 6:])], 1)
        x, mask = self.words(ids), self.function(ids, 0)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask)
        return self.head(x.mean(1))


class Divided(nn.Module):
    """Divides its inputs in its own code."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.net, self.by = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)), by

    def forward(self, x: Tensor) -> Tensor:
        return self.net((4 * x).clone() / self.by)


class Sampled(nn.Module):
    """Draws what it decodes, with a gradient or without one, and returns a divergence, too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.encoder, self.mean, self.spread, self.decoder = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.encoder(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.how != "no_grad"):
            drawn = mean + torch.exp(0.5 * spread) * torch.randn_like(mean)
        if self.how == "detach":
            drawn = drawn.detach()
        return self.decoder(drawn), (mean.square() + spread.exp() - spread).sum()


class Inner(nn.Module):
    """Multiplies what its layer returns, unless the factor is 1."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(8, 8), factor

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found if self.factor == 1 else found * self.factor


class Outer(nn.Module):
    """Adds what such a module returns."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), Inner(factor)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))  # type: ignore[no-any-return]


class Scan(nn.Module):
    """A layer that reads along the second dimension, or along the samples."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, 8, batch_first=batch_first), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].mean(1))


def said_of(
    old: Callable[[], nn.Module], new: Callable[[], nn.Module], inputs: Callable[..., Tensor], **given: object
) -> str:
    """Return what the report on a baseline says of the new model, the old one being recorded."""
    results = [measure(build, inputs, seeds=4, name="net", **given) for build in (old, new)]  # type: ignore[arg-type]
    changes = compare(*results, "gradient_norm", "activation_rms").changes
    record = BaselineRecord("changed", "", "", changes, model_compared=True, operations_compared=True)
    return " ".join(" ".join(baseline_lines(record, steps=tuple(results[1].growth_rate), width=10**4)).split())


@pytest.mark.parametrize(("old", "new", "inputs", "says"), CHANGED.values(), ids=CHANGED.keys())
def test_a_change_since_a_baseline_is_explained(
    old: Callable[[], nn.Module], new: Callable[[], nn.Module], inputs: Callable[..., Tensor], says: tuple[str, ...]
) -> None:
    text = said_of(old, new, inputs)
    assert [part for part in says if part not in text] == [], text


@pytest.mark.parametrize("old", [old for old, *_ in CHANGED.values()], ids=CHANGED.keys())
def test_the_same_code_has_nothing_to_explain(old: Callable[[], nn.Module]) -> None:
    inputs = next(inputs for one, _, inputs, _ in CHANGED.values() if one is old)
    results = [measure(old, inputs, seeds=seeds, name="net") for seeds in (range(4), range(4, 8))]
    assert compare(*results, "gradient_norm", "activation_rms").changes == ()


@pytest.mark.parametrize("factor", [64.0, 1 / 64])
def test_a_loss_that_is_scaled_is_told_from_a_changed_model(factor: float) -> None:
    target = torch.arange(6) % 4
    losses = (lambda out: F.cross_entropy(out, target), lambda out: factor * F.cross_entropy(out, target))
    results = [measure(partial(normalized, 1e-6), flat, seeds=4, name="net", loss=loss) for loss in losses]
    changes = compare(*results, "gradient_norm", "activation_rms").changes
    record = BaselineRecord("changed", "", "", changes, model_compared=True, operations_compared=True)
    (line,) = (line for line in baseline_lines(record, steps=(), width=10**4) if line.startswith("gradients "))
    assert f"64 times {'larger' if factor > 1 else 'smaller'}" in line and "the loss or the output is scaled" in line


# Cures after which the model trains as its twin does ------------------------------------------------------------------
def convolutions(std: float, **constant: float) -> nn.Module:
    """Build convolutions with tanh, whose biases have some size, or with ReLU and constant weights."""
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(8)]
    for layer in layers:
        assert layer.bias is not None
        nn.init.normal_(layer.weight, std=72**-0.5)
        nn.init.normal_(layer.bias, std=std)
        if constant:
            nn.init.constant_(layer.weight, constant["constant"])
    activation = nn.ReLU if constant else nn.Tanh
    return nn.Sequential(*(part for layer in layers for part in (layer, activation())))


def maps(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 8, 8, 8, generator=generator)


def cures_of(build: Callable[[], nn.Module], **bounds: Bound) -> list[str]:
    result = measure(build, maps, seeds=2, measures=list(bounds))
    with pytest.raises(TrainabilityFailure):
        result.check(**bounds)
    return [cure.text for cure in result.cures()]


def test_biases_that_exceed_the_products_are_cured_before_weights() -> None:
    """Larger weights would bring the gradient back as well, and leave most units saturated."""
    first, *_ = cures_of(partial(convolutions, 4.0), log_gain=within(4))
    assert first.startswith("nn.init.zeros_(model[i].bias) (the rms of model[0].bias, ")


def test_biases_of_the_usual_size_are_not_blamed() -> None:
    def small() -> nn.Module:
        model = convolutions(0.05)
        for layer in list(model)[::2]:  # type: ignore[call-overload]
            nn.init.normal_(layer.weight, std=0.5 * 72**-0.5)
        return model

    assert [text for text in cures_of(small, log_gain=within(4)) if "bias" in text] == []


def test_weights_that_are_drawn_anew_make_up_for_what_follows_them() -> None:
    """ReLU halves the mean square: weights over 72 inputs have a gain of 1 at a deviation of ``√(2/72)``, 0.167."""
    (first, *_) = cures_of(
        partial(convolutions, 0.0, constant=0.01), log_gain=within(2), duplicate_parameters=at_most(0)
    )
    drawn = float(first.rpartition("std=")[2].rstrip(")"))
    # The log gain of two seeds of eight narrow layers is known to about a nat, and padding loses a little.
    assert first.startswith("draw each anew") and 0.145 < drawn < 0.21
