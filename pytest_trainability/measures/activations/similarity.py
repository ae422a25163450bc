"""How alike the directions are of what modules read and write: between samples, and between the tokens of a sample."""

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

__all__ = ["SIMILARITIES", "mean_cosine"]


_Mean = tuple[float, int]
"""A mean cosine and the number of entries it is of."""


def mean_cosine(vectors: Tensor) -> float:
    """Return the mean cosine between different vectors of a set, averaged over the pairs of all sets.

    ``(‖Σ x̂‖² - n) / (n (n - 1))`` for n vectors, without a matrix of their products. A vector of zeros has no direction, and is
    left out.

    Args:
        vectors: Of shape ``(sets, n, dimensions)``.

    Returns:
        From ``-1 / (n - 1)`` to 1; NaN where no set has two vectors with a direction, or where one is not finite.
    """
    wide = as_float64(vectors)
    if vectors.dtype == torch.float64:
        # The square of 1e-200 vanishes; no other type goes as far.
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
    """Mean cosines of every grad-carrying tensor that a module read or wrote, for each way in which it may hold samples."""

    batch: int | None = None
    """How many samples the model was given."""
    between_samples: dict[Edge, dict[tuple[int, int], _Mean]] = field(default_factory=dict)
    """By number of samples and the dimension along which they lie."""
    between_tokens: dict[Edge, dict[int, _Mean]] = field(default_factory=dict)
    """By the dimension of the samples; the last one is that of channels, all others are those of tokens."""

    def look(self, edge: Edge, tensor: Tensor) -> None:
        """Take in one tensor."""
        values = tensor.detach()
        if values.layout is not torch.strided or values.dim() < 2 or values.numel() == 0:
            return
        if values.is_complex():
            values = as_real(values).flatten(-2)
        self.batch = self.batch or len(values)
        # The second dimension may be that of samples: of (tokens, samples, channels), of (layers, samples, units).
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
    """Return the average by numbers of entries, NaN of none."""
    total = sum(size for _, size in means)
    return sum(mean * size for mean, size in means) / total if total else math.nan


@contextmanager
def _watching(recorder: Recorder) -> Iterator[Similarities]:
    found = Similarities()

    def note_batch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.batch = found.batch or batch_size((args, kwargs))

    recorder.observers.append(found.look)
    handle = recorder.capture.model.register_forward_pre_hook(note_batch, prepend=True, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _division(run: Run) -> Division | None:
    """Return how states are made of samples, whether these interact or not; None where they are not."""
    if run.trajectories.count > 1:
        return run.trajectories.division
    batch = batch_size(run.capture.inputs)
    states = [shape for index in range(len(run.chain) + 1) for shape, _ in run.chain.shapes(index)]
    # A loss on the way is no vector.
    shapes = [shape for shape in states if len(shape) > 1]
    return next(possible_divisions(shapes, batch), None) if batch is not None and shapes else None


def _are_channels_last(run: Run) -> dict[Edge, bool]:
    """Tell of each tensor of each state whether its last dimension is that of channels, so that others may be of tokens.

    Where no parameter says so, as of the model's input, it is taken to be as in the first state with as many dimensions.
    """
    layout, found, usual = Layout(run.graph.nodes), dict[Edge, bool](), dict[int, bool]()
    unknown: dict[Edge, int] = {}
    for index, state in enumerate(run.chain.cut.states):
        for edge, (shape, _) in zip(state, run.chain.shapes(index)):
            axes = layout.unit_axes(edge, shape)
            if not axes:
                unknown[edge] = len(shape)
            else:
                found[edge] = axes == (len(shape) - 1,)
                usual.setdefault(len(shape), found[edge])
    return found | {edge: usual.get(dims, False) for edge, dims in unknown.items()}


def _similarities(run: Run) -> dict[str, float]:
    watched: Similarities = run.capture.watched[_watching]
    division = _division(run)
    if division is None:
        return {}
    number, axis = division.count, division.axis
    channels_last = _are_channels_last(run) if run.chain.along == "depth" else {}
    result = {}
    for index, name in enumerate(("input", *run.chain.names)):
        shapes = [shape for shape, _ in run.chain.shapes(index)]
        places = [shape.index(number) if axis is None else axis for shape in shapes]
        state = list(zip(run.chain.cut.states[index], shapes, places))
        if number > 1 and any(len(shape) > 1 for shape in shapes):
            seen = [watched.between_samples.get(edge, {}).get((number, place)) for edge, _, place in state]
            result[name] = _average([mean for mean in seen if mean is not None])
        tokens = [
            watched.between_tokens[edge][place]
            for edge, shape, place in state
            if channels_last.get(edge) and edge in watched.between_tokens and _tokens(shape, place) > 1
        ]
        if tokens:
            result[f"{name} tokens"] = _average(tokens)
    if math.isnan(result.get("input", 0.0)):
        # An initial state of zeros has no directions, and is given, not made.
        del result["input"]
    return result


def _tokens(shape: Sequence[int], place: int) -> int:
    return math.prod(size for dim, size in enumerate(shape[:-1]) if dim != place)


SIMILARITIES = Need("similarities", _similarities, instruments=(_watching,))
"""Mean cosines by state, between samples, and between tokens where states have some (``"h.3 tokens"``)."""


@declare("profile", needs=[SIMILARITIES], tolerance=0.05)
def sample_similarity(run: Run) -> dict[str, float]:
    """Return the mean cosine between samples in each state, and between the tokens of a sample: 1 is collapsed.

    ``mean over b ≠ c of x_b·x_c / (‖x_b‖ ‖x_c‖)``. Tokens are told apart in states of three or more dimensions whose last
    one counts channels, by the parameters that they were computed with: sequences and the patches of an image, not the
    pixels of a convolution. Of a state of several tensors it is the average by their numbers of entries. Vectors of zeros
    have no direction, and are left out.

    It misleads where all samples share a large mean, such as a bias or a class token: the cosine is not centered.

    Returns:
        Pure numbers from -1 to 1, 0 for independent samples: ``"input"``, then by step, each followed by its tokens (``"h.3
        tokens"``) where there are any. Samples are left out of a batch of one, tokens along time. NaN where no module reads or
        writes the state, or fewer than two vectors have a direction; the input is left out then, for an initial state of zeros
        is given. So are states that are no vectors, such as a loss. Empty where states are not made of samples.

    Source: Poole et al., NeurIPS 2016, eq. 7 (correlation map); Dong, Cordonnier & Loukas, ICML 2021 (tokens).
    """
    return run[SIMILARITIES]
