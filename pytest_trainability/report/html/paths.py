"""Paths of SVG from points, in whole numbers relative to the previous point, so that many fit into a small file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import TypeAlias

__all__ = ["Point", "area", "dots", "line", "rectangles", "uprights"]

Point: TypeAlias = "tuple[int, int]"


def line(points: Iterable[Point | None]) -> str:
    """Return a line through points, with a gap where there is none.

    >>> line([(0, 500), (5, 488), None, (15, 400), (20, 410)])
    'M0 500l5-12M15 400l5 10'
    """
    runs = ([point for point in run if point is not None] for drawn, run in groupby(points, bool) if drawn)
    return "".join(_line(run) for run in runs)


def _line(points: Sequence[Point]) -> str:
    start = _pair("M", *points[0])
    # A single point is a line of no length, which round ends make visible.
    return start + ("l" + _relative(points) if len(points) > 1 else "h0")


def _relative(points: Sequence[Point]) -> str:
    steps = [(x - before_x, y - before_y) for (before_x, before_y), (x, y) in pairwise(points)]
    text = "".join(_pair(" ", *step) for step in steps)
    return text.replace(" -", "-").lstrip(" ")


def _pair(head: str, x: int, y: int) -> str:
    return f"{head}{x}{'' if y < 0 else ' '}{y}"


def dots(points: Iterable[Point]) -> str:
    """Return lines of no length, which round or square ends make visible.

    >>> dots([(0, 500), (5, 488)])
    'M0 500h0m5-12h0'
    """
    known = list(points)
    if not known:
        return ""
    steps = ((x - before_x, y - before_y) for (before_x, before_y), (x, y) in pairwise(known))
    return _pair("M", *known[0]) + "h0" + "".join(_pair("m", *step) + "h0" for step in steps)


def area(edges: Iterable[tuple[int, int, int] | None]) -> str:
    """Return the area between two lines, with a gap where there is none.

    Args:
        edges: Horizontal place, and the two vertical places.

    >>> area([(0, 400, 600), (10, 390, 620)])
    'M0 400l10-10 0 230-10-20z'
    """
    runs = ([edge for edge in run if edge is not None] for drawn, run in groupby(edges, bool) if drawn)
    return "".join(
        _line([*((x, one) for x, one, _ in run), *((x, other) for x, _, other in reversed(run))]) + "z" for run in runs
    )


def uprights(spans: Iterable[tuple[int, int, int]]) -> str:
    """Return upright lines.

    Args:
        spans: Horizontal place, and the vertical places of both ends.

    >>> uprights([(5, 100, 200)])
    'M5 100v100'
    """
    return "".join(f"{_pair('M', x, start)}v{end - start}" for x, start, end in spans)


def rectangles(found: Iterable[tuple[int, int, int, int]]) -> str:
    """Return filled rectangles.

    Args:
        found: Left side, top, width and height of each.

    >>> rectangles([(0, 10, 5, 20)])
    'M0 10h5v20h-5z'
    """
    return "".join(f"{_pair('M', x, y)}h{width}v{height}h{-width}z" for x, y, width, height in found)
