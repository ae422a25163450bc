"""Tensors of a run that contain NaN or infinity."""

from __future__ import annotations

import math

import torch

from ...engine.linalg.norms import norm
from ...engine.runs.common_needs import PARAMETER_GRADIENTS, STATE_RMS
from ...engine.runs.finiteness import entries_not_finite
from ...engine.runs.run import Run
from ..measure import declare


@declare("names", needs=[STATE_RMS, PARAMETER_GRADIENTS])
def nonfinite(run: Run) -> list[str]:
    """Return the parameters, states, outputs, loss and gradients that contain NaN or infinity.

    It misleads for tensors inside a step: only states are examined. The first listed state comes after the step with the fault.
    An output of which some entries are ``-inf`` and all others are finite is not listed, because scores may be masked.

    Returns:
        ``"parameter NAME"``, ``"input"`` and ``"state after STEP"``, ``"output"`` or a part of it, ``"loss"``,
        ``"gradient of NAME"``: in this order, and within each group in the order of the model or of the forward pass.
    """
    capture = run.capture
    found = [f"parameter {name}" for name, p in capture.model.named_parameters() if not bool(torch.isfinite(p).all())]
    for name, state in zip(("input", *run.chain.names), run.chain.cut.states):
        rms = run[STATE_RMS].root_mean_square(state)
        is_observed = any(edge in run[STATE_RMS].square_sums for edge in state)
        if is_observed and not math.isfinite(rms):
            found.append(f"state after {name}" if name != "input" else "input")
    found += [
        part.name.removeprefix("the ") for part in entries_not_finite(capture) if not (part.is_loss or part.is_mask)
    ]
    if capture.loss is not None and not math.isfinite(float(capture.loss.detach())):
        found.append("loss")
    for name, gradient in run[PARAMETER_GRADIENTS].items():
        # The norm is finite if and only if every entry is, also for sparse gradients.
        if gradient is not None and not math.isfinite(float(norm(gradient))):
            found.append(f"gradient of {name}")
    return found
