"""A model that is named on the command line, ``pytest --trainability-model=package.module:build``, as a test item."""

from __future__ import annotations

import linecache
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from .collection import bounds_of, marker_settings
from .fixture import COMMAND
from .gate import CodelessModule, GateItem, placed, seeded_imports
from .options import SETTINGS
from .subject_options import MODEL, SUBJECT_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..sources.requests import Request

__all__ = ["add_model", "declare", "refuse_incomplete"]

_FILE = "<command line>"


def declare(group: pytest.OptionGroup) -> None:
    """Declare the options."""
    group.addoption(
        "--trainability-model",
        dest="trainability_model",
        metavar="MODEL",
        default=None,
        help=f"Measure this model as a test, without a file: {MODEL} Other tests are left out, unless paths are given.",
    )
    for option in SUBJECT_OPTIONS:
        group.addoption(
            f"--trainability-{option.pytest_name}",
            dest=f"trainability_{option.pytest_name}",
            metavar=option.metavar,
            action="append" if option.several else "store",
            default=None,
            help=f"With --trainability-model: {option.text}{' May be given several times.' if option.several else ''}",
        )


def refuse_incomplete(config: pytest.Config) -> None:
    """Refuse empty options, and options that need a model.

    Raises:
        pytest.UsageError: There is one.
    """
    names = ("model", *(option.pytest_name for option in SUBJECT_OPTIONS))
    given = {name: config.getoption(f"trainability_{name}") for name in names}
    texts = {name: value if isinstance(value, list) else [value] for name, value in given.items() if value is not None}
    for name, values in texts.items():
        if not all(map(str.strip, values)):
            msg = f"--trainability-{name} must have a value. Got {values[-1]!r}."
            raise pytest.UsageError(msg)
        if "model" not in texts:
            msg = f"--trainability-{name} must come with --trainability-model."
            raise pytest.UsageError(msg)


def add_model(config: pytest.Config) -> None:
    """Collect the model of the command line, and nothing else if there is no path."""
    if config.getoption("trainability_model"):
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args[:] = []
        config.pluginmanager.register(ModelOfCommandLine(), "trainability-model")


class ModelOfCommandLine:
    """Adds the model to the collected tests, before other plugins select and sort them."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the item."""
        collector = CommandLine.from_parent(session, path=session.config.rootpath / "look")
        items[:0] = session.genitems(collector)


def model_options(config: pytest.Config) -> list[str]:
    """Return the options that name the model, as they were given."""
    from ..sources.requests import pytest_options

    return pytest_options(**_given(config))


def _given(config: pytest.Config) -> dict[str, Any]:
    given = {option.key: config.getoption(f"trainability_{option.pytest_name}") for option in SUBJECT_OPTIONS}
    values = {o.key: given[o.key] or (() if o.several else o.default) for o in SUBJECT_OPTIONS}
    return {"model": config.getoption("trainability_model"), **values}


class CommandLine(CodelessModule):
    """Collects the item of the model."""

    def collect(self) -> Iterator[CommandLineItem]:
        """Yield the item."""
        model = self.config.getoption("trainability_model")
        command = shlex.join(["pytest", *model_options(self.config)])
        linecache.cache[_FILE] = (len(command), None, [f"{command}\n"], _FILE)
        given = _given(self.config)

        def run(trainability: Any) -> None:
            __tracebackhide__ = True
            _measured(item, given, trainability)

        item: CommandLineItem = CommandLineItem.from_parent(self, name=model, callobj=placed(run, _FILE, 1, "look"))
        item.stash[COMMAND] = model_options(self.config)
        yield item


class CommandLineItem(GateItem):
    """The item of the model."""

    source = _FILE


def _measured(item: pytest.Item, given: dict[str, Any], trainability: Any) -> None:
    """Measure the model, and judge the bounds that apply; without a preset, also those of its family."""
    __tracebackhide__ = True
    from ..sources.requests import IN_PYTEST, requested

    texts = {name: text for name, text in given.items() if name != "steps"}
    with seeded_imports():
        request = requested(**texts, words=IN_PYTEST)
    bounds = _of_family(item, request)
    given_loss = {"target": request.target, "loss": request.loss}
    trainability(request.build, request.inputs, **given_loss, steps=given["steps"], **bounds)


def _of_family(item: pytest.Item, request: Request) -> dict[str, Any]:
    """Return the bounds of the preset that suits the model, where no preset is chosen; other bounds go first."""
    from ..checks.presets import find_preset
    from ..sources.families import family_of_source

    if "preset" in marker_settings(item) or item.config.stash[SETTINGS].preset:
        return {}
    own = bounds_of(item)
    return {name: bound for name, bound in find_preset(family_of_source(request.sample)[0]).items() if name not in own}
