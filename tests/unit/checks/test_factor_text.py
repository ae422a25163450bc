"""Text on groups of factors: their place, what they do to the gradient, their part in the log gain, and what explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from step_factors import activation, factor, residual

from pytest_trainability.checks.factor_groups import FactorGroup
from pytest_trainability.checks.factor_text import details, group_effect, group_name, part_of_total
from pytest_trainability.records.factors import FactorRecord, GateRecord, SlopeRecord


def described(factors: Sequence[FactorRecord], along: str = "depth") -> list[str]:
    """Return what a report says about factors that form one group."""
    group = FactorGroup(tuple(factors))
    return [f"{group_name(group)} {group_effect(group, along)}", *details(group, factors)]


def test_an_activation_is_named_by_its_operations_and_slopes() -> None:
    swish = {"module_kind": "Act", "operations": ("Sigmoid", "Mul"), "slopes": SlopeRecord(0.5, 0.4, 0.6, 0.0)}
    lines = described([activation(-0.69, i, **swish) for i in range(1, 20, 2)])
    assert lines == ["Sigmoid × Mul in 10 × Act (1, 5, …) have slopes of rms 0.5"]


def test_parameters_that_the_forward_pass_has_written_are_named_with_their_means() -> None:
    scales = [
        factor(
            "entrywise",
            4.0 + i,
            i,
            module=f"norms.{i}",
            module_kind="Norm",
            operations=("Mul",),
            slopes=SlopeRecord(50.0, 1.0, 90.0, 0.0),
            parameters=(f"norms.{i}.scale",),
            parameter_means=(4.0 + i,),
            rewritten=(f"norms.{i}.scale",),
        )
        for i in range(3)
    ]
    (*_, line) = described(scales)
    assert line == "the first forward pass has changed norms.*.scale (means 4 to 6), which it reads"
    assert not any("changed" in line for line in described([replace(scale, rewritten=()) for scale in scales]))


def test_dead_slopes_are_counted() -> None:
    dead = SlopeRecord(0.1, 0.0, 1.0, 0.99)
    (line,) = described([activation(-2.3, i, slopes=dead) for i in range(9)])
    assert line.endswith("99 % of them zero")


def test_a_decay_per_time_step_names_its_parameter() -> None:
    slopes = SlopeRecord(0.72, 0.711, 0.731, 0.0)
    decay = {"module": "cell", "module_kind": "Cell", "operations": ("Mul",), "parameters": ("cell.decay",)}
    factors = [activation(-0.33, i, slopes=slopes, **decay) for i in range(30)]
    (why,) = described(factors, along="time")
    assert why == "Mul in cell (Cell) has slopes from 0.711 to 0.731, which cell.decay determines"


def test_gates_show_the_gain_of_their_weights_and_what_they_keep() -> None:
    gated = {"module": "rnn", "module_kind": "LSTM", "weight": "rnn.weight_hh_l0", "weight_rms": 0.0625, "fan_in": 64}
    factors = [factor("gated", -0.3, i, forget_bias=1.0, **gated) for i in range(30)]
    gain, weights, kept = described(factors, along="time")
    assert gain == "rnn (LSTM) multiplies the gradient by 0.741 per time step"
    assert "rms × √inputs = 0.5 (1 if each gate's is orthogonal)" in weights
    assert kept == "forget gates of mean bias 1 keep 0.731 of the cell per time step"


def test_a_normalization_shows_its_gain_its_input_and_its_constant() -> None:
    def lines(**changes: Any) -> list[str]:
        norm = {"module_kind": "LayerNorm", "operations": ("NativeLayerNorm",), **changes}
        return described([factor("normalization", -1.0, i, module=f"{i}.norm", **norm) for i in range(8)])[1:]

    small = lines(weight="norm.weight", weight_rms=0.02, input_deviation=0.5)
    assert small == [
        "its gain norm.weight has rms 0.02, where 1 is usual",
        "its inputs deviate by 0.5, by which it divides",
    ]
    assert lines(input_deviation=0.003, eps=1e-5) == ["its inputs deviate by no more than √eps = 0.00316"]
    assert lines(group_size=1) == ["it normalizes groups of one element"]
    assert lines() == []


def test_a_residual_block_shows_branch_and_skip_and_what_stands_out_in_the_branch() -> None:
    norm = factor("normalization", 3.0, module="b.norm", module_kind="LayerNorm", weight_rms=1.0)
    inner = (norm, factor(gain=1.6, module="b.proj"))
    blocks = [
        factor(
            "parallel", 1.8, i, module=f"blocks.{i}", module_kind="Block", branches=((), inner), branch_gains=(0.0, 1.7)
        )
        for i in range(6)
    ]
    assert described(blocks) == [
        "6 × Block (blocks.*) multiply the gradient by 6.05 each",
        "its branch multiplies the gradient by 5.47, the skip connection by 1",
        "in the branch, b.proj (Linear) multiplies the gradient by 4.95",
        "0.weight: rms 0.125 over 64 inputs, rms × √inputs = 1",
    ]


def test_weights_that_stand_out_in_branches_are_compared_with_the_others_there() -> None:
    (*_, line) = described([residual(i, {"up": 0.1, "gate": 1.0, "down": 0.05}) for i in range(3)])
    gain = "a gain rms × √inputs of 4, where that of other weights is 0.4"
    assert line == f"in the branches, blocks.*.gate.weight has rms 1 over 16 inputs: {gain}"


def test_a_closed_gate_is_named_with_what_closes_it() -> None:
    of_bias = GateRecord(0.05, bias="f.bias", bias_mean=-3.0, part=1, parts=4)
    closed = factor("gated", -1.0, weight="f.weight", weight_rms=0.1, fan_in=9, gates=(of_bias,))
    assert "a sigmoid is 0.05 on average: part 2 of 4 of f.bias has mean -3" in described([closed])
    constant = "a sigmoid is 0.999 on average: the constant 7 in the forward code of the model is added in front of it"
    assert constant in described([replace(closed, gates=(of_bias, GateRecord(0.999, constant=7.0)))])


def test_the_part_of_a_typical_seed_is_that_of_the_mean() -> None:
    assert part_of_total(-5.0, -10.0, -11.0) == "-5.5 of -11.0 nats"
    assert part_of_total(-5.0, -10.0, -13.0) == "-5.0 of -10.0 nats"
