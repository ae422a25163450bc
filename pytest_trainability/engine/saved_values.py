"""The values that a run of a model may change: how each kind is found, saved and given back.

See Note [What is saved].
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from operator import is_
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .torch_internals import (
    PARAMETRIZED,
    TABLE_NAMES,
    buffer_table,
    child_table,
    is_lazy,
    is_packed,
    parameter_table,
    script_attributes,
    set_script_attribute,
    set_tensor_hooks,
    tensor_hooks,
)

__all__ = ["Saved", "SavedModule", "SavedTensor", "saved_values"]

# Note [What is saved]
# ~~~~~~~~~~~~~~~~~~~~
# The walk starts at a module and follows what it holds: parameters, buffers, submodules, hooks and other attributes, also those
# in ``__slots__``; the items of tuples, lists, dictionaries, sets and deques; the attributes of dataclasses and namespaces. A
# module that a list hides from ``model.modules()`` is a module as any other.
#
# The walk ends at objects of other classes, and at what functions hold. Such an object may have a thread, a file or a lock, whose
# state would no longer fit the attributes that are put back, or may hold a whole data set. The attribute is restored, and what is
# within the object stays as the run has left it. The same holds for attributes of classes, which belong to other models as well.
#
# A tensor that a differentiable operation has returned, such as an activation that a model keeps, is no state of the model: only
# the attribute is restored. If it is registered as a buffer, its numbers are restored, and its place in the graph is not.


class Saved(Protocol):
    """The former state of one object."""

    value: Any

    def restore(self) -> None:
        """Give the object its former state back. It may be interrupted, and called again."""


def saved_values(model: nn.Module) -> list[Saved]:
    """Save everything that a run of a model may change. See Note [What is saved].

    Returns:
        What was saved, in an order in which it can be restored: a gradient comes before its parameter.
    """
    return _Walk(model).found


class _Walk:
    """Follows what a model holds, each object once."""

    def __init__(self, model: nn.Module) -> None:
        self.found: list[Saved] = []
        self._seen: set[int] = set()
        self._waiting: list[Any] = [model]
        kinds = _Kinds(_KNOWN)
        while self._waiting:
            value = self._waiting.pop()
            add = kinds[type(value)]
            if add is not None and id(value) not in self._seen:
                self._seen.add(id(value))
                add(self, value)

    def _follow(self, values: Iterable[Any]) -> None:
        self._waiting += [value for value in values if type(value) not in _ATOMS]

    def add_module(self, module: nn.Module) -> None:
        self._waiting += [child for child in child_table(module).values() if child is not None]
        for table in (parameter_table(module), buffer_table(module)):
            for tensor in table.values():
                if tensor is not None and id(tensor) not in self._seen:
                    self._seen.add(id(tensor))
                    self._add_numbers(tensor)
        if isinstance(module, torch.jit.ScriptModule):
            script = SavedScript(module)
            self.found.append(script)
            self._follow(script.attributes.values())
            return
        saved = SavedModule(module)
        self.found.append(saved)
        self._waiting += [
            value for name, value in saved.attributes.items() if type(value) not in _ATOMS and name not in saved.tables
        ]
        for name, (_, items) in saved.tables.items():
            if items and name.endswith("_hooks"):
                self._follow(items.values())
        self._add_slots(module)

    def add_tensor(self, tensor: Tensor) -> None:
        if tensor.grad_fn is None:
            self._add_numbers(tensor)
        else:
            # It may be registered elsewhere.
            self._seen.discard(id(tensor))

    def _add_numbers(self, tensor: Tensor) -> None:
        if type(tensor) not in _KNOWN and is_lazy(tensor):
            self.found.append(SavedLazyTensor(tensor))
            return
        if tensor.is_meta:
            return
        is_leaf = tensor.is_leaf
        # Reading the gradient of another tensor gives a warning.
        gradient = tensor.grad if is_leaf else None
        if gradient is not None and id(gradient) not in self._seen:
            self._seen.add(id(gradient))
            self._add_numbers(gradient)
        saved = SavedTensor(tensor, gradient, is_leaf=is_leaf)
        self.found.append(saved)
        if saved.attributes:
            self._follow(saved.attributes.values())

    def add_items(self, items: Iterable[Any]) -> None:
        self._follow(items)

    def add_container(self, container: Any) -> None:
        saved = SavedContainer(container)
        self.found.append(saved)
        self._follow(saved.items.values() if isinstance(saved.items, dict) else saved.items)
        if type(container) not in _KNOWN:
            self.add_record(container)

    def add_record(self, record: Any) -> None:
        if hasattr(record, "__dict__"):
            saved = SavedContainer(vars(record))
            self.found.append(saved)
            self._follow(saved.items.values())
        self._add_slots(record)

    def _add_slots(self, owner: Any) -> None:
        slots = _slots_of(type(owner))
        if slots:
            saved = SavedSlots(owner, slots)
            self.found.append(saved)
            self._follow(saved.values.values())

    def add_generator(self, generator: Any) -> None:
        if not any(generator is one for one in _global_generators()):
            self.found.append(SavedGenerator(generator))

    def add_array(self, array: Any) -> None:
        if array.flags.writeable:
            self.found.append(SavedArray(array))


# Tensors ---------------------------------------------------------------------------------------------------------
class SavedTensor:
    """Numbers, memory, gradient, ``requires_grad``, hooks and attributes of a tensor.

    A run may give the tensor other memory, of another shape or type, by ``tensor.data = …``, ``resize_`` or ``set_``. The former
    memory is put back, as other tensors may share it.

    Args:
        value: The tensor.
        gradient: Its ``.grad``, which is saved itself.
        is_leaf: Whether it is a leaf of the autograd graph.
    """

    __slots__ = (
        "_alias",
        "_bytes",
        "_gradient",
        "_hook_items",
        "_hooks",
        "_is_leaf",
        "_memory",
        "_numbers",
        "_requires_grad",
        "_storage",
        "attributes",
        "value",
    )

    def __init__(self, value: Tensor, gradient: Tensor | None, *, is_leaf: bool) -> None:
        self.value, self._gradient, self._is_leaf, self._requires_grad = value, gradient, is_leaf, value.requires_grad
        # What is written to `Tensor.data` is written to the tensor, and autograd does not notice.
        self._alias = alias = value.data
        # Nor can packed numbers be compared.
        is_comparable = _is_set_to(value, alias) and not is_packed(value)
        self._storage = alias.untyped_storage() if is_comparable else None
        self._bytes = 0 if self._storage is None else self._storage.nbytes()
        self._memory = _written_once(alias) if is_comparable else alias
        # A model may free memory for a while, by `tensor.untyped_storage().resize_(0)`. Reading it would end the process.
        is_freed = self._storage is not None and not self._bytes and alias.numel() > 0
        self._numbers = None if is_freed else self._memory.clone()
        self._hooks = tensor_hooks(value) if is_leaf else _NO_HOOKS
        self._hook_items = _NO_HOOKS
        if self._hooks != _NO_HOOKS:
            self._hook_items = tuple(None if table is None else dict(table) for table in self._hooks)
        attributes = vars(value)
        self.attributes = dict(attributes) if attributes else None

    def restore(self) -> None:
        """Give the tensor its former state back."""
        tensor = self.value
        if self._storage is not None:
            self._put_back(self._storage)
        elif self._numbers is not None:
            _restore_numbers(tensor, self._numbers)
        if self._is_leaf and (self._is_as_it_was() or self._return_to_leaf()):
            if tensor.grad is not self._gradient:
                tensor.grad = self._gradient
            if self._hooks != _NO_HOOKS or tensor_hooks(tensor) != _NO_HOOKS:
                self._restore_hooks()
        if self.attributes or vars(tensor):
            _refill(vars(tensor), self.attributes or {})

    def _put_back(self, storage: torch.UntypedStorage) -> None:
        tensor, alias, memory, numbers = self.value, self._alias, self._memory, self._numbers
        if tensor.dtype != alias.dtype or not _is_set_to(tensor, alias):
            tensor.data = alias
        if storage.nbytes() < self._bytes or numbers is None:
            storage.resize_(self._bytes)
        if numbers is not None and not _are_equal(memory, numbers):
            memory.copy_(numbers)

    def _is_as_it_was(self) -> bool:
        return self.value.is_leaf and self.value.requires_grad == self._requires_grad

    def _return_to_leaf(self) -> bool:
        """Take the tensor out of the graph that the run has added it to, and return whether PyTorch can."""
        tensor = self.value
        if not tensor.is_leaf:
            try:
                tensor.detach_()
            except RuntimeError:
                # It is a view. Its numbers are restored.
                return False
        if tensor.requires_grad != self._requires_grad:
            tensor.requires_grad_(self._requires_grad)
        return True

    def _restore_hooks(self) -> None:
        if any(now is not then for now, then in zip(tensor_hooks(self.value), self._hooks)):
            set_tensor_hooks(self.value, self._hooks)
        for table, items in zip(self._hooks, self._hook_items):
            if table is not None:
                _refill(table, items, _base_of(table))


_NO_HOOKS: tuple[Any, ...] = (None, None)
_INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.complex64: torch.int64,
}
"""Integers of the size of a number."""
_MANY = 4096
"""Number of entries from which wider integers, of which there are fewer, are compared faster."""


def _are_equal(memory: Tensor, numbers: Tensor) -> bool:
    """Return whether tensors of one shape and type are equal to the last bit: NaN is, and zero and minus zero are not."""
    integers = _INTEGERS.get(memory.dtype)
    if integers is None:
        return torch.equal(memory, numbers)
    if memory.numel() >= _MANY and memory.is_contiguous() and numbers.is_contiguous():
        memory, numbers = memory.flatten(), numbers.flatten()
        size = memory.element_size()
        if not (memory.numel() * size) % 8 and not (memory.storage_offset() * size) % 8:
            integers = torch.int64
    return torch.equal(memory.view(integers), numbers.view(integers))


def _is_set_to(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same memory, as far as PyTorch can tell.

    It cannot for sparse, nested and quantized tensors, on different devices, and for some subclasses.
    """
    try:
        return tensor.is_set_to(other)
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return False


