"""Why a loss is above chance: the scale of the scores, and whether the head, its inputs or a number behind it make it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...engine.capture.chain import dependent_nodes
from ...engine.capture.gradient_hooks import MODULE_HOOK
from ...engine.capture.multipliers import Multiplier, multipliers
from ...engine.capture.operators import MOVES, operator_name
from ...engine.capture.products import Product, nearest_products, root_mean_square
from ...engine.capture.recorder import Edge, edge_of
from ...engine.runs.common_needs import STATE_RMS, grows_by
from ...engine.runs.input_scale import input_causes
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import output_metadata, saved
from ...engine.trees import carries_gradient, tensors_in
from ...records.causes import CauseRecord
from ...records.text import format_number

__all__ = ["SCORE_CAUSES"]

CONFIDENT = 2.0
"""Standard deviation of scores from which on they explain a loss above chance: normal scores cost 2 nats then."""
GROWTH = math.log(4)
"""Growth of the states along the chain, in nats, from which on it explains large scores."""


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """What a cross-entropy reads."""

    edge: Edge
    spread: float
    """Standard deviation."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(output_metadata(self.edge[0])[self.edge[1]].shape)


def _large_scores(run: Run) -> _Scores | None:
    """Return the largest part of the output, or else what a cross-entropy of the model or the loss reads, if it is large."""
    outputs = [t for t in tensors_in(run.capture.output) if carries_gradient(t) and t.numel() > 1 and t.dim() > 1]
    found = []
    if outputs:
        scores = max(outputs, key=Tensor.numel)
        found.append(_Scores(edge_of(scores), float(scores.detach().double().std())))
    for node in run.graph.nodes:
        entries = _READERS.get(operator_name(node))
        if entries is None or not run.graph.reads[node]:
            continue
        # What the node has saved may have been overwritten.
        with suppress(RuntimeError):
            values = saved(node, entries)
            if values is not None and values.numel() > 1:
                found.append(_Scores(run.graph.reads[node][0], float(values.detach().double().std())))
    return next((scores for scores in found if scores.spread >= CONFIDENT), None)


_READERS = {"LogSoftmax": "result", "BinaryCrossEntropyWithLogits": "self"}
"""Operators that read scores, and the name of what they save: the scores, but for a shift of each row."""


def _score_causes(run: Run) -> tuple[CauseRecord, ...]:
    scores = _large_scores(run)
    if scores is None:
        return ()
    signal = dependent_nodes(run.capture, run.graph)
    head = next(nearest_products(run.graph, signal, scores.edge[0]), None)
    if head is None:
        return ()
    spread = scores.spread
    bias = _cause_of_bias(run, head, spread)
    if bias is not None:
        return (bias,)
    numbers = multipliers(run.graph, signal, scores.edge)
    largest = max(numbers, key=lambda number: abs(number.factor), default=None)
    multiplied = None if largest is None else _cause_of_multiplier(run, head, largest, spread)
    if multiplied is not None:
        return (multiplied,)
    if not _is_made_by_head(head):
        return (_cause_behind(run, head, spread),)
    return (*(input_causes(run) if _reads_large(head, spread) else ()), _cause(run, head, scores))


def _reads_large(head: Product, spread: float) -> bool:
    """Return whether scores are large because of what the head reads, more than because of its weights."""
    gain = root_mean_square(head.weight) * math.sqrt(head.fan_in)
    return gain < spread / gain


def _cause_of_bias(run: Run, head: Product, spread: float) -> CauseRecord | None:
    """Return that the bias of the head makes most of the scores' variance; None if it does not."""
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    if head.bias is None or id(head.bias) not in names or head.bias.numel() < 2:
        return None
    name, deviation = names[id(head.bias)], float(head.bias.detach().double().std())
    if not deviation > spread / math.sqrt(2):
        return None
    text = f"{_scores_text(spread)}: {name} has a standard deviation of {format_number(deviation)}"
    return CauseRecord(text, zeros=(name,), is_first=True)


def _cause_of_multiplier(run: Run, head: Product, number: Multiplier, spread: float) -> CauseRecord | None:
    """Return that a number multiplies the scores behind all weights, if they would not be large without it; None if they would.

    A number of the code that directly follows the head is left to :func:`_factor_behind`.
    """
    if not abs(number.factor) > 1 or spread / abs(number.factor) >= CONFIDENT:
        return None
    text = f"{_scores_text(spread)}: "
    name = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}.get(
        id(number.parameter)
    )
    if name is not None:
        text += f"{name} is {_value_text(number)}, and {_what_multiplies(number)}"
        values = tuple(_better_values(number, spread))
        return CauseRecord(text, filled=(name,) if values else (), values=values, is_first=True)
    if _is_made_by_head(head):
        return None
    call = run.capture.call_at(run.graph.place[number.node])
    where = "" if call is None else call.path
    text += f"{where or type(run.capture.model).__name__} multiplies them by {format_number(number.factor)}"
    return CauseRecord(text, multiplier=where, factor=number.factor, is_inline=True, is_first=True)


