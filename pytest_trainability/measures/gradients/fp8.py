"""Results and gradients that the 8-bit formats E4M3 and E5M2 would flush to zero or clip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ...engine.capture.recorder import Recorder
from ...engine.capture.results import ResultObserver, unmasked
from ...engine.linalg.formats import E4M3, E5M2, Format
from ...engine.runs.run import Need, Run
from ..measure import declare
from .classes import GRADIENT_CLASSES, cancelled_parameters
from .half_precision import GRADIENT_ENTRIES, Entries, real_numbers

__all__ = ["RESULT_COUNTS", "ResultCounts", "scale_exponent"]


def scale_exponent(largest: float, form: Format) -> int:
    """Return the exponent of the largest power of two by which a number can be multiplied without overflow.

    Args:
        largest: A finite positive number.
        form: The format.
    """
    fraction, power = math.frexp(largest)
    room = form.highest - power
    return room - (math.ldexp(fraction, form.highest) >= form.overflow)


# Results of the forward pass --------------------------------------------------------------------------------------
@dataclass(slots=True, eq=False)
class ResultCounts:
    """Numbers of entries of the results of one module."""

    number: int = 0
    nonzero: int = 0
    """Number of entries that are finite and not zero."""
    beyond: int = 0
    """Number of entries that E4M3 clips."""
    flushed: int = 0
    """Number of nonzero entries that E4M3 rounds to zero."""
    flushed_scaled: int = 0
    """The same if each result is multiplied by the largest power of two with which it does not overflow."""
    undefined: int = 0
    """Number of entries that are NaN."""

    def add(self, result: Tensor) -> None:
        """Add a result, without the entries that mask scores."""
        values, largest = unmasked(real_numbers(result)[0])
        values = values.abs()
        nonzero = values[(values > 0) & values.isfinite()]
        self.number += values.numel()
        self.nonzero += nonzero.numel()
        self.undefined += int(values.isnan().sum()) if math.isnan(largest) else 0
        if largest >= E4M3.overflow or math.isnan(largest):
            self.beyond += int((values >= E4M3.overflow).sum())
        if nonzero.numel():
            scale = 0 if not math.isfinite(largest) else scale_exponent(largest, E4M3)
            self.flushed += int((nonzero <= 2.0**E4M3.underflow).sum())
            self.flushed_scaled += int((nonzero <= math.ldexp(1, E4M3.underflow - scale)).sum())


class _ResultCounts(ResultObserver):
    """Counts the entries of all results of each module."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: dict[str, ResultCounts] = {}

    def observe(self, path: str, result: Tensor) -> None:
        self.found.setdefault(path, ResultCounts()).add(result)


RESULT_COUNTS: Need[dict[str, ResultCounts]] = Need(
    "result counts", lambda run: run.capture.watched[_ResultCounts].found, instruments=(_ResultCounts,)
)
"""The :class:`ResultCounts` of each module, in the order of their first result."""


# Measures ---------------------------------------------------------------------------------------------------------
def _gradients(run: Run) -> dict[str, Entries]:
    """Return the entries of all gradients; none without a loss, as the size of gradients is arbitrary then."""
    return {} if run.capture.loss is None else run[GRADIENT_ENTRIES]


@declare("profile", needs=[RESULT_COUNTS, GRADIENT_ENTRIES], tolerance=0.01)
def fp8_overflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of entries of each module's results, and of each gradient, that a cast to FP8 clips.

    Results of the forward pass are cast to E4M3, whose largest number is 448, and gradients to E5M2 with 57344, both without a
    scale. Entries are clipped from the middle to the next number on: above 464, and from 61440 on. Results are those of all
    operations that compute new values (``largest_value``). Masked scores do not count as large.

    It misleads for recipes that scale each tensor, as all common ones do: they clip nothing. The number says where a scale is
    needed.

    Returns:
        Pure numbers from 0 to 1 by ``"E4M3 result of MODULE"``, then with a loss by ``"E5M2 gradient of NAME"`` and ``"E5M2
        gradient of state after STEP"``. NaN if an entry is NaN.

    Source: Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433 (2022), table 1.
    """
    found = {
        f"{E4M3.name} result of {path}": math.nan if counts.undefined else counts.beyond / counts.number
        for path, counts in run[RESULT_COUNTS].items()
    }
    return found | {
        f"{E5M2.name} gradient of {name}": math.nan if counted.undefined else counted.beyond_fp8 / counted.number
        for name, counted in _gradients(run).items()
    }


@declare("profile", needs=[RESULT_COUNTS, GRADIENT_ENTRIES, GRADIENT_CLASSES], tolerance=0.05)
def fp8_underflow_fraction(run: Run) -> dict[str, float]:
    """Return the share of nonzero entries of each module's results, and of each gradient, that a cast to FP8 rounds to zero.

    Results of the forward pass are cast to E4M3, where ``|y| ≤ 2^-10`` becomes zero, and gradients to E5M2, where ``|g| ≤ 2^-17``
    does. Scaled means that each tensor is multiplied by the largest power of two with which it does not overflow, as recipes
    for FP8 do. Entries that are round-off of a gradient that is zero by algebra (``gradient_classes``) do not count as lost.

    It misleads without a scale for gradients: those of a mean over many tokens are below 2^-17 in healthy models. Bound the
    scaled ones.

    Returns:
        Pure numbers from 0 to 1 by ``"E4M3 result of MODULE"`` and ``"scaled E4M3 result of MODULE"``, then with a loss by
        ``"E5M2 gradient of NAME"``, ``"E5M2 gradient of state after STEP"`` and the same scaled. NaN if an entry is NaN. Results
        and gradients that are entirely zero are omitted.

    Source: Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433 (2022), sections 3 and 4.
    """
    return dict(_flushed_results(run)) | dict(_flushed_gradients(run))


def _flushed_results(run: Run) -> Iterator[tuple[str, float]]:
    for path, counts in run[RESULT_COUNTS].items():
        if counts.nonzero or counts.undefined:
            name = f"{E4M3.name} result of {path}"
            yield name, math.nan if counts.undefined else counts.flushed / counts.nonzero
            yield f"scaled {name}", math.nan if counts.undefined else counts.flushed_scaled / counts.nonzero


def _flushed_gradients(run: Run) -> Iterator[tuple[str, float]]:
    gradients = _gradients(run)
    cancelled = cancelled_parameters(run) if gradients else ()
    for wanted, counted in gradients.items():
        if counted.nonzero or counted.undefined:
            name = f"{E5M2.name} gradient of {wanted}"
            finite = math.isfinite(counted.largest) and counted.largest > 0
            scale = scale_exponent(counted.largest, E5M2) if finite else 0
            for label, exponent in ((name, E5M2.underflow), (f"scaled {name}", E5M2.underflow - scale)):
                share = 0.0 if wanted in cancelled else counted.flushed(exponent) / max(1, counted.nonzero)
                yield label, math.nan if counted.undefined else share
