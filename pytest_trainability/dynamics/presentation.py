"""Lyapunov exponents of a map in a notebook or script: text, dictionary, data frame, table and plot."""

from __future__ import annotations

from typing import Any

from ..records.estimates import Spectrum
from ..records.text import format_number
from ..report.exports import frame_of, html_table, new_axes, plain_estimate, plain_number

__all__ = ["MapPresentation"]


class MapPresentation:
    """What shows the exponents of a map. The result provides exponents, local exponents and their running averages."""

    __slots__ = ()

    def _shown(self) -> tuple[Spectrum, tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], float]:
        """Return the spectrum, local exponents, running averages and the Kaplan-Yorke dimension."""
        raise NotImplementedError

    def report(self) -> str:
        """Return the exponents, the number of steps and the Kaplan-Yorke dimension as lines of text."""
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _rows(self) -> list[tuple[str, str]]:
        spectrum, local, _, dimension = self._shown()
        exponents = [(f"exponent {number}", str(exponent)) for number, exponent in enumerate(spectrum, 1)]
        return [*exponents, ("Kaplan-Yorke dimension", format_number(dimension, 4)), ("steps", str(len(local)))]

    def to_dict(self) -> dict[str, Any]:
        """Return exponents, local exponents and running averages as dictionaries, lists, strings and finite numbers.

        Numbers that are not finite are the strings ``"inf"``, ``"-inf"`` and ``"nan"``.
        """
        spectrum, local, history, dimension = self._shown()
        return {
            "unit": spectrum[0].unit,
            "exponents": [plain_estimate(exponent) for exponent in spectrum],
            "kaplan_yorke_dimension": plain_number(dimension),
            "local": [list(map(plain_number, step)) for step in local],
            "history": [list(map(plain_number, step)) for step in history],
        }

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row for each step and exponent.

        The columns are ``step``, ``exponent``, both counted from 1, ``local``, ``average`` up to this step, and ``unit``.

        Raises:
            UsageError: pandas is not installed.
        """
        spectrum, local, history, _ = self._shown()
        rows = [
            (step, number, here, average, spectrum[0].unit)
            for step, (of_step, averages) in enumerate(zip(local, history), 1)
            for number, (here, average) in enumerate(zip(of_step, averages), 1)
        ]
        return frame_of(rows, ("step", "exponent", "local", "average", "unit"))

    def plot(self, axes: Any = None) -> Any:
        """Draw the running averages of the exponents over the steps: where a line is still moving, more steps are needed.

        Args:
            axes: Axes of matplotlib to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            UsageError: matplotlib is not installed.
        """
        axes = new_axes(axes)
        spectrum, _, history, _ = self._shown()
        steps = range(1, len(history) + 1)
        for number, (exponent, averages) in enumerate(zip(spectrum, zip(*history)), 1):
            axes.plot(steps, averages, color=f"C{(number - 1) % 10}", label=f"exponent {number}: {exponent}")
        axes.axhline(0.0, color="gray", linewidth=0.7)
        axes.set(xlabel="steps", ylabel=f"running average ({spectrum[0].unit})")
        axes.legend()
        return axes

    def _repr_html_(self) -> str:
        """Return a table of HTML."""
        return html_table("Lyapunov exponents", self._rows())
