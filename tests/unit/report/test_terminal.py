"""The terminal section, from records alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_trainability.records.reports import (
    BaselineChange,
    BaselineRecord,
    BaselineSummary,
    CheckRecord,
    VerdictRecord,
)
from pytest_trainability.report.terminal import Line, Outcome, baselines, section

MakeRecord = Callable[..., CheckRecord]
MakeVerdict = Callable[..., VerdictRecord]


def rows(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.text.startswith(("  ✔ ", "  ✘ ", "  x "))]


@pytest.mark.parametrize(
    ("holds", "marginal", "outcome", "mark", "color"),
    [
        (True, False, "passed", "✔", "green"),
        (True, True, "passed", "✔", "yellow"),
        (False, False, "failed", "✘", "red"),
        (False, True, "failed", "✘", "red"),
        (None, False, "passed", "✔", "green"),
        (None, False, "failed", "✘", "red"),
        # Its failure was caught: with pytest.raises, say.
        (False, False, "passed", "✘", "red"),
        (False, False, "xfailed", "x", "yellow"),
    ],
)
def test_one_line_a_check_in_its_colour(
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


def test_the_total_counts_what_holds(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good, bad = make_record(make_verdict(holds=True)), make_record(make_verdict())
    assert section([(good, "passed"), (bad, "failed"), (good, "passed")])[-1] == Line(
        "2 of 3 hold, measured in 0.8 s", "red"
    )
    assert section([(good, "passed")])[-1] == Line("1 of 1 hold, measured in 0.2 s", "green")


def test_what_is_expected_not_to_hold_is_no_failure(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good, bad = make_record(make_verdict(holds=True)), make_record(make_verdict())
    lines = section([(good, "passed"), (bad, "xfailed")])
    assert lines[-1] == Line("1 of 2 hold, 1 expected to fail, measured in 0.5 s", "green")
    # No details, and with -q nothing at all.
    assert not any("must" in line.text for line in lines)
    assert len(section([(bad, "xfailed")], verbosity=-1)) == 1


def test_conditions_are_said_once_for_all_that_share_them(make_record: MakeRecord) -> None:
    lines = section([(make_record(), "passed"), (make_record(), "passed"), (make_record(device="cuda:0"), "passed")])
    heads = [line.text for line in lines if "float32" in line.text]
    assert len(heads) == 2
    assert all("per sample · seeds 0-3" in head for head in heads)


def test_names_of_measurements_tell_lines_apart(make_record: MakeRecord) -> None:
    assert "test_tower (student)" in rows(section([(make_record(name="student"), "passed")]))[0].text


def test_quiet_hides_what_holds(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
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


def test_where_signs_can_be_shown_they_are(make_record: MakeRecord) -> None:
    assert any("✔" in line.text for line in section([(make_record(), "passed")], encoding="utf-8"))


@pytest.mark.parametrize("changes", [{"growth": (), "step_names": ()}, {"log_gain": float("-inf")}, {"seconds": 0.0}])
def test_odd_records_are_shown(make_record: MakeRecord, make_verdict: MakeVerdict, changes: dict[str, Any]) -> None:
    for verbosity in (-1, 0, 1):
        assert section([(make_record(make_verdict(), **changes), "failed")], verbosity=verbosity)


def test_seeds_are_a_ceiling_where_bounds_were_settled_before(make_record: MakeRecord) -> None:
    early = make_record(seeds=(0, 1), seeds_requested=(0, 1, 2, 3))
    assert section([(early, "passed")])[0].text.endswith("seeds 0-3 at most")
    assert section([(make_record(), "passed")])[0].text.endswith("seeds 0-3")
    assert "settled        after 2 of 4 seeds" in "\n".join(
        line.text for line in section([(early, "passed")], verbosity=1)
    )


def test_a_marginal_pass_says_how_many_seeds_would_settle_it(
    make_record: MakeRecord, make_verdict: MakeVerdict
) -> None:
    verdict = make_verdict(holds=True, marginal=True, low=-14.5, seeds_needed=23)
    lines = section([(make_record(verdict), "passed")])
    text = " ".join(" ".join(line.text.split()) for line in lines if line.color == "yellow")
    assert text.endswith(
        "log_gain -14.40 ± 0.30 nats, must lie in [-14.5, 5], marginal: about 23 seeds would settle it"
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
def test_from_zero_there_is_no_factor(make_record: MakeRecord, old: float, new: float, said: str) -> None:
    moved = BaselineChange("gradient_norm", "moved", "w", old=old, new=new, shift=13.0, tolerance=0.3, scale="log")
    text = "\n".join(line.text for line in section([(make_record(baseline=baseline("changed", moved)), "failed")]))
    assert f"1 of 1 moved, {said}: w ({old:g} → {new:g})" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_changed_baseline_is_red_and_told_old_and_new(make_record: MakeRecord, width: int) -> None:
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


def test_a_baseline_that_is_the_same_is_told_with_v_only(make_record: MakeRecord) -> None:
    record = make_record(baseline=baseline("same"))
    plain, verbose = (" ".join(line.text for line in section([(record, "passed")], verbosity=v)) for v in (0, 1))
    assert "baseline" not in plain
    assert "unchanged, recorded with torch 2.6" in verbose


@pytest.mark.parametrize("verbosity", [-1, 0, 1])
def test_an_update_is_told_however_quiet(make_record: MakeRecord, verbosity: int) -> None:
    lines = section([(make_record(baseline=baseline("updated", MOVED)), "passed")], verbosity=verbosity)
    assert "log_gain       +0.22 → +1.77 nats" in "\n".join(line.text for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_was_done_to_the_baselines_fits_the_terminal(encoding: str) -> None:
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


def test_nothing_is_said_of_baselines_where_there_is_nothing() -> None:
    assert baselines(BaselineSummary()) == []
