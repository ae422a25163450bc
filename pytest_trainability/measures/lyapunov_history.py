"""How the exponents converge along the chain."""

from __future__ import annotations

import torch

from ..engine.ensemble import Run
from .measure import Measure


def lyapunov_history(run: Run) -> dict[str, float]:
    """Return the running average of the exponents, in the order of the sweep: from the last step that counts to each.

    At the first step that counts it is the exponent itself. What still moves there has not converged: the sequence is too short,
    or ``warmup`` and ``alignment`` are.

    Returns:
        Nats per step or unit of time, by step in program order; of further exponents as ``"STEP exponent 2"``. ``-inf`` from
        where a column vanishes on.
    """
    assert run.sweep is not None
    chain = run.chain
    taken = run.sweep.taken(chain)[run.counted]
    logs = torch.where(taken[:, :, None], run.sweep.logs[run.counted], 0.0).flip(0)
    vanished = (run.sweep.logs.flip(0) == -torch.inf).cummax(0).values.flip(0)[run.counted].flip(0)
    logs = torch.where(vanished, -torch.inf, logs).cumsum(0)
    durations = torch.tensor(chain.durations or [1.0] * len(chain), dtype=torch.float64, device="cpu")[run.counted]
    time = (taken * durations[:, None]).flip(0).cumsum(0)
    averages = (logs / time[:, :, None]).nanmean(dim=1).flip(0).tolist()
    return {
        name + (f" exponent {number}" if number > 1 else ""): value
        for name, values in zip(chain.names[run.counted], averages)
        for number, value in enumerate(values, 1)
    }


MEASURE = Measure(
    "lyapunov_history", "profile", "nats/step", "linear", frozenset({"sweep"}), lyapunov_history, tolerance=0.05
)
