"""The markers of tests that measure: bounds, settings and tolerances, and their validation."""

from __future__ import annotations

import inspect
from types import CodeType
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
    "bounded_on_command_line_only",
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
    """Give a test that uses the fixture the marker.

    A test can also take the fixture while it runs, by ``request.getfixturevalue("trainability")``, or in a doctest by
    ``getfixture("trainability")``. Such a call in the test or in one of its fixtures is found in their code.
    """
    if item.get_closest_marker(MARKER) is None and (MARKER in getattr(item, "fixturenames", ()) or _takes_later(item)):
        item.add_marker(MARKER)


def _takes_later(item: pytest.Item) -> bool:
    """Whether the code of a test names the fixture in a call that takes a fixture while the test runs."""
    doctest = getattr(item, "dtest", None)
    if doctest is not None:
        return any(MARKER in example.source and "getfixture" in example.source for example in doctest.examples)
    if not isinstance(item, pytest.Function):
        return False
    fixtures = (fixture for found in item._fixtureinfo.name2fixturedefs.values() for fixture in found)
    functions = (item.obj, *(fixture.func for fixture in fixtures))
    codes = (getattr(inspect.unwrap(function), "__code__", None) for function in functions)
    return any(_names_fixture(code) for code in codes if code is not None)


def _names_fixture(code: CodeType) -> bool:
    """Whether a function or a function inside it calls ``getfixturevalue`` and holds the name of the fixture."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    if "getfixturevalue" in code.co_names and MARKER in code.co_consts:
        return True
    return any(_names_fixture(part) for part in inner)


def validate_markers(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Validate every bound, setting and tolerance that applies to a test.

    Raises:
        pytest.UsageError: A measure is unknown, or a bound, setting or tolerance is invalid.
    """
    from ..errors import UsageError
    from ..records.text import visible

    config.stash[MEASURING] = any(item.get_closest_marker(MARKER) is not None for item in items)
    try:
        if config.stash[MEASURING]:
            load_measures(config)
        for item in items:
            _validate(item)
    except UsageError as error:
        if hasattr(config, "workeroutput"):
            config.workeroutput[_WORKER_ERROR] = visible(str(error))
        raise pytest.UsageError(visible(str(error))) from None


def _validate(item: pytest.Item) -> None:
    """Validate everything that applies to one test.

    Raises:
        UsageError: A bound, setting or tolerance is invalid, or a value of a marker raises an error when it is read.
    """
    from ..errors import UsageError
    from ..records.text import short_text

    settings = item.config.stash[SETTINGS]
    try:
        if any(marker.args or marker.kwargs for marker in item.iter_markers(MARKER)):
            marker_settings(item)
            bounds_of(item)
            tolerances_of(item)
        elif item.get_closest_marker(MARKER) is not None:
            if settings.bounds or settings.preset:
                bounds_of(item)
            if settings.tolerances:
                tolerances_of(item)
    except UsageError:
        raise
    except Exception as error:
        msg = (
            f"the marker of {item.nodeid} has a value that cannot be read: {type(error).__name__}: {short_text(error)}"
        )
        raise UsageError(msg) from error


_WORKER_ERROR = "trainability_usage_error"


def usage_error_of_worker(node: Any) -> None:
    """Raise the usage error of an xdist worker, which xdist would report as an internal error.

    Raises:
        pytest.UsageError: The worker has refused a marker or setting.
    """
    message = getattr(node, "workeroutput", {}).get(_WORKER_ERROR)
    if message:
        raise pytest.UsageError(message)


def refuse_unmeasured(item: pytest.Item, *, taken: bool, called: bool, judged: bool) -> None:
    """Fail a test that has bounds if no model was judged.

    Bounds of a class, a module, the ini file or the command line also apply to tests that do not measure, and to size sweeps.
    They count if the test takes the fixture and never calls it.

    Args:
        item: The test.
        taken: Whether the test has taken the fixture.
        called: Whether the test has called the fixture, or made a size sweep with it.
        judged: Whether a model was measured by a call of the fixture.
    """
    own = [marker for marker in item.own_markers if marker.name == MARKER]
    if not judged and any(_is_bound(name) or name == _PRESET for marker in own for name in marker.kwargs):
        pytest.fail(
            "the bounds of the trainability marker must be judged on a model. This test has measured no model. Take the fixture "
            "as an argument and call trainability(model, inputs); for a size sweep, call check() of its result.",
            pytrace=False,
        )
    if taken and not called and (bounds := bounds_of(item)):
        pytest.fail(
            f"the bounds that apply to this test must be judged on a model: {', '.join(bounds)}. This test takes the fixture "
            "and has not called it. Call trainability(model, inputs), or leave the fixture out.",
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
"""Arguments of the fixture, which a marker cannot set."""


def _is_bound(name: str) -> bool:
    """Whether a keyword of the marker is a bound."""
    return name not in {*_MARKER_SETTINGS, _TOLERANCES}


def bounds_of(item: pytest.Item) -> dict[str, Bound]:
    """Return the bounds of a test by measure. The nearest marker wins, then command line, ini file and preset.

    Raises:
        BoundError: A measure is unknown, or a value is not a bound; the message names the place.
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


def bounded_on_command_line_only(item: pytest.Item) -> frozenset[str]:
    """Return the measures that the command line bounds, and neither a marker nor the ini file."""
    settings = item.config.stash[SETTINGS]
    marked = {name for marker in item.iter_markers(MARKER) for name in marker.kwargs}
    return frozenset(settings.bounds) - settings.bounded_in_ini - marked


def marker_settings(item: pytest.Item) -> dict[str, Any]:
    """Return the values of ``seeds``, ``device``, ``dtype`` and ``preset`` that markers set. The nearest marker wins.

    Raises:
        UsageError: A value is invalid; the message names the test.
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
                    f"the marker of {item.nodeid} can set bounds, {', '.join(_MARKER_SETTINGS)} and {_TOLERANCES}. "
                    f"{name!r} is an argument of the fixture: trainability(model, inputs, {name}={value!r})."
                )
                raise UsageError(msg)
    return found


def tolerances_of(item: pytest.Item) -> dict[str, float]:
    """Return the tolerances of comparisons with the baseline. The nearest marker wins, then command line and ini file.

    Raises:
        UsageError: A measure is unknown, or a value is not a tolerance; the message names the place.
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
