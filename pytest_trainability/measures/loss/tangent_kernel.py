"""The empirical neural tangent kernel of a batch: inner products of the outputs' parameter gradients."""

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

__all__ = ["TANGENT_KERNEL", "TangentKernel", "main_output"]


ROWS = 512
"""Largest number of outputs for which every output has a row of J. For more outputs, every sample has one."""
ROWS_AT_ONCE, ENTRIES_AT_ONCE = 32, 2**24
"""Largest number of rows of J that one backward pass computes, and largest number of entries of their cotangents."""
ROUND_OFF = 8
"""A singular value of J counts as round-off if it is below this many times the working precision, relative to the largest one."""


@dataclass(frozen=True, slots=True, eq=False)
class TangentKernel:
    """``Θ = J Jᵀ`` with ``J = ∂outputs/∂parameters``, in float64 on the CPU."""

    matrix: Tensor
    eps: float
    """Relative precision of the type that J was computed in."""

    def condition_number(self) -> float:
        """Return ``λ_max / λ_min``; ``inf`` if λ_min is round-off, NaN if the matrix is zero or not finite.

        The error of J is a few ``eps ‖J‖``, and the singular values of J are the square roots of Θ's eigenvalues. An eigenvalue
        below ``(8 eps)² λ_max``, or below the rounding error of Θ in float64, cannot be distinguished from zero.
        """
        if not bool(self.matrix.isfinite().all()):
            return math.nan
        values = torch.linalg.eigvalsh(self.matrix)
        smallest, largest = float(values[0]), float(values[-1])
        if largest <= 0:
            return math.nan
        floor = max((ROUND_OFF * self.eps) ** 2, len(values) * torch.finfo(torch.float64).eps)
        return largest / smallest if smallest > floor * largest else math.inf


def main_output(output: Any, loss: Tensor | None) -> Tensor | None:
    """Return the main output of a model: its ``logits``, or else its first tensor that is not a loss.

    Models return hidden states, attention weights and auxiliary outputs after the main output. A tensor with one element, such
    as a part of the loss, is the main output only if there is no other tensor.

    Args:
        output: The value that the model returned.
        loss: The loss, which the model may have returned as well.

    Returns:
        A tensor that carries a gradient; None if the model returns no such tensor, or only its loss.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    losses = [t for t in (loss, _named_loss(output)) if isinstance(t, Tensor)]
    if isinstance(output, Mapping):
        output = {key: value for key, value in output.items() if key != "loss"}
    candidates = [named] if isinstance(named, Tensor) else list(tensors_in(output))
    found = [
        t for t in candidates if t.dim() > 0 and carries_gradient(t) and not any(_is_same(t, other) for other in losses)
    ]
    return next((t for t in found if t.numel() > 1), found[0] if found else None)


def _named_loss(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def _is_same(tensor: Tensor, loss: Tensor) -> bool:
    """Whether a tensor is the loss, possibly in another shape."""
    return tensor is loss or (tensor.numel() == loss.numel() and tensor.data_ptr() == loss.data_ptr())


def _tangent_kernel(run: Run) -> TangentKernel:
    objective = Objective.of(run)
    parameters = list(objective.parameters.values())
    outputs = main_output(*objective.outputs()) if parameters else None
    if outputs is None:
        problem = "returns only its loss" if parameters else "has no trainable parameters"
        msg = (
            "ntk_condition_number needs a model with trainable parameters that returns its outputs. "
            f"{type(run.capture.model).__name__} {problem}. Pass a model that returns outputs, and its loss as loss=..."
        )
        raise InapplicableError(msg)
    outputs = as_real(outputs)
    size = sum(p.numel() for p in parameters)
    functionals = _functionals(outputs, batch_size(run.capture.inputs) or 1, size, run.seed)
    rows = partial(_rows, functionals, parameters)
    eps = max(torch.finfo(t.dtype).eps for t in (outputs, *parameters))
    return TangentKernel(gram_matrix(rows, len(functionals), size), eps)


TANGENT_KERNEL = Need("tangent kernel", _tangent_kernel, Stage.RERUN)
"""The :class:`TangentKernel` of all outputs of the batch, or of one random functional of each sample's outputs if there are
many."""


# Rows ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class _Functionals:
    """Linear functionals of the outputs. Their parameter gradients are the rows of J."""

    outputs: Tensor
    weights: Tensor | None = None
    """Weights of one sample's outputs, the same for all samples. None: each output is a functional."""
    axis: int = 0
    """Dimension of the outputs that counts samples."""

    def __len__(self) -> int:
        if self.weights is None:
            return self.outputs.numel()
        return self.outputs.shape[self.axis] // self.weights.shape[self.axis]

    def cotangents(self, first: int, last: int) -> Tensor:
        """Return the gradients of some functionals with respect to the outputs, ``(last - first, *shape)``."""
        found = self.outputs.new_zeros(last - first, *self.outputs.shape)
        if self.weights is None:
            found.view(last - first, -1)[range(last - first), range(first, last)] = 1
            return found
        length = self.weights.shape[self.axis]
        for row, sample in zip(found, range(first, last)):
            row.narrow(self.axis, sample * length, length).copy_(self.weights)
        return found


