"""Python code for what a text names: places, inputs and losses."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Collection, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ..records.calls import parse_call
from ..records.text import as_code
from .inputs import Drawn, named_texts, parse_tensor
from .losses import torch_loss

__all__ = ["Imports", "inputs_code", "is_found_here_only", "loss_code"]


class Imports:
    """The imports of a test module, by places. No two of them have the same name in it.

    Args:
        reserved: Names that the module uses otherwise.
    """

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self._names: dict[str, tuple[str, str]] = {}

    def name(self, place: str) -> str:
        """Import the object at ``package.module:name``.

        >>> found = Imports()
        >>> found.name("shop.net:make"), found.name("shop.data:make"), found.name("shop.net:Net.build")
        ('make', 'data_make', 'Net.build')
        >>> found.lines
        ['from shop.net import make, Net', 'from shop.data import make as data_make']

        Returns:
            The expression that names the object.
        """
        module, _, path = place.partition(":")
        first, dot, rest = path.partition(".")
        further = (f"my_{first}{'_' * count}" for count in itertools.count())
        candidates = itertools.chain((first, f"{module.rpartition('.')[2]}_{first}"), further)
        name = next(name for name in candidates if not self._is_taken(name, (module, first)))
        self._names[name] = (module, first)
        return f"{name}{dot}{rest}"

    def _is_taken(self, name: str, found: tuple[str, str]) -> bool:
        # pytest would take a factory test_net for a test.
        is_test = name.lower().startswith("test")
        return is_test or name in self._reserved or self._names.get(name, found) != found

    @property
    def modules(self) -> list[str]:
        """Names of the imported modules."""
        return list(dict.fromkeys(module for module, _ in self._names.values()))

    @property
    def lines(self) -> list[str]:
        """One line for each module."""
        return [f"from {module} import {', '.join(self._of(module))}" for module in self.modules]

    def _of(self, module: str) -> list[str]:
        found = [(first, name) for name, (origin, first) in self._names.items() if origin == module]
        return [first if first == name else f"{first} as {name}" for first, name in found]


def inputs_code(texts: Sequence[str]) -> str:
    """Return the expression of ``generator`` that draws what texts describe, as :func:`drawn_inputs` does.

    >>> inputs_code(["8x16"]), inputs_code(["mask:4x16", "8"])
    ('torch.randn(8, 16, generator=generator)', '(torch.ones((4, 16), dtype=torch.long), torch.randn(8, generator=generator))')

    Args:
        texts: One text per argument of the model; none is a place.
    """
    named = named_texts(texts)
    if named:
        return "{" + ", ".join(f'"{name}": {_tensor_code(parse_tensor(text))}' for name, text in named.items()) + "}"
    parts = [_tensor_code(parse_tensor(text)) for text in texts]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _tensor_code(tensor: Drawn) -> str:
    if tensor.kind == "mask":
        return f"torch.ones({tensor.shape}, dtype=torch.long)"
    if tensor.kind == "ids":
        return f"torch.randint({tensor.below}, {tensor.shape}, generator=generator)"
    return f"torch.randn({', '.join(map(str, tensor.shape))}, generator=generator)"


def loss_code(text: str) -> str:
    """Return the expression of a loss of torch, with ``nn`` and ``torch.nn.functional`` as ``F``.

    >>> loss_code("mse"), loss_code("CrossEntropyLoss"), loss_code("nn.CrossEntropyLoss(label_smoothing=0.1)")
    ('F.mse_loss', 'nn.CrossEntropyLoss()', 'nn.CrossEntropyLoss(label_smoothing=0.1)')

    Args:
        text: As in :func:`~pytest_trainability.sources.losses.named_loss`, but no place.
    """
    call = parse_call(text)
    name, found = torch_loss(call, text)
    if not isinstance(found, type):
        return f"F.{name}"
    values = [_literal(value) for value in call.args]
    values += [f"{key}={_literal(value)}" for key, value in call.kwargs.items()]
    return f"nn.{name}({', '.join(values)})"


def _literal(value: Any) -> str:
    is_number = isinstance(value, float)
    return f'float("{value}")' if is_number and not math.isfinite(value) else as_code(value)


def is_found_here_only(module: str) -> bool:
    """Return whether a module can be imported from the current folder only, so that a test elsewhere must add it to the path.

    Args:
        module: Name of a module that can be imported.
    """
    top, here = module.partition(".")[0], Path.cwd().resolve()
    elsewhere = [path for path in sys.path if path and Path(path).resolve() != here]
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (find(top, elsewhere) if finder is PathFinder else find(top, None)) is not None:
            return False
    return True
