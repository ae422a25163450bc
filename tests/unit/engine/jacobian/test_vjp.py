"""The product of segments is the backward pass: the one claim that every number of this package stands on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import models
import pytest
import torch
import zoo
from models import ARCHITECTURES, Architecture, Cutting
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from pytest_trainability.engine.capture.chain import Chain, describe
from pytest_trainability.engine.capture.graph import Graph
from pytest_trainability.engine.capture.recorder import Edge
from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import loss_cotangent, pull_back, random_cotangents
from pytest_trainability.engine.trees import tensors_in

CPU = torch.device("cpu")
Cotangents = list["Tensor | None"]

BY_ID = {case.id: case for case in ARCHITECTURES}
EVERY = [pytest.param(case, case.steps, id=case.id) for case in ARCHITECTURES]
EVERY += [pytest.param(case, "layers", id=f"{case.id}-layers") for case in ARCHITECTURES if case.layers]

# Autograd adds up what arrives at a fork in the order in which branches finish. A segment that ends at a fork adds the
# skip's own cotangent last, the whole backward pass may add it first: x + (y + z) against (x + y) + z.
FORKS = 16
"""Units in the last place, of the largest entry, that reordered sums may differ by."""


def product(chain: Chain, columns: Cotangents) -> Cotangents:
    """Pull cotangents of the last state back to the first."""
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
    return columns


def one_backward(chain: Chain, columns: Cotangents) -> Cotangents:
    """Differentiate once, from the last state to the first, with nothing in between."""
    first, last = chain.cut.states[0], chain.cut.states[-1]
    outputs = [i for i, column in enumerate(columns) if column is not None]
    found = torch.autograd.grad(
        [GradientEdge(*last[i]) for i in outputs],
        [GradientEdge(*edge) for edge in first],
        [columns[i][0] for i in outputs],
        retain_graph=True,
        allow_unused=True,
    )
    return [None if g is None else g.unsqueeze(0) for g in found]


@torch.no_grad()
def interpreted(graph: Graph, chain: Chain, columns: Cotangents) -> Cotangents:
    """Run the backward pass node by node in Python, without the engine, stopping at every edge of the first state.

    The engine's own call cannot be the reference where one edge of the first state lies upstream of another: it walks on
    through the inputs and counts the paths between them twice.
    """
    first, last = set(chain.cut.states[0]), chain.cut.states[-1]
    signal = graph.downstream(first)
    arrived: dict[Edge, Tensor] = {edge: c[0] for edge, c in zip(last, columns) if c is not None}
    for node in reversed(list(graph.nodes)):
        if node not in signal:
            continue
        own = [edge for edge in arrived if edge[0] is node and edge not in first]
        if not own:
            continue
        metadata = node._input_metadata
        given = [arrived.get((node, i)) if (node, i) not in first else None for i in range(len(metadata))]
        given = [torch.zeros(tuple(m.shape), dtype=m.dtype) if g is None else g for g, m in zip(given, metadata)]
        sent = _call(node, given)
        for (producer, number), gradient in zip(node.next_functions, sent):
            if gradient is not None and (producer in signal or (producer, number) in first):
                edge = (producer, number)
                arrived[edge] = arrived[edge] + gradient if edge in arrived else gradient
    return [arrived[edge].unsqueeze(0) if edge in arrived else None for edge in chain.cut.states[0]]


def _call(node: Node, given: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    sent = node.apply(*given) if hasattr(node, "apply") and not callable(node) else node(*given)
    return sent if isinstance(sent, tuple) else (sent,)


def is_nested(graph: Graph, edges: Sequence[Edge]) -> bool:
    """Whether some edge lies upstream of another."""
    return any(edge[0] in graph.downstream([other]) for other in edges for edge in edges if edge is not other)


def assert_same(found: Cotangents, expected: Cotangents, *, ulps: float = 0.0) -> None:
    """Compare to the last bit, or to so many units in the last place of the largest entry; a None is zero."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        if one is None or other is None:
            present = one if other is None else other
            assert present is None or not present.any()
            continue
        assert one.shape == other.shape
        if ulps:
            size = float(other.abs().max())
            assert float((one - other).abs().max()) <= ulps * torch.finfo(other.dtype).eps * size
        else:
            assert torch.equal(one, other)


def some_cotangents(chain: Chain, count: int = 3) -> Cotangents:
    return random_cotangents(chain, count, 5)


def one_of(columns: Cotangents, index: int) -> Cotangents:
    return [None if c is None else c[index : index + 1] for c in columns]


