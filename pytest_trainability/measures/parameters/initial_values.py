"""Size, mean and extremes of the initial values of each parameter and buffer."""

from __future__ import annotations

import math

from ...engine.runs.run import Need, Run, Stage
from ...init.description import ModelDescription, describe
from ...init.projections import projections_of_model
from ...records.tensors import Projections
from ..measure import declare

__all__ = ["DESCRIPTION", "PROJECTIONS"]

DESCRIPTION: Need[ModelDescription] = Need(
    "description of the model", lambda run: describe(run.capture.model), Stage.BUILD
)
"""The model as it was built, before its forward pass."""

PROJECTIONS: Need[dict[str, Projections]] = Need(
    "projections of initial values", lambda run: projections_of_model(run.capture.model), Stage.BUILD
)
"""Which entries parameters and buffers have at which places, by name."""


@declare("profile", needs=[DESCRIPTION], scale="log", tolerance=1e-3)
def parameter_rms(run: Run) -> dict[str, float]:
    """Return the root mean square of the initial values of each parameter and floating buffer.

    ``sqrt(mean(w²))``, accumulated in float64. It equals the standard deviation where the mean is zero. For N independent entries
    of a normal distribution, one draw has the relative standard deviation ``1/sqrt(2N)``: 0.07 % for a million weights.

    It misleads for parametrized weights (weight normalization, spectral normalization), whose parameters are not the weights that
    the model multiplies with.

    Returns:
        Root mean squares by name, parameters first, in the model's order; NaN if an entry is not finite. Buffers have their
        values before the forward pass. Tensors that are empty, sparse or without values yet (lazy modules) are omitted.

    Source: He, Zhang, Ren & Sun, ICCV 2015, for what the number should be.
    """
    values = run[DESCRIPTION].values
    return {name: math.nan if v.not_finite else v.rms for name, v in values.items() if v.count}


@declare("profile", needs=[DESCRIPTION], tolerance=1e-3)
def parameter_mean(run: Run) -> dict[str, float]:
    """Return the mean of the initial values of each parameter and floating buffer.

    ``mean(w)``, accumulated in float64. It is 0 up to ``std/sqrt(N)`` for N weights that are drawn symmetrically, and the value
    of a constant.

    It misleads for weights whose rows have means of opposite sign.

    Returns:
        Means by name, parameters first, in the model's order; NaN if an entry is not finite. Omitted are the tensors that
        ``parameter_rms`` omits.

    Source: our definition.
    """
    values = run[DESCRIPTION].values
    return {name: math.nan if v.not_finite else v.mean for name, v in values.items() if v.count}


@declare("profile", needs=[DESCRIPTION], scale="log")
def parameter_outlier(run: Run) -> dict[str, float]:
    """Return the largest initial value of each parameter and floating buffer, in units of its root mean square.

    ``max|w| / sqrt(mean(w²))``. It is 1 for a constant, √3 for a uniform distribution, and about ``sqrt(2 ln N)`` for N normal
    entries: 5.3 for a million.

    It misleads for sparse tensors, whose root mean square is small: a one-hot table of N entries has √N.

    Returns:
        Ratios by name, parameters first, in the model's order; NaN if an entry is not finite. Omitted are tensors whose entries
        are all zero, and those that ``parameter_rms`` omits.

    Source: Fisher & Tippett, Math. Proc. Camb. Phil. Soc. 24, 180 (1928), for the largest of N entries.
    """
    values = {name: v for name, v in run[DESCRIPTION].values.items() if v.count and (v.not_finite or v.rms)}
    return {name: math.nan if v.not_finite else v.largest / v.rms for name, v in values.items()}
