"""The terminal section, from records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_trainability.records.reports import (
    BaselineChange,
    BaselineRecord,
    BaselineSummary,
    CheckRecord,
    VerdictRecord,
)
from pytest_trainability.records.session import CheckOutcome, ErrorRecord, Outcome, SessionRecord
from pytest_trainability.report import terminal
from pytest_trainability.report.terminal import Line, baselines

MakeRecord = Callable[..., CheckRecord]
MakeVerdict = Callable[..., VerdictRecord]


def section(checks: Sequence[tuple[CheckRecord, Outcome]], **options: Any) -> list[Line]:
    """Return the lines of a session with these checks."""
    return terminal.section(SessionRecord(tuple(CheckOutcome(*check) for check in checks)), **options)


def rows(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.text.startswith(("  ✔ ", "  ○ ", "  ✘ ", "  x "))]


@pytest.mark.parametrize(
    ("holds", "marginal", "outcome", "mark", "color"),
    [
        (True, False, "passed", "✔", "green"),
        (True, True, "passed", "✔", "yellow"),
        (False, False, "failed", "✘", "red"),
        (False, True, "failed", "✘", "red"),
        (None, False, "passed", "○", "yellow"),
        (None, False, "failed", "✘", "red"),
        # The failure was caught, for instance by pytest.raises.
        (False, False, "passed", "✘", "red"),
        (False, False, "xfailed", "x", "yellow"),
    ],
)
def test_each_check_has_a_line_in_its_color(
    make_record: MakeRecord,
    make_verdict: MakeVerdict,
    holds: bool | None,
    marginal: bool,
    outcome: Outcome,
    mark: str,
    color: str,
) -> None:
    verdicts = [] if holds is None else [make_verdict(holds=holds, marginal=marginal)]
    (row,) = rows(section([(make_record(*verdicts), outcome)]))
    assert row.text.split()[0] == mark
    assert row.color == color
    assert "test_tower" in row.text
    assert "4 × Linear" in row.text
    assert row.text.endswith("log gain -14.40 ± 0.30 nats")


def test_the_total_counts_checks_that_hold(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good, bad = make_record(make_verdict(holds=True)), make_record(make_verdict())
    assert section([(good, "passed"), (bad, "failed"), (good, "passed")])[-1] == Line(
        "2 of 3 hold, 1 failed, measured in 0.8 s", "red"
    )
    assert section([(good, "passed")])[-1] == Line("1 of 1 hold, measured in 0.2 s", "green")


def test_an_expected_failure_is_no_failure(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good, bad = make_record(make_verdict(holds=True)), make_record(make_verdict())
    lines = section([(good, "passed"), (bad, "xfailed")])
    assert lines[-1] == Line("1 of 2 hold, 1 expected to fail, measured in 0.5 s", "green")
    # There are no details, and with -q no line.
    assert not any("must" in line.text for line in lines)
    assert len(section([(bad, "xfailed")], verbosity=-1)) == 1


def test_what_could_not_be_measured_is_listed_and_counted(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    errors = [ErrorRecord(f"test_init.py::test_{i}", "ModelError", "the model raised an error") for i in range(2)]
    held = CheckOutcome(make_record(make_verdict(holds=True)), "passed")
    session = SessionRecord((held,), tuple(errors))
    lines = terminal.section(session, errors_explained=True)
    assert [line.text for line in lines if line.text.startswith("  ! ")] == [
        "  ! test_0  ModelError: the model raised an error",
        "  ! test_1  ModelError: the model raised an error",
    ]
    assert lines[-1] == Line("1 of 3 hold, 2 could not be measured, measured in 0.2 s", "red")
    # Where pytest has not shown them, the messages are not cut.
    long = tuple(replace(error, message="no way " * 30) for error in errors)
    text = " ".join(line.text for line in terminal.section(replace(session, errors=long)))
    assert " ".join(text.split()).count("no way") == 60


def test_an_expected_error_is_a_row_and_no_failure(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    error = ErrorRecord("test_init.py::test_e", "ModelError", "no " * 50, expected=True)
    session = SessionRecord((CheckOutcome(make_record(make_verdict(holds=True)), "passed"),), (error,))
    *_, row, total = terminal.section(session)
    assert row.text.startswith("  x test_e  ModelError: no no")
    assert (len(row.text), row.color) == (80, "yellow"), "one line, as nothing has to be done about it"
    assert total == Line("1 of 2 hold, 1 expected to fail, measured in 0.2 s", "green")
    assert terminal.section(session, verbosity=-1) == [total]


def test_what_a_test_failed_by_is_shown_where_pytest_has_not(
    make_record: MakeRecord, make_verdict: MakeVerdict
) -> None:
    record = make_record(make_verdict(holds=True))
    session = SessionRecord((CheckOutcome(record, "failed", "KeyError: 'a'"),))
    texts = [[line.text for line in terminal.section(session, errors_explained=shown)] for shown in (False, True)]
    assert ["  failed by      KeyError: 'a'" in text for text in texts] == [True, False]


def test_a_failure_that_pytest_has_explained_is_one_line(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    record = make_record(make_verdict(), cautions=("a caution",), notes=("a note",))
    session = SessionRecord((CheckOutcome(record, "failed"),))
    explained = terminal.section(session, explained={(record.test, record.name)})
    assert [line.text.split()[0] for line in explained] == ["test_init.py", "✘", "0"]
    verbose = "\n".join(
        line.text for line in terminal.section(session, explained={(record.test, record.name)}, verbosity=1)
    )
    assert "✘ log_gain     -14.40 ± 0.30 nats, must lie in [-5, 5]" in verbose
    assert not any(part in verbose for part in ("a caution", "a note", "reproduce", "along"))
    text = "\n".join(line.text for line in terminal.section(session, verbosity=1))
    assert [text.count(part) for part in ("a caution", "a note", "reproduce", "along")] == [1, 1, 1, 1]


def test_a_measurement_without_an_assertion_is_counted(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    lines = section([(make_record(), "passed"), (make_record(make_verdict(holds=True)), "passed")])
    assert lines[-1] == Line("1 of 2 hold, 1 asserts nothing, measured in 0.5 s", "yellow")
    assert section([(make_record(asserted=True), "passed")])[-1].color == "green"


def test_verbose_shows_what_was_read_and_the_whole_steps(make_record: MakeRecord) -> None:
    record = make_record(readings=(("gradient_norm", "1e-9 (a) to 2 (b)"),), steps="9 × " + "y" * 40)
    plain, verbose = ("\n".join(line.text for line in section([(record, "passed")], verbosity=v)) for v in (0, 1))
    assert "gradient_norm  1e-9 (a) to 2 (b)" in verbose
    assert "gradient_norm" not in plain
    assert "y…" in plain
    assert f"steps          {record.steps}" in verbose


def test_a_heading_says_which_gradient_was_measured(make_record: MakeRecord) -> None:
    record = make_record(gradient_of="a random functional of the output")
    wide, narrow = (section([(record, "passed")], width=width) for width in (120, 80))
    assert wide[0].text.endswith("seeds 0-3 · gradient of a random functional of the output")
    assert [line.text for line in narrow[:2]] == [
        "test_init.py · cpu · float32 · train · per sample · seeds 0-3",
        "  gradient of a random functional of the output",
    ]


def test_failures_and_expected_failures_differ_in_ascii(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    bad = make_record(make_verdict())
    checks = [(bad, "failed"), (bad, "xfailed"), (make_record(), "passed"), (make_record(asserted=True), "passed")]
    signs = [line.text[2] for line in section(checks, encoding="ascii") if line.text[3:7] == " tes"]
    assert len(set(signs)) == 4


def test_checks_with_the_same_conditions_share_a_heading(make_record: MakeRecord) -> None:
    lines = section([(make_record(), "passed"), (make_record(), "passed"), (make_record(device="cuda:0"), "passed")])
    heads = [line.text for line in lines if "float32" in line.text]
    assert len(heads) == 2
    assert all("per sample · seeds 0-3" in head for head in heads)


def test_the_name_of_a_measurement_is_shown(make_record: MakeRecord) -> None:
    assert "test_tower (student)" in rows(section([(make_record(name="student"), "passed")]))[0].text


def test_quiet_hides_checks_that_hold(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good, bad = make_record(make_verdict(holds=True)), make_record(make_verdict(), test="test_init.py::test_bad")
    assert [row.text.split()[1] for row in rows(section([(good, "passed"), (bad, "failed")], verbosity=-1))] == [
        "test_bad"
    ]
    assert section([(good, "passed")], verbosity=-1) == [Line("1 of 1 hold, measured in 0.2 s", "green")]


def test_verbose_shows_every_bound(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    record = make_record(make_verdict(holds=True, low=-20.0), notes=("a note",))
    assert "must lie in" not in "\n".join(line.text for line in section([(record, "passed")]))
    text = "\n".join(line.text for line in section([(record, "passed")], verbosity=1))
    for part in ("must lie in [-20, 5]", "along depth", "a note", "0.2 s"):
        assert part in text


LONG = {
    "test": "tests/models/test_initialization_of_encoders.py::TestEncoder::test_that_it_trains[bert-base-uncased-float32]",
    "name": "the student, distilled",
    "steps": "24 × TransformerEncoderLayerWithRotaryEmbedding",
    "seeds": tuple(range(0, 40, 2)),
    "step_names": tuple(f"model.encoder.layer.{i}.attention.self.query" for i in range(4)),
    "device": "cuda:0",
    "dtype": "bfloat16",
    "notes": (
        "the samples interact (BatchNorm in training mode), so that one joint frame was used for the whole batch",
    ),
    "cautions": ("not on the chain: 12 × TransformerEncoderLayerWithRotaryEmbedding that lie on a second tower",),
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("verbosity", [-1, 0, 1])
@pytest.mark.parametrize("held", [True, False])
def test_lines_stay_within_the_terminal(
    make_record: MakeRecord, make_verdict: MakeVerdict, width: int, verbosity: int, held: bool
) -> None:
    where = f"{LONG['step_names'][0]}.weight"  # type: ignore[index]
    verdicts = [
        make_verdict(measure=m, holds=held, where=where, elements=99, violations=9, worst=((where, 1e-9),))
        for m in ("log_gain", "relative_gradient_norm")
    ]
    record = make_record(*verdicts, **LONG)
    lines = [line.text for line in section([(record, held)], width=width, verbosity=verbosity)]
    assert [line for line in lines if len(line) > width and "reproduce" not in line] == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "no such encoding"])
def test_every_line_can_be_written_on_the_terminal(
    make_record: MakeRecord, make_verdict: MakeVerdict, encoding: str
) -> None:
    record = make_record(make_verdict(), test="test_größe.py::test_日本")
    for line in section([(record, "failed")], encoding=encoding, verbosity=1):
        line.text.encode("ascii" if encoding.startswith("no") else encoding)


def test_signs_are_shown_if_the_encoding_has_them(make_record: MakeRecord) -> None:
    assert any("✔" in line.text for line in section([(make_record(asserted=True), "passed")], encoding="utf-8"))


@pytest.mark.parametrize("changes", [{"growth": (), "step_names": ()}, {"log_gain": float("-inf")}, {"seconds": 0.0}])
def test_odd_records_are_shown(make_record: MakeRecord, make_verdict: MakeVerdict, changes: dict[str, Any]) -> None:
    for verbosity in (-1, 0, 1):
        assert section([(make_record(make_verdict(), **changes), "failed")], verbosity=verbosity)


def test_seeds_are_a_ceiling_if_bounds_were_settled_early(make_record: MakeRecord) -> None:
    early = make_record(seeds=(0, 1), seeds_requested=(0, 1, 2, 3))
    assert section([(early, "passed")])[0].text.endswith("seeds 0-3 at most")
    assert section([(make_record(), "passed")])[0].text.endswith("seeds 0-3")
    assert "settled        after 2 of 4 seeds" in "\n".join(
        line.text for line in section([(early, "passed")], verbosity=1)
    )


def test_a_marginal_pass_names_the_seeds_that_would_settle_it(
    make_record: MakeRecord, make_verdict: MakeVerdict
) -> None:
    verdict = make_verdict(holds=True, marginal=True, low=-14.5, seeds_needed=23)
    lines = section([(make_record(verdict), "passed")])
    text = " ".join(" ".join(line.text.split()) for line in lines if line.color == "yellow")
    assert text.endswith(
        "log_gain -14.40 ± 0.30 nats, mean within [-14.7, -14.1], must lie in [-14.5, 5], "
        "marginal: about 23 seeds would settle it"
    )


MOVED = BaselineChange("log_gain", "moved", old=0.22, new=1.77, shift=1.55, tolerance=0.3, unit="nats")
GREW = BaselineChange(
    "gradient_norm", "moved", element="w", old=0.1, new=0.2, shift=0.693, tolerance=0.3, scale="log", considered=7
)
GONE = BaselineChange("gradient_norm", "vanished", elements=("a", "b", "c"))


def baseline(status: Any, *changes: BaselineChange) -> BaselineRecord:
    file = "__trainability__/test_init.json"
    return BaselineRecord(
        status, file, "test_tower › Tower › cpu float32", changes, "torch 2.6", "pytest --x", ("log_gain",)
    )


@pytest.mark.parametrize(("old", "new", "said"), [(0.0, 7.13, "no longer zero"), (7.13, 0.0, "zero now")])
def test_a_change_from_or_to_zero_has_no_factor(make_record: MakeRecord, old: float, new: float, said: str) -> None:
    moved = BaselineChange("gradient_norm", "moved", "w", old=old, new=new, shift=13.0, tolerance=0.3, scale="log")
    text = "\n".join(line.text for line in section([(make_record(baseline=baseline("changed", moved)), "failed")]))
    assert f"1 of 1 moved, {said}: w ({old:g} → {new:g})" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_changed_baseline_shows_old_and_new_values(make_record: MakeRecord, width: int) -> None:
    record = make_record(baseline=baseline("changed", MOVED, GONE, GREW))
    lines = [line.text for line in section([(record, "failed")], width=width)]
    text = " ".join(" ".join(lines).split())
    assert "✘ test_tower" in text
    assert "log_gain +0.22 → +1.77 nats: by 1.55, more than 0.3" in text
    assert "gradient_norm 3 gone: a, b, …" in text
    assert "1 of 7 moved, 2 times larger, more than 1.35: w (0.1 → 0.2)" in text
    assert "test_tower › Tower › cpu float32 in __trainability__/test_init.json, recorded with torch 2.6" in text
    assert "if intended pytest --x" in text
    assert max(len(line) for line in lines if "reproduce" not in line) <= width


def test_an_unchanged_baseline_is_shown_only_with_v(make_record: MakeRecord) -> None:
    record = make_record(baseline=baseline("same"))
    plain, verbose = (" ".join(line.text for line in section([(record, "passed")], verbosity=v)) for v in (0, 1))
    assert "baseline" not in plain
    assert "unchanged, recorded with torch 2.6" in verbose


@pytest.mark.parametrize("verbosity", [-1, 0, 1])
def test_an_update_is_shown_at_every_verbosity(make_record: MakeRecord, verbosity: int) -> None:
    lines = section([(make_record(baseline=baseline("updated", MOVED)), "passed")], verbosity=verbosity)
    assert "log_gain       +0.22 → +1.77 nats" in "\n".join(line.text for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_summary_of_baselines_fits_the_terminal(encoding: str) -> None:
    summary = BaselineSummary(
        written=(("tests/__trainability__/test_init.json", 3, 1),),
        withheld=("tests/test_init.py::test_red",),
        unused=(("tests/__trainability__/test_init.json", "test_old › Tower", "test_new › Tower"),),
        forgotten=("tests/__trainability__/test_gone.json",),
        stale=("2.6.0",),
        partial=("1 deselected",),
        errors=("tests/__trainability__/test_other.json: the baseline is not valid: it must be JSON",),
    )
    lines = baselines(summary, width=80, encoding=encoding)
    text = " ".join(" ".join(line.text for line in lines).replace("baselines", "").split())
    assert "3 recorded and 1 updated in tests/__trainability__/test_init.json: commit it" in text
    assert "not recorded, because the test did not pass: tests/test_init.py::test_red" in text
    assert "it has the same numbers as test_new" in text
    assert "no test module for tests/__trainability__/test_gone.json" in text
    assert "recorded with torch 2.6.0: --trainability-baseline=update records them again" in text
    assert "nothing pruned: not every test has passed (1 deselected)" in text
    assert max(len(line.text) for line in lines) <= 80
    assert all(line.text.isascii() for line in lines) or encoding == "utf-8"


def test_an_empty_summary_of_baselines_has_no_lines() -> None:
    assert baselines(BaselineSummary()) == []


UNUSED = (("tests/__trainability__/test_init.json", "test_old › Tower", ""),)


@pytest.mark.parametrize(
    "summary",
    [BaselineSummary(unused=UNUSED), BaselineSummary(forgotten=("tests/__trainability__/test_gone.json",))],
    ids=["unused", "forgotten"],
)
def test_pruning_is_suggested_for_unused_baselines(summary: BaselineSummary) -> None:
    hint = Line("baselines      --trainability-prune removes them")
    assert baselines(summary)[-1] == hint
    assert all(line.color == "yellow" for line in baselines(summary)[:-1])
    # It is not suggested if they have been removed, nor if pruning was requested and refused.
    pruned, refused = replace(summary, pruned=True), replace(summary, partial=("2 skipped, failed or not run",))
    assert hint not in baselines(pruned)
    assert hint not in baselines(refused)
    assert baselines(pruned)[0].text.startswith("baselines      removed: no test")
    assert baselines(pruned)[0].color == ""
    assert baselines(refused, width=100)[-1] == Line(
        "baselines      nothing pruned: not every test has passed (2 skipped, failed or not run)", "red"
    )


def test_without_unused_baselines_pruning_is_not_suggested() -> None:
    assert baselines(BaselineSummary(written=(("f.json", 0, 2),))) == [
        Line("baselines      2 updated in f.json: commit it", "green")
    ]


def test_control_characters_of_a_baseline_file_do_not_reach_the_terminal(make_record: MakeRecord) -> None:
    """Names of tests, entries, measures and elements in a file are untrusted."""
    hostile = "\x1b]0;title\x07\x1b[2J\r"
    moved = BaselineChange(hostile, "moved", hostile, old=1.0, new=2.0, shift=1.0, tolerance=0.3, unit=hostile)
    gone = BaselineChange("gradient_norm", "vanished", elements=(hostile,))
    changed = BaselineRecord("changed", "f.json", hostile, (moved, gone), hostile, "pytest")
    record = make_record(baseline=changed)
    lines = section([(record, "failed")], verbosity=1)
    lines += section([(make_record(baseline=replace(changed, status="updated")), "passed")])
    lines += section([(make_record(baseline=replace(changed, status="same", changes=())), "passed")], verbosity=1)
    lines += baselines(
        BaselineSummary(unused=((hostile, hostile, hostile),), withheld=(hostile,), stale=(hostile,), errors=(hostile,))
    )
    assert sum(r"\x1b[2J" in line.text for line in lines) >= 6
    assert all(line.text.isprintable() for line in lines)


@pytest.mark.parametrize("verbosity", [0, 1])
def test_a_marginal_failure_is_marked_once_in_its_details(
    make_record: MakeRecord, make_verdict: MakeVerdict, verbosity: int
) -> None:
    """The row of a failed check has no note on the verdict: the details below have one."""
    verdict = make_verdict(marginal=True, seeds_needed=23)
    lines = section([(make_record(verdict), "failed")], verbosity=verbosity)
    assert (
        " ".join(" ".join(line.text.split()) for line in lines).count("marginal: about 23 seeds would settle it") == 1
    )
    row = next(index for index, line in enumerate(lines) if line.text.startswith("  ✘ "))
    blank = lines.index(Line(""))
    assert not any("marginal" in line.text for line in lines[row:blank])
    assert lines[row].color == "red"


def test_a_marginal_pass_of_a_failed_check_is_noted(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    """Another bound of the same check fails, so that the row stays red."""
    passed = make_verdict(measure="lyapunov_max", holds=True, marginal=True, seeds_needed=23)
    lines = section([(make_record(passed, make_verdict()), "failed")])
    assert rows(lines)[0].color == "red"
    assert any(line.color == "yellow" and line.text.strip().startswith("lyapunov_max") for line in lines)


def test_hidden_rows_do_not_widen_the_columns(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    bad = make_record(make_verdict(), test="test_init.py::test_bad")
    hidden = make_record(test=f"test_init.py::test_{'long' * 9}", steps="24 × TransformerEncoderLayer")
    alone = rows(section([(bad, "failed")], verbosity=-1))
    assert rows(section([(hidden, "passed"), (bad, "failed")], verbosity=-1)) == alone
    # If both are listed, they share their columns.
    shown = rows(section([(hidden, "passed"), (bad, "failed")]))
    assert len(shown) == 2
    assert len({len(line.text) for line in shown}) == 1
    assert alone[0] not in shown


def test_groups_are_sorted_by_file(make_record: MakeRecord) -> None:
    records = [make_record(test=f"test_{name}.py::test_x") for name in "cab"]
    heads = [line.text[:9] for line in section([(r, "passed") for r in records]) if "float32" in line.text]
    assert heads == ["test_a.py", "test_b.py", "test_c.py"]


def test_verbose_lists_all_names(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    worst = tuple((f"blocks.{i}.w", 1e-9) for i in range(12))
    record = make_record(
        make_verdict(measure="gradient_norm", where="blocks.0.w", worst=worst, violations=12, elements=12),
        lists=(("zero by algebra", "key.0.bias", "key.1.bias"),),
    )
    short, full = (
        [line.text.strip() for line in section([(record, "failed")], verbosity=verbosity)] for verbosity in (0, 1)
    )
    assert any("worst blocks.0.w 1e-09 and 11 more blocks.*.w" in line for line in short)
    assert not any(line.startswith(("blocks.7.w", "zero by algebra")) for line in short)
    assert [line for line in full if line.startswith("blocks.")] == [f"blocks.{i}.w 1e-09" for i in range(12)]
    assert "zero by algebra: key.{0-1}.bias" in full


def test_an_update_without_changes_says_so(make_record: MakeRecord) -> None:
    def text(*changes: BaselineChange) -> str:
        lines = section([(make_record(baseline=baseline("updated", *changes)), "passed")])
        return "\n".join(" ".join(line.text.split()) for line in lines)

    assert "baseline recorded again, nothing has changed" in text()
    assert "baseline updated\n" in text(MOVED)
    assert "recorded again" not in text(MOVED)


def test_long_steps_get_two_fifths_of_the_row(make_record: MakeRecord) -> None:
    """Of 120 columns, the log gain has 27 and marks and spaces have 8. The steps have 34 of the other 85."""
    record = make_record(test=f"test_init.py::test_{'x' * 90}", steps="24 × " + "y" * 90)
    (row,) = rows(section([(record, "passed")], width=120))
    assert len(row.text) == 120
    assert f"  24 × {'y' * 28}…  log gain" in row.text
    assert f"  ○ …{'x' * 50}  24" in row.text


def test_errors_are_read_once_for_any_number_of_files() -> None:
    """Reading all of them for each file would be quadratic."""

    class Counted(list[ErrorRecord]):
        reads = 0

        def __iter__(self) -> Any:
            self.reads += 1
            return super().__iter__()

    places = [f"test_{number % 7}.py::test_{number}" for number in range(21)]
    errors = Counted(ErrorRecord(place, "ModelError", "no") for place in places)
    lines = [line.text for line in terminal._errors(errors, 80, explained=True)]
    assert errors.reads == 1
    assert lines[:4] == [
        "test_0.py · could not be measured",
        "  ! test_0  ModelError: no",
        "  ! test_7  ModelError: no",
        "  ! test_14  ModelError: no",
    ]
    assert len(lines) == 7 + 21
