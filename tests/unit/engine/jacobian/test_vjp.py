"""Vector-Jacobian products: the product of all segments is the backward pass, on which every number of this package relies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import models
import pytest
import torch
import zoo
from models import ARCHITECTURES, FLOATS, WIDTH, Architecture, Cutting
from products import FORKS, assert_same, interpreted, is_nested, one_backward, one_of, product, some_cotangents
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import Chain, describe
from pytest_trainability.engine.jacobian import vjp
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.vjp import Cotangents, loss_cotangent, pull_back, random_cotangents
from pytest_trainability.engine.trees import tensors_in
from pytest_trainability.errors import ModelError

BY_ID = {case.id: case for case in ARCHITECTURES}
EVERY = [pytest.param(case, case.steps, id=case.id) for case in ARCHITECTURES]
EVERY += [pytest.param(case, "layers", id=f"{case.id}-layers") for case in ARCHITECTURES if case.layers]


@pytest.mark.parametrize(("case", "steps"), EVERY)
def test_product_of_segments_is_one_backward_pass(case: Architecture, steps: str) -> None:
    """Cutting a graph must not change a gradient, whatever the graph looks like."""
    cutting = models.cut_case(case, steps)
    drawn = some_cotangents(cutting.chain)
    for index in range(3):
        columns = one_of(drawn, index)
        found = product(cutting.chain, columns)
        assert any(c is not None and c.any() for c in found)
        if not is_nested(cutting.graph, cutting.chain.cut.states[0]):
            assert_same(found, one_backward(cutting.chain, columns), ulps=FORKS)


# No fork of these is cut in two, so that no sums are reordered.
TO_THE_LAST_BIT = [
    ("mlp", "auto"),
    ("conv-tower", "auto"),
    ("residual", "auto"),
    ("shared-blocks", "auto"),
    ("inplace-activations", "auto"),
    ("inplace-stream", "auto"),
    ("stale-views", "auto"),
    ("weight-norm", "auto"),
    ("spectral-norm", "auto"),
    ("custom-function", "auto"),
    ("checkpoint", "auto"),
    ("lstm-loop", "time"),
    ("unet", "auto"),
    ("densenet", "auto"),
    ("batch-norm", "auto"),
    ("complex-state", "auto"),
    ("integer-inputs", "auto"),
]


@pytest.mark.parametrize(("name", "steps"), TO_THE_LAST_BIT, ids=[name for name, _ in TO_THE_LAST_BIT])
def test_product_is_exact_to_the_last_bit(name: str, steps: str) -> None:
    """If every fork lies inside one segment, the same additions are executed in the same order."""
    cutting = models.cut_case(BY_ID[name], steps)
    columns = some_cotangents(cutting.chain, 1)
    assert_same(product(cutting.chain, columns), one_backward(cutting.chain, columns))


@pytest.mark.parametrize(
    ("case", "steps"),
    [p for p in EVERY if p.values[0].id not in {"custom-function", "checkpoint", "scaled-gradient", "scaled-skips"}],
)
def test_product_of_segments_is_the_interpreted_backward_pass(case: Architecture, steps: str) -> None:
    """A second reference without autograd's engine, which is also valid if edges of the first state lie upstream of each other.

    Python functions, which cannot be called alone, and tensor hooks, which only the engine runs, are left out.
    """
    if case.id == "strict-function":
        pytest.skip("the node of a custom function cannot be called")
    cutting = models.cut_case(case, steps)
    columns = some_cotangents(cutting.chain, 1)
    expected = interpreted(cutting.graph, cutting.chain, columns)
    assert_same(product(cutting.chain, columns), expected, ulps=FORKS)


@pytest.mark.parametrize(("case", "steps"), EVERY)
def test_batched_cotangents_equal_single_ones(case: Architecture, steps: str) -> None:
    """Batching cotangents only saves time. Batched products are summed in another order: a few ulps."""
    cutting = models.cut_case(case, steps)
    drawn = some_cotangents(cutting.chain, 4)
    together = product(cutting.chain, drawn)
    for index in range(4):
        alone = product(cutting.chain, one_of(drawn, index))
        assert_same(one_of(together, index), alone, ulps=4 * FORKS)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_cotangents_in_portions_equal_all_at_once(at_once: int) -> None:
    """The number of cotangents per call does not change the result; five are not divisible by two."""
    chain = models.cut_case(BY_ID["unet"]).chain
    columns = some_cotangents(chain, 5)
    expected = pull_back(chain, len(chain), columns)
    assert_same(pull_back(chain, len(chain), columns, at_once=at_once), expected, ulps=FORKS)


def test_pull_back_is_linear_in_each_segment() -> None:
    """A segment is a matrix: zero maps to zero and sums to sums, also with a skip around the segment."""
    chain = models.cut_case(BY_ID["unet"], dtype=torch.float64).chain
    for index in range(len(chain), 0, -1):
        shapes = chain.shapes(index)
        a, b = ([torch.randn(1, *shape, dtype=dtype) for shape, dtype in shapes] for _ in range(2))
        total = pull_back(chain, index, [3 * x - y for x, y in zip(a, b)])
        parts = zip(pull_back(chain, index, a), pull_back(chain, index, b))
        assert_same(total, [3 * x - y for x, y in parts], ulps=FORKS)
        assert pull_back(chain, index, [None] * len(shapes)) == [None] * len(chain.shapes(index - 1))


def test_loss_cotangent_gives_the_gradient_of_the_loss() -> None:
    """From the loss through the last state to the inputs, with a loss that also depends on an early state."""
    case = BY_ID["early-loss"]
    cutting = models.cut_case(case)
    loss = cutting.capture.loss
    assert loss is not None
    found = product(cutting.chain, loss_cotangent(cutting.chain, loss))
    expected = torch.autograd.grad(
        loss, [GradientEdge(*e) for e in cutting.chain.cut.states[0]], retain_graph=True, allow_unused=True
    )
    assert_same(found, [g.unsqueeze(0) for g in expected], ulps=FORKS)


# Cotangents ------------------------------------------------------------------------------------------------------


def test_first_cotangents_do_not_depend_on_their_number() -> None:
    """The leading exponent must not depend on how many others are measured."""
    chain = models.cut_case(BY_ID["unet"]).chain
    for few, many in zip(random_cotangents(chain, 2, 3), random_cotangents(chain, 5, 3)):
        assert few is not None and many is not None and torch.equal(few, many[:2])


def test_cotangents_have_shape_and_dtype_of_the_last_state() -> None:
    """They are drawn in single precision: in double precision they are the same numbers."""
    single, double = (models.cut_case(BY_ID["mlp"], dtype=dtype).chain for dtype in (torch.float32, torch.float64))
    (one,), (other,) = random_cotangents(single, 2, 0), random_cotangents(double, 2, 0)
    assert one is not None and other is not None
    assert one.shape == other.shape == (2, *single.shapes(len(single))[0][0])
    assert (one.dtype, other.dtype) == (torch.float32, torch.float64)
    assert torch.equal(one.double(), other)


def test_random_cotangents_differ_by_seed_and_number() -> None:
    chain = models.cut_case(BY_ID["mlp"]).chain
    (first,), (second,) = random_cotangents(chain, 2, 0), random_cotangents(chain, 2, 1)
    assert first is not None and second is not None
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)


def test_cotangent_of_a_loss_that_is_the_last_state_is_one() -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().mean()

    cutting = models.cut(torch.nn.Sequential(torch.nn.Linear(3, 3), Loss()), torch.randn(2, 3), "*")
    loss = cutting.capture.output
    assert [None if c is None else c.tolist() for c in loss_cotangent(cutting.chain, loss)] == [[1.0]]
    with torch.device("meta"):
        (cotangent,) = loss_cotangent(cutting.chain, loss)
    assert cotangent is not None and cotangent.device == loss.device and cotangent.dtype == loss.dtype


def test_a_cotangent_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are halved down to one cotangent before the measurement fails."""
    tried: list[int] = []

    def out_of_memory(chain: object, outputs: object, inputs: object, columns: list[Tensor]) -> None:
        tried.append(len(columns[0]))
        raise torch.OutOfMemoryError

    monkeypatch.setattr("pytest_trainability.engine.jacobian.vjp._one_call", out_of_memory)
    chain = models.cut_case(BY_ID["mlp"]).chain
    with pytest.raises(ModelError, match="one cotangent must fit on the device in addition to the graph"):
        pull_back(chain, len(chain), some_cotangents(chain, 6))
    assert tried == [6, 3, 2, 1]


