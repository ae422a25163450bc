"""Values of measures as plain data, for files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ElementRecord", "ModuleRecord", "TensorRecord", "ValueRecord"]


@dataclass(frozen=True, slots=True)
class ElementRecord:
    """One number of a measure, averaged over seeds."""

    name: str
    """Name of the step, parameter or exponent; empty for a scalar."""
    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    """One value per seed, in the order of the seeds."""


@dataclass(frozen=True, slots=True)
class ValueRecord:
    """The value of one measure."""

    measure: str
    kind: Literal["estimate", "profile", "spectrum", "names"]
    unit: str
    scale: Literal["linear", "log"]
    by: Literal["", "step", "parameter", "exponent", "other"]
    """What the elements are."""
    elements: tuple[ElementRecord, ...] = ()
    names: tuple[str, ...] = ()
    """The names, for a measure of names."""


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """A module of the model, or a run of equal ones under one folded name such as ``blocks.*``."""

    name: str
    kind: str
    """Class of the module."""
    count: int
    """Number of modules that the name stands for."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Statistics of a parameter or buffer at initialization, or of several that agree, under a folded name."""

    name: str
    count: int
    shape: tuple[int, ...]
    rms: float
    mean: float
    looks: str
    """How the entries of the first of them are distributed on the first seed, such as ``all entries are 0``; empty if unknown."""
