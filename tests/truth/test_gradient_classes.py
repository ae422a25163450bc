"""Classes of gradients, derived by hand: signal, waking, zero by algebra, dead, unused, frozen.

No class depends on a name or on the size of a gradient. A sum that cancels is zero for any weights:

- a normalization subtracts the mean over the batch, and with it a bias that is added before it;
- a softmax over keys does not change if the same number is added to all scores of a query, as the bias of the keys does;
- ``p / (p + ε)`` is constant up to ``ε``, and so is a softmax of one score;
- a difference of two scores does not see their bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import Measurement, at_least, at_most, measure

WIDTH, BATCH, CLASSES = 16, 12, 4
X = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(BATCH) % CLASSES
LOSS = {"loss": F.cross_entropy, "target": TARGET}
CANCELS, CANCELS_WEIGHT = "zero by algebra", "zero by algebra, a weight"


def classified(build: Callable[[], nn.Module] | nn.Module, inputs: Any = X, **options: Any) -> Measurement:
    return measure(build, inputs, seeds=1, **{**LOSS, **options})


def classes(result: Measurement) -> dict[str, str]:
    return {name: label for name, _, label in (line.rpartition(": ") for line in result.gradient_classes)}


# Zero by algebra ---------------------------------------------------------------------------------------------------
def normalized(*, dropout: float = 0.0, offset: float = 0.0) -> nn.Module:
    """Return two layers with a bias that a normalization subtracts, and a head. An offset makes the mean's round-off large."""
    model = nn.Sequential(
        *(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)),
    )
    if offset:
        nn.init.constant_(model[0].bias, offset)
    return model


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = normalized()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x).float()


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (normalized, {}),
        (lambda: normalized(dropout=0.5), {}),
        (lambda: normalized(offset=1e3), {}),
        (normalized, {"dtype": "float64"}),
        (normalized, {"dtype": "bfloat16"}),
        (normalized(), {}),
    ],
    ids=["float32", "dropout", "large mean", "float64", "bfloat16", "finished module"],
)
def test_a_bias_before_a_normalization_is_zero_by_algebra(build: Any, options: dict[str, Any]) -> None:
    result = classified(build, **options)
    assert classes(result) == {"0.bias": CANCELS, "4.bias": CANCELS}
    assert result.waking_step["0.bias"] == math.inf and result.waking_step["0.weight"] == 0
    assert not result.asleep_parameters and result.untrained_fraction == 0
    result.check(gradient_norm=at_least(1e-4), relative_gradient_norm=at_least(1e-4))


def test_autocast_changes_no_class() -> None:
    assert classes(classified(Autocast)) == {"body.0.bias": CANCELS, "body.4.bias": CANCELS}


