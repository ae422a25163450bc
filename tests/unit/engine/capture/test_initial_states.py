"""Constant initial states: a module cannot tell that it receives copies of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import BATCH, FEATURES, LENGTH, WIDTH, Elman, Loop, capture_along_time, cut, inputs, zeros
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import Capture, edge_of


class IntoDict(Elman):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        state["h"] = self.next(x, state.get("h", zeros(x)))
        return state["h"]


class IntoList(Elman):
    def forward(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        kept.append(self.next(x, kept[-1] if kept else zeros(x)))
        return kept[-1]


class IntoBuffer(Elman):
    def forward(self, x: Tensor, h: Tensor, kept: Tensor, t: int) -> Tensor:
        h = self.next(x, h)
        kept[:, t] = h
        return h


class IntoState(Elman):
    def forward(self, x: Tensor, h: Tensor) -> None:
        h.copy_(self.next(x, h.clone()))


def into_dict(model: Any, x: Tensor) -> Tensor:
    state: dict[str, Tensor] = {}
    return torch.stack([model.cell(x[:, t], state) for t in range(LENGTH)], 1)


def into_list(model: Any, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    for t in range(LENGTH):
        model.cell(x[:, t], kept)
    return torch.stack(kept, 1)


def into_buffer(model: Any, x: Tensor) -> Tensor:
    h, kept = zeros(x), x.new_zeros(len(x), LENGTH, WIDTH)
    for t in range(LENGTH):
        h = model.cell(x[:, t], h, kept, t)
    return kept


def into_state(model: Any, x: Tensor) -> Tensor:
    h, kept = zeros(x), []
    for t in range(LENGTH):
        model.cell(x[:, t], h)
        kept.append(h.clone())
    return torch.stack(kept, 1)


@pytest.mark.parametrize(
    ("run", "own"),
    [
        pytest.param(into_dict, IntoDict, id="dict"),
        pytest.param(into_list, IntoList, id="list"),
        pytest.param(into_buffer, IntoBuffer, id="buffer"),
        pytest.param(into_state, IntoState, id="state-in-place"),
    ],
)
def test_a_module_writes_into_the_arguments_of_its_caller(run: Callable[..., Tensor], own: type[Elman]) -> None:
    """The ``incremental_state`` of a decoder, a key-value cache or a buffer of outputs is shared with the caller."""
    torch.manual_seed(0)
    model, x = Loop(run, cell=own()).double(), inputs(BATCH, LENGTH, FEATURES)
    expected = model(x)
    output = capture_along_time(model, x).output
    assert output.shape == expected.shape
    torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-14)


def test_other_arguments_are_passed_unchanged() -> None:
    """Integers, None, strings and objects are those of the caller."""
    token = object()

    class Odd(Elman):
        def forward(self, x: Tensor, h: Tensor, index: Tensor, *, how: str, nothing: None, thing: object) -> Tensor:
            assert index.dtype == torch.int64 and how == "so" and nothing is None and thing is token
            return self.next(x, h) + index

    def run(model: Any, x: Tensor) -> Tensor:
        h = zeros(x)
        for t in range(LENGTH):
            h = model.cell(x[:, t], h, torch.tensor(t), how="so", nothing=None, thing=token)
        return h

    model = Loop(run, cell=Odd()).double()
    assert len(cut(model, inputs(BATCH, LENGTH, FEATURES))) == LENGTH


class Adding(nn.Module):
    """Adds its arguments."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other


def received(call: Callable[[Any, Tensor], Any], own: nn.Module, x: Tensor) -> tuple[Capture, list[Any]]:
    """Return the run of a loop and the arguments that its module received."""
    seen: list[Any] = []
    own.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    return capture_along_time(Loop(call, own=own).double(), x), seen


def test_constants_of_the_first_call_are_copies_with_gradients() -> None:
    """See Note [Initial states of recurrences]. Later calls receive the tensors of the model."""
    constant = torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    mask = torch.ones(BATCH, WIDTH, dtype=torch.bool)
    captured, seen = received(lambda m, x: m.own(m.own(x, constant), constant * mask), Adding(), inputs(BATCH, WIDTH))
    (args, kwargs), (later, _) = seen
    replaced = args[1]
    assert replaced.requires_grad and replaced is not constant and torch.equal(replaced, constant)
    assert captured.copied_constants == {edge_of(replaced)}
    assert kwargs == {} and not later[1].requires_grad


@pytest.mark.parametrize(("cell", "parts"), [(nn.RNNCell, 1), (nn.GRUCell, 1), (nn.LSTMCell, 2)])
@pytest.mark.parametrize("batched", [True, False])
def test_cells_receive_the_zeros_that_they_would_create(cell: type[nn.RNNCellBase], parts: int, batched: bool) -> None:
    torch.manual_seed(0)
    own: Any = cell(FEATURES, WIDTH)
    x = inputs(BATCH, FEATURES) if batched else inputs(FEATURES)
    captured, seen = received(lambda m, x: m.own(input=x), own, x)
    state = seen[0][1]["hx"]
    states = state if isinstance(state, tuple) else (state,)
    assert len(states) == parts == len(captured.copied_constants)
    assert all(part.shape == (*x.shape[:-1], WIDTH) and part.requires_grad and not part.any() for part in states)


def test_the_model_may_copy_its_modules() -> None:
    """A copy in the forward pass has the hooks of the original."""

    def run(model: Any, x: Tensor) -> Tensor:
        state = model.own(x, zeros(x))
        return copy.deepcopy(model.own)(x, copy.deepcopy(model).own(x, state))

    x = inputs(BATCH, WIDTH)
    model = Loop(run, own=Adding()).double()
    assert torch.equal(capture_along_time(model, x).output, model(x))


def test_nothing_is_replaced_without_gradients() -> None:
    """Neither under no_grad, nor in a model that rejects inputs with gradients."""

    def without(model: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            constant = model.own(zeros(x), zeros(x))
        return x + constant

    captured, seen = received(without, Adding(), inputs(BATCH, WIDTH))
    assert not any(tensor.requires_grad for tensor in seen[0][0])
    assert captured.copied_constants == set()

    def rejecting(model: Any, x: Tensor) -> Tensor:
        x.requires_grad = True
        return model.own(x, zeros(x))

    captured, _ = received(rejecting, Adding(), inputs(BATCH, WIDTH))
    assert captured.copied_constants == set()
