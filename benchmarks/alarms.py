"""Counts of alarms over many comparisons of unchanged code, for the benchmarks of wrong verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scipy.stats import beta

__all__ = ["Alarms"]


@dataclass
class Alarms:
    """Comparisons of unchanged code, and how many of them report a change: with the defaults, and under stricter settings."""

    stricter: Sequence[str] = ()
    """Heads of the columns of stricter settings, such as ``no tolerance``."""
    checks: int = 0
    flagged: int = 0
    flagged_by: Counter[str] = field(default_factory=Counter)
    """Comparisons that report a change under each of the stricter settings."""
    blamed: Counter[str] = field(default_factory=Counter)
    """How often each name was blamed."""

    def __iadd__(self, other: Alarms) -> Alarms:
        self.checks += other.checks
        self.flagged += other.flagged
        self.flagged_by += other.flagged_by
        self.blamed += other.blamed
        return self

    def note(self, blamed: Iterable[str]) -> None:
        """Count a comparison with the defaults that blames some names; none if it reports no change."""
        names = set(blamed)
        self.flagged += bool(names)
        self.blamed.update(names)

    @property
    def head(self) -> str:
        """The heads of the columns of ``str``."""
        return f"{'checks':>9}{'flagged':>9}{'rate':>10}{'95 % <':>10}" + "".join(
            f"{name:>14}" for name in self.stricter
        )

    def __str__(self) -> str:
        found, rate = self.flagged, self.flagged / self.checks
        limit = float(beta.ppf(0.95, found + 1, self.checks - found)) if found < self.checks else 1.0
        blamed = "  " + ", ".join(f"{name} {count}" for name, count in self.blamed.most_common(3)) if found else ""
        stricter = "".join(f"{self.flagged_by[name] / self.checks:>14.1e}" for name in self.stricter)
        return f"{self.checks:>9}{found:>9}{rate:>10.1e}{limit:>10.1e}{stricter}{blamed}"
