"""Initial values of parameters and buffers: the rows that a baseline stores, and their comparison.

A row is one tensor, or several tensors of the same shape whose names differ by numbers and whose statistics agree within what
chance allows: the output projections of twelve blocks are one row. Two rows are compared by root mean square and mean. A tensor
whose halves, thirds or quarters differ, such as the gates of a recurrent layer, is a row of its own, and these are compared, too.

With the same draws, unchanged code repeats both, and a tolerance decides. With other draws, chance plays a part. There are two
measures of its size: independent entries have a spread that follows from their number and their fourth moment, and the seeds have
one that was measured. The first is used unless the measured spread is significantly larger, as where entries depend on each
other. Fewer than four seeds cannot show that: there, entries are assumed to be independent. The second is used wherever it is
smaller, as for orthogonal matrices and for tables that are not drawn at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..records.names import expanded, folded, in_order_of, of_form, template, with_stars
from ..records.reports import BaselineChange
from ..records.tensors import TensorStatistics

__all__ = ["INITIAL_VALUES", "IN_ROWS", "InitialRow", "initial_changes", "initial_rows"]

INITIAL_VALUES = "initial values"
"""Name of the comparison in reports."""
IN_ROWS = ("parameter_rms", "parameter_mean")
"""Measures whose values are in the rows. The tolerance of the first applies to both."""
DISAGREEMENT = 1e-6
"""Error probability with which two tensors that are alike get separate rows."""
FEW = 30
"""Number of entries below which their fourth moment says little."""
INCONSISTENCY = 1e-3
"""Error probability with which the spread between seeds counts as larger than that of independent entries."""


CONSTANT = 1e-4
"""Relative difference between root mean square and mean up to which a tensor is a constant. Files hold five digits of both."""
VALUE = "value"
"""Unit of a change that is that of a constant."""
OTHER_DRAWS = "which other draws explain"
"""Remark on a change that may be the same distribution, drawn in another order."""
SAME_SHAPE = 0.01
"""Relative difference up to which statistics that a factor leaves alone are equal. Files hold three of their digits."""


@dataclass(frozen=True, slots=True)
class InitialRow:
    """Statistics of the initial values of tensors that are alike, over tensors and seeds."""

    shape: tuple[int, ...]
    rms: float
    """Mean of the root mean squares; NaN if a tensor is not finite on any seed."""
    mean: float
    """Mean of the means."""
    chance: float
    """Relative standard deviation of one root mean square if entries are independent; infinite if there are too few of them."""
    spread: float
    """Relative standard deviation of one root mean square, as measured; 0 if all are zero, NaN if there is one draw."""
    draws: int
    """Number of draws: tensors times seeds."""
    parts: tuple[tuple[float, float], ...] = ()
    """Mean and root mean square of equal parts along the first dimension, where they differ by more than chance on every draw."""

    @property
    def is_finite(self) -> bool:
        """Whether all entries were finite."""
        return math.isfinite(self.rms)

    @property
    def is_constant(self) -> bool:
        """Whether all entries were one number, up to the digits of a file."""
        return self.is_finite and math.isclose(self.rms, abs(self.mean), rel_tol=CONSTANT)

    @property
    def entries(self) -> int:
        """Number of entries of one tensor."""
        return math.prod(self.shape)


# Rows -----------------------------------------------------------------------------------------------------------------
def initial_rows(seeds: Sequence[Mapping[str, tuple[tuple[int, ...], TensorStatistics]]]) -> dict[str, InitialRow]:
    """Return the rows of a baseline.

    Args:
        seeds: For each seed, shape and statistics by the name of the parameter or buffer. A tensor that some seed lacks, or that
            is empty, is left out.

    Returns:
        Rows by pattern (see :mod:`pytest_trainability.records.names`), in the order of the first name of each.
    """
    single = {name: _row([seed[name] for seed in seeds]) for name in seeds[0] if all(name in seed for seed in seeds)}
    single = {name: row for name, row in single.items() if row.entries}
    rows: dict[str, InitialRow] = {}
    for group in _alike(single):
        for pattern, members in folded(group).items():
            rows[pattern] = _row([seed[name] for name in members for seed in seeds])
    return in_order_of(single, rows)


def _row(draws: Sequence[tuple[tuple[int, ...], TensorStatistics]]) -> InitialRow:
    shape = draws[0][0]
    if any(found.not_finite for _, found in draws):
        return InitialRow(shape, math.nan, math.nan, math.nan, math.nan, len(draws))
    rms = math.fsum(found.rms for _, found in draws) / len(draws)
    chance = math.fsum(_chance(found) for _, found in draws) / len(draws)
    squares = math.fsum((found.rms - rms) ** 2 for _, found in draws)
    spread = math.sqrt(squares / (len(draws) - 1)) / (rms or 1.0) if len(draws) > 1 else math.nan
    mean = math.fsum(found.mean for _, found in draws) / len(draws)
    return InitialRow(shape, rms, mean, chance, spread, len(draws), _parts([found.parts for _, found in draws]))


def _parts(draws: Sequence[tuple[tuple[float, float], ...]]) -> tuple[tuple[float, float], ...]:
    """Return the means over draws of the moments of each part; none unless all draws have as many parts."""
    if len({len(parts) for parts in draws}) != 1:
        return ()
    columns = zip(*draws)
    return tuple((fmean(m for m, _ in column), fmean(r for _, r in column)) for column in columns)


def _chance(found: TensorStatistics) -> float:
    """Return the relative standard deviation of the root mean square of independent entries like these.

    It is half of that of the mean square, whose variance is ``(E x⁴ - (E x²)²) / N``. It is infinite if there are too few entries
    to estimate the fourth moment, and 0 for a constant.
    """
    if found.count == 1 or (found.count < FEW and not found.is_constant):
        return math.inf
    square = found.rms**2
    if found.is_constant or not square:
        return 0.0
    # The fourth moment about zero, from central moments. The third one vanishes for symmetric distributions.
    fourth = found.fourth + 6 * found.mean**2 * found.variance + found.mean**4
    return 0.5 * math.sqrt(max(fourth / square**2 - 1, 0.0) / found.count)


def _alike(rows: Mapping[str, InitialRow]) -> Iterator[list[str]]:
    """Yield names whose rows agree: they differ by numbers, and have one shape, and statistics that chance may explain."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, row in rows.items():
        # How much a few numbers that were drawn once vary is not known: they stay alone.
        if row.parts or (math.isinf(row.chance) and math.isnan(row.spread)):
            yield [name]
        else:
            by_shape.setdefault(row.shape, []).append(name)
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for shape, names in by_shape.items():
        for pattern, members in folded(names).items():
            groups.setdefault((template(pattern), shape), []).extend(members)
    for names in groups.values():
        # Sorted by size, so that tensors that agree are neighbours.
        names.sort(key=lambda name: (rows[name].rms, rows[name].mean))
        error = DISAGREEMENT / len(names)
        start = 0
        for index in range(1, len(names) + 1):
            if index == len(names) or _change(rows[names[start]], rows[names[index]], error, 0.0) is not None:
                yield names[start:index]
                start = index


