"""Write a first test of a model: bounds that its numbers support, its initialization contract and its baseline."""

from __future__ import annotations

import argparse
import functools
import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TrainabilityError, TrainabilityFailure, UsageError
from ..report.starter import RESERVED, Starter, test_module, toml_table
from ..report.suggestions import SuggestedBound, suggested_bounds
from .arguments import DIFFERS, PROGRAM, Subparsers, declared, emit, say, write
from .plugins import chosen_steps
from .progress import StatusLine, status_line
from .subject import add_subject_arguments, subject

if TYPE_CHECKING:
    from ..measurement import Measurement
    from ..sources.requests import Request
    from ..sources.sample import Sample

__all__ = ["declare", "start"]

GATE, PROJECT = "trainability.toml", "pyproject.toml"
"""Files whose tables are tests."""
SEEDS = 8
"""Number of seeds by default. More of them than in other measurements, as they justify the bounds."""
ASKED = (
    "excess_loss",
    "duplicate_parameters",
    "uninitialized_parameters",
    "unregistered_parameters",
    "asleep_parameters",
)
"""Measures of the written test beyond those of every measurement, where they apply to the model."""
GENERIC = frozenset({"build", "create", "factory", "get", "get_model", "make", "make_model", "model", "net", "network"})
"""Names of factories that say nothing about the model. The name of their module does."""


def declare(commands: Subparsers) -> None:
    """Declare the command ``start``."""
    text = (
        "Measure a model and write a first test of it: bounds with their reasons, initialization contract and baseline."
    )
    command = declared(commands, "start", text, "start package.module:build --input 8x3x32x32", start)
    add_subject_arguments(command, seeds=SEEDS)
    command.add_argument(
        "--preset", default="", metavar="FAMILY", help="Also bounds of a family: mlp, cnn, transformer or rnn."
    )
    command.add_argument("--name", default="", help="Name of the test (default: that of the model).")
    command.add_argument(
        "--toml", action="store_true", help="Write a table of trainability.toml instead of a test module."
    )
    command.add_argument(
        "--output",
        default="",
        metavar="FILE",
        help="File to write (default: tests/test_trainability_NAME.py, or a further table of trainability.toml); - prints.",
    )


def start(options: argparse.Namespace) -> int:
    """Measure a model, and write a test that it passes."""
    name = _identifier(options.name or _name_of(options.model))
    target = _target(options, name)
    _refuse_existing(target, options, name)
    with status_line(f"building {options.model}") as status:
        request, takes_tokens = _watched(subject(options))
        measurement = _measured(request, options, status)
    try:
        bounds = _judged(measurement, options.preset)
    except TrainabilityFailure as failure:
        say(
            f"{PROGRAM}: {options.model} fails the preset {options.preset!r}. A gate begins with a healthy model:",
            sys.stderr,
        )
        for line in str(failure).splitlines():
            say(line, sys.stderr)
        return DIFFERS
    code = _Code(options, target, request.sample, takes_tokens=bool(takes_tokens))
    starter = _starter(request, code, options, name, bounds, measurement)
    if target is None:
        emit(_text(starter, options, target))
    else:
        _refuse_existing(target, options, name)
        _written(target, starter, options)
        _record(target, name if options.toml else f"test_{name}", measurement)
    if not options.preset:
        _say_if_unhealthy(request, options.model, measurement)
    return 0


def _say_if_unhealthy(request: Request, model: str, measurement: Measurement) -> None:
    """Say so if the command ``look`` finds that bounds of the model's family do not hold.

    The measurement takes over these bounds. So its baseline must have been recorded.
    """
    from ..checks.presets import find_preset
    from ..sources.families import family_of_source

    preset, reason = family_of_source(request.sample)
    try:
        measurement.check(preset=None, **find_preset(preset))
    except TrainabilityFailure:
        say(
            f"{model} fails the preset {preset!r} ({reason}). The test guards it as it is. The command look explains what fails.",
            sys.stderr,
        )


def _watched(request: Request) -> tuple[Request, set[str]]:
    """Return the request, and a set that gets a member when its loss gets what torch's own cross-entropy does not take."""
    from ..sources.losses import cross_entropy, suits_torch

    found: set[str] = set()
    if request.loss is not cross_entropy:
        return request, found

    @functools.wraps(cross_entropy)
    def watched(output: Any, target: Any) -> Any:
        if not suits_torch(output, target):
            found.add("scores of tokens")
        return cross_entropy(output, target)

    return replace(request, loss=watched), found


def _name_of(model: str) -> str:
    """Return the name of the model, or that of its module if the factory has a generic name."""
    place, _, name = model.rpartition(":")
    return place.rpartition(".")[2] or name if name.lower() in GENERIC else name


