"""One instrumented run of a model: which modules were called when, and which autograd edges they read and wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.parametrize import ParametrizationList

from ...errors import ModelError
from ..isolation import uncompiled
from ..trees import carries_gradient, map_tensors, tensors_in
from .rollout import Rollout, kind_of

__all__ = [
    "Call",
    "Capture",
    "Edge",
    "Instrument",
    "Loss",
    "Recorder",
    "as_signal",
    "capture",
    "edge_of",
    "evaluate",
    "with_gradient",
]


Edge = tuple[Node, int]
"""An autograd node and the number of one of its outputs: one tensor of the forward pass, without the tensor."""


Loss = Callable[..., Any]


@dataclass(slots=True, eq=False)
class Call:
    """One call of one module."""

    path: str
    """Dotted name of the module in the model; empty for the model itself."""
    module: nn.Module
    index: int
    """How many calls of the same module came before."""
    parent: Call | None
    """The innermost call that was running when this one began."""
    start: int
    """Number that the next autograd node would have got when the call began."""
    end: int = -1
    """The same when the call had returned."""
    slots: tuple[Edge | None, ...] = ()
    """For each tensor that it was given its edge; None for what carries no gradient and for parameters."""
    results: tuple[Edge | None, ...] = ()
    """The same for each tensor that it returned."""
    inner: str = ""
    """What it is a step of where it is no call of the module but one step inside, such as ``LSTM`` or ``dopri5``; it then
    takes in just the state before it, and gives out the state after it."""
    duration: float | None = None
    """Time that an inner step spans; None where steps are counted."""
    active: int | None = None
    """How many of the first samples an inner step acts on; None for all."""

    @property
    def kind(self) -> str:
        """What is called: a class, a function, or a step inside of a module."""
        return self.inner or type(self.module).__name__

    @property
    def inputs(self) -> tuple[Edge, ...]:
        """Edges that it was given, each once."""
        return unique(edge for edge in self.slots if edge is not None)

    @property
    def outputs(self) -> tuple[Edge, ...]:
        """Edges that it returned, each once."""
        return unique(edge for edge in self.results if edge is not None)


@dataclass(slots=True, eq=False)
class Capture:
    """What one forward pass left behind: calls in the order of their return, the output and the loss."""

    model: nn.Module
    calls: list[Call] = field(default_factory=list)
    sources: tuple[Edge, ...] = ()
    """Edges of the model's float inputs."""
    indices: frozenset[int] = frozenset()
    """Addresses of the model's integer inputs, by which the embeddings that look them up are known."""
    inputs: Any = None
    """What the model was given, as handed over by the user and moved to its device."""
    target: Any = None
    """What the loss was given beside the output."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    output: Any = None
    loss: Tensor | None = None
    watched: dict[Instrument, Any] = field(default_factory=dict)
    """What each instrument has yielded."""
    inputs_carry_gradient: bool = True
    given: set[Edge] = field(default_factory=set)
    """Edges of constants that were given a gradient, by copies that nobody else has."""
    notes: list[str] = field(default_factory=list)
    """What those who watched have to say of the run."""

    @property
    def roots(self) -> tuple[Edge, ...]:
        """Where the backward pass starts: the loss, or without one every float tensor of the output."""
        if self.loss is not None:
            return (edge_of(self.loss),) if carries_gradient(self.loss) else ()
        return unique(edge_of(tensor) for tensor in tensors_in(self.output) if carries_gradient(tensor))


def edge_of(tensor: Tensor) -> Edge:
    """Return the autograd edge that a grad-carrying tensor stands on, as of now."""
    if tensor.grad_fn is None:
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        return edge.node, edge.output_nr
    return tensor.grad_fn, tensor.output_nr


def unique(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Drop repeated edges, keeping the order."""
    return tuple(dict.fromkeys(edges))


def now() -> int:
    """Return the number that the next autograd node of this thread will get; it grows in program order."""
    return int(torch._C._autograd._get_sequence_nr())


def with_gradient(tensor: Tensor) -> Tensor:
    """Return a copy that carries a gradient; not a leaf, for the model may change it in place."""
    return tensor.detach().clone().requires_grad_().clone()


def as_signal(tensor: Tensor) -> Tensor:
    """Return the tensor as the beginning of a signal: a constant with a gradient, a parameter as what is computed from it."""
    if not carries_gradient(tensor):
        return with_gradient(tensor)
    return tensor.clone() if tensor.is_leaf else tensor


Instrument = Callable[["Recorder"], AbstractContextManager[Any]]
"""Makes steps visible that are no calls of modules, for as long as the model runs."""


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    target: Any = None,
    loss: Loss | None = None,
    restart: Callable[[], None] = lambda: None,
    instruments: Sequence[Instrument] = (),
) -> Capture:
    """Run the model once under hooks that only look.

    Float inputs are handed over as copies that carry gradients. A model that cannot take such inputs (some speech models
    set ``requires_grad`` themselves) is run again with inputs that carry none, after ``restart`` has put the random
    generators back.

    Raises:
        ModelError: The model or the loss raised, or gave nothing that a gradient could start from.
    """

    def run(captured: Capture) -> Capture:
        return _run(captured, args, kwargs, target, loss, instruments=instruments)

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
    recorder = Recorder(captured)
    with recorder.watching(), ExitStack() as stack:
        for instrument in instruments:
            captured.watched[instrument] = stack.enter_context(instrument(recorder))
        captured.output = _output_of(model, args, kwargs, loss)
    captured.loss = _loss_of(model, captured.output, target, loss)
    return captured


