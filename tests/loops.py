"""Loops that call recurrent modules, the same maps written by hand, and a comparison of their Jacobians and exponents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import CheckpointError, checkpoint

from pytest_trainability.engine.capture.chain import Chain, graph_of
from pytest_trainability.engine.capture.recorder import Capture, capture
from pytest_trainability.engine.capture.recurrence import Recurrence, chain_along, choose_recurrence, find_recurrences
from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import pull_back, random_cotangents
from pytest_trainability.engine.runs.ensemble import ALONG_TIME

WIDTH, FEATURES, BATCH, LENGTH = 3, 4, 2, 4


Blocks = tuple[Tensor, ...]
"""The parts of the state of one sample, each of shape ``(1, n)``."""


Reference = tuple[Blocks, list[Callable[..., Blocks]]]
"""The first state, and the map of each step."""


class Loop(nn.Module):
    """A model of some modules and a function that calls them."""

    def __init__(self, run: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Tensor) -> Any:
        return self.run(self, *args)


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def capture_along_time(model: nn.Module, *args: Any) -> Capture:
    torch.manual_seed(5)
    return capture(model, args, {}, instruments=ALONG_TIME)


def recurrences(captured: Capture) -> list[Recurrence]:
    return find_recurrences(captured, graph_of(captured))


def cut(model: nn.Module, *args: Any, name: str = "") -> Chain:
    captured = capture_along_time(model, *args)
    return chain_along(choose_recurrence(captured, recurrences(captured), name))


# Cells, written by hand ------------------------------------------------------------------------------------------
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


# Comparison ------------------------------------------------------------------------------------------------------
def dense(chain: Chain) -> Tensor:
    """Return the Jacobian of the whole chain, ``(samples, n_L, n_0)``: the identity, pulled back segment by segment."""
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
    """Check that the product over segments equals one call of autograd from the last state to the first."""
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
        # Sums over forks are in another order: some units in the last place at each of a few steps.
        torch.testing.assert_close(found[0], true, rtol=0, atol=64 * 2.2e-16 * float(true.abs().max()))


def jacobians(reference: Reference) -> tuple[list[np.ndarray], list[int], list[int]]:
    """Return the matrix of every map, and the widths of the blocks of the first and of the last state."""
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
    """Yield all orders of the blocks, each with the order of the entries."""
    starts = np.cumsum([0, *widths])
    for order in itertools.permutations(range(len(widths))):
        yield (
            tuple(widths[i] for i in order),
            [e for i in order for e in range(int(starts[i]), int(starts[i + 1]))],
        )


def assert_is_reference(chain: Chain, references: Sequence[Reference]) -> None:
    """Compare the Jacobian of the whole chain, and all exponents, with those of maps written by hand.

    The tensors of a state may be in another order than the blocks of the reference. Once the order is known, the sums of
    ``ln R_ii`` over the chain are unique: numpy's QR of one hand-written matrix after the other must give the same sums for the
    same cotangents.
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
    """Returns the reference of one sample for the model and its input."""
    steps: tuple[str, ...]
    """Names of the steps of its chain."""
    name: str = ""
    """Name of the recurrence to choose; empty for the longest one."""
    bug: str = ""
    """Why the test of this case is expected to fail; empty if it passes."""
    raises: type[Exception] | None = None
    """The exception of the expected failure."""


def from_the_second(by_hand: Callable[[Any, Tensor], Reference]) -> Callable[[Any, Tensor], Reference]:
    """Return the reference without the first step, whose initial state is not visible."""

    def reference(model: Any, x: Tensor) -> Reference:
        state, maps = by_hand(model, x)
        return maps[0](*state), maps[1:]

    return reference


def to_the_last_but_one(by_hand: Callable[[Any, Tensor], Reference]) -> Callable[[Any, Tensor], Reference]:
    """Return the reference without the last step, if the loop computes the state outside of the module."""

    def reference(model: Any, x: Tensor) -> Reference:
        state, maps = by_hand(model, x)
        return state, maps[:-1]

    return reference


def calls_of(name: str, start: int = 0, stop: int = LENGTH) -> tuple[str, ...]:
    return tuple(f"{name}[{t}]" for t in range(start, stop))


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
    """A hand-written cell. Subclasses define the container of its state."""

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
    # The detached state is a constant, so that the chain starts with the state after the first call.
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
    """The state is read outside of the layer as well: as the query of attention."""
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
    """The state is held at padding. The last step returns the output of the cell."""
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


OUTSIDE = "the loop reads the initial zeros outside of the module as well, and only the copy for the module carries a gradient"


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
    # Tensors in a dictionary or an object are not replaced: a step may put its new state there.
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
        # The state of slow is carried in addition to that of fast, and is not visible after the last call of fast.
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
    # The loop reads the initial zeros outside of the module as well, so that the initial state is not visible.
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
        bug="a checkpointed call is repeated with the original zeros, which carry no gradient: CheckpointError",
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


def built(case: Case) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = inputs(BATCH, LENGTH, FEATURES)
    return case.build().double(), x[:, 0] if case.id == "shared-layer" else x


def linear(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda state: state @ matrix.T


def rotation(angle: float, radius: float) -> Tensor:
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def random_matrix(size: int) -> Tensor:
    return inputs(size, size) / math.sqrt(size)


def start(size: int, batch: int = BATCH) -> Tensor:
    return inputs(batch, size)