@pytest.mark.parametrize(("case", "steps"), EVERY)
def test_product_of_segments_is_one_backward_pass(case: Architecture, steps: str) -> None:
    """Whatever the graph looks like, cutting it must not change a gradient."""
    cutting = models.cut_case(case, steps)
    drawn = some_cotangents(cutting.chain)
    for index in range(3):
        columns = one_of(drawn, index)
        found = product(cutting.chain, columns)
        assert any(c is not None and c.any() for c in found)
        if not is_nested(cutting.graph, cutting.chain.cut.states[0]):
            assert_same(found, one_backward(cutting.chain, columns), ulps=FORKS)


# Where no fork is cut in two, there is nothing to reorder.
TO_THE_LAST_BIT = [
    ("mlp", "auto"),
    ("conv-tower", "auto"),
    ("residual", "auto"),
    ("shared-blocks", "auto"),
    ("inplace-activations", "auto"),
    ("inplace-stream", "auto"),
    ("stale-views", "auto"),
    ("weight-norm", "auto"),
    ("spectral-norm", "auto"),
    ("custom-function", "auto"),
    ("checkpoint", "auto"),
    ("lstm-loop", "time"),
    ("unet", "auto"),
    ("densenet", "auto"),
    ("batch-norm", "auto"),
    ("complex-state", "auto"),
    ("integer-inputs", "auto"),
]


@pytest.mark.parametrize(("name", "steps"), TO_THE_LAST_BIT, ids=[name for name, _ in TO_THE_LAST_BIT])
def test_product_is_exact_to_the_last_bit(name: str, steps: str) -> None:
    """Where every fork lies inside one segment, the same additions are done in the same order."""
    cutting = models.cut_case(BY_ID[name], steps)
    columns = some_cotangents(cutting.chain, 1)
    assert_same(product(cutting.chain, columns), one_backward(cutting.chain, columns))


@pytest.mark.parametrize(
    ("case", "steps"),
    [p for p in EVERY if p.values[0].id not in {"custom-function", "checkpoint", "scaled-gradient", "scaled-skips"}],
)
def test_product_of_segments_is_the_interpreted_backward_pass(case: Architecture, steps: str) -> None:
    """A second reference, without the engine: it holds where edges of the first state lie upstream of each other, too.

    Left out are Python functions, which cannot be called alone, and tensor hooks, which only the engine runs.
    """
    if case.id == "strict-function":
        pytest.skip("a custom function is no callable node")
    cutting = models.cut_case(case, steps)
    columns = some_cotangents(cutting.chain, 1)
    expected = interpreted(cutting.graph, cutting.chain, columns)
    assert_same(product(cutting.chain, columns), expected, ulps=FORKS)


@pytest.mark.parametrize(("case", "steps"), EVERY)
def test_several_columns_are_the_columns_one_by_one(case: Architecture, steps: str) -> None:
    """Carrying k cotangents at once is for speed alone. Batched products add up in another order: a few ulps."""
    cutting = models.cut_case(case, steps)
    drawn = some_cotangents(cutting.chain, 4)
    together = product(cutting.chain, drawn)
    for index in range(4):
        alone = product(cutting.chain, one_of(drawn, index))
        assert_same(one_of(together, index), alone, ulps=4 * FORKS)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_columns_in_portions_are_the_columns_at_once(at_once: int) -> None:
    """The number of columns per call is a matter of memory, not of the result; five do not divide by two."""
    chain = models.cut_case(BY_ID["unet"]).chain
    columns = some_cotangents(chain, 5)
    expected = pull_back(chain, len(chain), columns)
    assert_same(pull_back(chain, len(chain), columns, at_once=at_once), expected, ulps=FORKS)


def test_pull_back_is_linear_in_each_segment() -> None:
    """A segment is a matrix: zero to zero, sums to sums, also where a skip passes by."""
    chain = models.cut_case(BY_ID["unet"], dtype=torch.float64).chain
    for index in range(len(chain), 0, -1):
        shapes = chain.shapes(index)
        a, b = ([torch.randn(1, *shape, dtype=dtype) for shape, dtype in shapes] for _ in range(2))
        total = pull_back(chain, index, [3 * x - y for x, y in zip(a, b)])
        parts = zip(pull_back(chain, index, a), pull_back(chain, index, b))
        assert_same(total, [3 * x - y for x, y in parts], ulps=FORKS)
        assert pull_back(chain, index, [None] * len(shapes)) == [None] * len(chain.shapes(index - 1))


