"""A change of the forward code is named although modules and initial values are as before, and unchanged code is never blamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from processor import other_number_of_threads
from torch import Tensor, nn

from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_files import render_baselines
from pytest_trainability.checks.baselines import compare
from pytest_trainability.checks.operation_changes import OPERATIONS, VARIES
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.measures import MEASURES, recorded_along
from pytest_trainability.records.reports import BaselineChange

RECORDED = tuple(m.name for m in recorded_along("depth"))
TOLERANCES = {m.name: m.tolerance for m in MEASURES.values()}
WIDTH, BLOCKS = 8, 4
EIGHT, OTHERS = range(8), range(100, 108)


class Block(nn.Module):
    """A pre-norm block of attention, written out, and two layers. ``change`` is what its forward code does otherwise."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.change in {"library attention", "fused attention"}:
            # With a dimension of heads, PyTorch takes a fused kernel; since 2.14 also without.
            # t[:, None] would be a further operation in PyTorch 2.6.
            q, k, v = (t.unsqueeze(1) if self.change == "fused attention" else t for t in (q, k, v))
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(0, -3))
        scores = q @ k.transpose(-1, -2)
        if self.change != "no scale":
            scores = scores / WIDTH**0.5
        if self.change != "no mask":
            scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
        return self.out(scores.softmax(-2 if self.change == "over the queries" else -1) @ v)

    def forward(self, x: Tensor) -> Tensor:
        drop = 0.0 if self.change == "no dropout" else 0.1
        activation = F.relu if self.change == "another activation" else F.gelu
        x = self.norm_1(x + self.attention(x)) if self.change == "norm last" else x + self.attention(self.norm_1(x))
        branch = F.dropout(self.down(activation(self.up(self.norm_2(x)))), drop, self.training)
        if self.change == "a scale":
            branch = 1e-4 * branch
        if self.change == "a tiny scale":
            branch = (1 + 1e-4) * branch
        return branch if self.change == "no residual" else x + branch