# Comparison -----------------------------------------------------------------------------------------------------------
def initial_changes(
    old: Mapping[str, InitialRow],
    new: Mapping[str, InitialRow],
    *,
    repeatable: bool,
    error: float,
    tolerance: float,
    knows_parts: bool = True,
) -> Iterator[BaselineChange]:
    """Yield the tensors whose initial values have changed, most tensors first, then those that have vanished or are new.

    Tensors that may have been drawn from the same distributions in another order come last among those that have changed.

    Args:
        old: Rows of the baseline.
        new: Rows now.
        repeatable: Whether the same numbers were drawn, so that unchanged code repeats its values. Chance plays a part where the
            rows have other members nevertheless, such as the first of six blocks of which the others are gone.
        error: Probability of a false alarm.
        tolerance: Largest tolerated shift of the log of a root mean square, and of a mean in units of it.
        knows_parts: Whether a row of the baseline without parts has none. An older baseline has not looked for them.
    """
    before, after = _pattern_by_name(old), _pattern_by_name(new)
    pairs: dict[tuple[str, str], list[str]] = {}
    for name in before:
        if name in after:
            pairs.setdefault((before[name], after[name]), []).append(name)
    moved = []
    for (was, now), names in pairs.items():
        # Other members of a row have other numbers, as they are drawn one by one.
        is_exact = repeatable and was == now
        rows = old[was], new[now]
        if not knows_parts and not rows[0].parts:
            rows = rows[0], replace(rows[1], parts=())
        change = _change(*rows, 0.0 if is_exact else error / len(pairs), tolerance)
        if change is not None:
            if is_exact and _may_be_other_draws(*rows, error / len(pairs), tolerance):
                change = replace(change, remark=OTHER_DRAWS)
            forms = with_stars(names, before)
            moved += [
                replace(change, element=form, elements=tuple(of_form(form, names)), count=count, considered=known)
                for form, count, known in forms
            ]
    yield from sorted(moved, key=lambda change: (bool(change.remark), -change.count))
    gone, fresh = (
        [name for name in names if name not in others] for names, others in ((before, after), (after, before))
    )
    if gone:
        yield BaselineChange(INITIAL_VALUES, "vanished", elements=tuple(folded(gone)))
    if fresh:
        yield BaselineChange(INITIAL_VALUES, "new", elements=tuple(folded(fresh)))


