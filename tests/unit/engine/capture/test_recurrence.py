"""Loops of many kinds against Jacobians that are written by hand: which calls are time steps, and what is carried."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import CheckpointError, checkpoint

from pytest_trainability import Rollout, measure
from pytest_trainability.engine.capture.chain import Chain, graph_of
from pytest_trainability.engine.capture.recorder import Capture, capture
from pytest_trainability.engine.capture.recurrence import Recurrence, chain_along, choose_recurrence, find_recurrences
from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import pull_back, random_cotangents
from pytest_trainability.engine.runs.ensemble import ALONG_TIME
from pytest_trainability.engine.trees import tensors_in
from pytest_trainability.errors import CutError, UsageError
from pytest_trainability.measures.depth import spectral_radius as spectra

WIDTH, FEATURES, BATCH, LENGTH = 3, 4, 2, 4
Blocks = tuple[Tensor, ...]
"""Parts of a state of one sample, ``(1, n)`` each."""
Reference = tuple[Blocks, list[Callable[..., Blocks]]]
"""The first state and the maps that follow."""


class Loop(nn.Module):
    """Modules, and a function that calls them."""

    def __init__(self, run: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Tensor) -> Any:
        return self.run(self, *args)


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def captured(model: nn.Module, *args: Any) -> Capture:
    torch.manual_seed(5)
    return capture(model, args, {}, instruments=ALONG_TIME)


def recurrences(record: Capture) -> list[Recurrence]:
    return find_recurrences(record, graph_of(record))


def cut(model: nn.Module, *args: Any, name: str = "") -> Chain:
    record = captured(model, *args)
    return chain_along(choose_recurrence(record, recurrences(record), name))


# Written by hand, without torch.nn's cells ----------------------------------------------------------------------------


def gru(cell: Any, x: Tensor, h: Tensor, suffix: str = "") -> Tensor:
    w_ih, w_hh, b_ih, b_hh = (getattr(cell, f"{n}{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    i, s = (x @ w_ih.T + b_ih).chunk(3, 1), (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = torch.sigmoid(i[0] + s[0]), torch.sigmoid(i[1] + s[1])
    return (1 - z) * torch.tanh(i[2] + r * s[2]) + z * h


def lstm(cell: Any, x: Tensor, h: Tensor, c: Tensor, suffix: str = "") -> Blocks:
    w_ih, w_hh, b_ih, b_hh = (getattr(cell, f"{n}{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def zeros(x: Tensor, width: int = WIDTH) -> Tensor:
    return x.new_zeros(len(x), width)


# Dense products ------------------------------------------------------------------------------------------------------


def dense(chain: Chain) -> Tensor:
    """Jacobian of the whole chain: identity pulled back segment by segment, ``(samples, n_L, n_0)``."""
    columns: Any = _identity(chain)
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
    size = sum(math.prod(shape) for shape, _ in chain.shapes(len(chain)))
    parts = [
        torch.zeros(size, *shape, dtype=torch.float64) if c is None else c
        for c, (shape, _) in zip(columns, chain.shapes(0))
    ]
    later = chain.shapes(len(chain))
    parts = [_samples_first(part) for part in parts]
    samples, per_sample = len(parts[0][0]), []
    for sample in range(samples):
        own, offset = [], 0
        for shape, _ in later:
            width = math.prod(shape) // samples
            own += range(offset + sample * width, offset + (sample + 1) * width)
            offset += math.prod(shape)
        per_sample.append(torch.cat([p[own][:, sample].reshape(len(own), -1) for p in parts], 1))
    return torch.stack(per_sample)


def _samples_first(columns: Tensor) -> Tensor:
    """Drop the dimension of layers from the state of a layer that is called step by step."""
    return columns.squeeze(1) if columns.dim() > 3 else columns


def _identity(chain: Chain) -> list[Tensor]:
    shapes = [shape for shape, _ in chain.shapes(len(chain))]
    size = sum(map(math.prod, shapes))
    parts = torch.eye(size, dtype=torch.float64).split([math.prod(shape) for shape in shapes], 1)
    return [part.reshape(size, *shape) for part, shape in zip(parts, shapes)]


def assert_one_backward(chain: Chain) -> None:
    """The product over segments is one call of autograd from the last state to the first."""
    first, last = chain.cut.states[0], chain.cut.states[-1]
    columns: Any = random_cotangents(chain, 1, 3)
    expected = torch.autograd.grad(
        [GradientEdge(*edge) for edge in last],
        [GradientEdge(*edge) for edge in first],
        [c[0] for c in columns],
        retain_graph=True,
    )
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
    for found, true in zip(columns, expected):
        # Sums over forks in another order: at each of a few steps some units in the last place.
        torch.testing.assert_close(found[0], true, rtol=0, atol=64 * 2.2e-16 * float(true.abs().max()))


def jacobians(reference: Reference) -> tuple[list[np.ndarray], list[int], list[int]]:
    """Matrix of every map, and the widths of the blocks of the first and of the last state."""
    state, maps = reference
    matrices, first = [], [block.shape[1] for block in state]
    for step in maps:
        widths = [block.shape[1] for block in state]

        def flat(joined: Tensor, step: Any = step, widths: Sequence[int] = widths) -> Tensor:
            return torch.cat(step(*joined[None].split(list(widths), 1)), 1)[0]

        matrix = torch.autograd.functional.jacobian(flat, torch.cat(state, 1)[0].detach())
        matrices.append(matrix.numpy())
        state = tuple(block.detach() for block in step(*state))
    return matrices, first, [block.shape[1] for block in state]


def reordered(widths: Sequence[int]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Orders of blocks, and the entries in each."""
    starts = np.cumsum([0, *widths])
    for order in itertools.permutations(range(len(widths))):
        yield (
            tuple(widths[i] for i in order),
            [e for i in order for e in range(int(starts[i]), int(starts[i + 1]))],
        )


