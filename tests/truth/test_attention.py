"""Entropy of attention: exact values, two limits of Gaussian scores, and one number whichever way attention is computed."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
import zoo
from faults import SCORED, UNSEEN
from scipy.special import digamma
from torch import Tensor, nn
from towers import F64

from pytest_trainability import measure
from pytest_trainability.checks.presets import find_preset
from pytest_trainability.measures.activations import attention

HEADS, WIDTH, BATCH, LENGTH = 2, 16, 3, 7
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
PADDED = torch.arange(LENGTH) >= torch.tensor([LENGTH, LENGTH - 2, LENGTH - 3])[:, None]


def attended(kind: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attend in one of the ways in which models do; `mask` is added to the scores."""
    if kind == "fused":
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    if kind == "allowed":
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask == 0, scale=scale)
    scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = scores if mask is None else scores + mask
    if kind == "plain":
        weights = F.dropout(scores.softmax(dim=-1), 0.5)
        return weights @ v
    if kind == "cast":
        return torch.matmul(F.softmax(scores, dim=-1, dtype=F64).to(v.dtype), v)
    if kind == "einsum":
        return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, 3), v)
    if kind == "columns":
        # Channels first, as the autoencoders of diffusion models have it.
        return (v.transpose(-2, -1) @ F.softmax(scores, dim=-1).transpose(-2, -1)).transpose(-2, -1)
    flat = torch.softmax(scores.flatten(0, 1), dim=-1)
    return torch.bmm(flat, v.flatten(0, 1)).unflatten(0, q.shape[:2])


KINDS = ("fused", "allowed", "plain", "cast", "einsum", "columns", "bmm")


class Attention(nn.Module):
    """Self-attention with weights that PyTorch's own module could have."""

    def __init__(
        self,
        kind: str = "fused",
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
        queries: float | None = None,
    ) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kind, self.mask, self.scale = kind, mask, scale
        if queries is not None:
            nn.init.constant_(self.qkv.weight[:WIDTH], queries)
            nn.init.constant_(self.qkv.bias[:WIDTH], queries)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = attended(self.kind, q, k, v, self.mask, self.scale)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class FromTorch(nn.Module):
    """PyTorch's own module with the same weights."""

    def __init__(self, given: Attention, **arguments: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.attention.load_state_dict(
            {
                "in_proj_weight": given.qkv.weight,
                "in_proj_bias": given.qkv.bias,
                "out_proj.weight": given.out.weight,
                "out_proj.bias": given.out.bias,
            }
        )
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, **self.arguments)[0]


def added(allowed: Tensor, low: float = -math.inf, dtype: torch.dtype = torch.float32) -> Tensor:
    """Make what is added to scores of what is allowed."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, low)


def tower(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(Attention(**settings), Attention(**settings))


INPUTS = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=F64)


def entropies(
    model: Any, inputs: Any = INPUTS, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> dict[str, float]:
    result = measure(model, inputs, seeds=1, dtype=dtype, measures=["attention_entropy"], **settings)
    return {name: found.mean for name, found in result.attention_entropy.items()}


def by_hand(model: Attention, allowed: Tensor) -> float:
    """Compute the mean of one layer from its weights, one query after the other."""
    parts = copy.deepcopy(model).double().qkv(INPUTS).chunk(3, dim=-1)
    q, k, _ = (part.unflatten(-1, (HEADS, -1)) for part in parts)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(WIDTH / HEADS)
    found = []
    for own, among in zip(scores.flatten(0, 2), allowed.expand(scores.shape).flatten(0, 2)):
        if among.sum() > 1:
            p = own[among].softmax(0)
            found.append(float(-(p * p.log()).sum()) / math.log(len(p)))
    return sum(found) / len(found)


# Exact values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "dtype"),
    [(None, torch.float32), (None, F64), (-math.inf, F64)]
    + [(low, torch.float32) for low in (-math.inf, torch.finfo(torch.float32).min, -1e9, -1e4)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_zero_attend_to_all_keys_alike(kind, low, dtype):
    """Masked keys do not count as keys, whatever number masks them; the first query of a causal mask has one key."""
    mask = None if low is None else added(CAUSAL, low, dtype)
    found = entropies(tower(kind=kind, mask=mask, queries=0.0), dtype=dtype)
    assert list(found) == ["0", "1"]
    # Both sides are the logarithm of the same number; a mean of ones is one to the last bit but for its own rounding.
    eps = torch.finfo(dtype).eps
    assert list(found.values()) == pytest.approx([1, 1], rel=2 * eps, abs=0)


def test_one_key_takes_all():
    """Scores so large that the others' weights are zero in float64; they are keys nevertheless."""
    for kind in KINDS:
        model = Attention(kind=kind, scale=1e6).double()
        assert list(entropies(model, dtype=F64).values()) == pytest.approx([0], abs=1e-12)


