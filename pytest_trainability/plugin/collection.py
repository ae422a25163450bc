"""Which tests measure, and whether their markers can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..checks.bounds import Bound

__all__ = ["MARKER", "bounds_of", "mark_users", "marker_settings", "validate_markers"]

MARKER = "trainability"
_MARKER_SETTINGS = ("seeds", "device", "dtype")


def mark_users(item: pytest.Item) -> None:
    """Give a test that uses the fixture the marker."""
    if MARKER in getattr(item, "fixturenames", ()) and item.get_closest_marker(MARKER) is None:
        item.add_marker(MARKER)


def validate_markers(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Check every bound that a test is subject to.

    Raises:
        pytest.UsageError: A marker or setting names no measure or is no bound.
    """
    from ..errors import BoundError

    marked = [item for item in items if item.get_closest_marker(MARKER) is not None]
    try:
        for item in marked:
            if config.stash[SETTINGS].bounds or any(m.args or m.kwargs for m in item.iter_markers(MARKER)):
                bounds_of(item)
    except BoundError as error:
        raise pytest.UsageError(str(error)) from None


def bounds_of(item: pytest.Item) -> dict[str, Bound]:
    """Return the bounds of a test by measure: nearest marker first, then command line, then ini file.

    Raises:
        BoundError: A name is no measure or a value no bound; the message says where it stands.
    """
    from ..checks.bounds import as_bound
    from ..errors import BoundError
    from ..measures import find_measure

    found: dict[str, Bound] = {}
    for name, (bound, where) in item.config.stash[SETTINGS].bounds.items():
        found[find_measure(name, where=where).name] = bound
    for marker in reversed(list(item.iter_markers(MARKER))):
        where = f"the marker of {item.nodeid}"
        if marker.args:
            msg = f"{where} must have bounds by name, as in trainability(log_gain=within(3)). Got {marker.args[0]!r}."
            raise BoundError(msg)
        for name, value in marker.kwargs.items():
            if name not in _MARKER_SETTINGS:
                found[find_measure(name, where=where).name] = as_bound(value, measure=name, where=where)
    return found


def marker_settings(item: pytest.Item) -> dict[str, Any]:
    """Return ``seeds``, ``device`` and ``dtype`` that markers set, the nearest winning."""
    found: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers(MARKER))):
        found.update({name: value for name, value in marker.kwargs.items() if name in _MARKER_SETTINGS})
    return found
