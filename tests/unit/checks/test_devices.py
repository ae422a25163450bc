"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from pytest_trainability import UsageError
from pytest_trainability.checks.devices import as_device_name


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "cuda:12"])
def test_names_of_devices(name: str) -> None:
    assert as_device_name(name) == name


def test_a_device_has_its_name() -> None:
    assert as_device_name(torch.device("cuda", 1)) == "cuda:1"


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CPU"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^the device must be auto, cpu, cuda, cuda:N or mps\. Got "):
        as_device_name(name)
