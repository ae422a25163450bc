"""Sessions that are killed, interrupted, crashed, refused or concurrent: no baseline is lost or partly written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pytest_trainability
from pytest_trainability.checks.baseline_files import read_baselines

if TYPE_CHECKING:
    from _pytest.pytester import Pytester, RunResult

NEW, UPDATE = "--trainability-baseline=new", "--trainability-baseline=update"
PACKAGE = str(Path(pytest_trainability.__file__).parent)
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX: signals, symbolic links")

ONE = """
import os
import pytest, torch
from small_nets import images, tower

GAIN = float(os.environ.get("GAIN", "1"))


def scaled(depth=3):
    def build():
        model = tower(depth)()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(GAIN)
        return model
    return build


def check(trainability, depth=3, **options):
    trainability(scaled(depth), images, seeds=2, **options).check_baseline()
"""
"""The head of every test module here: ``check`` records or compares a tower whose weights are scaled by ``GAIN``."""

SUITE = f"""{ONE}
def test_one(trainability):
    check(trainability)


@pytest.mark.parametrize("depth", [2, 4])
def test_depth(trainability, depth):
    check(trainability, depth)


@pytest.mark.xdist_group("pair")
class TestPair:
    def test_both(self, trainability):
        check(trainability, 2, name="shallow")
        check(trainability, 4, name="deep ünd ::wide[]")

    def test_fails_later(self, trainability):
        check(trainability)
        raise ValueError

    @pytest.mark.xfail(strict=True, reason="on purpose")
    def test_xfail(self, trainability):
        check(trainability)
        raise ValueError


def test_skipped_later(trainability):
    check(trainability)
    pytest.skip("not today")
"""
OTHER = f"""{ONE}
def test_of_another_module(trainability):
    check(trainability, 5)
"""
PASSING = {"test_one", "test_depth[2]", "test_depth[4]", "TestPair::test_both"}

# Every interpreter of a session runs this first. It records the files that the package writes, and the kind of process.
WATCH = f"""
import os, sys

# Workers share eight cores, on any machine.
os.cpu_count = lambda: 8

def ours():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith({PACKAGE!r}):
            return True
        frame = frame.f_back
    return False

def watch(event, args):
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.symlink", "os.truncate")
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    # PyTorch 2.14 opens the null device, in which nothing is kept.
    if (changes or writes) and str(args[0]) != os.devnull and ours():
        kind = "worker" if "PYTEST_XDIST_WORKER" in os.environ else "controller"
        written.append(f"{{kind}} {{os.path.basename(str(args[0]))}}")

written = []
sys.addaudithook(watch)

import atexit

@atexit.register
def leave():
    with open(os.path.join(os.environ["SEEN"], f"{{os.getpid()}}.txt"), "w") as file:
        file.write("\\n".join(written))
"""


@pytest.fixture
def suite(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    """Two test modules, one of them in a subfolder. Some of their tests pass."""
    monkeypatch.delenv("GAIN", raising=False)
    project.makepyfile(test_suite=SUITE)
    module_below(project)
    return project


def module_below(project: Pytester) -> None:
    """Write a test module in a subfolder, which has a separate folder of baselines."""
    project.makeini("[pytest]\npythonpath = .")
    (project.mkdir("below") / "test_other.py").write_text(OTHER, encoding="utf-8")


def module(project: Pytester, name: str, tests: str) -> None:
    """Write a test module whose tests can call ``check``."""
    project.makepyfile(**{name: f"{ONE}\n{tests}"})


def run(project: Pytester, *args: str) -> RunResult:
    """Run a session in this process; it must not have an internal error."""
    result = project.runpytest_inprocess("-p", "no:cacheprovider", *args, no_reraise_ctrlc=True)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    return result


def file(project: Pytester, name: str = "test_suite") -> Path:
    return project.path / "__trainability__" / f"{name}.json"


def recorded_in(path: Path) -> set[str]:
    return set(json.loads(path.read_text(encoding="utf-8"))["tests"]) if path.exists() else set()


def baselines(project: Pytester) -> dict[str, bytes]:
    """Return the bytes of all files in folders of baselines."""
    files = (path for path in project.path.rglob("__trainability__/*") if path.is_file())
    return {str(path.relative_to(project.path)): path.read_bytes() for path in files}


def section(result: RunResult) -> list[str]:
    """Return the lines of the terminal section, without the time."""
    found: list[str] = []
    inside = False
    for line in result.stdout.str().splitlines():
        if re.fullmatch(r"=+ .* =+", line):
            inside = " trainability " in line
        elif inside:
            found.append(re.sub(r"[\d.]+ s$", "… s", line.rstrip()))
    return found


def joined(result: RunResult) -> str:
    """Return the text of the section in one line, without line breaks."""
    return " ".join(" ".join(section(result)).split())


# With and without workers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The results of a session: exit status, files of baselines, and the sorted lines of the section."""

    ret: int
    counts: dict[str, int]
    files: dict[str, bytes]
    section: list[str]


