"""The ``trainability`` fixture: measure a model in a test."""

from __future__ import annotations

import os
import re
import shlex
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pytest

from .baselines import BASELINES
from .collected import node_id
from .collection import bounded_on_command_line_only, bounds_of, marker_settings, tolerances_of
from .extensions import added_environment, chosen_steps
from .options import SETTINGS, options_given
from .paths import relative_path
from .progress import PROGRESS
from .randomness import seeded_late_user
from .report_files import is_detailed
from .swallowed import UNEXPECTED, Unexpected
from .unmeasured import NOT_MEASURED, cause_in_user_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from ..checks.bounds import Bound
    from ..measurement import Measurement
    from ..measurement.initialization import Initialization
    from ..records.reports import CheckRecord
    from ..scaling import Scaling
    from ..scaling.arguments import Along

__all__ = [
    "CALLED",
    "COMMAND",
    "JUDGED",
    "MEASUREMENTS",
    "RECORDS",
    "TAKEN",
    "Trainability",
    "context_settings",
    "explain_assertions",
    "trainability",
    "with_settings",
]

TAKEN = pytest.StashKey[bool]()
"""Whether a test has taken the fixture."""
CALLED = pytest.StashKey[bool]()
"""Whether a test has called the fixture, or made a size sweep with it."""
JUDGED = pytest.StashKey[bool]()
"""Whether the bounds of a test's marker were judged on at least one model. The result of a size sweep is checked separately."""
MEASUREMENTS = pytest.StashKey["list[Measurement]"]()
"""The measurements of a test, until its report is made."""
COMMAND = pytest.StashKey["list[str]"]()
"""Options that make the test, of one that is made by options."""
RECORDS = pytest.StashKey["dict[str, CheckRecord]"]()
"""The records of a test, by the name of the measurement."""


_MISSING = object()
"""Stands for inputs that are not given."""


@pytest.fixture
def trainability(request: pytest.FixtureRequest) -> Iterator[Trainability]:
    """``trainability(model, inputs)`` measures a model, judges the bounds of the test's marker and returns the measurement."""
    with seeded_late_user(request.node):
        request.node.stash[TAKEN] = True
        yield Trainability(request.node)


