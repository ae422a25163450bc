"""Changes of modules: another class, gone, new."""

from __future__ import annotations

from pytest_trainability.checks.module_changes import MODULES, folded_modules, module_changes
from pytest_trainability.records.reports import BaselineChange


def modules(act: str = "GELU", blocks: int = 4, **others: str) -> dict[str, str]:
    found = {"": "Net", "blocks": "ModuleList"}
    for i in range(blocks):
        found |= {f"blocks.{i}": "Block", f"blocks.{i}.mlp": "MLP", f"blocks.{i}.mlp.act": act}
    return {**found, **others}


def changes(old: dict[str, str], new: dict[str, str]) -> list[BaselineChange]:
    return list(module_changes(folded_modules(old), folded_modules(new)))


def test_modules_of_one_class_share_a_line_in_the_order_of_the_model() -> None:
    assert folded_modules(modules(head="Linear")) == {
        "": "Net",
        "blocks": "ModuleList",
        "blocks.{0-3}": "Block",
        "blocks.{0-3}.mlp": "MLP",
        "blocks.{0-3}.mlp.act": "GELU",
        "head": "Linear",
    }


def test_unchanged_modules_are_no_change() -> None:
    assert changes(modules(), modules()) == []


def test_another_class_is_named_once() -> None:
    (change,) = changes(modules(), modules("Sigmoid"))
    assert (change.measure, change.kind, change.element) == (MODULES, "moved", "blocks.*.mlp.act")
    assert (change.old_to_new, change.count, change.considered) == ("GELU → Sigmoid", 4, 4)


def test_a_single_module_is_named_with_its_number() -> None:
    (change,) = changes(modules(), {**modules(), "blocks.2.mlp.act": "ReLU"})
    assert (change.element, change.count) == ("blocks.2.mlp.act", 1)


def test_what_is_gone_or_new_is_named_without_its_parts() -> None:
    gone, fresh = changes(modules(), modules(blocks=3, norm="LayerNorm"))
    assert (gone.kind, gone.elements) == ("vanished", ("blocks.3",))
    assert (fresh.kind, fresh.elements) == ("new", ("norm",))
