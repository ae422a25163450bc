"""The activations of a run: recognition, names, the values of the run, and that the measure changes nothing."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_trainability import measure
from pytest_trainability.measures.activations.elementwise import Application, generator_states

WIDTH = 8


class Calling(nn.Module):
    """A layer, followed by functions."""

    def __init__(self, function, width: int = WIDTH) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def names(model, inputs=None, **options) -> list[str]:
    inputs = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1)) if inputs is None else inputs
    return list(measure(model, inputs, measures=["dead_fraction"], **options).dead_fraction)


# Functions that are not activations ----------------------------------------------------------------------------------


class RootMeanSquareNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Mask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.arange(WIDTH) % 2 == 0, 0.0)


NONE = {
    "identity": nn.Identity(),
    "dropout": nn.Dropout(),
    "alpha dropout": nn.AlphaDropout(),
    "scale": Calling(lambda x: (x * 3.0 - 1) / 2),
    "scale of many": Calling(lambda x: torch.arange(1.0, WIDTH + 1) * x),
    "in place": Calling(lambda x: x.mul_(2).add_(1)),
    "mask": Mask(),
    "softmax": nn.Softmax(-1),
    "softmax by hand": Calling(lambda x: x.exp() / x.exp().sum(-1, keepdim=True)),
    "layer norm": nn.LayerNorm(WIDTH),
    "batch norm": nn.BatchNorm1d(WIDTH),
    "norm by hand": RootMeanSquareNorm(),
    "normalize": Calling(F.normalize),
    "square": Calling(torch.square),
    "power": Calling(lambda x: x**3),
    "exponential": Calling(torch.exp),
    "root": Calling(lambda x: (x * x + 1).sqrt()),
    "logarithm": Calling(lambda x: (x * x + 1).log()),
    "reciprocal": Calling(lambda x: 1 / (x * x + 1)),
    "cumulative": Calling(lambda x: x.cumsum(-1)),
    "flip": Calling(lambda x: x.flip(-1)),
    "view": Calling(lambda x: x.view(len(x), WIDTH)),
    "pool": nn.MaxPool1d(3, stride=1, padding=1),
    "far clamp": Calling(lambda x: x.clamp(-1e4, 1e4)),
    "rounded": Calling(lambda x: x + (x.round() - x).detach()),
    "functional weight": Calling(lambda x: F.linear(x, torch.ones(WIDTH, WIDTH))),
    "gated linear": nn.GLU(),
    "product of two": Calling(lambda x: x * torch.roll(x, 1, -1)),
}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("what", NONE)
def test_other_functions_are_not_activations(what, train):
    after = WIDTH // 2 if what == "gated linear" else WIDTH
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), NONE[what], nn.Linear(after, 3))
    assert names(model, train=train) == []


def test_attention_is_not_an_activation():
    assert names(nn.Sequential(nn.Linear(WIDTH, WIDTH), Attending()), torch.randn(2, 5, WIDTH)) == []


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0] + F.scaled_dot_product_attention(x, x, x)


# Names -----------------------------------------------------------------------------------------------------------------


def test_functions_are_named_for_the_calling_module():
    model = nn.Sequential(Calling(F.relu), Calling(lambda x: torch.tanh(F.gelu(x))), Calling(Tensor.relu_))
    assert names(model) == ["0 relu", "1 gelu", "1 tanh", "2 relu"]


class Sine(torch.autograd.Function):
    """A function that draws from Python's generator."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.factor = random.random()
        return ctx.factor * torch.sin(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * ctx.factor * torch.cos(x)


sine = Sine.apply


def test_autograd_functions_are_named_for_their_class():
    assert names(nn.Sequential(Calling(sine), Calling(lambda x: sine(x) + x))) == ["0 Sine", "1 Sine"]


class SineWithSetup(torch.autograd.Function):
    """A function in the newer style, with a keyword argument, that calls functions of PyTorch in ``setup_context``."""

    @staticmethod
    def forward(x, factor=1.0):
        return factor * torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *factor = inputs
        ctx.factor = factor[0] if factor else 1.0
        ctx.largest = output.abs().max()
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * ctx.factor * torch.cos(x), None


class Overwriting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        ctx.mark_dirty(x)
        return x.sin_()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * torch.cos(x)


class Inheriting(Sine):
    """A function that calls the ``forward`` of another class. This is not a call of the other function."""

    @staticmethod
    def forward(ctx, x):
        return Sine.forward(ctx, x)


def takes_keywords() -> bool:
    """Whether ``apply`` accepts keyword arguments in this version of PyTorch. In 2.6 it does not."""
    try:
        SineWithSetup.apply(torch.ones(()), factor=2.0)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (SineWithSetup.apply, "SineWithSetup"),
        (lambda x: SineWithSetup.apply(x, 2.0), "SineWithSetup"),
        pytest.param(
            lambda x: SineWithSetup.apply(x, factor=2.0),
            "SineWithSetup",
            marks=pytest.mark.skipif(not takes_keywords(), reason="torch.autograd.Function.apply takes no keywords"),
        ),
        (lambda x: Overwriting.apply(2 * x), "Overwriting"),
        (Inheriting.apply, "Inheriting"),
    ],
    ids=["setup_context", "with an argument", "by keyword", "in place", "inheriting"],
)
def test_every_style_of_autograd_function_is_examined(function, name):
    model = nn.Sequential(Calling(function), Calling(lambda x: function(x) + x))
    assert names(model) == [f"0 {name}", f"1 {name}"]


