"""The models of one size, and their training before the measurement."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..engine.isolation import one_at_a_time, preserved_generators, preserved_model
from ..engine.runs.arguments import as_count, as_optimizer
from ..engine.runs.forward_pass import forward_pass
from ..engine.runs.objective import Objective
from ..engine.runs.training import Training, changes, outputs_of_modules
from ..engine.torch_internals import is_lazy
from ..errors import ModelError, TrainabilityError, UsageError
from ..measurement import Context, Options, as_recipe

__all__ = ["Member", "TrainingBefore", "as_training"]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBefore:
    """Optimizer steps before the measurement, on the batch and the loss that are measured."""

    steps: int
    context: Context
    options: Options

    def run(self, model: nn.Module, inputs: Any, seed: int, *, compare: bool) -> dict[str, float]:
        """Train a new model in place.

        Args:
            model: The model, which no one else uses.
            inputs: Inputs of the measurement.
            seed: Seed of the measurement.
            compare: Whether to compare the outputs of the modules before and after training.

        Returns:
            RMS of the change of each module's output, by module; empty without ``compare``.

        Raises:
            UsageError: There is no loss, or the optimizer cannot be made or take a step.
            ModelError: The model cannot be run.
        """
        recipe = as_recipe(self.context, lambda: model, inputs, self.options)
        model.to(device=recipe.device, dtype=recipe.dtype)
        model.train(recipe.train)
        lazy = any(is_lazy(p) for p in model.parameters())
        # The first run draws the batch of the measurement, and gives lazy modules their weights.
        with nullcontext() if lazy else preserved_model(model):
            batch = forward_pass(recipe, model, seed)
        if batch.loss is None:
            msg = "after_steps= must come with a loss to train on. Pass loss=, or use a model that computes its own."
            raise UsageError(msg)
        objective = Objective(batch, batch.loss_function, seed)
        del batch
        before = outputs_of_modules(objective) if compare else {}
        model.train()
        Training(objective, recipe.optimizer).take(self.steps)
        model.train(recipe.train)
        objective.seed = seed
        return changes(before, outputs_of_modules(objective)) if compare else {}


def as_training(context: Context, after_steps: Any, options: Options) -> TrainingBefore | None:
    """Return the training that ``after_steps=`` requests; None for no steps.

    Raises:
        UsageError: ``after_steps`` is not a number of steps, or ``optimizer`` is not a function.
    """
    as_count("after_steps", after_steps, least=0)
    as_optimizer(options["optimizer"])
    return TrainingBefore(after_steps, context, options) if after_steps else None


class Member:
    """Factory of the models of one size, which trains them where requested.

    Args:
        build: Builds a model of the size that it is given.
        along: ``"width"`` or ``"depth"``.
        size: The size.
        inputs: Inputs of the models.
        training: Training before the measurement; None for none.
        compare: Whether training records by how much the outputs of the modules change.
    """

    def __init__(
        self,
        build: Callable[[int], Any],
        along: str,
        size: int,
        inputs: Any,
        training: TrainingBefore | None,
        *,
        compare: bool,
    ) -> None:
        self.build, self.size, self.inputs, self.training = build, size, inputs, training
        self.compare = compare
        self.at = f"{along} {size}"
        # Reports name the model by this attribute.
        self.__name__ = getattr(build, "__name__", "<lambda>")
        self.changes: dict[int, dict[str, float]] = {}
        """RMS of the change of each module's output in training, by seed and module."""
        self.shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
        """Names and shapes of the parameters of the model that was built last."""

    def __call__(self) -> nn.Module:
        """Return a new model, trained where requested.

        Raises:
            ModelError: The function does not build a model, or the model cannot be trained.
            UsageError: The function returned the same object twice, or there is no loss to train on.
        """
        # The engine has seeded the global generator with the seed of the run.
        seed = torch.initial_seed()
        model = self._built()
        self.shapes = tuple((name, () if is_lazy(p) else tuple(p.shape)) for name, p in model.named_parameters())
        if self.training is None:
            return model
        if not self.changes:
            self._refuse_kept(model)
        try:
            self.changes[seed] = self.training.run(model, self.inputs, seed, compare=self.compare)
        except TrainabilityError:
            raise
        except Exception as error:
            msg = f"the model must train. {type(error).__name__}: {error}"
            raise ModelError(msg) from error
        return model

    def _built(self) -> nn.Module:
        try:
            model = self.build(self.size)
        except Exception as error:
            msg = f"the function must build a model. It raised {type(error).__name__}: {error}"
            raise ModelError(msg) from error
        if not isinstance(model, nn.Module):
            msg = f"the function must return a torch.nn.Module. It returned {type(model).__name__}."
            raise ModelError(msg)
        return model

    def _refuse_kept(self, model: nn.Module) -> None:
        """Refuse a function that returns a model which the user keeps: training would change it.

        Raises:
            UsageError: The function returned the same object twice.
        """
        with one_at_a_time(), preserved_generators():
            if self._built() is model:
                msg = (
                    "the function must build a new model each time it is called, which is then trained. It returned the same "
                    "object twice."
                )
                raise UsageError(msg)
