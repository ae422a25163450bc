"""What installed plugins of pytest add, for commands. A ``conftest.py`` belongs to the sessions of pytest, and is not loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .arguments import say

__all__ = ["chosen_steps", "load_measures"]


@cache
def load_measures() -> None:
    """Add the measures of installed plugins, once in a process.

    Raises:
        UsageError: A plugin returns something else than measures, or the name of one is taken. The message names the plugin.
    """
    from ..errors import UsageError
    from ..measurement.registration import add_measures

    for name, hook in _hooks("pytest_trainability_measures"):
        try:
            given = hook()
        except Exception as error:
            msg = f"pytest_trainability_measures of {name} must not raise. It raised {type(error).__name__}: {error}"
            raise UsageError(msg) from error
        add_measures(given, where=f"pytest_trainability_measures of {name}")


def chosen_steps(model: Any) -> Any:
    """Return the step choice of an installed plugin for a model, or None.

    Args:
        model: The model.
    """
    choices = (hook(model=model) for _, hook in _hooks("pytest_trainability_steps"))
    return next((choice for choice in choices if choice is not None), None)


def _hooks(name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the implementations of a hook with the names of their plugins."""
    for plugin, found in _plugins():
        hook = getattr(found, name, None)
        if callable(hook):
            yield plugin, hook


@cache
def _plugins() -> list[tuple[str, Any]]:
    """Return the installed plugins, as pytest would load them. One that cannot be loaded is said and left out."""
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        return []
    found = []
    for entry in entry_points(group="pytest11"):
        if entry.value.partition(".")[0] == __package__.partition(".")[0]:
            continue
        try:
            found.append((entry.name, entry.load()))
        except Exception as error:
            say(f"the plugin {entry.name} of pytest is left out: {type(error).__name__}: {error}", sys.stderr)
    return found
