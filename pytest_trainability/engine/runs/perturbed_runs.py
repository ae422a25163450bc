"""Runs of a model with small changes of one state or of the parameters of one module, and the gradient to compare them with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ...errors import InapplicableError, TrainabilityError
from ..isolation import generator_of, preserved_model
from ..linalg.norms import as_real, norm
from .held_values import HeldValues
from .objective import Objective
from .other_precision import in_precision, replaced_values
from .recipe import sentence
from .run import Run
from .state_hooks import Visit, visited_states

__all__ = ["Changed", "PerturbedRuns", "Place", "inner_product"]

JITTER = 1e-2
"""Size of the random changes of all states and parameters in every run, relative to their RMS. They move values away from where
a function has no derivative: a ReLU of exactly 0 behind a branch that starts at zero, a maximum of equal entries."""

Place: TypeAlias = "int | str"
"""What is changed: the number of a state, or the path of the module whose parameters are changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """One run in float64."""

    loss: float
    states: dict[int, list[Tensor]] = field(default_factory=dict)
    """Tensors of each state, as the step returned them."""
    decided: bool = True
    """Whether the run called the same functions as the first one, none of which is piecewise constant."""


class PerturbedRuns:
    """The loss of a run in float64 near its states and parameters, with everything that leaves the autograd graph held.

    See Note [What a gradient is the derivative of] in held_values.py.

    Args:
        run: The run, at stage ``RERUN``.
        measure: Name of the measure, for messages.

    Raises:
        InapplicableError: The model does not run in float64.
    """

    def __init__(self, run: Run, measure: str) -> None:
        self._run, self._measure, self.seed = run, measure, run.seed
        self._objective = Objective.of(run)
        self._objective.inputs_carry_gradient = run.capture.inputs_carry_gradient
        self._held = HeldValues()
        self._offsets: dict[tuple[int, int], Tensor] = {}
        self.gradients: dict[Place, list[Tensor | None]] = {}
        """Gradients of the loss with respect to each state and the parameters of each module, by autograd."""
        self.base = Changed(0.0)
        """The run without a further change."""
        self._moved: dict[Place, list[Tensor]] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Convert the model, run it for the first time and differentiate it; the model is as before afterwards."""
        objective = self._objective
        with in_precision(objective, torch.float64):
            parameters = objective.parameters
            values: dict[Tensor, Tensor] = {
                p: p.data + JITTER * self._scaled(f"jitter of {name}", p) for name, p in parameters.items()
            }
            with replaced_values(values):
                self._start(parameters)
                yield

    def _start(self, parameters: Mapping[str, Tensor]) -> None:
        try:
            loss = self._evaluate(self._first_visit, self._held.first_run())
        except (TrainabilityError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            msg = (
                f"{self._measure} runs the model in float64. {type(self._objective.model).__name__} raised "
                f"{type(error).__name__} there: {sentence(error)} Do not request it for this model."
            )
            raise InapplicableError(msg) from error
        self.base = replace(self.base, loss=float(loss.detach()))
        for (index, _), offset in self._offsets.items():
            self._moved.setdefault(index, []).append(offset)
        for name, parameter in parameters.items():
            self._moved.setdefault(name.rpartition(".")[0], []).append(parameter)
        moved = [tensor for tensors in self._moved.values() for tensor in tensors]
        found = iter(torch.autograd.grad(loss, moved, allow_unused=True))
        for place, tensors in self._moved.items():
            self.gradients[place] = [None if g is None else g.to_dense() for g in (next(found) for _ in tensors)]
        self._offsets = {key: offset.detach() for key, offset in self._offsets.items()}

    def direction(self, place: Place, number: int) -> list[Tensor]:
        """Draw a random direction: changes of the size of each tensor. Rows of padding tokens, which get no gradient, stay."""
        tensors = self._moved[place]
        if isinstance(place, int):
            sizes = self.base.states[place]
            return [self._scaled(f"{place} {i} {number}", size) for i, size in enumerate(sizes)]
        drawn = [self._scaled(f"{place} {i} {number}", p) for i, p in enumerate(tensors)]
        padding = _padding(self._objective.model)
        for p, v in zip(tensors, drawn):
            if p in padding:
                v[padding[p]] = 0.0
        return drawn

    def changed(self, directions: Mapping[Place, Sequence[Tensor]], step: float) -> Changed:
        """Run with places moved by ``step`` times a direction each."""
        moves, values = dict[tuple[int, int], Tensor](), dict[Tensor, Tensor]()
        for place, direction in directions.items():
            if isinstance(place, int):
                moves |= {(place, i): step * v for i, v in enumerate(direction)}
            else:
                values |= {p: p.data + step * v for p, v in zip(self._moved[place], direction)}
        states: dict[int, list[Tensor]] = {}

        def visit(index: int, position: int, tensor: Tensor) -> Tensor | None:
            states.setdefault(index, []).append(tensor.detach().clone())
            offset = self._offsets.get((index, position))
            if offset is None or offset.shape != tensor.shape:
                return None
            move = moves.get((index, position))
            return tensor + (offset if move is None else offset + move)

        with replaced_values(values):
            loss = float(self._evaluate(visit, self._held.later_run()).detach())
        return Changed(loss, states, decided=not (self._held.differs or self._held.quantizes))

    def _evaluate(self, visit: Visit, held: AbstractContextManager[None]) -> Tensor:
        run = self._run
        with preserved_model(run.capture.model), visited_states(run.capture, run.chain, visit), held:
            return self._objective()

    def _first_visit(self, index: int, position: int, tensor: Tensor) -> Tensor:
        if (index, position) not in self._offsets:
            self.base.states.setdefault(index, []).append(tensor.detach().clone())
            offset = JITTER * self._scaled(f"offset {index} {position}", tensor)
            self._offsets[index, position] = offset.requires_grad_()
        return tensor + self._offsets[index, position]

    def _scaled(self, purpose: str, tensor: Tensor) -> Tensor:
        """Draw numbers of the size of a tensor; of size 1 for zeros, and 0 for a tensor that is not finite."""
        drawn = torch.randn(tensor.shape, generator=generator_of(self.seed, purpose), dtype=tensor.dtype, device="cpu")
        size = float(norm(tensor)) / max(1, tensor.numel()) ** 0.5
        return drawn.to(tensor.device) * (size if size > 0 else 1.0)


def inner_product(gradients: Sequence[Tensor | None], directions: Sequence[Tensor]) -> float:
    """Return the change of the loss along directions, by its gradients; a complex entry counts as two real ones."""
    pairs = ((as_real(g.detach()), as_real(v)) for g, v in zip(gradients, directions) if g is not None)
    return float(sum((g * v).sum().double() for g, v in pairs))


def _padding(model: nn.Module) -> dict[Tensor, int]:
    """Return the row of each embedding that stands for padding, to which PyTorch passes no gradient on purpose."""
    tables = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
    return {m.weight: m.padding_idx for m in tables if m.padding_idx is not None}
