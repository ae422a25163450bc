"""The definition of the chain, computed from a program: its states, and the Jacobians between them.

Nothing here looks at the autograd graph of a model. A program is flattened into a list of operations without side effects, in
program order, in which every tensor has one name. The states are read from the list by the definition in ``docs/engine.md``, and
each Jacobian is that of the operations between two states, as a function of explicit variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from programs import (
    IN_PLACE,
    KINDS,
    MODULE_SCALE,
    VIEWS,
    Block,
    Embedding,
    Linear,
    Net,
    Program,
    draw_inputs,
    energy,
)
from torch import Tensor

__all__ = ["Chosen", "Exact", "Listing", "NoChainError", "exact_chain", "listing_of"]

Variable = int
"""The name of a tensor in a listing."""


@dataclass(frozen=True, eq=False)
class Event:
    """An operation, the beginning of a call, or the end of one."""

    run: Callable[[list[Tensor]], tuple[Tensor, ...]] | None
    """None for the beginning and the end of a call."""
    reads: tuple[Variable, ...] = ()
    writes: tuple[Variable, ...] = ()
    differentiable: bool = True


@dataclass(eq=False)
class Calling:
    """One call of a module."""

    path: str
    index: int
    is_step: bool
    start: int
    """Number of events before it."""
    takes: tuple[Variable, ...] = ()
    end: int = -1
    gives: tuple[Variable, ...] = ()


@dataclass(eq=False)
class Handle:
    """A tensor of the program: what a name stands for. Operations in place give it a new variable."""

    variable: Variable
    base: Handle | None = None
    """The tensor that it is a view of."""
    view: tuple[tuple[str, float], ...] = ()
    """The views between them, the base's first."""
    version: int = 0
    """For a base, how often it was changed; for a view, the version of the base that the variable was read from."""


@dataclass(eq=False)
class Listing:
    """A program as a flat list of operations."""

    events: list[Event] = field(default_factory=list)
    calls: list[Calling] = field(default_factory=list)
    """Calls in the order of their return."""
    known: dict[Variable, Tensor] = field(default_factory=dict)
    """Values of inputs and parameters."""
    inputs: set[Variable] = field(default_factory=set)
    ids: set[Variable] = field(default_factory=set)
    parameters: set[Variable] = field(default_factory=set)
    carries: set[Variable] = field(default_factory=set)
    """Variables that carry a gradient."""
    hooks: dict[Variable, float] = field(default_factory=dict)
    """The factor by which hooks multiply the gradient of a variable."""
    looked_up: set[Variable] = field(default_factory=set)
    """Rows that an embedding looked up for integer inputs."""
    results: tuple[Variable, ...] = ()
    """Where the backward pass starts: the loss, or the outputs that carry a gradient."""
    values: dict[Variable, Tensor] = field(default_factory=dict)
    """Value of every variable."""
    counts: dict[str, int] = field(default_factory=dict)
    following: int = 0

    def new(self) -> Variable:
        self.following += 1
        return self.following

    def emit(
        self,
        run: Callable[[list[Tensor]], Any],
        reads: Sequence[Variable],
        *,
        outputs: int = 1,
        differentiable: bool = True,
    ) -> tuple[Variable, ...]:
        """Append an operation, compute its results, and return their variables."""
        writes = tuple(self.new() for _ in range(outputs))
        found = run([self.values[v] for v in reads])
        found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        self.values.update({v: value.detach() for v, value in zip(writes, found)})
        self.events.append(Event(lambda given: _tuple(run(given)), tuple(reads), writes, differentiable=differentiable))
        if differentiable and any(v in self.carries for v in reads):
            self.carries.update(writes)
        return writes