def _written_once(tensor: Tensor) -> Tensor:
    """Return the part of an expanded tensor that has each entry once: PyTorch does not write to several at one place."""
    if 0 in tensor.stride():
        for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride())):
            if size > 1 and not stride:
                tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def _restore_numbers(tensor: Tensor, numbers: Tensor) -> None:
    """Restore the numbers of a tensor whose memory cannot be compared."""
    # The data of a sparse tensor in coordinate format is another tensor, in which a copy would be lost.
    if not numbers.is_sparse and (tensor.device, tensor.dtype) == (numbers.device, numbers.dtype):
        try:
            tensor.data.copy_(numbers)
        except RuntimeError:
            # Another shape, or another number of entries that are stored.
            pass
        else:
            return
    # A copy, as the numbers may be needed again.
    tensor.data = numbers.clone()


class SavedLazyTensor:
    """A parameter or a buffer of a lazy module, to which the first run gives a shape."""

    __slots__ = ("_attributes", "_kind", "_requires_grad", "value")

    def __init__(self, value: Tensor) -> None:
        self.value, self._kind, self._requires_grad = value, type(value), value.requires_grad
        self._attributes = dict(vars(value))

    def restore(self) -> None:
        """Take its shape and its numbers away again."""
        tensor = self.value
        if not is_lazy(tensor):
            tensor.grad = None
            tensor.data = tensor.data.new_empty(0)
            tensor.requires_grad_(self._requires_grad)
            tensor.__class__ = self._kind  # as ``materialize`` does in the other direction
        _refill(vars(tensor), self._attributes)


