"""How unevenly gradient descent fits the samples of a batch."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.tangent_kernel import TANGENT_KERNEL
from .measure import Measure


def ntk_condition_number(run: Run) -> float:
    """Return ``κ = λ_max / λ_min`` of the empirical neural tangent kernel ``Θ = J Jᵀ``, ``J = ∂outputs/∂parameters``, on the batch.

    In the linear regime gradient descent fits the slowest mode κ times more slowly than the fastest.

    Rows of J are all outputs of the batch where they are 512 at most and J has no more than 2²⁷ entries. Beyond, each sample has one
    row: a Gaussian functional of its outputs, of unit norm, the same for all samples and drawn from the seed. Where Θ is
    ``K ⊗ 1``, as in the limit of width, its condition number is that of K, as Θ's is; else it is smaller than Θ's. A model's outputs
    are its ``logits`` where it names some, else the first tensor that it returns beside the loss.

    It misleads where outputs or samples are tied: softmax outputs, which sum to one, a LayerNorm at the end, a sample that comes
    twice, or fewer parameters than outputs make Θ singular. It grows with the number of rows: compare batches of one size.

    Returns:
        A pure number of at least 1; ``inf`` where ``λ_min ≤ (32 ε)² λ_max``, with ε of the coarsest type of parameters and outputs: it
        is then round-off. NaN where no output depends on a parameter.

    Raises:
        UsageError: There are no two rows, nothing to train, or no output but the loss.

    Source: Jacot, Gabriel & Hongler, NeurIPS 2018 (Θ); Xiao, Pennington & Schoenholz, ICML 2020 (κ); one functional in place of all
    outputs after Mohamadi, Bae & Sutherland, ICML 2023, who take the sum of the outputs, which a softmax or LayerNorm makes constant.
    """
    return run[TANGENT_KERNEL].condition_number()


MEASURE = Measure(
    "ntk_condition_number", "scalar", "", "log", frozenset({TANGENT_KERNEL}), ntk_condition_number, tolerance=0.3
)
