"""Chains: which tensors make up the states before, between and after the steps, and what is known about each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import loops
import models
import pytest
import torch
from models import ARCHITECTURES, WIDTH
from torch import Tensor, nn

from pytest_trainability.engine.capture.chain import call_name, chain_of, describe, graph_of
from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.steps import choose_steps
from pytest_trainability.engine.jacobian.vjp import pull_back
from pytest_trainability.errors import CutError, ModelError

BY_ID = {case.id: case for case in ARCHITECTURES}


def test_the_state_after_a_residual_block_is_its_output() -> None:
    """Only one tensor crosses each boundary."""
    chain = models.cut_case(BY_ID["residual"]).chain
    assert [len(state) for state in chain.cut.states] == [1] * 5
    assert [state[0] for state in chain.cut.states[1:]] == [step.outputs[0] for step in chain.steps]


def test_a_skip_around_a_block_is_part_of_the_state() -> None:
    """Otherwise its gradient would be lost."""
    chain = models.cut_case(BY_ID["add-outside"]).chain
    assert [len(state) for state in chain.cut.states] == [1, 2, 2, 2, 2]


def test_the_first_state_holds_the_inputs_and_no_tensor_made_of_parameters() -> None:
    """A bias made of parameters alone carries no signal, even if a network computes it before anything else."""
    for steps in ("auto", "layers"):
        cutting = models.cut_case(BY_ID["position-network"], steps)
        assert set(cutting.chain.cut.states[0]) <= set(cutting.capture.sources), steps
        assert len(cutting.chain.cut.states[0]) == 1


def test_a_relative_bias_is_not_part_of_the_state() -> None:
    """It crosses every boundary and carries no signal."""
    chain = models.cut_case(BY_ID["relative-bias"]).chain
    assert [len(state) for state in chain.cut.states] == [1] * 4


def test_the_output_of_an_encoder_is_part_of_each_decoder_state() -> None:
    """The decoder's gradient reaches the encoder through it."""
    chain = models.cut_case(BY_ID["encoder-decoder"]).chain
    assert [len(state) for state in chain.cut.states] == [1, 1, 1, 1, 2, 2, 1]


def test_stale_views_are_put_in_order() -> None:
    """PyTorch numbers some nodes of this model before the nodes that they read from."""
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


def test_integer_inputs_start_at_the_first_layer_with_floats() -> None:
    """Nothing before the embedding carries a gradient."""
    chain = models.cut_case(BY_ID["integer-inputs"]).chain
    assert len(chain) == 3
    assert [type(node).__name__ for node, _ in chain.cut.states[0]] == ["EmbeddingBackward0"]


def test_a_deep_chain_does_not_exhaust_the_stack() -> None:
    """A graph of 1200 layers is walked without recursion."""
    model = models.mlp(1200, width=2)
    chain = models.cut(model, torch.randn(1, 2)).chain
    assert len(chain) == 1200
    assert len(chain.cut.states) == 1201


