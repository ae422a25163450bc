"""Backward passes that are not the derivative of their forward pass, with errors that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.autograd import Function

from pytest_trainability import InapplicableError, measure
from pytest_trainability.measures.gradients.backward_error import AGREES

WIDTH = 6
X = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))


class Scaled(Function):
    """Multiplies by one number forward, and by another one backward."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward_factor = backward
        return forward * x

    @staticmethod
    def backward(ctx, g):
        return ctx.backward_factor * g, None, None


class Rounded(Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Apply(nn.Module):
    """A layer with weights, and a function of its result."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(WIDTH, WIDTH), function

    def forward(self, x):
        return self.function(self.linear(x))


def errors(*functions, inputs=X, loss=lambda y: y.square().mean(), **options):
    """Return the errors of a chain of layers."""
    result = measure(
        lambda: nn.Sequential(*(Apply(f) for f in functions)),
        inputs,
        loss=loss,
        steps=Apply,
        measures=["backward_error"],
        **options,
    )
    return {name: estimate.mean for name, estimate in result.backward_error.items()}


def assert_right(found, names):
    assert set(names) <= found.keys()
    assert all(found[name] <= AGREES for name in names)


ALL = ["0", "1", "2", "loss", *(f"parameters of {i}.linear" for i in range(3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_gradients(dtype):
    found = errors(lambda x: x, F.relu, lambda x: Scaled.apply(x.tanh(), 0.3, 0.3), dtype=dtype)
    assert found.keys() == set(ALL)
    assert_right(found, ALL)


@pytest.mark.parametrize(
    ("forward", "backward", "error"), [(0.2, 1.0, 0.8), (1.0, 0.2, 0.8), (1.0, -1.0, 2.0), (1.0, 1.01, 1 / 101)]
)
def test_a_wrong_factor(forward, backward, error):
    found = errors(torch.tanh, lambda x: Scaled.apply(x, forward, backward), torch.tanh)
    # Finite differences are exact to about 1e-8 here.
    assert found["1"] == pytest.approx(error, abs=1e-5)
    assert found["parameters of 1.linear"] == pytest.approx(error, abs=1e-5)
    # What lies before and behind it is right by itself.
    assert_right(found, set(ALL) - {"1", "parameters of 1.linear"})


def test_a_lost_gradient():
    """Nothing arrives at what lies before it, so that nothing can be compared there."""
    found = errors(torch.tanh, lambda x: Scaled.apply(x, 1.0, 0.0), torch.tanh)
    assert found["1"] == found["parameters of 1.linear"] == 1.0
    assert "0" not in found
    assert_right(found, ["2", "loss", "parameters of 2.linear"])


def test_a_gradient_that_ignores_what_arrives():
    class Ignores(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            return ctx.saved_tensors[0].cos()

    found = errors(torch.tanh, torch.tanh, Ignores.apply)
    # The two derivatives are unrelated.
    assert found["2"] > 0.1
    assert_right(found, ["0", "1", "loss"])


def test_a_wrong_gradient_of_a_weight_alone():
    class Product(Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w.T, 3 * x.T @ g

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

        def forward(self, x):
            return Product.apply(x, self.weight).tanh()

    result = measure(
        lambda: nn.Sequential(Layer(), Layer()), X, loss=torch.var, steps=Layer, measures=["backward_error"]
    )
    found = {name: estimate.mean for name, estimate in result.backward_error.items()}
    assert_right(found, ["0", "1", "loss"])
    assert [found["parameters of 0"], found["parameters of 1"]] == pytest.approx([2 / 3, 2 / 3], abs=1e-5)


def test_a_gradient_hook_that_scales():
    def hooked(x):
        x.register_hook(lambda g: g / 2)
        return x

    assert errors(torch.tanh, lambda x: hooked(x.tanh()), torch.tanh)["1"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.detach(),
        lambda x: x + (x.round() - x).detach(),
        lambda x: x / x.data.abs().max(),
        lambda x: x * x.abs().max().item(),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: F.gumbel_softmax(x, hard=True),
        lambda x: x.topk(3).values.repeat(1, 2),
    ],
    ids=["detach", "straight-through", "data", "item", "where", "gumbel", "topk"],
)
def test_values_that_leave_the_graph_are_held(function):
    found = errors(torch.tanh, function, torch.tanh)
    assert_right(found, ALL)


def test_no_grad_is_held():
    def normalized(x):
        with torch.no_grad():
            scale = x.norm(dim=1, keepdim=True)
        return x / scale

    assert_right(errors(torch.tanh, normalized, torch.tanh), ALL)


@pytest.mark.parametrize("skip", [False, True])
def test_a_piecewise_constant_function_with_a_gradient_is_undecided(skip):
    found = errors(torch.tanh, lambda x: Rounded.apply(4 * x) / 4 + (x if skip else 0), torch.tanh)
    assert "1" not in found
    # What lies behind it is examined all the same.
    assert_right(found, ["2", "loss", "parameters of 2.linear"])


def test_a_kink_is_undecided():
    # At every point, the slope is 0 on one side and 1 on the other one.
    found = errors(torch.tanh, lambda x: x + F.relu(x - x.detach()), torch.tanh)
    assert "1" not in found
    assert_right(found, ["2", "loss"])


def test_a_branch_that_starts_at_zero_has_no_kink():
    """ReLUs of exactly 0 are moved away from their kinks."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    for p in model[1].parameters():
        nn.init.zeros_(p)
    found = measure(model, X, loss=torch.mean, steps=nn.Linear, measures=["backward_error"]).backward_error
    assert max(e.mean for e in found.values()) <= AGREES


def test_two_faults_are_both_found():
    found = errors(lambda x: Scaled.apply(x, 1.0, 2.0), torch.tanh, lambda x: Scaled.apply(x, 1.0, 4.0))
    assert (found["0"], found["2"]) == (pytest.approx(0.5, abs=1e-5), pytest.approx(0.75, abs=1e-5))
    assert found["1"] <= AGREES


def test_random_masks_and_padding():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, WIDTH, padding_idx=0)
            self.body = nn.ModuleList(Apply(torch.tanh) for _ in range(2))

        def forward(self, ids):
            x = F.dropout(self.table(ids), 0.5)
            for layer in self.body:
                x = layer(x)
            return x

    ids = torch.tensor([[1, 2, 0], [3, 0, 0]])
    found = measure(Tagger, ids, loss=torch.var, steps=Apply, measures=["backward_error"]).backward_error
    assert "parameters of table" in found
    assert max(e.mean for e in found.values()) <= AGREES


