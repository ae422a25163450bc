"""Recording: which calls are recorded with which edges, what the model receives, and which losses are accepted."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import (
    Capture,
    Edge,
    Recorder,
    as_signal,
    capture,
    edge_of,
    evaluate,
    unique,
    with_gradient,
)
from pytest_trainability.errors import ModelError

WIDTH = models.WIDTH
X = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)


class Reader(nn.Module):
    """Reads two tensors and a parameter."""

    def forward(self, x: Tensor, extra: tuple[Tensor, int], *, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x @ weight, {"extra": extra[0] + 1, "count": torch.tensor(extra[1])}


class Model(nn.Module):
    """Calls one module twice, and one with several arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.reader = nn.Linear(WIDTH, WIDTH), Reader()
        self.weight = nn.Parameter(torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(torch.tanh(self.layer(x)))
        return self.reader(y, (x, 3), weight=self.weight)[0]


# Calls -----------------------------------------------------------------------------------------------------------
def test_calls_are_recorded_in_the_order_of_their_return() -> None:
    calls = capture(Model(), (X,), {}).calls
    assert [(call.path, call.index, call.kind) for call in calls] == [
        ("layer", 0, "Linear"),
        ("layer", 1, "Linear"),
        ("reader", 0, "Reader"),
        ("", 0, "Model"),
    ]
    assert [call.parent for call in calls] == [calls[3]] * 3 + [None]


def test_moments_of_calls_are_in_program_order() -> None:
    first, second, reader, whole = capture(Model(), (X,), {}).calls
    assert whole.start == first.start < first.end <= second.start < second.end == reader.start < reader.end == whole.end


def test_edges_of_arguments_and_results_are_recorded() -> None:
    """A parameter among the arguments, an integer and a tensor without a gradient have no edge."""
    captured = capture(Model(), (X,), {})
    first, second, reader, whole = captured.calls
    assert whole.slots == first.slots == captured.sources
    assert reader.slots == (*second.results, *captured.sources, None)
    assert reader.results[0] == whole.results[0] == edge_of(captured.output)
    assert reader.results[1] is not None and reader.results[2] is None
    assert len(reader.inputs) == 2 and len(reader.outputs) == 2
    assert captured.roots == whole.outputs


def test_no_hook_remains() -> None:
    model = Model()
    capture(model, (X,), {})
    broken = nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        capture(broken, (X,), {})
    for module in (*model.modules(), *broken.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_an_exception_that_the_model_catches_leaves_no_call_behind() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right = nn.Linear(WIDTH + 1, 2), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.right(x)

    captured = capture(Careful(), (X,), {})
    assert [call.path for call in captured.calls] == ["right", ""]
    assert captured.calls[-1].outputs == captured.roots


def test_a_copy_of_a_module_is_not_recorded() -> None:
    """A copy that the model makes in its forward pass has the hooks of the original, but is not part of the model."""

    class Copying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return copy.deepcopy(self.layer)(self.layer(x))

    assert [call.path for call in capture(Copying(), (X,), {}).calls] == ["layer", ""]


def test_a_module_that_runs_in_another_thread_is_refused() -> None:
    """PyTorch counts autograd nodes by thread: the order of the steps would be wrong."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                return self.second(pool.submit(self.first, x).result())

    with pytest.raises(
        ModelError, match=r"all modules must run in one thread\. Parallel called 'first' in another one"
    ):
        capture(Parallel(), (torch.ones(1, 2),), {})


def test_observers_see_each_tensor_once_while_it_holds_its_values() -> None:
    """The activation overwrites the output of the layer in place."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, 2))
    seen: list[tuple[Edge, Tensor]] = []

    @contextmanager
    def instrument(recorder: Recorder) -> Iterator[str]:
        recorder.observers.append(lambda edge, tensor: seen.append((edge, tensor.detach().clone())))
        yield "result"

    captured = capture(model, (X,), {}, instruments=(instrument,))
    assert captured.watched == {instrument: "result"}
    assert len({edge for edge, _ in seen}) == len(seen) == 4
    linear: Any = model[0]
    assert [value.shape[1] for _, value in seen] == [WIDTH, WIDTH, WIDTH, 2]
    torch.testing.assert_close(seen[1][1], linear(X).detach())
    assert (seen[1][1] < 0).any() and (seen[2][1] >= 0).all()


# Inputs ----------------------------------------------------------------------------------------------------------
Pair = namedtuple("Pair", ["ids", "features"])


class Inputs(nn.Module):
    """Keeps its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, WIDTH)

    def forward(self, pair: Any, **named: Any) -> Tensor:
        self.received = pair, named
        return self.table(pair.ids) + pair.features + named["scale"]


def test_inputs_are_copies_that_carry_gradients() -> None:
    """Containers and other values are those of the user."""
    model, ids, features, scale = Inputs(), torch.arange(3), X.clone(), torch.ones(1, dtype=torch.float64)
    captured = capture(model, (Pair(ids, features),), {"scale": scale, "name": "x"})
    pair, named = model.received
    assert isinstance(pair, Pair) and named["name"] == "x"
    assert pair.features.requires_grad and named["scale"].requires_grad and not pair.ids.requires_grad
    assert torch.equal(pair.features, features) and pair.features.data_ptr() != features.data_ptr()
    assert not features.requires_grad and not scale.requires_grad
    assert captured.sources == (edge_of(pair.features), edge_of(named["scale"]))
    assert captured.indices == {pair.ids.untyped_storage().data_ptr()}
    assert pair.ids.data_ptr() != ids.data_ptr()


def test_a_model_that_rejects_inputs_with_gradients_runs_again_without_them() -> None:
    """The random generator is restored before the second run."""

    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.noise = torch.rand(2)
            x.requires_grad = True
            return self.layer(x) + self.noise

    model = Strict()
    torch.manual_seed(3)
    captured = capture(model, (X,), {}, restart=lambda: torch.manual_seed(3))
    assert not captured.inputs_carry_gradient and captured.sources == ()
    assert torch.equal(model.noise, torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_other_errors_of_the_model_are_raised() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        capture(nn.Linear(WIDTH + 1, 2), (X,), {})


# Losses ----------------------------------------------------------------------------------------------------------
def loss_of(loss: Callable[..., Any] | None, *, target: Any = None, model: nn.Module | None = None) -> Tensor | None:
    """Return the loss of a recorded run; that of a run without recording must be the same."""
    model = model or nn.Linear(WIDTH, 2)
    found = capture(model, (X,), {}, target=target, loss=loss).loss
    _, again = evaluate(model, (X,), {}, target, loss)
    assert (found is None) == (again is None)
    assert found is None or again is None or torch.equal(found, again)
    return found


def test_a_loss_is_called_with_the_output_and_the_target() -> None:
    """It may have one dimension of size one. It receives a copy of the target."""
    target = torch.zeros(3, 2)

    def loss(output: Tensor, given: Tensor) -> Tensor:
        given += 1
        return (output - given).square().mean().reshape(1)

    found = loss_of(loss, target=target)
    assert found is not None and found.shape == ()
    assert not target.any()
    assert loss_of(lambda output: output.sum()) is not None


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (lambda y: y, None, r"one number.*returned a tensor of shape \(3, 2\)\. Reduce it"),
        (lambda y: None, None, r"returned NoneType\. A return statement is missing"),
        (lambda y: y.sum().item(), None, r"returned float\. Return the tensor itself"),
        (lambda y: y.detach().sum(), None, r"does not depend on the output in the autograd graph\. Look for \.detach"),
        (lambda y, t: y.sum(), None, r"must run as loss\(output\)\..*raised TypeError.*pass target="),
        (lambda y: y.sum(), X, r"must run as loss\(output, target\)\..*raised TypeError"),
    ],
    ids=["not-reduced", "none", "number", "detached", "needs-target", "takes-no-target"],
)
def test_an_invalid_loss_is_refused(loss: Callable[..., Any], target: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        loss_of(loss, target=target)


class Returning(nn.Module):
    """Returns what a function makes of its output."""

    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.pack = nn.Linear(WIDTH, 2), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.layer(x))


Output = namedtuple("Output", ["loss", "logits"])


@pytest.mark.parametrize(
    ("pack", "has_loss"),
    [
        (lambda y: {"loss": y.mean(), "logits": y}, True),
        (lambda y: Output(y.mean().reshape(1), y), True),
        (lambda y: {"logits": y}, False),
        (lambda y: y, False),
        (lambda y: {"loss": y.mean().detach(), "logits": y}, False),
        (lambda y: {"loss": y, "logits": y}, False),
        (lambda y: {"loss": 1.0, "logits": y}, False),
    ],
    ids=["dict", "attribute", "no-loss", "tensor", "detached", "not-reduced", "number"],
)
def test_the_loss_of_the_model_is_used_if_it_can_be_differentiated(
    pack: Callable[[Tensor], Any], has_loss: bool
) -> None:
    found = loss_of(None, model=Returning(pack))
    assert (found is not None) == has_loss
    assert found is None or found.shape == ()


def test_a_training_step_computes_the_loss() -> None:
    """As in Lightning. A loss of the user takes its place."""

    class Lightning(Returning):
        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.layer(batch).square().mean()

    model = Lightning(lambda y: y)
    found = loss_of(None, model=model)
    assert found is not None and torch.equal(found, model.layer(X).square().mean())
    given = loss_of(lambda y: y.sum(), model=model)
    assert given is not None and torch.equal(given, model.layer(X).sum())


# Edges -----------------------------------------------------------------------------------------------------------
def test_an_edge_is_the_current_node_of_a_tensor() -> None:
    leaf = torch.ones(3, requires_grad=True)
    tensor = 2 * leaf
    before = edge_of(tensor)
    tensor += 1
    assert edge_of(tensor) != before
    assert [edge_of(part)[1] for part in tensor.split(1)] == [0, 1, 2]
    assert edge_of(leaf) == edge_of(leaf)
    assert unique([before, edge_of(leaf), before]) == (before, edge_of(leaf))


def test_copies_with_a_gradient_can_be_changed_in_place() -> None:
    copy = with_gradient(torch.ones(3))
    copy += 1
    assert copy.requires_grad and not copy.is_leaf


def test_a_signal_begins_at_a_copy_or_at_a_clone_of_a_parameter() -> None:
    """The gradient of a parameter is kept."""
    parameter = nn.Parameter(torch.ones(3))
    signal = as_signal(parameter)
    assert not signal.is_leaf
    assert torch.autograd.grad(signal.sum(), parameter)[0].tolist() == [1.0] * 3
    computed = 2 * parameter
    assert as_signal(computed) is computed
    constant = torch.ones(3)
    assert as_signal(constant).requires_grad and not constant.requires_grad


def test_without_a_loss_the_roots_are_the_float_outputs() -> None:
    captured: Capture = capture(Returning(lambda y: (y, y.argmax(), [y.sum(-1), y.detach()])), (X,), {})
    assert captured.roots == (edge_of(captured.output[0]), edge_of(captured.output[2][0]))
    assert capture(Returning(lambda y: y.detach()), (X,), {}).roots == ()
    with_loss = capture(nn.Linear(WIDTH, 2), (X,), {}, loss=lambda y: y.sum())
    assert with_loss.loss is not None and with_loss.roots == (edge_of(with_loss.loss),)