# Modules and other objects ---------------------------------------------------------------------------------------
class SavedModule:
    """Class, attributes, and tables of parameters, buffers, submodules and hooks of a module.

    A parametrization that is registered or removed gives the module another class, or its class other properties.
    """

    __slots__ = ("_class", "_properties", "attributes", "tables", "value")

    def __init__(self, value: nn.Module) -> None:
        self.value, self._class = value, type(value)
        self.attributes = dict(vars(value))
        found: Iterable[tuple[str, Any]] = ((name, self.attributes.get(name)) for name in TABLE_NAMES)
        # Most are empty, and a copy of an OrderedDict is slow.
        self.tables = {name: (table, dict(table) if table else None) for name, table in found if type(table) in _TABLES}
        """The tables of PyTorch and their items, by name of the attribute."""
        self._properties = _properties_of(self._class) if self._class.__name__.startswith(PARAMETRIZED) else None

    def restore(self) -> None:
        """Give the module its former state back."""
        module = self.value
        if type(module) is not self._class:
            # Past a method `__setattr__` of the model.
            object.__setattr__(module, "__class__", self._class)
        if self._properties is not None:
            self._restore_properties(self._properties)
        current = vars(module)
        current.clear()
        current.update(self.attributes)
        for table, items in self.tables.values():
            if items is not None or table:
                table.clear()
                table.update(items or {})

    def _restore_properties(self, properties: dict[str, property]) -> None:
        # The class was made for this module alone.
        now = _properties_of(self._class)
        for name in now.keys() - properties.keys():
            delattr(self._class, name)
        for name, found in properties.items():
            if now.get(name) is not found:
                setattr(self._class, name, found)


