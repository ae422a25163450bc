"""Who may import whom, enforced on the syntax trees (design, section 8).

Data flows one way: a test hands over a model, the engine runs it, measures read it, checks judge, reports show. An arrow
that points back would, sooner or later, load torch in every pytest session of the machine.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_trainability

PACKAGE = Path(pytest_trainability.__file__).parent
NAME = PACKAGE.name


@dataclass(frozen=True)
class Row:
    """What a room may import when it is loaded, and what more inside its functions."""

    rooms: frozenset[str]
    third_party: frozenset[str] = frozenset()
    rooms_in_functions: frozenset[str] = frozenset()
    third_party_in_functions: frozenset[str] = frozenset()


def row(rooms: str, third_party: str = "", *, inside: str = "", third_party_inside: str = "") -> Row:
    """Write a row of the table as words."""
    return Row(*(frozenset(text.split()) for text in (rooms, third_party, inside, third_party_inside)))


HEAVY = "engine measures measurement dynamics scaling"
TABLE = {
    "plugin": row(
        "plugin checks records errors",
        "pytest pluggy",
        inside=f"report {HEAVY}",
        third_party_inside="torch numpy xdist",
    ),
    "report": row(
        "report checks records errors", "pytest", inside="engine measures", third_party_inside="torch jinja2 matplotlib"
    ),
    "checks": row("checks records errors", third_party_inside="scipy numpy packaging filelock"),
    "measures": row("measures engine records errors", "torch"),
    "engine": row("engine records errors", "torch", third_party_inside="scipy torchdiffeq"),
    "records": row(""),
    "errors": row(""),
    "measurement": row("measurement checks engine measures report records errors", "torch"),
    "dynamics": row("checks engine records errors", "torch"),
    "scaling": row("scaling checks engine measures measurement report records errors", "torch"),
    "__main__": row("plugin"),
    "__init__": row("", inside=f"report checks records errors {HEAVY}"),
}
BANNED_FILES = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


@dataclass(frozen=True)
class Import:
    """One imported module: ``target`` is ``("records",)`` in the package, or None with the name of another package."""

    line: int
    target: tuple[str, ...] | None
    package: str
    in_function: bool


def misnamed(paths: Iterable[str]) -> list[str]:
    """Return the files whose name says nothing about what is in them."""
    return [path for path in paths if Path(path).name in BANNED_FILES]


def violations(path: str, source: str) -> list[str]:
    """Return what a module imports against the table.

    Args:
        path: Of the module inside the package, such as ``plugin/fixture.py``.
        source: Its text.
    """
    parts = Path(path).with_suffix("").parts
    if parts[0] not in TABLE:
        return [f"{path}: the room {parts[0]!r} has no row in the table"]
    tree = ast.parse(source)
    found = [
        f"{path}:{i.line}: {complaint}"
        for i in _imports(tree, parts, in_function=False)
        if (complaint := _complaint(i, parts))
    ]
    if parts != ("__init__",):
        found += [f"{path}:{line}: imports a module by its name, past the table" for line in _dynamic(tree)]
    return found


def _complaint(found: Import, parts: tuple[str, ...]) -> str:
    allowed = TABLE[parts[0]]
    if found.target is None:
        third_party = allowed.third_party | (allowed.third_party_in_functions if found.in_function else frozenset())
        if found.package in sys.stdlib_module_names or found.package in third_party:
            return ""
        return f"{parts[0]} must not import {found.package}{'' if found.in_function else ' at import'}"
    room = found.target[0] if found.target else "__init__"
    rooms = allowed.rooms | (allowed.rooms_in_functions if found.in_function else frozenset())
    if room not in rooms:
        return f"{parts[0]} must not import {room}{'' if found.in_function else ' at import'}"
    if parts[0] == room == "measures" and parts[1:] != ("__init__",) and found.target != ("measures", "measure"):
        return "a measure must not import another, nor the registry"
    return ""


def _imports(node: ast.AST, parts: tuple[str, ...], *, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield _absolute(alias.name.split("."), child.lineno, in_function=in_function)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, parts, in_function=in_function)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []), parts, in_function=in_function)
        else:
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, parts, in_function=inside)


def _from(node: ast.ImportFrom, parts: tuple[str, ...], *, in_function: bool) -> Iterator[Import]:
    """Take ``from .. import records`` for what it is: the import of a room by its name."""
    base = list(parts[: len(parts) - node.level]) if node.level else []
    module = node.module.split(".") if node.module else []
    full = [NAME, *base, *module] if node.level else module
    for alias in node.names:
        names_module = full[0] == NAME and (PACKAGE.joinpath(*full[1:]).is_dir() or len(full) == 1)
        yield _absolute([*full, alias.name] if names_module else full, node.lineno, in_function=in_function)


def _absolute(names: list[str], line: int, *, in_function: bool) -> Import:
    return Import(line, tuple(names[1:]) if names[0] == NAME else None, names[0], in_function)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _dynamic(tree: ast.AST) -> list[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if ast.unparse(call.func).split(".")[-1] in {"import_module", "__import__"}]


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_every_module_keeps_to_the_table(path: str) -> None:
    assert violations(path, PACKAGE.joinpath(path).read_text(encoding="utf-8")) == []


def test_no_file_is_called_utils() -> None:
    assert misnamed(MODULES) == []


def test_a_file_called_utils_is_caught() -> None:
    assert misnamed(["engine/utils.py", "helpers.py", "engine/sweep.py"]) == ["engine/utils.py", "helpers.py"]


PLANTED = {
    "plugin loads torch": ("plugin/fixture.py", "import torch", "plugin must not import torch at import"),
    "plugin loads numpy": ("plugin/fixture.py", "import numpy.random as r", "plugin must not import numpy at import"),
    "plugin loads the facade": (
        "plugin/fixture.py",
        "from ..measurement import measure_in",
        "plugin must not import measurement at import",
    ),
    "plugin loads measures": ("plugin/__init__.py", "from ..measures import MEASURES", "must not import measures"),
    "plugin loads engine": ("plugin/a.py", "from .. import engine", "plugin must not import engine at import"),
    "plugin loads report": ("plugin/a.py", "from ..report.explain import explain", "must not import report at import"),
    "class body is import time": (
        "plugin/a.py",
        "class A:\n    import torch",
        "plugin must not import torch at import",
    ),
    "try is import time": (
        "plugin/a.py",
        "try:\n    import torch\nexcept ImportError:\n    pass",
        "plugin must not import torch at import",
    ),
    "else of TYPE_CHECKING": (
        "report/a.py",
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import torch",
        "report must not import torch at import",
    ),
    "not TYPE_CHECKING": ("report/a.py", "if not TYPE_CHECKING:\n    import torch", "report must not import torch"),
    "report asks the plugin": ("report/a.py", "def f():\n    from ..plugin import x", "report must not import plugin"),
    "report asks the facade": (
        "report/a.py",
        "def f():\n    from ..measurement import measure",
        "report must not import measurement",
    ),
    "checks know tensors": ("checks/verdicts.py", "def f():\n    import torch", "checks must not import torch"),
    "checks load scipy": ("checks/statistics.py", "from scipy import stats", "checks must not import scipy at import"),
    "checks ask the engine": ("checks/a.py", "from ..engine.chain import Chain", "checks must not import engine"),
    "checks ask report": ("checks/a.py", "def f():\n    from ..report import x", "checks must not import report"),
    "engine judges": ("engine/a.py", "from ..checks.bounds import Bound", "engine must not import checks"),
    "engine asks measures": (
        "engine/a.py",
        "def f():\n    from ..measures import x",
        "engine must not import measures",
    ),
    "engine knows pytest": ("engine/a.py", "import pytest", "engine must not import pytest"),
    "measure imports measure": (
        "measures/log_gain.py",
        "from .lyapunov_max import lyapunov_max",
        "a measure must not import another",
    ),
    "measure imports measure absolutely": (
        "measures/log_gain.py",
        "def f():\n    import pytest_trainability.measures.growth_rate",
        "a measure must not import another",
    ),
    "measure asks registry": ("measures/log_gain.py", "from . import MEASURES", "a measure must not import another"),
    "measure judges": ("measures/log_gain.py", "from ..checks.bounds import Bound", "measures must not import checks"),
    "measure asks the facade": ("measures/a.py", "from ..measurement import measure", "must not import measurement"),
    "records know tensors": ("records.py", "def f():\n    import torch", "records must not import torch"),
    "records import errors": ("records.py", "from .errors import UsageError", "records must not import errors"),
    "errors import records": ("errors.py", "from . import records", "errors must not import records"),
    "facade asks the plugin": (
        "measurement/result.py",
        "from ..plugin import options",
        "measurement must not import plugin",
    ),
    "facade knows pytest": (
        "measurement/result.py",
        "def f():\n    import pytest",
        "measurement must not import pytest",
    ),
    "package is eager": ("__init__.py", "from .records import Estimate", "__init__ must not import records at import"),
    "package loads itself": ("engine/a.py", "import pytest_trainability", "engine must not import __init__"),
    "unknown third party": ("engine/a.py", "import pandas", "engine must not import pandas"),
    "back door": ("plugin/a.py", "def f():\n    importlib.import_module('torch')", "imports a module by its name"),
    "new room": ("extras/a.py", "", "has no row in the table"),
}


@pytest.mark.parametrize(("path", "source", "complaint"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_fault_is_caught(path: str, source: str, complaint: str) -> None:
    found = violations(path, source)
    assert len(found) == 1
    assert complaint in found[0]


ALLOWED = {
    "plugin in functions": (
        "plugin/a.py",
        "def f():\n    from ..measurement import measure\n    from ..report import x",
    ),
    "plugin, light rooms": (
        "plugin/a.py",
        "import os\nimport pytest\nfrom ..errors import UsageError\nfrom . import b",
    ),
    "for the type checker": ("records.py", "if TYPE_CHECKING:\n    import torch\n    from .engine import chain"),
    "scipy when needed": ("checks/statistics.py", "def f():\n    from scipy.special import stdtrit"),
    "what a measure is": (
        "measures/log_gain.py",
        "import torch\nfrom ..engine.ensemble import Run\nfrom .measure import M",
    ),
    "registry": ("measures/__init__.py", "from . import log_gain, lyapunov_max\nfrom .measure import Measure"),
    "facade": (
        "measurement/result.py",
        "import torch\nfrom ..engine.ensemble import x\nfrom ..report.explain import explain",
    ),
}


@pytest.mark.parametrize(("path", "source"), ALLOWED.values(), ids=ALLOWED.keys())
def test_what_the_table_allows_is_not_caught(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_the_checker_reads_the_real_package() -> None:
    """An empty list of modules would hold, too."""
    assert {path.split("/")[0].removesuffix(".py") for path in MODULES} == set(TABLE)
