"""Cosine similarity of states: between samples, and between the tokens of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.capture.recorder import Edge, Recorder
from ...engine.jacobian.trajectories import Division, possible_divisions
from ...engine.linalg.norms import as_float64, as_real
from ...engine.runs.run import Need, Run
from ...engine.trees import batch_size
from ..measure import declare
from .unit_axes import Layout

__all__ = ["SIMILARITIES", "are_channels_last", "mean_cosine"]


_Mean = tuple[float, int]
"""A mean cosine, and the number of entries of the vectors."""


def mean_cosine(vectors: Tensor) -> float:
    """Return the mean cosine between different vectors of one set, averaged over the pairs of all sets.

    For n vectors it is ``(‖Σ x̂‖² - n) / (n (n - 1))``, which needs no matrix of inner products. Zero vectors have no
    direction, and do not count.

    Args:
        vectors: Sets of vectors, ``(sets, n, dimensions)``.

    Returns:
        A number from ``-1 / (n - 1)`` to 1; NaN if no set has two nonzero vectors, or if an entry is not finite.
    """
    wide = as_float64(vectors)
    if vectors.dtype == torch.float64:
        # The square of 1e-200 underflows. In narrower types, no number is that small.
        largest = wide.abs().amax(dim=2, keepdim=True)
        wide = wide / largest.masked_fill(largest == 0, 1.0)
    length = torch.linalg.vector_norm(wide, dim=2)
    is_zero = length == 0
    weights = (1 / length).masked_fill(is_zero, 0.0)
    count = (~is_zero).sum(dim=1).double()
    total = float(((weights[:, None] @ wide).square().sum(dim=(1, 2)) - count).sum())
    pairs = float((count * (count - 1)).sum())
    return total / pairs if pairs else math.nan


@dataclass(slots=True, eq=False)
class Similarities:
    """Mean cosines of every tensor with a gradient that a module reads or writes, for each possible dimension of samples."""

    batch: int | None = None
    """Number of samples in the model's inputs."""
    between_samples: dict[Edge, dict[tuple[int, int], _Mean]] = field(default_factory=dict)
    """By the number of samples, and the dimension that counts them."""
    between_tokens: dict[Edge, dict[int, _Mean]] = field(default_factory=dict)
    """By the dimension that counts samples. The last dimension counts channels, and all others count tokens."""

    def observe(self, edge: Edge, tensor: Tensor) -> None:
        """Compute the mean cosines of one tensor."""
        values = tensor.detach()
        if values.layout is not torch.strided or values.dim() < 2 or values.numel() == 0:
            return
        if values.is_complex():
            values = as_real(values).flatten(-2)
        self.batch = self.batch or len(values)
        # The second dimension may count samples: (tokens, samples, channels) or (layers, samples, units).
        axes = (0, 1) if values.dim() == 3 or values.shape[1] == self.batch else (0,)
        samples = {
            (values.shape[axis], axis): self._mean(values.movedim(axis, 0).flatten(1).unsqueeze(0)) for axis in axes
        }
        if len(values) % self.batch == 0 and len(values) > self.batch:
            samples[self.batch, 0] = self._mean(values.reshape(1, self.batch, -1))
        self.between_samples[edge] = samples
        if values.dim() > 2:
            self.between_tokens[edge] = {axis: self._mean(values.movedim(axis, 0).flatten(1, -2)) for axis in axes}

    @staticmethod
    def _mean(vectors: Tensor) -> _Mean:
        return mean_cosine(vectors), vectors.numel()


def _average(means: Sequence[_Mean]) -> float:
    """Return the average, weighted by numbers of entries; NaN for an empty list."""
    total = sum(size for _, size in means)
    return sum(mean * size for mean, size in means) / total if total else math.nan