_TABLES = frozenset({dict, OrderedDict})
"""Types of PyTorch's tables. One of another type is restored as any other container."""


def _properties_of(cls: type) -> dict[str, property]:
    return {name: value for name, value in vars(cls).items() if isinstance(value, property)}


class SavedScript:
    """Attributes of a scripted module, which lie outside Python: tensors, numbers, texts, and lists and the like of these."""

    __slots__ = ("attributes", "value")

    def __init__(self, value: torch.jit.ScriptModule) -> None:
        self.value = value
        found = script_attributes(value)
        self.attributes = {name: held for name, held in found.items() if isinstance(held, _SCRIPT_TYPES)}

    def restore(self) -> None:
        """Set the attributes that differ."""
        now = script_attributes(self.value)
        for name, held in self.attributes.items():
            # A list is another one each time it is read.
            same = now.get(name) is held or (type(held) in _ATOMS and now.get(name) == held)
            if not same:
                set_script_attribute(self.value, name, held)


_SCRIPT_TYPES = (bool, int, float, complex, str, type(None), Tensor, list, tuple, dict)


class SavedSlots:
    """Attributes that lie in the ``__slots__`` of an object.

    Args:
        value: The object.
        slots: The slots of its class.
    """

    __slots__ = ("_slots", "value", "values")

    def __init__(self, value: Any, slots: list[Any]) -> None:
        self.value, self._slots = value, slots
        self.values = self._read()
        """Values by number of the slot; an empty slot has none."""

    def _read(self) -> dict[int, Any]:
        values = (_slot_value(slot, self.value) for slot in self._slots)
        return {number: value for number, value in enumerate(values) if value is not _EMPTY}

    def restore(self) -> None:
        """Set or empty the slots that differ."""
        now = self._read()
        for number, slot in enumerate(self._slots):
            if number not in self.values:
                if number in now:
                    slot.__delete__(self.value)
            elif number not in now or now[number] is not self.values[number]:
                slot.__set__(self.value, self.values[number])


_EMPTY = object()


def _slot_value(slot: Any, owner: Any) -> Any:
    try:
        return slot.__get__(owner)
    except AttributeError:
        return _EMPTY


def _slots_of(cls: type) -> list[Any]:
    return [
        member
        for base in cls.__mro__
        if "__slots__" in base.__dict__
        for member in base.__dict__.values()
        if type(member) is MemberDescriptorType
    ]


# Containers ------------------------------------------------------------------------------------------------------
_BASES: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
"""Built-in classes of containers whose items may be exchanged. An OrderedDict keeps its order elsewhere than a dictionary."""