def _may_be_other_draws(old: InitialRow, new: InitialRow, error: float, tolerance: float) -> bool:
    """Return whether two rows of as many random numbers may be draws from one distribution in another order.

    A factor moves root mean square and mean alike, and leaves the spread between seeds and the fourth moment as they were.
    """
    if not (old.chance and new.chance) or _change(old, new, error, tolerance) is not None:
        return False
    shapes = [(row.mean / row.rms, row.spread, row.chance) for row in (old, new)]
    is_scaled = all(
        (math.isnan(a) and math.isnan(b)) or a == b or abs(a - b) <= SAME_SHAPE * max(abs(a), abs(b))
        for a, b in zip(*shapes)
    )
    return not is_scaled


def _pattern_by_name(rows: Iterable[str]) -> dict[str, str]:
    return {name: pattern for pattern in rows for name in expanded(pattern)}


def _change(old: InitialRow, new: InitialRow, error: float, tolerance: float) -> BaselineChange | None:
    """Return the difference of two rows; None if there is none that counts.

    Args:
        old: Row of the baseline.
        new: Row now.
        error: Probability of a false alarm; 0 if unchanged code repeats its values.
        tolerance: Largest tolerated shift, as in :func:`initial_changes`.
    """
    if old.shape != new.shape:
        was, now = ("shape " + "×".join(map(str, row.shape)) for row in (old, new))
        return BaselineChange(INITIAL_VALUES, "moved", old_text=was, new_text=now)
    are_constant = old.is_constant and new.is_constant
    shift = _shift_of_rms(old, new, error / 2, tolerance)
    if shift is not None:
        # The sign of a constant counts, and it has no other root mean square than its size.
        before, after, unit = (old.mean, new.mean, VALUE) if are_constant else (old.rms, new.rms, "")
        return BaselineChange(
            INITIAL_VALUES, "moved", old=before, new=after, shift=shift, tolerance=tolerance, unit=unit, scale="log"
        )
    shift = _shift_of_mean(old, new, error / 2, tolerance)
    if shift is not None:
        unit = VALUE if are_constant else "mean"
        return BaselineChange(
            INITIAL_VALUES, "moved", old=old.mean, new=new.mean, shift=shift, tolerance=tolerance * new.rms, unit=unit
        )
    if _parts_differ(old, new, error, tolerance):
        was, now = _parts_text(old.parts, new.parts)
        return BaselineChange(INITIAL_VALUES, "moved", old_text=was, new_text=now)
    return None


_PARTS = {2: "halves", 3: "thirds", 4: "quarters"}


def _parts_differ(old: InitialRow, new: InitialRow, error: float, tolerance: float) -> bool:
    """Return whether parts of tensors have other moments. With other draws, a part must have moved by more than chance allows."""
    if not (old.parts and new.parts) or len(old.parts) != len(new.parts):
        return not error and len(old.parts) != len(new.parts)
    scale = max(old.rms, new.rms)
    moved = max(max(abs(a - b) for a, b in zip(*pair)) for pair in zip(old.parts, new.parts))
    return moved > scale * max(tolerance, _largest_by_chance_of_parts(old, new, error))


