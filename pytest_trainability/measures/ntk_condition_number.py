"""How unevenly gradient descent fits the samples of a batch."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.tangent_kernel import TANGENT_KERNEL
from .measure import Measure


def ntk_condition_number(run: Run) -> float:
    """Return ``κ = λ_max / λ_min`` of the empirical tangent kernel ``Θ = J Jᵀ``, ``J = ∂outputs/∂parameters``, on the batch.

    In the linear regime gradient descent fits the slowest mode κ times more slowly than the fastest.

    J has a row for every output of the batch, where they are 512 at most and J has no more than 2²⁷ entries. Beyond, it has
    one for every sample: the gradient of a Gaussian functional of its outputs, of unit norm, drawn from the seed and the same
    for all samples. Where Θ is ``K ⊗ I``, as in the limit of width, both have the condition number of K; else that of the
    functionals is smaller. Outputs are the model's ``logits`` where it names some, else its first tensor beside the loss.

    It misleads where outputs or samples are tied: a softmax or a LayerNorm at the end, a sample or a token that comes twice,
    or fewer parameters than outputs make Θ singular. It grows with the number of rows: compare batches of one size.

    Returns:
        A pure number of at least 1; ``inf`` where ``λ_min ≤ (8 ε)² λ_max``, with ε of the coarsest type of parameters and
        outputs, for it is round-off then. NaN where no output depends on a parameter.

    Raises:
        InapplicableError: There are no two rows, nothing to train, or no output but the loss.

    Source: Jacot, Gabriel & Hongler, NeurIPS 2018 (Θ); Xiao, Pennington & Schoenholz, ICML 2020 (κ). One functional in place
    of all outputs: Mohamadi, Bae & Sutherland, ICML 2023, who take their sum, which a softmax or a LayerNorm makes constant.
    """
    return run[TANGENT_KERNEL].condition_number()


MEASURE = Measure(
    "ntk_condition_number", "scalar", "", "log", frozenset({TANGENT_KERNEL}), ntk_condition_number, tolerance=0.3
)
