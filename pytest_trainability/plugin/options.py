"""Settings: command line options and ini values, with types and precedence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from . import report_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..checks.bounds import Bound

__all__ = ["PARSERS", "SETTINGS", "Settings", "declare", "options_given", "read"]

PREFIX = "trainability"
_Value = TypeVar("_Value")

_DECLARED = (
    ("seeds", "SEEDS", "Number of seeds, or a list of seeds: 8, 0-7 or 0,3,5 (default: 4)."),
    (
        "device",
        "DEVICE",
        "Device: auto, cpu, cuda, cuda:N or mps (default: auto, which is CUDA if a GPU is available).",
    ),
    ("dtype", "DTYPE", "Floating type of models and float inputs (default: unchanged)."),
    ("confidence", "LEVEL", "Confidence level of the intervals (default: 0.99)."),
    (
        "preset",
        "FAMILY",
        "Default bounds for a family of models: mlp, cnn, transformer or rnn. Your own bounds go first (default: no preset).",
    ),
)
_BY_MEASURE = (
    (
        "bounds",
        "BOUND",
        "A bound for every measured model, such as 'lyapunov_max = [-0.05, 0.05]' or 'gradient_norm >= 1e-6'.",
    ),
    (
        "tolerances",
        "TOLERANCE",
        "Tolerance of the comparison with the baseline, such as 'log_gain = 0.5'.",
    ),
)
BASELINE_MODES = ("check", "new", "update")
CURE_MODES = ("auto", "show", "off", "patch")


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of the command line and of the ini file. The command line wins; None if neither sets a value."""

    seeds: tuple[int, ...] | None
    device: str | None
    dtype: str | None
    confidence: float | None
    preset: str | None
    """Name of a set of default bounds."""
    bounds: Mapping[str, tuple[Bound, str]]
    """Bound by measure, and the option or file that sets it."""
    bounded_in_ini: frozenset[str]
    """Measures that the ini file bounds, including those that the command line bounds as well."""
    tolerances: Mapping[str, tuple[float, str]]
    """Tolerance of the comparison with the baseline by measure, and the option or file that sets it."""
    baseline: str
    """One of :data:`BASELINE_MODES`."""
    prune: bool
    """Whether to remove baselines that no test uses."""
    cure: str
    """One of :data:`CURE_MODES`."""
    measured: str | None
    """Folder for the measured numbers, in the format of the baselines."""
    suggest: bool
    """Whether to print the bounds that the measured numbers support."""
    require: int
    """Minimum number of measured models."""


SETTINGS = pytest.StashKey[Settings]()


def declare(parser: pytest.Parser) -> None:
    """Declare ``--trainability-*`` and ``trainability_*``."""
    group = parser.getgroup(PREFIX, "trainability of PyTorch models at initialization")
    for name, metavar, text in _DECLARED:
        group.addoption(f"--{PREFIX}-{name}", dest=f"{PREFIX}_{name}", metavar=metavar, default=None, help=text)
        parser.addini(f"{PREFIX}_{name}", text, type="string", default=None)
    for name, metavar, text in _BY_MEASURE:
        group.addoption(
            f"--{PREFIX}-{name}",
            dest=f"{PREFIX}_{name}",
            metavar=metavar,
            action="append",
            default=None,
            help=f"{text} May be given several times.",
        )
        parser.addini(f"{PREFIX}_{name}", f"{text} One per line.", type="linelist", default=None)
    group.addoption(
        f"--{PREFIX}-baseline",
        dest=f"{PREFIX}_baseline",
        choices=BASELINE_MODES,
        default=BASELINE_MODES[0],
        help="Mode of check_baseline(): compare (check, the default), also record missing baselines (new), or also replace "
        "changed ones (update).",
    )
    group.addoption(
        f"--{PREFIX}-prune",
        dest=f"{PREFIX}_prune",
        action="store_true",
        help="Remove baselines that no test uses. Refused if not every test has passed.",
    )
    group.addoption(
        f"--{PREFIX}-cure",
        dest=f"{PREFIX}_cure",
        choices=CURE_MODES,
        default=CURE_MODES[0],
        help="Whether the report of a failure tries changes of the model on copies, and shows those that help: for small models "
        "only (auto, the default), always (show), never (off), or always and also written to the file trainability-cures.md "
        "(patch).",
    )
    group.addoption(
        f"--{PREFIX}-measured",
        dest=f"{PREFIX}_measured",
        metavar="FOLDER",
        default=None,
        help="Write the measured numbers into this folder, in the format of the baselines, for the commands python -m "
        "pytest_trainability compare and accept.",
    )
    group.addoption(
        f"--{PREFIX}-suggest",
        dest=f"{PREFIX}_suggest",
        action="store_true",
        help="Print for each test that measures the marker whose bounds its numbers support, with the margin that the seeds "
        "justify. All seeds are drawn. Present bounds are never widened.",
    )
    report_files.declare(parser, group)
    group.addoption(
        f"--{PREFIX}-require",
        dest=f"{PREFIX}_require",
        metavar="N",
        type=int,
        default=0,
        help="Fail the session if fewer than N models were measured.",
    )