def assert_is_reference(chain: Chain, references: Sequence[Reference]) -> None:
    """Compare the Jacobian of the whole chain, and all exponents, with those of maps written by hand.

    A state's tensors have an order of their own. With it known, the sums of ``ln R_ii`` over the chain are unique: numpy's QR of
    the hand-written matrices, one after the other, must give the same for the same cotangents.
    """
    found = dense(chain).numpy()
    assert len(found) == len(references)
    assert [math.prod(s) // len(found) for s, _ in chain.shapes(0)]
    count = found.shape[1]
    drawn = random_cotangents(chain, count, 11)
    division = Division(len(found), None)
    sums = qr_sweep(Trajectories(chain, division), drawn).sums().numpy()
    for sample, reference in enumerate(references):
        matrices, first, last = jacobians(reference)
        product = np.linalg.multi_dot(matrices[::-1]) if len(matrices) > 1 else matrices[0]
        assert found[sample].shape == product.shape
        # Order one, some tens of operations per entry and step.
        matches = [
            rows
            for (_, rows), (_, own) in itertools.product(reordered(last), reordered(first))
            if np.allclose(product[np.ix_(rows, own)], found[sample], rtol=0, atol=1e-12)
        ]
        assert matches
        Q = np.concatenate(
            [_samples_first(c)[:, sample].reshape(count, -1).double().numpy() for c in drawn if c is not None], axis=1
        )
        Q = Q[:, np.argsort(matches[0])].T
        Q, _ = np.linalg.qr(Q)
        total = np.zeros(count)
        for matrix in matrices[::-1]:
            Q, R = np.linalg.qr(matrix.T @ Q)
            with np.errstate(divide="ignore"):
                total[: len(R)] += np.log(np.abs(np.diag(R)))
                # There are no more dimensions.
                total[len(R) :] = -np.inf
        alive = np.isfinite(sums[sample])
        # Condition numbers of products are below 1e4 each step: 1e-16 of round-off grows to 1e-9 at most.
        assert np.allclose(sums[sample][alive], total[alive], rtol=0, atol=1e-8)
        assert alive[0] and (total[~alive] < -25).all()


@dataclass(frozen=True)
class Case:
    """A loop, the steps that it has, and its maps written by hand."""

    id: str
    build: Callable[[], nn.Module]
    by_hand: Callable[[Any, Tensor], Reference]
    """Of one sample, given the model and its input."""
    steps: tuple[str, ...]
    name: str = ""
    bug: str = ""
    raises: type[Exception] | None = None


def from_the_second(by_hand: Callable[[Any, Tensor], Reference]) -> Callable[[Any, Tensor], Reference]:
    """The same without the first step, whose state cannot be told."""

    def reference(model: Any, x: Tensor) -> Reference:
        state, maps = by_hand(model, x)
        return maps[0](*state), maps[1:]

    return reference


def to_the_last_but_one(by_hand: Callable[[Any, Tensor], Reference]) -> Callable[[Any, Tensor], Reference]:
    """The same without the last step, where the loop itself computes what is carried."""

    def reference(model: Any, x: Tensor) -> Reference:
        state, maps = by_hand(model, x)
        return state, maps[:-1]

    return reference


def calls_of(name: str, start: int = 0, stop: int = LENGTH) -> tuple[str, ...]:
    return tuple(f"{name}[{t}]" for t in range(start, stop))


# Loops ---------------------------------------------------------------------------------------------------------------


def gru_loop(model: Any, x: Tensor) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = model.cell(x[:, t], h)
    return h


def gru_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x),), [lambda h, t=t: (gru(model.cell, x[:, t], h),) for t in range(x.shape[1])]


def lstm_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x), zeros(x)), [lambda h, c, t=t: lstm(model.cell, x[:, t], h, c) for t in range(x.shape[1])]


def lstm_loop(model: Any, x: Tensor) -> Tensor:
    h = c = zeros(x)
    for t in range(x.shape[1]):
        h, c = model.cell(x[:, t], (h, c))
    return h


def lstm_without_state(model: Any, x: Tensor) -> Tensor:
    state, kept = None, []
    for t in range(x.shape[1]):
        state = model.cell(x[:, t], state)
        kept.append(state[0])
    return torch.stack(kept, 1)


def gru_by_keyword(model: Any, x: Tensor) -> Tensor:
    h = model.cell(x[:, 0])
    for t in range(1, x.shape[1]):
        h = model.cell(x[:, t], hx=h)
    return h


def gru_all_by_keyword(model: Any, x: Tensor) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = model.cell(hx=h, input=x[:, t])
    return h


def gru_none_by_keyword(model: Any, x: Tensor) -> Tensor:
    h = None
    for t in range(x.shape[1]):
        h = model.cell(input=x[:, t], hx=h)
    return h


def learned_start(model: Any, x: Tensor) -> Tensor:
    h = model.start.expand(len(x), -1)
    for t in range(x.shape[1]):
        h = model.cell(x[:, t], h)
    return h


def two_cells(model: Any, x: Tensor) -> Tensor:
    one = two = None
    for t in range(x.shape[1]):
        one = model.a(x[:, t], one)
        two = model.b(one[0], two)
    return two[0]


def two_cells_maps(model: Any, x: Tensor) -> Reference:
    def step(h: Tensor, c: Tensor, g: Tensor, d: Tensor, t: int) -> Blocks:
        h, c = lstm(model.a, x[:, t], h, c)
        return h, c, *lstm(model.b, h, g, d)

    return (zeros(x),) * 4, [lambda *s, t=t: step(*s, t=t) for t in range(x.shape[1])]


def layer_after_layer(model: Any, x: Tensor) -> Tensor:
    h, kept = zeros(x), []
    for t in range(x.shape[1]):
        h = model.a(x[:, t], h)
        kept.append(h)
    h = zeros(x)
    for below in kept:
        h = model.b(below, h)
    return h


def upper_layer_maps(model: Any, x: Tensor) -> Reference:
    h, below = zeros(x), []
    for t in range(x.shape[1]):
        h = gru(model.a, x[:, t], h).detach()
        below.append(h)
    return (zeros(x),), [lambda h, b=b: (gru(model.b, b, h),) for b in below]


def lower_layer_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x),), [lambda h, t=t: (gru(model.a, x[:, t], h),) for t in range(x.shape[1])]