@contextmanager
def _observe_similarities(recorder: Recorder) -> Iterator[Similarities]:
    found = Similarities()

    def note_batch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.batch = found.batch or batch_size((args, kwargs))

    recorder.observers.append(found.observe)
    handle = recorder.capture.model.register_forward_pre_hook(note_batch, prepend=True, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _division(run: Run) -> Division | None:
    """Return the division of states into samples, whether samples interact or not; None if they cannot be divided."""
    if run.trajectories.count > 1:
        return run.trajectories.division
    batch = batch_size(run.capture.inputs)
    states = [shape for index in range(len(run.chain) + 1) for shape, _ in run.chain.shapes(index)]
    # An accumulated loss in the state is not a vector.
    shapes = [shape for shape in states if len(shape) > 1]
    return next(possible_divisions(shapes, batch), None) if batch is not None and shapes else None


def are_channels_last(run: Run) -> dict[Edge, bool]:
    """Return for each tensor of each state whether its last dimension counts channels, so that other dimensions count tokens.

    If no parameter shows this, as for the model's input, the answer is that of the first tensor with the same number of
    dimensions.
    """
    layout, found, by_dims = Layout(run.graph.nodes), dict[Edge, bool](), dict[int, bool]()
    unknown: dict[Edge, int] = {}
    for index, state in enumerate(run.chain.cut.states):
        for edge, (shape, _) in zip(state, run.chain.shapes(index)):
            axes = layout.unit_axes(edge, shape)
            if not axes:
                unknown[edge] = len(shape)
            else:
                found[edge] = axes == (len(shape) - 1,)
                by_dims.setdefault(len(shape), found[edge])
    return found | {edge: by_dims.get(dims, False) for edge, dims in unknown.items()}


def _similarities(run: Run) -> dict[str, float]:
    similarities: Similarities = run.capture.watched[_observe_similarities]
    division = _division(run)
    if division is None:
        return {}
    number, axis = division.count, division.axis
    channels_last = are_channels_last(run) if run.chain.along == "depth" else {}
    result = {}
    for index, name in enumerate(("input", *run.chain.names)):
        shapes = [shape for shape, _ in run.chain.shapes(index)]
        axes = [shape.index(number) if axis is None else axis for shape in shapes]
        state = list(zip(run.chain.cut.states[index], shapes, axes))
        if number > 1 and any(len(shape) > 1 for shape in shapes):
            means = [similarities.between_samples.get(edge, {}).get((number, axis)) for edge, _, axis in state]
            result[name] = _average([mean for mean in means if mean is not None])
        tokens = [
            similarities.between_tokens[edge][axis]
            for edge, shape, axis in state
            if channels_last.get(edge) and edge in similarities.between_tokens and _tokens(shape, axis) > 1
        ]
        if tokens:
            result[f"{name} tokens"] = _average(tokens)
    if math.isnan(result.get("input", 0.0)):
        # An initial state of zeros is an input of the model, and has no direction.
        del result["input"]
    return result


def _tokens(shape: Sequence[int], sample_axis: int) -> int:
    """Return the number of tokens per sample of a tensor whose last dimension counts channels."""
    return math.prod(size for axis, size in enumerate(shape[:-1]) if axis != sample_axis)


SIMILARITIES = Need("similarities", _similarities, instruments=(_observe_similarities,))
"""Mean cosines by state: between samples, and between tokens for states that have tokens (``"h.3 tokens"``)."""


@declare("profile", needs=[SIMILARITIES], tolerance=0.05)
def sample_similarity(run: Run) -> dict[str, float]:
    """Return the mean cosine between samples in each state, and between the tokens of a sample.

    ``mean over b ≠ c of x_b·x_c / (‖x_b‖ ‖x_c‖)``. A state has tokens if it has at least three dimensions and the last one counts
    channels, according to the parameters that it was computed with: a sequence or the patches of an image, but not the pixels of
    a convolution. A state with several tensors has the average, weighted by numbers of entries. Zero vectors do not count.

    It misleads if all samples share a large mean, such as a bias or a class token: the vectors are not centered.

    Returns:
        Pure numbers from -1 to 1: 0 for independent samples, 1 for identical directions. The names are ``"input"`` and those of
        the steps in program order, each followed by its tokens (``"h.3 tokens"``). For a batch of one, only tokens have values;
        along time, only samples. NaN if no module reads or writes the state, or if fewer than two vectors are nonzero. An input
        with NaN is omitted, because it may be an initial state of zeros. So are states without vectors, such as a loss. The
        profile is empty if states cannot be divided into samples.

    Source: Poole et al., NeurIPS 2016, eq. 7 (correlation map); Dong, Cordonnier & Loukas, ICML 2021 (tokens).
    """
    return run[SIMILARITIES]