def _functionals(outputs: Tensor, batch: int, size: int, seed: int) -> _Functionals:
    """Return every output as a functional if there are few, else one random functional for each sample.

    Args:
        outputs: The model's outputs, real.
        batch: Number of samples.
        size: Number of parameters.
        seed: Seed of the random functional.

    Raises:
        InapplicableError: There are too many outputs, and they cannot be divided into at least two samples.
    """
    if 1 < outputs.numel() <= ROWS and outputs.numel() * size <= NUMBERS:
        return _Functionals(outputs)
    axis = next((axis for axis, length in enumerate(outputs.shape[:2]) if length % batch == 0), None)
    if batch < 2 or axis is None:
        msg = (
            "ntk_condition_number needs at most 512 outputs, or at least two samples along the first dimension of inputs and "
            f"outputs. Got outputs of shape {tuple(outputs.shape)} for a batch of {batch}. Use a larger batch."
        )
        raise InapplicableError(msg)
    shape = [length // batch if i == axis else length for i, length in enumerate(outputs.shape)]
    generator = generator_of(seed, "direction of the outputs")
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return _Functionals(outputs, (drawn / drawn.norm()).to(outputs), axis)


def _rows(functionals: _Functionals, parameters: Sequence[Tensor], first: int, last: int) -> list[Tensor]:
    """Return some rows of J, ``(last - first, *shape)`` for every parameter that the outputs depend on."""
    parts: list[Sequence[Tensor | None]] = []
    step = max(1, min(ROWS_AT_ONCE, ENTRIES_AT_ONCE // functionals.outputs.numel()))
    while first < last:
        count = min(step, last - first)
        try:
            cotangents = functionals.cotangents(first, first + count)
            parts.append(backward([functionals.outputs], parameters, [cotangents]))
            first += count
        except RuntimeError:
            if count == 1:
                raise
            # An operator has no batching rule (usually a custom autograd function): compute one row at a time.
            step = 1
    return [torch.cat([g for g in part if g is not None]) for part in zip(*parts) if part[0] is not None]


@declare("scalar", scale="log", needs=[TANGENT_KERNEL], tolerance=0.3)
def ntk_condition_number(run: Run) -> float:
    """Return ``κ = λ_max / λ_min`` of the batch's empirical tangent kernel ``Θ = J Jᵀ`` with ``J = ∂outputs/∂parameters``.

    In the linear regime, gradient descent fits the slowest mode κ times more slowly than the fastest one.

    J has one row for every output of the batch, up to 512 rows and 2²⁷ entries. Beyond that, it has one row for every sample: the
    gradient of a Gaussian functional of the sample's outputs, of unit norm, drawn from the seed and the same for all samples. If
    ``Θ = K ⊗ I``, as for infinite width, both choices give the condition number of K. Otherwise that of the functionals is
    smaller. Outputs are the model's ``logits`` if it has an output of that name, else its first tensor that is not the loss.

    It misleads where outputs or samples depend on each other: Θ is singular after a final softmax or LayerNorm, for repeated
    samples or tokens, and if there are fewer parameters than outputs. It grows with the number of rows: compare batches of
    equal size.

    Returns:
        A pure number of at least 1. ``inf`` if ``λ_min ≤ (8 ε)² λ_max``, which is round-off; ε is the largest relative precision
        among the types of parameters and outputs. NaN if no output depends on a parameter.

    Raises:
        InapplicableError: There are fewer than two rows, no trainable parameters, or no output except the loss.

    Source: Jacot, Gabriel & Hongler, NeurIPS 2018 (Θ); Xiao, Pennington & Schoenholz, ICML 2020 (κ). One functional instead of
    all outputs: Mohamadi, Bae & Sutherland, ICML 2023, who use the sum of outputs. A softmax or a LayerNorm makes that constant.
    """
    return run[TANGENT_KERNEL].condition_number()
