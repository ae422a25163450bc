"""The test that the command ``start`` writes: a module of Python, or a table of ``trainability.toml``."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..records.text import as_toml
from .suggestions import SuggestedBound, imports_of

__all__ = ["RESERVED", "Starter", "test_module", "toml_table"]

WIDTH = 116
"""Columns of a comment."""
REASONS = {
    "activation_rms": "The states keep their size",
    "asleep_parameters": "Every parameter gets a gradient within a few optimizer steps",
    "attention_entropy": "Attention looks at many keys",
    "duplicate_parameters": "No two units start as copies, which stay copies",
    "excess_loss": "The initial loss is that of a guess",
    "gradient_norm": "The gradient of every parameter is large enough to learn from",
    "initial_loss": "The initial loss",
    "log_gain": "The gradient neither vanishes nor explodes on its way from the output to the input",
    "lyapunov_max": "The gradient neither vanishes nor explodes along time",
    "uninitialized_parameters": "No parameter holds arbitrary memory",
    "unregistered_parameters": "No parameter is hidden from the optimizer",
    "untrained_fraction": "Nearly all parameters get a gradient, or are zero by design",
    "unused_parameters": "The loss depends on every parameter",
}
"""Why a measure is bounded, and by which value."""
COUNTED = {name for name in REASONS if name.endswith("_parameters")}
"""Measures of names, whose reason is true if there is none."""

TORCH = {
    "torch": "import torch",
    "nn": "from torch import nn",
    "F": "from torch.nn import functional as F",
}
"""Imports of torch, by the names with which the code may begin."""
RESERVED = frozenset(
    {
        *TORCH,
        *("math", "sys", "Path", "pytest", "init", "at_least", "at_most", "within"),
        *("named_model", "named_loss", "MODEL", "CONTRACT"),
        *("generator", "inputs", "targets", "trainability", "result"),
    }
)
"""Names that the module uses, besides those of its tests and of what it imports from the user."""


@dataclass(frozen=True, slots=True)
class Starter:
    """What the written test consists of."""

    name: str
    """Part of the names of file and table, an identifier."""
    command: str
    """The command that writes it."""
    model: str
    """Text that names the model."""
    steps: str
    """The chain, such as ``12 × Block``."""
    seeds: tuple[int, ...]
    bounds: tuple[SuggestedBound, ...]
    preset: str
    contract: Mapping[str, str]
    """Source text of rules by patterns; empty if no contract holds on other seeds."""
    trouble: str
    """Why there is no contract."""
    imports: tuple[str, ...]
    """Lines that import the model, its inputs, its targets and its loss."""
    setup: tuple[str, ...]
    """Lines before the imports, which let them be found."""
    functions: tuple[str, ...]
    """Code of the functions that draw inputs and targets, or of constants."""
    arguments: str
    """Arguments of the fixture's call, without seeds."""
    build: str
    """Expression of the factory."""
    inputs: tuple[str, ...]
    """Texts that name the inputs."""
    targets: tuple[str, ...]
    loss: str
    options: tuple[tuple[str, str], ...]
    """Further arguments by name, as text."""

    @property
    def seeds_code(self) -> str:
        """Expression of the seeds, in Python and in TOML: their number, or a list."""
        count = len(self.seeds)
        return str(count) if self.seeds == tuple(range(count)) else repr(list(self.seeds))

    @property
    def origin(self) -> str:
        """How the numbers came about."""
        return f"{self.steps}, measured on {len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}."


def test_module(starter: Starter) -> str:
    """Return a test module: bounds with their reasons, the baseline and the initialization contract."""
    parts = list(starter.functions)
    if starter.contract:
        rules = [
            f"    {json.dumps(pattern, ensure_ascii=False)}: {text}," for pattern, text in starter.contract.items()
        ]
        parts.append("\n".join(["CONTRACT = {", *rules, "}"]))
    parts.append(_gate(starter))
    if starter.contract:
        parts.append(_contract_test(starter))
    elif starter.trouble:
        parts.append("\n".join(_comment(f"No initialization contract holds on other seeds: {starter.trouble}")))
    head, functions = f"{_docstring(starter)}\n\n{_imports(starter)}", "\n\n\n".join(parts)
    return f"{head}\n\n\n{functions}\n"


test_module.__test__ = False  # type: ignore[attr-defined]


def _docstring(starter: Starter) -> str:
    return (
        f'"""Trainability of {starter.model} at initialization: {starter.origin}\n\nWritten by {starter.command}\n"""'
    )


