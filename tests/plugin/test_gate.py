"""Tests without code: tables of ``trainability.toml`` and ``pyproject.toml`` are tests as any other."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from pytest_trainability.commands import main

if TYPE_CHECKING:
    from _pytest.pytester import HookRecorder, Pytester

GATE = """
[test.tower]
model = "small_nets:tower"
inputs = "4x8"
seeds = 1
parameters = {depth = [2, 3]}
bounds = {log_gain = "within(100)"}
marks = ["slow", "timeout(60)"]

[test.broken]
model = "small_nets:broken"
inputs = "small_nets:images"
seeds = 1
bounds.log_gain = "within(0.001)"

[test.known]
model = "small_nets:broken"
inputs = "4x8"
seeds = 1
bounds.log_gain = "within(0.001)"
marks = ["xfail(reason='known')"]

[test.absent]
model = "small_nets:broken"
skip = {missing = "no_such_module"}

[test.never]
model = "small_nets:broken"
skip = {reason = "not now"}
"""
MORE_NETS = """
import torch
from torch import nn

images = torch.linspace(-1, 1, 32).reshape(4, 8)


def tower(depth):
    return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.Tanh())])


def broken():
    return tower(6)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        raise KeyError("wrong key")


net = tower(2)


def raising():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def gate(project: Pytester) -> Pytester:
    """A project with a file of tests."""
    project.makepyfile(small_nets=MORE_NETS)
    project.makefile(".toml", trainability=GATE)
    project.makeini("[pytest]\nmarkers =\n    slow\n    timeout\n")
    return project


def one_test(project: Pytester, text: str) -> None:
    """Write a file with one test on small inputs."""
    project.makefile(
        ".toml", trainability=f'[test.a]\nmodel = "small_nets:broken"\ninputs = "4x8"\nseeds = 1\n{text}\n'
    )


def items(project: Pytester, *arguments: str) -> list[str]:
    """Return the node ids of the tests that are selected."""
    (call,) = project.inline_run("--collect-only", "-q", *arguments).getcalls("pytest_collection_finish")
    return [item.nodeid for item in call.session.items]


def outcomes(run: HookRecorder) -> dict[str, str]:
    """Return the outcome of each test by its node id."""
    reports = run.getreports("pytest_runtest_logreport")
    return {report.nodeid: report.outcome for report in reports if report.when == "call" or report.outcome == "skipped"}


TOWERS = ["trainability.toml::tower[depth=2]", "trainability.toml::tower[depth=3]"]
ALL = [*TOWERS, *(f"trainability.toml::{name}" for name in ("broken", "known", "absent", "never"))]


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        ((), ALL),
        (("trainability.toml",), ALL),
        (("-k", "tower and 3"), TOWERS[1:]),
        (("-m", "slow"), TOWERS),
        (("-m", "trainability and not slow and not xfail"), [ALL[2], *ALL[4:]]),
        ((TOWERS[0],), TOWERS[:1]),
        (("trainability.toml::tower",), TOWERS),
        (("trainability.toml::broken", "--deselect", TOWERS[0]), [ALL[2]]),
    ],
)
def test_tests_are_selected_as_others(gate: Pytester, arguments: tuple[str, ...], selected: list[str]) -> None:
    # The order of the tests that a name without parameters selects depends on the version of pytest.
    assert sorted(items(gate, *arguments)) == sorted(selected)


def test_a_session(gate: Pytester) -> None:
    gate.makepyfile(test_other="def test_other(): pass")
    result = gate.runpytest_inprocess("--junitxml=junit.xml", "--trainability-json=report.json", "-rsx")
    result.assert_outcomes(passed=3, failed=1, xfailed=1, skipped=2)
    text = result.stdout.str()
    assert "no_such_module is not installed" in text and "not now" in text and "known" in text
    cases = {case.get("name"): case for case in ElementTree.parse(gate.path / "junit.xml").iter("testcase")}
    assert cases["tower[depth=2]"].get("classname") == "trainability.toml"
    assert cases["broken"].find("failure") is not None
    report = json.loads((gate.path / "report.json").read_text())
    found = {check["test"]: (check["status"], check["file"], check["line"]) for check in report["checks"]}
    assert found == {
        TOWERS[0]: ("held", "trainability.toml", 1),
        TOWERS[1]: ("held", "trainability.toml", 1),
        ALL[2]: ("failed", "trainability.toml", 9),
        ALL[3]: ("expected failure", "trainability.toml", 15),
    }


