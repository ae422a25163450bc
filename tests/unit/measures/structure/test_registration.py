"""The search for tensors that a model holds."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pytest_trainability.measures.structure.registration import MOST_OBJECTS, held_leaves


def leaf() -> torch.Tensor:
    return torch.zeros(2, requires_grad=True)


def paths(root: Any) -> list[str]:
    return [place.path for place in held_leaves(root).values()]


def test_all_containers_are_searched_breadth_first() -> None:
    root = {"a": [leaf(), (leaf(),)], 1: deque([leaf()]), "o": SimpleNamespace(w=leaf())}
    assert paths(root) == ["['a'][0]", "[1][0]", "['o'].w", "['a'][1][0]"]


def test_a_tensor_has_its_shortest_path_and_cycles_end() -> None:
    shared = leaf()
    root: dict[str, Any] = {"deep": [[shared]], "near": shared}
    root["self"] = root
    assert paths(root) == ["['near']"]


def test_only_leaves_that_require_a_gradient_count() -> None:
    assert paths([torch.zeros(2), leaf() * 2, torch.zeros(2, dtype=torch.int64)]) == []


def test_registered_tensors_have_no_holder() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.extra = [nn.Linear(2, 2, bias=False)]  # type: ignore[assignment]
    places = {place.path: place for place in held_leaves(model).values()}
    assert {path: place.holder is None for path, place in places.items()} == {
        "0.weight": True,
        "0.bias": True,
        "extra[0].weight": False,
    }
    assert places["extra[0].weight"].in_module
    assert not places["0.weight"].in_module


def test_functions_classes_and_python_modules_are_not_searched() -> None:
    def function() -> None: ...

    function.weight = leaf()  # type: ignore[attr-defined]
    holder = type("Holder", (), {"weight": leaf()})
    assert paths([function, holder, torch]) == []


def test_the_search_ends_in_a_large_data_set() -> None:
    rows: list[Any] = [[number] for number in range(MOST_OBJECTS)]
    assert paths({"near": leaf(), "rows": rows, "far": [[[leaf()]]]}) == ["['near']"]
