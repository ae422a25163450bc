"""One recorded run of a model: which modules were called when, and which autograd edges they read and returned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.parametrize import ParametrizationList

from ...errors import ModelError
from ..isolation import uncompiled
from ..modules import ByModule, named_modules_of
from ..torch_internals import hooks_skipped_without_gradient, next_sequence_number, owner_of, without_torch_functions
from ..trees import carries_gradient, is_float, map_tensors, tensors_in
from .own_loss import call_training_step, has_training_step, named_loss, only_scalar, picker
from .rewritten import Rewritten, Snapshot
from .rollout import Rollout, kind_of

__all__ = [
    "Call",
    "Capture",
    "Edge",
    "Instrument",
    "Loss",
    "Places",
    "Recorder",
    "as_signal",
    "called_loss",
    "capture",
    "edge_of",
    "evaluate",
    "with_gradient",
]


Edge = tuple[Node, int]
"""An autograd node and the number of one of its outputs. It stands for a tensor of the forward pass without holding it."""


Places = Mapping[tuple[str, int], tuple[Set[int], Set[int]]]
"""Places of tensors: by path and index of a call, the positions among its arguments and among its results."""


Loss = Callable[..., Any]
"""``loss(output)`` or ``loss(output, target)``; returns a tensor with one element."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module, or one step inside a call, such as a time step of an LSTM."""

    path: str
    """Dotted name of the module in the model; empty for the model itself."""
    module: nn.Module
    index: int
    """Number of earlier calls of the same module."""
    parent: Call | None
    """The innermost call that was running when this one began."""
    start: int
    """Sequence number of the next autograd node when the call began. See Note [Program order] in graph.py."""
    end: int = -1
    """Sequence number of the next autograd node when the call had returned."""
    slots: tuple[Edge | None, ...] = ()
    """Edge of each tensor among the arguments. None for parameters and for tensors that carry no gradient."""
    results: tuple[Edge | None, ...] = ()
    """Edge of each tensor that was returned. None for tensors that carry no gradient."""
    owners: list[Tensor] = field(default_factory=list)
    """Tensors that keep nodes of these edges alive; none since PyTorch 2.13. See ``torch_internals.owner_of``."""
    inner: str = ""
    """Kind of a step inside a call, such as ``LSTM`` or ``dopri5 step``; empty for the call of a module.

    The arguments of an inner step are the state before it, and its results are the state after it.
    """
    duration: float | None = None
    """Time that an inner step spans; None if steps are counted instead."""
    reads_without_gradient: bool = False
    """Whether a floating-point tensor among the arguments carries no gradient."""
    active: int | None = None
    """Number of samples, counted from the first one, that an inner step acts on; None for all."""

    @property
    def kind(self) -> str:
        """Kind of the step: the class of the module, or the kind of an inner step."""
        return self.inner or type(self.module).__name__

    @property
    def inputs(self) -> tuple[Edge, ...]:
        """Edges among the arguments, each once."""
        return unique(edge for edge in self.slots if edge is not None)

    @property
    def outputs(self) -> tuple[Edge, ...]:
        """Edges among the results, each once."""
        return unique(edge for edge in self.results if edge is not None)


