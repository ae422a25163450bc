"""Entropy and largest logit of attention, computed where a model computes its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention

from ...engine.capture.chain import dependent_nodes
from ...engine.capture.function_mode import FunctionObserver, numbered
from ...engine.capture.products import Product, nearest_products, root_mean_square
from ...engine.capture.recorder import Edge, Recorder, edge_of
from ...engine.capture.results import opened_attention
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import WeakTensorKeyDictionary, without_torch_functions
from ...engine.trees import carries_gradient, tensors_in
from ...records.causes import CauseRecord
from ...records.text import format_number
from ..measure import declare

__all__ = [
    "ATTENTION_CAUSES",
    "ATTENTION_ENTROPIES",
    "ATTENTION_LOGITS",
    "NEITHER_SCORES_NOR_WEIGHTS",
    "OF_OTHER_SHAPE",
    "Entropy",
    "entropy_of",
]


AT_ONCE = 2**23
"""Largest number of attention weights that are computed at once: 32 MiB in float32."""
LOWEST = -1e8
"""A score below this number, or below half of the smallest number of its type, belongs to a masked key."""
LOW = -9e3
"""A score below this number belongs to a masked key if it is also this far below the query's largest score. Some models mask keys
by adding -1e4."""


_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
NEITHER_SCORES_NOR_WEIGHTS = frozenset(
    {"linear", "layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "embedding"}
)
"""Functions whose results are neither scores nor weights, even if they have the same shape."""
OF_OTHER_SHAPE = frozenset(
    {"cat", "concat", "pad", "as_strided", "narrow", "select", "expand", "repeat", "index_select", "gather"}
    | {"__getitem__", "__setitem__"}
)
"""Functions that may change the shape of scores or weights. Their results are still scores or weights."""


@dataclass(slots=True, eq=False)
class Entropy:
    """Sum of the normalized entropies of the queries of one attention, and its largest logit."""

    path: str
    """Path of the module that computes the attention."""
    total: float = 0.0
    count: int = 0
    """Number of queries with more than one key."""
    largest: float = 0.0
    """Largest absolute score of a key that is not masked; NaN if a score is."""

    @property
    def mean(self) -> float:
        """Mean over queries, heads and samples; NaN if no query has more than one key."""
        return self.total / self.count if self.count else math.nan

    def add(self, scores: Tensor, allowed: Tensor) -> None:
        """Add queries.

        ``entropy = ln Z - Σ_j e^{s_j} s_j / Z`` with ``Z = Σ_j e^{s_j}``, which is exact if all scores are equal.

        Args:
            scores: The scores of each query, ``(…, keys)``.
            allowed: Whether the query may attend to a key, ``(…, keys)``.
        """
        keys = allowed.sum(dim=-1)
        scores = scores.to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
        largest = float(scores.masked_fill(~allowed, 0).abs().max()) if scores.numel() else 0.0
        self.largest = largest if largest > self.largest or math.isnan(largest) else self.largest
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
    """Return the entropy of a softmax of scores ``(…, queries, keys)``, in which masked keys are far below the others."""
    found = Entropy(path)
    for rows in torch.split(scores.detach().flatten(0, -2), max(1, AT_ONCE // scores.shape[-1])):
        found.add(rows, ~_masked(rows))
    return found


def _masked(scores: Tensor) -> Tensor:
    """Return which scores, or terms that are added to scores, belong to masked keys. NaN does not."""
    lowest = max(torch.finfo(scores.dtype).min / 2, LOWEST)
    below = scores.amax(dim=-1, keepdim=True) - scores
    return (scores <= lowest) | ((scores <= LOW) & (below >= -LOW))


# Fused attention --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Operands:
    """Operands of fused attention: ``query (…, queries, n)``, ``key (…, keys, n)`` and ``mask (…, queries, keys)``.

    The leading dimensions have equal sizes.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    """Booleans, True for allowed keys, or numbers that are added to the scores."""

    def weights(self) -> int:
        """Return the number of attention weights."""
        return math.prod(self.query.shape[:-1]) * self.key.shape[-2]

    def split(self) -> Iterator[_Operands]:
        """Split into two parts along the first dimension with more than one index: samples, heads or queries."""
        axis = next(i for i, n in enumerate(self.query.shape[:-1]) if n > 1)
        ends = 0, self.query.shape[axis] // 2, self.query.shape[axis]
        is_key_axis = axis < self.query.dim() - 2

        def part(tensor: Tensor, start: int, end: int) -> Tensor:
            return tensor.narrow(axis, start, end - start)

        for start, end in pairwise(ends):
            mask = None if self.mask is None else part(self.mask, start, end)
            key = part(self.key, start, end) if is_key_axis else self.key
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
    """Return the operands of ``scaled_dot_product_attention``. The queries are multiplied by the scale."""
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


