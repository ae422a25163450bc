"""The run of one seed, and the needs that measures have of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from ...errors import TrainabilityError
from ..capture.chain import Chain
from ..capture.graph import Graph
from ..capture.recorder import Capture, Instrument
from ..capture.recurrence import Recurrence
from ..isolation import ModelState, preserved_world
from ..jacobian.qr_sweep import QRSweep
from ..jacobian.trajectories import Trajectories
from ..modules import modules_behind
from .recipe import Recipe

__all__ = ["Need", "Run", "Stage", "with_dependencies"]

# Note [Stages of a run]
# ~~~~~~~~~~~~~~~~~~~~~~
# All measures of a seed share one forward pass and one graph. Their needs are computed in four stages: those that read the model
# as it was built, before the forward pass changes buffers (statistics of parameters), those that read the graph and keep it (QR
# sweeps, singular values), those of the one backward pass that frees it (parameter gradients), and those that run or build the
# model again once it is gone (optimizer steps, per-sample gradients). The order keeps memory low: at most one graph exists at a
# time. Measures that need the built model only are read without a forward pass, once an earlier run has described the chain. A
# need that cannot be computed raises its error when a measure reads it; other measures are not affected.


_Found = TypeVar("_Found")


class Stage(IntEnum):
    """Stage of a run at which a need is computed, in this order. See Note [Stages of a run].

    >>> sorted(Stage)
    [<Stage.BUILD: 0>, <Stage.GRAPH: 1>, <Stage.BACKWARD: 2>, <Stage.RERUN: 3>]
    """

    BUILD = 0
    """The model is built, and has not run: ``run.capture`` has its model only, and there is neither a graph nor a chain."""
    GRAPH = 1
    """The autograd graph of the forward pass exists. It must be kept, by ``retain_graph=True``."""
    BACKWARD = 2
    """The one backward pass that frees the graph."""
    RERUN = 3
    """The graph is gone, and the model may be run or built again. Changes of model, loss and generators are undone."""


@dataclass(frozen=True, slots=True, eq=False)
class Need(Generic[_Found]):
    """A quantity that measures read from a run.

    It is computed once per run for all measures that list it, and not at all if none does. A measure reads it as ``run[NEED]``.

    >>> import torch
    >>> from pytest_trainability import Measure, Need, Stage
    >>> COUNT = Need("parameter count", lambda run: len(list(run.capture.model.parameters())), Stage.RERUN)
    >>> measure = Measure("parameter_count", "scalar", "", "linear", frozenset({COUNT}), lambda run: run[COUNT])

    Args:
        name: Name in error messages.
        provide: Function of the run that computes the quantity. It may raise a ``TrainabilityError``, which every measure that
            reads the need then raises.
        stage: Stage at which it is computed; ``Stage.GRAPH`` by default.
        instruments: Context managers ``instrument(recorder)`` that observe the forward pass; none by default. The value that each
            yields is ``run.capture.watched[instrument]``.
        requires: Other needs that ``provide`` reads, of the same stage or an earlier one; none by default.
        once: Whether an answer that ``provide`` leaves in ``run.findings`` under its name, as :meth:`Run.of_first_seed`
            does, holds for all later seeds. ``provide`` is not called again then. False by default.
    """

    name: str
    provide: Callable[[Run], _Found]
    stage: Stage = Stage.GRAPH
    instruments: tuple[Instrument, ...] = ()
    requires: tuple[Need[Any], ...] = ()
    once: bool = False


@dataclass(slots=True, eq=False)
class Run:
    """The run of one seed: the captured forward pass, its graph and its chain. ``run[NEED]`` is the value of a need.

    A run lives until all measures have read it. Measures and needs receive it; users do not make one.

    Raises:
        LookupError: ``run[NEED]`` needs the graph, but the measure does not list the need and the graph is gone.
        TrainabilityError: ``run[NEED]`` cannot be computed for this model.
    """

    seed: int
    """Seed of weights, inputs, dropout and cotangents."""
    recipe: Recipe
    """Settings of the measurement."""
    capture: Capture
    """Model, inputs, target, output, loss and calls of the forward pass; at ``Stage.BUILD`` the model only."""
    _graph: Graph | None = None
    _trajectories: Trajectories | None = None
    recurrences: Sequence[Recurrence] = ()
    """Along time, all recurrences of the model."""
    recurrence: Recurrence | None = None
    """Along time, the recurrence whose steps form the chain."""
    time_instruments: tuple[Instrument, ...] = ()
    """Along time, the instruments that made the time steps visible."""
    first_sweep: QRSweep | None = None
    """QR sweep of one random cotangent, if the division into trajectories required it."""
    findings: dict[str, Any] = field(default_factory=dict)
    """Findings of earlier seeds about the architecture, by the name of the need that made them."""
    found: dict[Need[Any], Any] = field(default_factory=dict)
    """Values of the needs that were computed."""
    unmet: dict[Need[Any], TrainabilityError] = field(default_factory=dict)
    """Errors of the needs that could not be computed."""
    _stage: Stage = Stage.GRAPH
    _states: list[ModelState] | None = None
    """States of the model and of the loss before the needs of ``Stage.RERUN``, copied once for all of them."""
    _is_put_back: bool = False
    """Whether a need of ``Stage.RERUN`` is being computed."""

    @property
    def graph(self) -> Graph:
        """Autograd graph of the forward pass."""
        return self._of_forward_pass(self._graph)

    @property
    def trajectories(self) -> Trajectories:
        """The chain, and how its states are divided into trajectories."""
        return self._of_forward_pass(self._trajectories)

    @staticmethod
    def _of_forward_pass(part: _Found | None) -> _Found:
        if part is None:
            msg = (
                "a need of Stage.BUILD must read run.capture.model only, as the model has not run. Declare it with Stage.GRAPH "
                "to read the graph or the chain."
            )
            raise LookupError(msg)
        return part

    @property
    def chain(self) -> Chain:
        """The chain of steps and states."""
        return self.trajectories.chain

    def __getitem__(self, need: Need[_Found]) -> _Found:
        if need in self.unmet:
            raise self.unmet[need]
        if need.once and need.name in self.findings:
            self.found[need] = self.findings[need.name]
        if need not in self.found:
            if need.stage < self._stage:
                msg = (
                    f"a measure must list its needs. {need.name!r} was read after the graph of the run was freed. Add it to "
                    "needs= of the measure, or to requires= of the need that reads it."
                )
                raise LookupError(msg)
            with self._put_back() if need.stage is Stage.RERUN else nullcontext():
                self.found[need] = need.provide(self)
        found: _Found = self.found[need]
        return found

    def of_first_seed(self, name: str, find: Callable[[], _Found]) -> _Found:
        """Return what the first seed found about the architecture, which no other seed of the same modules and shapes can change.

        Args:
            name: Name of the need.
            find: Called for the first seed, and for each seed whose model has other modules or shapes.
        """
        if name not in self.findings:
            self.findings[name] = find()
        found: _Found = self.findings[name]
        return found

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Undo what another run of the model, the loss or an optimizer changes."""
        # A need may read another one, which then finds the model as the first one has changed it.
        is_first, states = not self._is_put_back, self._states
        if states is None or not is_first:
            states = [ModelState(module) for module in (self.capture.model, *modules_behind(self.recipe.loss))]
        if is_first:
            self._states, self._is_put_back = states, True
        try:
            with ExitStack() as stack:
                stack.enter_context(preserved_world())
                for state in states:
                    stack.enter_context(state.kept())
                yield
        finally:
            self._is_put_back = self._is_put_back and not is_first

    def fulfil(self, needs: frozenset[Need[Any]], *, built: Run | None = None) -> None:
        """Compute all needs, stage by stage. An error is kept, and raised when the need is read.

        Args:
            needs: The needs.
            built: The run before the forward pass, whose needs are known.
        """
        if built is not None:
            self.found |= built.found
            self.unmet |= built.unmet
        needs = needs - self.found.keys() - self.unmet.keys()
        for need in sorted(needs, key=lambda need: (need.stage, need.name)):
            self._stage = need.stage
            self.recipe.watch("now", need.name)
            try:
                self[need]
            except TrainabilityError as error:
                self.unmet[need] = error
        self._stage = Stage.RERUN


def with_dependencies(needs: frozenset[Need[Any]]) -> frozenset[Need[Any]]:
    """Return the needs together with all needs that they require, directly or indirectly."""
    found = set(needs)
    pending = list(needs)
    while pending:
        further = set(pending.pop().requires) - found
        found |= further
        pending += further
    return frozenset(found)