def test_loss_cotangent_completes_the_whole_backward_pass() -> None:
    """From the loss through the last state to the inputs, with a loss that reads an early state, too."""
    case = BY_ID["early-loss"]
    cutting = models.cut_case(case)
    loss = cutting.record.loss
    assert loss is not None
    found = product(cutting.chain, loss_cotangent(cutting.chain, loss))
    expected = torch.autograd.grad(
        loss, [GradientEdge(*e) for e in cutting.chain.cut.states[0]], retain_graph=True, allow_unused=True
    )
    assert_same(found, [g.unsqueeze(0) for g in expected], ulps=FORKS)


# The dense Jacobian ----------------------------------------------------------------------------------------------


def dense_by_segments(chain: Chain) -> Tensor:
    """Pull the identity back: row i of the result is row i of the Jacobian of the whole chain."""
    shapes = chain.shapes(len(chain))
    count = sum(math.prod(shape) for shape, _ in shapes)
    identity = torch.eye(count, dtype=torch.float64)
    parts = identity.split([math.prod(shape) for shape, _ in shapes], dim=1)
    columns: Cotangents = [part.reshape(count, *shape) for part, (shape, _) in zip(parts, shapes)]
    found = product(chain, columns)
    return torch.cat([c.reshape(count, -1) for c in found if c is not None], 1)


def dense_by_differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a replayed model: no autograd at all. Their error is step² / 6 times a third derivative."""
    columns = []
    for index in range(x.numel()):
        shift = torch.zeros_like(x).flatten()
        shift[index] = step
        shift = shift.reshape(x.shape)
        columns.append((function(x + shift) - function(x - shift)) / (2 * step))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in ARCHITECTURES if case.dense])
def test_product_is_the_dense_jacobian(case: Architecture) -> None:
    """The matrix itself, in float64, against a route that knows nothing of graphs."""
    model, inputs = models.build(case, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    cutting = models.cut(model, inputs, case.steps)
    last = cutting.chain.steps[-1]
    kept: list[Tensor] = []

    def replay(x: Tensor) -> Tensor:
        model.load_state_dict(state)
        torch.manual_seed(7)
        kept.clear()
        handle = last.module.register_forward_hook(lambda *seen: kept.append(seen[-1].detach().clone()))
        with torch.no_grad():
            model(x.clone())
        handle.remove()
        return kept[-1].flatten()

    found = dense_by_segments(cutting.chain)
    expected = dense_by_differences(replay, inputs)
    assert float((found - expected).abs().max()) <= 1e-8 * max(1.0, float(expected.abs().max()))


def test_lstm_jacobian_is_the_hand_written_one() -> None:
    """Two tensors cross. One step's matrix ∂(h', c')/∂(h, c), in float64, from a function written by hand."""
    case = BY_ID["lstm-loop"]
    cutting = models.cut_case(case, "time", dtype=torch.float64)
    cell = cutting.model.cell
    x = cutting.inputs
    width = models.WIDTH

    def step(joined: Tensor, t: int) -> Tensor:
        h, c = joined.split(width, dim=1)
        gates = x[:, t] @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, g, o = gates.split(width, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)

    joined = torch.zeros(len(x), 2 * width, dtype=torch.float64)
    for t in range(2):
        joined = step(joined, t)
    matrix = torch.autograd.functional.jacobian(lambda s: step(s, 2), joined)
    chain = cutting.chain
    assert len(chain.cut.states[2]) >= 2
    outputs, entering = chain.steps[2].outputs, chain.steps[1].outputs
    h, c = (torch.randn(len(x), width, dtype=torch.float64) for _ in range(2))
    given = dict(zip(outputs, (h, c)))
    columns: Cotangents = [given[e].unsqueeze(0) if e in given else None for e in chain.cut.states[3]]
    found = dict(zip(chain.cut.states[2], pull_back(chain, 3, columns)))
    expected = torch.einsum("bi,bicj->cj", torch.cat([h, c], 1), matrix)
    result = torch.cat([found[entering[0]][0], found[entering[1]][0]], 1)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)


# States ----------------------------------------------------------------------------------------------------------


def test_where_one_tensor_crosses_it_is_the_block_output() -> None:
    """The familiar case stays familiar."""
    chain = models.cut_case(BY_ID["residual"]).chain
    assert [len(state) for state in chain.cut.states] == [1] * 5
    assert [state[0] for state in chain.cut.states[1:]] == [step.outputs[0] for step in chain.steps]