def test_complex_numbers():
    class Rotation(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))

        def forward(self, x):
            return x * self.factor

    found = measure(
        lambda: nn.Sequential(Rotation(), Rotation()),
        torch.randn(3, WIDTH, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)),
        loss=lambda y: y.abs().square().sum(),
        steps=Rotation,
        measures=["backward_error"],
    ).backward_error
    assert {"parameters of 0", "parameters of 1", "loss"} <= found.keys()
    assert max(e.mean for e in found.values()) <= AGREES


def test_along_time_the_parameters_are_compared():
    found = measure(
        nn.GRU(3, WIDTH),
        torch.randn(4, 2, 3),
        loss=lambda out: out[0].square().mean(),
        steps="time",
        measures=["backward_error"],
    )
    assert [*found.backward_error] == ["parameters of GRU"]
    assert found.backward_error["parameters of GRU"].mean <= AGREES


def test_a_model_that_does_not_run_in_float64():
    def refuses(x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            msg = "no kernel"
            raise RuntimeError(msg)
        return x.tanh()

    with pytest.raises(
        InapplicableError, match=r"^backward_error runs the model in float64\. .* raised RuntimeError there: no kernel"
    ):
        errors(refuses, refuses)


def test_values_that_are_not_finite():
    found = errors(torch.tanh, lambda x: x / 0, torch.tanh)
    assert not any(math.isnan(error) for error in found.values())
