"""Why units are dead or saturated: inputs, weights, biases, dropout, or a normalization of one element."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial

from torch import Tensor, nn
from torch.autograd.graph import Node

from ...engine.capture.chain import dependent_nodes
from ...engine.capture.operators import PRODUCTS, operator_name
from ...engine.capture.products import Product, is_constant, leaves_read, nearest_products, root_mean_square
from ...engine.runs.constants import AddedConstant, ConstantObserver
from ...engine.runs.input_scale import input_causes
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import output_metadata, saved
from ...records.causes import CauseRecord
from ...records.text import format_number
from .activation_calls import ActivationCall, observe_activations

__all__ = ["IDLE_CAUSES"]


_OBSERVED = partial(observe_activations, reads_inputs=True)
"""The instrument, with the statistics of what each activation reads. Only the run after a failure needs them."""
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
MOST_DROPPED = 0.6
"""Share of dropped entries from which on dropout is a cause."""
IDLE = 0.8
"""Share of saturated entries from which on an activation is explained."""
SHIFTED = 1.0
"""Size of a bias, in standard deviations of what an activation reads, from which on it explains that units are idle."""
LARGE_DEVIATION = 3.0
"""Standard deviation of what an activation reads from which on it explains that units are saturated."""


def _idle_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return why units are idle: inputs that are not standardized, else what makes the inputs of the idle activations."""
    calls: list[ActivationCall] = run.capture.watched[_OBSERVED].found
    found = [*input_causes(run)] if any(call.saturated > IDLE for call in calls) else []
    found = [*found, *_dropouts(run)]
    if found:
        return tuple(found)
    signal = dependent_nodes(run.capture, run.graph)
    constant = (c for call in calls if call.saturated > IDLE for c in _of_one_element(run, signal, call))
    found = [cause for cause in (next(constant, None),) if cause is not None]
    if found:
        return tuple(found)
    factors = {name: call for call in calls if call.saturated > IDLE for name in _zero_factors(run, signal, call)}
    if factors:
        name, call = next(iter(factors.items()))
        text = f"{_reads(call)}: they are multiplied by {name}, which is zero{_more([*factors])}"
        return (CauseRecord(text, ones=tuple(factors), is_first=True),)
    shifts = {name: call for call in calls if call.saturated > IDLE for name in _shifting_norm(run, signal, call)}
    if shifts:
        name, call = next(iter(shifts.items()))
        text = f"{_reads(call)}: {name}, the shift of a normalization, makes them{_more([*shifts])}"
        return (CauseRecord(text, zeros=tuple(shifts), is_first=True),)
    found = [*_constants(run, signal, calls), *_of_inputs(run, signal, calls)]
    if found:
        return tuple(found)
    products = [next(nearest_products(run.graph, signal, call.input[0]), None) for call in calls]
    return tuple(_of_products(run, [(call, p) for call, p in zip(calls, products) if p is not None]))


def _of_one_element(run: Run, signal: Set[Node], call: ActivationCall) -> Iterator[CauseRecord]:
    """Yield that a normalization of groups of one element makes what an activation reads constant."""
    node: Node | None = call.input[0]
    while node is not None and operator_name(node) not in PRODUCTS:
        inverse = next((t for i in (2, 1) if isinstance(t := saved(node, f"result{i}"), Tensor) and t.numel()), None)
        if "Norm" in operator_name(node) and inverse is not None:
            if inverse.numel() == math.prod(output_metadata(node)[0].shape):
                place = run.graph.place[node]
                calls = (c for c in run.capture.calls if c.path and not c.inner and c.start <= place < c.end)
                name = next((f"{c.path} ({type(c.module).__name__})" for c in calls), operator_name(node))
                text = f"{name} normalizes groups of one element, so that its output is constant"
                yield CauseRecord(text, is_first=True)
            return
        behind = [producer for producer, _ in run.graph.reads[node] if producer in signal]
        node = behind[0] if len(behind) == 1 else None


