"""The first optimizer steps: against what plain gradient descent and Adam do in closed form, and zeros that are by design."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure

F64 = torch.float64
WIDTH, CLASSES, BATCH = 6, 3, 8


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


LABELS = torch.arange(BATCH) % CLASSES


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)
    )


def probe(model, *measures: str, inputs: Any = None, **settings: Any) -> Any:
    given = {"inputs": normal(BATCH, WIDTH) if inputs is None else inputs, "dtype": F64, **settings}
    if "loss" not in given:
        given |= {"loss": F.cross_entropy, "target": LABELS}
    return measure(model, measures=measures, **given)


# update_ratio ------------------------------------------------------------------------------------------------------


def sgd(rate: float, **settings: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **settings)


@pytest.mark.parametrize("build", [mlp, lambda: nn.Sequential(mlp(), nn.BatchNorm1d(CLASSES))], ids=["mlp", "joint"])
def test_gradient_descent_moves_by_the_rate_times_the_gradient(build):
    found = probe(build, "update_ratio", "relative_gradient_norm", optimizer=sgd(0.1), seeds=2)
    assert list(found.update_ratio) == [n for n, e in found.relative_gradient_norm.items() if e < math.inf]
    for name, ratio in found.update_ratio.items():
        # The difference of two float64 has lost the bits of `w` below 2^-53 ‖w‖, which is 1e-16 of the ratio itself.
        exact = [0.1 * value for value in found.relative_gradient_norm[name].values]
        assert all(abs(r - e) < 1e-15 + 1e-13 * e for r, e in zip(ratio.values, exact))


def test_float32_keeps_what_rounding_leaves():
    """Where the step is below half a unit in the last place of every entry, nothing moves."""
    found = probe(mlp, "update_ratio", optimizer=sgd(1e-12), dtype=torch.float32, inputs=normal(BATCH, WIDTH).float())
    assert found.update_ratio["0.weight"] == 0
    assert probe(mlp, "update_ratio", optimizer=sgd(1e-12)).update_ratio["0.weight"] > 0


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p, **s: torch.optim.AdamW(p, weight_decay=0, **s)])
def test_the_first_step_of_adam_has_the_rate_for_a_length_in_every_entry(make):
    """Its bias correction makes it `lr · sign(g)`, but for `eps` beside the gradient."""
    model = mlp().double()
    found = probe(model, "update_ratio", optimizer=lambda p: make(p, lr=1e-3, eps=1e-30))
    for name, p in model.named_parameters():
        exact = 1e-3 * math.sqrt(p.numel()) / float(p.detach().norm())
        # Rounding of `w` to 2^-53 beside a step of 1e-3 in each entry.
        assert abs(found.update_ratio[name] / exact - 1) < 1e-12


def test_without_an_optimizer_it_is_adamw_with_a_rate_of_a_thousandth():
    model = mlp().double()
    named, default = (
        probe(model, "update_ratio", optimizer=o) for o in (lambda p: torch.optim.AdamW(p, lr=1e-3), None)
    )
    assert {n: e.values for n, e in named.update_ratio.items()} == {
        n: e.values for n, e in default.update_ratio.items()
    }


def test_weight_decay_alone_moves_by_rate_times_decay():
    """A parameter with a gradient of zero still decays: AdamW takes off `lr · decay · w`."""
    model = mlp().double()
    nn.init.zeros_(model[4].weight)
    found = probe(model, "update_ratio", optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1))
    assert abs(found.update_ratio["0.weight"] - 1e-3) < 1e-14
    assert "4.weight" not in found.update_ratio  # all zeros: no ratio


def test_what_the_optimizer_does_not_hold_does_not_move():
    found = probe(mlp, "update_ratio", optimizer=lambda p: torch.optim.SGD([q for q in p if q.dim() == 2], lr=0.1))
    assert found.update_ratio["0.bias"] == 0
    assert found.update_ratio["0.weight"] > 0


def test_a_tied_weight_moves_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.layers[2].weight = self.layers[0].weight

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x

    found = probe(Tied, "update_ratio", "relative_gradient_norm", optimizer=sgd(0.1))
    assert "layers.2.weight" not in found.update_ratio
    ratio, gradient = found.update_ratio["layers.0.weight"], found.relative_gradient_norm["layers.0.weight"]
    assert abs(ratio / (0.1 * gradient.mean) - 1) < 1e-12


# loss_drop ---------------------------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """Its loss is `offset + ½ Σ a_i w_i²`, whatever comes in."""

    def __init__(self, a: list[float], offset: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(1.0, len(a) + 1, dtype=F64))
        self.a, self.offset = torch.tensor(a, dtype=F64), offset

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.sum() + self.offset + 0.5 * (self.a * self.w**2).sum()


def falls(model: nn.Module, optimizer: Any) -> float:
    return probe(model, "loss_drop", loss=torch.sum, optimizer=optimizer, steps=type(model)).loss_drop.mean


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.7])
@pytest.mark.parametrize("offset", [0.0, 5.0, -100.0])
def test_ten_steps_of_gradient_descent_on_a_quadratic(rate, offset):
    """`w_i → (1 - lr a_i)^10 w_i`; the drop is a part of the first loss's modulus."""
    a = [0.5, 1.0, 3.0]
    before = [0.5 * k * w * w for k, w in zip(a, (1, 2, 3))]
    after = [energy * (1 - rate * k) ** 20 for k, energy in zip(a, before)]
    exact = (sum(before) - sum(after)) / abs(sum(before) + offset)
    # Sums and powers of numbers of size up to 100.
    assert abs(falls(Bowl(a, offset), sgd(rate)) - exact) < 1e-12 * max(1, abs(exact))


