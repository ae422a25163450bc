"""Names of the operators behind autograd nodes, and sets of operators with a common property.

All code compares these names, never the class names of nodes.
"""

from __future__ import annotations

import re
from functools import cache

from torch.autograd.graph import Node

from ..torch_internals import node_name

__all__ = ["CONVOLUTIONS", "ENTRYWISE", "KERNELS", "LAYOUTS", "MOVES", "PRODUCTS", "TRANSPOSES", "operator_name"]


TRANSPOSES = frozenset({"T", "Transpose", "Permute", "Movedim"})
"""Operators that reorder dimensions."""
MOVES = frozenset(
    TRANSPOSES
    | {"View", "UnsafeView", "ReshapeAlias", "AsStrided", "Expand", "Unsqueeze", "Squeeze", "ToCopy", "Clone", "Alias"}
    | {"Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Narrow", "Cat", "Stack"}
)
"""Operators that move entries to another place and leave their values unchanged."""
CONVOLUTIONS = frozenset(
    {"Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "CudnnConvolution", "SlowConv2D"}
)
"""Operators that convolve, on any device."""
PRODUCTS = CONVOLUTIONS | {"Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Mv", "Dot", "Linear", "MkldnnLinear"}
"""Operators that multiply two tensors and sum."""

ENTRYWISE = frozenset(
    {"Add", "Sub", "Rsub", "Mul", "Div", "Addcmul", "Where", "MaskedFill", "Cat", "Stack"}
    | {"NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm"}
)
"""Operators in which a parameter scales, shifts, replaces or joins entries of the signal, and mixes none."""

LAYOUTS = frozenset(
    {"View", "UnsafeView", "ReshapeAlias", "AsStrided", "Expand", "Unsqueeze", "Squeeze", "Clone", "Alias"}
)
"""Operators that only change how a tensor lies in memory or how its dimensions are counted. PyTorch inserts them as it needs."""
_ATTENTION = ("FlashAttention", "FlashAttentionForCpu", "EfficientAttention", "CudnnAttention")
KERNELS = {
    **dict.fromkeys(CONVOLUTIONS | {"MiopenConvolution"}, "Convolution"),
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"), "BatchNorm"),
    **dict.fromkeys((f"ScaledDotProduct{kind}" for kind in _ATTENTION), "ScaledDotProductAttention"),
    "NativeLayerNorm": "LayerNorm",
    "NativeGroupNorm": "GroupNorm",
    "NativeDropout": "Dropout",
    "SafeSoftmax": "Softmax",
}
"""Operators that compute the same by other kernels, and the name of what they compute."""

_BUILT_IN = re.compile(r"(.+)Backward\d+")


def operator_name(node: Node) -> str:
    """Return the name of the operator that made a node, such as ``"Addmm"`` for ``AddmmBackward0``.

    Only PyTorch's own operators are numbered. The node of a ``torch.autograd.Function`` keeps its whole class name, so that a
    user's ``Add``, whose node is ``AddBackward``, is not taken for an addition.
    """
    return _without_suffix(node_name(node))


@cache
def _without_suffix(name: str) -> str:
    built_in = _BUILT_IN.fullmatch(name)
    return built_in[1] if built_in else name