def test_add_outside_of_the_block_leaves_two_tensors_live() -> None:
    """The skip that passes by belongs to the state, or its gradient would be lost."""
    chain = models.cut_case(BY_ID["add-outside"]).chain
    assert [len(state) for state in chain.cut.states] == [1, 2, 2, 2, 2]


def test_first_state_starts_at_the_inputs_not_at_a_parameter_only_branch() -> None:
    """A bias made from parameters alone is no signal, even where a network computes it before anything else."""
    for steps in ("auto", "layers"):
        cutting = models.cut_case(BY_ID["position-network"], steps)
        assert set(cutting.chain.cut.states[0]) <= set(cutting.record.sources), steps
        assert len(cutting.chain.cut.states[0]) == 1


def test_relative_bias_is_no_state() -> None:
    """It crosses every boundary and carries no signal."""
    chain = models.cut_case(BY_ID["relative-bias"]).chain
    assert [len(state) for state in chain.cut.states] == [1] * 4


def test_encoder_output_is_part_of_each_decoder_state() -> None:
    """The decoder's gradient reaches the encoder through it."""
    chain = models.cut_case(BY_ID["encoder-decoder"]).chain
    assert [len(state) for state in chain.cut.states] == [1, 1, 1, 1, 2, 2, 1]


def test_stale_views_break_the_program_order_of_autograd() -> None:
    """The case is what it claims to be: some node was numbered before the node that it reads from."""
    graph = models.cut_case(BY_ID["stale-views"]).graph
    late = [
        node
        for node in graph.nodes
        for producer, _ in graph.reads[node]
        if type(producer).__name__ != "AccumulateGrad" and producer._sequence_nr() > node._sequence_nr()
    ]
    assert late
    for node in graph.nodes:
        assert all(graph.place[producer] <= graph.place[node] for producer, _ in graph.reads[node])


def test_integer_inputs_start_at_the_first_layer_that_takes_floats() -> None:
    """Nothing before the embedding carries a gradient."""
    chain = models.cut_case(BY_ID["integer-inputs"]).chain
    assert len(chain) == 3
    assert [type(node).__name__ for node, _ in chain.cut.states[0]] == ["EmbeddingBackward0"]


def test_deep_chain_does_not_recurse() -> None:
    """Graphs are long: a thousand tied steps must not exhaust Python's stack."""
    model = models.mlp(1200, width=2)
    chain = models.cut(model, torch.randn(1, 2)).chain
    assert len(chain) == 1200
    assert len(chain.cut.states) == 1201


# The sweep -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "unet", "lstm-loop", "add-outside", "encoder-decoder", "scaled-gradient"])
def test_sum_of_logarithms_is_the_norm_of_one_backward_pass(name: str) -> None:
    """Renormalising at every step must not lose anything: ln ‖u_0‖ - ln ‖u_L‖ of one plain backward pass."""
    cutting = models.cut_case(BY_ID[name], dtype=torch.float64)
    columns = some_cotangents(cutting.chain, 1)
    sums = qr_sweep(Trajectories(cutting.chain, Division(1)), columns).sums()
    start = math.sqrt(sum(float(c.square().sum()) for c in columns if c is not None))
    end = math.sqrt(sum(float(c.square().sum()) for c in one_backward(cutting.chain, columns) if c is not None))
    assert float(sums[0, 0]) == pytest.approx(math.log(end / start), abs=1e-10)


def test_gradients_below_the_range_of_float32_keep_their_logarithm() -> None:
    """A default ReLU tower of this depth has a gradient that float32 reports as zero."""
    model = models.mlp(60, width=16, activation=lambda: torch.nn.LeakyReLU(0.01))
    for layer in model[::2]:
        torch.nn.init.normal_(layer.weight, std=1e-2)
    chain = models.cut(model, torch.randn(2, 16)).chain
    plain = one_backward(chain, some_cotangents(chain, 1))[0]
    assert float(plain.abs().max()) == 0.0
    sums = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 1)).sums()
    assert -400 < float(sums[0, 0]) < -100


