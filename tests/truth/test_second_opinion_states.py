"""A second opinion on what is measured of states: every definition written down once more, plainly, and on awkward models.

Jacobians are dense and by ``torch.autograd.functional.jacobian``, activations are differentiated by hand, attention weights are
computed from the projections, half precision is a real cast. Float64 unless said otherwise; both sides then differ by round-off,
1e-14 at most steps, and 1e-9 leaves room for a few badly conditioned ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from pytest_trainability import measure

F64 = torch.float64
ROUND_OFF = 1e-9
JACOBIAN = ["jacobian_singular_values", "max_ftle", "condition_number", "numerical_rank", "isometry_gap"]


@pytest.fixture(autouse=True)
def _float64_from_a_seed():
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(usual)


# Models -------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One layer, called five times; gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def chain(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = torch.tanh(self.layer(x)) * 1.1
        return self.layer(x)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": torch.tanh(self.chain(x))}


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y.mul_(2).sin_()
        y += x
        y[:, 0] *= 0.5
        return y


@dataclass
class Output:
    hidden: Tensor
    extra: int = 3


class InDataclass(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[InPlace() for _ in range(3)])

    def forward(self, x: Tensor) -> Output:
        return Output(self.blocks(x))


class PreNorm(nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(self.norm(x)))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([PreNorm() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * Sine.apply(self.layer(x))


class Dense(nn.Module):
    """States grow by concatenation; the chain ends in front of the last activation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4 + 4 * index, 4) for index in range(3)])

    def chain(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.cat([x, layer(x).relu()], 1)
        return torch.cat([x, self.layers[-1](x)], 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return x


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.gelu(self.first(x))
        deep = F.gelu(self.up(F.gelu(self.down(wide))))
        return self.last(torch.cat([wide, deep], 1))


def hooked() -> nn.Sequential:
    """Has a forward and a backward hook of its own, both of which change numbers."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[1].register_forward_hook(lambda module, args, output: 2.0 * output)
    model[2].register_full_backward_hook(lambda module, given, arriving: (3 * given[0],))
    return model


def compiled() -> nn.Module:
    return torch.compile(nn.Sequential(*[PreNorm() for _ in range(3)]), backend="eager")


def normalized() -> nn.Module:
    return nn.Sequential(
        spectral_norm(nn.Linear(6, 6)), nn.Tanh(), weight_norm(nn.Linear(6, 6)), nn.Tanh(), orthogonal(nn.Linear(6, 6))
    )


# The Jacobian, densely ------------------------------------------------------------------------------------------------


def assert_agrees(result: Any, jacobians: list[Tensor], steps: int) -> None:
    """Compare all five measures with the singular values of each trajectory's dense Jacobian."""
    values = torch.stack([torch.linalg.svdvals(J.detach()) for J in jacobians])
    logs, squares = values.log(), values.square()
    found = torch.tensor([float(value) for value in result.jacobian_singular_values])
    expected = logs.mean(0).exp()
    assert len(found) == len(expected) == min(jacobians[0].shape)
    # Singular values of a dense product are good to the round-off of the largest.
    torch.testing.assert_close(found, expected, rtol=ROUND_OFF, atol=1e-13 * float(expected[0]))
    assert float(result.max_ftle) == pytest.approx(float(logs[:, 0].mean()) / steps, rel=ROUND_OFF)
    spread = squares.square().mean(1) / squares.mean(1).square() - 1
    assert float(result.isometry_gap) == pytest.approx(float(spread.mean()), rel=ROUND_OFF)
    if bool((values[:, -1] > 1e-9 * values[:, 0]).all()):
        assert float(result.numerical_rank) == values.shape[1]
        condition = (logs[:, 0] - logs[:, -1]).mean().exp()
        assert float(result.condition_number) == pytest.approx(float(condition), rel=1e-6)


def jacobians_of(chain: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Return the dense Jacobian of each sample, which lies along the first dimension."""
    J = torch.autograd.functional.jacobian(chain, x)
    dims = J.dim() - x.dim()
    return [J[b].movedim(dims - 1, 0)[b].reshape(-1, x[0].numel()) for b in range(len(x))]


TOWERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "one sample": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)), (1, 5), 2),
    "tied, in a dictionary": (Tied, (3, 6), 5),
    "in place": (lambda: nn.Sequential(*[InPlace() for _ in range(3)]), (3, 6), 3),
    "in a dataclass": (InDataclass, (3, 6), 3),
    "checkpointed": (Checkpointed, (2, 6), 3),
    "compiled": (compiled, (2, 6), 3),
    "custom functions": (lambda: nn.Sequential(*[Custom() for _ in range(3)]), (2, 6), 3),
    "normalized weights": (normalized, (2, 6), 3),
    "concatenations": (Dense, (3, 4), 3),
    "U-Net": (UNet, (2, 2, 4, 4), 4),
    "own hooks": (hooked, (3, 6), 3),
}


@pytest.mark.parametrize("name", TOWERS)
def test_jacobians_are_those_of_autograd(name):
    build, shape, steps = TOWERS[name]
    model, x = build().eval(), torch.randn(shape)
    result = measure(model, x, measures=JACOBIAN, train=False)
    chain = getattr(model, "chain", None) or model
    outcome = (lambda t: model(t).hidden) if isinstance(model, InDataclass) else chain
    assert len(result.steps.names) == steps
    assert_agrees(result, jacobians_of(outcome, x), steps)


def test_batch_statistics_make_one_joint_jacobian():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 6))
    x = torch.randn(5, 6)
    result = measure(model, x, measures=JACOBIAN)
    assert result.frame == "joint"
    assert_agrees(result, [torch.autograd.functional.jacobian(model, x).reshape(30, 30)], 3)


def test_source_of_an_encoder_and_decoder():
    """The signal begins at the first step, the encoder's; the decoder's own input is held fixed."""
    model = nn.Transformer(8, 2, 2, 2, 16, 0.0, batch_first=True)
    source, target = torch.randn(2, 5, 8), torch.randn(2, 3, 8)

    def chain(source: Tensor) -> Tensor:
        memory, x = model.encoder(source), target
        for layer in model.decoder.layers:
            x = layer(x, memory)
        return x

    result = measure(model, (source, target), measures=JACOBIAN)
    assert_agrees(result, jacobians_of(chain, source), 4)


def test_states_of_an_lstm_along_time():
    model = nn.LSTM(3, 5, batch_first=True)
    x, zero = torch.randn(2, 7, 3), torch.zeros(1, 1, 5)

    def jacobian(sample: Tensor) -> Tensor:
        def last(h: Tensor, c: Tensor) -> Tensor:
            return torch.cat([state.flatten() for state in model(sample[None], (h, c))[1]])

        return torch.cat([J.reshape(10, 5) for J in torch.autograd.functional.jacobian(last, (zero, zero))], 1)

    result = measure(model, x, steps="time", measures=JACOBIAN)
    assert_agrees(result, [jacobian(sample) for sample in x], 7)


def test_complex_numbers_are_two_real_ones():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6, dtype=torch.complex128) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            x = torch.complex(x, 0.5 * x)
            for layer in self.layers:
                x = layer(x)
            return x.abs()

    model = Tower()
    W = model.layers[2].weight @ model.layers[1].weight @ model.layers[0].weight
    as_real = torch.cat([torch.cat([W.real, -W.imag], 1), torch.cat([W.imag, W.real], 1)])
    assert_agrees(measure(model, torch.randn(2, 6), measures=JACOBIAN), [as_real], 3)


@pytest.mark.parametrize(("first", "last"), [(20, 600), (600, 20)])
def test_one_large_end(first, last):
    class Layer(nn.Sequential):
        def __init__(self, before: int, after: int):
            super().__init__(nn.Linear(before, after), nn.Tanh())

    model, x = nn.Sequential(Layer(first, 80), Layer(80, last)), torch.randn(1, first)
    assert_agrees(measure(model, x, measures=JACOBIAN, steps=Layer), jacobians_of(model, x), 2)


# Activations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        F.gelu, F.silu, F.elu, F.selu, F.softplus, F.mish, F.hardswish, F.hardtanh, F.softsign, F.hardshrink, F.softshrink,
        F.logsigmoid, F.hardsigmoid, F.relu6, F.leaky_relu, torch.erf, torch.atan, torch.sin, torch.asinh, F.tanhshrink,
        Sine.apply, lambda x: x.clamp(min=0), lambda x: torch.maximum(x, torch.zeros(())),
    ],
)  # fmt: skip
def test_slopes_are_those_of_autograd(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(function(self.first(x)))

    def slope(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    model, x = Model(), torch.randn(5, 8)
    model.first.weight.data *= 8
    slopes, steepest = slope(model.first(x)), slope(torch.linspace(-20, 20, 40001)).abs().max()
    result = measure(model, x, measures=["saturated_fraction", "dead_fraction"])
    # Counts of 40 entries and 8 units.
    saturated = float((slopes.abs() < 0.01 * steepest).double().mean())
    assert [float(v) for v in result.saturated_fraction.values()] == pytest.approx([saturated], abs=1e-12)
    dead = float((slopes == 0).all(0).double().mean())
    assert [float(v) for v in result.dead_fraction.values()] == pytest.approx([dead], abs=1e-12)


class Rectified(nn.Module):
    """ReLU of ``x W``, with units that are off along the given dimension."""

    def __init__(self, turned: bool):
        super().__init__()
        self.turned, self.layer = turned, nn.Linear(6, 6)
        self.layer.bias.data[:2] = -50

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return F.relu(y.transpose(1, 2)).transpose(1, 2) if self.turned else F.relu(y)


@pytest.mark.parametrize("turned", [False, True])
def test_dead_units_where_all_dimensions_are_alike(turned):
    model = nn.Sequential(Rectified(turned), Rectified(turned))
    first, _ = measure(model, torch.randn(6, 6, 6), measures=["dead_fraction"]).dead_fraction.values()
    assert float(first) == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d, (4, 4, 4, 4)), (nn.Conv2d, (4, 4, 4)), (nn.Conv1d, (4, 4, 4)), (nn.ConvTranspose2d, (3, 4, 7, 7))],
)
def test_dead_channels(layer, shape):
    model = nn.Sequential(layer(4, 4, 3, padding=1), nn.ReLU(inplace=True), layer(4, 3, 1))
    model[0].bias.data[:1] = -50
    (dead,) = measure(model, torch.randn(shape), measures=["dead_fraction"]).dead_fraction.values()
    assert float(dead) == pytest.approx(0.25, abs=1e-12)


# Attention -------------------------------------------------------------------------------------------------------------


def entropy(weights: Tensor, allowed: Tensor | None = None) -> float:
    weights = weights.detach()
    allowed = torch.ones_like(weights, dtype=torch.bool) if allowed is None else allowed.expand_as(weights)
    keys = allowed.sum(-1)
    found = -(weights * torch.where(weights > 0, weights, 1.0).log()).sum(-1)
    return float((found[keys > 1] / keys[keys > 1].double().log()).mean())


PADDING = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.bool)
CAUSAL = torch.ones(4, 4, dtype=torch.bool).triu(1)
BIAS = -0.5 * torch.arange(4.0, dtype=F64).expand(4, 4)
BY_HEAD = (torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.6) & ~torch.eye(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "padding"),
    # PyTorch warns of padding beside a mask of another type, and leaves queries without a key.
    [("none", False), ("none", True), ("causal", False), ("causal", True), ("bias", False), ("by head", False)],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_entropy_of_multihead_attention(mask, padding, batch_first):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, dropout=0.3)
            self.attention.in_proj_weight.data *= 4

        def forward(self, x: Tensor) -> Tensor:
            masks = {"key_padding_mask": PADDING if padding else None, "attn_mask": chosen}
            return x + self.attention(x, x, x, need_weights=False, **masks)[0]

    chosen = {"none": None, "causal": CAUSAL, "bias": BIAS, "by head": BY_HEAD}[mask]
    model, x = Block(), torch.randn(3, 4, 8)
    own = model.attention
    q, k, _ = (
        part.reshape(3, 4, 2, 4).transpose(1, 2) for part in (x @ own.in_proj_weight.T + own.in_proj_bias).chunk(3, -1)
    )
    scores, allowed = q @ k.mT / 2, torch.ones(3, 2, 4, 4, dtype=torch.bool)
    if padding:
        allowed = allowed & ~PADDING[:, None, None]
    if mask == "bias":
        scores = scores + BIAS
    elif chosen is not None:
        allowed = allowed & ~chosen.reshape(-1, 2 if mask == "by head" else 1, 4, 4)
    expected = entropy(scores.masked_fill(~allowed, -math.inf).softmax(-1), allowed)
    given = x if batch_first else x.transpose(0, 1).contiguous()
    (found,) = measure(model, given, measures=["attention_entropy"]).attention_entropy.values()
    assert float(found) == pytest.approx(expected, abs=ROUND_OFF)


@pytest.mark.parametrize("options", [{}, {"add_zero_attn": True}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 6}])
def test_entropy_of_cross_attention(options):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.attention(x, y, y, average_attn_weights=False)

    model, given = Block(), (torch.randn(2, 3, 8), 3 * torch.randn(2, 5, options.get("kdim", 8)))
    (found,) = measure(model, given, measures=["attention_entropy"]).attention_entropy.values()
    assert float(found) == pytest.approx(entropy(model(*given)[1]), abs=ROUND_OFF)


# Branches --------------------------------------------------------------------------------------------------------------


class Reversed(nn.Module):
    """``y += x``, where the sum lives in the branch's memory."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y += x
        return y


class Subtracted(Reversed):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sub(x, self.layer(x), alpha=0.3)


class Turned(Reversed):
    def forward(self, x: Tensor) -> Tensor:
        return (x.T + self.layer(x).T).T


@pytest.mark.parametrize("block", [PreNorm, Custom, Reversed, Subtracted, Turned])
def test_size_of_branches(block):
    model, x = nn.Sequential(*[block() for _ in range(3)]), torch.randn(4, 6)
    result = measure(model, x, measures=["branch_ratio"]).branch_ratio
    for own, found in zip(model, result.values(), strict=True):
        y = own(x).detach()
        assert float(found) == pytest.approx(float((y - x).norm() / x.norm()), rel=ROUND_OFF)
        x = y


def test_share_of_branches_that_are_scales():
    class Scale(nn.Module):
        def __init__(self, factor: float):
            super().__init__()
            self.layer = nn.Linear(6, 6, bias=False)
            self.layer.weight.data = factor * torch.eye(6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(x)

    result = measure(nn.Sequential(*map(Scale, (0.5, 0.0, 3.0))), torch.randn(2, 6), measures=["branch_gradient_share"])
    assert [float(v) for v in result.branch_gradient_share.values()] == pytest.approx([0.2, 0.0, 0.9], abs=1e-12)


def test_branches_of_a_recurrence():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(7, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return h + torch.tanh(self.layer(torch.cat([h, x], 1)))

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Cell()

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_ones(len(x), 4)
            for now in x.unbind(1):
                h = self.cell(now, h)
            return h

    model, x = Recurrent(), torch.randn(2, 5, 3)
    result, h = measure(model, x, steps="time", measures=["branch_ratio"]).branch_ratio, torch.ones(2, 4)
    for now, found in zip(x.unbind(1), result.values(), strict=True):
        after = model.cell(now, h).detach()
        assert float(found) == pytest.approx(float((after - h).norm() / h.norm()), rel=ROUND_OFF)
        h = after


# Samples ---------------------------------------------------------------------------------------------------------------


def cosine(vectors: Tensor) -> float:
    units = F.normalize(vectors.detach(), dim=-1)
    products, n = units @ units.T, len(units)
    return float(products.sum() - products.trace()) / (n * (n - 1))


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (1, 5, 6), (6, 6, 6)])
def test_similarity_of_samples_and_tokens(shape):
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(shape)
    expected = {}
    for name, state in {"input": x, "0": model[0](x), "2": model(x)}.items():
        if len(x) > 1:
            expected[name] = cosine(state.flatten(1))
        if x.dim() > 2:
            expected[f"{name} tokens"] = sum(map(cosine, state)) / len(x)
    found = measure(model, x, measures=["sample_similarity"]).sample_similarity
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_similarity_of_pixels_and_of_hidden_states():
    x = torch.randn(3, 3, 3, 3)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    found = measure(model, x, measures=["sample_similarity"]).sample_similarity
    expected = {"input": cosine(x.flatten(1)), "0": cosine(model[0](x).flatten(1)), "2": cosine(model(x).flatten(1))}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-12)
    recurrent, x, state = nn.LSTM(3, 4, batch_first=True), torch.randn(3, 5, 3), None
    found = measure(recurrent, x, steps="time", measures=["sample_similarity"]).sample_similarity
    for now, value in zip(x.split(1, dim=1), found.values(), strict=True):
        _, state = recurrent(now, state)
        assert float(value) == pytest.approx(sum(cosine(part[0]) for part in state) / 2, abs=1e-12)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda y: y.softmax(0),
    "mean": lambda y: y - y.mean(0, keepdim=True),
    "reshape": lambda y: y.T.reshape(y.shape),
    "roll": lambda y: y.roll(1, 0),
    "the first sample": lambda y: y - y[:1],
    "earlier samples": lambda y: y.cumsum(0),
    "nothing": lambda y: y.tanh(),
}


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("mixing", MIXING)
def test_steps_that_mix_samples(mixing, batch):
    class Layer(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]):
            super().__init__()
            self.function, self.layer = function, nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.layer(x))

    model, x = nn.Sequential(*map(Layer, (torch.tanh, MIXING[mixing], torch.tanh))), torch.randn(batch, 6)
    expected = []
    for name, layer in model.named_children():
        J = torch.autograd.functional.jacobian(layer, x).abs().sum((1, 3))
        expected += [name] if bool((J - J.diag().diag()).any()) else []
        x = layer(x)
    found = measure(model, torch.randn(batch, 6), measures=["interacting_samples"]).interacting_samples
    assert list(found.names) == expected == ([] if mixing == "nothing" else ["1"])


