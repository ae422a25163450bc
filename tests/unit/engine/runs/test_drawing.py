"""Random numbers are followed from the operator that draws them to the parameters that hold them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.runs.drawing import observed_draws

TABLE = torch.linspace(-1, 1, 12).reshape(3, 4)
KEPT = nn.Linear(4, 3)


def own() -> torch.Generator:
    return torch.Generator().manual_seed(0)


DRAWN: dict[str, Callable[[], Tensor]] = {
    "randn": lambda: torch.randn(3, 4),
    "scaled": lambda: 0.02 * torch.randn(3, 4) + 1,
    "a generator": lambda: torch.randn(3, 4, generator=own()),
    "in place": lambda: torch.empty(3, 4).uniform_(-1, 1),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(3, 4)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 4)),
    "sparse": lambda: nn.init.sparse_(torch.empty(3, 4), 0.3),
    "a row": lambda: torch.zeros(3, 4).index_copy(0, torch.tensor([1]), torch.randn(1, 4)),
    "a permutation": lambda: torch.eye(4)[torch.randperm(4)],
    "a copy": lambda: torch.randn(3, 4).clone().to(torch.float64),
    "copied into": lambda: torch.zeros(3, 4).copy_(torch.randn(3, 4)),
    "a row of zeros": lambda: zero_row(torch.randn(3, 4)),
    "dropped out": lambda: nn.functional.dropout(TABLE, 0.5),
    "complex": lambda: torch.randn(3, 4, dtype=torch.complex64),
}
OTHER: dict[str, Callable[[], Tensor]] = {
    "a table": lambda: TABLE.clone(),
    "zeros like draws": lambda: torch.zeros_like(torch.randn(3, 4)),
    "a mask": lambda: torch.ones_like(torch.randn(3, 4)).tril(),
    "overwritten": lambda: torch.randn(3, 4).copy_(TABLE),
    "cleared": lambda: torch.randn(3, 4).zero_(),
    "drawn before": lambda: KEPT.weight.detach().clone(),
}


def zero_row(weight: Tensor) -> Tensor:
    weight[1].zero_()
    return weight


def drawn(make: Callable[[], Tensor]) -> list[str]:
    with observed_draws() as draws:
        model = nn.ParameterList([nn.Parameter(make())])
    return draws.of(model)


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN.keys())
def test_draws_are_followed(make: Callable[[], Tensor]) -> None:
    assert drawn(make) == ["0"]


@pytest.mark.parametrize("make", OTHER.values(), ids=OTHER.keys())
def test_other_numbers_are_not_drawn(make: Callable[[], Tensor]) -> None:
    assert drawn(make) == []


def test_memory_that_is_freed_and_used_again_holds_no_draws() -> None:
    with observed_draws() as draws:
        for _ in range(20):
            torch.randn(500)
        model = nn.ParameterList([nn.Parameter(torch.from_numpy(TABLE.numpy().copy())) for _ in range(20)])
    assert draws.of(model) == []


def test_a_checkpoint_replaces_draws() -> None:
    saved = {name: tensor.clone() for name, tensor in nn.Linear(4, 3).state_dict().items()}
    with observed_draws() as draws:
        loaded, assigned, fresh = (nn.Linear(4, 3) for _ in range(3))
        loaded.load_state_dict(saved)
        assigned.load_state_dict(saved, assign=True)
    assert [draws.of(model) for model in (loaded, assigned, fresh)] == [[], [], ["weight", "bias"]]


def test_frozen_lazy_and_sparse_parameters_are_left_out() -> None:
    with observed_draws() as draws:
        frozen = nn.Linear(4, 3).requires_grad_(requires_grad=False)
        lazy = nn.LazyLinear(3)
        sparse = nn.ParameterList([nn.Parameter(torch.randn(3, 4).to_sparse())])
        sparse[0].data.zero_()
    assert [draws.of(model) for model in (frozen, lazy, sparse)] == [[], [], []]


@pytest.mark.parametrize("mode", ["runs.drawing.Draws", "runs.allocation._AllocatedAsZero"])
def test_observing_operators_does_not_load_the_compiler(mode: str) -> None:
    """Loading it takes seconds and 70 MB, in each worker."""
    module, _, name = mode.rpartition(".")
    code = f"""
import sys
import torch
from pytest_trainability.engine.{module} import {name}

with {name}():
    torch.nn.Linear(2, 2)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draws_inside_compiled_code_are_seen() -> None:
    compiled = torch.compile(lambda size: torch.randn(size), backend="eager")
    with observed_draws() as draws:
        model = nn.Linear(2, 2)
        model.weight.data.copy_(compiled(4).view(2, 2))
        model.bias.data.zero_()
    assert draws.of(model) == ["weight"]