class Trainability:
    """Measures the models of one test; the type of the fixture ``trainability``."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def __call__(
        self,
        model: nn.Module | type[nn.Module] | Callable[[], nn.Module] | Measurement,
        inputs: Any = _MISSING,
        **options: Any,
    ) -> Measurement:
        """Measure a model, and judge the bounds of the call, the test's marker, the command line and the ini file.

        >>> trainability(Net, batch, log_gain=within(3))  # doctest: +SKIP

        Args:
            model: A factory, which is called once per seed; a finished module; or a measurement of ``trainability_factory``,
                which is judged without further runs.
            inputs: The batch, or a function that draws one from a generator. A measurement has its inputs.
            **options: Further arguments of :func:`pytest_trainability.measure`, and bounds by measure as in
                :meth:`Measurement.check`, which take precedence over other bounds. Defaults of ``seeds``, ``device`` and
                ``dtype`` are the values of the nearest marker, the command line or the ini file.

        Returns:
            The measurement.

        Raises:
            TrainabilityFailure: A bound of the call, the test's marker, the command line or the ini file does not hold.
        """
        __tracebackhide__ = True
        from ..errors import TrainabilityError
        from ..measurement import Context, Measurement, measure_in

        self._item.stash[CALLED] = True
        try:
            own = self._bounds_among(options)
            bounds = {**bounds_of(self._item), **own}
            if isinstance(model, Measurement):
                measurement = self._of_this_test(model, inputs, options)
            else:
                _refuse_missing(inputs)
                given = self._with_settings(options)
                # Suggestions rest on all seeds.
                until = {} if self._item.config.stash[SETTINGS].suggest else bounds
                by_default = options.get("seeds", marker_settings(self._item).get("seeds")) is None
                context = self._context(Context, given.get("name"), seeds_by_default=by_default)
                measurement = measure_in(context, model, inputs, until=until, **given)
        except TrainabilityError as error:
            # The message describes the error, and the cause has the traceback of the model; frames of this package do not help.
            raise error.with_traceback(None) from cause_in_user_code(error)
        except Exception as error:
            self._item.stash.setdefault(NOT_MEASURED, []).append(error)
            raise
        self._item.stash[JUDGED] = True
        known = self._item.stash.setdefault(MEASUREMENTS, [])
        if not any(measurement is one for one in known):
            known.append(measurement)
        if bounds:
            try:
                measurement.check(preset=None, **bounds)
            except TrainabilityError as error:
                raise error.with_traceback(None) from cause_in_user_code(error)
        return measurement

    def initialization(
        self,
        model: nn.Module | type[nn.Module] | Callable[[], nn.Module],
        *,
        seeds: int | Sequence[int] | None = None,
        name: str | None = None,
    ) -> Initialization:
        """Return the parameters of a model at initialization, for a check against a contract. The model is never run.

        Each check is listed in the terminal section. Bounds of the marker, the command line and the ini file are not judged here.

        Args:
            model: A factory, which is called once per seed, or a finished module.
            seeds: Number of seeds, or the seeds themselves. By default the value of the nearest marker, the command line or the
                ini file.
            name: Name of the model in messages.

        Returns:
            An object whose method ``check(contract)`` fails the test if the contract does not hold.

        Raises:
            UsageError: An argument has an invalid value.
        """
        __tracebackhide__ = True
        from ..errors import TrainabilityError
        from ..measurement import Context
        from ..measurement.initialization import initialization_in

        self._item.stash[CALLED] = True
        given = self._with_settings({"seeds": seeds, "name": name})
        try:
            return initialization_in(partial(self._context, Context), model, seeds=given["seeds"], name=given["name"])
        except TrainabilityError as error:
            raise error.with_traceback(None) from cause_in_user_code(error)

    def width_sweep(
        self, build: Callable[[int], nn.Module], widths: Sequence[int], inputs: Any = None, **arguments: Any
    ) -> Scaling:
        """Measure models of several widths.

        Bounds of the marker, the command line and the ini file apply to single models. They are not judged here.

        Args:
            build: A function that builds a model of a width.
            widths: The widths.
            inputs: The batch, or a function that draws one from a generator.
            **arguments: Further arguments of :func:`pytest_trainability.width_sweep`.

        Returns:
            The values by width, and the slope, which ``check()`` judges.
        """
        __tracebackhide__ = True
        return self._sweep("width", build, widths, inputs, arguments)

    def depth_sweep(
        self, build: Callable[[int], nn.Module], depths: Sequence[int], inputs: Any = None, **arguments: Any
    ) -> Scaling:
        """Measure models of several depths: the same as :meth:`width_sweep`, with depths in place of widths."""
        __tracebackhide__ = True
        return self._sweep("depth", build, depths, inputs, arguments)

    def _sweep(self, along: Along, build: Any, sizes: Any, inputs: Any, arguments: dict[str, Any]) -> Scaling:
        __tracebackhide__ = True
        from ..errors import TrainabilityError
        from ..measurement import Context
        from ..scaling import size_sweep_in

        self._item.stash[CALLED] = True
        given = self._with_settings(arguments)
        try:
            return size_sweep_in(self._context(Context, given.get("name")), along, build, sizes, inputs, **given)
        except TrainabilityError as error:
            raise error.with_traceback(None) from cause_in_user_code(error)
        except Exception as error:
            self._item.stash.setdefault(NOT_MEASURED, []).append(error)
            raise

    def _of_this_test(self, shared: Measurement, inputs: Any, options: Mapping[str, Any]) -> Measurement:
        """Return a measurement as one of this test, in whose name it is reported. Nothing is run.

        Raises:
            UsageError: There are further arguments than bounds and a name.
        """
        from ..errors import UsageError
        from ..measurement import Context

        further = [*([] if inputs is _MISSING else ["inputs"]), *(name for name in options if name != "name")]
        if further:
            msg = (
                f"a measurement that has been made is only judged again. It does not take {', '.join(further)}: pass them where "
                "it is measured."
            )
            raise UsageError(msg)
        known = (one for one in self._item.stash.get(MEASUREMENTS, []) if one.runs_identity == shared.runs_identity)
        return next(known, None) or shared.in_context(self._context(Context, options.get("name")))

    def _bounds_among(self, options: dict[str, Any]) -> dict[str, Bound]:
        """Take the bounds out of the keyword arguments of a call, and return them by measure."""
        from ..checks.bounds import as_bound
        from ..measures import MEASURES

        where = f"trainability() in {node_id(self._item)}"
        names = [name for name in options if name in MEASURES]
        return {name: as_bound(options.pop(name), measure=name, where=where) for name in names}

    def _with_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, with seeds, device and dtype from the nearest marker, command line or ini file."""
        return with_settings(self._item.config, given, marker_settings(self._item))

    def _context(self, context: Callable[..., Any], name: str | None, **further: Any) -> Any:
        """Return the context of a measurement: its name within the test, the settings, and the receivers of its results."""
        records = self._item.stash.setdefault(RECORDS, {})
        if getattr(getattr(self._item, "obj", None), "is_hypothesis_test", False):
            # One line for all examples. The last example is the smallest failing one, if any fails.
            key = name or ""
        else:
            key = name or (f"measurement {len(records) + 1}" if records else "")
            while key in records:
                key += "'"

        def keep(record: CheckRecord) -> None:
            records[key] = record
            self._item.stash[UNEXPECTED].note(key, record)

        command = self._command()
        file, line = place_of(self._item)
        return context(
            test=node_id(self._item),
            name=key,
            report=keep,
            reproduce=command,
            tolerances=tolerances_of(self._item),
            bounded_on_command_line_only=bounded_on_command_line_only(self._item),
            baseline=partial(self._item.config.stash[BASELINES].check, self._item, command, key),
            expects_baseline=self._item.config.stash[BASELINES].expects(self._item),
            file=file,
            line=line,
            **context_settings(self._item.config),
            **further,
        )

    def _command(self) -> str:
        """Return the command that runs this test alone, from the folder in which this session was started."""
        config = self._item.config
        if (command := self._item.stash.get(COMMAND, None)) is not None:
            return shlex.join(["pytest", *command, *options_given(config)])
        _, separator, name = node_id(self._item).partition("::")
        file = relative_path(self._item.path, config.invocation_params.dir)
        return shlex.join(["pytest", f"{file}{separator}{name}", *options_given(config)])


