"""The chance loss: which losses are recognized as a mean cross-entropy, and among how many classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import InapplicableError, Measurement, measure
from pytest_trainability.measures.loss.chance_loss import _is_multiple

BATCH, CLASSES = 4, 5
Loss = Callable[..., Any]


def classifier(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs))


def found(loss: Loss | None, target: Tensor | None, model: Any = classifier, **options: Any) -> Measurement:
    inputs = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0))
    return measure(model, inputs, loss=loss, target=target, seeds=1, measures=[], **options)


def chance(loss: Loss | None, target: Tensor | None, model: Any = classifier, **options: Any) -> float:
    """Return the chance loss, the difference of the loss and its excess."""
    result = found(loss, target, model, **options)
    return result.initial_loss.mean - result.excess_loss.mean


LABELS = torch.arange(BATCH) % CLASSES
BITS = torch.tensor([[1.0], [0.0], [1.0], [1.0]])

RECOGNIZED: dict[str, tuple[Loss, Tensor, int]] = {
    "cross_entropy": (F.cross_entropy, LABELS, CLASSES),
    "by keyword": (lambda o, t: F.cross_entropy(input=o, target=t), LABELS, CLASSES),
    "nll_loss of log_softmax": (lambda o, t: F.nll_loss(F.log_softmax(o, 1), t), LABELS, CLASSES),
    "torch.log_softmax": (lambda o, t: F.nll_loss(torch.log_softmax(o, -1), t), LABELS, CLASSES),
    "Tensor.log_softmax": (lambda o, t: F.nll_loss(o.log_softmax(1), t), LABELS, CLASSES),
    "label smoothing": (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1), LABELS, CLASSES),
    "a small auxiliary term": (lambda o, t: F.cross_entropy(o, t) + 0.001, LABELS, CLASSES),
    "by hand": (lambda o, t: (o.exp().sum(1).log() - o.gather(1, t[:, None])[:, 0]).mean(), LABELS, CLASSES),
}


@pytest.mark.parametrize(("loss", "target", "classes"), RECOGNIZED.values(), ids=RECOGNIZED)
def test_the_number_of_classes_is_found(loss: Loss, target: Tensor, classes: int) -> None:
    # The auxiliary term is a part of the chance loss.
    assert chance(loss, target) == pytest.approx(math.log(classes), abs=0.0011)


@pytest.mark.parametrize(
    "loss", [F.binary_cross_entropy_with_logits, lambda o, t: F.binary_cross_entropy(o.sigmoid(), t)]
)
def test_binary_losses_have_two_classes(loss: Loss) -> None:
    assert chance(loss, BITS, lambda: classifier(1)) == pytest.approx(math.log(2), rel=1e-6)


def test_a_given_number_of_classes_needs_no_second_forward_pass() -> None:
    calls = []

    def counted() -> nn.Module:
        model = classifier()
        model.register_forward_hook(lambda *_: calls.append(1))
        return model

    result = found(F.mse_loss, torch.zeros(BATCH, CLASSES), counted, classes=7)
    before = len(calls)
    given = result.initial_loss.mean - result.excess_loss.mean
    assert given == pytest.approx(math.log(7))
    # One run for each of the two measures.
    assert len(calls) - before == 2


def refuses_equal_scores(output: Tensor, target: Tensor) -> Tensor:
    loss, other = (F.cross_entropy(output, t) for t in (target, (target + 1) % CLASSES))
    if bool(loss == other):
        msg = "these are no scores of a model"
        raise ValueError(msg)
    return loss


REFUSED: dict[str, tuple[Loss, Tensor, str]] = {
    "no cross-entropy": (
        F.mse_loss,
        torch.zeros(BATCH, CLASSES),
        "No cross-entropy was found in the loss of 'mse_loss'",
    ),
    "a sum": (
        lambda o, t: F.cross_entropy(o, t, reduction="sum"),
        LABELS,
        "it is 6.438 instead of 1.609, the logarithm. That is 4 times as much: the loss is a sum. Reduce it by mean.",
    ),
    "a large further term": (
        lambda o, t: F.cross_entropy(o, t) + 0.5,
        LABELS,
        "it is 2.109 instead of 1.609, the logarithm: the loss is a sum, or has further terms. To compare",
    ),
    "no label": (F.cross_entropy, torch.full((BATCH,), -100), "it is NaN. Look for a batch without a label"),
    "two numbers of classes": (
        lambda o, t: F.cross_entropy(o, t) + F.cross_entropy(o[:, :3], t % 3),
        LABELS,
        "computes one over 5 and 3 classes",
    ),
    "probabilities of zero": (
        lambda o, t: -torch.distributions.Categorical(probs=o.softmax(1).clamp(0, 1) * (o != 0)).log_prob(t).mean(),
        LABELS,
        "No cross-entropy was found",
    ),
    "a covariance of zero": (
        lambda o, t: (
            -torch.distributions.MultivariateNormal(o, covariance_matrix=torch.diag_embed(o.square()))
            .log_prob(t[:, None].expand(-1, CLASSES).float())
            .mean()
        ),
        LABELS,
        "No cross-entropy was found",
    ),
    "scores that may not be equal": (
        refuses_equal_scores,
        LABELS,
        "computes one, but cannot be evaluated at equal scores for all classes. To compare",
    ),
}


@pytest.mark.parametrize(("loss", "target", "message"), REFUSED.values(), ids=REFUSED)
def test_other_losses_are_refused(loss: Loss, target: Tensor, message: str) -> None:
    with pytest.raises(InapplicableError) as refused:
        _ = found(loss, target).excess_loss
    assert str(refused.value).startswith("excess_loss needs a loss that is a mean cross-entropy")
    assert message in str(refused.value)


def test_equal_scores_have_no_excess() -> None:
    def zero_head() -> nn.Module:
        model = classifier()
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        return model

    assert found(F.cross_entropy, LABELS, zero_head).excess_loss.mean == pytest.approx(0, abs=1e-6)


def test_a_run_without_a_loss_is_refused() -> None:
    for name in ("initial_loss", "excess_loss"):
        with pytest.raises(InapplicableError, match="need a loss"):
            getattr(found(None, None), name)


@pytest.mark.parametrize(
    ("ratio", "dtype", "expected"),
    [
        (4.0, torch.float32, True),
        (4.001, torch.float32, False),
        (1.0, torch.float32, False),
        # Eight units of float16 are 0.0078: ten terms may be off by 0.078.
        (10.05, torch.float16, True),
        (10.09, torch.float16, False),
        # From thirteen terms on, the round-off of float16 hides which whole number it is. In bfloat16, two terms do.
        (13.0, torch.float16, False),
        (2.0, torch.bfloat16, False),
    ],
)
def test_a_multiple_is_recognized_up_to_round_off(ratio: float, dtype: torch.dtype, expected: bool) -> None:
    assert _is_multiple(ratio, dtype) is expected
