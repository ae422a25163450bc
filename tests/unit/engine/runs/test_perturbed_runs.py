"""Runs with a changed state or changed parameters, and the products they are compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_trainability import Need, Stage, measure
from pytest_trainability.engine.runs.perturbed_runs import PerturbedRuns, inner_product
from pytest_trainability.measures import MEASURES, Measure

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_an_inner_product_counts_both_parts_of_a_complex_entry() -> None:
    assert inner_product([torch.tensor([1 + 2j]), None], [torch.tensor([3 + 4j]), torch.ones(2)]) == 11


@pytest.fixture
def linear_runs(monkeypatch):
    """The changes of a linear function at each place, and the products of its gradients with the directions."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = [p.detach().clone() for p in model.parameters()]
    found = {}

    def read(run):
        runs = PerturbedRuns(run, "reading")
        with runs.entered():
            assert {p.dtype for p in model.parameters()} == {torch.float64}
            for place in runs.gradients:
                direction = runs.direction(place, 0)
                changed = runs.changed({place: direction}, 0.5)
                assert changed.decided
                found[place] = changed.loss - runs.base.loss, 0.5 * inner_product(runs.gradients[place], direction)
        return 0.0

    need = Need("reading", read, Stage.RERUN)
    monkeypatch.setitem(
        MEASURES, "reading", Measure("reading", "scalar", "", "linear", frozenset({need}), lambda run: run[need])
    )
    measure(model, X, loss=torch.sum, steps=nn.Linear, measures=["reading"])
    assert all(torch.equal(p, old) and p.dtype == torch.float32 for p, old in zip(model.parameters(), before))
    return found


def test_changes_of_a_linear_function_are_the_products_with_its_gradients(linear_runs) -> None:
    assert [*linear_runs] == [0, 1, 2, "0", "1"]
    for change, product in linear_runs.values():
        # The loss is linear in each place alone; sums of 12 numbers in float64.
        assert change == pytest.approx(product, abs=1e-12)
