"""What a guess costs is known to the last digit; what Gaussian logits cost above it, on average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
import zoo
from torch import Tensor, nn

from pytest_trainability import InapplicableError, UsageError, measure

CLASSES, BATCH, WIDTH = 10, 8, 16
Loss = Callable[[Tensor, Tensor], Tensor]


def classifier(*, out: int = CLASSES, zero: bool = False) -> Callable[[], nn.Module]:
    """Return a factory of a tanh tower with a linear head, zero where asked for."""

    def build() -> nn.Module:
        layers = [layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
        head = nn.Linear(WIDTH, out)
        if zero:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        return nn.Sequential(*layers, head)

    return build


def labels(*shape: int, classes: int = CLASSES) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(classes, shape, generator=generator)


def vectors(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=generator)


# Losses that are cross-entropies, by whatever way -----------------------------------------------------------------


def weighted(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, weight=torch.linspace(1, 2, logits.shape[1], dtype=logits.dtype))


def smoothed(logits: Tensor, target: Tensor) -> Tensor:
    return nn.CrossEntropyLoss(label_smoothing=0.1)(logits, target)


def of_log_softmax(logits: Tensor, target: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(1, target[:, None]).mean()


def of_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(logits.softmax(-1).clamp_min(1e-30).log(), target)


def by_hand(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.logsumexp(1) - logits.gather(1, target[:, None])[:, 0]).mean()


def masked(logits: Tensor, target: Tensor) -> Tensor:
    each = F.cross_entropy(logits, target, reduction="none")
    mask = torch.arange(len(each)) % 2
    return (each * mask).sum() / mask.sum()


def soft(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, F.one_hot(target, CLASSES).to(logits.dtype) * 0.9 + 0.1 / CLASSES)


LOSSES = [F.cross_entropy, weighted, smoothed, of_log_softmax, of_probabilities, by_hand, masked, soft]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_logits_cost_what_a_guess_costs(loss: Loss, dtype: torch.dtype) -> None:
    """Zero logits: the loss is ln(classes), and the excess zero, exactly where scores enter the loss as they are."""
    found = measure(classifier(zero=True), vectors, target=labels(BATCH), loss=loss, seeds=2, dtype=dtype)
    # Rounding of the logarithm, and of a mean over eight samples.
    assert found.initial_loss.mean == pytest.approx(math.log(CLASSES), abs=8 * torch.finfo(dtype).eps)
    rounding = 8 * torch.finfo(dtype).eps if loss is of_probabilities else 0.0
    assert found.excess_loss.values == pytest.approx((0.0, 0.0), abs=rounding, rel=0)
    assert found.excess_loss.unit == "nats"


@pytest.mark.parametrize("loss", LOSSES)
def test_excess_is_the_loss_above_a_guess(loss: Loss) -> None:
    found = measure(classifier(), vectors, target=labels(BATCH), loss=loss, seeds=2, dtype="float64")
    expected = found.initial_loss - math.log(CLASSES)
    assert found.excess_loss.values == pytest.approx(expected.values, abs=1e-12)
    assert abs(found.excess_loss) > 1e-3


def logistic(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits[:, 0], target.to(logits.dtype))


def logistic_of_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    return nn.BCELoss()(logits[:, 0].sigmoid(), target.to(logits.dtype))


def logistic_by_hand(logits: Tensor, target: Tensor) -> Tensor:
    return F.softplus(logits[:, 0] * (1 - 2 * target)).mean()


@pytest.mark.parametrize("loss", [logistic, logistic_of_probabilities, logistic_by_hand])
def test_of_two_classes_a_guess_costs_the_logarithm_of_two(loss: Loss) -> None:
    found = measure(
        classifier(out=1, zero=True), vectors, target=labels(BATCH, classes=2), loss=loss, seeds=2, dtype="float64"
    )
    assert found.initial_loss.mean == pytest.approx(math.log(2), abs=1e-15)
    assert found.excess_loss.values == (0.0, 0.0)


@pytest.mark.parametrize(("std", "classes"), [(0.5, 1000), (1.0, 1000)])
def test_gaussian_logits(std: float, classes: int) -> None:
    """E excess = s²/2 - (e^{s²} - 1) / 2C, for E ln mean e^z ≈ ln E e^z - Var(mean e^z) / 2 (E e^z)², and E z_y = 0.

    Inputs of norm √d and weights of variance s²/d make the logits of each sample independent N(0, s²). The loss of a
    sample varies by z_y, of variance s², and by its normalizer, of (e^{s²} - 1)/C: of the mean over 8 seeds of 64
    samples the standard error is sqrt((s² + (e^{s²} - 1)/C)/512); samples share weights, but not those of other labels.
    The next order of the expansion is (e^{3s²} - 3e^{s²} + 2)/3C², below 1e-5.
    """
    width, batch = 256, 64

    def build() -> nn.Module:
        layer = nn.Linear(width, classes, bias=False)
        nn.init.normal_(layer.weight, std=std / math.sqrt(width))
        return nn.Sequential(layer)

    def on_sphere(generator: torch.Generator) -> Tensor:
        x = torch.randn(batch, width, generator=generator)
        return x * math.sqrt(width) / x.norm(dim=1, keepdim=True)

    found = measure(build, on_sphere, target=labels(batch, classes=classes), loss=F.cross_entropy, seeds=8)
    variance = std**2 + math.expm1(std**2) / classes
    expected = std**2 / 2 - math.expm1(std**2) / (2 * classes)
    assert found.excess_loss.mean == pytest.approx(expected, abs=4 * math.sqrt(variance / (8 * batch)))


# Shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "loss", "shape"),
    [
        pytest.param(3, F.cross_entropy, (4, 6, 6), id="classes-in-dim-1"),
        pytest.param(3, lambda o, t: F.cross_entropy(o.movedim(1, -1).flatten(0, 2), t.flatten()), (4, 6, 6), id="flattened"),
    ],
)  # fmt: skip
def test_classes_of_every_pixel(kernel: int, loss: Loss, shape: tuple[int, ...]) -> None:
    """Ten classes on six by six pixels in a batch of four: the ten is found, wherever it stands."""

    def build() -> nn.Module:
        head = nn.Conv2d(8, CLASSES, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return nn.Sequential(nn.Conv2d(3, 8, kernel, padding=1), nn.BatchNorm2d(8), nn.ReLU(), head)

    found = measure(build, lambda g: torch.randn(4, 3, 6, 6, generator=g), target=labels(*shape), loss=loss, seeds=2)
    assert found.excess_loss.values == (0.0, 0.0)
    assert found.initial_loss.mean == pytest.approx(math.log(CLASSES), abs=1e-6)


def test_classes_may_be_given() -> None:
    """What is given counts, and nothing is looked for: of a sum over eight samples, seven logarithms are left."""
    how: dict[str, Any] = {"target": labels(BATCH), "loss": nn.CrossEntropyLoss(reduction="sum"), "classes": CLASSES}
    found = measure(classifier(zero=True), vectors, seeds=2, dtype="float64", **how)
    assert found.excess_loss.mean == pytest.approx(7 * math.log(CLASSES), abs=1e-12)
    how["loss"] = F.cross_entropy
    found = measure(classifier(zero=True), vectors, seeds=2, dtype="float64", **how)
    assert found.excess_loss.mean == pytest.approx(0, abs=1e-15)


def test_eval_mode_is_measured_where_it_is_asked_for() -> None:
    """Without dropout the loss is another; the guess is the same."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    how: dict[str, Any] = {"target": labels(BATCH), "loss": F.cross_entropy, "seeds": 2, "dtype": "float64"}
    train, evaluated = (measure(build, vectors, train=mode, **how) for mode in (True, False))
    assert train.initial_loss.values != evaluated.initial_loss.values
    for found in (train, evaluated):
        assert (found.initial_loss - found.excess_loss.mean).mean == pytest.approx(math.log(CLASSES), abs=1e-12)


