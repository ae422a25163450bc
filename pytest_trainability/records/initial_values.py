"""Initial values of a parameter or buffer as plain numbers and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Form", "InitialValues"]

Form: TypeAlias = Literal[
    "constant",
    "normal",
    "truncated normal",
    "uniform",
    "orthogonal",
    "identity",
    "identity-like",
    "dirac",
    "sparse",
    "copied",
    "tied",
    "not finite",
    "table",
    "unknown",
]
"""What entries look like. A table is the same on all seeds and has no known distribution, such as sines of positions."""


@dataclass(frozen=True, slots=True)
class InitialValues:
    """What one parameter or floating buffer is before training, over all seeds together."""

    name: str
    kind: Literal["parameter", "buffer"]
    shape: tuple[int, ...]
    dtype: str
    form: Form
    text: str
    """The form with its numbers, such as ``normal, std 0.02`` or ``tied to wte.weight``."""
    rms: float
    """Root mean square; NaN if an entry is not finite, or there is none."""
    mean: float
    """Mean; NaN as for the root mean square."""
    outlier: float
    """Largest magnitude in units of the root mean square; NaN as for the root mean square, and if all entries are zero."""
    redrawn: bool
    """Whether the entries differ between seeds. False for a constant, for a table and for a finished module."""
