"""Configuration of the examples."""

from __future__ import annotations

import pytest
from torchvision_for_cpu import declare_torchvision_operators


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of the examples that are broken on purpose, and make torchvision importable."""
    config.addinivalue_line(
        "markers", "broken_on_purpose: shows what a failure looks like; `make demo` expects it to fail"
    )
    declare_torchvision_operators()
