"""The definition of a measure, and the table of all, on the command line."""

from __future__ import annotations

import pytest

from pytest_trainability.commands import CANNOT, main
from pytest_trainability.measures import MEASURES


@pytest.mark.parametrize("name", ["log_gain", "gradient_norm", "nonfinite", "lyapunov_spectrum"])
def test_explain_prints_definition_and_bound(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["explain", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name} ({MEASURES[name].kind}")
    assert "Returns:" in text
    assert f"@pytest.mark.trainability({name}=" in text


def test_a_misspelt_measure_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "log_gian"]) == CANNOT
    assert "Did you mean 'log_gain'?" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_measure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["measures"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(MEASURES)
    assert all(len(line) <= 120 for line in lines)
