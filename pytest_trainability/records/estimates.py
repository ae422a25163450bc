"""Results of measures: numbers averaged over seeds, by name or in order."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from numbers import Real
from statistics import stdev
from typing import Any, Literal, TypeVar, overload

from .names import unmatched
from .text import format_finite, format_names, format_spread, visible

__all__ = ["Estimate", "Listed", "Names", "Profile", "Spectrum", "Steps", "selected", "value_text"]


_Item = TypeVar("_Item")


class Listed(Sequence[_Item]):
    """Base class of records that are sequences."""

    __slots__ = ()

    def _items(self) -> Sequence[_Item]:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | Sequence[_Item]:
        return self._items()[index]

    def __len__(self) -> int:
        return len(self._items())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Estimate:
    """One number, averaged over seeds, with its confidence interval. It prints with the spread between seeds.

    An estimate compares and computes like the float :attr:`mean`. Arithmetic with a number returns an estimate, so that
    a failing ``assert abs(result.lyapunov_max) < 0.1`` shows mean, spread and number of seeds. Arithmetic with another
    estimate returns a float, because their intervals do not add up in general.

    >>> x = Estimate(mean=-0.25, low=-0.31, high=-0.19, values=(-0.25, -0.24, -0.26), unit="nats/step")
    >>> x
    -0.250 ± 0.010 nats/step (3 seeds)
    >>> abs(x) < 0.3, x + 1 > 0.5, float(x)
    (True, True, -0.25)
    """

    mean: float
    """Mean over seeds; the geometric mean if ``scale`` is ``"log"``."""
    low: float
    """Lower end of the Student-t confidence interval; NaN with one seed."""
    high: float
    """Upper end of the interval; NaN with one seed."""
    values: tuple[float, ...]
    """One value per seed, in the order of the seeds."""
    unit: str = ""
    """Unit, such as ``"nats/step"``; empty if the number has none."""
    name: str = ""
    """Name of the element of a profile, such as a parameter's name; empty for a scalar."""
    scale: Literal["linear", "log"] = "linear"
    """``"linear"`` if values are averaged, ``"log"`` if their logarithms are averaged."""

    __array_priority__ = 1.0
    """Numbers of NumPy leave arithmetic to the estimate. Before NumPy 2 they warn when its interval is NaN."""

    def __float__(self) -> float:
        return self.mean

    def _affine(self, scale: float, shift: float) -> Estimate:
        ends = sorted((scale * self.low + shift, scale * self.high + shift))
        return replace(
            self,
            mean=scale * self.mean + shift,
            low=ends[0],
            high=ends[1],
            values=tuple(scale * value + shift for value in self.values),
        )

    def __neg__(self) -> Estimate:
        return self._affine(-1.0, 0.0)

    def __pos__(self) -> Estimate:
        return self

    def __abs__(self) -> Estimate:
        magnitudes = abs(self.low), abs(self.high)
        low = 0.0 if self.low <= 0.0 <= self.high else min(magnitudes)
        return replace(
            self, mean=abs(self.mean), low=low, high=max(magnitudes), values=tuple(abs(v) for v in self.values)
        )

    @overload
    def __add__(self, other: Estimate) -> float: ...
    @overload
    def __add__(self, other: float) -> Estimate: ...
    def __add__(self, other: Any) -> Any:
        return self.mean + other.mean if isinstance(other, Estimate) else _with_number(self, other, 1.0, 1.0)

    def __radd__(self, other: float) -> Any:
        return _with_number(self, other, 1.0, 1.0)

    @overload
    def __sub__(self, other: Estimate) -> float: ...
    @overload
    def __sub__(self, other: float) -> Estimate: ...
    def __sub__(self, other: Any) -> Any:
        return self.mean - other.mean if isinstance(other, Estimate) else _with_number(self, other, 1.0, -1.0)

    def __rsub__(self, other: float) -> Any:
        return _with_number(self, other, -1.0, 1.0)

    @overload
    def __mul__(self, other: Estimate) -> float: ...
    @overload
    def __mul__(self, other: float) -> Estimate: ...
    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Estimate):
            return self.mean * other.mean
        return self._affine(float(other), 0.0) if isinstance(other, Real) else NotImplemented

    def __rmul__(self, other: Any) -> Any:
        return self._affine(float(other), 0.0) if isinstance(other, Real) else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Estimate):
            return self.mean / other.mean
        return self._affine(1.0 / float(other), 0.0) if isinstance(other, Real) else NotImplemented

    def __rtruediv__(self, other: float) -> float:
        return other / self.mean

    def __pow__(self, exponent: float) -> float:
        return float(self.mean**exponent)

    def __rpow__(self, base: float) -> float:
        return float(base**self.mean)

    def __floordiv__(self, other: Any) -> float:
        return float(self.mean // float(other))

    def __mod__(self, other: Any) -> float:
        return float(self.mean % float(other))

    def __int__(self) -> int:
        return int(self.mean)

    def __round__(self, digits: int | None = None) -> float:
        return round(self.mean, digits) if digits is not None else round(self.mean)

    def __bool__(self) -> bool:
        return self.mean != 0

    def _compare(self, other: Any, judge: Callable[[float, float], bool]) -> Any:
        return judge(self.mean, float(other)) if isinstance(other, Real) else NotImplemented

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, float.__lt__)

    def __le__(self, other: Any) -> Any:
        return self._compare(other, float.__le__)

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, float.__gt__)

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, float.__ge__)

    def __eq__(self, other: Any) -> Any:
        return self._compare(other, float.__eq__)

    def __ne__(self, other: Any) -> Any:
        return self._compare(other, float.__ne__)

    def __hash__(self) -> int:
        return hash(self.mean)

    @property
    def half_width(self) -> float:
        """Half the width of the interval; NaN with one seed."""
        return (self.high - self.low) / 2

    @property
    def spread(self) -> float:
        """Standard deviation between seeds, of the logarithms if ``scale`` is ``"log"``.

        NaN with one seed, or if a value has no finite number or logarithm.
        """
        values = self.values
        if len(values) < 2 or not all(map(math.isfinite, values)) or (self.scale == "log" and min(values) <= 0):
            return math.nan
        return stdev(map(math.log, values) if self.scale == "log" else values)

    def __str__(self) -> str:
        finite = format_finite(self.values)
        return format_spread(self.mean, self.spread, unit=self.unit, scale=self.scale, finite=finite)

    def __repr__(self) -> str:
        if math.isnan(self.mean) and format_finite(self.values):
            # The text itself gives the number of seeds.
            return f"{self} ({self.name})" if self.name else str(self)
        count = f"{len(self.values)} seed{'s' if len(self.values) != 1 else ''}"
        return visible(f"{self} ({self.name}, {count})" if self.name else f"{self} ({count})")

    def __format__(self, spec: str) -> str:
        return format(self.mean, spec) if spec else str(self)


