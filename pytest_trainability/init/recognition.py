"""Recognizing the rule that a parameter keeps, from the models of several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..engine.trees import is_float
from ..errors import UsageError
from . import families
from .check import pooled
from .laws import Law, normal_law, truncated_law
from .numerals import written
from .places import Place, Tensors
from .reading import distance_from_orthogonal, without_ends
from .rules import Drawn, Fixed, Rule
from .significance import mean_probability, rounding_of, sample_of, shape_probability, std_probability
from .statistics import TensorStatistics, is_readable, statistics_of

__all__ = ["NOT_FINITE", "Seen", "eval_rule", "recognized", "see"]

LEAST = 1e-4
"""Smallest probability of a deviation with which a rule is still recognized, over all parameters of the rule."""
KNOWN_WITHIN = 3.0
"""Standard errors within which a number agrees with a simple one."""
GAIN_ERROR = 2e-5
"""Relative error of the gain of an orthogonal matrix in a contract, a fifth of what a check allows."""
FLAT = 2.3
"""Kurtosis below which entries may be uniform, for which it is 1.8."""
NEARLY_NORMAL = 2.95
"""Kurtosis below which a normal distribution may be truncated, for which it is 3."""
OUTSIDE = 12.0
"""Mean distances of the largest entry from the bound of a uniform distribution that are exceeded by chance once in 10⁵ cases."""
NEARLY_IDENTITY = 0.1
"""Largest relative deviation of the diagonal, and size of the other entries, of what is nearly a multiple of the identity."""
NOT_FINITE = "not finite"
"""Trouble of a parameter with entries that are NaN or infinite."""
LIGHT_TAILED = 5.0
"""Standard errors by which the kurtosis of normal entries may fall below 3. That of truncated ones is found in this way."""
SERIAL = 6.0
"""Standard errors of the correlation of successive entries from which they are a table, such as equal steps from 0 to 1."""
FEWEST = 24
"""Fewest entries, over all seeds, from which a distribution with a number of its own is recognized."""


@dataclass(slots=True)
class Seen:
    """One parameter on the models of several seeds."""

    place: Place
    dtype: str
    rounding: float
    shared_with: str = ""
    """First name of the same parameter; empty if this is it."""
    trouble: str = ""
    """Why the parameter has no rule; empty if it may have one."""
    by_seed: list[TensorStatistics] = field(default_factory=list)
    """Without the only row of zeros, and without stray entries at the ends of a truncated distribution."""
    entries: list[Tensor] = field(default_factory=list)
    whole: list[TensorStatistics] = field(default_factory=list)
    """Statistics of all entries by seed."""
    exact: set[str] = field(default_factory=set)
    """Rules with known entries that hold on all seeds so far."""
    gains: list[float] = field(default_factory=list)
    """Gain of each seed on which the parameter is orthogonal."""
    zero_rows: set[int | None] = field(default_factory=set)
    """The only row of zeros; None for none or several."""
    diagonals: list[float] = field(default_factory=list)
    """Mean of the diagonal of each seed on which the parameter is nearly a multiple of the identity."""

    @property
    def statistics(self) -> TensorStatistics:
        """Statistics over all seeds."""
        return pooled(self.by_seed)

    @property
    def is_same_for_all_seeds(self) -> bool:
        """Whether the parameter is not drawn, as far as its sample tells. One seed does not tell."""
        return len(self.entries) > 1 and all(torch.equal(self.entries[0], other) for other in self.entries[1:])

    def of_first_seed(self) -> Seen:
        """Return the parameter as it is on the first seed alone."""
        lists = {name: getattr(self, name)[:1] for name in ("by_seed", "entries", "whole", "gains", "diagonals")}
        return replace(self, **lists)

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Shape and sample of all seeds: equal for copies."""
        return (self.place.shape, *(entries.numpy().tobytes() for entries in self.entries))


_EXACT: dict[str, Callable[[], Rule]] = {
    "init.zeros()": families.zeros,
    "init.ones()": families.ones,
    "init.identity()": families.identity,
    "init.dirac()": families.dirac,
}