class Router(nn.Module):
    """The best of four experts, whose weight is normalized in one of several ways."""

    def __init__(self, normalize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head, self.normalize = nn.Linear(WIDTH, CLASSES), normalize

    def forward(self, x: Tensor) -> Tensor:
        weight, choice = self.gate(x).softmax(-1).topk(1, -1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        chosen = outputs.gather(1, choice.unsqueeze(-1).expand(-1, 1, WIDTH)).squeeze(1)
        out: Tensor = self.head(x + chosen * self.normalize(weight))
        return out


def by_sum(epsilon: float) -> Callable[[Tensor], Tensor]:
    return lambda p: p / (p.sum(-1, keepdim=True) + epsilon)


def in_float32(p: Tensor) -> Tensor:
    """Cast as library code does, whatever the type of the model."""
    return (p.float() / p.float().sum(-1, keepdim=True)).to(p.dtype)


@pytest.mark.parametrize(
    ("normalize", "dtype"),
    [
        (by_sum(0.0), None),
        (by_sum(1e-20), None),
        (by_sum(1e-9), None),
        (in_float32, "float64"),
        (in_float32, "bfloat16"),
    ],
    ids=["sum", "sum and 1e-20", "sum and 1e-9", "float32 in float64", "float32 in bfloat16"],
)
def test_a_router_that_is_divided_by_itself_is_asleep(normalize: Callable[[Tensor], Tensor], dtype: str | None) -> None:
    """With 1e-9, the true gradient is not zero, but a hundred times smaller than the round-off in its place."""
    result = classified(lambda: Router(normalize), dtype=dtype)
    # In bfloat16, the sum may cancel exactly.
    assert classes(result)["gate.weight"] in {CANCELS_WEIGHT, "dead" if dtype == "bfloat16" else CANCELS_WEIGHT}
    assert list(result.asleep_parameters) == ["gate.weight"]
    # Whatever the round-off, it is judged as zero.
    with pytest.raises(AssertionError, match=r"gate\.weight"):
        result.check(gradient_norm=at_least(1e-30))


def test_a_softmax_of_one_score_is_dead() -> None:
    result = classified(lambda: Router(lambda p: p.log().softmax(-1)))
    assert classes(result) == {"gate.weight": "dead"}
    assert list(result.asleep_parameters) == ["gate.weight"]


def test_a_router_without_normalization_has_a_signal() -> None:
    assert not classified(lambda: Router(lambda p: p)).gradient_classes


def test_a_loss_that_depends_on_no_parameter_leaves_only_round_off() -> None:
    """The probabilities of each sample sum to one."""
    model = lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4), nn.Softmax(-1))  # noqa: E731
    result = classified(model, loss=lambda output, _: output.sum())
    assert classes(result) == {
        **dict.fromkeys(("0.weight", "2.weight"), CANCELS_WEIGHT),
        **dict.fromkeys(("0.bias", "2.bias"), CANCELS),
    }
    assert result.untrained_fraction == 1