def _with_number(estimate: Estimate, other: Any, scale: float, sign: float) -> Any:
    return estimate._affine(scale, sign * float(other)) if isinstance(other, Real) else NotImplemented


# So that pytest.approx and other code that expects a real number accept an estimate.
Real.register(Estimate)


class _Elements:
    """Comparisons with a number. They hold if they hold for every element and there is at least one element."""

    __slots__ = ()

    def _estimates(self) -> Sequence[Estimate]:
        raise NotImplementedError

    def __lt__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e < other for e in self._estimates())

    def __le__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e <= other for e in self._estimates())

    def __gt__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e > other for e in self._estimates())

    def __ge__(self, other: float) -> bool:
        return bool(self._estimates()) and all(e >= other for e in self._estimates())


@dataclass(frozen=True, slots=True, repr=False)
class Spectrum(_Elements, Listed[Estimate]):
    """Estimates in decreasing order: Lyapunov exponents or singular values.

    A comparison with a number holds if it holds for every element. An empty spectrum satisfies no comparison.

    Args:
        exponents: Estimates, largest first. An estimate without a name is named ``exponent 1``, ``exponent 2``, ….

    >>> spectrum = Spectrum(tuple(Estimate(x, x, x, (x,), unit="nats/step") for x in (0.1, -0.5)))
    >>> spectrum
    Spectrum([0.1, -0.5] nats/step)
    >>> spectrum < 0.2, spectrum[1].name
    (True, 'exponent 2')
    """

    exponents: tuple[Estimate, ...]
    """Estimates, largest first."""

    def __post_init__(self) -> None:
        named = (replace(e, name=e.name or f"exponent {number}") for number, e in enumerate(self.exponents, 1))
        object.__setattr__(self, "exponents", tuple(named))

    def _items(self) -> Sequence[Estimate]:
        return self.exponents

    _estimates = _items

    def __repr__(self) -> str:
        shown = ", ".join(_short(e) for e in self.exponents[:8])
        more = f", … {len(self) - 8} more" if len(self) > 8 else ""
        unit = f" {self.exponents[0].unit}" if self.exponents and self.exponents[0].unit else ""
        return f"Spectrum([{shown}{more}]{unit})"


