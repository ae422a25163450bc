"""Initial values that no healthy model has."""

from __future__ import annotations

from torch import nn

from ...engine.isolation import derived_seed
from ...engine.runs.allocation import UNWRITTEN
from ...engine.runs.building import built
from ...engine.runs.drawing import observed_draws
from ...engine.runs.run import Need, Run, Stage
from ...init.lint import NEVER_WRITTEN, in_order, seeded_inside, trained_entries, unusual_values
from ..measure import declare
from .initial_values import DESCRIPTION

__all__ = ["SEEDED_INSIDE", "UNUSUAL"]

UNUSUAL: Need[dict[str, str]] = Need(
    "unusual initial values",
    lambda run: unusual_values(run.capture.model, run[DESCRIPTION]),
    Stage.BUILD,
    requires=(DESCRIPTION,),
)
"""What is unusual about the values of parameters, by name."""


def _seeded_inside(run: Run) -> dict[str, str]:
    if isinstance(run.recipe.model, nn.Module):
        return {}
    # The first seed decides for all: each comparison takes one more build.
    known: dict[str, dict[str, str]] = run.findings.setdefault(SEEDED_INSIDE.name, {})
    if "reasons" not in known:
        first, other = trained_entries(run.capture.model), derived_seed(run.seed, "another build")
        with observed_draws() as draws, built(run.recipe, other, []) as (model, _):
            is_another = model is not run.capture.model
            known["reasons"] = seeded_inside(first, trained_entries(model), draws.of(model)) if is_another else {}
    return known["reasons"]


SEEDED_INSIDE: Need[dict[str, str]] = Need("parameters that are not drawn again", _seeded_inside, Stage.RERUN)
"""Drawn parameters that two builds with different seeds share, by name, with the reason. A finished module has none."""


@declare("names", needs=[UNUSUAL, SEEDED_INSIDE, UNWRITTEN])
def unusual_parameters(run: Run) -> list[str]:
    """Return the parameters whose initial values no healthy model has, each with the reason, as ``"NAME: REASON"``.

    The reasons:

    - The gain of a normalization is drawn around 0, where it should be constant; or it is 0 and the shift is 1.
    - A weight matrix of 64 entries or more is constant and not 0, or an embedding is constant: its units or rows are equal. An
      embedding of zeros is usual next to another one that is drawn and has as many rows.
    - The padding row of an embedding is not 0.
    - A frozen matrix of 64 entries or more is 0.
    - Both factors of a low-rank product (LoRA) are 0.
    - A matrix of 64 entries or more has an entry more than 24 root mean squares out, and is not sparse.
    - A matrix inside a numbered block, with at least a quarter as many outputs as inputs, has a gain ``rms * sqrt(fan-in)``
      above 4.
    - A parameter is drawn, and two builds with different seeds share it: a generator is seeded inside.
    - The memory of a parameter or buffer was allocated and never written (``uninitialized_parameters``).

    The last two need a factory, and are not examined for a finished module.

    It misleads where a scale elsewhere makes up for large weights.

    Returns:
        Lines in the model's order; empty if nothing is unusual.

    Source: He, Zhang, Ren & Sun, ICCV 2015, for the gain; huggingface/transformers#143 for drawn gains; Hu et al., ICLR 2022, for
    low-rank products.
    """
    reasons, never_written = run[UNUSUAL] | run[SEEDED_INSIDE], run[UNWRITTEN]
    reasons |= dict.fromkeys(never_written, NEVER_WRITTEN)
    # The numbers in a reason differ between seeds. All seeds use those of the first, so that a parameter has one line.
    known: dict[str, str] = run.findings.setdefault("unusual_parameters", {})
    return [f"{n}: {known.setdefault(n, reason)}" for n, reason in in_order(reasons, run.capture.model).items()]
