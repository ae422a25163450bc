"""Which steps mix samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, finfo

from ..errors import InapplicableError
from .chain import Chain
from .frames import Frame
from .isolation import derived_seed
from .products import pull_back
from .run import Need, Run
from .trees import batch_size

__all__ = ["INTERACTING_STEPS", "halves", "mixes"]


def halves(samples: int) -> Iterator[Tensor]:
    """Yield sets of samples such that of any two samples each is without the other in one of them.

    Two numbers differ in a binary digit: the sets of samples with the same digit at the same place, ``2 ⌈log₂ samples⌉``
    of them, are enough.

    Yields:
        Booleans ``(samples,)``, never all True or all False.
    """
    numbers = torch.arange(samples, device="cpu")
    for place in range((samples - 1).bit_length()):
        digit = (numbers >> place) % 2 == 1
        yield digit
        yield ~digit


def mixes(chain: Chain, index: int, frame: Frame, seed: int) -> bool:
    """Whether a cotangent that lives on some samples comes back from step ``index`` (1 … L) on others.

    Gaussian cotangents of the state after the step are pulled back from each half of the samples in turn, which misses no pair.
    What comes back on others counts from the working precision of what comes back at all.
    """
    drawn = _drawn(chain, index, seed)
    own = [len(shape) > 0 for shape, _ in chain.shapes(index - 1)]
    eps = max(finfo(dtype).eps for state in (index - 1, index) for _, dtype in chain.shapes(state))
    for half in halves(frame.samples):
        sent = [None if column is None else frame.scale(column, half.double()).unsqueeze(0) for column in drawn]
        returned = pull_back(chain, index, sent)
        norms = frame.norms([column[0] for column, kept in zip(returned, own) if kept and column is not None])
        if norms[~half].max() > eps * norms.max():
            return True
    return False


def _drawn(chain: Chain, index: int, seed: int) -> list[Tensor | None]:
    """Draw a Gaussian cotangent of a state; none of a number without dimensions, a loss so far, which is of no sample."""
    generator = torch.Generator("cpu").manual_seed(derived_seed(seed, f"interaction {index}"))
    found: list[Tensor | None] = []
    for (shape, dtype), device in zip(chain.shapes(index), chain.devices(index)):
        kind = torch.complex64 if dtype.is_complex else torch.float32
        column = torch.randn(shape, generator=generator, dtype=kind, device="cpu")
        found.append(column.to(device=device, dtype=dtype) if shape else None)
    return found


def _division(chain: Chain, index: int, batch: int) -> Frame | None:
    """Return how the states before and after a step are made of samples; None where they are not."""
    shapes = [shape for state in (index - 1, index) for shape, _ in chain.shapes(state) if shape]
    if all(len(shape) < 2 for shape in shapes):
        # One dimension alone is one sample's units.
        return None
    if all(shape[0] % batch == 0 for shape in shapes):
        return Frame(batch, 0)
    if all(len(shape) > 1 and shape[1] == batch for shape in shapes):
        return Frame(batch, 1)
    return None


def _interacting_steps(run: Run) -> list[str]:
    batch = batch_size(run.record.inputs) or 1
    if run.frame.samples > 1 or batch < 2:
        return []
    found = []
    for index, name in enumerate(run.chain.names, 1):
        frame = _division(run.chain, index, batch)
        if frame is None:
            shapes = ", ".join(
                str(tuple(shape)) for state in (index - 1, index) for shape, _ in run.chain.shapes(state)
            )
            msg = (
                "interacting_samples needs states in which samples have places of their own, along the first dimension or the "
                f"second. Around step {name!r} of a batch of {batch} they have the shapes {shapes}. Bound another measure."
            )
            raise InapplicableError(msg)
        if mixes(run.chain, index, frame, run.seed):
            found.append(name)
    return found


INTERACTING_STEPS = Need("interacting steps", _interacting_steps)
"""Names of the steps across which samples interact, in program order."""
