"""Largest values over calls."""

from __future__ import annotations

import math

import torch
from torch import nn

from pytest_trainability.engine.capture.recorder import Capture, Recorder
from pytest_trainability.measures.activations.largest_value import _LargestValues


def test_the_largest_result_of_a_path_is_kept_and_nan_stays() -> None:
    observer = _LargestValues(Recorder(Capture(nn.Linear(1, 1))))
    for path, value in (("b", 2.0), ("a", -3.0), ("b", 1.0), ("a", 1.0), ("c", math.nan), ("c", 5.0)):
        observer.observe(path, torch.tensor([value]))
    assert list(observer.found) == ["b", "a", "c"]
    assert (observer.found["b"], observer.found["a"]) == (2.0, 3.0)
    assert math.isnan(observer.found["c"])


def test_eight_bits_are_read() -> None:
    observer = _LargestValues(Recorder(Capture(nn.Linear(1, 1))))
    observer.observe("a", torch.tensor([448.0, -2.0]).to(torch.float8_e4m3fn))
    assert observer.found == {"a": 448.0}
