"""Faults 13 and 29 of the list are seen against a baseline with eight seeds, and nothing else is.

A baseline of eight seeds is compared with eight seeds of the faulty model, the same or others. Where the seeds are the
same, so are the weights, and differences are the fault's own; where they are others, the fault must stand out from what
fresh weights do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from processor import other_number_of_threads
from torch import Tensor, nn

from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baseline_files import entry_from_plain, entry_to_plain
from pytest_trainability.checks.baseline_values import Series
from pytest_trainability.checks.baselines import compare
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.measures import MEASURES, recorded_along
from pytest_trainability.records.reports import BaselineChange

RECORDED = tuple(m.name for m in recorded_along("depth"))

TOLERANCES = {m.name: m.tolerance for m in MEASURES.values()}
EIGHT, OTHERS = range(8), range(100, 108)
Factory = Callable[[], nn.Module]


def recorded(factory: Factory, inputs: Any, seeds: Sequence[int], **how: Any) -> Entry:
    """Measure as a test does, and return what its baseline would hold."""
    given: dict[str, Any] = dict.fromkeys(("target", "loss", "dtype", "name"))
    given |= {"steps": "auto", "exponents": 1, "device": "cpu", "train": True, "measures": RECORDED}
    return measure_in(Context(), factory, inputs, seeds=seeds, **(given | how))._entry([MEASURES[m] for m in RECORDED])


# Models -----------------------------------------------------------------------------------------------------------

DEPTH, VOCAB = 8, 100


def gpt2(*, scaled: bool = True, attention: str = "sdpa") -> nn.Module:
    """Build GPT-2, a twelfth as wide, with weights that multiply as much as those of its width do."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=16,
        n_embd=64,
        n_layer=DEPTH,
        n_head=4,
        initializer_range=0.02 * math.sqrt(768 / 64),
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,  # or the fused kernel would not be taken
        attn_implementation=attention,
    )
    model = GPT2LMHeadModel(config)
    if not scaled:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("c_proj.weight"):
                    weight *= math.sqrt(2 * DEPTH)
    return model


def text(generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(VOCAB, (2, 12), generator=generator)
    return {"input_ids": ids, "labels": ids}


class Affine(nn.Module):
    """A normalization without the normalization: as many parameters, of the same names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class ConvBlock(nn.Module):
    """A basic block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm_2(self.conv_2(torch.relu(self.norm_1(self.conv_1(x))))))


class ResNet(nn.Module):
    """Fourteen blocks with 28 normalizations."""

    def __init__(self, channels: int = 8, blocks: int = 14) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=generator)


PICTURES: dict[str, Any] = {
    "target": lambda generator: torch.randint(10, (8,), generator=generator),
    "loss": F.cross_entropy,
}
DEEP = 7


def without_norm() -> nn.Module:
    model = ResNet()
    model.blocks[DEEP].norm_2 = nn.Identity()
    return model


def norm_in_eval_mode() -> nn.Module:
    """A normalization that was frozen: its running statistics are 0 and 1, and no name is missing."""
    model = ResNet()
    model.blocks[DEEP].norm_2.eval()
    return model


# Fault 13 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2_baseline() -> Entry:
    return recorded(gpt2, text, EIGHT)


def of(measure: str, changes: Sequence[BaselineChange]) -> list[BaselineChange]:
    return [change for change in changes if change.measure == measure]


@pytest.mark.parametrize("seeds", [EIGHT, OTHERS], ids=["same seeds", "other seeds"])
def test_the_lost_scaling_of_output_projections_is_found(gpt2_baseline: Entry, seeds: Sequence[int]) -> None:
    new = recorded(lambda: gpt2(scaled=False), text, seeds)
    assert new.draws == gpt2_baseline.draws or seeds is OTHERS
    changes = compare(gpt2_baseline, new, TOLERANCES)
    (gain,) = of("log_gain", changes)
    # The stream grows by the branches that are added to it: by four times as much without the scaling.
    assert gain.shift > 3 * gain.tolerance
    # Every block adds to what the next ones see, from the first on.
    assert len(of("activation_rms", changes)) == DEPTH
    assert all(change.kind == "moved" for change in changes)


def test_fresh_weights_of_gpt2_are_not_a_change(gpt2_baseline: Entry) -> None:
    assert compare(gpt2_baseline, recorded(gpt2, text, OTHERS), TOLERANCES) == ()


# Fault 29 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet_baseline() -> Entry:
    return recorded(ResNet, images, EIGHT, **PICTURES)


