"""Steps that mix samples: every such step is listed, and no other."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import faults
import models
import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import Chain
from pytest_trainability.engine.jacobian.vjp import Cotangents, pull_back
from pytest_trainability.errors import InapplicableError
from pytest_trainability.measures.structure import sample_mixing
from pytest_trainability.measures.structure.sample_mixing import separating_powers, separating_subsets

WIDTH, BATCH = 8, 5


class Mixing(nn.Module):
    """A layer, and something that a step does to its batch."""

    def __init__(self, mix: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(WIDTH, WIDTH), mix

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(torch.tanh(self.inner(x)))


def one_pair(y: Tensor) -> Tensor:
    """Let the third sample read the fourth, and nothing else."""
    return torch.cat([y[:2], y[2:3] + y[3:4], y[3:]])


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over the batch": lambda y: y.softmax(0),
    "mean": lambda y: y - y.mean(0),
    "earlier samples": lambda y: y.cumsum(0),
    "later samples": lambda y: y.flip(0).cumsum(0).flip(0),
    "neighbor": lambda y: y.roll(1, 0),
    "one pair": one_pair,
    "reshape": lambda y: y.t().reshape(y.shape),
    "a trace": lambda y: y + 1e-3 * y.mean(0),
}


@pytest.mark.parametrize("samples", range(1, 18))
def test_separating_subsets_separate_every_pair(samples):
    found = [set(subset.nonzero().flatten().tolist()) for subset in separating_subsets(samples)]
    assert len(found) == 2 * (samples - 1).bit_length()
    for a, b in itertools.permutations(range(samples), 2):
        assert any(a in subset and b not in subset for subset in found)


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 300])
def test_separating_powers_differ_for_every_pair(samples):
    found = list(separating_powers(samples))
    assert len(found) == sum(samples > 16**n for n in range(3))
    assert len({tuple(powers[i].item() for powers in found) for i in range(samples)}) == samples
    assert all(1 <= power <= 2**15 and math.log2(power).is_integer() for powers in found for power in powers.tolist())


class Normalized(torch.autograd.Function):
    """A gradient of norm 1 for each sample, which is not linear in the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)


def test_a_gradient_that_is_normalized_sample_by_sample_mixes_nothing():
    def build() -> nn.Module:
        return nn.Sequential(Mixing(), Mixing(Normalized.apply), Mixing())

    result = measure(build, torch.randn(BATCH, WIDTH), steps=Mixing, measures=["interacting_samples"])
    assert list(result.interacting_samples) == []


