"""The text of a failed contract."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..records.names import template
from ..records.text import format_number, short_repr
from .check import FALSE_ALARM, Breach, Judgement, pooled
from .ratios import explain_ratio
from .reading import look_of

__all__ = ["failure_text", "first_fault"]

MOST_LINES = 20
"""Number of lines of one kind. More are counted."""
LIKELY = 4.0
"""Standard errors by which chance moves a standard deviation at most in an explanation."""
TROUBLE = {
    "rows": "entries of one column are not independent",
    "columns": "entries of one row are not independent",
    "entries": "an entry is too large for a random orthogonal matrix",
    "layers": "equal to or correlated with",
}


def failure_text(judgement: Judgement, name: str = "") -> str:
    """Return the message of a failed check.

    Args:
        judgement: The result of the check.
        name: Name of the model; by default its class.

    Returns:
        Lines: the broken rules, the parameters without a rule, the rules without a parameter.
    """
    seeds = ", ".join(map(str, judgement.seeds[:8])) + (", …" if len(judgement.seeds) > 8 else "")
    plural = "seed" if len(judgement.seeds) == 1 else "seeds"
    lines = [f"{name or judgement.model} does not keep its initialization contract ({plural} {seeds})."]
    lines += _broken_rules(judgement)
    lines += _without_rule(judgement)
    lines += _without_parameter(judgement)
    if any(breach.kind != "broken" for breach in judgement.breaches):
        lines.append(
            f"A model that keeps the contract fails by chance with a probability of at most {FALSE_ALARM:g} "
            f"({judgement.tests:,} tests)."
        )
    return "\n".join(lines)


def first_fault(judgement: Judgement) -> str:
    """Return the first fault of a failed check in one line; empty if there is none."""
    lines = [*_broken_rules(judgement), *_without_rule(judgement), *_without_parameter(judgement)]
    return next((line.strip() for line in lines if line.startswith("    ")), "")


def _broken_rules(judgement: Judgement) -> Iterator[str]:
    by_rule: dict[str, list[Breach]] = defaultdict(list)
    for breach in judgement.breaches:
        by_rule[breach.reading.pattern].append(breach)
    for pattern, breaches in by_rule.items():
        yield f"  {pattern!r}: {short_repr(breaches[0].reading.rule)}"
        groups = _groups(breaches)
        yield from (f"    {_line(group, judgement)}" for group in groups[:MOST_LINES])
        yield from _more(len(groups) - MOST_LINES, "    ")


def _groups(breaches: Sequence[Breach]) -> list[list[Breach]]:
    """Return the breaches of parameters that differ by a number and break their rule in the same way."""
    found: dict[tuple[object, ...], list[Breach]] = defaultdict(list)
    for breach in breaches:
        reading = breach.reading
        words = breach.words if breach.kind == "broken" and breach.found is None else ""
        found[template(reading.name), reading.label, breach.kind, reading.shape, template(words)].append(breach)
    return list(found.values())


def _line(group: Sequence[Breach], judgement: Judgement) -> str:
    first = group[0]
    reading = first.reading
    name = reading.name
    if len(group) > 1:
        total = judgement.totals[reading.pattern, template(reading.name) + reading.label]
        name = template(reading.name)
        return f"{name}{reading.label} ({len(group)} of {total}): {_what(group, judgement)}"
    return f"{name}{reading.label}: {_what(group, judgement)}"


def _what(group: Sequence[Breach], judgement: Judgement) -> str:
    first = group[0]
    law, kind = first.reading.law, first.kind
    if kind == "std" and law is not None:
        return _std_text(group, judgement)
    if kind == "mean" and law is not None and first.found is not None:
        means = sorted(b.found.mean for b in group if b.found is not None)
        return f"mean {_range(means)}, rule {format_number(law.mean)} (std {format_number(first.found.std)})"
    if kind in {"shape", "together"} and law is not None:
        return f"not {_with_article(law.kind)} distribution: {first.words}"
    trouble = TROUBLE.get(kind, "")
    return " ".join(part for part in (trouble, first.words) if part)


def _std_text(group: Sequence[Breach], judgement: Judgement) -> str:
    """Return both standard deviations, their ratio, and what explains it."""
    first = group[0].reading
    found = pooled([b.found for b in group if b.found is not None])
    law = first.law
    assert law is not None
    ratio = found.std / law.std
    text = f"std {format_number(found.std)}, rule {format_number(law.std)}: {_times(ratio)}"
    kurtosis = found.kurtosis if math.isfinite(found.kurtosis) else 3.0
    error = LIKELY * math.sqrt(max(kurtosis - 1, 0.1) / (4 * found.count)) + first.rounding
    why = explain_ratio(ratio, error, law.std, _numbers(group, judgement))
    if why:
        return f"{text}; {why}"
    other = look_of(found)
    return text if law.kind == "normal" and other.endswith("normal distribution") else f"{text} ({other})"


def _numbers(group: Sequence[Breach], judgement: Judgement) -> dict[str, int]:
    """Return the numbers of layers, fans and heads that a scaling may contain."""
    reading = group[0].reading
    found: dict[str, int] = {}
    parts = [name.split(".") for name in judgement.names if template(name) == template(reading.name)]
    columns = [{part for part in column if part.isdigit()} for column in zip(*parts, strict=True)]
    layers = [len(column) for column in columns if len(column) > 1]
    found |= {("layers" if i == 0 else f"layers ({i + 1})"): count for i, count in enumerate(layers)}
    if len(reading.shape) > 1:
        kernel = math.prod(reading.shape[2:])
        found |= {"fan_in": reading.shape[1] * kernel, "fan_out": reading.shape[0] * kernel}
    heads = judgement.facts.get("heads", ())
    return found | {("heads" if i == 0 else f"heads ({i + 1})"): count for i, count in enumerate(heads)}


def _times(ratio: float) -> str:
    """Return a ratio in words.

    >>> _times(4.9), _times(0.98)
    ('4.90 times too large', '2 % too small')
    """
    side = "large" if ratio > 1 else "small"
    if ratio <= 0:
        return "too small"
    if not 2 / 3 < ratio < 1.5:
        return f"{max(ratio, 1 / ratio):.{2 if 0.01 < ratio < 100 else 0}f} times too {side}"
    return f"{100 * abs(ratio - 1):.2g} % too {side}"


def _range(values: Sequence[float]) -> str:
    low, high = format_number(values[0]), format_number(values[-1])
    return low if low == high else f"{low} to {high}"


def _with_article(kind: str) -> str:
    return f"a {kind}"


def _without_rule(judgement: Judgement) -> Iterator[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in judgement.assignment.unmatched:
        groups[template(name)].append(name)
    if groups:
        yield "  No rule matches these parameters. Add one, or init.anything(reason):"
    for name, names in list(groups.items())[:MOST_LINES]:
        yield f"    {name} ({len(names)})" if len(names) > 1 else f"    {names[0]}"
    yield from _more(len(groups) - MOST_LINES, "    ")


def _without_parameter(judgement: Judgement) -> Iterator[str]:
    if judgement.assignment.unused:
        yield "  These rules match no parameter. Correct or remove them:"
    for pattern, near in judgement.assignment.unused:
        yield f"    {pattern!r}" + (f"; the nearest name is {near}" if near else "")


def _more(count: int, indent: str) -> Iterator[str]:
    if count > 0:
        yield f"{indent}… and {count} more"
