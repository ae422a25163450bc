"""Usage of experts: exact at both ends, its bias on finite batches, and what is a router and what is not."""

from __future__ import annotations

import math
from typing import Any

import faults
import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
import zoo
from torch import Tensor, nn
from towers import F64, normal, orthogonal

from pytest_trainability import measure
from pytest_trainability.measures.activations.routing import usage_entropy

WIDTH, EXPERTS, TOKENS = 16, 8, 200


class Experts(nn.Module):
    """A mixture, and one of the ways to choose."""

    def __init__(self, way: str, chosen: int, *, favored: float = 0.0) -> None:
        super().__init__()
        self.router = orthogonal(WIDTH, 1.0)
        self.router.weight = nn.Parameter(self.router.weight[:EXPERTS].clone())
        self.bias = nn.Parameter(-favored * torch.arange(EXPERTS, dtype=F64))
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH, dtype=F64) / math.sqrt(WIDTH))
        self.way, self.chosen = way, chosen

    def weights(self, logits: Tensor) -> Tensor:
        """Return what each token makes of each expert, ``(tokens, experts)``."""
        if self.way == "softmax, topk":
            values, indices = logits.softmax(-1).topk(self.chosen, dim=-1)
            return torch.zeros_like(logits).scatter(-1, indices, values)
        if self.way == "topk, softmax":
            values, indices = torch.topk(logits, self.chosen)
            return torch.zeros_like(logits).scatter(-1, indices, F.softmax(values, dim=-1))
        if self.way == "scatter, sigmoid":
            values, indices = torch.topk(logits, self.chosen, dim=1)
            return torch.full_like(logits, -torch.inf).scatter_(1, indices, values).sigmoid()
        if self.way == "biased, gather":
            scores = torch.sigmoid(logits)
            groups = (scores + 0).view(len(logits), 2, -1).topk(2, dim=-1)[0].sum(-1)
            allowed = torch.zeros_like(groups).scatter_(1, groups.topk(2, dim=-1)[1], 1.0)
            scores = scores.masked_fill(allowed.repeat_interleave(EXPERTS // 2, dim=1) == 0, 0.0)
            indices = scores.topk(self.chosen, dim=-1, sorted=False)[1]
            return torch.zeros_like(logits).scatter(1, indices, scores.gather(1, indices))
        if self.way == "gumbel":
            return F.gumbel_softmax(logits, hard=True)
        if self.way == "gumbel by place":
            return F.gumbel_softmax(logits, 0.5, True, dim=1)
        if self.way == "gumbel, soft":
            return F.gumbel_softmax(logits)
        if self.way == "below, softmax":
            dropped = logits < logits.topk(self.chosen)[0][..., -1, None]
            return logits.masked_fill(dropped, -torch.inf).softmax(-1)
        probabilities = torch.softmax(logits, dim=-1)
        if self.way == "at least topk":
            return probabilities * (probabilities >= probabilities.topk(self.chosen)[0][..., -1:])
        if self.way == "at most the kth":
            kth = probabilities.kthvalue(EXPERTS - self.chosen + 1, dim=-1, keepdim=True)[0]
            return torch.where(kth <= probabilities, probabilities, 0.0)
        if self.way == "at least sorted":
            return probabilities * (
                probabilities >= probabilities.sort(-1, descending=True)[0][:, self.chosen - 1, None]
            )
        if self.way == "equal to amax":
            return probabilities * (probabilities == probabilities.amax(-1, keepdim=True))
        if self.way == "less than max":
            return probabilities.masked_fill(probabilities < probabilities.max(-1, keepdim=True)[0], 0.0)
        if self.way == "argmax, axis":
            return F.one_hot(torch.argmax(probabilities, axis=-1), EXPERTS) * probabilities
        if self.way == "dispatched":
            places = torch.eye(EXPERTS, dtype=F64)[None].expand(len(logits), -1, -1)
            mask = F.one_hot(probabilities.argmax(-1), EXPERTS).to(probabilities)
            return probabilities * torch.einsum("te,tec->tc", mask, places)
        if self.way == "straight through":
            hard = F.one_hot(probabilities.argmax(-1), EXPERTS).to(probabilities)
            return hard - probabilities.detach() + probabilities
        if self.way == "max":
            values, indices = probabilities.max(dim=-1, keepdim=True)
            return torch.zeros_like(logits).scatter(-1, indices, values)
        return F.one_hot(torch.argmax(probabilities, dim=-1), EXPERTS) * probabilities

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(self.router(x) + self.bias)
        return x + torch.einsum("te,eij,tj->ti", weights, self.weight, x)


WAYS = [
    *((way, 2) for way in ("softmax, topk", "topk, softmax", "scatter, sigmoid", "biased, gather")),
    *((way, 2) for way in ("below, softmax", "at least topk", "at most the kth", "at least sorted")),
    *((way, 1) for way in ("softmax, topk", "max", "argmax", "argmax, axis", "equal to amax", "less than max")),
    *((way, 1) for way in ("dispatched", "gumbel", "gumbel by place", "straight through", "at least topk")),
]


def usage(model: Any, inputs: Any = None, **settings: Any) -> dict[str, list[float]]:
    inputs = normal(TOKENS, WIDTH) if inputs is None else inputs
    result = measure(model, inputs, **{"measures": ["expert_usage"], "seeds": 1, **settings})
    return {name: list(found.values) for name, found in result.expert_usage.items()}


@pytest.mark.parametrize(("way", "chosen"), WAYS)
def test_collapsed_router(way, chosen):
    """All tokens choose the same k experts, however many of all experts these are."""
    # Scores are N(0, 1): two of them differ by 12 once in 1e17 times.
    found = usage(lambda: nn.Sequential(Experts(way, chosen, favored=12.0)), seeds=2, steps=Experts)
    assert list(found) == ["0"]
    for values in found.values():
        assert values == pytest.approx([0, 0], abs=1e-14)


@pytest.mark.parametrize(("way", "chosen"), WAYS)
def test_balanced_router(way, chosen):
    """Orthogonal scores of Gaussian inputs are independent: experts are chosen alike, but for the batch's finite size.

    A count has the variance n (k/E) (1 - k/E), so that entropy falls short of ln E by (E - k) / (2 n k) on average.
    """
    seeds = 20
    (values,) = usage(lambda: nn.Sequential(Experts(way, chosen)), seeds=seeds, steps=Experts).values()
    bias = (EXPERTS - chosen) / (2 * TOKENS * chosen)
    mean = sum(values) / seeds
    # The shortfall is a χ² of E - 1 degrees, scaled: its standard deviation is √(2 / (E - 1)) of its mean.
    assert 1 - mean == pytest.approx(bias / math.log(EXPERTS / chosen), rel=4 * math.sqrt(2 / (EXPERTS - 1) / seeds))


def test_known_counts():
    assert usage_entropy(torch.tensor([5, 0, 0, 0]), 5) == 0
    assert usage_entropy(torch.tensor([3, 3, 3, 3]), 12) == pytest.approx(1, rel=1e-15)
    assert usage_entropy(torch.tensor([1, 1, 0, 0]), 2) == pytest.approx(0.5, rel=1e-15)
    # Two of eight each: the same two, four of them, all.
    for used, expected in ((2, 0), (4, 0.5), (8, 1)):
        counts = torch.tensor([16 // used] * used + [0] * (8 - used))
        assert usage_entropy(counts, 8) == pytest.approx(expected, abs=1e-15)
    assert math.isnan(usage_entropy(torch.tensor([0, 0]), 1))
    assert math.isnan(usage_entropy(torch.tensor([0, 0]), 0))
    assert math.isnan(usage_entropy(torch.tensor([3, 3]), 3))


def test_a_mixture_in_a_language_model():
    """The benchmark's fault of a router that favors one expert, beside its healthy twin."""

    def build(favored: float) -> nn.Module:
        def layer() -> nn.Module:
            return faults.Layer(feed_forward=faults.Mixture)

        model = faults.GPT(2, layer=layer)
        for module in model.modules():
            if isinstance(module, faults.Mixture):
                nn.init.constant_(module.router.bias[:1], favored)
        return model

    inputs = torch.randint(faults.VOCAB, (4, faults.LENGTH), generator=torch.Generator().manual_seed(0))
    healthy, collapsed = (usage(lambda favored=favored: build(favored), inputs) for favored in (0.0, 50.0))
    assert list(healthy) == list(collapsed) == ["layers.0.feed_forward", "layers.1.feed_forward"]
    # Half of all choices are the first expert; the other half may be spread over the other three.
    most = (0.5 * math.log(2) + 0.5 * math.log(6) - math.log(2)) / (math.log(4) - math.log(2))
    for name in healthy:
        assert collapsed[name][0] <= most < 0.8 < healthy[name][0]


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2-moe", "switch"])
def test_transformers(architecture):
    """One number a router; the auxiliary loss, which chooses once more, is not counted."""
    pytest.importorskip("transformers")
    case = next(case for case in zoo.CASES if case.id == architecture)
    found = usage(case.build, case.inputs)
    assert len(found) == {"mixtral": 3, "qwen2-moe": 4, "switch": 2}[architecture]
    assert all(".mlp." in name and 0.3 < value < 1 for name, (value,) in found.items())


_SMALL = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 12, "num_key_value_heads": 2}),
        (
            "DeepseekV3",
            {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2, "num_key_value_heads": 4}
            | {"moe_intermediate_size": 32, "first_k_dense_replace": 0, "q_lora_rank": 16, "kv_lora_rank": 16}
            | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8, "n_shared_experts": 1},
        ),
    ],
)
def test_further_transformers(family, settings):
    """Scores that are scattered back, and experts in groups, of which some are chosen first."""
    transformers = pytest.importorskip("transformers")

    def build() -> nn.Module:
        config = getattr(transformers, f"{family}Config")(**_SMALL, **settings)
        if family == "GptOss":
            config.layer_types = ["full_attention"] * 2
        return getattr(transformers, f"{family}ForCausalLM")(config)

    ids = torch.randint(6, 99, (3, 12), generator=torch.Generator().manual_seed(0))
    found = usage(build, {"input_ids": ids, "labels": ids}, train=False)
    # The module whose code chooses the experts: DeepSeek's gate, or, in older versions, the layer that holds it.
    chooses = "router" if family == "GptOss" else "gate"
    assert [name.removesuffix(f".{chooses}") for name in found] == [f"model.layers.{i}.mlp" for i in range(2)]
    assert all(0.8 < value < 1 for (value,) in found.values())