def outcome(project: Pytester, result: RunResult) -> Outcome:
    counts = result.parseoutcomes()
    return Outcome(int(result.ret), counts, baselines(project), sorted(section(result)))


def restore(project: Pytester, files: dict[str, bytes]) -> None:
    for name in baselines(project):
        (project.path / name).unlink()
    for name, raw in files.items():
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).write_bytes(raw)


@pytest.mark.parametrize(
    ("mode", "workers"),
    [(NEW, ["-n", "2"]), (UPDATE, ["-n", "2", "--dist", "loadgroup"])],
    ids=["new", "update in groups"],
)
def test_workers_write_the_same_files_status_and_section(
    suite: Pytester, monkeypatch: pytest.MonkeyPatch, mode: str, workers: list[str]
) -> None:
    """Of the three processes only the controller writes."""
    before: dict[str, bytes] = {}
    if mode == UPDATE:
        run(suite, NEW, "-k", "test_one or test_both or test_fails_later")
        before = baselines(suite)
        monkeypatch.setenv("GAIN", "1.7")
    plain = outcome(suite, run(suite, "-p", "no:xdist", mode))
    assert plain.ret == pytest.ExitCode.TESTS_FAILED
    assert plain.counts == {"passed": 5, "failed": 1, "xfailed": 1, "skipped": 1}
    assert plain.files != before
    assert set(plain.files) == {"__trainability__/test_suite.json", "below/__trainability__/test_other.json"}
    assert recorded_in(file(suite)) == PASSING
    restore(suite, before)
    assert outcome(suite, run(suite, "-n", "0", mode)) == plain
    restore(suite, before)
    seen = suite.mkdir("seen")
    suite.makepyfile(sitecustomize=WATCH)
    monkeypatch.setenv("SEEN", str(seen))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(suite.path), *path_of_package()]))
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", mode, *workers)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert outcome(suite, result) == plain
    written = [line for path in seen.iterdir() for line in path.read_text().splitlines()]
    assert len(list(seen.iterdir())) == 3
    assert [line for line in written if line.startswith("worker")] == []
    assert any(re.fullmatch(r"controller \.test_suite\.json\..*\.tmp", line) for line in written), (
        "no writing process was seen"
    )