def test_autograd_functions_without_gradients_are_not_examined():
    def without_gradient(x: Tensor) -> Tensor:
        with torch.no_grad():
            return SineWithSetup.apply(x).requires_grad_()

    assert names(nn.Sequential(Calling(lambda x: x + without_gradient(x)))) == []


def test_an_autograd_function_inside_another_is_a_part_of_it():
    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return SineWithSetup.apply(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * torch.cos(x)

    assert names(nn.Sequential(Calling(Outer.apply))) == ["0 Outer"]


def test_evaluating_a_module_does_not_count_its_autograd_functions():
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(SineWithSetup.apply(x) + 0.3 * x)

    assert names(nn.Sequential(Sum(), Calling(SineWithSetup.apply))) == ["0", "1 SineWithSetup"]


def test_repeated_calls_are_numbered():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), shared, Calling(lambda x: torch.tanh(2 * torch.tanh(x))), shared)
    assert names(model) == ["1[0]", "2 tanh[0]", "2 tanh[1]", "1[1]"]


def test_function_of_a_transformer_layer():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), 2)
    for train in (True, False):
        assert names(model, torch.randn(2, 5, WIDTH), train=train) == ["layers.0 relu", "layers.1 relu"]


class Tanh10(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * torch.tanh(x / 10)


class ReLUAndDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), 0.5, self.training)