# What is no router ------------------------------------------------------------------------------------------------


class Distractor(nn.Module):
    """Everything but a router that chooses the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 1)
        self.words = nn.Embedding(10, WIDTH)
        self.accuracy = 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        # The winners of a sparse layer.
        values, indices = h.topk(4, dim=-1)
        x = x + torch.zeros_like(h).scatter(-1, indices, values)
        x = x + h * (h >= h.topk(4)[0][..., -1:])
        # Codes that are looked up.
        x = x + F.gumbel_softmax(self.head(x), hard=True) @ self.words.weight
        # A gate that follows no choice, and one that is as large as the largest of something else.
        x = x * (self.head(x).softmax(-1) >= self.head(h).softmax(-1).amax(-1, keepdim=True)).any(-1, keepdim=True)
        # A classifier that keeps its accuracy, and decodes what it is surest of.
        logits = self.head(x)
        probabilities = logits.softmax(-1)
        self.accuracy = float((probabilities.argmax(-1) == 3).float().mean())
        x = x + self.words(logits.argmax(-1))
        # The best tokens, of scores that go through a sigmoid.
        best = self.score(x).sigmoid().squeeze(-1).topk(3, dim=0)[1]
        x = x.index_add(0, best, x[best])
        # Pooling.
        return x + x.max(dim=-1, keepdim=True)[0]


@pytest.mark.parametrize("way", ["softmax, topk", "topk, softmax", "at least topk", "at least sorted"])
def test_all_experts_are_no_choice(way):
    """Of a ``topk`` of all it is the order that is used, and usage is even whatever the router does."""
    assert usage(lambda: nn.Sequential(Experts(way, EXPERTS, favored=12.0)), steps=Experts) == {}


@pytest.mark.parametrize(
    ("way", "chosen"), [("softmax, topk", 2), ("at least topk", 2), ("below, softmax", 2), ("argmax", 1)]
)
def test_equal_scores(way, chosen):
    """A router of zeros whose bias favors one expert: of those that are equal one is taken, as by ``topk``."""

    def build() -> nn.Module:
        experts = Experts(way, chosen)
        nn.init.zeros_(experts.router.weight)
        nn.init.constant_(experts.bias[:1], 50.0)
        return nn.Sequential(experts)

    (values,) = usage(build, steps=Experts).values()
    assert values == pytest.approx([0], abs=1e-14)


def test_a_soft_mixture_is_no_choice():
    assert usage(lambda: nn.Sequential(Experts("gumbel, soft", EXPERTS, favored=12.0)), steps=Experts) == {}


def test_other_choices_are_no_routers():
    assert usage(lambda: nn.Sequential(Distractor(), Distractor()), dtype=F64) == {}


@pytest.mark.parametrize("case", models.ARCHITECTURES[::3], ids=lambda case: case.id)
def test_models_without_experts(case):
    assert usage(case.build, case.inputs, train=case.train, steps=case.steps) == {}


def test_watching_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(Experts("softmax, topk", 2), Experts("argmax", 1))
    plain, watched = (measure(model, normal(TOKENS, WIDTH), measures=names) for names in ([], ["expert_usage"]))
    assert plain.gradient_norm == watched.gradient_norm
    assert plain.expert_usage == watched.expert_usage
    assert len(watched.expert_usage) == 2
