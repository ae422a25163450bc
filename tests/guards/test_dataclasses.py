"""Records do not change: every dataclass of the package is frozen and has slots, except those that are named here."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import pytest_trainability

CHANGING = {
    "engine.capture.recorder": {"Call", "Capture"},
    "engine.capture.steps": {"_Family"},
    "engine.runs.common_needs": {"SquareSums"},
    "engine.runs.run": {"Run"},
    "init.check": {"_Gathered"},
    "init.recognition": {"Seen"},
    "init.writing": {"_Node"},
    "measures.activations.attention": {"Entropy"},
    "measures.activations.routing": {"_Choice", "_Scores"},
    "measures.activations.similarity": {"Similarities"},
    "measures.activations.activation_calls": {"_ModuleCall"},
    "measures.depth.residual_branches": {"_BranchAdditions", "_Sizes"},
    "measures.gradients.fp8": {"ResultCounts"},
    "measures.gradients.half_precision": {"StateEntries"},
}
"""Dataclasses that are filled while a model runs or is read, by module. They are not frozen."""
WITH_DICTIONARY = {"scaling.result": {"Scaling"}}
"""Dataclasses with cached properties, which need a dictionary. They have no slots."""


def dataclasses_of(module: str) -> Iterator[type]:
    """Yield the dataclasses that a module of the package defines."""
    found = importlib.import_module(f"{pytest_trainability.__name__}.{module}")
    for thing in vars(found).values():
        if isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__module__ == found.__name__:
            yield thing


MODULES = sorted(
    found.name.removeprefix(f"{pytest_trainability.__name__}.")
    for found in pkgutil.walk_packages(pytest_trainability.__path__, f"{pytest_trainability.__name__}.")
    if not found.name.endswith("__main__")
)


def unlike_records(module: str) -> tuple[set[str], set[str]]:
    """Return the names of the dataclasses of a module that are not frozen, and of those that have no slots."""
    kinds = {kind.__name__: kind for kind in dataclasses_of(module)}
    frozen = {name for name, kind in kinds.items() if kind.__dataclass_params__.frozen}  # type: ignore[attr-defined]
    slotted = {name for name, kind in kinds.items() if "__slots__" in vars(kind)}
    return set(kinds) - frozen, set(kinds) - slotted


@pytest.mark.parametrize("module", MODULES)
def test_dataclasses_are_frozen_and_have_slots(module: str) -> None:
    assert unlike_records(module) == (CHANGING.get(module, set()), WITH_DICTIONARY.get(module, set()))


def test_a_dataclass_that_can_change_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in a module whose dataclasses are all records."""
    from pytest_trainability.checks import bounds

    @dataclasses.dataclass
    class Planted:
        value: int

    Planted.__module__ = bounds.__name__
    monkeypatch.setattr(bounds, "Planted", Planted, raising=False)
    assert unlike_records("checks.bounds") == ({"Planted"}, {"Planted"})
