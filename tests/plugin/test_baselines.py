"""Baselines in whole sessions: record, check, update, rename, prune, accept."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_trainability import commands as command
from pytest_trainability.checks import baseline_files
from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_values import Series
from pytest_trainability.plugin import paths
from pytest_trainability.plugin.baseline_writer import BaselineWriter
from pytest_trainability.plugin.baselines import BaselineRequest
from pytest_trainability.plugin.collected import Collected

if TYPE_CHECKING:
    from _pytest.pytester import Pytester, RunResult

SUITE = """
import os
import pytest, torch
from torch import nn
from small_nets import images

GAIN = float(os.environ.get("GAIN", "1"))


def tower(depth=6, gain=None):
    def build():
        model = nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.Tanh())])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(GAIN if gain is None else gain)
        return model
    return build


def test_tower(trainability):
    trainability(tower(), images, seeds=4).check_baseline()


@pytest.mark.parametrize("depth", [3, 5])
def test_depth(trainability, depth):
    trainability(tower(depth), images, seeds=4).check_baseline()


class TestTwo:
    def test_both(self, trainability):
        trainability(tower(2), images, seeds=4, name="shallow").check_baseline()
        trainability(tower(4), images, seeds=4, name="deep").check_baseline()
"""


@pytest.fixture
def suite(project: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    """A project with five baselines to record. The environment variable GAIN scales the weights of its towers."""
    monkeypatch.delenv("GAIN", raising=False)
    project.makepyfile(test_suite=SUITE)
    return project


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps the files of the project with the baselines recorded."""
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture
def recorded(suite: Pytester, kept: Path) -> Pytester:
    """The same project with the baselines recorded, by one session for all tests."""
    if not any(kept.iterdir()):
        assert run(suite, "--trainability-baseline=new").ret == 0
        shutil.copytree(suite.path, kept, dirs_exist_ok=True)
    shutil.copytree(kept, suite.path, dirs_exist_ok=True)
    return suite


def run(project: Pytester, *args: str) -> RunResult:
    return project.runpytest_inprocess("-p", "no:xdist", *args)


def file(project: Pytester, name: str = "test_suite") -> Path:
    return project.path / "__trainability__" / f"{name}.json"


def entries(project: Pytester, name: str = "test_suite") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file(project, name).read_text(encoding="utf-8"))["tests"]
    return found


def joined(result: RunResult) -> str:
    """Return the output with wrapped lines joined, without the mark of the lines of an error."""
    return re.sub(r"\s+", " ", re.sub(r"^E ", "  ", result.stdout.str(), flags=re.MULTILINE))


def test_missing_baseline_fails_and_names_the_command_that_records_it(suite: Pytester) -> None:
    result = run(suite)
    result.assert_outcomes(failed=4)
    assert not file(suite).exists()
    text = joined(result)
    assert "no baseline" in text
    assert "none for test_tower › build › cpu float32 in __trainability__/test_suite.json" in text
    assert "pytest test_suite.py::test_tower --trainability-baseline=new" in text


def test_recorded_baselines_hold(recorded: Pytester) -> None:
    before = file(recorded).read_bytes()
    result = run(recorded)
    result.assert_outcomes(passed=4)
    assert file(recorded).read_bytes() == before


def test_every_measurement_has_an_entry(recorded: Pytester) -> None:
    names = {test: sorted(names) for test, names in entries(recorded).items()}
    assert names == {
        "test_tower": ["build"],
        "test_depth[3]": ["build"],
        "test_depth[5]": ["build"],
        "TestTwo::test_both": ["deep", "shallow"],
    }
    entry = entries(recorded)["test_tower"]["build"]["cpu float32"]
    assert entry["seeds"] == list(range(4))
    assert set(entry["environment"]) == {"device", "dtype", "platform", "threads", "torch"}
    assert set(entry["measures"]) == {
        "log_gain",
        "growth_rate",
        "activation_rms",
        "gradient_classes",
        "gradient_norm",
        "unused_parameters",
    }
    assert len(entry["measures"]["log_gain"]["values"]) == 4


def test_recording_again_changes_no_byte(recorded: Pytester) -> None:
    before = file(recorded).read_bytes()
    for mode in ("new", "update"):
        assert run(recorded, f"--trainability-baseline={mode}").ret == 0
        assert file(recorded).read_bytes() == before


def test_file_is_readable(recorded: Pytester) -> None:
    """One line for each list of numbers, sorted keys, and only significant digits."""
    lines = file(recorded).read_text(encoding="utf-8").splitlines()
    assert max(len(line) for line in lines) < 160
    assert '     "environment": {"device": "cpu", "dtype": "float32",' in "\n".join(lines)
    assert all(len(number) <= 8 for line in lines if '": [' in line for number in re.findall(r"-?\d\.\d+", line))


@pytest.mark.parametrize("gain", ["1.5", "0.6"])
def test_change_in_either_direction_fails(suite: Pytester, monkeypatch: pytest.MonkeyPatch, gain: str) -> None:
    """With eight seeds the log gain of the tower is known well enough for a change by half."""
    suite.makepyfile(test_suite=SUITE.replace("seeds=4", "seeds=8"))
    assert run(suite, "test_suite.py::test_tower", "--trainability-baseline=new").ret == 0
    monkeypatch.setenv("GAIN", gain)
    before = file(suite).read_bytes()
    result = run(suite, "test_suite.py::test_tower")
    result.assert_outcomes(failed=1)
    text = joined(result)
    assert re.search(r"log_gain -\d\.\d+ → -\d\.\d+ nats: by -?\d\.\d+, more than 0\.3", text)
    assert re.search(r"growth_rate [456] of 6 moved", text)
    assert "if intended pytest test_suite.py::test_tower --trainability-baseline=update" in text
    assert file(suite).read_bytes() == before


