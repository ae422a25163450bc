"""Normalizations that do not normalize: an ε above the variance, or statistics that were never measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...engine.capture.operators import KERNELS, operator_name
from ...engine.runs.run import Need, Run
from ...engine.torch_internals import saved
from ...records.causes import CauseRecord
from ...records.text import format_number
from ..measure import declare

__all__ = ["idle_normalizations"]

LEAST_SHARE = 0.25
"""Smallest share of the variance in what a normalization divides by, ``σ² / (σ² + ε)``: its result has half the size that it
should have."""
LARGEST_EPSILON = 1e-2
"""Largest usual ε: libraries use 1e-12 to 1e-3. With these, a small variance is that of small states, by design or not."""
ROUND_OFF = 16
"""Relative deviation of entries, in units of their precision, up to which they are equal."""


def _idle(run: Run) -> list[str]:
    capture, graph = run.capture, run.graph
    return list(dict.fromkeys(f"{capture.place_of(graph.place[node])}: {reason}" for node, reason in _found(run)))


def _found(run: Run) -> Iterator[tuple[Node, str]]:
    """Yield the nodes of normalizations that do not normalize, each with the reason."""
    for node in run.graph.nodes:
        if KERNELS.get(operator_name(node)) in {"LayerNorm", "GroupNorm", "BatchNorm"}:
            for reason in _reasons(node, is_training=run.capture.model.training):
                yield node, reason


def _idle_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return the modules whose ε is too large. The lines of the measure say what is to be said."""
    calls = (run.capture.call_at(run.graph.place[node]) for node, reason in _found(run) if reason.startswith("ε"))
    found = dict.fromkeys(call.path for call in calls if call is not None and hasattr(call.module, "eps"))
    return (CauseRecord(normalizations=tuple(found)),) if found else ()


def _reasons(node: Node, *, is_training: bool) -> Iterator[str]:
    """Yield why a normalization does not normalize; nothing if it does, or if what it has read was overwritten."""
    try:
        if not saved(node, "training", default=True):
            if is_training and _are_of_creation(saved(node, "running_mean"), saved(node, "running_var")):
                yield "divides by the running statistics of its creation, mean 0 and variance 1, although the model trains"
            return
        rows, reciprocal = _rows(node), saved(node, "result2")
    except RuntimeError:
        return
    if not rows.numel() or rows.shape[1] < 2:
        return
    variance, mean = torch.var_mean(rows, 1, correction=0)
    # Entries that are equal up to round-off have no variance that could be compared.
    differ = variance > (ROUND_OFF * torch.finfo(rows.dtype).eps * mean).square()
    divisor = reciprocal.detach().flatten().to(variance.dtype).square().reciprocal()
    share = variance / divisor
    if not 2 * int(differ.sum()) >= len(differ) or float(share[differ].median()) >= LEAST_SHARE:
        return
    typical, epsilon = (float(numbers[differ].median()) for numbers in (variance, divisor - variance))
    if epsilon > LARGEST_EPSILON:
        yield f"ε of {format_number(epsilon)} is added to a variance of {format_number(typical)}"


def _are_of_creation(mean: Tensor | None, variance: Tensor | None) -> bool:
    return mean is not None and variance is not None and not bool(mean.any()) and bool((variance == 1).all())


def _rows(node: Node) -> Tensor:
    """Return what a normalization reads, with one row for each mean and variance."""
    x: Tensor = saved(node, "input").detach()
    kind = KERNELS[operator_name(node)]
    if kind == "LayerNorm":
        return x.reshape(-1, math.prod(saved(node, "normalized_shape")))
    if kind == "GroupNorm":
        return x.reshape(saved(node, "N") * saved(node, "group"), -1)
    return x.movedim(1, 0).flatten(1)


IDLE_NORMALIZATIONS: Need[list[str]] = Need(
    "idle normalizations", lambda run: run.of_first_seed(IDLE_NORMALIZATIONS.name, lambda: _idle(run))
)
"""The lines of :func:`idle_normalizations`. The first seed answers for all, because ε does not depend on the draw."""


IDLE_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of idle normalizations", _idle_causes)
"""Which modules add an ε that is too large."""


@declare("names", needs=[IDLE_NORMALIZATIONS], explained_by=IDLE_CAUSES)
def idle_normalizations(run: Run) -> list[str]:
    """Return the normalizations of PyTorch that do not normalize, each with the reason.

    A normalization divides by ``√(σ² + ε)``. It is listed if

    - ε makes most of this, and is larger than 0.01: the median of ``σ² / (σ² + ε)`` over its rows (tokens, groups or
      channels) is below 1/4, so that its result has less than half the size that it should have. Rows of equal entries do
      not count.
    - it is a batch normalization in evaluation mode in a model in training mode, and its running statistics are those of its
      creation, mean 0 and variance 1.

    It misleads for a frozen batch normalization whose statistics are still to be loaded.

    Returns:
        Lines such as ``"body.3 (GroupNorm): ε of 10 is added to a variance of 0.98"``, in program order. The first seed answers
        for all seeds.

    Source: Ioffe & Szegedy, ICML 2015, Algorithm 1.
    """
    return [*run[IDLE_NORMALIZATIONS]]
