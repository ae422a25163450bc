"""The description of a measurement: notes, calls that are left out, and facts about steps."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from models import FLOATS, WIDTH
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from pytest_trainability import Rollout, measure


def test_a_chain_of_one_step_has_a_note() -> None:
    """A single layer has a gain. It has no depth."""
    result = measure(lambda: nn.Linear(WIDTH, WIDTH), FLOATS, seeds=1)
    assert len(result.steps) == 1
    (note,) = [note for note in result.notes if "one step only" in note]
    assert "steps=" not in note
    assert result.log_gain.mean == pytest.approx(float(result.lyapunov_max))


class Recurrent(nn.Module):
    """A recurrence of one kind, and a head, which is the only step along depth."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.cell = nn.Linear(WIDTH, WIDTH)
        self.fused = nn.GRU(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "adjoint":
            path = odeint_adjoint(lambda t, y: torch.tanh(self.cell(y)), x, torch.tensor([0.0, 1.0]), adjoint_params=())
            return self.head(path[-1])
        return self.head(self.fused(x.unsqueeze(0))[0][-1])


@pytest.mark.parametrize(("kind", "steps"), [("adjoint", "layers"), ("fused", ["head"])])
def test_a_chain_of_one_step_names_the_option_that_finds_the_others(kind: str, steps: Any) -> None:
    (note,) = [n for n in measure(lambda: Recurrent(kind), FLOATS, seeds=1, steps=steps).notes if "one step only" in n]
    assert note.startswith("the chain has one step only, head: its gain says nothing about the rest of the model")
    assert note.endswith("; steps='time' measures its time steps")


def test_a_finished_module_has_a_note() -> None:
    """More seeds would repeat the same weights."""
    result = measure(models.mlp(), FLOATS, seeds=5)
    assert result.seeds == (0,)
    assert any("one draw of its weights" in note for note in result.notes)


def test_calls_before_a_detach_are_named() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                x = layer(x.detach() if index == 3 else x).tanh()
            return x

    result = measure(Cut, torch.randn(2, 4), seeds=1)
    assert result.steps.description.startswith("2 × Linear")
    assert result.steps.left_out == "4 × Linear (layers)"
    assert list(result.unused_parameters)[:2] == ["layers.0.weight", "layers.0.bias"]


def test_a_stem_before_the_first_block_is_named() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x).relu()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.blocks = nn.Sequential(*[Block() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.stem(x))

    result = measure(Net, torch.randn(2, 3, 8, 8), seeds=1)
    assert result.steps.description == "3 × Block"
    assert "layers with weights before the chain: stem.0" in result.notes
    whole = measure(Net, torch.randn(2, 3, 8, 8), seeds=1, steps="layers")
    assert not any("before the chain" in note for note in whole.notes)


# Notes along depth --------------------------------------------------------------------------------------------------


class Stem(nn.Module):
    """Layers before the chain: an embedding, which notes do not name, a wrapped layer and others."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, WIDTH)
        self.stem = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(count)))
        self.blocks = nn.Sequential(*(models.Block() for _ in range(4)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.blocks(self.stem(self.embedding(ids)))


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (0, None),
        (1, "layers with weights before the chain: stem.0"),
        (3, "layers with weights before the chain: stem.0, stem.1, stem.2"),
        (5, "layers with weights before the chain: stem.0, stem.1, stem.2 and 2 more"),
    ],
)
def test_three_layers_of_a_stem_are_named(count: int, note: str | None) -> None:
    notes = measure(lambda: Stem(count), torch.arange(4).reshape(2, 2), seeds=1, steps=models.Block).notes
    assert [text for text in notes if "before the chain" in text] == ([] if note is None else [note])


def test_a_recurrent_model_along_depth_has_a_note() -> None:
    note = "the model is recurrent and was cut along depth; steps='time' cuts it along time"
    build = lambda: nn.RNN(WIDTH, WIDTH, 2)  # noqa: E731
    x = torch.randn(5, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    assert note in measure(build, x, seeds=1, steps="layers").notes
    assert note not in measure(build, x, seeds=1, steps="time").notes


class WithoutGradient(nn.Module):
    """Refuses inputs that require grad."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = models.mlp()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            msg = "an input requires grad"
            raise RuntimeError(msg)
        return self.layers(x)


def test_a_model_that_accepts_no_inputs_that_require_grad_has_a_note() -> None:
    note = "the model accepts no inputs that require grad, so that the first state begins at the first parameter"
    assert note in measure(WithoutGradient, FLOATS, seeds=1).notes
    assert note not in measure(models.mlp, FLOATS, seeds=1).notes


@pytest.mark.parametrize(("samples", "train", "noted"), [(1, True, True), (2, True, False), (1, False, False)])
def test_batch_norm_on_one_sample_has_a_note(samples: int, train: bool, noted: bool) -> None:
    images = torch.randn(samples, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    build = lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))  # noqa: E731
    notes = measure(build, images, seeds=1, train=train, device="cpu").notes
    assert any("BatchNorm on a batch of one" in note for note in notes) is noted


