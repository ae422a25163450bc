"""Patterns of names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ..records.names import template

__all__ = ["matches", "names_buffer", "nearest"]


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    start, end = "", ""
    if pattern.startswith("*."):
        start, pattern = r"(?:.+\.)?", pattern[2:]
    if pattern.endswith(".*"):
        pattern, end = pattern[:-2], r"\..+"
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile(start + "".join(wild.get(part, re.escape(part)) for part in parts) + end)


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern matches the name of a parameter.

    ``*`` stands for one part of a dotted name, or for a piece of it. ``*.`` at the beginning stands for any number of parts, also
    none, ``.*`` at the end for one or more parts, and ``**`` for any text. ``?`` stands for one character.

    >>> matches("*.bias", "h.0.mlp.bias"), matches("*.bias", "bias"), matches("h.*.bias", "h.0.mlp.bias")
    (True, True, False)
    >>> matches("h.*.mlp.bias", "h.0.mlp.bias"), matches("h.**.bias", "h.0.mlp.bias"), matches("h.*", "h.0.mlp.bias")
    (True, True, True)
    """
    return _compiled(pattern).fullmatch(name) is not None


def names_buffer(pattern: str, name: str) -> bool:
    """Return whether a pattern matches a name and ends with its last part, written out.

    >>> names_buffer("*.running_mean", "bn.running_mean"), names_buffer("bn.*", "bn.running_mean")
    (True, False)
    """
    return matches(pattern, name) and pattern.endswith(name.rpartition(".")[2])


def nearest(pattern: str, names: Iterable[str]) -> str:
    """Return the name that is most similar to a pattern; empty if none is similar.

    >>> nearest("*.c_prj.weight", ["h.0.c_proj.weight", "h.1.c_proj.weight", "wte.weight"])
    'h.*.c_proj.weight'
    """
    known: Sequence[str] = list(dict.fromkeys(map(template, names)))
    literal = pattern.strip("*.?")
    tails = {".".join(name.split(".")[-(literal.count(".") + 1) :]): name for name in reversed(known)}
    found = difflib.get_close_matches(literal, list(tails), n=1, cutoff=0.5)
    return tails[found[0]] if found else ""
