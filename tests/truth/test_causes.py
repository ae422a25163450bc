"""Causes of known faults: the place, the reason and the cure are those of the fault, and the shares add up to the log gain.

The faults are those of ``tests/faults``, each made by one argument of a builder that also makes its healthy twin.
"""

from __future__ import annotations

import math

import pytest
from faults import FAULTS, measured

from pytest_trainability import TrainabilityFailure, within

BY_NUMBER = {fault.number: fault for fault in FAULTS}

# Number of the fault: what the cause must say, and how a cure must begin.
EXPECTED: dict[int, tuple[tuple[str, ...], str]] = {
    1: (
        ("41 × Linear (0, 2, …) multiply the gradient by 0.", "weights of rms 0.08"),
        "nn.init.normal_(model[i].weight",
    ),
    4: (("40 × ReLU (1, 3, …) have slopes of rms 0.7", "a gain of 1 needs an rms of about 0.18"), "nn.init.normal_("),
    5: (("61 × Linear (0, 2, …) multiply the gradient by 7.",), "nn.init.normal_(model[i].weight"),
    6: (("8 × Sigmoid (1, 3, …) have slopes of rms 0.24",), ""),
    8: (("(ReLU) passes no gradient: all its slopes are zero",), ""),
    12: (
        ("Branch (1, 2, …) multiply the gradient by 1.", "the skip connection by 1"),
        "nn.init.normal_(model[i].outer.weight",
    ),
    23: (("12 × Conv2d (body.*) multiply the gradient by 0.1", "over 27 inputs"), "nn.init.normal_(body[i].weight"),
    24: (("layer (RNN) multiplies the gradient by 0.7", "per time step"), "nn.init.normal_(layer.weight_hh_l0"),
    33: (("forget gates of mean bias -5 keep 0.00669 of the cell",), "a forget bias of 3.37"),
}


@pytest.mark.parametrize("number", EXPECTED)
def test_the_cause_and_the_cure_of_a_known_fault(number: int) -> None:
    says, begins = EXPECTED[number]
    result = measured(BY_NUMBER[number], range(2))
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(log_gain=within(1.5))
    text = " ".join(str(raised.value).split())
    cause = text[text.index("likely cause") :]
    assert [part for part in says if part not in cause] == [], cause
    if begins:
        assert any(cure.text.startswith(begins) for cure in result.cures()), [cure.text for cure in result.cures()]


@pytest.mark.parametrize("number", [13, 17, 22, 29])
def test_shares_add_up_to_the_log_gain(number: int) -> None:
    """Of residual networks with BatchNorm, whose samples interact, and of transformers with LayerNorm before and after."""
    result = measured(BY_NUMBER[number], range(1))
    factors = result._seed_runs.take_apart()
    # float32: a few units in the last place for each factor, whose logarithms are of order one.
    assert sum(factor.gain for factor in factors) == pytest.approx(result.log_gain.mean, abs=1e-6 * len(factors))


# Number of the fault: what the report of the preset must say, and how a cure must begin.
OF_PRESETS: dict[int, tuple[str, str]] = {
    7: (
        "constant weights: all entries of 0.weight (and 7 more) are equal",
        "draw each anew: nn.init.normal_(model[i].weight",
    ),
    8: ("reads values of mean -1 and deviation", "nn.init.zeros_(model[i].bias)"),
    10: ("the inputs have rms 14", "standardize the inputs: (x - 12"),
    14: ("the module was copied after it was drawn", "draw each anew: nn.init.normal_(encoder.layers[i].self_attn"),
    20: ("positions.weight and embedding.weight has rms 30", "nn.init.normal_(positions.weight, std=1)"),
    31: ("*.inner (24), *.outer (24): run, but their results reach the loss without a gradient", ""),
    36: ("see layers.0.feed_forward.router.bias", "nn.init.zeros_(layers[i].feed_forward.router.bias)"),
}


@pytest.mark.parametrize("number", OF_PRESETS)
def test_the_cause_and_the_cure_of_what_a_preset_finds(number: int) -> None:
    says, begins = OF_PRESETS[number]
    fault = BY_NUMBER[number]
    result = measured(fault, range(2))
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(preset=fault.family)
    text = " ".join(str(raised.value).split())
    assert says in text[text.index("likely cause") :]
    assert [cure.text.startswith(begins) for cure in result.cures()][:1] == ([True] if begins else [])
    assert all(not math.isnan(cure.after) for cure in result.cures())
