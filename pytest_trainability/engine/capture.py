"""One instrumented run of a model: which modules were called when, and which autograd edges they read and wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.parametrize import ParametrizationList

from ..errors import ModelError
from .trees import carries_gradient, map_tensors, norm, tensors_in

__all__ = ["Call", "Capture", "Edge", "Loss", "capture", "edge_of"]

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
    inputs: tuple[Edge, ...] = ()
    outputs: tuple[Edge, ...] = ()


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
    output: Any = None
    loss: Tensor | None = None
    square_sums: dict[Edge, tuple[Tensor, int]] = field(default_factory=dict)
    """Sum of squares and number of elements of every grad-carrying tensor that a module read or wrote."""
    inputs_carry_gradient: bool = True

    @property
    def roots(self) -> tuple[Edge, ...]:
        """Where the backward pass starts: the loss, or without one every float tensor of the output."""
        if self.loss is not None:
            return (edge_of(self.loss),) if carries_gradient(self.loss) else ()
        return unique(edge_of(tensor) for tensor in tensors_in(self.output) if carries_gradient(tensor))

    def root_mean_square(self, state: Iterable[Edge]) -> float:
        """Return the RMS over those tensors of a state that a module read or wrote, NaN where there is none."""
        seen = [self.square_sums[edge] for edge in state if edge in self.square_sums]
        count = sum(size for _, size in seen)
        return math.sqrt(sum(float(total) for total, _ in seen) / count) if count else math.nan


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


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    target: Any = None,
    loss: Loss | None = None,
    statistics: bool = True,
    restart: Callable[[], None] = lambda: None,
) -> Capture:
    """Run the model once under hooks that only look.

    Float inputs are handed over as copies that carry gradients. A model that cannot take such inputs (some speech models
    set ``requires_grad`` themselves) is run again with inputs that carry none, after ``restart`` has put the random
    generators back.

    Raises:
        ModelError: The model or the loss raised, or gave nothing that a gradient could start from.
    """
    try:
        return _run(model, args, kwargs, target, loss, statistics=statistics, inputs_carry_gradient=True)
    except RuntimeError as error:
        if "requires_grad" not in str(error) and "requires grad" not in str(error):
            raise
        restart()
        return _run(model, args, kwargs, target, loss, statistics=statistics, inputs_carry_gradient=False)


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: Any,
    loss: Loss | None,
    *,
    statistics: bool,
    inputs_carry_gradient: bool,
) -> Capture:
    record = Capture(model, inputs_carry_gradient=inputs_carry_gradient)
    sources: list[Edge] = []
    indices: set[int] = set()

    def fresh(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone()
        if not (tensor.is_floating_point() or tensor.is_complex()):
            indices.add(tensor.untyped_storage().data_ptr())
        if inputs_carry_gradient and (tensor.is_floating_point() or tensor.is_complex()):
            # A copy, not a leaf: the model may change its input in place.
            tensor = tensor.requires_grad_().clone()
            sources.append(edge_of(tensor))
        return tensor

    args, kwargs = map_tensors(args, fresh), map_tensors(dict(kwargs), fresh)
    record.sources, record.indices = tuple(sources), frozenset(indices)
    with _watched(model, record, statistics=statistics):
        if _uses_training_step(model, loss):
            batch = args[0] if len(args) == 1 else (args or kwargs)
            record.output = model.training_step(batch, 0)  # type: ignore[operator]
        else:
            record.output = model(*args, **kwargs)
    record.loss = _loss_of(record, target, loss)
    return record


def _uses_training_step(model: nn.Module, loss: Loss | None) -> bool:
    """A Lightning module computes its own loss."""
    return loss is None and callable(getattr(model, "training_step", None))


def _loss_of(record: Capture, target: Any, loss: Loss | None) -> Tensor | None:
    output = record.output
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
            msg = (
                f"the loss must be one number, a tensor with one element. `{name}` returned {came}. Reduce it, for "
                "instance with .mean()."
            )
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
    elif _uses_training_step(record.model, loss) and isinstance(output, Tensor):
        value = output
    else:
        value = getattr(output, "loss", None)
    is_loss = isinstance(value, Tensor) and value.numel() == 1 and carries_gradient(value)
    return value.reshape(()) if is_loss and value is not None else None


@contextmanager
def _watched(model: nn.Module, record: Capture, *, statistics: bool) -> Iterator[None]:
    running: list[Call] = []
    counts: dict[nn.Module, int] = {}
    paths = {module: path for path, module in model.named_modules() if not isinstance(module, ParametrizationList)}

    def look(tree: Any) -> tuple[Edge, ...]:
        edges: list[Edge] = []
        for tensor in tensors_in(tree):
            if carries_gradient(tensor):
                edge = edge_of(tensor)
                edges.append(edge)
                if statistics and edge not in record.square_sums:
                    record.square_sums[edge] = norm(tensor).square(), tensor.numel()
        return unique(edges)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module not in paths:
            # A copy that the model made of a part of itself carries the hooks along.
            return
        index = counts.get(module, 0)
        counts[module] = index + 1
        call = Call(paths[module], module, index, running[-1] if running else None, now())
        tensors = (*tensors_in(args), *tensors_in(kwargs))
        # A parameter that is handed in is no signal.
        call.inputs = look([tensor for tensor in tensors if not (tensor.is_leaf and tensor.requires_grad)])
        running.append(call)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module not in paths:
            return
        # A model that catches an exception of its own leaves calls behind that never returned.
        while running[-1].module is not module:
            running.pop()
        call = running.pop()
        call.outputs = look(output)
        call.end = now()
        record.calls.append(call)

    handles = []
    try:
        for module in paths:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
