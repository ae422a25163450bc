"""Gradients of samples: differentiated together or one by one, chunk by chunk, or refused where samples have none."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import BATCH, LENGTH, VOCAB, WIDTH
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.linalg import gram
from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS
from pytest_trainability.engine.runs.ensemble import ensemble
from pytest_trainability.engine.runs.recipe import Recipe
from pytest_trainability.engine.runs.run import Run
from pytest_trainability.engine.trees import tensors_in
from pytest_trainability.errors import UsageError
from pytest_trainability.measures.gradients.per_sample import PER_SAMPLE
from pytest_trainability.measures.gradients.statistics import GRADIENT_GRAM, GRADIENT_MOMENTS, _require_in_span

NOISE = ["gradient_snr", "gradient_confusion", "gradient_noise_scale"]
F64 = torch.float64


def mean_square(output: Any) -> Tensor:
    """A mean over samples, whatever the output is."""
    return sum((t.abs() ** 2).flatten(1).sum(dim=1).mean() for t in tensors_in(output))


def mean_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.flatten(1).sum(dim=1) - target).square().mean()


@dataclass
class Found:
    """What one run gave: the batch's gradient and those of its samples, both ways."""

    batch: dict[str, Tensor | None]
    samples: dict[str, Tensor]
    alone: dict[str, Tensor]
    together: bool
    draws: bool


def find(model, inputs, *, target=None, loss=mean_square, train=True, steps="auto", dtype=F64) -> Found:
    recipe = Recipe(
        model=model,
        inputs=inputs,
        target=target,
        loss=loss,
        steps=steps,
        exponents=1,
        device=None,
        dtype=dtype,
        train=train,
    )

    def read(run: Run) -> dict[str, Found]:
        samples = run[PER_SAMPLE]
        first = {name: torch.cat(parts) for name, parts in zip(samples.parameters, _columns(samples.chunks()))}
        alone = [samples.sample_gradient(i) for i in range(len(samples.batch))]
        one_by_one = {name: torch.stack([gradients[name] for gradients in alone]) for name in samples.parameters}
        return {"found": Found(run[PARAMETER_GRADIENTS], first, one_by_one, samples.vectorized, samples.is_random)}

    return ensemble(recipe, (0,), [PER_SAMPLE, PARAMETER_GRADIENTS], read).readings[0]["found"]


def _columns(chunks):
    return zip(*[list(chunk.values()) for chunk in chunks])


def agree(found: dict[str, Tensor], other: dict[str, Tensor], *, tolerance: float) -> bool:
    """Whether gradients agree, measured at the size of the largest."""
    size = max(float(g.norm()) for g in other.values())
    return found.keys() == other.keys() and all(float((found[n] - other[n]).norm()) <= tolerance * size for n in other)


# Together and one by one -----------------------------------------------------------------------------------------


class Normalized(nn.Module):
    """Convolutions and group norm, one statistic a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.norm(self.a(x)))).mean(dim=(2, 3))


class Fused(nn.Module):
    """A fused recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Sparse(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, WIDTH, sparse=True), nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(ids)).mean(dim=1))


class Routed(nn.Module):
    """A Python branch on a value: one expert per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        routed = [self.experts[int(row.sum() > 0)](row) for row in x]
        return self.head(torch.tanh(torch.stack(routed)))


class Hidden(nn.Module):
    """Reads a parameter by a reference that PyTorch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kept = [self.a.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.b(self.a(x))), self.kept[0])


