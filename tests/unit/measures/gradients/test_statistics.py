"""Statistics of per-sample gradients: memory, requests, and losses that compare samples."""

from __future__ import annotations

import math

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import BATCH, WIDTH, mean_error, mean_square
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.linalg import gram
from pytest_trainability.engine.linalg.outer_products import dense
from pytest_trainability.engine.runs.ensemble import ensemble
from pytest_trainability.engine.runs.run import Run
from pytest_trainability.errors import UsageError
from pytest_trainability.measures.gradients import statistics
from pytest_trainability.measures.gradients.per_sample import PER_SAMPLE
from pytest_trainability.measures.gradients.statistics import (
    GRADIENT_GRAM,
    GRADIENT_MOMENTS,
    _gram,
    _require_in_span,
)

NOISE = ["gradient_snr", "gradient_confusion", "gradient_noise_scale"]


F64 = torch.float64


def dropping() -> nn.Module:
    return nn.Sequential(*[models.Dropped() for _ in range(3)])


def test_recomputed_chunks_have_the_same_masks(monkeypatch):
    """Gradients that do not fit in memory are computed again for other pairs, with equal results."""
    monkeypatch.setattr(gram, "NUMBERS", 2 * sum(p.numel() for p in dropping().parameters()))
    recipe = models.recipe(dropping, models.vectors(5, WIDTH), loss=mean_square, dtype=F64)

    def read(run: Run) -> dict[str, Tensor]:
        samples = run[PER_SAMPLE]
        flat = torch.cat([torch.cat([dense(g).flatten(1) for g in chunk.values()], 1) for chunk in samples.chunks()])
        return {"K": run[GRADIENT_GRAM], "G": flat}

    found = ensemble(recipe, (0,), [PER_SAMPLE, GRADIENT_GRAM], read).readings[0]
    assert len(found["G"]) == 5
    assert torch.allclose(found["K"], found["G"] @ found["G"].T, rtol=1e-12)


