"""The family of a model, by the layers that it has."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from .sample import Sample

__all__ = ["family_of", "family_of_source"]

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION = ("attention", "attn", "multihead", "transformer", "mixer", "mamba")
"""Parts of the names of classes that mix tokens."""
_ATTENDS = frozenset({"scaled_dot_product_attention", "flex_attention"})
_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "transpose", "masked_fill", "tril"})
"""Functions next to a softmax in the code of attention that is written by hand."""
_WORDS = {
    "transformer": "it mixes tokens, as by attention",
    "rnn": "it has recurrent layers",
    "cnn": "it has convolutions",
    "mlp": "it has neither attention, convolutions nor recurrence",
}


def family_of(model: nn.Module) -> tuple[str, str]:
    """Return the preset that suits a model, and why.

    Attention, or what takes its place, makes a transformer. Otherwise the layers with most parameters decide: convolutions,
    recurrent layers or others.

    >>> family_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    ('cnn', 'it has convolutions')

    Args:
        model: The model. It may be on the meta device.
    """
    sizes: Counter[str] = Counter()
    for module in model.modules():
        kind = _kind_of(module)
        if kind == "transformer":
            return kind, _WORDS[kind]
        sizes[kind] += sum(p.numel() for p in module.parameters(recurse=kind != "")) if kind else 0
    family = "rnn" if sizes["rnn"] > sizes["cnn"] else "cnn" if sizes["cnn"] else "mlp"
    return family, _WORDS[family]


def family_of_source(source: Any) -> tuple[str, str]:
    """Return the preset that suits what a factory builds, or a finished module, and why.

    Args:
        source: A factory, a module, or a :class:`~pytest_trainability.sources.sample.Sample`.
    """
    return family_of(Sample.of(source).model or nn.Module())


def _kind_of(module: Any) -> str:
    """Return the family to which a layer belongs; empty for layers of every family."""
    name = type(module).__name__.lower()
    is_known = isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer))
    if is_known or any(word in name for word in _ATTENTION) or _attends(type(module)):
        return "transformer"
    if isinstance(module, _RECURRENT):
        return "rnn"
    return "cnn" if isinstance(module, _CONVOLUTION) else ""


def _attends(kind: type) -> bool:
    """Whether the code of a module calls attention, or a softmax between products."""
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    names = set(code.co_names) if code is not None and not kind.__module__.startswith("torch.") else set()
    return bool(names & _ATTENDS) or ("softmax" in names and bool(names & _PRODUCTS))