def _imports(starter: Starter) -> str:
    standard = ["import math"] if any("math." in text for text in starter.contract.values()) else []
    if starter.setup:
        standard += ["import sys", "from pathlib import Path"]
    code = "\n".join([*starter.functions, starter.arguments])
    outside = ["import pytest"]
    outside += [line for name, line in TORCH.items() if re.search(rf"\b{name}\.", code)]
    names = [*imports_of(starter.bounds).removeprefix("from pytest_trainability import ").split(", ")]
    names = sorted(filter(None, [*names, *(["init"] if starter.contract else [])]))
    ours = [f"from pytest_trainability import {', '.join(names)}"] if names else []
    theirs = [line for line in starter.imports if line.startswith("from pytest_trainability")]
    late = [f"{line}  # noqa: E402" if starter.setup else line for line in starter.imports if line not in theirs]
    groups = [standard, outside, ours + theirs, list(starter.setup), late]
    return "\n\n".join("\n".join(group) for group in groups if group)


def _gate(starter: Starter) -> str:
    lines = ["@pytest.mark.trainability("]
    if starter.preset:
        lines += [f'    preset="{starter.preset}",']
    for bound in starter.bounds:
        lines += [f"    {line}" for line in _comment(_reason(bound))]
        lines.append(f"    {bound.measure}={bound.code},")
    lines += [
        ")",
        f"def test_{starter.name}(trainability):",
        '    """Gradients pass, and nothing has changed since the baseline: --trainability-baseline=update accepts a change."""',
        f"    result = trainability({starter.build}, {starter.arguments}, seeds={starter.seeds_code})",
        "    result.check_baseline()",
    ]
    return "\n".join(lines)


def _contract_test(starter: Starter) -> str:
    call = f"trainability.initialization({starter.build}, seeds={starter.seeds_code}).check(CONTRACT)"
    docstring = '    """Every parameter is initialized as it was when this file was written."""'
    return "\n".join([f"def test_initialization_of_{starter.name}(trainability):", docstring, f"    {call}"])


def _reason(bound: SuggestedBound) -> str:
    """Return why a bound is as it is: what it watches, and the values that support it."""
    reason = REASONS.get(bound.measure, "")
    if bound.measure in COUNTED:
        return f"{reason}." if bound.measured == "none" else f"By design, or to be mended: {bound.measured}."
    return f"{reason}: {bound.measured}." if reason else f"Measured: {bound.measured}."


def _comment(text: str) -> list[str]:
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, WIDTH) or [""]]
    return [f"# {line}".rstrip() for line in lines]


def toml_table(starter: Starter, *, prefix: str = "") -> str:
    """Return the tables of ``trainability.toml`` for the same test.

    Args:
        starter: The test.
        prefix: ``"tool.trainability."`` in ``pyproject.toml``.
    """
    table = f"{prefix}test.{starter.name if starter.name.isascii() else as_toml(starter.name)}"
    lines = [*_comment(f"{starter.origin} Written by {starter.command}")]
    lines += [f"[{table}]", f"model = {as_toml(starter.model)}"]
    lines += list(_texts("inputs", starter.inputs)) + list(_texts("targets", starter.targets))
    lines += [f"loss = {as_toml(starter.loss)}"] if starter.loss else []
    lines += [f"{name} = {as_toml(value)}" for name, value in starter.options]
    lines += [f"seeds = {starter.seeds_code}"]
    lines += [f'preset = "{starter.preset}"'] if starter.preset else []
    lines += [
        "# Nothing has changed since the baseline: --trainability-baseline=update accepts a change.",
        "baseline = true",
    ]
    if starter.bounds:
        lines += ["", f"[{table}.bounds]"]
    for bound in starter.bounds:
        lines += [*_comment(_reason(bound)), f"{bound.measure} = {as_toml(bound.code)}"]
    if starter.contract:
        lines += ["", f"[{table}.contract]"]
        lines += [f"{as_toml(pattern)} = {as_toml(text)}" for pattern, text in starter.contract.items()]
    elif starter.trouble:
        lines += _comment(f"No initialization contract holds on other seeds: {starter.trouble}")
    return "\n".join(lines) + "\n"


def _texts(key: str, texts: Sequence[str]) -> Iterator[str]:
    named = [text.partition("=") for text in texts if re.match(r"[A-Za-z_]\w*=", text)]
    if named:
        yield f"{key} = {{ {', '.join(f'{name} = {as_toml(text)}' for name, _, text in named)} }}"
    elif len(texts) == 1:
        yield f"{key} = {as_toml(texts[0])}"
    elif texts:
        yield f"{key} = [{', '.join(map(as_toml, texts))}]"
