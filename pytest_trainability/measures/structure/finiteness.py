"""Where NaN or infinity appears."""

from __future__ import annotations

import math

import torch

from ...engine.linalg.norms import norm
from ...engine.runs.common_needs import PARAMETER_GRADIENTS, STATE_RMS
from ...engine.runs.run import Run
from ..measure import declare


@declare("names", needs=[STATE_RMS, PARAMETER_GRADIENTS])
def nonfinite(run: Run) -> list[str]:
    """Return what holds a NaN or an infinity: parameters, states, the loss and gradients, in the order of their making.

    Returns:
        ``"parameter NAME"``, ``"state after STEP"``, ``"loss"``, ``"gradient of NAME"``.
    """
    capture = run.capture
    found = [f"parameter {name}" for name, p in capture.model.named_parameters() if not bool(torch.isfinite(p).all())]
    for name, state in zip(("input", *run.chain.names), run.chain.cut.states):
        rms = run[STATE_RMS].root_mean_square(state)
        seen = any(edge in run[STATE_RMS].square_sums for edge in state)
        if seen and not math.isfinite(rms):
            found.append(f"state after {name}" if name != "input" else "input")
    if capture.loss is not None and not math.isfinite(float(capture.loss.detach())):
        found.append("loss")
    for name, gradient in run[PARAMETER_GRADIENTS].items():
        # A norm is finite when every entry is, of a sparse gradient too.
        if gradient is not None and not math.isfinite(float(norm(gradient))):
            found.append(f"gradient of {name}")
    return found