def test_a_choice_of_one_key_is_none():
    """Every query sees itself only: there is nothing to measure, and no bound to fail."""
    for kind in ("fused", "plain"):
        assert entropies(Attention(kind=kind, mask=added(torch.eye(LENGTH, dtype=torch.bool)))) == {}


def test_an_attention_without_a_choice_leaves_the_names_of_others():
    """The module attends twice, first to one key."""

    class Twice(Attention):
        def forward(self, x):
            return super().forward(x[:, :1]) + super().forward(x)

    for kind in ("fused", "plain"):
        assert list(entropies(lambda kind=kind: nn.Sequential(Twice(kind=kind), nn.Linear(WIDTH, 2)))) == ["0[1]"]


@pytest.mark.parametrize("score", [-8.9e3, -9.5e3, -1e6])
def test_low_scores_are_no_mask_where_all_are_low(score):
    """Keys are masked by being far below others: scores of -9500 throughout attend to all keys alike."""
    found = attention.entropy_of("", torch.full((1, 3, 4), score))
    assert found.count == 3
    assert found.mean == pytest.approx(1, rel=1e-6)


def test_two_keys():
    """Two scores that differ by d: entropy ln(1 + e^-d) + d / (1 + e^d), over ln 2."""
    scores = torch.tensor([[[0.0, 1.5], [1.5, 0.0]]], dtype=F64)
    expected = (math.log1p(math.exp(-1.5)) + 1.5 / (1 + math.exp(1.5))) / math.log(2)
    assert attention.entropy_of("", scores).mean == pytest.approx(expected, rel=1e-14)


# Gaussian scores --------------------------------------------------------------------------------------------------


def test_small_gaussian_scores():
    """Scores N(0, s²) of n keys: ln n - s²/2, for n → ∞ at any s: ln Z → ln n + s²/2, and the mean score is s².

    Given a query, Gaussian keys make its scores independent, with s² = ‖q‖²/d.
    """
    n, d, queries = 4096, 64, 64
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, length, d, generator=generator, dtype=F64) for length in (queries, n))
    (found,) = entropies(Fused(d), (q, k), dtype=F64).values()
    expected = (math.log(n) - float(q.square().sum(-1).mean()) / (2 * d)) / math.log(n)
    # By the delta method the variance over keys is (e^{s²} ((1 - s²)² + s²) - 1) / n = 1.7 / n for one query at s = 1;
    # queries are nearly independent. The bias, a few e^{s²} / n = 0.002, is on top; s² differs from query to query by 18 %.
    tolerance = 4 * math.sqrt(1.7 / (n * queries)) + 3 * math.e / n
    assert found * math.log(n) == pytest.approx(expected * math.log(n), abs=tolerance)


def test_unscaled_scores_freeze():
    """Without 1/√d (fault 18) scores are N(0, d), and a few keys take all.

    Beyond s = √(2 ln n) weights follow a Poisson-Dirichlet law with m = √(2 ln n) / s, whose mean entropy is ψ(1) - ψ(1 - m)
    (Derrida's random energy model).
    """
    n, d = 512, 400
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 64, length, d, generator=generator) for length in (16, n))
    (scaled,) = entropies(Fused(d), (q, k)).values()
    (unscaled,) = entropies(Fused(d, scale=1.0), (q, k)).values()
    m = math.sqrt(2 * math.log(n) / d)
    expected = (digamma(1) - digamma(1 - m)) / math.log(n)
    assert scaled > 0.9
    # The limit is one of n → ∞ and is approached as ln ln n / ln n: 20 %. 1024 queries make an error of 2 % (spread 0.5).
    assert unscaled == pytest.approx(expected, rel=0.25)
    assert unscaled < 0.05


class Fused(nn.Module):
    """Attention of what is given, and a layer."""

    def __init__(self, width: int, *, scale: float | None = None) -> None:
        super().__init__()
        self.scale, self.out = scale, nn.Linear(width, 1)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(q, k, k, scale=self.scale))


