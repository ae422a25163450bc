"""Write a first test of a model: bounds that its numbers support, its initialization contract and its baseline."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TrainabilityError, TrainabilityFailure, UsageError
from ..report.starter import Starter, test_module, toml_table
from ..report.suggestions import SuggestedBound, suggested_bounds
from .arguments import DIFFERS, PROGRAM, Subparsers, declared, emit, say, write
from .subject import Subject, add_subject_arguments, subject

if TYPE_CHECKING:
    from ..measurement import Measurement

__all__ = ["declare", "start"]

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
    add_subject_arguments(command)
    command.add_argument(
        "--preset", default="", metavar="FAMILY", help="Also bounds of a family: mlp, cnn, transformer, rnn."
    )
    command.add_argument("--seeds", default="8", help="Seeds to draw (default: 8). More seeds support tighter bounds.")
    command.add_argument(
        "--steps", default="auto", help="Steps of the chain, such as blocks, layers or time (default: auto)."
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
    from ..checks.statistics import as_seeds

    name = _identifier(options.name or _name_of(options.model))
    target = _target(options, name)
    _refuse_existing(target, options, name)
    found, seeds = _seeded_subject(options), len(as_seeds(options.seeds))
    measurement = _measured(found, options)
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
    starter = _starter(found, options, name, bounds, measurement, seeds, target)
    if target is None:
        emit(_text(starter, options, target))
        return 0
    _refuse_existing(target, options, name)
    _written(target, starter, options)
    if not options.toml:
        _record(target, f"test_{name}", measurement)
    return 0


def _name_of(model: str) -> str:
    """Return the name of the model, or that of its module if the factory has a generic name."""
    place, _, name = model.rpartition(":")
    return place.rpartition(".")[2] or name if name.lower() in GENERIC else name


def _identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower() or "model"


def _target(options: argparse.Namespace, name: str) -> Path | None:
    """Return the file to write; None to print."""
    if options.output == "-":
        return None
    if options.output:
        return Path(options.output)
    return Path("trainability.toml") if options.toml else Path("tests", f"test_trainability_{name}.py")


def _refuse_existing(target: Path | None, options: argparse.Namespace, name: str) -> None:
    """Refuse to overwrite a test.

    Raises:
        UsageError: The file exists, or has a table of the name.
    """
    if target is None or not target.exists():
        return
    if not options.toml:
        msg = f"{target} exists, and is never overwritten. Choose another file: --output FILE, or --name NAME."
        raise UsageError(msg)
    if target.is_file():
        table = rf"^\s*\[\s*(tool\s*\.\s*trainability\s*\.\s*)?test\s*\.\s*[\"']?{re.escape(name)}[\"']?\s*[\].]"
        if re.search(table, target.read_text(encoding="utf-8"), re.MULTILINE):
            msg = f"{target} has a table [test.{name}], which is never overwritten. Choose another name: --name NAME."
            raise UsageError(msg)


def _seeded_subject(options: argparse.Namespace) -> Subject:
    """Return the subject. Its modules are imported under the seed that a session of pytest has while it imports a test module."""
    from ..engine.isolation import derived_seed, seeded_unless_seeded

    with seeded_unless_seeded(derived_seed(0, "module")):
        return subject(options)


def _measured(found: Subject, options: argparse.Namespace) -> Measurement:
    from ..checks.presets import find_preset
    from ..measurement import Context, measure_in
    from ..measures import MEASURES

    if options.preset:
        find_preset(options.preset, where="--preset")
    measurement = measure_in(
        Context(test="start", cure="off", expects_baseline=not options.toml),
        found.build,
        found.inputs,
        target=found.targets,
        loss=found.loss_function,
        seeds=options.seeds,
        steps=options.steps,
        name=found.name if _is_of_library(options.model) else None,
    )
    measurement.run([MEASURES[name] for name in ASKED], tolerated=dict.fromkeys(ASKED, TrainabilityError))
    return measurement


def _is_of_library(model: str) -> bool:
    return model.partition(":")[0] in {"hf", "hf-tiny", "timm", "torchvision"}


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
    found: Subject,
    options: argparse.Namespace,
    name: str,
    bounds: tuple[SuggestedBound, ...],
    measurement: Measurement,
    seeds: int,
    target: Path | None,
) -> Starter:
    from ..measurement.contracts import checked_rules

    rules, trouble = checked_rules(found.build, measurement.seeds)
    code = _Code(found, target)
    return Starter(
        name=name,
        command=shlex.join([*PROGRAM.split(" "), *_arguments(options)]),
        model=found.model,
        steps=measurement.steps.description,
        seeds=seeds,
        bounds=bounds,
        preset=options.preset,
        contract={} if trouble else _plain_rules(rules) if options.toml else rules,
        trouble=trouble,
        imports=tuple(code.imports),
        setup=tuple(code.setup),
        functions=tuple(code.functions),
        arguments=", ".join([*code.arguments, *([] if options.steps == "auto" else [f'steps="{options.steps}"'])]),
        build=code.build,
        named=f', name="{found.name}"' if _is_of_library(options.model) else "",
        input=found.input,
        target=found.target,
        loss=found.loss,
        options=() if options.steps == "auto" else (("steps", options.steps),),
    )


def _plain_rules(rules: dict[str, str]) -> dict[str, str]:
    """Return rules whose numbers are written out, without the name of the module."""
    from ..init.writing import rules_of

    return {pattern: repr(rule).removeprefix("init.") for pattern, rule in rules_of(rules).items()}


def _arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments of the command, without its output."""
    given = ["start", options.model]
    for name in ("input", "target"):
        given += [word for text in getattr(options, name) for word in (f"--{name}", text)]
    defaults = {"loss": "", "preset": "", "seeds": "8", "steps": "auto", "name": ""}
    given += [
        word
        for name, value in defaults.items()
        if getattr(options, name) != value
        for word in (f"--{name}", getattr(options, name))
    ]
    return [*given, *(["--toml"] if options.toml else [])]