TOGETHER = [
    "mlp",
    "conv-tower",
    "add-outside",
    "encoder-decoder",
    "gru-loop",
    "lstm-loop",
    "inplace-activations",
    "inplace-stream",
    "weight-norm",
    "spectral-norm",
    "scaled-gradient",
    "dict-output",
    "keyword-inputs",
    "integer-inputs",
    "mixed-inputs",
    "conditioned",
    "complex-state",
    "batch-norm-eval",
    "frozen-backbone",
]
ONE_BY_ONE = ["custom-function", "retained-gradient", "strict-function"]
OTHERS = [
    models.Architecture("group-norm", Normalized, models.images, ""),
    models.Architecture("fused-lstm", Fused, models.sequence, ""),
    models.Architecture("sparse-embedding", Sparse, models.tokens, ""),
    models.Architecture("routed", Routed, models.vectors(), ""),
    models.Architecture("hidden-reference", Hidden, models.vectors(), ""),
]


@pytest.mark.parametrize(
    "case",
    [c for c in (*models.ARCHITECTURES, *OTHERS) if c in OTHERS or c.id in TOGETHER + ONE_BY_ONE],
    ids=lambda c: c.id,
)
def test_samples_together_are_samples_one_by_one(case):
    """Whichever way is taken, each sample has the gradient of a batch of one, and their mean is that of the batch."""
    found = find(case.build, case.inputs, train=case.train, steps=case.steps)
    if case.id in TOGETHER + ONE_BY_ONE:
        assert found.together == (case.id in TOGETHER)
    # float64, some 1e3 operations deep: the order of summation is all that differs.
    assert agree(found.samples, found.alone, tolerance=1e-12)
    batch = {name: g.to_dense() for name, g in found.batch.items() if g is not None}
    if "spectral" not in case.id:
        # … whose power iteration goes on at every run.
        assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_what_cannot_be_differentiated_together_is_not():
    """No sparse gradients, no Python branch on the values of several samples, no parameter behind PyTorch's back."""
    for case in OTHERS[2:]:
        assert not find(case.build, case.inputs).together, case.id


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tied_weights_are_one_parameter(dtype):
    found = find(models.LanguageModel, models.tokens, dtype=dtype)
    assert "head.weight" not in found.samples
    assert found.samples["embedding.weight"].shape == (BATCH, VOCAB, WIDTH)
    assert found.samples["embedding.weight"].dtype == dtype


def test_unused_and_frozen_parameters_are_left_out():
    model = models.frozen_backbone()
    model.extra = nn.Linear(2, 2)
    found = find(model, models.vectors())
    assert set(found.samples) == {"head.weight", "head.bias"}


def test_a_target_is_cut_with_the_inputs():
    """And what has no row per sample is handed on: a matrix of another length."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp(3)

        def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
            return self.layers(x) @ matrix

    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(BATCH, WIDTH, generator=generator), torch.randn(WIDTH, 2, generator=generator)
    target = torch.randn(BATCH, generator=generator)
    found = find(Mixed(), (x, matrix), target=target, loss=mean_error)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_labels_of_a_transformers_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=3, n_head=2, n_embd=8, vocab_size=20, n_positions=8, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )

    def inputs(generator: torch.Generator) -> dict[str, Tensor]:
        ids = torch.randint(0, 20, (4, 6), generator=generator)
        return {"input_ids": ids, "labels": ids.clone()}

    found = find(lambda: transformers.GPT2LMHeadModel(config), inputs, loss=None)
    assert found.together
    assert agree(found.samples, found.alone, tolerance=1e-12)
    # Every sample has as many labels: the mean over tokens is one over samples.
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


class Lightning(nn.Module):
    """Computes its own loss, as a Lightning module does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = models.mlp(3)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return mean_error(self.layers(x), y)


