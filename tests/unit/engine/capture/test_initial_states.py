"""Constant initial states: a module cannot tell that it receives copies of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import BATCH, FEATURES, LENGTH, WIDTH, Elman, Loop, captured, cut, inputs, zeros
from torch import Tensor


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
    output = captured(model, x).output
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
