"""Initial values that no healthy model has."""

from __future__ import annotations

from ...engine.runs.run import Need, Run, Stage
from ...init.lint import unusual_values
from ..measure import declare
from .initial_values import DESCRIPTION

__all__ = ["UNUSUAL"]

UNUSUAL: Need[dict[str, str]] = Need(
    "unusual initial values",
    lambda run: unusual_values(run.capture.model, run[DESCRIPTION]),
    Stage.BUILD,
    requires=(DESCRIPTION,),
)
"""What is unusual about parameters, by name."""


@declare("names", needs=[UNUSUAL])
def unusual_parameters(run: Run) -> list[str]:
    """Return the parameters whose initial values no healthy model has, each with the reason, as ``"NAME: REASON"``.

    The reasons:

    - The gain of a normalization is drawn around 0, where it should be constant; or it is 0 and the shift is 1.
    - A weight matrix of 64 entries or more is constant and not 0, or an embedding is constant: its units or rows are equal.
    - The padding row of an embedding is not 0.
    - A frozen matrix of 64 entries or more is 0.
    - Both factors of a low-rank product (LoRA) are 0.
    - A matrix of 64 entries or more has an entry more than 24 root mean squares out, and is not sparse.
    - A matrix inside a numbered block, with at least a quarter as many outputs as inputs, has a gain ``rms * sqrt(fan-in)``
      above 4.

    It misleads where a scale elsewhere makes up for large weights.

    Returns:
        Lines in the model's order; empty if nothing is unusual.

    Source: He, Zhang, Ren & Sun, ICCV 2015, for the gain; huggingface/transformers#143 for drawn gains; Hu et al., ICLR 2022, for
    low-rank products.
    """
    return [f"{name}: {reason}" for name, reason in run[UNUSUAL].items()]
