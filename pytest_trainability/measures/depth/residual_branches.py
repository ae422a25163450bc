"""Residual branches: their size relative to the stream, and their share of the gradient.

A step is residual if an identity path leads from its state back to the state before it, in the autograd graph. An identity path
passes additions, through one of the two operands, and operations that only rearrange or copy entries. A rectifier after the last
addition, as in ResNet, is allowed: its cotangents are then taken before the rectifier.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...engine.capture.chain import Chain
from ...engine.capture.function_mode import FunctionObserver
from ...engine.capture.operators import operator_name
from ...engine.capture.recorder import Edge, Recorder, edge_of
from ...engine.jacobian.trajectories import Trajectories
from ...engine.jacobian.vjp import pull_back, random_cotangents
from ...engine.linalg.norms import norm
from ...engine.runs.forward_pass import forward_pass
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import apply_node, output_metadata, saved, without_torch_functions
from ...engine.trees import is_float
from ...errors import ModelError
from ..measure import declare

__all__ = ["BRANCH_GRADIENTS", "BRANCH_SIZES", "SKIPS", "Skip", "skips_of"]


_ADDITIONS = frozenset({"Add", "Sub"})
_RECTIFIERS = frozenset({"Relu", "Hardtanh", "LeakyRelu"})
_SHAPES = {"View", "UnsafeView", "ReshapeAlias", "Slice", "Expand", "Squeeze", "Unsqueeze"}
_COPIES = {"Alias", "Clone", "ToCopy"}
_VIEWS = frozenset(_SHAPES | _COPIES)
"""Operations that preserve the order of entries if they preserve their number."""
_PERMUTATIONS = frozenset({"T", "Transpose", "Permute"})


# Identity paths ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class Skip:
    """An identity path from a tensor of the state after a step back to a tensor of the state before it."""

    later: int
    """Index of the tensor of state l at which the path begins."""
    earlier: int
    """Index of the tensor of state l - 1 at which the path ends."""
    path: tuple[tuple[Node, int], ...]
    """Nodes on the way back, each with the index of the operand that the path follows."""

    @property
    def additions(self) -> tuple[tuple[Edge, int], ...]:
        """Additions on the way back, each with the index of the operand that is the stream."""
        return tuple(((node, 0), operand) for node, operand in self.path if operator_name(node) in _ADDITIONS)

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """Pull the cotangent of the later tensor back along the path alone."""
        for node, operand in self.path:
            cotangent = apply_node(node, [cotangent])[operand]
        return cotangent


def skips_of(chain: Chain, index: int) -> list[Skip]:
    """Return the identity paths through segment ``index`` (1 … L), at most one from each tensor of the later state.

    If both operands of an addition lead back to the earlier state, the tensor that was created first is the stream.
    """
    earlier, later = chain.cut.states[index - 1], chain.cut.states[index]
    places = {edge: place for place, edge in enumerate(earlier) if edge not in chain.hooked}
    found = []
    for i in chain.cut.segments[index - 1].roots:
        if later[i] in chain.hooked:
            continue
        # The tensors of a state are in order of creation.
        paths = [Skip(i, places[end], path) for end, path in _identity_paths(later[i], places.keys())]
        if paths:
            found.append(min(paths, key=lambda skip: skip.earlier))
    return found


def _identity_paths(start: Edge, ends: Collection[Edge]) -> Iterator[tuple[Edge, tuple[tuple[Node, int], ...]]]:
    """Walk back from an edge; yield the ends that are reached through at least one addition, each with the path to it."""
    pending: list[tuple[Edge, tuple[tuple[Node, int], ...]]] = [(start, ())]
    seen = {start}
    while pending:
        (node, number), path = pending.pop()
        summed = [operator_name(passed) in _ADDITIONS for passed, _ in path]
        if (node, number) in ends:
            if any(summed):
                yield (node, number), path
            continue
        for operand in _operands(node, number, path, summed):
            edge = node.next_functions[operand]
            if edge[0] is not None and edge not in seen and _size(*edge) == _size(node, number):  # type: ignore[arg-type]
                seen.add(edge)  # type: ignore[arg-type]
                pending.append((edge, (*path, (node, operand))))  # type: ignore[arg-type]


def _operands(node: Node, number: int, path: tuple[tuple[Node, int], ...], summed: list[bool]) -> tuple[int, ...]:
    """Return the indices of the operands of a node that an identity path may follow."""
    operator = operator_name(node)
    if operator in _ADDITIONS:
        # The branches of several additions are summed, so that no entries may be permuted between these additions.
        if True in summed and any(operator_name(passed) in _PERMUTATIONS for passed, _ in path[summed.index(True) :]):
            return ()
        scaled = operator == "Sub" or saved(node, "alpha", default=1) != 1
        return (0,) if scaled or len(node.next_functions) == 1 else (0, 1)
    passes = operator in _VIEWS or operator in _PERMUTATIONS or (operator in _RECTIFIERS and not any(summed))
    return (0,) if passes else ()


def _size(node: Node, number: int) -> int:
    entries = output_metadata(node)
    return math.prod(entries[number].shape) if number < len(entries) else -1


def _all_skips(run: Run) -> list[list[Skip]]:
    return [skips_of(run.chain, index) for index in range(1, len(run.chain) + 1)]


SKIPS: Need[list[list[Skip]]] = Need("skips", _all_skips)
"""Identity paths of every step, in program order; an empty list for a step that is not residual."""


# The gradient -----------------------------------------------------------------------------------------------------
def _branch_gradients(run: Run) -> dict[str, float]:
    chain, division, found = run.chain, run.trajectories.division, {}
    state = [column[0] for column in _zeros_for_none(chain, random_cotangents(chain, 1, run.seed))]
    for index in range(len(chain), 0, -1):
        lengths = division.norms(state)
        factors = torch.where(lengths > 0, 1 / lengths, 1.0)
        state = [division.multiply(column, factors) for column in state]
        columns = pull_back(chain, index, [column.unsqueeze(0) for column in state])
        before = [column[0] for column in _zeros_for_none(chain, columns, index - 1)]
        if run[SKIPS][index - 1]:
            found[chain.names[index - 1]] = _share(run.trajectories, index, run[SKIPS][index - 1], state, before)
        state = before
    return dict(reversed(found.items()))


def _zeros_for_none(chain: Chain, columns: Iterable[Tensor | None], index: int = -1) -> list[Tensor]:
    """Replace None, which stands for zero, by tensors of zeros."""
    index %= len(chain) + 1
    return [
        torch.zeros((1, *shape), dtype=dtype, device=device) if column is None else column
        for column, (shape, dtype), device in zip(columns, chain.shapes(index), chain.devices(index))
    ]


def _share(
    trajectories: Trajectories, index: int, skips: list[Skip], later: list[Tensor], earlier: list[Tensor]
) -> float:
    """Return the share of the squared gradient that comes through the branch of a step, averaged over trajectories.

    Args:
        trajectories: The chain and its trajectories.
        index: Number of the step, 1 … L.
        skips: Identity paths of the step.
        later: Cotangent of the state after the step.
        earlier: Cotangent of the state before it.
    """
    skipped: dict[int, Tensor] = {}
    passing = [(j, later[i]) for i, j in trajectories.chain.cut.segments[index - 1].passing]
    along = [(skip.earlier, skip.pull_back(later[skip.later])) for skip in skips]
    streams = {j for j, _ in along}
    for j, cotangent in (*along, *passing):
        if j in streams:
            skipped[j] = skipped[j] + cotangent if j in skipped else cotangent
    by_skip = trajectories.division.norms(list(skipped.values())).square()
    by_branch = trajectories.division.norms([earlier[j] - cotangent for j, cotangent in skipped.items()]).square()
    return float((by_branch / (by_skip + by_branch)).nanmean())


BRANCH_GRADIENTS = Need("branch gradients", _branch_gradients, requires=(SKIPS,))
"""Share of the squared gradient that comes through the branch of each residual step, by step."""


# The forward pass -------------------------------------------------------------------------------------------------
_Addition = tuple[str, int, int]
"""Identifies an addition: path of the module, index of the call, and number of the addition in this call, from 1."""


class _AdditionCounter(FunctionObserver):
    """Numbers the additions in each call of a module, and passes each one's operands to ``look`` before it is executed."""

    def __init__(self, recorder: Recorder, look: Callable[[_Addition, Tensor, Tensor], None] | None = None) -> None:
        super().__init__(recorder)
        self.made: dict[Edge, _Addition] = {}
        """Additions whose results carry a gradient."""
        self.counts: Counter[tuple[str, int]] = Counter()
        """Number of additions by call."""
        self._look = look

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        operands = _operands_of(args, kwargs) if name in _NAMES else None
        if operands is None:
            return func(*args, **kwargs)
        number = self._next()
        if self._look is not None:
            with without_torch_functions(), torch.no_grad():
                left, right = _as_tensors(*operands)
                factor = kwargs.get("alpha", 1) * (-1 if "sub" in name else 1)
                self._look(number, left, right if factor == 1 else factor * right)
        result = func(*args, **kwargs)
        with without_torch_functions():
            if isinstance(result, Tensor) and result.grad_fn is not None:
                self.made[edge_of(result)] = number
        return result

    def _next(self) -> _Addition:
        call = self.caller
        key = (call.path, call.index) if call is not None else ("", -1)
        self.counts[key] += 1
        return (*key, self.counts[key])


