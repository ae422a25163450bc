"""Plant faults in a room, one at a time, and see whether the tests that are meant for it notice.

    python tests/mutants.py --room checks --count 40            # prints the survivors, and how many of 40 there were
    python tests/mutants.py --room engine/capture --seed 1 --timeout 120
    python tests/mutants.py --room checks --again survivors.txt # those that an earlier run printed

A mutant changes one expression or statement of one file: a comparison, an arithmetic or logical operator, a constant, a
condition, a returned value, a keyword argument, a statement that is left out. The tests are those that mirror the file
(``tests/unit/checks/test_bounds.py`` for ``checks/bounds.py``), then those of the room in ``ALSO``. Of these, only the tests that
call the changed function run, the fastest first; for a change outside of functions, all do. The file itself is not touched: the
mutated text is given to the import system of a forked process, and the processes that it starts import a copy of the package
that has it, so that several rooms can be tried at once.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_trainability"
ALSO: dict[str, tuple[str, ...]] = {
    "checks": ("tests/unit/report", "tests/unit/checks/test_baselines.py"),
    "records": ("tests/unit/report", "tests/unit/checks/test_verdicts.py"),
    "report": ("tests/plugin/test_sessions.py", "tests/plugin/test_failures.py"),
    "plugin": (
        *("tests/plugin/test_sessions.py", "tests/plugin/test_precedence.py", "tests/plugin/test_baselines.py"),
        # Without test_nothing_lost.py, whose sessions with workers take a minute and do not pass in a forked process.
        *("tests/plugin/test_extensions.py", "tests/plugin/test_randomness.py", "tests/plugin/test_presets.py"),
        *("tests/plugin/test_gate.py", "tests/plugin/test_phases.py", "tests/guards/test_messages.py"),
        *("tests/plugin/test_reports.py", "tests/plugin/test_errors.py", "tests/plugin/test_failures.py"),
        *("tests/plugin/test_progress.py", "tests/plugin/test_cures.py", "tests/plugin/test_command_line.py"),
        *("tests/plugin/test_shared.py", "tests/plugin/test_contracts.py", "tests/plugin/test_html_report.py"),
    ),
    "measurement": ("tests/unit/measurement", "tests/unit/report"),
    "scaling": ("tests/unit/scaling", "tests/truth/test_scaling.py"),
    "dynamics": ("tests/unit/dynamics", "tests/truth/test_maps.py", "tests/truth/test_flows.py"),
    "engine/linalg": ("tests/unit/engine/linalg", "tests/truth/test_rank.py"),
    "engine/capture": ("tests/unit/engine/capture", "tests/unit/engine/jacobian/test_vjp.py"),
    "engine/jacobian": (
        "tests/unit/engine/jacobian",
        "tests/truth/test_random_matrices.py",
        "tests/truth/test_rank.py",
    ),
    "engine/runs": ("tests/unit/engine/runs", "tests/unit/measurement"),
    "measures/depth": ("tests/truth/test_branches.py", "tests/truth/test_recurrent.py"),
    "measures/jacobian": ("tests/truth/test_singular_values.py",),
    "measures/gradients": (
        *("tests/truth/test_gradient_noise.py", "tests/truth/test_updates.py", "tests/truth/test_precision.py"),
        *("tests/truth/test_backward_pass.py", "tests/truth/test_gradient_classes.py", "tests/truth/test_fp8.py"),
    ),
    "measures/activations": (
        *("tests/truth/test_saturation.py", "tests/truth/test_similarity.py"),
        *("tests/truth/test_attention.py", "tests/truth/test_routing.py", "tests/truth/test_attention_logits.py"),
        *("tests/truth/test_modes.py", "tests/truth/test_order.py", "tests/truth/test_causality.py"),
        *(
            "tests/truth/test_largest_value.py",
            "tests/truth/test_effective_rank.py",
            "tests/truth/test_angle_exponent.py",
        ),
    ),
    "measures/loss": (
        *("tests/truth/test_loss.py", "tests/truth/test_curvature.py", "tests/truth/test_tangent_kernel.py"),
    ),
    "measures/structure": ("tests/unit/measures/structure",),
    "measures/parameters": ("tests/unit/measures/parameters", "tests/truth/test_initialization.py"),
    "init": ("tests/unit/init", "tests/truth/test_initialization.py"),
}
"""Tests in addition to those that mirror the file, by room."""
ALWAYS = (
    "tests/guards/test_dataclasses.py",
    "tests/unit/measures/test_measures.py::test_the_tolerance_of_a_measure_is_the_documented_one",
)
"""Tests that read the classes of all rooms, and the declarations of all measures."""

LIBRARIES = ("numpy", "scipy.stats", "torch._dynamo", "pytest", "hypothesis")
"""What the tests import besides the package."""

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One planted fault."""

    path: Path
    line: int
    what: str
    text: str
    function: int = 0
    """First line of the function that is changed; 0 outside of functions."""