def test_a_training_step():
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, generator=generator)
    found = find(Lightning, batch, loss=None)
    assert agree(found.samples, found.alone, tolerance=1e-12)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_a_sum_over_samples_is_a_loss_of_samples():
    found = find(models.mlp, models.vectors(), loss=lambda output: output.square().sum())
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.sum(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


# What is one per sample ------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Attends under a mask, and knows positions by number, both of which are the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, mask: Tensor, position_ids: Tensor, keep: Tensor | None = None) -> Tensor:
        x = x + self.places(position_ids)
        for layer in self.layers:
            absent = None if keep is None else torch.zeros_like(x[:, :, 0]).masked_fill(~keep, -math.inf)
            x = layer(x, src_mask=mask, src_key_padding_mask=absent)
        return self.head(x)[:, :, 0]


CAUSAL = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
MASKS = {
    "causal": CAUSAL,
    # Whichever rows it has, they are the same; PyTorch asks for all of them.
    "of equal rows": torch.tensor([0.0, -1.0, 0.5]).repeat(3)[:LENGTH].expand(LENGTH, LENGTH).clone(),
}


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "beside one per sample"])
@pytest.mark.parametrize("mask", MASKS)
def test_inputs_that_are_the_same_for_all_samples_may_have_as_many_rows(mask, padded):
    """A mask over time and positions, for as many samples as time steps: each sample is handed all of them."""
    x = torch.randn(LENGTH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    inputs = {"x": x, "mask": MASKS[mask], "position_ids": torch.arange(LENGTH)}
    if padded:
        inputs["keep"] = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(LENGTH - 2)
    found = find(Masked, inputs)
    assert agree(found.samples, found.alone, tolerance=1e-12)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)
    fewer = find(Masked, {n: t[:-1] if n in {"x", "keep"} else t for n, t in inputs.items()})
    assert agree({name: g[:-1] for name, g in found.samples.items()}, fewer.samples, tolerance=1e-12)


