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
    from .options import Settings

__all__ = [
    "MARKER",
    "MEASURING",
    "bounded_on_command_line_only",
    "bounds_of",
    "is_bound",
    "mark_users",
    "marker_settings",
    "refuse_invalid",
    "refuse_unmeasured",
    "tolerances_of",
    "usage_error_of_worker",
    "validate_markers",
]

MARKER = "trainability"
FIXTURES = frozenset((MARKER, "trainability_factory"))
"""Fixtures that measure."""
MEASURING = pytest.StashKey[bool]()
"""Whether a test of this session measures."""
INVALID = pytest.StashKey["tuple[str, ...]"]()
"""What is invalid in the markers of a test."""
_PRESET = "preset"
_MARKER_SETTINGS = ("seeds", "device", "dtype", _PRESET)
_TOLERANCES = "tolerances"


def mark_users(item: pytest.Item) -> None:
    """Give a test that uses the fixture the marker.

    A test can also take the fixture while it runs, by ``request.getfixturevalue("trainability")``, or in a doctest by
    ``getfixture("trainability")``. Such a call in the test or in one of its fixtures is found in their code.
    """
    takes = FIXTURES.intersection(getattr(item, "fixturenames", ()))
    if item.get_closest_marker(MARKER) is None and (takes or _takes_later(item)):
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
    """Whether a function or a function inside it calls ``getfixturevalue`` and holds the name of a fixture that measures."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    if "getfixturevalue" in code.co_names and FIXTURES.intersection(code.co_consts):
        return True
    return any(_names_fixture(part) for part in inner)


def validate_markers(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Validate the settings of the session, and note what is invalid in the markers of each test, which fails for it.

    Raises:
        pytest.UsageError: A bound, preset or tolerance of the command line or of the ini file is invalid.
    """
    from ..errors import UsageError
    from ..records.text import visible

    measuring = [item for item in items if item.get_closest_marker(MARKER) is not None]
    config.stash[MEASURING] = bool(measuring)
    if not measuring:
        return
    try:
        load_measures(config)
        _validate_settings(config.stash[SETTINGS])
    except UsageError as error:
        if hasattr(config, "workeroutput"):
            config.workeroutput[_WORKER_ERROR] = visible(str(error))
        raise pytest.UsageError(visible(str(error))) from None
    for item in measuring:
        item.stash[INVALID] = _invalid(item)


def _validate_settings(settings: Settings) -> None:
    """Validate the names in bounds, preset and tolerances.

    Raises:
        UsageError: A name is unknown.
    """
    from ..checks.presets import find_preset
    from ..measures import find_measure

    for name, (_, where) in (*settings.bounds.items(), *settings.tolerances.items()):
        find_measure(name, where=where)
    if settings.preset:
        find_preset(settings.preset)


def _invalid(item: pytest.Item) -> tuple[str, ...]:
    """Return a message for each keyword of a test's markers that is invalid."""
    invalid = (message for keyword in _keywords(item) if (message := _invalid_keyword(item, *keyword)))
    return tuple(dict.fromkeys(invalid))


def _invalid_keyword(item: pytest.Item, name: str | None, value: Any) -> str:
    """Return what is invalid about a keyword of a marker; empty if it is valid."""
    from ..errors import UsageError
    from ..records.text import short_text, visible

    try:
        for read in (_read_setting, _read_bound, _read_tolerances):
            read(item, name, value)
    except UsageError as error:
        return visible(str(error))
    except Exception as error:
        text = f"{type(error).__name__}: {short_text(error)}"
        return visible(f"the marker of {item.nodeid} has a value that cannot be read: {text}")
    return ""


def refuse_invalid(item: pytest.Item) -> None:
    """Fail a test whose markers have an invalid bound, setting or tolerance; the message lists all of them."""
    if invalid := item.stash.get(INVALID, ()):
        pytest.fail("\n".join(invalid), pytrace=False)


