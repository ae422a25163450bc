"""Routers of mixtures of experts: how often each expert is chosen in the forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.capture.chain import dependent_nodes
from ...engine.capture.function_mode import FunctionObserver, numbered
from ...engine.capture.products import nearest_products
from ...engine.capture.recorder import Edge, Recorder, edge_of
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import WeakTensorKeyDictionary, without_torch_functions
from ...engine.trees import carries_gradient, tensors_in
from ...records.causes import CauseRecord
from ...records.text import format_number
from ..measure import declare

__all__ = ["EXPERT_USAGE", "ROUTER_CAUSES", "usage_entropy"]


MAX_EXPERTS = 1024
"""Largest number of outputs of a layer that may be scores of experts."""


_LAYERS = frozenset({"linear", "matmul", "mm", "addmm", "bmm", "einsum"})
_GATES = frozenset({"softmax", "sigmoid", "log_softmax", "gumbel_softmax"})
_CHOICES = frozenset({"topk", "argmax", "max"})
_ORDERINGS = frozenset({"amax", "kthvalue", "sort", "msort"})
"""Functions that return a score with which other scores may be compared."""
_COMPARISONS = {"ge": True, "gt": True, "eq": True, "le": False, "lt": False, "ne": False}
"""Comparisons of scores with one of them, and whether the chosen experts are the true entries of the result. Large scores are
chosen."""
_FLIPPED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt"}
_TURNS = frozenset({"transpose", "permute", "movedim", "swapaxes", "swapdims", "t", "adjoint"})
_LOOK_UPS = frozenset({"embedding", "embedding_bag"})
"""Functions that look up rows by index. They use chosen tokens, as in decoding, and not chosen experts."""


@dataclass(slots=True, eq=False)
class _Scores:
    """The scores of experts that one layer has computed."""

    gated: bool = False
    """Whether the scores, or the chosen ones among them, have been passed to a softmax or sigmoid."""
    choice: _Choice | None = None
    """The first choice by these scores that affected the signal. Later choices belong to an auxiliary loss."""


@dataclass(slots=True, eq=False)
class _Choice:
    """One choice of experts for all tokens."""

    path: str
    counts: Tensor
    tokens: int
    scores: _Scores


def usage_entropy(counts: Tensor, tokens: int) -> float:
    """Return ``(H - ln k) / (ln E - ln k)`` with the entropy ``H = -Σ_e p_e ln p_e`` of the choices among E experts.

    A token chooses k experts on average. No expert has more than a share of 1/k of the choices, so that H is at least ln k.

    Args:
        counts: How often each expert was chosen, ``(E,)``.
        tokens: Number of tokens.

    Returns:
        A number from 0 to 1; NaN if no expert was chosen, or if every token chose all experts.
    """
    total = float(counts.sum())
    shares = [count / total for count in counts.tolist() if count] if total else []
    least, most = math.log(max(total / max(tokens, 1), 1.0)), math.log(len(counts))
    entropy = -math.fsum(share * math.log(share) for share in shares)
    return max(0.0, entropy - least) / (most - least) if shares and least < most else math.nan


class _Routers(FunctionObserver):
    """Follows the scores of experts to a choice, and the choice to the tensors of the signal that it affects.

    Scores are the outputs of a layer with one output per expert. A function whose result keeps experts in the last dimension
    returns scores again. A choice is the ``topk``, ``argmax`` or ``max`` of scores over experts, their comparison with one of
    them, as in ``p >= p.topk(2)[0][..., -1:]``, or a hard ``gumbel_softmax``. It is the choice of a router if a softmax or
    sigmoid turns the scores, or the chosen ones, into weights, and if the chosen indices select, mask or weight a tensor that
    carries a gradient. This excludes a classifier's ``argmax``, decoding, codes of a table, winners of a sparse layer and a
    detector's best queries.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: list[_Scores] = []
        self._scores = WeakTensorKeyDictionary()
        self._chosen = WeakTensorKeyDictionary()
        """Tensors that are computed from a choice, and from nothing else that carries a gradient."""
        self._values = WeakTensorKeyDictionary()
        """Chosen or sorted scores, and tensors that are computed from them and not larger than all scores."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        with without_torch_functions():
            operands = list(tensors_in((args, tuple(kwargs.values()))))
            is_of_scores = bool(operands) and operands[0] in self._scores
            if name in _CHOICES and is_of_scores:
                self._choose(name, operands[0], args, kwargs, result)
            elif name in _ORDERINGS and is_of_scores:
                self._values[next(tensors_in(result))] = self._scores[operands[0]], operands[0].numel()
            else:
                self._follow(name, operands, args[0] if name == "setitem" else result)
            if name in _COMPARISONS and len(operands) == 2:
                self._compare(name, operands, result)
            if name == "gumbel_softmax" and is_of_scores:
                self._sample(operands[0], args, kwargs, result)
        return result

    def _choose(
        self,
        name: str,
        scores: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Tensor | Sequence[Tensor],
    ) -> None:
        place = 2 if name == "topk" else 1
        dim = (
            args[place] if len(args) > place else kwargs.get("dim", kwargs.get("axis", -1 if name == "topk" else None))
        )
        if dim not in {-1, scores.dim() - 1}:
            return
        values, indices = (None, result) if isinstance(result, Tensor) else (result[0], result[1])
        if indices.numel() >= scores.numel():
            # All experts are chosen. Their order is not a choice.
            return
        counts = torch.bincount(indices.detach().flatten(), minlength=scores.shape[-1])
        self._chosen[indices] = self._choice(counts, scores)
        if values is not None:
            self._values[values] = self._scores[scores], scores.numel()

    def _compare(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        """Register a choice if scores are compared with one of them that was found by sorting."""
        scores, threshold = operands
        if scores not in self._scores:
            scores, threshold, name = threshold, scores, _FLIPPED.get(name, name)
        if scores not in self._scores or threshold not in self._values or threshold.shape[-1:] != (1,):
            return
        if self._values[threshold][0] is not self._scores[scores] or result.shape != scores.shape:
            return
        is_chosen = result if _COMPARISONS[name] else ~result
        # Among equal scores, one counts, as in topk.
        is_equal = is_chosen & (scores == threshold)
        is_chosen = is_chosen & ~(is_equal & (is_equal.cumsum(-1) > 1))
        if not bool(is_chosen.all()):
            self._chosen[result] = self._choice(is_chosen.flatten(0, -2).sum(0), scores)

    def _sample(self, scores: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Register the result of a hard ``gumbel_softmax(scores, tau, hard, eps, dim)`` as a choice."""
        hard = args[2] if len(args) > 2 else kwargs.get("hard", False)
        dim = args[4] if len(args) > 4 else kwargs.get("dim", -1)
        if hard and dim in {-1, scores.dim() - 1}:
            counts = torch.bincount(result.detach().argmax(-1).flatten(), minlength=scores.shape[-1])
            self._chosen[result] = self._choice(counts, scores)

    def _choice(self, counts: Tensor, scores: Tensor) -> _Choice:
        return _Choice(self.path, counts, scores.numel() // scores.shape[-1], self._scores[scores])

    def _follow(self, name: str, operands: Sequence[Tensor], result: Any) -> None:
        results = list(tensors_in(result))
        if not results:
            return
        if name in _LAYERS:
            self._register_scores(operands, results[0])
        elif len(self._scores) and results[0].is_floating_point():
            self._propagate_scores(name, operands, results[0])
            self._propagate_values(name, operands, results[0])
        chosen = [operand for operand in operands if operand in self._chosen] if len(self._chosen) else []
        others = [t for t in operands if carries_gradient(t) and t not in self._chosen] if chosen else []
        is_look_up = name in _LOOK_UPS or (
            name in _LAYERS and bool(others) and all(t.is_leaf and t.dim() == 2 for t in others)
        )
        for operand in chosen if not is_look_up else ():
            self._propagate_choice(self._chosen[operand], results, affects_signal=bool(others))

    def _register_scores(self, operands: Sequence[Tensor], result: Tensor) -> None:
        experts = result.shape[-1] if result.dim() > 1 else 0
        weights = [t for t in operands if t.is_leaf and t.dim() == 2 and experts in t.shape]
        if 2 <= experts <= MAX_EXPERTS and weights and carries_gradient(result):
            self._scores[result] = _Scores()

    def _propagate_scores(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        for operand in operands:
            if operand in self._scores:
                self._scores[operand].gated |= name in _GATES
                same = result.shape[-1:] == operand.shape[-1:] and result.numel() == operand.numel()
                if same and name not in _TURNS:
                    self._scores[result] = self._scores[operand]
                return

    def _propagate_values(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        for operand in operands:
            if operand in self._values:
                scores, size = self._values[operand]
                scores.gated |= name in _GATES
                if result.numel() <= size:
                    self._values[result] = scores, size
                return

    def _propagate_choice(self, choice: _Choice, results: Sequence[Tensor], *, affects_signal: bool) -> None:
        for result in results:
            if not affects_signal or not carries_gradient(result):
                if result not in self._chosen:
                    self._chosen[result] = choice
            elif choice.scores.choice is None:
                choice.scores.choice = choice
                self.found.append(choice.scores)


def _usage_entropies(run: Run) -> dict[str, float]:
    found: list[_Scores] = run.capture.watched[_Routers].found
    choices = [scores.choice for scores in found if scores.gated and scores.choice is not None]
    names = numbered([choice.path for choice in choices])
    return {name: usage_entropy(choice.counts, choice.tokens) for name, choice in zip(names, choices)}


EXPERT_USAGE = Need("expert usage", _usage_entropies, instruments=(_Routers,))
"""Normalized entropy of the choices of each router, by the module that chooses, in program order."""


# Causes -----------------------------------------------------------------------------------------------------------
UNEVEN = 2.0
"""Spread of the experts' mean scores, relative to that of one expert's scores over tokens, from which on it is explained."""


@dataclass(frozen=True, slots=True)
class _Preference:
    """How the scores of one router differ."""

    path: str
    between: float
    """Standard deviation over experts of their mean scores."""
    within: float
    """Standard deviation over tokens of the scores of one expert."""
    scores: Edge


class _ExplainedRouters(_Routers):
    """Observes routers, and what their scores prefer."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.preferences: list[_Preference] = []

    def _choice(self, counts: Tensor, scores: Tensor) -> _Choice:
        if carries_gradient(scores):
            rows = scores.detach().double().flatten(0, -2)
            between, within = float(rows.mean(0).std()), float(rows.std(0, correction=0).mean())
            self.preferences.append(_Preference(self.path, between, within, edge_of(scores)))
        return super()._choice(counts, scores)


def _router_causes(run: Run) -> tuple[CauseRecord, ...]:
    preferences: list[_Preference] = run.capture.watched[_ExplainedRouters].preferences
    uneven = [found for found in preferences if found.between > UNEVEN * found.within]
    if not uneven:
        return ()
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    signal = dependent_nodes(run.capture, run.graph)
    products = [next(nearest_products(run.graph, signal, found.scores[0]), None) for found in uneven]
    biases = [names[id(p.bias)] for p in products if p is not None and p.bias is not None and bool(p.bias.any())]
    first = uneven[0]
    text = (
        f"the router in {first.path} prefers experts whatever the token: mean scores of its experts deviate by "
        f"{format_number(first.between)}, those of one expert over tokens by {format_number(first.within)}"
    )
    return (CauseRecord(text + (f"; see {biases[0]}" if biases else ""), zeros=tuple(biases), is_first=True),)


ROUTER_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of unused experts", _router_causes, instruments=(_ExplainedRouters,)
)
"""Whether a router prefers experts whatever the token."""


@declare("profile", needs=[EXPERT_USAGE], tolerance=0.05, explained_by=ROUTER_CAUSES)
def expert_usage(run: Run) -> dict[str, float]:
    """Return ``(H - ln k) / (ln E - ln k)``, the normalized entropy of the choices of each mixture-of-experts router.

    ``H = -Σ_e p_e ln p_e``, where p_e is expert e's share of all choices, and each token of the batch chooses k of E experts. For
    k = 1 this is ``H / ln E``. It is zero if all tokens choose the same k experts.

    It misleads on small batches: n tokens that choose at random have ``1 - (E - k) / (2 n k ln(E/k))`` on average, and less if
    n k is not much larger than E. Padding tokens count. A router whose weights are zero chooses the first experts.

    Returns:
        Pure numbers from 0 (all tokens choose the same experts) to 1 (all experts are chosen equally often), by the path of the
        module that chooses, in program order; with a number if a module chooses several times. Empty for a model without a
        recognized router. A router chooses by ``topk``, ``argmax`` or ``max`` over the last dimension of a layer's output, by
        comparing the output with one of its entries, or by a hard ``gumbel_softmax``, and its weights come from a softmax or
        sigmoid. Routers whose experts choose tokens are not measured.

    Source: Shazeer et al., ICLR 2017; Fedus, Zoph & Shazeer, JMLR 23 (2022).
    """
    return run[EXPERT_USAGE]
