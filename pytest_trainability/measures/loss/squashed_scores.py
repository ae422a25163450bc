"""Scores that an activation has bounded before a loss that expects scores of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch.autograd.graph import Node

from ...engine.capture.gradient_hooks import MODULE_HOOK
from ...engine.capture.graph import Graph
from ...engine.capture.operators import MOVES, PRODUCTS, operator_name
from ...engine.capture.recorder import Capture
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import saved
from ...records.causes import CauseRecord
from ..measure import declare

__all__ = ["squashed_scores"]

_READERS = {"LogSoftmax": "cross_entropy", "BinaryCrossEntropyWithLogits": "binary_cross_entropy_with_logits"}
"""Operators that turn scores into logarithms of probabilities, and the loss that they belong to."""
_LIKELIHOODS = {"NllLoss", "NllLoss2D"}
"""Operators that read logarithms of probabilities, with the classes in dimension 1 (in 0 for a single sample)."""
_RANGES = {"Softmax": "from 0 to 1", "Sigmoid": "from 0 to 1", "Tanh": "from -1 to 1", "Relu": "of at least 0"}
"""Activations that bound what they return, and the bounds."""
_ALWAYS = {"Softmax", "Sigmoid"}
"""Activations that are wrong in front of any softmax. Others may be features of a distillation, unless a class is scored."""
_PASSED = (MOVES - {"Cat", "Stack"}) | {MODULE_HOOK, "Index", "IndexSelect", "MaskedSelect"}
"""Operators that hand on entries as they are."""
_LARGEST_LOGARITHM = 1e-2
"""Largest logarithm of a probability, up to round-off. Log-probabilities in bfloat16 have an error of 2^-8."""


def _squashed(run: Run) -> dict[str, CauseRecord]:
    """Return the lines of :func:`squashed_scores`, each with its explanation."""
    return {} if run.capture.loss is None else dict(_found(run.capture, run.graph))


def _found(capture: Capture, graph: Graph) -> Iterator[tuple[str, CauseRecord]]:
    readers = _score_readers(capture, graph)
    likelihoods = {node for node in readers if operator_name(node) != "LogSoftmax"} | _of_classes(graph)
    for reader in readers:
        source = _source(reader)
        if source is None:
            continue
        name, place = operator_name(source), capture.place_of(graph.place[source])
        if operator_name(reader) in _LIKELIHOODS:
            if _reads_no_logarithms(reader):
                text = (
                    "nll_loss expects logarithms of probabilities, whose exponentials sum to 1: apply log_softmax first"
                )
                yield f"{place}: no log_softmax before nll_loss", CauseRecord(text, is_first=True)
        elif name in _ALWAYS or (name in _RANGES and reader in likelihoods):
            loss = _READERS[operator_name(reader)]
            own = "sigmoid" if "binary" in loss else "softmax"
            text = f"{loss} applies a {own} to scores of any size, and reads numbers {_RANGES[name]}: remove the {name.lower()}"
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


def _score_readers(capture: Capture, graph: Graph) -> list[Node]:
    """Return the nodes that read scores, or logarithms of probabilities, behind all products with weights, in program order."""
    pending = [node for node, _ in capture.roots]
    seen, found = set(pending), []
    while pending:
        node = pending.pop()
        name = operator_name(node)
        if name in _READERS or (name in _LIKELIHOODS and not _reads_log_softmax(node)):
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


def _reads_log_softmax(node: Node) -> bool:
    source = _source(node)
    return source is not None and operator_name(source) == "LogSoftmax"


def _source(node: Node) -> Node | None:
    """Return the node that computes what a node reads first, past those that only move entries; None for a leaf."""
    producer = node.next_functions[0][0] if node.next_functions else None
    while producer is not None and operator_name(producer) in _PASSED and producer.next_functions:
        producer = producer.next_functions[0][0]
    return producer


def _reads_no_logarithms(reader: Node) -> bool:
    """Return whether most rows that a likelihood reads are raw scores, of both signs, or probabilities, which sum to 1.

    Other rows may be meant: a focal loss, weights and priors leave logarithms negative, and need not keep them normalized.
    """
    try:
        rows = saved(reader, "self")
    except RuntimeError:
        return False
    if rows is None or not rows.numel():
        return False
    rows = rows.detach().double().movedim(min(rows.dim(), 2) - 1, -1)
    rows = rows.reshape(-1, rows.shape[-1])
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
    and probabilities are listed.

    It misleads if the activation is meant, such as a tanh that clips the scores of a pointer network without a factor.

    Returns:
        Lines such as ``"3 (Softmax): softmax before cross_entropy"``, in program order. Empty for other losses, and without one.

    Source: Bridle, Neurocomputing, NATO ASI F 68, 227 (1990), for the softmax as a part of the loss.
    """
    return [*run[SQUASHED_SCORES]]