def test_a_failure_stands_at_its_table(gate: Pytester) -> None:
    result = gate.runpytest_inprocess("trainability.toml::broken")
    lines = result.stdout.lines
    start = lines.index(next(line for line in lines if re.fullmatch(r"_+ broken _+", line)))
    assert lines[start + 1 : start + 3] == ["", ">   [test.broken]"]
    assert re.match(r"E   pytest_trainability\.TrainabilityFailure: log_gain -\d", lines[start + 3])
    result.stdout.fnmatch_lines(["E     reproduce      pytest trainability.toml::broken --trainability-*"])
    result.stdout.fnmatch_lines(
        ["trainability.toml:9: TrainabilityFailure", "FAILED trainability.toml::broken - log_gain -*"]
    )


def test_the_error_of_a_model_leads_to_its_code(gate: Pytester) -> None:
    gate.makefile(".toml", trainability='[test.a]\nmodel = "small_nets:Failing"\ninputs = "4x8"\n')
    text = gate.runpytest_inprocess().stdout.str()
    assert 'raise KeyError("wrong key")' in text
    assert '>   model = "small_nets:Failing"' in text and "trainability.toml:2: ModelError" in text


def test_frames_of_the_package_are_not_shown(gate: Pytester) -> None:
    gate.makefile(".toml", trainability='[test.a]\nmodel = "small_nets:raising"\ninputs = "4x8"\n')
    text = gate.runpytest_inprocess().stdout.str()
    assert 'raise RuntimeError("no weights")' in text and "building.py" not in text


HERE = "# here"
AT_KEYS = [
    f"loss = 'small_nets:none' {HERE}",
    f"targets = 'no_data:batch' {HERE}\nloss = 'mse'",
    f"loss = 'mse' {HERE}",
    f"parameters = {{width = [1]}} {HERE}",
    f"contract = 'none.py' {HERE}",
    f"contract = {{'*.bias' = 'zeroes'}} {HERE}",
    f"steps = 'layers'\nexponents = 99 {HERE}",
    f"exponents = 1\nsteps = 'block*' {HERE}",
    f"bounds.log_gain = 'within(9)'\nbounds.excess_loss = '<= 3' {HERE}",
    f"bounds.log_gain = 'within(9)'\nbounds.gradient_norm = '>= 0 excluding *.nothing' {HERE}",
]


def test_an_error_stands_at_its_key(gate: Pytester) -> None:
    head = "seeds = 1\ninputs = '4x8'\nmodel = 'small_nets:broken'\n"
    text = "\n".join(f"[test.k{number}]\n{head}{keys}" for number, keys in enumerate(AT_KEYS))
    gate.makefile(".toml", trainability=text)
    result = gate.runpytest_inprocess("--trainability-json=report.json")
    expected = [number for number, line in enumerate(text.split("\n"), start=1) if HERE in line]
    errors = json.loads((gate.path / "report.json").read_text(encoding="utf-8"))["errors"]
    assert [error["line"] for error in errors] == expected
    places = (re.fullmatch(r"trainability\.toml:(\d+): \w+Error", line) for line in result.outlines)
    assert [int(place[1]) for place in places if place] == expected
    assert sum(line.startswith(">   ") and line.endswith(HERE) for line in result.outlines) == len(expected)


# Errors of the file ---------------------------------------------------------------------------------------------------

INVALID = """
[test.a]
modle = "small_nets:tower"
bounds = {log_gian = "within(3)"}
marks = ["slwo"]
[test.b]
model = "small_nets:tower"
seeds = 0
"""


def test_all_errors_of_a_file_are_told_at_once(gate: Pytester) -> None:
    gate.makefile(".toml", trainability=INVALID)
    gate.makepyfile(test_other="def test_other(): pass")
    result = gate.runpytest_inprocess("--continue-on-collection-errors")
    result.assert_outcomes(passed=1, errors=1)
    lines = [line.partition(" such as ")[0] for line in result.outlines if line.startswith("trainability.toml:")]
    assert lines == [
        "trainability.toml:1: test.a: it must have the key model,",
        "trainability.toml:2: test.a.modle: unknown key 'modle'. Did you mean 'model'?",
        "trainability.toml:3: test.a.bounds.log_gian: Unknown measure 'log_gian'. Did you mean 'log_gain'?",
        "trainability.toml:7: test.b.seeds: seeds must be a number of at least 1, a list of whole numbers from 0 on, or text",
    ]