# Routers ---------------------------------------------------------------------------------------------------------------


class Mixture(nn.Module):
    def __init__(self, experts: int, chosen: int, order: str):
        super().__init__()
        self.router, self.chosen, self.order = nn.Linear(6, experts), chosen, order
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(experts)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 6)
        scores = self.router(tokens)
        if self.order == "after":
            values, indices = scores.topk(self.chosen, -1)
            weights = values.softmax(-1)
        else:
            weights, indices = (scores.softmax(-1) if self.order == "before" else scores.sigmoid()).topk(self.chosen)
        result = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = (indices == number).nonzero(as_tuple=True)
            result = result.index_add(0, token, expert(tokens[token]) * weights[token, place, None])
        return x + result.reshape(x.shape)


@pytest.mark.parametrize("order", ["before", "after", "sigmoid"])
@pytest.mark.parametrize(("experts", "chosen"), [(2, 1), (6, 2), (7, 3)])
def test_usage_is_a_count(order, experts, chosen):
    model, x = nn.Sequential(*[Mixture(experts, chosen, order) for _ in range(2)]), torch.randn(3, 7, 6)
    found = measure(model, x, measures=["expert_usage"]).expert_usage
    for layer, value in zip(model, found.values(), strict=True):
        counts = layer.router(x).topk(chosen).indices.flatten().bincount(minlength=experts).double()
        shares = counts[counts > 0] / counts.sum()
        entropy, least = -float((shares * shares.log()).sum()), math.log(chosen)
        assert float(value) == pytest.approx((entropy - least) / (math.log(experts) - least), abs=1e-12)
        x = layer(x)


