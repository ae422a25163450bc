"""Initialization contracts that are named by text: a file, a module, or rules by patterns."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import init
from ..errors import UsageError
from ..records.calls import evaluated
from .places import imported

__all__ = ["named_contract"]

_NAME = "CONTRACT"
"""Name that the command ``contract`` gives to the dictionary."""


def named_contract(given: str | Mapping[str, str], folder: Path) -> Mapping[str, Any]:
    """Return the contract that a text names, or that rules in text make.

    >>> named_contract({"*.bias": "zeros", "**": "normal(std=0.02)"}, Path())
    {'*.bias': init.zeros(), '**': init.normal(std=0.02)}

    Args:
        given: ``FILE.py`` or ``FILE.py:NAME`` (``CONTRACT`` by default), ``package.module:NAME``, or texts such as
            ``normal(std=0.02)`` by patterns of names.
        folder: Folder that the file is relative to.

    Raises:
        UsageError: There is no such file or name, or a text is no rule.
    """
    if not isinstance(given, str):
        return {pattern: _rule(pattern, text) for pattern, text in given.items()}
    file, _, name = given.partition(":")
    found = _from_file(folder / file, name or _NAME) if file.endswith(".py") else imported(given, what="the contract")
    if not isinstance(found, Mapping):
        msg = f"the contract must be a dictionary of rules by patterns of names. {given!r} is of class {type(found).__name__}."
        raise UsageError(msg)
    return found


def _rule(pattern: str, text: str) -> Any:
    rules: dict[str, Callable[..., Any]] = {name: getattr(init, name) for name in init.__all__ if name != "Rule"}
    try:
        # With and without the name of the module.
        return evaluated(text, {**rules, **{f"init.{name}": rule for name, rule in rules.items()}})
    except ValueError as error:
        msg = f"the contract: the rule of {pattern!r} must be one of pytest_trainability.init, such as zeros(). {error}"
        raise UsageError(msg) from None


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        msg = f"the file of the contract must exist: {path}. The command contract prints one."
        raise UsageError(msg)
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        msg = f"the file of the contract must be importable: {path}. Running it raised {type(error).__name__}: {error}"
        raise UsageError(msg) from error
    if name not in names:
        msg = f"the file of the contract must hold {name!r}: {path}. The command contract prints one."
        raise UsageError(msg)
    return names[name]
