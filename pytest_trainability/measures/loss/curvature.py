"""The Hessian of a run's loss, by its products with vectors, and its largest eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from ...engine.isolation import generator_of
from ...engine.linalg.lanczos import TOLERANCE, Eigenvalue, largest_eigenvalue
from ...engine.linalg.norms import as_real, norm
from ...engine.runs.objective import Objective, twice_differentiable
from ...engine.runs.requirements import require_loss, require_trainable
from ...engine.runs.run import Need, Run, Stage
from ...errors import InapplicableError
from ..measure import declare

__all__ = ["Hessian", "LARGEST_CURVATURE"]


KEPT_BYTES = 2**31
"""Of Lanczos vectors that later ones are made orthogonal to; the two that the recurrence needs are always kept."""


class Hessian:
    """The Hessian of a run's loss by its trainable parameters, as a map of flat vectors.

    ``H v = ∂/∂w ⟨∂loss/∂w, v⟩``: the gradient is differentiated once more. The model is run once; every product goes back
    through that run's graph, so that dropout masks and batch statistics are those of one and the same function. A complex
    parameter counts as two real ones.

    Source: Pearlmutter, Neural Computation 6, 147 (1994).
    """

    def __init__(self, run: Run) -> None:
        self._objective = Objective.of(run)
        self.parameters: list[nn.Parameter] = list(self._objective.parameters.values())
        self.device = run.capture.device
        wide = any(p.dtype in {torch.float64, torch.complex128} for p in self.parameters)
        self.dtype = torch.float64 if wide else torch.float32
        self.size = sum(_real(p).numel() for p in self.parameters)
        self._model = type(run.capture.model).__name__
        gradients = self._differentiated(lambda: list(self._objective.gradients(create_graph=True).values()))
        # Where a gradient does not depend on the parameters, its rows of the Hessian are zero, and so are its columns.
        known = [(index, g) for index, g in enumerate(gradients) if g is not None and g.requires_grad]
        self._roots = {index: g.to_dense() for index, g in known}

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector, ``(size,)``, in the map's dtype on its device."""
        parts = self._unflattened(vector)
        if not self._roots:
            return torch.zeros_like(vector)
        weights = [parts[index] for index in self._roots]
        found = self._differentiated(
            lambda: torch.autograd.grad(
                list(self._roots.values()), self.parameters, weights, retain_graph=True, allow_unused=True
            )
        )
        return self._flattened(found)

    def start(self, seed: int) -> Tensor:
        """Draw a direction, the same on every device."""
        drawn = torch.randn(self.size, generator=generator_of(seed, "curvature"), dtype=torch.float64, device="cpu")
        return drawn.to(dtype=self.dtype).to(self.device)

    def is_change_of_gradient(self, direction: Tensor) -> bool:
        """Whether a product is what the gradient changes by, to a third, over a short way in that direction.

        It moves the parameters, and is the last that can be asked.
        """
        derivative = self(direction)
        unit, length = direction / norm(direction).to(direction), float(norm(self._flattened(self.parameters))) or 1.0
        for step in (1e-2 * length, 1e-3 * length, 1e-4 * length):
            ahead = self._gradient_after(step * unit)
            behind = self._gradient_after(-2 * step * unit)
            self._gradient_after(step * unit)
            change = (ahead - behind) * float(norm(direction)) / (2 * step)
            if float(norm(change - derivative)) <= float(norm(derivative)) / 3:
                return True
        return False

    def _gradient_after(self, move: Tensor) -> Tensor:
        with torch.no_grad():
            for parameter, part in zip(self.parameters, self._unflattened(move)):
                parameter.add_(part)
        return self._flattened(self._objective.gradients().values())

    def _flattened(self, tensors: Iterable[Tensor | None]) -> Tensor:
        parts = [
            torch.zeros(_real(p).numel(), dtype=self.dtype, device=self.device)
            if t is None
            else _real(t.to_dense()).reshape(-1).to(device=self.device, dtype=self.dtype)
            for t, p in zip(tensors, self.parameters)
        ]
        return torch.cat(parts)

    def _unflattened(self, vector: Tensor) -> list[Tensor]:
        sizes = [_real(p).numel() for p in self.parameters]
        found = []
        for part, p in zip(torch.split(vector, sizes), self.parameters):
            shaped = part.reshape(_real(p).shape)
            if p.is_complex():
                shaped = torch.view_as_complex(shaped.contiguous())
            found.append(shaped.to(device=p.device, dtype=p.dtype))
        return found

    def _differentiated(self, derive: Callable[[], Sequence[Tensor | None]]) -> Sequence[Tensor | None]:
        try:
            return derive()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            first = str(error).strip().partition("\n")[0]
            instead = "attn_implementation='eager'" if "attention" in first else "another in the place of that one"
            msg = (
                f"sharpness needs a loss that can be differentiated twice. The second backward pass of {self._model} raised "
                f"{type(error).__name__}: {first.rstrip('.')}. Measure without compilation and with plain operators "
                f"({instead}), or leave sharpness out."
            )
            raise InapplicableError(msg) from error


