"""Products of segments: pulling cotangents back through the chain, with QR against collapse onto the first."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ..errors import ModelError, UsageError
from .capture import Edge, edge_of
from .chain import Chain
from .hooks import past_hooks, through_hooks
from .isolation import derived_seed
from .trees import norm

__all__ = [
    "Columns",
    "Frame",
    "Sweep",
    "as_columns",
    "as_rows",
    "barrier",
    "dimensions",
    "find_frame",
    "is_round_off",
    "loss_cotangent",
    "pull_back",
    "random_cotangents",
    "sweep",
    "usual_number",
    "working_precision",
]

Columns = list["Tensor | None"]
"""Cotangents of one state: one tensor per edge, ``(k, *shape)`` for k of them; None is zero."""


# Segment products ------------------------------------------------------------------------------------------------


def pull_back(chain: Chain, index: int, columns: Columns, *, at_once: int | None = None) -> Columns:
    """Apply ``J_lᵀ`` of segment ``l = index`` (1 … L) to k cotangents of state l.

    Only nodes between the two states run, so that the product over all segments is one backward pass, bit for bit. An
    edge that lies in both states is handed over as it is, beside what the segment adds to it.

    Args:
        chain: The chain.
        index: Which segment.
        columns: For each edge of state l a tensor ``(k, *shape)``, or None for zero.
        at_once: How many cotangents at most are carried through autograd together; all of them unless given.

    Returns:
        For each edge of state l - 1 a tensor ``(k, *shape)``, or None for zero.
    """
    segment = chain.cut.segments[index - 1]
    later, earlier = chain.cut.states[index], chain.cut.states[index - 1]
    roots: list[tuple[Edge, Tensor]] = []
    for i in segment.roots:
        column = columns[i]
        if column is not None and later[i] in chain.hooked and index < len(chain):
            roots += past_hooks(later[i], column)
        elif column is not None:
            roots.append((later[i], column))
    result: Columns = [None] * len(earlier)
    if roots and segment.inputs:
        outputs, carried = zip(*roots)
        found = _products(outputs, [earlier[i] for i in segment.inputs], carried, at_once, chain.hooked)
        for i, product in zip(segment.inputs, found):
            result[i] = product
    for i, j in segment.passing:
        skipped, added = columns[i], result[j]
        if skipped is not None and index == len(chain) and later[i] in chain.hooked:
            skipped = torch.stack([through_hooks(later[i], column) for column in skipped])
        result[j] = skipped if added is None else added if skipped is None else added + skipped
    return result


def _products(
    outputs: Sequence[Edge],
    inputs: Sequence[Edge],
    columns: Sequence[Tensor],
    at_once: int | None,
    hooked: frozenset[Edge] = frozenset(),
) -> list[Tensor | None]:
    count = len(columns[0])
    size = count if at_once is None else max(1, min(at_once, count))
    parts: list[Sequence[Tensor | None]] = []
    done = 0
    while done < count:
        chunk = [column[done : done + size] for column in columns]
        try:
            parts.append(_one_call(outputs, inputs, chunk, hooked))
            done += size
        except torch.OutOfMemoryError:
            if size == 1:
                msg = (
                    "one cotangent must fit on the device beside the graph of one forward pass. It did not. Measure "
                    "with a smaller batch, or on the CPU (device='cpu', --trainability-device=cpu)."
                )
                raise ModelError(msg) from None
            size = math.ceil(size / 2)
            torch.cuda.empty_cache()
        except RuntimeError:
            if size == 1:
                raise
            # An operator without a batching rule (custom autograd functions, mostly): one column after the other.
            size = 1
    return [None if part[0] is None else torch.cat([p for p in part if p is not None]) for part in zip(*parts)]


def _one_call(
    outputs: Sequence[Edge], inputs: Sequence[Edge], columns: Sequence[Tensor], hooked: frozenset[Edge]
) -> list[Tensor | None]:
    batched = len(columns[0]) > 1
    with barrier(inputs) as passed, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(batching rule|performance drop|vmap).*")
        found = torch.autograd.grad(
            [GradientEdge(*edge) for edge in outputs],
            [GradientEdge(*edge) for edge in inputs],
            list(columns) if batched else [column[0] for column in columns],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
    products: list[Tensor | None] = [g if g is None or batched else g.unsqueeze(0) for g in found]
    for i, (edge, product) in enumerate(zip(inputs, products)):
        # Where autograd runs on through an input, it collects the gradient in front of the hooks, else behind them.
        if product is not None and edge in hooked and edge[0] in passed:
            products[i] = torch.stack([through_hooks(edge, column) for column in product])
    return products


@contextmanager
def barrier(inputs: Sequence[Edge]) -> Iterator[set[Node]]:
    """Let no gradient pass beyond the inputs; yield the set of nodes at which some was stopped.

    Autograd collects what arrives at an input, but runs on through it where another input lies upstream, and would count
    the paths between the two twice. Behind the barrier it meets undefined gradients, for which nothing is computed.
    """
    stopped: set[Node] = set()
    if len(inputs) < 2:
        yield stopped
        return

    def stop_at(node: Node) -> Callable[[tuple[Tensor | None, ...]], tuple[None, ...]]:
        def stop(arriving: tuple[Tensor | None, ...]) -> tuple[None, ...]:
            stopped.add(node)
            return (None,) * len(arriving)

        return stop

    handles = [node.register_prehook(stop_at(node)) for node in dict.fromkeys(node for node, _ in inputs)]
    try:
        yield stopped
    finally:
        for handle in handles:
            handle.remove()


# Cotangents ------------------------------------------------------------------------------------------------------


def random_cotangents(chain: Chain, count: int, seed: int) -> Columns:
    """Draw Gaussian cotangents of the last state on the CPU, column j from a generator of its own.

    The first k columns are the same whichever number is drawn, on every device and, up to rounding, in every type.
    """
    shapes, devices = chain.shapes(len(chain)), chain.devices(len(chain))
    columns: list[list[Tensor]] = [[] for _ in shapes]
    for number in range(count):
        generator = torch.Generator("cpu").manual_seed(derived_seed(seed, f"cotangent {number}"))
        for found, (shape, dtype), device in zip(columns, shapes, devices):
            drawn = torch.complex64 if dtype.is_complex else torch.float32
            column = torch.randn(shape, generator=generator, dtype=drawn, device="cpu")
            found.append(column.to(device=device, dtype=dtype))
    return [torch.stack(found) for found in columns]


def loss_cotangent(chain: Chain, loss: Tensor) -> Columns:
    """Return the gradient of the loss with respect to the last state, as one column."""
    edges = chain.cut.states[-1]
    seed = torch.ones((1, *loss.shape), dtype=loss.dtype, device=loss.device)
    root = edge_of(loss)
    if root in edges:
        return [seed if edge == root else None for edge in edges]
    return list(_products([root], edges, [seed], None))


# Frames ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """How the entries of a state are grouped into trajectories.

    ``samples`` is the number of trajectories: one per sample where samples do not interact, else a joint one. In each
    tensor of a state, sample b is row b of dimension ``axis`` (the rows b·m … b·m + m - 1 where the dimension is m
    times as long).
    """

    samples: int
    axis: int | None = 0
    """None where each tensor has samples along its first dimension that is as long as there are samples: the second one, of
    layers and samples, beside the first one, of samples."""

    def _axis(self, shape: Sequence[int]) -> int:
        return shape.index(self.samples) if self.axis is None else self.axis

    @property
    def name(self) -> str:
        """``"per sample"`` or ``"joint"``."""
        return "per sample" if self.samples > 1 else "joint"

    def rows(self, columns: Tensor) -> Tensor:
        """Reshape cotangent tensors ``(k, *shape)`` to ``(samples, k, n)``."""
        if self.samples == 1:
            return columns.reshape(1, len(columns), -1)
        axis = self._axis(columns.shape[1:])
        return columns.movedim(axis + 1, 1).reshape(len(columns), self.samples, -1).transpose(0, 1)

    def restore(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Undo :meth:`rows`."""
        count = rows.shape[1]
        if self.samples == 1:
            return rows.reshape(count, *shape)
        axis = self._axis(shape)
        moved = [count, shape[axis], *(size for i, size in enumerate(shape) if i != axis)]
        return rows.transpose(0, 1).reshape(moved).movedim(1, axis + 1)

    def scale(self, column: Tensor, factors: Tensor) -> Tensor:
        """Multiply each trajectory of one cotangent tensor by its own factor ``(samples,)``."""
        if self.samples == 1:
            return column * factors[0].to(column.dtype)
        axis = self._axis(column.shape)
        length = column.shape[axis] // self.samples
        expanded = factors.to(device=column.device, dtype=column.dtype).repeat_interleave(length)
        return column * expanded.reshape([-1 if i == axis else 1 for i in range(column.dim())])

    def norms(self, state: Sequence[Tensor | None]) -> Tensor:
        """Return the norm of each trajectory's part of one cotangent, ``(samples,)`` in float64 on the CPU."""
        total = torch.zeros(self.samples, dtype=torch.float64, device="cpu")
        for column in state:
            if column is not None:
                total += norm(self.rows(column.unsqueeze(0))[:, 0], dim=1).square()
        return total.sqrt()


