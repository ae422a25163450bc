"""Tests without code: the tables of ``trainability.toml`` and of ``[tool.trainability]`` in ``pyproject.toml`` as test items.

Each case of a table becomes a function that takes the fixture, with the marks of the table. From there on it is a test as any
other.
"""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import pytest

from .collected import BASELINE_FILE
from .collection import MARKER
from .extensions import load_measures
from .paths import relative_path
from .randomness import SEED
from .unmeasured import ERROR_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from ..gate.keys import Condition
    from ..gate.reading import GateTest
    from ..records.calls import Call
    from ..sources.requests import Request

__all__ = [
    "TABLE",
    "CodelessModule",
    "GateFile",
    "GateItem",
    "add_files_of_root",
    "gate_file",
    "placed",
    "seeded_imports",
]

TABLE = pytest.StashKey[str]()
"""Key of the table that is a test, such as ``test.gpt``."""
_FILE = "trainability.toml"
_PROJECT = "pyproject.toml"


def add_files_of_root(config: pytest.Config) -> None:
    """Collect the files of the root as well where the ini value ``testpaths`` chooses what is collected."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or not config.args:
        return
    chosen = [config.invocation_params.dir / argument for argument in config.args]
    for name in (_FILE, _PROJECT):
        path = config.rootpath / name
        is_chosen = any(path.is_relative_to(folder) for folder in chosen)
        if _holds_tests(path) and not is_chosen and not _is_ignored(path, config):
            config.args.append(str(path))


def _is_ignored(path: Path, config: pytest.Config) -> bool:
    """Whether an option or a conftest leaves a file out. pytest does not ask for files that are named."""
    return bool(config.hook.pytest_ignore_collect(collection_path=path, config=config))


def _holds_tests(path: Path) -> bool:
    """Whether a file of the root probably holds tests. The collector of one that is no TOML says what is wrong."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    if path.name == _FILE or b"trainability" not in content:
        return path.name == _FILE
    from ..gate.reading import InvalidGateError, table_of

    try:
        return table_of(path, content.decode("utf-8-sig")) is not None
    except (InvalidGateError, UnicodeDecodeError):
        return b"tool.trainability" in content


def gate_file(path: Path, parent: pytest.Collector) -> GateFile | None:
    """Return the collector of a file that holds tests as tables; None for other files.

    A ``pyproject.toml`` counts in the root of the session, and where it is named on the command line.
    """
    is_project = path.name == _PROJECT and (path.parent == parent.config.rootpath or parent.session.isinitpath(path))
    if path.name == _FILE or (is_project and _holds_tests(path)):
        found: GateFile = GateFile.from_parent(parent, path=path)
        return found
    return None


class CodelessModule(pytest.Module):
    """Collects tests that are no functions of a module. Fixtures of modules and plugins find an empty module in their place."""

    def _getobj(self) -> ModuleType:
        return ModuleType(self.path.stem)


