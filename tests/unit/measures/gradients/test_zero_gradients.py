"""Gradients that are zero: optimizer steps that wake parameters, and which further passes are run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.gradients.zero_gradients import WAKING_LIMIT, _Sums

X = torch.tensor([[1.0]], dtype=torch.float64)
SGD = partial(torch.optim.SGD, lr=0.25)


def chain(*factors: float) -> nn.Module:
    """Return ``x · a · b · …``, with scalar factors."""
    layers = [nn.Linear(1, 1, bias=False).double() for _ in factors]
    for layer, factor in zip(layers, factors):
        nn.init.constant_(layer.weight, factor)
    return nn.Sequential(*layers)


class Counted(nn.Module):
    """Counts its forward passes, over all copies."""

    passes = 0

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        type(self).passes += 1
        out: Tensor = self.body(x)
        return out


X6 = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Shrunk(nn.Module):
    """A layer, and another one whose output is made small."""

    def __init__(self, shrink: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.branch, self.shrink = nn.Linear(6, 6), nn.Linear(6, 6), shrink

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) + self.shrink(self.branch(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.head((self.query(x) @ self.key(x).mT).softmax(-1) @ x))
        return out


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_parameters_wake_one_step_after_the_zero_that_hides_them(zeros: int) -> None:
    """The loss ``Σ x · …`` has a gradient for a single zero factor. It moves in the first step, and the others wake."""
    factors = [2.0] * (3 - zeros) + [0.0] * zeros
    result = measure(chain(*factors), X, loss=torch.sum, optimizer=SGD)
    steps = [e.mean for e in result.waking_step.values()]
    if zeros == 0:
        assert steps == [0, 0, 0]
    elif zeros == 1:
        assert steps == [1, 1, 0]
    else:
        # Each of two zeros hides the other one's gradient.
        assert steps == [math.inf] * 3
    asleep = [n for n, e in result.waking_step.items() if math.isinf(e.mean)]
    # Those that are zero come first.
    assert list(result.asleep_parameters) == sorted(asleep, key=lambda name: factors[int(name[0])] != 0)


def test_a_step_that_is_not_finite_leaves_the_waking_step_unknown() -> None:
    result = measure(chain(2.0, 0.0), X, loss=torch.sum, optimizer=partial(torch.optim.SGD, lr=math.inf))
    assert math.isnan(result.waking_step["0.weight"].mean)
    assert result.waking_step["1.weight"].mean == 0
    assert list(result.gradient_classes) == ["0.weight: zero, an optimizer step was not finite"]


def test_no_more_than_three_steps_are_taken() -> None:
    taken = []

    class CountedSGD(torch.optim.SGD):
        def step(self, closure=None):
            taken.append(1)
            return super().step(closure)

    measure(chain(0.0, 0.0), X, loss=torch.sum, optimizer=partial(CountedSGD, lr=0.1))
    assert len(taken) == WAKING_LIMIT == 3


def test_without_small_gradients_nothing_is_run_again() -> None:
    Counted.passes = 0
    result = measure(Counted(chain(2.0, 1.0)), X, loss=torch.sum)
    assert Counted.passes == 1
    assert not result.gradient_classes and result.untrained_fraction == 0


def test_a_small_factor_explains_a_small_gradient() -> None:
    Counted.passes = 0
    result = measure(Counted(Shrunk(lambda x: 1e-12 * x)), X6, loss=torch.sum)
    assert result.gradient_norm["body.branch.weight"] < 1e-10
    assert Counted.passes == 1
    assert not result.gradient_classes


def test_a_small_gradient_is_computed_once_more() -> None:
    """A quotient may cancel, and is not looked at."""
    Counted.passes = 0
    result = measure(Counted(Shrunk(lambda x: x / 1e12)), X6, loss=torch.sum)
    assert Counted.passes == 2
    assert not result.gradient_classes


def test_a_bias_that_cancels_for_every_cotangent_is_known_without_another_pass() -> None:
    Counted.passes = 0
    result = measure(
        Counted(Attention()), torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)), loss=torch.sum
    )
    assert list(result.gradient_classes) == ["body.key.bias: zero by algebra"]
    assert Counted.passes == 1


def test_the_model_is_left_unchanged() -> None:
    model = chain(1e-12, 0.0)
    memory = [p.data_ptr() for p in model.parameters()]
    measure(model, X, loss=torch.sum, optimizer=SGD)
    assert [float(p.detach()) for p in model.parameters()] == [1e-12, 0.0]
    assert all(p.grad is None and p.dtype == torch.float64 for p in model.parameters())
    assert memory == [p.data_ptr() for p in model.parameters()]


class Cancelled(nn.Module):
    """A bias before a normalization over the batch, whose gradient cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.layer(x))))