def _shifting_norm(run: Run, signal: Set[Node], call: ActivationCall) -> Iterator[str]:
    """Yield the bias of a normalization that moves all units of an activation to where they are idle."""
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    node: Node | None = call.input[0]
    while node is not None and operator_name(node) not in PRODUCTS:
        if "Norm" in operator_name(node):
            found = {id(leaf): leaf for leaf in leaves_read(run.graph, signal, [node]) if leaf.dim() == 1}
            biases = {names[key]: leaf for key, leaf in found.items() if names.get(key, "").endswith("bias")}
            yield from (
                name for name, leaf in biases.items() if abs(float(leaf.detach().mean())) > SHIFTED * call.deviation
            )
            return
        behind = [producer for producer, _ in run.graph.reads[node] if producer in signal]
        node = behind[0] if len(behind) == 1 else None


def _zero_factors(run: Run, signal: Set[Node], call: ActivationCall) -> Iterator[str]:
    """Yield the vectors of zeros, behind the last product, that what an activation reads is multiplied by."""
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    node: Node | None = call.input[0] if call.mean == call.deviation == 0 else None
    while node is not None and operator_name(node) not in PRODUCTS:
        if operator_name(node) == "Mul":
            read = (leaf for leaf in leaves_read(run.graph, signal, [node]) if id(leaf) in names)
            yield from (names[id(leaf)] for leaf in read if leaf.dim() < 2 and not bool(leaf.detach().any()))
        behind = [producer for producer, _ in run.graph.reads[node] if producer in signal]
        node = behind[0] if len({*behind}) == 1 else None


def _constants(run: Run, signal: Set[Node], calls: Sequence[ActivationCall]) -> Iterator[CauseRecord]:
    """Yield that a number in the code, added behind the last product, moves all units to where they are idle."""
    added = run.capture.watched[ConstantObserver].found
    idle = [call for call in calls if call.saturated > IDLE]
    found = [(call, c) for call in idle if (c := _shifting_constant(run, signal, call, added)) is not None]
    if found:
        call, constant = found[0]
        where = constant.path or type(run.capture.model).__name__
        numbers = {c.path: c.number for _, c in found}
        number = format_number(constant.number)
        text = f"{_reads(call)}: the constant {number} in the forward code of {where} is added{_more([*numbers])}"
        yield CauseRecord(text, adding=tuple(numbers), constants=tuple(numbers.values()), is_first=True)


def _shifting_constant(
    run: Run, signal: Set[Node], call: ActivationCall, added: Mapping[Node, AddedConstant]
) -> AddedConstant | None:
    """Return the constant that makes up more than half of the mean that an activation reads; None if there is none."""
    node: Node | None = call.input[0]
    while node is not None and operator_name(node) not in PRODUCTS:
        constant = added.get(node)
        if constant is not None and _is_shift(constant.number, call):
            return constant
        behind = [producer for producer, _ in run.graph.reads[node] if producer in signal]
        node = behind[0] if len(behind) == 1 else None
    return None


def _of_inputs(run: Run, signal: Set[Node], calls: Sequence[ActivationCall]) -> Iterator[CauseRecord]:
    """Yield that idle activations read the model's inputs themselves."""
    for call in calls:
        # The copy of an input is the first node of the signal.
        is_copy = operator_name(call.input[0]) == "Clone" and call.input[0] in signal
        if call.saturated > IDLE and is_copy and not {n for n, _ in run.graph.reads[call.input[0]]} & signal:
            text = f"{_reads(call)}, which are the inputs: standardize them"
            yield CauseRecord(text, input_mean=call.mean, input_deviation=call.deviation)
            return


def _dropouts(run: Run) -> Iterator[CauseRecord]:
    """Yield that a module drops most entries: its argument is the share that is dropped, and not that which is kept."""
    for call in run.capture.calls:
        share = getattr(call.module, "p", 0.0) if isinstance(call.module, _DROPOUTS) and call.module.training else 0.0
        if share > MOST_DROPPED:
            name = f"{call.path} ({type(call.module).__name__})"
            text = f"{name} drops {100 * share:.0f} % of the entries: its argument is the share to drop, not to keep"
            yield CauseRecord(text, is_first=True)


