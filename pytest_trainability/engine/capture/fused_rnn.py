"""An instrument that runs fused recurrent layers, ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, one time step at a time.

The kernels of these layers (``torch.lstm``, ``torch.gru`` and others) compute a whole sequence in one autograd node, which hides
the time steps. While a model is measured along time, the calls of the kernels are replaced by the same arithmetic in plain
operations. The modules around the kernels run unchanged, with their checks, their packed sequences and their layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear
from torch.overrides import TorchFunctionMode

from .recorder import Call, Recorder, as_signal

__all__ = ["Unrolling"]


State = tuple[Tensor, ...]
"""Hidden state ``(h,)``, or ``(h, c)`` for an LSTM, each of shape ``(batch, units)``."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights of one layer in one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None
    """Projection of the hidden state of an LSTM with ``proj_size``."""

    def project(self, x: Tensor) -> Tensor:
        """Return the contribution of the input to the gates, for one time step or for all."""
        return linear(x, self.w_ih, self.b_ih)

    def recur(self, h: Tensor) -> Tensor:
        """Return the contribution of the hidden state to the gates."""
        return linear(h, self.w_hh, self.b_hh)


def _rnn_tanh(projected: Tensor, state: State, weights: _Weights) -> State:
    return (torch.tanh(projected + weights.recur(state[0])),)


def _rnn_relu(projected: Tensor, state: State, weights: _Weights) -> State:
    return (torch.relu(projected + weights.recur(state[0])),)


def _lstm(projected: Tensor, state: State, weights: _Weights) -> State:
    # Under autocast, products are in half precision, and the kernels keep their states in it as well.
    h, c = (t.to(projected.dtype) for t in state)
    i, f, g, o = (projected + weights.recur(h)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights.w_hr is None else linear(h, weights.w_hr)), c


def _gru(projected: Tensor, state: State, weights: _Weights) -> State:
    (h,) = state
    from_input, from_state = projected.chunk(3, -1), weights.recur(h).chunk(3, -1)
    r = torch.sigmoid(from_input[0] + from_state[0])
    z = torch.sigmoid(from_input[1] + from_state[1])
    n = torch.tanh(from_input[2] + r * from_state[2])
    return (n + z * (h - n),)