def test_beyond_the_stable_rate_the_loss_grows():
    assert falls(Bowl([1.0]), sgd(2.01)) < 0 < falls(Bowl([1.0]), sgd(1.99))


def test_a_loss_of_zero_has_no_part():
    assert math.isnan(falls(Bowl([0.0]), sgd(0.1)))


def test_where_it_diverges_there_is_no_number():
    assert math.isnan(falls(Bowl([1.0]), sgd(1e300)))


def test_dropout_masks_stay_the_same_while_the_loss_falls():
    """With a rate of zero nothing changes, so that whatever else would differ is seen."""
    model = nn.Sequential(mlp(), nn.Dropout(0.5), nn.Linear(CLASSES, CLASSES)).double()
    assert probe(model, "loss_drop", optimizer=sgd(0.0)).loss_drop == 0


# Zeros by design ---------------------------------------------------------------------------------------------------


def zero(layer: nn.Module) -> nn.Module:
    """Set weight and bias to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Residual(nn.Module):
    """`x + scale · branch(x)`, a branch of two layers."""

    def __init__(self, *, zero_branch: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = None if scale is None else nn.Parameter(torch.full((WIDTH,), scale))
        if zero_branch:
            zero(self.outer)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.outer(torch.relu(self.inner(x)))
        return x + (branch if self.scale is None else self.scale * branch)


class NormalizedBranch(nn.Module):
    """A branch that ends in a BatchNorm whose gain is zero (Goyal et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.outer(torch.relu(self.inner(x))))


def tower(block: Callable[[], nn.Module], *, zero_head: bool = False, depth: int = 3) -> nn.Module:
    head = nn.Linear(WIDTH, CLASSES)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *(block() for _ in range(depth)), zero(head) if zero_head else head)


