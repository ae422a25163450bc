"""Hooks by which other plugins extend this one.

A plugin's modules are loaded in every session of its users. Let it import ``pytest_trainability`` and torch inside of the hooks,
which are called when a test measures.
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
    """Return measures, which become attributes of every measurement and names for bounds.

    It is called once in a session, before the first test that measures.
    """


@pytest.hookspec(firstresult=True)
def pytest_trainability_steps(model: nn.Module) -> str | type[nn.Module] | Sequence[str] | None:
    """Return how this model is cut into steps, as ``steps=`` takes it, or None to leave that to others.

    It is called for every model that is measured without ``steps=``, as built, on its device and in its mode. The first answer
    that is not None counts.
    """


@pytest.hookspec
def pytest_trainability_environment() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return what else tells environments apart whose numbers differ, such as ``{"kernels": "flash-2"}``.

    Baselines are kept by environment: one recorded in another is not compared with. It is called when a test asks for its
    baseline.
    """