class SavedContainer:
    """Items of a container, by the methods of the built-in class: a subclass may do more when it is written to."""

    __slots__ = ("_base", "items", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self._base: Any = _base_of(value)
        self.items: Any = _items_of(value, self._base)

    def restore(self) -> None:
        """Give the container its former items back, unless it still holds them in the same order."""
        _refill(self.value, self.items, self._base)


def _base_of(container: Any) -> Any:
    return next(base for base in _BASES if isinstance(container, base))


def _items_of(container: Any, base: Any) -> Any:
    if type(container) is dict or base is set:
        # Without asking the keys for their hashes again.
        return base(container)
    return dict(base.items(container)) if issubclass(base, dict) else list(base.__iter__(container))


def _refill(container: Any, items: Any, base: Any = dict) -> None:
    now = _items_of(container, base)
    if len(now) == len(items) and _are_same(now, items):
        return
    base.clear(container)
    if base is OrderedDict:
        for key, value in items.items():
            OrderedDict.__setitem__(container, key, value)
    else:
        (base.update if base in {dict, set} else base.extend)(container, items)


def _are_same(now: Any, items: Any) -> bool:
    """Return whether two containers of one length hold the same objects, in the same order if they have one."""
    if isinstance(now, set):
        return {*map(id, now)} == {*map(id, items)}
    if isinstance(now, dict) and not all(map(is_, now.values(), items.values())):
        return False
    return all(map(is_, now, items))


# Generators and arrays -------------------------------------------------------------------------------------------
class SavedGenerator:
    """State of a generator of random numbers that a model has as its own: torch's, numpy's or Python's."""

    __slots__ = ("_state", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        if hasattr(value, "getstate"):
            self._state = value.getstate()
        else:
            self._state = value.get_state() if hasattr(value, "get_state") else value.state

    def restore(self) -> None:
        """Set the former state."""
        if hasattr(self.value, "setstate"):
            self.value.setstate(self._state)
        elif hasattr(self.value, "set_state"):
            self.value.set_state(self._state)
        else:
            self.value.state = self._state


def _global_generators() -> list[Any]:
    """Return the generators of the process, which :func:`~.isolation.preserved_generators` restores."""
    readers: list[Any] = [random.getstate]
    if "numpy.random" in sys.modules:
        readers.append(sys.modules["numpy.random"].get_state)
    return [
        torch.default_generator,
        *torch.cuda.default_generators,
        *(getattr(reader, "__self__", None) for reader in readers),
    ]


class SavedArray:
    """Numbers and shape of a numpy array."""

    __slots__ = ("_numbers", "value")

    def __init__(self, value: Any) -> None:
        self.value, self._numbers = value, value.copy()

    def restore(self) -> None:
        """Write the former numbers."""
        if self.value.shape != self._numbers.shape:
            self.value.resize(self._numbers.shape, refcheck=False)
        self.value[...] = self._numbers


# Kinds -----------------------------------------------------------------------------------------------------------
_ATOMS = frozenset(
    {bool, int, float, complex, str, bytes, type(None), type, FunctionType, BuiltinFunctionType, MethodType}
    | {torch.dtype, torch.device, torch.Size}
)
"""Types of values that hold nothing that a run may change. Most attributes are of these."""
_Add = Callable[[_Walk, Any], None]
_KNOWN: dict[type, _Add | None] = {
    **dict.fromkeys(_ATOMS),
    **dict.fromkeys((tuple, frozenset), _Walk.add_items),
    **dict.fromkeys(_BASES, _Walk.add_container),
    **dict.fromkeys((Tensor, nn.Parameter), _Walk.add_tensor),
}


class _Kinds(dict[type, "_Add | None"]):
    """What the walk does with values of a type."""

    def __missing__(self, cls: type) -> _Add | None:
        found = self[cls] = _kind_of(cls)
        return found


def _kind_of(cls: type) -> _Add | None:
    """Return what the walk does with values of a type. It asks the type, as an object may pretend to be of another one."""
    for bases, add in _ROLES:
        if issubclass(cls, bases):
            return add
    if is_dataclass(cls):
        return _Walk.add_record
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        if cls is sys.modules["numpy"].ndarray:
            return _Walk.add_array
        if issubclass(cls, numpy.Generator):
            return lambda walk, value: walk.add_items([value.bit_generator])
        if issubclass(cls, (numpy.BitGenerator, numpy.RandomState)):
            return _Walk.add_generator
    return None


_ROLES: tuple[tuple[Any, _Add | None], ...] = (
    (nn.Module, _Walk.add_module),
    (Tensor, _Walk.add_tensor),
    ((tuple, frozenset), lambda walk, value: walk.add_items(_plainly(value))),
    (_BASES, _Walk.add_container),
    (SimpleNamespace, _Walk.add_record),
    (random.SystemRandom, None),
    ((torch.Generator, random.Random), _Walk.add_generator),
)


def _plainly(value: Any) -> Iterable[Any]:
    """Return the items of an instance of a subclass of tuple or frozenset, which may define other ones to be read."""
    return tuple.__iter__(value) if isinstance(value, tuple) else frozenset.__iter__(value)
