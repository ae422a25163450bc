"""What the first optimizer steps on a run's batch do: to each parameter, to gradients that are zero, and to the loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InapplicableError, ModelError, TrainabilityError, UsageError
from .gradients import PARAMETER_GRADIENTS
from .isolation import derived_seed
from .replay import Objective
from .run import Need, Run, Stage
from .trees import norm

__all__ = ["FIRST_UPDATES", "LOSSES", "LOSS_DROP_STEPS", "PROBING_STEPS", "WAKING_STEPS", "Training", "Update"]

PROBING_STEPS = 3
"""Optimizer steps after which a gradient that is still zero counts as asleep. Zeros behind zeros wake one after the other: the
gates of a diffusion transformer at step one, for its head is zero, and what lies behind the gates at step two."""
LOSS_DROP_STEPS = 10
"""Optimizer steps on one batch over which the loss is to fall."""

Gradients = Mapping[str, "Tensor | None"]


class Training:
    """The model of one run and an optimizer of its trainable parameters, on the run's batch.

    To be used in a need of stage ``AGAIN``, which puts parameters, buffers and ``.grad`` back.

    Raises:
        UsageError: The recipe's function makes no optimizer of the model's parameters.
    """

    def __init__(self, run: Run) -> None:
        self.objective = Objective(run)
        self.parameters: dict[str, nn.Parameter] = self.objective.parameters
        self._seed, self._model = run.seed, type(run.record.model).__name__
        make = run.recipe.optimizer or _adamw
        self.optimizer = _optimizer(make, list(self.parameters.values()), self._model)

    def draw_anew(self, step: int) -> None:
        """Let dropout masks be others from now on, as they are at every step of a training."""
        self.objective.seed = derived_seed(self._seed, f"optimizer step {step}")

    def loss(self) -> Tensor:
        """Return the loss where the parameters are now, with its graph.

        Raises:
            ModelError: The model does not run there.
        """
        try:
            return self.objective()
        except (TrainabilityError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            msg = (
                f"the model must run on its inputs again after an optimizer step. {self._model} raised "
                f"{type(error).__name__}: {_sentence(error)}"
            )
            raise ModelError(msg) from error

    def gradients(self, loss: Tensor) -> Gradients:
        """Differentiate the loss by every trainable parameter; None where no path leads to it."""
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        return dict(zip(self.parameters, found))

    def step(self, gradients: Gradients) -> bool:
        """Take one optimizer step.

        Returns:
            Whether it was taken and has left all parameters finite; elsewhere the model need not run.

        Raises:
            UsageError: The optimizer cannot take a step on these gradients, which are finite.
        """
        self._hold(gradients)
        try:
            if _needs_closure(self.optimizer):
                self.optimizer.step(self._closure)  # type: ignore[arg-type]
            else:
                self.optimizer.step()
        except (TrainabilityError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not _all_finite(g for g in gradients.values() if g is not None):
                return False
            sparse = any(g is not None and g.is_sparse for g in gradients.values())
            hint = " Some gradients are sparse: SparseAdam and SGD take them." if sparse else ""
            msg = (
                f"the optimizer must take a step on the gradients of {self._model}. "
                f"{type(self.optimizer).__name__}.step raised {type(error).__name__}: {_sentence(error)}{hint}"
            )
            raise UsageError(msg) from error
        return _all_finite(self.parameters.values())

    def _closure(self) -> Tensor:
        with torch.enable_grad():
            loss = self.loss()
            self._hold(self.gradients(loss))
        return loss.detach()

    def _hold(self, gradients: Gradients) -> None:
        # Copies: some optimizers change gradients in place.
        for name, parameter in self.parameters.items():
            gradient = gradients.get(name)
            parameter.grad = None if gradient is None else gradient.detach().clone()


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make what steps are taken with where no optimizer is given."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def _optimizer(make: object, parameters: list[nn.Parameter], model: str) -> torch.optim.Optimizer:
    assert callable(make), "measure() refuses what is not"
    name = getattr(make, "__name__", type(make).__name__)
    must = "optimizer must be a function of the parameters that makes a torch.optim.Optimizer of them."
    try:
        optimizer: object = make(parameters)
    except Exception as error:
        msg = (
            f"{must} `{name}`, given the {len(parameters)} trainable parameters of {model}, raised {type(error).__name__}: "
            f"{_sentence(error)} Bind further arguments in a lambda: lambda p: torch.optim.SGD(p, lr=0.1)."
        )
        raise UsageError(msg) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        msg = f"{must} `{name}` returned {type(optimizer).__name__}."
        raise UsageError(msg)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, parameters)):
        msg = f"{must} That of `{name}` holds none of {model}'s. Use the parameters that it is given: every seed has its own."
        raise UsageError(msg)
    return optimizer


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it evaluates the loss by itself, as L-BFGS does."""
    given = inspect.signature(optimizer.step).parameters.get("closure")
    return given is not None and given.default is inspect.Parameter.empty


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    return text if text.endswith((".", "!", "?")) else text + "."