def path_of_package() -> list[str]:
    """Return the import path with which a new interpreter finds this package."""
    return [str(Path(PACKAGE).parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]


def test_reports_hold_plain_data_that_xdist_can_send(project: Pytester) -> None:
    """Whatever a file contains: xdist can send only strings that are valid UTF-8, and Python's own number types."""
    module(project, "test_it", "def test_model(trainability):\n    check(trainability, name='\\ud800 of the test')")
    run(project, NEW)
    assert run(project).ret == 0
    path = file(project, "test_it")
    document = json.loads(path.read_text(encoding="utf-8"))
    (entry,) = next(iter(document["tests"]["test_model"].values())).values()
    entry["measures"]["gradient_norm"]["values"]["\ud801 of the file"] = [1.0, 2.0]
    entry["measures"]["\ud802\x1b[2J"] = {"names": ["\ud803"]}
    entry["environment"]["torch"] = "\ud804\nnext line"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = run(project)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    reports = result.reprec.getreports("pytest_runtest_logreport")  # type: ignore[attr-defined]
    sent = [report._to_json() for report in reports]
    assert sum("trainability" in report for report in sent) == 1
    assert [fault for report in sent for fault in unsendable(report)] == []
    assert "\x1b" not in result.stdout.str()


def unsendable(plain: Any) -> list[object]:
    """Return the parts that execnet would refuse."""
    if type(plain) is dict:
        return [fault for pair in plain.items() for part in pair for fault in unsendable(part)]
    if type(plain) in {list, tuple, set}:
        return [fault for part in plain for fault in unsendable(part)]
    if type(plain) is str:
        return [plain] if plain.encode("utf-8", "replace").decode("utf-8") != plain else []
    return [] if plain is None or type(plain) in {int, float, bool} else [plain]


def test_unsendable_data_is_found() -> None:
    """The check above can fail."""
    import numpy as np

    assert unsendable({"a": [1, 2.0, None, "ü", (True,)]}) == []
    assert unsendable({"\ud800": np.float64(1), "b": [Path("c")]}) == ["\ud800", np.float64(1), Path("c")]


@posix
def test_a_crashed_worker_loses_only_its_running_test(project: Pytester) -> None:
    """Entries of its earlier tests and of later tests are recorded; the test during which it crashed records nothing."""
    module(
        project,
        "test_it",
        """
@pytest.fixture
def crash():
    yield
    os._exit(3)

@pytest.mark.parametrize("n", range(3))
def test_before(trainability, n):
    check(trainability)

def test_crashes(trainability):
    check(trainability)
    os._exit(3)

def test_crashes_when_done(trainability, crash):
    check(trainability)

@pytest.mark.parametrize("n", range(3))
def test_after(trainability, n):
    check(trainability)
""",
    )
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-n", "1", NEW)
    text = result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert text.count(" crashed while running ") >= 2
    assert recorded_in(file(project, "test_it")) == {
        f"test_{when}[{n}]" for when in ("before", "after") for n in range(3)
    }
    assert "6 recorded in __trainability__/test_it.json: commit it" in joined(result)


@posix
def test_names_of_files_need_not_be_utf_8(project: Pytester) -> None:
    """Python reads other bytes as surrogates, which UTF-8 does not encode; xdist cannot send the names of such tests."""
    folder = project.path / os.fsdecode(b"f\xe4")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    project.makeini("[pytest]\npythonpath = .\naddopts = --import-mode=importlib")
    (folder / "test_it.py").write_text(f"{ONE}\ndef test_model(trainability):\n    check(trainability)\n")
    for option in (NEW, "--trainability-prune"):
        session = start(project, option)
        text = session.communicate(timeout=300)[0]
        assert session.returncode == 0, text
        assert b"INTERNALERROR" not in text
    assert [path.name for path in folder.rglob("*.json")] == ["test_it.json"]
    assert len(list(project.path.rglob("*.json"))) == 1


# Written entries ------------------------------------------------------------------------------------------------------

NOT_PASSED = {
    "an assertion": "    assert False",
    "an error": "    raise OSError",
    "a bound": "    trainability(tower(), images, seeds=1).check(log_gain=(-0.1, 0.1))",
    "xfail in the test": "    pytest.xfail('on purpose')",
    "skip in the test": "    pytest.skip('not today')",
    "teardown": "    request.addfinalizer(lambda: 1 / 0)",
}


@pytest.mark.parametrize("end", NOT_PASSED.values(), ids=NOT_PASSED.keys())
def test_entries_are_written_only_if_the_test_passes(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.delenv("GAIN", raising=False)
    tests = "def test_{name}(trainability, request):\n    check(trainability)\n{end}\n"
    both = "".join(tests.format(name=name, end="    pass") for name in ("good", "bad"))
    module(project, "test_it", both)
    run(project, NEW)
    before = read_baselines(file(project, "test_it"))
    monkeypatch.setenv("GAIN", "1.7")
    module(
        project,
        "test_it",
        "".join(tests.format(name=n, end=e) for n, e in (("good", "    pass"), ("bad", end), ("new_bad", end))),
    )
    result = run(project, UPDATE)
    after = read_baselines(file(project, "test_it"))
    assert set(after) == {"test_good", "test_bad"}
    assert after["test_bad"] == before["test_bad"]
    assert after["test_good"] != before["test_good"]
    assert "1 updated in __trainability__/test_it.json: commit it" in joined(result)
    for name in ("test_bad", "test_new_bad"):
        assert f"not recorded, because the test did not pass: test_it.py::{name}" in joined(result)


INTERRUPTIONS = {
    "Ctrl-C": ("    raise KeyboardInterrupt", pytest.ExitCode.INTERRUPTED),
    "pytest.exit": ("    pytest.exit('enough', returncode=7)", 7),
    "-x": ("    raise ValueError", pytest.ExitCode.TESTS_FAILED),
}


@pytest.mark.parametrize(("how", "status"), INTERRUPTIONS.values(), ids=INTERRUPTIONS.keys())
def test_interrupted_session_keeps_old_entries_and_those_of_passed_tests(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, how: str, status: int
) -> None:
    monkeypatch.delenv("GAIN", raising=False)
    tests = (
        "def test_a(trainability):\n    check(trainability)\n{more}def test_z(trainability):\n    check(trainability)\n"
    )
    module(project, "test_it", tests.format(more=""))
    run(project, NEW, "-k", "test_z")
    before = read_baselines(file(project, "test_it"))
    assert set(before) == {"test_z"}
    module(project, "test_it", tests.format(more=f"def test_b(trainability):\n    check(trainability)\n{how}\n"))
    monkeypatch.setenv("GAIN", "1.7")
    result = run(project, UPDATE, "-x")
    assert result.ret == status
    after = read_baselines(file(project, "test_it"))
    assert set(after) == {"test_a", "test_z"}
    assert after["test_z"] == before["test_z"]


# Unusable files -------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def from_the_future(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"schema": 2', b'"schema": 99'))


def in_conflict(path: Path) -> None:
    path.write_bytes(b"<<<<<<< HEAD\n" + path.read_bytes() + b"=======\n>>>>>>> theirs\n")


def with_nan(path: Path) -> None:
    path.write_bytes(re.sub(rb"\[-\d[\d.]*, ", b"[NaN, ", path.read_bytes(), count=1))


def huge(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.truncate(100 * 2**20)  # sparse: it takes no room


def linked(path: Path) -> None:
    target = path.parent.parent / "elsewhere.json"
    path.rename(target)
    path.symlink_to(target)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


UNUSABLE = {
    "cut": (cut, "the baseline is not valid: it must be JSON"),
    "newer": (from_the_future, "it has schema 99, but this version reads schemas up to 2; upgrade pytest-trainability"),
    "a merge conflict": (in_conflict, "it contains the markers of a merge conflict"),
    "NaN": (with_nan, "NaN is not a JSON number"),
    "100 MB": (huge, "a baseline must be smaller than 64 MB. This one has 100 MB."),
    "a link": pytest.param(linked, "must not be symbolic links, which could lead out of the project", marks=posix),
    "a folder": (
        replaced_by_a_folder,
        "a baseline must be a regular file. Move away the folder or device at this path.",
    ),
}


def state(project: Pytester) -> dict[str, tuple[int, int, bytes]]:
    """Return kind, size and first bytes of every file in the project, without Python's caches."""
    found = {}
    for path in project.path.rglob("*"):
        if "__pycache__" not in path.parts and path.suffix not in {".py", ".pyc"}:
            size = path.stat().st_size if path.is_file() else 0
            found[str(path.relative_to(project.path))] = (
                path.lstat().st_mode,
                size,
                first_bytes(path) if size else b"",
            )
    return found


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(2**20)


@pytest.mark.parametrize(("spoil", "said"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_file_fails_only_its_tests(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], said: str
) -> None:
    monkeypatch.delenv("GAIN", raising=False)
    for name in ("test_bad", "test_good"):
        module(project, name, "def test_old(trainability):\n    check(trainability)")
    run(project, NEW)
    spoil(file(project, "test_bad"))
    before = state(project)
    checked = run(project)
    assert state(project) == before
    monkeypatch.setenv("GAIN", "1.7")
    updated = run(project, UPDATE)
    after = state(project)
    good = str(file(project, "test_good").relative_to(project.path))
    assert {name for name in after if after[name] != before.get(name)} == {good}
    assert before.keys() == after.keys()
    for result in (checked, updated):
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert result.parseoutcomes() == {"passed": 1, "failed": 1}
        message = next(line[1:].strip() for line in result.stdout.str().splitlines() if line.startswith("E "))
        assert message.startswith(f"pytest_trainability.errors.BaselineError: {file(project, 'test_bad')}: ")
        assert said in message
    assert "1 updated in __trainability__/test_good.json: commit it" in joined(updated)


def folder_is_a_file(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> str:
    (project.path / "__trainability__").write_text("somebody's notes")
    return "could not be written. The file is unchanged. "


def folder_is_a_link(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> str:
    (project.path / "__trainability__").symlink_to(project.mkdir("elsewhere"))
    return "a baseline and its folder must not be symbolic links"


def folder_is_read_only(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test may run as root, who may write anywhere: a patch refuses, as the system refuses other users."""
    create = tempfile.mkstemp

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dir") == project.path / "__trainability__":
            raise PermissionError(errno.EACCES, "Permission denied")
        return create(*args, **kwargs)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    return "could not be written. The file is unchanged. PermissionError: Permission denied."


def disk_is_full(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> str:
    flush, inode = os.fsync, (project.path / "test_bad.py").stat().st_dev
    full = project.path / "__trainability__"

    def refuse(handle: int) -> None:
        if os.fstat(handle).st_dev == inode and Path(f"/proc/self/fd/{handle}").readlink().parent == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to find the file of a handle")
    monkeypatch.setattr(os, "fsync", refuse)
    return "could not be written. The file is unchanged. OSError: No space left on device."


UNWRITABLE = [
    folder_is_a_file,
    pytest.param(folder_is_a_link, marks=posix),
    folder_is_read_only,
    disk_is_full,
]


@pytest.mark.parametrize("spoil", UNWRITABLE)
def test_unwritable_folder_fails_the_session_and_other_files_are_written(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Pytester, pytest.MonkeyPatch], str]
) -> None:
    monkeypatch.delenv("GAIN", raising=False)
    module(project, "test_bad", "def test_new(trainability):\n    check(trainability)")
    module_below(project)
    said = spoil(project, monkeypatch)
    before = state(project)
    result = run(project, NEW)
    after = state(project)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert said in result.stdout.str() or said in joined(result)
    assert "1 recorded in below/__trainability__/test_other.json: commit it" in joined(result)
    made = {name for name in after if after[name] != before.get(name)} - {"__trainability__"}
    assert made == {"below/__trainability__", "below/__trainability__/test_other.json"}
    assert (
        after.get("__trainability__", (0,))[0] == before.get("__trainability__", after.get("__trainability__", (0,)))[0]
    )
    monkeypatch.undo()


# Killed and concurrent sessions ---------------------------------------------------------------------------------------


def start(project: Pytester, *args: str) -> subprocess.Popen[bytes]:
    """Start a session in a separate process."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *args]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path_of_package())}
    return subprocess.Popen(
        command,
        cwd=project.path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(marker: Path, session: subprocess.Popen[bytes]) -> None:
    """Wait until a session has written a marker file."""
    for _ in range(1200):
        if marker.exists():
            return
        if session.poll() is not None:
            break
        time.sleep(0.1)
    session.kill()
    pytest.fail(f"the session never came to {marker.name}: {session.communicate()[0].decode()}")


HANGS_WRITING = """
import os, time
from pathlib import Path

flush, calls = os.fsync, []

def hang(handle):
    flush(handle)
    calls.append(handle)
    if len(calls) == 2:
        Path("writing.marker").touch()
        time.sleep(600)

if os.environ.get("HANG"):
    os.fsync = hang
"""


@posix
def test_a_session_killed_while_it_writes_leaves_whole_files(
    project: Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file had been written, and one was being written."""
    monkeypatch.delenv("GAIN", raising=False)
    monkeypatch.delenv("HANG", raising=False)
    for name in ("test_a", "test_b"):
        module(project, name, "def test_model(trainability):\n    check(trainability)")
    project.makeconftest(HANGS_WRITING)
    run(project, NEW)
    before = baselines(project)
    monkeypatch.setenv("GAIN", "1.7")
    monkeypatch.setenv("HANG", "1")
    session = start(project, UPDATE)
    wait_for(project.path / "writing.marker", session)
    session.send_signal(signal.SIGKILL)
    session.communicate()
    monkeypatch.delenv("HANG")
    after = baselines(project)
    half = [name for name in after if name not in before]
    assert {name.rpartition(".")[2] for name in half} == {"lock", "tmp"}, "it was not killed while it wrote"
    assert after["__trainability__/test_b.json"] == before["__trainability__/test_b.json"]
    assert after["__trainability__/test_a.json"] != before["__trainability__/test_a.json"]
    result = run(project, UPDATE)
    assert result.ret == 0
    assert joined(result).count("updated in __trainability__") == 1
    assert baselines(project).keys() == before.keys(), "what the killed session left is still there"
    assert run(project).ret == 0


MEET = """
import os, time
import pytest
from pathlib import Path

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    '''Wait until the other session has measured, too: both have read the files before either writes.'''
    if os.environ.get("MEET"):
        Path(f"measured-{os.environ['MEET']}.marker").touch()
        while len(list(Path.cwd().glob("measured-*.marker"))) < 2:
            time.sleep(0.05)
"""


def test_concurrent_sessions_lose_no_entries(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both start before either has recorded anything, and write the same file."""
    tests = "@pytest.mark.parametrize('n', range(4))\ndef test_{name}(trainability, n):\n    check(trainability)\n"
    module(project, "test_it", "".join(tests.format(name=name) for name in ("a", "b", "c")))
    project.makeconftest(MEET)
    run(project, NEW, "-k", "test_c")
    sessions = []
    for name in ("test_a", "test_b"):
        monkeypatch.setenv("MEET", name)
        sessions.append(start(project, NEW, "-k", name))
    monkeypatch.delenv("MEET")
    for session in sessions:
        text = session.communicate(timeout=300)[0].decode()
        assert session.returncode == 0, text
        assert "4 recorded in __trainability__/test_it.json" in text
    assert recorded_in(file(project, "test_it")) == {f"test_{name}[{n}]" for name in "abc" for n in range(4)}
    assert run(project).ret == 0