def test_the_mask_may_come_first():
    class MaskedFirst(Masked):
        def forward(self, mask: Tensor, x: Tensor) -> Tensor:
            return super().forward(x, mask, torch.arange(LENGTH))

    x = torch.randn(LENGTH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    found = find(MaskedFirst, (CAUSAL, x))
    assert agree(found.samples, found.alone, tolerance=1e-12)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_weights_of_classes_may_be_as_many_as_samples():
    """Beside the labels, in the target, that are one per sample."""

    def weighted(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output, target[0], weight=target[1].to(output.dtype), reduction="sum")

    x = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    found = find(models.mlp, x, target=(torch.arange(WIDTH), torch.linspace(1, 9, WIDTH)), loss=weighted)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.sum(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_samples_that_are_compared_are_not_the_same_for_all():
    """Pairs of a batch, and a mean over one side of them: the model runs on more, so that they are one per sample."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.left(x) @ self.right(y).T

    class Centered(Pairs):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.left(x) * self.right(y).mean(dim=0)

    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(BATCH, WIDTH, generator=generator) for _ in range(2))
    for model in (Pairs, Centered):
        assert "need samples that do not interact" in refused(model, inputs, loss=mean_square)


def test_a_table_as_long_as_the_batch_is_named_as_a_reason():
    """Rows that samples look up by number could be one per sample; whoever reads the message knows better."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp(3)

        def forward(self, ids: Tensor, table: Tensor) -> Tensor:
            return self.layers(table[ids])

    table = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(BATCH).flip(0)
    text = refused(Table, (ids, table), loss=mean_square)
    assert "as many rows as there are samples" in text
    assert math.isfinite(float(measure(Table, (ids[1:], table), loss=mean_square, measures=NOISE).gradient_confusion))


# Randomness ------------------------------------------------------------------------------------------------------


def dropping() -> nn.Module:
    return nn.Sequential(*[models.Dropped() for _ in range(3)])


def test_every_sample_has_dropout_masks_of_its_own():
    """Equal samples then differ; masks are a function of the seed."""
    x = torch.linspace(-1, 1, WIDTH).expand(4, WIDTH).clone()
    first, second = find(dropping, x), find(dropping, x)
    assert first.draws
    assert first.together
    assert agree(first.samples, second.samples, tolerance=0)
    gradients = first.samples["0.up.weight"]
    assert all(not torch.equal(gradients[0], other) for other in gradients[1:])
    assert not find(models.mlp, x).draws


def test_every_sample_has_masks_of_its_own_one_by_one_too():
    """Equal samples behind a Python branch on a value, which PyTorch cannot differentiate together."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(self.up(x), 0.5, training=True)
            return self.down(h * 2 if h.sum() > 1e9 else h)

    x = torch.ones(BATCH, WIDTH)
    found = find(Branching, x)
    assert found.draws and not found.together
    gradients = found.samples["down.weight"]
    assert all(not torch.equal(gradients[0], other) for other in gradients[1:])
    assert math.isfinite(measure(Branching, x, loss=mean_square, measures=NOISE).gradient_snr["down.weight"].mean)


def test_masks_stay_when_chunks_are_computed_again(monkeypatch):
    """Gradients that do not fit are computed again for other pairs: the Gram matrix must be that of one set of vectors."""
    monkeypatch.setattr(gram, "NUMBERS", 2 * sum(p.numel() for p in dropping().parameters()))
    recipe = Recipe(
        model=dropping,
        inputs=models.vectors(5, WIDTH),
        target=None,
        loss=mean_square,
        steps="auto",
        exponents=1,
        device=None,
        dtype=F64,
        train=True,
    )

    def read(run: Run) -> dict[str, Tensor]:
        samples = run[PER_SAMPLE]
        flat = torch.cat([torch.cat([g.flatten(1) for g in chunk.values()], dim=1) for chunk in samples.chunks()])
        return {"K": run[GRADIENT_GRAM], "G": flat}

    found = ensemble(recipe, (0,), [PER_SAMPLE, GRADIENT_GRAM], read).readings[0]
    assert len(found["G"]) == 5
    assert torch.allclose(found["K"], found["G"] @ found["G"].T, rtol=1e-12)


# Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [1, 2, 3, 10])
def test_chunks_do_not_change_the_numbers(monkeypatch, fit):
    """As many samples at a time as fit, one at the least."""
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


def test_at_once_never_holds_more_than_fits():
    for count, size in [(8, 10), (8, 2**25), (8, 2**26), (3, 2**30), (1000, 2**20)]:
        step = gram.at_once(count, size)
        assert 1 <= step <= count
        held = count if step == count else 2 * step
        assert step == 1 or held * size <= gram.NUMBERS


def test_a_complex_number_is_two():
    """Over the reals: the length of a gradient of complex parameters counts both parts."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(4, 3, 2, generator=generator, dtype=torch.complex128)
    K = gram.gram_matrix(lambda first, last: [G[first:last]], 4, 6)
    truth = (G.flatten(1) @ G.flatten(1).mH).real
    assert torch.allclose(K, truth, rtol=1e-14)


# No harm, no order -----------------------------------------------------------------------------------------------


def test_a_finished_module_is_left_as_it_was():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 2, 8, 8, generator=generator), torch.randn(4, generator=generator)
    model = nn.Sequential(
        models.conv_tower(), nn.Dropout(0.5), nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    )
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measure(model, x, target=y, loss=mean_error, measures=[*NOISE, "ntk_condition_number"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_asked_for_at_once_or_later_they_are_the_same():
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


def test_a_model_without_parameters_that_learn_has_no_noise():
    """An empty profile, and numbers that are none."""
    model = models.mlp().requires_grad_(requires_grad=False)
    result = measure(model, models.vectors()(torch.Generator()), loss=mean_square, measures=NOISE)
    assert len(result.gradient_snr) == 0
    assert math.isnan(float(result.gradient_confusion))
    assert math.isnan(float(result.gradient_noise_scale))


# Where there is no answer ----------------------------------------------------------------------------------------


def refused(model, inputs, *, measures=NOISE, **options) -> str:
    with pytest.raises(UsageError) as caught:
        measure(model, inputs, seeds=1, measures=measures, **options)
    return str(caught.value)


def test_without_a_loss_there_are_none():
    assert "Per-sample gradients need a loss. This run has none. Hand one in" in refused(models.mlp, models.vectors())


def test_one_sample_does_not_differ():
    text = refused(models.mlp, torch.ones(1, WIDTH), loss=mean_square)
    assert "need at least two samples. The inputs hold 1." in text
    assert "hold 1" in text


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: nn.Sequential(*[models.Batchnormed() for _ in range(3)]), id="BatchNorm"),
        pytest.param(lambda: nn.Sequential(*models.mlp(3), nn.BatchNorm1d(WIDTH)), id="behind the chain"),
        pytest.param(lambda: nn.Sequential(nn.BatchNorm1d(WIDTH), *models.mlp(3)), id="before the chain"),
        pytest.param(lambda: nn.Sequential(*models.mlp(3), nn.Softmax(dim=0)), id="softmax over the batch"),
    ],
)
def test_samples_that_interact_have_none_of_their_own(model):
    text = refused(model, models.vectors(), loss=mean_square)
    assert "need samples that do not interact" in text
    assert "Sequential in train mode (seed 0)" in text
    assert "train=False" in text