class Elman(nn.Module):
    """A cell of one's own, whose state comes as the subclass has it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(FEATURES + WIDTH, WIDTH)

    def next(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([x, h], 1)))


def elman_maps(model: Any, x: Tensor, start: int = 0) -> Reference:
    h = zeros(x)
    for t in range(start):
        h = model.cell.next(x[:, t], h).detach()
    weight, bias = model.cell.mix.weight, model.cell.mix.bias
    return (h,), [
        lambda h, t=t: (torch.tanh(x[:, t] @ weight[:, :FEATURES].T + h @ weight[:, FEATURES:].T + bias),)
        for t in range(start, x.shape[1])
    ]


class OfDict(Elman):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.next(x, state["h"])
        return h.sin(), {"h": h}


def dict_loop(model: Any, x: Tensor) -> Tensor:
    state, kept = {"h": zeros(x)}, []
    for t in range(x.shape[1]):
        y, state = model.cell(x[:, t], state)
        kept.append(y)
    return torch.stack(kept, 1)


@dataclass
class Memory:
    h: Tensor
    age: int = 0


class OfDataclass(Elman):
    def forward(self, x: Tensor, state: Memory) -> Memory:
        return Memory(self.next(x, state.h), state.age + 1)


def dataclass_loop(model: Any, x: Tensor) -> Tensor:
    state = Memory(zeros(x))
    for t in range(x.shape[1]):
        state = model.cell(x[:, t], state)
    return state.h


class Stateful(Elman):
    def forward(self, x: Tensor) -> Tensor:
        self.h = self.next(x, self.h)
        return self.h


def stateful_loop(model: Any, x: Tensor) -> Tensor:
    model.cell.h = zeros(x)
    for t in range(x.shape[1]):
        y = model.cell(x[:, t])
    model.cell.h = None
    return y


class InPlace(Elman):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = self.next(x, h)
        return h.mul_(0.5).add_(new)


def in_place_maps(model: Any, x: Tensor) -> Reference:
    state, maps = elman_maps(model, x)
    return state, [lambda h, m=m: (0.5 * h + m(h)[0],) for m in maps]


def free_running(model: Any, x: Tensor) -> Tensor:
    h, y, kept = zeros(x), x[:, 0], []
    for _ in range(LENGTH):
        h = model.cell(y, h)
        y = model.head(h)
        kept.append(y)
    return torch.stack(kept, 1)


def free_running_maps(model: Any, x: Tensor) -> Reference:
    def step(h: Tensor, y: Tensor) -> Blocks:
        h = gru(model.cell, y, h)
        return h, h @ model.head.weight.T + model.head.bias

    return (zeros(x), x[:, 0]), [step] * LENGTH


def with_head(model: Any, x: Tensor) -> Tensor:
    h, kept = zeros(x), []
    for t in range(x.shape[1]):
        h = model.cell(x[:, t], h)
        kept.append(model.head(h))
    return torch.stack(kept, 1)


def normalized(model: Any, x: Tensor) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = model.norm(model.cell(x[:, t], h))
    return h


def normalized_maps(model: Any, x: Tensor) -> Reference:
    def step(h: Tensor, t: int) -> Blocks:
        y = gru(model.cell, x[:, t], h)
        y = y - y.mean(1, keepdim=True)
        return (y / (y.square().mean(1, keepdim=True) + model.norm.eps).sqrt(),)

    return (zeros(x),), [lambda h, t=t: step(h, t) for t in range(x.shape[1])]


def truncated(model: Any, x: Tensor) -> Tensor:
    h, kept = zeros(x), []
    for t in range(x.shape[1]):
        h = model.cell(x[:, t], h if t != 1 else h.detach())
        kept.append(h)
    return torch.stack(kept, 1)


def truncated_maps(model: Any, x: Tensor) -> Reference:
    # The detached state is a constant that no gradient is asked of: the chain starts with what the first call makes of it.
    h = zeros(x)
    for t in range(2):
        h = gru(model.cell, x[:, t], h).detach()
    return (h,), [lambda h, t=t: (gru(model.cell, x[:, t], h),) for t in range(2, x.shape[1])]


def shared_layer(model: Any, x: Tensor) -> Tensor:
    for _ in range(LENGTH):
        x = x + model.layer(x)
    return x


def shared_layer_maps(model: Any, x: Tensor) -> Reference:
    def branch(y: Tensor) -> Tensor:
        return torch.tanh(y @ model.layer[0].weight.T + model.layer[0].bias)

    return (x,), [lambda y: (y + branch(y),)] * LENGTH


def variable_length(model: Any, x: Tensor) -> Tensor:
    h, t = zeros(x), 0
    while t < LENGTH or float(h.detach().square().sum()) > 1e3:
        h = model.cell(x[:, t], h)
        t += 1
    return h


def two_lengths(model: Any, x: Tensor) -> Tensor:
    h = g = zeros(x)
    for t in range(x.shape[1]):
        h = model.long(x[:, t], h)
    for t in range(2):
        g = model.short(x[:, t], g)
    return torch.cat([h, g], 1)


def every_second(model: Any, x: Tensor) -> Tensor:
    fast = slow = zeros(x)
    for t in range(x.shape[1]):
        fast = model.fast(torch.cat([x[:, t], slow], 1), fast)
        if t % 2:
            slow = model.slow(fast, slow)
    return fast


def every_second_maps(model: Any, x: Tensor) -> Reference:
    def whole(fast: Tensor) -> Blocks:
        slow = zeros(x)
        for t in range(x.shape[1] - 1):
            fast = gru(model.fast, torch.cat([x[:, t], slow], 1), fast)
            if t % 2:
                slow = gru(model.slow, fast, slow)
        return fast, slow

    return (zeros(x),), [whole]


def translator(model: Any, x: Tensor) -> Tensor:
    _, state = model.encoder(x)
    return model.decoder(x.flip(1), state)[0]


def decoder_maps(model: Any, x: Tensor) -> Reference:
    h = c = zeros(x)
    for t in range(x.shape[1]):
        h, c = (s.detach() for s in lstm(model.encoder, x[:, t], h, c, "_l0"))
    return (h, c), [lambda h, c, t=t: lstm(model.decoder, x[:, -1 - t], h, c, "_l0") for t in range(x.shape[1])]


def stacked_maps(model: Any, x: Tensor) -> Reference:
    def step(h: Tensor, g: Tensor, t: int) -> Blocks:
        h = gru(model.rnn, x[:, t], h, "_l0")
        return h, gru(model.rnn, h, g, "_l1")

    return (zeros(x), zeros(x)), [lambda *s, t=t: step(*s, t=t) for t in range(x.shape[1])]


def reverse_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x),), [
        lambda h, t=t: (gru(model.rnn, x[:, t], h, "_l0_reverse"),) for t in reversed(range(x.shape[1]))
    ]


def one_step_at_a_time(model: Any, x: Tensor) -> Tensor:
    h, kept = None, []
    for t in range(x.shape[1]):
        y, h = model.rnn(x[:, t : t + 1], h)
        kept.append(y)
    return torch.cat(kept, 1)


def fused_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x),), [lambda h, t=t: (gru(model.rnn, x[:, t], h, "_l0"),) for t in range(x.shape[1])]


def fused_in_pieces(model: Any, x: Tensor) -> Tensor:
    y, state = model.rnn(x[:, :1])
    z, _ = model.rnn(x[:, 1:], state)
    return torch.cat([y, z], 1)


def attending(model: Any, x: Tensor) -> Tensor:
    """The state is read beside the layer, too: it asks where to look."""
    h, seen = zeros(x)[None], model.memory(x)
    for t in range(x.shape[1]):
        weights = torch.softmax((seen * h[0][:, None]).sum(-1), 1)
        context = (weights[..., None] * seen).sum(1)
        _, h = model.rnn(torch.cat([x[:, t], context], 1)[:, None], h)
    return h[0]


def attending_maps(model: Any, x: Tensor) -> Reference:
    seen = (x @ model.memory.weight.T + model.memory.bias).detach()

    def step(h: Tensor, t: int) -> Blocks:
        weights = torch.softmax((seen * h[:, None]).sum(-1), 1)
        return (gru(model.rnn, torch.cat([x[:, t], (weights[..., None] * seen).sum(1)], 1), h, "_l0"),)

    return (zeros(x),), [lambda h, t=t: step(h, t) for t in range(x.shape[1])]


def residual(model: Any, x: Tensor) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = h + model.cell(x[:, t], h)
    return h


def residual_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x),), [lambda h, t=t: (h + gru(model.cell, x[:, t], h),) for t in range(x.shape[1])]


def masked(model: Any, x: Tensor) -> Tensor:
    """Padding is held, as before packed sequences; of the last step the cell's own output counts."""
    h = zeros(x)
    for t in range(x.shape[1]):
        h = torch.where(
            torch.ones(len(x), 1, dtype=torch.bool) if t != 1 else torch.tensor(False), model.cell(x[:, t], h), h
        )
    return h


def masked_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x),), [lambda h, t=t: (h if t == 1 else gru(model.cell, x[:, t], h),) for t in range(x.shape[1])]


def masked_at_first(model: Any, x: Tensor) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        new = model.cell(x[:, t], h)
        h = 0.5 * new + 0.5 * h if t == 0 else new
    return h


def masked_at_first_maps(model: Any, x: Tensor) -> Reference:
    return (zeros(x),), [
        lambda h, t=t: (gru(model.cell, x[:, t], h) * (0.5 if t == 0 else 1) + (0.5 * h if t == 0 else 0),)
        for t in range(x.shape[1])
    ]


def checkpointed(model: Any, x: Tensor) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = checkpoint(model.cell, x[:, t], h, use_reentrant=False)
    return h


def checkpointed_from_signal(model: Any, x: Tensor) -> Tensor:
    h = model.start(x[:, 0])
    for t in range(x.shape[1]):
        h = checkpoint(model.cell, x[:, t], h, use_reentrant=False)
    return h


def from_signal_maps(model: Any, x: Tensor) -> Reference:
    _, maps = gru_maps(model, x)
    return ((x[:, 0] @ model.start.weight.T + model.start.bias).detach(),), maps