def _of_products(run: Run, made: Sequence[tuple[ActivationCall, Product]]) -> Iterator[CauseRecord]:
    """Yield what products with weights and their biases have to do with idle activations."""
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    constant = {names[id(p.weight)]: p for _, p in made if id(p.weight) in names and is_constant(p.weight)}
    if constant:
        first = f"{next(iter(constant))}{_more([*constant])}"
        text = f"constant weights: all entries of {first} are equal, and so are all units of a layer"
        yield CauseRecord(text, drawn=(*constant,), deviations=tuple((2 / p.fan_in) ** 0.5 for p in constant.values()))
    # What a normalization behind the product reads decides nothing about what it returns.
    idle = [(call, p) for call, p in made if call.saturated > IDLE and not any("Norm" in name for name in p.behind)]
    shifted = [(call, p) for call, p in idle if id(p.bias) in names and _is_shifted(call, p)]
    one_sided = [(call, p) for call, p in idle if id(p.weight) in names and _is_one_sided(call, p)]
    steep = [(call, p) for call, p in idle if id(p.weight) in names and call.deviation > LARGE_DEVIATION]
    if shifted:
        call, product = shifted[0]
        biases = tuple(dict.fromkeys(names[id(p.bias)] for _, p in shifted))
        mean = format_number(_mean_bias(product))
        yield CauseRecord(f"{_reads(call)}: {biases[0]} has mean {mean}{_more(biases)}", zeros=biases)
    elif one_sided:
        call, product = one_sided[0]
        drawn = {names[id(p.weight)]: math.sqrt(2 / p.fan_in) for _, p in one_sided}
        mean = format_number(float(product.weight.detach().double().mean()))
        text = f"{_reads(call)}: the entries of {names[id(product.weight)]} have mean {mean}, where 0 is usual{_more([*drawn])}"
        yield CauseRecord(text, drawn=tuple(drawn), deviations=tuple(drawn.values()))
    elif steep:
        call, product = steep[0]
        weights = {names[id(p.weight)]: (1 / c.deviation, root_mean_square(p.weight)) for c, p in steep}
        factors, rms = zip(*weights.values())
        text = (
            f"{_reads(call)}: {names[id(product.weight)]} has rms {format_number(rms[0])} over {product.fan_in} inputs; an "
            f"rms of {format_number(rms[0] * factors[0])} gives a deviation of 1{_more([*weights])}"
        )
        yield CauseRecord(text, tuple(weights), factors, rms)


def _reads(call: ActivationCall) -> str:
    return f"{call.name} reads values of mean {format_number(call.mean)} and deviation {format_number(call.deviation)}"


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _mean_bias(product: Product) -> float:
    return 0.0 if product.bias is None else float(product.bias.detach().double().mean())


def _is_shifted(call: ActivationCall, product: Product) -> bool:
    """Return whether a bias moves all units of an activation to where they are idle."""
    return _is_shift(_mean_bias(product), call)


def _is_shift(added: float, call: ActivationCall) -> bool:
    """Return whether a number that is added makes up the mean of what an activation reads, and outweighs its deviation."""
    return abs(added) > SHIFTED * call.deviation and 1 / 4 < call.mean / (added or math.inf) < 2


def _is_one_sided(call: ActivationCall, product: Product) -> bool:
    """Return whether the mean of the weights moves all units of an activation to where they are idle."""
    mean = float(
        product.weight.detach().abs().mean() if product.weight.is_complex() else product.weight.detach().mean()
    )
    return abs(call.mean) > SHIFTED * call.deviation and abs(mean) > root_mean_square(product.weight) / 2


IDLE_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of idle units", _idle_causes, instruments=(_OBSERVED, ConstantObserver)
)
"""Which inputs, weights or biases make units dead or saturated."""