@dataclass(slots=True, eq=False)
class Capture:
    """One forward pass: its module calls, its output and its loss."""

    model: nn.Module
    calls: list[Call] = field(default_factory=list)
    """Calls in the order of their return."""
    sources: tuple[Edge, ...] = ()
    """Edges of the model's float inputs."""
    indices: frozenset[int] = frozenset()
    """Storage addresses of the model's integer inputs. They identify the embeddings that look these inputs up."""
    inputs: Any = None
    """The inputs from the user, on the device of the model."""
    target: Any = None
    """The second argument of the loss; None if it takes the output only."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    output: Any = None
    loss: Tensor | None = None
    """The loss as a scalar; None if there is none."""
    loss_function: Loss | None = None
    """Function of the output, and of the target if there is one; None where the output names the loss, or there is none."""
    watched: dict[Instrument, Any] = field(default_factory=dict)
    """The value that each instrument yielded."""
    inputs_carry_gradient: bool = True
    """Whether the model ran with float inputs that require a gradient."""
    copied_constants: set[Edge] = field(default_factory=set)
    """Edges of the copies that replaced constant arguments. See Note [Initial states of recurrences] in initial_states.py."""
    rewritten: Mapping[str, Rewritten] = field(default_factory=dict)
    """Parameters that the forward pass has written, by name."""
    notes: list[str] = field(default_factory=list)
    """Remarks of the instruments for the report."""

    def call_at(self, number: int) -> Call | None:
        """Return the innermost call of a module that was running when a node was created; None outside of all calls.

        Args:
            number: The place of the node in program order.
        """
        # The innermost call returns first.
        return next((call for call in self.calls if not call.inner and call.start <= number < call.end), None)

    def place_of(self, number: int) -> str:
        """Return the innermost module during whose call a node was created, with its class, such as ``"3 (Softmax)"``.

        Args:
            number: The place of the node in program order.

        Returns:
            The text; the class of the model alone if none of its modules was running.
        """
        call = self.call_at(number)
        kind = type(self.model if call is None else call.module).__name__
        return f"{call.path} ({kind})" if call is not None and call.path else kind

    @property
    def roots(self) -> tuple[Edge, ...]:
        """Edges at which the backward pass starts: the loss, or without a loss every float tensor of the output."""
        if self.loss is not None:
            return (edge_of(self.loss),) if carries_gradient(self.loss) else ()
        return unique(edge_of(tensor) for tensor in tensors_in(self.output) if carries_gradient(tensor))


def edge_of(tensor: Tensor) -> Edge:
    """Return the current autograd edge of a tensor that carries a gradient; an operation in place changes it."""
    if tensor.grad_fn is None:
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        return edge.node, edge.output_nr
    return tensor.grad_fn, tensor.output_nr


def unique(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Return the edges without repetitions, in their order."""
    return tuple(dict.fromkeys(edges))


def now() -> int:
    """Return the sequence number of the next autograd node. See Note [Program order] in graph.py."""
    return next_sequence_number()


def with_gradient(tensor: Tensor) -> Tensor:
    """Return a copy that carries a gradient. It is not a leaf, because a model may change it in place."""
    return tensor.detach().clone().requires_grad_().clone()


def as_signal(tensor: Tensor) -> Tensor:
    """Return a tensor that a chain can start from: a copy with a gradient of a constant, a clone of a parameter.

    See Note [Parameters are no signal] in chain.py.
    """
    if not carries_gradient(tensor):
        return with_gradient(tensor)
    return tensor.clone() if tensor.is_leaf else tensor


Instrument = Callable[["Recorder"], AbstractContextManager[Any]]
"""A context manager that observes the forward pass of a model, for instance to record the time steps of a fused layer.

``capture`` enters it with the recorder before the forward pass and keeps the yielded value in ``Capture.watched``.
"""


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    target: Any = None,
    loss: Loss | None = None,
    restart: Callable[[], None] = lambda: None,
    instruments: Sequence[Instrument] = (),
    places: Places | None = None,
) -> Capture:
    """Run the model once and record its calls. The hooks change nothing.

    Float inputs are passed as copies that require a gradient. Some models reject such inputs: some speech models set
    ``requires_grad`` on their inputs themselves. They run again with inputs that require none.

    Args:
        model: The model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        target: Second argument of the loss; None to call the loss with the output only.
        loss: The loss; None to use the loss that the model computes itself, if any.
        restart: Restores the random generators before a second run.
        instruments: Further observers of the forward pass.
        places: Places of the tensors to observe; None for all.

    Returns:
        The calls of the modules, the output and the loss.

    Raises:
        ModelError: The loss raised, or is not one number that carries a gradient; or a module ran in another thread.
        RuntimeError: The model raised it. Other exceptions of the model are raised as well.
    """

    def run(captured: Capture) -> Capture:
        return _run(captured, args, kwargs, target, loss, instruments=instruments, places=places)

    try:
        return run(Capture(model))
    except RuntimeError as error:
        if "requires_grad" not in str(error) and "requires grad" not in str(error):
            raise
        restart()
        return run(Capture(model, inputs_carry_gradient=False))