def test_later_seeds_reuse_which_sums_cancel() -> None:
    """Whether a sum cancels is a property of the architecture. Later seeds run no further forward pass."""
    Counted.passes = 0
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    result = measure(lambda: nn.Sequential(Counted(Cancelled())), x, seeds=3, steps="layers")
    assert list(result.gradient_classes) == ["0.body.layer.bias: zero by algebra"]
    passes = Counted.passes
    Counted.passes = 0
    assert measure(lambda: nn.Sequential(Counted(Cancelled())), x, seeds=1, steps="layers").gradient_classes
    assert passes == Counted.passes + 2


def normalized(width: int = 6) -> nn.Module:
    """Return a layer between batch normalizations, whose bias has no effect, and an activation."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh())


def test_biases_before_batch_normalizations_are_known_without_another_pass() -> None:
    """Samples interact, so that the joint chain is observed; the bias in the head is behind its last state."""
    Counted.passes = 0

    def build() -> nn.Module:
        body = nn.Sequential(*(normalized() for _ in range(4)))
        return Counted(nn.Sequential(body, nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))

    settings = {"loss": nn.functional.cross_entropy, "target": torch.arange(16) % 3, "seeds": 2}
    result = measure(build, X6, steps=[f"body.0.{number}" for number in range(4)], **settings)
    assert result.frame == "joint"
    biases = [*(f"body.0.{number}.0.bias" for number in range(4)), "body.1.bias"]
    assert list(result.gradient_classes) == [f"{name}: zero by algebra" for name in biases]
    assert Counted.passes == 2


class ZeroBranches(nn.Module):
    """Residual blocks whose last normalization is multiplied by zero. Normalizations cancel the biases of layers."""

    in_float64 = 0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(normalized(), nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(3))
        for block in self.blocks:
            nn.init.zeros_(block[2].weight)

    def forward(self, x: Tensor) -> Tensor:
        type(self).in_float64 += x.dtype == torch.float64
        for block in self.blocks:
            x = x + block(x)
        return x


def test_later_seeds_reuse_which_sums_cancel_after_a_step() -> None:
    """The gradients are zero until an optimizer step has moved the weights of the normalizations."""

    def classes(seeds: int) -> list[str]:
        ZeroBranches.in_float64 = 0
        result = measure(ZeroBranches, X6, seeds=seeds, loss=lambda y: y.sin().sum())
        return list(result.gradient_classes)

    alone, count = classes(1), ZeroBranches.in_float64
    assert count > 0
    assert "blocks.0.0.0.bias: zero by algebra" in alone
    assert "blocks.0.0.0.weight: waking at step 1" in alone
    assert classes(3) == alone and ZeroBranches.in_float64 == count


class ZeroBranchesWithoutBiases(ZeroBranches):
    """The same with layers that have no biases, as in residual networks for images."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.bias = None


def test_terms_show_after_a_step_that_gradients_are_signals() -> None:
    """The step moves the weights of the last normalizations to 1e-3. Gradients behind them are small, as are their terms."""
    ZeroBranchesWithoutBiases.in_float64 = 0
    result = measure(
        lambda: nn.Sequential(ZeroBranchesWithoutBiases(), nn.Linear(6, 2)), X6, seeds=2, loss=lambda y: y.sin().sum()
    )
    steps = {name: value.mean for name, value in result.waking_step.items()}
    assert steps["0.blocks.0.0.0.weight"] == 1 and steps["0.blocks.0.2.weight"] == 0
    assert ZeroBranchesWithoutBiases.in_float64 == 0