def test_an_unknown_mark_follows_the_setting(gate: Pytester) -> None:
    one_test(gate, 'marks = ["slwo"]')
    result = gate.runpytest_inprocess("--strict-markers")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["trainability.toml:5: test.a.marks: unknown mark 'slwo'. Did you mean 'slow'?"])
    result = gate.runpytest_inprocess("-W", "default")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["trainability.toml:5", "*trainability.toml:5: PytestUnknownMarkWarning: Unknown pytest.mark.slwo*"]
    )


# Where files are found ------------------------------------------------------------------------------------------------

PROJECT = '[tool.trainability.test.a]\nmodel = "small_nets:broken"\n'


@pytest.mark.parametrize(
    ("file", "text", "header"),
    [
        ("trainability", "", "test.NAME"),
        ("trainability", "# no test yet", "test.NAME"),
        ("trainability", "[test]", "test.NAME"),
        ("pyproject", "[tool.trainability]", "tool.trainability.test.NAME"),
        ("pyproject", "[tool]\ntrainability.test = {}", "tool.trainability.test.NAME"),
    ],
)
def test_a_file_without_a_test_is_a_warning(project: Pytester, file: str, text: str, header: str) -> None:
    project.makefile(".toml", **{file: text})
    result = project.runpytest_inprocess("-W", "default")
    result.assert_outcomes(warnings=1)
    result.stdout.fnmatch_lines(
        [f"*{file}.toml:1: *{file}.toml holds no test, and nothing is measured. A test is a table [[]{header}] with*"]
    )
    strict = project.runpytest_inprocess("-W", "error")
    strict.assert_outcomes(errors=1)
    strict.stdout.fnmatch_lines([f"{file}.toml holds no test, and nothing is measured.*"])


def test_the_files_of_the_root_are_found_with_testpaths(gate: Pytester) -> None:
    gate.makeini("[pytest]\ntestpaths = tests\nmarkers =\n    slow\n    timeout\n")
    gate.mkdir("tests")
    (gate.path / "tests" / "test_other.py").write_text("def test_other(): pass")
    (gate.path / "tests" / "trainability.toml").write_text(PROJECT.replace("tool.trainability.", ""))
    (gate.path / "pyproject.toml").write_text(PROJECT)
    inner = ["tests/test_other.py::test_other", "tests/trainability.toml::a"]
    assert items(gate) == [*inner, *ALL, "pyproject.toml::a"]
    assert items(gate, "tests") == inner
    assert items(gate, "pyproject.toml") == ["pyproject.toml::a"]
    assert items(gate, "--ignore=pyproject.toml", "--ignore=trainability.toml") == inner


def test_pyproject_counts_in_the_root_only(gate: Pytester) -> None:
    gate.mkdir("inner")
    (gate.path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (gate.path / "inner" / "pyproject.toml").write_text(PROJECT)
    assert items(gate) == ALL
    assert items(gate, "inner/pyproject.toml") == ["inner/pyproject.toml::a"]


def test_modules_next_to_the_file_are_imported(gate: Pytester) -> None:
    """From another folder as well."""
    folder = gate.mkdir("inner")
    (folder / "inner_nets.py").write_text(MORE_NETS)
    (folder / "trainability.toml").write_text('[test.a]\nmodel = "inner_nets:broken"\ninputs = "4x8"\nseeds = 1\n')
    gate.runpytest_inprocess("inner").assert_outcomes(passed=1)


# Settings -------------------------------------------------------------------------------------------------------------


def record(run: HookRecorder) -> dict[str, Any]:
    (plain,) = (r.trainability[0] for r in run.getreports("pytest_runtest_logreport") if hasattr(r, "trainability"))
    return dict(plain)


def test_keys_go_before_options_and_options_before_the_ini_file(gate: Pytester) -> None:
    gate.makeini(
        "[pytest]\ntrainability_dtype = float64\ntrainability_bounds =\n    log_gain <= 100\n    lyapunov_max <= 99\n"
    )
    one_test(gate, 'bounds.log_gain = "<= 98"\nexponents = 2\ntrain = false\nsteps = "layers"')
    found = record(gate.inline_run("--trainability-seeds=2", "--trainability-bounds=nonfinite <= 97"))
    assert found["seeds"] == [0] and found["dtype"] == "float64" and found["mode"] == "eval"
    assert {v["measure"]: v["high"] for v in found["verdicts"]} == {"log_gain": 98, "lyapunov_max": 99, "nonfinite": 97}
    one_test(gate, 'dtype = "float32"\npreset = "mlp"\nbounds.log_gain = "<= 98"')
    found = record(gate.inline_run("--trainability-dtype=float64"))
    assert found["dtype"] == "float32"
    verdicts = {v["measure"]: v["high"] for v in found["verdicts"]}
    assert verdicts["log_gain"] == 98 and verdicts["activation_rms"] == 20


def test_targets_and_loss(gate: Pytester) -> None:
    one_test(gate, 'targets = "ids:4<8"\nloss = "cross_entropy"')
    assert record(gate.inline_run())["gradient_of"] == "the loss"


def test_fixtures_that_are_used_everywhere_are_set_up(gate: Pytester) -> None:
    gate.makeconftest(
        "import pytest\nused = []\n"
        "@pytest.fixture(autouse=True, scope='module')\ndef of_module(request): used.append(request.module.__name__)\n"
        "@pytest.fixture(autouse=True)\ndef of_test(request): used.append(request.node.name)\n"
        "def pytest_sessionfinish(): print(used)\n"
    )
    one_test(gate, "")
    result = gate.runpytest_inprocess("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*'trainability', 'a'*"])