def _values(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(_values(tensor)).all()) for tensor in tensors)


def _is_zero(gradient: Tensor) -> bool:
    return not bool((_values(gradient) != 0).any())


# The first step ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step has done to one parameter."""

    change: float
    """``‖Δw‖₂``, of what rounding has left of it; NaN where the step has left some parameter that is not finite."""
    size: float
    """``‖w‖₂`` before the step."""


def _first_updates(run: Run) -> dict[str, Update]:
    gradients = run[PARAMETER_GRADIENTS]
    if not gradients:
        return {}
    training = Training(run)
    before = {name: p.detach().clone() for name, p in training.parameters.items() if gradients[name] is not None}
    taken = training.step(gradients)
    # Of two neighbors of one type the difference is of that type, too, and exact (Sterbenz).
    changes = {n: float(norm(training.parameters[n].detach() - old)) for n, old in before.items()}
    return {n: Update(changes[n] if taken else math.nan, float(norm(old))) for n, old in before.items()}


FIRST_UPDATES = Need("first updates", _first_updates, Stage.AGAIN, of=(PARAMETER_GRADIENTS,))
"""By parameter, of the first optimizer step. Frozen and unused parameters are absent."""


# Zeros by design --------------------------------------------------------------------------------------------------


def _waking_steps(run: Run) -> dict[str, float]:
    gradients = run[PARAMETER_GRADIENTS]
    found = {name: math.inf if _is_zero(g) else 0.0 for name, g in gradients.items() if g is not None}
    if math.inf not in found.values():
        return found
    for step, later in _probed(Training(run), gradients):
        if later is None:
            return {name: math.nan if at == math.inf else at for name, at in found.items()}
        awake = {name for name, g in later.items() if g is not None and not _is_zero(g)}
        found = {name: float(step) if at == math.inf and name in awake else at for name, at in found.items()}
        if math.inf not in found.values():
            break
    return found


def _probed(training: Training, gradients: Gradients) -> Iterator[tuple[int, Gradients | None]]:
    """Yield the number of each optimizer step and the gradients after it; None once a parameter is not finite."""
    for step in range(1, PROBING_STEPS + 1):
        if not training.step(gradients):
            yield step, None
            return
        training.draw_anew(step)
        gradients = training.gradients(training.loss())
        yield step, gradients


WAKING_STEPS = Need("waking steps", _waking_steps, Stage.AGAIN, of=(PARAMETER_GRADIENTS,))
"""By parameter, after how many optimizer steps its gradient is not zero: 0 at initialization; ``inf`` where it still is
after the last one, NaN where that could not be told for a parameter that is not finite. Frozen and unused ones are absent."""


# The loss ---------------------------------------------------------------------------------------------------------


def _losses(run: Run) -> tuple[float, float]:
    if run.record.loss is None:
        msg = (
            "loss_drop needs a loss. Hand one in: loss=F.cross_entropy with target=..., or labels for a model that computes "
            "its own."
        )
        raise InapplicableError(msg)
    if not any(p.requires_grad for p in run.record.model.parameters()):
        msg = f"loss_drop needs parameters to train. {type(run.record.model).__name__} has none that require grad."
        raise InapplicableError(msg)
    training = Training(run)
    before, loss = math.nan, training.loss()
    for step in range(LOSS_DROP_STEPS):
        before = before if step else float(loss.detach())
        if not training.step(training.gradients(loss)):
            return before, math.nan
        loss = training.loss()
    return before, float(loss.detach())


LOSSES = Need("losses", _losses, Stage.AGAIN)
"""Before and after some optimizer steps on the run's batch, with the dropout masks of the run."""
