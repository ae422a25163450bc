"""Initial values that no healthy model has."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from ...engine.isolation import derived_seed
from ...engine.runs.allocation import UNWRITTEN
from ...engine.runs.building import built
from ...engine.runs.drawing import observed_draws
from ...engine.runs.run import Need, Run, Stage
from ...init.description import initial_tensors
from ...init.lint import NEVER_WRITTEN, exchanged_shifts, in_order, seeded_inside, trained_entries, unusual_values
from ...records.causes import CauseRecord
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
    # Each comparison takes one more build.
    return run.of_first_seed(SEEDED_INSIDE.name, lambda: _shared_with_another_build(run))


def _shared_with_another_build(run: Run) -> dict[str, str]:
    if isinstance(run.recipe.model, nn.Module):
        return {}
    first, other = trained_entries(run.capture.model), derived_seed(run.seed, "another build")
    with observed_draws() as draws, built(run.recipe, other, []) as (model, _):
        if model is run.capture.model:
            return {}
        return seeded_inside(first, trained_entries(model), draws.of(model))


SEEDED_INSIDE: Need[dict[str, str]] = Need(
    "parameters that are not drawn again", _seeded_inside, Stage.RERUN, once=True
)
"""Drawn parameters that two builds with different seeds share, by name, with the reason. A finished module has none."""


def _unusual_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return what usual values are, for the reasons that a change of values removes."""
    parameters, values = initial_tensors(run.capture.model), run[DESCRIPTION].values
    found: dict[str, list[str]] = {}
    for name, reason in run[UNUSUAL].items():
        found.setdefault(next((key for key in _CHANGES if key in reason), ""), []).append(name)
    causes = []
    gains = found.get(GAINS, [])
    if gains:
        causes.append(CauseRecord(ones=tuple(gains), zeros=exchanged_shifts(run.capture.model, gains)))
    large = found.get(LARGE, [])
    if large:
        rms = [values[name].rms for name in large]
        factors = [1 / (size * _root_of_inputs(parameters[name])) for name, size in zip(large, rms)]
        causes.append(CauseRecord(weights=tuple(large), factors=tuple(factors), rms=tuple(rms)))
    drawn, ones, zeros = _for_unwritten(run[UNWRITTEN], parameters)
    if drawn or ones or zeros:
        deviations = tuple(1 / _root_of_inputs(parameters[name]) for name in drawn)
        causes.append(CauseRecord(drawn=drawn, deviations=deviations, ones=ones, zeros=zeros))
    padding = found.get(PADDING, [])
    if padding:
        causes.append(CauseRecord(padding=tuple(padding)))
    fresh = [name for key in (EQUAL, LOW_RANK, FROZEN) for name in found.get(key, [])]
    if fresh:
        deviations = tuple(1 / _root_of_inputs(parameters[name]) for name in fresh)
        causes.append(CauseRecord(drawn=tuple(fresh), deviations=deviations))
    return tuple(causes)


def _for_unwritten(names: list[str], tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return which parameters that were never written to draw, and which to fill with ones and with zeros."""
    trained = [name for name in names if isinstance(tensors.get(name), nn.Parameter)]
    biases = [name for name in trained if "bias" in name.rpartition(".")[2]]
    vectors = [name for name in trained if tensors[name].dim() < 2 and name not in biases]
    return tuple(name for name in trained if tensors[name].dim() > 1 and name not in biases), (*vectors,), (*biases,)


def _root_of_inputs(weight: Tensor) -> float:
    return math.sqrt(max(1, weight[0].numel())) if weight.dim() > 1 else 1.0


GAINS, LARGE, EQUAL = "gain of a normalization", "is a gain of", "equal"
LOW_RANK, PADDING, FROZEN = "low-rank", "padding row", "frozen"
_CHANGES = (GAINS, LARGE, PADDING, EQUAL, LOW_RANK, FROZEN)
"""Words of the reasons that a change of values removes."""

UNUSUAL_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "usual initial values", _unusual_causes, UNWRITTEN.stage, requires=(UNUSUAL, DESCRIPTION, UNWRITTEN)
)
"""Which values would be usual, without a text: the lines of the measure say what is unusual."""


@declare("names", needs=[UNUSUAL, SEEDED_INSIDE, UNWRITTEN], explained_by=UNUSUAL_CAUSES)
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
