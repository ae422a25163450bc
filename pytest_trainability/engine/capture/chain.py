"""The chain ``x_0 → x_1 → … → x_L`` of a run: its steps, which are calls of modules, and the states between them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Size, Tensor, device, dtype, finfo
from torch.autograd.graph import Node

from ...errors import CutError, ModelError
from ..torch_internals import PARAMETRIZED, is_custom, is_nested_output, output_metadata, saved
from .gradient_hooks import MODULE_HOOK, edges_with_hooks_apart, hooked_edges
from .graph import Cut, Graph
from .operators import operator_name
from .recorder import Call, Capture, Edge

__all__ = [
    "Chain",
    "beginning",
    "call_name",
    "chain_of",
    "custom_functions",
    "dependent_nodes",
    "describe",
    "graph_of",
    "inner_eps",
    "refuse_nested",
    "results",
]

# Note [Parameters are no signal]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# A chain measures how the input propagates. An edge that depends on parameters alone, such as a learned query, a position
# embedding or a relative bias that all layers share, carries a gradient, but no signal: its influence on the output is not
# growth through depth. The first state x_0 is therefore restricted to edges that depend on the model's inputs: on its float
# inputs, which are copies with a gradient, or on rows that embeddings look up for its integer inputs. The later states follow
# from x_0, because only nodes that depend on it count (`Graph.cut`). A parameter that is an argument of a call is no signal for
# the same reason (`Recorder.begin`).
#
# There are two exceptions. A model without such edges, such as one whose first layers are frozen, is measured from the first
# step that any gradient enters. And a parameter that serves as the initial state of a recurrence is where this chain starts
# (`as_signal`).


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """L steps and the L + 1 states before, between and after them."""

    steps: tuple[Call, ...]
    names: tuple[str, ...]
    """Name of each step: its module's path, with the number of the call if there are several."""
    cut: Cut
    left_out: tuple[Call, ...] = ()
    """Calls that were chosen as steps but that the signal does not pass through."""
    hooked: frozenset[Edge] = frozenset()
    """Edges of states before the last with gradient hooks that change the gradient. See Note [Gradient hooks count once]."""
    custom: tuple[Node, ...] = ()
    """Nodes of custom autograd functions that the signal passes."""
    inner_eps: tuple[float, ...] = ()
    """Coarsest machine epsilon of the tensors inside each segment, which excludes the states."""
    along: Literal["depth", "time"] = "depth"
    durations: tuple[float, ...] = ()
    """Time that each step spans; empty if steps are counted instead."""
    active: tuple[int | None, ...] = ()
    """Number of samples, counted from the first one, that each step acts on, None for all; empty if every step acts on all."""
    roles: tuple[tuple[tuple[int, int] | None, ...], ...] = ()
    """For each tensor of each state (index of the call, index of the result) in its step; None where it is unknown."""
    capture: Capture | None = None
    """The run, which keeps the nodes after the last step alive. See ``torch_internals.owner_of``."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def spans(self) -> tuple[float, ...]:
        """Time that each step spans; 1 if steps are counted."""
        return self.durations or (1.0,) * len(self)

    def shapes(self, index: int) -> list[tuple[Size, dtype]]:
        """Return shape and dtype of each tensor of state ``index``, 0 … L."""
        found = []
        for node, number in self.cut.states[index]:
            entry = output_metadata(node)[number]
            found.append((Size(entry.shape), entry.dtype))
        return found

    def order(self, index: int) -> tuple[int, ...] | None:
        """Return the position of each tensor of state ``index`` in state ``index - 1``, by its role; None if it is not unique.

        With this order, the Jacobian of the step is a square matrix from a state to the same state one step later.
        """
        earlier, later = self.shapes(index - 1), self.shapes(index)
        if len(earlier) == len(later) == 1:
            return (0,) if earlier == later else None
        if not self.roles or len(earlier) != len(later):
            return None
        before, after = self.roles[index - 1], self.roles[index]
        if len(set(before)) < len(before) or set(before) != set(after):
            return None
        found = tuple(before.index(role) for role in after)
        return found if all(earlier[i] == shape for i, shape in zip(found, later)) else None

    def epsilon(self, index: int) -> float:
        """Return the coarsest machine epsilon of segment ``index``, 1 … L: of the states at its ends and the tensors between."""
        states = (*self.shapes(index - 1), *self.shapes(index))
        return max(*(finfo(dtype).eps for _, dtype in states), *self.inner_eps[index - 1 : index])

    def devices(self, index: int) -> list[device]:
        """Return the device of each tensor of state ``index``, 0 … L."""
        return [output_metadata(node)[number].device for node, number in self.cut.states[index]]

    def operations(self, graph: Graph) -> list[tuple[str, ...]]:
        """Return for each step the names of the operators on the path of the signal, ordered by the last occurrence of each."""
        return [tuple(dict.fromkeys(reversed(names)))[::-1] for names in self.program(graph)[:-1]]

    def program(self, graph: Graph, name_of: Callable[[Node], str] = operator_name) -> list[list[str]]:
        """Return the names of all operators on the path of the signal in program order, of each step and of what follows."""
        moments = [call.end for call in self.steps]
        found: list[list[str]] = [[] for _ in (*self.steps, None)]
        for node in sorted(graph.downstream(self.cut.states[0]), key=graph.place.__getitem__):
            found[bisect_right(moments, graph.place[node])].append(name_of(node))
        return found


def graph_of(capture: Capture) -> Graph:
    """Return the autograd graph of a run.

    Raises:
        ModelError: No tensor that the model returned carries a gradient.
        CutError: The model uses re-entrant checkpointing, which hides a part of the graph.
    """
    if not capture.roots:
        raise ModelError(_without_gradient(capture))
    graph = Graph(capture.roots)
    for node in graph.nodes:
        if operator_name(node) == "CheckpointFunctionBackward":
            msg = (
                "checkpointed parts of the model must be part of the autograd graph. This model uses re-entrant checkpointing, "
                "which hides them and forbids torch.autograd.grad. Call torch.utils.checkpoint.checkpoint(..., "
                "use_reentrant=False), or for a transformers model gradient_checkpointing_enable({'use_reentrant': False})."
            )
            raise CutError(msg)
    _include_backward_hooks(capture, graph)
    return graph


def _include_backward_hooks(capture: Capture, graph: Graph) -> None:
    """Let a call end after the node that PyTorch adds to its results if its module has backward hooks.

    PyTorch adds this node after all forward hooks. A node of the same kind that the next call adds to its arguments has the same
    place, but belongs to the next call. Of nested calls that end at the same place, the outermost one has the hooks.
    """
    added = {graph.place[node]: node for node in graph.nodes if operator_name(node) == MODULE_HOOK}
    starts: set[int] = set()
    for call in reversed(capture.calls if added else ()):
        node = added.pop(call.end, None) if call.end not in starts else None
        if node is not None:
            renewed = {edge: (node, number) for number, edge in enumerate(node.next_functions)}
            call.results = tuple(renewed.get(edge, edge) for edge in call.results)  # type: ignore[arg-type]
            call.end += 1
        starts.add(call.start)


def _without_gradient(capture: Capture) -> str:
    frozen = not any(parameter.requires_grad for parameter in capture.model.parameters())
    if frozen and not capture.sources:
        return (
            "a parameter or an input must carry a gradient. All parameters of the model are frozen, and none of its inputs is a "
            "float tensor. Unfreeze a part of the model, or pass float inputs (inputs_embeds for a language model)."
        )
    return (
        "the output must carry a gradient. The model returned no float tensor that depends on its parameters or inputs in the "
        "autograd graph. Look for torch.no_grad(), .detach(), .item(), argmax or numpy on the way to the output."
    )


def chain_of(capture: Capture, graph: Graph, calls: Sequence[Call]) -> Chain:
    """Cut the graph after each of the given calls.

    Returns:
        The chain that starts with the edges that enter the first call. Calls that this signal does not pass through, such as
        those of a second tower, are left out. If there are several such groups, the largest one is the chain, the first among
        equals.

    Raises:
        CutError: No chain passes through any of the calls.
    """
    starts = [0]
    best: Chain | None = None
    reason: CutError | None = None
    for start in starts:
        try:
            chain = _from_start(capture, graph, calls, start)
        except CutError as error:
            reason = reason or error
            if start + 1 < len(calls) and len(starts) < 8:
                starts.append(start + 1)
            continue
        if best is None or len(chain) > len(best):
            best = chain
        missed = [index for index, call in enumerate(calls) if call in chain.left_out and index > start]
        if 2 * len(best) < len(calls) + 1 and missed and len(starts) < 8:
            starts.append(missed[0])
    if best is None:
        raise CutError(_cut_message(capture, calls, reason))
    return best


def _sentence(error: Exception | None) -> str:
    text = str(error or "")
    return text[:1].upper() + text[1:]


def _cut_message(capture: Capture, calls: Sequence[Call], reason: CutError | None) -> str:
    first, last = call_name(calls[0], calls), call_name(calls[-1], calls)
    what = "the loss" if capture.loss is not None else "the output"
    return (
        f"the signal must flow from step {first!r} through step {last!r} to {what}. {_sentence(reason)} "
        f"Either {what} does not depend on the input of {first!r}, or an operation on the way (torch.no_grad, .detach(), "
        "argmax, integers) stops the gradient. Choose other steps with steps=..., or repair the path."
    ).replace("  ", " ")


def _from_start(capture: Capture, graph: Graph, calls: Sequence[Call], start: int) -> Chain:
    x0, moment, source, following = beginning(capture, graph, calls, start)
    places = sorted(graph.place[node] for node in graph.downstream(x0))
    kept = [call for call in following if bisect_left(places, call.start) < bisect_left(places, call.end)]
    if not kept:
        msg = f"the signal must pass through a step. None of the {len(calls)} calls transforms the input of the first one."
        raise CutError(msg)
    moments = [moment, *(call.end for call in kept)]
    cut = graph.cut(x0, moments, results(capture, graph, kept[-1]), bypasses=False)
    left_out = tuple(call for call in calls if call not in kept)
    if left_out == (source,):
        left_out = ()
    refuse_nested(cut, [call_name(call, calls) for call in kept])
    hooked = hooked_edges(edges_with_hooks_apart(cut))
    return Chain(
        tuple(kept),
        tuple(call_name(call, calls) for call in kept),
        cut,
        left_out,
        hooked,
        custom_functions(graph, cut),
        inner_eps(graph, cut, moments[1:]),
        capture=capture,
    )


def refuse_nested(cut: Cut, steps: Sequence[str]) -> None:
    """Refuse states that are nested tensors.

    Args:
        cut: The cut along the chain.
        steps: Names of the steps.

    Raises:
        ModelError: A state is nested. Its rows differ in length, and PyTorch does not stack cotangents of it.
    """
    for state, name in zip(cut.states, ("the first step reads", *(f"step {name!r} returns" for name in steps))):
        if any(is_nested_output(node, number) for node, number in state):
            msg = (
                f"states must be dense tensors. What {name} is a nested one, whose rows differ in length. Choose steps that "
                "return dense tensors with steps=..., or give the model rows of one length."
            )
            raise ModelError(msg)


def custom_functions(graph: Graph, cut: Cut) -> tuple[Node, ...]:
    """Return the nodes of custom autograd functions that depend on the first state."""
    return tuple(node for node in graph.downstream(cut.states[0]) if is_custom(node))


def inner_eps(graph: Graph, cut: Cut, ends: Sequence[int]) -> tuple[float, ...]:
    """Return the coarsest machine epsilon of the tensors inside each segment that carry the signal.

    A norm that casts to float32 inside a float64 model, for instance, limits the precision of its segment.

    Args:
        graph: The graph of the run.
        cut: Its cut into states.
        ends: The moment at which each segment ends.
    """
    found = [0.0] * len(ends)
    for node in graph.downstream(cut.states[0]):
        index = bisect_right(ends, graph.place[node])
        if index < len(found):
            for entry in output_metadata(node):
                if entry.dtype.is_floating_point:
                    found[index] = max(found[index], finfo(entry.dtype).eps)
    return tuple(found)


def beginning(
    capture: Capture, graph: Graph, calls: Sequence[Call], start: int
) -> tuple[tuple[Edge, ...], int, Call | None, list[Call]]:
    """Find the first state ``x_0`` of a chain.

    ``x_0`` consists of the edges that enter the first call and depend on the model's inputs. If no gradient enters a call, as for
    an embedding of token ids, ``x_0`` is the output of this call. See Note [Parameters are no signal].

    Args:
        capture: The run.
        graph: Its graph.
        calls: The calls chosen as steps.
        start: Index of the first call to consider.

    Returns:
        ``x_0``, the moment right after it, the call that returned it (None if it enters a call), and the calls that follow.

    Raises:
        CutError: No gradient arrives at any of the calls.
    """
    dependent = dependent_nodes(capture, graph)
    for admitted in (dependent, graph.place.keys()):
        for index in range(start, len(calls)):
            call = calls[index]
            entering = tuple(edge for edge in call.inputs if edge[0] in admitted and edge[0] in graph.place)
            if entering:
                return entering, call.start, None, list(calls[index:])
            leaving = tuple(edge for edge in call.outputs if edge[0] in admitted and edge[0] in graph.place)
            if leaving:
                return leaving, call.end, call, list(calls[index + 1 :])
    msg = "a gradient must arrive at a step. No step receives one."
    raise CutError(msg)


def dependent_nodes(capture: Capture, graph: Graph) -> set[Node]:
    """Return the nodes that depend on the model's float inputs, or on the embeddings of its integer inputs."""
    lookups = {node for node in graph.nodes if _address_of_indices(node) in capture.indices}
    sources = {node for node, _ in capture.sources} | lookups
    return sources | graph.downstream(
        (node, number) for node in sources for number in range(len(output_metadata(node)))
    )


