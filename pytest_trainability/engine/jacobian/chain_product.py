"""The Jacobian of a whole chain as an operator on vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture.chain import Chain
from ..isolation import generator_of
from .jvp import Backward, push_forward
from .qr_sweep import cotangents_at_once, working_precision
from .trajectories import Trajectories, factorized_on
from .vjp import pull_back

__all__ = ["ChainProduct"]

KEPT = 2**21
"""Numbers in all states of the chain up to which the differentiable backward passes are kept. Each has some tens of tensors of
the size of a state."""
AT_ONCE = 64
"""Number of vectors per backward pass on devices other than the CPU."""


@dataclass(frozen=True, slots=True)
class ChainProduct:
    """``J = J_L … J_1`` as an operator on vectors of the first trajectories, applied segment by segment."""

    trajectories: Trajectories
    used: int
    """Number of trajectories, the first ones."""
    forward: bool
    """True: vectors start at the first state, ``J`` is applied. False: they start at the last state, ``Jᵀ`` is applied."""
    at_once: int
    """Number of vectors per backward pass."""
    kept: dict[int, Backward] | None
    """Backward passes of segments that products with ``J`` differentiate; None where all together would take much memory."""

    @classmethod
    def of(cls, trajectories: Trajectories, used: int, *, forward: bool) -> ChainProduct:
        """Return the whole chain's Jacobian.

        Args:
            trajectories: The chain and its trajectories.
            used: Number of trajectories, the first ones.
            forward: Whether vectors start at the first state, so that ``J`` is applied, or at the last one, for ``Jᵀ``.
        """
        chain = trajectories.chain
        size = sum(math.prod(shape) for index in range(len(chain) + 1) for shape, _ in chain.shapes(index))
        kept: dict[int, Backward] | None = {} if size <= KEPT else None
        return cls(trajectories, used, forward, cotangents_at_once(chain) or AT_ONCE, kept)

    @property
    def chain(self) -> Chain:
        """The chain of steps and states."""
        return self.trajectories.chain

    @property
    def size(self) -> int:
        """Dimensions of the state at which vectors start."""
        return self.trajectories.dimensions(0 if self.forward else len(self.chain))

    @property
    def least(self) -> int:
        """Dimensions of the smallest state of the chain, a bound on the rank."""
        return min(self.trajectories.dimensions(index) for index in range(len(self.chain) + 1))

    @property
    def count(self) -> int:
        """Number of singular values: dimensions of the smaller end state."""
        return min(self.trajectories.dimensions(index) for index in (0, len(self.chain)))

    @property
    def device(self) -> torch.device:
        """Device on which vectors are factorized."""
        return factorized_on(self.chain.devices(0)[0])

    def order(self, *, forward: bool) -> Sequence[int]:
        """Return the numbers of the segments, 1 … L, in the order in which they are applied."""
        return range(1, len(self.chain) + 1) if forward else range(len(self.chain), 0, -1)

    def step(self, index: int, rows: Tensor, *, forward: bool) -> Tensor:
        """Apply ``J_l`` or ``J_lᵀ`` to vectors ``(used, k, n)`` in float64."""
        parts = [self._image(index, part, forward=forward) for part in torch.split(rows, self.at_once, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _image(self, index: int, rows: Tensor, *, forward: bool) -> Tensor:
        """Apply ``J_l`` or ``J_lᵀ`` to as many vectors as one backward pass carries."""
        before, after = (index - 1, index) if forward else (index, index - 1)
        padded = rows
        if self.used < self.trajectories.count:
            padded = rows.new_zeros(self.trajectories.count, *rows.shape[1:])
            padded[: self.used] = rows
        columns = self.trajectories.as_columns(before, padded)
        found = (
            push_forward(self.chain, index, columns, kept=self.kept)
            if forward
            else pull_back(self.chain, index, columns)
        )
        images = self.trajectories.as_rows(after, found, count=rows.shape[1], dtype=torch.float64)
        return images[: self.used].to(self.device)

    def steps(self, rows: Tensor, *, forward: bool) -> tuple[Tensor, Tensor]:
        """Apply ``J`` or ``Jᵀ``; return unit vectors and by how much each step lengthened them, ``(L, used, k)``."""
        factors = []
        for index in self.order(forward=forward):
            rows = self.step(index, rows, forward=forward)
            lengths = torch.linalg.vector_norm(rows, dim=2)
            factors.append(lengths)
            rows = rows / torch.where(lengths > 0, lengths, 1.0)[:, :, None]
        return rows, torch.stack(factors)

    def precision(self, index: int, size: int) -> float:
        """Return which fraction of a product of a segment with a vector can be round-off."""
        return working_precision(self.chain.epsilon(index), size)

    def draw(self, count: int, seed: int, purpose: str, index: int | None = None) -> Tensor:
        """Draw Gaussian vectors of state ``index``, by default the one at which vectors start; equal for every trajectory."""
        size = self.size if index is None else self.trajectories.dimensions(index)
        drawn = torch.randn(count, size, generator=generator_of(seed, purpose), dtype=torch.float64, device="cpu")
        return drawn.to(self.device).expand(self.used, count, size)

    def time(self) -> Tensor:
        """Return the number of steps that act on each trajectory, or the time that they span, ``(used,)``."""
        spans = torch.tensor(self.chain.spans, dtype=torch.float64, device="cpu")
        return (self.trajectories.acting() * spans[:, None]).sum(dim=0)[: self.used]
