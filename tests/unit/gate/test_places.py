"""The lines of keys, which the parser of TOML does not tell."""

from __future__ import annotations

import pytest

from pytest_trainability.gate.places import key_lines, line_of

TEXT = '''# [test.comment]
[test.gpt]  # a header
model = "nets:build = [no.key]"
skip = {missing = "timm", reason = "a = b"}
parameters = {width = [1, 2]}
text = """
[test.no]
key = 3
"""
bounds.log_gain = "within(3)"

[test."two words".bounds]
'single' = 1
list = [
    "x = 3",
]
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("test.gpt", 2),
        ("test.gpt.model", 3),
        ("test.gpt.skip.missing", 4),
        ("test.gpt.skip.reason", 4),
        ("test.gpt.parameters.width", 5),
        ("test.gpt.text", 6),
        ("test.gpt.bounds", 10),
        ("test.gpt.bounds.log_gain", 10),
        ("test.two words", 12),
        ("test.two words.bounds.single", 13),
        ("test.two words.bounds.list", 14),
        ("test.gpt.skip.unknown", 4),
        ("nothing", 1),
    ],
)
def test_the_line_of_a_key(key: str, line: int) -> None:
    assert line_of(key_lines(TEXT), key.split(".")) == line


def test_what_is_in_texts_and_comments_is_no_key() -> None:
    keys = {".".join(key) for key in key_lines(TEXT)}
    assert not any("no" in key or "comment" in key or key.endswith((".x", ".a")) for key in keys)
