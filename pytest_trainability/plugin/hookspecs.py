"""Hooks by which other plugins extend this one.

pytest loads the modules of a plugin in every session of its users. A plugin should therefore import ``pytest_trainability`` and
torch inside the hooks, which are called when a test measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from ..measures.measure import Measure

__all__ = ["pytest_trainability_environment", "pytest_trainability_measures", "pytest_trainability_steps"]


@pytest.hookspec
def pytest_trainability_measures() -> Iterable[Measure]:  # type: ignore[empty-body]
    """Return measures. They become attributes of every measurement and names for bounds.

    The hook is called once in a session, before the first test that measures.
    """


@pytest.hookspec(firstresult=True)
def pytest_trainability_steps(model: nn.Module) -> str | type[nn.Module] | Sequence[str] | None:
    """Return the step choice for this model, a value for ``steps=``, or None to leave the choice to other plugins.

    The hook is called for every model that is measured without ``steps=``, as it was built, on its device and in its mode. The
    first result that is not None counts.
    """


@pytest.hookspec
def pytest_trainability_environment() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return further keys that distinguish environments with different numbers, such as ``{"kernels": "flash-2"}``.

    Baselines are kept by environment, and numbers are compared within one environment. The hook is called when a test compares
    with its baseline.
    """