def _add_fused(entropy: Entropy, operands: _Operands) -> None:
    """Add all queries of fused attention, in parts if there are many weights."""
    if operands.weights() > AT_ONCE and math.prod(operands.query.shape[:-1]) > 1:
        for part in operands.split():
            _add_fused(entropy, part)
        return
    scores = operands.query @ operands.key.transpose(-2, -1)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if operands.mask is not None and operands.mask.dtype == torch.bool:
        allowed = operands.mask
    elif operands.mask is not None:
        scores, allowed = scores + operands.mask, ~_masked(operands.mask)
    entropy.add(scores, allowed)


# Observation of the forward pass ----------------------------------------------------------------------------------
class _Attentions(FunctionObserver):
    """Observes fused attention, and attention in plain operations: a product, its softmax, and a product with the softmax.

    Scores are the product of two tensors that are not parameters, and tensors of equal size that are computed from it (scaled,
    masked, biased). Weights are the softmax of scores over the last dimension, and tensors that are computed from it. An
    attention is recorded when its weights are an operand of a product. The weights of a router or a classifier never are.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: list[Entropy] = []
        self._scores = WeakTensorKeyDictionary()
        self._weights = WeakTensorKeyDictionary()

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is multi_head_attention_forward:
            with self:
                return opened_attention(*args, **kwargs)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        with without_torch_functions():
            if func is scaled_dot_product_attention:
                self._observe_fused(args, kwargs)
            elif name == "softmax":
                self._observe_softmax(args, kwargs, result)
            else:
                target = args[0] if name == "__setitem__" else result
                if isinstance(target, Tensor) and target.is_floating_point():
                    self._follow(name, list(tensors_in((args, tuple(kwargs.values())))), target)
        return result

    def _observe_fused(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query = args[0] if args else kwargs["query"]
        if query.is_nested:
            return
        entropy = Entropy(self.path)
        with _without_graph(query):
            operands = _operands(*args, **kwargs)
            _add_fused(entropy, operands)
        self.found.append(entropy)
        self.observe_fused_operands(entropy, query, args[1] if len(args) > 1 else kwargs["key"], operands)

    def _observe_softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Tensor) -> None:
        scores = args[0] if args else kwargs["input"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if scores in self._scores and scores.dim() >= 3 and dim in {-1, scores.dim() - 1}:
            with _without_graph(scores):
                self._weights[weights] = entropy_of(self.path, scores)
            self.observe_scores(self._weights[weights], scores, self._scores[scores])

    def _follow(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        if name in _PRODUCTS:
            for operand in operands:
                if operand in self._weights and self._weights[operand] not in self.found:
                    self.found.append(self._weights[operand])
            if result.dim() >= 3 and not any(isinstance(operand, nn.Parameter) for operand in operands):
                self._scores[result] = self.operands_of_product(operands)
        elif name not in NEITHER_SCORES_NOR_WEIGHTS:
            for table in (self._scores, self._weights):
                for operand in operands if len(table) else ():
                    if operand in table and (operand.numel() == result.numel() or name in OF_OTHER_SHAPE):
                        table[result] = table[operand]
                        break

    # Attention is explained by a subclass, in a run of its own after a failure.
    def operands_of_product(self, operands: Sequence[Tensor]) -> Any:
        """Return what is to be known about the operands of a product that may give scores."""
        return True

    def observe_scores(self, entropy: Entropy, scores: Tensor, product: Any) -> None:
        """Observe the scores of attention in plain operations, and what is known about their product."""

    def observe_fused_operands(self, entropy: Entropy, query: Tensor, key: Tensor, operands: _Operands) -> None:
        """Observe the operands of fused attention, as they are given and as they are multiplied."""


@contextmanager
def _without_graph(like: Tensor) -> Iterator[None]:
    """Compute without an autograd graph and without autocast."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield


