"""Reading one model under a contract: for each part of a parameter, the numbers from which its rule is judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.trees import is_float
from .laws import Law
from .places import Tensors
from .rules import Anything, Copied, Drawn, Fixed, Orthogonal, Piece, Rule, RuleLike, Tied, pieces_of
from .significance import SMALLEST_BLOCK, Sample, column_probability, entry_probability, rounding_of, sample_of
from .statistics import TensorStatistics, is_readable, statistics_of

__all__ = ["Reading", "distance_from_orthogonal", "form_of", "look_of", "read_model", "without_ends"]

FEW = 1000
"""Number of entries below which their distribution cannot be told."""

PAIRED = 256
"""Entries of one tensor that are compared with those of another one."""
BEYOND_TAILS = 7.0
"""Standard deviations beyond which PyTorch draws no normal entries."""
PROBES = 4
"""Random vectors on which a matrix is tested to be orthogonal."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Numbers of one part of a parameter of one model."""

    name: str
    label: str
    pattern: str
    rule: Rule
    shape: tuple[int, ...]
    rounding: float
    """Relative error of rounding to the type of the parameter."""
    broken: str = ""
    """What is wrong beyond chance; empty if the rule holds or is a matter of chance."""
    law: Law | None = None
    """Distribution of the rule; None if the rule is not one."""
    statistics: TensorStatistics | None = None
    entries: Tensor | None = None
    """Some entries, in float32."""
    paired: Tensor | None = None
    """Some entries for the comparison with other tensors, with mean 0 and norm 1; None if there are too few."""
    probabilities: tuple[tuple[str, float], ...] = ()
    """Further tests: what they test, and the probability."""


def read_model(contract: Mapping[str, RuleLike], patterns: Mapping[str, str], tensors: Tensors) -> list[Reading]:
    """Return the readings of a model.

    Args:
        contract: Rules by pattern.
        patterns: Pattern of the rule that counts, by name.
        tensors: The parameters and buffers of the model.

    Returns:
        A reading of each part of each parameter.

    Raises:
        UsageError: A rule does not fit the shape of its parameter.
    """
    return [
        reading
        for name, pattern in patterns.items()
        for reading in _readings(name, pattern, contract[pattern], tensors)
    ]


def _readings(name: str, pattern: str, rule: RuleLike, tensors: Tensors) -> Iterator[Reading]:
    known = tensors.known
    tensor = known[name]
    pieces = pieces_of(rule, tensors.place(name), tensor.detach())
    first = _first_name(tensor, name, tensors)
    for piece in pieces:
        if isinstance(piece.rule, Anything):
            continue
        if isinstance(piece.rule, Tied):
            yield _plain(piece, pattern, _not_tied(piece.rule, tensor, first, known))
        elif first:
            yield _plain(
                piece, pattern, f"the same parameter as {first}; if this is meant, the rule is init.tied({first!r})"
            )
        elif not is_readable(tensor):
            yield _plain(piece, pattern, f"entries that cannot be read ({tensor.layout}, {tensor.dtype})")
        else:
            yield _read(piece, pattern, known)


def _first_name(tensor: Tensor, name: str, tensors: Tensors) -> str:
    """Return the first name of a parameter that has several ones; empty if this is it."""
    first = next((other for other, found in tensors.parameters.items() if found is tensor), name)
    return "" if first == name else first


def _not_tied(rule: Tied, tensor: Tensor, first: str, known: Mapping[str, Tensor]) -> str:
    if rule.to is None:
        return "" if first else "a parameter without an earlier name"
    if known[rule.to] is tensor:
        return ""
    same = known[rule.to].shape == tensor.shape and torch.equal(known[rule.to], tensor)
    return f"another parameter than {rule.to}" + (", with equal entries" if same else "")


def _plain(piece: Piece, pattern: str, broken: str) -> Reading:
    rounding = rounding_of(piece.tensor.dtype) if is_float(piece.tensor) else 0.0
    return Reading(piece.place.name, piece.label, pattern, piece.rule, tuple(piece.tensor.shape), rounding, broken)


def _read(piece: Piece, pattern: str, known: Mapping[str, Tensor]) -> Reading:
    tensor, rule = piece.tensor, piece.rule
    statistics = statistics_of(tensor)
    if statistics.not_finite:
        return _plain(piece, pattern, look_of(statistics))
    if isinstance(rule, Fixed):
        return _plain(piece, pattern, _difference(rule.values(piece.place), tensor, statistics))
    if isinstance(rule, Copied):
        other = known[rule.of]
        equal = other.shape == tensor.shape and torch.equal(other, tensor)
        return _plain(piece, pattern, "" if equal else f"other entries than {rule.of}")
    sample = sample_of(tensor)
    if isinstance(rule, Orthogonal):
        return _orthogonal(piece, rule, pattern, statistics, sample)
    assert isinstance(rule, Drawn)
    return _drawn(piece, rule.law(piece.place), pattern, statistics, sample)


def _difference(expected: Tensor, tensor: Tensor, statistics: TensorStatistics) -> str:
    """Return how entries differ from known ones by more than rounding; empty if they do not."""
    value = expected.to(tensor.device, torch.float64)
    if not value.dim():
        found = max(abs(statistics.low - float(value)), abs(statistics.high - float(value)))
    else:
        found = float((tensor - value).abs().max())
    if found <= 2 * rounding_of(tensor.dtype) * float(value.abs().max()):
        return ""
    return look_of(statistics)


