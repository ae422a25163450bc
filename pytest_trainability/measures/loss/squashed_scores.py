"""Scores that an activation has bounded before a loss that expects scores of any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor
from torch.autograd.graph import Node

from ...engine.capture.gradient_hooks import MODULE_HOOK
from ...engine.capture.graph import Graph
from ...engine.capture.operators import MOVES, PRODUCTS, operator_name
from ...engine.capture.recorder import Capture
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import output_metadata, saved, saved_axis
from ...records.causes import CauseRecord
from ..measure import declare

__all__ = ["squashed_scores"]

_READERS = {
    "LogSoftmax": "cross_entropy",
    "BinaryCrossEntropyWithLogits": "binary_cross_entropy_with_logits",
    "Logsumexp": "logsumexp",
}
"""Operators that turn scores into logarithms of probabilities, and the loss that they belong to. Scores from which their
``logsumexp`` is subtracted are those of a categorical distribution."""
_LIKELIHOODS = {"NllLoss", "NllLoss2D"}
"""Operators that read logarithms of probabilities, with the classes in dimension 1 (in 0 for a single sample)."""
_RANGES = {
    **dict.fromkeys(("Softmax", "Sigmoid", "Hardsigmoid"), "from 0 to 1"),
    "Tanh": "from -1 to 1",
    "Relu": "of at least 0",
}
"""Activations that bound what they return, and the bounds."""
_CLAMPS = {"Hardtanh": ("min_val", "max_val"), "Clamp": ("min", "max"), "ClampMin": ("min", "max")}
"""Activations whose bounds are arguments, and the names of these."""
_NARROW = 2.0
"""Largest distance of the bounds of a clamp that leaves scores no room: that of a tanh."""
_DROPOUTS = {"NativeDropout", "FusedDropout"}
_ALWAYS = {"Softmax", "Sigmoid", "Hardsigmoid"}
"""Activations that are wrong in front of any softmax. Others may be features of a distillation, unless a class is scored."""
_PASSED = (MOVES - {"Cat", "Stack"}) | {MODULE_HOOK, "Index", "IndexSelect", "MaskedSelect"}
"""Operators that hand on entries as they are."""
_LARGEST_LOGARITHM = 1e-2
"""Largest logarithm of a probability, up to round-off. Log-probabilities in bfloat16 have an error of 2^-8."""


def _squashed(run: Run) -> dict[str, CauseRecord]:
    """Return the lines of :func:`squashed_scores`, each with its explanation."""
    return (
        {}
        if run.capture.loss is None
        else {**dict(_found(run.capture, run.graph)), **dict(_of_divergences(run.capture, run.graph))}
    )


def _found(capture: Capture, graph: Graph) -> Iterator[tuple[str, CauseRecord]]:
    readers = _score_readers(capture, graph)
    likelihoods = {node for node in readers if operator_name(node) not in {"LogSoftmax", "Logsumexp"}} | _of_classes(
        graph
    )
    for reader in readers:
        source = _source(reader)
        if source is None:
            continue
        name, place = operator_name(source), capture.place_of(graph.place[source])
        if operator_name(reader) in _LIKELIHOODS:
            if name == "LogSoftmax":
                text = (
                    f"nll_loss expects the classes in dimension {_class_axis(reader)}, counted from the last one: log_softmax is "
                    f"over dimension {saved_axis(source)}"
                )
                cause = CauseRecord(text, is_first=True)
                yield f"{place}: log_softmax over dimension {saved_axis(source)} before nll_loss", cause
            elif _reads_no_logarithms(reader):
                text = (
                    "nll_loss expects logarithms of probabilities, whose exponentials sum to 1: apply log_softmax first"
                )
                yield f"{place}: no log_softmax before nll_loss", CauseRecord(text, is_first=True)
        elif (range_ := _range_of(source)) and (name in _ALWAYS or reader in likelihoods):
            loss = _READERS[operator_name(reader)]
            own = "sigmoid" if "binary" in loss else "softmax"
            subject = "a categorical distribution of logits" if loss == "logsumexp" else loss
            text = f"{subject} applies a {own} to scores of any size, and reads numbers {range_}: remove the {name.lower()}"
            cause = CauseRecord(text, is_first=True)
            yield f"{place}: {name.lower()} before {loss}", _with_call(cause, capture, graph, source)


def _with_call(cause: CauseRecord, capture: Capture, graph: Graph, node: Node) -> CauseRecord:
    """Return a cause with the call that created a node, if it is in the code of a module that runs once.

    What a loss function calls, and a module that runs again where its result is meant, cannot be left out.
    """
    call, name = capture.call_at(graph.place[node]), operator_name(node)
    if call is None or sum(other.module is call.module and not other.inner for other in capture.calls) > 1:
        return cause
    alike = sorted(place for other, place in graph.place.items() if operator_name(other) == name)
    of_module = [place for place in alike if capture.call_at(place) is call]
    index = of_module.index(graph.place[node])
    return replace(cause, function=name.lower(), callers=(call.path,), calls=(index,))


def _range_of(node: Node) -> str:
    """Return the bounds of what an activation returns in words; empty if it leaves room on both sides."""
    name = operator_name(node)
    if name not in _CLAMPS:
        return _RANGES.get(name, "")
    low, high = (saved(node, end) for end in _CLAMPS[name])
    low, high = (end if isinstance(end, (int, float)) else None for end in (low, high))
    if low is not None and high is not None and high - low <= _NARROW:
        return f"from {low:g} to {high:g}"
    return "of at least 0" if low == 0 else ""


def _of_divergences(capture: Capture, graph: Graph) -> Iterator[tuple[str, CauseRecord]]:
    """Yield the probabilities that a Kullback-Leibler divergence reads as logarithms."""
    for node in sorted(graph.nodes, key=graph.place.__getitem__):
        source = _read_by_divergence(node) if operator_name(node) == "Sub" else None
        if source is not None:
            text = (
                "kl_div expects logarithms of probabilities as its first argument: replace the softmax by a log_softmax"
            )
            yield f"{capture.place_of(graph.place[source])}: softmax before kl_div", CauseRecord(text, is_first=True)


def _read_by_divergence(node: Node) -> Node | None:
    """Return the softmax ``x`` of ``xlogy(t, t) - t x``, as PyTorch computes ``kl_div(x, t)``; None if it is something else.

    The targets ``t`` are probabilities without a gradient, and so is the first operand.
    """
    if len(node.next_functions) != 2 or node.next_functions[0][0] is not None:
        return None
    product = node.next_functions[1][0]
    if product is None or operator_name(product) != "Mul":
        return None
    source = _past_moves(next((producer for producer, _ in product.next_functions if producer is not None), None))
    try:
        targets = saved(product, "self")
    except RuntimeError:
        return None
    is_divergence = isinstance(targets, Tensor) and targets.dim() > 0 and _are_probabilities(targets)
    return source if is_divergence and source is not None and operator_name(source) == "Softmax" else None


def _are_probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all() and ((rows.double().sum(-1) - 1).abs() < _LARGEST_LOGARITHM).all())


def _score_readers(capture: Capture, graph: Graph) -> list[Node]:
    """Return the nodes that read scores, or logarithms of probabilities, behind all products with weights, in program order."""
    pending = [node for node, _ in capture.roots]
    seen, found = set(pending), []
    while pending:
        node = pending.pop()
        name = operator_name(node)
        if name == "Sub" and (normalizer := _normalizer(node)) is not None:
            found.append(normalizer)
        elif (name in _READERS and name != "Logsumexp") or (name in _LIKELIHOODS and not _reads_log_softmax(node)):
            found.append(node)
        elif name not in PRODUCTS:
            further = {producer for producer, _ in graph.reads[node]} - seen
            seen |= further
            pending.extend(further)
    return sorted(found, key=graph.place.__getitem__)


def _of_classes(graph: Graph) -> set[Node]:
    """Return the log-softmaxes of which a likelihood takes the entry of a class."""
    takers = [node for node in graph.nodes if operator_name(node) in _LIKELIHOODS | {"Gather"}]
    return {
        source for node in takers if (source := _source(node)) is not None and operator_name(source) == "LogSoftmax"
    }


def _normalizer(node: Node) -> Node | None:
    """Return the ``logsumexp`` of scores that a node subtracts from the same scores; None if it does something else."""
    (scores, subtracted) = node.next_functions if len(node.next_functions) == 2 else ((None, 0), (None, 0))
    found = _past_moves(subtracted[0])
    is_normalizer = found is not None and operator_name(found) == "Logsumexp" and found.next_functions[0] == scores
    return found if is_normalizer else None


def _reads_log_softmax(node: Node) -> bool:
    """Return whether a likelihood reads a log-softmax over its classes."""
    source = _source(node)
    return source is not None and operator_name(source) == "LogSoftmax" and not _is_over_another_axis(node, source)


def _class_axis(reader: Node) -> int:
    """Return the dimension in which a likelihood expects the classes, counted from the last one."""
    dimensions = _rows_read(reader).dim()
    return min(dimensions, 2) - 1 - dimensions


def _is_over_another_axis(reader: Node, log_softmax: Node) -> bool:
    """Return whether a log-softmax is over another dimension than the classes. Behind moves, its exponentials show it."""
    try:
        if reader.next_functions[0][0] is log_softmax:
            return saved_axis(log_softmax) not in {None, _class_axis(reader)}
        sums = _rows_read(reader).detach().double().exp().sum(_class_axis(reader))
    except RuntimeError:
        return False
    return 2 * int(((sums - 1).abs() > _LARGEST_LOGARITHM).sum()) > sums.numel()


def _rows_read(reader: Node) -> Tensor:
    rows: Tensor = saved(reader, "self")
    return rows


def _source(node: Node) -> Node | None:
    """Return the node that computes what a node reads first, past those that only move or drop entries; None for a leaf."""
    return _past_moves(node.next_functions[0][0] if node.next_functions else None)


def _past_moves(node: Node | None) -> Node | None:
    while node is not None and node.next_functions and (operator_name(node) in _PASSED or _is_dropout(node)):
        node = next((producer for producer, _ in node.next_functions if producer is not None), None)
    return node


def _is_dropout(node: Node) -> bool:
    """Return whether a node drops entries, and multiplies the others by one number: on the processor, dropout is a product."""
    name = operator_name(node)
    if name != "Mul":
        return name in _DROPOUTS
    if sum(producer is not None for producer, _ in node.next_functions) != 1:
        return False
    try:
        mask = next((m for m in (saved(node, "other"), saved(node, "self")) if isinstance(m, Tensor)), None)
    except RuntimeError:
        return False
    if mask is None or mask.numel() < 2 or mask.numel() != math.prod(output_metadata(node)[0].shape):
        return False
    return bool(((mask == 0) | (mask == mask.max())).all()) and bool(mask.max() > 0)


def _reads_no_logarithms(reader: Node) -> bool:
    """Return whether most rows that a likelihood reads are raw scores, of both signs, or probabilities, which sum to 1.

    Other rows may be meant: a focal loss, weights and priors leave logarithms negative, and need not keep them normalized.
    """
    try:
        rows = saved(reader, "self")
    except RuntimeError:
        return False
    return rows is not None and _are_no_logarithms(rows.movedim(min(rows.dim(), 2) - 1, -1))


def _are_no_logarithms(rows: Tensor) -> bool:
    """Return whether most rows, along the last dimension, are scores of both signs, or probabilities."""
    if not rows.numel():
        return False
    rows = rows.detach().double().reshape(-1, rows.shape[-1])
    is_positive = rows > _LARGEST_LOGARITHM
    are_scores = is_positive.any(-1) & (rows < 0).any(-1)
    are_probabilities = (rows >= 0).all(-1) & ((rows.sum(-1) - 1).abs() < _LARGEST_LOGARITHM) & (rows < 1).all(-1)
    return 2 * int((are_scores | are_probabilities).sum()) > len(rows)


def _merged(causes: Iterable[CauseRecord]) -> Iterator[CauseRecord]:
    """Yield one cause for each explanation, with the calls of all lines that it explains."""
    by_text: dict[str, list[CauseRecord]] = {}
    for cause in causes:
        by_text.setdefault(cause.text, []).append(cause)
    for alike in by_text.values():
        function = next((cause.function for cause in alike if cause.function), "")
        callers = tuple(name for cause in alike for name in cause.callers)
        yield replace(
            alike[0],
            function=function,
            callers=callers,
            calls=tuple(index for cause in alike for index in cause.calls),
        )


SQUASHED_SCORES: Need[dict[str, CauseRecord]] = Need("squashed scores", _squashed)
"""The lines of :func:`squashed_scores`, each with its explanation."""
SQUASHED_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of squashed scores",
    lambda run: tuple(_merged(run[SQUASHED_SCORES].values())),
    requires=(SQUASHED_SCORES,),
)
"""What the loss expects."""


@declare("names", needs=[SQUASHED_SCORES], explained_by=SQUASHED_CAUSES)
def squashed_scores(run: Run) -> list[str]:
    """Return the activations whose result a classification loss reads as scores, or as logarithms of probabilities.

    A cross-entropy applies a softmax to its scores, and a binary cross-entropy with logits a sigmoid. If the model has applied
    one already, its probabilities are taken for scores: they differ by at most 1, so that the loss of C classes cannot fall
    below ``ln(1 + (C − 1)/e)``, and the gradient passes two saturated functions. A tanh bounds the scores likewise, and a ReLU
    passes no gradient to those that are 0. ``nll_loss`` reads logarithms of probabilities, which are not positive: raw scores
    and probabilities are listed, and a log-softmax over another dimension than the classes. So are probabilities in ``kl_div``.

    It misleads if the activation is meant, such as a tanh that clips the scores of a pointer network without a factor.

    Returns:
        Lines such as ``"3 (Softmax): softmax before cross_entropy"``, in program order. Empty for other losses, and without one.

    Source: Bridle, Neurocomputing, NATO ASI F 68, 227 (1990), for the softmax as a part of the loss.
    """
    return [*run[SQUASHED_SCORES]]