def find_frame(chain: Chain, batch: int | None, seed: int) -> tuple[Frame, Sweep | None]:
    """Decide by measurement whether samples have trajectories of their own.

    The first random cotangent is pulled back with every sample's part kept at a size of its own, a power of two. Where
    samples do not interact, that changes nothing. Where they do, however few and whichever (BatchNorm in training mode, a
    softmax over the batch, attention over a first dimension that is time), large parts leak into small ones, whose growth
    rates jump. Where rates differ much between samples, a second sweep at equal sizes tells whether that is why. If so, there
    is one joint frame; there is one, too, where the tensors of the states cannot be divided into samples at all.

    Returns:
        The frame and, where it is per sample, the sweep of the first random cotangent, which this has cost already.
    """
    drawn = random_cotangents(chain, 1, seed)
    half = any(dtype == torch.float16 for index in range(len(chain) + 1) for _, dtype in chain.shapes(index))
    for frame in _possible_frames(chain, batch):
        sizes = _sizes(frame, seed, HALF_RANGE if half else RANGE)
        rates = _calm_rates(chain, frame, drawn, sizes)
        if rates is None:
            rates = _undisturbed_rates(chain, frame, drawn, sizes)
        if rates is not None:
            return frame, Sweep(torch.stack(rates[::-1]).unsqueeze(-1), frame)
    return Frame(samples=1), None


