"""Reads the paths of SVG that the package writes, so that tests can compare places instead of texts."""

from __future__ import annotations

import re

__all__ = ["drawn"]

_COMMAND = re.compile(r"([A-Za-z])([^A-Za-z]*)")
_NUMBER = re.compile(r"-?\d+")


def drawn(path: str) -> list[list[tuple[int, int]]]:
    """Return the points of each part of a path.

    >>> drawn("M0 500l5-12 5 3m1 1h0v7z")
    [[(0, 500), (5, 488), (10, 491)], [(11, 492), (11, 492), (11, 499)]]
    """
    parts: list[list[tuple[int, int]]] = []
    x = y = 0
    for command, text in _COMMAND.findall(path):
        numbers = [int(number) for number in _NUMBER.findall(text)]
        if command in "Mm":
            x, y = numbers if command == "M" else (x + numbers[0], y + numbers[1])
            parts.append([(x, y)])
        elif command == "l":
            for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
                x, y = x + dx, y + dy
                parts[-1].append((x, y))
        elif command in "hv":
            x, y = (x + numbers[0], y) if command == "h" else (x, y + numbers[0])
            parts[-1].append((x, y))
    return parts
