"""The largest eigenvalue of the loss's Hessian, by Lanczos' method on products with vectors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from ..errors import InapplicableError
from .isolation import derived_seed
from .replay import Objective, twice_differentiable
from .run import Need, Run, Stage
from .trees import norm

__all__ = ["LARGEST_CURVATURE", "Eigenvalue", "Hessian", "largest_eigenvalue"]

TOLERANCE = 1e-3
"""Relative residual at which an eigenvalue counts as found; its error is mostly the square of it."""
MOST_PRODUCTS = 100
KEPT_BYTES = 2**31
"""Of Lanczos vectors that later ones are made orthogonal to; the two that the recurrence needs are always kept."""


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """What Lanczos' method has found of a symmetric map."""

    value: float
    """Largest Ritz value; NaN where it has not converged."""
    error: float
    """Residual norm of its Ritz vector: some eigenvalue of the map is as near as this."""
    products: int
    """How many vectors the map was applied to."""
    asymmetry: float
    """Largest ``|⟨q_{k-1}, H q_k⟩ − ⟨q_k, H q_{k-1}⟩|`` seen, relative to the largest Ritz value's modulus."""


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
        self.device = run.record.device
        wide = any(p.dtype in {torch.float64, torch.complex128} for p in self.parameters)
        self.dtype = torch.float64 if wide else torch.float32
        self.size = sum(_real(p).numel() for p in self.parameters)
        self._model = type(run.record.model).__name__
        gradients = self._differentiated(lambda: list(self._objective.gradients(create_graph=True).values()))
        # Where a gradient does not depend on the parameters, its rows of the Hessian are zero, and so are its columns.
        known = [(index, g) for index, g in enumerate(gradients) if g is not None and g.requires_grad]
        self._roots = {index: g.to_dense() if g.is_sparse else g for index, g in known}

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
        generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "curvature"))
        drawn = torch.randn(self.size, generator=generator, dtype=torch.float64, device="cpu")
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
            else _real(t.to_dense() if t.is_sparse else t).reshape(-1).to(device=self.device, dtype=self.dtype)
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
            msg = (
                f"sharpness needs a loss that can be differentiated twice. The second backward pass of {self._model} raised "
                f"{type(error).__name__}: {first.rstrip('.')}. Measure without compilation and with plain operators "
                "(attn_implementation='eager', sparse=False), or leave sharpness out."
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
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _largest_curvature(run: Run) -> Eigenvalue:
    if run.record.loss is None:
        msg = (
            "sharpness needs a loss. Hand one in: loss=F.cross_entropy with target=..., or labels for a model that computes "
            "its own."
        )
        raise InapplicableError(msg)
    if not any(p.requires_grad for p in run.record.model.parameters()):
        msg = f"sharpness needs parameters to train. {type(run.record.model).__name__} has none that require grad."
        raise InapplicableError(msg)
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
            f"sharpness needs a gradient that can be differentiated. The derivative of {type(run.record.model).__name__}'s "
            f"{wrong}. The backward of some operator, a custom autograd function mostly, hides from differentiation what it "
            "computes with (.detach(), .data, numpy, once_differentiable). Measure with plain operators, or leave sharpness out."
        )
        raise InapplicableError(msg)


LARGEST_CURVATURE = Need("largest curvature", _largest_curvature, Stage.AGAIN)
"""Largest eigenvalue of the Hessian of the loss by all trainable parameters."""


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float = TOLERANCE,
    most: int = MOST_PRODUCTS,
    kept: int = MOST_PRODUCTS,
) -> Eigenvalue:
    """Return the largest eigenvalue of a symmetric map, the algebraically largest one, by Lanczos' method.

    ``H Q_k = Q_k T_k + β_k q_{k+1} e_kᵀ`` with ``Q_k`` orthonormal and ``T_k`` tridiagonal. For an eigenpair ``(θ, s)`` of
    ``T_k`` the residual of the Ritz vector ``Q_k s`` is ``β_k |e_kᵀ s|``: *some* eigenvalue is no further from θ than that, and
    the iteration ends when it is at most ``tolerance |θ|``. That it is the largest one is not certain but overwhelmingly likely:
    from a random start, θ falls short of it by more than ``ε (λ_max − λ_min)`` with probability
    ``1.648 √n exp(−√ε (2k − 1))`` at most.

    Args:
        product: The map.
        start: Vector ``(n,)`` to start from, drawn at random; its dtype is that of the vectors. The coefficients of ``T_k``
            are float64.
        tolerance: On the residual, relative to the eigenvalue.
        most: Products after which to give up: the value is NaN.
        kept: How many of the last vectors a new one is made orthogonal to, at least two. With fewer than ``most``, Ritz values
            that have converged may come twice, which does no harm to the largest one (Paige 1980).

    Returns:
        The eigenvalue, in the map's unit; NaN where the map gives something that is not finite, too.

    Source: Lanczos, J. Res. Natl. Bur. Stand. 45, 255 (1950); Paige, Linear Algebra Appl. 34, 235 (1980); for the probability
    Kuczyński & Woźniakowski, SIAM J. Matrix Anal. Appl. 13, 1094 (1992), applied to ``H − λ_min``.
    """
    Q: deque[Tensor] = deque(maxlen=max(2, kept))
    diagonal: list[float] = []
    beside: list[float] = []
    q, size, roundoff, asymmetry = start / norm(start).to(start), len(start), 100 * torch.finfo(start.dtype).eps, 0.0
    while True:
        w = product(q)
        if beside:
            asymmetry = max(asymmetry, abs(float(torch.dot(Q[-1], w)) - beside[-1]))
        Q.append(q)
        diagonal.append(float(torch.dot(q, w)))
        # Twice is enough (Giraud & Langou 2002).
        for vector in (*Q, *Q):
            w -= torch.dot(vector, w) * vector
        beta, count = float(norm(w)), len(diagonal)
        if not math.isfinite(beta + diagonal[-1]):
            return Eigenvalue(math.nan, math.nan, count, math.nan)
        values, vectors = _eigenpairs(diagonal, beside)
        theta, largest = float(values[-1]), float(values.abs().max())
        error = 0.0 if count == size else beta * abs(float(vectors[-1, -1]))
        if error <= max(tolerance * abs(theta), roundoff * largest) or beta <= roundoff * largest:
            return Eigenvalue(theta, error, count, asymmetry / largest if largest else 0.0)
        if count == most:
            return Eigenvalue(math.nan, error, count, asymmetry / largest)
        beside.append(beta)
        q = w / beta


def _eigenpairs(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, smallest first, and eigenvectors of a symmetric tridiagonal matrix."""
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64, device="cpu")
        T += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(T)
    return values, vectors
