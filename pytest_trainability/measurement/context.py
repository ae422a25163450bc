"""The plugin's side of a measurement: the test, and the receivers of its records and baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..checks.baseline_entries import Entry
from ..engine.runs.recipe import StepChoice
from ..records.reports import BaselineRecord, CheckRecord

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """What the plugin knows about a measurement beyond the arguments of the call; the defaults hold outside pytest."""

    test: str = ""
    """Node id of the test."""
    name: str = ""
    """Name that distinguishes the measurements of one test."""
    report: Callable[[CheckRecord], None] = lambda record: None
    """Receives the record of the measurement whenever something was measured or judged."""
    worker: int = 0
    """Number of this process among the xdist workers, which share the machine's GPUs."""
    threads: int | None = None
    """Maximum number of threads; None leaves torch's setting."""
    reproduce: str = ""
    """Command that repeats the test, without seeds and device."""
    confidence: float | None = None
    """Confidence level of the intervals; None for the default."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Tolerances of the comparison with the baseline, by measure."""
    choose_steps: Callable[[nn.Module], StepChoice | None] = lambda model: None
    """Returns the plugins' step choice for a model where ``steps`` is ``"auto"``, or None."""
    environment: Callable[[], Mapping[str, str]] = dict
    """Returns the keys that plugins add to a baseline's environment; numbers are compared within one environment."""
    baseline: Callable[[str, Entry, Mapping[str, float], Callable[[Entry], Entry]], BaselineRecord] | None = None
    """Compares the entry of a model with its baseline, given name, entry, tolerances and a function that adds what explains a
    change; None outside pytest."""
    watch: Callable[[str, str, str], None] = lambda model, part, text: None
    """Receives the name of the model and what is going on: see :class:`~pytest_trainability.engine.runs.recipe.Recipe`."""
    full: bool = False
    """Whether the message of a failure lists all elements, instead of the first ones."""
    cure: str = "auto"
    """Whether the report of a failure looks for cures: ``"auto"`` for small models only, ``"off"`` never, else always."""
    expects_baseline: bool = False
    """Whether a comparison with a baseline is probable: then the first runs read initial values and operations."""
    bounded_on_command_line_only: frozenset[str] = frozenset()
    """Measures that only the command line bounds. Baselines do not record them."""
    file: str = ""
    """Path of the test's file, relative to the root of the session."""
    line: int = 0
    """Line of the test, counted from 1; 0 if it is not known."""
    seeds_by_default: bool = False
    """Whether the number of seeds comes from the command line or the ini file, which apply to finished modules as well."""
    detailed: bool = False
    """Whether records hold all values, the modules and the initial values, for a file that shows them."""