def evaluate(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any, loss: Loss | None
) -> tuple[Any, Tensor | None]:
    """Run the model unwatched; return its output and its loss, None where there is none.

    Raises:
        ModelError: The loss raised, or is not one number that carries a gradient.
    """
    with uncompiled():
        output = _output_of(model, args, kwargs, loss)
        return output, _loss_of(model, output, target, loss)


def _output_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], loss: Loss | None) -> Any:
    if _uses_training_step(model, loss):
        batch = args[0] if len(args) == 1 else (args or kwargs)
        return model.training_step(batch, 0)  # type: ignore[operator]
    return model(*args, **kwargs)


def _uses_training_step(model: nn.Module, loss: Loss | None) -> bool:
    """A Lightning module computes its own loss."""
    return loss is None and callable(getattr(model, "training_step", None))


def _loss_of(model: nn.Module, output: Any, target: Any, loss: Loss | None) -> Tensor | None:
    if loss is not None:
        name = getattr(loss, "__name__", type(loss).__name__)
        target = map_tensors(target, lambda t: t.clone())
        try:
            value = loss(output) if target is None else loss(output, target)
        except Exception as error:
            called = "loss(output)" if target is None else "loss(output, target)"
            msg = f"the loss must run as {called}. `{name}` raised {type(error).__name__}: {error}"
            if target is None:
                msg += ". No target was given: hand in target=... if the loss takes one."
            raise ModelError(msg) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            msg = f"the loss must be one number, a tensor with one element. `{name}` returned {came}. {_cure_of_loss(value)}"
            raise ModelError(msg)
        if not carries_gradient(value):
            msg = (
                f"the loss must carry a gradient. What `{name}` returned does not depend on the output in autograd's eyes. "
                "Look for .detach(), .item(), argmax or torch.no_grad() in it."
            )
            raise ModelError(msg)
        return value.reshape(())
    if isinstance(output, Mapping):
        value = output.get("loss")
    elif _uses_training_step(model, loss) and isinstance(output, Tensor):
        value = output
    else:
        value = getattr(output, "loss", None)
    is_loss = isinstance(value, Tensor) and value.numel() == 1 and carries_gradient(value)
    return value.reshape(()) if is_loss and value is not None else None


class Recorder:
    """Writes down the calls of a run as they happen."""

    def __init__(self, captured: Capture) -> None:
        self.capture = captured
        self.paths = {
            module: path for path, module in captured.model.named_modules() if not isinstance(module, ParametrizationList)
        }
        """Names of the modules whose calls are seen."""
        self.running: list[Call] = []
        """Calls that have not returned, the outermost first."""
        self.observers: list[Callable[[Edge, Tensor], None]] = []
        """Shown every grad-carrying tensor that a module reads or writes, once, while it holds its values."""
        self._seen: set[Edge] = set()
        self._counts: dict[tuple[str, str], int] = {}

    def begin(self, module: nn.Module, path: str, given: Iterable[Tensor], *, inner: str = "") -> Call:
        """Note that a call begins."""
        index = self._counts.get((path, inner), 0)
        self._counts[path, inner] = index + 1
        call = Call(path, module, index, self.running[-1] if self.running else None, now(), inner=inner)
        # A parameter that is handed in is no signal.
        call.slots = tuple(None if t.is_leaf and t.requires_grad else self._look(t) for t in given)
        self.running.append(call)
        return call

    def end(self, call: Call, given: Iterable[Tensor]) -> None:
        """Note that a call has returned."""
        # A model that catches an exception of its own leaves calls behind that never returned.
        while self.running[-1] is not call:
            self.running.pop()
        self.running.pop()
        call.results = tuple(map(self._look, given))
        call.end = now()
        self.capture.calls.append(call)

    def _look(self, tensor: Tensor) -> Edge | None:
        if not carries_gradient(tensor):
            return None
        edge = edge_of(tensor)
        if self.observers and edge not in self._seen:
            self._seen.add(edge)
            # What observers compute is none of the model's doing, for whoever watches functions.
            with torch._C.DisableTorchFunction():
                for observer in self.observers:
                    observer(edge, tensor)
        return edge

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hook into every module."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A copy that the model made of a part of itself carries the hooks along.
            if module not in self.paths:
                return
            caller = self.running[-1].module if self.running else None
            if isinstance(caller, Rollout):
                # What comes in beside the state, and comes after it, is not carried.
                call = self.begin(module, self.paths[module], tensors_in(args[:1]), inner=kind_of(module))
                call.duration = caller.dt
            else:
                self.begin(module, self.paths[module], (*tensors_in(args), *tensors_in(kwargs)))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if module in self.paths:
                self.end(next(c for c in reversed(self.running) if c.module is module), tensors_in(output))

        handles = []
        try:
            for module in self.paths:
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _cure_of_loss(value: Any) -> str:
    if isinstance(value, Tensor):
        return "Reduce it, for instance with .mean()."
    if value is None:
        return "A return is missing."
    return "Return the tensor itself, without .item(), float() or a container."