def test_a_sum_that_is_zero_by_the_choice_of_targets_is_a_signal() -> None:
    """The targets sum to 2^-21, exactly: less than the rounding of their norm, 4.3 · 2^-23. Every operation on them is exact."""
    model = nn.Linear(WIDTH, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    target = torch.linspace(-1, 1, 65)[:64].add(1 / 64).mul(2**10).round().div(2**10).sort().values
    target = torch.cat([target[:32], -target[:32]]).unsqueeze(1)
    target[0] += 2.0**-21
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    result = classified(model, x, loss=F.mse_loss, target=target)
    assert result.gradient_norm["bias"] == 2.0**-21 * 2 / 64
    assert not result.gradient_classes


# Sums of exactly zero ----------------------------------------------------------------------------------------------
class Pair(nn.Module):
    """Scores of the two halves of a batch, in one call of the network or in two."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (self.body(x) if self.calls == 1 else torch.cat([self.body(half) for half in x.chunk(2)])).chunk(2)
        return a, b


PAIR_LOSSES: dict[str, Callable[[Any], Tensor]] = {
    "difference of means": lambda o: o[1].mean() - o[0].mean(),
    "Bradley-Terry": lambda o: -F.logsigmoid(o[0] - o[1]).mean(),
    "distance": lambda o: (o[0] - o[1]).abs().mean(),
}


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("loss", PAIR_LOSSES.values(), ids=PAIR_LOSSES)
def test_the_bias_of_scores_that_are_subtracted_is_zero_by_algebra(loss: Callable[[Any], Tensor], calls: int) -> None:
    result = classified(lambda: Pair(calls), loss=loss, target=None)
    assert classes(result) == {"body.2.bias": CANCELS}
    assert not result.asleep_parameters
    assert result.untrained_fraction == 0


def hinge(output: tuple[Tensor, Tensor]) -> Tensor:
    real, fake = output
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("batch", [16, 24])
def test_a_hinge_loss_within_the_margin_is_balanced_on_this_draw(batch: int, is_normalized: bool) -> None:
    """All terms are 1/n or -1/n, and there are as many of each: the bias gets a gradient as soon as a score leaves the margin.

    Of 24 samples n = 12, and the sum is round-off.
    """

    def build() -> nn.Module:
        model = Pair(1)
        nn.init.normal_(model.body[0].weight, std=0.1)
        if is_normalized:
            # Its vectors change in every forward pass.
            torch.nn.utils.parametrizations.spectral_norm(model.body[2])
        return model

    x = torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(0))
    result = classified(build, x, loss=hinge, target=None)
    assert classes(result) == {"body.2.bias": "zero on this draw"}
    assert not result.asleep_parameters
    assert result.untrained_fraction == 0
    result.check(gradient_norm=at_least(1e-6))


def test_a_loss_that_rejects_what_a_moved_bias_gives_is_no_error() -> None:
    def loss(output: tuple[Tensor, Tensor]) -> Tensor:
        if bool((output[0].detach().abs() > 8).any()):
            msg = "scores must be small"
            raise ValueError(msg)
        return output[1].mean() - output[0].mean()

    assert classes(classified(lambda: Pair(1), loss=loss, target=None)) == {"body.2.bias": "zero on this draw"}


def test_a_score_that_is_subtracted_from_itself_leaves_the_weights_asleep() -> None:
    """Only biases are excused: the weights get no gradient either."""

    def loss(output: tuple[Tensor, Tensor]) -> Tensor:
        return (output[0] - output[0].clone()).mean() + 0 * output[1].mean()

    assert set(classified(lambda: Pair(2), loss=loss, target=None).asleep_parameters) >= {
        "body.0.weight",
        "body.2.weight",
    }


# Signals, however small --------------------------------------------------------------------------------------------
class Scaled(nn.Module):
    """A branch whose gradient is 1e-12 times that of the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.large(x) + 1e-12 * self.small(x)
        return out


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_small_gradient_is_a_signal(dtype: str) -> None:
    result = classified(Scaled, dtype=dtype)
    assert not result.gradient_classes
    with pytest.raises(AssertionError, match=r"small\.weight"):
        result.check(gradient_norm=at_least(1e-6))


class LayerScale(nn.Module):
    """Residual blocks, each multiplied by its own vector of 1e-6 (Touvron et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(3)
        )
        self.gains = nn.ParameterList(nn.Parameter(torch.full((WIDTH,), 1e-6)) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block, gain in zip(self.blocks, self.gains):
            x = x + gain * block(x)
        out: Tensor = self.head(x)
        return out


def test_behind_small_gains_gradients_are_signals() -> None:
    result = classified(LayerScale)
    assert result.gradient_norm["blocks.0.1.weight"] < 1e-4 * result.gradient_norm["head.weight"]
    assert not result.gradient_classes


def tower(layers: int, gain: float, activation: type[nn.Module]) -> nn.Module:
    model = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(WIDTH, WIDTH), activation())))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=gain / math.sqrt(WIDTH))
    return model.append(nn.Linear(WIDTH, CLASSES))


def test_vanishing_gradients_are_signals() -> None:
    """Each of 60 layers halves the gradient twice: 2^-120 is 1e-36."""
    result = classified(lambda: tower(60, 0.4, nn.Tanh))
    assert not result.gradient_classes
    assert result.gradient_norm["0.weight"] < 1e-20
    with pytest.raises(AssertionError, match=r"^gradient_norm .* must "):
        result.check(gradient_norm=at_least(1e-6))


def test_chaos_is_no_round_off() -> None:
    """In a chaotic network, the last layers' gradients are small relative to the first ones', and change with every rounding."""
    result = classified(lambda: tower(120, 4.0, nn.Tanh))
    assert result.log_gain > math.log(2**23)
    assert not result.gradient_classes


def test_underflow_is_no_design() -> None:
    """Gradients below the smallest number of float32 are zero there. That a large step wakes some of them excuses nothing."""
    result = classified(lambda: tower(60, 0.1, nn.Tanh))
    assert result.gradient_norm["0.weight"] == 0
    assert not any("by design" not in label and "waking" in label for label in classes(result).values())
    with pytest.raises(AssertionError, match=r"(?s)worst 0\.weight 0 and \d+ more.*0\.bias 0 and"):
        result.check(gradient_norm=at_least(1e-6))


# Zero, and awake or dead -------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, *, zero: bool = False, dead: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.norm.weight, gain)
        if zero:
            nn.init.zeros_(self.down.weight)
        if dead:
            nn.init.constant_(self.up.bias, -1e3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return out


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module, zero_head: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        nn.init.constant_(self.norm.weight, gain)
        nn.init.constant_(self.norm.bias, 0.0 if gain else 1.0)
        if zero_head:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(x)))
        return out


HIDDEN = ("norm.weight", "norm.bias", "up.weight", "up.bias")


def test_behind_a_zero_branch_parameters_wake() -> None:
    result = classified(lambda: Net(*(Block(zero=True) for _ in range(3))))
    assert classes(result) == {f"blocks.{i}.{name}": "waking at step 1" for i in range(3) for name in HIDDEN}
    result.check(gradient_norm=at_least(1e-4), asleep_parameters=at_most(0), untrained_fraction=at_most(0))


def test_a_zero_head_is_a_design_though_it_hides_nearly_all_parameters() -> None:
    result = classified(lambda: Net(*(Block() for _ in range(3)), zero_head=True))
    found = classes(result)
    assert set(found) == set(result.gradient_norm) - {"head.weight", "head.bias"}
    assert set(found.values()) == {"waking at step 1"}
    result.check(gradient_norm=at_least(1e-4), untrained_fraction=at_most(0))


def test_a_normalization_of_zero_on_the_only_way_is_no_design() -> None:
    """All parameters but three get no gradient, as behind a zero head. But no layer is zero, and no residual path is left."""
    result = classified(lambda: Net(*(Block() for _ in range(3)), gain=0.0))
    found = classes(result)
    assert set(found) == set(result.gradient_norm) - {"norm.weight", "norm.bias", "head.weight", "head.bias"} - {""}
    assert set(found.values()) == {"waking at step 1, not by design"}
    with pytest.raises(AssertionError) as failure:
        result.check(gradient_norm=at_least(1e-6))
    text = " ".join(str(failure.value).split())
    assert result.untrained_fraction.mean == 1
    assert f"{len(found)} of {len(found)} parameters of the 3 × Block get no gradient at initialization" in text


def test_a_tied_head_is_no_way_through_the_chain() -> None:
    """The embedding has a gradient, as the head has its weights. What comes back through the chain is zero."""

    class Tied(Net):
        def __init__(self) -> None:
            super().__init__(*(Block() for _ in range(3)), gain=0.0)
            self.embedding, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.embedding(x)).mean(1)

    result = classified(Tied, torch.arange(BATCH * 3).reshape(BATCH, 3) % 9)
    assert "embedding.weight" not in classes(result)
    assert set(classes(result).values()) == {"waking at step 1, not by design"}
    assert result.untrained_fraction == 1


def test_gates_in_one_vector_are_a_design() -> None:
    """The gradient passes by the layers (ReZero), none of which gets one at initialization."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, CLASSES)
            self.gates = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            for gate, layer in zip(self.gates, self.layers):
                x = x + gate * layer(x).tanh()
            out: Tensor = self.head(x)
            return out

    result = classified(Gated)
    assert set(classes(result).values()) == {"waking at step 1"}
    result.check(gradient_norm=at_least(1e-4), untrained_fraction=at_most(0))


class Closed(nn.Module):
    """Orthogonal layers times a gain, then a head of zeros. Something may stop the gradient in front of the last layer."""

    def __init__(self, gain: float, *, frozen: bool = False, stop: str = "") -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(3))
        for layer in self.body:
            nn.init.orthogonal_(layer.weight, gain)  # type: ignore[arg-type]
        self.body.requires_grad_(not frozen)
        self.scale = nn.Parameter(torch.zeros(16) if stop == "gain" else torch.ones(16))
        self.head, self.stop = nn.Linear(16, 3), stop
        nn.init.zeros_(self.head.weight)
        if stop == "twice":
            nn.init.zeros_(self.body[2].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.body):
            x = layer(x)
            if number == 1 and self.stop:
                x = {"detach": x.detach(), "round": x.round(), "gain": x * self.scale}.get(self.stop, x)
        out: Tensor = self.head(x)
        return out


