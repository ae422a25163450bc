"""Extensions by other plugins: measures, step choices for models, and keys of the environment of baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["added_environment", "chosen_steps", "forget_measures", "load_measures"]

_ADDED = pytest.StashKey[list[str]]()
"""Names of the measures that plugins of this session have added."""


def load_measures(config: pytest.Config) -> None:
    """Add the measures of the plugins, once in a session.

    Raises:
        UsageError: A plugin returns something else, or the name of a measure is taken; the message names the plugin.
    """
    if _ADDED in config.stash:
        return
    from ..measurement.registration import add_measures
    from ..measures import MEASURES

    config.stash[_ADDED] = []
    for plugin, measures in _answers(config, "pytest_trainability_measures"):
        before = set(MEASURES)
        try:
            add_measures(measures, where=f"pytest_trainability_measures of {plugin}")
        finally:
            config.stash[_ADDED] += [name for name in MEASURES if name not in before]


def forget_measures(config: pytest.Config) -> None:
    """Remove the measures that this session has added: another session in the same process may have other plugins."""
    if config.stash.get(_ADDED, []):
        from ..measures import MEASURES

        for name in config.stash[_ADDED]:
            del MEASURES[name]


def chosen_steps(config: pytest.Config, model: torch.nn.Module) -> Any:
    """Return the step choice of a plugin for the model, or None."""
    return config.hook.pytest_trainability_steps(model=model)


def added_environment(config: pytest.Config) -> dict[str, str]:
    """Return the keys that plugins add to the environment of a baseline.

    Raises:
        UsageError: A plugin returns something else than strings by name, or two plugins add the same key; the message names the
            plugin.
    """
    from ..errors import UsageError

    found: dict[str, str] = {}
    for plugin, answer in _answers(config, "pytest_trainability_environment"):
        try:
            given = dict(answer)
        except (TypeError, ValueError):
            given = {"": answer}
        if any(not isinstance(text, str) or not text for item in given.items() for text in item):
            msg = (
                f"pytest_trainability_environment of {plugin} must return strings by name, such as {{'kernels': 'flash-2'}}. "
                f"Got {answer!r}."
            )
            raise UsageError(msg)
        if twice := sorted(given.keys() & found.keys()):
            msg = (
                f"pytest_trainability_environment of {plugin} must add new keys. Another plugin has added {twice[0]!r}. Rename "
                "one of them."
            )
            raise UsageError(msg)
        found |= given
    return found


def _answers(config: pytest.Config, hook: str) -> Iterator[tuple[str, Any]]:
    """Call the hook of each plugin; yield the name of the plugin and the result."""
    for implementation in getattr(config.hook, hook).get_hookimpls():
        try:
            answer = implementation.function()
        except Exception as error:
            from ..errors import UsageError

            msg = f"{hook} of {implementation.plugin_name} must not raise. It raised {type(error).__name__}: {error}"
            raise UsageError(msg) from error
        yield implementation.plugin_name, answer