def _possible_frames(chain: Chain, batch: int | None) -> list[Frame]:
    shapes = [shape for index in range(len(chain) + 1) for shape, _ in chain.shapes(index)]
    # One dimension alone is one sample's units; beside others it may hold a number per sample (a flow's log-determinant).
    if any(len(shape) < 1 for shape in shapes) or all(len(shape) < 2 for shape in shapes):
        return []
    frames = []
    first = {shape[0] for shape in shapes}
    if chain.along == "time":
        # A sequence may come with time before samples; a recurrent state has samples first, or layers and then samples.
        lengths = set.intersection(*({shape[0], *shape[1:2]} if len(shape) > 2 else {shape[0]} for shape in shapes))
        frames += [Frame(n, 0 if first == {n} else None) for n in sorted(lengths - {1}, reverse=True)]
    if batch is not None and batch > 1:
        if all(shape[0] % batch == 0 for shape in shapes):
            frames.append(Frame(batch, 0))
        if all(len(shape) > 1 and shape[1] == batch for shape in shapes):
            frames.append(Frame(batch, 1))
    if len(first) == 1 and max(first) > 1:
        frames.append(Frame(max(first)))
    return list(dict.fromkeys(frames))


RANGE, HALF_RANGE = 30, 10
"""The largest part is 2^30 times the smallest; in float16, whose range is short, 2^10."""
CALM = 3.0
"""Nats by which growth rates of samples may differ without a question. An influence of 2e-8 of one sample on another makes
them differ by more."""
SAME_RATE = 1e-3
"""A growth rate that changes by less has changed by round-off."""


def _sizes(frame: Frame, seed: int, spread: int) -> Tensor:
    """Return a power of two for each trajectory, spread evenly over ``2^0 … 2^spread`` in random order."""
    generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "sizes"))
    order = torch.randperm(frame.samples, generator=generator, device="cpu").double() / max(frame.samples - 1, 1)
    return torch.exp2((spread * order).round())