Change = Callable[[ast.Module], None]
"""Plants a fault in a copy of a tree."""


def candidates(tree: ast.Module) -> Iterator[tuple[int, str, Change, int]]:
    """Yield line, description and change of every fault that can be planted, and the first line of the function around it."""
    nodes = list(ast.walk(tree))
    skipped, functions = _unchecked(tree), _functions(tree)
    for index, node in enumerate(nodes):
        if node in skipped:
            continue
        for what, change in _changes(node):

            def apply(other: ast.Module, index: int = index, change: Callable[[ast.AST], None] = change) -> None:
                change(list(ast.walk(other))[index])

            yield getattr(node, "lineno", 0), what, apply, functions.get(node, 0)


def _functions(tree: ast.Module) -> dict[ast.AST, int]:
    """Return the first line of the function whose body holds a node, decorators included; of the innermost one."""
    found: dict[ast.AST, int] = {}
    # Outer functions come before the inner ones.
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.update((child, first) for statement in node.body for child in ast.walk(statement))
    return found


def _unchecked(tree: ast.Module) -> set[ast.AST]:
    """Return what no test can see or need not: annotations, docstrings, error texts, imports for type checkers."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts += [node.returns, *(a.annotation for a in [*node.args.args, *node.args.kwonlyargs])]
        elif isinstance(node, ast.AnnAssign):
            parts.append(node.annotation)
        elif (
            isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom))
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "msg"})
        ):
            parts.append(node)
        found.update(child for part in parts if part is not None for child in ast.walk(part))
    return found


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield f"comparison in `{ast.unparse(node)}`", _swap_comparison
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield f"operator in `{ast.unparse(node)}`", _swap_operator
    elif isinstance(node, ast.BoolOp):
        yield f"and/or in `{ast.unparse(node)}`", _swap_logic
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield f"no sign in `{ast.unparse(node)}`", _drop_sign
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield f"constant `{node.value!r}`", _change_constant
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield f"condition `{ast.unparse(node.test)}`", _negate
    elif (
        isinstance(node, ast.Return)
        and node.value is not None
        and ast.unparse(node.value) not in {"None", "()", "[]", "''"}
    ):
        yield f"None for `{ast.unparse(node.value)}`", _return_none
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"without `{ast.unparse(node)}`", _drop_statement
    elif isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg is not None:
        yield f"without {node.keywords[-1].arg}= in `{ast.unparse(node)}`", _drop_keyword


def _swap_comparison(node: ast.AST) -> None:
    node.ops[0] = COMPARISONS[type(node.ops[0])]()  # type: ignore[attr-defined]


def _swap_operator(node: ast.AST) -> None:
    node.op = OPERATORS[type(node.op)]()  # type: ignore[attr-defined]


def _swap_logic(node: ast.AST) -> None:
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()  # type: ignore[attr-defined]


def _drop_sign(node: ast.AST) -> None:
    node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op  # type: ignore[attr-defined]
    if isinstance(node.op, ast.Not):  # type: ignore[attr-defined]
        node.operand = ast.UnaryOp(ast.Not(), node.operand)  # type: ignore[attr-defined]


def _change_constant(node: ast.AST) -> None:
    value = node.value  # type: ignore[attr-defined]
    node.value = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2 or 1.0  # type: ignore[attr-defined]


def _negate(node: ast.AST) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]


def _return_none(node: ast.AST) -> None:
    node.value = ast.Constant(None)  # type: ignore[attr-defined]


def _drop_statement(node: ast.AST) -> None:
    node.value = ast.Constant(None)  # type: ignore[attr-defined]


def _drop_keyword(node: ast.AST) -> None:
    node.keywords.pop()  # type: ignore[attr-defined]


Candidate = tuple[Path, ast.Module, int, str, Change, int]
"""The file, its tree, and the line, description, change and function of a fault that can be planted."""


def of_room(room: str) -> list[Candidate]:
    """Return every fault that can be planted in the files of a room."""
    place = PACKAGE / room
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    found: list[Candidate] = []
    for path in paths:
        if path.name == "attributes.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(path, tree, *candidate) for candidate in candidates(tree)]
    return found


def planted(chosen: list[Candidate]) -> list[Mutant]:
    """Return the mutants of these faults."""
    drawn = []
    for path, tree, line, what, change, function in chosen:
        other = copy.deepcopy(tree)
        change(other)
        drawn.append(Mutant(path, line, what, ast.unparse(ast.fix_missing_locations(other)), function))
    return drawn


def mutants(room: str, count: int, seed: int) -> list[Mutant]:
    """Draw so many mutants of the files of a room."""
    found = of_room(room)
    return planted(random.Random(seed).sample(found, min(count, len(found))))


def named(room: str, lines: list[str]) -> list[Mutant]:
    """Return the mutants that an earlier run printed; where the file has changed since, the nearest line of the same fault."""
    found = of_room(room)
    chosen = []
    for text in lines:
        name, line, what = text.strip().partition(": ")[2].split(":", 2)
        same = [fault for fault in found if str(fault[0].relative_to(PACKAGE)) == name and fault[3] == what.strip()]
        distance = min((abs(fault[2] - int(line)) for fault in same), default=0)
        chosen += [fault for fault in same if abs(fault[2] - int(line)) == distance]
    return planted(chosen)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file that name a mutant."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(("survived: ", "took too long: "))]


def tests_of(mutant: Mutant, room: str) -> list[str]:
    """Return the tests that are meant for the file of a mutant."""
    inside = mutant.path.relative_to(PACKAGE)
    name = inside.parent.name if inside.name == "__init__.py" else inside.stem
    mirror = ROOT / "tests" / "unit" / inside.parent / f"test_{name}.py"
    found = [str(mirror.relative_to(ROOT))] if mirror.is_file() else []
    also = next((ALSO[r] for r in (room, str(inside.parent), inside.parts[0]) if r in ALSO), ())
    return found + [
        test for test in (*also, *ALWAYS) if (ROOT / test.partition("::")[0]).exists() and test not in found
    ]


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module of the package from another text."""

    def __init__(self, mutant: Mutant) -> None:
        parts = mutant.path.relative_to(ROOT).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self.name:
            return None
        package = [str(self.mutant.path.parent)] if self.mutant.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, self.mutant.path, loader=self, submodule_search_locations=package
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.text, str(self.mutant.path), "exec"), module.__dict__)