BLOCKS = """
import os
import torch
from torch import nn
from small_nets import images

CHANGE = os.environ.get("CHANGE", "")


class Block(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index
        self.up, self.act, self.proj = nn.Linear(8, 32), nn.Sigmoid() if CHANGE == "module" else nn.GELU(), nn.Linear(32, 8)
        if CHANGE == "weights":
            nn.init.normal_(self.proj.weight, std=0.4)

    def forward(self, x):
        act = torch.relu if CHANGE == "code" and self.index >= 2 else self.act
        return x + (3 if CHANGE == "constant" else 1) * self.proj(act(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(i) for i in range(4)))

    def forward(self, x):
        return self.blocks(x)


def test_net(trainability):
    trainability(Net, images, seeds=8).check_baseline()
"""
CULPRITS = {
    "weights": "initial values blocks.*.proj.weight ×",
    "module": "modules blocks.*.act: GELU → Sigmoid (4 of 4), all others unchanged ",
    "constant": "model initial values, modules and operations unchanged: a constant of the forward pass changed "
    "settings blocks.*: mul(proj, 1) → mul(proj, 3) (4 of 4) log_gain ",
    "code": "model initial values and modules unchanged, all numbers within tolerance: the forward code changed, "
    "first at blocks.2 operations blocks.*: Gelu → Relu (2 of 4) ",
}


