"""Routers of mixtures of experts: how often each expert is chosen, seen where a model chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...engine.capture.function_mode import FunctionObserver, numbered
from ...engine.capture.recorder import Recorder
from ...engine.runs.run import Need, Run
from ...engine.trees import carries_gradient, tensors_in
from ..measure import declare

__all__ = ["EXPERT_USAGE", "usage_entropy"]


MOST_EXPERTS = 1024


_LAYERS = frozenset({"linear", "matmul", "mm", "addmm", "bmm", "einsum"})
_GATES = frozenset({"softmax", "sigmoid", "log_softmax", "gumbel_softmax"})
_CHOICES = frozenset({"topk", "argmax", "max"})
_ORDERINGS = frozenset({"amax", "kthvalue", "sort", "msort"})
"""These give out scores that others are compared with."""
_COMPARISONS = {"ge": True, "gt": True, "eq": True, "le": False, "lt": False, "ne": False}
"""Whether what is chosen is what is true, where scores are compared with one of them: it is what is large."""
_FLIPPED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt"}
_TURNS = frozenset({"transpose", "permute", "movedim", "swapaxes", "swapdims", "t", "adjoint"})
_LOOK_UPS = frozenset({"embedding", "embedding_bag"})
"""Of tokens that were chosen, as in decoding; not of experts."""


@dataclass(slots=True, eq=False)
class _Scores:
    """What one layer has given the experts."""

    gated: bool = False
    """Whether they, or those of them that were chosen, have been through a softmax or sigmoid."""
    choice: _Choice | None = None
    """The first choice by them that steered the signal; later ones are those of an auxiliary loss."""


@dataclass(slots=True, eq=False)
class _Choice:
    """One choice of experts for all tokens."""

    path: str
    counts: Tensor
    tokens: int
    scores: _Scores


def usage_entropy(counts: Tensor, tokens: int) -> float:
    """Return ``(H - ln k) / (ln E - ln k)`` with ``H = -Σ_e p_e ln p_e`` of how often each of E experts was chosen.

    k is how many a token chooses on average: as no expert has more than 1/k of the choices, H is ln k at least. NaN where nothing
    was chosen, or all were.
    """
    total = float(counts.sum())
    shares = [count / total for count in counts.tolist() if count] if total else []
    least, most = math.log(max(total / max(tokens, 1), 1.0)), math.log(len(counts))
    entropy = -math.fsum(share * math.log(share) for share in shares)
    return max(0.0, entropy - least) / (most - least) if shares and least < most else math.nan


class _Routers(FunctionObserver):
    """Follows the scores of experts to the choice that is made by them, and that choice to where it steers the signal.

    Scores come out of a layer with as many outputs as there are experts, and are handed on by everything that keeps these last. A
    choice is their ``topk``, ``argmax`` or ``max`` over experts, their comparison with one of them, as in
    ``p >= p.topk(2)[0][..., -1:]``, or a hard ``gumbel_softmax``. It counts once it is known to be a router's: a softmax or
    sigmoid makes weights of the scores, or of the chosen ones, and what was chosen picks, masks or weighs what carries a
    gradient. So a classifier's ``argmax``, decoding, codes of a table, winners of a sparse layer and the best queries of a
    detector do not.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: list[_Scores] = []
        self._scores = WeakTensorKeyDictionary()
        self._chosen = WeakTensorKeyDictionary()
        """What follows from a choice and nothing else that carries a gradient."""
        self._values = WeakTensorKeyDictionary()
        """Scores that were chosen or put in order, and what is no larger than all scores and computed from them."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        with torch._C.DisableTorchFunction():
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
            # All experts are chosen: their order is no choice.
            return
        counts = torch.bincount(indices.detach().flatten(), minlength=scores.shape[-1])
        self._chosen[indices] = self._choice(counts, scores)
        if values is not None:
            self._values[values] = self._scores[scores], scores.numel()

    def _compare(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        """Take for a choice where scores are no less than one of them, which was found by their order."""
        scores, threshold = operands
        if scores not in self._scores:
            scores, threshold, name = threshold, scores, _FLIPPED.get(name, name)
        if scores not in self._scores or threshold not in self._values or threshold.shape[-1:] != (1,):
            return
        if self._values[threshold][0] is not self._scores[scores] or result.shape != scores.shape:
            return
        is_chosen = result if _COMPARISONS[name] else ~result
        # Of equal scores one counts, as by topk.
        is_equal = is_chosen & (scores == threshold)
        is_chosen = is_chosen & ~(is_equal & (is_equal.cumsum(-1) > 1))
        if not bool(is_chosen.all()):
            self._chosen[result] = self._choice(is_chosen.flatten(0, -2).sum(0), scores)

    def _sample(self, scores: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Take for a choice what ``gumbel_softmax(scores, tau, hard, eps, dim)`` draws."""
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
            self._begin(operands, results[0])
        elif len(self._scores) and results[0].is_floating_point():
            self._hand_on_scores(name, operands, results[0])
            self._hand_on_values(name, operands, results[0])
        chosen = [operand for operand in operands if operand in self._chosen] if len(self._chosen) else []
        others = [t for t in operands if carries_gradient(t) and t not in self._chosen] if chosen else []
        is_look_up = name in _LOOK_UPS or (
            name in _LAYERS and bool(others) and all(t.is_leaf and t.dim() == 2 for t in others)
        )
        for operand in chosen if not is_look_up else ():
            self._hand_on_choice(self._chosen[operand], results, steers=bool(others))

    def _begin(self, operands: Sequence[Tensor], result: Tensor) -> None:
        experts = result.shape[-1] if result.dim() > 1 else 0
        weights = [t for t in operands if t.is_leaf and t.dim() == 2 and experts in t.shape]
        if 2 <= experts <= MOST_EXPERTS and weights and carries_gradient(result):
            self._scores[result] = _Scores()

    def _hand_on_scores(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        for operand in operands:
            if operand in self._scores:
                self._scores[operand].gated |= name in _GATES
                same = result.shape[-1:] == operand.shape[-1:] and result.numel() == operand.numel()
                if same and name not in _TURNS:
                    self._scores[result] = self._scores[operand]
                return

    def _hand_on_values(self, name: str, operands: Sequence[Tensor], result: Tensor) -> None:
        for operand in operands:
            if operand in self._values:
                scores, size = self._values[operand]
                scores.gated |= name in _GATES
                if result.numel() <= size:
                    self._values[result] = scores, size
                return

    def _hand_on_choice(self, choice: _Choice, results: Sequence[Tensor], *, steers: bool) -> None:
        for result in results:
            if not steers or not carries_gradient(result):
                if result not in self._chosen:
                    self._chosen[result] = choice
            elif choice.scores.choice is None:
                choice.scores.choice = choice
                self.found.append(choice.scores)


def _usage(run: Run) -> dict[str, float]:
    found: list[_Scores] = run.capture.watched[_Routers].found
    choices = [scores.choice for scores in found if scores.gated and scores.choice is not None]
    names = numbered([choice.path for choice in choices])
    return {name: usage_entropy(choice.counts, choice.tokens) for name, choice in zip(names, choices)}


EXPERT_USAGE = Need("expert usage", _usage, instruments=(_Routers,))
"""Normalized entropy of how often each expert is chosen, by router, in program order."""


@declare("profile", needs=[EXPERT_USAGE], tolerance=0.05)
def expert_usage(run: Run) -> dict[str, float]:
    """Return ``(H - ln k) / (ln E - ln k)`` of each mixture-of-experts router, the normalized entropy of its choices.

    ``H = -Σ_e p_e ln p_e``, with p_e expert e's share of the choices of the batch's tokens, of which each chooses k of E
    experts. That is ``H / ln E`` where one is chosen, and zero where all tokens choose the same k.

    It misleads on small batches: n tokens that choose at random have ``1 - (E - k) / (2 n k ln(E/k))`` on average,
    and less where n k is not many times E. Tokens of padding count, too. Routers whose weights are zero choose the first experts.

    Returns:
        Between 0 (the same experts are always chosen) and 1 (all are, alike), by the module that chooses, in program
        order; with a number where one does so more than once. Empty for a model in which no router is seen: one
        chooses by ``topk``, ``argmax`` or ``max`` over the last dimension of what a layer gave out, by comparing this
        with one of its own numbers, or by a hard ``gumbel_softmax``, and weighs by a softmax or sigmoid. Where
        experts choose tokens there is nothing to measure.

    Source: Shazeer et al., ICLR 2017; Fedus, Zoph & Shazeer, JMLR 23 (2022).
    """
    return run[EXPERT_USAGE]
