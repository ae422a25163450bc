"""Pages that cite docs/faults.md cite its present figures, and what they say in words is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripts import script
from torch import nn

ROOT = Path(__file__).parents[2]
RESULTS = """
<!-- results -->

| | target | A | B | all |
|---|---|---|---|---|
| found by preset or lint, without configuration | 0.60 | 0.50 (1 of 2) | – | 0.25 (1 of 4) |
| found by the baseline of the twin | | | | 0.50 (2 of 4) |
| found by preset, lint or baseline | | | | 0.75 (3 of 4) |
| place right, of what is found | | | | – |
| cause right, of what is found | | | | 1.00 (3 of 3) |

- healthy models flagged by a preset: 1 of 7: regnet
- found by nothing (1): `a`
- wrong or no cause (6): `a`, `b`, `c`, `d`, `e`, `f`

### All faults

| fault | half | preset or lint | baseline | else |
|---|---|---|---|---|
| a | A | – | – | |
| b | B | `log_gain` | `initial values`, `gradient_norm` | |
| c | B | – | `modules`, `growth_rate` | |
| d | B | – | `operations` | |

<!-- end of results -->
<!-- competitors -->

| package | found (2) | false alarms on twins (3) | x | told from the twin (2) | false alarms on other healthy models (4) |
|---|---|---|---|---|---|
| pytest-trainability | 0.50 | 0.25 | 1.00 | 0.75 | 0.00 |
| other | 0.10 | 0.20 | 0.00 | 0.30 | 0.40 |

<!-- end of competitors -->
"""


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return script("docs/figures.py")


def test_the_pages_are_up_to_date(
    figures: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures.py", "--check"])
    assert figures.main() == 0, capsys.readouterr().out


def test_an_outdated_page_is_caught_and_written(
    figures: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text("before\n<!-- sums -->\nold\n<!-- end of sums -->\nafter\n", encoding="utf-8")
    (tmp_path / "faults.md").write_text(RESULTS, encoding="utf-8")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "FAULTS", tmp_path / "faults.md")
    monkeypatch.setattr(figures, "FIGURES", {"page.md": {"sums": figures.sums}})
    for arguments, status in ((["--check"], 1), ([], 0), (["--check"], 0)):
        monkeypatch.setattr(sys, "argv", ["figures.py", *arguments])
        assert figures.main() == status
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| mistakes found by presets, without configuration | 1 of 4 |" in text
    assert "| the report names the right module or parameter | – |" in text
    assert "| healthy models flagged by a preset | 1 of 7 |" in text


def test_tables(figures: ModuleType) -> None:
    assert figures.packages(RESULTS).splitlines()[2:] == [
        "| **pytest-trainability** | 0.50 | 0.25 | 0.75 | 0.00 |",
        "| other | 0.10 | 0.20 | 0.30 | 0.40 |",
    ]
    assert "| told from its healthy twin (2) |" in figures.packages(RESULTS)
    assert figures.missed(RESULTS).splitlines()[2:] == [
        "| found by nothing | 1 | `a` |",
        "| wrong or no cause | 6 |  |",
    ]
    assert [line.split("|")[2] for line in figures.kinds_of_tests(RESULTS).splitlines()[2:]] == [
        f" {number} of 4 " for number in (1, 1, 1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("table", "lacking"),
    [
        ("sums", "found by the baseline of the twin"),
        ("sums", "healthy models flagged by a preset"),
        ("packages", "told from the twin"),
        ("kinds_of_tests", "| baseline"),
        ("missed", "<!-- results -->"),
    ],
)
def test_a_missing_row_column_or_comment_is_an_error(figures: ModuleType, table: str, lacking: str) -> None:
    with pytest.raises(SystemExit, match=r"\w"):
        getattr(figures, table)(RESULTS.replace(lacking, "| other" if lacking[0] == "|" else "other"))


def test_what_the_comparison_says_of_tests_by_hand() -> None:
    """A sigmoid tower passes both, although the first layer gets no gradient to speak of."""
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(128, 128), nn.Sigmoid())])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, target = torch.randn(8, 128), torch.rand(8, 128)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    lines = [line.partition("  #")[0] for line in code.splitlines()[1:]]
    assert len(lines) == 2
    for line in lines:
        exec(line, {"model": model, "losses": losses})
    first = model[0].weight.grad
    assert first is not None and 0 < float(first.norm()) < 1e-15, first.norm()
