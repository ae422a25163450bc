"""What measures ask of a run: computed once for all that ask, in the order of the stages, and not at all where none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, Measure, Need, Run, Stage, UsageError, add_measure, at_least, measure
from pytest_trainability.engine.capture.recorder import Recorder
from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS
from pytest_trainability.engine.runs.objective import Objective
from pytest_trainability.measures import MEASURES

Add = Callable[..., Measure]


@pytest.fixture
def added() -> Iterator[Add]:
    """Add scalar measures for the length of a test."""
    names = []

    def add(name: str, *needs: Need[Any], read: Callable[[Run], Any], kind: Any = "scalar") -> Measure:
        found = Measure(name, kind, "", "linear", frozenset(needs), read)
        add_measure(found)
        names.append(name)
        return found

    yield add
    for name in names:
        MEASURES.pop(name, None)


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


@pytest.mark.parametrize("finished", [False, True])
def test_the_objective_is_the_runs_loss_and_the_model_is_put_back(added: Add, *, finished: bool) -> None:
    differences = []

    def provide(run: Run) -> None:
        objective = Objective.of(run)
        found = objective.gradients()
        for name, gradient in found.items():
            assert gradient is not None and run[PARAMETER_GRADIENTS][name] is not None
            differences.append(float((gradient - run[PARAMETER_GRADIENTS][name]).abs().max()))
        with torch.no_grad():
            for parameter in run.capture.model.parameters():
                parameter.fill_(float("nan"))
        run.capture.model.training = False
        torch.manual_seed(99)

    def read(run: Run) -> float:
        assert all(p.isfinite().all() for p in run.capture.model.parameters())
        assert run.capture.model.training
        return 0.0

    need = Need("vandal", provide, Stage.RERUN, requires=(PARAMETER_GRADIENTS,))
    added("vandal", need, read=read)
    model: Any = tower() if finished else tower
    before = [p.clone() for p in model.parameters()] if finished else []
    state = torch.get_rng_state()
    for loss in (None, nn.functional.cross_entropy):
        target = None if loss is None else torch.tensor([0, 1, 2, 0])
        measure(model, batch, seeds=2, loss=loss, target=target, measures=["vandal"])
    # Dropout, the random functional and the loss are drawn and computed as in the run: not even round-off differs.
    assert set(differences) == {0.0}
    assert torch.equal(state, torch.get_rng_state())
    if finished:
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))


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


@pytest.mark.parametrize(
    "name", ["log_gain", "steps", "seeds", "check", "tolerances", "preset", "loss", "_x", "two words"]
)
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="the name of a measure must be an unused identifier"):
        add_measure(Measure(name, "scalar", "", "linear", frozenset(), lambda run: 0.0))
    assert "gradient" not in MEASURES


def test_adding_a_measure_twice_is_no_error(added: Add) -> None:
    add_measure(added("twice", read=lambda run: 0.0))
    with pytest.raises(UsageError, match="Got str"):
        add_measure("twice")


@pytest.mark.parametrize(
    ("kind", "found", "says"),
    [
        ("scalar", None, "of kind 'scalar' must read a number. It returned None"),
        ("scalar", "3", "of kind 'scalar' must read a number"),
        ("profile", [1.0], "of kind 'profile' must read numbers by name"),
        ("profile", {"a": None}, "of kind 'profile' must read numbers by name"),
        ("spectrum", 1.0, "of kind 'spectrum' must read a list of numbers"),
        ("names", "abc", "of kind 'names' must read a list of names"),
    ],
)
def test_what_a_measure_returns_must_be_of_its_kind(added: Add, kind: str, found: Any, says: str) -> None:
    added("odd", read=lambda run: found, kind=kind)
    with pytest.raises(UsageError, match=f"the measure 'odd' {says}"):
        measure(tower, batch, seeds=1, measures=["odd"])


@pytest.mark.parametrize(
    "changes", [{"kind": "vector"}, {"scale": "logarithmic"}, {"needs": ["sweep"]}, {"read": 1.0}], ids=str
)
def test_a_measure_that_cannot_be_one_is_refused(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"kind": "scalar", "scale": "linear", "needs": (), "read": lambda run: 0.0, **changes}
    with pytest.raises(UsageError, match="odd"):
        Measure("odd", unit="", **given)


@pytest.mark.parametrize("name", ["class", "confidence", "measures"])
def test_names_that_no_bound_could_have_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="the name of a measure must be an unused identifier"):
        add_measure(Measure(name, "scalar", "", "linear", frozenset(), lambda run: 0.0))