def test_batch_norm_that_no_longer_looks_at_the_batch_does_not_interact():
    model = nn.Sequential(*[models.Batchnormed() for _ in range(3)])
    assert measure(model, models.vectors()(torch.Generator()), loss=mean_square, train=False).gradient_confusion < 1


def test_identical_samples_hide_nothing():
    """Where replacing samples changes nothing, the frame tells."""
    x = torch.linspace(-1, 1, WIDTH).expand(4, WIDTH).clone()
    assert "need samples that do not interact" in refused(
        lambda: nn.Sequential(*[models.Batchnormed() for _ in range(3)]), x, loss=mean_square
    )


def test_time_in_the_first_dimension_is_no_batch():
    layers = lambda: nn.TransformerEncoder(  # noqa: E731
        nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0), 3, enable_nested_tensor=False
    )
    assert "first dimension" in refused(layers, models.vectors(LENGTH, BATCH, WIDTH), loss=mean_square)


def test_a_model_that_wants_its_whole_batch():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).reshape(BATCH, WIDTH)

    text = refused(Fixed, models.vectors(), loss=mean_square)
    assert "run on one sample alone" in text
    assert "Fixed (seed 0) raised RuntimeError" in text


def test_a_contrastive_loss_is_none_of_samples():
    def contrastive(output: Tensor) -> Tensor:
        return F.cross_entropy(output @ output.T, torch.arange(len(output)))

    for measure_name in ("gradient_confusion", "gradient_noise_scale"):
        text = refused(models.mlp, models.vectors(), loss=contrastive, measures=[measure_name])
        assert "need a loss that is a mean or a sum over samples" in text


LABELS = torch.arange(BATCH) % WIDTH


def decorrelated(output: Tensor, target: Tensor) -> Tensor:
    """A cross-entropy, and a term that is zero for one sample."""
    directions = F.normalize(output, dim=1)
    return F.cross_entropy(output, target) + (directions @ directions.T - torch.eye(len(output))).square().mean()


def ranking(output: Tensor, target: Tensor) -> Tensor:
    """Compares every pair; for one sample there is nothing but the regularizer."""
    scores = output[:, 0]
    return F.softplus(scores[None] - scores[:, None]).mean() + 0.1 * output.square().mean()


@pytest.mark.parametrize("loss", [decorrelated, ranking])
@pytest.mark.parametrize("name", NOISE)
def test_a_loss_that_compares_samples_beside_is_refused(loss, name):
    """Its value lies among those of samples: only its gradient shows that it is none of theirs."""
    text = refused(models.mlp, models.vectors(), loss=loss, target=LABELS, measures=[name])
    assert "comes from no sample alone" in text or "between" in text