def _scores_text(spread: float) -> str:
    return f"scores of standard deviation {format_number(spread)}, where 1 costs half a nat"


def _value_text(number: Multiplier) -> str:
    value = number.value
    if math.isfinite(value):
        return format_number(value)
    assert number.parameter is not None
    return f"{format_number(float(number.parameter.detach().double().mean()))} on average"


def _what_multiplies(number: Multiplier) -> str:
    """Return what multiplies the scores: a parameter, its exponential, or another function of it."""
    verb = "divides" if number.divides else "multiplies"
    if not number.operators:
        return f"{verb} them"
    size = format_number(1 / number.factor if number.divides else number.factor)
    if number.operators == ("Exp",):
        return f"its exponential, {size}, {verb} them"
    return f"{size}, which is computed from it ({' × '.join(number.operators)}), {verb} them"


def _better_values(number: Multiplier, spread: float) -> Iterator[float]:
    """Yield values of the parameter that might keep scores small: the logarithm where that was forgotten, then what gives 1."""
    value = number.value
    if math.isfinite(value) and number.factor > 0:
        if number.operators == ("Exp",) and value > 1 and spread / number.factor * value < CONFIDENT:
            yield -math.log(value) if number.divides else math.log(value)
        other = number.value_for(number.factor / spread)
        if math.isfinite(other):
            yield other


_AS_IT_IS = MOVES | {"Mul", "Div", "Add", "Neg", MODULE_HOOK}
"""Operators behind the head that leave the scores proportional to what it returns, up to a shift."""


def _is_made_by_head(head: Product) -> bool:
    """Return whether the scores are what the head returns, but for factors and shifts."""
    return head.behind <= _AS_IT_IS


def _cause_behind(run: Run, head: Product, spread: float) -> CauseRecord:
    """Return that the scores are made of what the head returns, and by which operations."""
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    module = names.get(id(head.weight), "").rpartition(".")[0] or "the last weights"
    operators = " × ".join(sorted(head.behind - _AS_IT_IS))
    return CauseRecord(f"{_scores_text(spread)}, made by {operators} of what {module} returns", is_first=True)


def _factor_behind(run: Run, head: Product, scores: _Scores) -> tuple[float, str, bool]:
    """Return the number that scores are multiplied by behind the head, the module that does it, and whether it does more.

    The number is 1 if there is none, and the module is empty for the model itself.
    """
    edge, end = scores.edge, (head.node, 0)
    entry = output_metadata(head.node)[0]
    if edge == end or scores.shape != tuple(entry.shape):
        return 1.0, "", False
    u = torch.ones(scores.shape, dtype=entry.dtype, device=entry.device)
    (found,) = torch.autograd.grad(
        [GradientEdge(*edge)], [GradientEdge(*end)], [u], retain_graph=True, allow_unused=True
    )
    if found is None or not torch.allclose(found, found.flatten()[0].expand_as(found)):
        return 1.0, "", False
    calls = [call for call in run.capture.calls if edge in call.outputs and call.path and not call.inner]
    whole = next((call.path for call in calls if end in call.inputs), "")
    # The innermost module returns first.
    around = (call.path for call in calls if call.start <= run.graph.place[head.node] < call.end)
    return float(found.flatten()[0]), whole or next(around, ""), not whole


def _cause(run: Run, head: Product, scores: _Scores) -> CauseRecord:
    spread = scores.spread
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    name, rms = names.get(id(head.weight), "a weight"), root_mean_square(head.weight)
    module = name.rpartition(".")[0]
    gain = rms * math.sqrt(head.fan_in)
    weights, factors, sizes = ((name,), (1 / spread,), (rms,)) if id(head.weight) in names else ((), (), ())
    text = f"{_scores_text(spread)}: "
    factor, multiplier, is_inline = _factor_behind(run, head, scores)
    if abs(factor) > 1 and spread / abs(factor) < CONFIDENT:
        where = multiplier or type(run.capture.model).__name__
        text += f"{where} multiplies what {module or 'the head'} returns by {format_number(factor)}"
        return CauseRecord(
            text, weights, factors, sizes, multiplier=multiplier, factor=factor, is_inline=is_inline, is_first=True
        )
    if not _reads_large(head, spread):
        text += (
            f"{name} has rms {format_number(rms)} over {head.fan_in} inputs; an rms of {format_number(rms / spread)} gives "
            "scores of standard deviation 1"
        )
        return CauseRecord(text, weights, factors, sizes)
    text += f"{module or 'the head'} reads inputs of rms {format_number(spread / gain)}"
    return CauseRecord(text, weights, factors, sizes, module=module, is_growth=grows_by(run) > GROWTH)


SCORE_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of large scores", _score_causes, requires=(STATE_RMS,))
"""Which weights make scores so large that the loss is far above chance."""