# Half precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1e4, 1.0, 1e-6, 1e-30])
def test_casts_are_those_of_pytorch(weight):
    model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(32, 32), nn.Tanh())]).float()
    x = torch.randn(8, 32, dtype=torch.float32)

    def loss(output: Tensor) -> Tensor:
        return weight * output.square().mean()

    result = measure(model, x, loss=loss, measures=["underflow_fraction", "overflow_fraction", "smallest_loss_scale"])
    states, h = {"input": x.clone().requires_grad_()}, None
    for name, part in model.named_children():
        h = part(states["input"] if h is None else h)
        if isinstance(part, nn.Linear):
            states[f"state after {name}"] = h
    named = dict(model.named_parameters()) | states
    found = torch.autograd.grad(loss(h), list(named.values()))
    gradients = dict(zip(named, found))
    for kind in (torch.float16, torch.bfloat16):
        prefix = str(kind).removeprefix("torch.")
        for name, gradient in gradients.items():
            lost = float(((gradient.to(kind) == 0) & (gradient != 0)).sum() / (gradient != 0).sum())
            # One entry in a tensor may be the round-off of larger ones, which is not counted.
            own = f"{prefix} gradient of {name}"
            assert float(result.underflow_fraction[own]) == pytest.approx(lost, abs=1.5 / gradient.numel())
            assert float(result.overflow_fraction[own]) == pytest.approx(
                float(gradient.to(kind).isinf().double().mean())
            )
    assert float(result.smallest_loss_scale) == pytest.approx(smallest_scale(list(gradients.values())), rel=1e-6)


