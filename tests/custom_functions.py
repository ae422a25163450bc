"""Functions of a user: subclasses of ``torch.autograd.Function``, each with another backward pass."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Function

__all__ = ["Blocked", "Detached", "Doubled"]


class Doubled(Function):
    """Doubles."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


class Detached(Doubled):
    """Doubles, with a backward pass that silently leaves autograd."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad.detach()


class Blocked(Function):
    """Passes its input on, with a backward pass that returns no gradient at all."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 1 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> None:  # type: ignore[override]
        return None