# Faults 19 and 20, and real models -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "guesses"),
    [("gpt2", zoo.VOCAB, True), ("bert", zoo.VOCAB, True), ("vit", zoo.CLASSES, True), ("t5", zoo.VOCAB, False)],
)
def test_models_of_transformers_begin_with_a_guess(name: str, classes: int, guesses: bool) -> None:
    """Heads of standard deviation 0.02 on 48 features of unit variance: logits of variance 0.02, an excess of 0.01.

    T5's head is drawn from N(0, 1), and its own scaling by 1/√d is no longer the default.
    """
    case = next(c for c in zoo.CASES if c.id == name)
    found = measure(case.build, case.inputs, seeds=2)
    assert found.excess_loss.mean == pytest.approx(found.initial_loss.mean - math.log(classes), abs=1e-5)
    variance = 48 * 0.02**2
    # The logit of the label of each sample or token adds its deviation: four standard errors.
    limit = variance / 2 + 4 * math.sqrt(variance / (2 * case.inputs(torch.Generator())["labels"].numel()))
    assert (abs(found.excess_loss) < limit) == guesses


def test_a_head_that_is_too_large_costs_much_more_than_a_guess() -> None:
    """All weights of standard deviation one: the logits have one of √16, and the largest of ten is far above."""

    def build() -> nn.Module:
        model = classifier()()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        return model

    found = measure(build, vectors, target=labels(BATCH), loss=F.cross_entropy, seeds=4)
    assert found.excess_loss > 2
    assert measure(classifier(), vectors, target=labels(BATCH), loss=F.cross_entropy, seeds=4).excess_loss < 0.2


