"""Sizes of the terms that parameter gradients are sums of, from backward passes that take place anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..capture.graph import Graph, freed_in_order
from ..capture.operators import CONVOLUTIONS, LAYOUTS, MOVES, TRANSPOSES, operator_name
from ..capture.recorder import Recorder, edge_of
from ..linalg.norms import norm, stored_values
from ..torch_internals import function_transforms_are_active, is_custom, is_leaf_node, leaf_of, output_metadata, saved
from .objective import Objective

__all__ = ["TermObserver", "Terms", "gradients_with_terms", "observe_terms", "sums_with_terms"]

Gradients = Mapping[str, Tensor | None]
"""Gradients by parameter name."""

# Note [Terms of a gradient]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~
# Every operation of a backward pass computes sums of terms, and leaves an error of the terms' size times the precision. Errors
# are cotangents: they are multiplied by what the cotangent is multiplied by on the rest of the way. Three rules bound the size
# of the terms behind the cotangent that arrives at an operation, from the loss on:
#
# - It is at least the norm of the cotangent itself, and at least that of the terms behind any operation that reads the result:
#   whatever an operation does, the bound does not shrink.
# - Except at a product with a number or a parameter: it multiplies error and cotangent alike, by at most its largest entry. So
#   the branches behind a LayerScale of 1e-6 have small gradients, and errors that are as small. A normalization multiplies by its
#   weight and by the inverse of the standard deviation, before it subtracts anything.
# - And except at an operation with one number as its result, such as a mean: the map from one number has no directions, so that
#   error and cotangent keep their ratio.
#
# The gradient of a weight sums products of these terms with what the weight reads, and that of a bias sums the terms
# themselves. A gradient that is a larger part of its terms than half of the digits, 1/2900 in float32, is no round-off: the
# terms inside of one operation would have to be 2900 times as large as all cotangents before it. Of other gradients nothing is
# known, unless the sum of a bias is examined in two passes: if the sum of its terms is as small as the rounding of the terms
# themselves, both for the loss and for a random cotangent, the signal does not depend on the bias. The loss alone would not do,
# because its cotangent may sum to zero by the choice of the data, as that of standardized targets does.
#
# The random cotangent is that of the first exponent. At the last state it is random itself, whatever follows there: to a bias
# before the normalization of a head, it shows nothing. Where samples interact, as in a batch normalization, biases in the last
# segment and behind it are therefore observed in a pass from the output back to the state before the last one.


@dataclass(frozen=True, slots=True)
class Terms:
    """A parameter's gradient in comparison with the terms that it is the sum of."""

    share: float
    """Norm of the gradient relative to the bound on that of its terms; NaN if it is unknown."""
    sums: tuple[float, ...]
    """Norms of the sums of a bias relative to those of their terms: for the loss, and the largest for random cotangents."""
    eps: float
    """Coarsest relative precision of the whole graph."""


_TERMS = {
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm", "Addmv"), (0,)),
    **dict.fromkeys(("Linear", "MkldnnLinear", "NativeLayerNorm"), (2,)),
    **dict.fromkeys(("Add", "Sub"), (0, 1)),
}
"""Operators that add an operand to the entries of the result, and the positions of such operands."""
_CHANNEL_TERMS = {
    **dict.fromkeys(CONVOLUTIONS, (2,)),
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm"), (2,)),
}
"""Operators that add one entry of an operand to each channel, which is the second dimension of the result."""
_GAINS = {
    **dict.fromkeys(
        ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm", "NativeLayerNorm"), (1,)
    ),
    "FusedRmsNorm": (1,),
    "Embedding": (0,),
}
"""Operators that multiply entries of mean square one by an operand, or look up its rows."""
_INPUTS = {1: "input"}
_FACTORS: dict[str, dict[int, str]] = {
    "Addmm": {1: "mat2", 2: "mat1"},
    "Baddbmm": {1: "batch2", 2: "batch1"},
    "Mm": {0: "mat2", 1: "self"},
    "Bmm": {0: "mat2", 1: "self"},
    "Mul": {0: "other", 1: "self"},
    "Linear": _INPUTS,
    "MkldnnLinear": _INPUTS,
    **dict.fromkeys(CONVOLUTIONS, _INPUTS),
}
"""Operators that multiply an operand, by its position, and the name of the factor that they multiply it with."""


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """An operation that reads a parameter."""

    node: Node
    place: int
    """Position of the operand."""
    is_sum: bool
    """Whether the gradient is the sum of the cotangent."""