def _tuple(found: Any) -> tuple[Tensor, ...]:
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def multiply_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, with a gradient that is multiplied by the factor."""
    return x if factor == 1 else x.detach() + factor * (x - x.detach())


# From a program to a listing -------------------------------------------------------------------------------------
class Flattening:
    """Runs a program once, and lists what it does."""

    def __init__(self, program: Program, net: Net) -> None:
        self.program, self.net = program, net
        self.listing = Listing()
        self.handles: dict[str, Handle] = {}

    def run(self) -> Listing:
        listing, program = self.listing, self.program
        given = []
        for spec, value in zip(program.inputs, draw_inputs(program)):
            variable = self._known(value, carries=spec.kind != "ids")
            (listing.ids if spec.kind == "ids" else listing.inputs).add(variable)
            given.append(Handle(variable))
        outputs = self._call(program.net, "", given)
        read = [self.read(handle) for handle in outputs]
        if program.loss:
            read = list(listing.emit(energy, read))
        listing.results = tuple(v for v in dict.fromkeys(read) if v in listing.carries)
        return listing

    def _known(self, value: Tensor, *, carries: bool) -> Variable:
        variable = self.listing.new()
        self.listing.known[variable] = self.listing.values[variable] = value.detach()
        if carries:
            self.listing.carries.add(variable)
        return variable

    def _parameter(self, path: str) -> Handle:
        """Return a parameter of the network; the same one for each use."""
        if path not in self.handles:
            variable = self._known(self.net.get_parameter(path), carries=True)
            self.listing.parameters.add(variable)
            self.handles[path] = Handle(variable)
        return self.handles[path]

    def read(self, handle: Handle) -> Variable:
        """Return the variable of a tensor; a view of a tensor that has been changed is taken again."""
        base = handle.base
        if base is not None and handle.version != base.version:
            (handle.variable,) = self.listing.emit(
                lambda given, view=handle.view: _view(given[0], view), [base.variable]
            )
            handle.version = base.version
        return handle.variable

    def _call(self, part: Block | Linear | Embedding, path: str, given: list[Handle]) -> list[Handle]:
        listing = self.listing
        index = listing.counts.get(path, 0)
        listing.counts[path] = index + 1
        is_step = isinstance(part, Block) and part.is_step and path != ""
        call = Calling(path, index, is_step, len(listing.events))
        listing.events.append(Event(None))
        call.takes = tuple(v for v in map(self.read, given) if v in listing.carries and v not in listing.parameters)
        hook = part.backward_hook if isinstance(part, Block) else ""
        if hook:
            given = self._wrapped(given, MODULE_SCALE if hook == "scale" else 1.0)
        found = self._body(part, path, given)
        if hook:
            found = self._wrapped(found, 1.0)
        call.gives = tuple(v for v in map(self.read, found) if v in listing.carries)
        call.end = len(listing.events)
        listing.events.append(Event(None))
        listing.calls.append(call)
        return found

    def _wrapped(self, given: list[Handle], factor: float) -> list[Handle]:
        """Return what a module with a full backward hook reads or returns: all its tensors pass one node."""
        variables = [self.read(handle) for handle in given]
        if not any(v in self.listing.carries for v in variables):
            return given
        carrying = [v in self.listing.carries for v in variables]
        found = self.listing.emit(
            lambda values: tuple(multiply_gradient(x * 1, factor) if c else x for x, c in zip(values, carrying)),
            variables,
            outputs=len(variables),
        )
        self.listing.carries -= {v for v, c in zip(found, carrying) if not c}
        return [Handle(v) for v in found]

    def _body(self, part: Block | Linear | Embedding, path: str, given: list[Handle]) -> list[Handle]:
        listing = self.listing
        if isinstance(part, Linear):
            names = [f"{path}.weight", *([f"{path}.bias"] if part.bias else [])]
            reads = [self.read(given[0]), *(self.read(self._parameter(name)) for name in names)]
            return [Handle(v) for v in listing.emit(lambda values: F.linear(*values), reads)]
        if isinstance(part, Embedding):
            ids = self.read(given[0])
            reads = [ids, self.read(self._parameter(f"{path}.weight"))]
            found = listing.emit(lambda values: F.embedding(*values), reads)
            if ids in listing.ids:
                listing.looked_up.update(found)
            return [Handle(v) for v in found]
        names: dict[str, Handle] = {
            name: self._parameter(f"{path}.{name}" if path else name) for name, _, _ in part.parameters
        }
        names.update(zip(part.takes, given))
        for op in part.body:
            if op.kind == "call":
                child = dict(part.children)[op.module]
                inner = f"{path}.{op.module}" if path else op.module
                names.update(zip(op.outs, self._call(child, inner, [names[name] for name in op.reads])))
            else:
                self._statement(op.kind, [names[name] for name in op.reads], op.number, op.outs, names)
        return [names[name] for name in part.returns]

    def _statement(
        self, kind: str, reads: list[Handle], number: float, outs: tuple[str, ...], names: dict[str, Handle]
    ) -> None:
        listing = self.listing
        if kind == "buffer":
            return
        if kind == "alias":
            names[outs[0]] = reads[0]
        elif kind == "hook":
            variable = self.read(reads[0])
            if number and variable in listing.carries:
                listing.hooks[variable] = listing.hooks.get(variable, 1.0) * number
        elif kind.endswith("_"):
            self._in_place(kind[:-1], reads, number)
        elif kind == "noise":
            value = listing.values[self.read(reads[0])]
            mask = torch.rand(value.shape, dtype=value.real.dtype)
            names[outs[0]] = Handle(*listing.emit(lambda given: given[0] * mask, [self.read(reads[0])]))
        else:
            self._operation(kind, reads, number, outs, names)

    def _operation(
        self, kind: str, reads: list[Handle], number: float, outs: tuple[str, ...], names: dict[str, Handle]
    ) -> None:
        found = self.listing.emit(
            lambda given: KINDS[kind].run(*given, number),
            [self.read(handle) for handle in reads],
            outputs=len(outs),
            differentiable=KINDS[kind].differentiable,
        )
        views = [((kind, number),)] if kind in VIEWS else [(("first", number),), (("rest", number),)]
        for name, variable, view in zip(outs, found, views if kind in VIEWS or kind == "split" else [()] * len(outs)):
            if view:
                base = reads[0].base or reads[0]
                names[name] = Handle(variable, base, (*reads[0].view, *view), base.version)
            else:
                names[name] = Handle(variable)

    def _in_place(self, kind: str, reads: list[Handle], number: float) -> None:
        """Give the changed tensor, or the base of the changed view, a new variable."""
        changed, others = reads[0], [self.read(handle) for handle in reads[1:]]
        base = changed.base or changed
        run = IN_PLACE[kind]

        def apply(given: list[Tensor]) -> Tensor:
            copy = given[0].clone()
            run(_view(copy, changed.view), *given[1:], number)
            return copy

        (base.variable,) = self.listing.emit(apply, [base.variable, *others])
        base.version += 1


def _view(base: Tensor, view: Iterable[tuple[str, float]]) -> Tensor:
    for kind, number in view:
        base = VIEWS[kind](base, number)
    return base


def listing_of(program: Program, net: Net) -> Listing:
    """Flatten a program with the weights of a network."""
    return Flattening(program, net).run()


# From a listing to the chain -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Chosen:
    """The call of a step: the path of its module, and how often that was called before."""

    path: str
    index: int


@dataclass(frozen=True, eq=False)
class Exact:
    """The chain by the definition."""

    steps: tuple[Chosen, ...]
    states: tuple[tuple[Variable, ...], ...]
    """The variables of each state, in the order in which they were made."""
    shapes: tuple[tuple[tuple[tuple[int, ...], torch.dtype], ...], ...]
    jacobians: tuple[Tensor, ...]
    """``J_1 … J_L`` between states as vectors of real numbers."""
    whole: Tensor
    """``∂x_L/∂x_0``, computed without cutting."""


class NoChainError(Exception):
    """There is no chain by the definition."""


def exact_chain(listing: Listing, chosen: Sequence[Chosen]) -> Exact:
    """Find the chain that passes through the chosen calls.

    Raises:
        NoChainError: The signal passes through none of the calls.
    """
    calls = [c for c in listing.calls if Chosen(c.path, c.index) in set(chosen)]
    if not calls or not listing.results:
        raise NoChainError
    return Definition(listing).chain(calls)


class Definition:
    """The terms of the definition, for one listing."""

    def __init__(self, listing: Listing) -> None:
        self.listing, self.events = listing, listing.events
        self.made = {v: index for index, event in enumerate(self.events) for v in event.writes}
        self.made.update(dict.fromkeys(listing.known, -1))
        self.useful = self._useful()
        self.dependent = self._downstream(listing.inputs | listing.looked_up)

    def _useful(self, independent: Iterable[Variable] = ()) -> set[int]:
        """Return the operations that lead to the results in differentiable steps, but not through independent variables."""
        independent, carries = set(independent), self.listing.carries
        needed = set(self.listing.results)
        found = set()
        for index in range(len(self.events) - 1, -1, -1):
            event = self.events[index]
            if event.differentiable and any(
                v in needed and v in carries and v not in independent for v in event.writes
            ):
                found.add(index)
                needed.update(v for v in event.reads if v in carries)
        return found

    def _downstream(self, sources: set[Variable]) -> set[Variable]:
        """Return the sources and all that useful, differentiable operations compute from them."""
        found = set(sources)
        for index, event in enumerate(self.events):
            if index in self.useful and any(v in found for v in event.reads):
                found.update(v for v in event.writes if v in self.listing.carries)
        return found

    def _leads_on(self, variable: Variable) -> bool:
        """Whether the operation that made a variable leads to the results; for an input, whether one that reads it does."""
        if self.made[variable] >= 0:
            return self.made[variable] in self.useful
        return variable in self.listing.results or any(variable in self.events[index].reads for index in self.useful)

    def chain(self, calls: Sequence[Calling]) -> Exact:
        """Return the largest chain: that of the first call, or of the calls that a smaller one leaves out."""
        starts, best = [0], None
        for start in starts:
            try:
                x0, moment, following = self._beginning(calls, start)
                kept = self._kept(x0, following)
                states = self._states(x0, moment, kept)
            except NoChainError:
                if start + 1 < len(calls) and len(starts) < 8:
                    starts.append(start + 1)
                continue
            if best is None or len(kept) > len(best[2]):
                best = x0, moment, kept, states
            missed = [index for index, call in enumerate(calls) if call not in kept and index > start]
            if 2 * len(best[2]) < len(calls) + 1 and missed and len(starts) < 8:
                starts.append(missed[0])
        if best is None:
            raise NoChainError
        return self._exact(*best)

    def _beginning(self, calls: Sequence[Calling], start: int) -> tuple[tuple[Variable, ...], int, list[Calling]]:
        for admitted in (self.dependent, set(self.made)):
            for index in range(start, len(calls)):
                call = calls[index]
                for variables, moment, first in ((call.takes, call.start, index), (call.gives, call.end, index + 1)):
                    found = tuple(v for v in dict.fromkeys(variables) if v in admitted and self._leads_on(v))
                    if found:
                        return found, moment, list(calls[first:])
        raise NoChainError

    def _signal(self, x0: Iterable[Variable]) -> set[int]:
        """Return the useful operations that compute with what depends on x_0."""
        depends = set(x0)
        useful = self._useful(x0)
        found = set()
        for index, event in enumerate(self.events):
            if index in useful and any(v in depends for v in event.reads):
                found.add(index)
                depends.update(v for v in event.writes if v in self.listing.carries)
        return found

    def _kept(self, x0: tuple[Variable, ...], following: Sequence[Calling]) -> list[Calling]:
        signal = self._signal(x0)
        kept = [call for call in following if any(call.start <= index < call.end for index in signal)]
        if not kept:
            raise NoChainError
        return kept

    def _states(
        self, x0: tuple[Variable, ...], moment: int, kept: Sequence[Calling]
    ) -> tuple[tuple[Variable, ...], ...]:
        """Return the variables of each state. See the definition in docs/engine.md."""
        moments = [moment, *(call.end for call in kept)]
        signal = self._signal(x0)
        own = {v for index in signal for v in self.events[index].writes if v in self.listing.carries} | set(x0)
        early = set(x0) | {v for v in own if self.made[v] < moment}
        last = self._read_at_the_end(kept[-1]) & own - early

        def read_from(start: int) -> set[Variable]:
            """Return what is read later. What is early and read after the last step passes by all steps."""
            readings = ((v, index) for index in signal if index >= start for v in self.events[index].reads)
            return last | {v for v, index in readings if v in own and not (v in early and index >= moments[-1])}

        live = [read_from(0) & set(x0)]
        live += [{v for v in read_from(m) if v in x0 or self.made[v] < m} for m in moments[1:]]
        if not live[0] or not live[-1]:
            raise NoChainError
        return tuple(tuple(sorted(state, key=lambda v: (self.made[v], v))) for state in live)

    def _read_at_the_end(self, last: Calling) -> set[Variable]:
        """Return the results that count as read after the last step although no operation reads them.

        They are those that the last step returned, or all of them if all were made before its end.
        """
        results = self.listing.results
        direct = {v for v in results if v in last.gives}
        later = any(self.made[v] >= last.end for v in results)
        return direct if direct or later else set(results)

    # Jacobians
    def _exact(
        self,
        x0: tuple[Variable, ...],
        moment: int,
        kept: Sequence[Calling],
        states: tuple[tuple[Variable, ...], ...],
    ) -> Exact:
        values, ends = self.listing.values, [call.end for call in kept]
        signal = sorted(self._signal(x0))
        jacobians = []
        for number, (earlier, later) in enumerate(itertools.pairwise(states)):
            begin = 0 if number == 0 else ends[number - 1]
            within = [index for index in signal if begin <= index < ends[number]]
            jacobians.append(self._jacobian(earlier, later, within, set(x0), last=number == len(kept) - 1))
        whole = self._jacobian(states[0], states[-1], [i for i in signal if i < ends[-1]], set(x0), last=True)
        shapes = tuple(tuple((tuple(values[v].shape), values[v].dtype) for v in state) for state in states)
        return Exact(tuple(Chosen(c.path, c.index) for c in kept), states, shapes, tuple(jacobians), whole)

    def _jacobian(
        self,
        earlier: Sequence[Variable],
        later: Sequence[Variable],
        within: Sequence[int],
        independent: set[Variable],
        *,
        last: bool,
    ) -> Tensor:
        """Differentiate the later state with respect to the earlier one."""
        values, hooks = self.listing.values, self.listing.hooks

        def run(given: Sequence[Tensor]) -> list[Tensor]:
            known = dict(zip(earlier, given))

            def of(variable: Variable) -> Tensor:
                return (
                    multiply_gradient(known[variable], hooks.get(variable, 1.0))
                    if variable in known
                    else values[variable]
                )

            for index in within:
                event = self.events[index]
                assert event.run is not None
                found = event.run([of(v) for v in event.reads])
                known.update(
                    {v: x for v, x in zip(event.writes, found) if v not in independent and v in self.listing.carries}
                )
            return [of(v) if last else known[v] for v in later]

        return jacobian(run, [values[v] for v in earlier])


def jacobian(run: Callable[[Sequence[Tensor]], list[Tensor]], at: Sequence[Tensor]) -> Tensor:
    """Return the matrix of a function of several tensors, a complex number as two real ones."""
    given = [x.clone().requires_grad_() for x in at]
    rows = []
    for output in (entry for y in run(given) for entry in as_vector(y)):
        found: Sequence[Tensor | None] = (None,) * len(given)
        if output.requires_grad:
            found = torch.autograd.grad(output, given, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(x) if g is None else g for x, g in zip(given, found)]
        rows.append(torch.cat([as_vector(part) for part in parts]))
    return torch.stack(rows)


def as_vector(x: Tensor) -> Tensor:
    """Return the entries of a tensor as a vector of real numbers."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1)
