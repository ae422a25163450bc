"""One seed's run, and what measures may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from torch import nn

from ...errors import TrainabilityError
from ..capture.chain import Chain
from ..capture.graph import Graph
from ..capture.recorder import Capture, Instrument
from ..capture.recurrence import Recurrence
from ..isolation import preserved_model, preserved_world
from ..jacobian.qr_sweep import QRSweep
from ..jacobian.trajectories import Trajectories
from .recipe import Recipe

__all__ = ["Need", "Run", "Stage", "with_dependencies"]


_Found = TypeVar("_Found")


class Stage(IntEnum):
    """When a need is met; the stages follow each other."""

    GRAPH = 1
    """While the autograd graph of the run is there; it must be left so (``retain_graph=True``)."""
    BACKWARD = 2
    """In the one backward pass that frees the graph."""
    RERUN = 3
    """Once the graph is gone: the model is run or built again. Whatever that changes is put back."""


@dataclass(frozen=True, slots=True, eq=False)
class Need(Generic[_Found]):
    """What a measure asks of a run; computed once for all measures that ask for it, and not at all where none does.

    A need may ask for others of its own stage or an earlier one, ``run[OTHER]``, which are then to be listed in ``requires``.

    >>> PARAMETER_COUNT = Need("parameter count", lambda run: len(list(run.capture.model.parameters())), Stage.RERUN)
    """

    name: str
    provide: Callable[[Run], _Found]
    stage: Stage = Stage.GRAPH
    instruments: tuple[Instrument, ...] = ()
    """What must watch the forward pass; what each has yielded is in ``run.capture.watched``."""
    requires: tuple[Need[Any], ...] = ()
    """Other needs that this one reads."""


@dataclass(slots=True, eq=False)
class Run:
    """One seed's run. ``run[NEED]`` is what a measure has asked for; it lives until all have read it."""

    seed: int
    recipe: Recipe
    capture: Capture
    graph: Graph
    trajectories: Trajectories
    recurrences: Sequence[Recurrence] = ()
    """Along time: all that there are."""
    recurrence: Recurrence | None = None
    """Along time: the one whose steps are the chain."""
    time_instruments: tuple[Instrument, ...] = ()
    """Along time: the instruments that made its steps visible."""
    first_sweep: QRSweep | None = None
    """The QR sweep of one random cotangent, where deciding between trajectories has already paid for it."""
    found: dict[Need[Any], Any] = field(default_factory=dict)
    _unmet: dict[Need[Any], TrainabilityError] = field(default_factory=dict)
    _stage: Stage = Stage.GRAPH

    @property
    def chain(self) -> Chain:
        """The chain of steps and states."""
        return self.trajectories.chain

    def __getitem__(self, need: Need[_Found]) -> _Found:
        if need in self._unmet:
            raise self._unmet[need]
        if need not in self.found:
            if need.stage < self._stage:
                msg = f"a measure must name what it needs: {need.name!r} is asked for when the run's graph is gone."
                raise LookupError(msg)
            with self._put_back() if need.stage is Stage.RERUN else nullcontext():
                self.found[need] = need.provide(self)
        found: _Found = self.found[need]
        return found

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Put back what another run of the model, its loss or an optimizer changes."""
        with ExitStack() as stack:
            stack.enter_context(preserved_world())
            for module in (self.capture.model, self.recipe.loss):
                if isinstance(module, nn.Module):
                    stack.enter_context(preserved_model(module))
            yield

    def fulfil(self, needs: frozenset[Need[Any]]) -> None:
        """Compute what is needed, stage by stage; why one cannot be met is said to whoever reads it."""
        for need in sorted(needs, key=lambda need: (need.stage, need.name)):
            self._stage = need.stage
            try:
                self[need]
            except TrainabilityError as error:
                self._unmet[need] = error
        self._stage = Stage.RERUN


def with_dependencies(needs: frozenset[Need[Any]]) -> frozenset[Need[Any]]:
    """Add what the needs themselves ask for."""
    found = set(needs)
    pending = list(needs)
    while pending:
        further = set(pending.pop().requires) - found
        found |= further
        pending += further
    return frozenset(found)
