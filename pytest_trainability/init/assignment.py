"""Which rule of a contract counts for which parameter: the first one whose pattern matches."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.trees import is_float
from ..errors import UsageError
from .names import matches, names_buffer, nearest
from .places import Tensors
from .rules import Anything, Copied, Packed, Rule, RuleLike, Tied, ZeroRow

__all__ = ["Assignment", "as_contract", "assign", "computed_weights"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The rules of a model, and what is wrong with their names."""

    patterns: Mapping[str, str]
    """Pattern of the rule that counts, by name of the parameter or buffer."""
    unmatched: tuple[str, ...]
    """Parameters that no pattern matches."""
    unused: tuple[tuple[str, str], ...]
    """Patterns that match nothing, each with the nearest name, which may be empty."""


def as_contract(contract: object) -> dict[str, RuleLike]:
    """Return a contract, after validation of its form.

    Raises:
        UsageError: It is not a mapping of patterns to rules, or it is empty.
    """
    if not isinstance(contract, Mapping) or not contract:
        msg = (
            f"a contract must be a mapping of patterns to rules, such as {{'*.bias': init.zeros()}}. Got {contract!r}."
        )
        raise UsageError(msg)
    for pattern, rule in contract.items():
        if not isinstance(pattern, str) or not pattern:
            msg = f"a pattern of a contract must be text, such as '*.bias'. Got {pattern!r}."
            raise UsageError(msg)
        if not isinstance(rule, Rule) and not callable(rule):
            msg = (
                f"unknown rule {rule!r} for {pattern!r}. A rule is a value of pytest_trainability.init, such as "
                "init.normal(std=0.02), or a function of the shape."
            )
            raise UsageError(msg)
    return dict(contract)


def assign(contract: Mapping[str, RuleLike], tensors: Tensors) -> Assignment:
    """Return the rule of each parameter, and of each buffer. A pattern that matches no parameter may name buffers.

    A weight that is computed from parameters may be named instead of them, and these need no rule then. If all of them have a
    rule already, later patterns do not name the weight, unless they name nothing else.

    Raises:
        UsageError: A rule is never reached, is for integers, or names a parameter that does not exist.
    """
    patterns: dict[str, str] = {}
    unused: list[tuple[str, str]] = []
    covered: set[str] = set()
    for pattern in contract:
        weights = computed_weights(pattern, tensors.sources)
        own = [n for n in tensors.parameters if matches(pattern, n) and (n not in covered or _EXPLICIT in pattern)]
        named_already = {name for name in weights if patterns.keys() >= {*tensors.sources[name]}}
        weights = [name for name in weights if name not in named_already] if own else weights
        own += weights
        # "*.weight" is meant for parameters, even where a layer without parameters has a buffer of this name.
        own = own or [n for n in tensors.buffers if names_buffer(pattern, n)]
        if not own:
            unused.append((pattern, nearest(pattern, tensors.known)))
        new = [name for name in own if name not in patterns]
        if own and not new:
            _refuse_unreachable(pattern, own, patterns)
        patterns |= dict.fromkeys(new, pattern)
        covered |= {source for name in weights for source in tensors.sources[name]}
        _refuse_impossible(pattern, contract[pattern], new, tensors)
    unmatched = tuple(name for name in tensors.parameters if name not in patterns and name not in covered)
    return Assignment(patterns, unmatched, tuple(unused))


_EXPLICIT = "parametrizations"
"""Part of the names of parameters from which a weight is computed."""


def computed_weights(pattern: str, sources: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the weights, computed from parameters, that a pattern matches by their own name, and not by their parameters.

    Args:
        pattern: The pattern.
        sources: Names of the parameters from which each weight is computed, by the name of the weight.
    """
    return [
        name
        for name, parameters in sources.items()
        if matches(pattern, name) and not any(matches(pattern, parameter) for parameter in parameters)
    ]


def _refuse_unreachable(pattern: str, names: Sequence[str], patterns: Mapping[str, str]) -> None:
    """Refuse a rule all of whose names have an earlier rule.

    Raises:
        UsageError: Always.
    """
    earlier = ", ".join(map(repr, dict.fromkeys(patterns[name] for name in names)))
    msg = (
        f"the rule for {pattern!r} is never reached: the first rule that matches a name counts, and {earlier} "
        f"matches {names[0]!r} and all its other names before. Move it up, or remove it."
        if len(names) > 1
        else f"the rule for {pattern!r} is never reached: the first rule that matches a name counts, and {earlier} "
        f"matches {names[0]!r} before. Move it up, or remove it."
    )
    raise UsageError(msg)


def _refuse_impossible(pattern: str, rule: RuleLike, names: Sequence[str], tensors: Tensors) -> None:
    """Refuse a rule for integers, and one that refers to a parameter that does not exist.

    Raises:
        UsageError: The rule is one of these.
    """
    known = tensors.known
    integers = [name for name in names if not is_float(known[name])]
    if integers and not isinstance(rule, (Anything, Tied)):
        msg = (
            f"a rule is for floating-point numbers. {pattern!r} matches {integers[0]!r}, which has the type "
            f"{known[integers[0]].dtype}. Put a rule init.anything(reason) for it first."
        )
        raise UsageError(msg)
    for other in _references(rule):
        if names and other not in known:
            near = difflib.get_close_matches(other, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"the rule {rule!r} for {pattern!r} must name a parameter of the model. There is no {other!r}.{hint}"
            raise UsageError(msg)


def _references(rule: Any) -> list[str]:
    """Return the names to which a rule refers."""
    if isinstance(rule, Copied):
        return [rule.of]
    if isinstance(rule, Tied):
        return [] if rule.to is None else [rule.to]
    if isinstance(rule, ZeroRow):
        return _references(rule.rule)
    inner: Callable[[Any], list[str]] = _references
    return [name for part in rule.rules for name in inner(part)] if isinstance(rule, Packed) else []
