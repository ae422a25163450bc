"""Inputs that are named by text: ``8x3x224x224``, ``ids:4x128<50257``, ``mask:4x128`` or ``package.module:batch``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .places import imported

__all__ = ["Drawn", "drawn_inputs", "is_place", "named_texts", "parse_tensor"]

_FORM = re.compile(r"(?:(ids|mask|float):)?(\d+(?:x\d+)*)(?:<(\d+))?")
"""Kind, sizes and number of ids."""
_NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A tensor to be drawn: standard normal numbers, whole numbers below a limit, or a mask of ones."""

    kind: str
    """``"float"``, ``"ids"`` or ``"mask"``."""
    shape: tuple[int, ...]
    below: int = 0
    """Number of different ids."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the tensor, on the CPU.

        Raises:
            UsageError: It does not fit into memory, or a number is too large for PyTorch.
        """
        try:
            return self._drawn(generator)
        except (RuntimeError, TypeError, ValueError, MemoryError) as error:
            sizes = "x".join(map(str, self.shape))
            reason = str(error).splitlines()[0]
            msg = f"inputs of sizes {sizes} must fit into memory. PyTorch says: {reason}. Write smaller numbers."
            raise UsageError(msg) from None

    def _drawn(self, generator: torch.Generator) -> Tensor:
        if self.kind == "mask":
            return torch.ones(self.shape, dtype=torch.long)
        if self.kind == "ids":
            return torch.randint(self.below, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


def parse_tensor(text: str) -> Drawn:
    """Return the tensor that a text describes.

    >>> parse_tensor("8x3x224x224")
    Drawn(kind='float', shape=(8, 3, 224, 224), below=0)
    >>> parse_tensor("ids:4x128<50257")
    Drawn(kind='ids', shape=(4, 128), below=50257)

    Args:
        text: Sizes joined by ``x``, for standard normal numbers; ``ids:`` before and ``<N`` behind them for whole numbers from 0
            to N - 1; ``mask:`` before them for ones.

    Raises:
        UsageError: The text has another form.
    """
    match = _FORM.fullmatch(text.strip())
    kind = match[1] or "float" if match else ""
    if match is None or (kind == "ids") != bool(match[3]) or match[3] == "0" or "0" in match[2].split("x"):
        msg = (
            "inputs must be sizes such as 8x3x224x224 (normal numbers), ids:4x128<50257 (whole numbers below 50257), mask:4x128 "
            "(ones), or MODULE:NAME. An argument's name may stand before them: input_ids=ids:4x128<50257. "
            f"Got {text!r}.{_nearest(text)}"
        )
        raise UsageError(msg)
    return Drawn(kind, tuple(map(int, match[2].split("x"))), int(match[3] or 0))


def _nearest(text: str) -> str:
    """Return a hint for sizes with other signs between them, and for ids without a limit; empty for other texts."""
    if re.fullmatch(r"ids:\d+(x\d+)*", text):
        return f" Write how many ids there are: '{text}<50257'."
    found = re.fullmatch(r"[(\[]?\s*(\d+(?:\s*[,×*xX ]\s*\d+)*)\s*,?\s*[)\]]?", text)
    return f" Did you mean {'x'.join(re.findall(r'[0-9]+', found[1]))!r}?" if found else ""


def drawn_inputs(texts: Sequence[str], *, what: str = "the inputs") -> Any:
    """Return inputs for a measurement: a function of a generator, or the object that ``MODULE:NAME`` names.

    Args:
        texts: One text per argument of the model. All of them have a name, as in ``input_ids=ids:4x128<50257``, or none has.
        what: What they are, for messages.

    Raises:
        UsageError: A text has another form, or only some have a name.
    """
    if len(texts) == 1 and is_place(texts[0]):
        return imported(texts[0], what=what)
    named = named_texts(texts)
    if named and len(named) < len(texts):
        msg = f"either all inputs have a name, as in input_ids=ids:4x128<50257, or none has. Got {', '.join(texts)}."
        raise UsageError(msg)
    if named:
        return _named({name: parse_tensor(text) for name, text in named.items()})
    return _positional([parse_tensor(text) for text in texts])


def named_texts(texts: Sequence[str]) -> dict[str, str]:
    """Return the texts that have a name before them, by this name.

    >>> named_texts(["input_ids=ids:4x128<50257"])
    {'input_ids': 'ids:4x128<50257'}
    """
    return {match[1]: match[2] for text in texts if (match := _NAMED.fullmatch(text))}


def is_place(text: str) -> bool:
    """Return whether a text names an object, ``package.module:batch``, and describes no tensor."""
    is_drawn = _FORM.fullmatch(text) is not None or text.startswith(("ids:", "mask:", "float:"))
    return ":" in text and "=" not in text and not is_drawn


def _named(tensors: dict[str, Drawn]) -> Callable[[torch.Generator], dict[str, Tensor]]:
    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        return {name: tensor.draw(generator) for name, tensor in tensors.items()}

    return inputs


def _positional(tensors: Sequence[Drawn]) -> Callable[[torch.Generator], Tensor | tuple[Tensor, ...]]:
    def inputs(generator: torch.Generator) -> Tensor | tuple[Tensor, ...]:
        found = tuple(tensor.draw(generator) for tensor in tensors)
        return found[0] if len(found) == 1 else found

    return inputs
