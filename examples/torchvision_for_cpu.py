"""Make a torchvision that was built for CUDA importable with a PyTorch for the CPU.

The import of torchvision registers implementations of operators that only its binary part declares, and this part cannot be
loaded. timm imports torchvision, and so does transformers if it is installed.
"""

from __future__ import annotations

import torch

__all__ = ["declare_torchvision_operators"]

_kept: list[torch.library.Library] = []
"""A library removes its declarations when it is garbage collected."""


def declare_torchvision_operators() -> None:
    """Declare the schemas that the import of torchvision requires, unless PyTorch can load its binary part."""
    if torch.version.cuda is not None or _kept:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