def _uses(model: nn.Module, graph: Graph, consumers: Mapping[Node, list[tuple[Node, int]]]) -> dict[str, list[_Use]]:
    """Return the operations that read each parameter, behind those that move its entries."""
    leaves = {id(leaf): node for node in graph.nodes if (leaf := leaf_of(node)) is not None}
    return {
        name: list(_reached(leaves[id(parameter)], consumers))
        for name, parameter in model.named_parameters()
        if id(parameter) in leaves and parameter.numel()
    }


def _reached(leaf: Node, consumers: Mapping[Node, list[tuple[Node, int]]]) -> Iterator[_Use]:
    pending, seen = [(leaf, True)], {leaf}
    while pending:
        reader, is_whole = pending.pop()
        for node, place in consumers.get(reader, ()):
            operator = operator_name(node)
            if operator not in MOVES:
                is_sum = place in _TERMS.get(operator, ()) or place in _CHANNEL_TERMS.get(operator, ())
                yield _Use(node, place, is_whole and is_sum)
            elif node not in seen:
                seen.add(node)
                pending.append((node, is_whole and operator in LAYOUTS | TRANSPOSES))


def _weight(use: _Use, parameter: Tensor) -> float:
    """Return the root mean square of the vectors that the cotangent is multiplied with; NaN if it is unknown."""
    operator = operator_name(use.node)
    if any(use.place in table.get(operator, ()) for table in (_TERMS, _CHANNEL_TERMS, _GAINS)):
        return 1.0
    name = _FACTORS.get(operator, {}).get(use.place)
    factor = None if name is None else _saved_tensor(use.node, name)
    if factor is None or not factor.is_floating_point():
        return math.nan
    entries = 1 if operator == "Mul" else parameter[0].numel() if operator in CONVOLUTIONS else factor.shape[-1]
    return float(_norm(factor)) * math.sqrt(entries / max(1, factor.numel()))


def _without_round_off(
    weighted: Mapping[str, list[tuple[_Use, float]]], eps: float
) -> dict[str, list[tuple[_Use, float]]]:
    """Return uses of parameters, unknown where what they are multiplied with is so small that it may be round-off itself.

    A feature that is zero by algebra, such as the mean over what an instance normalization returns, has the size of its terms
    times the precision. So have the gradients of the weights that read it.
    """
    least = math.sqrt(eps) * max(
        [1.0, *(weight for uses in weighted.values() for _, weight in uses if weight == weight)]
    )
    return {
        name: [(use, weight if weight >= least else math.nan) for use, weight in uses]
        for name, uses in weighted.items()
    }


def _saved_tensor(node: Node, name: str) -> Tensor | None:
    try:
        found = saved(node, name)
    except RuntimeError:
        # It has been overwritten.
        return None
    return found if isinstance(found, Tensor) else None


def _largest_factor(node: Node, place: int) -> float:
    """Return the largest entry of what a product or a normalization multiplies a cotangent by, at most 1; 1 if unknown."""
    operator = operator_name(node)
    if operator == "Mul":
        return min(1.0, _largest(_saved_tensor(node, "self" if place else "other")))
    weight, scale = _saved_tensor(node, "weight"), _saved_tensor(node, "result2")
    if operator not in _GAINS or place != 0 or weight is None or scale is None:
        return 1.0
    is_by_channel = weight.shape == scale.shape
    return min(1.0, _largest(weight * scale) if is_by_channel else _largest(weight) * _largest(scale))


def _largest(factor: Tensor | None) -> float:
    """Return the largest entry; 1 for what is too long to be looked at, for no tensor, and if it is not finite."""
    if factor is None or not 0 < factor.numel() <= (math.inf if isinstance(factor, nn.Parameter) else SHORT):
        return 1.0
    values = stored_values(factor.detach())
    largest = float((values.abs() if values.is_complex() else values.double().abs()).max())
    return largest if math.isfinite(largest) else 1.0


SHORT = 2**16
"""Largest number of entries of a factor that is looked at, unless it is a parameter."""


def _coarsest(nodes: Iterable[Node]) -> float:
    """Return the coarsest relative precision of the results of operations."""
    types = {entry.dtype for node in nodes for entry in output_metadata(node)}
    return max((torch.finfo(t).eps for t in types if t.is_floating_point or t.is_complex), default=0.0)


