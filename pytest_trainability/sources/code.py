"""Python code for what a text names: inputs, losses, and the imports of places."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch.nn import functional

from ..errors import UsageError
from .inputs import Drawn, parse_tensor

__all__ = ["functional_losses", "inputs_code", "is_found_here_only", "is_place"]

_NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)")


def is_place(text: str) -> bool:
    """Return whether a text names an object, and does not describe a tensor.

    >>> is_place("shop.data:batch"), is_place("ids:4x128<50257"), is_place("x=ids:4<10")
    (True, False, False)
    """
    if ":" not in text or _NAMED.fullmatch(text):
        return False
    try:
        parse_tensor(text)
    except UsageError:
        return True
    return False


def inputs_code(texts: Sequence[str]) -> str:
    """Return the expression of ``generator`` that draws what texts describe, as :func:`drawn_inputs` does.

    >>> inputs_code(["8x16"]), inputs_code(["mask:4x16", "8"])
    ('torch.randn(8, 16, generator=generator)', '(torch.ones((4, 16), dtype=torch.long), torch.randn(8, generator=generator))')

    Args:
        texts: One text per argument of the model; none is a place.
    """
    named = [match for text in texts if (match := _NAMED.fullmatch(text))]
    if named:
        return "{" + ", ".join(f'"{match[1]}": {_tensor_code(parse_tensor(match[2]))}' for match in named) + "}"
    parts = [_tensor_code(parse_tensor(text)) for text in texts]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _tensor_code(tensor: Drawn) -> str:
    if tensor.kind == "mask":
        return f"torch.ones({tensor.shape}, dtype=torch.long)"
    if tensor.kind == "ids":
        return f"torch.randint({tensor.below}, {tensor.shape}, generator=generator)"
    return f"torch.randn({', '.join(map(str, tensor.shape))}, generator=generator)"


def functional_losses() -> dict[str, Callable[..., Any]]:
    """Return the losses of ``torch.nn.functional`` by name."""
    found = vars(functional).items()
    names = {"cross_entropy", "kl_div"}
    return {name: f for name, f in found if callable(f) and (name.endswith(("_loss", "_with_logits")) or name in names)}


def is_found_here_only(module: str) -> bool:
    """Return whether a module can be imported from the current folder only, so that a test elsewhere must add it to the path.

    Args:
        module: Name of a module that can be imported.
    """
    top, here = module.partition(".")[0], Path.cwd().resolve()
    elsewhere = [path for path in sys.path if path and Path(path).resolve() != here]
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (find(top, elsewhere) if finder is PathFinder else find(top, None)) is not None:
            return False
    return True