# What all seeds share -----------------------------------------------------------------------------------------------


def test_the_plan_of_the_first_seed() -> None:
    common = measure(models.mlp, FLOATS, seeds=2)._seed_runs.common
    assert common.plan.calls == {(name, 0) for name in common.steps.names}
    assert (common.plan.recurrence, common.along, common.time, common.model_name) == ("", "depth", None, "Sequential")
    assert (common.mode, common.dtype, common.seeds, len(common.readings), len(common.draws)) == (
        "train",
        "float32",
        (0, 1),
        2,
        2,
    )


def test_a_model_without_parameters_has_the_type_of_its_inputs() -> None:
    result = measure(Rollout(lambda x: 0.5 * x, steps=3, dt=0.5), FLOATS.double())
    assert (result.dtype, result._seed_runs.common.time, result._seed_runs.common.along) == ("float64", 1.5, "time")


def test_other_recurrences_are_named() -> None:
    layers = nn.RNN(WIDTH, WIDTH, 3, bidirectional=True)
    x = torch.randn(4, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    left_out = measure(layers, x, steps="time").steps.left_out
    assert left_out.startswith("other recurrences, steps='time:") and left_out.endswith(" and 2 more")


class Returning(nn.Module):
    """A body around which the input returns, at the end or before the last layer."""

    def __init__(self, *, to_the_end: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.head = nn.Linear(WIDTH, WIDTH)
        self.to_the_end = to_the_end
        for layer in self.body:
            nn.init.orthogonal_(layer.weight, gain=0.01)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x - self.head(y) if self.to_the_end else self.head(x + y)


def test_what_passes_by_all_steps_and_what_passes_by_some_has_a_note() -> None:
    (note,) = measure(lambda: Returning(to_the_end=True), torch.randn(2, WIDTH), seeds=1).notes
    assert note.startswith("the input also passes by all 4 steps")
    (note,) = measure(lambda: Returning(to_the_end=False), torch.randn(2, WIDTH), seeds=1).notes
    assert note.startswith("skips pass by some of the steps: without them, the log gain of the first seed would be -1")


class SideBySide(nn.Module):
    """Two networks on the same inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = models.mlp(), models.mlp()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.one(x) - self.other(x)
        return found


def test_networks_side_by_side_are_no_skips() -> None:
    notes = measure(SideBySide, FLOATS, seeds=1).notes
    assert any(note.startswith("no path leads through all steps: some of them run side by side") for note in notes)
    assert not any("skips" in note for note in notes)


class ZeroBranch(nn.Module):
    """A zero layer that makes a matrix, which the inputs are multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.matrix, self.head = nn.Linear(4, 4), nn.Linear(4, 16), nn.Linear(4, 4)
        nn.init.zeros_(self.matrix.weight)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix(self.hidden(x).tanh()).view(-1, 4, 4)
        found: Tensor = self.head((y @ x.unsqueeze(-1)).squeeze(-1))
        return found


def test_skips_have_no_note_if_the_gain_is_the_same_without_them() -> None:
    result = measure(ZeroBranch, torch.randn(3, 4), seeds=1)
    assert result.log_gain.mean == -float("inf")
    assert not any("skips" in note for note in result.notes)


class Cut(nn.Module):
    """Layers that a detach separates from those behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = (nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.before(x).detach())


def test_layers_that_are_not_on_the_chain_are_named_once() -> None:
    record = measure(Cut, torch.ones(3, 4), seeds=1)._shown_record()
    texts = (*record.notes, *record.cautions)
    assert "not on the chain: 5 × Linear" in " ".join(texts)
    assert not any("before the chain" in text for text in texts)