_NAMES = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "subtract", "__sub__", "__isub__"})


def _operands_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return the two operands of an addition: float tensors, or one and a number. Returns None for anything else."""
    arguments = {**dict(zip(("input", "other"), args)), **kwargs}
    left, right = arguments.get("input"), arguments.get("other")
    tensors = [operand for operand in (left, right) if not isinstance(operand, Real)]
    return (left, right) if tensors and all(isinstance(t, Tensor) and is_float(t) for t in tensors) else None


def _as_tensors(left: Any, right: Any) -> tuple[Tensor, Tensor]:
    """Return both operands as tensors; a plain number becomes one like the other operand."""
    like: Tensor = left if isinstance(left, Tensor) else right
    first, second = (t.detach() if isinstance(t, Tensor) else like.new_tensor(t) for t in (left, right))
    return first, second


@dataclass(slots=True, eq=False)
class _Sizes:
    """Sums the branches that the additions of one step add to a stream."""

    operands: tuple[int, ...]
    """Index of the operand that is the stream, for every addition in the order of execution."""
    seen: int = 0
    added: Tensor | None = None
    stream_square: float = math.nan
    branch_square: float = math.nan

    def look(self, left: Tensor, right: Tensor) -> None:
        """Process the next addition."""
        stream, branch = (left, right) if self.operands[self.seen] == 0 else (right, left)
        if self.seen == 0:
            self.stream_square = float(norm(stream)) ** 2
        self.seen += 1
        # Sums of branches, not differences of streams: in these, a branch much smaller than the stream would be round-off.
        branch = branch.expand(stream.shape)
        self.added = branch.clone() if self.added is None else self.added.reshape(branch.shape) + branch
        if self.seen == len(self.operands):
            self.branch_square = float(norm(self.added)) ** 2
            self.added = None


@dataclass(slots=True)
class _BranchAdditions:
    """The additions of all residual steps."""

    by_addition: dict[_Addition, list[_Sizes]] = field(default_factory=dict)
    by_step: dict[str, dict[tuple[_Addition | None, ...], _Sizes]] = field(default_factory=dict)

    def add(self, name: str, skip: Skip, made: dict[Edge, _Addition]) -> None:
        """Add one identity path of a step. If an addition was not observed (in a scripted function), its sums stay NaN."""
        path = tuple(made.get(edge) for edge, _ in reversed(skip.additions))
        of_step = self.by_step.setdefault(name, {})
        if path in of_step:
            return
        of_step[path] = sizes = _Sizes(tuple(operand for _, operand in reversed(skip.additions)))
        for addition in path if None not in path else ():
            if addition is not None:
                self.by_addition.setdefault(addition, []).append(sizes)

    def look(self, number: _Addition, left: Tensor, right: Tensor) -> None:
        """Pass an addition on to the sums that it belongs to."""
        for sizes in self.by_addition.get(number, ()):
            sizes.look(left, right)

    @property
    def calls(self) -> Iterator[tuple[str, int]]:
        """Calls that execute the additions: path of the module and index of the call."""
        return (addition[:2] for addition in self.by_addition)


def _branch_sizes(run: Run) -> dict[str, float]:
    first: _AdditionCounter = run.capture.watched[_AdditionCounter]
    additions, skips_of_steps = _BranchAdditions(), run[SKIPS]
    for name, skips in zip(run.chain.names, skips_of_steps):
        for skip in skips:
            additions.add(name, skip, first.made)
    if not additions.by_addition:
        return dict.fromkeys(additions.by_step, math.nan)

    looking = partial(_AdditionCounter, look=additions.look)
    again = forward_pass(run.recipe, run.capture.model, run.seed, instruments=(*run.time_instruments, looking))
    counts = again.watched[looking].counts
    for call in additions.calls:
        if counts[call] != first.counts[call]:
            _refuse(call[0], first.counts[call], counts[call])
    return {name: _ratio(sizes.values()) for name, sizes in additions.by_step.items()}


def _refuse(path: str, before: int, now: int) -> NoReturn:
    msg = (
        f"branch_ratio runs the model twice, and both runs must do the same. {path or 'The model'} made {before} additions in "
        f"the first run and {now} in the second. Draw random numbers from the global generators, which are seeded, and keep no "
        "state between calls."
    )
    raise ModelError(msg)


def _ratio(found: Iterable[_Sizes]) -> float:
    squares = [(sizes.branch_square, sizes.stream_square) for sizes in found]
    branch, stream = (math.fsum(parts) for parts in zip(*squares))
    if stream == 0:
        return math.inf if branch > 0 else math.nan
    return math.sqrt(branch / stream)


BRANCH_SIZES = Need("branch sizes", _branch_sizes, Stage.RERUN, instruments=(_AdditionCounter,), requires=(SKIPS,))
"""RMS of the branches of each residual step relative to the RMS of the stream before it, by step. Runs the model again."""


@declare("profile", scale="log", needs=[BRANCH_SIZES], tolerance=0.1, zero_by_design="branch")
def branch_ratio(run: Run) -> dict[str, float]:
    """Return the size of the branch of each residual step relative to the stream.

    ``rms(f_l(x_{l-1})) / rms(x_{l-1})`` of a step ``x_l = x_{l-1} + f_l(x_{l-1})``. ``f_l`` is the sum of all branches between
    the two states: attention and feed-forward network of a transformer block.

    It misleads where branches are zero by design: 0 is healthy for zero-initialized branches.

    Returns:
        Pure numbers by name of the residual step, in program order. 0 if the branch is zero, ``inf`` if only the stream is zero,
        NaN if an addition is hidden in a scripted function. Empty for a model without residual steps. Post-normalization and a
        projection in the skip leave no identity path.

    Raises:
        ModelError: The model executes other additions in the second run.

    Source: De & Smith, NeurIPS 2020; Zhang, Dauphin & Ma, ICLR 2019.
    """
    return run[BRANCH_SIZES]


@declare("profile", needs=[BRANCH_GRADIENTS], tolerance=0.05, zero_by_design="branch")
def branch_gradient_share(run: Run) -> dict[str, float]:
    """Return the share of the gradient that comes back through the branch of each residual step.

    ``‖F_lᵀ u‖² / (‖u‖² + ‖F_lᵀ u‖²)`` with ``J_l = I + F_l``, where u is a random cotangent pulled back to the step. The skip
    carries u itself, and the branch adds ``F_lᵀ u``. If the two are uncorrelated, the step's growth rate is ``-½ ln(1 - share)``.
    If a rectifier follows the addition, u is the cotangent before the rectifier.

    It misleads where branches are zero by design: 0 is healthy for zero-initialized branches.

    Returns:
        Pure numbers by name of the residual step, in program order, averaged over trajectories: between 0 (the step is the
        identity) and 1 (the skip contributes nothing). NaN if no gradient arrives. Empty for a model without residual steps.

    Source: Balduzzi et al., ICML 2017; De & Smith, NeurIPS 2020.
    """
    return run[BRANCH_GRADIENTS]
