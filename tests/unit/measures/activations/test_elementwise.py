"""Recognition of activation functions, and their slopes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor

from pytest_trainability.measures.activations.elementwise import Application, generator_states, steepest_slope

Function = Callable[[Tensor], Tensor]
X = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(8, 8)


def applied(function: Function, x: Tensor = X) -> Application:
    return Application(function, (x,), {}, x, x.clone(), generator_states(x.device))


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_few_entries_do_not_mislead(size: int) -> None:
    """For a handful of entries, a function that mixes them may look elementwise."""
    x = torch.randn(size, 2)

    def slope(function: Function) -> float | None:
        return steepest_slope(applied(function, x))

    assert slope(lambda t: t.softmax(-1)) is None
    assert slope(lambda t: t.flip(-1).tanh()) is None
    assert slope(lambda t: F.layer_norm(t, (2,)).tanh()) is None
    assert slope(torch.tanh) == pytest.approx(1)
    assert slope(F.gelu) == pytest.approx(1.1289, abs=1e-3)


SLOPES: dict[str, tuple[Function, float]] = {
    "relu": (torch.relu, 1.0),
    "sigmoid": (torch.sigmoid, 0.25),
    "tanh": (torch.tanh, 1.0),
    "softplus": (F.softplus, 1.0),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.2), 1.0),
    "scaled tanh": (lambda x: 3 * torch.tanh(2 * x), 6.0),
    "falling": (lambda x: -torch.sigmoid(x), 0.25),
}


@pytest.mark.parametrize(("function", "slope"), SLOPES.values(), ids=SLOPES)
def test_the_largest_slope_of_an_activation(function: Function, slope: float) -> None:
    assert steepest_slope(applied(function)) == pytest.approx(slope, rel=1e-4)


NOT_ACTIVATIONS: dict[str, Function] = {
    "scale": lambda x: 2 * x,
    "mask": lambda x: x * (torch.arange(8) % 2),
    "dropout": lambda x: F.dropout(x, 0.5),
    "square": torch.square,
    "exponential": torch.exp,
    "logarithm": torch.log,
    "square root": torch.sqrt,
    "softmax": lambda x: x.softmax(-1),
    "norm": lambda x: F.layer_norm(x, (8,)),
    "sort": lambda x: x.sort(-1)[0],
    "transpose": lambda x: x.T.tanh(),
    "refuses other values": lambda x: x.tanh() if torch.equal(x.detach(), X) else 1 / 0,
}


@pytest.mark.parametrize("function", NOT_ACTIVATIONS.values(), ids=NOT_ACTIVATIONS)
def test_other_functions_have_no_slope(function: Function) -> None:
    assert steepest_slope(applied(function)) is None


def test_the_slope_is_evaluated_at_the_values_of_the_call() -> None:
    """Also if the argument has been overwritten since."""
    x = X.clone()
    application = Application(torch.tanh, (x,), {}, x, x.clone(), generator_states(x.device))
    x.zero_()
    torch.testing.assert_close(application.slope(), 1 - X.tanh().square())


def test_random_numbers_are_those_of_the_call() -> None:
    """The slopes of a randomized ReLU are random below zero."""
    states = generator_states(X.device)
    output = F.rrelu(X, training=True)
    drawn = output / X
    application = Application(lambda x: F.rrelu(x, training=True), (X,), {}, X, X, states)
    state = torch.get_rng_state()
    torch.testing.assert_close(application.slope()[X != 0], drawn[X != 0])
    assert torch.equal(torch.get_rng_state(), state)


def test_other_arguments_are_constants() -> None:
    """A running average that the function changes is not changed by an evaluation."""
    average = torch.zeros(8, dtype=torch.float64)

    def tracked(x: Tensor, mean: Tensor) -> Tensor:
        mean += x.detach().mean(0)
        return torch.tanh(x)

    application = Application(tracked, (X, average), {}, X, X, generator_states(X.device))
    assert steepest_slope(application) == pytest.approx(1)
    assert not average.any()


def test_a_function_may_work_in_place() -> None:
    x = X.clone()
    assert steepest_slope(applied(F.relu_, x)) == pytest.approx(1)
    assert torch.equal(x, X)


def test_a_slope_of_nan_is_not_the_slope_of_an_activation() -> None:
    assert steepest_slope(applied(lambda x: torch.where(x > 1e9, x, x * math.nan))) is None


def test_running_out_of_memory_is_not_hidden() -> None:
    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        steepest_slope(applied(full))


def slope_of(function: Callable[..., Tensor], *args: object, **kwargs: object) -> float | None:
    """Return the steepest slope of a function of PyTorch whose first argument carries the signal."""
    signal = args[0]
    assert isinstance(signal, Tensor)
    return steepest_slope(Application(function, args, kwargs, signal, signal.clone(), generator_states(signal.device)))


def test_verdicts_that_are_kept_are_those_of_the_same_arguments() -> None:
    """Functions of PyTorch are examined once. Arguments that compare equal, and shapes, make other functions of them."""
    for _ in range(2):
        assert slope_of(F.leaky_relu, X, 0.2) == pytest.approx(1)
        assert slope_of(F.leaky_relu, X, 3.0) == pytest.approx(3)
        assert slope_of(F.leaky_relu, X, 1) is None
        assert slope_of(torch.clamp, X, min=0) == pytest.approx(1)
        assert slope_of(torch.clamp, X, min=-math.inf) is None
        assert slope_of(torch.norm, X[:, :1], dim=-1, keepdim=True) == pytest.approx(1), "|x|, which bends"
        assert slope_of(torch.norm, X[:, :2], dim=-1, keepdim=True) is None


def test_a_verdict_that_depends_on_other_tensors_is_not_kept() -> None:
    for weight, expected in ((0.25, 1.0), (1.0, None), (4.0, 4.0)):
        assert slope_of(F.prelu, X, torch.tensor([weight], dtype=X.dtype)) == (expected and pytest.approx(expected))


def test_functions_of_pytorch_are_examined_once_for_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[Tensor] = []
    pull_back = Application.pull_back

    def counted(self: Application, values: Tensor, cotangents: list[Tensor]) -> list[Tensor]:
        evaluated.append(values)
        return pull_back(self, values, cotangents)

    monkeypatch.setattr(Application, "pull_back", counted)
    x = torch.randn(7, 11, 3)
    weights = torch.randn(3), torch.randn(3)
    for _ in range(3):
        slope_of(F.mish, torch.randn_like(x))
    once = len(evaluated)
    slope_of(F.layer_norm, x, (3,), *weights)
    mixing = len(evaluated)
    slope_of(F.layer_norm, 2 * x, (3,), *(2 * weight for weight in weights))
    assert 0 < once < mixing == len(evaluated)
    slope_of(lambda t: F.mish(t), x)
    assert len(evaluated) > mixing, "a function of the user may have a state"
