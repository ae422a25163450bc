"""Architectures of timm, if it can be imported."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pytest_trainability import within

try:
    import timm
except (ImportError, RuntimeError) as error:
    pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)


STEPS = {
    "resnet26": "8 × Bottleneck",
    "vit_tiny_patch16_224": "12 × Block",
    "efficientnet_lite0": "15 × InvertedResidual",
    "convmixer_768_32": "65 × Conv2d + 1 × Linear",
}


@pytest.mark.trainability(lyapunov_max=within(0.7))
@pytest.mark.parametrize("architecture", STEPS)
def test_timm(trainability, architecture):
    size = {"img_size": 64} if architecture.startswith("vit") else {}
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
    model = trainability(
        lambda: timm.create_model(architecture, num_classes=10, **size), images, target=labels, loss=F.cross_entropy
    )
    assert str(model.steps) == STEPS[architecture]