def of_closed(gain: float, **how: Any) -> Measurement:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    return measure(lambda: Closed(gain, **how), x, target=torch.arange(32) % 3, loss=F.cross_entropy, seeds=2)


@pytest.mark.parametrize("frozen", [False, True])
def test_behind_a_head_of_zeros_the_gain_of_the_other_steps_is_judged(frozen: bool) -> None:
    """Three orthogonal layers times 2 pass ln 8 nats, times a hundredth -13.8."""
    found = of_closed(2.0, frozen=frozen)
    assert found.log_gain == -math.inf
    found.check(log_gain=(math.log(8) - 1e-3, math.log(8) + 1e-3))
    with pytest.raises(AssertionError) as failure:
        found.check(initial_loss=at_most(0), log_gain=at_least(0))
    text = " ".join(str(failure.value).split())
    assert "note step head is zero by design: bounds on log_gain judge the other 3, 2.08 nats" in text
    with pytest.raises(AssertionError, match="log_gain -inf"):
        of_closed(0.01, frozen=frozen).check(log_gain=(-7, 3))


@pytest.mark.parametrize("stop", ["detach", "round", "gain", "twice"])
def test_a_head_of_zeros_excuses_nothing_else_that_stops_the_gradient(stop: str) -> None:
    # The chain begins behind a detached tensor.
    with pytest.raises(AssertionError, match="unused_parameters 3" if stop == "detach" else "log_gain -inf"):
        of_closed(1.0, stop=stop).check(log_gain=(-7, 3), unused_parameters=at_most(0))


