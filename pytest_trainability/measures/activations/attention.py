"""How widely attention looks: the entropy of its weights, seen where a model computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary

from ...engine.capture.function_mode import FunctionObserver, numbered
from ...engine.capture.recorder import Recorder
from ...engine.runs.run import Need, Run
from ...engine.trees import tensors_in
from ..measure import declare

__all__ = ["ATTENTION_ENTROPIES", "Entropy", "entropy_of"]


AT_ONCE = 2**23
"""How many weights are computed at once: 32 MiB of float32."""
LOWEST = -1e8
"""What is added to scores to mask them, and is not ``-inf``, is the least number of its type, or below this one, ..."""
LOW = -9e3
"""... or so far below the query's largest score: some models add -1e4."""


_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
_BREAKING = frozenset({"linear", "layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "embedding"})
"""What comes out of these is no score and no weight any more, even where it is as large."""
_PIECEWISE = frozenset(
    {"cat", "concat", "pad", "as_strided", "narrow", "select", "expand", "repeat", "index_select", "gather"}
    | {"__getitem__", "__setitem__"}
)
"""These hand on, as what they were, tensors that become smaller or larger."""


@dataclass(slots=True, eq=False)
class Entropy:
    """Normalized entropies of one attention's queries, summed."""

    path: str
    """Name of the module that computes it."""
    total: float = 0.0
    count: int = 0
    """Of queries with more than one key."""

    @property
    def mean(self) -> float:
        """Mean over queries, heads and samples; NaN where no query has a choice."""
        return self.total / self.count if self.count else math.nan

    def add(self, scores: Tensor, allowed: Tensor) -> None:
        """Take in queries, the rows of their scores and of the keys that they may attend to.

        ``entropy = ln Z - Σ_j e^{s_j} s_j / Z`` with ``Z = Σ_j e^{s_j}``, exact where all scores are the same.
        """
        keys = allowed.sum(dim=-1)
        scores = scores.to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
        scores = scores.masked_fill(~allowed, -torch.inf)
        scores = scores - scores.amax(dim=-1, keepdim=True)
        weights = scores.exp()
        sums = weights.sum(dim=-1)
        entropy = sums.log() - (weights * scores).masked_fill(~allowed, 0).sum(dim=-1) / sums
        counted = keys > 1
        normalized = entropy / keys.to(scores.dtype).log()
        self.total += float(normalized[counted].cpu().double().sum())
        self.count += int(counted.sum())


def entropy_of(path: str, scores: Tensor) -> Entropy:
    """Take in scores ``(…, queries, keys)`` as a softmax meets them, masked keys being far below the others."""
    found = Entropy(path)
    for rows in torch.split(scores.detach().flatten(0, -2), max(1, AT_ONCE // scores.shape[-1])):
        found.add(rows, ~_masked(rows))
    return found


def _masked(scores: Tensor) -> Tensor:
    """Whether scores, or what is added to them, are those of masked keys; NaN is not."""
    lowest = max(torch.finfo(scores.dtype).min / 2, LOWEST)
    below = scores.amax(dim=-1, keepdim=True) - scores
    return (scores <= lowest) | ((scores <= LOW) & (below >= -LOW))


# Fused attention --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Operands:
    """Of fused attention: ``query (…, queries, n)``, ``key (…, keys, n)``, ``mask (…, queries, keys)``, leading sizes equal."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    """Of booleans, True for keys that take part, or of numbers to be added to the scores."""

    def size(self) -> int:
        """How many weights there are."""
        return math.prod(self.query.shape[:-1]) * self.key.shape[-2]

    def halves(self) -> Iterator[_Operands]:
        """Part them along the first dimension that can be parted: samples, heads, queries."""
        axis = next(i for i, n in enumerate(self.query.shape[:-1]) if n > 1)
        ends = 0, self.query.shape[axis] // 2, self.query.shape[axis]
        of_keys = axis < self.query.dim() - 2

        def part(tensor: Tensor, start: int, end: int) -> Tensor:
            return tensor.narrow(axis, start, end - start)

        for start, end in pairwise(ends):
            mask = None if self.mask is None else part(self.mask, start, end)
            key = part(self.key, start, end) if of_keys else self.key
            yield _Operands(part(self.query, start, end), key, mask)


def _operands(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002  as PyTorch has it
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> _Operands:
    """Read the arguments of ``scaled_dot_product_attention``; the scale is taken into the queries."""
    query, key = query.detach(), key.detach()
    if query.dtype != torch.float64:
        query, key = query.float(), key.float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    query = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])  # type: ignore[no-untyped-call]
    queries, keys = query.shape[-2], key.shape[-2]
    mask = attn_mask
    if is_causal:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    return _Operands(
        query.expand(*leading, *query.shape[-2:]),
        key.expand(*leading, *key.shape[-2:]),
        None if mask is None else mask.detach().expand(*leading, queries, keys),
    )


def _take_in(found: Entropy, given: _Operands) -> None:
    if given.size() > AT_ONCE and math.prod(given.query.shape[:-1]) > 1:
        for half in given.halves():
            _take_in(found, half)
        return
    scores = given.query @ given.key.transpose(-2, -1)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if given.mask is not None and given.mask.dtype == torch.bool:
        allowed = given.mask
    elif given.mask is not None:
        scores, allowed = scores + given.mask, ~_masked(given.mask)
    found.add(scores, allowed)


# The instrument ---------------------------------------------------------------------------------------------------
class _Attentions(FunctionObserver):
    """Sees fused attention, and attention in plain operations: a product, a softmax of it, a product with that.

    Scores are what a product of two tensors that are no parameters gives, and what is as large and computed from
    it (scaled, masked, biased). Weights are their softmax over the last dimension, and what is computed from it. They are those
    of an attention once they are an operand of a product; a router's or a classifier's never are.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: list[Entropy] = []
        self._scores = WeakTensorKeyDictionary()
        self._weights = WeakTensorKeyDictionary()

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is multi_head_attention_forward:
            with self:
                return _OPENED(*args, **kwargs)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunction():
            if func is scaled_dot_product_attention:
                self._see_fused(args, kwargs)
            elif name == "softmax":
                self._see_softmax(args, kwargs, result)
            else:
                target = args[0] if name == "__setitem__" else result
                if isinstance(target, Tensor) and target.is_floating_point():
                    self._follow(name, list(tensors_in((args, tuple(kwargs.values())))), target)
        return result

    def _see_fused(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query = args[0] if args else kwargs["query"]
        if query.is_nested:
            return
        entropy = Entropy(self.path)
        with _plainly(query):
            _take_in(entropy, _operands(*args, **kwargs))
        self.found.append(entropy)

    def _see_softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Tensor) -> None:
        scores = args[0] if args else kwargs["input"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if scores in self._scores and scores.dim() >= 3 and dim in {-1, scores.dim() - 1}:
            with _plainly(scores):
                self._weights[weights] = entropy_of(self.path, scores)

    def _follow(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        if name in _PRODUCTS:
            for operand in operands:
                if operand in self._weights and self._weights[operand] not in self.found:
                    self.found.append(self._weights[operand])
            if result.dim() >= 3 and not any(isinstance(operand, nn.Parameter) for operand in operands):
                self._scores[result] = True
        elif name not in _BREAKING:
            for table in (self._scores, self._weights):
                for operand in operands if len(table) else ():
                    if operand in table and (operand.numel() == result.numel() or name in _PIECEWISE):
                        table[result] = table[operand]
                        break


def _opened(function: Any) -> Callable[..., Any]:
    """Return a function of ``torch.nn.functional`` that does not hand itself over to who watches, before its first line."""
    changed = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = FunctionType(function.__code__, changed, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_OPENED = _opened(multi_head_attention_forward)


@contextmanager
def _plainly(like: Tensor) -> Iterator[None]:
    """Compute beside the model: without a graph, and in the type at hand."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield


def _entropies(run: Run) -> dict[str, float]:
    found: list[Entropy] = run.capture.watched[_Attentions].found
    named = zip(numbered([entropy.path for entropy in found]), found)
    return {name: entropy.mean for name, entropy in named if entropy.count}


ATTENTION_ENTROPIES = Need("attention entropies", _entropies, instruments=(_Attentions,))
"""Mean normalized entropy over queries, heads and samples of every attention in which some query has a choice, by the module that
computes it, in program order."""


@declare("profile", needs=[ATTENTION_ENTROPIES], tolerance=0.05)
def attention_entropy(run: Run) -> dict[str, float]:
    """Return ``-Σ_j p_j ln p_j / ln n`` of each attention's weights, averaged over queries, heads and samples.

    n is the number of keys that a query may attend to; queries with one key only, such as the first one under a causal mask,
    are left out. Dropout on the weights is not counted.

    It misleads where one is asked for: heads that attend uniformly at initialization are what small query and key weights
    give, and healthy. Near 0 the softmax is saturated, and next to no gradient comes back to queries and keys. A mean over
    heads hides a single one. Bias that falls off with distance is part of the scores, and lowers the value.

    Returns:
        Between 0 (every query attends to one key) and 1 (to all alike), by the module that computes it, in program
        order; with a number where a module does so more than once. One in which no query has two keys is left out.
        Empty for a model without attention that is seen: ``nn.MultiheadAttention``, ``scaled_dot_product_attention``
        and plain operations (product, softmax over the last dimension, product) are; linear and sigmoid attention,
        ``flex_attention``, kernels of other packages and scripted functions are not.

    Source: Zhai et al., ICML 2023, who see training diverge where it collapses; Dong, Cordonnier & Loukas, ICML 2021.
    """
    return run[ATTENTION_ENTROPIES]