Called = set[tuple[str, int]]
"""File and first line of functions of the package."""


@contextmanager
def noting_calls() -> Iterator[Called]:
    """Collect the functions of the package that are called inside the context."""
    codes: set[CodeType] = set()
    found: Called = set()

    def trace(frame: FrameType, event: str, arg: object) -> None:
        codes.add(frame.f_code)

    sys.settrace(trace)
    try:
        yield found
    finally:
        sys.settrace(None)
        found |= {(c.co_filename, c.co_firstlineno) for c in codes if c.co_filename.startswith(str(PACKAGE))}


class Tracer:
    """A plugin of pytest that notes which functions of the package each test calls, and how long the test takes.

    What the import of a test file calls, such as for the cases of a parametrized test, counts for each of its tests.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.imports: dict[str, Called] = {}
        self.found: dict[str, tuple[float, Called]] = {}
        self.failed = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, object, object]:
        with noting_calls() as called:
            try:
                return (yield)
            finally:
                self.imports[collector.nodeid] = called

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        begins = time.perf_counter()
        with noting_calls() as called:
            try:
                return (yield)
            finally:
                self.found[item.nodeid] = time.perf_counter() - begins, called

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = f"{report.nodeid}\n{report.longreprtext}"

    def pytest_unconfigure(self) -> None:
        self.file.with_suffix(".failed").write_text(self.failed, encoding="utf-8")
        found = {
            test: (seconds, sorted(called | self.imports.get(test.partition("::")[0], set())))
            for test, (seconds, called) in self.found.items()
        }
        self.file.write_text(json.dumps(found), encoding="utf-8")


def traced(file: str, tests: list[str]) -> dict[str, list[tuple[str, int]]]:
    """Run tests without a fault, and return the functions that each calls, by test: the fastest test first."""
    untouched = Mutant(PACKAGE / "errors.py", 0, "no fault", (PACKAGE / "errors.py").read_text(encoding="utf-8"))
    if outcome(untouched, tests, math.inf, tracer=Tracer(Path(file))) != "survived":
        sys.exit(
            f"The tests must pass without a fault. One fails: {Path(file).with_suffix('.failed').read_text('utf-8')}"
        )
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    return {
        test: [tuple(call) for call in calls] for test, (_, calls) in sorted(found.items(), key=lambda item: item[1][0])
    }


def calling(mutant: Mutant, tests: list[str], calls: dict[str, list[tuple[str, int]]]) -> list[str]:
    """Return those of the tests that call the changed function; all if the change is outside of functions or none calls it."""
    own = [test for test in calls if test.startswith(tuple(tests))]
    return [test for test in own if (str(mutant.path), mutant.function) in calls[test]] or own


def outcome(mutant: Mutant, tests: list[str], timeout: float, tracer: Tracer | None = None) -> str:
    """Run the tests with the fault, in another process: it survived, was noticed, or the run took too long to tell."""
    with tempfile.TemporaryDirectory() as folder:
        return _outcome(mutant, tests, timeout, copy_with(mutant, Path(folder)), tracer)


def copy_with(mutant: Mutant, folder: Path) -> Path:
    """Write a copy of the package with the fault into a folder, and return the folder."""
    # The byte code is copied as well. It is valid, because a copy keeps the times of the files.
    shutil.copytree(PACKAGE, folder / PACKAGE.name)
    (folder / mutant.path.relative_to(ROOT)).write_text(mutant.text, encoding="utf-8")
    return folder


def _outcome(mutant: Mutant, tests: list[str], timeout: float, folder: Path, tracer: Tracer | None) -> str:
    child = os.fork()
    if child == 0:
        os.setsid()
        paths = (str(folder), os.environ.get("PYTHONPATH", ""))
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.meta_path.insert(0, _Mutated(mutant))
        from _pytest.assertion.rewrite import AssertionRewritingHook

        # A session inside a test would warn of modules that it cannot rewrite, and the warnings would be counted.
        AssertionRewritingHook._warn_already_imported = lambda self, name: None  # type: ignore[method-assign]
        options = [
            "-x",
            "-q",
            "--assert=plain",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            "-p",
            "no:xdist",
            "--doctest-modules",
        ]
        code = 3
        try:
            code = int(pytest.main([*options, *tests], plugins=[tracer] if tracer else []))
        finally:
            os._exit(code)
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "noticed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "took too long"


def main() -> int:
    """Plant the mutants of a room, and print those that no test notices and those whose tests do not end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", required=True, help="a folder or file of the package, such as engine/capture")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="a file with lines of an earlier run: plant these faults only")
    parser.add_argument("--tests", nargs="+", help="run these tests only, instead of those that are meant for the file")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one mutant")
    given = parser.parse_args()
    os.chdir(ROOT)
    # Loaded once, for all children, which would take seconds for it.
    for name in LIBRARIES:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    # pytest collects garbage several times. In a child, it need not search what was loaded before.
    gc.freeze()
    drawn = named(given.room, lines_of(given.again)) if given.again else mutants(given.room, given.count, given.seed)
    if not drawn:
        sys.exit(f"No fault to plant in {given.room}.")
    tests = given.tests or list(dict.fromkeys(test for mutant in drawn for test in tests_of(mutant, given.room)))
    with tempfile.NamedTemporaryFile() as file:
        calls = traced(file.name, tests)
    found: Counter[str] = Counter()
    for mutant in drawn:
        what = outcome(mutant, calling(mutant, given.tests or tests_of(mutant, given.room), calls), given.timeout)
        found[what] += 1
        if what != "noticed":
            print(f"{what}: {mutant.path.relative_to(PACKAGE)}:{mutant.line}: {mutant.what}", flush=True)
    late = f", {found['took too long']} took too long" if found["took too long"] else ""
    origin = given.again or f"seed {given.seed}"
    print(f"{given.room}: {found['survived']} of {len(drawn)} mutants survived{late} ({origin})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