# The dense Jacobian ----------------------------------------------------------------------------------------------


def dense_by_segments(chain: Chain) -> Tensor:
    """Pull the identity back: row i of the result is row i of the Jacobian of the whole chain."""
    shapes = chain.shapes(len(chain))
    count = sum(math.prod(shape) for shape, _ in shapes)
    identity = torch.eye(count, dtype=torch.float64)
    parts = identity.split([math.prod(shape) for shape, _ in shapes], dim=1)
    columns: Cotangents = [part.reshape(count, *shape) for part, (shape, _) in zip(parts, shapes)]
    found = product(chain, columns)
    return torch.cat([c.reshape(count, -1) for c in found if c is not None], 1)


def dense_by_differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """Differentiate a function by central differences, with an error of step² / 6 times its third derivative."""
    columns = []
    for index in range(x.numel()):
        shift = torch.zeros_like(x).flatten()
        shift[index] = step
        shift = shift.reshape(x.shape)
        columns.append((function(x + shift) - function(x - shift)) / (2 * step))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in ARCHITECTURES if case.dense])
def test_product_is_the_dense_jacobian(case: Architecture) -> None:
    """The matrix in float64, against central differences of the model, without autograd."""
    model, inputs = models.build(case, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    cutting = models.cut(model, inputs, case.steps)
    last = cutting.chain.steps[-1]
    kept: list[Tensor] = []

    def replay(x: Tensor) -> Tensor:
        model.load_state_dict(state)
        torch.manual_seed(7)
        kept.clear()
        handle = last.module.register_forward_hook(lambda *seen: kept.append(seen[-1].detach().clone()))
        with torch.no_grad():
            model(x.clone())
        handle.remove()
        return kept[-1].flatten()

    found = dense_by_segments(cutting.chain)
    expected = dense_by_differences(replay, inputs)
    assert float((found - expected).abs().max()) <= 1e-8 * max(1.0, float(expected.abs().max()))


def test_lstm_jacobian_is_the_hand_written_one() -> None:
    """The state has two tensors. The matrix ∂(h', c')/∂(h, c) of one step, in float64, from a function written by hand."""
    case = BY_ID["lstm-loop"]
    cutting = models.cut_case(case, "time", dtype=torch.float64)
    cell = cutting.model.cell
    x = cutting.inputs
    width = models.WIDTH

    def step(joined: Tensor, t: int) -> Tensor:
        h, c = joined.split(width, dim=1)
        gates = x[:, t] @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, g, o = gates.split(width, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)

    joined = torch.zeros(len(x), 2 * width, dtype=torch.float64)
    for t in range(2):
        joined = step(joined, t)
    matrix = torch.autograd.functional.jacobian(lambda s: step(s, 2), joined)
    chain = cutting.chain
    assert len(chain.cut.states[2]) >= 2
    outputs, entering = chain.steps[2].outputs, chain.steps[1].outputs
    h, c = (torch.randn(len(x), width, dtype=torch.float64) for _ in range(2))
    given = dict(zip(outputs, (h, c)))
    columns: Cotangents = [given[e].unsqueeze(0) if e in given else None for e in chain.cut.states[3]]
    found = dict(zip(chain.cut.states[2], pull_back(chain, 3, columns)))
    expected = torch.einsum("bi,bicj->cj", torch.cat([h, c], 1), matrix)
    result = torch.cat([found[entering[0]][0], found[entering[1]][0]], 1)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)