def stepwise_stack(model: Any, x: Tensor) -> Tensor:
    lower = upper = None
    for t in range(x.shape[1]):
        y, lower = model.a(x[:, t : t + 1], lower)
        y, upper = model.b(y, upper)
    return y


def stepwise_stack_maps(model: Any, x: Tensor) -> Reference:
    def step(h: Tensor, g: Tensor, t: int) -> Blocks:
        h = gru(model.a, x[:, t], h, "_l0")
        return h, gru(model.b, h, g, "_l0")

    return (zeros(x), zeros(x)), [lambda *s, t=t: step(*s, t=t) for t in range(x.shape[1])]


def layer_then_cell(model: Any, x: Tensor) -> Tensor:
    h, lower = zeros(x), None
    for t in range(x.shape[1]):
        y, lower = model.a(x[:, t : t + 1], lower)
        h = model.b(y[:, 0], h)
    return h


def layer_then_cell_maps(model: Any, x: Tensor) -> Reference:
    def step(h: Tensor, g: Tensor, t: int) -> Blocks:
        h = gru(model.a, x[:, t], h, "_l0")
        return h, gru(model.b, h, g)

    return (zeros(x), zeros(x)), [lambda *s, t=t: step(*s, t=t) for t in range(x.shape[1])]


def cell_then_layer(model: Any, x: Tensor) -> Tensor:
    h, upper = zeros(x), None
    for t in range(x.shape[1]):
        h = model.a(x[:, t], h)
        y, upper = model.b(h[:, None], upper)
    return y


def cell_then_layer_maps(model: Any, x: Tensor) -> Reference:
    def step(h: Tensor, g: Tensor, t: int) -> Blocks:
        h = gru(model.a, x[:, t], h)
        return h, gru(model.b, h, g, "_l0")

    return (zeros(x), zeros(x)), [lambda *s, t=t: step(*s, t=t) for t in range(x.shape[1])]


def cell(width: int = FEATURES) -> nn.GRUCell:
    return nn.GRUCell(width, WIDTH)


def fused(width: int = FEATURES, **options: Any) -> nn.GRU:
    return nn.GRU(width, WIDTH, batch_first=True, **options)


def looped(run: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: Loop(run, **{name: make() for name, make in parts.items()})


OUTSIDE = "the initial zeros are read beside the module, too; only the module's own copy of them is made a signal"

CASES = [
    Case("gru-loop", looped(gru_loop, cell=cell), gru_maps, calls_of("cell")),
    Case("lstm-loop", looped(lstm_loop, cell=lambda: nn.LSTMCell(FEATURES, WIDTH)), lstm_maps, calls_of("cell")),
    Case(
        "lstm-none", looped(lstm_without_state, cell=lambda: nn.LSTMCell(FEATURES, WIDTH)), lstm_maps, calls_of("cell")
    ),
    Case("gru-no-hx", looped(gru_by_keyword, cell=cell), gru_maps, calls_of("cell")),
    Case("gru-keywords", looped(gru_all_by_keyword, cell=cell), gru_maps, calls_of("cell")),
    Case(
        "gru-none-by-keyword",
        looped(gru_none_by_keyword, cell=cell),
        gru_maps,
        calls_of("cell"),
    ),
    Case(
        "learned-start",
        looped(learned_start, cell=cell, start=lambda: nn.Parameter(torch.zeros(1, WIDTH))),
        gru_maps,
        calls_of("cell"),
    ),
    Case(
        "weight-normed-cell",
        looped(gru_loop, cell=lambda: parametrizations.weight_norm(cell(), "weight_hh")),
        gru_maps,
        calls_of("cell"),
    ),
    Case(
        "two-cells",
        looped(two_cells, a=lambda: nn.LSTMCell(FEATURES, WIDTH), b=lambda: nn.LSTMCell(WIDTH, WIDTH)),
        two_cells_maps,
        calls_of("b"),
    ),
    Case("lower-layer", looped(layer_after_layer, a=cell, b=lambda: cell(WIDTH)), lower_layer_maps, calls_of("a")),
    Case(
        "upper-layer",
        looped(layer_after_layer, a=cell, b=lambda: cell(WIDTH)),
        upper_layer_maps,
        calls_of("b"),
        name="b",
    ),
    # What is inside of a dictionary or an object is left alone: a step may put its new state there.
    Case("dict-state", looped(dict_loop, cell=OfDict), from_the_second(elman_maps), calls_of("cell", 1)),
    Case(
        "dataclass-state",
        looped(dataclass_loop, cell=OfDataclass),
        from_the_second(elman_maps),
        calls_of("cell", 1),
    ),
    Case("stateful", looped(stateful_loop, cell=Stateful), lambda m, x: elman_maps(m, x, 1), calls_of("cell", 1)),
    Case("in-place", looped(lambda m, x: gru_loop(m, x).clone(), cell=InPlace), in_place_maps, calls_of("cell")),
    Case("head", looped(with_head, cell=cell, head=lambda: nn.Linear(WIDTH, 2)), gru_maps, calls_of("cell")),
    Case(
        "free-running",
        looped(free_running, cell=cell, head=lambda: nn.Linear(WIDTH, FEATURES)),
        free_running_maps,
        calls_of("head"),
    ),
    Case(
        "layer-norm", looped(normalized, cell=cell, norm=lambda: nn.LayerNorm(WIDTH)), normalized_maps, calls_of("norm")
    ),
    Case("truncated", looped(truncated, cell=cell), truncated_maps, calls_of("cell", 2)),
    Case(
        "shared-layer",
        looped(shared_layer, layer=lambda: nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh())),
        to_the_last_but_one(lambda m, x: shared_layer_maps(m, x[:, 0])),
        calls_of("layer", 0, LENGTH - 1),
    ),
    Case("variable-length", looped(variable_length, cell=cell), gru_maps, calls_of("cell")),
    Case(
        "long-of-two",
        looped(two_lengths, long=cell, short=cell),
        lambda m, x: ((zeros(x),), [lambda h, t=t: (gru(m.long, x[:, t], h),) for t in range(LENGTH)]),
        calls_of("long"),
    ),
    Case(
        "short-of-two",
        looped(two_lengths, long=cell, short=cell),
        lambda m, x: ((zeros(x),), [lambda h, t=t: (gru(m.short, x[:, t], h),) for t in range(2)]),
        calls_of("short", 0, 2),
        name="short",
    ),
    Case(
        "every-second",
        looped(every_second, fast=lambda: cell(FEATURES + WIDTH), slow=lambda: cell(WIDTH)),
        every_second_maps,
        # What slow makes is carried beside fast, and what becomes of it after the last call of fast is not known.
        calls_of("fast", 0, LENGTH - 1),
    ),
    Case(
        "decoder",
        looped(
            translator,
            encoder=lambda: nn.LSTM(FEATURES, WIDTH, batch_first=True),
            decoder=lambda: nn.LSTM(FEATURES, WIDTH, batch_first=True),
        ),
        decoder_maps,
        calls_of("decoder"),
        name="decoder",
    ),
    Case(
        "fused-stack", looped(lambda m, x: m.rnn(x)[0], rnn=lambda: fused(num_layers=2)), stacked_maps, calls_of("rnn")
    ),
    Case(
        "reverse",
        looped(lambda m, x: m.rnn(x)[0], rnn=lambda: fused(bidirectional=True)),
        reverse_maps,
        calls_of("rnn.l0_reverse"),
        name="rnn.l0_reverse",
    ),
    Case("one-at-a-time", looped(one_step_at_a_time, rnn=fused), fused_maps, calls_of("rnn")),
    Case("in-pieces", looped(fused_in_pieces, rnn=fused), fused_maps, calls_of("rnn")),
    # The initial zeros are read beside the module, too; only the module's own copy of them can be made a signal.
    Case(
        "masked",
        looped(masked, cell=cell),
        to_the_last_but_one(from_the_second(masked_maps)),
        calls_of("cell", 1, LENGTH - 1),
    ),
    Case("masked-at-first", looped(masked_at_first, cell=cell), masked_at_first_maps, calls_of("cell"), bug=OUTSIDE),
    Case(
        "residual",
        looped(residual, cell=cell),
        to_the_last_but_one(from_the_second(residual_maps)),
        calls_of("cell", 1, LENGTH - 1),
    ),
    Case(
        "attending",
        looped(attending, rnn=lambda: fused(FEATURES + WIDTH), memory=lambda: nn.Linear(FEATURES, WIDTH)),
        attending_maps,
        calls_of("rnn"),
        bug=OUTSIDE,
    ),
    Case(
        "checkpointed-from-signal",
        looped(checkpointed_from_signal, cell=cell, start=lambda: nn.Linear(FEATURES, WIDTH)),
        from_signal_maps,
        calls_of("cell"),
    ),
    Case(
        "checkpointed",
        looped(checkpointed, cell=cell),
        gru_maps,
        calls_of("cell"),
        bug="a checkpointed call is repeated with the tensor that the model gave, which carries no gradient: CheckpointError",
        raises=CheckpointError,
    ),
    Case(
        "stepwise-stack",
        looped(stepwise_stack, a=fused, b=lambda: fused(WIDTH)),
        stepwise_stack_maps,
        calls_of("b"),
    ),
    Case(
        "layer-then-cell",
        looped(layer_then_cell, a=fused, b=lambda: cell(WIDTH)),
        layer_then_cell_maps,
        calls_of("b"),
    ),
    Case(
        "cell-then-layer", looped(cell_then_layer, a=cell, b=lambda: fused(WIDTH)), cell_then_layer_maps, calls_of("b")
    ),
]


