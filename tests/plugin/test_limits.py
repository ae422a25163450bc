"""The page of limits is true: what it says to be refused is refused in its words, and the rest is measured as it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import FLOATS, WIDTH, mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_trainability import measure
from pytest_trainability.errors import CutError, ModelError

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
MODELS = [line.split("|")[1:4] for line in PAGE.split("| model |")[1].split("\n\n")[0].splitlines()[2:]]
"""Model, what happens, what to do."""


def row(model: str) -> str:
    """Return what happens to a model according to the page."""
    (found,) = (happens for name, happens, _ in MODELS if model in name)
    return found


def quoted(model: str) -> str:
    """Return the words of the error or note that the page quotes."""
    (found,) = re.findall(r'"([^"]+)"', row(model))
    return str(found)


class Skipping(nn.Module):
    """Takes each layer with a probability of one half, so that some seed takes none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) if torch.rand(()) < 0.5 else x
        return x


class Sampling(nn.Module):
    """Chooses a class between its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        classes: Tensor = self.a(x).argmax(-1)
        answer: Tensor = self.b(nn.functional.one_hot(classes, WIDTH).float())
        return answer


class Looping(nn.Module):
    """Multiplies by six matrices of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(6, WIDTH, WIDTH) / 3)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x


class Checkpointed(nn.Module):
    """Runs its layers under re-entrant checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = checkpoint(self.body, x, use_reentrant=True)
        return answer


def exported() -> nn.Module:
    return torch.export.export(mlp(), (FLOATS,)).module()


def quantized() -> nn.Module:
    found: nn.Module = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8)
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("model", "build"),
    [
        pytest.param("torch.jit.trace", lambda: torch.jit.trace(mlp(), FLOATS), id="traced"),
        pytest.param("torch.export", exported, id="exported"),
        pytest.param("quantized", quantized, id="quantized"),
        pytest.param("argmax", Sampling, id="sampling"),
    ],
)
def test_refused_in_the_words_of_the_page(model: str, build: Callable[[], nn.Module]) -> None:
    with pytest.raises(CutError, match=re.escape(quoted(model))):
        measure(build, FLOATS, seeds=1)


def test_layers_that_a_seed_skips() -> None:
    with pytest.raises(CutError, match="train=False"):
        measure(Skipping, FLOATS, seeds=16)
    assert "a seed takes none" in row("skips") and "train=False" in PAGE


def test_reentrant_checkpointing() -> None:
    with pytest.raises(CutError, match="use_reentrant=False"):
        measure(Checkpointed, FLOATS, seeds=1)
    assert "refused" in row("re-entrant")


def test_parameters_on_the_meta_device() -> None:
    def build() -> nn.Module:
        with torch.device("meta"):
            return mlp()

    with pytest.raises(ModelError, match="meta"):
        measure(build, FLOATS, seeds=1)
    assert "refused" in row("meta device")


def test_one_module_that_loops() -> None:
    found = measure(Looping, FLOATS, seeds=1)
    assert any(quoted("loops over") in note for note in found.notes)
    assert len(found.growth_rate) == 1


def test_compiled_models_are_measured_eagerly() -> None:
    eager = measure(mlp, FLOATS, seeds=1)
    compiled = measure(lambda: torch.compile(mlp()), FLOATS, seeds=1)
    assert str(compiled.steps) == str(eager.steps)
    assert float(compiled.log_gain) == float(eager.log_gain)
    assert "eagerly" in row("torch.compile")