def _run(
    captured: Capture,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: Any,
    loss: Loss | None,
    *,
    instruments: Sequence[Instrument],
    places: Places | None,
) -> Capture:
    model = captured.model
    sources: list[Edge] = []
    indices: set[int] = set()

    def fresh(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            tensor = tensor.detach().clone()
            indices.add(tensor.untyped_storage().data_ptr())
        elif captured.inputs_carry_gradient:
            tensor = with_gradient(tensor)
            sources.append(edge_of(tensor))
        else:
            tensor = tensor.detach().clone()
        return tensor

    args, kwargs = map_tensors(args, fresh), map_tensors(dict(kwargs), fresh)
    captured.sources, captured.indices = tuple(sources), frozenset(indices)
    recorder = Recorder(captured, places)
    before = Snapshot(model)
    # Products with segments stop gradients at states: see Note [Barrier at the inputs] in vjp.py.
    with recorder.watching(), hooks_skipped_without_gradient(), ExitStack() as stack:
        for instrument in instruments:
            captured.watched[instrument] = stack.enter_context(instrument(recorder))
        captured.output = _output_of(model, args, kwargs, loss)
    captured.rewritten = before.rewritten()
    if recorder.elsewhere is not None:
        # PyTorch counts the nodes of each thread separately, so that their order is not known.
        msg = (
            f"all modules must run in one thread. {type(model).__name__} called {recorder.elsewhere!r} in another one, where "
            "PyTorch does not record the order of the operations. Call it without the thread pool, at least in the test."
        )
        raise ModelError(msg)
    captured.loss_function = loss
    captured.loss = _loss_of(model, captured.output, target, loss)
    if captured.loss is None and (place := only_scalar(captured.output)) is not None:
        captured.loss_function = picker(place)
        captured.loss = captured.loss_function(captured.output)
        captured.notes.append(
            f"the scalar that the model returns{f' at {place}' if place else ''} is taken as its loss"
        )
    return captured


def evaluate(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any, loss: Loss | None
) -> tuple[Any, Tensor | None]:
    """Return the output and the loss of a run without recording; the loss is None if there is none.

    Raises:
        ModelError: The loss raised, or is not one number that carries a gradient.
    """
    with uncompiled():
        output = _output_of(model, args, kwargs, loss)
        return output, _loss_of(model, output, target, loss)


def _output_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], loss: Loss | None) -> Any:
    if loss is None and has_training_step(model):
        return call_training_step(model, args[0] if len(args) == 1 else (args or kwargs))
    return model(*args, **kwargs)


def _loss_of(model: nn.Module, output: Any, target: Any, loss: Loss | None) -> Tensor | None:
    if loss is None:
        return named_loss(output, of_training_step=has_training_step(model))
    return called_loss(loss, output, target)