def parameter(case: Case) -> Any:
    marks = [pytest.mark.xfail(strict=True, reason=case.bug, raises=case.raises)] if case.bug else []
    return pytest.param(case, id=case.id, marks=marks)


def built(case: Case) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = inputs(BATCH, LENGTH, FEATURES)
    return case.build().double(), x[:, 0] if case.id == "shared-layer" else x


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_chain_is_the_one_written_by_hand(case: Case) -> None:
    """Names, number of steps, number of trajectories, the Jacobian of the whole, and every exponent."""
    model, x = built(case)
    chain = cut(model, x, name=case.name)
    assert chain.names == case.steps
    assert chain.along == "time"
    assert_one_backward(chain)
    assert find_trajectories(chain, len(x), 0)[0].count == BATCH
    with torch.no_grad():
        # Gradients of the reference are its own.
        whole = inputs(BATCH, LENGTH, FEATURES)
    assert_is_reference(chain, [case.by_hand(model, whole[b : b + 1]) for b in range(BATCH)])


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if case.id != "checkpointed"])
def test_watching_changes_no_number(case: Case) -> None:
    """Instruments look. To round-off, for fused layers are computed in plain operations."""
    model, x = built(case)
    torch.manual_seed(5)
    expected = model(x)
    torch.testing.assert_close(captured(model, x).output, expected, rtol=1e-13, atol=1e-14)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


# What a module is given at first ---------------------------------------------------------------------------------------


class IntoDict(Elman):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        state["h"] = self.next(x, state.get("h", zeros(x)))
        return state["h"]


class IntoList(Elman):
    def forward(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        kept.append(self.next(x, kept[-1] if kept else zeros(x)))
        return kept[-1]


class IntoBuffer(Elman):
    def forward(self, x: Tensor, h: Tensor, kept: Tensor, t: int) -> Tensor:
        h = self.next(x, h)
        kept[:, t] = h
        return h


class IntoState(Elman):
    def forward(self, x: Tensor, h: Tensor) -> None:
        h.copy_(self.next(x, h.clone()))


def into_dict(model: Any, x: Tensor) -> Tensor:
    state: dict[str, Tensor] = {}
    return torch.stack([model.cell(x[:, t], state) for t in range(LENGTH)], 1)


def into_list(model: Any, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    for t in range(LENGTH):
        model.cell(x[:, t], kept)
    return torch.stack(kept, 1)


def into_buffer(model: Any, x: Tensor) -> Tensor:
    h, kept = zeros(x), x.new_zeros(len(x), LENGTH, WIDTH)
    for t in range(LENGTH):
        h = model.cell(x[:, t], h, kept, t)
    return kept


def into_state(model: Any, x: Tensor) -> Tensor:
    h, kept = zeros(x), []
    for t in range(LENGTH):
        model.cell(x[:, t], h)
        kept.append(h.clone())
    return torch.stack(kept, 1)


@pytest.mark.parametrize(
    ("run", "own"),
    [
        pytest.param(into_dict, IntoDict, id="dict"),
        pytest.param(into_list, IntoList, id="list"),
        pytest.param(into_buffer, IntoBuffer, id="buffer"),
        pytest.param(into_state, IntoState, id="state-in-place"),
    ],
)
def test_arguments_that_a_module_writes_into_are_the_caller_s(run: Callable[..., Tensor], own: type[Elman]) -> None:
    """``incremental_state`` of a decoder, a key-value cache, a buffer of outputs: what is passed is shared."""
    torch.manual_seed(0)
    model, x = Loop(run, cell=own()).double(), inputs(BATCH, LENGTH, FEATURES)
    expected = model(x)
    output = captured(model, x).output
    assert output.shape == expected.shape
    torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-14)


def test_arguments_of_other_kinds_are_handed_on() -> None:
    """Integers, None, strings and objects are what the model gave."""
    token = object()

    class Odd(Elman):
        def forward(self, x: Tensor, h: Tensor, index: Tensor, *, how: str, nothing: None, thing: object) -> Tensor:
            assert index.dtype == torch.int64 and how == "so" and nothing is None and thing is token
            return self.next(x, h) + index

    def run(model: Any, x: Tensor) -> Tensor:
        h = zeros(x)
        for t in range(LENGTH):
            h = model.cell(x[:, t], h, torch.tensor(t), how="so", nothing=None, thing=token)
        return h

    model = Loop(run, cell=Odd()).double()
    assert len(cut(model, inputs(BATCH, LENGTH, FEATURES))) == LENGTH


# Which recurrence --------------------------------------------------------------------------------------------------------


def names_of(model: nn.Module, *args: Any) -> list[tuple[str, int, int]]:
    return [(r.name, len(r), r.sequences) for r in recurrences(captured(model, *args))]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (looped(two_lengths, long=cell, short=cell), [("long", 4, 1), ("short", 2, 1)]),
        (looped(two_cells, a=lambda: nn.LSTMCell(4, 3), b=lambda: nn.LSTMCell(3, 3)), [("b", 4, 1)]),
        (looped(layer_after_layer, a=cell, b=lambda: cell(WIDTH)), [("a", 4, 1), ("b", 4, 1)]),
        (looped(every_second, fast=lambda: cell(7), slow=lambda: cell(3)), [("fast", 4, 1)]),
        (
            looped(translator, encoder=lambda: nn.LSTM(4, 3), decoder=lambda: nn.LSTM(4, 3)),
            [("encoder", 2, 1), ("decoder", 2, 1)],
        ),
        (looped(lambda m, x: m.rnn(x)[0] + m.rnn(-x)[0], rnn=fused), [("rnn", 4, 2)]),
        (looped(truncated, cell=cell), [("cell", 3, 2)]),
    ],
    ids=["two-lengths", "take-turns", "layer-after-layer", "every-second", "encoder-decoder", "siamese", "truncated"],
)
def test_all_recurrences_are_found(build: Callable[[], nn.Module], expected: list[tuple[str, int, int]]) -> None:
    """In the order of their beginning, with their lengths and the number of stretches."""
    torch.manual_seed(0)
    assert names_of(build().double(), inputs(BATCH, LENGTH, FEATURES)) == expected