_CELLS: dict[str, Callable[[Tensor, State, _Weights], State]] = {
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
    "lstm": _lstm,
    "gru": _gru,
}


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Arguments of a kernel."""

    data: Tensor
    """The input. For a packed sequence, the active samples of all time steps, one time step after the other."""
    sizes: tuple[int, ...] | None
    """Number of active samples at each time step of a packed sequence; None for a padded one."""
    initial: Sequence[Tensor]
    """``h_0`` (and ``c_0``), of shape ``(layers * directions, batch, units)``."""
    weights: Sequence[_Weights]
    """Weights of each layer; for a bidirectional one, forward and backward weights of each layer."""
    layers: int
    dropout: float
    bidirectional: bool
    batch_first: bool


def _arguments(name: str, args: Sequence[Any]) -> _Arguments | None:
    """Parse the positional arguments of a kernel, for a packed or a padded sequence; None for any other signature."""
    packed = len(args) == 9 and isinstance(args[3], (list, tuple))
    if not packed and not (len(args) == 9 and isinstance(args[2], (list, tuple))):
        return None
    data, *rest = args
    sizes = tuple(rest.pop(0).tolist()) if packed else None
    state, flat, has_biases, layers, dropout, training, bidirectional, *batch_first = rest
    each = len(flat) // (layers * (2 if bidirectional else 1))
    weights = []
    for start in range(0, len(flat), each):
        w_ih, w_hh, *others = flat[start : start + each]
        b_ih, b_hh = others[:2] if has_biases else (None, None)
        projection = others[-1] if each == (5 if has_biases else 3) else None
        weights.append(_Weights(w_ih, w_hh, b_ih, b_hh, projection))
    return _Arguments(
        data=data,
        sizes=sizes,
        initial=tuple(state) if name == "lstm" else (state,),
        weights=weights,
        layers=layers,
        dropout=dropout if training and layers > 1 else 0.0,
        bidirectional=bidirectional,
        batch_first=bool(batch_first and batch_first[0]),
    )


class Unrolling(TorchFunctionMode):
    """Replaces the fused kernels and records every time step as an inner step of the module that called the kernel.

    The results equal those of the kernels up to round-off. Dropout masks between layers are drawn in the same order as in
    PyTorch's CPU kernels; kernels of other devices draw them differently.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __enter__(self) -> None:
        # Yield nothing: the capture keeps the yielded value, and the recorder would hold it in a reference cycle.
        super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _CELLS and not kwargs and torch.is_grad_enabled() and self._recorder.running:
            arguments = _arguments(name, args)
            if arguments is not None:
                return self._run(name, arguments)
        return func(*args, **(kwargs or {}))

    def _run(self, name: str, arguments: _Arguments) -> tuple[Tensor, ...]:
        """Compute what the kernel returns: the outputs and the last state."""
        initial = [as_signal(t) for t in arguments.initial]
        turned = arguments.batch_first and arguments.sizes is None
        x = arguments.data.transpose(0, 1) if turned else arguments.data
        # A call with one time step is a step from its argument to its result, which keep the dimension of layers.
        whole = self._begin("", initial) if len(arguments.sizes or x) == 1 and not arguments.bidirectional else None
        states: list[State] = list(zip(*(t.unbind(0) for t in initial)))
        run = self._two_ways if arguments.bidirectional else partial(self._one_way, recorded=whole is None)
        output, states = run(_CELLS[name], arguments, x, states)
        last = [torch.stack(parts) for parts in zip(*states)]
        if whole is not None:
            self._recorder.end(whole, last)
        return output.transpose(0, 1) if turned else output, *last

    def _one_way(
        self, cell: Callable[..., State], arguments: _Arguments, x: Tensor, states: list[State], *, recorded: bool
    ) -> tuple[Tensor, list[State]]:
        """Run all layers at one time step after the other. The state is that of all layers together."""
        masks = [
            _split(dropout(x.new_ones(*x.shape[:-1], state[0].shape[-1]), arguments.dropout), arguments.sizes)
            for state in (states[:-1] if arguments.dropout else ())
        ]
        inputs = _split(arguments.weights[0].project(x), arguments.sizes)
        outputs = []
        for time, projected in enumerate(inputs):
            call = self._begin("", _tensors(states), len(projected)) if recorded else None
            for layer, weights in enumerate(arguments.weights):
                if layer:
                    below = states[layer - 1][0][: len(projected)]
                    projected = weights.project(below * masks[layer - 1][time] if masks else below)
                states[layer] = _advanced(cell, projected, states[layer], weights)
            if call is not None:
                self._recorder.end(call, _tensors(states))
            outputs.append(states[-1][0][: len(projected)])
        return _joined(outputs, arguments.sizes), states

    def _two_ways(
        self, cell: Callable[..., State], arguments: _Arguments, x: Tensor, states: list[State]
    ) -> tuple[Tensor, list[State]]:
        """Run one layer after the other in both directions. Each direction of each layer is a separate recurrence."""
        for layer in range(arguments.layers):
            directions = []
            for way, suffix in enumerate(("", "_reverse")):
                weights, number = arguments.weights[2 * layer + way], 2 * layer + way
                inputs = list(enumerate(_split(weights.project(x), arguments.sizes)))
                outputs: list[Tensor] = [x] * len(inputs)
                for time, projected in reversed(inputs) if way else inputs:
                    call = self._begin(f"l{layer}{suffix}", states[number], len(projected))
                    states[number] = _advanced(cell, projected, states[number], weights)
                    self._recorder.end(call, states[number])
                    outputs[time] = states[number][0][: len(projected)]
                directions.append(_joined(outputs, arguments.sizes))
            x = torch.cat(directions, -1)
            if arguments.dropout and layer < arguments.layers - 1:
                x = dropout(x, arguments.dropout)
        return x, states

    def _begin(self, suffix: str, state: Sequence[Tensor], active: int | None = None) -> Call:
        """Record the beginning of an inner step of the module that is running."""
        caller = self._recorder.running[-1]
        path = ".".join(part for part in (caller.path, suffix) if part)
        call = self._recorder.begin(caller.module, path, state, inner=type(caller.module).__name__)
        call.active = active if active is not None and active < len(state[0]) else None
        return call


def _tensors(states: Sequence[State]) -> list[Tensor]:
    return [tensor for state in states for tensor in state]


def _split(x: Tensor, sizes: tuple[int, ...] | None) -> Sequence[Tensor]:
    return x.unbind(0) if sizes is None else torch.split(x, list(sizes))


def _joined(parts: Sequence[Tensor], sizes: tuple[int, ...] | None) -> Tensor:
    return torch.stack(list(parts)) if sizes is None else torch.cat(list(parts))


def _advanced(cell: Callable[..., State], projected: Tensor, state: State, weights: _Weights) -> State:
    """Apply the cell to the active samples, which come first. Samples whose sequence is over keep their state."""
    active = len(projected)
    if active == len(state[0]):
        return cell(projected, state, weights)
    new = cell(projected, tuple(t[:active] for t in state), weights)
    return tuple(torch.cat([after, before[active:]]) for after, before in zip(new, state))
