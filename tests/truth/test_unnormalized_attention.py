"""Attention whose softmax is over the queries: the weights of a query sum to its share of all attention, and not to 1."""

from __future__ import annotations

import pytest
import torch
from faults import UNSEEN, Case, measured
from faults.judging import changed, flagged
from torch import Tensor

from pytest_trainability import measure

CASE = next(case for case in UNSEEN if case.id == "softmax-over-queries")


def twin() -> Case:
    assert CASE.twin is not None
    return CASE.twin


def test_the_preset_names_each_attention_and_both_axes() -> None:
    verdict = flagged(CASE, measured(CASE, range(2)))["unnormalized_attention"]
    assert [line.partition(":")[0] for line in verdict.names] == [f"layers.{i}.attention" for i in range(6)]
    assert all("softmax over dimension -2" in line and "product over -1" in line for line in verdict.names)


def test_the_twin_is_healthy() -> None:
    assert "unnormalized_attention" not in flagged(twin(), measured(twin(), range(2)))


def sums_of_weights(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Run a model once, and return the sums of each softmax over the last dimension."""
    sums: list[Tensor] = []
    original = Tensor.softmax

    def softmax(scores: Tensor, dim: int) -> Tensor:
        weights = original(scores, dim)
        sums.append(weights.sum(-1))
        return weights

    monkeypatch.setattr(Tensor, "softmax", softmax)
    with torch.no_grad():
        inputs, _ = case.task(torch.Generator().manual_seed(0))
        case.build()(inputs)
    monkeypatch.undo()
    return sums


def test_weights_sum_to_one_where_nothing_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the fault do not differ from 1/n by much: their sums are 1 to three digits, and not to six."""
    for case, is_wrong in ((CASE, True), (twin(), False)):
        found = measure(case.build, seeds=1, **case.arguments).unnormalized_attention
        deviation = max(float((sums - 1).abs().max()) for sums in sums_of_weights(case, monkeypatch))
        assert (deviation > 1e-5) == bool(found) == is_wrong


def test_a_baseline_of_the_twin_names_the_axis() -> None:
    found = changed(measured(twin(), range(2)), measured(CASE, range(2)))
    assert [(c.old_text, c.new_text) for c in found["operations"]] == [("Softmax(dim=-1)", "Softmax(dim=-2)")]