def see(tensors: Tensors, known: dict[str, Seen], *, buffers: bool = False) -> None:
    """Add the parameters of one model to those of earlier seeds.

    Args:
        tensors: The parameters and buffers of the model.
        known: The parameters of earlier seeds by name, which is changed.
        buffers: Whether buffers of floating type are added as well.
    """
    first: dict[int, str] = {}
    floating = {name: tensor for name, tensor in tensors.buffers.items() if is_float(tensor)} if buffers else {}
    for name, tensor in {**tensors.parameters, **floating}.items():
        shared_with = first.setdefault(id(tensor), name)
        rounding = rounding_of(tensor.dtype) if is_float(tensor) else 0.0
        seen = known.setdefault(name, Seen(tensors.place(name), str(tensor.dtype).removeprefix("torch."), rounding))
        seen.shared_with = "" if shared_with == name else shared_with
        if not is_float(tensor):
            seen.trouble = f"of type {tensor.dtype}".replace("torch.", "")
        elif not is_readable(tensor):
            seen.trouble = f"of layout {tensor.layout}"
        elif not tensor.numel():
            seen.trouble = "empty"
        elif not seen.shared_with:
            _see_entries(seen, tensor.detach())


def _see_entries(seen: Seen, tensor: Tensor) -> None:
    is_first = not seen.by_seed
    found = statistics_of(tensor)
    seen.whole.append(found)
    row = _only_zero_row(tensor) if found.zeros else None
    seen.zero_rows.add(row)
    if _is_near_identity(tensor, found):
        seen.diagonals.append(float(tensor.diagonal().double().mean()))
    if row is not None:
        tensor = torch.cat([tensor[:row], tensor[row + 1 :]])
        found = statistics_of(tensor)
    if found.not_finite:
        seen.trouble = NOT_FINITE
    elif found.std > 0:
        found = without_ends(tensor, found, normal_law(found.mean, found.std))
    seen.by_seed.append(found)
    seen.entries.append(sample_of(tensor).entries.to(torch.float32))
    # A drawn tensor is not compared with known entries, for which memory of its size would be needed.
    may_be_exact = row is None and (found.is_constant or found.zeros > 0)
    exact = {text for text, make in _EXACT.items() if may_be_exact and _holds(make(), seen.place, tensor)}
    seen.exact = exact if is_first else seen.exact & exact
    if tensor.dim() > 1 and tensor.numel() and not found.is_constant and found.rms > 0:
        # The rms of a complex tensor is that of its real and imaginary parts.
        gain = found.rms * math.sqrt(max(tensor.shape[0], tensor[0].numel()) * (1 + tensor.is_complex()))
        if distance_from_orthogonal(tensor.flatten(1), gain) < 1e-3 + 4 * seen.rounding:
            seen.gains.append(gain)


def _is_near_identity(tensor: Tensor, found: TensorStatistics) -> bool:
    """Return whether a matrix is nearly a multiple of the identity: diagonal entries stand out of all others and agree."""
    if tensor.dim() != 2 or min(tensor.shape) < 2 or found.not_finite or tensor.is_complex():
        return False
    diagonal = tensor.diagonal().double()
    mean, squares = float(diagonal.mean()), float(diagonal.square().sum())
    others = max(found.count * found.rms**2 - squares, 0) / (found.count - len(diagonal))
    spread = float((diagonal - mean).abs().max())
    return mean != 0 and max(spread, math.sqrt(others)) <= NEARLY_IDENTITY * abs(mean)


def _only_zero_row(tensor: Tensor) -> int | None:
    """Return the index of the only row of zeros in a matrix of other rows; None if there is none, or several."""
    if tensor.dim() != 2 or tensor.shape[0] < 3:
        return None
    zero = (tensor == 0).all(1).nonzero().flatten().tolist()
    return int(zero[0]) if len(zero) == 1 else None


