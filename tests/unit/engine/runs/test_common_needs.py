"""Parameter gradients and the RMS of states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import Measure, Run, measure
from pytest_trainability.engine.runs import description
from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS, STATE_RMS, SquareSums

X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


def test_sparse_gradients_have_norms() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.bag(ids))

    result = measure(Bag, torch.randint(9, (3, 5)), seeds=1, measures=["nonfinite"])
    assert result.gradient_norm["bag.weight"] > 0
    assert not result.nonfinite


class Partly(nn.Module):
    """Has a frozen parameter, and one that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layer.bias.requires_grad_(requires_grad=False)
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def found_by(added: Callable[..., Measure], need: Any, model: nn.Module, **settings: Any) -> Any:
    """Return the value of a need on one run."""
    found: list[Any] = []

    def read(run: Run) -> float:
        found.append(run[need])
        return 0.0

    added("reading", need, read=read)
    measure(model, X, measures=["reading"], **settings)
    return found[0]


def test_gradients_are_those_of_the_loss(added: Callable[..., Measure]) -> None:
    model = Partly()
    gradients = found_by(added, PARAMETER_GRADIENTS, model, loss=lambda y: y.sum())
    # y = x Wᵀ + b: each row of the gradient of the sum is the sum over samples.
    assert torch.equal(gradients["layer.weight"], X.sum(dim=0).expand(2, 2))
    assert gradients["spare"] is None
    assert set(gradients) == {"layer.weight", "spare"}, "a frozen parameter has no gradient"


def test_without_trainable_parameters_there_are_no_gradients(added: Callable[..., Measure]) -> None:
    assert found_by(added, PARAMETER_GRADIENTS, Partly().requires_grad_(requires_grad=False)) == {}


def test_states_have_the_rms_of_their_tensors(added: Callable[..., Measure]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    states: list[list[float]] = []

    def read(run: Run) -> float:
        states.append([run[STATE_RMS].root_mean_square(state) for state in run.chain.cut.states])
        return 0.0

    added("rms", STATE_RMS, read=read)
    measure(model, X, measures=["rms"])
    expected = [float(x.detach().square().mean().sqrt()) for x in (X, model[0](X), model(X))]
    assert states == [pytest.approx(expected, rel=1e-6)]


def test_a_state_of_several_tensors_is_averaged_over_all_elements() -> None:
    sums = SquareSums()
    first, second, other = (torch.tensor(values, requires_grad=True) for values in ([3.0], [1.0, 2.0, 2.0], [9.0]))
    edges: list[Any] = [("a", 0), ("b", 0), ("c", 0)]
    sums.observe(edges[0], first)
    sums.observe(edges[1], second)
    sums.observe(edges[2], other)
    assert sums.root_mean_square(edges[:2]) == pytest.approx(math.sqrt((9 + 9) / 4))
    assert sums.root_mean_square([*edges[:1], ("unseen", 0)]) == pytest.approx(3.0)  # type: ignore[list-item]


def test_a_state_that_no_module_took_or_returned_has_no_rms() -> None:
    assert math.isnan(SquareSums().root_mean_square([("unseen", 0)]))  # type: ignore[list-item]


class Skipping(nn.Module):
    """Layers with activations in place and skips, of which a draw may drop the branches."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
        self.act, self.drop = nn.ReLU(inplace=True), drop

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for layer in self.layers:
            if not self.training or float(torch.rand(())) >= self.drop:
                x = x + self.act(layer(x))
        return x + first


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("steps", ["auto", "layers.*"])
def test_states_of_later_seeds_are_those_of_observing_everything(
    drop: float, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later seeds observe only the places at which the first one has found tensors of states."""
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def profile() -> dict[str, tuple[str, ...]]:
        found = measure(lambda: Skipping(drop), inputs, seeds=6, steps=steps).activation_rms
        return {name: tuple(map(float.hex, estimate.values)) for name, estimate in found.items()}

    found = profile()
    monkeypatch.setattr(description, "_places_of_states", lambda capture, chain: {})
    assert found == profile() and len(found) > 3


def test_later_seeds_observe_the_tensors_of_states_only(added: Callable[..., Measure]) -> None:
    counts: list[int] = []

    def read(run: Run) -> float:
        counts.append(len(run[STATE_RMS].square_sums))
        return 0.0

    added("reading", STATE_RMS, read=read)

    def build() -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(3)))

    measure(build, X, measures=["reading"], steps=["0", "1", "2"], seeds=3)
    assert counts == [10, 4, 4], "three tensors of each block, and the input"
