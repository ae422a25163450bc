"""The autograd graph: program order, states and segments of a cut, and the release of deep graphs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from pytest_trainability.engine.capture.graph import Graph, Segment, zeros_at
from pytest_trainability.engine.capture.recorder import Edge, edge_of, now
from pytest_trainability.errors import CutError


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(*(shape or (3,)), dtype=dtype).requires_grad_().clone()


# Program order ---------------------------------------------------------------------------------------------------
def test_places_are_sequence_numbers_and_leaves_come_first() -> None:
    """See Note [Program order]."""
    x = tensor()
    before = now()
    y = x.sin()
    z = y * x
    graph = Graph([edge_of(z)])
    first, *_, last = graph.nodes
    assert graph.place[first] == -1 and last is z.grad_fn
    assert y.grad_fn is not None and z.grad_fn is not None
    assert (graph.place[y.grad_fn], graph.place[z.grad_fn]) == (before, before + 1)
    assert graph.reads[z.grad_fn] == (edge_of(y), edge_of(x))


def test_a_renewed_view_is_placed_before_its_reader() -> None:
    """See Note [In-place rebasing]: the node of a view is renewed after the node that reads it was created."""
    base = tensor(4).sin()
    view = base[2:]
    base.mul_(1.5)
    moment = now()
    doubled = view * view
    reader = doubled.grad_fn
    assert reader is not None
    (renewed, _), *_ = reader.next_functions
    graph = Graph([edge_of(doubled)])
    assert renewed is not None and graph.place[renewed] > moment
    assert graph.place[reader] == graph.place[renewed]
    assert list(graph.nodes).index(renewed) < list(graph.nodes).index(reader)


def test_nodes_that_depend_on_an_edge() -> None:
    """Paths through nodes before the given place do not count."""
    x = tensor()
    early = x.sin()
    moment = now()
    late = x.cos()
    end = early + late
    graph = Graph([edge_of(end)])
    assert graph.downstream([edge_of(x)]) == {early.grad_fn, late.grad_fn, end.grad_fn}
    assert graph.downstream([edge_of(x)], since=moment) == {late.grad_fn, end.grad_fn}
    assert graph.downstream([edge_of(late)]) == {end.grad_fn}
    assert graph.downstream([]) == set()


def test_an_edge_is_one_output_of_its_node() -> None:
    one, other = tensor(4).split(2)
    graph = Graph([edge_of(one.sin()), edge_of(other.cos())])
    assert [type(node).__name__ for node in graph.downstream([edge_of(other)])] == ["CosBackward0"]


def test_consumers_of_a_node_with_the_positions_of_operands() -> None:
    x = tensor()
    y = x.sin()
    square = y * y
    end = 1.0 - y / square
    graph = Graph([edge_of(end)])
    assert y.grad_fn is not None and square.grad_fn is not None
    found = [(type(node).__name__, position) for node, position in graph.consumers()[y.grad_fn]]
    assert sorted(found) == [("DivBackward0", 0), ("MulBackward0", 0), ("MulBackward0", 1)]
    assert end.grad_fn not in graph.consumers()


# Cuts ------------------------------------------------------------------------------------------------------------
def skip() -> tuple[Graph, list[Edge], list[int], list[Edge]]:
    """Three steps with a skip connection from the first one to the end."""
    x = tensor()
    moments = [now()]
    first = x.sin()
    moments.append(now())
    second = first.cos()
    moments.append(now())
    third = second.exp()
    moments.append(now())
    end = third + first
    return Graph([edge_of(end)]), [edge_of(t) for t in (x, first, second, third)], moments, [edge_of(end)]


def test_states_are_the_edges_that_cross_a_moment() -> None:
    graph, (x, first, second, third), moments, _ = skip()
    cut = graph.cut([x], moments, ())
    assert cut.states == ((x,), (first,), (first, second), (first, third))


def test_an_edge_that_passes_by_a_segment_is_not_differentiated_in_it() -> None:
    """See Note [Passing edges]. The second segment reads the passing edge as well."""
    graph, (x, *_), moments, _ = skip()
    assert graph.cut([x], moments, ()).segments == (
        Segment(roots=(0,), inputs=(0,), passing=()),
        Segment(roots=(1,), inputs=(0,), passing=((0, 0),)),
        Segment(roots=(1,), inputs=(1,), passing=((0, 0),)),
    )


def test_results_count_as_read_after_the_last_moment() -> None:
    graph, (x, first, *_), moments, end = skip()
    moments = [*moments, now()]
    with pytest.raises(CutError, match="nothing after the last step depends on the first state"):
        graph.cut([x], moments, ())
    assert graph.cut([x], moments, end).states[-1] == tuple(end)
    # A result that was made earlier is part of all states since.
    assert graph.cut([x], moments, [*end, first]).states[-1] == (first, *end)


def test_what_does_not_depend_on_the_first_state_is_not_signal() -> None:
    """A bias that depends on a parameter alone crosses the moments as well."""
    parameter = tensor()
    bias = parameter.exp()
    x = tensor()
    moments = [now()]
    y = x.sin() + bias
    moments.append(now())
    end = y * bias
    graph = Graph([edge_of(end)])
    assert graph.cut([edge_of(x)], moments, ()).states == ((edge_of(x),), (edge_of(y),))
    with pytest.raises(CutError, match="nothing after the last step depends"):
        Graph([edge_of(y)]).cut([edge_of(tensor())], moments, ())


def test_the_first_state_may_be_made_later() -> None:
    """Edges of ``x0`` count as made before the first moment."""
    x = tensor()
    moments = [now()]
    late = x.sin()
    moments.append(now())
    end = late.cos() * late
    cut = Graph([edge_of(end)]).cut([edge_of(late)], moments, ())
    assert cut.states == ((edge_of(late),), (edge_of(late),))
    assert cut.segments == (Segment(roots=(), inputs=(), passing=((0, 0),)),)


def returning(*, early: bool = False, read_by_a_step: bool = False) -> tuple[Graph, Edge, Edge, Edge, list[int]]:
    """Two steps, and an input that returns after them: itself, or a copy of it that was made before the first step."""
    x = tensor()
    copy = 3 * x if early else x
    moments = [now()]
    first = x.sin()
    moments.append(now())
    second = first.cos() * copy if read_by_a_step else first.cos()
    moments.append(now())
    end = second - copy
    return Graph([edge_of(end)]), edge_of(x), edge_of(first), edge_of(second), moments


@pytest.mark.parametrize("early", [False, True])
def test_what_passes_by_all_steps_is_no_part_of_the_states(early: bool) -> None:
    """See Note [By-passes]."""
    graph, x, first, second, moments = returning(early=early)
    cut = graph.cut([x], moments, (), bypasses=False)
    assert cut.states == ((x,), (first,), (second,))
    assert len(cut.bypasses) == 1
    with_bypasses = graph.cut([x], moments, ())
    assert with_bypasses.states[-1] == (*cut.bypasses, second) and not with_bypasses.bypasses


def test_a_by_pass_is_live_until_the_last_step_has_read_it() -> None:
    graph, x, first, second, moments = returning(read_by_a_step=True)
    cut = graph.cut([x], moments, (), bypasses=False)
    assert cut.states == ((x,), (x, first), (second,))
    assert cut.segments[1] == Segment(roots=(0,), inputs=(0, 1), passing=())


def test_a_copy_from_before_the_first_step_belongs_to_the_first_segment() -> None:
    graph, x, first, second, moments = returning(early=True, read_by_a_step=True)
    cut = graph.cut([x], moments, (), bypasses=False)
    (copy,) = cut.bypasses
    assert cut.states == ((x,), (copy, first), (second,))
    assert cut.segments[0] == Segment(roots=(0, 1), inputs=(0,), passing=())


def test_an_edge_that_only_leads_to_another_one_of_the_first_state_is_not_read() -> None:
    """The first state is independent of it."""
    x = tensor()
    other = 0.5 * x
    moments = [now()]
    end = other.sin()
    moments.append(now())
    edges = [edge_of(x), edge_of(other)]
    cut = Graph([edge_of(end)]).cut(edges, moments, [edge_of(end)])
    assert cut.states == ((edge_of(other),), (edge_of(end),))


def test_a_result_that_is_the_first_state_passes_by_all_steps() -> None:
    graph, x, first, _, moments = returning()
    assert graph.cut([x], moments[:2], [first, x], bypasses=False).states == ((x,), (first,))
    with pytest.raises(CutError, match="except for what passes by all steps"):
        Graph([x]).cut([x], moments, [x], bypasses=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64], ids=str)
def test_zeros_are_like_the_tensor_of_an_edge(dtype: torch.dtype) -> None:
    first, second = tensor(2, 5, dtype=dtype).split([1, 4], 1)
    assert zeros_at(edge_of(second)).shape == second.shape and zeros_at(edge_of(first)).shape == (2, 1)
    assert zeros_at(edge_of(second)).dtype == dtype
    assert not zeros_at(edge_of(second)).any()


# Deep graphs -----------------------------------------------------------------------------------------------------
CHAIN = """
import sys
import torch
from pytest_trainability.engine.capture.graph import Graph, freed_in_order

def seen():
    y = torch.ones(2, requires_grad=True)
    for _ in range(100_000):
        y = y * 1.0
    return Graph([(y.grad_fn, 0)])

def run(nodes):
    graph = seen()
    nodes += graph.nodes
    if "fails" in sys.argv:
        raise ValueError

try:
    if "in order" in sys.argv:
        with freed_in_order() as nodes:
            run(nodes)
    else:
        run([])
except ValueError:
    pass
print("alive")
"""


def outcome(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHAIN, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("arguments", [("in order",), ("in order", "fails")], ids=" ".join)
def test_a_deep_graph_is_freed(arguments: tuple[str, ...]) -> None:
    """See Note [Freeing deep graphs]."""
    found = outcome(*arguments)
    assert (found.returncode, found.stdout) == (0, "alive\n"), found.stderr


def test_a_deep_graph_kills_the_process_without_order() -> None:
    """When this fails, PyTorch frees nodes that Python has seen without recursion, and `freed_in_order` is not needed."""
    died = outcome().returncode != 0
    if not died and torch.__version__ < "2.13":
        pytest.skip("this version of PyTorch frees the nodes without recursion")
    assert died