def look_of(found: TensorStatistics) -> str:
    """Return in words what entries look like.

    >>> look_of(statistics_of(torch.zeros(3)))
    'all entries are 0'
    """
    form = form_of(found)
    if found.not_finite or found.is_constant:
        return form
    return ", ".join(part for part in (f"mean {found.mean:.3g}, std {found.std:.3g}", form) if part)


def form_of(found: TensorStatistics) -> str:
    """Return in words how entries are distributed; empty if they are too few to tell.

    >>> form_of(statistics_of(torch.linspace(-1, 1, 5000)))
    'uniform within ±1'
    """
    if found.not_finite:
        return f"{found.not_finite:,} of {found.count:,} entries are NaN or infinite"
    if found.is_constant:
        return f"all entries are {found.low:.3g}"
    if found.count < FEW:
        return ""
    largest = found.largest / found.rms
    if found.kurtosis < 2 and abs(largest - math.sqrt(3)) < 0.05:
        return f"uniform within ±{found.largest:.3g}"
    if found.zeros > 0.05 * found.count:
        return f"{100 * found.zeros / found.count:.3g} % zeros"
    if largest < 2.5:
        return f"cut off at {largest:.2f} standard deviations"
    if abs(found.kurtosis - 3) > 6 * math.sqrt(24 / found.count):
        return f"kurtosis {found.kurtosis:.3g}, largest entry {largest:.1f} standard deviations"
    return "like a normal distribution"


def _paired(sample: Sample) -> Tensor | None:
    """Return some entries with mean 0 and norm 1; None for too few of them, or for a constant."""
    entries = sample.entries
    if len(entries) < PAIRED:
        return None
    entries = entries[torch.arange(PAIRED) * len(entries) // PAIRED]
    entries = entries - entries.mean()
    norm = entries.norm()
    return (entries / norm).to(torch.float32) if norm > 0 else None


def _drawn(piece: Piece, law: Law, pattern: str, statistics: TensorStatistics, sample: Sample) -> Reading:
    rounding = rounding_of(piece.tensor.dtype)
    margin = rounding * max(abs(statistics.low), abs(statistics.high))
    outside = statistics.low < law.low - margin or statistics.high > law.high + margin
    broken = ""
    if outside:
        broken = f"entries from {statistics.low:.3g} to {statistics.high:.3g}, rule {law.low:.3g} to {law.high:.3g}"
    if statistics.is_constant and statistics.count > 1:
        broken = look_of(statistics)
    return Reading(
        piece.place.name,
        piece.label,
        pattern,
        piece.rule,
        tuple(piece.tensor.shape),
        rounding,
        broken,
        law,
        without_ends(piece.tensor, statistics, law),
        sample.entries.to(torch.float32),
        _paired(sample),
        (("rows", column_probability(sample.block)), ("columns", column_probability(sample.block.T)))
        if min(sample.block.shape) >= SMALLEST_BLOCK
        else (),
    )


def without_ends(tensor: Tensor, statistics: TensorStatistics, law: Law) -> TensorStatistics:
    """Return the statistics without entries at the ends of a truncated distribution that lie beyond its tails.

    The ends of a normal distribution are those at which ``trunc_normal_`` cuts it off by default, as it is often named so.
    Other libraries and older versions of PyTorch invert the distribution function of a truncated normal distribution. One of 2²⁴
    entries is then infinite, and is moved to the end of the interval, perhaps 100 standard deviations out.
    """
    limits = (law.low, law.high) if math.isfinite(law.low) else (-2.0, 2.0)
    ends = [end for end in limits if abs(end - law.mean) > BEYOND_TAILS * law.std]
    at_ends = [end for end in ends if math.isclose(end, statistics.low) or math.isclose(end, statistics.high)]
    if not at_ends:
        return statistics
    rest = tensor.flatten()
    for end in at_ends:
        rest = rest[(rest - end).abs() > abs(end) * 1e-3]
    return statistics_of(rest) if tensor.numel() - rest.numel() <= 3 + tensor.numel() // 2**21 else statistics


def _orthogonal(piece: Piece, rule: Orthogonal, pattern: str, found: TensorStatistics, sample: Sample) -> Reading:
    tensor = piece.tensor
    rounding = rounding_of(tensor.dtype)
    broken, probabilities = "", tuple[tuple[str, float], ...]()
    if tensor.dim() < 2:
        broken = f"the shape {tuple(tensor.shape)}, which is not that of a matrix"
    else:
        error = distance_from_orthogonal(tensor.flatten(1), rule.gain)
        shape = (tensor.shape[0], tensor.shape[1:].numel())
        probabilities = (("entries", entry_probability(found.largest, shape, rule.gain)),)
        if error > 1e-4 + 4 * rounding:
            gain = found.rms * math.sqrt(max(shape))
            broken = f"not orthogonal, gain rms·√{max(shape)} {gain:.3g}, rule {rule.gain:.3g}"
    return Reading(
        piece.place.name,
        piece.label,
        pattern,
        rule,
        tuple(tensor.shape),
        rounding,
        broken,
        paired=_paired(sample),
        probabilities=probabilities,
    )


def distance_from_orthogonal(matrix: Tensor, gain: float) -> float:
    """Return the relative distance of ``W Wᵀ v`` from ``gain² v`` for a few random vectors, with W or its transpose.

    For a complex matrix, the transpose is the conjugate one.
    """
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    generator = torch.Generator("cpu").manual_seed(0)
    probes = torch.randn(matrix.shape[0], PROBES, generator=generator, device="cpu").to(matrix.device)
    work = torch.promote_types(matrix.dtype, torch.float32)
    matrix, probes = matrix.to(work), probes.to(work)
    error = matrix @ (matrix.mH @ probes) / gain**2 - probes
    return float(error.norm() / probes.norm())