@pytest.mark.parametrize("fit", [1, 2, 3, 10])
def test_chunks_do_not_change_the_numbers(monkeypatch, fit):
    """As many samples at a time as fit in memory, and at least one."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, WIDTH, generator=generator), torch.randn(7, generator=generator)
    torch.manual_seed(0)
    model = models.mlp()
    whole = measure(model, x, target=y, loss=mean_error, dtype=F64, measures=[*NOISE, "ntk_condition_number"])
    monkeypatch.setattr(gram, "NUMBERS", 2 * fit * sum(p.numel() for p in model.parameters()))
    monkeypatch.setattr(gram, "PIECE", 5)
    parts = measure(model, x, target=y, loss=mean_error, dtype=F64, measures=[*NOISE, "ntk_condition_number"])
    assert float(parts.gradient_confusion) == pytest.approx(float(whole.gradient_confusion), rel=1e-10)
    assert float(parts.gradient_noise_scale) == pytest.approx(float(whole.gradient_noise_scale), rel=1e-10)
    # float64 to 1e-15, times a condition number of some 1e5.
    assert float(parts.ntk_condition_number) == pytest.approx(float(whole.ntk_condition_number), rel=1e-8)
    for name, snr in whole.gradient_snr.items():
        assert float(parts.gradient_snr[name]) == pytest.approx(float(snr), rel=1e-10)


def test_measures_are_the_same_together_and_one_by_one():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, WIDTH, generator=generator), torch.randn(4, generator=generator)
    wanted = [*NOISE, "ntk_condition_number", "relative_gradient_norm", "loss_log_gain"]
    at_once = measure(dropping, x, target=y, loss=mean_error, seeds=2, measures=wanted)
    later = measure(dropping, x, target=y, loss=mean_error, seeds=2)
    for name in reversed(wanted):
        left, right = getattr(at_once, name), getattr(later, name)
        if name in {"gradient_snr", "relative_gradient_norm"}:
            assert {n: e.values for n, e in left.items()} == {n: e.values for n, e in right.items()}
        else:
            assert left.values == right.values


def test_a_frozen_model_has_no_noise():
    """The profile is empty, and the scalars are NaN."""
    model = models.mlp().requires_grad_(requires_grad=False)
    result = measure(model, models.vectors()(torch.Generator()), loss=mean_square, measures=NOISE)
    assert len(result.gradient_snr) == 0
    assert math.isnan(float(result.gradient_confusion))
    assert math.isnan(float(result.gradient_noise_scale))


def test_without_parameters_the_products_are_zeros_on_the_cpu():
    """Also where another device is the default, as in a run on an accelerator."""
    frozen = models.mlp().requires_grad_(requires_grad=False)
    recipe = models.recipe(frozen, models.vectors(5, WIDTH), loss=mean_square, dtype=F64)

    def read(run: Run) -> dict[str, Tensor]:
        assert not run[PER_SAMPLE].parameters
        with torch.device("meta"):
            return {"products": _gram(run)}

    found = ensemble(recipe, (0,), [PER_SAMPLE], read).readings[0]["products"]
    assert torch.equal(found, torch.zeros(5, 5, dtype=F64))


def refused(model, inputs, *, measures=NOISE, **options) -> str:
    with pytest.raises(UsageError) as caught:
        measure(model, inputs, seeds=1, measures=measures, **options)
    return str(caught.value)


LABELS = torch.arange(BATCH) % WIDTH


def decorrelated(output: Tensor, target: Tensor) -> Tensor:
    """A cross-entropy, and a term that is zero for one sample."""
    directions = F.normalize(output, dim=1)
    return F.cross_entropy(output, target) + (directions @ directions.T - torch.eye(len(output))).square().mean()


def ranking(output: Tensor, target: Tensor) -> Tensor:
    """A comparison of all pairs, and a regularizer, which is all that remains for one sample."""
    scores = output[:, 0]
    return F.softplus(scores[None] - scores[:, None]).mean() + 0.1 * output.square().mean()


@pytest.mark.parametrize("loss", [decorrelated, ranking])
@pytest.mark.parametrize("name", NOISE)
def test_a_term_that_compares_samples_is_refused(loss, name):
    """Its value is between those of single samples. Only its gradient shows that it is not a mean."""
    text = refused(models.mlp, models.vectors(), loss=loss, target=LABELS, measures=[name])
    assert "comes from no sample alone" in text or "between" in text


def test_the_share_of_the_gradient_from_no_sample_is_reported():
    """A batch gradient 3 e₁ + 4 e₃ of samples with gradients e₁ and e₂: 4/5 of its length. A part of 0.2 e₃ is accepted."""
    G = torch.eye(3, dtype=F64)[:2]
    for outside, share in [(4.0, "80%"), (0.2, ""), (0.0, "")]:
        rows = torch.cat([G, torch.tensor([[3.0, 0.0, outside]], dtype=F64)])
        if share:
            with pytest.raises(UsageError, match=f"{share} of the batch's gradient .* comes from no sample alone"):
                _require_in_span(rows @ rows.T, 2e-16, 0)
        else:
            _require_in_span(rows @ rows.T, 2e-16, 0)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_weighted_and_summed_losses_are_accepted(dtype):
    def weighted(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, weight=torch.linspace(1, 9, WIDTH, dtype=output.dtype))

    for loss in (weighted, lambda o, t: F.cross_entropy(o, t, reduction="sum")):
        found = measure(models.mlp, models.vectors(), loss=loss, target=LABELS, dtype=dtype, measures=NOISE)
        assert math.isfinite(float(found.gradient_confusion))


def test_gradients_are_compared_with_equal_buffers():
    """Spectral norm takes a power iteration in every forward pass."""
    case = next(case for case in models.ARCHITECTURES if case.id == "spectral-norm-old")
    found = measure(case.build, case.inputs, loss=mean_square, seeds=2, measures=NOISE)
    assert math.isfinite(float(found.gradient_confusion))


def test_opposite_gradients_may_cancel():
    """The gradient of a batch of opposite samples is round-off, which is not in the span of theirs."""
    x = torch.ones(2, WIDTH)
    target = torch.tensor([1.0, -1.0])
    loss = lambda output, target: (output.sum(dim=1) * target).mean()  # noqa: E731
    found = measure(models.mlp, x, loss=loss, target=target, measures=NOISE)
    # A cosine of two float32 vectors that differ by round-off, 1e-7 each: one by its square.
    assert float(found.gradient_confusion) == pytest.approx(-1, abs=1e-12)


def test_needs_are_shared():
    """Moments and inner products are computed from the same gradients."""
    assert GRADIENT_MOMENTS.requires == GRADIENT_GRAM.requires == (PER_SAMPLE,)


@pytest.mark.parametrize(("weighted", "products"), [(False, 0), (True, 1)])
def test_moments_take_inner_products_only_if_the_loss_is_no_plain_mean(weighted, products, monkeypatch):
    """With unequal weights, the batch's gradient is no multiple of the mean, but still in the span of the samples'."""
    taken = []
    monkeypatch.setattr(statistics, "gram_matrix", lambda *a, **k: taken.append(1) or gram.gram_matrix(*a, **k))
    weight = torch.linspace(0.1, 9, WIDTH) if weighted else None
    loss = lambda output, target: F.cross_entropy(output, target, weight=weight)  # noqa: E731
    measure(models.mlp, models.vectors(), loss=loss, target=LABELS, seeds=1, measures=["gradient_snr"])
    assert len(taken) == products


def test_a_loss_that_is_nan_for_one_sample_is_refused_by_every_measure():
    def spread(output: Tensor) -> Tensor:
        return torch.relu(1 - output.std(dim=0)).mean() + output.square().mean()

    for name in NOISE:
        text = refused(models.mlp, models.vectors(BATCH, WIDTH), loss=spread, measures=[name])
        assert "that of sample 0 (seed 0) is nan" in text


@pytest.mark.parametrize(("whole", "accepted"), [(98.5, True), (97.5, False), (98.5e-4, True), (97.5e-4, False)])
def test_the_loss_may_be_two_percent_below_those_of_the_samples(whole, accepted):
    """One percent of the largest loss of a sample, 100, and one of the batch's: the sum of a mean and a small term."""
    alone = 100.0 if whole > 1 else 1e-2

    def loss(output: Tensor) -> Tensor:
        return 1e-6 * alone * output.mean() + (alone if len(output) == 1 else whole)

    if accepted:
        found = measure(models.mlp, models.vectors(), loss=loss, seeds=1, dtype=F64, measures=["gradient_confusion"])
        assert math.isfinite(float(found.gradient_confusion))
    else:
        text = refused(models.mlp, models.vectors(), loss=loss, dtype=F64, measures=["gradient_confusion"])
        assert "a mean or a sum over samples. The batch's loss is" in text


class Factors(nn.Module):
    """Multiplies the mean of each sample by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True) * self.weight


def test_a_sample_without_gradient_is_in_no_pair():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]], dtype=F64)
    model = nn.Sequential(Factors(), Factors()).double()
    confusion = measure(model, x, loss=lambda y: y.mean(), measures=NOISE, steps=Factors).gradient_confusion
    assert float(confusion) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_equal_gradients_have_no_noise_whatever_their_size(size):
    x = torch.full((3, 2), size, dtype=F64)
    snr = measure(
        nn.Sequential(Factors(), Factors()).double(), x, loss=lambda y: y.mean(), measures=NOISE, steps=Factors
    ).gradient_snr
    assert [float(value) for value in snr.values()] == [math.inf, math.inf]
