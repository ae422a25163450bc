"""Operators as autograd knows them, and what is known of each by its name."""

from __future__ import annotations

from torch.autograd.graph import Node

__all__ = ["CONVOLUTIONS", "MOVES", "TRANSPOSES", "operator_name"]


def operator_name(node: Node) -> str:
    """Return the name of a node's operator: ``"Addmm"`` of ``AddmmBackward0``."""
    return type(node).__name__.rstrip("0123456789").removesuffix("Backward").lstrip("_")


TRANSPOSES = frozenset({"T", "Transpose", "Permute", "Movedim"})
MOVES = frozenset(
    TRANSPOSES
    | {"View", "UnsafeView", "ReshapeAlias", "AsStrided", "Expand", "Unsqueeze", "Squeeze", "ToCopy", "Clone", "Alias"}
    | {"Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Narrow", "Cat", "Stack"}
)
"""These hand numbers on as they are, to another place."""
CONVOLUTIONS = frozenset(
    {"Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "CudnnConvolution", "SlowConv2D"}
)
