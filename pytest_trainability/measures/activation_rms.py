"""How large the activations are along the chain."""

from __future__ import annotations

from ..engine.magnitudes import MAGNITUDES
from ..engine.run import Run
from .measure import Measure


def activation_rms(run: Run) -> dict[str, float]:
    """Return the root mean square of each state ``x_0 … x_L``, over batch, positions and channels.

    A state is what crosses the boundary: where a skip passes by, it counts. Tensors that no module reads or writes
    (made between two modules and read after the boundary) are not seen.

    Returns:
        Activation units; ``"input"`` for ``x_0``, then by step, in program order.
    """
    names = ("input", *run.chain.names)
    return {name: run[MAGNITUDES].root_mean_square(state) for name, state in zip(names, run.chain.cut.states)}


MEASURE = Measure("activation_rms", "profile", "", "log", frozenset({MAGNITUDES}), activation_rms, tolerance=0.1)