@pytest.mark.parametrize("seeds", [EIGHT, OTHERS], ids=["same seeds", "other seeds"])
@pytest.mark.parametrize("fault", [without_norm, norm_in_eval_mode])
def test_one_missing_batch_norm_of_many_is_found(resnet_baseline: Entry, fault: Factory, seeds: Sequence[int]) -> None:
    changes = compare(resnet_baseline, recorded(fault, images, seeds, **PICTURES), TOLERANCES)
    # By its step alone, without the help of a name that is missing.
    (step,) = of("growth_rate", changes)
    assert step.element == f"blocks.{DEEP}"
    assert step.shift < -2 * step.tolerance
    vanished = [name for change in of("gradient_norm", changes) for name in change.elements]
    names = [f"blocks.{DEEP}.norm_2.bias", f"blocks.{DEEP}.norm_2.weight"]
    assert vanished == (names if fault is without_norm else [])
    # No other block is blamed.
    moved = [change.element for change in of("gradient_norm", changes) if change.kind == "moved"]
    assert moved
    assert all(name.startswith(f"blocks.{DEEP}.") for name in moved)


def test_fresh_weights_of_a_resnet_are_not_a_change(resnet_baseline: Entry) -> None:
    assert compare(resnet_baseline, recorded(ResNet, images, OTHERS, **PICTURES), TOLERANCES) == ()


# The same weights, computed otherwise -----------------------------------------------------------------------------


@contextmanager
def without_mkldnn() -> Iterator[None]:
    """Convolutions by other kernels, which add up in another order."""
    before, *_ = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


FEW = 3
"""Seeds: what is common to both is compared in pairs. Two threads on a busy machine are slow."""


def differs(old: Entry, new: Entry) -> bool:
    """Whether arithmetic was other at all."""
    before, after = (entry.measures["gradient_norm"] for entry in (old, new))
    assert isinstance(before, Series)
    assert isinstance(after, Series)
    return any(before.values[name][:FEW] != values for name, values in after.values.items())


def attention_written_out() -> Entry:
    return recorded(lambda: gpt2(attention="eager"), text, range(FEW))


def gpt2_in_two_threads() -> Entry:
    with other_number_of_threads():
        return recorded(gpt2, text, range(FEW))


def resnet_in_two_threads() -> Entry:
    with other_number_of_threads():
        return recorded(ResNet, images, range(FEW), **PICTURES)


def other_convolutions() -> Entry:
    with without_mkldnn():
        return recorded(ResNet, images, range(FEW), **PICTURES)


@pytest.mark.parametrize(
    ("model", "otherwise"),
    [
        ("gpt2", gpt2_in_two_threads),
        ("gpt2", attention_written_out),
        ("resnet", resnet_in_two_threads),
        ("resnet", other_convolutions),
    ],
)
def test_the_same_weights_computed_otherwise_are_not_a_change(
    model: str, otherwise: Callable[[], Entry], request: pytest.FixtureRequest
) -> None:
    old: Entry = request.getfixturevalue(f"{model}_baseline")
    new = otherwise()
    assert new.draws == old.draws[:FEW]
    assert differs(old, new)
    assert compare(old, new, TOLERANCES) == ()


# Copies -----------------------------------------------------------------------------------------------------------
class Momentum(nn.Module):
    """Predicts what a frozen copy of the encoder returns for another view."""

    def __init__(self, *, drawn_after_copying: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 8))
        self.predictor = nn.Linear(8, 8)
        if not drawn_after_copying:
            self.apply(self._draw)
        self.momentum_encoder = deepcopy(self.encoder).requires_grad_(False)
        if drawn_after_copying:
            self.apply(self._draw)

    @staticmethod
    def _draw(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        prediction = F.normalize(self.predictor(self.encoder(x)), dim=-1)
        target = F.normalize(self.momentum_encoder(x + 0.1), dim=-1)
        return {"loss": (prediction - target).square().sum(-1).mean()}


@pytest.mark.parametrize("seeds", [range(4), range(100, 104)], ids=["same seeds", "other seeds"])
def test_a_copy_that_is_drawn_anew_is_a_change_on_any_seeds(seeds: Sequence[int]) -> None:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    old = entry_from_plain(entry_to_plain(recorded(lambda: Momentum(drawn_after_copying=False), x, range(4))))
    again, anew = (recorded(partial(Momentum, drawn_after_copying=late), x, seeds) for late in (False, True))
    assert not compare(old, again, TOLERANCES)
    (change, *_) = compare(old, anew, TOLERANCES)
    assert (change.measure, change.element, change.new_text) == (
        "copies",
        "momentum_encoder.*",
        "no longer equal to encoder.*",
    )
    # An older entry has no copies.
    assert "copies" not in {c.measure for c in compare(replace(old, copies={}), again, TOLERANCES)}