def with_settings(config: pytest.Config, given: Mapping[str, Any], marked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call, with seeds, device and dtype of the marker, the command line or the ini file.

    Args:
        config: The session.
        given: Arguments of the call.
        marked: Settings of the marker.
    """
    from ..records.reports import plain

    settings = config.stash[SETTINGS]
    set_elsewhere = {
        name: _first(given.get(name), marked.get(name), getattr(settings, name))
        for name in ("seeds", "device", "dtype")
    }
    return {**given, **set_elsewhere, "name": None if given.get("name") is None else plain(given["name"])}


def context_settings(config: pytest.Config) -> dict[str, Any]:
    """Return the parts of a context that all measurements of a session share."""
    worker = re.search(r"\d+$", os.environ.get("PYTEST_XDIST_WORKER", ""))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    settings = config.stash[SETTINGS]
    return {
        "worker": int(worker[0]) if worker else 0,
        "threads": max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None,
        "confidence": settings.confidence,
        "watch": config.stash[PROGRESS].watch,
        "full": config.getoption("verbose", default=0) > 0,
        "cure": settings.cure,
        "choose_steps": partial(chosen_steps, config),
        "environment": partial(added_environment, config),
        "detailed": is_detailed(config),
    }


def _refuse_missing(inputs: Any) -> None:
    """Refuse a call without inputs.

    Raises:
        UsageError: They are missing.
    """
    if inputs is _MISSING:
        from ..errors import UsageError

        msg = "trainability() needs the inputs of the model: trainability(model, inputs)."
        raise UsageError(msg)


def place_of(item: pytest.Item) -> tuple[str, int]:
    """Return the path of a test's file, relative to the root of the session, and its line, counted from 1; 0 if unknown."""
    file, line, _ = item.location
    return PurePath(file).as_posix(), 0 if line is None else line + 1


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)


def explain_assertions(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Let the measurements of a test that failed by a plain assertion report the likely cause, and let go of them.

    A check of a bound has explained its failure before it was raised.
    """
    measurements = item.stash.get(MEASUREMENTS, [])
    if measurements and call.excinfo is not None and call.excinfo.errisinstance(AssertionError):
        for measurement in measurements:
            measurement.explain_failure()
        # The report of the causes is no new failure.
        item.stash[UNEXPECTED] = Unexpected()
    if measurements and call.when != "setup":
        item.stash[MEASUREMENTS] = []