# One number, whichever way ----------------------------------------------------------------------------------------

MASKS = {"all": torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool), "causal": CAUSAL, "padded": ~PADDED[:, None, None]}


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_all_ways_agree(allowed, train):
    """PyTorch's module, its function and plain operations, of the same weights, in both modes: 1e-12 is round-off."""
    torch.manual_seed(1)
    given = Attention(mask=None if allowed.all() else added(allowed, dtype=F64), scale=None)
    nn.init.normal_(given.qkv.weight, std=0.3)
    with torch.no_grad():
        expected = by_hand(given, allowed)
    assert 0.5 < expected < 0.95
    arguments = {}
    if allowed is CAUSAL:
        arguments = {"attn_mask": ~CAUSAL, "is_causal": True}
    elif not allowed.all():
        arguments = {"key_padding_mask": PADDED}
    found = {}
    for kind in KINDS:
        given.kind = kind
        found[kind] = entropies(given, dtype=F64, train=train)
    for needed in (True, False):
        model = FromTorch(given, need_weights=needed, **arguments)
        found[f"module, weights {needed}"] = entropies(model, dtype=F64, train=train)
    for way, values in found.items():
        assert list(values.values()) == pytest.approx([expected], rel=1e-12), way
    assert list(found["module, weights True"]) == ["attention"]


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_encoder_layer_of_pytorch(frozen):
    """In eval mode, where nothing in it carries a gradient, PyTorch would run the layer as one kernel."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
    head = (nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 5))
    model = nn.Sequential(nn.Embedding(9, WIDTH), nn.TransformerEncoder(layer, 3), *head)
    if frozen:
        model[:2].requires_grad_(False)
    ids = torch.randint(9, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    found = entropies(model, ids, train=False)
    assert list(found) == [f"1.layers.{index}.self_attn" for index in range(3)]
    assert all(0.8 < value < 1 for value in found.values())


def test_grouped_queries():
    """Four query heads read two key heads: as if each key head were there twice."""

    class Grouped(nn.Module):
        def __init__(self, *, built_in: bool) -> None:
            super().__init__()
            self.q, self.kv, self.built_in = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), built_in

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).unflatten(-1, (4, -1)).transpose(1, 2)
            k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.kv(x).chunk(2, dim=-1))
            if not self.built_in:
                k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.built_in)

    torch.manual_seed(0)
    model = Grouped(built_in=True)
    (found,) = entropies(model, dtype=F64).values()
    model.built_in = False
    (expected,) = entropies(model, dtype=F64).values()
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0.5 < found < 1


def test_large_attention_is_taken_in_parts(monkeypatch):
    """The number does not depend on how much of it is computed at once."""
    torch.manual_seed(0)
    for kind in ("fused", "allowed", "plain"):
        model = Attention(kind=kind, mask=added(~PADDED[:, None, None], dtype=F64))
        (whole,) = entropies(model, dtype=F64).values()
        for size in (1, 20, 100):
            with monkeypatch.context() as patch:
                patch.setattr(attention, "AT_ONCE", size)
                (parts,) = entropies(model, dtype=F64).values()
            assert parts == pytest.approx(whole, rel=1e-13)


# What is attention ------------------------------------------------------------------------------------------------


class Distractor(nn.Module):
    """Everything but attention that takes a softmax: a gate, soft experts, linear attention, a mean over classes."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.mix = nn.Linear(WIDTH, 4), nn.Parameter(torch.randn(WIDTH, 4))
        self.experts = nn.Parameter(torch.randn(4, WIDTH, WIDTH) / 4)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.classes = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        x = x + torch.einsum("bte,edf,btd->btf", gates, self.experts, x)
        x = x + (x @ self.mix).softmax(-1) @ self.classes
        q, k, v = self.q(x), self.k(x), self.v(x)
        context = k.softmax(dim=-2).transpose(-2, -1) @ v
        x = x + q.softmax(dim=-1) @ context
        similarity = F.normalize(x, dim=-1) @ F.normalize(v, dim=-1).transpose(-2, -1)
        return x * F.softmax(similarity, dim=-1).diagonal(dim1=-2, dim2=-1).unsqueeze(-1)


def test_other_softmaxes_are_no_attention():
    assert entropies(lambda: nn.Sequential(Distractor(), Distractor())) == {}
    assert list(entropies(lambda: nn.Sequential(Attention(), Attention("bmm"), Distractor()))) == ["0", "1"]
    assert (
        entropies(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 9), nn.Softmax(-1))) == {}
    )


