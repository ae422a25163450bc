"""The empirical neural tangent kernel of a batch: inner products of the outputs' gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...engine.isolation import generator_of
from ...engine.jacobian.vjp import backward
from ...engine.linalg.gram import NUMBERS, gram_matrix
from ...engine.linalg.norms import as_real
from ...engine.runs.objective import Objective
from ...engine.runs.run import Need, Run, Stage
from ...engine.trees import batch_size, carries_gradient, tensors_in
from ...errors import InapplicableError
from ..measure import declare

__all__ = ["TANGENT_KERNEL", "TangentKernel", "outputs_of"]


ROWS = 512
"""Outputs of a batch up to which every one has a row of the kernel; beyond, every sample has one."""
COLUMNS, ENTRIES = 32, 2**24
"""So many outputs, whose cotangents have so many entries, at most are differentiated at once."""
ROUND_OFF = 8
"""A singular value of J below so many times the working precision, beside the largest one, is round-off."""


@dataclass(frozen=True, slots=True, eq=False)
class TangentKernel:
    """``Θ = J Jᵀ``, in float64 on the CPU, of ``J = ∂outputs/∂parameters``."""

    matrix: Tensor
    eps: float
    """Working precision of J."""

    def condition_number(self) -> float:
        """Return ``λ_max / λ_min``; ``inf`` where λ_min is round-off, NaN where all is zero or not finite.

        J is known to a few ``eps ‖J‖``, and the singular values are the roots of Θ's eigenvalues: what is below
        ``(8 eps)² λ_max`` cannot be told from zero, nor what is below Θ's own rounding in float64.
        """
        if not bool(self.matrix.isfinite().all()):
            return math.nan
        values = torch.linalg.eigvalsh(self.matrix)
        smallest, largest = float(values[0]), float(values[-1])
        if largest <= 0:
            return math.nan
        floor = max((ROUND_OFF * self.eps) ** 2, len(values) * torch.finfo(torch.float64).eps)
        return largest / smallest if smallest > floor * largest else math.inf


def outputs_of(output: Any, loss: Tensor | None) -> Tensor | None:
    """Return the tensor that a model answers with: its ``logits`` where it names some, else its first tensor that is no loss.

    Hidden states, attentions and auxiliary outputs come later in what models return, and are left out. A tensor of one element,
    such as a part of the loss that is reported beside it, is the answer only where there is no other.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    losses = [t for t in (loss, _named_loss(output)) if isinstance(t, Tensor)]
    if isinstance(output, Mapping):
        output = {key: value for key, value in output.items() if key != "loss"}
    candidates = [named] if isinstance(named, Tensor) else list(tensors_in(output))
    found = [
        t for t in candidates if t.dim() > 0 and carries_gradient(t) and not any(_same(t, other) for other in losses)
    ]
    return next((t for t in found if t.numel() > 1), found[0] if found else None)


