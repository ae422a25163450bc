"""Optimizer steps on one batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError, TrainabilityError, UsageError
from ..capture.own_loss import has_training_step
from ..isolation import derived_seed, preserved_model
from ..linalg.norms import are_finite, norm
from ..modules import ByModule, named_modules_of
from ..trees import is_float, tensors_in
from .objective import Objective
from .recipe import OptimizerFactory, sentence
from .run import Run

__all__ = ["Gradients", "Training", "changes", "outputs_of_modules"]


Gradients = Mapping[str, "Tensor | None"]
"""Gradients by parameter name; None for a parameter that the loss does not depend on."""


class Training:
    """Optimizer steps on the loss of a model on one batch.

    Args:
        objective: The loss.
        make: Function of the trainable parameters that makes the optimizer; by default AdamW with a learning rate of 1e-3.

    Raises:
        UsageError: ``make`` does not make a new optimizer of the model's parameters.
    """

    def __init__(self, objective: Objective, make: OptimizerFactory | None = None) -> None:
        self.objective = objective
        self.parameters = objective.parameters
        self._seed, self._model = objective.seed, type(objective.model).__name__
        self.optimizer = _optimizer(make or _adamw, list(self.parameters.values()), self._model)

    @classmethod
    def of(cls, run: Run) -> Training:
        """Return the training of a run's model on its batch, for a need of stage ``RERUN``, after which changes are undone.

        The optimizer is that of the recipe, or that of a Lightning module's ``configure_optimizers``.
        """
        return cls(Objective.of(run), run.recipe.optimizer or _configured(run.capture.model))

    def draw_anew(self, step: int) -> None:
        """Draw other dropout masks from now on, as in every step of a training."""
        self.objective.seed = derived_seed(self._seed, f"optimizer step {step}")

    def loss(self) -> Tensor:
        """Return the loss at the current parameters, with its graph.

        Raises:
            ModelError: The model cannot be run at these parameters.
        """
        try:
            return self.objective()
        except (TrainabilityError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            msg = (
                f"the model must run on its inputs again after an optimizer step. {self._model} raised "
                f"{type(error).__name__}: {sentence(error)}"
            )
            raise ModelError(msg) from error

    def step(self, gradients: Gradients) -> bool:
        """Take one optimizer step.

        Args:
            gradients: Gradients by parameter name.

        Returns:
            Whether the step was taken and all parameters are finite. If not, the model cannot be expected to run.

        Raises:
            UsageError: The optimizer cannot take a step on finite gradients.
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
                f"{type(self.optimizer).__name__}.step raised {type(error).__name__}: {sentence(error)}{hint}"
            )
            raise UsageError(msg) from error
        return _all_finite(self.parameters.values())

    def take(self, steps: int) -> None:
        """Take optimizer steps, each with new dropout masks, until a parameter is not finite; then clear the gradients."""
        for number in range(steps):
            self.draw_anew(number)
            if not self.step(self.objective.gradients(self.loss())):
                break
        for parameter in self.parameters.values():
            parameter.grad = None

    def _closure(self) -> Tensor:
        with torch.enable_grad():
            loss = self.loss()
            self._hold(self.objective.gradients(loss))
        return loss.detach()

    def _hold(self, gradients: Gradients) -> None:
        # Some optimizers change gradients in place, so they get copies.
        for name, parameter in self.parameters.items():
            gradient = gradients.get(name)
            parameter.grad = None if gradient is None else gradient.detach().clone()