def test_a_finished_module_has_the_same_weights_in_every_session(gate: Pytester) -> None:
    gate.makefile(".toml", trainability='[test.a]\nmodel = "small_nets:net"\ninputs = "4x8"\n')
    assert record(gate.inline_run())["log_gain"] == record(gate.inline_run())["log_gain"]


# Contracts and baselines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", ['{"**" = "default_bias()"}', '"contracts.py"', '"contracts.py:OTHER"'])
def test_a_contract_is_checked(gate: Pytester, contract: str) -> None:
    gate.makepyfile(contracts="from pytest_trainability import init\nCONTRACT = OTHER = {'**': init.default_bias()}")
    one_test(gate, f"contract = {contract}")
    gate.runpytest_inprocess().assert_outcomes(passed=1)
    one_test(gate, 'contract = {"**" = "zeros()"}')
    result = gate.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    assert "zeros" in result.stdout.str()


@pytest.mark.parametrize(
    ("baseline", "file"),
    [("true", "__trainability__/trainability.toml.json"), ('"numbers/of_a.json"', "numbers/of_a.json")],
)
def test_a_baseline_is_recorded_and_compared(gate: Pytester, baseline: str, file: str) -> None:
    one_test(gate, f"baseline = {baseline}")
    gate.runpytest_inprocess().assert_outcomes(failed=1)
    gate.runpytest_inprocess("--trainability-baseline=new").assert_outcomes(passed=1)
    assert (gate.path / file).is_file()
    gate.runpytest_inprocess().assert_outcomes(passed=1)
    gate.makepyfile(small_nets=MORE_NETS.replace("tower(6)", "tower(7)"))
    result = gate.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    assert "changed since the baseline" in result.stdout.str()


def test_a_baseline_that_no_test_uses_is_pruned(gate: Pytester) -> None:
    path = gate.path / "__trainability__" / "trainability.toml.json"
    one_test(gate, "baseline = true\ntolerances.log_gain = 1")
    gate.runpytest_inprocess("--trainability-baseline=new")
    one_test(gate, "")
    result = gate.runpytest_inprocess()
    assert "no test uses a" in result.stdout.str()
    assert path.is_file()
    gate.runpytest_inprocess("--trainability-prune").assert_outcomes(passed=1)
    assert not path.exists()


