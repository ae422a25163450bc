"""How large the states along the chain are."""

from __future__ import annotations

import math

from ...engine.runs.common_needs import STATE_RMS
from ...engine.runs.run import Run
from ..measure import declare


@declare("profile", scale="log", needs=[STATE_RMS], tolerance=0.1, recorded=["depth"])
def activation_rms(run: Run) -> dict[str, float]:
    """Return the root mean square of each state ``x_0 … x_L``, over batch, positions and channels.

    A state is what crosses the boundary: where a skip passes by, it counts. Tensors that no module reads or writes
    (made between two modules and read after the boundary) are not seen.

    Returns:
        Activation units; ``"input"`` for ``x_0``, then by step, in program order.
    """
    names = ("input", *run.chain.names)
    return {name: run[STATE_RMS].root_mean_square(state) for name, state in zip(names, run.chain.cut.states)}


@declare("scalar", unit="nats", needs=[STATE_RMS], tolerance=0.3)
def forward_log_gain(run: Run) -> float:
    """Return ``ln rms(x_L) / rms(x_0)``: the forward pass beside the backward pass's ``log_gain``.

    The two differ: a default-initialized ReLU tower keeps its activations (bias) while its gradient vanishes.

    Returns:
        Nats.
    """
    first, last = (run[STATE_RMS].root_mean_square(run.chain.cut.states[index]) for index in (0, -1))
    return (
        math.log(last) - math.log(first) if first > 0 and last > 0 else (-math.inf if last == 0 < first else math.nan)
    )