class GateFile(CodelessModule):
    """Collects the tests of a file."""

    def collect(self) -> Iterator[GateItem]:
        """Yield an item for each case of each test.

        Raises:
            pytest.Collector.CollectError: The file has errors. The message lists all of them.
        """
        from ..errors import UsageError
        from ..gate.reading import GateError, InvalidGateError, read_gate

        try:
            load_measures(self.config)
            tests = read_gate(self.path)
            marks = self._marks(tests)
        except InvalidGateError as error:
            raise self.CollectError(self._text(error.errors)) from None
        except UsageError as error:
            raise self.CollectError(self._text([GateError(1, "", str(error))])) from None
        if not tests:
            self._warn_of_no_test()
        for test in tests:
            for name, arguments in test.cases():
                yield self._item(test, name, arguments, marks[test.name])

    def _warn_of_no_test(self) -> None:
        """Warn that the file holds no test.

        Raises:
            pytest.Collector.CollectError: Warnings are errors in this session.
        """
        header = "test.NAME" if self.path.name == _FILE else "tool.trainability.test.NAME"
        text = (
            f"{relative_path(self.path, self.config.rootpath)} holds no test, and nothing is measured. A test is a table "
            f"[{header}] with the key model. The command `python -m pytest_trainability start MODEL --toml` writes one."
        )
        try:
            warnings.warn_explicit(text, pytest.PytestCollectionWarning, str(self.path), 1)
        except pytest.PytestCollectionWarning:
            raise self.CollectError(text) from None

    def _text(self, errors: list[Any]) -> str:
        from ..records.text import visible

        file = relative_path(self.path, self.config.rootpath)
        return "\n".join(visible(f"{file}:{error.line}: {error}") for error in errors)

    def _marks(self, tests: list[GateTest]) -> dict[str, list[pytest.MarkDecorator]]:
        """Return the marks of all tests by their names.

        Raises:
            InvalidGateError: pytest refuses a mark.
        """
        from ..gate.reading import GateError, InvalidGateError

        found: dict[str, list[pytest.MarkDecorator]] = {test.name: [] for test in tests}
        errors = []
        for name, line, call in ((test.name, test.lines["marks"], call) for test in tests for call in test.marks):
            mark = self._mark(call, line)
            if isinstance(mark, str):
                errors.append(GateError(line, f"test.{name}.marks", mark))
            else:
                found[name].append(mark)
        if errors:
            raise InvalidGateError(errors)
        return found

    def _mark(self, call: Call, line: int) -> pytest.MarkDecorator | str:
        """Return a mark, or why pytest refuses it. A warning about an unknown one names the file."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                mark: pytest.MarkDecorator = getattr(pytest.mark, call.name)
            for warning in caught:
                warnings.warn_explicit(str(warning.message), warning.category, str(self.path), line)
        except (pytest.fail.Exception, pytest.PytestUnknownMarkWarning):
            return f"unknown mark {call.name!r}. {_nearest(call.name, self.config)}"
        return mark.with_args(*call.args, **call.kwargs) if call.args or call.kwargs else mark

    def _item(
        self, test: GateTest, name: str, arguments: dict[str, Any], marks: list[pytest.MarkDecorator]
    ) -> GateItem:
        function = placed(partial(_measured, test, self.path.parent, arguments), str(self.path), test.line, test.name)
        marker = getattr(pytest.mark, MARKER)(**test.settings)
        for mark in (marker, *marks, *_skips(test.skip)):
            function = mark(function)
        item: GateItem = GateItem.from_parent(self, name=name, callobj=function)
        item.test = test
        item.stash[TABLE] = test.key
        item.line = test.line
        if isinstance(test.baseline, str):
            item.stash[BASELINE_FILE] = Path(os.path.normpath(self.path.parent / test.baseline))
        return item


def _nearest(name: str, config: pytest.Config) -> str:
    """Return a hint at the registered mark whose name resembles another one."""
    from ..gate.keys import nearest

    return nearest(name, [line.partition(":")[0].partition("(")[0].strip() for line in config.getini("markers")])


class GateItem(pytest.Function):
    """A case of a table."""

    test: GateTest | None = None
    """The table; None for a model of the command line."""
    line = 1
    """Line of the table, counted from 1."""
    source = ""
    """Name under which tracebacks show the place of the test; empty for that of its file."""

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return file, line from 0 on, and name."""
        return self.path, self.line - 1, self.name

    def runtest(self) -> None:
        """Run the test. The traceback of an error leads to the key that it is about."""
        from ..errors import TrainabilityError

        try:
            super().runtest()
        except TrainabilityError as error:
            line = self.line if self.test is None else self.test.line_for(error)
            self.stash[ERROR_LINE] = line
            raise error.with_traceback(_ending(error.__traceback__, self.obj.__code__, line)) from error.__cause__

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the traceback, which begins at the table, without the argument of the function that stands for it."""
        shown = super().repr_failure(excinfo)
        for traceback, *_ in getattr(shown, "chain", ()):
            for entry in traceback.reprentries:
                place = getattr(entry, "reprfileloc", None)
                if place is not None and place.path.endswith(self.source or self.path.name):
                    entry.reprfuncargs = None
                    entry.lines = [line for line in entry.lines if line.strip(" ^")]
        return shown


def _ending(traceback: TracebackType | None, code: CodeType, line: int) -> TracebackType | None:
    """Return a traceback that ends at a line of a function. Frames of this package below it do not help."""
    while traceback is not None and traceback.tb_frame.f_code is not code:
        traceback = traceback.tb_next
    return None if traceback is None else TracebackType(None, traceback.tb_frame, traceback.tb_lasti, line)


def _skips(condition: Condition | None) -> list[pytest.MarkDecorator]:
    """Return the mark that skips a test under a condition; none without a condition."""
    if condition is None:
        return []
    if not condition.missing and not condition.unless:
        return [pytest.mark.skip(reason=condition.reason)]
    absent = condition.absent()
    reason = condition.reason or (f"{absent} is not installed" if absent else f"no device {condition.unless}")
    return [pytest.mark.skipif(bool(absent) or not _has_device(condition.unless), reason=reason)]


def _has_device(name: str) -> bool:
    """Return whether this machine has a device; an empty name stands for the CPU."""
    if not name:
        return True
    import torch

    return torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()


def placed(run: Callable[[Any], Any], file: str, line: int, name: str) -> Callable[[Any], Any]:
    """Return a function of the fixture whose code stands at a line of a file, so that tracebacks lead there."""
    function = lambda trainability: run(trainability)  # noqa: E731 - on one line, which is moved
    code: CodeType = function.__code__.replace(co_filename=file, co_firstlineno=line, co_name=name)
    return FunctionType(code, {}, name, None, function.__closure__)


def _measured(test: GateTest, folder: Path, arguments: dict[str, Any], trainability: Any) -> None:
    """Measure the model of a test, judge its bounds, and check its contract and its baseline."""
    __tracebackhide__ = True
    from ..errors import concerning
    from ..sources.contracts import named_contract

    _search_first(test, folder)
    request = _requested(test, arguments)
    with concerning("contract"):
        contract = None if test.contract is None else named_contract(test.contract, folder)
    given = {"target": request.target, "loss": request.loss, **test.options}
    result = trainability(request.build, request.inputs, **given)
    if contract is not None:
        with concerning("contract"):
            result.check_initialization(contract)
    if test.baseline:
        with concerning("baseline"):
            result.check_baseline()


def _search_first(test: GateTest, folder: Path) -> None:
    """Let the modules of a folder come first, for the texts of a test that may name an object of a module."""
    from ..errors import concerning
    from ..sources.inputs import is_place
    from ..sources.places import search_first

    for key in ("model", "inputs", "targets", "loss", "contract"):
        found = getattr(test, key)
        texts = found if isinstance(found, tuple) else (found,)
        with concerning(key):
            search_first(folder, (text for text in texts if isinstance(text, str) and is_place(text)))


def _requested(test: GateTest, arguments: dict[str, Any]) -> Request:
    from ..sources.requests import IN_FILE, requested

    with seeded_imports():
        return requested(
            test.model,
            inputs=test.inputs,
            targets=test.targets,
            loss=test.loss,
            parameters=arguments,
            words=IN_FILE,
        )


def seeded_imports() -> AbstractContextManager[None]:
    """Return a context in which modules are imported with seeded generators, as the modules of Python tests are."""
    from ..engine import isolation

    return isolation.seeded_unless_seeded(isolation.derived_seed(SEED, "module"))