class Experts(nn.Module):
    """Four experts, each of which gets the tokens of its number; the last expert's number does not occur."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(4))
        self.weights, self.how = nn.ParameterList(torch.randn(16, 16) / 4 for _ in range(4)), how

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = torch.arange(len(x)) % 3, x
        for number, (expert, weight) in enumerate(zip(self.experts, self.weights)):
            rows = (chosen == number).nonzero().squeeze(1)
            if self.how == "masked":
                out = out + (chosen == number)[:, None] * expert(F.linear(x, weight))
            else:
                out = out.index_add(0, rows, expert(F.linear(x[rows], weight)))
        return out


def test_experts_that_get_no_row_are_not_asleep() -> None:
    """Where an expert computes rows that are multiplied by zero, that cannot be told from a closed branch."""
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    of = lambda how: measure(lambda: Experts(how), x, loss=lambda out: out.square().mean(), seeds=2)  # noqa: E731  short
    selected, masked = of("selected"), of("masked")
    assert not selected.asleep_parameters
    names = {"weights.3", *(f"experts.3.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias"))}
    assert set(masked.asleep_parameters) == names == {name for name in classes(selected) if name in names}


def test_dead_units_do_not_wake() -> None:
    result = classified(lambda: Net(Block(), Block(dead=True), Block()))
    assert classes(result) == {f"blocks.1.{name}": "dead" for name in (*HIDDEN, "down.weight")}
    assert set(result.asleep_parameters) == set(classes(result))


def test_a_bias_that_cancels_behind_a_zero_wakes_to_round_off() -> None:
    """Behind the zero head, its gradient is exactly zero. After a step it is round-off: the bias never gets a gradient."""

    def build() -> nn.Module:
        model = normalized()
        nn.init.zeros_(model[-1].weight)
        return model

    found = classes(classified(build))
    assert {found.pop("0.bias"), found.pop("4.bias")} == {CANCELS}
    assert set(found.values()) == {"waking at step 1"}


def test_frozen_and_unused_parameters() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare = Net(Block(), Block()), nn.Linear(2, 2)
            self.body.head.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out

    result = classified(Spare)
    assert classes(result) == {"body.head.bias": "frozen", "spare.weight": "unused", "spare.bias": "unused"}
    assert result.untrained_fraction == pytest.approx(2 / (len(result.gradient_norm) + 2))


@pytest.mark.parametrize("how", ["detach", "no_grad"])
def test_a_body_that_gets_no_gradient_fails_bounds_and_presets(how: str) -> None:
    class Cut(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(how != "no_grad"):
                body = self.blocks(x).detach()
            out: Tensor = self.head(self.norm(body))
            return out

    result = classified(lambda: Cut(*(Block() for _ in range(3))))
    for check in ({"gradient_norm": at_least(1e-6)}, {"preset": "transformer"}):
        with pytest.raises(AssertionError, match="untrained_fraction"):
            result.check(**check)


# Models of a library -----------------------------------------------------------------------------------------------
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def library(name: str, **settings: Any) -> Callable[[], nn.Module]:
    transformers = pytest.importorskip("transformers")
    model, config = name.split()
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**settings))


@pytest.mark.parametrize(
    ("name", "settings", "inputs", "cancelled"),
    [
        ("BertForMaskedLM BertConfig", {"vocab_size": 60, **SMALL}, {"input_ids": IDS, "labels": IDS}, "key.bias"),
        (
            "ViTForImageClassification ViTConfig",
            {"image_size": 16, "patch_size": 8, "num_labels": 4, **SMALL},
            {"pixel_values": IMAGES, "labels": torch.arange(3)},
            "key.bias k_proj.bias",
        ),
        (
            "OPTForCausalLM OPTConfig",
            {**SMALL, "vocab_size": 60, "ffn_dim": 32, "word_embed_proj_dim": 32, "max_position_embeddings": 16},
            {"input_ids": IDS, "labels": IDS},
            "k_proj.bias",
        ),
        (
            "GPT2LMHeadModel GPT2Config",
            {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0},
            {"input_ids": IDS, "labels": IDS},
            "",
        ),
    ],
    ids=["bert", "vit", "opt", "gpt2"],
)
def test_the_biases_of_keys_are_zero_by_algebra(name: str, settings: Any, inputs: Any, cancelled: str) -> None:
    result = measure(library(name, **settings), inputs, seeds=1)
    found = classes(result)
    assert len(found) == (2 if cancelled else 0)
    assert all(n.endswith(tuple(cancelled.split())) and label == CANCELS for n, label in found.items())
    result.check(gradient_norm=at_least(1e-6), asleep_parameters=at_most(0))


def clip(*, end: int) -> Callable[[], nn.Module]:
    text = {"vocab_size": 60, "max_position_embeddings": 8, "eos_token_id": end, "bos_token_id": 0, **SMALL}
    vision = {"image_size": 16, "patch_size": 8, **SMALL}
    return library("CLIPModel CLIPConfig", text_config=text, vision_config=vision, projection_dim=16)


def test_without_an_end_token_the_queries_and_keys_of_clip_are_asleep() -> None:
    """The text is read where its end token is, by default at the first position, which attends to one key: itself."""
    inputs = {"input_ids": IDS, "pixel_values": IMAGES, "return_loss": True}
    result = measure(clip(end=3), inputs, seeds=1)
    names = [f"text_model.encoder.layers.{i}.self_attn.{n}_proj.weight" for i in range(2) for n in "kq"]
    assert set(result.asleep_parameters) == set(names)
    with pytest.raises(AssertionError) as failure:
        result.check(gradient_norm=at_least(1e-6))
    text = " ".join(str(failure.value).split())
    assert "4 of " in text and f"worst {names[0]} 0" in text
    ended = IDS.clone()
    ended[:, -1] = 3
    healthy = measure(clip(end=3), {**inputs, "input_ids": ended}, seeds=1)
    assert not healthy.asleep_parameters
    healthy.check(gradient_norm=at_least(1e-6))


class Aligned(nn.Module):
    """Points that are multiplied by a matrix of zero, which a zero layer makes of them, in front of normalizations."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.matrix = nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32), nn.ReLU()), nn.Linear(32, 9)
        widths = (3, 32, 64)
        self.points = nn.Sequential(
            *(part for i, o in pairwise(widths) for part in (nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU()))
        )
        self.head = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
        nn.init.zeros_(self.matrix.weight)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.hidden(x.amax(-1))).view(-1, 3, 3)
        found: Tensor = self.head(self.points(matrix @ x).amax(-1))
        return found


def test_a_bias_behind_a_zero_layer_wakes_and_one_before_a_normalization_does_not() -> None:
    x, target = torch.randn(16, 3, 24, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 5
    result = classified(Aligned, x, target=target, loss=F.cross_entropy)
    found = classes(result)
    # All samples are equal at first, so that the normalization takes away what all get.
    assert found["points.1.bias"].startswith("waking at step")
    assert (found["points.0.bias"], found["head.0.bias"]) == ("zero by algebra", "zero by algebra")