def _calm_rates(chain: Chain, frame: Frame, columns: Columns, sizes: Tensor) -> list[Tensor] | None:
    """Return the growth rates of steps L … 1 at the given sizes, or None where they differ much between samples."""
    rates = []
    for rate in _walk(chain, frame, columns, sizes):
        if not rate.isfinite().all() or rate.max() - rate.min() > CALM:
            return None
        rates.append(rate)
    return rates


def _undisturbed_rates(chain: Chain, frame: Frame, columns: Columns, sizes: Tensor) -> list[Tensor] | None:
    """Return the growth rates of steps L … 1 at equal sizes, or None where they are others at the given sizes."""
    rates = []
    equal = torch.ones(frame.samples, device="cpu")
    for plain, sized in zip(_walk(chain, frame, columns, equal), _walk(chain, frame, columns, sizes)):
        if not torch.allclose(plain, sized, rtol=0, atol=SAME_RATE, equal_nan=True):
            return None
        rates.append(plain)
    return rates


def _batch_of_one(state: Columns) -> Columns:
    return [None if column is None else column.unsqueeze(0) for column in state]


# The sweep -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sweep:
    """Logarithms of what each step does to each column of the frame, in float64.

    ``logs`` is ``(L, samples, k)``: ``ln R_l[i, i]``, for k = 1 ``ln ‖u_{l-1}‖ / ‖u_l‖``, in the order of the steps. It is
    ``-inf`` where a column vanishes, NaN upstream of that.
    """

    logs: Tensor
    frame: Frame

    def sums(self) -> Tensor:
        """Return the logarithms summed over the steps, ``(samples, k)``; ``-inf`` for a column that vanished."""
        vanished = (self.logs == -math.inf).any(dim=0)
        return torch.where(vanished, -math.inf, self.logs.sum(dim=0))

    def running(self, chain: Chain, warmup: int = 0, alignment: int = 0) -> Tensor:
        """Return the growth per step, or per unit of time where steps have durations, averaged from the last step to each.

        Each sample's average is over the steps that act on it, but for its first and last ones.

        Returns:
            Of shape ``(L, samples, k)``; ``-inf`` from where a column vanishes on, NaN where nothing counts yet.
        """
        taken = self.taken(chain)
        number, count = taken.cumsum(dim=0), taken.sum(dim=0)
        counted = taken & (number > warmup) & (number <= count - alignment)
        durations = torch.tensor(chain.durations or [1.0] * len(chain), dtype=torch.float64, device="cpu")
        total = torch.where(counted[:, :, None], self.logs, 0.0).flip(0)
        vanished = (self.logs == -math.inf).flip(0).cumsum(dim=0) > 0
        total = torch.where(vanished, -math.inf, total.cumsum(dim=0))
        time = (counted * durations[:, None]).flip(0).cumsum(dim=0)
        return (total / time[:, :, None]).flip(0).where((time > 0).flip(0)[:, :, None], math.nan)

    def averages(self, chain: Chain, warmup: int = 0, alignment: int = 0) -> Tensor:
        """Return the growth per step, or per unit of time, over the steps that are left: ``(samples, k)``.

        Samples without any are left out.
        """
        found = self.running(chain, warmup, alignment)[warmup]
        return found[self.taken(chain).sum(dim=0) > warmup + alignment]

    def taken(self, chain: Chain) -> Tensor:
        """Return which steps act on which samples, ``(L, samples)``: all, but where packed sequences end early."""
        samples = self.logs.shape[1]
        if not chain.active or chain.shapes(0)[0][0][0] != samples:
            return torch.ones(len(chain), samples, dtype=torch.bool, device="cpu")
        active = torch.tensor([samples if number is None else number for number in chain.active], device="cpu")
        return torch.arange(samples, device="cpu") < active[:, None]