def _keywords(item: pytest.Item) -> list[tuple[str | None, Any]]:
    """Return the keywords of a test's markers, the nearest marker last; positional arguments have no name."""
    found: list[tuple[str | None, Any]] = []
    for marker in reversed(list(item.iter_markers(MARKER))):
        found += [*((None, argument) for argument in marker.args), *marker.kwargs.items()]
    return found


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
    if not judged and any(is_bound(name) or name == _PRESET for marker in own for name in marker.kwargs):
        pytest.fail(
            "the bounds of the trainability marker must be judged on a model. This test has measured no model. Take the fixture "
            "as an argument and call trainability(model, inputs), or trainability(measurement) for one of trainability_factory; "
            "for a size sweep, call check() of its result.",
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


def is_bound(name: str) -> bool:
    """Whether a keyword of the marker is a bound."""
    return name not in {*_MARKER_SETTINGS, _TOLERANCES}


def bounds_of(item: pytest.Item) -> dict[str, Bound]:
    """Return the bounds of a test by measure. The nearest marker wins, then command line, ini file and preset.

    Raises:
        BoundError: A measure is unknown, or a value is not a bound; the message names the place.
    """
    from ..checks.presets import find_preset
    from ..measures import find_measure

    preset = marker_settings(item).get(_PRESET, item.config.stash[SETTINGS].preset)
    found = find_preset(preset) if preset else {}
    for name, (bound, where) in item.config.stash[SETTINGS].bounds.items():
        found[find_measure(name, where=where).name] = bound
    for keyword in _keywords(item):
        found |= _read_bound(item, *keyword)
    return found


def _read_bound(item: pytest.Item, name: str | None, value: Any) -> dict[str, Bound]:
    """Return the bound that a keyword of a marker sets, by its measure.

    Raises:
        BoundError: The measure is unknown, or the value is not a bound.
    """
    from ..checks.bounds import as_bound
    from ..errors import BoundError
    from ..measures import find_measure

    where = f"the marker of {item.nodeid}"
    if name is None:
        msg = f"{where} must have bounds by name, as in trainability(log_gain=within(3)). Got {value!r}."
        raise BoundError(msg)
    if not is_bound(name):
        return {}
    return {find_measure(name, where=where).name: as_bound(value, measure=name, where=where)}


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
    found: dict[str, Any] = {}
    for keyword in _keywords(item):
        found |= _read_setting(item, *keyword)
    return found


def _read_setting(item: pytest.Item, name: str | None, value: Any) -> dict[str, Any]:
    """Return the setting that a keyword of a marker sets.

    Raises:
        UsageError: The value is invalid, or the keyword is an argument of the fixture.
    """
    from ..errors import UsageError

    if name in _MARKER_SETTINGS:
        try:
            return {name: value if name == _PRESET and value is None else PARSERS[name](value)}
        except UsageError as error:
            msg = f"the marker of {item.nodeid}: {error}"
            raise UsageError(msg) from None
    if name in _ARGUMENTS:
        msg = (
            f"the marker of {item.nodeid} can set bounds, {', '.join(_MARKER_SETTINGS)} and {_TOLERANCES}. "
            f"{name!r} is an argument of the fixture: trainability(model, inputs, {name}={value!r})."
        )
        raise UsageError(msg)
    return {}


def tolerances_of(item: pytest.Item) -> dict[str, float]:
    """Return the tolerances of comparisons with the baseline. The nearest marker wins, then command line and ini file.

    Raises:
        UsageError: A measure is unknown, or a value is not a tolerance; the message names the place.
    """
    from ..measures import find_measure

    found: dict[str, float] = {}
    for name, (value, where) in item.config.stash[SETTINGS].tolerances.items():
        found[find_measure(name, where=where).name] = value
    for keyword in _keywords(item):
        found |= _read_tolerances(item, *keyword)
    return found


def _read_tolerances(item: pytest.Item, name: str | None, given: Any) -> dict[str, float]:
    """Return the tolerances that a keyword of a marker sets, by measure.

    Raises:
        UsageError: A measure is unknown, or a value is not a tolerance.
    """
    from ..checks.tolerances import as_tolerance
    from ..errors import UsageError
    from ..measures import find_measure

    where = f"the marker of {item.nodeid}"
    if name != _TOLERANCES:
        return {}
    if not isinstance(given, dict):
        msg = f"{where} must have tolerances by measure, as in tolerances={{'log_gain': 0.5}}. Got {given!r}."
        raise UsageError(msg)
    return {
        find_measure(of, where=where).name: as_tolerance(value, measure=of, where=where) for of, value in given.items()
    }