def _identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower() or "model"


def _target(options: argparse.Namespace, name: str) -> Path | None:
    """Return the file to write; None to print.

    Raises:
        UsageError: pytest would not collect a table in this file.
    """
    if options.output == "-":
        return None
    if options.output:
        if options.toml and Path(options.output).name not in {GATE, PROJECT}:
            msg = f"--toml must write into {GATE} or {PROJECT}, which pytest collects. Got {options.output}."
            raise UsageError(msg)
        return Path(options.output)
    return Path(GATE) if options.toml else Path("tests", f"test_trainability_{name}.py")


def _refuse_existing(target: Path | None, options: argparse.Namespace, name: str) -> None:
    """Refuse to overwrite a test, or to measure for a table that cannot be added.

    Raises:
        UsageError: The file exists, has a table of the name, or takes no further table.
    """
    from ..gate.appending import refuse_unusable

    if target is None or not target.exists():
        return
    if not options.toml:
        msg = f"{target} exists, and is never overwritten. Choose another file: --output FILE, or --name NAME."
        raise UsageError(msg)
    refuse_unusable(target, name)


def _measured(request: Request, options: argparse.Namespace, status: StatusLine) -> Measurement:
    from ..checks.presets import find_preset
    from ..measurement import Context, measure_in
    from ..measures import MEASURES

    if options.preset:
        find_preset(options.preset, where="--preset")
    measurement = measure_in(
        Context(test="start", cure="off", expects_baseline=True, watch=status.watch, choose_steps=chosen_steps),
        request.build,
        request.inputs,
        target=request.target,
        loss=request.loss,
        seeds=SEEDS if options.seeds is None else options.seeds,
        steps=options.steps,
    )
    measurement.run([MEASURES[name] for name in ASKED], tolerated=dict.fromkeys(ASKED, TrainabilityError))
    return measurement


def _judged(measurement: Measurement, preset: str) -> tuple[SuggestedBound, ...]:
    """Return the bounds of the test, beyond those of the preset. All of them hold.

    Raises:
        TrainabilityFailure: A bound of the preset does not hold.
        UsageError: The values support no bound.
    """
    from ..checks.presets import find_preset

    defaults = list(find_preset(preset)) if preset else []
    if preset:
        measurement.check(preset=preset)
    suggestions = measurement.suggestions(defaults)
    bounds = tuple(suggested_bounds(suggestions))
    if not bounds and not preset:
        reasons = "; ".join(f"{found.measure}: {found.missing}" for found in suggestions)
        msg = f"the values of {measurement.name} support no bound. {reasons}."
        raise UsageError(msg)
    for found in suggestions:
        if found.missing and found.current is None:
            say(f"{found.measure} gets no bound: {found.missing}", sys.stderr)
    from ..checks.bounds import Bound

    ends = {found.measure: Bound(*found.ends) for found in suggestions if not found.missing}
    written = {bound.measure for bound in bounds}
    measurement.check(preset=preset or None, **{name: bound for name, bound in ends.items() if name in written})
    return bounds


def _starter(
    request: Request,
    code: _Code,
    options: argparse.Namespace,
    name: str,
    bounds: tuple[SuggestedBound, ...],
    measurement: Measurement,
) -> Starter:
    from ..measurement.contracts import checked_rules

    with status_line("reading the initial values"):
        rules, trouble = checked_rules(request.build, measurement.seeds)
    return Starter(
        name=name,
        command=shlex.join([*PROGRAM.split(" "), *_arguments(options)]),
        model=options.model,
        steps=measurement.steps.description,
        seeds=tuple(measurement.seeds),
        bounds=bounds,
        preset=options.preset,
        contract={} if trouble else _plain_rules(rules) if options.toml else rules,
        trouble=trouble,
        imports=tuple(code.imports),
        setup=tuple(code.setup),
        functions=tuple(code.functions),
        arguments=", ".join(code.arguments),
        build=code.build,
        inputs=tuple(options.inputs),
        targets=tuple(options.targets),
        loss=options.loss,
        options=() if options.steps == "auto" else (("steps", options.steps),),
    )


def _plain_rules(rules: dict[str, str]) -> dict[str, str]:
    """Return rules whose numbers are written out, without the name of the module."""
    from ..init.writing import rules_of

    return {pattern: repr(rule).removeprefix("init.") for pattern, rule in rules_of(rules).items()}