def called_loss(loss: Loss, output: Any, target: Any) -> Tensor:
    """Call the user's loss, and return its value as a scalar.

    Args:
        loss: The loss.
        output: Output of the model.
        target: Second argument of the loss, which gets a copy; None to call the loss with the output only.

    Returns:
        The value, which has a graph.

    Raises:
        ModelError: The loss raised, or is not one number that carries a gradient.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    target = map_tensors(target, lambda t: t.clone())
    try:
        value = loss(output) if target is None else loss(output, target)
    except Exception as error:
        called = "loss(output)" if target is None else "loss(output, target)"
        msg = f"the loss must run as {called}. `{name}` raised {type(error).__name__}: {error}"
        if target is None:
            msg += ". No target was given: pass target=... if the loss takes one."
        raise ModelError(msg) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        msg = f"the loss must be one number, a tensor with one element. `{name}` returned {got}. {_cure_of_loss(value)}"
        raise ModelError(msg)
    if not carries_gradient(value):
        msg = (
            f"the loss must carry a gradient. The value that `{name}` returned does not depend on the output in the autograd "
            "graph. Look for .detach(), .item(), argmax or torch.no_grad() in it."
        )
        raise ModelError(msg)
    return value.reshape(())


def _cure_of_loss(value: Any) -> str:
    if isinstance(value, Tensor):
        return "Reduce it, for instance with .mean()."
    if value is None:
        return "A return statement is missing."
    return "Return the tensor itself, without .item(), float() or a container."


class Recorder:
    """Records the module calls of a run.

    Args:
        captured: Receives the calls.
        places: Places of the tensors that observers receive; None for all. Calls that it does not name are observed, too.
    """

    def __init__(self, captured: Capture, places: Places | None = None) -> None:
        self.capture = captured
        self._places = {} if places is None else places
        self.paths = ByModule(
            (module, path)
            for path, module in named_modules_of(captured.model)
            if not isinstance(module, ParametrizationList)
        )
        """Paths of the modules whose calls are recorded."""
        self.running: list[Call] = []
        """Calls that have not returned, the outermost first."""
        self.observers: list[Callable[[Edge, Tensor], None]] = []
        """Functions that receive each tensor that carries a gradient and that a module reads or returns, once, with its edge.

        If an earlier run has shown which of them belong to states, only these are received.
        They are called while the tensor still holds its values: a later operation in place may overwrite them.
        """
        self.elsewhere: str | None = None
        """Path of a module that was called in another thread than the model; None if there is none."""
        self._thread = threading.get_ident()
        self._seen: set[Edge] = set()
        self._counts: dict[tuple[str, str], int] = {}

    def begin(self, module: nn.Module, path: str, arguments: Iterable[Tensor], *, inner: str = "") -> Call:
        """Record the beginning of a call."""
        arguments = list(arguments)
        index = self._counts.get((path, inner), 0)
        self._counts[path, inner] = index + 1
        call = Call(path, module, index, self.running[-1] if self.running else None, now(), inner=inner)
        # See Note [Parameters are no signal] in chain.py.
        observed = self._places.get((path, index), (None, None))[0]
        with without_torch_functions():
            call.slots = tuple(
                None
                if t.is_leaf and t.requires_grad
                else self._observe(t, call, is_observed=observed is None or i in observed)
                for i, t in enumerate(arguments)
            )
            call.reads_without_gradient = any(is_float(t) and not t.requires_grad for t in arguments)
        self.running.append(call)
        return call

    def end(self, call: Call, results: Iterable[Tensor]) -> None:
        """Record the end of a call."""
        # Calls that raised an exception, which the model caught, never ended.
        while self.running[-1] is not call:
            self.running.pop()
        self.running.pop()
        observed = self._places.get((call.path, call.index), (None, None))[1]
        with without_torch_functions():
            call.results = tuple(
                self._observe(t, call, is_observed=observed is None or i in observed) for i, t in enumerate(results)
            )
        call.end = now()
        self.capture.calls.append(call)

    def _observe(self, tensor: Tensor, call: Call, *, is_observed: bool) -> Edge | None:
        """Return the edge of a tensor, or None. Function modes of instruments must not see what this computes."""
        if not carries_gradient(tensor):
            return None
        edge = edge_of(tensor)
        if (owner := owner_of(tensor)) is not None:
            call.owners.append(owner)
        if is_observed and self.observers and edge not in self._seen:
            self._seen.add(edge)
            for observer in self.observers:
                observer(edge, tensor)
        return edge

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the calls of all modules while the context is open."""
        handles = []
        try:
            for module in self.paths:
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                # Functions and not bound methods: a model may deep-copy its modules, and would copy this recorder.
                handles.append(module.register_forward_pre_hook(lambda *call: self._before(*call), with_kwargs=True))
                handles.append(module.register_forward_hook(lambda *call: self._after(*call), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy that the model makes of one of its modules has the hooks, too.
        if module not in self.paths:
            return
        if threading.get_ident() != self._thread:
            self.elsewhere = self.paths[module]
        caller = self.running[-1].module if self.running else None
        if isinstance(caller, Rollout):
            # The first argument is the state. Further arguments are inputs of the step, which are not carried on.
            call = self.begin(module, self.paths[module], tensors_in(args[:1]), inner=kind_of(module))
            call.duration = caller.dt
        else:
            self.begin(module, self.paths[module], (*tensors_in(args), *tensors_in(kwargs)))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module in self.paths:
            self.end(next(c for c in reversed(self.running) if c.module is module), tensors_in(output))