@pytest.mark.parametrize("samples", [2, 5, 16, 17, 40])
def test_independent_samples_take_one_pass_for_each_digit(samples, monkeypatch):
    passes = Counter[int]()

    def counted(chain: Chain, index: int, columns: Cotangents) -> Cotangents:
        passes[index] += 1
        return pull_back(chain, index, columns)

    monkeypatch.setattr(sample_mixing, "pull_back", counted)
    measure(
        lambda: nn.Sequential(Mixing(), Mixing()),
        torch.randn(samples, WIDTH),
        seeds=1,
        measures=["interacting_samples"],
    )
    assert set(passes.values()) == {2 if samples <= 16 else 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_the_mixing_step_is_listed(mix, dtype):
    def build() -> nn.Module:
        return nn.Sequential(Mixing(), Mixing(mix), Mixing())

    result = measure(build, torch.randn(BATCH, WIDTH), steps=Mixing, dtype=dtype, measures=["interacting_samples"])
    assert result.frame == "joint"
    assert list(result.interacting_samples) == ["1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reader", ["first", "last"])
@pytest.mark.parametrize("samples", [2, 3, 16])
def test_a_single_sample_that_reads_the_others_is_found(samples, reader, dtype):
    """The measurement's frame may be per sample, because the leak of one sample's cotangent may be relatively small."""

    def mix(y: Tensor) -> Tensor:
        y = y.flip(0) if reader == "last" else y
        mixed = torch.cat([y[:1] - y[1:].mean(0, keepdim=True), y[1:]])
        return mixed.flip(0) if reader == "last" else mixed

    def build() -> nn.Module:
        return nn.Sequential(Mixing(), Mixing(mix), Mixing())

    inputs = torch.randn(samples, WIDTH)
    result = measure(build, inputs, steps=Mixing, dtype=dtype, seeds=4, measures=["interacting_samples"])
    assert list(result.interacting_samples) == ["1"]
    assert result.interacting_samples.counts == (1, 1, 1, 1)


def test_independent_samples_along_time():
    """Packed sequences in a recurrent layer: the cotangents of other samples are exactly zero."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(WIDTH, WIDTH, num_layers=2)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, [6, 4, 4, 1])
            return nn.utils.rnn.pad_packed_sequence(self.cell(packed)[0])[0]

    result = measure(Recurrent, torch.randn(6, 4, WIDTH), steps="time", seeds=2, measures=["interacting_samples"])
    assert result.frame == "per sample"
    assert list(result.interacting_samples) == []


def test_independent_samples():
    result = measure(lambda: nn.Sequential(Mixing(), Mixing()), torch.randn(BATCH, WIDTH))
    assert result.frame == "per sample"
    assert list(result.interacting_samples) == []
    result.check(interacting_samples=(None, 0))


def test_a_batch_of_one_sample_has_no_interaction():
    result = measure(lambda: nn.Sequential(Mixing(MIXES["mean"]), Mixing()), torch.randn(1, WIDTH))
    assert list(result.interacting_samples) == []


def test_batch_norm():
    """In train mode BatchNorm mixes samples, and the step is listed with the reason. In eval mode it does not."""
    case = next(case for case in models.ARCHITECTURES if case.joint and case.train and "batch" in case.id)
    training = measure(case.build, case.inputs, steps=case.steps, seeds=1)
    assert list(training.interacting_samples) == [f"{step}: BatchNorm" for step in training.steps]
    other = measure(case.build, case.inputs, steps=case.steps, seeds=1, train=False)
    assert list(other.interacting_samples) == []


def test_softmax_over_the_batch_in_attention():
    """Fault 32 of the benchmark, in one layer of three."""
    layer, wrong = faults.Layer, lambda: faults.Attention(across=0)
    model = nn.Sequential(layer(), layer(attention=wrong), layer())
    x = torch.randn(4, 6, faults.WIDTH)
    assert list(measure(model, x, steps=layer).interacting_samples) == ["1"]
    assert list(measure(model[::2], x, steps=layer).interacting_samples) == []


def test_samples_along_the_second_dimension():
    """Attention over the first dimension is no fault if that dimension is time. Only the inputs have the batch first."""

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, dropout=0.0) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)
            for index, layer in enumerate(self.layers):
                x = layer(x)
                if index == 1:
                    x = x + x.mean(1, keepdim=True)
            return x

    result = measure(TimeFirst, torch.randn(3, 4, WIDTH), seeds=1)
    assert result.frame == "joint"
    assert list(result.interacting_samples) == ["layers.2"]


def test_states_without_samples_are_refused():
    """The first state is one vector for the whole batch. The message gives the shapes."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean(0)
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x

    result = measure(Pooled, torch.randn(BATCH, WIDTH), seeds=1)
    with pytest.raises(
        InapplicableError, match=r"needs states whose first or second dimension counts samples.*\(8,\).*batch of 5"
    ):
        _ = result.interacting_samples


def test_an_accumulated_loss_belongs_to_no_sample():
    """A scalar in the states makes the measurement's frame joint. The steps do not mix samples."""
    case = next(case for case in models.ARCHITECTURES if case.id == "early-loss")
    result = measure(case.build, case.inputs, seeds=1)
    assert result.frame == "joint"
    assert list(result.interacting_samples) == []


def times(number: float) -> Callable[[Tensor], Tensor]:
    return lambda y: y.softmax(0) * torch.tensor(number)


@pytest.mark.parametrize("mix", [times(torch.nan), times(torch.inf), lambda y: y * torch.tensor(torch.nan)])
def test_steps_that_are_not_finite_are_listed(mix):
    """It is unknown whether samples interact in a step with NaN, and a bound of 0 does not hold."""

    def build() -> nn.Module:
        return nn.Sequential(Mixing(), Mixing(mix), Mixing())

    inputs = torch.randn(BATCH, WIDTH)
    result = measure(build, inputs, steps=Mixing, measures=["interacting_samples"])
    # In the next step the activation's slope at NaN is NaN.
    assert list(result.interacting_samples) == ["1: not finite", "2: not finite"]
    with pytest.raises(AssertionError, match="not finite"):
        result.check(interacting_samples=(None, 0))


def test_mixing_steps_are_listed_together_with_steps_that_are_not_finite():
    def build() -> nn.Module:
        return nn.Sequential(Mixing(MIXES["mean"]), Mixing(), Mixing(lambda y: y * torch.tensor(torch.nan)))

    result = measure(build, torch.randn(BATCH, WIDTH), steps=Mixing, measures=["interacting_samples"])
    assert list(result.interacting_samples) == ["0", "2: not finite"]


def test_steps_that_mix_on_some_seeds_are_counted():
    """A step that mixes samples only on some seeds is listed with the number of these seeds."""

    def build() -> nn.Module:
        mixes = bool(torch.rand(()) < 0.5)
        return nn.Sequential(Mixing(MIXES["mean"]), Mixing(MIXES["mean"] if mixes else lambda y: y))

    result = measure(build, torch.randn(BATCH, WIDTH), steps=Mixing, seeds=8)
    assert list(result.interacting_samples) == ["0", "1"]
    assert set(result.interacting_samples.counts) == {1, 2}


class Factor(nn.Module):
    """A step that multiplies its branch by a number which belongs to no sample, and passes the number on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, factor = state
        return x + factor * torch.tanh(self.inner(x)), 1.1 * factor


class Factored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.steps = nn.ModuleList(Factor() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        state = x, x.mean()
        for step in self.steps:
            state = step(state)
        return state[0] * state[1]


def test_a_number_that_all_samples_read_belongs_to_no_sample():
    """Its cotangent is the sum over samples, and is that of none of them."""
    result = measure(Factored, torch.randn(BATCH, WIDTH), steps=Factor, seeds=1)
    assert list(result.interacting_samples) == []


class Centred(nn.Module):
    """A branch that subtracts the mean over the batch, behind a gain that is zero on some draws."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.zeros(()) if float(torch.rand(())) < 0.5 else torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.inner(x))
        return x + self.gain * (y - y.mean(dim=0))


@pytest.mark.parametrize("seeds", [range(6), range(5, -1, -1)], ids=["forwards", "backwards"])
def test_a_zero_that_closes_what_mixes_samples_counts_on_its_own_seed_only(seeds: range) -> None:
    def count(seeds: range) -> tuple[int, ...]:
        found = measure(lambda: nn.Sequential(Centred(), Centred()), torch.randn(BATCH, WIDTH), seeds=seeds)
        return found.interacting_samples.counts

    alone = [count(range(seed, seed + 1))[0] for seed in seeds]
    assert len(set(alone)) > 1
    assert list(count(seeds)) == alone
