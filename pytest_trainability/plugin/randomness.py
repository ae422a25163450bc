"""Tests that measure draw the same random numbers in every session.

A verdict must be a function of the code alone. Without seeding, a test that calls ``torch.randn(8, 64)`` or builds a module in
its body would measure other numbers in every session, and in every order of the tests.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from .collection import MARKER, MEASURING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["preserved_generators", "seed_generators", "seeded_fixture", "seeded_late_user", "seeded_module"]

SEED = 0


def preserved_generators(item: pytest.Item) -> AbstractContextManager[None]:
    """Return a context that restores the global generators if the test measures."""
    if item.get_closest_marker(MARKER) is None:
        return nullcontext()
    from ..engine import isolation

    return isolation.preserved_generators()


def seed_generators(item: pytest.Item, purpose: str) -> None:
    """Seed the global generators for one purpose, such as one fixture, if the test measures.

    Each fixture and the body have a different seed. So it does not matter which fixtures another test has set up before.
    """
    if item.get_closest_marker(MARKER) is not None:
        from ..engine import isolation

        isolation.seeded(isolation.derived_seed(SEED, purpose))


@contextmanager
def seeded_fixture(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed the global generators for a fixture that a measuring test may use.

    If any test of the session measures, this includes all fixtures with a wider scope than the function: any test may set them
    up.
    """
    item = request._pyfuncitem
    if item.get_closest_marker(MARKER) is not None:
        seed_generators(item, f"fixture {fixturedef.argname}")
        yield
    elif fixturedef.scope != "function" and item.config.stash[MEASURING]:
        from ..engine import isolation

        with isolation.preserved_generators():
            isolation.seeded(isolation.derived_seed(SEED, f"fixture {fixturedef.argname}"))
            yield
    else:
        yield


@contextmanager
def seeded_late_user(item: pytest.Item) -> Iterator[None]:
    """Mark a test that takes the fixture while it runs, and seed the global generators until its end.

    Nothing happens if the test is known to measure. Its numbers before this moment are its own.
    """
    if item.get_closest_marker(MARKER) is not None:
        yield
        return
    from ..engine import isolation

    item.add_marker(MARKER)
    with isolation.preserved_generators():
        seed_generators(item, "fixture trainability")
        yield


@contextmanager
def seeded_module(collector: pytest.Collector) -> Iterator[None]:
    """Seed torch while a module with measuring tests is imported, unless the module seeds torch itself."""
    if not (isinstance(collector, pytest.Module) and _measures(collector)):
        yield
        return
    from ..engine import isolation

    with isolation.seeded_unless_seeded(isolation.derived_seed(SEED, "module")):
        yield


def _measures(module: pytest.Module) -> bool:
    """Whether the text of the module contains the name of the marker and fixture, and an import of torch."""
    try:
        text = module.path.read_bytes()
    except OSError:
        return False
    return MARKER.encode() in text and _IMPORT_OF_TORCH.search(text) is not None


# Also in a list (import pytest, torch) and inside a block.
_IMPORT_OF_TORCH = re.compile(rb"^[ \t]*(?:import|from)[ \t][^#\n]*\btorch\b", re.MULTILINE)
