"""A hand-written convolutional network with a loss: a complete measurement in one test."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_trainability import at_least, at_most, within


class Block(nn.Module):
    """The basic block of He et al. (2016): two convolutions with BatchNorm around a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class ResNet(nn.Module):
    """ResNet-20 for images of 32 × 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(*[Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


def test_resnet20(trainability):
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    resnet = trainability(ResNet, images, target=labels, loss=F.cross_entropy)

    # The steps are its nine blocks, and BatchNorm makes the samples of a batch interact.
    assert str(resnet.steps) == "9 × Block"
    assert resnet.frame == "joint"
    # All bounds are judged, and one failure lists every violation.
    resnet.check(log_gain=within(5), gradient_norm=within(1e-4, 1e3), unused_parameters=at_most(0))
    # A profile has its elements by name.
    assert resnet.gradient_norm["stem.0.weight"] > 1e-3
    assert resnet.growth_rate.argmax.startswith("blocks.")
    # The growth of activations is a separate question.
    assert abs(resnet.forward_log_gain) < 2
    resnet.check(activation_rms=within(0.1, 10), relative_gradient_norm=at_least(1e-6))
