"""What the plugin tells a measurement, and how a measurement fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..checks.baselines import Entry
from ..engine.capture.steps import StepChoice
from ..records.reports import BaselineRecord, CheckRecord

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """What the plugin knows beyond the call: where the measurement stands, and who wants to hear of it."""

    test: str = ""
    name: str = ""
    record: Callable[[CheckRecord], None] = lambda record: None
    worker: int = 0
    """Number of this process among those that share the machine's GPUs."""
    threads: int | None = None
    """How many threads at most; None leaves torch's setting."""
    reproduce: str = ""
    """Command that repeats the test, but for seeds and device."""
    confidence: float | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """By measure, of a comparison with the baseline."""
    steps: Callable[[nn.Module], StepChoice | None] = lambda model: None
    """Told a model that nobody has said how to cut, says how, or None."""
    environment: Callable[[], Mapping[str, str]] = dict
    """What else tells environments apart whose numbers differ."""
    baseline: Callable[[str, Entry, Mapping[str, float]], BaselineRecord] | None = None
    """Compares the entry of a model with its baseline; None outside pytest."""
    bounded_on_command_line_only: frozenset[str] = frozenset()
    """Measures that are bounded on the command line only: no baseline holds them."""