# Where a chain begins and ends -----------------------------------------------------------------------------------
def test_a_parameter_among_the_arguments_is_not_the_first_state() -> None:
    """See Note [Parameters are no signal]."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return torch.tanh(x * scale)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Scaled() for _ in range(3))
            self.scale = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, self.scale)
            return x

    cutting = models.cut(Model(), torch.ones(2, WIDTH), "layers.*")
    assert cutting.chain.cut.states[0] == cutting.capture.sources
    assert [len(state) for state in cutting.chain.cut.states] == [1] * 4


def test_a_frozen_start_moves_the_first_state_to_the_first_gradient() -> None:
    """The embedding and two layers are frozen, so that the third layer makes the first state."""
    chain = models.cut_case(BY_ID["frozen-language-model"]).chain
    assert chain.names == ("layers.3", "layers.4")
    assert len(chain.cut.states[0]) == 1


def test_the_last_state_is_the_result_if_no_operation_follows() -> None:
    cutting = models.cut(models.mlp(3)[:-1], torch.ones(2, WIDTH), "layers")
    assert cutting.chain.cut.states[-1] == cutting.capture.roots


def test_calls_that_the_signal_does_not_pass_are_left_out() -> None:
    chain = models.cut_case(BY_ID["two-towers"], "layers").chain
    assert all(call not in chain.steps for call in chain.left_out)
    assert {call.path.partition(".")[0] for call in chain.left_out} == {"right"}


def test_a_path_that_is_cut_is_refused() -> None:
    class Detached(models.Tower):
        def body(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](x).detach())

    captured = capture(Detached(models.Block), (torch.ones(2, WIDTH),), {})
    calls = [call for call in captured.calls if call.path in {"stem", "blocks.0"}]
    with pytest.raises(CutError, match=r"must flow from step 'stem' through step 'blocks\.0' to the output"):
        chain_of(captured, graph_of(captured), calls)


# The graph of a run ----------------------------------------------------------------------------------------------
def frozen() -> nn.Module:
    return models.mlp(3).requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("build", "x", "error", "message"),
    [
        (
            lambda: models.Reentrant(models.Block),
            torch.ones(2, WIDTH),
            CutError,
            r"must be part of the autograd graph\. This model uses re-entrant checkpointing.*use_reentrant=False",
        ),
        (
            lambda: nn.Sequential(nn.Embedding(3, WIDTH), frozen()).requires_grad_(requires_grad=False),
            torch.arange(3),
            ModelError,
            r"All parameters of the model are frozen, and none of its inputs is a float tensor\. Unfreeze",
        ),
        (
            lambda: nn.Sequential(models.mlp(3), loops.Loop(lambda model, y: y.detach())),
            torch.ones(2, WIDTH),
            ModelError,
            r"the output must carry a gradient.*in the autograd graph\. Look for torch\.no_grad",
        ),
    ],
    ids=["reentrant", "frozen", "detached"],
)
def test_a_run_without_a_usable_graph_is_refused(
    build: Callable[[], nn.Module], x: Tensor, error: type[Exception], message: str
) -> None:
    captured = capture(build(), (x,), {})
    with pytest.raises(error, match=message):
        graph_of(captured)


# Steps and states ------------------------------------------------------------------------------------------------
def test_shapes_dtypes_and_devices_of_states() -> None:
    chain = models.cut_case(BY_ID["mixed-complex-state"], dtype=torch.float64).chain
    found = [{dtype for _, dtype in chain.shapes(index)} for index in range(len(chain) + 1)]
    assert found[0] == {torch.float64} and found[2] == {torch.float64, torch.complex128}
    assert all(device.type == "cpu" for index in range(len(chain) + 1) for device in chain.devices(index))
    assert [len(chain.devices(index)) for index in range(5)] == [len(chain.shapes(index)) for index in range(5)]


def test_the_precision_of_a_segment_is_that_of_its_coarsest_tensor() -> None:
    """A step that casts to float32 inside a float64 model limits the precision of its segment alone."""

    class Cast(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.layer, self.dtype = nn.Linear(WIDTH, WIDTH).double(), dtype

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).to(self.dtype).tanh().double()

    types = [torch.float64, torch.float32, torch.float64]
    chain = models.cut(nn.Sequential(*map(Cast, types)), torch.ones(2, WIDTH, dtype=torch.float64), Cast).chain
    assert [chain.epsilon(index) for index in (1, 2, 3)] == [torch.finfo(dtype).eps for dtype in types]


def test_operations_of_each_step_in_the_order_of_their_last_occurrence() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(torch.tanh(x)).sigmoid() + x)

    cutting = models.cut(nn.Sequential(Step(), Step(), Step()), torch.ones(2, WIDTH), Step)
    found = cutting.chain.operations(cutting.graph)
    assert [names[-4:] for names in found] == [("Addmm", "Sigmoid", "Add", "Tanh")] * 3


def test_counterparts_of_tensors_follow_their_roles() -> None:
    """The state of an LSTM cell is (h, c), in the order of creation. The roles in x_0 are unknown."""
    chain = models.cut_case(BY_ID["lstm-loop"]).chain
    assert chain.order(1) is None
    for index in (2, 3, 4):
        order = chain.order(index)
        assert order is not None and sorted(order) == [0, 1]
        assert [chain.roles[index - 1][place] for place in order] == list(chain.roles[index])
    single = models.cut_case(BY_ID["gru-loop"]).chain
    assert [single.order(index) for index in (1, 2, 3, 4)] == [(0,)] * 4


def test_states_of_other_shapes_have_no_counterparts() -> None:
    tower = nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 4), nn.Linear(4, WIDTH))
    chain = models.cut(tower, torch.ones(2, WIDTH), "layers").chain
    assert [chain.order(index) for index in (1, 2, 3)] == [None, (0,), None]
    chain = models.cut_case(BY_ID["add-outside"]).chain
    assert chain.order(3) is None


def test_steps_count_one_each_without_durations() -> None:
    chain = models.cut_case(BY_ID["mlp"]).chain
    assert len(chain) == 4 and chain.durations == () and chain.spans == (1.0,) * 4


# Names -----------------------------------------------------------------------------------------------------------
def test_calls_are_numbered_if_a_module_is_called_again() -> None:
    calls = capture(models.Tower(models.Block, shared=True), (torch.ones(2, WIDTH),), {}).calls
    steps = [call for call in calls if call.path in {"stem", "blocks.0"}]
    assert [call_name(call, steps) for call in steps] == ["stem", *(f"blocks.0[{i}]" for i in range(4))]
    assert call_name(calls[-1], calls) == "Tower"


def test_steps_are_described_by_kind() -> None:
    def calls(model: nn.Module) -> list[Any]:
        return [call for call in capture(model, (torch.ones(2, WIDTH),), {}).calls if call.path]

    assert describe([]) == ""
    assert describe(calls(models.mlp(2))) == "2 × Linear + 2 × Tanh"
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    found = [call for call in calls(nn.Sequential(normed, nn.Linear(WIDTH, 2))) if "parametrizations" not in call.path]
    assert describe(found) == "2 × Linear"


# Backward hooks of modules ---------------------------------------------------------------------------------------
def halved(module: nn.Module, leaving: Any) -> Any:
    return tuple(None if g is None else 0.5 * g for g in leaving)


def tripled(module: nn.Module, entering: Any, leaving: Any) -> Any:
    return tuple(None if g is None else 3 * g for g in entering)


@pytest.mark.parametrize(
    ("register", "factor"),
    [
        (lambda layer: layer.register_full_backward_pre_hook(halved), 0.5),
        (lambda layer: layer.register_full_backward_hook(tripled), 3.0),
    ],
    ids=["before", "after"],
)
@pytest.mark.parametrize("which", [[0, 1, 2], [2], [1], [0]], ids=str)
def test_a_backward_hook_acts_in_its_step(
    register: Callable[[nn.Module], Any], factor: float, which: list[int]
) -> None:
    """PyTorch adds a node to the results of such a module after all forward hooks. It belongs to the call."""
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3)])
    for index in which:
        register(layers[index])
    chain = models.cut(layers, torch.randn(1, WIDTH), "layers").chain
    for index in (1, 3, 2):  # in any order: a segment does not depend on another one
        u = torch.randn(1, 1, WIDTH)
        (pulled,) = pull_back(chain, index, [u])
        assert pulled is not None
        expected = u[0, 0] @ layers[index - 1].weight.detach()  # type: ignore[operator]
        assert torch.allclose(pulled[0, 0], expected * (factor if index - 1 in which else 1.0))


def test_a_chain_is_usable_without_its_run() -> None:
    """The node of the last hook has no reader. Before PyTorch 2.13 it is freed with the output, unless that is held."""
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.register_full_backward_hook(tripled)
    cutting = models.cut(layer, torch.randn(1, WIDTH), "layers")
    chain = cutting.chain
    del cutting
    u = torch.randn(1, 1, WIDTH)
    (pulled,) = pull_back(chain, 1, [u])
    assert pulled is not None and torch.allclose(pulled[0, 0], 3 * u[0, 0] @ layer.weight.detach())


def test_the_node_of_a_backward_hook_belongs_to_its_own_module() -> None:
    """The next module adds one to its arguments at the same place, and a module inside of another one ends before it."""
    inner = nn.Linear(WIDTH, WIDTH)
    hooked = nn.Linear(WIDTH, WIDTH)
    hooked.register_full_backward_hook(tripled)
    model = nn.Sequential(nn.Sequential(inner), nn.Sequential(hooked), nn.Linear(WIDTH, WIDTH))
    captured = capture(model, (torch.randn(2, WIDTH),), {})
    graph_of(captured)
    calls = {call.path: call for call in captured.calls}
    assert calls["0.0"].end == calls["0"].end == calls["1.0"].start
    assert [type(node).__name__ for node, _ in calls["0.0"].outputs] == ["AddmmBackward0"]
    assert [type(node).__name__ for node, _ in calls["1.0"].outputs] == ["BackwardHookFunctionBackward"]
    assert calls["1.0"].end == calls["1"].end == calls["2"].start


def test_the_node_of_an_outer_modules_hook_does_not_belong_to_the_module_that_ends_with_it() -> None:
    inner = nn.Linear(WIDTH, WIDTH)
    outer = nn.Sequential(nn.Linear(WIDTH, WIDTH), inner)
    outer.register_full_backward_hook(tripled)
    captured = capture(nn.Sequential(outer, nn.Linear(WIDTH, WIDTH)), (torch.randn(2, WIDTH),), {})
    graph_of(captured)
    calls = {call.path: call for call in captured.calls}
    assert [type(node).__name__ for node, _ in calls["0.1"].outputs] == ["AddmmBackward0"]
    assert [type(node).__name__ for node, _ in calls["0"].outputs] == ["BackwardHookFunctionBackward"]
    assert calls["0.1"].end == calls["0"].end - 1


class Ragged(nn.Module):
    """Layers of which some read and return rows of different lengths."""

    def __init__(self, layout: torch.layout, nested: tuple[int, ...]) -> None:
        super().__init__()
        self.layout, self.nested = layout, nested
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if i in self.nested and not x.is_nested:
                x = torch.nested.as_nested_tensor([x[:3], x[3:]], layout=self.layout)
            elif i not in self.nested and x.is_nested:
                x = torch.cat(list(x.unbind()))
            x = layer(x)
        return torch.cat(list(x.unbind())) if x.is_nested and self.layout is torch.strided else x


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize(
    ("nested", "place"),
    [
        ((0, 1, 2), "What the first step reads is a nested one"),
        ((1, 2), "What step 'layers.1' returns is a nested one"),
        ((2,), "What step 'layers.2' returns is a nested one"),
    ],
    ids=["all", "some", "the last"],
)
def test_a_state_of_rows_of_different_lengths_is_refused(
    layout: torch.layout, nested: tuple[int, ...], place: str
) -> None:
    captured = capture(Ragged(layout, nested), (torch.randn(8, WIDTH, requires_grad=True),), {})
    graph = graph_of(captured)
    with pytest.raises(ModelError, match="states must be dense tensors") as error:
        chain_of(captured, graph, choose_steps(captured, graph, "layers.*"))
    assert place in str(error.value)