def sweep(chain: Chain, frame: Frame, columns: Columns, *, at_once: int | None = None) -> Sweep:
    """Pull a frame of k cotangents back through the whole chain, orthonormalised after every step.

    ``J_lᵀ Q_l = Q_{l-1} R_l`` for l = L … 1, from the QR factors ``Q_L`` of the columns given.

    Source: Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15, 9 (1980), applied to the transposed cocycle, which
    has the same exponents.
    """
    at_once = at_once or usual_number(chain)
    count = next(len(c) for c in columns if c is not None)
    if count == 1:
        rates = list(_walk(chain, frame, columns, torch.ones(frame.samples, device="cpu")))
        return Sweep(torch.stack(rates[::-1]).unsqueeze(-1), frame)
    logs = torch.full((len(chain), frame.samples, count), math.nan, dtype=torch.float64, device="cpu")
    smallest = dimensions(chain, frame, len(chain))
    if count > smallest:
        msg = (
            f"exponents must be at most the number of dimensions of the last state, {smallest} per trajectory. "
            f"Got {count}."
        )
        raise UsageError(msg)
    alive = torch.ones((frame.samples, count), dtype=torch.bool, device="cpu")
    columns, _, alive = _orthonormal(chain, frame, len(chain), columns, alive)
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns, at_once=at_once)
        columns, logs[index - 1], living = _orthonormal(chain, frame, index - 1, columns, alive)
        cancelled = is_round_off(chain, frame, index, logs[index - 1, :, 0].exp())
        logs[index - 1] = torch.where(cancelled[:, None] & alive, -math.inf, logs[index - 1])
        alive = living & ~cancelled[:, None]
        if not alive.any():
            break
    return Sweep(logs, frame)