# Where there is no answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["initial_loss", "excess_loss"])
def test_without_a_loss_there_is_none(name: str) -> None:
    with pytest.raises(InapplicableError, match=r"need a loss\. Hand one in"):
        measure(classifier(), vectors, seeds=1, measures=[name])


def regression(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(target, CLASSES).to(output.dtype))


def with_penalty(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target) + 0.1


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (regression, "No cross-entropy was found in the loss of 'regression'"),
        (nn.CrossEntropyLoss(reduction="sum"), "computes one over 10 classes, but .* 18.42 instead of 2.303"),
        (with_penalty, "computes one over 10 classes, but .* 2.403 instead of"),
    ],
)
def test_a_loss_that_is_no_mean_cross_entropy(loss: Loss, text: str) -> None:
    """The loss itself is measured; the excess is not made up."""
    found = measure(classifier(), vectors, target=labels(BATCH), loss=loss, seeds=1)
    assert found.initial_loss > 0
    with pytest.raises(UsageError, match=text) as raised:
        found.excess_loss  # noqa: B018  reading it measures
    # Of a sum, classes= would subtract one logarithm from many.
    assert ("classes=10" in str(raised.value)) != ("Reduce it by mean" in str(raised.value))


def test_a_sum_is_to_be_reduced() -> None:
    with pytest.raises(
        InapplicableError, match=f"{BATCH} times as much: the loss is a sum. Reduce it by mean"
    ) as raised:
        measure(
            classifier(),
            vectors,
            target=labels(BATCH),
            loss=nn.CrossEntropyLoss(reduction="sum"),
            measures=["excess_loss"],
        )
    assert "classes=" not in str(raised.value)


def test_a_loss_that_is_no_number_is_no_sum() -> None:
    ignored = torch.full((BATCH,), -100)
    with pytest.raises(InapplicableError, match=r"it is NaN. Look for a batch without a label"):
        measure(classifier(), vectors, target=ignored, loss=F.cross_entropy, measures=["excess_loss"])


def test_a_frozen_model_can_be_compared_with_a_guess() -> None:
    """What is not trained has a loss all the same, however the cross-entropy is computed."""

    def by_hand(logits: Tensor, target: Tensor) -> Tensor:
        return (logits.exp().sum(dim=1).log() - logits.gather(1, target[:, None])[:, 0]).mean()

    for loss in (F.cross_entropy, of_log_softmax, by_hand):
        found = measure(
            lambda: classifier()().requires_grad_(False),
            vectors,
            target=labels(BATCH),
            loss=loss,
            measures=["excess_loss"],
        )
        whole = measure(classifier(), vectors, target=labels(BATCH), loss=loss, measures=["excess_loss"])
        assert found.excess_loss.values == whole.excess_loss.values


def test_a_small_loss_beside_is_part_of_the_guess() -> None:
    """A router's loss of a fiftieth of a nat is no excess of the classes."""
    own = measure(classifier(zero=True), vectors, target=labels(BATCH), loss=with_little_beside, seeds=1)
    assert own.initial_loss.mean == pytest.approx(math.log(CLASSES) + 0.02, abs=1e-6)
    assert own.excess_loss.mean == 0.0


def with_little_beside(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target) + 0.02


class OwnLoss(nn.Module):
    """A model that computes its loss among two heads' worth of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = self.body(x).tanh()
        return {"loss": (F.cross_entropy(self.first(h), labels) + F.cross_entropy(self.second(h), labels)) / 2}


def test_two_numbers_of_classes_are_not_one() -> None:
    inputs = {"x": torch.randn(BATCH, WIDTH), "labels": torch.arange(BATCH) % 5}
    with pytest.raises(UsageError, match="over 10 and 5 classes"):
        measure(OwnLoss, inputs, seeds=1, measures=["excess_loss"])
    assert measure(OwnLoss, inputs, seeds=1, classes=7).excess_loss < 0.5


def test_nothing_is_left_behind() -> None:
    """A finished module in training mode: running statistics and generators are what they were."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, state = torch.randn(BATCH, WIDTH), torch.get_rng_state()
    found = measure(model, inputs, target=torch.arange(BATCH), loss=F.cross_entropy)
    assert found.excess_loss < 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
