"""Records of suggested bounds: plain numbers and strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Suggestion", "TestSuggestions"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the values of one measure support, and the bound that it has now."""

    measure: str
    measured: str
    """The values, such as ``-0.150 ± 0.110 nats``."""
    low: float | None = None
    """Lower end that the seeds support; None for an open end."""
    high: float | None = None
    """Upper end that the seeds support; None for an open end."""
    missing: str = ""
    """Why the seeds support no bound; empty if they do."""
    current: tuple[float | None, float | None] | None = None
    """Ends of the present bound; None if there is none."""
    is_default: bool = False
    """Whether the present bound comes from a preset, the command line or the ini file."""
    holds: bool = True
    """Whether the present bound holds."""
    matching: tuple[str, ...] = ()
    """Patterns of the present bound."""
    excluding: tuple[str, ...] = ()
    """Patterns of names that the present bound does not judge."""

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The ends that the seeds support."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class TestSuggestions:
    """Suggestions for the marker of one test."""

    test: str
    """Node id."""
    model: str
    """Name of the model."""
    seeds: int
    """Smallest number of seeds of its measurements."""
    suggestions: tuple[Suggestion, ...]
    settings: tuple[tuple[str, str], ...] = ()
    """Further arguments of the present marker, as Python code."""
    passed: bool = True
    fixed: bool = False
    """Whether a finished module was measured."""
    table: str = ""
    """Key of the test, such as ``test.gpt``, if it is a table of TOML; empty if it has a marker."""

    __test__ = False

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> TestSuggestions:
        """Rebuild a record from plain data."""
        suggestions = tuple(_suggestion(plain) for plain in given["suggestions"])
        settings = tuple((name, code) for name, code in given["settings"])
        return replace(cls(**{**given, "suggestions": suggestions}), settings=settings)


def _suggestion(plain: Mapping[str, Any]) -> Suggestion:
    current = plain["current"]
    patterns = {name: tuple(plain[name]) for name in ("matching", "excluding")}
    return Suggestion(**{**plain, **patterns, "current": None if current is None else tuple(current)})
