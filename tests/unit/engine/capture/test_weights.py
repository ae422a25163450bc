"""Weight layers: modules whose weights mix the entries of the signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import graph_of
from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.weights import WeightLayers

ROWS, WIDTH = 3, 4


class Weighted(nn.Module):
    """A function of the input and of a parameter of two dimensions."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*(shape or (ROWS, WIDTH))))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def is_weight_layer(module: nn.Module, shape: tuple[int, ...] = (2, ROWS, WIDTH)) -> bool:
    captured = capture(nn.Sequential(module), (torch.randn(shape),), {})
    return module in WeightLayers(captured, graph_of(captured))


MIXING: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(WIDTH, WIDTH),
    "Conv1d": lambda: nn.Conv1d(ROWS, 2, 1),
    "depthwise": lambda: nn.Conv1d(ROWS, ROWS, 3, padding=1, groups=ROWS),
    "parametrized": lambda: orthogonal(nn.Linear(WIDTH, WIDTH)),
    "weight_norm": lambda: weight_norm(nn.Linear(WIDTH, WIDTH)),
    "recurrent": lambda: nn.GRU(WIDTH, WIDTH),
    "product": lambda: Weighted(lambda x, w: x @ w.T),
    "scaled weight": lambda: Weighted(lambda x, w: x @ (2 * w / w.norm()).T),
    "sum of products": lambda: Weighted(lambda x, w: (x.unsqueeze(-2) * w).sum(-1)),
    "einsum": lambda: Weighted(lambda x, w: torch.einsum("brw,vw->brv", x, w)),
    "both": lambda: Weighted(lambda x, w: (x * w) @ w.T),
}
ENTRY_BY_ENTRY: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm((ROWS, WIDTH)),
    "RMSNorm": lambda: nn.RMSNorm((ROWS, WIDTH)),
    "hand-written norm": lambda: Weighted(lambda x, w: (x - x.mean()) / x.std() * w + w),
    "position embedding": lambda: Weighted(lambda x, w: x + w),
    "gate": lambda: Weighted(lambda x, w: x * w.sigmoid()),
    "cast": lambda: Weighted(lambda x, w: x * w.double().float().view(1, ROWS, WIDTH)),
    "scale of channels": lambda: Weighted(lambda x, w: x * w, ROWS, 1),
    "mask token": lambda: Weighted(lambda x, w: torch.where(x > 0, x, w)),
    "class token": lambda: Weighted(lambda x, w: torch.cat([w.expand(len(x), 1, -1), x], 1), 1, WIDTH),
    "no weight": lambda: nn.BatchNorm1d(ROWS),
    "container": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH)),
}


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in MIXING.items()])
def test_layers_that_mix_entries(build: Callable[[], nn.Module]) -> None:
    assert is_weight_layer(build())


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in ENTRY_BY_ENTRY.items()])
def test_what_acts_entry_by_entry_is_no_weight_layer(build: Callable[[], nn.Module]) -> None:
    assert not is_weight_layer(build())


@pytest.mark.parametrize("frozen", [False, True])
def test_an_unknown_use_of_a_weight_counts(frozen: bool) -> None:
    """The graph shows neither a frozen weight nor one that the output does not depend on."""

    class Unknown(Weighted):
        def __init__(self) -> None:
            super().__init__(lambda x, w: x * w if frozen else x.clone())
            self.weight.requires_grad_(not frozen)

    assert is_weight_layer(Unknown())
    norm = nn.LayerNorm((ROWS, WIDTH)).requires_grad_(False)
    assert not is_weight_layer(norm)


@pytest.mark.parametrize("shape", [(WIDTH,), (ROWS, WIDTH)])
def test_a_normalization_is_no_step_whatever_its_dimensions(shape: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(shape)
            self.layers = nn.Sequential(
                nn.Linear(ROWS * WIDTH, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(self.norm(x).flatten(1))

    assert measure(Net, torch.randn(2, ROWS, WIDTH), seeds=1).steps.description == "3 × Linear"
