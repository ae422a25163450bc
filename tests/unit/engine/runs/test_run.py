"""Needs of measures: computed once for all measures that list them, in the order of the stages, and not at all otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, Measure, Need, Run, Stage, at_least, measure
from pytest_trainability.engine.capture.recorder import Recorder
from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS
from pytest_trainability.engine.runs.run import with_dependencies
from pytest_trainability.measurement import Context, measure_in

Add = Callable[..., Measure]


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.3), nn.Tanh(), nn.Linear(5, 3))


def batch(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 5, generator=generator)


def test_a_need_is_computed_once_for_all_measures(added: Add) -> None:
    met: list[int] = []
    shared = Need("shared", lambda run: met.append(run.seed) or 7.0)
    further = Need("further", lambda run: run[shared] + 1, requires=(shared,))
    added("first_of_two", shared, read=lambda run: run[shared])
    added("second_of_two", further, read=lambda run: run[further])
    result = measure(tower, batch, seeds=3, measures=["first_of_two", "second_of_two"])
    assert (result.first_of_two, result.second_of_two) == (7, 8)
    assert met == [0, 1, 2]


def test_a_need_that_no_measure_lists_is_not_computed(added: Add) -> None:
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


def test_an_answer_about_the_architecture_is_found_once(added: Add) -> None:
    asked: list[int] = []

    def ask(run: Run) -> float:
        asked.append(run.seed)
        return run.of_first_seed("asked once", lambda: float(run.seed + 1))

    def ask_again(run: Run) -> float:
        asked.append(run.seed)
        return float(run.seed)

    once = Need("asked once", ask, Stage.RERUN, once=True)
    unanswered = Need("unanswered", ask_again, Stage.RERUN, once=True)
    added("asked_once", once, read=lambda run: run[once])
    added("unanswered", unanswered, read=lambda run: run[unanswered])
    assert measure(tower, batch, seeds=3, measures=["asked_once"]).asked_once.values == (1, 1, 1)
    assert asked == [0]
    # A need that leaves no answer is asked on every seed.
    assert measure(tower, batch, seeds=3, measures=["unanswered"]).unanswered.values == (0, 1, 2)


def test_needs_that_run_again_find_the_model_as_it_was(added: Add) -> None:
    """The model is copied once for all of them. A need that reads another one keeps what it has changed itself."""
    seen: list[float] = []

    def weight(run: Run) -> Tensor:
        found: Tensor = run.capture.model[0].weight.data
        return found

    def change(run: Run) -> float:
        before = float(weight(run).sum())
        weight(run).add_(1)
        run[inner]
        seen.extend([before, float(weight(run).sum()) - before])
        return 0.0

    def change_inside(run: Run) -> float:
        weight(run).add_(5)
        return 0.0

    inner = Need("z", change_inside, Stage.RERUN)
    first, second = Need("a", change, Stage.RERUN), Need("b", change, Stage.RERUN)
    added("changed_twice", first, second, read=lambda run: run[first] + run[second])
    measure(tower, batch, seeds=1, measures=["changed_twice"])
    assert seen == pytest.approx([seen[0], 25, seen[0], 25], abs=1e-4)


def test_stages_follow_each_other_and_the_graph_is_gone_in_the_last(added: Add) -> None:
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


def test_a_need_of_the_built_model_sees_buffers_before_the_forward_pass(added: Add) -> None:
    counted: list[int] = []

    def normalized() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))

    built = Need("built", lambda run: float(run.capture.model[1].num_batches_tracked), Stage.BUILD)
    again = Need("built again", lambda run: counted.append(len(run.capture.calls)) or 0.0, Stage.BUILD)
    added("batches_before", built, read=lambda run: run[built])
    added("read_again", again, read=lambda run: run[again])
    result = measure(normalized, torch.randn(3, 4), seeds=2, measures=["batches_before"])
    assert result.batches_before.values == (0.0, 0.0)
    assert result.read_again.values == (0.0, 0.0)
    assert counted == [0, 0]


def test_models_are_not_run_again_for_what_the_built_model_shows(added: Add) -> None:
    ran: list[int] = []

    def counting() -> nn.Module:
        model = tower()
        model.register_forward_pre_hook(lambda *_: ran.append(1))
        return model

    need = Need("width", lambda run: float(run.capture.model[0].in_features), Stage.BUILD)
    added("width_of_first", need, read=lambda run: run[need])
    result = measure(counting, batch, seeds=3)
    before = len(ran)
    assert len(result.width_of_first.values) == 3
    assert len(ran) == before


def test_a_need_of_the_built_model_cannot_read_the_graph(added: Add) -> None:
    need = Need("hasty", lambda run: len(run.chain), Stage.BUILD)
    added("hasty", need, read=lambda run: run[need])
    with pytest.raises(LookupError, match=r"a need of Stage\.BUILD must read run\.capture\.model only"):
        measure(tower, batch, seeds=1, measures=["hasty"])


def test_a_need_of_the_graph_must_be_listed(added: Add) -> None:
    late = Need("late", lambda run: 0.0)
    added("careless", read=lambda run: run[late])
    with pytest.raises(LookupError, match=r"must list its needs\. 'late' was read after"):
        measure(tower, batch, seeds=1, measures=["careless"])


def inapplicable(run: Run) -> float:
    msg = "there must be attention. This model has none."
    raise InapplicableError(msg)


@pytest.mark.parametrize("where", ["need", "read"])
def test_an_inapplicable_measure_raises_unless_its_bound_allows_it(added: Add, where: str) -> None:
    need = Need("attention", inapplicable if where == "need" else lambda run: 0.0)
    added("without_answer", need, read=lambda run: run[need] if where == "need" else inapplicable(run))
    result = measure(tower, batch, seeds=2)
    with pytest.raises(InapplicableError, match="This model has none"):
        result.check(without_answer=at_least(1))
    result.check(without_answer=_if_any(), unused_parameters=(None, 0))
    with pytest.raises(InapplicableError):
        _ = result.without_answer
    with pytest.raises(InapplicableError):
        measure(tower, batch, seeds=2, measures=["without_answer"])


def test_an_empty_profile_holds_only_where_its_bound_allows_it(added: Add) -> None:
    added("of_nothing", read=lambda run: {}, kind="profile")
    added("zero", read=lambda run: 0.0)
    result = measure(tower, batch, seeds=2)
    result.check(of_nothing=_if_any())
    with pytest.raises(AssertionError, match="nothing was measured"):
        result.check(of_nothing=at_least(1))
    with pytest.raises(AssertionError, match=r"^zero .* must "):
        result.check(zero=_if_any())


def _if_any() -> Any:
    from pytest_trainability import Bound

    return Bound(low=1, if_any=True)


def test_dependencies_are_followed_to_the_end() -> None:
    first = Need("first", lambda run: 0.0)
    second = Need("second", lambda run: 0.0, requires=(first,))
    third = Need("third", lambda run: 0.0, requires=(second, first))
    other = Need("other", lambda run: 0.0)
    assert with_dependencies(frozenset({third, other})) == {first, second, third, other}
    assert with_dependencies(frozenset()) == frozenset()


def test_the_error_of_a_need_is_raised_by_the_measures_that_read_it_alone(added: Add) -> None:
    calls: list[int] = []

    def fails(run: Run) -> float:
        calls.append(run.seed)
        return inapplicable(run)

    need = Need("failing", fails)
    dependent = Need("dependent", lambda run: run[need], Stage.RERUN, requires=(need,))
    added("first_failing", need, read=lambda run: run[need])
    added("second_failing", dependent, read=lambda run: run[dependent])
    added("healthy", read=lambda run: 1.0)
    optional = dict.fromkeys(("first_failing", "second_failing"), _if_any())
    result = measure_in(
        Context(), tower, batch, seeds=1, measures=["healthy"], until={**optional, "healthy": at_least(1)}
    )
    assert result.healthy == 1 and calls == [0]
    for name in optional:
        with pytest.raises(InapplicableError, match="This model has none"):
            getattr(result, name)


def test_needs_of_one_stage_are_computed_in_the_order_of_their_names(added: Add) -> None:
    order: list[str] = []
    needs = [Need(name, lambda run, name=name: order.append(name)) for name in ("b", "c", "a")]
    added("of_three", *needs, read=lambda run: 0.0)
    measure(tower, batch, seeds=1, measures=["of_three"])
    assert order == ["a", "b", "c"]


def test_a_need_may_change_the_model_and_its_loss(added: Add) -> None:
    """Both are restored, in the order in which needs are computed."""

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, y: Tensor) -> Tensor:
            self.calls += 1
            return y.sum()

    loss = Loss()
    seen: list[float] = []

    def provide(run: Run) -> None:
        run.recipe.loss(run.capture.output.detach())
        seen.append(float(run.recipe.loss.calls))

    need = Need("counting", provide, Stage.RERUN)
    added("counting", need, read=lambda run: float(run.recipe.loss.calls))
    result = measure(tower, batch, seeds=1, loss=loss, measures=["counting"])
    assert (seen, float(result.counting), float(loss.calls)) == ([2.0], 1.0, 0.0)


def test_runs_are_compared_by_identity(added: Add) -> None:
    """Their values are tensors, of which a comparison has no truth value, and a run may be a key."""
    runs: list[Run] = []
    added("kept", Need("kept", lambda run: runs.append(run)), read=lambda run: 0.0)
    measure(tower, batch, seeds=1, measures=["kept"])
    first = runs[0]
    same = copy.copy(first)
    assert first == first and first != same
    assert len({first, same}) == 2
