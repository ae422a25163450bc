"""The dimensions that count units, found from the parameters of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from pytest_trainability.engine.capture.recorder import edge_of
from pytest_trainability.measures.activations.unit_axes import Layout

Build = Callable[[], tuple[nn.Module, Tensor]]


def nodes_of(tensor: Tensor) -> Iterator[Node]:
    """Yield all nodes of the graph of a tensor."""
    pending, seen = [tensor.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending += [further for further, _ in node.next_functions]


def unit_axes(output: Tensor) -> tuple[int, ...]:
    return Layout(nodes_of(output)).unit_axes(edge_of(output), output.shape)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 6)(random(5, 8)), (1,)),
    "linear without bias": (lambda: nn.Linear(8, 6, bias=False)(random(5, 8)), (1,)),
    "sequence": (lambda: nn.Linear(8, 6)(random(5, 4, 8)), (2,)),
    "sequence as long as wide": (lambda: nn.Linear(8, 6)(random(6, 6, 8)), (2,)),
    "time first, transposed": (lambda: nn.Linear(8, 6)(random(5, 4, 8)).transpose(1, 2), (1,)),
    "image": (lambda: nn.Conv2d(3, 6, 3)(random(5, 3, 8, 8)), (1,)),
    "layer norm": (lambda: nn.LayerNorm(8)(random(5, 4, 8)), (2,)),
    "batch norm": (lambda: nn.BatchNorm2d(3)(random(5, 3, 4, 4)), (1,)),
    "group norm": (lambda: nn.GroupNorm(2, 4)(random(5, 4, 4, 4)), (1,)),
    "a gate": (lambda: nn.Linear(8, 12)(random(5, 8)).chunk(2, 1)[0], (1,)),
    "heads": (lambda: nn.Linear(8, 12)(random(5, 4, 8)).view(5, 4, 3, 4), (2, 3)),
    "embedding": (lambda: nn.Embedding(9, 6)(torch.arange(5)), (1,)),
}


@pytest.mark.parametrize(("compute", "expected"), CASES.values(), ids=CASES)
def test_units_have_separate_weights(compute: Callable[[], Tensor], expected: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert unit_axes(compute()) == expected


def test_without_parameters_no_dimension_counts_units() -> None:
    assert unit_axes(random(5, 8).requires_grad_().tanh()) == ()


def test_frozen_parameters_show_nothing() -> None:
    layer = nn.Linear(8, 6).requires_grad_(requires_grad=False)
    assert unit_axes(layer(random(5, 8).requires_grad_())) == ()


def test_the_nearest_parameter_decides() -> None:
    """Two layers of different widths: units are those of the second one."""
    torch.manual_seed(0)
    assert unit_axes(nn.Linear(6, 5)(nn.Linear(8, 6)(random(5, 8)).tanh())) == (1,)


def test_a_parameter_that_is_added_as_a_whole_does_not_decide() -> None:
    """A position embedding has one entry for each position and feature."""
    torch.manual_seed(0)
    positions = nn.Parameter(random(4, 6))
    assert unit_axes(nn.Linear(8, 6)(random(5, 4, 8)) + positions) == (2,)


def test_results_are_kept_by_parameter_and_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    output = nn.Linear(8, 6)(random(5, 8))
    layout = Layout(nodes_of(output))
    assert layout.unit_axes(edge_of(output), output.shape) == (1,)

    def refuse(*args: object, **kwargs: object) -> None:
        msg = "a second gradient was computed"
        raise AssertionError(msg)

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    assert layout.unit_axes(edge_of(output), output.shape) == (1,)