# The zoo ---------------------------------------------------------------------------------------------------------


def run_zoo(case: zoo.Case) -> Cutting:
    torch.manual_seed(0)
    model = case.build().train()
    return models.cut(model, case.inputs(torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.id)
def test_product_of_segments_is_the_backward_pass_of_the_zoo(case: zoo.Case) -> None:
    """Real architectures are cut at their blocks, and the gradient does not change."""
    pytest.importorskip("transformers")
    cutting = run_zoo(case)
    chain = cutting.chain
    assert describe(chain.steps) == case.steps
    columns = some_cotangents(chain, 1)
    found = product(chain, columns)
    assert any(c is not None and c.any() for c in found)
    if is_nested(cutting.graph, chain.cut.states[0]):
        expected = interpreted(cutting.graph, chain, columns)
    else:
        expected = one_backward(chain, columns)
    # In each layer, sums at forks are reordered.
    assert_same(found, expected, ulps=64 * FORKS)
    assert any(True for _ in tensors_in(cutting.capture.output))
    assert find_trajectories(chain, zoo.BATCH, 0)[0].count in {1, zoo.BATCH}


# Memory -----------------------------------------------------------------------------------------------------------


def test_cotangents_that_do_not_fit_are_carried_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer cotangents at once give the same spectrum, and take longer."""
    expected = measure(models.mlp, FLOATS, seeds=1, exponents=5, dtype="float64")
    whole, sizes = vjp._one_call, []

    def small(chain: Any, outputs: Any, inputs: Any, columns: Sequence[Tensor]) -> Any:
        sizes.append(len(columns[0]))
        if len(columns[0]) > 2:
            msg = "CUDA out of memory"
            raise torch.OutOfMemoryError(msg)
        return whole(chain, outputs, inputs, columns)

    monkeypatch.setattr(vjp, "_one_call", small)
    found = measure(models.mlp, FLOATS, seeds=1, exponents=5, dtype="float64")
    assert max(sizes) == 5
    assert [e.mean for e in found.lyapunov_spectrum] == pytest.approx(
        [e.mean for e in expected.lyapunov_spectrum], abs=1e-12
    )


def test_one_cotangent_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:

    def never(*_: Any) -> Any:
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)

    monkeypatch.setattr(vjp, "_one_call", never)
    with pytest.raises(ModelError, match="one cotangent must fit on the device") as caught:
        measure(models.mlp, FLOATS, seeds=1, exponents=5)
    assert "smaller batch" in str(caught.value)


# Hooks and custom functions behind a state ------------------------------------------------------------------------
class Unit(torch.autograd.Function):
    """Normalizes the gradient, which is NaN for a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / gradient.norm()


def doubled(x: Tensor) -> Tensor:
    x.register_hook(lambda gradient: gradient * 2)
    return x


class Tampered(nn.Module):
    """A step whose gradient something of the model's own changes."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(WIDTH, WIDTH), change

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return torch.tanh(self.change(sum(more, self.layer(x))))


class Joined(nn.Module):
    """The last step reads the results of both others, one of which lies upstream of the other."""

    def __init__(self, change: Callable[[Tensor], Tensor], hook: Any = None) -> None:
        super().__init__()
        self.one, self.two, self.three = (Tampered(change) for _ in range(3))
        if hook is not None:
            for step in (self.one, self.two, self.three):
                step.layer.register_full_backward_hook(hook)

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        return self.three(self.two(first), first)


def scaled(module: nn.Module, entering: Any, leaving: Any) -> Any:
    return tuple(None if gradient is None else gradient.clamp(-1, 1) for gradient in entering)


@pytest.mark.parametrize(
    ("change", "hook"),
    [(Unit.apply, None), (doubled, None), (torch.clone, scaled)],
    ids=["function", "tensor", "module"],
)
def test_what_changes_gradients_is_not_called_without_one(change: Callable[[Tensor], Tensor], hook: Any) -> None:
    """Behind a state at which a gradient is stopped. See Note [Barrier at the inputs] in vjp.py."""
    torch.manual_seed(0)
    cutting = models.cut(Joined(change, hook), torch.randn(1, WIDTH), ["one", "two", "three"])
    cotangents = random_cotangents(cutting.chain, 1, 0)
    assert_same(product(cutting.chain, cotangents), one_backward(cutting.chain, cotangents))
