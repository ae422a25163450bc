"""The modules of a model by identity: a class may define ``__eq__`` and ``__hash__``, and two blocks of it are still two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import MethodType
from typing import TypeVar

from torch import nn

from .torch_internals import child_table

__all__ = ["ByModule", "children_of", "modules_behind", "modules_of", "named_modules_of"]

_Value = TypeVar("_Value")


def named_modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module as ``model.named_modules()`` does, and modules that are equal to an earlier one, too."""
    seen: set[int] = set()
    pending: list[tuple[str, nn.Module]] = [("", model)]
    while pending:
        path, module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        children = [(f"{path}.{name}" if path else name, child) for name, child in child_table(module).items()]
        pending += [(name, child) for name, child in reversed(children) if child is not None]


def children_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the direct children of a module, each place once."""
    return (child for child in child_table(module).values() if child is not None)


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of :func:`named_modules_of`."""
    return (module for _, module in named_modules_of(model))


def modules_behind(function: object) -> list[nn.Module]:
    """Return the modules that a function is, is a method of, or has bound as arguments (``functools.partial``)."""
    found: list[nn.Module] = []
    pending = [function]
    while pending:
        value = pending.pop()
        if isinstance(value, nn.Module):
            found.append(value)
        elif isinstance(value, partial):
            pending += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            pending.append(value.__self__)
    return found


class ByModule(Mapping[nn.Module, _Value]):
    """Values by module. Equal modules are different keys."""

    def __init__(self, items: Iterable[tuple[nn.Module, _Value]] = ()) -> None:
        self._items = {id(module): (module, value) for module, value in items}

    def __setitem__(self, module: nn.Module, value: _Value) -> None:
        self._items[id(module)] = module, value

    def __getitem__(self, module: nn.Module) -> _Value:
        return self._items[id(module)][1]

    def __contains__(self, module: object) -> bool:
        return id(module) in self._items

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for module, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)
