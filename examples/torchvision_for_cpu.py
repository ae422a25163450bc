"""Let a torchvision that was built for CUDA be imported beside a PyTorch for the CPU.

Its import describes operators that only its missing binary part declares. timm imports torchvision, and so does
transformers where it finds it.
"""

from __future__ import annotations

import torch

__all__ = ["declare_torchvision_operators"]

_kept: list[torch.library.Library] = []
"""A library undoes its declarations when it is collected."""


def declare_torchvision_operators() -> None:
    """Declare the schemas that torchvision's own import asks for, where its binary part will not be loaded."""
    if torch.version.cuda is not None or _kept:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