def _arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments of the command, without its output."""
    given = ["start", options.model]
    for option, texts in (("--input", options.inputs), ("--target", options.targets)):
        given += [word for text in texts for word in (option, text)]
    defaults = {"loss": "", "preset": "", "seeds": None, "steps": "auto", "name": ""}
    for name, default in defaults.items():
        if (value := getattr(options, name)) != default:
            given += [f"--{name}", value]
    return [*given, *(["--toml"] if options.toml else [])]


class _Code:
    """The parts of a test module that name model, inputs, targets, loss and steps."""

    def __init__(self, options: argparse.Namespace, target: Path | None, sample: Sample, *, takes_tokens: bool) -> None:
        from ..sources.code import Imports, is_found_here_only
        from ..sources.declared import declares_inputs_of_forward
        from ..sources.models import LIBRARIES

        self._imports = Imports(RESERVED)
        self._ours: list[str] = []
        self.functions: list[str] = []
        is_of_library = options.model.partition(":")[0] in LIBRARIES
        if is_of_library or not options.inputs:
            self._ours.append("from pytest_trainability.sources.models import named_model")
            self.functions.append(f"MODEL = named_model({json.dumps(options.model)})")
        is_by_forward = not options.inputs and not options.loss and declares_inputs_of_forward(sample)
        self.build = (
            "MODEL.forward" if is_by_forward else "MODEL.build" if is_of_library else self._imports.name(options.model)
        )
        self.arguments = [self._batch("inputs", options.inputs) if options.inputs else "MODEL.inputs"]
        if options.targets:
            self.arguments.append(f"target={self._batch('targets', options.targets)}")
        if options.loss:
            self.arguments.append(f"loss={self._loss(options.loss, takes_tokens=takes_tokens)}")
        if options.steps != "auto":
            self.arguments.append(f"steps={json.dumps(options.steps, ensure_ascii=False)}")
        self.imports = [*self._ours, *self._imports.lines]
        self.setup = _setup([module for module in self._imports.modules if is_found_here_only(module)], target)

    def _batch(self, name: str, texts: Sequence[str]) -> str:
        """Return the expression of inputs or targets. Those that are drawn become a function."""
        from ..sources.code import inputs_code
        from ..sources.inputs import is_place
        from ..sources.places import imported
        from ..sources.requests import takes_nothing

        if len(texts) == 1 and is_place(texts[0]):
            batch = self._imports.name(texts[0])
            return f"lambda generator: {batch}()" if takes_nothing(imported(texts[0], what=f"the {name}")) else batch
        self.functions.append(f"def {name}(generator):\n    return {inputs_code(texts)}")
        return name

    def _loss(self, text: str, *, takes_tokens: bool) -> str:
        from ..sources.code import loss_code

        if ":" in text:
            return self._imports.name(text)
        if takes_tokens:
            self._ours.append("from pytest_trainability.sources.losses import named_loss")
            return f"named_loss({json.dumps(text)})"
        return loss_code(text)


def _setup(places: Sequence[str], target: Path | None) -> list[str]:
    """Return the lines that let a test find modules of the current folder; none if they are installed."""
    if not places:
        return []
    here = Path.cwd().resolve()
    file = (target or Path("tests", "test.py")).resolve()
    try:
        depth = len(file.relative_to(here).parts) - 1
        folder = f"str(Path(__file__).resolve().parents[{depth}])"
    except ValueError:
        folder = repr(str(here))
    comment = (
        "# The folder of the model. An installed package, or pythonpath in the settings of pytest, needs no such line."
    )
    return [comment, f"sys.path.insert(0, {folder})"]


def _text(starter: Starter, options: argparse.Namespace, target: Path | None) -> str:
    from ..gate.appending import prefix_of

    if not options.toml:
        return test_module(starter)
    return toml_table(starter, prefix=prefix_of(target or Path(GATE)))


def _written(target: Path, starter: Starter, options: argparse.Namespace) -> None:
    """Write the file, or add the table to it, as a whole.

    Raises:
        UsageError: The folder cannot be made.
        ReportError: The file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the folder of {target} must exist or be made. {type(error).__name__}: {error.strerror or error}."
        raise UsageError(msg) from None
    from ..gate.appending import with_table

    text = _text(starter, options, target)
    write(target, with_table(target, text) if options.toml else text)
    say(
        f"{target} written: {_counts(starter)}. Read it, and run pytest {target if not options.toml else ''}".rstrip()
        + "."
    )


def _counts(starter: Starter) -> str:
    parts: Iterable[str] = (
        _number(len(starter.bounds), "bound"),
        f"a contract of {_number(len(starter.contract), 'rule')}" if starter.contract else "no contract",
    )
    return ", ".join(parts)


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _record(target: Path, test: str, measurement: Any) -> None:
    """Record the baseline of the written test."""
    from ..checks.baseline_files import baseline_path, change_baselines, with_entry

    path, entry = baseline_path(target), measurement.baseline_entry()
    change_baselines(path, lambda contents: with_entry(contents, test, measurement.name, entry))
    say(f"{path} written: the baseline. Commit both files.")