class Tiny(nn.Module):
    """A layer whose gradient is too small for float32, and one whose gradient is small."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.small, self.tiny = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.small(x) / 1e12 + self.tiny(x) / 1e25 / 1e25


def test_later_seeds_reuse_which_gradients_underflow() -> None:
    def classes(seeds: int) -> list[str]:
        Counted.passes = 0
        result = measure(lambda: Counted(Tiny()), X6, seeds=seeds, loss=lambda y: y.sum())
        return list(result.gradient_classes)

    alone, passes = classes(1), Counted.passes
    assert any(line.startswith("body.tiny") for line in alone)
    assert classes(3) == alone and Counted.passes == 3 * passes - 2


class Gated(nn.Module):
    """Residual blocks behind gates of zero. On some draws, the units of the last block are dead as well."""

    def __init__(self, *, dead: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(3))
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(3))
        if float(torch.rand(())) < dead:
            nn.init.constant_(self.blocks[2][0].bias, -1e3)

    def forward(self, x: Tensor) -> Tensor:
        for block, gate in zip(self.blocks, self.gates):
            x = x + gate * block(x)
        return x


def test_units_that_are_dead_on_some_draws_are_found_on_every_seed() -> None:
    """Behind a gate of zero, the gradients of dead units and of others are zero alike. Only optimizer steps tell them apart."""

    def steps(seeds: Iterable[int]) -> tuple[float, ...]:
        result = measure(partial(Gated, dead=0.5), X6, seeds=seeds, loss=lambda y: y.sin().sum())
        return result.waking_step["blocks.2.0.bias"].values

    found = steps(range(8))
    assert set(found) == {1.0, math.inf}
    assert found == tuple(steps([seed])[0] for seed in range(8))


class Contrast(nn.Module):
    """A bias of a contrast between samples, whose weights cancel in pairs: exactly on some draws, up to round-off on others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, drawn = nn.Linear(6, 6), nn.Linear(6, 1), torch.randn(8)
        sizes = torch.ones(8) if torch.rand(()) < 0.5 else drawn
        self.weights = torch.cat([sizes, -sizes])[torch.randperm(16)].unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * self.head(torch.tanh(self.layer(x)))


@pytest.mark.parametrize("seeds", [range(6), range(5, -1, -1)], ids=["round-off first", "zero first"])
def test_a_sum_that_cancels_has_one_class_whether_it_is_zero_or_round_off(seeds: range) -> None:
    result = measure(Contrast, X6, seeds=seeds, loss=torch.sum)
    sizes = result.gradient_norm["head.bias"].values
    assert 0 in sizes and any(sizes)
    assert list(result.gradient_classes) == ["head.bias: zero by algebra"]


class EqualTokensOnSomeDraws(nn.Module):
    """Attention with an output of zero. On some draws, the units before it are dead, and all tokens are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.query, self.out = (nn.Linear(6, 6) for _ in range(4))
        nn.init.zeros_(self.out.weight)
        if float(torch.rand(())) < 0.5:
            nn.init.constant_(self.first.bias, -1e3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return x + self.out((self.query(x) @ self.out(x).mT).softmax(-1) @ x)


@pytest.mark.parametrize("seeds", [range(6), range(5, -1, -1)])
def test_what_differs_between_draws_is_found_on_every_seed_in_any_order(seeds: range) -> None:
    def classes(seeds: Sequence[int]) -> dict[str, tuple[float, ...]]:
        result = measure(EqualTokensOnSomeDraws, X6, seeds=seeds, loss=lambda y: y.sin().sum())
        return {name: result.waking_step[name].values for name in ("query.weight", "query.bias")}

    alone = [classes([seed]) for seed in seeds]
    together = classes(seeds)
    assert {name: tuple(found[name][0] for found in alone) for name in together} == together
    assert len(set(together["query.bias"])) == 2


class NormalizedOnSomeDraws(nn.Module):
    """A bias before a normalization, whose sum cancels. On some draws, all units behind the normalization are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        if float(torch.rand(())) < 0.5:
            nn.init.constant_(self.norm.bias, -1e3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(x)).relu())