def _holds(rule: Rule, place: Place, tensor: Tensor) -> bool:
    assert isinstance(rule, Fixed)
    try:
        values = rule.values(place)
    except UsageError:
        return False
    return bool((tensor == values.to(tensor)).all())


def recognized(group: Sequence[Seen]) -> list[str]:
    """Return the source texts of the rules that all parameters of a group keep, the most usual first.

    Args:
        group: Parameters that are not shared and that have no trouble.

    Returns:
        The texts; none if the parameters have no common rule that is simple.
    """
    exact = set.intersection(*(seen.exact for seen in group))
    if exact:
        return [text for text in _EXACT if text in exact]
    if all(seen.statistics.is_constant for seen in group):
        values = {seen.statistics.low for seen in group}
        return [f"init.constant({_constant(values.pop(), group[0].rounding)})"] if len(values) == 1 else []
    if any(seen.statistics.is_constant or seen.is_same_for_all_seeds or _is_ordered(seen) for seen in group):
        return []
    rows = set.union(*(seen.zero_rows for seen in group))
    if len(rows) != 1:
        return []
    row = rows.pop()
    found = _orthogonal(group) or _matching(group)
    return found if row is None else [f"{text}.with_zero_row({row})" for text in found]


def _is_ordered(seen: Seen) -> bool:
    """Return whether successive entries of a single draw are correlated: entries of a table are spread evenly, too."""
    entries = seen.entries[0].double()
    if len(seen.entries) > 1 or len(entries) < FEWEST:
        return False
    before, after = (part - part.mean() for part in (entries[:-1], entries[1:]))
    scale = float(before.norm() * after.norm())
    return scale > 0 and abs(float(before @ after)) > SERIAL * scale / math.sqrt(len(before))


def _constant(value: float, rounding: float) -> str:
    return next(
        text for digits in range(1, 18) if math.isclose(float(text := f"{value:.{digits}g}"), value, rel_tol=rounding)
    )


def _orthogonal(group: Sequence[Seen]) -> list[str]:
    if any(len(seen.gains) < len(seen.by_seed) for seen in group):
        return []
    gains = [gain for seen in group for gain in seen.gains]
    if max(gains) > min(gains) * 1.001:
        return []
    gain = written(gains[0], GAIN_ERROR + group[0].rounding)
    return ["init.orthogonal()" if gain == "1.0" else f"init.orthogonal(gain={gain})"]


def _matching(group: Sequence[Seen]) -> list[str]:
    """Return the texts of distributions that agree with all parameters of a group, the most usual first."""
    rules = ((text, eval_rule(text)) for text in dict.fromkeys(_candidates(group)))
    return [text for text, rule in rules if isinstance(rule, Drawn) and _agrees(rule, group)]


def _agrees(rule: Drawn, group: Sequence[Seen]) -> bool:
    try:
        laws = [rule.law(seen.place) for seen in group]
    except UsageError:
        return False
    return all(_is_likely(law, seen, LEAST / len(group)) for law, seen in zip(laws, group, strict=True))


def _is_likely(law: Law, seen: Seen, least: float) -> bool:
    found = seen.statistics
    margin = seen.rounding * found.largest
    if found.low < law.low - margin or found.high > law.high + margin:
        return False
    if law.kind == "normal" and found.kurtosis < 3 - LIGHT_TAILED * math.sqrt(24 / found.count):
        return False
    if mean_probability(found, law, seen.rounding) < least or std_probability(found, law, seen.rounding) < least:
        return False
    return shape_probability(torch.cat(seen.entries).double(), law, seen.rounding) > least


_DEFAULTS = ("init.kaiming_uniform(a=math.sqrt(5))", "init.default_bias()")
"""Rules of PyTorch's own layers."""
_FAMILIES = (
    "init.xavier_uniform()",
    "init.xavier_normal()",
    "init.kaiming_normal()",
    "init.kaiming_normal(mode='fan_out')",
    "init.lecun_normal()",
    "init.lecun_normal(truncated=True)",
    "init.kaiming_uniform()",
    "init.kaiming_uniform(nonlinearity='linear')",
    "init.kaiming_uniform(mode='fan_out')",
    "init.kaiming_normal(mode='fan_out', nonlinearity='linear')",
)


