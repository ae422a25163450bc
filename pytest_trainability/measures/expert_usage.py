"""How evenly a router uses its experts."""

from __future__ import annotations

from ..engine.routing import EXPERT_USAGE
from ..engine.run import Run
from .measure import Measure


def expert_usage(run: Run) -> dict[str, float]:
    """Return ``-Σ_e p_e ln p_e / ln E`` of each mixture-of-experts router, p_e being expert e's share of the batch's choices.

    It misleads on small batches: n tokens that choose k of E experts at random have ``1 - (E - k) / (2 n k ln E)`` on average,
    and less where n k is not many times E. Tokens of padding count, too. Routers whose weights are zero choose the first experts.

    Returns:
        Between 0 (one expert is always chosen; of k experts the least is ``ln k / ln E``) and 1 (all are, alike), by the module
        that chooses, in program order; with a number where one does so more than once. Empty for a model in which no router is
        seen: one chooses by ``topk``, ``argmax`` or ``max`` over the last dimension of what a layer gave out, by comparing this
        with one of its own numbers, or by a hard ``gumbel_softmax``, and weighs by a softmax or sigmoid. Where experts choose
        tokens there is nothing to measure.

    Source: Shazeer et al., ICLR 2017; Fedus, Zoph & Shazeer, JMLR 23 (2022).
    """
    return run[EXPERT_USAGE]


MEASURE = Measure("expert_usage", "profile", "", "linear", frozenset({EXPERT_USAGE}), expert_usage, tolerance=0.05)
