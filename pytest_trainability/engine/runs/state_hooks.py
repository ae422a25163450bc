"""The states of a model while it runs again: functions that see, and may replace, what steps read and return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from ...errors import InapplicableError
from ..capture.chain import Chain
from ..capture.recorder import Capture
from ..torch_internals import without_torch_functions
from ..trees import carries_gradient, map_tensors, tensors_in

__all__ = ["Visit", "require_depth", "visited_states"]

Visit: TypeAlias = "Callable[[int, int, Tensor], Tensor | None]"
"""``visit(index, position, tensor)`` receives each tensor with a gradient of state ``index``: 0 for what enters the first step, l
for what step l returns. The position counts the tensors of the state. The tensor that it returns takes the place of the
original one; None keeps it."""


def require_depth(chain: Chain, measure: str) -> None:
    """Require steps that are calls of modules.

    Raises:
        InapplicableError: The chain runs along time, where steps lie inside calls.
    """
    if chain.along != "depth":
        msg = f"{measure} needs steps along depth. This chain runs along time. Measure with steps='auto' or steps='layers'."
        raise InapplicableError(msg)


@contextmanager
def visited_states(capture: Capture, chain: Chain, visit: Visit) -> Iterator[None]:
    """Call a function for every tensor of every state of a chain along depth, in each run of the model inside the context.

    The first state consists of the arguments of the first step, and each later one of the results of its step. Tensors that pass
    by a step are not visited again. A chain along time, whose steps lie inside calls, has no such states. Calls are recognized
    by their number. After all calls of the captured run, counting begins anew: for the next run, and for checkpointed modules
    that the backward pass calls again.

    Args:
        capture: An earlier run.
        chain: Its chain.
        visit: The function. It must not keep the tensors of the graph.
    """
    if chain.along != "depth":
        yield
        return
    numbers = {(id(step.module), step.index): number for number, step in enumerate(chain.steps, 1)}
    total = Counter(id(call.module) for call in capture.calls if not call.inner)
    count = Counter[int]()

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_first = numbers.get((id(module), count[id(module)])) == 1
        return _replaced((args, kwargs), 0, visit) if is_first else None

    def returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        number = numbers.get((id(module), count[id(module)]))
        count[id(module)] = (count[id(module)] + 1) % total[id(module)]
        return None if number is None else _replaced(output, number, visit)

    modules = {id(step.module): step.module for step in chain.steps}.values()
    handles = [chain.steps[0].module.register_forward_pre_hook(entered, with_kwargs=True)]
    handles += [module.register_forward_hook(returned) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replaced(tree: Any, index: int, visit: Visit) -> Any:
    """Return the tree with the tensors that the function returned; None if it returned none."""
    found = {id(tensor): tensor for tensor in tensors_in(tree) if carries_gradient(tensor)}
    # Function modes must not see what the function computes.
    with without_torch_functions():
        visited = {key: visit(index, position, tensor) for position, (key, tensor) in enumerate(found.items())}
    if all(tensor is None for tensor in visited.values()):
        return None

    def changed(tensor: Tensor) -> Tensor:
        replacement = visited.get(id(tensor))
        return tensor if replacement is None else replacement

    return map_tensors(tree, changed)
