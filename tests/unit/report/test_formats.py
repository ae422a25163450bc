"""The text of a session in each format."""

from __future__ import annotations

import json
import sys

import pytest
from reported import broken, session

from pytest_trainability import ReportError
from pytest_trainability.report.formats import html_text, report_text


@pytest.mark.parametrize(
    ("kind", "begins"), [("json", '{\n "schema"'), ("markdown", "## ✘"), ("gitlab", "["), ("sarif", "{")]
)
def test_each_format_has_its_text(kind: str, begins: str) -> None:
    text = report_text(kind, session(broken()), "below")
    assert text.startswith(begins)
    assert text.endswith("\n")


@pytest.mark.parametrize("kind", ["gitlab", "sarif"])
def test_paths_get_the_prefix(kind: str) -> None:
    assert "below/tests/test_a.py" in json.dumps(json.loads(report_text(kind, session(broken()), "below")))


def test_a_page_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in [name for name in sys.modules if name.startswith("pytest_trainability.report.html")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("pytest_trainability.report.html", raising=False)
    with pytest.raises(ReportError, match=r"pip install 'pytest-trainability\[html\]'"):
        html_text({})
