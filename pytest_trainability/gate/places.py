"""The lines at which the keys of a TOML file stand. The parser of the standard library does not tell them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

__all__ = ["key_lines", "line_of"]

_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")
_INNER = re.compile(rf"[{{,]\s*({_DOTTED})\s*=")
_TEXT = re.compile(r'''"""|\'\'\'|"(?:\\.|[^"\\n])*"|'[^'\n]*'|\#.*''')

Key = tuple[str, ...]


def key_lines(text: str) -> dict[Key, int]:
    r"""Return the line of each key of a TOML file, counted from 1, by the parts of the key.

    >>> key_lines("[test.gpt]\nmodel = 'nets:GPT'\nbounds.log_gain = 'within(3)'")
    {('test', 'gpt'): 1, ('test', 'gpt', 'model'): 2, ('test', 'gpt', 'bounds', 'log_gain'): 3}

    Args:
        text: The file. What is written on one line is found on it: keys of inline tables, but not those of arrays.
    """
    found: dict[Key, int] = {}
    table: Key = ()
    for number, line in _code_lines(text):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            name = (*table, *_parts(key[1]))
            found.setdefault(name, number)
            for inner in _INNER.finditer(_without_texts(line[key.end() :])):
                found.setdefault((*name, *_parts(inner[1])), number)
    return found


def line_of(lines: dict[Key, int], key: Sequence[str]) -> int:
    """Return the line of a key, or of the nearest table around it; 1 if nothing around it has a line.

    Args:
        lines: Result of :func:`key_lines`.
        key: Parts of the key.
    """
    known = (tuple(key[:length]) for length in range(len(key), 0, -1))
    exact = next((lines[part] for part in known if part in lines), None)
    # A table without a header of its own begins with the first of its keys.
    inside = (line for name, line in lines.items() if name[: len(key)] == tuple(key))
    return next(inside, exact or 1) if tuple(key) not in lines else lines[tuple(key)]


def _code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that do not lie inside a text of several lines, with their numbers."""
    closing = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if closing:
            closing = "" if closing in line else closing
            continue
        yield number, line
        for match in _TEXT.finditer(line):
            if match[0] in {'"""', "'''"}:
                rest = line[match.end() :]
                closing = "" if match[0] in rest else match[0]
                break


def _without_texts(line: str) -> str:
    """Return a line in which quoted texts that are no keys, and comments, are blank."""
    return _TEXT.sub(lambda match: match[0] if line[match.end() :].lstrip().startswith("=") else "", line)


def _parts(dotted: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))
