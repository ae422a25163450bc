"""Tests that measure draw the same inputs in every session.

A verdict must be a function of the code alone. A test that writes ``torch.randn(8, 64)``, or builds a finished module in
its body, would otherwise measure something else each time, and in each test order.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from .collection import MARKER

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import pytest

__all__ = ["preserved_generators", "seed_generators"]

SEED = 0


def preserved_generators(item: pytest.Item) -> AbstractContextManager[None]:
    """Return a context that puts the global generators back, where the test measures."""
    if item.get_closest_marker(MARKER) is None:
        return nullcontext()
    from ..engine import isolation

    return isolation.preserved_generators()


def seed_generators(item: pytest.Item, purpose: str) -> None:
    """Seed the global generators for one purpose, such as one fixture, where the test measures.

    Fixtures and body have seeds of their own, so that it does not matter which fixtures another test has set up already.
    """
    if item.get_closest_marker(MARKER) is not None:
        from ..engine import isolation

        isolation.seeded(isolation.derived_seed(SEED, purpose))