def test_module_inside_a_recurrent_one_is_none_of_its_own() -> None:
    model = Loop(dict_loop, cell=OfDict()).double()
    assert names_of(model, inputs(BATCH, LENGTH, FEATURES)) == [("cell", LENGTH, 1)]


def test_either_name_of_two_that_take_turns_will_do() -> None:
    torch.manual_seed(0)
    model = Loop(two_cells, a=nn.LSTMCell(FEATURES, WIDTH), b=nn.LSTMCell(WIDTH, WIDTH)).double()
    x = inputs(BATCH, LENGTH, FEATURES)
    assert cut(model, x, name="a").names == cut(model, x, name="b").names == calls_of("b")


@pytest.mark.parametrize(
    "length",
    [
        1,
        2,
        LENGTH,
    ],
)
def test_directions_and_layers_stay_apart_however_short(length: int) -> None:
    torch.manual_seed(0)
    x = inputs(BATCH, length, FEATURES)
    two_ways = Loop(lambda m, x: m.rnn(x)[0], rnn=fused(bidirectional=True)).double()
    assert names_of(two_ways, x) == [("rnn.l0", length, 1), ("rnn.l0_reverse", length, 1)]
    layers = Loop(lambda m, x: m.b(m.a(x)[0])[0], a=fused(), b=fused(WIDTH)).double()
    assert names_of(layers, x) == [("a", length, 1), ("b", length, 1)]


def lockstep(model: Any, x: Tensor) -> Tensor:
    h = g = zeros(x)
    for t in range(x.shape[1]):
        h, g = model.cell(x[:, t], h), model.cell(-x[:, t], g)
    return h + g


def tied_stack(model: Any, x: Tensor) -> Tensor:
    h = g = zeros(x)
    for t in range(x.shape[1]):
        h = model.cell(x[:, t], h)
        g = model.cell(h, g)
    return g