def _short(estimate: Estimate) -> str:
    """Return the mean without interval and unit, or the number of seeds that are finite where it is NaN."""
    if math.isnan(estimate.mean):
        return format_finite(estimate.values) or "nan"
    return str(round(estimate.mean, 4) if math.isfinite(estimate.mean) else estimate.mean)


@dataclass(frozen=True, slots=True, repr=False)
class Profile(_Elements, Mapping[str, Estimate]):
    """Estimates by name: one for each step of the chain, or one for each parameter.

    A comparison with a number holds if it holds for every element: ``profile > 1e-7`` compares the smallest one. An empty
    profile satisfies no comparison.

    Args:
        estimates: Estimates by name, in program order.

    >>> profile = Profile(
    ...     {"a": Estimate(2.0, 2.0, 2.0, (2.0,), name="a"), "b": Estimate(0.5, 0.5, 0.5, (0.5,), name="b")}
    ... )
    >>> profile
    Profile(2 elements, min 0.5 (b, 1 seed), max 2 (a, 1 seed))
    >>> profile > 0.1, profile["a"] > 1, profile.argmin
    (True, True, 'b')
    """

    estimates: Mapping[str, Estimate] = field(default_factory=dict)

    def _estimates(self) -> Sequence[Estimate]:
        return tuple(self.estimates.values())

    def __getitem__(self, name: str) -> Estimate:
        __tracebackhide__ = True
        try:
            return self.estimates[name]
        except KeyError:
            near = difflib.get_close_matches(str(name), self.estimates)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            count = f"{len(self)} element{'s' if len(self) != 1 else ''}"
            msg = f"No element {name!r} in this profile ({count}).{hint}"
            raise KeyError(msg) from None

    def __contains__(self, name: object) -> bool:
        return name in self.estimates

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def matching(self, *patterns: str) -> Profile:
        """Return the elements whose names match at least one pattern.

        Args:
            *patterns: Shell patterns, such as ``"*.weight"``. Case matters.

        Returns:
            A profile in the same order.

        Raises:
            ValueError: A pattern matches no name.

        >>> profile = Profile({"a.weight": Estimate(1.0, 1.0, 1.0, (1.0,)), "a.bias": Estimate(0.0, 0.0, 0.0, (0.0,))})
        >>> list(profile.matching("*.weight"))
        ['a.weight']
        """
        __tracebackhide__ = True
        return selected(self, patterns, keep=True)

    def excluding(self, *patterns: str) -> Profile:
        """Return the elements whose names match no pattern.

        Args:
            *patterns: Shell patterns, such as ``"*.bias"``. Case matters.

        Returns:
            A profile in the same order; empty if every name matches.

        Raises:
            ValueError: A pattern matches no name.

        >>> profile = Profile(
        ...     {"key.weight": Estimate(1.0, 1.0, 1.0, (1.0,)), "key.bias": Estimate(0.0, 0.0, 0.0, (0.0,))}
        ... )
        >>> list(profile.excluding("*key.bias"))
        ['key.weight']
        """
        __tracebackhide__ = True
        return selected(self, patterns, keep=False)

    def _extreme(self, choose: Callable[..., str]) -> str:
        __tracebackhide__ = True
        if not self.estimates:
            msg = (
                "The profile is empty: it has no `.min` and no `.max`. Check the patterns that were given to `matching` and "
                "`excluding`."
            )
            raise ValueError(msg)
        undefined = [name for name, e in self.estimates.items() if math.isnan(e.mean)]
        return undefined[0] if undefined else choose(self.estimates, key=lambda name: self.estimates[name].mean)

    @property
    def argmin(self) -> str:
        """Name of the smallest element, or of the first element that is NaN.

        Raises:
            ValueError: The profile is empty.
        """
        __tracebackhide__ = True
        return self._extreme(min)

    @property
    def argmax(self) -> str:
        """Name of the largest element, or of the first element that is NaN.

        Raises:
            ValueError: The profile is empty.
        """
        __tracebackhide__ = True
        return self._extreme(max)

    @property
    def min(self) -> Estimate:
        """Smallest element, or the first element that is NaN.

        Raises:
            ValueError: The profile is empty.
        """
        __tracebackhide__ = True
        return self.estimates[self.argmin]

    @property
    def max(self) -> Estimate:
        """Largest element, or the first element that is NaN.

        Raises:
            ValueError: The profile is empty.
        """
        __tracebackhide__ = True
        return self.estimates[self.argmax]

    def __repr__(self) -> str:
        if not self.estimates:
            return "Profile(empty)"
        return f"Profile({len(self)} elements, min {self.min!r}, max {self.max!r})"