class Squared(nn.Module):
    """The slope of a squared ReLU has no maximum."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def test_a_module_of_several_operations_counts_once():
    assert names(nn.Sequential(nn.Linear(WIDTH, WIDTH), Tanh10(), nn.Linear(WIDTH, 2))) == ["1"]


class DoubledTanh(nn.Module):
    def __init__(self, *, overwrites: bool) -> None:
        super().__init__()
        self.overwrites = overwrites

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).tanh_() if self.overwrites else (2 * x).tanh()


def test_a_module_of_several_operations_may_overwrite_its_input():
    inputs = torch.linspace(-4, 4, 8 * WIDTH).reshape(8, WIDTH)
    overwriting, plain = (
        measure(
            lambda overwrites=overwrites: nn.Sequential(nn.Linear(WIDTH, WIDTH), DoubledTanh(overwrites=overwrites)),
            inputs,
            measures=["saturated_fraction"],
        ).saturated_fraction
        for overwrites in (True, False)
    )
    assert list(overwriting) == ["1"]
    assert overwriting["1"].values == plain["1"].values and 0 < overwriting["1"].mean < 1


class ScaledTanh(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.tanh()


@pytest.mark.parametrize(
    ("shape", "name"), [((2,), "1"), ((1, 2), "1"), ((2, 1), "1"), ((2, 2), "1 tanh"), ((1, 2, 2), "1 tanh")]
)
def test_a_module_with_a_matrix_is_not_an_activation_as_a_whole(shape, name):
    """A parameter of an activation, such as a slope by unit, is a vector."""
    model = nn.Sequential(nn.Linear(2, 2), ScaledTanh(*shape))
    assert names(model, torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(1))) == [name]


def test_dropout_in_the_same_module_is_not_a_part_of_it():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), ReLUAndDropout(), nn.Linear(WIDTH, 2))
    assert names(model) == ["1 relu"]
    inputs = torch.randn(400, WIDTH)
    dropped = measure(model, inputs, measures=["saturated_fraction"]).saturated_fraction["1 relu"]
    assert dropped == measure(model, inputs, train=False, measures=["saturated_fraction"]).saturated_fraction["1"]


def test_activations_inside_a_module_with_an_unbounded_slope():
    assert names(nn.Sequential(nn.Linear(WIDTH, WIDTH), Squared(), nn.Linear(WIDTH, 2))) == ["1 relu"]


ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def test_gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16, **ENDS)
    ids = torch.arange(24).reshape(3, 8)
    result = measure(
        lambda: transformers.GPT2LMHeadModel(config),
        {"input_ids": ids, "labels": ids},
        measures=["saturated_fraction", "dead_fraction", "sample_similarity"],
    )
    assert list(result.saturated_fraction) == ["transformer.h.0.mlp.act", "transformer.h.1.mlp.act"]
    assert result.saturated_fraction < 0.02
    assert result.dead_fraction.max == 0
    assert list(result.sample_similarity) == [
        *("input", "input tokens", "transformer.h.0", "transformer.h.0 tokens"),
        *("transformer.h.1", "transformer.h.1 tokens"),
    ]


def test_gates_of_a_cell():
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.new = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            z = torch.sigmoid(self.gate(torch.cat([x, h], -1)))
            return z * h + (1 - z) * torch.tanh(self.new(torch.cat([x, h], -1)))

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Cell()

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), WIDTH)
            for entry in x.unbind(1):
                h = self.cell(entry, h)
            return h

    inputs = torch.randn(3, 4, WIDTH)
    for steps in ("auto", "time"):
        found = names(Recurrent(), inputs, steps=steps)
        assert found == [f"cell {name}[{time}]" for time in range(4) for name in ("sigmoid", "tanh")]


def test_activations_of_fused_kernels_are_not_listed():
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(WIDTH, WIDTH, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    assert names(Fused(), torch.randn(3, 4, WIDTH)) == []
    assert names(Fused(), torch.randn(3, 4, WIDTH), steps="time") == []


# The values of the run -----------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, *, on: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)])
        self.on = on

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = F.gelu(checkpoint(part, x, use_reentrant=False) if self.on else part(x))
        return x


def test_activations_in_checkpointed_parts():
    wanted = ["saturated_fraction", "dead_fraction", "sample_similarity"]
    inputs = torch.randn(WIDTH, WIDTH)
    plain, saving = (
        measure(lambda on=on: Checkpointed(on=on), inputs, seeds=2, measures=wanted) for on in (False, True)
    )
    assert list(plain.saturated_fraction)[:2] == ["parts.0.1", "Checkpointed gelu[0]"]
    for name in (*wanted, "gradient_norm"):
        assert {k: v.values for k, v in getattr(plain, name).items()} == {
            k: v.values for k, v in getattr(saving, name).items()
        }


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).float()


def test_activations_under_autocast():
    inputs = torch.linspace(-30, 30, 64 * WIDTH).reshape(64, WIDTH)
    whole = measure(lambda: Autocast().body, inputs, measures=["saturated_fraction"]).saturated_fraction
    half = measure(Autocast, inputs, measures=["saturated_fraction"]).saturated_fraction
    assert list(half) == ["body.1", "body.3"]
    # The precision of a pre-activation of 10 is 2⁻⁸ in bfloat16, so that few cross a limit.
    assert float(half["body.1"]) == pytest.approx(float(whole["1"]), abs=0.02)
    assert float(half["body.3"]) == pytest.approx(float(whole["3"]), abs=0.02)


def test_random_slopes_are_those_of_the_run():
    x = torch.randn(1000, requires_grad=True)
    states = generator_states(x.device)
    values = x.detach().clone()
    y = F.rrelu(x, training=True)
    after = torch.get_rng_state()
    slope = Application(F.rrelu, (x,), {"training": True}, x, values, states).slope()
    assert torch.equal(slope, torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(torch.get_rng_state(), after)


class Everything(nn.Module):
    """A model with random draws, counters and memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.random, self.drop = nn.BatchNorm1d(WIDTH), nn.RReLU(), nn.Dropout(0.3)
        self.counting = Counting()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.random(self.norm(self.first(sine(x))))) + (0.1 + random.random()) * torch.randn_like(x)
        return F.relu_(self.drop(self.counting(self.second(x)))) + self.norm.running_mean + self.counting.calls


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.calls = torch.zeros(())
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.number += 1
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return torch.tanh(x - 1 + 0 * self.mean) * 2 + 0 * self.number