@pytest.mark.parametrize(("run", "width"), [(lockstep, FEATURES), (tied_stack, WIDTH)], ids=["lockstep", "tied-stack"])
def test_one_cell_for_two_streams_is_followed_through_time(run: Callable[..., Tensor], width: int) -> None:
    """Two sequences side by side, or two layers with the same weights: each has as many steps as there is time."""
    torch.manual_seed(0)
    model = Loop(run, cell=cell(width)).double()
    assert len(cut(model, inputs(BATCH, LENGTH, width))) >= LENGTH - 1


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 5)),
        lambda: Loop(lambda m, x: m.cell(x[:, 0]), cell=cell()),
        lambda: Loop(lambda m, x: m.cell(x[:, 1], m.cell(x[:, 0]).detach()), cell=cell()),
    ],
    ids=["feed-forward", "one-call", "detached"],
)
def test_model_without_recurrence_is_told_so(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(CutError, match=r"steps='time' needs a recurrence: .*has none that the output depends on"):
        measure(build().double(), inputs(BATCH, LENGTH, FEATURES), steps="time")


def test_state_out_of_sight_is_told_so() -> None:
    """An object that is no container hides its tensors; two calls leave no step whose both ends are seen."""

    class Opaque:
        def __init__(self, h: Tensor) -> None:
            self.h = h

    class OfObject(Elman):
        def forward(self, x: Tensor, state: Opaque) -> Opaque:
            return Opaque(self.next(x, state.h))

    def run(model: Any, x: Tensor) -> Tensor:
        state = Opaque(zeros(x))
        for t in range(x.shape[1]):
            state = model.cell(x[:, t], state)
        return state.h

    with pytest.raises(
        CutError, match=r"a state must be carried through at least two time steps.*pass the state to the module"
    ):
        measure(Loop(run, cell=OfObject()).double(), inputs(BATCH, LENGTH, FEATURES), steps="time")


def test_unknown_name_is_told_which_there_are() -> None:
    model = Loop(two_lengths, long=cell(), short=cell()).double()
    with pytest.raises(
        UsageError, match=r"steps='time:cell' must name a recurrence of Loop. It has 'time:long', 'time:short'"
    ):
        measure(model, inputs(BATCH, LENGTH, FEATURES), steps="time:cell")


@pytest.mark.parametrize(("warmup", "alignment"), [(4, 0), (0, 4), (2, 2), (9, 9)])
def test_warmup_and_alignment_must_leave_a_step(warmup: int, alignment: int) -> None:
    with pytest.raises(UsageError, match=rf"must leave a step.*Got {warmup} and {alignment} for a chain of 4"):
        measure(
            Loop(gru_loop, cell=cell()).double(),
            inputs(BATCH, LENGTH, FEATURES),
            steps="time",
            warmup=warmup,
            alignment=alignment,
        )


@pytest.mark.parametrize("what", ["warmup", "alignment"])
@pytest.mark.parametrize("value", [-1, 1.0, True])
def test_warmup_and_alignment_must_be_counts(what: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{what} must be a whole number of at least 0"):
        measure(Loop(gru_loop, cell=cell()).double(), inputs(BATCH, LENGTH, FEATURES), steps="time", **{what: value})


# Trajectories --------------------------------------------------------------------------------------------------------


def time_major(model: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[1], WIDTH)
    for entry in x:
        h = model.cell(entry, h)
    return h


@pytest.mark.parametrize(("length", "batch"), [(2, 6), (6, 2), (4, 4), (3, 1), (1, 3)])
def test_one_trajectory_per_sample_where_time_comes_first(length: int, batch: int) -> None:
    """Inputs ``(T, B, D)``, T a divisor of B or the other way around: a trajectory is a sample's."""
    torch.manual_seed(0)
    x = inputs(length, batch, FEATURES)
    for model in (nn.GRU(FEATURES, WIDTH).double(), Loop(time_major, cell=cell()).double()):
        if length == 1 and isinstance(model, Loop):
            continue
        chain = cut(model, x)
        assert len(chain) == length
        assert find_trajectories(chain, length, 0)[0].count == batch


def test_samples_that_interact_have_a_joint_trajectory() -> None:
    torch.manual_seed(0)
    model = Loop(normalized, cell=cell(), norm=nn.BatchNorm1d(WIDTH)).double()
    result = measure(model, inputs(BATCH, LENGTH, FEATURES), steps="time")
    assert result.frame == "joint" and result.steps.names == calls_of("norm")
    assert measure(model, inputs(BATCH, LENGTH, FEATURES), steps="time", train=False).frame == "per sample"


def scaled(rates: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """A recurrence whose units do not interact."""
    factors = torch.tensor(rates, dtype=torch.float64)
    return lambda state: state * factors


@pytest.mark.parametrize(
    "batch",
    [
        1,
        2,
        3,
    ],
)
def test_units_that_do_not_interact_are_no_samples(batch: int) -> None:
    """A diagonal recurrence, as in a state space model: its largest exponent is that of the slowest unit, not the average."""
    rates = [0.5, 2.0, 1.0]
    # All but one part in 2^60 of a cotangent lies along the leading unit after 60 steps, which alignment leaves out.
    result = measure(Rollout(scaled(rates), steps=80), torch.ones(batch, 3, dtype=torch.float64), alignment=60)
    assert float(result.lyapunov_max) == pytest.approx(math.log(2), abs=1e-12)


def test_batch_of_one_is_one_trajectory() -> None:
    torch.manual_seed(0)
    chain = cut(Loop(gru_loop, cell=cell()).double(), inputs(1, LENGTH, FEATURES))
    assert find_trajectories(chain, 1, 0)[0].division == Division(1)


@pytest.mark.parametrize("length", [1, 2])
def test_shortest_sequences(length: int) -> None:
    """A fused layer shows its steps however few; a loop needs two calls to be one."""
    torch.manual_seed(0)
    x = inputs(BATCH, length, FEATURES)
    assert (
        measure(nn.LSTM(FEATURES, WIDTH, batch_first=True).double(), x, steps="time").steps.names[-1].startswith("LSTM")
    )
    loop = Loop(lstm_loop, cell=nn.LSTMCell(FEATURES, WIDTH)).double()
    if length == 1:
        with pytest.raises(CutError, match="needs a recurrence"):
            measure(loop, x, steps="time")
    else:
        assert measure(loop, x, steps="time").steps.names == calls_of("cell", 0, 2)


# Numbers of a measurement ----------------------------------------------------------------------------------------------


def linear(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda state: state @ matrix.T


def rotation(angle: float, radius: float) -> Tensor:
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def random_matrix(size: int) -> Tensor:
    return inputs(size, size) / math.sqrt(size)


def start(size: int, batch: int = BATCH) -> Tensor:
    return inputs(batch, size)


SMALL = {
    "complex-pair": rotation(0.7, 0.9),
    "non-normal": torch.tensor([[0.5, 100.0], [0.0, 0.4]], dtype=torch.float64),
    "negative": torch.diag(torch.tensor([-1.5, 1.0, 0.2], dtype=torch.float64)),
    "random": random_matrix(7),
    "zero": torch.zeros(3, 3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SMALL)
def test_spectral_radius_is_numpy_s(name: str) -> None:
    """Of each step alone, whatever the product does."""
    matrix = SMALL[name]
    result = measure(Rollout(linear(matrix), steps=9), start(len(matrix)), measures=["spectral_radius"])
    expected = float(np.abs(np.linalg.eigvals(matrix.numpy())).max())
    assert 1 <= len(result.spectral_radius) <= 5
    # Eigenvalues are good to eps times their condition number, here below 1e4.
    assert [float(v) for v in result.spectral_radius.values()] == pytest.approx(
        [expected] * len(result.spectral_radius), abs=1e-11
    )


@pytest.mark.parametrize(
    "kind",
    [
        "random",
        "symmetric",
    ],
)
@pytest.mark.parametrize("dense", [100, 1000], ids=["iterated", "dense"])
def test_spectral_radius_of_a_large_state(kind: str, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterated, to the 0.1 % that are promised; a complex pair or a real one leads."""
    monkeypatch.setattr(spectra, "DENSE", dense)
    matrix = random_matrix(260) + 0.1 * torch.eye(260, dtype=torch.float64)
    matrix = matrix + matrix.T if kind == "symmetric" else matrix
    result = measure(Rollout(linear(matrix), steps=3), start(260), measures=["spectral_radius"])
    expected = float(np.abs(np.linalg.eigvals(matrix.numpy())).max())
    assert [float(v) for v in result.spectral_radius.values()] == pytest.approx([expected] * 3, rel=1e-3)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer on this system")
def test_spectral_radius_of_a_large_orthogonal_recurrence_takes_no_minutes() -> None:
    """The usual initialization of a large RNN: all eigenvalues on the unit circle."""
    torch.manual_seed(0)
    matrix = torch.block_diag(*[rotation(0.01 + 3.1 * i / 130, 1.0) for i in range(130)])
    chain = Rollout(linear(matrix), steps=3)
    with at_most(0.8):
        measure(chain, start(260, 1), measures=["spectral_radius"])


def test_spectral_radius_of_a_large_dead_recurrence_is_zero() -> None:
    """All units of a ReLU network off."""
    result = measure(Rollout(lambda state: torch.relu(state - 10), steps=4), start(260), measures=["spectral_radius"])
    assert all(float(v) == 0 for v in result.spectral_radius.values())


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_spectral_radius_of_an_lstm_is_that_of_the_map_written_by_hand(length: int) -> None:
    """Before and after a step the parts of the state must be the same ones in the same order, which those of x_0 need not be."""
    torch.manual_seed(0)
    rnn = nn.LSTM(FEATURES, WIDTH, batch_first=True).double()
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(4)
    x = inputs(1, length, FEATURES)
    maps = [lambda h, c, t=t: lstm(rnn, x[:, t], h, c, "_l0") for t in range(length)]
    matrices, _, _ = jacobians(((zeros(x), zeros(x)), maps))
    expected = {t: float(np.abs(np.linalg.eigvals(matrix)).max()) for t, matrix in enumerate(matrices)}
    result = measure(rnn, x, steps="time", measures=["spectral_radius"])
    found = {int(n.removeprefix("LSTM").strip("[]") or 0): float(v) for n, v in result.spectral_radius.items()}
    assert bool(found) == (length > 1)
    assert found == pytest.approx({t: expected[t] for t in found}, rel=1e-9)


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("steps", "dt"), [(4, None), (30, None), (12, 0.1)])
def test_horizons_of_a_linear_recurrence_are_in_closed_form(rate: float, steps: int, dt: float | None) -> None:
    """An isotropic contraction loses ``-ln rate`` nats a step, inside of the chain and beyond it."""
    result = measure(
        Rollout(linear(rotation(0.3, rate)), steps=steps, dt=dt),
        start(2),
        measures=["memory_horizon", "precision_horizon"],
    )
    unit = 1.0 if dt is None else dt
    assert float(result.memory_horizon) == pytest.approx(unit * math.log(100) / -math.log(rate), rel=1e-10)
    assert float(result.precision_horizon) == pytest.approx(unit * 52 * math.log(2) / -math.log(rate), rel=1e-10)
    assert float(result.lyapunov_max) == pytest.approx(math.log(rate) / unit, rel=1e-12)


def test_horizons_of_what_does_not_shrink() -> None:
    """Never, where the rate is not negative; the first dead step where one is."""
    for rate in (1.5, 2.0):
        result = measure(Rollout(linear(rotation(0.3, rate)), steps=5), start(2))
        assert float(result.memory_horizon) == math.inf
        assert float(result.precision_horizon) == math.inf
    dead = measure(Rollout(lambda state: 0.0 * state, steps=5), start(2))
    assert float(dead.memory_horizon) == float(dead.precision_horizon) == 1.0


def test_horizon_is_crossed_where_the_gradient_is_first_below() -> None:
    """What has grown must be lost first: one step of growth by e and steps of loss by e²."""
    factors = torch.tensor([-2.0] * 6 + [1.0], dtype=torch.float64).exp()[:, None, None]
    model = Rollout(lambda state, factor: state * factor, steps=7)
    result = measure(model, (start(2), factors.expand(-1, BATCH, 2).contiguous()), measures=["memory_horizon"])
    # From the end: +1 nat in one step, then -2 per step until ln 100 are lost.
    assert float(result.memory_horizon) == pytest.approx(1 + (math.log(100) + 1) / 2, rel=1e-12)


@pytest.mark.parametrize(("warmup", "alignment"), [(0, 0), (2, 0), (0, 3), (1, 2)])
def test_history_ends_with_the_exponents(warmup: int, alignment: int) -> None:
    """At the first step that counts the running averages are the exponents, of packed sequences, too."""
    torch.manual_seed(0)

    def run(model: Any, x: Tensor) -> Any:
        return model.rnn(pack_padded_sequence(x, [6, 2], batch_first=True))[1]

    for model, x in (
        (Loop(run, rnn=fused()).double(), inputs(2, 6, FEATURES)),
        (Loop(lstm_loop, cell=nn.LSTMCell(FEATURES, WIDTH)).double(), inputs(BATCH, 6, FEATURES)),
        (Rollout(linear(random_matrix(3)), steps=6, dt=0.2), start(3)),
    ):
        result = measure(
            model, x, steps="time", exponents=2, warmup=warmup, alignment=alignment, measures=["lyapunov_history"]
        )
        first = result.steps.names[warmup]
        history = [float(result.lyapunov_history[name]) for name in (first, f"{first} exponent 2")]
        # The same logarithms, added up in another order.
        assert sorted(history, reverse=True) == pytest.approx([float(e) for e in result.lyapunov_spectrum], abs=1e-12)
        assert len(result.lyapunov_history) == 2 * (6 - warmup - alignment)


def test_history_of_a_sample_that_dies_does_not_end_elsewhere() -> None:
    """One of two samples is dead: the exponent is -inf, and the history must not end with that of the other."""
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    result = measure(Rollout(lambda s: 0.5 * torch.relu(s), steps=4), x, measures=["lyapunov_history"])
    assert float(result.lyapunov_max) == -math.inf
    last = float(result.lyapunov_history["step[0]"])
    assert last == -math.inf or math.isnan(last)


# Rollouts --------------------------------------------------------------------------------------------------------------


def test_rollout_is_the_loop_that_it_stands_for() -> None:
    """The same chain as a loop written out, from the first state to the last."""
    torch.manual_seed(0)
    x = inputs(LENGTH, BATCH, FEATURES)

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell()

        def forward(self, state: Tensor, entry: Tensor) -> Tensor:
            return self.cell(entry, state)

    model = Rollout(Step()).double()
    chain = cut(model, inputs(BATCH, WIDTH), x)
    assert chain.names == calls_of("step")
    maps = [lambda h, t=t: (gru(model.step.cell, x[t, :1], h),) for t in range(LENGTH)]
    others = [lambda h, t=t: (gru(model.step.cell, x[t, 1:], h),) for t in range(LENGTH)]
    h0 = inputs(BATCH, WIDTH)
    assert_is_reference(chain, [((h0[:1],), maps), ((h0[1:],), others)])


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_rollout_carries_trees(kind: str) -> None:
    """Position and momentum of a pendulum; the map keeps areas, so the two exponents add up to zero."""

    def kick(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        p = p - 0.3 * torch.sin(q)
        return q + 0.3 * p, p

    steps: dict[str, Callable[[Any], Any]] = {
        "tuple": lambda s: kick(*s),
        "list": lambda s: list(kick(*s)),
        "dict": lambda s: dict(zip("qp", kick(s["q"], s["p"]))),
    }
    q, p = inputs(BATCH, 1), inputs(BATCH, 1).flip(0)
    state: Any = {"tuple": (q, p), "list": [q, p], "dict": {"q": q, "p": p}}[kind]
    result = measure(Rollout(steps[kind], steps=20, dt=0.3), (state,), exponents=2)
    # Forty logarithms of round-off at most, over a time of six.
    assert sum(float(e) for e in result.lyapunov_spectrum) == pytest.approx(0, abs=1e-12)
    assert result.frame == "per sample" and len(result.steps) == 20


@pytest.mark.parametrize("kind", ["identity", "swap"])
def test_rollout_of_a_map_that_computes_nothing_has_its_steps(kind: str) -> None:
    """The boring systems: exponents of zero, one step per step."""
    one, other = inputs(BATCH, 2), inputs(BATCH, 2).flip(0)
    if kind == "identity":
        model, state = Rollout(lambda s: s, steps=6), (one,)
    else:
        model, state = Rollout(lambda s: (s[1], s[0]), steps=6), ((one, other),)
    result = measure(model, state)
    assert float(result.lyapunov_max) == pytest.approx(0, abs=1e-14)
    assert not any("does not flow" in note for note in result.notes)
    assert len(result.steps) == 6


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(lambda a: a, id="untouched"),
        lambda a: 1 * a,
    ],
    ids=["untouched", "copied"],
)
def test_what_a_rollout_keeps_is_part_of_its_state(kept: Callable[[Tensor], Tensor]) -> None:
    """A constant of motion (a mass, a parameter in the state) has exponent zero, the largest one where all else shrinks."""
    rate = torch.full((BATCH, 1), 0.5, dtype=torch.float64)
    model = Rollout(lambda s: (kept(s[0]), s[0] * s[1]), steps=60)
    result = measure(model, ((rate, torch.ones_like(rate)),), exponents=2, alignment=20)
    # ∂(a, ab)/∂(a, b) = [[1, 0], [b, a]] with b = 2^-t: triangular, and coupled by a sum of all b, of order one over forty steps.
    assert [float(e) for e in result.lyapunov_spectrum] == pytest.approx([0, math.log(0.5)], abs=2 / 40)


def test_every_recurrence_is_measured_by_name() -> None:
    """What ``steps='time:NAME'`` gives for each is what one profile gives for all."""
    torch.manual_seed(0)
    model, x = Loop(two_lengths, long=cell(), short=cell()).double(), inputs(BATCH, LENGTH, FEATURES)
    result = measure(model, x, steps="time", measures=["recurrence_lyapunov_max"])
    assert set(result.recurrence_lyapunov_max) == {"long", "short"} or set(result.recurrence_lyapunov_max.keys()) == {
        "long",
        "short",
    }
    for name in ("long", "short"):
        alone = measure(model, x, steps=f"time:{name}")
        assert float(result.recurrence_lyapunov_max[name]) == pytest.approx(float(alone.lyapunov_max), abs=1e-12)
    assert "steps='time:short'" in result.steps.left_out


def test_outputs_of_a_captured_loop_carry_gradients_to_every_parameter() -> None:
    """Unrolling must not cut a parameter off: all of an encoder-decoder get one, and a finite one."""
    torch.manual_seed(0)
    model = Loop(translator, encoder=nn.LSTM(4, 3, batch_first=True), decoder=nn.LSTM(4, 3, batch_first=True)).double()
    result = measure(model, inputs(BATCH, LENGTH, FEATURES), steps="time")
    assert not list(result.unused_parameters)
    assert len(result.gradient_norm) == len(list(model.parameters()))
    assert all(0 < float(g) < math.inf for g in result.gradient_norm.values())
    assert list(tensors_in(model(inputs(BATCH, LENGTH, FEATURES))))