def _candidates(group: Sequence[Seen]) -> Iterator[str]:
    """Yield texts of rules: PyTorch's defaults, short decimals, the families of ``torch.nn.init``, then fitted numbers."""
    found = pooled([seen.statistics for seen in group])
    fitted = list(_fitted(group, found)) if found.count >= FEWEST else []
    yield from _DEFAULTS
    yield from (text for text in fitted if _is_simple(text))
    yield from _FAMILIES
    yield from (text for text in fitted if not _is_simple(text))


def _is_simple(text: str) -> bool:
    """Return whether the numbers of a rule are decimals of at most two digits, or scaled by the number of layers."""
    numbers = text.partition("(")[2].replace("=", " ").replace(",", " ").replace(")", " ").split()
    if " / math.sqrt(2 * " in text:
        return True
    return "sqrt" not in text and all(len(n.strip("-").lstrip("0.").rstrip("0").replace(".", "")) <= 2 for n in numbers)


def _fitted(group: Sequence[Seen], found: TensorStatistics) -> Iterator[str]:
    """Yield normal, truncated and uniform distributions with the numbers of a group, the most likely first."""
    # Of n uniform entries, the largest is within 1/n of the bound on average.
    is_flat = found.kurtosis < FLAT and found.high - found.low < 4 * found.std
    yield from _uniform(group, found) if is_flat else ()
    dimensions = _dimensions(group)
    error = KNOWN_WITHIN * math.sqrt(max(found.kurtosis - 1, 0.2) / (4 * found.count)) + max(s.rounding for s in group)
    std = written(found.std, error, dimensions, len(group))
    offset = abs(found.mean) > 5 * found.std / math.sqrt(found.count)
    mean_error = KNOWN_WITHIN * found.std / max(abs(found.mean), 1e-300) / math.sqrt(found.count)
    mean = f", mean={written(found.mean, mean_error)}" if offset else ""
    yield f"init.normal(std={std}{mean})"
    if not offset and found.kurtosis < NEARLY_NORMAL:
        for cut in (2.0, 3.0):
            inside = truncated_law(0.0, 1.0, -cut, cut).std
            wide = written(found.std / inside, error, dimensions)
            yield f"init.truncated_normal(std={wide}, a=-{cut:g} * {wide}, b={cut:g} * {wide})"


def _uniform(group: Sequence[Seen], found: TensorStatistics) -> Iterator[str]:
    """Yield uniform distributions whose ends lie just outside all entries."""
    slack = OUTSIDE / 2 / found.count
    error = slack + max(seen.rounding for seen in group)
    bound = written(found.largest * (1 + slack), error, _dimensions(group))
    yield f"init.uniform(-{bound}, {bound})"
    if found.low >= 0:
        yield f"init.uniform(0.0, {bound})"
    width = (found.high - found.low) * slack
    low, high = found.low - width, found.high + width
    yield f"init.uniform({written(low, width / abs(low))}, {written(high, width / abs(high))})"


def _dimensions(group: Sequence[Seen]) -> set[int]:
    """Return the numbers that a scaling may contain: sizes, and their products with that of the kernel."""
    shapes = {s for seen in group for s in (seen.place.shape, seen.place.weight or ())}
    sizes = {n for shape in shapes for n in shape}
    kernels = {math.prod(shape[2:]) for shape in shapes}
    # Recurrent layers stack the weights of two to four gates.
    sizes |= {n // gates for n in sizes for gates in (2, 3, 4) if n % gates == 0}
    return sizes | kernels | {n * kernel for n in sizes for kernel in kernels} | {sum(shape[:2]) for shape in shapes}


def eval_rule(text: str) -> Rule:
    """Return the rule of a source text that this file has written."""
    found = eval(text, {"__builtins__": {}, "math": math, "init": families})
    assert isinstance(found, Rule)
    return found
