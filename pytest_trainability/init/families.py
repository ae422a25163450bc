"""The functions that make rules: exact values, distributions, and the families of ``torch.nn.init``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..records.text import as_code
from .laws import Law, normal_law, truncated_law, uniform_law
from .places import Place, fans_of
from .rules import Anything, Copied, Drawn, Fixed, Orthogonal, Packed, Rule, RuleLike, Tied

__all__ = [
    "anything",
    "constant",
    "copied",
    "default_bias",
    "dirac",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "normal",
    "ones",
    "orthogonal",
    "packed",
    "tied",
    "truncated_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]


def zeros() -> Rule:
    """All entries are zero."""
    return Fixed("init.zeros()", lambda place: torch.zeros(()))


def ones() -> Rule:
    """All entries are one."""
    return Fixed("init.ones()", lambda place: torch.ones(()))


def constant(value: float) -> Rule:
    """All entries have one value, rounded to the type of the parameter.

    Args:
        value: The value.

    Returns:
        The rule.
    """
    value = _number("constant", "value", value)
    return Fixed(f"init.constant({value!r})", lambda place: torch.tensor(value, dtype=torch.float64))


def normal(std: float = 1.0, mean: float = 0.0) -> Rule:
    """Independent entries from a normal distribution.

    Args:
        std: Standard deviation, above 0.
        mean: Mean.

    Returns:
        The rule.
    """
    law = normal_law(_number("normal", "mean", mean), _positive("normal", "std", std))
    return Drawn(f"init.normal({_call(std=std, mean=(mean, 0.0))})", lambda place: law)


def truncated_normal(std: float = 1.0, mean: float = 0.0, a: float = -2.0, b: float = 2.0) -> Rule:
    """Independent entries from a normal distribution that is truncated to ``[a, b]``, as of ``torch.nn.init.trunc_normal_``.

    The ends are values of entries, not multiples of the standard deviation. With ``std=0.02`` the default ends cut nothing off.

    Args:
        std: Standard deviation before truncation, above 0.
        mean: Mean before truncation.
        a: Smallest entry.
        b: Largest entry.

    Returns:
        The rule.

    Raises:
        UsageError: ``a`` is not below ``b``, or nearly all of the distribution lies outside.
    """
    std, mean = _positive("truncated_normal", "std", std), _number("truncated_normal", "mean", mean)
    _refuse_empty("truncated_normal", "a", a, "b", b)
    if mean + 6 * std < a or mean - 6 * std > b:
        msg = f"truncated_normal() needs an interval [a, b] within six standard deviations of the mean. Got [{a}, {b}]."
        raise UsageError(msg)
    law = truncated_law(mean, std, a, b)
    return Drawn(
        f"init.truncated_normal({_call(std=std, mean=(mean, 0.0), a=(a, -2.0), b=(b, 2.0))})", lambda place: law
    )


def uniform(low: float = 0.0, high: float = 1.0) -> Rule:
    """Independent entries from a uniform distribution.

    Args:
        low: Smallest entry.
        high: Largest entry.

    Returns:
        The rule.
    """
    _refuse_empty("uniform", "low", low, "high", high)
    law = uniform_law(low, high)
    return Drawn(f"init.uniform({low!r}, {high!r})", lambda place: law)


def orthogonal(gain: float = 1.0) -> Rule:
    """A random matrix with orthonormal rows or columns, times a gain, as of ``torch.nn.init.orthogonal_``.

    Args:
        gain: Factor, above 0.

    Returns:
        The rule.
    """
    return Orthogonal(f"init.orthogonal({_call(gain=(gain, 1.0))})", _positive("orthogonal", "gain", gain))


def identity() -> Rule:
    """The identity matrix, as of ``torch.nn.init.eye_``."""
    return Fixed("init.identity()", _identity)


def dirac(groups: int = 1) -> Rule:
    """A convolution that passes its input on, as of ``torch.nn.init.dirac_``.

    Args:
        groups: Number of groups of the convolution.

    Returns:
        The rule.

    Raises:
        UsageError: It is no such number.
    """
    if type(groups) is not int or groups < 1:
        msg = f"dirac() needs a number of groups of at least 1. Got {groups!r}."
        raise UsageError(msg)
    return Fixed(f"init.dirac({_call(groups=(groups, 1))})", lambda place: _dirac(place, groups))


def xavier_normal(gain: float = 1.0) -> Rule:
    """A normal distribution with the standard deviation ``gain √(2 / (fan_in + fan_out))``.

    Args:
        gain: Factor, above 0.

    Returns:
        The rule.

    Source: Glorot & Bengio, AISTATS 2010, eq. 12; ``torch.nn.init.xavier_normal_``.
    """
    gain = _positive("xavier_normal", "gain", gain)
    return Drawn(
        f"init.xavier_normal({_call(gain=(gain, 1.0))})",
        lambda place: normal_law(0.0, gain * math.sqrt(2 / sum(fans_of(place)))),
    )


def xavier_uniform(gain: float = 1.0) -> Rule:
    """A uniform distribution with the standard deviation ``gain √(2 / (fan_in + fan_out))``.

    Args:
        gain: Factor, above 0.

    Returns:
        The rule.

    Source: Glorot & Bengio, AISTATS 2010, eq. 16; ``torch.nn.init.xavier_uniform_``.
    """
    gain = _positive("xavier_uniform", "gain", gain)
    return Drawn(
        f"init.xavier_uniform({_call(gain=(gain, 1.0))})",
        lambda place: _centered(gain * math.sqrt(6 / sum(fans_of(place)))),
    )


def kaiming_normal(a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Rule:
    """A normal distribution with the standard deviation ``gain / √fan``.

    Args:
        a: Negative slope of the activation, for ``nonlinearity="leaky_relu"``.
        mode: ``"fan_in"`` or ``"fan_out"``.
        nonlinearity: Name of the activation, from which ``torch.nn.init.calculate_gain`` computes the gain.

    Returns:
        The rule.

    Source: He et al., ICCV 2015, eq. 10; ``torch.nn.init.kaiming_normal_``.
    """
    std = _kaiming_std("kaiming_normal", a, mode, nonlinearity)
    return Drawn(_kaiming_text("kaiming_normal", a, mode, nonlinearity), lambda place: normal_law(0.0, std(place)))


def kaiming_uniform(a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Rule:
    """A uniform distribution with the standard deviation ``gain / √fan``.

    PyTorch's linear and convolutional layers use ``kaiming_uniform(a=math.sqrt(5))``, which is uniform within ``1 / √fan_in``.

    Args:
        a: Negative slope of the activation, for ``nonlinearity="leaky_relu"``.
        mode: ``"fan_in"`` or ``"fan_out"``.
        nonlinearity: Name of the activation, from which ``torch.nn.init.calculate_gain`` computes the gain.

    Returns:
        The rule.

    Source: He et al., ICCV 2015, eq. 10; ``torch.nn.init.kaiming_uniform_``.
    """
    std = _kaiming_std("kaiming_uniform", a, mode, nonlinearity)
    text = _kaiming_text("kaiming_uniform", a, mode, nonlinearity)
    return Drawn(text, lambda place: _centered(math.sqrt(3) * std(place)))


def lecun_normal(*, truncated: bool = False) -> Rule:
    """A normal distribution with the standard deviation ``1 / √fan_in``.

    Args:
        truncated: Whether it is truncated at two standard deviations of the distribution before truncation, and widened to keep
            its standard deviation, as in JAX and timm.

    Returns:
        The rule.

    Source: LeCun et al., Efficient BackProp, 1998, sec. 4.6.
    """

    def law(place: Place) -> Law:
        std = 1 / math.sqrt(fans_of(place)[0])
        wide = std / truncated_law(0.0, 1.0, -2.0, 2.0).std
        return truncated_law(0.0, wide, -2 * wide, 2 * wide) if truncated else normal_law(0.0, std)

    return Drawn(f"init.lecun_normal({_call(truncated=(truncated, False))})", law)


def default_bias() -> Rule:
    """The bias of PyTorch's linear and convolutional layers: uniform within ``1 / √fan_in`` of the module's weight."""

    def law(place: Place) -> Law:
        if place.weight is None:
            msg = f"default_bias() needs a parameter 'weight' in the same module. That of {place.name!r} has none."
            raise UsageError(msg)
        return _centered(1 / math.sqrt(fans_of(place, place.weight)[0]))

    return Drawn("init.default_bias()", law)


def tied(to: str | None = None) -> Rule:
    """The same parameter as another one, under a second name.

    Args:
        to: Name of the other parameter. By default any parameter with an earlier name.

    Returns:
        The rule.
    """
    if to is not None:
        _refuse_no_text("tied", "the name of a parameter", to)
    return Tied("init.tied()" if to is None else f"init.tied({as_code(to)})", to)


def copied(of: str) -> Rule:
    """A parameter of its own with the same entries as another one.

    Args:
        of: Name of the other parameter or buffer.

    Returns:
        The rule.
    """
    _refuse_no_text("copied", "the name of a parameter", of)
    return Copied(f"init.copied({as_code(of)})", of)


def anything(reason: str) -> Rule:
    """No statement on the parameter. The reason is for the reader of the contract.

    Args:
        reason: Why the contract says nothing.

    Returns:
        The rule.
    """
    _refuse_no_text("anything", "a reason, such as anything('loaded from a table')", reason)
    return Anything(f"init.anything({as_code(reason)})", reason)


def packed(*rules: RuleLike, dim: int = 0, sizes: Sequence[int] | None = None) -> Rule:
    """Several rules for consecutive slices of a tensor, such as the queries, keys and values of a packed projection.

    >>> packed(zeros(), ones(), zeros(), zeros())  # the biases of an LSTM, whose forget gate begins open
    init.packed(init.zeros(), init.ones(), init.zeros(), init.zeros())

    Args:
        *rules: One rule per slice. Fans are those of the slice.
        dim: Dimension that is divided.
        sizes: Sizes of the slices; by default they are equal.

    Returns:
        The rule.

    Raises:
        UsageError: There is no rule, or the number of sizes is another one.
    """
    if not rules or (sizes is not None and len(sizes) != len(rules)):
        msg = f"packed() needs one size per rule. Got {len(rules)} rules and the sizes {sizes}."
        raise UsageError(msg)
    sizes = None if sizes is None else tuple(sizes)
    inner = [*map(repr, rules), *([f"dim={dim}"] if dim else []), *([f"sizes={sizes}"] if sizes else [])]
    return Packed(f"init.packed({', '.join(inner)})", rules, dim, sizes)


def _centered(bound: float) -> Law:
    return uniform_law(-bound, bound)


def _identity(place: Place) -> Tensor:
    if len(place.shape) != 2:
        msg = f"identity() needs a matrix. {place.name!r} has the shape {place.shape}."
        raise UsageError(msg)
    return torch.eye(*place.shape, device="cpu")


def _dirac(place: Place, groups: int) -> Tensor:
    if len(place.shape) not in {3, 4, 5} or place.shape[0] % groups:
        msg = (
            f"dirac({groups}) needs the weight of a convolution with {groups} groups. {place.name!r} has the shape "
            f"{place.shape}."
        )
        raise UsageError(msg)
    found: Tensor = nn.init.dirac_(torch.empty(place.shape, device="cpu"), groups)
    return found


def _kaiming_std(rule: str, a: float, mode: str, nonlinearity: str) -> Callable[[Place], float]:
    if mode not in {"fan_in", "fan_out"}:
        msg = f"{rule}() needs mode='fan_in' or mode='fan_out'. Got {mode!r}."
        raise UsageError(msg)
    a = _number(rule, "a", a)
    try:
        gain = nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    except ValueError as error:
        msg = f"{rule}() needs a nonlinearity that torch.nn.init.calculate_gain knows. Got {nonlinearity!r}."
        raise UsageError(msg) from error
    return lambda place: gain / math.sqrt(fans_of(place)[mode == "fan_out"])


def _kaiming_text(rule: str, a: float, mode: str, nonlinearity: str) -> str:
    call = _call(a=(a, 0.0), mode=(mode, "fan_in"), nonlinearity=(nonlinearity, "leaky_relu"))
    return f"init.{rule}({call})".replace(f"a={math.sqrt(5)!r}", "a=math.sqrt(5)")


def _refuse_no_text(rule: str, expected: str, value: object) -> None:
    """Refuse what is no text, or empty.

    Raises:
        UsageError: It is.
    """
    if not isinstance(value, str) or not value.strip():
        msg = f"{rule}() needs {expected}. Got {value!r}."
        raise UsageError(msg)


def _call(**arguments: Any) -> str:
    """Return arguments as source text. A pair is a value and its default, which is left out."""
    plain = {name: value for name, value in arguments.items() if not isinstance(value, tuple)}
    changed = {name: pair[0] for name, pair in arguments.items() if isinstance(pair, tuple) and pair[0] != pair[1]}
    return ", ".join(f"{name}={as_code(value)}" for name, value in {**plain, **changed}.items())


def _number(rule: str, name: str, value: float) -> float:
    """Return a finite number as a float.

    Raises:
        UsageError: It is something else.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        msg = f"{rule}() needs a finite number as {name}. Got {value!r}."
        raise UsageError(msg)
    return number


def _positive(rule: str, name: str, value: float) -> float:
    """Return a number above zero as a float.

    Raises:
        UsageError: It is something else.
    """
    number = _number(rule, name, value)
    if number <= 0:
        hint = " A constant parameter is init.zeros() or init.constant(value)." if number == 0 else ""
        msg = f"{rule}() needs a {name} above 0. Got {value!r}.{hint}"
        raise UsageError(msg)
    return number


def _refuse_empty(rule: str, first: str, low: float, second: str, high: float) -> None:
    if not _number(rule, first, low) < _number(rule, second, high):
        msg = f"{rule}() needs {first} below {second}. Got {first}={low!r} and {second}={high!r}."
        raise UsageError(msg)
