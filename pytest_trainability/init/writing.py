"""Writing the contract of a model as it is today: a few patterns, each with the rule that its parameters keep."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from torch import nn

from ..errors import UsageError
from ..records.names import template
from ..records.text import as_code
from .assignment import computed_weights
from .names import matches
from .places import tensors_of
from .reading import look_of
from .recognition import Seen, eval_rule, recognized, see
from .rules import Rule

__all__ = ["contract_of", "rule_texts", "rules_of", "source_of"]

MOST_TIES = 3
"""Largest number of tied parameters whose other names are written out."""


def contract_of(models: Iterable[tuple[int, nn.Module]]) -> dict[str, str]:
    """Return the contract that a model keeps.

    Args:
        models: Seed and model, for several seeds, one after the other. A model is not kept.

    Returns:
        Source text of the rules by pattern, in the order in which they count.

    Raises:
        UsageError: The models have different parameters, or none.
    """
    known: dict[str, Seen] = {}
    names: tuple[str, ...] | None = None
    sources: Mapping[str, Sequence[str]] = {}
    for seed, model in models:
        tensors = tensors_of(model)
        if names not in {None, tuple(tensors.parameters)}:
            msg = f"the models of all seeds must have the same parameters. That of seed {seed} has others than the first one."
            raise UsageError(msg)
        names, sources = tuple(tensors.parameters), tensors.sources
        see(tensors, known)
    if not known:
        msg = "a contract is about parameters. The model has none."
        raise UsageError(msg)
    texts = rule_texts(known)
    all_folded = {name: template(name) for name in texts}
    both = [_with_exceptions(_compressed(texts, folds), texts) for folds in (all_folded, _folds(texts))]
    return min((_with_parametrized_first(contract, texts, sources) for contract in both), key=len)


def source_of(contract: Mapping[str, str], name: str = "CONTRACT") -> str:
    """Return a contract as Python source, with its imports."""
    lines = [f"    {as_code(pattern)}: {text}," for pattern, text in contract.items()]
    imports = ["import math", ""] if any("math." in text for text in contract.values()) else []
    return "\n".join([*imports, "from pytest_trainability import init", "", f"{name} = {{", *lines, "}", ""])


def rules_of(contract: Mapping[str, str]) -> dict[str, Rule]:
    """Return the rules of a contract that :func:`contract_of` has written."""
    return {pattern: eval_rule(text) for pattern, text in contract.items()}


def rule_texts(known: Mapping[str, Seen]) -> dict[str, str]:
    """Return the source text of the rule of each parameter, by name.

    Parameters that differ by a number share a rule if there is one. A parameter without a known rule has ``init.anything``.
    """
    texts: dict[str, str] = {}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    shared = [name for name, seen in known.items() if seen.shared_with]
    for name, seen in known.items():
        if seen.shared_with:
            to = as_code(seen.shared_with) if len(shared) <= MOST_TIES else ""
            texts[name] = f"init.tied({to})"
        elif seen.trouble:
            texts[name] = f"init.anything({as_code(seen.trouble)})"
        else:
            groups[template(name), ""].append(name)
    choices = {name: [f"init.copied({as_code(first)})"] for name, first in _copies(known).items()}
    for names in groups.values():
        common = recognized([known[name] for name in names])
        own = {name: common or recognized([known[name]]) or [_without_law(known[name])] for name in names}
        choices |= {name: texts for name, texts in own.items() if name not in choices}
    return texts | _most_usual(choices)


def _most_usual(choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return one of the possible rules of each parameter: the one that most parameters may share, or else the first."""
    counts = Counter(text for texts in choices.values() for text in texts)
    return {name: max(texts, key=lambda text: counts[text]) for name, texts in choices.items()}


def _copies(known: Mapping[str, Seen]) -> dict[str, str]:
    """Return the drawn parameters that equal an earlier one on all seeds, each with the name of that one."""
    first: dict[object, str] = {}
    found: dict[str, str] = {}
    for name, seen in known.items():
        is_drawn = bool(seen.by_seed) and not seen.trouble and not seen.is_same_for_all_seeds
        if is_drawn and not seen.statistics.is_constant:
            other = first.setdefault(seen.fingerprint, name)
            found |= {} if other == name else {name: other}
    return found


def _without_law(seen: Seen) -> str:
    """Return the text of the rule of a parameter without a known distribution."""
    no_law = f"no known distribution: {look_of(seen.statistics)}"
    return f"init.anything({as_code('the same entries for every seed' if seen.is_same_for_all_seeds else no_law)})"


# Note [Compression of a contract]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# The parts of a name, read from its end and with numbers folded, are a path in a tree of suffixes. A rule at a node counts for
# all names below it that have no rule further down. The smallest number of rules follows by dynamic programming: the cost of a
# node is known for each rule that it may inherit. It is the cost of its children if it passes the rule on, or one more than the
# cheapest other rule. (Draves et al., INFOCOM 1999, find the smallest routing table in this way.) Deeper rules are written
# first, as the first rule that matches counts. Some numbers count layers, and others tell a convolution from the normalization
# behind it: conv.0.weight, conv.1.weight. The tree is made twice, once with all numbers folded and once without those that decide
# on the rule; the shorter contract is written.


