"""Requirements of measures on a run, with one message for each that is not met."""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import InapplicableError
from .objective import trainable_parameters
from .run import Run

__all__ = ["require_factory", "require_loss", "require_trainable"]


def require_loss(run: Run, *measures: str) -> Tensor:
    """Return the loss of a run, a scalar; with its graph up to stage ``BACKWARD``.

    Args:
        run: The run.
        measures: Names of the measures that need it, for the message.

    Raises:
        InapplicableError: There is no loss.
    """
    if run.capture.loss is None:
        msg = (
            f"{' and '.join(measures)} need{'s' if len(measures) == 1 else ''} a loss. Hand one in: loss=F.cross_entropy with "
            "target=..., or labels for a model that computes its own."
        )
        raise InapplicableError(msg)
    return run.capture.loss


def require_trainable(run: Run, measure: str) -> None:
    """Require a parameter that is trained.

    Raises:
        InapplicableError: The model has no parameters, or all are frozen.
    """
    if not trainable_parameters(run.capture.model):
        msg = f"{measure} needs parameters to train. {type(run.capture.model).__name__} has none that require grad."
        raise InapplicableError(msg)


def require_factory(run: Run, measure: str) -> None:
    """Require a model that can be built again.

    Raises:
        InapplicableError: The model is a finished module.
    """
    if isinstance(run.recipe.model, nn.Module):
        msg = (
            f"{measure} builds the model again, and needs a factory. A finished {type(run.recipe.model).__name__} came, which "
            "cannot be built again. Hand in its class, or a function without arguments that builds it: lambda: Net(width=64)."
        )
        raise InapplicableError(msg)
