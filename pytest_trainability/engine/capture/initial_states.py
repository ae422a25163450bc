"""An instrument that makes constant initial states of recurrences part of the autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..modules import ByModule
from ..torch_internals import version_of
from ..trees import carries_gradient, is_float
from .recorder import Edge, Recorder, edge_of, with_gradient

__all__ = ["initial_states"]

# Note [Initial states of recurrences]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# The initial state of a loop is usually a constant, such as `torch.zeros(...)`. Autograd does not track constants, so the first
# state x_0 would be missing from the graph, and with it the first step of the chain. At the first call of each module, the
# constant float tensors among its arguments are therefore replaced by copies that require a gradient. The cells of torch.nn,
# which create their zeros themselves when they are called without a state, receive these zeros as an argument.
#
# No value changes, and the module must not notice:
# - Only tensors in (nested) tuples are replaced. A module may write its new state into a list or a dictionary of the caller.
# - A module may write into the tensor itself. The new values are copied back when the call returns.
# - The caller keeps the original. Where it reads the state outside of the module as well, the copy is not the whole initial
#   state, and the chain begins one step later: `recurrence._initial` finds that out. `Capture.copied_constants` lists the
#   copies.


@contextmanager
def initial_states(recorder: Recorder) -> Iterator[None]:
    """Replace the constant tensors in the first call of each module by copies that carry a gradient.

    See Note [Initial states of recurrences].
    """
    copies = _Copies(recorder.capture.copied_constants)

    # Functions and not bound methods: a model may deep-copy its modules, and would copy these tensors.
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return copies.before(module, args, kwargs)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        copies.after(module)

    handles = []
    try:
        if recorder.capture.inputs_carry_gradient:
            for module in recorder.paths:
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
                    handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Copies:
    """Replaces the constant arguments of a module's first call."""

    def __init__(self, edges: set[Edge]) -> None:
        self.edges = edges
        """Filled with the edges of all copies."""
        self.replaced: ByModule[list[tuple[Tensor, Tensor, int, Node | None]]] = ByModule()
        """For each module that has been called: original, copy, version and node of the copy; empty once the call returned."""

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments of a first call with copies of their constants."""
        if module in self.replaced or not torch.is_grad_enabled():
            return None
        copies = self.replaced[module] = []

        def copied(tensor: Tensor) -> Tensor:
            if carries_gradient(tensor) or not is_float(tensor):
                return tensor
            copy = with_gradient(tensor)
            copies.append((tensor, copy, version_of(copy), copy.grad_fn))
            self.edges.add(edge_of(copy))
            return copy

        if isinstance(module, nn.RNNCellBase):
            args, kwargs = _with_initial_state(module, args, kwargs)
        return _changed(args, copied), {name: _changed(value, copied) for name, value in kwargs.items()}

    def after(self, module: nn.Module) -> None:
        """Write the values back that the module has written into its copies."""
        for tensor, copy, version, node in self.replaced.get(module, ()):
            if version_of(copy) != version:
                tensor.copy_(copy.detach() if copy.grad_fn is node else copy)
        self.replaced[module] = []


def _changed(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the tensors in nested tuples. Lists and dictionaries stay the caller's own objects."""
    if isinstance(tree, tuple):
        items = [_changed(item, change) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return change(tree) if isinstance(tree, Tensor) else tree


def _with_initial_state(
    cell: nn.RNNCellBase, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the zeros that a cell starts from to its arguments if it is called without a state."""
    x, state = [*args, None, None][:2]
    x, state = kwargs.get("input", x), kwargs.get("hx", state)
    if state is not None or not isinstance(x, Tensor):
        return args, kwargs
    zeros = x.new_zeros(*x.shape[:-1], cell.hidden_size)
    return (x,), {"hx": (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros}
