"""Who may import whom, enforced on the syntax trees.

Data flows one way: a test hands over a model, the engine runs it, measures read it, checks judge, reports show. An arrow
that points back would, sooner or later, load torch in every pytest session of the machine. Inside the engine there are four
rooms, each of which may import those below it; the families of measures do not import each other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pytest_trainability
from pytest_trainability.measures import FAMILIES

PACKAGE = Path(pytest_trainability.__file__).parent
NAME = PACKAGE.name
STANDARD = sys.stdlib_module_names | {"tomllib"}
"""Modules of the standard library, in any supported version of Python."""


@dataclass(frozen=True)
class Row:
    """What a room may import when it is loaded, and what more inside its functions.

    A room is named by its path; naming ``engine`` allows all of its rooms, naming ``checks/bounds`` one file.
    """

    rooms: frozenset[str]
    third_party: frozenset[str] = frozenset()
    rooms_in_functions: frozenset[str] = frozenset()
    third_party_in_functions: frozenset[str] = frozenset()


def row(rooms: str, third_party: str = "", *, inside: str = "", third_party_inside: str = "") -> Row:
    """Write a row of the table as words."""
    return Row(*(frozenset(text.split()) for text in (rooms, third_party, inside, third_party_inside)))


GROUND = "engine/trees engine/modules engine/torch_internals errors"
"""What every room of the engine stands on."""
HEAVY = "engine init measures measurement dynamics scaling sources"
FAMILY = row("engine init measures/measure records errors", "torch", third_party_inside="scipy")
TABLE = {
    "errors": row("records/text"),
    "records": row("records"),
    "checks": row("checks records errors", third_party_inside="scipy numpy packaging"),
    "engine/__init__": row(""),
    "engine/torch_internals": row("errors", "torch"),
    "engine/trees": row("engine/torch_internals errors", "torch numpy"),
    "engine/modules": row("engine/torch_internals", "torch"),
    "engine/saved_values": row("engine/torch_internals", "torch"),
    "engine/isolation": row("engine/saved_values engine/torch_internals errors", "torch"),
    "engine/linalg": row(f"engine/linalg {GROUND}", "torch", third_party_inside="scipy"),
    "engine/capture": row(f"engine/capture engine/isolation {GROUND}", "torch", third_party_inside="torchdiffeq"),
    "engine/jacobian": row(f"engine/jacobian engine/capture engine/linalg engine/isolation {GROUND}", "torch"),
    "engine/runs": row(
        f"engine/runs engine/jacobian engine/capture engine/linalg engine/isolation records {GROUND}", "torch"
    ),
    "init": row(f"init engine/isolation records {GROUND}", "torch", third_party_inside="scipy"),
    "measures": row("measures engine/runs records errors", "torch"),
    **{f"measures/{f}": replace(FAMILY, rooms=FAMILY.rooms | {f"measures/{f}"}) for f in FAMILIES},
    "dynamics": row("dynamics engine checks report records errors", "torch"),
    "report": row("report records checks/bounds errors", "pytest"),
    "report/html": row("report/html records errors", "jinja2 markupsafe"),
    "measurement": row(
        "measurement measures init engine/runs engine/isolation engine/torch_internals checks report records errors",
        "torch",
    ),
    "scaling": row(
        "scaling measurement measures engine/runs engine/isolation engine/torch_internals checks report records errors",
        "torch",
    ),
    "sources": row("sources init records errors", "torch"),
    "gate": row("gate checks records errors", "tomli", inside="measures sources"),
    "plugin": row(
        "plugin checks records errors",
        "pytest pluggy",
        inside=f"report gate {HEAVY}",
        third_party_inside="torch numpy xdist",
    ),
    "commands": row(
        "commands plugin/paths plugin/subject_options checks report records errors", inside=f"gate {HEAVY}"
    ),
    "__main__": row("commands"),
    "__init__": row("", inside=f"report checks records errors {HEAVY}"),
}
LOADS_BY_NAME = {"__init__", "measures/__init__", "sources/places", "sources/models"}
"""The lazy public names, the registry, which finds what the families declare, and models that a text names."""
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


def room_of(module: str) -> str:
    """Return the row of the table that a module, ``engine/capture/graph``, belongs to; empty for none."""
    parts = module.split("/")
    rooms = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((room for room in rooms if room in TABLE), "")


def violations(path: str, source: str) -> list[str]:
    """Return what a module imports against the table.

    Args:
        path: Of the module inside the package, such as ``plugin/fixture.py``.
        source: Its text.
    """
    module = path.removesuffix(".py")
    room = room_of(module)
    if not room:
        return [f"{path}: the room {module.partition('/')[0]!r} has no row in the table"]
    tree = ast.parse(source)
    parts = tuple(module.split("/"))
    found = [
        f"{path}:{i.line}: {complaint}"
        for i in _imports(tree, parts, in_function=False)
        if (complaint := _complaint(i, room))
    ]
    if module not in LOADS_BY_NAME:
        found += [f"{path}:{line}: imports a module by its name, past the table" for line in _dynamic(tree)]
    return found


def _complaint(found: Import, room: str) -> str:
    row = TABLE[room]
    when = "" if found.in_function else " at import"
    if found.target is None:
        third_party = row.third_party | (row.third_party_in_functions if found.in_function else frozenset())
        allowed = found.package in STANDARD or found.package in third_party
        return "" if allowed else f"{room} must not import {found.package}{when}"
    rooms = row.rooms | (row.rooms_in_functions if found.in_function else frozenset())
    target = "/".join(found.target) or "__init__"
    # The measures' own row stands for the registry and what a measure is, not for the families.
    inside = room_of(target).startswith("measures/") and room == "measures"
    known = any(target == name or target.startswith(f"{name}/") for name in rooms)
    return "" if known and not inside else f"{room} must not import {target}{when}"


def _imports(node: ast.AST, parts: tuple[str, ...], *, in_function: bool, typing: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield _absolute(alias.name.split("."), child.lineno, in_function=in_function)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, parts, in_function=in_function)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in [*child.orelse, *(child.body if typing else [])]:
                yield from _imports(ast.Module([other], []), parts, in_function=in_function, typing=typing)
        else:
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, parts, in_function=inside, typing=typing)


def _from(node: ast.ImportFrom, parts: tuple[str, ...], *, in_function: bool) -> Iterator[Import]:
    """Take ``from .. import records`` for what it is: the import of a room by its name."""
    base = list(parts[: len(parts) - node.level]) if node.level else []
    module = node.module.split(".") if node.module else []
    full = [NAME, *base, *module] if node.level else module
    for alias in node.names:
        names_module = full[0] == NAME and (PACKAGE.joinpath(*full[1:]).is_dir() or len(full) == 1)
        named = [*full, alias.name] if names_module and _is_module([*full[1:], alias.name]) else full
        yield _absolute(named, node.lineno, in_function=in_function)


def _is_module(parts: list[str]) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def _absolute(names: list[str], line: int, *, in_function: bool) -> Import:
    return Import(line, tuple(names[1:]) if names[0] == NAME else None, names[0], in_function)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _dynamic(tree: ast.AST) -> list[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if ast.unparse(call.func).split(".")[-1] in {"import_module", "__import__"}]


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return by module those that it imports anywhere, also for type checkers only; a package is its ``__init__``."""
    known = {path.removesuffix(".py") for path in sources}
    found: dict[str, set[str]] = {}
    for path, source in sources.items():
        module = path.removesuffix(".py")
        imports = _imports(ast.parse(source), tuple(module.split("/")), in_function=False, typing=True)
        targets = {"/".join(i.target) for i in imports if i.target is not None}
        resolved = {t if t in known else f"{t}/__init__" if f"{t}/__init__" in known else "" for t in targets}
        found[module] = resolved - {module, ""}
    return found


