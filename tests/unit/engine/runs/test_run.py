"""What measures ask of a run: computed once for all that ask, in the order of the stages, and not at all where none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, Measure, Need, Run, Stage, at_least, measure
from pytest_trainability.engine.capture.recorder import Recorder
from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS

Add = Callable[..., Measure]


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.3), nn.Tanh(), nn.Linear(5, 3))


def batch(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 5, generator=generator)


def test_a_need_is_met_once_for_all_that_ask(added: Add) -> None:
    met: list[int] = []
    shared = Need("shared", lambda run: met.append(run.seed) or 7.0)
    further = Need("further", lambda run: run[shared] + 1, requires=(shared,))
    added("first_of_two", shared, read=lambda run: run[shared])
    added("second_of_two", further, read=lambda run: run[further])
    result = measure(tower, batch, seeds=3, measures=["first_of_two", "second_of_two"])
    assert (result.first_of_two, result.second_of_two) == (7, 8)
    assert met == [0, 1, 2]


def test_what_is_not_asked_for_is_not_computed(added: Add) -> None:
    watching: list[str] = []

    @contextmanager
    def watch(recorder: Recorder) -> Iterator[None]:
        watching.append("watched")
        yield

    need = Need("counted", lambda run: watching.append("met") or 1.0, instruments=(watch,))
    added("counted", need, read=lambda run: run[need])
    result = measure(tower, batch, seeds=1)
    assert watching == []
    assert result.counted == 1
    assert watching == ["watched", "met"]


def test_stages_follow_each_other_and_the_graph_is_there_only_at_first(added: Add) -> None:
    order: list[str] = []

    def alive(run: Run) -> bool:
        try:
            torch.autograd.grad(run.capture.output.sum(), next(run.capture.model.parameters()), retain_graph=True)
        except RuntimeError:
            return False
        return True

    def need(stage: Stage) -> Need[None]:
        return Need(f"{stage.name} {alive}", lambda run: order.append(f"{stage.name} {alive(run)}"), stage)

    graph, again = need(Stage.GRAPH), need(Stage.RERUN)
    added("of_all_stages", again, PARAMETER_GRADIENTS, graph, read=lambda run: 0.0)
    measure(tower, batch, seeds=1, measures=["of_all_stages"])
    assert order == ["GRAPH True", "RERUN False"]


def test_what_needs_the_graph_and_is_not_named_is_told_so(added: Add) -> None:
    late = Need("late", lambda run: 0.0)
    added("careless", read=lambda run: run[late])
    with pytest.raises(LookupError, match=r"must list its needs\. 'late' was read after"):
        measure(tower, batch, seeds=1, measures=["careless"])


def inapplicable(run: Run) -> float:
    msg = "there must be attention. This model has none."
    raise InapplicableError(msg)


@pytest.mark.parametrize("where", ["need", "read"])
def test_a_measure_without_an_answer_says_so_unless_its_bound_allows_it(added: Add, where: str) -> None:
    need = Need("attention", inapplicable if where == "need" else lambda run: 0.0)
    added("without_answer", need, read=lambda run: run[need] if where == "need" else inapplicable(run))
    result = measure(tower, batch, seeds=2)
    with pytest.raises(InapplicableError, match="This model has none"):
        result.check(without_answer=at_least(1))
    result.check(without_answer=_where_there_is_any(), unused_parameters=(None, 0))
    with pytest.raises(InapplicableError):
        _ = result.without_answer
    with pytest.raises(InapplicableError):
        measure(tower, batch, seeds=2, measures=["without_answer"])


def test_an_empty_profile_holds_only_where_its_bound_allows_it(added: Add) -> None:
    added("of_nothing", read=lambda run: {}, kind="profile")
    added("zero", read=lambda run: 0.0)
    result = measure(tower, batch, seeds=2)
    result.check(of_nothing=_where_there_is_any())
    with pytest.raises(AssertionError, match="nothing was measured"):
        result.check(of_nothing=at_least(1))
    with pytest.raises(AssertionError, match="zero out of bounds"):
        result.check(zero=_where_there_is_any())


def _where_there_is_any() -> Any:
    from pytest_trainability import Bound

    return Bound(low=1, if_any=True)