class AdaptiveBlock(nn.Module):
    """A block of a diffusion transformer: shift, scale and gate come from the condition, by a layer that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.modulation = zero(nn.Linear(WIDTH, 3 * WIDTH))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(condition)).chunk(3, dim=-1)
        return x + gate * self.branch(self.norm(x) * (1 + scale) + shift)


class DiffusionTransformer(nn.Module):
    """DiT (Peebles & Xie 2023) without attention: modulation and head start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.condition = nn.Linear(WIDTH, WIDTH), nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList(AdaptiveBlock() for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation, self.head = zero(nn.Linear(WIDTH, 2 * WIDTH)), zero(nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, condition = self.embedding(x), self.condition(time)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class LowRank(nn.Module):
    """A frozen layer beside a low-rank update whose second factor starts at zero (LoRA, Hu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.A, self.B = nn.Linear(WIDTH, 2, bias=False), zero(nn.Linear(2, WIDTH, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x) + self.B(self.A(x)))


def woken(found) -> dict[str, float]:
    return {name: step.mean for name, step in found.waking_step.items() if step.mean}


DESIGNS = [
    pytest.param(
        lambda: tower(lambda: Residual(zero_branch=True)),
        {f"{i}.inner.{kind}": 1 for i in (1, 2, 3) for kind in ("weight", "bias")},
        id="zero branch",
    ),
    pytest.param(
        lambda: tower(lambda: Residual(scale=0.0)),
        {f"{i}.{layer}.{kind}": 1 for i in (1, 2, 3) for layer in ("inner", "outer") for kind in ("weight", "bias")},
        id="gate",
    ),
    pytest.param(
        lambda: tower(NormalizedBranch),
        {
            **{f"{i}.{name}": 1 for i in (1, 2, 3) for name in ("inner.weight", "inner.bias", "outer.weight")},
            # The normalization subtracts the mean, and with it this bias.
            **{f"{i}.outer.bias": math.inf for i in (1, 2, 3)},
        },
        id="zero gain",
    ),
    pytest.param(lambda: tower(nn.Identity, zero_head=True), {"0.weight": 1, "0.bias": 1}, id="zero head"),
    pytest.param(lambda: tower(lambda: Residual(scale=1e-6)), {}, id="layer scale, which is small and not zero"),
    pytest.param(
        lambda: tower(lambda: Residual(zero_branch=True), zero_head=True),
        {
            **{f"0.{kind}": 1 for kind in ("weight", "bias")},
            **{f"{i}.outer.{kind}": 1 for i in (1, 2, 3) for kind in ("weight", "bias")},
            **{f"{i}.inner.{kind}": 2 for i in (1, 2, 3) for kind in ("weight", "bias")},
        },
        id="zero branches behind a zero head",
    ),
    pytest.param(
        lambda: nn.Sequential(*(LowRank() for _ in range(3)), nn.Linear(WIDTH, CLASSES)),
        {f"{i}.A.weight": 1 for i in range(3)},
        id="low rank",
    ),
]


@pytest.mark.parametrize("rate", [1e-5, 0.1])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("build", "steps"), DESIGNS)
def test_what_is_zero_by_design_wakes(build, steps, optimizer, rate):
    found = probe(
        build,
        "waking_step",
        "asleep_parameters",
        seeds=2,
        optimizer=lambda p: optimizer(p, lr=rate),
        dtype=torch.float32,
    )
    assert woken(found) == steps
    assert not found.asleep_parameters
    assert not found.unused_parameters


def test_a_diffusion_transformer_wakes_in_two_steps():
    """The head first; then the stream before it and the gates; then what is behind the gates, and the condition."""
    found = probe(
        DiffusionTransformer,
        "waking_step",
        "asleep_parameters",
        inputs=(normal(BATCH, WIDTH), normal(BATCH, 2, seed=1)),
    )
    steps = {name: step.mean for name, step in found.waking_step.items()}
    assert {n for n, s in steps.items() if s == 0} == {"head.weight", "head.bias"}
    first = {n for n, s in steps.items() if s == 1}
    assert first == {"embedding.weight", "embedding.bias"} | {n for n in steps if "modulation" in n}
    assert {n for n, s in steps.items() if s == 2} == {n for n in steps if "branch" in n or n.startswith("condition")}
    assert not found.asleep_parameters


def test_three_zeros_one_inside_the_other_wake_in_three_steps():
    """A zero head, a zero gate before it, and a zero gate inside of that gate's branch."""

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry, self.outer, self.inner = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.gates = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(2))
            self.head = zero(nn.Linear(WIDTH, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            h = self.entry(x)
            branch = self.outer(h).tanh() + self.gates[1] * self.inner(h).tanh()
            return self.head(h + self.gates[0] * branch)

    found = probe(Nested, "waking_step", "asleep_parameters", optimizer=sgd(0.1))
    steps = {name: step.mean for name, step in found.waking_step.items()}
    expected = {"head": 0, "entry": 1, "gates.0": 1, "outer": 2, "gates.1": 2, "inner": 3}
    assert all(steps[name] == step for name in steps for start, step in expected.items() if name.startswith(start))
    assert not found.asleep_parameters


def test_fixup_wakes():
    """Zhang et al. (2019): the last layer of each branch and the head are zero, scalar biases around, one scalar gain."""

    class Fixup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.biases = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(4))
            self.gain = nn.Parameter(torch.ones(()))
            self.inner, self.outer = nn.Linear(WIDTH, WIDTH, bias=False), zero(nn.Linear(WIDTH, WIDTH, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            b = self.biases
            return torch.relu(x + self.gain * self.outer(torch.relu(self.inner(x + b[0]) + b[1]) + b[2]) + b[3])

    found = probe(lambda: tower(Fixup, zero_head=True), "waking_step", "asleep_parameters")
    assert not found.asleep_parameters
    assert max(woken(found).values()) == 2


# Faults ------------------------------------------------------------------------------------------------------------


def dead_layer() -> nn.Module:
    """Build a tower whose second layer no input gets through."""
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )
    nn.init.constant_(model[2].bias, -100.0)
    return model


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_dead_units_sleep_on(optimizer):
    found = probe(dead_layer, "waking_step", "asleep_parameters", seeds=2, optimizer=lambda p: optimizer(p, lr=1e-3))
    # All in front of them, and the weights that read nothing but their zeros.
    assert set(found.asleep_parameters) == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight"}
    assert found.asleep_parameters.counts == (5, 5)
    assert found.waking_step["4.bias"] == 0
    assert found.waking_step["0.weight"] == math.inf
    assert not found.unused_parameters


def test_a_zero_in_front_of_a_relu_sleeps_on():
    """Its derivative at zero is zero (PyTorch), so that a zero there is no initialization."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), zero(nn.Linear(WIDTH, WIDTH)), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    found = probe(model, "asleep_parameters")
    assert set(found.asleep_parameters) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight"}


def test_two_zeros_in_a_row_sleep_on():
    """Each hides the other: a product of two zeros has no gradient by either."""
    found = probe(lambda: tower(lambda: Residual(zero_branch=True, scale=0.0), depth=2), "asleep_parameters")
    assert "1.outer.weight" in found.asleep_parameters and "1.scale" in found.asleep_parameters


def test_a_detached_branch_is_unused_and_not_asleep():
    class Detached(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.outer(self.inner(x)).detach()

    found = probe(lambda: tower(Detached), "asleep_parameters", "waking_step")
    assert not found.asleep_parameters
    assert len(found.unused_parameters) == 12
    assert not set(found.unused_parameters) & set(found.waking_step)


def test_a_branch_that_is_dropped_at_random_wakes_with_other_masks():
    """Stochastic depth drops a branch for all samples alike: its gradient is zero by accident."""

    class Dropped(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return x + (torch.rand(()) > 0.5) * self.outer(torch.relu(self.inner(x)))

    found = probe(lambda: tower(Dropped, depth=4), "waking_step", "asleep_parameters", seeds=8)
    steps = {value for step in found.waking_step.values() for value in step.values}
    assert {0.0, 1.0} <= steps
    # One in 16 is dropped all four times; with one set of masks it would be one in two.
    assert sum(found.asleep_parameters.counts) <= 4 * 4


def test_without_a_loss_a_random_functional_wakes_as_well():
    found = measure(lambda: tower(lambda: Residual(scale=0.0)), normal(BATCH, WIDTH).float(), measures=["waking_step"])
    assert set(woken(found).values()) == {1.0}
    assert not found.asleep_parameters


def test_a_zero_head_of_a_library_wakes():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )

    def build() -> nn.Module:
        model = transformers.BertForSequenceClassification(config)
        zero(model.classifier)
        return model

    ids = torch.randint(0, 13, (BATCH, 5), generator=torch.Generator().manual_seed(0))
    found = measure(
        build, {"input_ids": ids, "labels": LABELS % 2}, measures=["waking_step", "asleep_parameters", "update_ratio"]
    )
    assert not found.asleep_parameters
    assert {n for n, step in found.waking_step.items() if step == 0} == {"classifier.weight", "classifier.bias"}
    # The softmax does not see the bias of the keys.
    assert {n for n, step in woken(found).items() if step == math.inf} == {
        n for n in found.waking_step if "key.bias" in n
    }
    assert set(woken(found).values()) == {1.0, math.inf}
