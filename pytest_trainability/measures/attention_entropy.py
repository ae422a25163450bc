"""How widely each attention looks."""

from __future__ import annotations

from ..engine.attention import ATTENTION_ENTROPIES
from ..engine.run import Run
from .measure import Measure


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


MEASURE = Measure(
    "attention_entropy",
    "profile",
    "",
    "linear",
    frozenset({ATTENTION_ENTROPIES}),
    attention_entropy,
    tolerance=0.05,
)
