"""Per-sample gradients: both methods, shared inputs, randomness, and refusals."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import BATCH, LENGTH, VOCAB, WIDTH, Lightning, mean_error, mean_square
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.linalg.outer_products import dense
from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS
from pytest_trainability.engine.runs.ensemble import ensemble
from pytest_trainability.engine.runs.run import Run
from pytest_trainability.errors import UsageError
from pytest_trainability.measures.gradients import per_sample
from pytest_trainability.measures.gradients.per_sample import PER_SAMPLE, ROUND_OFF, _equal_gradients

NOISE = ["gradient_snr", "gradient_confusion", "gradient_noise_scale"]


F64 = torch.float64


@dataclass
class Found:
    """The batch's gradient in one run, and the gradients of its samples by both methods."""

    batch: dict[str, Tensor | None]
    samples: dict[str, Tensor]
    alone: dict[str, Tensor]
    vectorized: bool
    is_random: bool


def find(model, inputs, *, target=None, loss=mean_square, train=True, steps="auto", dtype=F64) -> Found:
    recipe = models.recipe(model, inputs, target=target, loss=loss, steps=steps, dtype=dtype, train=train)

    def read(run: Run) -> dict[str, Found]:
        samples = run[PER_SAMPLE]
        first = {name: torch.cat(parts) for name, parts in zip(samples.parameters, _columns(samples.chunks()))}
        alone = [samples.sample_gradient(i) for i in range(len(samples.batch))]
        one_by_one = {name: torch.stack([gradients[name] for gradients in alone]) for name in samples.parameters}
        return {"found": Found(run[PARAMETER_GRADIENTS], first, one_by_one, samples.vectorized, samples.is_random)}

    return ensemble(recipe, (0,), [PER_SAMPLE, PARAMETER_GRADIENTS], read).readings[0]["found"]


def _columns(chunks):
    return zip(*[[dense(gradients) for gradients in chunk.values()] for chunk in chunks])


def agree(found: dict[str, Tensor], other: dict[str, Tensor], *, tolerance: float) -> bool:
    """Whether gradients agree, relative to the norm of the largest one."""
    size = max(float(g.norm()) for g in other.values())
    return found.keys() == other.keys() and all(float((found[n] - other[n]).norm()) <= tolerance * size for n in other)


class Normalized(nn.Module):
    """Convolutions and group norm, whose statistics belong to one sample."""

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
    """Reads a parameter by a reference that PyTorch cannot replace."""

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
def test_vectorized_gradients_equal_those_of_single_samples(case):
    """By both methods, each sample has the gradient of a batch of one, and the mean is the batch's gradient."""
    found = find(case.build, case.inputs, train=case.train, steps=case.steps)
    if case.id in TOGETHER + ONE_BY_ONE:
        assert found.vectorized == (case.id in TOGETHER)
    # float64, some 1e3 operations deep: the order of summation is all that differs.
    assert agree(found.samples, found.alone, tolerance=1e-12)
    batch = {name: g.to_dense() for name, g in found.batch.items() if g is not None}
    if "spectral" not in case.id:
        # … whose power iteration goes on at every run.
        assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_large_fused_recurrences_are_not_vectorized(monkeypatch):
    """The kernel would be taken apart into time steps. The gradients are the same."""
    case = next(case for case in OTHERS if case.id == "fused-lstm")
    together = find(case.build, case.inputs)
    monkeypatch.setattr(per_sample, "LARGE_RECURRENCE", 1)
    one_by_one = find(case.build, case.inputs)
    assert not one_by_one.vectorized
    assert agree(together.samples, one_by_one.samples, tolerance=1e-12)


def test_operators_without_a_batching_rule_are_not_vectorized():
    """Sparse gradients, a Python branch on values, and a parameter that PyTorch cannot replace."""
    for case in OTHERS[2:]:
        assert not find(case.build, case.inputs).vectorized, case.id


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tied_weights_are_one_parameter(dtype):
    found = find(models.LanguageModel, models.tokens, dtype=dtype)
    assert "head.weight" not in found.samples
    assert found.samples["embedding.weight"].shape == (BATCH, VOCAB, WIDTH)
    assert found.samples["embedding.weight"].dtype == dtype


def test_unused_and_frozen_parameters_are_omitted():
    model = models.frozen_backbone()
    model.extra = nn.Linear(2, 2)
    found = find(model, models.vectors())
    assert set(found.samples) == {"head.weight", "head.bias"}