def _named_loss(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def _same(tensor: Tensor, loss: Tensor) -> bool:
    """Whether a tensor is a loss, in whatever shape."""
    return tensor is loss or (tensor.numel() == loss.numel() and tensor.data_ptr() == loss.data_ptr())


def _tangent_kernel(run: Run) -> TangentKernel:
    objective = Objective.of(run)
    parameters = list(objective.parameters.values())
    outputs = outputs_of(*objective.outputs()) if parameters else None
    if outputs is None:
        what = "returns nothing but its loss" if parameters else "has nothing to train"
        msg = (
            "the tangent kernel must be that of outputs and trainable parameters. "
            f"{type(run.capture.model).__name__} {what}. Hand in a model that returns its outputs, and loss=... beside it."
        )
        raise InapplicableError(msg)
    outputs = as_real(outputs)
    size = sum(p.numel() for p in parameters)
    functionals = _functionals(outputs, batch_size(run.capture.inputs) or 1, size, run.seed)
    rows = partial(_rows, functionals, parameters)
    eps = max(torch.finfo(t.dtype).eps for t in (outputs, *parameters))
    return TangentKernel(gram_matrix(rows, len(functionals), size), eps)


TANGENT_KERNEL = Need("tangent kernel", _tangent_kernel, Stage.RERUN)
"""Of all outputs of the batch, or of one random functional of each sample's where they are many."""


# Rows ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class _Functionals:
    """What the rows of J are gradients of."""

    outputs: Tensor
    weights: Tensor | None = None
    """Of one sample's outputs, the same for all; None where every output stands for itself."""
    axis: int = 0
    """Which dimension of the outputs counts samples."""

    def __len__(self) -> int:
        if self.weights is None:
            return self.outputs.numel()
        return self.outputs.shape[self.axis] // self.weights.shape[self.axis]

    def cotangents(self, first: int, last: int) -> Tensor:
        """Return their gradients with respect to the outputs, ``(last - first, *shape)``."""
        found = self.outputs.new_zeros(last - first, *self.outputs.shape)
        if self.weights is None:
            found.view(last - first, -1)[range(last - first), range(first, last)] = 1
            return found
        length = self.weights.shape[self.axis]
        for row, sample in zip(found, range(first, last)):
            row.narrow(self.axis, sample * length, length).copy_(self.weights)
        return found


def _functionals(outputs: Tensor, batch: int, size: int, seed: int) -> _Functionals:
    """Choose the rows: every output where they are few, else one random functional a sample.

    Raises:
        InapplicableError: The outputs are too many, and cannot be divided into two samples or more.
    """
    if 1 < outputs.numel() <= ROWS and outputs.numel() * size <= NUMBERS:
        return _Functionals(outputs)
    axis = next((axis for axis, length in enumerate(outputs.shape[:2]) if length % batch == 0), None)
    if batch < 2 or axis is None:
        msg = (
            "the tangent kernel must have rows to compare: up to 512 outputs, or two samples along the first dimension of inputs "
            f"and outputs. Got outputs of shape {tuple(outputs.shape)} for a batch of {batch}. Use a larger batch."
        )
        raise InapplicableError(msg)
    shape = [length // batch if i == axis else length for i, length in enumerate(outputs.shape)]
    generator = generator_of(seed, "direction of the outputs")
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return _Functionals(outputs, (drawn / drawn.norm()).to(device=outputs.device, dtype=outputs.dtype), axis)


def _rows(functionals: _Functionals, parameters: Sequence[Tensor], first: int, last: int) -> list[Tensor]:
    """Return rows of J, ``(last - first, *shape)`` for every parameter that the outputs depend on."""
    parts: list[Sequence[Tensor | None]] = []
    step = max(1, min(COLUMNS, ENTRIES // functionals.outputs.numel()))
    while first < last:
        count = min(step, last - first)
        try:
            cotangents = functionals.cotangents(first, first + count)
            parts.append(backward([functionals.outputs], parameters, [cotangents]))
            first += count
        except RuntimeError:
            if count == 1:
                raise
            # An operator without a batching rule (custom autograd functions, mostly): one row after the other.
            step = 1
    return [torch.cat([g for g in part if g is not None]) for part in zip(*parts) if part[0] is not None]


@declare("scalar", scale="log", needs=[TANGENT_KERNEL], tolerance=0.3)
def ntk_condition_number(run: Run) -> float:
    """Return ``κ = λ_max / λ_min`` of the empirical tangent kernel ``Θ = J Jᵀ``, ``J = ∂outputs/∂parameters``, on the batch.

    In the linear regime gradient descent fits the slowest mode κ times more slowly than the fastest.

    J has a row for every output of the batch, where they are 512 at most and J has no more than 2²⁷ entries. Beyond, it has
    one for every sample: the gradient of a Gaussian functional of its outputs, of unit norm, drawn from the seed and the same
    for all samples. Where Θ is ``K ⊗ I``, as in the limit of width, both have the condition number of K; else that of the
    functionals is smaller. Outputs are the model's ``logits`` where it names some, else its first tensor beside the loss.

    It misleads where outputs or samples are tied: a softmax or a LayerNorm at the end, a sample or a token that comes twice,
    or fewer parameters than outputs make Θ singular. It grows with the number of rows: compare batches of one size.

    Returns:
        A pure number of at least 1; ``inf`` where ``λ_min ≤ (8 ε)² λ_max``, with ε of the coarsest type of parameters and
        outputs, for it is round-off then. NaN where no output depends on a parameter.

    Raises:
        InapplicableError: There are no two rows, nothing to train, or no output but the loss.

    Source: Jacot, Gabriel & Hongler, NeurIPS 2018 (Θ); Xiao, Pennington & Schoenholz, ICML 2020 (κ). One functional in place
    of all outputs: Mohamadi, Bae & Sutherland, ICML 2023, who take their sum, which a softmax or a LayerNorm makes constant.
    """
    return run[TANGENT_KERNEL].condition_number()
