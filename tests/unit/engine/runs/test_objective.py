"""The loss as a function of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import Measure, Need, Run, Stage, measure
from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS
from pytest_trainability.engine.runs.objective import (
    Objective,
    functional,
    trainable_parameters,
    twice_differentiable,
)


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.3), nn.Tanh(), nn.Linear(5, 3))


def batch(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 5, generator=generator)


@pytest.mark.parametrize("finished", [False, True])
def test_the_objective_is_the_runs_loss_and_the_model_is_put_back(
    added: Callable[..., Measure], *, finished: bool
) -> None:
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


# trainable_parameters -----------------------------------------------------------------------------------------------


def test_trainable_parameters_are_named_once_and_not_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[2].requires_grad_(requires_grad=False)
    assert list(trainable_parameters(model)) == ["0.weight", "0.bias", "1.bias"]


# functional ---------------------------------------------------------------------------------------------------------


def test_a_loss_is_its_own_functional() -> None:
    loss = torch.tensor(3.0, requires_grad=True)
    roots, weights = functional("anything", loss, 0)
    assert roots[0] is loss and torch.equal(weights[0], torch.ones(()))


def test_a_random_functional_has_norm_one_over_all_outputs() -> None:
    a, b = torch.ones(3, 4, requires_grad=True), torch.ones(5, requires_grad=True, dtype=torch.float64)
    constant = torch.ones(2)
    roots, weights = functional({"a": a, "same": a, "b": [b], "c": constant}, None, 7)
    assert [root is tensor for root, tensor in zip(roots, (a, b))] == [True, True] and len(roots) == 2
    assert [(w.shape, w.dtype) for w in weights] == [(a.shape, a.dtype), (b.shape, b.dtype)]
    # Weights of float32 round to 6e-8.
    assert sum(float(w.double().square().sum()) for w in weights) == pytest.approx(1, abs=1e-6)
    assert abs(float(torch.cat([w.flatten().double() for w in weights]).mean())) < 0.3


def test_the_seed_determines_a_random_functional() -> None:
    y = torch.ones(6, requires_grad=True)
    (first,), (again,), (other,) = (functional(y, None, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_random_functional_is_drawn_on_the_cpu_whatever_the_default_device() -> None:
    """The default device of a run is the model's, and generators are those of the CPU."""
    y = torch.ones(6, requires_grad=True)
    expected = functional(y, None, 1)[1][0]
    with torch.device("meta"):
        assert torch.equal(functional(y, None, 1)[1][0], expected)


# Objective ----------------------------------------------------------------------------------------------------------


def on_a_run(added: Callable[..., Measure], act: Callable[[Objective], Any], **settings: Any) -> Any:
    """Return the result of a function of the objective of one run."""
    found: list[Any] = []

    def provide(run: Run) -> None:
        found.append(act(Objective.of(run)))

    need = Need("acting", provide, Stage.RERUN)
    added("acting", need, read=lambda run: 0.0)
    measure(tower, batch, seeds=1, measures=["acting"], **settings)
    return found[0]


def test_the_objective_is_a_scalar_without_a_loss_too(added: Callable[..., Measure]) -> None:
    values = on_a_run(added, lambda objective: [objective(), objective()])
    assert [value.shape for value in values] == [(), ()]
    assert float(values[0].detach()) == float(values[1].detach()), "the masks are the same"


def test_another_seed_draws_other_masks(added: Callable[..., Measure]) -> None:
    def act(objective: Objective) -> list[float]:
        first = float(objective().detach())
        objective.seed += 1
        return [first, float(objective().detach())]

    first, other = on_a_run(added, act, loss=lambda y: y.square().sum())
    assert first != other


def test_a_loss_of_one_element_is_a_scalar(added: Callable[..., Measure]) -> None:
    value = on_a_run(added, lambda objective: objective(), loss=lambda y: y.sum().reshape(1, 1))
    assert value.shape == () and value.requires_grad


def test_gradients_of_a_given_loss_need_no_run(added: Callable[..., Measure]) -> None:
    calls: list[int] = []

    def loss(y: Tensor) -> Tensor:
        calls.append(len(y))
        return y.square().sum()

    def act(objective: Objective) -> int:
        value = objective()
        before = len(calls)
        gradients = objective.gradients(value)
        assert gradients.keys() == objective.parameters.keys()
        return len(calls) - before

    assert on_a_run(added, act, loss=loss) == 0


def test_gradients_can_be_differentiated_again(added: Callable[..., Measure]) -> None:
    def act(objective: Objective) -> bool:
        return all(g is not None and g.requires_grad for g in objective.gradients(create_graph=True).values())

    assert on_a_run(added, act, loss=lambda y: y.pow(3).sum())


# twice_differentiable -----------------------------------------------------------------------------------------------


def test_attention_can_be_differentiated_twice() -> None:
    q = torch.randn(1, 2, 4, 3, requires_grad=True)
    with twice_differentiable():
        y = nn.functional.scaled_dot_product_attention(q, q, q)
        (gradient,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), q)
    assert bool(second.isfinite().all()) and bool(second.any())