class TermObserver:
    """Observes the backward passes of the first seed."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    @contextmanager
    def random_cotangents(
        self, model: nn.Module, graph: Graph, *, since: float = -math.inf, until: float = math.inf
    ) -> Iterator[None]:
        """Observe the sums of biases in backward passes of random cotangents.

        Args:
            model: The model.
            graph: Its graph.
            since: Place in program order from which operations are observed; by default all of them.
            until: Place from which they are observed no more.
        """
        handles = []
        for name, uses in _uses(model, graph, graph.consumers()).items():
            if len(uses) == 1 and uses[0].is_sum and since <= graph.place[uses[0].node] < until:
                found = self._sums.setdefault(name, [])
                handles.append(uses[0].node.register_prehook(partial(_compare_sum, uses[0], found)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forget_random_cotangents(self) -> None:
        """Forget the backward passes of random cotangents that were observed."""
        self._sums.clear()

    @contextmanager
    def loss_gradient(self, model: nn.Module, graph: Graph) -> Iterator[Callable[[Gradients], dict[str, Terms]]]:
        """Observe the backward pass of the loss.

        Yields:
            A function of the gradients by parameter name, to be called after the pass, that returns the terms of those
            parameters of which they are known.
        """
        if any(is_custom(node) for node in graph.nodes):
            # What happens inside of a custom function is not known.
            yield lambda gradients: {}
            return
        consumers, parameters = graph.consumers(), dict(model.named_parameters())
        weighted = {
            name: [(use, _weight(use, parameters[name])) for use in uses]
            for name, uses in _uses(model, graph, consumers).items()
        }
        weighted = _without_round_off(weighted, _coarsest(graph.nodes))
        numbers = [node for node in graph.nodes if _is_number(node)]
        behind = {producer for node in numbers for producer, _ in graph.reads[node]}
        observed = [n for n in graph.nodes if not is_leaf_node(n) and (n in behind or operator_name(n) not in MOVES)]
        gains = {(node, place): _largest_factor(node, place) for node in observed for place in (0, 1)}
        eps, sizes = _coarsest(graph.nodes), dict[Node, list[Tensor]]()
        handles = [node.register_prehook(partial(_note_size, sizes.setdefault(node, []))) for node in observed]

        def terms(gradients: Gradients) -> dict[str, Terms]:
            norms = {node: math.sqrt(sum(float(size) ** 2 for size in found)) for node, found in sizes.items()}
            bounds = _bounds(graph, norms, gains | _of_numbers(numbers, consumers, norms))
            return {
                name: self._terms(name, float(_norm(gradient)), weighted[name], norms, bounds, eps)
                for name, gradient in gradients.items()
                if gradient is not None and weighted.get(name)
            }

        try:
            yield terms
        finally:
            for handle in handles:
                handle.remove()

    def _terms(
        self,
        name: str,
        size: float,
        weighted: list[tuple[_Use, float]],
        norms: Mapping[Node, float],
        bounds: Mapping[Node, float],
        eps: float,
    ) -> Terms:
        bound = max((weight * bounds.get(use.node, math.nan) for use, weight in weighted), key=_nan_last)
        random, arriving = self._sums.get(name), norms.get(weighted[0][0].node, 0.0)
        sums = (size / arriving, max(random)) if random and arriving > 0 else ()
        return Terms(size / bound if bound > 0 else math.nan, sums, eps)


def _nan_last(number: float) -> tuple[bool, float]:
    return math.isnan(number), number


def _is_number(node: Node) -> bool:
    try:
        return [math.prod(entry.shape) for entry in output_metadata(node)] == [1]
    except RuntimeError:
        # A nested tensor has no shape.
        return False


def _compare_sum(use: _Use, found: list[float], arriving: tuple[Tensor | None, ...]) -> None:
    """Note the norm of the sum of a cotangent, relative to that of its terms."""
    cotangent = arriving[0]
    if cotangent is None or function_transforms_are_active():
        return
    size = float(_norm(cotangent))
    if size > 0:
        found.append(float(norm(_summed(use, cotangent))) / size if math.isfinite(size) else math.inf)


def _summed(use: _Use, cotangent: Tensor) -> Tensor:
    if use.place in _CHANNEL_TERMS.get(operator_name(use.node), ()):
        return cotangent.sum([dim for dim in range(cotangent.dim()) if dim != 1])
    producer, number = use.node.next_functions[use.place]
    assert producer is not None, "a parameter is read here"
    return cotangent.sum_to_size(tuple(output_metadata(producer)[number].shape))


def gradients_with_terms(objective: Objective, loss: Tensor) -> tuple[dict[str, Tensor | None], dict[str, Terms]]:
    """Differentiate the loss with respect to every trainable parameter, and compare the gradients with their terms.

    Args:
        objective: The loss as a function of the parameters.
        loss: Value of an evaluation, with its graph.

    Returns:
        Gradients by parameter name, None for one that the loss does not depend on; and the terms of those that are known.
    """
    with freed_in_order() as nodes:
        return _observed_gradients(objective, loss, nodes)


def _observed_gradients(
    objective: Objective, loss: Tensor, nodes: list[Node]
) -> tuple[dict[str, Tensor | None], dict[str, Terms]]:
    graph = Graph([edge_of(loss)])
    nodes.extend(graph.nodes)
    with TermObserver().loss_gradient(objective.model, graph) as terms:
        found = objective.gradients(loss)
    return found, terms(found)


def sums_with_terms(model: nn.Module, evaluate: Callable[[], Tensor], names: Collection[str]) -> set[str]:
    """Return the parameters whose gradient is the sum of a cotangent, in some use of them, that is not zero.

    Args:
        model: The model.
        evaluate: Function that runs it and returns the loss with its graph.
        names: Names of the parameters in question.
    """
    found: set[str] = set()
    with freed_in_order() as nodes:
        _note_sums(model, evaluate(), names, found, nodes)
    return found


def _note_sums(model: nn.Module, loss: Tensor, names: Collection[str], found: set[str], nodes: list[Node]) -> None:
    graph = Graph([edge_of(loss)])
    nodes.extend(graph.nodes)
    uses = _uses(model, graph, graph.consumers())
    handles = [
        use.node.register_prehook(partial(_note_terms, name, found))
        for name in names
        for use in uses.get(name, ())
        if use.is_sum
    ]
    try:
        if handles:
            torch.autograd.grad(loss, [model.get_parameter(name) for name in names], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()


def _note_terms(name: str, found: set[str], arriving: tuple[Tensor | None, ...]) -> None:
    cotangent = arriving[0]
    if cotangent is not None and not function_transforms_are_active() and bool((cotangent != 0).any()):
        found.add(name)


def _note_size(found: list[Tensor], arriving: tuple[Tensor | None, ...]) -> None:
    found += [_norm(cotangent) for cotangent in arriving if cotangent is not None]


def _norm(cotangent: Tensor) -> Tensor:
    """Return the norm of a cotangent; infinity if PyTorch cannot compute it for a tensor of this kind."""
    try:
        return norm(cotangent)
    except (RuntimeError, TypeError):
        return torch.tensor(math.inf, dtype=torch.float64, device="cpu")


def _of_numbers(
    numbers: Iterable[Node], consumers: Mapping[Node, list[tuple[Node, int]]], norms: Mapping[Node, float]
) -> dict[tuple[Node, int], float]:
    """Return the gain of operations with one number as their result, whose cotangent is all that arrives at its operand."""
    found = {}
    for node in numbers:
        for place, (producer, _) in enumerate(node.next_functions):
            if producer is not None and producer in norms and norms.get(node) and len(consumers[producer]) == 1:
                gain = norms[producer] / norms[node]
                found[node, place] = gain if math.isfinite(gain) else 1.0
    return found


def _bounds(graph: Graph, norms: Mapping[Node, float], gains: Mapping[tuple[Node, int], float]) -> dict[Node, float]:
    """Return the bound on the terms behind the cotangent that arrives at each operation. See Note [Terms of a gradient].

    Args:
        graph: The graph.
        norms: Norms of the cotangents that arrive at operations.
        gains: What error and cotangent are multiplied by alike, by operation and position of the operand; 1 where it is missing.
    """
    bounds: dict[Node, float] = {}
    for node in reversed(list(graph.nodes)):
        bounds[node] = max(bounds.get(node, 0.0), norms.get(node, 0.0))
        for place, (producer, _) in enumerate(node.next_functions):
            if producer is not None:
                bounds[producer] = max(bounds.get(producer, 0.0), bounds[node] * gains.get((node, place), 1.0))
    return bounds


@contextmanager
def observe_terms(recorder: Recorder) -> Iterator[TermObserver]:
    """Yield an observer of the backward passes that follow the forward pass: an instrument."""
    yield TermObserver()