def _by_name(run: Run) -> dict[str, Entropy]:
    found: list[Entropy] = run.capture.watched[_Attentions].found
    return dict(zip(numbered([entropy.path for entropy in found]), found))


def _entropies(run: Run) -> dict[str, float]:
    return {name: entropy.mean for name, entropy in _by_name(run).items() if entropy.count}


def _logits(run: Run) -> dict[str, float]:
    return {name: entropy.largest for name, entropy in _by_name(run).items()}


ATTENTION_ENTROPIES = Need("attention entropies", _entropies, instruments=(_Attentions,))
"""Mean normalized entropy over queries, heads and samples, by the path of the module that computes the attention, in program
order. An attention without a query that has two keys is absent."""

ATTENTION_LOGITS = Need("attention logits", _logits, instruments=(_Attentions,))
"""Largest absolute logit over queries, keys, heads and samples, by the path of the module that computes the attention, in program
order."""


# Causes -----------------------------------------------------------------------------------------------------------
SHARP = 2.0
"""Standard deviation of logits from which on attention is explained. That of standard queries and keys is 1."""


@dataclass(frozen=True, slots=True)
class _Logits:
    """Where the logits of one attention come from."""

    path: str
    deviation: float
    """Standard deviation over the keys of a query."""
    query_rms: float
    key_rms: float
    width: int
    """Number of features of a query."""
    query: Edge
    key: Edge

    @property
    def scale(self) -> float:
        """What the products of queries and keys are multiplied by, if these are independent."""
        return self.deviation / (self.query_rms * self.key_rms * math.sqrt(self.width))