NAMED = (
    'model = "small_nets:tower"\nparameters = {depth = [1]}\ninputs = "4x8"\nseeds = 1\nbaseline = "numbers/all.json"\n'
)


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_unused_entries_of_a_named_baseline_are_pruned(gate: Pytester, workers: tuple[str, ...]) -> None:
    if workers:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (gate.mkdir("deep") / "trainability.toml").write_text(f"[test.c]\n{NAMED.replace('numbers', '../numbers')}")
    gate.makefile(".toml", trainability=f"[test.a]\n{NAMED}[test.b]\n{NAMED}")
    gate.runpytest_inprocess("--trainability-baseline=new").assert_outcomes(passed=3)
    path = gate.path / "numbers" / "all.json"
    assert list(json.loads(path.read_text(encoding="utf-8"))["tests"]) == ["a[depth=1]", "b[depth=1]", "c[depth=1]"]
    gate.makefile(".toml", trainability=f"[test.a]\n{NAMED}")
    # The tables of other folders have not been collected, and may use the file.
    gate.runpytest_inprocess("trainability.toml", "--trainability-prune", *workers).assert_outcomes(passed=1)
    assert len(json.loads(path.read_text(encoding="utf-8"))["tests"]) == 3
    gate.runpytest_inprocess("--trainability-prune", *workers).assert_outcomes(passed=2)
    assert list(json.loads(path.read_text(encoding="utf-8"))["tests"]) == ["a[depth=1]", "c[depth=1]"]


def test_the_measured_numbers_of_a_named_baseline_are_accepted(
    gate: Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    one_test(gate, 'baseline = "numbers/of_a.json"')
    gate.runpytest_inprocess("--trainability-measured=measured")
    capsys.readouterr()
    assert main(["accept", "measured"]) == 0
    assert "numbers/of_a.json: 1 accepted." in capsys.readouterr().out.replace("\\", "/")
    gate.runpytest_inprocess().assert_outcomes(passed=1)
    gate.makepyfile(small_nets=MORE_NETS.replace("tower(6)", "tower(7)"))
    gate.runpytest_inprocess("--trainability-measured=measured")
    # A report in the same folder is no baseline.
    (gate.path / "measured" / "report.json").write_text("{}")
    capsys.readouterr()
    assert main(["compare", "measured"]) == 1
    out = capsys.readouterr().out
    assert "report.json: left out. No table of a trainability.toml below" in out and "a › broken › cpu float32" in out


def test_a_file_of_tables_that_cannot_be_read_is_an_error_of_accept(
    gate: Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    (gate.mkdir("measured") / "a.json").write_text("{}")
    gate.makefile(".toml", trainability="[test.a\n")
    assert main(["accept", "measured"]) == 2
    assert (
        "trainability.toml names baselines, and must be read. line 1: the file is no valid" in capsys.readouterr().err
    )


# Other plugins --------------------------------------------------------------------------------------------------------


def test_the_last_failures_are_run_again(gate: Pytester) -> None:
    gate.runpytest_inprocess("-p", "cacheprovider").assert_outcomes(passed=2, failed=1, xfailed=1, skipped=2)
    assert list(outcomes(gate.inline_run("-p", "cacheprovider", "--lf"))) == ["trainability.toml::broken"]


def test_a_worker_measures_the_same(gate: Pytester) -> None:
    """The file of the root among them, which ``testpaths`` does not choose."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    gate.mkdir("tests")
    gate.makeini("[pytest]\ntestpaths = tests\nmarkers =\n    slow\n    timeout\n")
    gate.runpytest_inprocess("-n", "1").assert_outcomes(passed=2, failed=1, xfailed=1, skipped=2)


def test_a_test_never_gets_the_model_of_another_folder(project: Pytester) -> None:
    for folder, width in (("first", 4), ("second", 8)):
        place = project.mkdir(folder)
        (place / "same_name.py").write_text(
            f"from torch import nn\n\ndef build():\n    return nn.Linear({width}, {width})\n"
        )
        text = (
            f'[test.a]\nmodel = "same_name:build"\ninputs = "2x{width}"\nseeds = 1\nbounds.log_gain = "within(100)"\n'
        )
        (place / "trainability.toml").write_text(text)
    result = project.runpytest_inprocess("-p", "no:xdist")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["E * there must be one module 'same_name'. 'same_name:build' is in *second*, and *first*"]
    )
    project.runpytest_inprocess("second").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "header", ["[tool]\ntrainability.test.a", "[ tool . trainability ]\ntest.a", "[tool.'trainability']\ntest.a"]
)
def test_the_table_of_a_project_is_found_in_any_spelling(project: Pytester, header: str) -> None:
    project.makepyprojecttoml(f"{header} = {{model = 'small_nets:net', skip = {{reason = 'not now'}}}}\n")
    assert items(project) == ["pyproject.toml::a"]
    project.makepyprojecttoml("[project]\nname = 'x'\nversion = '1'\ndependencies = ['pytest-trainability']\n")
    assert items(project) == []