def test_a_target_is_split_with_the_inputs():
    """A matrix of another length has no row per sample, and is shared."""

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
    assert found.vectorized
    assert agree(found.samples, found.alone, tolerance=1e-12)
    # Every sample has as many labels: the mean over tokens is one over samples.
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_a_training_step():
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, generator=generator)
    found = find(Lightning, batch, loss=None)
    assert agree(found.samples, found.alone, tolerance=1e-12)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_a_loss_may_be_a_sum_over_samples():
    found = find(models.mlp, models.vectors(), loss=lambda output: output.square().sum())
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.sum(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


class Masked(nn.Module):
    """Attention with a mask and position indices, which all samples share."""

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
    # All rows are equal, and PyTorch needs all of them.
    "of equal rows": torch.tensor([0.0, -1.0, 0.5]).repeat(3)[:LENGTH].expand(LENGTH, LENGTH).clone(),
}


@pytest.mark.parametrize("padded", [False, True], ids=["shared mask only", "with a mask per sample"])
@pytest.mark.parametrize("mask", MASKS)
def test_shared_inputs_may_have_as_many_rows_as_samples(mask, padded):
    """A mask over time and positions, with as many samples as time steps. Each sample gets the whole tensors."""
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


def test_the_shared_mask_may_come_first():
    class MaskedFirst(Masked):
        def forward(self, mask: Tensor, x: Tensor) -> Tensor:
            return super().forward(x, mask, torch.arange(LENGTH))

    x = torch.randn(LENGTH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    found = find(MaskedFirst, (CAUSAL, x))
    assert agree(found.samples, found.alone, tolerance=1e-12)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.mean(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_class_weights_may_have_as_many_entries_as_samples():
    """The target contains class weights and labels, and only the labels have a row per sample."""

    def weighted(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output, target[0], weight=target[1].to(output.dtype), reduction="sum")

    x = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    found = find(models.mlp, x, target=(torch.arange(WIDTH), torch.linspace(1, 9, WIDTH)), loss=weighted)
    batch = {name: g for name, g in found.batch.items() if g is not None}
    assert agree({name: g.sum(dim=0) for name, g in found.samples.items()}, batch, tolerance=1e-12)


def test_compared_samples_are_not_shared_inputs():
    """Pairs of a batch, and a mean over one side. The model runs on more samples, so that both inputs have a row per sample."""

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


def test_the_message_mentions_a_table_as_long_as_the_batch():
    """A table could hold one row per sample. The message says how to tell the difference."""

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


def dropping() -> nn.Module:
    return nn.Sequential(*[models.Dropped() for _ in range(3)])


def test_every_sample_has_its_own_dropout_masks():
    """Gradients of equal samples then differ. The masks are a function of the seed."""
    x = torch.linspace(-1, 1, WIDTH).expand(4, WIDTH).clone()
    first, second = find(dropping, x), find(dropping, x)
    assert first.is_random
    assert first.vectorized
    assert agree(first.samples, second.samples, tolerance=0)
    gradients = first.samples["0.up.weight"]
    assert all(not torch.equal(gradients[0], other) for other in gradients[1:])
    assert not find(models.mlp, x).is_random


def test_every_sample_has_its_own_masks_without_vectorization():
    """A Python branch on a value, which PyTorch cannot vectorize."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(self.up(x), 0.5, training=True)
            return self.down(h * 2 if h.sum() > 1e9 else h)

    x = torch.ones(BATCH, WIDTH)
    found = find(Branching, x)
    assert found.is_random and not found.vectorized
    gradients = found.samples["down.weight"]
    assert all(not torch.equal(gradients[0], other) for other in gradients[1:])
    assert math.isfinite(measure(Branching, x, loss=mean_square, measures=NOISE).gradient_snr["down.weight"].mean)


def test_a_finished_module_is_left_unchanged():
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


def refused(model, inputs, *, measures=NOISE, **options) -> str:
    with pytest.raises(UsageError) as caught:
        measure(model, inputs, seeds=1, measures=measures, **options)
    return str(caught.value)


def test_a_run_without_a_loss_is_refused():
    assert "Per-sample gradients need a loss. This run has none. Hand one in" in refused(models.mlp, models.vectors())


def test_a_single_sample_is_refused():
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
def test_interacting_samples_are_refused(model):
    text = refused(model, models.vectors(), loss=mean_square)
    assert "need samples that do not interact" in text
    assert "Sequential in train mode (seed 0)" in text
    assert "train=False" in text


def test_batch_norm_in_eval_mode_does_not_interact():
    model = nn.Sequential(*[models.Batchnormed() for _ in range(3)])
    assert measure(model, models.vectors()(torch.Generator()), loss=mean_square, train=False).gradient_confusion < 1


def test_interacting_samples_are_found_if_all_are_identical():
    """If a replacement of samples changes nothing, the joint trajectory shows the interaction."""
    x = torch.linspace(-1, 1, WIDTH).expand(4, WIDTH).clone()
    assert "need samples that do not interact" in refused(
        lambda: nn.Sequential(*[models.Batchnormed() for _ in range(3)]), x, loss=mean_square
    )


def test_time_in_the_first_dimension_is_refused():
    layers = lambda: nn.TransformerEncoder(  # noqa: E731
        nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0), 3, enable_nested_tensor=False
    )
    assert "first dimension" in refused(layers, models.vectors(LENGTH, BATCH, WIDTH), loss=mean_square)


def test_a_model_that_needs_its_whole_batch_is_refused():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).reshape(BATCH, WIDTH)

    text = refused(Fixed, models.vectors(), loss=mean_square)
    assert "run on one sample alone" in text
    assert "Fixed (seed 0) raised RuntimeError" in text


def test_a_contrastive_loss_is_refused():
    def contrastive(output: Tensor) -> Tensor:
        return F.cross_entropy(output @ output.T, torch.arange(len(output)))

    for measure_name in ("gradient_confusion", "gradient_noise_scale"):
        text = refused(models.mlp, models.vectors(), loss=contrastive, measures=[measure_name])
        assert "need a loss that is a mean or a sum over samples" in text


def test_a_loss_that_is_nan_for_one_sample_is_refused():
    def spread(output: Tensor) -> Tensor:
        return torch.relu(1 - output.std(dim=0)).mean() + output.square().mean()

    for model in (models.mlp, dropping):
        text = refused(model, models.vectors(BATCH, WIDTH), loss=spread)
        assert "that of sample 0 (seed 0) is nan" in text


def test_random_numbers_of_python_are_noticed():
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = models.mlp(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) * (1 + random.random())

    assert find(Skipping, models.vectors()).is_random


@pytest.mark.parametrize(("share", "equal"), [(0.5, True), (2.0, False)])
def test_gradients_are_equal_up_to_the_round_off_of_all_together(share, equal):
    """A gradient of zero may differ by the round-off of the others, whose norm is 5000."""
    eps = torch.finfo(F64).eps
    found = {
        "a": torch.full((1,), 3e3, dtype=F64),
        "b": torch.full((1,), 4e3, dtype=F64),
        "c": torch.zeros(1, dtype=F64),
    }
    other = {**found, "c": torch.full((1,), share * ROUND_OFF * eps * 5e3, dtype=F64)}
    assert _equal_gradients(found, other) is equal


def test_gradients_of_zero_are_equal():
    zeros = {"a": torch.zeros(2, dtype=F64), "b": torch.zeros(1, dtype=F64)}
    assert _equal_gradients(zeros, zeros)
    assert not _equal_gradients(zeros, {**zeros, "b": torch.full((1,), 1e-300, dtype=F64)})


class DetachedOnSomeDraws(nn.Module):
    """A residual branch without a gradient on some draws."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.is_detached = bool(torch.rand(()) < 0.5)

    def forward(self, x):
        y = self.outer(torch.relu(self.inner(x)))
        return x + (y.detach() if self.is_detached else y)


@pytest.mark.parametrize("seeds", [range(4), range(3, -1, -1)], ids=["forwards", "backwards"])
def test_parameters_without_a_gradient_on_some_seeds(seeds):
    def ratios(seeds):
        build = lambda: nn.Sequential(*(DetachedOnSomeDraws() for _ in range(3)), nn.Linear(WIDTH, 2))  # noqa: E731
        result = measure(build, torch.ones(BATCH, WIDTH).cumsum(0), seeds=seeds, loss=lambda y: y.square().mean())
        return result.gradient_confusion.values

    assert list(ratios(seeds)) == pytest.approx([ratios([seed])[0] for seed in seeds])