def usual_number(chain: Chain) -> int | None:
    """Return how many cotangents are best carried at once: on the CPU as many as its caches hold, elsewhere all."""
    largest = max(sum(math.prod(shape) for shape, _ in chain.shapes(index)) for index in range(len(chain) + 1))
    return max(1, 2**20 // max(largest, 1)) if all(device.type == "cpu" for device in chain.devices(0)) else None


def _walk(chain: Chain, frame: Frame, columns: Columns, sizes: Tensor) -> Iterator[Tensor]:
    """Pull one cotangent back, each trajectory's part renormalized to its size before every step.

    Yields:
        Growth rates ``(samples,)`` of steps L … 1; ``-inf`` where the part vanishes, NaN upstream of that.
    """
    state = _only(columns)
    sizes = sizes.double()
    norms = frame.norms(state)
    for index in range(len(chain), 0, -1):
        factors = torch.where(norms > 0, sizes / norms, 1.0)
        state = [None if c is None else frame.scale(c, factors) for c in state]
        state = _only(pull_back(chain, index, _batch_of_one(state)))
        vanished = norms == 0
        norms = frame.norms(state)
        norms = torch.where(is_round_off(chain, frame, index, norms / sizes), 0.0, norms)
        yield torch.where(vanished, math.nan, (norms / sizes).log())


def is_round_off(chain: Chain, frame: Frame, index: int, factors: Tensor) -> Tensor:
    """Whether what a step leaves of a unit cotangent is what cancellation leaves of it.

    A factor near the working precision is compared with that of a random cotangent of the same state: where the step shrinks
    everything, both are small; where the first lies in the step's null space (a mean behind a LayerNorm), only it is.

    Args:
        chain: The chain.
        frame: Its trajectories.
        index: Which segment.
        factors: ``‖J_lᵀ u‖ / ‖u‖`` of each trajectory, ``(samples,)``.
    """
    if not (factors < COARSEST).any():
        return torch.zeros_like(factors, dtype=torch.bool)
    shapes = chain.shapes(index)
    size = sum(math.prod(shape) for shape, _ in shapes) // frame.samples
    precision = working_precision(chain.epsilon(index), size)
    if not ((factors > 0) & (factors < precision)).any():
        return torch.zeros_like(factors, dtype=torch.bool)
    generator = torch.Generator("cpu").manual_seed(index)
    drawn: Columns = [
        torch.randn((1, *shape), generator=generator, device="cpu").to(device=device, dtype=dtype)
        for (shape, dtype), device in zip(shapes, chain.devices(index))
    ]
    usual = frame.norms(_only(pull_back(chain, index, drawn)))
    return factors < precision * usual / frame.norms(_only(drawn))


COARSEST = 0.05
"""Half precision is taken to be good for a twentieth at least; the others are far better."""


def working_precision(eps: float, size: int) -> float:
    """Return the part of a result of ``size`` terms that may be round-off: ``8 eps √n``.

    Half precision accumulates in float32 and rounds once, to ``8 eps``.
    """
    return min(8 * eps, COARSEST) if eps > 1e-4 else 8 * eps * math.sqrt(size)


def _only(columns: Columns) -> Columns:
    return [None if column is None else column[0] for column in columns]


def _orthonormal(
    chain: Chain, frame: Frame, index: int, columns: Columns, alive: Tensor
) -> tuple[Columns, Tensor, Tensor]:
    """QR of each trajectory's columns of state ``index``.

    Returns:
        ``Q`` as columns, ``ln diag R`` as ``(samples, k)``, and which columns live on.

    A column whose part orthogonal to the earlier ones is below the working precision of the largest column has vanished:
    what is left of it is round-off.
    """
    count = alive.shape[1]
    if all(column is None for column in columns):
        return columns, torch.where(alive, -math.inf, math.nan).double(), torch.zeros_like(alive)
    # Column after column, as LAPACK wants them; padded where there are more of them than dimensions.
    matrix = as_rows(chain, frame, index, columns, least=count)
    matrix *= alive[:, :, None].to(matrix.device)
    lengths = torch.linalg.vector_norm(matrix, dim=2).double().cpu()
    q, r = torch.linalg.qr(matrix.transpose(1, 2))
    diagonal = r.diagonal(dim1=-2, dim2=-1).abs().double().cpu()
    # What has come here came through the segment behind the state; at the end of the chain nothing has.
    eps = chain.epsilon(min(index + 1, len(chain)))
    tolerance = working_precision(eps, matrix.shape[2]) * lengths.amax(dim=1, keepdim=True)
    vanished = diagonal <= tolerance
    logs = torch.where(alive, torch.where(vanished, -math.inf, diagonal.log()), math.nan)
    alive = alive & ~vanished
    q = q * alive[:, None, :].to(q.device)
    return as_columns(chain, frame, index, q.transpose(1, 2)), logs, alive


# States as vectors -----------------------------------------------------------------------------------------------


def dimensions(chain: Chain, frame: Frame, index: int) -> int:
    """Return how many real numbers one trajectory's part of state ``index`` has."""
    return sum(math.prod(shape) * (1 + own.is_complex) for shape, own in chain.shapes(index)) // frame.samples


def as_rows(
    chain: Chain, frame: Frame, index: int, columns: Columns, *, dtype: torch.dtype | None = None, least: int = 0
) -> Tensor:
    """Write k cotangents of state ``index`` as vectors of real numbers, ``(samples, k, n)``.

    A complex number is two real ones: a backward pass is no complex-linear map where a real tensor comes before or after.

    Args:
        chain: The chain.
        frame: Its trajectories.
        index: Which state, 0 … L.
        columns: For each of its edges a tensor ``(k, *shape)``, or None for zero; at least one is there.
        dtype: Of the result; float64 where the state has it, else float32, unless given.
        least: Padded with zeros to this n, if there are fewer dimensions.
    """
    shapes = chain.shapes(index)
    sizes = [size // frame.samples for size in map(math.prod, _real(shapes))]
    example = next(c for c in columns if c is not None)
    if dtype is None:
        wide = any(own in {torch.float64, torch.complex128} for _, own in shapes)
        dtype = torch.float64 if wide else torch.float32
    device = example.device if example.device.type in {"cpu", "cuda"} else torch.device("cpu")
    rows = torch.zeros((frame.samples, len(example), max(sum(sizes), least)), dtype=dtype, device=device)
    offset = 0
    for column, size in zip(columns, sizes):
        if column is not None:
            entries = torch.view_as_real(column) if column.is_complex() else column
            rows[:, :, offset : offset + size] = frame.rows(entries)
        offset += size
    return rows


def as_columns(chain: Chain, frame: Frame, index: int, rows: Tensor) -> Columns:
    """Undo :func:`as_rows`."""
    shapes = chain.shapes(index)
    result: Columns = []
    offset = 0
    for (_, own), shape, place in zip(shapes, _real(shapes), chain.devices(index)):
        size = math.prod(shape) // frame.samples
        restored = frame.restore(rows[:, :, offset : offset + size], shape).contiguous()
        if own.is_complex:
            restored = torch.view_as_complex(restored)
        result.append(restored.to(device=place, dtype=own))
        offset += size
    return result


def _real(shapes: Sequence[tuple[torch.Size, torch.dtype]]) -> list[torch.Size]:
    return [torch.Size((*shape, 2)) if own.is_complex else shape for shape, own in shapes]