def test_names_tell_repeated_attention_apart():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice = Attention(), Attention("plain")

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.once(self.twice(x)))

    assert list(entropies(Shared)) == ["twice[0]", "once", "twice[1]"]


def test_attention_across_the_batch_has_samples_for_keys():
    """A joint frame, and a softmax over another dimension than the last one, which is not seen."""

    class Across(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.inner, self.dim = nn.Linear(WIDTH, WIDTH), dim

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            turned = x.transpose(0, 1)
            mixed = (turned @ turned.transpose(1, 2)).softmax(self.dim) @ turned
            return x + mixed.transpose(0, 1)

    model = nn.Sequential(Across(-1), Across(-1))
    result = measure(model, INPUTS, measures=["attention_entropy"], dtype=F64)
    assert result.frame == "joint"
    assert list(result.attention_entropy) == ["0", "1"]
    assert entropies(nn.Sequential(Across(1), Across(1))) == {}


DEVIATIONS = {1.0: (0.78, 0.94), 2.5: (0.46, 0.65), 5.0: (0.24, 0.27), 8.0: (0.12, 0.17)}
"""Entropy of normal logits by their standard deviation: of 2 and of 4096 keys, the smaller one first."""


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("keys", [2, 4, 16, 64, 256, 1024, 4096])
def test_the_bound_of_presets_is_that_of_logits_of_deviation_five_for_any_number_of_keys(deviation, keys):
    """The page names these numbers. A mean over 4,000 queries has a standard error of 0.005 for two keys, where it is largest."""
    rows = max(4000 // max(1, keys // 64), 400)
    scores = deviation * torch.randn(rows, keys, dtype=F64, generator=torch.Generator().manual_seed(keys))
    low, high = DEVIATIONS[deviation]
    assert low - 0.02 < attention.entropy_of("", scores).mean < high + 0.02
    bound = find_preset("transformer")["attention_entropy"].low
    assert bound == pytest.approx(sum(DEVIATIONS[5.0]) / 2, abs=0.01)


@pytest.mark.parametrize("name", ["cosines-divided", "cosine-without-lengths", "all weights of std 1"])
def test_sharp_attention_is_healthy_and_saturated_attention_is_not(name):
    """Cosines times 10 are sharp on purpose, on any seeds. Products without their lengths, and large weights, are saturated."""
    case = next(case for case in (*SCORED, *UNSEEN) if case.id == name)
    for one, is_healthy in ((case.twin, True), (case, name == "cosines-divided")):
        for seeds in (range(4), range(20, 24)):
            found = measure(one.build, seeds=seeds, measures=["attention_entropy"], **one.arguments)
            low = find_preset("transformer")["attention_entropy"].low
            assert (min(e.mean for e in found.attention_entropy.values()) >= low) == is_healthy


# Models of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "bert", "t5", "bart", "longformer", "xlnet"])
def test_transformers(architecture):
    """Eager and fused attention of the same weights differ by round-off of float32."""
    pytest.importorskip("transformers")
    case = next(case for case in zoo.CASES if case.id == architecture)

    def build(kind: str) -> Callable[[], nn.Module]:
        def built() -> nn.Module:
            model = case.build()
            with contextlib.suppress(ValueError):
                model.set_attn_implementation(kind)
            # Weights of a standard deviation of 0.02 give entropies of 1 - 1e-5, which hide what is wrong.
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(3 if parameter.dim() > 1 else 1)
            return model

        return built

    found = {kind: entropies(build(kind), case.inputs, train=False) for kind in ("eager", "sdpa")}
    assert found["eager"] == pytest.approx(found["sdpa"], abs=1e-4)
    assert len(found["eager"]) == {"t5": 9, "bart": 9}.get(architecture, int(case.steps[0]))
    assert all(0.1 < value < 1 for value in found["eager"].values())


def test_watching_changes_nothing():
    """Loss and gradients are those of a run that nobody watches, dropout included, to the last bit."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.3, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    plain, watched = (
        measure(model, INPUTS.float(), loss=lambda y: y.square().mean(), measures=names)
        for names in ([], ["attention_entropy"])
    )
    assert {n: e.values for n, e in plain.gradient_norm.items()} == {
        n: e.values for n, e in watched.gradient_norm.items()
    }
    # Asked for later, it is measured on the same weights and draws.
    assert plain.attention_entropy == watched.attention_entropy