def test_how_much_of_the_gradient_comes_from_no_sample():
    """Gradients 3 e₁ + 4 e₃ of a batch of samples with e₁ and e₂: 4/5 of its length, and with ε e₃ none to speak of."""
    G = torch.eye(3, dtype=F64)[:2]
    for outside, share in [(4.0, "80%"), (0.2, ""), (0.0, "")]:
        rows = torch.cat([G, torch.tensor([[3.0, 0.0, outside]], dtype=F64)])
        if share:
            with pytest.raises(UsageError, match=f"{share} of the batch's gradient .* comes from no sample alone"):
                _require_in_span(rows @ rows.T, 2e-16, 0)
        else:
            _require_in_span(rows @ rows.T, 2e-16, 0)


def test_rows_that_are_there_already_come_last():
    generator = torch.Generator().manual_seed(0)
    G, g = torch.randn(4, 3, 2, generator=generator, dtype=F64), torch.randn(1, 3, 2, generator=generator, dtype=F64)
    K = gram.gram_matrix(lambda first, last: [G[first:last]], 4, 2**26, further=[g])
    flat = torch.cat([G, g]).flatten(1)
    assert torch.allclose(K, flat @ flat.T, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_weights_of_classes_leave_it_a_loss_of_samples(dtype):
    def weighted(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, weight=torch.linspace(1, 9, WIDTH, dtype=output.dtype))

    for loss in (weighted, lambda o, t: F.cross_entropy(o, t, reduction="sum")):
        found = measure(models.mlp, models.vectors(), loss=loss, target=LABELS, dtype=dtype, measures=NOISE)
        assert math.isfinite(float(found.gradient_confusion))


def test_a_state_that_changes_with_every_pass_is_no_comparison():
    """Power iteration goes on between the run and the samples: their gradients are compared in one state."""
    case = next(case for case in models.ARCHITECTURES if case.id == "spectral-norm-old")
    found = measure(case.build, case.inputs, loss=mean_square, seeds=2, measures=NOISE)
    assert math.isfinite(float(found.gradient_confusion))


def test_gradients_that_cancel_are_no_comparison():
    """Of opposite samples the batch has no gradient but round-off, which lies in no span."""
    x = torch.ones(2, WIDTH)
    target = torch.tensor([1.0, -1.0])
    loss = lambda output, target: (output.sum(dim=1) * target).mean()  # noqa: E731
    found = measure(models.mlp, x, loss=loss, target=target, measures=NOISE)
    # A cosine of two float32 vectors that differ by round-off, 1e-7 each: one by its square.
    assert float(found.gradient_confusion) == pytest.approx(-1, abs=1e-12)


def test_a_loss_that_is_no_number_for_one_sample_is_refused():
    def spread(output: Tensor) -> Tensor:
        return torch.relu(1 - output.std(dim=0)).mean() + output.square().mean()

    for model in (models.mlp, dropping):
        text = refused(model, models.vectors(BATCH, WIDTH), loss=spread)
        assert "that of sample 0 (seed 0) is nan" in text


def test_random_numbers_of_python_are_random_numbers():
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) * (1 + random.random())

    assert find(Skipping, models.vectors()).draws


def test_the_kernel_is_refused_where_there_is_none():
    wanted = ["ntk_condition_number"]
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, generator=generator)
    assert "returns only its loss" in refused(Lightning, batch, measures=wanted)
    frozen = models.mlp().requires_grad_(requires_grad=False)
    assert "has no trainable parameters" in refused(frozen, torch.ones(2, WIDTH), loss=mean_square, measures=wanted)
    one = refused(lambda: nn.Linear(WIDTH, 600), torch.ones(1, WIDTH), measures=wanted)
    assert "for a batch of 1" in one


def test_needs_are_shared():
    """Moments and inner products come from the same gradients."""
    assert GRADIENT_MOMENTS.requires == (PER_SAMPLE, GRADIENT_GRAM)
    assert GRADIENT_GRAM.requires == (PER_SAMPLE,)
