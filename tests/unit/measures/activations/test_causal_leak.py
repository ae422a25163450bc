"""The positions after which a sequence is divided."""

from __future__ import annotations

from pytest_trainability.measures.activations.causal_leak import positions_examined


def test_positions_are_spread_over_the_sequence():
    assert positions_examined(2) == [1]
    assert positions_examined(5) == [1, 2, 3, 4]
    long = positions_examined(100)
    assert (long[0], long[-1], len(long)) == (1, 99, 8)
