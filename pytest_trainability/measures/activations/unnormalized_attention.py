"""Attention whose weights are normalized over another axis than the one that the product with the values sums over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

from ...engine.capture.function_mode import FunctionObserver
from ...engine.capture.recorder import Recorder
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import WeakTensorKeyDictionary, function_transforms_are_active, without_torch_functions
from ...engine.trees import carries_gradient, tensors_in
from ...records.causes import CauseRecord
from ..measure import declare
from .attention import NEITHER_SCORES_NOR_WEIGHTS, OF_OTHER_SHAPE

__all__ = ["unnormalized_attention"]

_FACTORS = {"matmul": (0, 1), "rmatmul": (1, 0), "bmm": (0, 1), "mm": (0, 1), "baddbmm": (1, 2)}
"""Products of matrices, and the positions of their first and second factor."""
_VIEWS = (
    "transpose swapaxes swapdims permute movedim moveaxis t get view reshape flatten unflatten squeeze unsqueeze contiguous "
    "clone detach expand broadcast_to chunk split unbind select narrow getitem"
)
_CASTS = "to type type_as float half bfloat16 double"
_FURTHER_NORMALIZATIONS = (
    "sum mean mul rmul div truediv divide true_divide add radd clamp clamp_min normalize where masked_fill nan_to_num"
)
_REPEATED = frozenset(f"{_VIEWS} {_CASTS} {_FURTHER_NORMALIZATIONS}".split())
"""Functions that are repeated on a stand-in of the weights: views, casts, and what normalizes or masks weights once more."""
_IS_ONE, _IS_NOT_ONE = 1e-4, 1e-3
"""Deviations of sums from 1: at most that of round-off in float32, and at least that of random entries."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A product with weights that do not sum to 1 over the axis that it sums over."""

    path: str
    normalized: int
    """The axis over which they do, counted from the last one, as the product reads them."""
    summed: int
    """The axis that the product sums over."""
    shape: tuple[int, ...]

    @property
    def line(self) -> str:
        """The line of the measure."""
        sizes = " × ".join(map(str, self.shape))
        return f"{self.path}: softmax over dimension {self.normalized} of {sizes}, product over {self.summed}"


class _Axes(FunctionObserver):
    """Observes products with the softmax of scores.

    Scores are the product of two tensors that carry gradients and are no parameters, and what is computed from it. Their softmax
    has a stand-in: random weights that are normalized over the same axis. Views and further normalizations are repeated on it.
    It shows the axis also where scores are equal, as those of small weights nearly are, and where dropout hides sums.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: list[_Found] = []
        self._scores = WeakTensorKeyDictionary()
        self._stand_ins = WeakTensorKeyDictionary()

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if func is not multi_head_attention_forward and not function_transforms_are_active():
            with without_torch_functions(), torch.no_grad():
                self._observe(func, name, args, kwargs, result)
        return result

    def _observe(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        operands = list(tensors_in((args, tuple(kwargs.values()))))
        if name == "softmax" and isinstance(result, Tensor) and operands and operands[0] in self._scores:
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            if isinstance(axis, int) and result.dim() >= 3:
                self._stand_ins[result] = _normalized(result, axis)
            return
        stand_ins = [operand for operand in operands if operand in self._stand_ins]
        if stand_ins:
            self._observe_weights(func, name, args, kwargs, result, stand_ins)
        elif name in _FACTORS or name == "einsum":
            are_both = len(operands) >= 2 and all(map(carries_gradient, operands[-2:]))
            if are_both and not any(isinstance(operand, nn.Parameter) for operand in operands) and result.dim() >= 3:
                self._scores[result] = True
        elif isinstance(result, Tensor) and name not in NEITHER_SCORES_NOR_WEIGHTS:
            read = [operand for operand in operands if operand in self._scores]
            if read and (name in OF_OTHER_SHAPE or any(operand.numel() == result.numel() for operand in read)):
                self._scores[result] = True

    def _observe_weights(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        weights: Sequence[Tensor],
    ) -> None:
        """Observe a function that reads weights."""
        if name in _FACTORS or name == "einsum":
            # A product of weights is no attention, and one with a parameter mixes heads.
            is_mixed = any(isinstance(operand, nn.Parameter) for operand in tensors_in((args, tuple(kwargs.values()))))
            if len(weights) == 1 and not is_mixed:
                self._judge(weights[0], _summed_axes(name, args, weights[0]))
        elif name == "dropout":
            self._stand_ins[result] = self._stand_ins[weights[0]]
        elif name == "setitem" or _changes_in_place(func):
            if args[0] in self._stand_ins:
                del self._stand_ins[args[0]]
        elif name in _REPEATED and result is not weights[0]:
            self._repeat(func, args, kwargs, result)

    def _repeat(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        def stand_in(value: Any) -> Any:
            return self._stand_ins[value] if isinstance(value, Tensor) and value in self._stand_ins else value

        try:
            repeated = func(*map(stand_in, args), **{name: stand_in(value) for name, value in kwargs.items()})
        except (RuntimeError, TypeError):
            return
        for one, other in zip(tensors_in(result), tensors_in(repeated)):
            self._stand_ins[one] = other.float()

    def _judge(self, weights: Tensor, axes: Sequence[int]) -> None:
        stand_in = self._stand_ins[weights]
        if len(axes) != 1 or not stand_in.dim() >= 2:
            return
        (summed,) = axes
        if _deviation(stand_in, summed) < _IS_NOT_ONE:
            return
        others = (axis for axis in range(-1, -stand_in.dim() - 1, -1) if axis != summed)
        normalized = next((axis for axis in others if _deviation(stand_in, axis) < _IS_ONE), None)
        if normalized is not None:
            self.found.append(_Found(self.path, normalized, summed, tuple(weights.shape)))


def _changes_in_place(func: Any) -> bool:
    """Return whether a function changes its first argument, such as ``mul_`` and ``__imul__``; dropout does not matter."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _normalized(like: Tensor, axis: int) -> Tensor:
    """Return random positive numbers of the shape of a tensor, which sum to 1 over an axis."""
    generator = torch.Generator(like.device).manual_seed(0)
    drawn = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float32).pow(4) + 1e-3
    return drawn / drawn.sum(axis, keepdim=True)


