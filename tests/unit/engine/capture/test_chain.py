"""Chains: which tensors make up the states before, between and after the steps."""

from __future__ import annotations

import models
import torch
from models import ARCHITECTURES

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
        assert set(cutting.chain.cut.states[0]) <= set(cutting.record.sources), steps
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