@pytest.mark.parametrize("name", ["mlp", "unet", "complex-state", "mixed-complex-state", "densenet"])
def test_spectrum_is_that_of_the_dense_jacobians(name: str) -> None:
    """QR over k columns measures volumes: Σ ln R_ii is half the log determinant of the Gram matrix of J_Lᵀ…"""
    cutting = models.cut_case(BY_ID[name], dtype=torch.float64)
    chain = cutting.chain
    count = 4
    columns = some_cotangents(chain, count)
    logs = qr_sweep(Trajectories(chain, Division(1)), columns).sums()[0]

    def flat(state: Cotangents) -> Tensor:
        return torch.cat(
            [
                torch.view_as_real(c).reshape(count, -1) if c.is_complex() else c.reshape(count, -1)
                for c in state
                if c is not None
            ],
            1,
        )

    def log_volumes(rows: Tensor) -> list[float]:
        return [0.5 * float(torch.logdet(rows[: k + 1] @ rows[: k + 1].T)) for k in range(count)]

    before, after = log_volumes(flat(columns)), log_volumes(flat(one_by_one(chain, columns)))
    expected = [b - a for a, b in zip(before, after)]
    found = logs.cumsum(0).tolist()
    assert found == pytest.approx(expected, abs=1e-7)


def one_by_one(chain: Chain, columns: Cotangents) -> Cotangents:
    count = next(len(c) for c in columns if c is not None)
    found = [one_backward(chain, one_of(columns, i)) for i in range(count)]
    return [torch.cat(parts) for parts in zip(*found)]


def test_complex_states_have_two_real_dimensions_per_entry() -> None:
    """Backward passes are linear over the reals. An isometry through a complex state has as many zero exponents as
    its input has real dimensions."""

    class Turn(torch.nn.Module):
        def __init__(self, *, first: bool, last: bool) -> None:
            super().__init__()
            self.angle = torch.nn.Parameter(torch.randn(1, 2))
            self.first, self.last = first, last

        def forward(self, x: Tensor) -> Tensor:
            z = torch.view_as_complex(x.reshape(-1, 2, 2)) if self.first else x
            z = z * torch.polar(torch.ones_like(self.angle), self.angle)
            return torch.view_as_real(z).flatten(1) if self.last else z

    torch.manual_seed(0)
    model = torch.nn.Sequential(*[Turn(first=i == 0, last=i == 2) for i in range(3)]).double()
    chain = models.cut(model, torch.randn(1, 4, dtype=torch.float64), "*").chain
    assert chain.shapes(1)[0][1] == torch.complex128
    sums = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 4)).sums()[0]
    assert sums.tolist() == pytest.approx([0.0] * 4, abs=1e-12)


def test_dead_step_gives_minus_infinity_and_is_found() -> None:
    """A gradient that vanishes is a number with a name, not an exception and not round-off."""
    model = models.mlp(4)
    with torch.no_grad():
        model[4].weight.zero_()
    chain = models.cut(model, torch.randn(2, models.WIDTH)).chain
    logs = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 1)).logs[:, 0, 0].tolist()
    assert math.isfinite(logs[3])
    assert logs[2] == -math.inf
    assert math.isnan(logs[1]) and math.isnan(logs[0])


@pytest.mark.parametrize("count", [1, 2])
def test_rank_of_a_bottleneck_is_seen(count: int) -> None:
    """Exponents beyond the rank are minus infinity, not the logarithm of round-off."""
    model = torch.nn.Sequential(torch.nn.Linear(6, count), torch.nn.Linear(count, 6), torch.nn.Linear(6, 6))
    chain = models.cut(model, torch.randn(1, 6)).chain
    sums = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 4)).sums()[0]
    assert [math.isfinite(value) for value in sums.tolist()] == [index < count for index in range(4)]


# The zoo ---------------------------------------------------------------------------------------------------------


def run_zoo(case: zoo.Case) -> Cutting:
    torch.manual_seed(0)
    model = case.build().train()
    return models.cut(model, case.inputs(torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.id)
def test_zoo(case: zoo.Case) -> None:
    """Real architectures: cut as their maintainers would, without a change to the gradient."""
    pytest.importorskip("transformers")
    cutting = run_zoo(case)
    chain = cutting.chain
    assert describe(chain.steps) == case.steps
    columns = some_cotangents(chain, 1)
    found = product(chain, columns)
    assert any(c is not None and c.any() for c in found)
    if is_nested(cutting.graph, chain.cut.states[0]):
        expected = interpreted(cutting.graph, chain, columns)
    else:
        expected = one_backward(chain, columns)
    # Sums over forks in another order, layer after layer.
    assert_same(found, expected, ulps=64 * FORKS)
    assert any(True for _ in tensors_in(cutting.record.output))
    assert find_trajectories(chain, zoo.BATCH, 0)[0].count in {1, zoo.BATCH}
