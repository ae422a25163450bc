"""Results of operations: which are observed, and under which names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.results import ResultObserver, unmasked


class Seen(ResultObserver):
    """Lists the paths and shapes of all results."""

    def __init__(self, recorder: Any) -> None:
        super().__init__(recorder)
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def observe(self, path: str, result: Tensor) -> None:
        assert not result.requires_grad
        self.found.append((path, tuple(result.shape)))


class Net(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.layer, self.body = nn.Linear(2, 3, bias=False), body

    def forward(self, x: Tensor) -> Any:
        return self.body(self.layer(x))


def seen(body: Any) -> list[tuple[str, tuple[int, ...]]]:
    captured = capture(Net(body), (torch.randn(4, 2),), {}, instruments=[Seen])
    found: list[tuple[str, tuple[int, ...]]] = captured.watched[Seen].found
    assert found[0] == ("layer", (4, 3))
    return found[1:]


def test_an_operation_outside_of_submodules_has_the_name_of_the_model() -> None:
    assert seen(lambda h: h * h) == [("Net", (4, 3))]


def test_integers_views_empty_results_and_new_memory_are_not_observed() -> None:
    assert seen(lambda h: (h.T.reshape(2, 6).flip(0)[:, 1:], h.argmax(-1), torch.empty(2), h[:0] * 2)) == []


def test_complex_numbers_are_observed() -> None:
    assert seen(torch.fft.fft) == [("Net", (4, 3))]


def test_several_results_of_one_function_are_observed_each() -> None:
    assert seen(lambda h: h.max(0)) == [("Net", (3,))]
    assert seen(torch.linalg.qr) == [("Net", (4, 3)), ("Net", (3, 3))]


def test_a_transform_of_functions_hides_its_operations() -> None:
    assert seen(torch.func.vmap(lambda row: row * 2)) == []


# Masks -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mask", [-math.inf, "smallest"])
def test_masked_entries_do_not_count(dtype: torch.dtype, mask: float | str) -> None:
    value = torch.finfo(dtype).min if mask == "smallest" else float(mask)
    assert unmasked(torch.tensor([value, -3.0, 2.0], dtype=dtype))[1] == 3.0
    assert unmasked(torch.tensor([value, value], dtype=dtype))[1] == 0.0


def test_large_entries_of_both_signs_are_no_masks() -> None:
    assert unmasked(torch.tensor([-1e9, 1e9]))[1] == 1e9
    assert unmasked(torch.tensor([-math.inf, math.inf]))[1] == math.inf
    assert unmasked(torch.tensor([-60000.0, 1.0], dtype=torch.float16))[1] == 60000.0
    assert unmasked(torch.tensor([-9e7, 1.0]))[1] == 9e7


@pytest.mark.parametrize("other", [0.0, math.inf, -math.inf])
def test_nan_stays(other: float) -> None:
    assert math.isnan(unmasked(torch.tensor([math.nan, other]))[1])
