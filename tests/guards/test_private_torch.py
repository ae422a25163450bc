"""Private parts of PyTorch are read in one file alone, ``engine/torch_internals.py``: enforced on the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_trainability

PACKAGE = Path(pytest_trainability.__file__).parent
INTERNALS = "engine/torch_internals.py"
UNDOCUMENTED = {
    "torch.utils.weak": {"WeakTensorKeyDictionary"},
    "torch.nn.parameter": {"is_lazy"},
    "torch.multiprocessing.reductions": {"StorageWeakRef"},
    "torch.autograd.function": {"BackwardCFunction", "FunctionMeta"},
}
"""What is exported without an underscore and not documented."""
OURS = frozenset({"self", "cls", "super()", "Self"})
"""Objects whose private attributes are the package's own."""
TORCH_ATTRIBUTES = frozenset(
    {"_version", "_parameters", "_buffers", "_modules", "_input_metadata", "_sequence_nr", "_saved_self"}
)
"""Attributes that are PyTorch's whatever object they are read from, such as ``self``."""
OTHERS = {
    "records/estimates.py": {"_affine"},
    "engine/capture/ode_solvers.py": {"_replace"},
    "plugin/collection.py": {"_fixtureinfo"},
    "plugin/progress.py": {"_tw", "_file"},
    "plugin/randomness.py": {"_pyfuncitem"},
    "plugin/reports.py": {"_tw", "_file"},
    "plugin/suggestions.py": {"_tw", "_file"},
    "plugin/swallowed.py": {"_current_frames"},
    "plugin/summary.py": {"_tw", "_file"},
}
"""Private attributes of other objects than PyTorch's, by file: an estimate's, a named tuple's, pytest's, and a function that
Python documents."""


def private_accesses(path: str, source: str) -> list[str]:
    """Return where a module reads a private or undocumented part of PyTorch.

    That is a private name of the package ``torch``, written out or imported; a private attribute of anything that is not the
    module's own object; the same by ``getattr``; or a module's attribute ``_saved_…``.
    """
    tree = ast.parse(source)
    modules = _torch_names(tree)
    return [f"{path}:{line}: {what}" for line, what in sorted({*_imported(tree), *_read(tree, path, modules)})]


def _torch_names(tree: ast.AST) -> set[str]:
    """Names that stand for PyTorch or a part of it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or "torch" for alias in node.names if alias.name.split(".")[0] == "torch"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and not node.level:
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def _imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and not node.level:
            for alias in node.names:
                parts = [*(node.module or "").split("."), alias.name]
                if any(map(_is_private, parts)) or alias.name in UNDOCUMENTED.get(node.module or "", ()):
                    yield node.lineno, ".".join(parts)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch" and any(map(_is_private, alias.name.split("."))):
                    yield node.lineno, alias.name


def _read(tree: ast.AST, path: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            is_ours = owner in OURS and node.attr not in TORCH_ATTRIBUTES
            is_others = node.attr in OTHERS.get(path, ())
            is_torch = owner.split(".")[0] in modules and node.attr in {
                n for names in UNDOCUMENTED.values() for n in names
            }
            if is_torch or (_is_private(node.attr) and not is_ours and not is_others):
                yield node.lineno, f"{owner}.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("_saved_"):
            yield node.lineno, node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and _is_private(name.value):
                yield node.lineno, f"getattr({ast.unparse(node.args[0])}, {name.value!r})"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", [path for path in MODULES if path != INTERNALS])
def test_no_other_file_reads_private_parts_of_pytorch(path: str) -> None:
    assert private_accesses(path, PACKAGE.joinpath(path).read_text(encoding="utf-8")) == []


PLANTED = {
    "extension module": ("import torch\nwith torch._C.DisableTorchFunction(): pass", ["torch._C"]),
    "function": ("import torch\nx = torch._weight_norm", ["torch._weight_norm"]),
    "deep": (
        "import torch\ntorch.autograd.grad_mode._unsafe_preserve_version_counter(t)",
        ["torch.autograd.grad_mode._unsafe_preserve_version_counter"],
    ),
    "class": ("from torch import nn\nnn.modules.batchnorm._BatchNorm", ["nn.modules.batchnorm._BatchNorm"]),
    "imported": ("from torch.nn.modules.batchnorm import _BatchNorm", ["torch.nn.modules.batchnorm._BatchNorm"]),
    "private module": (
        "def f():\n    from torch.utils._python_dispatch import TorchDispatchMode",
        ["torch.utils._python_dispatch.TorchDispatchMode"],
    ),
    "module itself": ("import torch._dynamo as d", ["torch._dynamo"]),
    "undocumented": (
        "from torch.utils.weak import WeakTensorKeyDictionary",
        ["torch.utils.weak.WeakTensorKeyDictionary"],
    ),
    "undocumented attribute": ("import torch\ntorch.nn.parameter.is_lazy(p)", ["torch.nn.parameter.is_lazy"]),
    "node": ("len(node._input_metadata)", ["node._input_metadata"]),
    "method of a node": ("edge[0]._sequence_nr()", ["edge[0]._sequence_nr"]),
    "version": ("x = tensor._version", ["tensor._version"]),
    "own tensor": ("self._version", ["self._version"]),
    "table": ("module._parameters.values()", ["module._parameters"]),
    "saved": ("getattr(node, '_saved_alpha', 1)", ["_saved_alpha", "getattr(node, '_saved_alpha')"]),
    "saved, by name": ("constant(node, '_saved_other')", ["_saved_other"]),
}


@pytest.mark.parametrize(("source", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_access_is_caught(source: str, expected: list[str]) -> None:
    found = private_accesses("measures/a.py", source)
    assert [line.split(": ", 1)[1] for line in found] == expected


def test_what_is_public_or_our_own_is_not_caught() -> None:
    source = (
        "import torch\nfrom torch.autograd.graph import Node\n"
        "self._found = torch.nn.Linear\ncls._x\nsuper()._f()\nmodule.__class__\ndef _g(): return _x\nimport os\nos.path"
    )
    assert private_accesses("measures/a.py", source) == []


def test_the_guard_reads_the_real_package() -> None:
    """The file that may read private parts does so, and the exceptions by file are in use."""
    found = private_accesses(INTERNALS, PACKAGE.joinpath(INTERNALS).read_text(encoding="utf-8"))
    assert len(found) > 15
    for path, names in OTHERS.items():
        text = PACKAGE.joinpath(path).read_text(encoding="utf-8")
        assert {name for name in names if f".{name}" not in text} == set()
