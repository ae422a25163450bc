"""A session that measures nothing loads neither torch nor numpy, starts no process and writes no file.

pytest loads the plugin in every session on a machine where it is installed. At the end of a session each process, controller or
worker, reports its loaded modules, started processes and written files.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pytest_trainability

if TYPE_CHECKING:
    from _pytest.pytester import Pytester, RunResult

PACKAGE = Path(pytest_trainability.__file__).parent

# Every interpreter of the session runs this before pytest loads a plugin.
WATCH = f"""
import os, sys

STARTED, WRITTEN = [], []

def ours():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith({str(PACKAGE)!r}):
            return True
        frame = frame.f_back
    return False

def watch(event, args):
    if event in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "os.exec"):
        if ours():
            STARTED.append(str(args[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink"):
        if ours():
            WRITTEN.append(str(args[0]))
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        if ours():
            WRITTEN.append(str(args[0]))

sys.addaudithook(watch)
"""

CONFTEST = """
import json, os, sys
from pathlib import Path
import pytest

# A worker reports before it says that it has finished, because the controller does not wait for it any longer.
@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        report(session.config)

def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        report(config)

def report(config):
    import sitecustomize
    found = {
        "heavy": [name for name in ("torch", "numpy", "scipy") if name in sys.modules],
        "started": sitecustomize.STARTED,
        "written": sitecustomize.WRITTEN,
        "plugin": "pytest_trainability.plugin" in sys.modules,
        "worker": hasattr(config, "workerinput"),
    }
    Path(f"seen-{os.getpid()}.json").write_text(json.dumps(found))
"""

TESTS = """
import pytest

@pytest.mark.parametrize("n", range(3))
def test_passes(n):
    assert n < 3

@pytest.mark.xfail(strict=True)
def test_comparison_fails():
    assert {"a": 1.0} == {"a": 2.0}
"""


@pytest.fixture
def watched(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    """A project whose sessions report loaded modules, started processes and written files at their end."""
    project.makeconftest(CONFTEST)
    project.makepyfile(sitecustomize=WATCH, test_plain=TESTS)
    monkeypatch.setenv("PYTHONPATH", str(project.path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return project


def seen(project: Pytester) -> list[dict[str, Any]]:
    """Return the report of each process of the session."""
    found = [json.loads(path.read_text()) for path in project.path.glob("seen-*.json")]
    assert all(one["plugin"] for one in found), "the plugin was not loaded: nothing was tested"
    return found


def run(project: Pytester, *args: str) -> RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", *args)


CLEAN = {"heavy": [], "started": [], "written": []}


@pytest.mark.parametrize(
    ("args", "processes"),
    [
        pytest.param([], 1, id="plain"),
        pytest.param(["-n", "2"], 3, id="xdist"),
        pytest.param(["-p", "no:terminal"], 1, id="no terminal"),
        pytest.param(["-p", "no:xdist", "-v"], 1, id="no xdist"),
        pytest.param(
            ["--trainability-seeds=0-3", "--trainability-confidence=0.9", "--trainability-bounds=log_gain >= -3"],
            1,
            id="settings",
        ),
    ],
)
def test_a_session_that_measures_nothing_is_light(watched: Pytester, args: list[str], processes: int) -> None:
    if "-n" in args:
        pytest.importorskip("xdist", reason="workers come with pytest-xdist")
    assert run(watched, *args).ret == 0
    found = seen(watched)
    assert len(found) == processes
    assert sum(one["worker"] for one in found) == processes - 1
    assert [{key: one[key] for key in CLEAN} for one in found] == [CLEAN] * processes


def test_ini_settings_do_not_load_torch(watched: Pytester) -> None:
    watched.makeini(
        "[pytest]\ntrainability_bounds =\n    log_gain = [-3, 3]\n    gradient_norm >= 1e-6\ntrainability_seeds = 8"
    )
    assert run(watched).ret == 0
    assert [one["heavy"] for one in seen(watched)] == [[]]


def test_deselected_measuring_tests_do_not_load_torch(watched: Pytester) -> None:
    """``-m "not trainability"`` runs the fast tests of a suite."""
    watched.makepyfile(
        test_measures="""
        import pytest

        @pytest.mark.trainability(log_gain=(-3, 3))
        def test_model(trainability):
            from small_nets import net, images
            trainability(net, images)
        """
    )
    result = run(watched, "-m", "not trainability")
    result.assert_outcomes(passed=3, xfailed=1, deselected=1)
    assert [one["heavy"] for one in seen(watched)] == [[]]


def test_import_of_torch_is_detected(watched: Pytester) -> None:
    """The check above can fail."""
    watched.makeconftest("import torch\n" + CONFTEST)
    assert run(watched).ret == 0
    assert "torch" in seen(watched)[0]["heavy"]


def test_process_and_file_of_the_plugin_are_detected(watched: Pytester) -> None:
    """The check above can fail: code of the package starts a process and writes a file."""
    planted = "import subprocess; subprocess.run(['true']); open('written.txt', 'w').close()"
    place = str(PACKAGE / "plugin" / "planted.py")
    watched.makeconftest(f"exec(compile({planted!r}, {place!r}, 'exec'))\n" + CONFTEST)
    assert run(watched).ret == 0
    (found,) = seen(watched)
    assert found["started"] == ["true"]
    assert "written.txt" in found["written"]


def test_package_loads_its_names_when_they_are_used() -> None:
    code = """
import sys
heavy = lambda: sorted({"torch", "numpy", "scipy"} & set(sys.modules))
import pytest_trainability
assert sorted(n for n in sys.modules if n.startswith("pytest_trainability.")) == [], sys.modules
assert set(pytest_trainability.__all__) <= set(dir(pytest_trainability))
from pytest_trainability import Bound, BoundError, Estimate, Profile, Steps, at_least, at_most, within
assert str(at_most(3)) == "must be ≤ 3"
assert heavy() == [], heavy()
from pytest_trainability import measure
assert "torch" in heavy()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", pytest_trainability.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(pytest_trainability, name)
    assert value.__name__ == name
    assert value.__doc__


def test_the_rules_of_contracts_are_a_public_module() -> None:
    code = """
import sys
import pytest_trainability
assert "init" in dir(pytest_trainability)
assert "torch" not in sys.modules
assert repr(pytest_trainability.init.zeros()) == "init.zeros()"
from pytest_trainability import init
assert init is pytest_trainability.init
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'pytest_trainability' has no attribute 'withn'"):
        pytest_trainability.withn  # noqa: B018
    with pytest.raises(ImportError, match="withn"):
        exec("from pytest_trainability import withn")
    assert not hasattr(pytest_trainability, "__wrapped__")


def test_lazy_names_are_declared_for_type_checkers() -> None:
    """Both lists must have the same names: type checkers read one, and the interpreter the other."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    twins = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert twins == pytest_trainability._HOME
    assert sorted(twins) == sorted(pytest_trainability.__all__)