def test_the_measure_changes_nothing():
    """All numbers are bit for bit those of a run without the measures."""
    inputs = torch.randn(16, WIDTH)
    options = {"target": torch.randn(16, WIDTH), "loss": F.mse_loss, "seeds": 2}
    wanted = ["saturated_fraction", "dead_fraction", "sample_similarity"]
    plain = measure(Everything, inputs, measures=["initial_loss", "log_gain"], **options)
    looked = measure(Everything, inputs, measures=["initial_loss", "log_gain", *wanted], **options)
    assert looked.initial_loss.values == plain.initial_loss.values
    assert looked.log_gain.values == plain.log_gain.values
    for name, norm in looked.gradient_norm.items():
        assert norm.values == plain.gradient_norm[name].values
    assert list(looked.dead_fraction) == ["Everything Sine", "random", "counting", "Everything relu"]
    # The first access to another attribute repeats the run.
    for name in wanted:
        assert {k: v.values for k, v in getattr(plain, name).items()} == {
            k: v.values for k, v in getattr(looked, name).items()
        }


def test_a_finished_module_is_left_unchanged():
    model = Everything()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    names(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert float(model.counting.calls) == 0
    assert model.counting.number == 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not {"forward", "setup_context"} & set(vars(torch.autograd.function.FunctionMeta))


class Reversible(torch.autograd.Function):
    """A function that calls a module, which must not be called again."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(ctx.module(x), x, gradient)[0], None


def test_a_function_that_calls_modules_is_not_evaluated():
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.inner = nn.Linear(WIDTH, WIDTH), nn.Tanh()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(Reversible.apply(self.layer(x), self.inner))

    calls = 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1

    model = Holding()
    model.inner.register_forward_pre_hook(count)
    assert names(model) == []
    # One call in the forward pass. Calls in backward passes are not a part of the run.
    forward = calls
    calls = 0
    measure(model, torch.randn(4, WIDTH))
    assert calls == forward


def test_the_share_is_nan_if_a_slope_is_nan():
    result = measure(Calling(F.gelu), torch.full((2, WIDTH), torch.nan), measures=["saturated_fraction"])
    assert all(value != value for estimate in result.saturated_fraction.values() for value in estimate.values)


def test_complex_numbers_are_skipped():
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(torch.view_as_real(torch.tanh(self.layer(x.to(torch.complex64)))).flatten(1))

    assert names(Complex()) == ["Complex relu"]


def test_tensors_without_gradient_are_skipped():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                mask = torch.sigmoid(self.layer(x))
            return self.layer(x) * torch.sigmoid(mask)

    assert names(Frozen()) == []