def selected(profile: Profile, patterns: Sequence[str], *, keep: bool, every: bool = True) -> Profile:
    """Return the elements of a profile whose names match a pattern, or those whose names match none.

    Args:
        profile: The profile.
        patterns: Shell patterns. Case matters.
        keep: Whether to return the matching elements, instead of the others.
        every: Whether every pattern must match a name.

    Raises:
        ValueError: A pattern matches no name.
    """
    __tracebackhide__ = True
    if every and (message := unmatched(patterns, profile)):
        raise ValueError(message)
    matching = {name for name in profile if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return Profile({name: e for name, e in profile.items() if (name in matching) is keep})


@dataclass(frozen=True, slots=True)
class Steps(Listed[str]):
    """Steps of the chain, as a sequence of their names in program order.

    >>> steps = Steps(("0", "2"), "2 × Linear")
    >>> list(steps), str(steps)
    (['0', '2'], '2 × Linear')
    """

    names: tuple[str, ...]
    """Module paths; ``cell[3]`` is the fourth call of ``cell``."""
    description: str
    """Number and kind of the steps, such as ``12 × GPT2Block``."""
    left_out: str = ""
    """Calls of the same kind that are not on the chain, such as those of a second tower; empty if there are none."""

    def _items(self) -> Sequence[str]:
        return self.names

    def __str__(self) -> str:
        return visible(self.description)

    def __repr__(self) -> str:
        return visible(f"Steps({self.names!r}, {self.description!r}, left_out={self.left_out!r})")


@dataclass(frozen=True, slots=True)
class Names(Listed[str]):
    """Names of faulty parameters, states or steps, as a sequence over all seeds. It is empty if no seed has a fault.

    >>> names = Names(("0.bias", "2.bias"), (2, 1))
    >>> list(names), bool(Names((), (0, 0)))
    (['0.bias', '2.bias'], False)
    """

    names: tuple[str, ...]
    """Every name that occurs on at least one seed."""
    counts: tuple[int, ...]
    """Number of names on each seed, in the order of the seeds."""

    def _items(self) -> Sequence[str]:
        return self.names

    def __repr__(self) -> str:
        return visible(f"Names({self.names!r}, counts={self.counts!r})")


def value_text(value: Estimate | Spectrum | Profile | Names) -> str:
    """Return the value of a measure as text for one line of a report: a long one by its extremes.

    >>> value_text(Spectrum(tuple(Estimate(x, x, x, (x,), unit="nats/step") for x in (0.1, -0.5))))
    '0.1, -0.5 nats/step'
    >>> value_text(Names(("a", "b"), (2,)))
    '2: a, b'
    """
    if isinstance(value, Estimate):
        return str(value)
    if not len(value):
        return "none"
    if isinstance(value, Names):
        return f"{len(value)}: {format_names(value.names)}"
    if isinstance(value, Spectrum):
        return repr(value).removeprefix("Spectrum(").removesuffix(")").replace("[", "").replace("]", "")
    if broken := [element.name for element in value.values() if math.isnan(element.mean)]:
        others = Profile({name: element for name, element in value.items() if name not in broken})
        text = f"no number in {len(broken)} of {len(value)}: {format_names(broken)}"
        return f"{text}; else {value_text(others)}" if others else text
    low, high = value.min, value.max
    if len(value) == 1:
        return f"{low} ({low.name})"
    return f"{low} ({low.name}) to {high} ({high.name})"
