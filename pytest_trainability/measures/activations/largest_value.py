"""The largest absolute value in the forward pass, of every operation's result."""

from __future__ import annotations

import math

from torch import Tensor

from ...engine.capture.recorder import Recorder
from ...engine.capture.results import ResultObserver, unmasked
from ...engine.linalg.norms import as_real, stored_values
from ...engine.runs.run import Need, Run
from ..measure import declare

__all__ = ["LARGEST_VALUES"]


class _LargestValues(ResultObserver):
    """Keeps the largest absolute value of all results of each module."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.found: dict[str, float] = {}

    def observe(self, path: str, result: Tensor) -> None:
        values = as_real(stored_values(result))
        _, found = unmasked(values.float() if values.element_size() == 1 else values)
        known = self.found.setdefault(path, found)
        if found > known or math.isnan(found):
            self.found[path] = found


LARGEST_VALUES: Need[dict[str, float]] = Need(
    "largest values", lambda run: run.capture.watched[_LargestValues].found, instruments=(_LargestValues,)
)
"""Largest absolute value of the results of each module, in the order of their first result."""


@declare("profile", scale="log", needs=[LARGEST_VALUES], tolerance=0.3)
def largest_value(run: Run) -> dict[str, float]:
    """Return ``max |y_i|`` over the results of all operations in the forward pass, for each module that computes them.

    The results of operations between modules count for the module whose code computes them: attention scores before the softmax,
    squares in a norm that is written by hand. float16 holds 65504, bfloat16 3.39e38, FP8 448 (E4M3) and 57344 (E5M2). Masked
    scores (``-inf`` or at most -10⁸ in a tensor without entries as large) do not count.

    It misleads for what happens inside an operation: the scores of fused attention (see ``attention_logit_max``), squares in
    ``F.layer_norm``, sums in a product.

    Returns:
        Units of the activations, by the path of the module, and by the class of the model for operations outside of all others,
        in program order. Operations that only move entries do not count. ``inf`` and NaN if an entry is. Operations of a loss
        function and of scripted functions are not seen.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018; Micikevicius et al., FP8 Formats for Deep Learning,
    arXiv:2209.05433 (2022), table 1.
    """
    return run[LARGEST_VALUES]