class _Code:
    """The parts of a test module that name model, inputs, targets and loss."""

    def __init__(self, found: Subject, target: Path | None) -> None:
        from ..sources.code import inputs_code, is_found_here_only, is_place

        self.imports: list[str] = []
        self.functions: list[str] = []
        self.arguments: list[str] = []
        self._places: list[str] = []
        library = _is_of_library(found.model)
        if library or not found.input:
            self.imports.append("from pytest_trainability.sources.models import named_model")
            self.functions.append(f'MODEL = named_model("{found.model}")')
        self.build = "MODEL.build" if library else self._imported(found.model)
        if not found.input:
            self.arguments.append("MODEL.inputs")
        for key, texts in (("inputs", found.input), ("target", found.target)):
            if not texts:
                continue
            if len(texts) == 1 and is_place(texts[0]):
                name = self._imported(texts[0])
            else:
                name = key if key == "inputs" else "targets"
                self.functions.append(f"def {name}(generator):\n    return {inputs_code(texts)}")
            self.arguments.append(name if key == "inputs" else f"target={name}")
        if found.loss:
            loss = self._imported(found.loss) if ":" in found.loss else f"F.{found.loss}"
            self.arguments.append(f"loss={loss}")
        here = [place for place in self._places if is_found_here_only(place.partition(":")[0])]
        self.setup = _setup(here, target)

    def _imported(self, place: str) -> str:
        """Add the import of a place, and return the expression that names the object."""
        module, _, name = place.partition(":")
        first, dot, rest = name.partition(".")
        self._places.append(place)
        known = next((line for line in self.imports if line.startswith(f"from {module} import ")), None)
        if known is None:
            self.imports.append(f"from {module} import {first}")
        elif first not in re.split(r"[ ,]+", known.partition(" import ")[2]):
            self.imports[self.imports.index(known)] = f"{known}, {first}"
        return f"{first}{dot}{rest}"


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
    if not options.toml:
        return test_module(starter)
    in_pyproject = target is not None and target.name == "pyproject.toml"
    return toml_table(starter, prefix="tool.trainability." if in_pyproject else "")


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
    text = _text(starter, options, target)
    if options.toml and target.is_file():
        before = target.read_text(encoding="utf-8")
        text = before + ("" if before.endswith("\n") or not before else "\n") + ("\n" if before.strip() else "") + text
    write(target, text)
    say(
        f"{target} written: {_counts(starter)}. Read it, and run pytest {target if not options.toml else ''}".rstrip()
        + "."
    )


def _counts(starter: Starter) -> str:
    parts: Iterable[str] = (
        f"{len(starter.bounds)} bounds" if len(starter.bounds) != 1 else "1 bound",
        f"a contract of {len(starter.contract)} rules" if starter.contract else "no contract",
    )
    return ", ".join(parts)


def _record(target: Path, test: str, measurement: Any) -> None:
    """Record the baseline of the written test."""
    from ..checks.baseline_files import baseline_path, change_baselines, with_entry

    path, entry = baseline_path(target), measurement.baseline_entry()
    change_baselines(path, lambda contents: with_entry(contents, test, measurement.name, entry))
    say(f"{path} written: the baseline. Commit both files.")
