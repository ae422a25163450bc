"""A size sweep in a notebook or script: dictionary, data frame, table and plot."""

from __future__ import annotations

from typing import Any

from ..records.estimates import Estimate, Profile
from ..report.exports import frame_of, html_table, new_axes, plain_estimate

__all__ = ["SweepPresentation"]

MOST_LABELS = 10
"""Number of elements above which a plot has no legend."""


class SweepPresentation:
    """What shows a size sweep outside of a session. The result provides sizes, seeds, values and slopes."""

    measure: str
    along: Any
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    values: tuple[Estimate, ...] | tuple[Profile, ...]

    def _shown_slope(self) -> Estimate | Profile:
        raise NotImplementedError

    def _shown_reading(self) -> str:
        raise NotImplementedError

    def _shown_table(self, name: str) -> list[str]:
        raise NotImplementedError

    def report(self) -> str:
        """Return the slope in words, then the values of each element by size, and the slopes between them, as lines of text."""
        lines = (line for name in _by_name(self._shown_slope()) for line in self._shown_table(name))
        return "\n".join([self._shown_reading(), *lines])

    def _elements(self) -> list[dict[str, Estimate]]:
        """Return the elements of each size by name; the element of a scalar has the empty name."""
        return [_by_name(value) for value in self.values]

    def to_dict(self) -> dict[str, Any]:
        """Return sizes, values and slopes as dictionaries, lists, strings and finite numbers.

        Numbers that are not finite are the strings ``"inf"``, ``"-inf"`` and ``"nan"``.
        """
        slopes = _by_name(self._shown_slope())
        return {
            "measure": self.measure,
            "along": self.along,
            "sizes": list(self.sizes),
            "seeds": list(self.seeds),
            "reading": self._shown_reading(),
            "elements": [
                {
                    "name": name,
                    "slope": plain_estimate(slope),
                    "values": [plain_estimate(at[name]) for at in self._elements()],
                }
                for name, slope in slopes.items()
            ],
        }

    def to_frame(self) -> Any:
        """Return the values as a pandas data frame: a row for each size, element and seed.

        Raises:
            UsageError: pandas is not installed.
        """
        rows = [
            (self.measure, size, name, seed, value, element.unit)
            for size, elements in zip(self.sizes, self._elements())
            for name, element in elements.items()
            for seed, value in zip(self.seeds, element.values)
        ]
        return frame_of(rows, ("measure", self.along, "element", "seed", "value", "unit"))

    def plot(self, axes: Any = None) -> Any:
        """Draw the values over the size: thin lines for seeds, and the mean. Axes are logarithmic where slopes are exponents.

        Args:
            axes: Axes of matplotlib to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            UsageError: matplotlib is not installed.
        """
        axes = new_axes(axes)
        slopes = _by_name(self._shown_slope())
        for index, (name, slope) in enumerate(slopes.items()):
            color, elements = f"C{index % 10}", [at[name] for at in self._elements()]
            for of_seed in zip(*(element.values for element in elements)):
                axes.plot(self.sizes, of_seed, color=color, linewidth=0.7, alpha=0.4)
            means = [element.mean for element in elements]
            axes.plot(self.sizes, means, color=color, marker="o", label=f"{name or self.measure}: slope {slope}")
        first = next(iter(self._elements()[0].values()))
        axes.set(xscale="log", yscale=first.scale, xlabel=self.along, ylabel=f"{self.measure} {first.unit}".strip())
        if len(slopes) <= MOST_LABELS:
            axes.legend()
        return axes

    def _repr_html_(self) -> str:
        """Return a table of HTML with a row for each element."""
        head = ["", *(f"{self.along} {size}" for size in self.sizes), "slope"]
        rows = [
            [name or self.measure, *(str(at[name]) for at in self._elements()), str(slope)]
            for name, slope in _by_name(self._shown_slope()).items()
        ]
        return html_table(self._shown_reading(), [head, *rows])


def _by_name(value: Estimate | Profile) -> dict[str, Estimate]:
    return {"": value} if isinstance(value, Estimate) else dict(value)
