"""Which tests measure, and whether their markers can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .extensions import load_measures
from .options import PARSERS, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..checks.bounds import Bound

__all__ = [
    "MARKER",
    "MEASURING",
    "bounded_on_the_command_line",
    "bounds_of",
    "mark_users",
    "marker_settings",
    "refuse_unmeasured",
    "tolerances_of",
    "usage_error_of_worker",
    "validate_markers",
]

MARKER = "trainability"
MEASURING = pytest.StashKey[bool]()
"""Whether a test of this session measures."""
_PRESET = "preset"
_MARKER_SETTINGS = ("seeds", "device", "dtype", _PRESET)
_TOLERANCES = "tolerances"


def mark_users(item: pytest.Item) -> None:
    """Give a test that uses the fixture the marker."""
    if MARKER in getattr(item, "fixturenames", ()) and item.get_closest_marker(MARKER) is None:
        item.add_marker(MARKER)


def validate_markers(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Check every bound and setting that a test is subject to.

    Raises:
        pytest.UsageError: A marker or setting names no measure, is no bound or cannot be used.
    """
    from ..errors import UsageError

    config.stash[MEASURING] = any(item.get_closest_marker(MARKER) is not None for item in items)
    try:
        if config.stash[MEASURING]:
            load_measures(config)
        for item in items:
            if any(marker.args or marker.kwargs for marker in item.iter_markers(MARKER)):
                marker_settings(item)
                bounds_of(item)
                tolerances_of(item)
            elif item.get_closest_marker(MARKER) is not None:
                if config.stash[SETTINGS].bounds or config.stash[SETTINGS].preset:
                    bounds_of(item)
                if config.stash[SETTINGS].tolerances:
                    tolerances_of(item)
    except UsageError as error:
        if hasattr(config, "workeroutput"):
            config.workeroutput[_WORKER_ERROR] = str(error)
        raise pytest.UsageError(str(error)) from None


_WORKER_ERROR = "trainability_usage_error"


def usage_error_of_worker(node: Any) -> None:
    """Raise what a worker of xdist refused; by itself it would be reported as an internal error.

    Raises:
        pytest.UsageError: The worker's.
    """
    message = getattr(node, "workeroutput", {}).get(_WORKER_ERROR)
    if message:
        raise pytest.UsageError(message)


def refuse_unmeasured(item: pytest.Item, *, judged: bool) -> None:
    """Fail a test whose own marker has bounds that were judged on nothing.

    Markers of classes and modules may stand above tests that do not measure.
    """
    own = [marker for marker in item.own_markers if marker.name == MARKER]
    if not judged and any(_is_bound(name) or name == _PRESET for marker in own for name in marker.kwargs):
        pytest.fail(
            "the bounds of the trainability marker must be judged on a model. This test measured none: take the fixture "
            "as an argument and call trainability(model, inputs); what a sweep returns has a check() of its own.",
            pytrace=False,
        )


_ARGUMENTS = {
    "alignment",
    "classes",
    "exponents",
    "inputs",
    "loss",
    "model",
    "name",
    "optimizer",
    "steps",
    "target",
    "train",
    "warmup",
}
"""Of the fixture, which a marker cannot hold."""


def _is_bound(name: str) -> bool:
    """Whether a keyword of the marker is a bound."""
    return name not in {*_MARKER_SETTINGS, _TOLERANCES}


def bounds_of(item: pytest.Item) -> dict[str, Bound]:
    """Return the bounds of a test by measure: nearest marker first, then command line, then ini file, then a preset's.

    Raises:
        BoundError: A name is no measure or a value no bound; the message says where it stands.
    """
    from ..checks.bounds import as_bound
    from ..checks.presets import find_preset
    from ..errors import BoundError
    from ..measures import find_measure

    preset = marker_settings(item).get(_PRESET, item.config.stash[SETTINGS].preset)
    found = find_preset(preset) if preset else {}
    for name, (bound, where) in item.config.stash[SETTINGS].bounds.items():
        found[find_measure(name, where=where).name] = bound
    for marker in reversed(list(item.iter_markers(MARKER))):
        where = f"the marker of {item.nodeid}"
        if marker.args:
            msg = f"{where} must have bounds by name, as in trainability(log_gain=within(3)). Got {marker.args[0]!r}."
            raise BoundError(msg)
        for name, value in marker.kwargs.items():
            if _is_bound(name):
                found[find_measure(name, where=where).name] = as_bound(value, measure=name, where=where)
    return found


def bounded_on_the_command_line(item: pytest.Item) -> frozenset[str]:
    """Return the measures that this session bounds, and neither a marker nor the ini file does."""
    settings = item.config.stash[SETTINGS]
    marked = {name for marker in item.iter_markers(MARKER) for name in marker.kwargs}
    return frozenset(settings.bounds) - settings.bounded_in_ini - marked


def marker_settings(item: pytest.Item) -> dict[str, Any]:
    """Return ``seeds``, ``device``, ``dtype`` and ``preset`` that markers set, the nearest winning.

    Raises:
        UsageError: One cannot be used; the message names the test.
    """
    from ..errors import UsageError

    found: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers(MARKER))):
        for name, value in marker.kwargs.items():
            if name in _MARKER_SETTINGS:
                try:
                    found[name] = value if name == _PRESET and value is None else PARSERS[name](value)
                except UsageError as error:
                    msg = f"the marker of {item.nodeid}: {error}"
                    raise UsageError(msg) from None
            elif name in _ARGUMENTS:
                msg = (
                    f"the marker of {item.nodeid} must have bounds and {', '.join(_MARKER_SETTINGS)}. {name!r} is an argument of "
                    f"the fixture: trainability(model, inputs, {name}={value!r})."
                )
                raise UsageError(msg)
    return found


def tolerances_of(item: pytest.Item) -> dict[str, float]:
    """Return by how much measures may differ from their baselines: nearest marker first, then command line, then ini file.

    Raises:
        UsageError: A name is no measure or a value no number; the message says where it stands.
    """
    from ..checks.tolerances import as_tolerance
    from ..errors import UsageError
    from ..measures import find_measure

    found: dict[str, float] = {}
    for name, (value, where) in item.config.stash[SETTINGS].tolerances.items():
        found[find_measure(name, where=where).name] = value
    for marker in reversed(list(item.iter_markers(MARKER))):
        where = f"the marker of {item.nodeid}"
        given = marker.kwargs.get(_TOLERANCES, {})
        if not isinstance(given, dict):
            msg = f"{where} must have tolerances by measure, as in tolerances={{'log_gain': 0.5}}. Got {given!r}."
            raise UsageError(msg)
        for name, value in given.items():
            found[find_measure(name, where=where).name] = as_tolerance(value, measure=name, where=where)
    return found