class DeadOrGated(nn.Module):
    """Units of a branch are dead on some draws, and a gate of zero is before them on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.gate = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Parameter(torch.ones(()))
        self.is_dead = float(torch.rand(())) < 0.5
        nn.init.constant_(self.norm.bias if self.is_dead else self.gate, -1e3 if self.is_dead else 0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.norm(self.layer(x)).relu()


class ZeroBeforeNormalization(nn.Module):
    """On some draws, a weight before a normalization is zero. All samples are equal behind it, and gradients are round-off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.norm, self.head = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 1),
        )
        if float(torch.rand(())) < 0.5:
            nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.first(x))).relu())


class EqualSamples(nn.Module):
    """A difference of samples. They are equal on some draws, where units are dead, so that all gradients are round-off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.branch, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.is_dead = float(torch.rand(())) < 0.5
        nn.init.constant_(self.second.bias if self.is_dead else self.out.weight, -1e3 if self.is_dead else 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)).relu()
        scores = torch.tanh(x + self.out(torch.tanh(self.branch(x))))
        return scores[:8] - scores[8:]


@pytest.mark.parametrize("model", [NormalizedOnSomeDraws, DeadOrGated, ZeroBeforeNormalization, EqualSamples])
@pytest.mark.parametrize("seeds", [range(6), range(5, -1, -1)], ids=["forwards", "backwards"])
def test_what_does_not_train_on_some_draws_is_found_on_each_of_them(model: type[nn.Module], seeds: range) -> None:
    """Neither the other draws, nor measures that are read later, in further runs of the seeds, change it."""

    def loss(y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(y, torch.arange(8) % 3) if model is EqualSamples else y.sin().sum()

    def found(seeds: Sequence[int]) -> list[tuple[float, ...]]:
        result = measure(model, X6, seeds=seeds, loss=loss)
        fractions, steps = result.untrained_fraction.values, [series.values for series in result.waking_step.values()]
        return list(zip(fractions, *steps))

    alone = [found([seed])[0] for seed in seeds]
    assert len({fraction for fraction, *_ in alone}) > 1
    assert found(seeds) == alone


class NormalizedBlock(nn.Module):
    """A block that has a normalization on some draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6) if float(torch.rand(())) < 0.5 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.layer(x)))


def test_a_draw_with_other_modules_is_examined_for_itself() -> None:
    def fractions(seeds: Sequence[int]) -> list[float]:
        result = measure(
            lambda: nn.Sequential(*(NormalizedBlock() for _ in range(3)), nn.Linear(6, 1)),
            X6,
            seeds=seeds,
            loss=lambda y: y.square().mean(),
        )
        return list(result.untrained_fraction.values)

    assert fractions(range(6)) == [fractions([seed])[0] for seed in range(6)]


def test_answers_hold_for_gradients_of_like_sizes_only() -> None:
    """A third of the digits of float32 is a factor of 203."""
    sums = _Sums(torch.finfo(torch.float32).eps, by_algebra=["sum"])
    sums.add({"signal": False, "round-off": True}, {"largest": 1.0, "signal": 1e-5, "round-off": 1e-8})

    def answers(name: str, **sizes: float) -> dict[str, bool] | None:
        return sums.answers({name}, {"largest": 1.0, "signal": 1e-5, "round-off": 1e-8, "sum": 1e-4} | sizes)

    assert sums.answers({"signal", "sum"}, {"largest": 1.0, "signal": 1e-5, "sum": 1e-4}) == {
        "signal": False,
        "sum": True,
    }
    assert (
        answers("signal", signal=1e-5 / 200)
        == answers("signal", largest=200.0)
        == answers("signal", signal=1e-3)
        == {"signal": False}
    )
    assert answers("signal", signal=1e-5 / 210) is answers("signal", largest=210.0) is None
    assert answers("round-off", **{"round-off": 200e-8}) == answers("round-off", largest=1e3) == {"round-off": True}
    assert answers("round-off", **{"round-off": 210e-8}) is answers("round-off", largest=1e-3) is None
    assert answers("sum", sum=1e-1, largest=1e-9) == {"sum": True}
    assert answers("largest") is None
    sums.add({"sum": False}, {"largest": 1.0, "sum": 1e-4})
    assert answers("sum") == {"sum": False}
    assert answers("sum", sum=1e-7) is None
