"""Gradient hooks on inner states: which edges have them, and products with and without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from custom_functions import Doubled
from torch import Tensor, nn

from pytest_trainability.engine.capture.gradient_hooks import hooked_edges, past_hooks, through_hooks
from pytest_trainability.engine.capture.recorder import Edge, edge_of
from pytest_trainability.errors import ModelError

LEAF = torch.linspace(0.1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()


def state(hook: Callable[[Tensor], Tensor | None] | None = None) -> Tensor:
    """Return a tensor in the middle of a graph, with a hook."""
    tensor = (2 * LEAF).exp()
    if hook is not None:
        tensor.register_hook(hook)
    return tensor


def is_hooked(tensor: Tensor) -> bool:
    edge = edge_of(tensor)
    return hooked_edges([edge]) == {edge}


@pytest.mark.parametrize(
    "hook",
    [
        lambda g: 0.5 * g,
        lambda g: g.clamp(-1, 1),
        lambda g: g.clamp(max=100.0),
        lambda g: g.relu(),
        lambda g: -((-g).relu()),
        lambda g: g + 1e-5,
    ],
    ids=["scaled", "clipped", "clipped-late", "rectified", "rectified-below", "shifted"],
)
def test_hooks_that_change_a_gradient_are_found(hook: Callable[[Tensor], Tensor]) -> None:
    """Gradients of both signs and several sizes are tried, even on a state of six entries."""
    assert is_hooked(state(hook))


def test_a_hook_that_changes_small_gradients_only_is_found() -> None:
    tensor = torch.ones(40, 40, requires_grad=True).exp()
    tensor.register_hook(lambda g: torch.where(g.abs() > 2e-2, g, 0.0))
    assert is_hooked(tensor)


@pytest.mark.parametrize("hook", [lambda g: None, lambda g: g, lambda g: 1.0 * g], ids=["none", "same", "equal"])
def test_hooks_that_only_look_are_not_found(hook: Callable[[Tensor], Tensor | None]) -> None:
    assert not is_hooked(state(hook))


def test_a_retained_gradient_is_no_hook() -> None:
    tensor = state()
    tensor.retain_grad()
    assert not is_hooked(tensor)
    assert not is_hooked(state())


def test_each_edge_is_probed_separately() -> None:
    """Two edges of the same shape, and one of another dtype and shape."""
    hooked, plain = edge_of(state(lambda g: 2 * g)), edge_of(state())
    half = (2 * LEAF[:1]).half()
    half.register_hook(lambda g: -g)
    assert hooked_edges([hooked, plain, edge_of(half)]) == {hooked, edge_of(half)}


def test_a_probe_runs_no_node() -> None:
    calls: list[Tensor] = []
    below = 2 * LEAF
    below.register_hook(calls.append)
    tensor = below.exp()
    tensor.register_hook(lambda g: 2 * g)
    assert is_hooked(tensor)
    assert calls == [] and LEAF.grad is None


def test_a_gradient_passes_the_hooks_of_an_edge() -> None:
    gradient = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(through_hooks(edge_of(state(lambda g: 0.5 * g)), gradient), 0.5 * gradient)
    assert torch.equal(through_hooks(edge_of(state()), gradient), gradient)


def carried(tensor: Tensor, cotangents: Tensor) -> dict[Edge, Tensor]:
    return dict(past_hooks(edge_of(tensor), cotangents))


def test_cotangents_pass_a_node_without_its_hooks() -> None:
    """The derivative of exp is exp itself, and the hook does not count."""
    below = 2 * LEAF
    tensor = below.exp()
    tensor.register_hook(lambda g: 100 * g)
    cotangents = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = carried(tensor, cotangents)
    assert list(found) == [edge_of(below)]
    assert torch.equal(found[edge_of(below)], cotangents * tensor.detach())
    assert not found[edge_of(below)].requires_grad


def test_all_operands_but_leaves_receive_cotangents() -> None:
    one, other = 2 * LEAF, 3 * LEAF
    found = carried(one * other, torch.ones(1, 2, 3, dtype=torch.float64))
    assert torch.equal(found[edge_of(one)][0], other.detach())
    assert torch.equal(found[edge_of(other)][0], one.detach())
    assert carried(LEAF * 2.0, torch.ones(1, 2, 3, dtype=torch.float64)) == {}


def test_the_other_outputs_of_a_node_receive_nothing() -> None:
    """An edge is one output of its node: here the second half of a split."""
    below = 2 * LEAF
    _, second = below.split([1, 2], 1)
    (found,) = carried(second, torch.ones(1, 2, 2, dtype=torch.float64)).values()
    assert torch.equal(found[0], torch.tensor([[0.0, 1.0, 1.0]] * 2, dtype=torch.float64))


def test_a_function_of_the_user_is_called_as_well() -> None:
    below = 3 * LEAF
    tensor: Tensor = Doubled.apply(below)
    found = carried(tensor, torch.ones(1, 2, 3, dtype=torch.float64))
    assert torch.equal(found[edge_of(below)], 2 * torch.ones(1, 2, 3, dtype=torch.float64))


def test_a_hook_on_the_result_of_a_module_with_a_hook_is_refused() -> None:
    layer = nn.Linear(3, 3)
    layer.register_full_backward_hook(lambda module, entering, leaving: None)
    result = layer(torch.ones(2, 3).requires_grad_().clone())
    assert hooked_edges([edge_of(result)]) == frozenset()
    result.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(ModelError, match="must not have both a gradient hook"):
        hooked_edges([edge_of(result)])