class _ExplainedAttentions(_Attentions):
    """Observes attention, and the sizes of queries, keys and logits."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.logits: list[_Logits] = []

    def operands_of_product(self, operands: Sequence[Tensor]) -> Any:
        carrying = [tensor for tensor in operands if carries_gradient(tensor)]
        if len(carrying) != 2:
            return None
        sizes = tuple(root_mean_square(tensor) for tensor in carrying)
        return (*sizes, carrying[0].shape[-1], *map(edge_of, carrying))

    def observe_scores(self, entropy: Entropy, scores: Tensor, product: Any) -> None:
        if product is not None:
            self._add(entropy.path, scores.detach(), *product)

    def observe_fused_operands(self, entropy: Entropy, query: Tensor, key: Tensor, operands: _Operands) -> None:
        if carries_gradient(query) and carries_gradient(key):
            scores = operands.query[:1].double() @ operands.key[:1].double().transpose(-2, -1)
            sizes = root_mean_square(query), root_mean_square(key)
            self._add(entropy.path, scores, *sizes, query.shape[-1], edge_of(query), edge_of(key))

    def _add(self, path: str, scores: Tensor, query: float, key: float, width: int, *edges: Edge) -> None:
        values = scores.double().masked_fill(_masked(scores), math.nan)
        spread = values - values.nanmean(dim=-1, keepdim=True)
        deviation = math.sqrt(float(spread.square().nanmean()))
        self.logits.append(_Logits(path, deviation, query, key, width, *edges))


def _attention_causes(run: Run) -> tuple[CauseRecord, ...]:
    logits: list[_Logits] = run.capture.watched[_ExplainedAttentions].logits
    sharp = [found for found in logits if found.deviation > SHARP and found.query_rms * found.key_rms > 0]
    return (_attention_cause(run, sharp),) if sharp else ()


def _attention_cause(run: Run, sharp: Sequence[_Logits]) -> CauseRecord:
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    signal = dependent_nodes(run.capture, run.graph)
    factors: dict[str, tuple[float, Product]] = {}
    for logits in sharp:
        for node, _ in (logits.query, logits.key):
            product = next(nearest_products(run.graph, signal, node), None)
            if product is not None and id(product.weight) in names:
                factors[names[id(product.weight)]] = logits.deviation**-0.5, product
    first = max(sharp, key=lambda logits: logits.deviation)
    root = math.sqrt(first.width)
    deviation = format_number(first.deviation)
    text = f"the softmax of {first.path} is saturated, by logits of deviation {deviation}, where 1 is usual: "
    is_scaled = any(product.behind & {"Mul", "Div"} for _, product in factors.values())
    if first.scale > 2 / root and not is_scaled:
        text += (
            f"the products of queries and keys are not divided by √{first.width} = {format_number(root)}, but multiplied by "
            f"about {format_number(first.scale)}"
        )
    else:
        text += "queries and keys have rms " + " and ".join(map(format_number, (first.query_rms, first.key_rms)))
        products = list(factors.items())[:1]
        text += "".join(f"; {name} has {_size(product)}" for name, (_, product) in products)
    scales = tuple(factor for factor, _ in factors.values())
    return CauseRecord(text, tuple(factors), scales, tuple(root_mean_square(p.weight) for _, p in factors.values()))


def _size(product: Product) -> str:
    rms = root_mean_square(product.weight)
    gain = format_number(rms * math.sqrt(product.fan_in))
    return f"rms {format_number(rms)} over {product.fan_in} inputs, a gain of {gain}"


ATTENTION_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of saturated attention", _attention_causes, instruments=(_ExplainedAttentions,)
)
"""Whether a missing scale, or the weights of queries and keys, saturate the softmax of attention."""


@declare("profile", needs=[ATTENTION_ENTROPIES], tolerance=0.05, explained_by=ATTENTION_CAUSES)
def attention_entropy(run: Run) -> dict[str, float]:
    """Return ``-Σ_j p_j ln p_j / ln n`` of each attention's weights, averaged over queries, heads and samples.

    n is the number of keys that a query may attend to. Queries with a single key, such as the first one under a causal mask, do
    not count. The entropy is that of the weights before dropout. Near 0 the softmax is saturated, and queries and keys get
    almost no gradient.

    It misleads as an upper bound: a value of 1 is healthy at initialization, because small query and key weights give uniform
    attention. A mean over heads hides a single collapsed one. A bias that decreases with distance is a part of the scores, and
    lowers the value.

    Returns:
        Pure numbers from 0 (every query attends to one key) to 1 (every query attends uniformly), by the path of the module that
        computes the attention, in program order; with a number if a module computes several. An attention without a query that
        has two keys is omitted. ``nn.MultiheadAttention``, ``scaled_dot_product_attention`` and attention in plain operations
        (product, softmax over the last dimension, product) are recognized. Linear and sigmoid attention, ``flex_attention``,
        kernels of other packages and scripted functions are not. The profile is empty if no attention is recognized.

    Source: Zhai et al., ICML 2023, who see training diverge where it collapses; Dong, Cordonnier & Loukas, ICML 2021.
    """
    return run[ATTENTION_ENTROPIES]


@declare("profile", scale="log", needs=[ATTENTION_LOGITS], tolerance=0.3, explained_by=ATTENTION_CAUSES)
def attention_logit_max(run: Run) -> dict[str, float]:
    """Return ``max |s_ij|`` of each attention, where ``softmax(s)`` are its weights, over queries, keys, heads and samples.

    Logits are what the softmax reads: scaled, and with biases. Masked keys do not count. Those of fused attention are computed
    outside of it. A logit that is 9.2 above the others of 100 keys takes 99 % of the weight.

    It misleads as a measure of saturation if a shift moves all logits of a query together, which changes no weight:
    ``attention_entropy`` shows whether attention concentrates.

    Returns:
        Pure numbers of at least 0, by the path of the module that computes the attention, in program order; with a number if a
        module computes several. NaN if a logit is. The attentions are those that ``attention_entropy`` recognizes, and those
        without a query that has two keys.

    Source: Dehghani et al., ICML 2023, section 2; Wortsman et al., arXiv:2309.14322 (2023), section 3.1, who see training diverge
    where it grows.
    """
    return run[ATTENTION_LOGITS]