def smallest_scale(gradients: list[Tensor]) -> float:
    """Try powers of two, one after the other, with real casts."""

    def lost(scale: float) -> bool:
        cast = [(g, (g.double() * scale).to(torch.float16)) for g in gradients]
        return any(float(((h == 0) & (g != 0)).sum()) > 0.01 * float((g != 0).sum()) for g, h in cast)

    def overflows(scale: float) -> bool:
        return any(bool((g.double() * scale).to(torch.float16).isinf().any()) for g in gradients)

    if overflows(1.0):
        scale = next(2.0**-power for power in range(1, 200) if not overflows(2.0**-power))
    else:
        scale = next(2.0**power for power in range(200) if not lost(2.0**power))
    return math.inf if lost(scale) or overflows(scale) else scale


# The user's model ------------------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Counts its calls in a buffer and in an attribute, iterates the power method, and draws a mask."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.first, self.last, self.act = spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 8), nn.ReLU(inplace=True)
        self.drop, self.calls = nn.Dropout(0.2), 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        h = self.norm(x)
        x = x + self.attention(h, h, h)[0]
        return x + self.drop(self.last(self.act(self.first(x))))


STATES = [
    *JACOBIAN, "saturated_fraction", "dead_fraction", "attention_entropy", "branch_ratio", "branch_gradient_share",
    "expert_usage", "interacting_samples", "underflow_fraction", "overflow_fraction", "smallest_loss_scale",
]  # fmt: skip


