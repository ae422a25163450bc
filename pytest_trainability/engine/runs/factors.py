"""The factors of every step of a run, with the module that performs each and the numbers that explain its gain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ...errors import InapplicableError
from ...records.factors import BufferRecord, FactorKind, FactorRecord, GateRecord, SlopeRecord
from ...records.names import template
from ..capture.factors import factorized
from ..capture.operators import MOVES, PRODUCTS, operator_name
from ..capture.products import fan_in, leaves_read, root_mean_square
from ..capture.recorder import Call
from ..jacobian.factor_gains import FactorGain, factor_gains
from ..jacobian.vjp import backward, random_cotangents
from ..torch_internals import leaf_of, output_metadata, saved
from .constants import ConstantObserver
from .run import Need, Run

__all__ = ["FACTORS"]

_ATTENTION = ("ScaledDotProduct", "Softmax", "FlashAttention")
OPEN = 0.1
"""Mean of a sigmoid up to which a gate counts as closed, and one minus the mean from which on it counts as open."""
KEEPING = 1
"""Index of the part of a bias that belongs to the forget gate of an LSTM, or to the update gate of a GRU."""
LEAST_BIAS = 0.5
"""Mean from which on a bias opens a gate on purpose: that of a bias that is drawn as PyTorch does is about 1/n for n units."""
_PARTS = {"Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Unbind"}
"""Operators whose results are parts of what they read."""
_OPERANDS = ("self", "other", "mat1", "mat2", "batch1", "batch2", "vec")
"""Names under which nodes of products save their operands."""
_ROOTS = {"Rsqrt", "Sqrt", "Std", "Var", "LinalgVectorNorm", "Norm", "StdMean", "VarMean"}
"""Operators of a normalization that is written by hand."""


def _factors(run: Run) -> tuple[FactorRecord, ...]:
    if run.chain.active:
        msg = (
            "a step is taken apart where it acts on all sequences. The sequences of this batch end at different times."
        )
        raise InapplicableError(msg)
    factorization = factorized(run.chain, run.graph)
    gains = factor_gains(factorization, run.graph, run.trajectories, random_cotangents(run.chain, 1, run.seed))
    describe = _Description(run)
    return tuple(describe.record(found) for found in gains)


FACTORS = Need("factors of the steps", _factors, instruments=(ConstantObserver,))
"""Factors of every step in program order, :class:`FactorRecord`, for the cotangent that ``log_gain`` is measured with."""


class _Description:
    """Names for the factors of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # The innermost module comes first: calls are listed in the order of their return.
        self._calls = [call for call in self.run.capture.calls if not call.inner]
        self._names = {id(p): name for name, p in self.run.capture.model.named_parameters(remove_duplicate=False)}

    def record(self, found: FactorGain) -> FactorRecord:
        """Return the record of one factor."""
        nodes = found.factor.nodes
        module = self._performed_by(nodes)
        operations = tuple(operator_name(node) for node in nodes)
        parameters = list(self._read_by(nodes))
        if module is None and not found.branches:
            module = self._performed_by(node for node in nodes if not self._is_sum_of_model(node))
        weight = self._weight(nodes, parameters)
        record = FactorRecord(
            found.step,
            "" if module is None else module.path,
            type(self.run.capture.model if module is None else module.module).__name__,
            "gated" if _is_gated(module, operations) else _kind(found, operations, has_weight=weight is not None),
            operations,
            found.gain,
            module is not None and self._is_whole(module, nodes),
            tuple(self._names[id(p)] for p in parameters if id(p) in self._names),
            tuple(_mean(p) for p in parameters if id(p) in self._names),
            tuple(n for p in parameters if (n := self._names.get(id(p), "")) in self.run.capture.rewritten),
            tuple(self._sensitivities(found, [p for p in parameters if id(p) in self._names])),
            tuple(self._buffers_read(nodes)),
            tuple(self._zeros([self._names[id(p)] for p in parameters if id(p) in self._names])),
            branches=tuple(tuple(map(self.record, branch.factors)) for branch in found.branches),
            branch_gains=tuple(branch.gain for branch in found.branches),
            products=() if found.branches else tuple(self._products(nodes)),
            gates=tuple(self._gates(nodes)),
            slopes=None if found.slopes is None else _slope_record(found.slopes),
        )
        if record.kind in {"weights", "gated"} and weight is not None:
            found_inputs = fan_in(weight, found.factor.inputs)
            with_weight = replace(
                self._scaled(self._with_weight(record, weight), nodes, weight, parameters),
                fan_in=found_inputs,
                forget_bias=_forget_bias(module),
                misplaced_bias=self._misplaced_bias(module),
            )
            return self._with_bias(with_weight, nodes, parameters) if record.kind == "weights" else with_weight
        if record.kind == "normalization":
            ones = (self._names.get(id(p), "") for p in parameters[1:] if bool((p.detach() == 1).all()))
            with_gain = replace(self._with_weight(record, *parameters[:1]), shift_of_one=next(ones, ""))
            return _with_normalization(with_gain, nodes)
        return record

    def _misplaced_bias(self, call: Call | None) -> tuple[str, int] | None:
        """Return the bias of an LSTM or GRU whose mean is large in one part that is not that of the gate that keeps a state.

        Other libraries have other orders of gates. A bias of zero, or one that is drawn, has no large mean in any part.
        """
        for bias, parts in _gate_biases(call):
            means = [float(part.float().mean()) for part in bias.detach().chunk(parts)]
            rest, largest = sorted(map(abs, means))[-2:]
            part = means.index(largest) if largest in means else KEEPING
            if part != KEEPING and largest >= LEAST_BIAS and rest < largest / 4:
                return self._names.get(id(bias), ""), part
        return None

    def _sensitivities(self, found: FactorGain, parameters: Sequence[Tensor]) -> Iterator[float]:
        """Yield for each parameter that sets the slopes of a factor how a shift of its entries changes ``ln`` of their rms.

        It is 0 for weights of products: nobody shifts all of their entries.
        """
        nodes = [node for node in found.factor.nodes if operator_name(node) not in MOVES]
        if found.slopes is None or not parameters or [operator_name(node) for node in nodes] != ["Mul"]:
            return
        others = [edge for edge in self.run.graph.reads[nodes[0]] if edge[0] not in self._signal]
        if len(others) != 1 or found.slopes.numel() != math.prod(output_metadata(nodes[0])[0].shape):
            return
        ((node, number),) = others
        entry = output_metadata(node)[number]
        slopes = found.slopes.reshape(output_metadata(nodes[0])[0].shape) / found.slopes.square().sum()
        with suppress(RuntimeError):
            cotangent = slopes.sum_to_size(*entry.shape).to(device=entry.device, dtype=entry.dtype)
            ends = [get_gradient_edge(p) for p in parameters]
            gradients = backward([GradientEdge(node, number)], ends, [cotangent.unsqueeze(0)])
            for parameter, g in zip(parameters, gradients):
                yield 0.0 if g is None or id(parameter) in self._of_products else float(g.double().sum())

    @cached_property
    def _of_products(self) -> set[int]:
        """Identities of the leaves of two or more dimensions that products read, directly or with their entries moved."""
        found: set[int] = set()
        for node in (node for node in self.run.graph.nodes if operator_name(node) in PRODUCTS):
            pending = [producer for producer, _ in self.run.graph.reads[node]]
            while pending:
                producer = pending.pop()
                leaf = leaf_of(producer)
                found |= {id(leaf)} if leaf is not None and leaf.dim() >= 2 else set()
                pending += [p for p, _ in self.run.graph.reads[producer]] if operator_name(producer) in MOVES else []
        return found

    def _buffers_read(self, nodes: Iterable[Node]) -> Iterator[BufferRecord]:
        """Yield the buffers that operations multiply the signal with, each once."""
        found: dict[str, Tensor] = {}
        for node in (node for node in nodes if operator_name(node) in {*PRODUCTS, "Mul"}):
            # An operand that was overwritten since cannot be read.
            with suppress(RuntimeError):
                operands = [saved(node, name) for name in _OPERANDS]
                memory = {_memory_of(t) for t in operands if isinstance(t, Tensor) and not t.requires_grad}
                found |= {name: buffer for key in memory for name, buffer in self._by_memory.get(key, ())}
        yield from (BufferRecord(name, root_mean_square(buffer), _row_sum(buffer)) for name, buffer in found.items())

    @cached_property
    def _by_memory(self) -> dict[int, list[tuple[str, Tensor]]]:
        """Buffers of the model by the address of their memory."""
        found: dict[int, list[tuple[str, Tensor]]] = {}
        for name, buffer in self.run.capture.model.named_buffers():
            if buffer.is_floating_point() and buffer.numel() > 1 and buffer.layout is torch.strided:
                found.setdefault(_memory_of(buffer), []).append((name, buffer))
        return found

    def _products(self, nodes: Iterable[Node]) -> Iterator[tuple[str, float, int]]:
        """Yield name, root mean square and number of inputs of the weights that the signal is multiplied with."""
        for node in (node for node in nodes if operator_name(node) in PRODUCTS):
            inputs = [edge for edge in self.run.graph.reads[node] if edge[0] in self._signal]
            for weight in (p for p in self._read_by([node]) if p.dim() >= 2 and id(p) in self._names):
                yield self._names[id(weight)], root_mean_square(weight), fan_in(weight, inputs)

    def _gates(self, nodes: Iterable[Node]) -> Iterator[GateRecord]:
        """Yield the sigmoids that a constant or a bias in front of them closes or opens."""
        for node in nodes:
            result = saved(node, "result") if operator_name(node) == "Sigmoid" else None
            mean = 0.5 if result is None else float(result.detach().double().mean())
            if not OPEN < mean < 1 - OPEN:
                yield self._gate(node, mean)

    def _gate(self, sigmoid: Node, mean: float) -> GateRecord:
        constants = self.run.capture.watched[ConstantObserver].found
        wanted = math.log(mean / (1 - mean)) if 0 < mean < 1 else math.copysign(math.inf, mean - 0.5)
        node, part, width = sigmoid, 0, output_metadata(sigmoid)[0].shape[-1]
        while True:
            if node in constants and constants[node].number * wanted > 0:
                return GateRecord(mean, constants[node].path, constants[node].number)
            for bias in (p for p in self._read_by([node]) if p.dim() == 1 and id(p) in self._names):
                parts = max(1, bias.numel() // width)
                value = _mean(bias.chunk(parts)[part]) if part < parts else 0.0
                if value * wanted > 0 and abs(value) > abs(wanted) / 2:
                    return GateRecord(mean, bias=self._names[id(bias)], bias_mean=value, part=part, parts=parts)
            behind = [edge for edge in self.run.graph.reads[node] if edge[0] in self._signal]
            if operator_name(node) in PRODUCTS or not behind:
                return GateRecord(mean)
            node, index = behind[0]
            part = index if operator_name(node) in _PARTS else part

    def _zeros(self, names: Sequence[str]) -> Iterator[str]:
        """Yield the trained parameters that are zero and have the same place in their module as one of these."""
        forms = {template(name) for name in names}
        for name, parameter in self.run.capture.model.named_parameters():
            may_be_zero = "bias" in name.rpartition(".")[2] or not parameter.requires_grad
            if template(name) in forms and not may_be_zero and not bool(parameter.detach().any()):
                yield name

    def _with_weight(self, record: FactorRecord, weight: Tensor | None = None) -> FactorRecord:
        """Return the record with the name of a parameter and its root mean square."""
        if weight is None:
            return record
        return replace(
            record,
            weight=self._names.get(id(weight), ""),
            weight_rms=root_mean_square(weight),
        )

    def _scaled(
        self, record: FactorRecord, nodes: Iterable[Node], weight: Tensor, parameters: Sequence[Tensor]
    ) -> FactorRecord:
        """Return the record with the parameter that scales a computed weight, if the named one does not.

        A weight W is proportional to a parameter p if, by Euler's theorem, ⟨p, ∂½‖W‖²/∂p⟩ = ‖W‖². With weight normalization,
        W = g v/‖v‖, it is proportional to g, and does not change with the size of v.
        """
        node = next((node for node in nodes if operator_name(node) in PRODUCTS), None)
        if node is None or id(weight) in self._of_products:
            return record
        named = [p for p in parameters if id(p) in self._names]
        # An operand that was overwritten since cannot be read.
        with suppress(RuntimeError):
            operands = (saved(node, name) for name in (*_OPERANDS, "weight"))
            read = {edge[0]: edge for edge in self.run.graph.reads[node] if edge[0] not in self._signal}
            W = next((t for t in operands if isinstance(t, Tensor) and t.grad_fn in read), None)
            if W is None or not named:
                return record
            edge, ends = read[W.grad_fn], [get_gradient_edge(p) for p in named]  # type: ignore[index]
            W = W.detach()
            gradients = backward([GradientEdge(*edge)], ends, [W.unsqueeze(0)])
            squares = W.square().sum()
            degrees = [0.0 if g is None else float((p.detach() * g).sum() / squares) for p, g in zip(named, gradients)]
            scaling = [p for p, degree in zip(named, degrees) if math.isclose(degree, 1, rel_tol=1e-3)]
            if scaling and all(p is not weight for p in scaling):
                return replace(record, scaled_by=self._names[id(scaling[0])], weight_rms=root_mean_square(W))
        return record

    def _with_bias(self, record: FactorRecord, nodes: Iterable[Node], parameters: Iterable[Tensor]) -> FactorRecord:
        """Return the record with the bias of a product, and with the size of the product, from the inputs that were saved."""
        bias = next((p for p in parameters if p.dim() == 1 and id(p) in self._names), None)
        node = next((node for node in nodes if operator_name(node) in PRODUCTS), None)
        if bias is None or node is None:
            return record
        inputs = next((t for name in ("mat1", "input", "self") if isinstance(t := saved(node, name), Tensor)), None)
        # A product with independent entries has the mean square of the inputs, times that of the weights, times their number.
        size = math.nan if inputs is None else root_mean_square(inputs) * record.weight_rms * math.sqrt(record.fan_in)
        return replace(record, bias=self._names[id(bias)], bias_rms=root_mean_square(bias), product_rms=size)

    def _performed_by(self, nodes: Iterable[Node]) -> Call | None:
        """Return the innermost call that performs all operations; None if only the model itself does."""
        places = [self.run.graph.place[node] for node in nodes]
        if not places:
            return None
        return next((c for c in self._calls if c.path and c.start <= min(places) and max(places) < c.end), None)

    def _is_sum_of_model(self, node: Node) -> bool:
        """Return whether the model itself adds a result to others, as one that sums a term of each step does."""
        call = self.run.capture.call_at(self.run.graph.place[node])
        return operator_name(node) == "Add" and (call is None or not call.path)

    def _is_whole(self, call: Call, nodes: Iterable[Node]) -> bool:
        """Return whether a call performs no other operation on the signal."""
        place = self.run.graph.place
        return {node for node in self._signal if call.start <= place[node] < call.end} <= {*nodes}

    def _weight(self, nodes: Iterable[Node], parameters: Sequence[Tensor]) -> Tensor | None:
        """Return the first weight that a product reads, else the largest one; None if there is none."""
        products = (node for node in nodes if operator_name(node) in PRODUCTS)
        of_products = (p for node in products for p in self._read_by([node]) if p.dim() >= 2)
        others = sorted((p for p in parameters if p.dim() >= 2), key=lambda p: -p.numel())
        return next(chain(of_products, others), None)

    def _read_by(self, nodes: Iterable[Node]) -> Iterator[Tensor]:
        """Yield the leaves that operations read from outside of the signal."""
        return leaves_read(self.run.graph, self._signal, nodes)

    @cached_property
    def _signal(self) -> frozenset[Node]:
        first = self.run.chain.cut.states[0]
        return self.run.graph.downstream(first) | {node for node, _ in first}


def _mean(values: Tensor) -> float:
    """Return the mean of a parameter; NaN if it is complex."""
    return math.nan if values.is_complex() else float(values.detach().double().mean())


def _memory_of(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; -1 if it has none of its own, as a sparse one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else -1


def _row_sum(buffer: Tensor) -> float:
    """Return the mean over rows of the sum of absolute values; NaN without rows."""
    return float(buffer.detach().double().abs().sum(-1).mean()) if buffer.dim() > 1 else math.nan


def _is_gated(call: Call | None, operations: tuple[str, ...]) -> bool:
    """Return whether a factor is a time step of a GRU, whose result is a sum of two paths."""
    return call is not None and isinstance(call.module, (nn.GRU, nn.GRUCell)) and "Sigmoid" in operations


def _kind(found: FactorGain, operations: tuple[str, ...], *, has_weight: bool) -> FactorKind:
    if set(operations) <= MOVES:
        return "layout"
    if any("Norm" in name and name not in _ROOTS for name in operations) and not found.branches:
        return "normalization"
    # A recurrence that starts from a multiple of the identity acts on each entry alone, and is a product all the same.
    if has_weight and len(set(operations) - MOVES) == 1 and PRODUCTS & set(operations):
        return "weights"
    if found.slopes is not None:
        return "entrywise"
    if found.branches:
        return "parallel"
    if any(name.startswith(_ATTENTION) for name in operations):
        return "attention"
    if _ROOTS & set(operations) and not PRODUCTS & set(operations):
        return "normalization"
    return "gated" if has_weight and "Sigmoid" in operations else "other"


def _forget_bias(call: Call | None) -> float:
    """Return the mean over units of the bias of the gate that keeps a state, the sum of ``bias_ih`` and ``bias_hh``.

    It is the forget gate of an LSTM and the update gate of a GRU; NaN for other modules.
    """
    biases = _gate_biases(call)
    if not biases:
        return math.nan
    return sum(float(p.detach().chunk(parts)[KEEPING].float().mean()) for p, parts in biases) / (len(biases) / 2)


def _gate_biases(call: Call | None) -> list[tuple[Tensor, int]]:
    """Return the biases of an LSTM or GRU, each with the number of its parts; none for other modules."""
    module = None if call is None else call.module
    if not isinstance(module, (nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell)) or not module.bias:
        return []
    parts = 4 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 3
    return [(p, parts) for path, p in module.named_parameters() if path.startswith("bias_")]


def _slope_record(slopes: Tensor) -> SlopeRecord:
    return SlopeRecord(
        float(slopes.square().mean().sqrt()),
        float(slopes.min()),
        float(slopes.max()),
        float((slopes == 0).double().mean()),
    )


def _with_normalization(record: FactorRecord, nodes: Iterable[Node]) -> FactorRecord:
    """Return the record with what a node of PyTorch's own normalizations has saved: size and deviation of its groups, and ε."""
    node = next((n for n in nodes if "Norm" in operator_name(n)), None)
    if node is None:
        return record
    (entry,) = output_metadata(node)[:1]
    statistics = [saved(node, f"result{i}") for i in (2, 1)]
    inverse = next((t for t in statistics if isinstance(t, Tensor) and t.numel()), None)
    if inverse is None:
        return record
    deviation = float((1 / inverse.detach().double()).median())
    size, eps = math.prod(entry.shape) // inverse.numel(), saved(node, "eps", default=math.nan)
    return replace(record, group_size=size, input_deviation=deviation, eps=float(math.nan if eps is None else eps))
