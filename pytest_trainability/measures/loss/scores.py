"""Why a loss is above chance: the scale of the scores, and whether the weights of the head or their inputs make it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...engine.capture.chain import dependent_nodes
from ...engine.capture.products import Product, nearest_products, root_mean_square
from ...engine.capture.recorder import edge_of
from ...engine.runs.common_needs import STATE_RMS, grows_by
from ...engine.runs.input_scale import input_causes
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import output_metadata
from ...engine.trees import carries_gradient, tensors_in
from ...records.causes import CauseRecord
from ...records.text import format_number

__all__ = ["SCORE_CAUSES"]

CONFIDENT = 2.0
"""Standard deviation of scores from which on they explain a loss above chance: normal scores cost 2 nats then."""
GROWTH = math.log(4)
"""Growth of the states along the chain, in nats, from which on it explains large scores."""


def _score_causes(run: Run) -> tuple[CauseRecord, ...]:
    outputs = [t for t in tensors_in(run.capture.output) if carries_gradient(t) and t.numel() > 1 and t.dim() > 1]
    if not outputs:
        return ()
    scores = max(outputs, key=Tensor.numel)
    signal = dependent_nodes(run.capture, run.graph)
    head = next(nearest_products(run.graph, signal, edge_of(scores)[0]), None)
    spread = float(scores.detach().double().std())
    if head is None or not spread >= CONFIDENT:
        return ()
    bias = _cause_of_bias(run, head, spread)
    if bias is not None:
        return (bias,)
    return (*(input_causes(run) if _reads_large(head, spread) else ()), _cause(run, head, scores, spread))


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
    text = (
        f"scores of standard deviation {format_number(spread)}, where 1 costs half a nat: {name} has a standard deviation of "
        f"{format_number(deviation)}"
    )
    return CauseRecord(text, zeros=(name,), is_first=True)


def _factor_behind(run: Run, head: Product, scores: Tensor) -> tuple[float, str, bool]:
    """Return the number that scores are multiplied by behind the head, the module that does it, and whether it does more.

    The number is 1 if there is none, and the module is empty for the model itself.
    """
    edge, end = edge_of(scores), (head.node, 0)
    shape = output_metadata(head.node)[0].shape
    if edge == end or scores.shape != tuple(shape):
        return 1.0, "", False
    u = torch.ones_like(scores)
    (found,) = torch.autograd.grad([scores], [GradientEdge(*end)], [u], retain_graph=True, allow_unused=True)
    if found is None or not torch.allclose(found, found.flatten()[0].expand_as(found)):
        return 1.0, "", False
    calls = [call for call in run.capture.calls if edge in call.outputs and call.path and not call.inner]
    whole = next((call.path for call in calls if end in call.inputs), "")
    # The innermost module returns first.
    around = (call.path for call in calls if call.start <= run.graph.place[head.node] < call.end)
    return float(found.flatten()[0]), whole or next(around, ""), not whole


def _cause(run: Run, head: Product, scores: Tensor, spread: float) -> CauseRecord:
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    name, rms = names.get(id(head.weight), "a weight"), root_mean_square(head.weight)
    module = name.rpartition(".")[0]
    gain = rms * math.sqrt(head.fan_in)
    weights, factors, sizes = ((name,), (1 / spread,), (rms,)) if id(head.weight) in names else ((), (), ())
    text = f"scores of standard deviation {format_number(spread)}, where 1 costs half a nat: "
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