class Net(nn.Module):
    """Four blocks, the last two of which may be changed."""

    def __init__(self, change: str = "", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.change = change
        self.stem = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.blocks = nn.ModuleList([Block(change if i >= 2 else "") for i in range(BLOCKS)]).to(dtype)
        self.head = nn.Linear(WIDTH, 4, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x) if self.change == "a stem" else x
        for block in self.blocks:
            x = block(x)
        return self.head(x.sum(1) if self.change == "a head" else x.mean(1))


def recorded(build: Callable[[], nn.Module], seeds: Sequence[int], **how: Any) -> Entry:
    """Measure as a test does, and return what its baseline would hold."""
    given: dict[str, Any] = {"steps": Block, "device": "cpu", "measures": RECORDED, **how}

    def inputs(generator: torch.Generator) -> Tensor:
        return torch.randn(3, 5, WIDTH, generator=generator)

    return measure_in(Context(), build, inputs, seeds=seeds, **given)._entry([MEASURES[m] for m in RECORDED])


@pytest.fixture(scope="module")
def baseline() -> Entry:
    return recorded(Net, EIGHT)


def of_code(old: Entry, new: Entry) -> list[BaselineChange]:
    return [change for change in compare(old, new, TOLERANCES) if change.measure == OPERATIONS]


CHANGES = {
    "another activation": ("blocks.*", "Gelu", "Relu"),
    "no residual": ("blocks.*", "Add", ""),
    "a scale": ("blocks.*", "", "Mul"),
    "a tiny scale": ("blocks.*", "", "Mul"),
    "norm last": ("blocks.*", None, None),
    "no scale": ("blocks.*", "Div", ""),
    "no mask": ("blocks.*", "MaskedFill", ""),
    "no dropout": ("blocks.*", "Mul", ""),
    "over the queries": ("blocks.*", "Softmax(dim=-1)", "Softmax(dim=-2)"),
    "a stem": ("before the first step", "", "Relu"),
    "a head": ("after the last step", "Mean", "Sum"),
}


@pytest.mark.parametrize("seeds", [EIGHT, OTHERS], ids=["same seeds", "other seeds"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_code_is_named(baseline: Entry, change: str, seeds: Sequence[int]) -> None:
    """Some of these move no number beyond its tolerance: eight seeds each exclude that chance has chosen the operations."""
    new = recorded(lambda: Net(change), seeds)
    assert (new.modules, list(new.initial)) == (baseline.modules, list(baseline.initial))
    (found,) = of_code(baseline, new)
    element, old, now = CHANGES[change]
    assert found.element == element
    assert old is None or (found.old_text, found.new_text) == (old, now)
    if element == "blocks.*":
        assert (found.count, found.considered, found.elements) == (2, BLOCKS, ("blocks.{2-3}",))


def test_another_order_is_shown_from_the_first_to_the_last_difference(baseline: Entry) -> None:
    (found,) = of_code(baseline, recorded(lambda: Net("norm last"), range(1)))
    assert found.old_text.startswith("LayerNorm, Addmm")
    assert found.new_text.startswith("Addmm, ")


def test_the_record_is_readable(baseline: Entry) -> None:
    text = render_baselines({"test": {"net": {"cpu float32": baseline}}})
    (line,) = (line for line in text.splitlines() if "Gelu" in line)
    assert line.strip().rstrip(",") == (
        '"blocks.{0-3}": "LayerNorm, Addmm, Split, Transpose, Bmm, Div, MaskedFill, Softmax[-1], Bmm, Addmm, Add, '
        'LayerNorm, Addmm, Gelu, Addmm, Mul, Add"'
    )


# Unchanged code -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seeds", "threads"), [(range(1), other_number_of_threads), (OTHERS, nullcontext)], ids=["threads", "seeds"]
)
def test_operations_do_not_depend_on_seeds_and_threads(
    baseline: Entry, seeds: Sequence[int], threads: Callable[[], AbstractContextManager[None]]
) -> None:
    with threads():
        new = recorded(Net, seeds)
    assert new.operations == baseline.operations
    assert not of_code(baseline, new)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_operations_do_not_depend_on_the_precision(baseline: Entry, dtype: torch.dtype) -> None:
    assert recorded(lambda: Net(dtype=dtype), range(1), dtype=dtype).operations == baseline.operations


def test_operations_do_not_depend_on_what_else_is_measured(baseline: Entry) -> None:
    further = (
        "attention_entropy",
        "branch_ratio",
        "gradient_noise_scale",
        "saturated_fraction",
        "linear_steps",
        "loss_drop",
    )
    how = {"loss": F.cross_entropy, "target": torch.tensor([0, 1, 2])}
    alone, together = (recorded(Net, range(1), measures=(*RECORDED, *more), **how) for more in ((), further))
    assert alone.operations == together.operations
    assert alone.operations["blocks.{0-3}"] == baseline.operations["blocks.{0-3}"]


def test_hooks_are_no_change_of_the_code(baseline: Entry) -> None:
    def hooked() -> nn.Module:
        model = Net()
        for module in model.modules():
            module.register_full_backward_hook(lambda module, gradients, outputs: None)
            module.register_forward_hook(lambda module, args, output: None)
        return model

    assert recorded(hooked, range(1)).operations == baseline.operations


@pytest.mark.parametrize("way", ["library attention", "fused attention"])
def test_the_way_attention_is_computed_is_no_change(baseline: Entry, way: str) -> None:
    new = recorded(lambda: Net(way), EIGHT)
    assert way == "library attention" or "ScaledDotProductAttention" in new.operations["blocks.{2-3}"]
    assert new.operations != baseline.operations
    assert not of_code(baseline, new)


class Sometimes(nn.Module):
    """A block that is dropped, or that uses another activation, at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return x + (y.tanh() if torch.rand(()) < 0.5 else y.relu())


def random_net() -> nn.Module:
    return nn.Sequential(*(Sometimes() for _ in range(BLOCKS)))


def test_operations_that_chance_chooses_are_not_compared() -> None:
    """Of eight seeds, all agree on a step with a probability of 1 in 128; on four steps, with one in 3 · 10⁸."""
    old, new = (recorded(random_net, seeds, steps=Sometimes) for seeds in (EIGHT, OTHERS))
    assert VARIES in old.operations.values()
    assert not of_code(old, new)


def test_chance_may_choose_other_operations_on_single_seeds() -> None:
    """One seed each: the operations differ on some pairs, and that alone is no change."""
    entries = [recorded(random_net, [seed], steps=Sometimes) for seed in range(4)]
    assert len({tuple(sorted(entry.operations.items())) for entry in entries}) > 1
    wide = dict.fromkeys(TOLERANCES, 100.0)
    assert [compare(old, new, wide) for old in entries for new in entries] == [()] * 16
