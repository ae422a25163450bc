"""How the exponents converge along the chain."""

from __future__ import annotations

from ..engine.exponents import SWEEP
from ..engine.run import Run
from .measure import Measure


def lyapunov_history(run: Run) -> dict[str, float]:
    """Return the running average of the exponents, in the order of the sweep: from the last step that counts to each.

    At the first step that counts it is the exponent itself. What still moves there has not converged: the sequence is too short,
    or ``warmup`` and ``alignment`` are.

    Returns:
        Nats per step or unit of time, by step in program order; of further exponents as ``"STEP exponent 2"``. ``-inf`` from
        where a column vanishes on.
    """
    averages = run[SWEEP].running(run.chain, run.recipe.warmup, run.recipe.alignment).nanmean(dim=1).tolist()
    counted = slice(run.recipe.warmup, len(run.chain) - run.recipe.alignment)
    return {
        name + (f" exponent {number}" if number > 1 else ""): value
        for name, values in zip(run.chain.names[counted], averages[counted])
        for number, value in enumerate(values, 1)
    }


MEASURE = Measure(
    "lyapunov_history", "profile", "nats/step", "linear", frozenset({SWEEP}), lyapunov_history, tolerance=0.05
)
