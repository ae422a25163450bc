"""A first look at a model: the whole report, without a test file."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks.statistics import DEFAULT_SEEDS
from .arguments import DIFFERS, PROGRAM, Subparsers, declared, say, write
from .plugins import chosen_steps
from .progress import StatusLine, status_line
from .reports import section_lines
from .subject import add_subject_arguments, subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..checks.bounds import Bound
    from ..measurement import Measurement
    from ..records.reports import CheckRecord
    from ..records.session import Outcome, SessionRecord
    from ..sources.requests import Request

__all__ = ["declare", "look"]


def declare(commands: Subparsers) -> None:
    """Declare the command ``look``."""
    text = "Measure a model and print the whole report. Exit status 1 if a bound of its preset does not hold."
    example = "look package.module:build --input 8x3x224x224"
    command = declared(commands, "look", text, example, look)
    add_subject_arguments(command, seeds=DEFAULT_SEEDS)
    command.add_argument(
        "--preset", default=None, metavar="FAMILY", help="mlp, cnn, transformer or rnn (default: by layers)."
    )
    command.add_argument(
        "--bounds",
        action="append",
        default=[],
        metavar="BOUND",
        help="Bound that replaces the one of the preset, or is added to them, such as 'log_gain = within(3)'. May be given "
        "several times.",
    )
    command.add_argument(
        "--device", default=None, metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps (default: auto)."
    )
    command.add_argument("--dtype", default=None, metavar="DTYPE", help="Floating type (default: unchanged).")
    command.add_argument("--html", type=Path, default=None, metavar="FILE", help="Write the report as a page.")
    command.add_argument("--json", type=Path, default=None, metavar="FILE", help="Write everything as JSON.")


def look(options: argparse.Namespace) -> int:
    """Measure a model, judge the bounds of a preset, and print and write the report."""
    from ..checks.presets import find_preset
    from ..records.session import BAD
    from ..report.formats import report_text
    from ..sources.families import family_of_source

    _refuse_unwritable(options)
    _refuse_unusable(options)
    with status_line(f"building {options.model}") as status:
        request = subject(options)
        own = _own_bounds(options)
        preset, reason = (options.preset, "") if options.preset else family_of_source(request.sample)
        session = _session(options, request, {**find_preset(preset, where="--preset"), **own}, status)
    say(f"preset {preset}: {reason}" if reason else f"preset {preset}")
    for line in section_lines(session, 1):
        say(line)
    for kind in ("html", "json"):
        if (path := getattr(options, kind)) is not None:
            write(path, report_text(kind, session))
            say(f"{path} written")
    return DIFFERS if session.checks[0].status in BAD else 0


def _refuse_unwritable(options: argparse.Namespace) -> None:
    """Refuse to measure for a page that cannot be made, into one file for two reports, or into a folder that does not exist.

    Raises:
        UsageError: Both reports have the same path, or the folder of one does not exist.
    """
    from ..errors import UsageError
    from ..report.formats import html_writer

    for path in (options.html, options.json):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            msg = f"{path} must be a file in a folder that exists."
            raise UsageError(msg)
    if options.html is not None:
        html_writer()
        if options.json is not None and options.html.resolve() == options.json.resolve():
            msg = f"--html and --json must name different files. Both name {options.html}."
            raise UsageError(msg)


def _refuse_unusable(options: argparse.Namespace) -> None:
    """Refuse seeds, devices, types and presets of another form before the model is built.

    Raises:
        TrainabilityError: An option has another form.
    """
    from ..checks.devices import as_device_name
    from ..checks.dtypes import as_dtype_name
    from ..checks.presets import find_preset
    from ..checks.statistics import as_seeds

    as_seeds(options.seeds)
    if options.device is not None:
        as_device_name(options.device)
    if options.dtype is not None:
        as_dtype_name(options.dtype)
    if options.preset is not None:
        find_preset(options.preset, where="--preset")


def _own_bounds(options: argparse.Namespace) -> dict[str, Bound]:
    """Return the bounds of the option, by the name of the measure.

    Raises:
        UsageError: A bound is invalid, or there is no measure of the name.
    """
    from ..checks.bounds import parse_bounds
    from ..measures import find_measure

    found = parse_bounds(options.bounds, where="--bounds")
    return {find_measure(name, where="--bounds").name: bound for name, bound in found.items()}


def _session(
    options: argparse.Namespace, request: Request, bounds: dict[str, Bound], status: StatusLine
) -> SessionRecord:
    """Measure the model, judge the bounds, and return a session with this check alone."""
    from ..errors import TrainabilityFailure
    from ..records.session import CheckOutcome, SessionRecord
    from ..report.environment import environment, now

    records: list[CheckRecord] = []
    measurement = _measurement(options, request, bounds, records.append, status)
    outcome: Outcome = "passed"
    try:
        measurement.check(preset=None, **bounds)
    except TrainabilityFailure:
        outcome = "failed"
    return SessionRecord(
        checks=(CheckOutcome(records[-1], outcome),),
        measured=1,
        environment=environment(shlex.join([*PROGRAM.split(), *sys.argv[1:]]), [records[-1].device]),
        created=now(),
        exit_status=DIFFERS if outcome == "failed" else 0,
    )


def _measurement(
    options: argparse.Namespace,
    request: Request,
    bounds: dict[str, Bound],
    report: Callable[[CheckRecord], None],
    status: StatusLine,
) -> Measurement:
    from ..measurement import Context, measure_in
    from ..sources.requests import pytest_options

    given = {name: getattr(options, name) for name in ("inputs", "targets", "loss", "steps")}
    judged = [f"--trainability-preset={options.preset}"] if options.preset else []
    judged += [f"--trainability-bounds={bound}" for bound in options.bounds]
    context = Context(
        test=f"look::{options.model}",
        report=report,
        reproduce=shlex.join(["pytest", *pytest_options(options.model, **given), *judged]),
        detailed=True,
        watch=status.watch,
        choose_steps=chosen_steps,
    )
    return measure_in(
        context,
        request.build,
        request.inputs,
        until=bounds,
        target=request.target,
        loss=request.loss,
        steps=options.steps,
        seeds=options.seeds,
        device=options.device,
        dtype=options.dtype,
    )
