"""The chain ``x_0 → x_1 → … → x_L`` of a run: which calls are its steps, and its states."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Size, Tensor, device, dtype, finfo
from torch.autograd.graph import Node

from ...errors import CutError, ModelError
from .gradient_hooks import hooked_edges
from .graph import Cut, Graph
from .recorder import Call, Capture, Edge

__all__ = ["Chain", "beginning", "call_name", "chain_of", "describe", "graph_of", "inner_eps", "results"]


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Steps and the states before, between and after them."""

    steps: tuple[Call, ...]
    names: tuple[str, ...]
    cut: Cut
    left_out: tuple[Call, ...] = ()
    """Calls that were asked for and do not lie on the chain."""
    hooked: frozenset[Edge] = frozenset()
    """Edges of inner states on which the model has set a gradient hook."""
    inner_eps: tuple[float, ...] = ()
    """The coarsest precision that each segment computes in, its states aside."""
    along: Literal["depth", "time"] = "depth"
    durations: tuple[float, ...] = ()
    """Time that each step spans; empty where steps are counted."""
    active: tuple[int | None, ...] = ()
    """How many of the first samples each step acts on, None for all; empty where all do everywhere."""
    roles: tuple[tuple[tuple[int, int] | None, ...], ...] = ()
    """Of each tensor of each state, which result of which call of its step it is; None where that is not known."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def spans(self) -> tuple[float, ...]:
        """Time that each step spans, one where steps are counted."""
        return self.durations or (1.0,) * len(self)

    def shapes(self, index: int) -> list[tuple[Size, dtype]]:
        """Return shape and type of each tensor of state ``index``, 0 … L."""
        found = []
        for node, number in self.cut.states[index]:
            entry = node._input_metadata[number]
            found.append((Size(entry.shape), entry.dtype))
        return found

    def order(self, index: int) -> tuple[int, ...] | None:
        """Return where in state ``index - 1`` each tensor of state ``index`` has its counterpart; None if that is unclear."""
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
        """Return the coarsest ``eps`` of what segment ``index`` (1 … L) computes: of a norm that casts to float32, float32's."""
        states = (*self.shapes(index - 1), *self.shapes(index))
        return max(*(finfo(dtype).eps for _, dtype in states), *self.inner_eps[index - 1 : index])

    def devices(self, index: int) -> list[device]:
        """Return where each tensor of state ``index`` is."""
        return [node._input_metadata[number].device for node, number in self.cut.states[index]]

    def operations(self, graph: Graph) -> list[tuple[str, ...]]:
        """Return for each step the names of the autograd nodes that its signal passes, in the order of the last ones of each."""
        moments = [call.end for call in self.steps]
        found: list[dict[str, None]] = [{} for _ in self.steps]
        for node in sorted(graph.downstream(self.cut.states[0]), key=graph.place.__getitem__):
            index = bisect_right(moments, graph.place[node])
            if index < len(found):
                names, name = found[index], type(node).__name__
                names.pop(name, None)
                names[name] = None
        return [tuple(names) for names in found]


def graph_of(capture: Capture) -> Graph:
    """Walk the autograd graph of a run.

    Raises:
        ModelError: Nothing that the model returned carries a gradient.
        CutError: A part of the model is checkpointed in the re-entrant way, which hides it from the graph.
    """
    if not capture.roots:
        raise ModelError(_without_gradient(capture))
    graph = Graph(capture.roots)
    for node in graph.nodes:
        if type(node).__name__ == "CheckpointFunctionBackward":
            msg = (
                "checkpointed parts of the model must be visible to autograd. This model uses re-entrant "
                "checkpointing, which hides them and forbids torch.autograd.grad. Call "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False), or for a transformers model "
                "gradient_checkpointing_enable({'use_reentrant': False})."
            )
            raise CutError(msg)
    return graph


def _without_gradient(capture: Capture) -> str:
    frozen = not any(parameter.requires_grad for parameter in capture.model.parameters())
    if frozen and not capture.sources:
        return (
            "something must carry a gradient. All parameters of the model are frozen and no float tensor was among its "
            "inputs. Unfreeze a part of it, or hand in float inputs (inputs_embeds for a language model)."
        )
    return (
        "the output must carry a gradient. The model returned no float tensor that depends on its parameters or inputs "
        "in autograd's eyes. Look for torch.no_grad(), .detach(), .item(), argmax or numpy on the way to the output."
    )


