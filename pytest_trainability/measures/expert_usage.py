"""How evenly a router uses its experts."""

from __future__ import annotations

from ..engine.routing import EXPERT_USAGE
from ..engine.run import Run
from .measure import Measure


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


MEASURE = Measure("expert_usage", "profile", "", "linear", frozenset({EXPERT_USAGE}), expert_usage, tolerance=0.05)
