"""The presets judge models after public bug reports, and their healthy twins, as the table in docs/presets.md says.

What no preset flags is seen by another bound, by a baseline, or by a test of another kind; each is shown here.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults import REPORTED, Case, ReportedFault, Scaled, changed, flagged, holds, measured

from pytest_trainability import measure

TWO = range(2)
"""Seeds of the small edition; `benchmarks/reported_faults.py` takes eight."""

PAGE = Path(__file__).parents[2] / "docs" / "presets.md"

ENTRIES = {entry.slug: entry for entry in REPORTED}
UNFLAGGED = [entry for entry in REPORTED if not entry.preset]


def by_slug(entry: ReportedFault) -> str:
    return entry.slug


def verdicts(case: Case) -> set[str]:
    return set(flagged(case, measured(case, TWO)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("entry", REPORTED, ids=by_slug)
def test_the_preset_flags_the_flawed_model_only(entry: ReportedFault) -> None:
    assert verdicts(entry.flawed) == set(entry.preset)
    assert verdicts(entry.healthy) == set(entry.twin_preset)


@pytest.mark.parametrize("entry", [entry for entry in REPORTED if entry.bound], ids=by_slug)
def test_another_bound_separates_the_twins(entry: ReportedFault) -> None:
    assert entry.bound is not None
    assert holds(entry.healthy, *entry.bound, TWO)
    assert not holds(entry.flawed, *entry.bound, TWO)


def test_every_fault_that_no_preset_flags_has_a_reason() -> None:
    assert [entry.slug for entry in UNFLAGGED if not entry.why] == []
    assert [entry.slug for entry in REPORTED if entry.preset and (entry.why or entry.bound)] == []
    assert [entry.slug for entry in REPORTED if entry.harmless and entry.preset] == []


def test_the_page_lists_every_fault_with_its_verdict() -> None:
    _, section = PAGE.read_text(encoding="utf-8").split("## Faults after public reports")
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.*#.*) \|$", section, re.MULTILINE))
    assert rows.keys() == ENTRIES.keys()
    for slug, cells in rows.items():
        report, fault, preset, _ = cells.split(" | ")
        assert (report, fault) == (ENTRIES[slug].report, ENTRIES[slug].fault)
        assert set(re.findall(r"`(\w+)`", preset)) == set(ENTRIES[slug].preset)


# What sees the others ---------------------------------------------------------------------------------------------


def test_a_baseline_in_evaluation_mode_sees_the_missing_factor() -> None:
    entry = ENTRIES["stochastic-depth"]
    in_training = [measured(case, TWO, bounds={}) for case in (entry.healthy, entry.flawed)]
    evaluated = [measured(replace(case, train=False), TWO, bounds={}) for case in (entry.healthy, entry.flawed)]
    assert changed(*in_training) == {}
    assert "activation_rms" in changed(*evaluated)


def test_layers_in_a_python_list_shorten_the_chain() -> None:
    entry = ENTRIES["python-list"]
    lengths = [len(measure(case.build, seeds=1, **case.arguments).steps) for case in (entry.healthy, entry.flawed)]
    assert lengths == [8, 2]


def test_gradcheck_sees_a_wrong_factor() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Scaled(0.2), x)
    assert not torch.autograd.gradcheck(Scaled(1.0), x, raise_exception=False)


def test_a_changed_last_token_shows_the_leak() -> None:
    entry = ENTRIES["causal-leak"]
    ids = entry.healthy.inputs(torch.Generator().manual_seed(0))
    other = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 32], dim=1)
    for case, leaks in ((entry.healthy, False), (entry.flawed, True)):
        model = case.build()
        assert torch.equal(model(ids)[:, :-1], model(other)[:, :-1]) != leaks


def test_permuted_patches_show_that_positions_are_lost() -> None:
    entry = ENTRIES["zero-positions"]
    images = entry.healthy.inputs(torch.Generator().manual_seed(0)).double()
    moved_by_a_patch = images.roll(2, dims=-1)
    for case, lost in ((entry.healthy, False), (entry.flawed, True)):
        model = case.build().double()
        # Sums over permuted patches differ by round-off; another position changes the scores by 1e-4 or more.
        assert torch.allclose(model(images), model(moved_by_a_patch), rtol=0, atol=1e-10) == lost