def _address_of_indices(node: Node) -> int | None:
    indices = saved(node, "indices") if operator_name(node).startswith("Embedding") else None
    return indices.untyped_storage().data_ptr() if isinstance(indices, Tensor) else None


def results(capture: Capture, graph: Graph, last: Call) -> tuple[Edge, ...]:
    """Return the roots of the graph that count as read after the last step: results that no node reads.

    They are the roots that the last step returned, or all roots if all were made before its end.
    """
    roots = capture.roots
    direct = tuple(edge for edge in roots if edge in last.outputs)
    read_later = any(graph.place[node] >= last.end for node, _ in roots)
    return direct if direct or read_later else roots


def call_name(call: Call, among: Iterable[Call]) -> str:
    """Return the path of a call's module, with the number of the call if the module is called more than once."""
    path = call.path or type(call.module).__name__
    repeated = call.index > 0 or any(other.module is call.module and other is not call for other in among)
    return f"{path}[{call.index}]" if repeated else path


def describe(calls: Iterable[Call]) -> str:
    """Count calls by kind, in order of appearance: ``"3 × BartEncoderLayer + 3 × BartDecoderLayer"``."""
    counts: dict[str, int] = {}
    for call in calls:
        name = call.kind.removeprefix(PARAMETRIZED)
        counts[name] = counts.get(name, 0) + 1
    return " + ".join(f"{count} × {name}" for name, count in counts.items())
