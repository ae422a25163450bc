"""Rules of a contract: what the entries of a parameter or buffer must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import UsageError
from .laws import Law
from .places import Place

__all__ = [
    "Anything",
    "Copied",
    "Drawn",
    "Fixed",
    "Orthogonal",
    "Packed",
    "Piece",
    "Rule",
    "RuleLike",
    "Tied",
    "ZeroRow",
    "pieces_of",
    "resolved",
]


class Rule:
    """What the entries of a parameter or buffer must be. The functions of :mod:`pytest_trainability.init` make rules."""

    __slots__ = ()
    text: str
    """The call that makes the rule, such as ``init.normal(std=0.02)``."""

    def __repr__(self) -> str:
        return self.text

    def with_zero_row(self, row: int) -> Rule:
        """Return the rule for a tensor with one row of zeros, such as the padding row of an embedding.

        >>> from pytest_trainability import init
        >>> init.normal(std=0.02).with_zero_row(0)
        init.normal(std=0.02).with_zero_row(0)

        Args:
            row: Index of the row; negative indices count from the end.

        Returns:
            The rule.

        Raises:
            UsageError: The row is not a whole number.
        """
        if not isinstance(row, int) or isinstance(row, bool):
            msg = f"with_zero_row() needs the index of a row, such as padding_idx. Got {row!r}."
            raise UsageError(msg)
        return ZeroRow(f"{self.text}.with_zero_row({row})", self, row)


RuleLike: TypeAlias = "Rule | Callable[[tuple[int, ...]], Rule]"
"""A rule, or a function of the shape that returns one."""


@dataclass(frozen=True, slots=True, repr=False)
class Drawn(Rule):
    """Independent entries from a distribution, which may depend on the shape."""

    text: str
    law: Callable[[Place], Law]


@dataclass(frozen=True, slots=True, repr=False)
class Fixed(Rule):
    """Known entries: the rule returns them, in a shape that can be expanded to that of the tensor."""

    text: str
    values: Callable[[Place], Tensor]


@dataclass(frozen=True, slots=True, repr=False)
class Orthogonal(Rule):
    """A matrix with orthonormal rows or columns, times a gain; further dimensions are joined to the second one."""

    text: str
    gain: float


@dataclass(frozen=True, slots=True, repr=False)
class Tied(Rule):
    """The same tensor as another parameter."""

    text: str
    to: str | None
    """Name of the other parameter; None for any parameter with an earlier name."""


@dataclass(frozen=True, slots=True, repr=False)
class Copied(Rule):
    """Another tensor with the same entries as another parameter."""

    text: str
    of: str


@dataclass(frozen=True, slots=True, repr=False)
class Anything(Rule):
    """No statement."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True, repr=False)
class Packed(Rule):
    """Several rules for consecutive slices along a dimension."""

    text: str
    rules: tuple[RuleLike, ...]
    dim: int
    sizes: tuple[int, ...] | None
    """Sizes of the slices; None for equal ones."""


@dataclass(frozen=True, slots=True, repr=False)
class ZeroRow(Rule):
    """A rule for all rows but one, which is zero."""

    text: str
    rule: Rule
    row: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor for which one rule holds."""

    rule: Rule
    place: Place
    """Name and shape from which the rule computes fans."""
    tensor: Tensor
    label: str = ""
    """Which part it is, such as ``[0:64]``; empty for the whole tensor."""


def resolved(rule: object, place: Place) -> Rule:
    """Return the rule for a place: a function of the shape is called.

    Raises:
        UsageError: The object is neither a rule nor a function of the shape that returns one.
    """
    if isinstance(rule, Rule):
        return rule
    expected = (
        "A rule is a value of pytest_trainability.init, such as init.normal(std=0.02), or a function of the shape."
    )
    name = getattr(rule, "__name__", "")
    if not callable(rule):
        msg = f"unknown rule {rule!r} for {place.name!r}. {expected}"
        raise UsageError(msg)
    try:
        found = rule(place.shape)
    except Exception as error:
        hint = f" Did you mean init.{name}()?" if getattr(rule, "__module__", "").startswith(__package__) else ""
        msg = f"the rule for {place.name!r} is a function that raised {type(error).__name__}: {error}.{hint} {expected}"
        raise UsageError(msg) from error
    if not isinstance(found, Rule):
        msg = f"the rule for {place.name!r} is a function that returned {type(found).__name__}. {expected}"
        raise UsageError(msg)
    return found


def pieces_of(rule: RuleLike, place: Place, tensor: Tensor) -> list[Piece]:
    """Return the parts of a tensor with one rule each.

    Args:
        rule: The rule, or a function of the shape.
        place: Name and shape of the tensor.
        tensor: The tensor.

    Returns:
        The parts, as views; empty parts are left out.

    Raises:
        UsageError: The rule does not fit the shape, or it is no rule.
    """
    return [piece for piece in _pieces(rule, place, tensor, "") if piece.tensor.numel()]


def _pieces(rule: RuleLike, place: Place, tensor: Tensor, label: str) -> list[Piece]:
    rule = resolved(rule, place)
    if isinstance(rule, ZeroRow):
        return _around_zero_row(rule, place, tensor, label)
    if isinstance(rule, Packed):
        found = []
        for inner, (start, part) in zip(rule.rules, _slices(rule, place, tensor), strict=True):
            where = f"{label}[{':, ' * (rule.dim % tensor.dim())}{start}:{start + part.shape[rule.dim]}]"
            found += _pieces(inner, place.of_shape(part.shape), part, where)
        return found
    return [Piece(rule, place, tensor, label)]


def _around_zero_row(rule: ZeroRow, place: Place, tensor: Tensor, label: str) -> list[Piece]:
    rows = tensor.shape[0] if tensor.dim() else 0
    if not -rows <= rule.row < rows:
        msg = f"the row of {rule!r} must exist. {place.name!r} has the shape {place.shape}."
        raise UsageError(msg)
    row = rule.row % rows
    zero = Fixed("init.zeros()", lambda place: torch.zeros(()))
    others = [*_pieces(rule.rule, place, tensor[:row], label), *_pieces(rule.rule, place, tensor[row + 1 :], label)]
    return [Piece(zero, place, tensor[row], f"{label}[{row}]"), *others]


def _slices(rule: Packed, place: Place, tensor: Tensor) -> Sequence[tuple[int, Tensor]]:
    """Return the start and the slice of each rule of a packed tensor."""
    dims = tensor.dim()
    if not -dims <= rule.dim < dims:
        msg = f"{rule!r} needs the dimension {rule.dim}. {place.name!r} has the shape {place.shape}."
        raise UsageError(msg)
    length, count = tensor.shape[rule.dim], len(rule.rules)
    sizes = rule.sizes or (length // count,) * count
    if sum(sizes) != length:
        msg = (
            f"the slices of {rule!r} must fill dimension {rule.dim}, which has {length} entries. They have {sizes}. "
            f"{place.name!r} has the shape {place.shape}."
        )
        raise UsageError(msg)
    starts = [sum(sizes[:i]) for i in range(count)]
    return list(zip(starts, torch.split(tensor, list(sizes), rule.dim), strict=True))
