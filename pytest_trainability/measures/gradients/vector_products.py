"""Weights that multiply one vector per sample. Their per-sample gradients are outer products, of which the factors suffice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from ...engine.trees import tensors_in

__all__ = ["ShiftedProducts", "VectorProducts"]


class VectorProducts(TorchFunctionMode):
    """Finds the weights that a run on one sample uses once, to multiply one vector by ``torch.nn.functional.linear``.

    Uses that are no PyTorch function, as in a custom autograd function, are not seen. Their part of the gradient is missing in
    the outer products, by which they are to be noticed.

    Args:
        parameters: Parameters by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._uses = Counter[str]()
        self._shapes: dict[str, torch.Size] = {}

    @property
    def found(self) -> dict[str, torch.Size]:
        """Shapes of the products, by the name of the weight."""
        return {name: shape for name, shape in self._shapes.items() if self._uses[name] == 1}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        used = [self._names[id(t)] for t in tensors_in([args, kwargs]) if id(t) in self._names]
        # What returns no tensor reads an attribute, such as a shape.
        if used and any(True for _ in tensors_in(result)):
            self._uses.update(used)
            if func is linear:
                self._note(result, *_factors(args, kwargs))
        return result

    def _note(self, product: Tensor, vector: Tensor, weight: Tensor) -> None:
        # The gradient of half precision is rounded, and that of complex numbers is conjugate.
        is_plain = product.dtype == weight.dtype and weight.dtype in {torch.float32, torch.float64}
        if is_plain and id(weight) in self._names and vector.numel() == weight.shape[-1]:
            self._shapes[self._names[id(weight)]] = product.shape


class ShiftedProducts(TorchFunctionMode):
    """Adds a shift to the products with some weights: the gradient with respect to the shift is that with respect to the product.

    Args:
        weights: The weights by name.
        shifts: Zeros of the shapes of the products, by the same names.
    """

    def __init__(self, weights: Mapping[str, Tensor], shifts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._shifts = shifts
        self.vectors: dict[str, Tensor] = {}
        """What the weights multiply, by the names of the weights."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not linear:
            return result
        vector, weight = _factors(args, kwargs)
        name = self._names.get(id(weight))
        if name is None:
            return result
        self.vectors[name] = vector
        return result + self._shifts[name]


def _factors(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[Tensor, Tensor]:
    """Return the first two arguments of ``linear``, which may be given by name."""
    given = dict(zip(("input", "weight"), args), **(kwargs or {}))
    return given["input"], given["weight"]