_FUSED = {torch.float32, torch.float64}
"""Types of which the fused kernel computes the same as the others, up to round-off."""


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the default optimizer, in one kernel where PyTorch has it, which takes a quarter of the time."""
    parameters = list(parameters)
    fused = all(type(p) is nn.Parameter and p.dtype in _FUSED and p.device.type in {"cpu", "cuda"} for p in parameters)
    return torch.optim.AdamW(parameters, lr=1e-3, fused=fused or None)


def _configured(model: nn.Module) -> OptimizerFactory | None:
    """Return a function that makes the optimizer of a Lightning module; None for other models."""
    configure: Any = getattr(model, "configure_optimizers", None)
    if configure is None or not has_training_step(model):
        return None

    def configure_optimizers(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        found = configure()
        # Lightning allows an optimizer, a dict with one, a list of these, and a pair of optimizers and schedulers.
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], (list, tuple)):
            found = found[0]
        given = found if isinstance(found, (list, tuple)) else [found]
        optimizers = [entry["optimizer"] if isinstance(entry, Mapping) else entry for entry in given]
        if len(optimizers) != 1:
            msg = (
                f"it returned {len(optimizers)} optimizers, and measures that take optimizer steps need one. "
                "Pass optimizer=, a function of the parameters."
            )
            raise ValueError(msg)
        return optimizers[0]  # type: ignore[no-any-return]

    return configure_optimizers


def _optimizer(make: object, parameters: list[nn.Parameter], model: str) -> torch.optim.Optimizer:
    assert callable(make), "measure() has validated it"
    name = getattr(make, "__name__", type(make).__name__)
    must = "optimizer must be a function of the parameters that makes a torch.optim.Optimizer of them."
    try:
        # Each call gets its own list, as a function may change it.
        optimizer: object = make([*parameters])
        another: object = make([*parameters])
    except Exception as error:
        msg = (
            f"{must} `{name}`, given the {len(parameters)} trainable parameters of {model}, raised {type(error).__name__}: "
            f"{sentence(error)} Bind further arguments in a lambda: lambda p: torch.optim.SGD(p, lr=0.1)."
        )
        raise UsageError(msg) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        msg = f"{must} `{name}` returned {type(optimizer).__name__}."
        raise UsageError(msg)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, parameters)):
        msg = (
            f"{must} The optimizer of `{name}` holds no parameter of {model}. Use the parameters that the function is given: "
            "every seed has its own."
        )
        raise UsageError(msg)
    if another is optimizer:
        msg = (
            f"optimizer must make a new optimizer each time it is called. `{name}` returned the same {type(optimizer).__name__} "
            "twice, whose state would carry over from one training to the next. Make it inside the function: "
            "lambda p: torch.optim.SGD(p, lr=0.1)."
        )
        raise UsageError(msg)
    return optimizer


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer evaluates the loss itself, as L-BFGS does."""
    given = inspect.signature(optimizer.step).parameters.get("closure")
    return given is not None and given.default is inspect.Parameter.empty


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(map(are_finite, tensors))


def outputs_of_modules(objective: Objective) -> dict[str, list[Tensor]]:
    """Run the model at its current parameters, and return copies of the float tensors that each call of a module returns.

    Returns:
        Tensors by module path, ``"path[n]"`` for the n-th further call; the model itself is ``"output"``.
    """
    found: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    paths = ByModule((module, path or "output") for path, module in named_modules_of(objective.model))

    def look(module: nn.Module, _: Any, output: Any) -> None:
        path = paths[module]
        index = counts[path] = counts.get(path, -1) + 1
        tensors = [t for t in tensors_in(output) if is_float(t)]
        # The next module may work in place, so these are copies.
        found[f"{path}[{index}]" if index else path] = [t.detach().clone() for t in tensors]

    handles = [module.register_forward_hook(look) for module in paths]
    try:
        with preserved_model(objective.model):
            objective.outputs()
    finally:
        for handle in handles:
            handle.remove()
    return found


def changes(before: Mapping[str, list[Tensor]], after: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """Return the RMS of ``x_t - x_0`` by call of a module; NaN where the shapes of its outputs have changed.

    Args:
        before: Outputs ``x_0`` by call, as :func:`outputs_of_modules` returns them.
        after: Outputs ``x_t`` by call.
    """
    found = {}
    for name, tensors in before.items():
        others = after.get(name, [])
        if [t.shape for t in tensors] != [t.shape for t in others]:
            found[name] = math.nan
        elif count := sum(t.numel() for t in tensors):
            squares = (float(norm(b - a)) ** 2 for a, b in zip(tensors, others))
            found[name] = math.sqrt(math.fsum(squares) / count)
    return found
