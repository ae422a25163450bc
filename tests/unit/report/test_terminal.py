"""The terminal section, from records alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_trainability.records import CheckRecord, VerdictRecord
from pytest_trainability.report.terminal import Line, section

MakeRecord = Callable[..., CheckRecord]
MakeVerdict = Callable[..., VerdictRecord]


def rows(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.text.startswith(("  ✔ ", "  ✘ "))]


@pytest.mark.parametrize(
    ("holds", "marginal", "passed", "mark", "color"),
    [
        (True, False, True, "✔", "green"),
        (True, True, True, "✔", "yellow"),
        (False, False, False, "✘", "red"),
        (False, True, False, "✘", "red"),
        (None, False, True, "✔", "green"),
        (None, False, False, "✘", "red"),
    ],
)
def test_one_line_a_check_in_its_colour(
    make_record: MakeRecord,
    make_verdict: MakeVerdict,
    holds: bool | None,
    marginal: bool,
    passed: bool,
    mark: str,
    color: str,
) -> None:
    verdicts = [] if holds is None else [make_verdict(holds=holds, marginal=marginal)]
    (row,) = rows(section([(make_record(*verdicts), passed)]))
    assert row.text.split()[0] == mark
    assert row.color == color
    assert "test_tower" in row.text
    assert "4 × Linear" in row.text
    assert row.text.endswith("log gain -14.40 ± 0.30 nats")


def test_the_total_counts_what_holds(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good, bad = make_record(make_verdict(holds=True)), make_record(make_verdict())
    assert section([(good, True), (bad, False), (good, True)])[-1] == Line("2 of 3 hold, measured in 0.8 s", "red")
    assert section([(good, True)])[-1] == Line("1 of 1 hold, measured in 0.2 s", "green")


def test_conditions_are_said_once_for_all_that_share_them(make_record: MakeRecord) -> None:
    lines = section([(make_record(), True), (make_record(), True), (make_record(device="cuda:0"), True)])
    heads = [line.text for line in lines if "float32" in line.text]
    assert len(heads) == 2
    assert all("per sample · seeds 0-3" in head for head in heads)


def test_names_of_measurements_tell_lines_apart(make_record: MakeRecord) -> None:
    assert "test_tower (student)" in rows(section([(make_record(name="student"), True)]))[0].text


def test_quiet_hides_what_holds(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    good, bad = make_record(make_verdict(holds=True)), make_record(make_verdict(), test="test_init.py::test_bad")
    assert [row.text.split()[1] for row in rows(section([(good, True), (bad, False)], verbosity=-1))] == ["test_bad"]
    assert section([(good, True)], verbosity=-1) == [Line("1 of 1 hold, measured in 0.2 s", "green")]


def test_verbose_shows_every_bound(make_record: MakeRecord, make_verdict: MakeVerdict) -> None:
    record = make_record(make_verdict(holds=True, low=-20.0), notes=("a note",))
    assert "must lie in" not in "\n".join(line.text for line in section([(record, True)]))
    text = "\n".join(line.text for line in section([(record, True)], verbosity=1))
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
    for line in section([(record, False)], encoding=encoding, verbosity=1):
        line.text.encode("ascii" if encoding.startswith("no") else encoding)


def test_where_signs_can_be_shown_they_are(make_record: MakeRecord) -> None:
    assert any("✔" in line.text for line in section([(make_record(), True)], encoding="utf-8"))


@pytest.mark.parametrize("changes", [{"growth": (), "step_names": ()}, {"log_gain": float("-inf")}, {"seconds": 0.0}])
def test_odd_records_are_shown(make_record: MakeRecord, make_verdict: MakeVerdict, changes: dict[str, Any]) -> None:
    for verbosity in (-1, 0, 1):
        assert section([(make_record(make_verdict(), **changes), False)], verbosity=verbosity)
