"""How little the output of a model changes when the positions of its input change places."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.isolation import generator_of, preserved_model
from ...engine.linalg.norms import as_float64, as_real, norm
from ...engine.runs.objective import Objective
from ...engine.runs.run import Need, Run, Stage
from ...engine.trees import is_float, map_tensors, tensors_in
from ...errors import InapplicableError
from ..measure import declare
from .token_targets import UNORDERED_MODEL

__all__ = ["ORDER_BLINDNESS", "cycle", "with_patches_moved"]

_INAPPLICABLE = (
    "order_blindness needs two samples or more, and an input of positions: integers (samples, positions), floats (samples, "
    "positions, channels), or images that the first convolution cuts into patches. {model} has {found}. Do not request it."
)


def cycle(length: int, generator: torch.Generator) -> Tensor:
    """Draw a permutation that leaves no position where it was, ``(length,)``: a cycle through all of them."""
    order = torch.randperm(length, generator=generator, device="cpu")
    moved = torch.empty_like(order)
    moved[order] = order.roll(-1)
    return moved


def with_patches_moved(images: Tensor, size: tuple[int, int], order: Tensor) -> Tensor:
    """Return images, ``(samples, channels, height, width)``, whose patches have changed places."""
    samples, channels, height, width = images.shape
    rows, columns = height // size[0], width // size[1]
    grid = images.reshape(samples, channels, rows, size[0], columns, size[1]).movedim((2, 4), (1, 2))
    moved = grid.flatten(1, 2)[:, order.to(images.device)].reshape(grid.shape)
    return moved.movedim((1, 2), (2, 4)).reshape(images.shape)


class _Positions:
    """The positions of a model's input: their number, and the same input with its positions changed."""

    def __init__(self, run: Run) -> None:
        self.inputs = run.capture.inputs
        first = next(t for t in tensors_in(self.inputs) if t.dim() > 0)
        self.samples = first.shape[0]
        self.patch = _patch_size(run.capture.model) if first.dim() == 4 and is_float(first) else None
        self.length = 0
        if self.patch is not None:
            height, width = (size // part for size, part in zip(first.shape[2:], self.patch))
            whole = (height * self.patch[0], width * self.patch[1]) == tuple(first.shape[2:])
            self.length = height * width if whole else 0
        elif first.dim() == (3 if is_float(first) else 2):
            self.length = int(first.shape[1])
        if self.length < 2 or self.samples < 2:
            model, shape = type(run.capture.model).__name__, tuple(first.shape)
            raise InapplicableError(_INAPPLICABLE.format(model=model, found=f"an input of shape {shape}"))

    def moved(self, order: Tensor) -> Any:
        """Return the inputs with their positions in another order: of every tensor that has them, except explicit positions."""

        def move(tensor: Tensor) -> Tensor:
            if self.patch is not None:
                return with_patches_moved(tensor, self.patch, order) if tensor.dim() == 4 else tensor
            return tensor[:, order.to(tensor.device)] if self.has_positions(tensor) else tensor

        if isinstance(self.inputs, dict):
            return {name: v if "position" in str(name) else map_tensors(v, move) for name, v in self.inputs.items()}
        return map_tensors(self.inputs, move)

    def has_positions(self, tensor: Tensor) -> bool:
        """Whether the first two dimensions of a tensor count samples and positions."""
        return tensor.dim() > 1 and tuple(tensor.shape[:2]) == (self.samples, self.length)


def _patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the size of the patches that the first convolution reads; None if they overlap."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or first.padding not in {0, (0, 0), "valid"}:
        return None
    return (first.kernel_size[0], first.kernel_size[1])


def _order_blindness(run: Run) -> float:
    positions = _Positions(run)
    order = cycle(positions.length, generator_of(run.seed, "order"))
    plain, moved = _output(run, positions.inputs), _output(run, positions.moved(order))
    if positions.has_positions(plain):
        plain = plain[:, order.to(plain.device)]
    change = float(norm(moved - plain))
    content = float(norm(plain - plain.roll(1, dims=0)))
    eps = torch.finfo(torch.float32 if plain.dtype == torch.float32 else torch.float64).eps
    if change <= ROUND_OFF * eps * float(norm(plain)):
        change = 0.0
    if not (math.isfinite(change) and math.isfinite(content)) or content == 0:
        return math.nan
    return max(0.0, 1 - change / content)


ROUND_OFF = 64
"""Relative change of the output, in units of its precision, up to which it is round-off of sums in another order."""


def _output(run: Run, inputs: Any) -> Tensor:
    """Return the first float tensor of the output in evaluation mode, without dropout."""
    objective = Objective.of(run)
    objective.inputs = inputs
    with preserved_model(run.capture.model):
        run.capture.model.eval()
        output, _ = objective.outputs()
    found = [
        t for t in tensors_in(output) if is_float(t) and t.dim() > 0 and t.shape[0] == len(next(tensors_in(inputs)))
    ]
    if not found:
        msg = (
            f"order_blindness needs an output with a row for each sample. {type(run.capture.model).__name__} has none."
        )
        raise InapplicableError(msg)
    return as_real(found[0].detach()) if found[0].dtype == torch.float32 else as_float64(as_real(found[0].detach()))


ORDER_BLINDNESS: Need[float] = Need("order blindness", _order_blindness, Stage.RERUN)
"""The value of ``order_blindness``."""


@declare("scalar", needs=[ORDER_BLINDNESS], tolerance=0.05, presumes=UNORDERED_MODEL)
def order_blindness(run: Run) -> float:
    """Return how little the output changes when the positions of the input change places.

    ``max(0, 1 - ‖f(π x) - π f(x)‖ / ‖f(x) - f(x')‖)`` in evaluation mode: π is a random cycle of the positions, and x' the batch
    with each sample replaced by the next one. An output without positions, such as that of a classifier, is compared as it is.

    It misleads where order matters little at initialization, as with relative positions and attention that is uniform at first.

    Returns:
        A pure number: 1 if the model does not know positions at all, 0 if their order matters as much as the content. NaN if all
        samples have the same output, or if it is not finite.

    Raises:
        InapplicableError: The input has no positions, there is one sample only, or the output has no row for each sample.

    Source: Vaswani et al., NeurIPS 2017, section 3.5; Lee et al., Set Transformer, ICML 2019, on permutation equivariance.
    """
    return run[ORDER_BLINDNESS]
