"""Differences between training and evaluation mode, step by step, with expectations over random numbers."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from ...engine.isolation import derived_seed, preserved_model
from ...engine.linalg.norms import as_float64, as_real
from ...engine.runs.objective import Objective
from ...engine.runs.run import Need, Run, Stage
from ...engine.runs.state_hooks import require_depth, visited_states
from ...engine.torch_internals import is_batch_norm
from ...engine.trees import is_float, tensors_in
from ..measure import declare

__all__ = ["MODE_GAPS", "gap"]

BLOCKS = 8
"""Number of independent means whose spread gives the standard error."""
DRAWS = 4
"""Draws of each mean."""
SIGNIFICANT = 4.0
"""Number of standard errors from which on a gap counts."""

_States: TypeAlias = "dict[tuple[int, int], Tensor]"
"""Tensors in float64 by number of the state and position; the output has the number L + 1."""


def gap(differences: Tensor) -> float:
    """Return an estimate of the norm of the mean difference, from independent estimates of it.

    The mean product of two different estimates is the squared norm without bias. Its standard error follows from leaving one out.

    Args:
        differences: Independent estimates, ``(blocks, entries)``.

    Returns:
        The norm; 0 if its square is not significant, and NaN if an entry is not finite.
    """
    products = differences @ differences.T
    number = len(products)

    def mean(kept: Tensor) -> float:
        part = products[kept][:, kept]
        return float((part.sum() - part.trace()) / (len(part) * (len(part) - 1)))

    every = torch.arange(number, device=products.device)
    square = mean(every)
    left_out = [mean(every[every != index]) for index in range(number)]
    center = sum(left_out) / number
    error = math.sqrt((number - 1) / number * sum((value - center) ** 2 for value in left_out))
    if math.isnan(square):
        return math.nan
    return math.sqrt(square) if square > SIGNIFICANT * error else 0.0


class _Modes:
    """Runs a model in both modes, each step on the state of evaluation mode."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._objective = Objective.of(run)
        self._objective.inputs_carry_gradient = run.capture.inputs_carry_gradient
        self._evaluated: dict[tuple[int, int], Tensor] = {}

    def states(self, *, train: bool, draw: int = 0) -> _States:
        """Return the state after each step, and the output. In training mode, each step starts from the evaluated state."""
        found: _States = {}

        def visit(index: int, position: int, tensor: Tensor) -> Tensor | None:
            found[index, position] = _numbers(tensor)
            if not train:
                self._evaluated[index, position] = tensor.detach().clone()
                return None
            known = self._evaluated.get((index, position))
            return known.clone().requires_grad_() if known is not None and known.shape == tensor.shape else None

        run, objective = self._run, self._objective
        objective.seed = derived_seed(run.seed, f"mode draw {draw}")
        with preserved_model(run.capture.model), visited_states(run.capture, run.chain, visit):
            for module in run.capture.model.modules():
                module.training = train or is_batch_norm(module)
            output, _ = objective.outputs()
        tensors = [tensor for tensor in tensors_in(output) if is_float(tensor) and tensor.dim() > 0]
        return found | {(len(run.chain) + 1, i): _numbers(t) for i, t in enumerate(tensors[:1])}


def _numbers(tensor: Tensor) -> Tensor:
    return as_float64(as_real(tensor.detach())).flatten()


def _mode_gaps(run: Run) -> dict[str, float]:
    require_depth(run.chain, "mode_gap")
    modes = _Modes(run)
    evaluated = modes.states(train=False)
    names = ("input", *run.chain.names, "output")
    if all(_equal(evaluated, modes.states(train=True, draw=draw)) for draw in range(2)):
        return {names[index]: 0.0 for index, _ in evaluated}
    sums: dict[tuple[int, int], Tensor] = {}
    for draw in range(BLOCKS * DRAWS):
        for key, state in modes.states(train=True, draw=draw).items():
            if key in evaluated and evaluated[key].shape == state.shape:
                sums.setdefault(key, torch.zeros(BLOCKS, len(state), dtype=torch.float64, device=state.device))
                sums[key][draw % BLOCKS] += (state - evaluated[key]) / DRAWS
    gaps: dict[int, list[tuple[float, float]]] = {}
    for (index, position), differences in sums.items():
        gaps.setdefault(index, []).append((gap(differences), float(evaluated[index, position].norm())))
    return {names[index]: _relative(parts) for index, parts in gaps.items()}


def _relative(parts: list[tuple[float, float]]) -> float:
    found, size = (math.hypot(*values) for values in zip(*parts))
    return found / size if size else (0.0 if found == 0 else math.inf)


def _equal(one: _States, other: _States) -> bool:
    return one.keys() == other.keys() and all(torch.equal(state, other[key]) for key, state in one.items())


MODE_GAPS: Need[dict[str, float]] = Need("mode gaps", _mode_gaps, Stage.RERUN)
"""Relative differences between the two modes, by step."""


@declare("profile", needs=[MODE_GAPS], tolerance=0.05)
def mode_gap(run: Run) -> dict[str, float]:
    """Return how far the mean result of each step in training mode is from its result in evaluation mode.

    ``‖E[f_train(x)] - f_eval(x)‖ / ‖f_eval(x)‖`` for each step f, at the state x of evaluation mode, with the mean over dropout
    masks and other random numbers. It is estimated from 32 draws without bias, and is 0 if it is not significant. BatchNorm uses
    the statistics of the batch in both modes.

    It misleads where dropout is followed by a nonlinear function in the same step: the mean of its results differs by design.

    Returns:
        Pure numbers: 0 for equal means, by ``"input"`` (what enters the first step), by step, and ``"output"`` for what follows
        the last one. Infinite if only the result of training mode is not zero, NaN if a state is not finite.

    Raises:
        InapplicableError: The chain runs along time.

    Source: Srivastava et al., JMLR 15, 1929 (2014), section 10, for means over dropout; Huang et al., ECCV 2016, eq. 5
    (stochastic depth in evaluation mode).
    """
    return run[MODE_GAPS]
