"""Normalizations whose ε exceeds the variance of what they read, or that use statistics which were never measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, measure

X = torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(0))
"""Entries of variance 1."""


def listed(norm: Callable[[], nn.Module], x: Tensor = X, *, train: bool = True) -> list[str]:
    def build() -> nn.Module:
        return nn.Sequential(norm(), nn.Flatten(), nn.Linear(8 * 36, 4))

    return [*measure(build, x, seeds=2, train=train).idle_normalizations]


NORMS: dict[str, Callable[[float], nn.Module]] = {
    "LayerNorm": lambda eps: nn.LayerNorm([8, 6, 6], eps=eps),
    "GroupNorm": lambda eps: nn.GroupNorm(2, 8, eps=eps),
    "BatchNorm2d": lambda eps: nn.BatchNorm2d(8, eps=eps),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("eps", "is_idle"), [(1e-5, False), (2.5, False), (3.5, True), (1e5, True)])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_it_is_listed_from_an_epsilon_of_three_variances_on(kind: str, eps: float, is_idle: bool, scale: float) -> None:
    """With a variance of s², the share s² / (s² + ε) is 1/4 at ε = 3 s². Sample variances are within 15 % of s²."""
    found = listed(lambda: NORMS[kind](eps * scale**2), scale * X)
    assert [line.partition(":")[0] for line in found] == [f"0 ({kind})"] * is_idle
    if is_idle:
        epsilon = float(found[0].partition("ε of ")[2].partition(" ")[0].replace(",", ""))
        assert math.isclose(epsilon, eps * scale**2, rel_tol=0.02)


def test_small_states_in_front_of_a_usual_epsilon_are_no_finding() -> None:
    """As with the embeddings of RWKV, of ±1e-4, by design."""
    assert listed(lambda: nn.LayerNorm([8, 6, 6]), 1e-4 * X) == []


def test_all_dimensions_may_be_normalized() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(36, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.layer_norm(x, x.shape, eps=100.0)
            return self.head(y.flatten(2))

    (line,) = measure(Whole, X, seeds=1).idle_normalizations
    assert line.startswith("Whole: ε of 100 is added to a variance of ")


def test_rows_of_equal_entries_do_not_count() -> None:
    assert listed(lambda: nn.GroupNorm(2, 8), torch.zeros_like(X)) == []
    assert listed(lambda: nn.GroupNorm(2, 8), torch.full_like(X, 1e6)) == []


def with_statistics(variance: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(8)
    norm.running_var.fill_(variance)
    return norm.eval()


def test_statistics_of_the_creation_are_listed_in_a_model_that_trains() -> None:
    reason = "divides by the running statistics of its creation, mean 0 and variance 1, although the model trains"
    assert listed(lambda: nn.BatchNorm2d(8).eval()) == [f"0 (BatchNorm2d): {reason}"]
    assert listed(lambda: with_statistics(2.0)) == []
    assert listed(lambda: nn.BatchNorm2d(8)) == []
    assert listed(lambda: nn.BatchNorm2d(8), train=False) == []


def test_a_model_without_normalizations_has_none() -> None:
    assert listed(nn.Identity) == []


def test_presets_bound_it() -> None:
    def build() -> nn.Module:
        norm = nn.GroupNorm(2, 8, eps=10.0)
        return nn.Sequential(nn.Conv2d(8, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))

    with pytest.raises(TrainabilityFailure, match=r"idle_normalizations 1 \(1 \(GroupNorm\)"):
        measure(build, X, seeds=1).check(preset="cnn")
