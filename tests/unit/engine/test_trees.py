"""Trees: tensors inside of nested containers."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.utils._pytree
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from pytest_trainability.engine.trees import (
    batch_size,
    carries_gradient,
    is_empty,
    is_float,
    map_tensors,
    named_tensors,
    tensors_in,
    to_tensor_like,
    with_tensors,
)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Output:
    logits: Any
    note: str = "kept"


class Cache:
    """An object that is not a container."""

    def __init__(self) -> None:
        self.keys = torch.ones(1)


a, b, c, d = (torch.full((2,), float(i)) for i in range(4))
TREE = {"x": [a, (b, None)], "y": Pair(Output(c), MappingProxyType({"z": d})), "cache": Cache(), "text": "word"}


def test_tensors_are_found_depth_first() -> None:
    assert [id(t) for t in tensors_in(TREE)] == [id(t) for t in (a, b, c, d)]
    assert list(tensors_in(a)) == [a]
    assert list(tensors_in(Output)) == []


def test_a_tensor_that_occurs_twice_is_found_twice_and_a_container_once() -> None:
    shared = [a]
    assert len(list(tensors_in([a, a]))) == 2
    assert len(list(tensors_in([shared, shared]))) == 1


def test_a_tree_that_contains_itself() -> None:
    tree: list[Any] = [a]
    tree.append(tree)
    assert list(tensors_in(tree)) == [a]


def test_mapping_keeps_structure_and_other_leaves() -> None:
    found = map_tensors(TREE, lambda t: t + 10)
    assert [t.tolist() for t in tensors_in(found)] == [[10 + i] * 2 for i in range(4)]
    assert type(found["y"]) is Pair and type(found["y"].left) is Output and found["y"].left.note == "kept"
    assert found["cache"] is TREE["cache"] and found["text"] == "word" and found["x"][1][1] is None
    assert isinstance(found["y"].right, Mapping)
    assert next(iter(tensors_in(TREE))) is a and found["x"] is not TREE["x"]


def test_mapping_keeps_the_type_of_a_dictionary() -> None:
    tree = OrderedDict(second=a, first=b)
    found = map_tensors(tree, torch.neg)
    assert type(found) is OrderedDict and list(found) == ["second", "first"]
    assert tree["second"] is a


def test_mapping_a_packed_sequence_leaves_its_lengths_alone() -> None:
    """Its data and indices are changed, but not its batch sizes, which PyTorch requires on the CPU."""
    packed = pack_padded_sequence(torch.ones(2, 3, 1), torch.tensor([1, 3]), batch_first=True, enforce_sorted=False)
    found = map_tensors(packed, lambda t: t * 2)
    assert torch.equal(found.data, packed.data * 2) and torch.equal(found.batch_sizes, packed.batch_sizes)
    assert torch.equal(found.sorted_indices, packed.sorted_indices * 2)
    ordered = pack_padded_sequence(torch.ones(2, 3, 1), torch.tensor([3, 1]), batch_first=True)
    assert map_tensors(ordered, lambda t: t).sorted_indices is None


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.complex64, True), (torch.int64, False), (torch.bool, False)],
    ids=str,
)
def test_is_float(dtype: torch.dtype, expected: bool) -> None:
    assert is_float(torch.ones(2, dtype=dtype)) == expected


def test_carries_gradient() -> None:
    leaf = torch.ones(2, requires_grad=True)
    assert carries_gradient(leaf) and carries_gradient(leaf * 2)
    assert not carries_gradient(torch.ones(2)) and not carries_gradient((leaf * 2).detach())


def test_batch_size_is_the_length_of_the_first_tensor_with_dimensions() -> None:
    assert batch_size({"scale": torch.tensor(2.0), "x": torch.ones(5, 3), "y": torch.ones(7)}) == 5
    assert batch_size([torch.tensor(2.0), "text"]) is None


def test_is_empty() -> None:
    assert is_empty([torch.ones(2), torch.ones(3, 0)])
    assert not is_empty([torch.ones(2), torch.tensor(0.0)]) and not is_empty([])


def test_only_floating_point_tensors_are_converted() -> None:
    def moved(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
        return to_tensor_like(value, device=torch.device("cpu"), dtype=dtype).dtype

    assert moved(torch.ones(2), torch.float64) == torch.float64
    assert moved(torch.ones(2), None) == torch.float32
    assert moved(torch.ones(2, dtype=torch.int64), torch.float64) == torch.int64
    assert moved(torch.ones(2, dtype=torch.complex64), torch.float64) == torch.complex128
    assert moved(torch.ones(2, dtype=torch.complex64), torch.bfloat16) == torch.complex64
    assert moved(torch.ones(2, dtype=torch.complex128), None) == torch.complex128
    assert to_tensor_like(torch.ones(2), device=torch.device("meta"), dtype=None).is_meta


def test_tensors_are_named_by_their_place() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    tree = {"logits": a, "more": [b, (c,)]}
    assert [(place, id(t)) for place, t in named_tensors(tree)] == [
        ("['logits']", id(a)),
        ("['more'][0]", id(b)),
        ("['more'][1][0]", id(c)),
    ]
    assert [place for place, _ in named_tensors(a)] == [""]
    assert [place for place, _ in named_tensors(Output([b]))] == [".logits[0]"]


def test_the_parameters_of_distributions_are_tensors_of_the_tree() -> None:
    logits, mean, scale = torch.zeros(2, 3), torch.zeros(2), torch.ones(2)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1)
    found = [id(tensor) for tensor in tensors_in((torch.distributions.Categorical(logits=logits), normal))]
    assert {id(mean), id(scale)} <= set(found)
    # The logits are normalized when the distribution is made.
    assert len(set(found)) == 3


class Registered:
    """A container that is registered with PyTorch."""

    def __init__(self, value: Any, name: str) -> None:
        self.value, self.name = value, name


class KeyValueCache(Registered):
    """Holds tensors for later calls."""


for kind in (Registered, KeyValueCache):
    torch.utils._pytree.register_pytree_node(
        kind, lambda node: ([node.value], node.name), lambda children, name, kind=kind: kind(next(iter(children)), name)
    )


def test_registered_containers_are_branches_of_the_tree() -> None:
    held = Registered({"x": torch.ones(2)}, "a")
    assert [tensor.tolist() for tensor in tensors_in([held])] == [[1.0, 1.0]]
    changed = map_tensors((held,), lambda t: t + 1)[0]
    assert isinstance(changed, Registered) and changed.name == "a"
    assert changed.value["x"].tolist() == [2.0, 2.0] and held.value["x"].tolist() == [1.0, 1.0]


def test_key_value_caches_are_not_looked_into() -> None:
    cache = KeyValueCache(torch.ones(2), "a")
    assert not list(tensors_in(cache)) and map_tensors(cache, lambda t: t + 1) is cache


def test_numpy_arrays_become_tensors() -> None:
    tree = {"x": (np.ones((2, 3)), np.arange(3)), "mask": [np.array([True])], "name": "a", "y": torch.ones(1)}
    found = with_tensors(tree)
    assert [t.dtype for t in tensors_in(found)] == [torch.float32, torch.int64, torch.bool, torch.float32]
    assert found["y"] is tree["y"] and found["name"] == "a"
    words = np.array(["a"])
    assert with_tensors(words) is words


def test_a_tree_without_arrays_stays_the_same_object() -> None:
    for tree in ({"x": torch.ones(1)}, [1, (2,)], Pair(1, 2), None):
        assert with_tensors(tree) is tree
    pair = with_tensors(Pair(np.ones(1), 2))
    assert isinstance(pair, Pair) and isinstance(pair.left, Tensor)


def test_a_tensor_of_an_array_does_not_share_its_memory() -> None:
    array = np.zeros(2, dtype=np.float32)
    tensor = with_tensors(array)
    array[0] = 1
    assert tensor.tolist() == [0.0, 0.0]
