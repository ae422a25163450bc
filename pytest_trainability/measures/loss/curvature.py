"""Products of the loss's Hessian with vectors, and its largest eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...engine.isolation import generator_of
from ...engine.linalg.lanczos import TOLERANCE, Eigenvalue, largest_eigenvalue
from ...engine.linalg.norms import as_complex, as_real, norm
from ...engine.runs.objective import Objective, twice_differentiable
from ...engine.runs.requirements import require_loss, require_trainable
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import WEIGHT_NORM, is_custom
from ...errors import InapplicableError
from ..measure import declare

__all__ = ["LARGEST_CURVATURE", "Hessian"]


KEPT_BYTES = 2**22
"""Memory for the Lanczos vectors that new ones are orthogonalized against, which stay in the caches of a processor. The two of
the three-term recurrence are always kept. More are of use only after an eigenvalue has converged, and where the products span
the whole space, as for few parameters."""


class Hessian:
    """The Hessian of a run's loss with respect to its trainable parameters, as a linear map of flat vectors.

    ``H v = ∂/∂w ⟨∂loss/∂w, v⟩``: the gradient is differentiated a second time. The model is run once, and every product is
    a backward pass through the graph of that run. All products therefore belong to one function, with the same dropout masks and
    batch statistics. A complex entry counts as two real ones.

    Source: Pearlmutter, Neural Computation 6, 147 (1994).
    """

    def __init__(self, run: Run) -> None:
        self._objective = Objective.of(run)
        self.parameters: list[nn.Parameter] = list(self._objective.parameters.values())
        self.device = run.capture.device
        is_double = any(p.dtype in {torch.float64, torch.complex128} for p in self.parameters)
        self.dtype = torch.float64 if is_double else torch.float32
        self.size = sum(_real(p).numel() for p in self.parameters)
        self._model = type(run.capture.model).__name__
        gradients = self._translate_errors(lambda: list(self._objective.gradients(create_graph=True).values()))
        # If a gradient does not depend on the parameters, its rows and columns of the Hessian are zero.
        known = [(index, g) for index, g in enumerate(gradients) if g is not None and g.requires_grad]
        self._roots = {index: g.to_dense() for index, g in known}

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector, ``(size,)``, in ``dtype`` on ``device``."""
        parts = self._unflattened(vector)
        if not self._roots:
            return torch.zeros_like(vector)
        weights = [parts[index] for index in self._roots]
        found = self._translate_errors(
            lambda: torch.autograd.grad(
                list(self._roots.values()), self.parameters, weights, retain_graph=True, allow_unused=True
            )
        )
        return self._flattened(found)

    def random_direction(self, seed: int) -> Tensor:
        """Draw a Gaussian vector, ``(size,)``, which is the same on every device."""
        drawn = torch.randn(self.size, generator=generator_of(seed, "curvature"), dtype=torch.float64, device="cpu")
        return drawn.to(dtype=self.dtype).to(self.device)

    def starting_vector(self, seed: int) -> Tensor:
        """Return the sum of a random and the gradient's direction, ``(size,)``.

        The gradient is known, and lies mostly in the space of the eigenvectors with large eigenvalues, which saves products.

        Source: Gur-Ari, Roberts & Dyer, arXiv:1812.04754 (2018), for the space of the gradient.
        """
        drawn = self.random_direction(seed)
        gradient = self._flattened([self._roots.get(index) for index in range(len(self.parameters))])
        length = float(norm(gradient))
        drawn = drawn / norm(drawn).to(drawn)
        return drawn + gradient / length if 0 < length < math.inf else drawn

    def matches_gradient_change(self, direction: Tensor) -> bool:
        """Whether the product with a direction equals a central difference of the gradient, within a third of its norm.

        This moves the parameters, so that no product can be computed afterwards.

        Returns:
            True if the second derivatives can be trusted.
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
            found.append((as_complex(shaped) if p.is_complex() else shaped).to(device=p.device, dtype=p.dtype))
        return found

    def _translate_errors(self, derive: Callable[[], Sequence[Tensor | None]]) -> Sequence[Tensor | None]:
        try:
            return derive()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            first = str(error).strip().partition("\n")[0]
            hint = " (attn_implementation='eager')" if "attention" in first else ""
            msg = (
                f"sharpness needs a loss that can be differentiated twice. The second backward pass of {self._model} raised "
                f"{type(error).__name__}: {first.rstrip('.')}. Measure without compilation and with plain operators{hint}, or do "
                "not request sharpness."
            )
            raise InapplicableError(msg) from error


class _DifferentiableWeightNorm(TorchFunctionMode):
    """Computes weight normalization by plain operators. The second derivative of PyTorch's kernel is wrong (in 2.13)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not WEIGHT_NORM:
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
        kept = KEPT_BYTES // (hessian.size * hessian.dtype.itemsize)
        found = largest_eigenvalue(hessian, hessian.starting_vector(run.seed), kept=kept)
        _require_true_products(run, hessian, found, hessian.random_direction(run.seed))
    return found