def circle(sources: dict[str, str]) -> list[str]:
    """Return modules that import each other in a circle; empty where there is none."""
    try:
        TopologicalSorter(arrows(sources)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", MODULES)
def test_every_module_keeps_to_the_table(path: str) -> None:
    assert violations(path, PACKAGE.joinpath(path).read_text(encoding="utf-8")) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {path: PACKAGE.joinpath(path).read_text(encoding="utf-8") for path in MODULES}
    del sources["__init__.py"]
    assert sum(map(len, arrows(sources).values())) > 300, "the arrows were not seen"
    assert circle(sources) == []


def test_a_circle_is_caught() -> None:
    """One that only type checkers see as well."""
    sources = {"checks/a.py": "from .b import x", "checks/b.py": "if TYPE_CHECKING:\n    from .a import y"}
    assert sorted(set(circle(sources))) == ["checks/a", "checks/b"]
    assert circle({"checks/a.py": "from .b import x", "checks/b.py": ""}) == []


def test_no_file_is_called_utils() -> None:
    assert misnamed(MODULES) == []


def test_a_file_called_utils_is_caught() -> None:
    assert misnamed(["engine/utils.py", "helpers.py", "engine/trees.py"]) == ["engine/utils.py", "helpers.py"]


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
    "plugin loads report": ("plugin/a.py", "from ..report.explain import explain", "must not import report/explain at"),
    "class body is import time": ("plugin/a.py", "class A:\n    import torch", "must not import torch at import"),
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
    "report knows tensors": ("report/a.py", "def f():\n    import torch", "report must not import torch"),
    "report asks the plugin": ("report/a.py", "def f():\n    from ..plugin import x", "report must not import plugin"),
    "report asks the facade": (
        "report/a.py",
        "def f():\n    from ..measurement import measure",
        "report must not import measurement",
    ),
    "report judges": ("report/a.py", "from ..checks.verdicts import judge", "report must not import checks/verdicts"),
    "file of tests knows tensors": ("gate/a.py", "def f():\n    import torch", "gate must not import torch"),
    "file of tests loads measures": (
        "gate/a.py",
        "from ..measures import MEASURES",
        "gate must not import measures at",
    ),
    "file of tests asks the plugin": ("gate/a.py", "def f():\n    from ..plugin import x", "must not import plugin"),
    "names ask the plugin": ("sources/a.py", "def f():\n    from ..plugin import x", "sources must not import plugin"),
    "page writes terminals": (
        "report/html/a.py",
        "from ..terminal import section",
        "report/html must not import report/terminal",
    ),
    "checks know tensors": ("checks/verdicts.py", "def f():\n    import torch", "checks must not import torch"),
    "checks load scipy": ("checks/statistics.py", "from scipy import stats", "checks must not import scipy at import"),
    "checks ask the engine": ("checks/a.py", "from ..engine.trees import x", "checks must not import engine/trees"),
    "checks ask report": ("checks/a.py", "def f():\n    from ..report import x", "checks must not import report"),
    "engine judges": ("engine/runs/a.py", "from ...checks.bounds import B", "runs must not import checks/bounds"),
    "engine asks measures": ("engine/runs/a.py", "from ...measures import x", "engine/runs must not import measures"),
    "engine knows pytest": ("engine/capture/a.py", "import pytest", "engine/capture must not import pytest"),
    "trees climb": (
        "engine/trees.py",
        "from .capture.graph import Graph",
        "engine/trees must not import engine/capture",
    ),
    "isolation asks trees": ("engine/isolation.py", "from .trees import x", "isolation must not import engine/trees"),
    "PyTorch's internals know trees": (
        "engine/torch_internals.py",
        "from .trees import x",
        "engine/torch_internals must not import engine/trees",
    ),
    "linalg knows graphs": ("engine/linalg/a.py", "from ..capture.graph import x", "must not import engine/capture"),
    "capture multiplies": ("engine/capture/a.py", "from ..jacobian.vjp import x", "must not import engine/jacobian"),
    "capture asks linalg": ("engine/capture/a.py", "from ..linalg.norms import x", "must not import engine/linalg"),
    "jacobian runs": ("engine/jacobian/a.py", "from ..runs.run import Run", "must not import engine/runs/run"),
    "jacobian writes": ("engine/jacobian/a.py", "from ...records.text import x", "must not import records/text"),
    "family asks a family": (
        "measures/loss/chance_loss.py",
        "from ..gradients.parameter_gradients import gradient_norm",
        "measures/loss must not import measures/gradients/parameter_gradients",
    ),
    "family asks a family absolutely": (
        "measures/depth/lyapunov.py",
        "def f():\n    import pytest_trainability.measures.structure.linearity",
        "measures/depth must not import measures/structure/linearity",
    ),
    "family asks the registry": (
        "measures/depth/lyapunov.py",
        "from .. import MEASURES",
        "measures/depth must not import measures at import",
    ),
    "family judges": ("measures/loss/a.py", "from ...checks.bounds import B", "must not import checks/bounds"),
    "family asks the facade": ("measures/loss/a.py", "from ...measurement import x", "must not import measurement"),
    "what a measure is asks a family": (
        "measures/measure.py",
        "from .depth.lyapunov import SWEEP",
        "measures must not import measures/depth/lyapunov",
    ),
    "records know tensors": ("records/text.py", "def f():\n    import torch", "records must not import torch"),
    "records import errors": ("records/text.py", "from ..errors import E", "records must not import errors"),
    "errors import records": ("errors.py", "from . import records", "errors must not import records"),
    "facade asks the plugin": ("measurement/result.py", "from ..plugin import options", "must not import plugin"),
    "facade takes graphs apart": (
        "measurement/result.py",
        "from ..engine.capture.graph import Graph",
        "measurement must not import engine/capture/graph",
    ),
    "facade knows pytest": ("measurement/result.py", "def f():\n    import pytest", "must not import pytest"),
    "sweeps take graphs apart": ("scaling/sweep.py", "from ..engine.jacobian.vjp import x", "must not import engine"),
    "commands load measures": (
        "commands/a.py",
        "from ..measures import MEASURES",
        "commands must not import measures at",
    ),
    "commands ask the plugin": (
        "commands/a.py",
        "def f():\n    from ..plugin.options import x",
        "commands must not import plugin/options",
    ),
    "package is eager": ("__init__.py", "from .records.text import x", "__init__ must not import records/text at"),
    "package loads itself": ("engine/trees.py", "import pytest_trainability", "must not import __init__"),
    "unknown third party": ("engine/trees.py", "import pandas", "engine/trees must not import pandas"),
    "back door": ("plugin/a.py", "def f():\n    importlib.import_module('torch')", "imports a module by its name"),
    "new room": ("extras/a.py", "", "has no row in the table"),
    "new file outside the rooms": ("engine/a.py", "", "has no row in the table"),
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
    "for the type checker": (
        "records/text.py",
        "if TYPE_CHECKING:\n    import torch\n    from ..engine import chain",
    ),
    "scipy when needed": ("checks/statistics.py", "def f():\n    from scipy.special import stdtrit"),
    "what a measure is": (
        "measures/depth/lyapunov.py",
        "import torch\nfrom ...engine.runs.run import Run\nfrom ..measure import declare\nfrom .spectral_radius import x",
    ),
    "registry": ("measures/__init__.py", "from .measure import Measure\nx = import_module('.depth', 'a')"),
    "facade": (
        "measurement/result.py",
        "import torch\nfrom ..engine.runs.run import x\nfrom ..report.explain import explain",
    ),
    "bounds are shown": ("report/a.py", "from ..checks.bounds import Bound"),
}


@pytest.mark.parametrize(("path", "source"), ALLOWED.values(), ids=ALLOWED.keys())
def test_what_the_table_allows_is_not_caught(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_the_checker_reads_the_real_package() -> None:
    """An empty list of modules would hold, too; and no row is left over."""
    assert {room_of(path.removesuffix(".py")) for path in MODULES} == set(TABLE)
