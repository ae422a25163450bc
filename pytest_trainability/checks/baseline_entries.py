"""Entries of baselines: measurements of one model in one test, in one environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..records.tensors import Projections
from .baseline_values import BaselineValues
from .initial_values import InitialRow

__all__ = ["CUSTOM_FUNCTIONS", "CUT_OFF", "OUTPUT", "Entry", "environment_key", "find_entry"]

OUTPUT = "output"
"""Name of the shapes of the output, among the conditions and in reports. They are not in an older baseline."""
CUSTOM_FUNCTIONS = "custom functions"
"""Name of the condition that lists custom autograd functions."""
CUT_OFF = "without gradient to the inputs"
"""Name of the condition that lists the modules from which no gradient gets to the inputs."""
_ARITHMETIC = ("platform", "threads", "torch")
"""Keys of the environment that change only arithmetic and dropout masks."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Measurement of one model in one test, in one environment."""

    environment: Mapping[str, str]
    """``device`` (its kind), ``dtype``, ``platform``, ``torch`` (its version), ``threads``, and keys that plugins add."""
    conditions: Mapping[str, str]
    """``chain``, ``frame``, ``mode``, and facts about the code, as information for readers. ``chain`` is compared along time,
    and ``output``, the shapes of the output, wherever both sides have it."""
    seeds: tuple[int, ...]
    draws: tuple[str, ...]
    """Digests per seed: of the initial weights and inputs, then, after a space, of the random numbers that the run used."""
    measures: Mapping[str, BaselineValues]
    initial: Mapping[str, InitialRow] = field(default_factory=dict)
    """Initial values of parameters and buffers, by pattern of names; empty in a baseline of schema 1."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Classes of the modules, by pattern of names; empty in a baseline of schema 1."""
    operations: Mapping[str, str] = field(default_factory=dict)
    """Operations that the signal passes, by pattern of the names of steps; empty in a baseline of schema 1."""
    settings: Mapping[str, str] | None = None
    """Calls with the constants that they are given, by pattern of the names of modules. None where they are not known: in an
    older baseline, and in a new entry until they are read. They explain a change, and are none."""
    tables: Mapping[str, Projections] | None = None
    """Projections of the tensors that are the same on all seeds, by pattern of names. None in an older baseline, and for a single
    seed."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors that equal earlier ones entry by entry, by pattern of names; empty in an older baseline, and without copies."""

    @property
    def key(self) -> str:
        """Key of the environment in a file."""
        return environment_key(self.environment)


def environment_key(environment: Mapping[str, str]) -> str:
    """Return the key of an environment, such as ``cpu float32``.

    Platform, version of torch and number of threads are not part of it: they change only arithmetic and dropout masks.
    """
    first = ("device", "dtype")
    rest = sorted(set(environment) - {*first, *_ARITHMETIC})
    return " ".join([*(environment[name] for name in first), *(f"{name}={environment[name]}" for name in rest)])


def find_entry(entries: Mapping[str, Entry], new: Entry) -> Entry | None:
    """Return the baseline of a new entry.

    Args:
        entries: Entries of the same measurement by the key of their environment.
        new: The new measurement.

    Returns:
        The entry of the same environment. If there is none, the entry of another kind of device: the same weights were drawn, and
        the numbers agree up to arithmetic. None if there is no such entry either.
    """
    if new.key in entries:
        return entries[new.key]
    device = {"device": new.environment["device"]}
    elsewhere = (e for _, e in sorted(entries.items()) if environment_key({**e.environment, **device}) == new.key)
    return next(elsewhere, None)