def _require_true_products(run: Run, hessian: Hessian, found: Eigenvalue, start: Tensor) -> None:
    """Require that the products with vectors are those of the Hessian.

    If the backward of a custom autograd function computes without a graph, its result is a constant in the second backward pass.
    The resulting map is usually not symmetric. It is symmetric, but wrong, if the whole loss passes through the function (a fused
    cross-entropy that computes the gradient in its forward pass). For models with custom autograd functions, a product is
    therefore also compared with a difference of gradients.

    Raises:
        InapplicableError: The products are not symmetric, or differ from the change of the gradient.
    """
    if math.isnan(found.value):
        return
    # Products in half precision are symmetric only to that precision.
    coarsest = max(torch.finfo(p.dtype).eps for p in hessian.parameters)
    wrong = ""
    if found.asymmetry > max(TOLERANCE, math.sqrt(coarsest)):
        wrong = f"is not symmetric: its asymmetry is {found.asymmetry:.1%} of its largest eigenvalue"
    elif any(map(is_custom, run.graph.nodes)) and not hessian.matches_gradient_change(start):
        wrong = "differs from the change of the gradient"
    if wrong:
        msg = (
            f"sharpness needs a gradient that can be differentiated. The derivative of {type(run.capture.model).__name__}'s "
            f"gradient {wrong}. The backward of an operator, usually a custom autograd function, computes without a graph "
            "(.detach(), .data, numpy, once_differentiable). Measure with plain operators, or do not request sharpness."
        )
        raise InapplicableError(msg)


LARGEST_CURVATURE = Need("largest curvature", _largest_curvature, Stage.RERUN)
"""Largest eigenvalue of the loss's Hessian with respect to all trainable parameters."""


@declare("scalar", scale="log", needs=[LARGEST_CURVATURE], tolerance=0.3)
def sharpness(run: Run) -> float:
    """Return the largest eigenvalue of the loss's Hessian, ``λ_max(∂²loss/∂w²)``, over all trainable parameters together.

    It is the algebraically largest eigenvalue. Lanczos' method finds it from a random vector plus the gradient, and stops when
    the norm of the residual is at most a thousandth of the eigenvalue. Some eigenvalue is at least that close, and the error is
    usually about the square of the relative residual. The method misses a larger eigenvalue with a small probability. The Hessian
    belongs to the run's batch and mode, with its dropout masks.

    It misleads for adaptive optimizers, which do not move along the gradient; for piecewise linear activation functions, whose
    kinks have no curvature in the autograd graph; and if the input of a LayerNorm is zero, where its derivative is ``1/√ε``.

    Returns:
        Loss units per squared unit of weight. Zero if the loss is linear in the weights. NaN if the iteration has not converged
        after 100 products, or if a derivative is not finite. Seeds are averaged by logarithms: the average is NaN if a value
        is negative, because the loss curves down in all directions.

    Raises:
        InapplicableError: The model has no loss or no trainable parameters; or the loss cannot be differentiated twice; or its
            second derivative is wrong.

    Source: Lanczos, J. Res. Natl. Bur. Stand. 45, 255 (1950), on products after Pearlmutter, Neural Computation 6, 147 (1994);
    Cohen et al., ICLR 2021, for the name.
    """
    return run[LARGEST_CURVATURE].value


@declare("scalar", scale="log", needs=[LARGEST_CURVATURE], tolerance=0.3)
def stable_learning_rate(run: Run) -> float:
    """Return ``2 / sharpness``, the learning rate above which gradient descent on a quadratic loss diverges.

    Along the eigenvector of the largest eigenvalue, each step multiplies the distance to the minimum by ``1 - η λ_max``.

    It misleads for other optimizers than plain gradient descent: momentum β raises the limit to ``2 (1 + β) / sharpness``, and
    for adaptive optimizers the eigenvalues of the preconditioned Hessian count. A network's loss is not quadratic: above this
    rate, training often first diverges and then finds a flatter region; below it, sharpness increases until it reaches ``2/η``.

    Returns:
        A learning rate (squared weight per loss unit); ``inf`` if sharpness is not positive, NaN if it is NaN.

    Raises:
        InapplicableError: The model has no loss or no trainable parameters; or the loss cannot be differentiated twice; or its
            second derivative is wrong.

    Source: Cohen, Kaur, Li, Kolter & Talwalkar, Gradient descent on neural networks typically occurs at the edge of stability,
    ICLR 2021, section 2; LeCun, Simard & Pearlmutter, NeurIPS 1992.
    """
    sharpness = run[LARGEST_CURVATURE].value
    return math.inf if sharpness <= 0 else 2 / sharpness
