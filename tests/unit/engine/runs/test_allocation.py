"""Uninitialized parameters: memory that was allocated and never written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from structures import BATCH, FAMILIES, WIDTH, Build, architecture, images, tower, vectors
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure


def uninitialized(model: Any, inputs: Any, **how: Any) -> list[str]:
    return list(measure(model, inputs, seeds=2, measures=["uninitialized_parameters"], **how).uninitialized_parameters)


ALLOCATIONS: dict[str, Callable[[], Tensor]] = {
    "empty": lambda: torch.empty(WIDTH),
    "empty_like": lambda: torch.empty_like(torch.zeros(WIDTH)),
    "new_empty": lambda: torch.zeros(1).new_empty(WIDTH),
    "empty_strided": lambda: torch.empty_strided((WIDTH,), (1,)),
    "Tensor": lambda: torch.Tensor(WIDTH),
    "FloatTensor": lambda: torch.FloatTensor(WIDTH),
    "resize_": lambda: torch.zeros(1).resize_(WIDTH),
    "resize_as_": lambda: torch.zeros(1).resize_as_(torch.zeros(WIDTH)),
    "skip_init": lambda: nn.utils.skip_init(nn.Linear, WIDTH, 1).weight.data[0],
    "to_empty": lambda: nn.Linear(WIDTH, 1, device="meta").to_empty(device="cpu").weight.data[0],
    "double": lambda: torch.empty(WIDTH, dtype=torch.float64),
    "bfloat16": lambda: torch.empty(WIDTH, dtype=torch.bfloat16),
    "in part": lambda: torch.cat([torch.zeros(WIDTH - 1), torch.empty(1)]),
}


class Holding(nn.Module):
    """A tower with a parameter and a buffer from some allocation. Its output does not depend on them."""

    def __init__(self, parameter: Tensor, buffer: Tensor) -> None:
        super().__init__()
        self.tower = tower()
        self.kept = nn.Parameter(parameter)
        self.register_buffer("cached", buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_unwritten_memory_is_listed(allocation: str) -> None:
    """Fault 27: a parameter and a buffer, for every way of allocation. They are not listed if they are filled afterwards."""
    allocate = ALLOCATIONS[allocation]
    assert uninitialized(lambda: Holding(allocate(), allocate()), vectors) == ["kept", "cached"]
    assert uninitialized(lambda: Holding(allocate().zero_(), allocate().normal_()), vectors) == []


def test_values_that_the_model_has_written_are_not_listed() -> None:
    """NaN, the largest integer and True are not listed if the model has written them; unwritten integers and booleans are."""
    largest = torch.iinfo(torch.int64).max

    def meant(cached: Callable[[], Tensor]) -> Build:
        return lambda: Holding(torch.full((WIDTH,), torch.nan), cached())

    assert uninitialized(meant(lambda: torch.tensor([largest, 1])), vectors) == []
    assert uninitialized(meant(lambda: torch.full((3,), largest)), vectors) == []
    assert uninitialized(meant(lambda: torch.ones(3, dtype=torch.bool)), vectors) == []
    assert uninitialized(meant(lambda: torch.empty(3, dtype=torch.int64)), vectors) == ["cached"]
    assert uninitialized(meant(lambda: torch.empty(3, dtype=torch.bool)), vectors) == ["cached"]
    # A partly written integer tensor cannot be distinguished from one that contains the largest integer.
    assert (
        uninitialized(meant(lambda: torch.cat([torch.empty(3, dtype=torch.int64), torch.zeros(3).long()])), vectors)
        == []
    )


@pytest.mark.parametrize("filled", [False, True], ids=["ordinary", "deterministic"])
def test_draws_flags_and_generators_are_unchanged(filled: bool) -> None:
    """Random numbers, flags and generators are as without the measure, also if the user has enabled deterministic mode."""
    drawn = []

    def build() -> nn.Module:
        model = tower()
        drawn.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return model

    torch.use_deterministic_algorithms(filled)
    try:
        state = torch.get_rng_state()
        assert uninitialized(build, vectors) == []
        assert uninitialized(lambda: Holding(torch.empty(3), torch.zeros(3)), vectors) == ["kept"]
        assert torch.are_deterministic_algorithms_enabled() == filled
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.use_deterministic_algorithms(False)
    # The first of two seeds is built again.
    assert len(drawn) == 3
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", [*FAMILIES, "deberta-v2", "beit", "bart", "rwkv"])
def test_real_models_are_initialized(name: str) -> None:
    case = architecture(name)
    assert uninitialized(case.build, case.inputs) == []


def test_modules_of_torch_are_initialized() -> None:
    """Recurrent cells, attention, normalizations with statistics, weight and spectral norm, lazy layers."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
            nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            nn.PReLU(),
            nn.Flatten(2),
            nn.LazyLinear(WIDTH),
            nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True),
            nn.LSTM(WIDTH, 8),
        )

    assert uninitialized(build, images) == []


def test_a_finished_module_cannot_be_built_again() -> None:
    with pytest.raises(InapplicableError, match=r"needs a factory\. A finished Sequential came"):
        measure(tower(), torch.randn(BATCH, WIDTH), measures=["uninitialized_parameters"])
