"""Steps whose results at a position depend on later positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, finfo

from ...engine.capture.recorder import Edge
from ...engine.isolation import generator_of
from ...engine.jacobian.trajectories import possible_divisions
from ...engine.jacobian.vjp import gaussian_state, pull_back
from ...engine.linalg.norms import norm
from ...engine.runs.run import Need, Run
from ...engine.trees import batch_size
from ...errors import InapplicableError
from ..measure import declare
from .unit_axes import Layout

__all__ = ["CAUSAL_LEAKS", "position_axes", "positions_examined"]

EXAMINED = 8
"""Number of positions up to which results are examined, spread evenly over the sequence."""
ROUND_OFF = 64
"""Share of the gradient, in units of the precision, below which it is round-off, as of a convolution by Fourier transforms."""


def positions_examined(length: int) -> list[int]:
    """Return numbers of positions after which a sequence is divided, at most :data:`EXAMINED` and both ends among them."""
    if length <= EXAMINED:
        return list(range(1, length))
    return sorted({1 + round(i * (length - 2) / (EXAMINED - 1)) for i in range(EXAMINED)})


def position_axes(run: Run) -> dict[Edge, int]:
    """Return the dimension that counts positions, for each tensor of a state that has one.

    Such a tensor has three dimensions: samples, channels, and positions. Parameters show which one counts channels, as for
    ``dead_fraction``; if none does, the answer is that of the first tensor for which it is known.
    """
    chain, found = run.chain, dict[Edge, int]()
    samples = _sample_axis(run)
    if samples is None:
        return found
    layout, unknown = Layout(run.graph.nodes), list[Edge]()
    for index, state in enumerate(chain.cut.states):
        for edge, (shape, _) in zip(state, chain.shapes(index)):
            if len(shape) != 3:
                continue
            units = layout.unit_axes(edge, shape)
            if len(units) == 1 and units[0] != samples:
                found[edge] = 3 - samples - units[0]
            else:
                unknown.append(edge)
    return found | dict.fromkeys(unknown, next(iter(found.values()))) if found else {}


def _sample_axis(run: Run) -> int | None:
    batch = batch_size(run.capture.inputs) or 1
    shapes = [s for i in range(len(run.chain) + 1) for s, _ in run.chain.shapes(i) if len(s) == 3]
    if run.trajectories.count > 1:
        axis = run.trajectories.division.axis
    else:
        division = next(possible_divisions(shapes, batch), None) if shapes else None
        axis = division.axis if division is not None else 0
    return axis if axis in {0, 1} else None


def _causal_leaks(run: Run) -> dict[str, float]:
    axes = position_axes(run) if run.chain.along == "depth" else {}
    found = {}
    for index, name in enumerate(run.chain.names, 1):
        leak = _leak(run, index, axes)
        if leak is not None:
            found[name] = leak
    if not found:
        msg = (
            "causal_leak needs states of samples, positions and channels, with as many positions before a step as after it. No "
            "step has such states. Choose other steps, or do not request it."
        )
        raise InapplicableError(msg)
    return found


def _leak(run: Run, index: int, axes: dict[Edge, int]) -> float | None:
    """Return the leak of one step; None if the sequences before and after it are not the same."""
    chain = run.chain
    states, segment = chain.cut.states, chain.cut.segments[index - 1]
    before = {i: axes[states[index - 1][i]] for i in segment.inputs if states[index - 1][i] in axes}
    after = {i: axes[states[index][i]] for i in segment.roots if states[index][i] in axes}
    # What passes on unchanged, such as the memory of an encoder, is another sequence.
    before = {i: axis for i, axis in before.items() if i not in {j for _, j in segment.passing}} or before
    lengths = {chain.shapes(index - 1)[i][0][axis] for i, axis in before.items()}
    lengths |= {chain.shapes(index)[i][0][axis] for i, axis in after.items()}
    if not before or not after or len(lengths) != 1 or lengths == {1}:
        return None
    ends = positions_examined(lengths.pop())
    drawn = gaussian_state(chain, index, generator_of(run.seed, f"leak {index}"))
    columns = [_up_to(column, after[i], ends) if i in after else None for i, column in enumerate(drawn)]
    found = pull_back(chain, index, columns)
    pairs = [(found[i], axis) for i, axis in before.items()]
    gradients = [(gradient, axis) for gradient, axis in pairs if gradient is not None]
    total = sum(float(norm(gradient)) ** 2 for gradient, _ in gradients)
    later = sum(float(norm(_behind(g, axis, ends))) ** 2 for g, axis in gradients)
    share = (later / total) ** 0.5 if total else 0.0
    eps = max(finfo(dtype).eps for state in (index - 1, index) for _, dtype in chain.shapes(state))
    return 0.0 if share <= ROUND_OFF * eps else share


def _up_to(column: Tensor, axis: int, ends: Sequence[int]) -> Tensor:
    """Return copies of a cotangent, each zero from one of the positions on, ``(len(ends), *shape)``."""
    return torch.stack([_masked(column, axis, end, earlier=True) for end in ends])


def _behind(gradients: Tensor, axis: int, ends: Sequence[int]) -> Tensor:
    """Return gradients, each zero before one of the positions."""
    return torch.stack([_masked(g, axis, end, earlier=False) for g, end in zip(gradients, ends)])


def _masked(tensor: Tensor, axis: int, end: int, *, earlier: bool) -> Tensor:
    found = torch.zeros_like(tensor)
    kept = slice(0, end) if earlier else slice(end, None)
    found.movedim(axis, 0)[kept] = tensor.movedim(axis, 0)[kept]
    return found


CAUSAL_LEAKS: Need[dict[str, float]] = Need("causal leaks", _causal_leaks)
"""The share of the gradient that lies at later positions, by step."""


@declare("profile", needs=[CAUSAL_LEAKS], tolerance=0.05)
def causal_leak(run: Run) -> dict[str, float]:
    """Return how much the results of each step up to a position depend on its inputs at later positions.

    ``√(Σ_t ‖∂⟨u, x_l[≤ t]⟩ / ∂x_{l-1}[> t]‖² / Σ_t ‖∂⟨u, x_l[≤ t]⟩ / ∂x_{l-1}‖²)`` for a random cotangent u and up to eight
    positions t. States must have three dimensions: samples, channels and positions.

    It misleads for models that read both directions by design, such as encoders: they have a leak and no fault.

    Returns:
        Pure numbers from 0 to 1 by step: exactly 0 for a causal step, and NaN if a gradient is not finite. Steps are left out
        before and after which the states have no positions, or not as many. The loss, and what lies before the first step and
        behind the last one, is not examined.

    Raises:
        InapplicableError: No step has states with positions.

    Source: Vaswani et al., NeurIPS 2017, section 3.2.3, for the mask; Karpathy, A Recipe for Training Neural Networks (2019),
    "use backprop to chart dependencies".
    """
    return run[CAUSAL_LEAKS]
