"""Comparison of two measurements without a file: the same changes as since a baseline."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from ..checks.baselines import compare as changes_between
from ..checks.tolerances import as_tolerance
from ..engine.runs.arguments import refuse_type
from ..errors import TrainabilityError
from ..measures import MEASURES, find_measure
from ..records.estimates import Listed
from ..records.reports import BaselineChange
from ..records.text import visible
from ..report.changes import change_lines
from .result import Measurement

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Listed[BaselineChange]):
    """Changes between two measurements, as a sequence: the model's own changes first. It is empty if nothing has changed."""

    old: str
    """Name of the old model."""
    new: str
    """Name of the new model."""
    changes: tuple[BaselineChange, ...]

    def _items(self) -> Sequence[BaselineChange]:
        return self.changes

    def __repr__(self) -> str:
        count = f"{len(self)} changes" if len(self) != 1 else "1 change"
        return f"<{visible(f'{self.old} → {self.new}')}: {count if self.changes else 'nothing has changed'}>"

    def __str__(self) -> str:
        """Return a line for each measure that has changed, old → new."""
        head = f"{visible(f'{self.old} → {self.new}')}{'' if self.changes else ': nothing has changed by these tolerances'}"
        return "\n".join([head, *(f"  {line}" for line in change_lines(self.changes, 78, full=True))])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def compare(old: Measurement, new: Measurement, *measures: str, **tolerances: float) -> Comparison:
    """Compare two measurements as a baseline is compared with a new measurement.

    Initial values, modules, operations and the measures that both have read are compared. A change counts if it is larger than
    the tolerance of its measure and statistically significant. The models are built again unless their initial values are known.

    >>> import torch
    >>> from pytest_trainability import compare, measure
    >>> def net(std):
    ...     layer = torch.nn.Linear(16, 16, bias=False)
    ...     torch.nn.init.normal_(layer.weight, std=std)
    ...     return layer
    >>> a, b = (measure(lambda std=std: net(std), torch.ones(4, 16), name="net") for std in (0.1, 0.4))
    >>> found = compare(a, b)
    >>> [change.measure for change in found][:2], compare(a, a)
    (['initial values', 'lyapunov_max'], <net → net: nothing has changed>)

    Args:
        old: The old measurement.
        new: The new measurement.
        measures: Names of further measures to compare. What was not read repeats the seeded runs.
        tolerances: Tolerances by measure, in its unit; for a measure that is averaged by logarithms, in nats of the ratio. By
            default those of the measures.

    Returns:
        The changes.

    Raises:
        UsageError: An argument is no measurement, a name is no measure, or a tolerance is no number.
    """
    try:
        for name, given_measurement in (("old", old), ("new", new)):
            refuse_type(name, given_measurement, Measurement, "a result of measure()")
        further = [find_measure(name, where="compare()").name for name in (*measures, *tolerances)]
        given = {n: as_tolerance(value, measure=n, where="compare()") for n, value in tolerances.items()}
        before, after = (one.entry_with(further, other.measured) for one, other in ((old, new), (new, old)))
    except TrainabilityError as error:
        raise error.with_traceback(None) from error.__cause__
    allowed = {m.name: m.tolerance for m in MEASURES.values()} | given
    changes = changes_between(before, after, allowed)
    if changes:
        # What explains a change takes another run.
        changes = changes_between(old.with_settings(before), new.with_settings(after), allowed)
    return Comparison(old.name, new.name, changes)
