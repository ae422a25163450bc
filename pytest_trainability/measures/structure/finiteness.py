"""Tensors of a run that contain NaN or infinity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...engine.capture.recorder import Recorder
from ...engine.capture.results import ResultObserver
from ...engine.linalg.norms import are_finite, as_real, stored_values
from ...engine.runs.common_needs import GRADIENT_NORMS, STATE_RMS
from ...engine.runs.finiteness import entries_not_finite
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import without_torch_functions
from ...engine.trees import is_float, named_tensors, tensors_in
from ...records.causes import CauseRecord
from ...records.text import format_number
from ..measure import declare

__all__ = ["NOT_FINITE_CAUSES"]

# Note [The first value that is not finite]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# NaN spreads to everything behind it, so that only its first place says anything. An operation makes NaN if it reads none.
# Infinity may be meant: scores are masked by -inf, and distances by inf. It counts only if no NaN follows from it, or if the
# operation that makes NaN reads it, and only if an operation made it from finite tensors and numbers.

OVERFLOW = 1e4
"""Largest value that an operation reads over that of the inputs, from which on its overflow is one of growing states."""


class _FirstNotFinite(ResultObserver):
    """Finds the first function whose result is not finite although all that it reads is."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.infinite = self.nan = ""
        """What makes the first infinity, and the first NaN; empty for nothing."""
        self.reads_infinity = False
        """Whether the first NaN is made of infinity."""
        self.largest = 0.0
        """Largest absolute value that the operation reads that makes the first value that is not finite."""
        self._read: list[Tensor] = []
        self._name = ""
        self._numbers_are_finite = True

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and look at what it reads before it may be overwritten."""
        if not self.nan:
            with without_torch_functions(), torch.no_grad():
                found = (t for t in tensors_in((args, kwargs)) if is_float(t) and not t.is_meta and t.numel())
                self._read = [_ends_of(t.detach()) for t in found]
            numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, float)]
            self._numbers_are_finite = all(map(math.isfinite, numbers))
            self._name = getattr(func, "__name__", "").strip("_")
        return super().call(func, args, kwargs)

    def observe(self, path: str, result: Tensor) -> None:
        low, high = _ends_of(result).tolist()
        if self.nan or (math.isfinite(low) and math.isfinite(high)):
            return
        ends = torch.stack(self._read) if self._read else torch.zeros(1, 2)
        if bool(ends.isnan().any()):
            # Nothing has made this NaN: a parameter or an input holds it.
            self.nan = self.nan or "its inputs"
        elif math.isnan(low):
            self.nan, self.reads_infinity = self._text("nan", ends), bool(ends.isinf().any())
            self.largest = self.largest if self.infinite else float(ends[ends.isfinite()].abs().sum())
        elif not self.infinite and self._numbers_are_finite and bool(ends.isfinite().all()):
            self.infinite = self._text("-inf" if low == -math.inf else "inf", ends)
            self.largest = float(ends.abs().max())

    def _text(self, kind: str, ends: Tensor) -> str:
        call = self.caller
        where = (
            "the loss" if call is None else f"{self.path} ({type(call.module).__name__})" if call.path else self.path
        )
        text = f"{self._name} in {where} returns {kind}"
        if not self._read:
            return text
        low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
        return f"{text}, and reads values from {format_number(low)} to {format_number(high)}"


def _ends_of(values: Tensor) -> Tensor:
    """Return the smallest and the largest entry; NaN twice if an entry is NaN."""
    real = as_real(stored_values(values))
    real = real.float() if real.element_size() == 1 else real
    return torch.stack(torch.aminmax(real)).double().cpu() if real.numel() else torch.zeros(2, dtype=torch.float64)


def _not_finite_causes(run: Run) -> tuple[CauseRecord, ...]:
    found: _FirstNotFinite = run.capture.watched[_FirstNotFinite]
    held = next(_holders(run), "")
    if held:
        return (CauseRecord(f"first value that is not finite: {held}", is_first=True),)
    is_infinite = bool(found.infinite) and (found.reads_infinity or not found.nan)
    text = found.infinite if is_infinite else found.nan
    if not text:
        return ()
    operation, _, rest = text.partition(" returns ")
    text = f"{operation} returns the first value that is not finite, {rest}"
    if is_infinite and found.nan:
        text += f"; then {found.nan.partition(',')[0]}"
    inputs = [float(_ends_of(t.detach()).abs().max()) for t in tensors_in(run.capture.inputs) if is_float(t)]
    grows = found.largest > OVERFLOW * max(1.0, *inputs, 0.0)
    return (CauseRecord(text, is_first=True, is_growth=grows),)


def _holders(run: Run) -> Iterator[str]:
    """Yield the inputs, parameters and buffers that are not finite, apart from masks of infinity in buffers."""
    named = [("input", t) for _, t in named_tensors(run.capture.inputs)]
    named += [(f"parameter {name}", p) for name, p in run.capture.model.named_parameters()]
    named += [(f"buffer {name}", b) for name, b in run.capture.model.named_buffers()]
    for name, tensor in named:
        if is_float(tensor) and not tensor.is_meta and tensor.numel():
            ends = _ends_of(tensor.detach())
            if bool(ends.isnan().any()) or (not name.startswith("buffer") and bool(ends.isinf().any())):
                yield name


NOT_FINITE_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "the first value that is not finite", _not_finite_causes, instruments=(_FirstNotFinite,)
)
"""Which parameter, input or operation is not finite first, in the order of the forward pass."""


def _is_finite(parameter: Tensor) -> bool:
    values = stored_values(parameter)
    # A finite sum has finite terms, and takes no mask. That of finite terms may overflow.
    if values.dtype in {torch.float32, torch.float64} and math.isfinite(float(values.sum())):
        return True
    return are_finite(parameter)


@declare("names", needs=[STATE_RMS, GRADIENT_NORMS], explained_by=NOT_FINITE_CAUSES)
def nonfinite(run: Run) -> list[str]:
    """Return the parameters, states, outputs, loss and gradients that contain NaN or infinity.

    It misleads for tensors inside a step: only states are examined. The first listed state comes after the step with the fault.
    An output of which some entries are ``-inf`` and all others are finite is not listed, because scores may be masked.

    Returns:
        ``"parameter NAME"``, ``"input"`` and ``"state after STEP"``, ``"output"`` or a part of it, ``"loss"``,
        ``"gradient of NAME"``: in this order, and within each group in the order of the model or of the forward pass.
    """
    capture = run.capture
    found = [f"parameter {name}" for name, p in capture.model.named_parameters() if not _is_finite(p)]
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
    for name, size in run[GRADIENT_NORMS].items():
        # The norm is finite if and only if every entry is, also for sparse gradients.
        if not math.isfinite(size):
            found.append(f"gradient of {name}")
    return found