@pytest.mark.parametrize("change", CULPRITS)
def test_a_failure_begins_with_what_has_changed(
    project: Pytester, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    project.makepyfile(test_suite=BLOCKS)
    monkeypatch.delenv("CHANGE", raising=False)
    assert run(project, "--trainability-baseline=new").ret == 0
    run(project).assert_outcomes(passed=1)
    monkeypatch.setenv("CHANGE", change)
    result = run(project)
    result.assert_outcomes(failed=1)
    section = joined(result).rpartition("in __trainability__/test_suite.json ")[2]
    assert section.startswith(CULPRITS[change])


def test_other_constants_next_to_equal_numbers_are_a_note(project: Pytester) -> None:
    """A constant that changes no number, as that of an offset of zero: the test passes, and says so until it is updated."""
    suite = """
import torch
from torch import nn
from small_nets import images

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.register_buffer("offset", torch.zeros(8))

    def forward(self, x):
        return self.body(x) + SHIFT

def test_net(trainability):
    trainability(Net, images, seeds=4).check_baseline()
"""
    project.makepyfile(test_suite=suite.replace("SHIFT", "1000 * self.offset"))
    assert run(project, "--trainability-baseline=new").ret == 0
    assert "settings changed" not in joined(run(project))
    project.makepyfile(test_suite=suite.replace("SHIFT", "self.offset"))
    said = "note settings changed since the baseline, all numbers within tolerance: Net: mul(1000) gone"
    result = run(project)
    result.assert_outcomes(passed=1)
    assert said in joined(result)
    assert run(project, "--trainability-baseline=update").ret == 0
    result = run(project)
    result.assert_outcomes(passed=1)
    assert "settings changed" not in joined(result)


def test_update_adds_initial_values_to_a_baseline_of_schema_1(recorded: Pytester) -> None:
    text = file(recorded).read_text(encoding="utf-8")
    document = json.loads(text)
    document["schema"] = 1
    for names in document["tests"].values():
        for entry in (entry for environments in names.values() for entry in environments.values()):
            del entry["initial"], entry["modules"], entry["operations"]
            entry.pop("settings", None)
    file(recorded).write_text(json.dumps(document), encoding="utf-8")
    run(recorded).assert_outcomes(passed=4)
    assert json.loads(file(recorded).read_text(encoding="utf-8"))["schema"] == 1
    assert run(recorded, "--trainability-baseline=update").ret == 0
    assert file(recorded).read_text(encoding="utf-8") == text


def test_mode_new_records_only_missing_entries(recorded: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAIN", "1.5")
    before = entries(recorded)
    recorded.makepyfile(
        test_suite=SUITE
        + "\ndef test_more(trainability):\n    trainability(tower(3), images, seeds=4).check_baseline()\n"
    )
    result = run(recorded, "--trainability-baseline=new")
    result.assert_outcomes(failed=4, passed=1)
    after = entries(recorded)
    assert after.pop("test_more")
    assert after == before


def test_mode_update_replaces_changed_entries_and_prints_old_and_new(
    recorded: Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = entries(recorded)
    recorded.makepyfile(
        test_suite=SUITE.replace('seeds=4, name="deep"', 'seeds=4, name="deep"').replace("tower(4)", "tower(4, 1.5)")
    )
    result = run(recorded, "--trainability-baseline=update", "-q")
    result.assert_outcomes(passed=4)
    text = joined(result)
    assert re.search(
        r"baseline updated initial values \*\.bias ×1\.5 \(4 of 4\): rms \S+ → \S+ initial values \*\.weight ×1\.5 .* "
        r"log_gain -\S+ → -\S+ nats: by \S+, more than 0\.3 growth_rate 4 of 4 moved",
        text,
    )
    assert "1 updated in __trainability__/test_suite.json: commit it" in text
    after = entries(recorded)
    assert after["TestTwo::test_both"].pop("deep") != before["TestTwo::test_both"].pop("deep")
    assert after == before, "unchanged entries stay"
    run(recorded).assert_outcomes(passed=4)


def test_other_seeds_are_compared_and_recorded(recorded: Pytester) -> None:
    """Unchanged code on other seeds is not a change; ``update`` records the new seeds."""
    recorded.makepyfile(test_suite=SUITE.replace("seeds=4", "seeds=range(50, 54)"))
    run(recorded).assert_outcomes(passed=4)
    assert run(recorded, "--trainability-baseline=update").ret == 0
    assert entries(recorded)["test_tower"]["build"]["cpu float32"]["seeds"] == list(range(50, 54))


def test_new_and_missing_measures_are_changes(recorded: Pytester) -> None:
    recorded.makepyfile(test_suite=SUITE.replace("check_baseline()", 'check_baseline("forward_log_gain")'))
    result = run(recorded, "test_suite.py::test_tower")
    result.assert_outcomes(failed=1)
    assert "forward_log_gain not in the baseline" in joined(result)
    assert run(recorded, "--trainability-baseline=update").ret == 0
    recorded.makepyfile(test_suite=SUITE)
    result = run(recorded, "test_suite.py::test_tower")
    result.assert_outcomes(failed=1)
    assert "forward_log_gain no longer measured" in joined(result)


def test_bounded_measures_of_a_test_are_part_of_its_baseline(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest
        from pytest_trainability import within
        from small_nets import images, net

        @pytest.mark.trainability(forward_log_gain=within(100))
        def test_model(trainability):
            trainability(net, images, seeds=8).check_baseline()
        """
    )
    assert run(project, "--trainability-baseline=new").ret == 0
    (entry,) = entries(project, "test_it")["test_model"].values()
    assert "forward_log_gain" in entry["cpu float32"]["measures"]
    assert len(entry["cpu float32"]["seeds"]) == 8, "a baseline needs all seeds, even if fewer settle the bound"


def test_measures_that_only_the_command_line_bounds_are_not_part_of_a_baseline(recorded: Pytester) -> None:
    before = file(recorded).read_bytes()
    bound = "--trainability-bounds=forward_log_gain = [-100, 100]"
    run(recorded, bound).assert_outcomes(passed=4)
    assert run(recorded, bound, "--trainability-baseline=update").ret == 0
    assert file(recorded).read_bytes() == before


def test_measures_that_the_ini_file_also_bounds_stay_part_of_a_baseline(suite: Pytester) -> None:
    suite.makeini("[pytest]\ntrainability_bounds =\n    forward_log_gain = [-100, 100]")
    assert run(suite, "--trainability-baseline=new").ret == 0
    run(suite, "--trainability-bounds=forward_log_gain = [-90, 90]").assert_outcomes(passed=4)


@pytest.mark.parametrize("place", ["function", "module"])
def test_measures_that_a_marker_also_bounds_stay_part_of_a_baseline(project: Pytester, place: str) -> None:
    mark = "pytestmark = " if place == "module" else "@"
    project.makepyfile(
        test_it=f"""
        import pytest
        from small_nets import images, net

        {mark}pytest.mark.trainability(forward_log_gain=(-100, 100))
        def test_model(trainability):
            trainability(net, images, seeds=4).check_baseline()
        """
    )
    bound = "--trainability-bounds=forward_log_gain = [-90, 90]"
    assert run(project, bound, "--trainability-baseline=new").ret == 0
    (entry,) = entries(project, "test_it")["test_model"].values()
    assert "forward_log_gain" in entry["cpu float32"]["measures"]
    run(project).assert_outcomes(passed=1)
    run(project, bound).assert_outcomes(passed=1)


MOVING = ("log_gain", "growth_rate", "activation_rms", "gradient_norm", "parameter_rms")
WIDE = [f"{measure} = 9" for measure in MOVING]
TOLERANT = {
    "call": (f"check_baseline({', '.join(f'{measure}=9' for measure in MOVING)})", ""),
    "marker": ("check_baseline()", f"tolerances={dict.fromkeys(MOVING, 9)}"),
    "line": ("check_baseline()", ""),
    "ini": ("check_baseline()", ""),
}


@pytest.mark.parametrize("level", TOLERANT)
def test_tolerances_can_be_set_at_each_level(recorded: Pytester, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("GAIN", "1.5")
    call, marker = TOLERANT[level]
    source = SUITE.replace("check_baseline()", call)
    if marker:
        source = source.replace("def test_tower", f"@pytest.mark.trainability({marker})\ndef test_tower")
    recorded.makepyfile(test_suite=source)
    if level == "ini":
        recorded.makeini("\n    ".join(["[pytest]\ntrainability_tolerances =", *WIDE]))
    options = [f"--trainability-tolerances={line}" for line in WIDE] if level == "line" else []
    run(recorded, "test_suite.py::test_tower", *options).assert_outcomes(passed=1)


def test_the_nearer_tolerance_wins(recorded: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAIN", "1.5")
    recorded.makeini("\n    ".join(["[pytest]\ntrainability_tolerances =", *WIDE]))
    run(recorded, "test_suite.py::test_tower").assert_outcomes(passed=1)
    run(recorded, "test_suite.py::test_tower", "--trainability-tolerances=log_gain = 0.1").assert_outcomes(failed=1)
    recorded.makepyfile(test_suite=SUITE.replace("check_baseline()", "check_baseline(log_gain=9)"))
    run(recorded, "test_suite.py::test_tower", "--trainability-tolerances=log_gain = 0.1").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (
            "check_baseline(log_gian=1)",
            [],
            "check_baseline() in test_suite.py::test_tower: unknown measure 'log_gian'",
        ),
        ("check_baseline(log_gain=-1)", [], "the tolerance of log_gain must be a finite number of at least 0. Got -1"),
        ("check_baseline('gain')", [], "unknown measure 'gain'"),
        ("check_baseline([])", [], "BoundError: check_baseline() in test_suite.py::test_tower: unknown measure []"),
        ("check_baseline(None)", [], "unknown measure None"),
    ],
)
def test_invalid_arguments_of_check_baseline_fail_the_test(
    suite: Pytester, source: str, options: list[str], said: str
) -> None:
    suite.makepyfile(test_suite=SUITE.replace("check_baseline()", source))
    result = run(suite, "test_suite.py::test_tower", *options)
    result.assert_outcomes(failed=1)
    assert said in joined(result)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainability-tolerances=log_gain"],
            "--trainability-tolerances must hold lines such as 'log_gain = 0.5'. Got",
        ),
        (["--trainability-tolerances=log_gain = x"], "must hold lines such as 'log_gain = 0.5'. Got 'log_gain = x'"),
        (
            ["--trainability-tolerances=log_gian = 1"],
            "--trainability-tolerances: unknown measure 'log_gian'.",
        ),
        (["--trainability-baseline=maybe"], "invalid choice: 'maybe'"),
        (["--trainability-measured="], "--trainability-measured must name a folder. Got ''"),
    ],
)
def test_invalid_options_end_the_session(suite: Pytester, options: list[str], said: str) -> None:
    result = run(suite, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in re.sub(r"\s+", " ", result.stderr.str())


def test_two_measurements_cannot_share_an_entry(suite: Pytester) -> None:
    suite.makepyfile(
        test_suite=SUITE + "\n\ndef test_clash(trainability):\n    trainability(tower(2), images).check_baseline()\n"
        '    trainability(tower(3), images, name="build").check_baseline()\n'
    )
    result = run(suite, "test_suite.py::test_clash", "--trainability-baseline=new")
    result.assert_outcomes(failed=1)
    assert "Two measurements of test_suite.py::test_clash have the name 'build': pass name= to one of them." in joined(
        result
    )
    assert not file(suite).exists()


def test_check_baseline_outside_pytest_is_refused() -> None:
    import torch
    from torch import nn

    from pytest_trainability import UsageError, measure

    result = measure(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4), seeds=2)
    with pytest.raises(UsageError, match=r"needs a measurement of the trainability fixture"):
        result.check_baseline()


# Unused entries -------------------------------------------------------------------------------------------------------


def test_renamed_test_is_recognized_by_its_numbers(recorded: Pytester) -> None:
    recorded.makepyfile(test_suite=SUITE.replace("test_tower", "test_turm"))
    result = run(recorded)
    result.assert_outcomes(failed=1, passed=3)
    assert (
        "no test uses test_tower › build in __trainability__/test_suite.json; it has the same numbers as "
        "test_turm › build: renamed?"
    ) in joined(result).replace("baselines ", "")


def test_test_of_the_same_numbers_in_another_file_is_not_a_renamed_one(recorded: Pytester) -> None:
    """The hint names the test and not its file: it would point to the wrong file."""
    recorded.makepyfile(
        test_suite=SUITE.replace("def test_tower", "def unused_tower"),
        test_other=SUITE.replace("test_tower", "test_turm"),
    )
    text = joined(run(recorded, "--trainability-baseline=new"))
    assert "no test uses test_tower › build in __trainability__/test_suite.json" in text
    assert "test_turm" in entries(recorded, "test_other")
    assert "renamed?" not in text


def test_unused_entries_and_files_are_listed_and_kept(recorded: Pytester) -> None:
    recorded.makepyfile(test_suite=SUITE.replace(', name="deep").check_baseline()', ', name="deep")'))
    file(recorded, "test_gone").write_bytes(file(recorded).read_bytes())
    before = file(recorded).read_bytes()
    text = joined(run(recorded))
    assert "no test uses TestTwo::test_both › deep in __trainability__/test_suite.json" in text
    assert "no test module for __trainability__/test_gone.json" in text
    assert "--trainability-prune removes them" in text
    assert file(recorded).read_bytes() == before
    assert file(recorded, "test_gone").exists()


def test_prune_removes_unused_entries_and_files(recorded: Pytester) -> None:
    recorded.makepyfile(test_suite=SUITE.replace("[3, 5]", "[3]"))
    file(recorded, "test_gone").write_bytes(file(recorded).read_bytes())
    before = entries(recorded)
    result = run(recorded, "--trainability-prune")
    assert result.ret == 0
    assert "removed: no test uses test_depth[5] › build" in joined(result)
    del before["test_depth[5]"]
    assert entries(recorded) == before
    assert not file(recorded, "test_gone").exists()


DESELECTING = """
def pytest_collection_modifyitems(items):
    del items[-1]
"""
SKIPPING = SUITE.replace("def test_tower", "@pytest.mark.skip\ndef test_tower")


@pytest.mark.parametrize(
    "options",
    [
        ["-k", "tower"],
        ["-m", "trainability"],
        ["--deselect=test_suite.py::test_tower"],
        ["--lf"],
        ["--sw"],
        ["test_suite.py::test_tower"],
    ],
    ids=lambda options: options[0],
)
def test_prune_is_refused_if_options_leave_tests_out(recorded: Pytester, options: list[str]) -> None:
    recorded.makepyfile(test_suite=SUITE.replace("[3, 5]", "[3]"))
    before = file(recorded).read_bytes()
    result = run(recorded, "--trainability-prune", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--trainability-prune must see every test" in result.stderr.str()
    assert file(recorded).read_bytes() == before
    assert "no test uses" not in joined(run(recorded, *options)), "nor is anything named as unused"


@pytest.mark.parametrize(
    ("conftest", "source", "reason"),
    [
        (DESELECTING, SUITE.replace("[3, 5]", "[3]"), "1 deselected"),
        ("", SKIPPING.replace("[3, 5]", "[3]"), "1 skipped, failed or not run"),
        (
            "",
            SUITE.replace("[3, 5]", "[3]").replace("seeds=4).check", "seeds=4, steps='nothing.*').check", 1),
            "1 skipped, failed",
        ),
    ],
    ids=["a plugin deselects", "a test skips", "a test fails"],
)
def test_prune_is_refused_if_a_test_has_not_passed(recorded: Pytester, conftest: str, source: str, reason: str) -> None:
    recorded.makeconftest(conftest)
    recorded.makepyfile(test_suite=source)
    before = file(recorded).read_bytes()
    result = run(recorded, "--trainability-prune")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = joined(result)
    assert f"nothing pruned: not every test has passed ({reason}" in text
    assert "no test uses test_depth[5] › build" in text
    assert "--trainability-prune removes them" not in text, "the session has just refused to do so"
    assert file(recorded).read_bytes() == before


TAKEN_LATER = """
def test_taken_later(request):
    if SKIPS:
        pytest.skip("not today")
    take = request.getfixturevalue
    take("trainability")(tower(3), images, seeds=4).check_baseline()
"""
BY_HELPER = """
NAME = "trainability"

def test_taken_later(request):
    if SKIPS:
        pytest.skip("not today")
    request.getfixturevalue(NAME)(tower(3), images, seeds=4).check_baseline()
"""
NO_PARAMETERS = """
@pytest.mark.parametrize("depth", [] if SKIPS else [3])
def test_taken_later(request, depth):
    request.getfixturevalue(NAME)(tower(depth), images, seeds=4).check_baseline()

NAME = "trainability"
"""


@pytest.mark.parametrize("late", [TAKEN_LATER, BY_HELPER, NO_PARAMETERS], ids=["named", "by a name", "no parameters"])
def test_prune_keeps_what_a_skipped_test_may_ask_for_that_takes_the_fixture_while_it_runs(
    suite: Pytester, late: str
) -> None:
    suite.makepyfile(test_suite=f"SKIPS = False\n{SUITE}{late}")
    assert run(suite, "--trainability-baseline=new").ret == 0
    (test,) = (name for name in entries(suite) if name.startswith("test_taken_later"))
    suite.makepyfile(test_suite=f"SKIPS = True\n{SUITE}{late}".replace("[3, 5]", "[3]"))
    result = run(suite, "--trainability-prune")
    assert test in entries(suite)
    assert ("test_depth[5]" in entries(suite)) == (result.ret != 0), "all that is unused is removed, or nothing"
    suite.makepyfile(test_suite=SUITE.replace("[3, 5]", "[3]"))
    assert run(suite, "--trainability-prune").ret == 0
    assert test not in entries(suite), "a test that is gone asks for nothing"


DOCTEST = """
>>> from small_nets import images, net
>>> getfixture('trainability')(net, images, seeds=2).check_baseline()
"""


def test_prune_keeps_the_baselines_of_doctests(suite: Pytester) -> None:
    """A text file and a module of the same name have separate baselines."""
    suite.makeini("[pytest]\naddopts = --doctest-glob=*.rst\npythonpath = .\n")
    suite.makefile(".rst", test_suite=DOCTEST)
    documented = f"{SUITE}\ndef helper():\n    '''Measure.\n{DOCTEST}    '''\n".replace("\n>>>", "\n    >>>")
    suite.makepyfile(test_suite=documented)
    assert run(suite, "--doctest-modules", "--trainability-baseline=new").ret == 0
    before = {path.name: path.read_bytes() for path in file(suite).parent.iterdir()}
    assert set(before) == {"test_suite.json", "test_suite.rst.json"}
    assert set(entries(suite)) >= {"test_suite.helper", "test_tower"}
    assert set(entries(suite, "test_suite.rst")) == {"test_suite.rst"}
    result = run(suite, "--trainability-prune")
    assert result.ret == 0
    assert "no test" not in joined(result), "this session collects no doctests of modules"
    assert {path.name: path.read_bytes() for path in file(suite).parent.iterdir()} == before
    suite.makepyfile(test_suite=SUITE)
    (suite.path / "test_suite.rst").unlink()
    assert run(suite, "--doctest-modules", "--trainability-prune").ret == 0
    assert "test_suite.helper" not in entries(suite)
    assert not file(suite, "test_suite.rst").exists()


def test_prune_keeps_the_entries_of_a_class_that_cannot_be_collected(recorded: Pytester) -> None:
    before = file(recorded).read_bytes()
    recorded.makeconftest(
        """
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_make_collect_report(collector):
            if collector.name == "TestTwo":
                return pytest.CollectReport(collector.nodeid, "failed", "no class today", None)
        """
    )
    run(recorded, "--trainability-prune", "--continue-on-collection-errors")
    assert file(recorded).read_bytes() == before


def test_entry_of_another_torch_is_reported_and_can_be_recorded_again(recorded: Pytester) -> None:
    file(recorded).write_text(
        file(recorded).read_text(encoding="utf-8").replace('"torch": "', '"torch": "1.'), encoding="utf-8"
    )
    result = run(recorded)
    result.assert_outcomes(passed=4)
    assert re.search(r"recorded with torch 1\.\S+: --trainability-baseline=update records them again", joined(result))
    assert run(recorded, "--trainability-baseline=update").ret == 0
    assert '"torch": "1.' not in file(recorded).read_text(encoding="utf-8")


def test_entry_of_another_device_is_compared_and_kept_next_to_a_new_one(recorded: Pytester) -> None:
    """Numbers on the CPU are compared with a baseline from CUDA: they agree up to round-off."""
    text = file(recorded).read_text(encoding="utf-8")
    file(recorded).write_text(
        text.replace('"cpu float32": {', '"cuda float32": {').replace('"device": "cpu"', '"device": "cuda"'),
        encoding="utf-8",
    )
    result = run(recorded, "-v")
    result.assert_outcomes(passed=4)
    assert "unchanged, recorded with device cuda" in joined(result)
    assert run(recorded, "--trainability-baseline=new").ret == 0
    assert set(entries(recorded)["test_tower"]["build"]) == {"cpu float32", "cuda float32"}
    assert run(recorded, "--trainability-prune").ret == 0
    assert set(entries(recorded)["test_tower"]["build"]) == {"cpu float32", "cuda float32"}


# Required number of models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("required", "status"), [("5", 0), ("6", 1)])
@pytest.mark.parametrize("terminal", [[], ["-p", "no:terminal"]], ids=["terminal", "no terminal"])
def test_a_session_must_measure_as_many_models_as_required(
    recorded: Pytester, required: str, status: int, terminal: list[str]
) -> None:
    result = run(recorded, f"--trainability-require={required}", *terminal)
    assert result.ret == status
    if status and not terminal:
        assert "5 measured, --trainability-require=6: too few" in joined(result)


def test_models_of_tests_that_cannot_fail_do_not_count(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest
        from small_nets import images, net

        def test_counts(trainability):
            assert trainability(net, images, seeds=1).log_gain < 100

        @pytest.mark.xfail
        def test_fails(trainability):
            trainability(net, images, seeds=1).check(log_gain=(-0.1, 0.1))

        @pytest.mark.xfail(strict=False)
        def test_passes_unexpectedly(trainability):
            trainability(net, images, seeds=1)

        def test_skips(trainability):
            trainability(net, images, seeds=1)
            pytest.skip("enough")
        """
    )
    assert run(project, "--trainability-require=1").ret == 0
    result = run(project, "--trainability-require=2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "1 measured (2 with nothing asserted), --trainability-require=2: too few" in joined(result)


def test_a_session_that_measures_nothing_does_not_satisfy_the_requirement(project: Pytester) -> None:
    project.makepyfile("def test_nothing():\n    pass")
    result = run(project, "--trainability-require=1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "0 measured" in joined(result)
    assert run(project, "--trainability-require=1", "--collect-only").ret == 0


def test_other_plugins_see_that_too_few_models_were_measured(project: Pytester) -> None:
    project.makeconftest(
        """
        class Late:
            def pytest_sessionfinish(self, session):
                print("exit status", int(session.exitstatus))

        def pytest_sessionstart(session):
            session.config.pluginmanager.register(Late())
        """
    )
    project.makepyfile("def test_nothing():\n    pass")
    assert "exit status 1" in joined(run(project, "-s", "--trainability-require=1"))


# Numbers from another machine -----------------------------------------------------------------------------------------


def test_measured_numbers_can_be_compared_and_accepted(
    recorded: Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAIN", "1.5")
    assert run(recorded, "--trainability-measured=measured").ret == 1
    capsys.readouterr()
    assert command.main(["compare", "measured"]) == command.DIFFERS
    assert re.search(r"test_tower › build › cpu float32\n(.*\n)* +log_gain +-\S+ → -\S+ nats", capsys.readouterr().out)
    assert command.main(["accept", "measured"]) == 0
    assert "accepted" in capsys.readouterr().out
    assert command.main(["compare", "measured"]) == 0
    assert "Nothing has changed by these tolerances" in capsys.readouterr().out
    run(recorded, "-k", "not Two").assert_outcomes(passed=3, deselected=1)


def test_measured_numbers_do_not_overwrite_the_baselines(recorded: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAIN", "1.5")
    before = file(recorded).read_bytes()
    result = run(recorded, "--trainability-measured=.")
    assert result.ret == 1
    assert "--trainability-measured must name a separate folder" in joined(result)
    assert file(recorded).read_bytes() == before


def test_paths_on_another_drive_are_shown_as_a_whole(recorded: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two drives of Windows there is no relative path. Here the system is made to say so."""

    def refuse(path: object, start: object = None) -> str:
        msg = f"path is on mount 'C:', start on mount 'D:': {path}"
        raise ValueError(msg)

    monkeypatch.setenv("GAIN", "1.5")
    monkeypatch.setattr(paths.os.path, "relpath", refuse)
    result = run(recorded, "test_suite.py::test_tower", "--tb=short")
    assert str(file(recorded)) in joined(result).replace(" ", "")
    result.assert_outcomes(failed=1)
    assert "INTERNALERROR" not in result.stdout.str()
    result = run(recorded, "--trainability-baseline=update", "--trainability-measured=measured")
    assert f"{file(recorded)}: {recorded.path / 'measured'} can hold only baselines below" in joined(result)


def test_other_dropout_masks_are_not_a_change(project: Pytester) -> None:
    """One more random number at the start of the forward pass changes every mask, but not the model."""
    source = """
        import torch
        from torch import nn
        from small_nets import images

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(8)])

            def forward(self, x):
                torch.rand(EXTRA)
                for layer in self.layers:
                    x = x + nn.functional.dropout(layer(x), 0.5) * (torch.rand(()) > 0.5)
                return x

        def test_net(trainability):
            trainability(Net, images, seeds=8).check_baseline()
        """
    project.makepyfile(test_it=source.replace("EXTRA", "0"))
    assert run(project, "--trainability-baseline=new").ret == 0
    for extra in range(1, 5):
        project.makepyfile(test_it=source.replace("EXTRA", str(extra)))
        run(project).assert_outcomes(passed=1)


def test_change_has_no_likely_cause_of_growth(recorded: Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower shrank the gradient before as well: growth does not explain the change."""
    monkeypatch.setenv("GAIN", "1.2")
    result = run(recorded, "test_suite.py::test_tower")
    result.assert_outcomes(failed=1)
    assert "likely cause" not in joined(result)


def test_command_takes_its_tolerances_from_the_option(
    recorded: Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAIN", "1.5")
    run(recorded, "--trainability-measured=measured")
    assert command.main(["compare", "measured", *(f"--tolerances={line}" for line in WIDE)]) == 0
    assert command.main(["compare", "measured", "--tolerances=gain=9"]) == command.CANNOT
    assert "--tolerances: unknown measure" in capsys.readouterr().err


def test_command_writes_only_next_to_test_modules_of_the_project(
    recorded: Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = recorded.path / "measured" / "elsewhere" / "__trainability__"
    measured.mkdir(parents=True)
    (measured / "test_suite.json").write_bytes(file(recorded).read_bytes())
    assert command.main(["accept", "measured"]) == command.CANNOT
    assert "a baseline must have a test module" in capsys.readouterr().err
    outside = recorded.path.parent / f"{recorded.path.name}-outside"
    outside.mkdir()
    (outside / "test_suite.py").write_text("")
    (recorded.path / "elsewhere").symlink_to(outside)
    assert command.main(["accept", "measured"]) == command.CANNOT
    assert "a baseline must lie below" in capsys.readouterr().err
    assert list(outside.iterdir()) == [outside / "test_suite.py"]


def test_nothing_is_accepted_if_one_file_cannot_be_read(
    recorded: Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAIN", "1.5")
    recorded.makepyfile(test_second_suite=SUITE)
    run(recorded, "--trainability-measured=measured")
    before = file(recorded).read_bytes()
    (recorded.path / "measured/__trainability__/test_second_suite.json").write_text("{")
    assert command.main(["accept", "measured"]) == command.CANNOT
    assert "test_second_suite.json: the baseline is not valid: it must be JSON" in capsys.readouterr().err
    assert file(recorded).read_bytes() == before


def test_control_characters_of_a_file_are_escaped(recorded: Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    evil = file(recorded).read_text(encoding="utf-8").replace("test_tower", "\\u001b]0;owned\\u0007\\u202e")
    measured = recorded.path / "measured" / "__trainability__"
    measured.mkdir(parents=True)
    (measured / "test_suite.json").write_text(evil, encoding="utf-8")
    command.main(["compare", "measured"])
    out = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07\\u202e › build" in out
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", out)


HOSTILE_NAMES = ["::error file=a.py::no", "##[error]no", "\x1b[31m\n::warning::no"]


def hostile_artifact(project: Pytester) -> None:
    """Put measured numbers with hostile names in every place of a file into the folder ``measured``."""
    (test,) = entries(project)["test_tower"].values()
    document: dict[str, Any] = {"schema": 1, "tests": {}}
    for name in HOSTILE_NAMES:
        entry = json.loads(json.dumps(test["cpu float32"]))
        entry["measures"][name] = {"names": ["w" * 70, name]}
        entry["measures"]["unused_parameters"] = {"names": ["w" * 70, name]}
        document["tests"][name] = {name: {"cpu float32": entry}}
        document["tests"].setdefault("test_tower", {"build": {"cpu float32": entry}})
    measured = project.path / "measured" / "__trainability__"
    measured.mkdir(parents=True)
    (measured / "test_suite.json").write_text(json.dumps(document), encoding="utf-8")


def obeyed(text: str) -> list[str]:
    """Return the lines of a log that GitHub's runner obeys, or a terminal."""
    return [line for line in text.split("\n") if re.search(r"^\s*::|##\[", line) or not line.isprintable()]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", None])
def test_the_command_prints_no_line_that_a_log_would_obey(
    recorded: Pytester, monkeypatch: pytest.MonkeyPatch, encoding: str | None
) -> None:
    """Also where the output is no terminal and has no encoding."""
    hostile_artifact(recorded)
    outputs = {}
    for name in ("stdout", "stderr"):
        outputs[name] = io.StringIO() if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")
        monkeypatch.setattr(sys, name, outputs[name])
    assert command.main(["compare", "measured"]) == command.DIFFERS
    assert command.main(["accept", "measured"]) == 0
    (recorded.path / "measured/__trainability__/::error::no.json").write_text("{")
    assert command.main(["compare", "measured"]) == command.CANNOT
    monkeypatch.undo()
    for output in outputs.values():
        output.seek(0)
        text = output.read()
        assert "error" in text
        assert obeyed(text.rstrip("\n")) == []


def test_a_session_prints_no_line_that_a_log_would_obey(project: Pytester) -> None:
    """Names of models, classes and measurements reach the terminal section, messages, and the file of baselines."""
    project.makepyfile(
        test_it=f"""
        import pytest, torch
        from torch import nn
        from small_nets import images, net

        NAMES = {HOSTILE_NAMES!r}

        def model(name):
            cls = type(name, (nn.Sequential,), {{}})
            def build():
                return nn.Sequential(*[cls(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)])
            build.__name__ = name
            return build

        @pytest.mark.parametrize("n", range(3))
        def test_pass(trainability, n):
            trainability(model(NAMES[n]), images, seeds=1, name=NAMES[n])

        @pytest.mark.parametrize("n", range(3))
        def test_fail(trainability, n):
            trainability(model(NAMES[n]), images, seeds=1, name=NAMES[n]).check(log_gain=(0, 0))

        @pytest.mark.parametrize("n", range(3))
        def test_plain_assert(trainability, n):
            result = trainability(model(NAMES[n]), images, seeds=1, steps="blocks")
            assert result.growth_rate > 10

        @pytest.mark.parametrize("n", range(3))
        def test_baseline(trainability, n):
            trainability(model(NAMES[n]), images, seeds=1).check_baseline()

        @pytest.mark.parametrize("n", range(3))
        def test_error(trainability, n):
            trainability(model(NAMES[n]), images, seeds=1, steps=NAMES[n] + "*")
        """
    )
    for style in ("short", "line", "native"):
        result = run(project, "-vv", f"--tb={style}", "--show-capture=no")
        result.assert_outcomes(passed=3, failed=12)
        assert "error" in result.stdout.str()
        written = [line for line in result.outlines if "NAMES" not in line]
        assert obeyed("\n".join(written)) == []


def test_a_baseline_needs_two_models_more_than_the_measures_for_the_constants_in_the_code(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import torch
        from torch import nn
        from small_nets import images

        BUILT = []

        def net():
            BUILT.append(1)
            return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

        def test_net(trainability):
            trainability(net, images, seeds=4).check_baseline()
            print(f"built {len(BUILT)} times")
        """
    )
    # Constants are recorded, and compared for a note also where no number has changed.
    assert "built 6 times" in joined(run(project, "--trainability-baseline=new", "-s"))
    result = run(project, "-s")
    result.assert_outcomes(passed=1)
    assert "built 6 times" in joined(result)
    path = file(project, "test_it")
    document = json.loads(path.read_text(encoding="utf-8"))
    for names in document["tests"].values():
        for entry in (entry for environments in names.values() for entry in environments.values()):
            entry.pop("settings", None)
            del entry["conditions"]["output"]
    path.write_text(json.dumps(document), encoding="utf-8")
    result = run(project, "-s")
    result.assert_outcomes(passed=1)
    assert "built 4 times" in joined(result)


def writer_of(folder: Path, count: int) -> BaselineWriter:
    """Return a writer after a session in which all tests were renamed, each in a file of its own."""
    writer = BaselineWriter.__new__(BaselineWriter)
    writer._collected, writer._narrowing, writer._files, writer._requests = Collected(), [], {}, {}
    writer._sees_all_files = True
    for number in range(count):
        file, measures = folder / f"test_{number}.py", {"log_gain": Series("nats", "linear", {"": (float(number),)})}
        entry = Entry({"device": "cpu", "dtype": "float32"}, {}, (0,), ("",), measures)
        path = baseline_files.baseline_path(file)
        writer._files[path] = {"test_old": {"": {entry.key: entry}}}
        writer._collected.files[file] = {False}
        writer._collected.tests[f"test_{number}.py::test_new"] = file
        writer._requests[str(number)] = [BaselineRequest(path, "test_new", "", "", "missing", entry, "")]
    writer._passed = dict.fromkeys(writer._collected.tests, True)
    return writer


def test_renamed_entries_are_found_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To compare each unused entry with each request, or each file with each test, would be quadratic."""
    count, written, read = 12, [], []
    to_plain = baseline_files.entry_to_plain
    monkeypatch.setattr(baseline_files, "entry_to_plain", lambda entry: written.append(entry) or to_plain(entry))
    writer = writer_of(tmp_path, count)

    class Passed(dict[str, bool]):
        def get(self, test: str, default: Any = None) -> Any:
            read.append(test)
            return super().get(test, default)

    writer._passed = Passed(writer._passed)
    unused = list(writer._unused())
    assert [(path.stem, test) for path, test, _ in unused] == sorted((f"test_{n}", "test_old") for n in range(count))
    assert list(writer._renamed(unused)) == ["test_new › "] * count
    assert len(written) == 2 * count and len(read) == count
