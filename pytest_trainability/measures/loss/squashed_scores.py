"""Scores that an activation has bounded before a loss that expects scores of any size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.autograd.graph import Node

from ...engine.capture.gradient_hooks import MODULE_HOOK
from ...engine.capture.graph import Graph
from ...engine.capture.operators import MOVES, PRODUCTS, operator_name
from ...engine.capture.recorder import Capture
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import saved
from ..measure import declare

__all__ = ["squashed_scores"]

_READERS = {
    "LogSoftmax": "cross-entropy",
    "BinaryCrossEntropyWithLogits": "binary cross-entropy with logits",
}
"""Operators that turn scores into logarithms of probabilities, and the loss that they belong to."""
_LIKELIHOODS = {"NllLoss", "NllLoss2D"}
"""Operators that read logarithms of probabilities, with the classes in dimension 1 (in 0 for a single sample)."""
_SQUASHING = {
    "Softmax": "a softmax returns, numbers from 0 to 1",
    "Sigmoid": "a sigmoid returns, numbers from 0 to 1",
    "Tanh": "a tanh returns, numbers from -1 to 1",
    "Relu": "a relu returns, which passes no gradient where it is 0",
}
_PASSED = MOVES | {MODULE_HOOK, "Index", "IndexSelect", "MaskedSelect"}
"""Operators that hand on entries as they are."""
_ROUND_OFF = 1e-2
"""Largest distance of a sum of probabilities from 1, as a logarithm. Log-probabilities in bfloat16 have an error of 2^-8."""


def _squashed(run: Run) -> tuple[str, ...]:
    return () if run.capture.loss is None else tuple(dict.fromkeys(_lines(run.capture, run.graph)))


def _lines(capture: Capture, graph: Graph) -> Iterator[str]:
    for reader in _score_readers(capture, graph):
        source = _source(reader)
        if source is None:
            continue
        name, place = operator_name(source), _place(capture, graph, source)
        if operator_name(reader) in _LIKELIHOODS:
            total = _largest_log_sum(reader)
            if total > _ROUND_OFF:
                yield f"{place}: the negative log-likelihood reads no logarithms of probabilities: a log_softmax is missing"
        elif name in _SQUASHING:
            yield f"{place}: the {_READERS[operator_name(reader)]} reads what {_SQUASHING[name]}"


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


def _reads_log_softmax(node: Node) -> bool:
    source = _source(node)
    return source is not None and operator_name(source) == "LogSoftmax"


def _source(node: Node) -> Node | None:
    """Return the node that computes what a node reads first, past those that only move entries; None for a leaf."""
    producer = node.next_functions[0][0] if node.next_functions else None
    while producer is not None and operator_name(producer) in _PASSED and producer.next_functions:
        producer = producer.next_functions[0][0]
    return producer


def _largest_log_sum(reader: Node) -> float:
    """Return the largest ``|log Σ exp|`` of the rows that a likelihood reads; 0 if they were not kept or are not finite."""
    try:
        rows = saved(reader, "self")
    except RuntimeError:
        return 0.0
    if rows is None or not rows.numel():
        return 0.0
    sums = torch.logsumexp(rows.detach().double(), min(rows.dim(), 2) - 1).abs()
    return float(sums.max()) if bool(sums.isfinite().all()) else 0.0


def _place(capture: Capture, graph: Graph, node: Node) -> str:
    """Return the innermost module whose call makes a node, with its class; the class of the model if none of its modules does."""
    calls = (c for c in capture.calls if c.path and not c.inner and c.start <= graph.place[node] < c.end)
    innermost = min(calls, key=lambda call: call.end - call.start, default=None)
    if innermost is None:
        return type(capture.model).__name__
    return f"{innermost.path} ({type(innermost.module).__name__})"


SQUASHED_SCORES: Need[tuple[str, ...]] = Need("squashed scores", _squashed)
"""The lines of :func:`squashed_scores`."""


@declare("names", needs=[SQUASHED_SCORES])
def squashed_scores(run: Run) -> list[str]:
    """Return the activations whose result a classification loss reads as scores, or as logarithms of probabilities.

    A cross-entropy applies a softmax to its scores, and a binary cross-entropy with logits a sigmoid. If the model has applied
    one already, its probabilities are taken for scores: they differ by at most 1, so that the loss of C classes cannot fall
    below ``ln(1 + (C − 1)/e)``, and the gradient passes two saturated functions. A tanh bounds the scores likewise, and a ReLU
    passes no gradient to those that are 0. A negative log-likelihood reads logarithms of probabilities: its rows must satisfy
    ``log Σ exp = 0``.

    It misleads if the activation is meant, such as a tanh that clips the scores of a pointer network without a factor.

    Returns:
        Lines such as ``"3 (Softmax): the cross-entropy reads what a softmax returns, …"``, in the order of the losses. Empty for
        other losses, and without one.

    Source: Bridle, Neurocomputing, NATO ASI F 68, 227 (1990), for the softmax as a part of the loss.
    """
    return list(run[SQUASHED_SCORES])