def _deviation(weights: Tensor, axis: int) -> float:
    """Return the largest deviation of a sum over an axis from 1."""
    sums = weights.sum(axis)
    return float((sums - 1).abs().max()) if sums.numel() else 0.0


def _summed_axes(name: str, args: Sequence[Any], weights: Tensor) -> list[int]:
    """Return the axes of a factor that a product sums over, counted from the last one; none if they cannot be told."""
    if name == "einsum":
        return list(_summed_by_einsum(args, weights))
    first, second = (args[place] if len(args) > place else None for place in _FACTORS[name])
    if weights is first:
        return [-1]
    return [-2 if weights.dim() > 1 else -1] if weights is second else []


def _summed_by_einsum(args: Sequence[Any], weights: Tensor) -> Iterator[int]:
    if not args or not isinstance(args[0], str):
        return
    terms, arrow, output = args[0].replace(" ", "").partition("->")
    operands = list(tensors_in(tuple(args[1:])))
    for term, operand in zip(terms.split(","), operands):
        if operand is not weights:
            continue
        before, _, after = term.partition("...")
        labels = {label: i - weights.dim() for i, label in enumerate(before)}
        labels |= {label: i - len(after) for i, label in enumerate(after)}
        yield from (
            axis for label, axis in labels.items() if (label not in output if arrow else terms.count(label) > 1)
        )


UNNORMALIZED_ATTENTION: Need[dict[str, str]] = Need(
    "unnormalized attention",
    lambda run: run.of_first_seed(UNNORMALIZED_ATTENTION.name, lambda: _lines(run)),
    instruments=(_Axes,),
)
"""The lines of :func:`unnormalized_attention`, each with its explanation. The first seed answers for all: axes are not drawn."""


def _lines(run: Run) -> dict[str, str]:
    found: list[_Found] = run.capture.watched[_Axes].found
    return {
        one.line: (
            f"the softmax of {one.path} is over dimension {one.normalized} of the weights, but their product with the values "
            f"sums over dimension {one.summed}: the weights of a query do not sum to 1"
        )
        for one in found
    }


UNNORMALIZED_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of unnormalized attention",
    lambda run: tuple(CauseRecord(text) for text in [*run[UNNORMALIZED_ATTENTION].values()][:1]),
    requires=(UNNORMALIZED_ATTENTION,),
)
"""Over which axis the first of them is normalized."""


@declare("names", needs=[UNNORMALIZED_ATTENTION], explained_by=UNNORMALIZED_CAUSES)
def unnormalized_attention(run: Run) -> list[str]:
    """Return the attentions whose softmax is over another axis than the one that the product with the values sums over.

    The result of a query is ``Σ_j p_ij v_j``, a mean of values if ``Σ_j p_ij = 1``. A softmax over the queries, ``Σ_i p_ij = 1``,
    gives each query any total weight. Where there are as many queries as keys, no shape shows it, and where weights are small,
    all weights are about 1/n either way.

    It misleads where this is meant: slots that compete for inputs without a normalization over these, and clusters into which
    nodes are pooled.

    Returns:
        Lines such as ``"layers.0.attention: softmax over dimension -2 of 8 × 4 × 16 × 16, product over -1"``, in program order.
        Dimensions are those of the weights as the product reads them. Empty without attention in plain operations. The first seed
        answers for all seeds.

    Source: Vaswani et al., NeurIPS 2017, equation 1; Locatello et al., NeurIPS 2020, for a softmax over the queries that is
    followed by a normalization over the keys.
    """
    return [*run[UNNORMALIZED_ATTENTION]]
