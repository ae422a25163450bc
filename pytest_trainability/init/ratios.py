"""Recognizing the ratio of a standard deviation to that of its rule: √2, the number of layers or heads, a fan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

__all__ = ["explain_ratio"]

MOST_ERROR = 0.03
"""Largest relative uncertainty of a ratio that is explained. A less certain one would agree with many factors."""
KNOWN = {
    "√3": "as between the bound of a uniform distribution and its standard deviation",
    "0.8796": "as between a normal distribution before and after truncation at two standard deviations",
    "5/3": "the gain of tanh",
}


def explain_ratio(ratio: float, error: float, expected: float, numbers: Mapping[str, int]) -> str:
    """Return what explains a ratio of standard deviations, within its uncertainty; empty if nothing simple does.

    >>> explain_ratio(4.899, 0.002, 0.02 / 24**0.5, {"layers": 12})
    'the scaling by 1/√(2 × 12) is missing (12 layers)'

    Args:
        ratio: The standard deviation in units of that of the rule.
        error: Largest relative deviation that chance and rounding explain.
        expected: Standard deviation of the rule.
        numbers: Numbers of the model by their meaning, such as ``{"layers": 12, "fan_in": 768}``.

    Returns:
        The explanation with the simplest factor that agrees.
    """
    if not error < MOST_ERROR or ratio <= 0:
        return ""
    for text, factor, meaning in _factors(numbers):
        remark = f" ({meaning})" if meaning else ""
        if abs(math.log(ratio / factor)) <= error:
            return f"the scaling by 1/{text} is missing{remark}" if text not in KNOWN else f"a factor {text}{remark}"
        if abs(math.log(ratio * factor)) <= error:
            return f"a scaling by 1/{text} too many{remark}" if text not in KNOWN else f"a factor 1/({text}){remark}"
    for exponent, words in ((0.5, "the rule's number is the variance"), (2, "the rule's number is squared")):
        if abs(math.log(ratio * expected / expected**exponent)) <= error:
            return words
    return ""


def _factors(numbers: Mapping[str, int]) -> Iterator[tuple[str, float, str]]:
    """Yield factors above 1 as text, value and meaning, the simplest ones first."""
    yield "√2", math.sqrt(2), ""
    yield "2", 2.0, ""
    yield "√3", math.sqrt(3), KNOWN["√3"]
    yield "5/3", 5 / 3, KNOWN["5/3"]
    yield "0.8796", 0.87962566103423978, KNOWN["0.8796"]
    known = {name: n for name, n in numbers.items() if n > 1}
    plain, scaled = list[tuple[str, float, str]](), list[tuple[str, float, str]]()
    for name, n in known.items():
        meaning = f"{name} {n}" if name.startswith("fan") else f"{n} {name}"
        plain += [(f"√{n}", math.sqrt(n), meaning), (f"{n}", float(n), meaning)]
        scaled += [
            (f"√(2 × {n})", math.sqrt(2 * n), meaning),
            (f"(2 × {n})", 2.0 * n, meaning),
            (f"√({n} / 2)", math.sqrt(n / 2), meaning),
        ]
    yield from plain + scaled
    if {"fan_in", "fan_out"} <= known.keys():
        low, high = sorted((known["fan_in"], known["fan_out"]))
        yield f"√({high} / {low})", math.sqrt(high / low), "the other fan"
        yield f"√(({low} + {high}) / (2 × {low}))", math.sqrt((low + high) / (2 * low)), "one fan in place of both"
        yield f"√(2 × {high} / ({low} + {high}))", math.sqrt(2 * high / (low + high)), "one fan in place of both"
    yield "10", 10.0, ""
    yield "100", 100.0, ""
    yield "1000", 1000.0, ""
