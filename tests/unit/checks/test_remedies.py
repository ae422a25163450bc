"""Remedies: which change a failure suggests, from the factors alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_trainability.checks.remedies import remedies, remedies_of_causes
from pytest_trainability.checks.remedy import Remedy
from pytest_trainability.records.causes import CauseRecord
from pytest_trainability.records.factors import BufferRecord, FactorRecord, GateRecord, SlopeRecord


def weights(step: int, gain: float = 0.0, rms: float = 0.125) -> FactorRecord:
    name = f"layers.{step}"
    return FactorRecord(
        step, name, "Linear", "weights", ("Addmm",), gain, True, weight=f"{name}.weight", weight_rms=rms, fan_in=64
    )


def slopes(step: int, value: float, *, whole: bool = True) -> FactorRecord:
    record = SlopeRecord(value, value, value, 0.0)
    return FactorRecord(step, f"scale.{step}", "Scale", "entrywise", ("Mul",), math.log(value), whole, slopes=record)


def block(step: int, *, norm: bool = True, gain: float = 1.0, norm_last: bool = False) -> FactorRecord:
    name = f"blocks.{step}"
    up = FactorRecord(
        step, f"{name}.up", "Linear", "weights", ("Addmm",), 0.0, weight=f"{name}.up.weight", weight_rms=0.1
    )
    down = replace(up, module=f"{name}.down", weight=f"{name}.down.weight")
    normed = FactorRecord(
        step,
        f"{name}.norm",
        "LayerNorm",
        "normalization",
        ("NativeLayerNorm",),
        0.0,
        weight=f"{name}.norm.weight",
        weight_rms=1.0,
    )
    inner = (*((normed,) if norm and not norm_last else ()), up, down, *((normed,) if norm_last else ()))
    return FactorRecord(
        step, name, "Block", "parallel", ("Addmm", "Add"), gain, True, branches=((), inner), branch_gains=(0.0, gain)
    )


def test_without_factors_there_is_no_remedy() -> None:
    assert list(remedies([])) == []
    assert list(remedies([weights(0, -math.inf)])) == []


def test_all_weights_of_a_plain_chain_are_rescaled_alike_then_one_by_one_then_normalized() -> None:
    alike, each, norm = remedies([weights(i, -0.7) for i in range(10)])
    assert alike.kind == each.kind == "scale" and alike.adjustable and each.adjustable
    assert alike.factors == pytest.approx([math.exp(0.7)] * 10)
    assert alike.text == "nn.init.normal_(layers[i].weight, std=0.252), 2.01 times as large as now"
    assert norm.text == "add a LayerNorm before layers.*"


def test_layer_by_layer_each_weight_makes_up_for_what_follows_it() -> None:
    factors = [weights(0, -1.2), slopes(1, 0.5), weights(1, -1.5)]
    each = [r for r in remedies(factors) if "LSUV" in r.note]
    assert each[0].factors == pytest.approx([math.exp(1.2) * 2, math.exp(1.5)])
    assert each[0].text.startswith("rescale layers.0.weight × 6.64, layers.1.weight × 4.48")


def test_a_factor_between_layers_is_removed() -> None:
    (remedy,) = remedies([*[weights(i) for i in range(5)], slopes(5, 1e-4)])
    assert remedy.kind == "output" and remedy.factors == pytest.approx([1e4])
    assert remedy.text == "remove the factor 0.0001 in scale.5"


def test_a_factor_inside_a_larger_module_is_left_out_of_its_code() -> None:
    (remedy,) = remedies([*[weights(i) for i in range(5)], slopes(5, 1e-4, whole=False)])
    assert (remedy.kind, remedy.targets, remedy.factors) == ("inline", ("scale.5",), (1e-4,))
    assert remedy.text == "remove the factor 0.0001 in scale.5 (Mul)"
    of_model = replace(slopes(5, 1e-4, whole=False), module="", module_kind="Net")
    (remedy,) = remedies([*[weights(i) for i in range(5)], of_model])
    assert remedy.targets == ("",) and remedy.text == "remove the factor 0.0001 (Mul in Net)"


def test_factors_in_several_modules_are_removed_together() -> None:
    remedy = next(iter(remedies([f for i in range(6) for f in (weights(i), slopes(i, 0.1))])))
    assert remedy.kind == "output" and remedy.factors == pytest.approx([10.0] * 6)
    assert remedy.text == "remove the factor 0.1 in scale.*"


def test_a_parameter_that_multiplies_starts_from_one() -> None:
    of_parameter = replace(slopes(5, 1e-4), parameters=("scale.5.alpha",), parameter_means=(1e-4,))
    (remedy,) = remedies([*[weights(i) for i in range(5)], of_parameter])
    assert remedy.text == "nn.init.ones_(scale[5].alpha)"


def test_factors_of_skip_connections_are_removed_where_they_explain_the_growth() -> None:
    def scaled(step: int, number: float) -> FactorRecord:
        skip = replace(slopes(step, number, whole=False), module=f"blocks.{step}")
        found = block(step, gain=math.log(number))
        return replace(found, branches=((skip,), found.branches[1]), branch_gains=(math.log(number), -3.0))

    remedy = next(iter(remedies([scaled(i, 2.0) for i in range(4)])))
    assert (remedy.kind, remedy.factors) == ("inline", (2.0,) * 4)
    assert remedy.text == "remove the factor 2 in blocks.* (the skip connection)"
    # Of branches that grow in spite of a skip connection that shrinks, this is no remedy.
    growing = [replace(scaled(i, 0.9), gain=1.0) for i in range(4)]
    assert all(r.kind != "inline" for r in remedies(growing))


def test_a_weight_that_stands_out_gets_the_scale_of_its_peers() -> None:
    (remedy,) = remedies([*[weights(i, 0.1) for i in range(5)], weights(5, -6.0, 1e-3)])
    assert remedy.targets == ("layers.5.weight",) and remedy.factors == pytest.approx([math.exp(6.1)])
    assert remedy.text == "nn.init.normal_(layers[5].weight, std=0.446), 446 times as large as now (as its peers)"


def test_branches_shrink_at_their_last_projection() -> None:
    (remedy,) = remedies([block(i) for i in range(16)])
    assert remedy.targets == tuple(f"blocks.{i}.down.weight" for i in range(16))
    assert remedy.factors == pytest.approx([0.25] * 16) and remedy.is_minimal
    assert remedy.text == "nn.init.normal_(blocks[i].down.weight, std=0.025), 0.25 times as large as now"


def test_a_normalization_at_the_end_of_a_branch_undoes_the_scale_of_weights() -> None:
    """Then its gain decides."""
    remedy = next(iter(remedies([block(i, norm_last=True) for i in range(16)])))
    assert remedy.targets[0] == "blocks.0.norm.weight"


def test_branches_without_a_normalization_get_one() -> None:
    _, remedy = remedies([block(i, norm=False) for i in range(4)])
    assert remedy.text == "add a LayerNorm before blocks.*.up"


def test_gains_of_normalizations_start_at_one() -> None:
    norm = FactorRecord(
        0, "n.0", "LayerNorm", "normalization", ("NativeLayerNorm",), -1.0, weight="n.0.weight", weight_rms=0.02
    )
    others = [replace(norm, step=i, module=f"n.{i}", weight=f"n.{i}.weight") for i in range(4)]
    (remedy,) = remedies(others)
    assert remedy.kind == "ones" and remedy.text == "nn.init.ones_(n[i].weight)"


def test_gates_get_orthogonal_weights_and_a_larger_forget_bias() -> None:
    gate = FactorRecord(
        0,
        "rnn",
        "LSTM",
        "gated",
        ("Addmm", "Sigmoid"),
        -0.3,
        weight="rnn.weight_hh_l0",
        weight_rms=0.0625,
        fan_in=64,
        forget_bias=1.0,
    )
    orthogonal, bias = remedies([replace(gate, step=i) for i in range(30)])
    assert orthogonal.text == (
        "orthogonal weights for each gate: for w in rnn.weight_hh_l0.chunk(4): nn.init.orthogonal_(w)"
    )
    assert bias.factors == pytest.approx([math.log(29)]) and bias.targets == ("rnn.bias_ih_l0",)
    (bias,) = remedies([replace(gate, step=i, weight_rms=0.125) for i in range(30)])
    assert bias.kind == "forget bias"


def test_the_gates_of_all_layers_of_a_gru_are_changed() -> None:
    names = ("rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1")
    gate = FactorRecord(
        0,
        "rnn",
        "GRU",
        "gated",
        ("Addmm",),
        -0.7,
        False,
        names,
        weight=names[0],
        weight_rms=0.01,
        fan_in=64,
        forget_bias=0,
    )
    orthogonal, bias = remedies([replace(gate, step=i) for i in range(30)])
    assert orthogonal.targets == ("rnn.weight_hh_l0", "rnn.weight_hh_l1")
    assert orthogonal.text == (
        "orthogonal weights for each gate: for w in (rnn.weight_hh_l0, rnn.weight_hh_l1): for gate in w.chunk(3): "
        "nn.init.orthogonal_(gate)"
    )
    assert bias.kind == "update bias" and bias.targets == ("rnn.bias_ih_l0", "rnn.bias_ih_l1")


def test_the_recurrent_weights_of_several_layers_are_multiplied() -> None:
    names = ("rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1")
    step = FactorRecord(0, "rnn", "RNN", "other", ("Addmm", "Tanh"), -1.2, False, names)
    (remedy,) = remedies([replace(step, step=i) for i in range(30)])
    assert remedy.factors == pytest.approx([math.exp(1.2)] * 2) and remedy.adjustable
    assert remedy.text == "multiply rnn.weight_hh_l0, rnn.weight_hh_l1 by 3.32"


def test_causes_suggest_changes_alone_and_together() -> None:
    causes = [
        CauseRecord(weights=("a.weight",), factors=(0.5,), rms=(2.0,)),
        CauseRecord(zeros=("0.bias", "1.bias")),
        CauseRecord(weights=("a.weight", "b.weight"), factors=(0.1, 0.1), rms=(2.0, 2.0)),
        CauseRecord(input_mean=128.0, input_deviation=74.0),
        CauseRecord(multiplier="3", factor=20.0),
        CauseRecord(multiplier="", factor=-20.0, is_inline=True),
        CauseRecord(padding=("table.weight",)),
    ]
    *alone, together = remedies_of_causes(causes)
    assert [remedy.text for remedy in alone] == [
        "nn.init.normal_(a.weight, std=1), 0.5 times as large as now",
        "nn.init.zeros_(model[i].bias)",
        "nn.init.normal_(a.weight, std=0.2); nn.init.normal_(b.weight, std=0.2), 0.1 times as large as now",
        "standardize the inputs: (x - 128) / 74",
        "remove the factor 20 in 3",
        "remove the factor -20 (behind the head)",
        "nn.init.zeros_(table.weight[table.padding_idx])",
    ]
    # A weight that two causes name is changed once.
    assert together.kind == "several" and together.text.count("a.weight") == 1 and "b.weight" in together.text


def test_weights_that_stand_out_in_branches_come_before_last_projections() -> None:
    products = (("blocks.0.up.weight", 1.0, 16), ("blocks.0.down.weight", 0.1, 16))
    unlike = block(0)
    unlike = replace(unlike, branches=((), (*unlike.branches[1], replace(weights(0), kind="other", products=products))))
    as_others, adjusted, *others = remedies([unlike])
    assert as_others.targets == adjusted.targets == ("blocks.0.up.weight",)
    assert as_others.factors == (0.1,) and not as_others.adjustable and adjusted.adjustable
    assert others and all(remedy.is_fallback for remedy in others)


def test_what_closes_gates_is_removed() -> None:
    gates = (
        GateRecord(0.01, bias="a.bias", bias_mean=-5.0),
        GateRecord(0.01, bias="b.bias", bias_mean=-5.0, part=1, parts=4),
        GateRecord(0.01, module="c", constant=-5.0),
    )
    found = [r for r in remedies([replace(weights(0, -5.0), kind="gated", gates=gates)]) if r.kind != "scale"]
    assert [remedy.text for remedy in found[:5]] == [
        "nn.init.zeros_(a.bias)",
        "nn.init.constant_(a.bias, 5) (the other sign)",
        "nn.init.zeros_(b.bias.chunk(4)[1])",
        "nn.init.constant_(b.bias.chunk(4)[1], 5) (the other sign)",
        "remove the constant -5 that is added in c",
    ]


def test_gains_of_one_come_with_shifts_of_zero() -> None:
    (both,) = remedies_of_causes([CauseRecord(ones=("norm.weight",), zeros=("norm.bias",))])
    assert both.text == "nn.init.ones_(norm.weight); nn.init.zeros_(norm.bias)"
    drawn = factor_of_norm(weight_rms=0.02)
    assert [remedy.text for remedy in remedies([drawn])][:1] == [both.text]
    assert [r.text for r in remedies([replace(drawn, gain=-math.inf, zero_parameters=("norm.weight",))])] == [both.text]


def factor_of_norm(*, weight_rms: float) -> FactorRecord:
    return FactorRecord(
        0,
        "norm",
        "LayerNorm",
        "normalization",
        ("NativeLayerNorm",),
        -4.0,
        weight="norm.weight",
        weight_rms=weight_rms,
        shift_of_one="norm.bias",
    )


# Biases ---------------------------------------------------------------------------------------------------------------
def biased(bias_rms: float, product_rms: float, slope: float) -> list[FactorRecord]:
    """Return the factors of eight layers with biases, and of an activation behind each."""
    found = []
    for step in range(8):
        bias = {"bias": f"layers.{step}.bias", "bias_rms": bias_rms, "product_rms": product_rms}
        record = SlopeRecord(slope, 0.0, 1.0, 0.0)
        behind = FactorRecord(step, f"acts.{step}", "Tanh", "entrywise", ("Tanh",), math.log(slope), slopes=record)
        found += [replace(weights(step), **bias), behind]  # type: ignore[arg-type]
    return found


def test_biases_that_exceed_the_products_become_zero_before_weights_are_changed() -> None:
    first, *others = remedies(biased(4.0, 0.5, 0.3))
    assert (first.kind, first.targets) == ("zeros", tuple(f"layers.{i}.bias" for i in range(8)))
    assert first.text == (
        "nn.init.zeros_(layers[i].bias) (the rms of layers[0].bias, 4, exceeds that of the product with the weights, 0.5)"
    )
    assert "zeros" not in {remedy.kind for remedy in others}


@pytest.mark.parametrize(
    "factors",
    [
        biased(0.4, 0.5, 0.3),
        biased(4.0, math.nan, 0.3),
        [*biased(4.0, 0.5, 0.9), weights(8, -9.0)],
        [*biased(4.0, 0.5, 0.9), weights(8, 9.0)],
    ],
    ids=["smaller", "unknown", "loss elsewhere", "growth"],
)
def test_other_biases_are_left_as_they_are(factors: list[FactorRecord]) -> None:
    assert "zeros" not in {remedy.kind for remedy in remedies(factors)}


def zeros() -> Remedy:
    """Return the change of two zero weights and of a zero gain, in the order in which they are read."""
    drawn, ones, shifts = ("a.weight", "b.weight"), ("norm.weight",), ("norm.bias",)
    cause = CauseRecord(
        drawn=drawn, deviations=(0.5, 0.25), ones=ones, zeros=shifts, in_order=("a.weight", "norm.weight", "b.weight")
    )
    (remedy,) = remedies_of_causes([cause])
    return remedy


def test_zeros_in_order_are_one_change_that_can_be_made_smaller() -> None:
    remedy = zeros()
    assert remedy.kind == "several" and [part.kind for part in remedy.parts] == ["draw", "ones", "zeros"]
    fewer = remedy.without_zeros(["b.weight"])
    assert fewer.in_order == ("a.weight", "norm.weight") and fewer.parts[0].factors == (0.5,)
    # The shift of a gain goes with it.
    assert remedy.without_zeros(["norm.weight"]).targets == ("a.weight", "b.weight")


def test_a_first_layer_of_another_rule_stays_as_it_is() -> None:
    first = replace(weights(0, rms=0.3), fan_in=2)
    of_one_rule = next(r for r in remedies([first, *[weights(i, 1.0) for i in range(1, 6)]]) if "stays" in r.note)
    assert of_one_rule.targets == tuple(f"layers.{i}.weight" for i in range(1, 6))
    assert of_one_rule.factors == pytest.approx([math.exp(-1.0)] * 5) and of_one_rule.note == "layers.0.weight stays"
    # Of the same size, or of the same gain, it was drawn by the same rule.
    for rms in (0.125, 0.125 * math.sqrt(32)):
        alike = replace(first, weight_rms=rms)
        assert not any("stays" in r.note for r in remedies([alike, *[weights(i, 1.0) for i in range(1, 6)]]))


def test_a_number_in_the_code_of_every_layer_is_removed_after_the_weights_are_rescaled() -> None:
    factors = [f for i in range(6) for f in (weights(i), slopes(i, 30.0, whole=False))]
    kinds = [remedy.kind for remedy in remedies(factors)]
    assert kinds.index("scale") < kinds.index("inline")
    # Three of six layers have it: it is no design.
    some = [f for i in range(6) for f in (weights(i), *([slopes(i, 30.0, whole=False)] if i < 3 else []))]
    assert next(iter(remedies(some))).kind == "inline"


def test_a_computed_weight_is_changed_by_what_scales_it() -> None:
    """The size of another parameter is not known, so that the text gives a factor."""
    computed = [replace(weights(i, -2.0), weight=f"{i}.v", scaled_by=f"{i}.g") for i in range(4)]
    first = next(r for r in remedies(computed) if r.kind == "scale")
    assert first.targets == ("0.g", "1.g", "2.g", "3.g")
    assert first.text.startswith("multiply model[i].g by 7.39 (a weight that is computed")


def test_a_buffer_that_explains_the_growth_is_scaled() -> None:
    buffer = BufferRecord("adjacency", 1.0, 5.0)
    summed = [replace(weights(i, math.log(5)), kind="other", weight="", buffers=(buffer,)) for i in range(4)]
    first = next(iter(remedies(summed)))
    assert (first.targets, first.factors) == (("adjacency",), (pytest.approx(0.2),))
    assert first.text == "multiply adjacency by 0.2 (its rows then sum to 1 on average)"