def _largest_by_chance_of_parts(old: InitialRow, new: InitialRow, error: float) -> float:
    """Return the largest shift of a part, in units of the root mean square, that chance explains.

    The mean of n/k entries has a standard deviation of at most ``√(k/n)``, and their root mean square one of ``√k`` times that of
    the whole.
    """
    if not error:
        return 0.0
    if not _have_independent_entries(old, new):
        return math.inf
    from scipy.special import ndtri

    number = len(new.parts)
    single = (max(row.chance, row.entries**-0.5) / math.sqrt(row.draws) for row in (old, new))
    return float(-ndtri(error / (4 * number)) * math.sqrt(number) * math.hypot(*single))


def _parts_text(old: Sequence[tuple[float, float]], new: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return the moments that have moved most of both sides: means, or root mean squares."""
    number = 0
    if len(old) == len(new):
        shifts = [max(abs(a[i] - b[i]) for a, b in zip(old, new)) for i in range(2)]
        number = int(shifts[1] > shifts[0])
    what = ("mean", "rms")[number]
    texts = [", ".join(f"{part[number]:.3g}" for part in side) for side in (old, new)]
    before, after = (
        f"{_PARTS[len(side)]} of {what} {text}" if side else "parts that are alike"
        for side, text in zip((old, new), texts)
    )
    return before, after if len(old) != len(new) else texts[1]


def _shift_of_rms(old: InitialRow, new: InitialRow, error: float, tolerance: float) -> float | None:
    """Return the logarithm of the ratio of the root mean squares; NaN if one is not finite, None if nothing has changed."""
    if not (old.is_finite and new.is_finite):
        return None if old.is_finite == new.is_finite else math.nan
    if not (old.rms and new.rms):
        return None if old.rms == new.rms else math.copysign(math.inf, new.rms - old.rms)
    shift = math.log(new.rms / old.rms)
    return shift if abs(shift) > max(tolerance, _largest_by_chance(old, new, error)) else None


def _shift_of_mean(old: InitialRow, new: InitialRow, error: float, tolerance: float) -> float | None:
    """Return the difference of the means; None if nothing has changed."""
    if not (old.is_finite and new.is_finite):
        return None
    shift = new.mean - old.mean
    if abs(shift) <= tolerance * max(old.rms, new.rms):
        return None
    if error and not (_have_independent_entries(old, new) and math.isfinite(old.chance + new.chance)):
        # How much the mean of dependent or few entries varies is not known.
        return None
    from scipy.special import ndtri

    variance = math.fsum((row.rms**2 - row.mean**2) / (row.entries * row.draws) for row in (old, new))
    return shift if not error or abs(shift) > -ndtri(error / 2) * math.sqrt(max(variance, 0.0)) else None


def _largest_by_chance(old: InitialRow, new: InitialRow, error: float) -> float:
    """Return the largest shift of the log of a root mean square that chance explains. See the top of this file."""
    if not error:
        return 0.0
    from scipy.special import ndtri, stdtrit

    limits = []
    if _have_independent_entries(old, new):
        limits.append(-ndtri(error / 4) * math.hypot(*(row.chance / math.sqrt(row.draws) for row in (old, new))))
    known = [row for row in (old, new) if math.isfinite(row.spread)]
    if known:
        # A single draw is assumed to have the spread of the other row.
        spreads = [row.spread if row in known else known[0].spread for row in (old, new)]
        error_of_shift = math.hypot(*(s / math.sqrt(row.draws) for s, row in zip(spreads, (old, new))))
        limits.append(-stdtrit(min(row.draws for row in known) - 1, error / 4) * error_of_shift)
    return float(min(limits, default=math.inf))


def _have_independent_entries(*rows: InitialRow) -> bool:
    """Whether the measured spreads are no larger than those of independent entries, as far as chance allows."""
    known = [row for row in rows if math.isfinite(row.spread) and math.isfinite(row.chance)]
    if any(row.spread and not row.chance for row in known):
        return False
    from scipy.special import chdtrc

    degrees = sum(row.draws - 1 for row in known)
    squares = math.fsum((row.draws - 1) * (row.spread / row.chance) ** 2 for row in known if row.chance)
    return squares <= degrees or float(chdtrc(degrees, squares)) > INCONSISTENCY