def snapshot(model: nn.Module) -> list[Any]:
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), sorted(vars(m)))
        for m in model.modules()
    ]
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    gradients = [
        (id(p), p.requires_grad, id(p.grad), p.grad if p.grad is None else p.grad.clone()) for p in model.parameters()
    ]
    return [modules, tensors, gradients, [b.calls for b in model[:3]], torch.get_rng_state(), random.getstate()]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def readings(result: Any) -> dict[str, str]:
    return {name: repr(_numbers(getattr(result, name))) for name in STATES}


def _numbers(value: Any) -> Any:
    if hasattr(value, "items"):
        return {name: estimate.values for name, estimate in value.items()}
    if hasattr(value, "names"):
        return value.names
    return value.values if hasattr(value, "values") else [estimate.values for estimate in value]


def test_nothing_changes_and_nothing_depends_on_company():
    model = nn.Sequential(*[Stateful() for _ in range(3)], nn.Linear(8, 5))
    model[1].eval()
    model[0].last.weight.requires_grad_(False)
    x, labels = torch.randn(3, 5, 8), torch.randint(0, 5, (3, 5))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    loss(model(x), labels).backward()
    before = snapshot(model)
    together = measure(model, x, loss=loss, target=labels, measures=STATES)
    one_by_one = measure(model, x, loss=loss, target=labels)
    assert readings(together) == readings(one_by_one)
    assert same(before, snapshot(model))
