"""Initialization after building on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from structures import BATCH, FAMILIES, LENGTH, WIDTH, architecture, tower, vectors
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure
from pytest_trainability.measures.structure.meta_device import difference_of_draws


def differences(model: Any, inputs: Any, **how: Any) -> list[str]:
    how = {"seeds": 2, "measures": ["meta_device_differences"], **how}
    return list(measure(model, inputs, **how).meta_device_differences)


class Rotary(nn.Module):
    """Frequencies that are computed in the constructor, and not kept in checkpoints."""

    inv_freq: Tensor

    def __init__(self, *, restores: bool = False) -> None:
        super().__init__()
        self.restores = restores
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self) -> Tensor:
        return 10000.0 ** -torch.linspace(0, 1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inv_freq.sin()


class Restoring(Rotary):
    """The same frequencies, with a ``reset_parameters`` that computes them again."""

    def reset_parameters(self) -> None:
        self.inv_freq.copy_(self.frequencies())


class Initialized(nn.Module):
    """A model that initializes itself in its constructor."""

    def __init__(self, *, rotary: Callable[[], nn.Module] = Rotary, std: float = 0.02) -> None:
        super().__init__()
        self.table, self.rotary = nn.Embedding(40, WIDTH, padding_idx=0), rotary()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 40, bias=False)
        self.head.weight = self.table.weight
        self.std = std
        self.initialize()

    def initialize(self) -> None:
        for module in (self.table, self.layer):
            nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.layer.bias)
        with torch.no_grad():
            self.table.weight[0] = 0

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.rotary(self.table(ids))).tanh())


class Offering(Initialized):
    """The same model with an ``init_weights`` method."""

    def init_weights(self) -> None:
        self.initialize()
        self.head.weight = self.table.weight
        self.rotary.inv_freq.copy_(self.rotary.frequencies())


class Slipping(Offering):
    """The same model with an ``init_weights`` that differs from the constructor."""

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.layer.weight, std=0.03)
        nn.init.normal_(self.table.weight, std=0.02)  # forgets the padding
        nn.init.constant_(self.layer.bias, 1e-3)


def ids(generator: torch.Generator) -> Tensor:
    return torch.randint(1, 40, (BATCH, LENGTH), generator=generator)


def test_an_initialization_in_the_constructor_is_lost() -> None:
    """Fault 28: modules reset themselves to PyTorch's defaults, and buffers and ties are lost."""
    assert differences(Initialized, ids) == [
        "table.weight: another scale",
        "layer.weight: another scale",
        "layer.bias: other values",
        "rotary.inv_freq: left as allocated",
        "head.weight: no longer tied to table.weight",
    ]
    assert "rotary.inv_freq: left as allocated" not in differences(lambda: Initialized(rotary=Restoring), ids)


def test_init_weights_is_called() -> None:
    assert differences(Offering, ids) == []
    assert differences(Slipping, ids) == [
        "table.weight: other values",
        "layer.weight: another scale",
        "layer.bias: other values",
    ]


def test_modules_of_torch_reset_themselves_equally() -> None:
    """Linear, convolutional and recurrent layers, a padding row and statistics are equal; multi-head attention is not."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Embedding(40, WIDTH, padding_idx=0),
            nn.Conv1d(LENGTH, LENGTH, 3, padding=1),
            nn.BatchNorm1d(LENGTH),
            nn.LayerNorm(WIDTH),
            nn.PReLU(),
            nn.Linear(WIDTH, 64),
            nn.GRU(64, WIDTH),
        )

    def attention() -> nn.Module:
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True)
        return nn.Sequential(nn.Embedding(40, WIDTH), layer)

    assert differences(build, ids, seeds=4) == []
    assert differences(attention, ids) == [
        "1.self_attn.in_proj_weight: left as allocated",
        "1.self_attn.in_proj_bias: left as allocated",
        "1.self_attn.out_proj.bias: other values",
    ]


@pytest.mark.parametrize("name", [*FAMILIES, "deberta-v2", "albert", "rwkv"])
def test_real_models_initialize_themselves(name: str) -> None:
    """Since transformers 5, rotary frequencies, position ids and ties are restored."""
    case = architecture(name)
    # On the meta device, transformers does not initialize weight norm, and version 5.0 not the embedding of masked frames.
    gaps = {"wav2vec2": ["wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight"]}
    if version("transformers").startswith("5.0."):
        gaps["wav2vec2"].append("wav2vec2.masked_spec_embed")
    assert [
        d for d in differences(case.build, case.inputs, seeds=1) if not d.startswith(tuple(gaps.get(name, ())))
    ] == []


def test_difference_of_draws_is_found_if_it_is_significant() -> None:
    """Draws of one distribution do not differ. A scale of 1.1 is found in 10000 draws, a shift by 0.4 in 1000."""
    generator = torch.Generator().manual_seed(0)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator)

    for count in (2, 3, 10, 100, 1000):
        for _ in range(100):
            assert difference_of_draws(normal(count), normal(count)) == ""
            assert count < 100 or difference_of_draws(normal(count) ** 3, normal(count) ** 3) == ""
            assert (
                difference_of_draws(torch.rand(count, generator=generator), torch.rand(count, generator=generator))
                == ""
            )
    assert difference_of_draws(normal(10000), 1.1 * normal(10000)) == "another scale"
    assert difference_of_draws(normal(1000), normal(1000) + 0.4) == "another mean"
    assert difference_of_draws(normal(10), torch.zeros(10)) == "another scale"


class Counting(nn.Module):
    """A constructor that reads a value, which a meta tensor does not have."""

    def __init__(self) -> None:
        super().__init__()
        rates = [float(rate) for rate in torch.linspace(0, 0.1, 3)]
        self.body = nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(rate)) for rate in rates])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Silent(nn.Module):
    """A model that only its constructor initializes, with a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5), torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = (x @ self.weight).tanh() * self.scale
        return x


def test_plain_tensors_stay_on_the_meta_device() -> None:
    model = lambda: nn.Sequential(Silent(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))  # noqa: E731
    assert differences(model, vectors) == ["0.weight: left as allocated", "0.scale: left on the meta device"]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Counting, r"needs a factory that runs under torch\.device\('meta'\)\. It raised"),
        (lambda: nn.Sequential(Silent(), nn.Tanh(), Silent()), "can initialize itself: one with init_weights"),
        (tower(), "needs a factory"),
    ],
    ids=["reads-numbers", "offers-nothing", "finished"],
)
def test_inapplicable_models_are_refused(model: Any, text: str) -> None:
    with pytest.raises(InapplicableError, match=text):
        differences(model, torch.randn(BATCH, WIDTH), seeds=1)


def test_lazy_weights_are_refused() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    with pytest.raises(
        InapplicableError, match=r"parameters whose shapes are known when the model is built.*0.weight of Sequential"
    ):
        measure(build, vectors, measures=["meta_device_differences"])