def chain_of(capture: Capture, graph: Graph, calls: Sequence[Call]) -> Chain:
    """Cut the graph after each of the given calls.

    The chain starts with what enters the first call. Calls that this signal does not pass through, such as a second
    tower's, are left out; where several groups of calls do not meet, the largest one is taken, the first among equals.

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
            reason = error
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
        f"Either {what} does not depend on what enters {first!r}, or something on the way (torch.no_grad, .detach(), "
        "argmax, integers) stops the gradient. Choose other steps with steps=..., or repair the path."
    ).replace("  ", " ")


def _from_start(capture: Capture, graph: Graph, calls: Sequence[Call], start: int) -> Chain:
    x0, moment, giver, following = beginning(capture, graph, calls, start)
    places = sorted(graph.place[node] for node in graph.downstream(x0, since=moment))
    kept = [call for call in following if bisect_left(places, call.start) < bisect_left(places, call.end)]
    if not kept:
        msg = f"the signal must pass through a step. None of the {len(calls)} calls transforms what enters the first."
        raise CutError(msg)
    cut = graph.cut(x0, [moment, *(call.end for call in kept)], results(capture, graph, kept[-1]))
    left_out = tuple(call for call in calls if call not in kept)
    if left_out == (giver,):
        left_out = ()
    hooked = hooked_edges({edge for state in cut.states[1:-1] for edge in state})
    names = tuple(call_name(call, calls) for call in kept)
    return Chain(tuple(kept), names, cut, left_out, hooked, inner_eps(graph, cut, [call.end for call in kept]))


def inner_eps(graph: Graph, cut: Cut, ends: Sequence[int]) -> tuple[float, ...]:
    """Return the coarsest ``eps`` of the tensors that carry the signal through each segment, which end at these moments."""
    found = [0.0] * len(ends)
    for node in graph.downstream(cut.states[0]):
        index = bisect_right(ends, graph.place[node])
        if index < len(found):
            for entry in node._input_metadata:
                if entry.dtype.is_floating_point:
                    found[index] = max(found[index], finfo(entry.dtype).eps)
    return tuple(found)


def beginning(
    capture: Capture, graph: Graph, calls: Sequence[Call], start: int
) -> tuple[tuple[Edge, ...], int, Call | None, list[Call]]:
    """Return ``x_0``, the moment right after it, the call that gave it out and the calls that follow.

    ``x_0`` is what enters the first call and depends on the model's inputs, float ones or token ids; what comes from
    parameters alone (learned queries, position embeddings) is no signal. Where nothing that carries a gradient enters a
    call (it takes the token ids themselves), ``x_0`` is its output.
    """
    dependent = _dependent(capture, graph)
    for admitted in (dependent, graph.place.keys()):
        for index in range(start, len(calls)):
            call = calls[index]
            entering = tuple(edge for edge in call.inputs if edge[0] in admitted and edge[0] in graph.place)
            if entering:
                return entering, call.start, None, list(calls[index:])
            leaving = tuple(edge for edge in call.outputs if edge[0] in admitted and edge[0] in graph.place)
            if leaving:
                return leaving, call.end, call, list(calls[index + 1 :])
    msg = "a gradient must arrive at a step. None arrives at any."
    raise CutError(msg)


def _dependent(capture: Capture, graph: Graph) -> set[Node]:
    """Return the nodes that depend on the model's inputs: on its float ones, or on the rows that its integer ones pick."""
    lookups = {node for node in graph.nodes if _address_of_indices(node) in capture.indices}
    sources = {node for node, _ in capture.sources} | lookups
    return sources | graph.downstream((node, number) for node in sources for number in range(len(node._input_metadata)))


def _address_of_indices(node: Node) -> int | None:
    indices = getattr(node, "_saved_indices", None) if type(node).__name__.startswith("Embedding") else None
    return indices.untyped_storage().data_ptr() if isinstance(indices, Tensor) else None


def results(capture: Capture, graph: Graph, last: Call) -> tuple[Edge, ...]:
    """Edges that the model returns right from the last step, or at least from before its end."""
    roots = capture.roots
    direct = tuple(edge for edge in roots if edge in last.outputs)
    read_later = any(graph.place[node] >= last.end for node, _ in roots)
    return direct if direct or read_later else roots


def call_name(call: Call, among: Iterable[Call]) -> str:
    """Return the module's path, with the number of the call where the module is called more than once."""
    path = call.path or type(call.module).__name__
    repeated = call.index > 0 or any(other.module is call.module and other is not call for other in among)
    return f"{path}[{call.index}]" if repeated else path


def describe(calls: Iterable[Call]) -> str:
    """Return ``"3 × BartEncoderLayer + 3 × BartDecoderLayer"``: calls counted by class, in order of appearance."""
    counts: dict[str, int] = {}
    for call in calls:
        name = call.kind
        if name.startswith("Parametrized"):
            name = name.removeprefix("Parametrized")
        counts[name] = counts.get(name, 0) + 1
    return " + ".join(f"{count} × {name}" for name, count in counts.items())
