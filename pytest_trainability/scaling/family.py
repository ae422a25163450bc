"""Models of a family by their size, and their training before the measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..engine.isolation import preserved_generators, preserved_model
from ..engine.runs.arguments import as_count, as_optimizer
from ..engine.runs.building import choose_device
from ..engine.runs.forward_pass import forward_pass
from ..engine.runs.objective import Objective
from ..engine.runs.recipe import OptimizerFactory, Recipe
from ..engine.runs.training import Training, changes, outputs_of_modules
from ..errors import ModelError, TrainabilityError, UsageError
from ..measurement import Context, as_dtype


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBefore:
    """Steps of an optimizer on the batch that is measured, with its loss."""

    steps: int
    optimizer: OptimizerFactory | None
    settings: Mapping[str, Any]
    worker: int

    def recipe(self, model: nn.Module, inputs: Any) -> Recipe:
        """Return how the model is run for training: as for the measurement."""
        given = self.settings
        return Recipe(
            model=model,
            inputs=inputs,
            target=given["target"],
            loss=given["loss"],
            steps="auto",
            exponents=1,
            device=choose_device(given["device"], fixed=False, worker=self.worker),
            dtype=as_dtype(given["dtype"]),
            train=given["train"],
        )

    def run(self, model: nn.Module, inputs: Any, seed: int, *, compare: bool) -> dict[str, float]:
        """Train the model; return by how much what its modules return has changed, if asked to compare."""
        recipe = self.recipe(model, inputs)
        model.to(device=recipe.device, dtype=recipe.dtype)
        model.train(recipe.train)
        lazy = any(is_lazy(p) for p in model.parameters())
        # A first run draws the batch that will be measured, and gives lazy modules their weights.
        with nullcontext() if lazy else preserved_model(model):
            batch = forward_pass(recipe, model, seed)
        if batch.loss is None:
            msg = "after_steps= must come with a loss to train on. Hand in loss=, or a model that computes its own."
            raise UsageError(msg)
        objective = Objective(batch, recipe.loss, seed)
        del batch
        before = outputs_of_modules(objective) if compare else {}
        model.train()
        Training(objective, self.optimizer).take(self.steps)
        model.train(recipe.train)
        objective.seed = seed
        return changes(before, outputs_of_modules(objective)) if compare else {}


def as_training(context: Context, after_steps: Any, settings: Mapping[str, Any]) -> TrainingBefore | None:
    """Read ``after_steps=``; None is no training.

    Raises:
        UsageError: It is no number of steps, or ``optimizer=`` makes none.
    """
    as_count("after_steps", after_steps, least=0)
    optimizer = as_optimizer(settings["optimizer"])
    return TrainingBefore(after_steps, optimizer, settings, context.worker) if after_steps else None


class Member:
    """The factory of the models of one size, which are trained where asked to."""

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
        """Whether training is asked for what it changes."""
        self.at = f"{along} {size}"
        # The name of the model in reports.
        self.__name__ = getattr(build, "__name__", "<lambda>")
        self.changes: dict[int, dict[str, float]] = {}
        """Of every seed, by module."""
        self.shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
        """Of the parameters of the model that was built last."""

    def __call__(self) -> nn.Module:
        """Build a model, and train it where asked to."""
        # Whoever builds has seeded the generator with the number of the draw.
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
        """Training changes the model: it must be nobody else's."""
        with preserved_generators():
            if self._built() is model:
                msg = (
                    "the function must build a new model each time it is called, which is then trained. It returned the same "
                    "object twice."
                )
                raise UsageError(msg)