class _DifferentiableWeightNorm(TorchFunctionMode):
    """Replaces the kernel of weight normalization, whose second derivative is wrong (PyTorch 2.13), by what it computes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        v, g, dim = (*args, *(kwargs or {}).values(), 0)[:3]
        return v * (g / torch.norm_except_dim(v, 2, dim))


def _real(tensor: Tensor) -> Tensor:
    return as_real(tensor.detach())


def _largest_curvature(run: Run) -> Eigenvalue:
    require_loss(run, "sharpness")
    require_trainable(run, "sharpness")
    with twice_differentiable(), _DifferentiableWeightNorm():
        hessian = Hessian(run)
        start = hessian.start(run.seed)
        kept = KEPT_BYTES // (hessian.size * hessian.dtype.itemsize)
        found = largest_eigenvalue(hessian, start, kept=kept)
        _refuse_false_products(run, hessian, found, start)
    return found


def _refuse_false_products(run: Run, hessian: Hessian, found: Eigenvalue, start: Tensor) -> None:
    """See that products with vectors are those of the Hessian.

    What an autograd function computes without a graph of its own is a constant to the second backward pass. That leaves a map
    that is mostly not symmetric; it is where all of the loss goes through it (a fused cross-entropy, whose forward pass computes
    the gradient), so that models with such functions are compared with differences of gradients, too.
    """
    if math.isnan(found.value):
        return
    # Half-precision products are no more symmetric than they are precise.
    coarsest = max(torch.finfo(p.dtype).eps for p in hessian.parameters)
    wrong = ""
    if found.asymmetry > max(TOLERANCE, math.sqrt(coarsest)):
        wrong = f"is no symmetric matrix: it is off by {found.asymmetry:.1%} of its largest eigenvalue"
    elif any(isinstance(node, BackwardCFunction) for node in run.graph.nodes) and not hessian.is_change_of_gradient(
        start
    ):
        wrong = "is not by what the gradient changes"
    if wrong:
        msg = (
            f"sharpness needs a gradient that can be differentiated. The derivative of {type(run.capture.model).__name__}'s "
            f"{wrong}. The backward of some operator, a custom autograd function mostly, hides from differentiation what it "
            "computes with (.detach(), .data, numpy, once_differentiable). Measure with plain operators, or leave sharpness out."
        )
        raise InapplicableError(msg)


LARGEST_CURVATURE = Need("largest curvature", _largest_curvature, Stage.RERUN)
"""Largest eigenvalue of the Hessian of the loss by all trainable parameters."""


@declare("scalar", scale="log", needs=[LARGEST_CURVATURE], tolerance=0.3)
def sharpness(run: Run) -> float:
    """Return the largest eigenvalue of the loss's Hessian, ``λ_max(∂²loss/∂w²)``, over all trainable parameters together.

    It is the algebraically largest one, found by Lanczos' method from a random vector: the norm of its residual is at most a
    thousandth of it, so that some eigenvalue is as near as that, and the error is mostly about the square of that. That no
    larger one was missed is likely, not certain. The Hessian is that of the run's batch, in its mode and with its dropout masks.

    It misleads for adaptive optimizers, which do not move along the gradient; where activation functions are piecewise linear,
    whose kinks have no curvature; and where a LayerNorm is fed zeros, whose derivative is then ``1/√ε``.

    Returns:
        Loss units per squared weight. Zero where the loss is linear in the weights; NaN where the iteration has not
        converged after 100 products, or where a derivative is not finite. It is averaged over seeds by its logarithm, which
        a negative one, of a loss that curves down in all directions, does not have: the average is then NaN.

    Raises:
        InapplicableError: There is no loss or nothing to train; or the loss cannot be differentiated twice, or its second
            derivative is not symmetric.

    Source: Lanczos, J. Res. Natl. Bur. Stand. 45, 255 (1950), on products after Pearlmutter, Neural Computation 6, 147 (1994);
    Cohen et al., ICLR 2021, for the name.
    """
    return run[LARGEST_CURVATURE].value


@declare("scalar", scale="log", needs=[LARGEST_CURVATURE], tolerance=0.3)
def stable_learning_rate(run: Run) -> float:
    """Return ``2 / sharpness``: above that learning rate plain gradient descent on a quadratic loss diverges.

    Along the eigenvector of the largest eigenvalue each step multiplies the distance to the minimum by ``1 - η λ_max``.

    It misleads where the optimizer is not plain gradient descent: momentum β raises it to ``2 (1 + β) / sharpness``, and
    adaptive ones have a bound on the preconditioned Hessian. Nor is a network's loss quadratic: above this rate training often
    first diverges, then finds a place that is flatter, and below it sharpness rises until it reaches ``2/η``.

    Returns:
        A learning rate; ``inf`` where sharpness is not positive, NaN where it is.

    Raises:
        InapplicableError: There is no loss or nothing to train; or the loss cannot be differentiated twice, or its second
            derivative is not symmetric.

    Source: Cohen, Kaur, Li, Kolter & Talwalkar, Gradient descent on neural networks typically occurs at the edge of stability,
    ICLR 2021, section 2; LeCun, Simard & Pearlmutter, NeurIPS 1992.
    """
    sharpness = run[LARGEST_CURVATURE].value
    return math.inf if sharpness <= 0 else 2 / sharpness
