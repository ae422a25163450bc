"""Squashed scores: places, precision, and what lies between the activation and the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


class Head(nn.Module):
    """A layer and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(x)
        return scores.softmax(-1)


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.body(x))


def lines(build: Callable[[], nn.Module], loss: Callable[..., Tensor], x: Tensor = X, y: Tensor = LABELS) -> list[str]:
    return [*measure(build, x, target=y, loss=loss, seeds=1).squashed_scores]


def test_the_innermost_module_is_named_or_the_class_of_the_model() -> None:
    (inner,) = lines(lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(Head())), F.cross_entropy)
    (whole,) = lines(lambda: Net(lambda y: y.softmax(-1)), F.cross_entropy)
    assert inner.startswith("1.0 (Head): ")
    assert whole.startswith("Net: ")


def test_two_losses_that_read_the_same_probabilities_are_one_line() -> None:
    loss = lambda y, t: F.cross_entropy(y, t) + F.cross_entropy(y[:3], t[:3])  # noqa: E731
    assert len(lines(lambda: Net(lambda y: y.softmax(-1)), loss)) == 1


def test_a_cross_entropy_inside_of_the_model_is_not_that_of_the_output() -> None:
    """A product with weights ends the search: what lies before it is not read as scores of the loss."""
    build = lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.LogSoftmax(1), nn.Linear(4, 3))  # noqa: E731
    assert lines(build, F.cross_entropy) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logarithms_of_low_precision_are_logarithms(dtype: torch.dtype) -> None:
    """They pass a float32 that hides the log_softmax from the loss, and are judged by their sums."""
    assert lines(lambda: Net(lambda y: (4 * y).to(dtype).log_softmax(-1).float() * 1.0), F.nll_loss) == []


def test_a_single_sample_and_images_have_their_classes_in_another_dimension() -> None:
    one = lambda y, t: F.nll_loss(y[0], t[0]) + F.nll_loss(y.log_softmax(1), t)  # noqa: E731
    assert len(lines(lambda: Net(lambda y: y - y.mean(-1, keepdim=True)), one)) == 1
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 4, 4, dtype=torch.long)
    assert (
        lines(
            lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.LogSoftmax(1)),
            lambda y, t: F.nll_loss(y * 1.0, t),
            images,
            masks,
        )
        == []
    )
    assert len(lines(lambda: nn.Conv2d(3, 3, 1), lambda y, t: F.nll_loss(y * 1.0, t), images, masks)) == 1


def test_scores_that_are_not_finite_are_left_to_other_measures() -> None:
    assert lines(lambda: Net(lambda y: y * torch.nan), F.nll_loss) == []