def read(config: pytest.Config) -> None:
    """Read and validate the settings.

    Raises:
        pytest.UsageError: A value is invalid; the message names the option or the ini file.
    """
    values: dict[str, Any] = {}
    for name, _, _ in _DECLARED:
        text, where = _text(config, name)
        values[name] = None if text is None else _parse(name, text, where)
    config.stash[SETTINGS] = Settings(
        **values,
        bounds=_bounds(config),
        bounded_in_ini=frozenset(
            name for line in config.getini(f"{PREFIX}_bounds") or () for name in re.findall(r"^\s*(\w+)", line)
        ),
        tolerances=_tolerances(config),
        baseline=config.getoption(f"{PREFIX}_baseline"),
        prune=config.getoption(f"{PREFIX}_prune"),
        cure=config.getoption(f"{PREFIX}_cure"),
        measured=_folder(config.getoption(f"{PREFIX}_measured")),
        suggest=config.getoption(f"{PREFIX}_suggest"),
        require=_required(config.getoption(f"{PREFIX}_require")),
    )


def _folder(given: str | None) -> str | None:
    """Refuse a folder without a name, which an empty shell variable produces."""
    if given is not None and not given.strip():
        msg = f"--{PREFIX}-measured must name a folder. Got {given!r}."
        raise pytest.UsageError(msg)
    return given


def _required(count: int) -> int:
    if count < 0:
        msg = f"--{PREFIX}-require must be at least 0. Got {count}."
        raise pytest.UsageError(msg)
    return count


def _text(config: pytest.Config, name: str) -> tuple[str | None, str]:
    """Return the value of an option, or else of the ini file, and its place; None if neither sets a value.

    Raises:
        pytest.UsageError: The value is empty, as an empty shell variable is. It would switch off the value of the ini file.
    """
    given, where = config.getoption(f"{PREFIX}_{name}"), f"--{PREFIX}-{name}"
    if given is None:
        given, where = config.getini(f"{PREFIX}_{name}"), _ini_place(config, name)
    if given is not None and not str(given).strip():
        msg = f"{where} must have a value. Got {given!r}. Leave it out to keep the default."
        raise pytest.UsageError(msg)
    return None if given is None else str(given), where


def _ini_place(config: pytest.Config, name: str) -> str:
    return f"{PREFIX}_{name} in {config.inipath}" if config.inipath else f"the ini value {PREFIX}_{name}"


def _parse(name: str, text: str, where: str) -> Any:
    from ..errors import UsageError

    try:
        return PARSERS[name](text)
    except UsageError as error:
        msg = f"{where}: {error}"
        raise pytest.UsageError(msg) from None


def _seeds(given: Any) -> tuple[int, ...]:
    from ..checks.statistics import as_seeds

    return as_seeds(given)


def _confidence(given: Any) -> float:
    from ..checks.statistics import as_confidence

    return as_confidence(given)


def _device(given: Any) -> str:
    from ..checks.devices import as_device_name

    return as_device_name(given)


def _dtype(given: Any) -> str:
    from ..checks.dtypes import as_dtype_name

    return as_dtype_name(given)


def _preset(given: Any) -> str:
    from ..checks.presets import find_preset

    find_preset(given)
    return str(given)


PARSERS = {"seeds": _seeds, "device": _device, "dtype": _dtype, "confidence": _confidence, "preset": _preset}


def _bounds(config: pytest.Config) -> dict[str, tuple[Bound, str]]:
    """Read the bounds. Those of the command line replace those of the ini file."""

    def parse(lines: list[str], where: str) -> dict[str, Bound]:
        from ..checks.bounds import parse_bounds

        return parse_bounds(lines, where=where)

    return _by_measure(config, "bounds", parse)


def _tolerances(config: pytest.Config) -> dict[str, tuple[float, str]]:
    """Read the tolerances. Those of the command line replace those of the ini file."""

    def parse(lines: list[str], where: str) -> dict[str, float]:
        from ..checks.tolerances import parse_tolerances

        return parse_tolerances(lines, where=where)

    return _by_measure(config, "tolerances", parse)


def _by_measure(
    config: pytest.Config, name: str, parse: Callable[[list[str], str], dict[str, _Value]]
) -> dict[str, tuple[_Value, str]]:
    found: dict[str, tuple[_Value, str]] = {}
    sources = (
        (config.getini(f"{PREFIX}_{name}"), _ini_place(config, name)),
        (config.getoption(f"{PREFIX}_{name}"), f"--{PREFIX}-{name}"),
    )
    for lines, where in sources:
        if lines is not None and (not lines or not all(map(str.strip, lines))):
            msg = f"{where} must have a value. Got none. Leave it out to have no {name}."
            raise pytest.UsageError(msg)
        if lines:
            from ..errors import UsageError

            try:
                found.update({measure: (value, where) for measure, value in parse(lines, where).items()})
            except UsageError as error:
                raise pytest.UsageError(str(error)) from None
    return found


def options_given(config: pytest.Config) -> list[str]:
    """Return the options of this session that can change a verdict, except seeds and device."""
    options = [
        f"--{PREFIX}-{name}={line}"
        for name in ("bounds", "tolerances")
        for line in config.getoption(f"{PREFIX}_{name}") or ()
    ]
    for name in ("dtype", "confidence", "preset"):
        value = config.getoption(f"{PREFIX}_{name}")
        options += [f"--{PREFIX}-{name}={value}"] if value is not None else []
    return options