@dataclass(slots=True)
class _Node:
    pattern: str
    """Pattern for all names below; empty where none describes them."""
    children: dict[str, _Node] = field(default_factory=dict)
    text: str = ""
    """Rule of a leaf."""
    costs: dict[str, int] = field(default_factory=dict)
    """Number of rules below by the rule that is inherited."""


def _folds(texts: Mapping[str, str]) -> dict[str, str]:
    """Return each name with ``*`` for its numbers, without those that decide on the rule."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in texts:
        groups[template(name)].append(name)
    return {name: fold for pattern, names in groups.items() for name, fold in _folds_of(pattern, names, texts).items()}


def _folds_of(pattern: str, names: Sequence[str], texts: Mapping[str, str]) -> dict[str, str]:
    """Return the names of one pattern with ``*`` for as many numbers as leave names of one rule only alike."""
    numbers = [place for place, part in enumerate(pattern.split(".")) if part == "*"][::-1]
    for kept in (*combinations(numbers, 1), *combinations(numbers, 2)):
        folds = {name: _fold(name, numbers, kept) for name in names}
        rules = {(fold, texts[name]) for name, fold in folds.items()}
        if len(rules) == len(set(folds.values())):
            return folds if len({texts[name] for name in names}) > 1 else dict.fromkeys(names, pattern)
    return dict.fromkeys(names, pattern)


def _fold(name: str, numbers: Sequence[int], kept: Sequence[int]) -> str:
    parts = name.split(".")
    return ".".join("*" if place in numbers and place not in kept else part for place, part in enumerate(parts))


def _compressed(texts: Mapping[str, str], folds: Mapping[str, str]) -> dict[str, str]:
    """Return few patterns with the rules of all names. See Note [Compression of a contract].

    Args:
        texts: Rule of each name.
        folds: Each name with ``*`` for the numbers that are folded.
    """
    root = _Node("**")
    for name, text in texts.items():
        parts = folds[name].split(".")[::-1]
        node = root
        for i, part in enumerate(parts):
            suffix = ".".join(parts[: i + 1][::-1])
            node = node.children.setdefault(part, _Node("" if part == "*" else f"*.{suffix}"))
        node = node.children.setdefault("", _Node(folds[name]))
        if folds[name] == name:
            node.text = text
        else:
            node.children[name] = _Node(name, text=text)
    _settle(root, sorted(set(texts.values())))
    return dict(_written(root, ""))


def _settle(node: _Node, rules: Sequence[str]) -> None:
    for child in node.children.values():
        _settle(child, rules)
    for rule in rules:
        node.costs[rule] = sum(child.costs[rule] for child in node.children.values())
        node.costs[rule] += bool(node.text) and node.text != rule
    if node.pattern:
        cheapest = min(node.costs.values())
        node.costs = {rule: min(cost, 1 + cheapest) for rule, cost in node.costs.items()}


def _written(node: _Node, inherited: str) -> Iterator[tuple[str, str]]:
    """Yield the patterns and rules below a node, the deepest first."""
    own = {
        rule: sum(child.costs[rule] for child in node.children.values()) + (bool(node.text) and node.text != rule)
        for rule in node.costs
    }
    best = min(own, key=lambda rule: own[rule])
    places = bool(node.pattern) and (not inherited or own[best] + 1 <= own[inherited])
    rule = best if places else inherited
    for child in node.children.values():
        yield from _written(child, rule)
    if places and (rule != inherited):
        yield node.pattern, rule


def _with_exceptions(contract: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, str]:
    """Return the contract with rules in front for names that another pattern takes, and without rules that take no name."""
    wrong = [name for name, text in texts.items() if text != _first(contract, name)]
    full = {**{name: texts[name] for name in wrong}, **{p: t for p, t in contract.items() if p not in wrong}}
    names: dict[str, set[str]] = defaultdict(set)
    for name in texts:
        names[next(pattern for pattern in full if matches(pattern, name))].add(template(name))
    return {_shortest(pattern, names[pattern]): text for pattern, text in full.items() if pattern in names}


def _with_parametrized_first(
    contract: Mapping[str, str], texts: Mapping[str, str], sources: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the contract with rules in front for parameters whose weight another pattern takes by its own name.

    Args:
        contract: Rules by pattern.
        texts: Rule of each parameter.
        sources: Names of the parameters from which each weight is computed, by the name of the weight.
    """
    taken = {weight for pattern in contract for weight in computed_weights(pattern, sources)}
    first = {name: texts[name] for weight in sources if weight in taken for name in sources[weight]}
    folds: dict[str, set[str]] = defaultdict(set)
    for name in texts:
        folds[template(name)].add(texts[name] if name in first else "")
    front = {template(n) if len(folds[template(n)]) == 1 else n: text for n, text in first.items()}
    return _with_exceptions({**front, **{p: t for p, t in contract.items() if p not in front}}, texts)


def _shortest(pattern: str, names: set[str]) -> str:
    """Return the pattern without its beginning ``*.`` if the rest is the only folded name that it matches."""
    return pattern[2:] if pattern.startswith("*.") and names == {pattern[2:]} else pattern


def _first(contract: Mapping[str, str], name: str) -> str:
    return next((text for pattern, text in contract.items() if matches(pattern, name)), "")
