"""The preset that suits a model."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional

from pytest_trainability.sources.families import family_of, family_of_source


def conv(size: int) -> nn.Module:
    return nn.Conv1d(size, size, 3)


MODELS = {
    "mlp": [nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Identity(), nn.Embedding(3, 3)],
    "cnn": [nn.Sequential(conv(3), nn.Linear(30, 30)), nn.Sequential(conv(64), nn.GRU(4, 4))],
    "rnn": [nn.LSTM(3, 3), nn.Sequential(nn.GRUCell(3, 3)), nn.Sequential(conv(3), nn.LSTM(32, 32))],
    "transformer": [nn.TransformerEncoderLayer(4, 2, 8), nn.Sequential(conv(64), nn.MultiheadAttention(4, 2))],
}


class SelfAttention(nn.Linear):
    """Mixes tokens by its name only."""


class MambaMixer(nn.Linear):
    """The same."""


@pytest.mark.parametrize(
    ("family", "model"), [(family, model) for family, models in MODELS.items() for model in models]
)
def test_the_layers_decide(family: str, model: nn.Module) -> None:
    assert family_of(model)[0] == family
    assert family_of_source(model)[0] == family
    assert family_of_source(lambda: model)[0] == family


@pytest.mark.parametrize("layer", [SelfAttention, MambaMixer])
def test_layers_that_mix_tokens_are_known_by_their_names(layer: type[nn.Linear]) -> None:
    assert family_of(nn.Sequential(layer(3, 3))) == ("transformer", "it mixes tokens, as by attention")


class ByHand(nn.Module):
    """A softmax between products."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


class Fused(nn.Module):
    """PyTorch's function."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


class Probabilities(nn.Module):
    """A softmax over classes, which is no attention."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


@pytest.mark.parametrize(("layer", "family"), [(ByHand, "transformer"), (Fused, "transformer"), (Probabilities, "mlp")])
def test_attention_is_known_by_the_code_of_a_layer(layer: type[nn.Module], family: str) -> None:
    assert family_of(nn.Sequential(nn.Linear(3, 3), layer()))[0] == family


def test_a_factory_that_refuses_the_meta_device_is_called_again() -> None:
    def build() -> nn.Module:
        layer = nn.Conv2d(3, 3, 3)
        float(layer.weight.sum())
        return layer

    assert family_of_source(build)[0] == "cnn"


def test_a_factory_that_fails_has_no_layers() -> None:
    def build() -> Any:
        raise RuntimeError

    assert family_of_source(build)[0] == family_of_source(lambda: None)[0] == "mlp"
