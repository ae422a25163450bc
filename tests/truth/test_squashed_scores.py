"""Activations between the last layer and a loss that expects scores of any size, or logarithms of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, measure

CLASSES = 5
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % CLASSES
BITS = (torch.arange(12 * CLASSES) % 2).reshape(12, CLASSES).float()


class Through(nn.Module):
    """Applies a function of PyTorch."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


Ending: TypeAlias = "Callable[[Tensor], Tensor] | nn.Module"


def found(end: Ending, loss: Callable[..., Tensor], target: Tensor) -> list[str]:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, CLASSES), end if isinstance(end, nn.Module) else Through(end)
        )

    return [*measure(build, X, target=target, loss=loss, seeds=2).squashed_scores]


def entropy_of_hand(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


SQUASHED: dict[str, tuple[Ending, Callable[..., Tensor], Tensor, str]] = {
    "softmax": (nn.Softmax(1), F.cross_entropy, LABELS, "3 (Softmax): softmax before cross_entropy"),
    "a function": (
        lambda y: y.softmax(-1),
        F.cross_entropy,
        LABELS,
        "3 (Through): softmax before cross_entropy",
    ),
    "sigmoid": (nn.Sigmoid(), F.cross_entropy, LABELS, "3 (Sigmoid): sigmoid before cross_entropy"),
    "sigmoid twice": (
        nn.Sigmoid(),
        F.binary_cross_entropy_with_logits,
        BITS,
        "3 (Sigmoid): sigmoid before binary_cross_entropy_with_logits",
    ),
    "tanh": (nn.Tanh(), F.cross_entropy, LABELS, "3 (Tanh): tanh before cross_entropy"),
    "ReLU": (nn.ReLU(), F.cross_entropy, LABELS, "3 (ReLU): relu before cross_entropy"),
    "ReLU in place": (nn.ReLU(inplace=True), F.cross_entropy, LABELS, "3 (ReLU): relu before cross_entropy"),
    "by hand": (nn.Softmax(1), entropy_of_hand, LABELS, "3 (Softmax): softmax before cross_entropy"),
    "smoothed": (
        nn.Softmax(1),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        LABELS,
        "3 (Softmax): softmax before cross_entropy",
    ),
    "probabilities as targets": (
        nn.Softmax(1),
        F.cross_entropy,
        BITS.softmax(1),
        "3 (Softmax): softmax before cross_entropy",
    ),
    "through a mask": (
        nn.Softmax(1),
        lambda y, t: F.cross_entropy(y[t > 0].unsqueeze(-1).flatten(1), t[t > 0]),
        LABELS,
        "3 (Softmax): softmax before cross_entropy",
    ),
    "ReLU6": (nn.ReLU6(), F.cross_entropy, LABELS, "3 (ReLU6): hardtanh before cross_entropy"),
    "hardtanh": (nn.Hardtanh(), F.cross_entropy, LABELS, "3 (Hardtanh): hardtanh before cross_entropy"),
    "hardsigmoid": (nn.Hardsigmoid(), F.cross_entropy, LABELS, "3 (Hardsigmoid): hardsigmoid before cross_entropy"),
    "hardsigmoid of bits": (
        nn.Hardsigmoid(),
        F.binary_cross_entropy_with_logits,
        BITS,
        "3 (Hardsigmoid): hardsigmoid before binary_cross_entropy_with_logits",
    ),
    "a clamp to probabilities": (
        lambda y: y.clamp(0, 1),
        F.cross_entropy,
        LABELS,
        "3 (Through): clamp before cross_entropy",
    ),
    "a clamp at zero": (lambda y: y.clamp(min=0), F.cross_entropy, LABELS, "3 (Through): clamp before cross_entropy"),
    "dropout": (
        nn.Sequential(nn.Softmax(1), nn.Dropout(0.3)),
        F.cross_entropy,
        LABELS,
        "3.0 (Softmax): softmax before cross_entropy",
    ),
    "a mask": (
        lambda y: torch.ones(CLASSES).expand(12, -1).triu() * y.softmax(1),
        F.cross_entropy,
        LABELS,
        "3 (Through): softmax before cross_entropy",
    ),
    "a categorical distribution": (
        nn.Softmax(1),
        lambda p, t: -torch.distributions.Categorical(logits=p).log_prob(t).mean(),
        LABELS,
        "3 (Softmax): softmax before logsumexp",
    ),
    "probabilities in a divergence": (
        nn.Softmax(1),
        lambda p, t: F.kl_div(p, t, reduction="batchmean"),
        BITS.softmax(1),
        "3 (Softmax): softmax before kl_div",
    ),
    "probabilities in a divergence of a module": (
        nn.Softmax(1),
        nn.KLDivLoss(reduction="sum"),
        BITS.softmax(1),
        "3 (Softmax): softmax before kl_div",
    ),
    "logarithms over samples": (
        nn.LogSoftmax(0),
        F.nll_loss,
        LABELS,
        "3 (LogSoftmax): log_softmax over dimension -2 before nll_loss",
    ),
    "logarithms over positions": (
        lambda y: y[:, None].expand(-1, 7, -1).log_softmax(1),
        lambda y, t: F.nll_loss(y.flatten(0, 1), t.repeat_interleave(7)),
        LABELS,
        "3 (Through): log_softmax over dimension -2 before nll_loss",
    ),
    "raw scores": (nn.Identity(), F.nll_loss, LABELS, "2 (Linear): no log_softmax before nll_loss"),
    "probabilities": (
        nn.Softmax(1),
        F.nll_loss,
        LABELS,
        "3 (Softmax): no log_softmax before nll_loss",
    ),
}


@pytest.mark.parametrize("name", SQUASHED)
def test_what_bounds_the_scores_is_named(name: str) -> None:
    end, loss, target, expected = SQUASHED[name]
    (line,) = found(end, loss, target)
    assert line == expected


HEALTHY: dict[str, tuple[Ending, Callable[..., Tensor], Tensor]] = {
    "scores": (nn.Identity(), F.cross_entropy, LABELS),
    "logits of bits": (nn.Identity(), F.binary_cross_entropy_with_logits, BITS),
    "probabilities of bits": (nn.Sigmoid(), F.binary_cross_entropy, BITS),
    "idempotent": (nn.LogSoftmax(1), F.cross_entropy, LABELS),
    "logarithms": (nn.LogSoftmax(1), F.nll_loss, LABELS),
    "logarithms by hand": (lambda y: y - y.logsumexp(1, keepdim=True), F.nll_loss, LABELS),
    "a logarithm behind a softmax": (lambda y: (y.softmax(1) + 1e-9).log(), F.nll_loss, LABELS),
    "capped scores": (lambda y: 30 * (y / 30).tanh(), F.cross_entropy, LABELS),
    "scores of zero": (lambda y: 0 * y, F.cross_entropy, LABELS),
    "a regression": (nn.Sigmoid(), F.mse_loss, BITS),
    "a mean of rectified features": (lambda y: y.relu().unflatten(1, (CLASSES, 1)).mean(2), F.cross_entropy, LABELS),
    "another activation": (nn.GELU(), F.cross_entropy, LABELS),
    "a focal loss": (nn.LogSoftmax(1), lambda y, t: F.nll_loss((1 - y.exp()) ** 2 * y, t), LABELS),
    "negative learning": (nn.Softmax(1), lambda p, t: F.nll_loss((1 - p).clamp_min(1e-5).log(), t), LABELS),
    "weights of both signs": (
        nn.LogSoftmax(1),
        lambda y, t: F.nll_loss(y * torch.linspace(-1, 1, 12)[:, None], t),
        LABELS,
    ),
    "a prior": (nn.LogSoftmax(1), lambda y, t: F.nll_loss(y - torch.linspace(0, 2, CLASSES), t), LABELS),
    "a class of rejection": (
        lambda y: torch.cat([y[:, :1].relu(), y[:, 1:]], 1),
        F.cross_entropy,
        LABELS,
    ),
    "a wide clamp": (lambda y: y.clamp(-10, 10), F.cross_entropy, LABELS),
    "a wide hardtanh": (nn.Hardtanh(-20, 20), F.cross_entropy, LABELS),
    "dropout of scores": (nn.Dropout(0.3), F.cross_entropy, LABELS),
    "scaled probabilities": (lambda y: torch.tensor(30.0) * y.tanh(), F.cross_entropy, LABELS),
    "a categorical distribution": (
        nn.Identity(),
        lambda y, t: -torch.distributions.Categorical(logits=y).log_prob(t).mean(),
        LABELS,
    ),
    "probabilities of a categorical distribution": (
        nn.Softmax(1),
        lambda p, t: -torch.distributions.Categorical(probs=p).log_prob(t).mean(),
        LABELS,
    ),
    "a penalty of the partition function": (
        nn.Identity(),
        lambda y, t: F.cross_entropy(y, t) + 1e-3 * y.logsumexp(1).square().mean(),
        LABELS,
    ),
    "a soft maximum of probabilities": (lambda y: y.sigmoid().logsumexp(1), F.mse_loss, BITS[:, 0]),
    "a probability of error": (nn.Softmax(1), lambda p, t: (1 - (t * p).sum(1)).mean(), BITS.softmax(1)),
    "a divergence": (nn.LogSoftmax(1), lambda y, t: F.kl_div(y, t, reduction="batchmean"), BITS.softmax(1)),
    "a divergence of logarithms": (
        nn.LogSoftmax(1),
        lambda y, t: F.kl_div(y, t.log(), reduction="batchmean", log_target=True),
        BITS.softmax(1),
    ),
    "a divergence to the model": (
        nn.Softmax(1),
        lambda p, t: F.kl_div(t.log(), p, reduction="batchmean"),
        BITS.softmax(1),
    ),
    "logarithms of pixels": (
        lambda y: y[:, :, None, None].expand(-1, -1, 2, 3).log_softmax(1),
        lambda y, t: F.nll_loss(y, t[:, None, None].expand(-1, 2, 3)),
        LABELS,
    ),
    "logarithms of tokens": (
        lambda y: y[:, None].expand(-1, 7, -1).log_softmax(-1),
        lambda y, t: F.nll_loss(y.flatten(0, 1), t.repeat_interleave(7)),
        LABELS,
    ),
    "a distillation of features": (
        nn.Identity(),
        lambda y, t: F.cross_entropy(y, t) + F.kl_div(y.relu().log_softmax(1), BITS.softmax(1), reduction="batchmean"),
        LABELS,
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_scores_of_any_size_and_logarithms_are_as_they_should_be(name: str) -> None:
    assert found(*HEALTHY[name]) == []


def test_without_a_loss_there_is_nothing_to_name() -> None:
    assert [*measure(lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(1)), X, seeds=1).squashed_scores] == []


def test_the_loss_of_a_softmax_of_scores_cannot_vanish_and_a_preset_says_why() -> None:
    """With probabilities as scores, the smallest cross-entropy of ten classes is ln(1 + 9/e) = 1.46 nats."""
    best = F.cross_entropy(torch.eye(10).double(), torch.arange(10))
    assert float(best) == pytest.approx(math.log(1 + 9 / math.e))
    result = measure(
        lambda: nn.Sequential(nn.Linear(8, CLASSES), nn.Softmax(1)), X, target=LABELS, loss=F.cross_entropy, seeds=2
    )
    with pytest.raises(
        TrainabilityFailure, match=r"squashed_scores 1 \(1 \(Softmax\): softmax before cross_entropy\)"
    ) as raised:
        result.check(preset="mlp")
    reason = "likely cause cross_entropy applies a softmax to scores of any size, and reads numbers from 0 to 1: remove"
    assert reason in " ".join(str(raised.value).split())
