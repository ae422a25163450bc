"""Duplicate parameters: copied layers and equal units."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from structures import BATCH, FAMILIES, LENGTH, WIDTH, Build, architecture, images, sequences, tower, vectors
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.measures.structure.duplicates import equal_rows


def duplicates(model: Any, inputs: Any, **how: Any) -> list[str]:
    return list(measure(model, inputs, **how).duplicate_parameters)


def test_equal_rows_counts_equal_and_distinct_rows() -> None:
    """Three equal rows, two other equal ones, a single one, and zeros of both signs; in every type and layout."""
    a, b, c = torch.randn(3, 10)
    zero = torch.zeros(10)
    rows = torch.stack([a, zero, b, a, c, -zero, b, a])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert equal_rows(rows.to(dtype)) == (5, 2)
        assert equal_rows(torch.tensor([[0.0, 1.0], [-0.0, 1.0]], dtype=dtype)) == (2, 1)
    assert equal_rows(rows.T.contiguous().T) == (5, 2)
    assert equal_rows(zero.expand(4, -1)) == (0, 0)
    assert equal_rows(torch.zeros(0, 10)) == (0, 0)


def test_rows_that_differ_in_one_bit_differ() -> None:
    """A million rows of eight entries that differ in one of them by one unit in the last place."""
    steps = torch.arange(2**20, dtype=torch.int32)
    rows = torch.ones(2**20, 8)
    rows[:, 3] = (rows[:, 3].view(torch.int32) + steps).view(torch.float32)
    assert equal_rows(rows) == (0, 0)
    rows[5] = rows[70000]
    assert equal_rows(rows) == (2, 1)


def turned() -> nn.Module:
    return nn.Sequential(nn.Conv1d(LENGTH, 5, 3), nn.Tanh(), nn.ConvTranspose1d(5, 7, 3))


def recurrent() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.LSTM(WIDTH, 8))


@pytest.mark.parametrize("how", ["constant", "one row for all"])
@pytest.mark.parametrize(
    ("build", "inputs", "weight", "units"),
    [
        (tower, vectors, "2.weight", "16 equal rows"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), images, "2.weight", "8 equal rows"),
        (turned, sequences, "2.weight", "7 equal units"),
        (recurrent, sequences, "2.weight_hh_l0", "32 equal rows"),
        (lambda: nn.Sequential(RightFactor(), nn.Tanh(), RightFactor()), vectors, "2.weight", "12 equal columns"),
    ],
    ids=["linear", "convolution", "transposed-convolution", "lstm", "right-factor"],
)
def test_equal_units_are_listed(build: Build, inputs: Any, weight: str, units: str, how: str) -> None:
    """Fault 7: weights filled with a constant, or every unit with the same draw."""

    def faulty() -> nn.Module:
        model = build()
        values = model.get_parameter(weight).data
        dim = 1 if units.endswith(("units", "columns")) else 0
        if how == "constant":
            values.fill_(0.1)
        else:
            values.copy_(values.narrow(dim, 0, 1).expand_as(values))
        return model

    assert duplicates(build, inputs, seeds=2) == []
    assert duplicates(faulty, inputs, seeds=2) == [f"{weight}: {units}"]


class RightFactor(nn.Module):
    """A weight that is the right factor of a product, with one column per unit, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 12))

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x @ self.weight, (0, WIDTH - 12))


class Multiplying(nn.Module):
    """A product with one weight."""

    def __init__(self, weight: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.multiply = nn.Parameter(weight), multiply

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight).tanh()


PRODUCTS: dict[
    str, tuple[tuple[int, ...], tuple[int, ...], Callable[[Tensor, Tensor], Tensor], tuple[int, ...], str]
] = {
    # Shape of the input, shape of the weight, the product, dimensions that count units, the reported text.
    "x @ w": ((4, 16), (16, 12), lambda x, w: x @ w, (1,), "12 equal columns"),
    "w @ x": ((16, 4), (12, 16), lambda x, w: w @ x, (0,), "12 equal rows"),
    "a vector": ((16,), (16, 12), lambda x, w: x @ w, (1,), "12 equal columns"),
    "addmm": ((4, 16), (16, 12), lambda x, w: torch.addmm(torch.ones(12), x, w), (1,), "12 equal columns"),
    "sum of products": (
        *((2, 4, 16), (2, 16, 12)),
        *(lambda x, w: torch.addbmm(torch.ones(4, 12), x, w), (2,), "12 equal units"),
    ),
    "sum of products, from the left": (
        *((2, 16, 4), (2, 12, 16)),
        *(lambda x, w: torch.addbmm(torch.ones(12, 4), w, x), (1,), "12 equal units"),
    ),
    "linear": ((2, 3, 16), (12, 16), lambda x, w: F.linear(x, w), (0,), "12 equal rows"),
    "transposed": ((4, 16), (12, 16), lambda x, w: x @ w.mT, (0,), "12 equal rows"),
    "bc,cd->bd": ((4, 16), (16, 12), lambda x, w: torch.einsum("bc,cd->bd", x, w), (1,), "12 equal columns"),
    "bc,dc->bd": ((4, 16), (12, 16), lambda x, w: torch.einsum("bc,dc->bd", x, w), (0,), "12 equal rows"),
    "cd,bc->bd": ((4, 16), (16, 12), lambda x, w: torch.einsum("cd,bc->bd", w, x), (1,), "12 equal columns"),
    "tensordot": ((4, 16), (12, 16), lambda x, w: torch.tensordot(x, w, dims=([1], [1])), (0,), "12 equal rows"),
    "tensordot last": ((4, 16), (16, 12), lambda x, w: torch.tensordot(x, w, dims=1), (1,), "12 equal columns"),
    "bmm": ((1, 4, 16), (16, 12), lambda x, w: x.bmm(w[None]), (1,), "12 equal columns"),
    "expanded": ((2, 4, 16), (16, 12), lambda x, w: x.bmm(w.expand(2, -1, -1)), (1,), "12 equal columns"),
    "heads": ((2, 3, 16), (16, 4, 5), lambda x, w: torch.einsum("btd,dhk->bthk", x, w), (1, 2), "20 equal units"),
    "heads out": ((2, 3, 4, 5), (4, 5, 16), lambda x, w: torch.einsum("bthk,hkd->btd", x, w), (2,), "16 equal units"),
    "half": ((4, 16), (24, 16), lambda x, w: F.linear(x, w.chunk(2)[1]), (0,), "24 equal rows"),
    "autocast": ((4, 16), (16, 12), lambda x, w: (x.bfloat16() @ w.bfloat16()).float(), (1,), "12 equal columns"),
    "convolution": ((4, 3, 8), (16, 3, 3), lambda x, w: F.conv1d(x, w), (0,), "16 equal rows"),
    "turned": ((4, 3, 8), (3, 16, 3), lambda x, w: F.conv1d(x, w.transpose(0, 1)), (1,), "16 equal units"),
    "bilinear": ((4, 6), (12, 6, 6), lambda x, w: F.bilinear(x, x, w), (0,), "12 equal rows"),
    "normed": ((4, 16), (16, 12), lambda x, w: x @ torch._weight_norm(w, torch.ones(16, 1)), (1,), "12 equal columns"),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_units_lie_along_the_dimensions_that_a_product_keeps(product: str) -> None:
    """Weights that are equal along a kept dimension are equal units. Weights that are equal along a summed one are not."""
    shape, weights, multiply, units, name = PRODUCTS[product]
    inputs = torch.randn(shape)

    def found(*alike: int) -> list[str]:
        values = torch.randn([1 if dim in alike else size for dim, size in enumerate(weights)])
        model = nn.Sequential(Multiplying(values.expand(weights).clone(), multiply))
        return duplicates(model, inputs, steps=Multiplying)

    assert found() == []
    assert found(*units) == [f"0.weight: {name}"]
    assert found(*[dim for dim in range(len(weights)) if dim not in units]) == []


EXPERTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "at once": lambda x, w: torch.einsum("etd,edf->etf", x, w),
    "one by one": lambda x, w: torch.stack([tokens @ expert for tokens, expert in zip(x, w)]),
    "by number": lambda x, w: torch.stack([x[e] @ w[e] for e in range(3)]),
}


@pytest.mark.parametrize("way", EXPERTS)
def test_units_are_compared_within_each_expert(way: str) -> None:
    """Experts with separate tokens may share single units. Equal experts, and equal units of one expert, are listed."""
    fills: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
        "drawn": (lambda w: w, []),
        "equal inputs": (lambda w: w[:, :1].expand_as(w).clone(), []),
        "one unit in all": (lambda w: torch.cat([w[:1, :, :1].expand(3, -1, -1), w[:, :, 1:]], dim=2), []),
        "equal units": (lambda w: w[..., :1].expand_as(w).clone(), ["0.weight: 36 units that equal another"]),
        "equal experts": (lambda w: w[:1].expand_as(w).clone(), ["0.weight: 3 equal matrices"]),
    }
    for fill, expected in fills.values():
        mixture = Multiplying(fill(torch.randn(3, WIDTH, 12)), EXPERTS[way])
        assert duplicates(nn.Sequential(mixture), torch.randn(3, 5, WIDTH), steps=Multiplying) == expected


def test_units_are_compared_within_each_group() -> None:
    """Equal kernels in two groups read different channels. Equal kernels in one group do not."""

    def found(weight: Tensor) -> list[str]:
        model = nn.Sequential(Multiplying(weight, lambda x, w: F.conv1d(x, w, groups=2)))
        return duplicates(model, torch.randn(BATCH, 8, 9), steps=Multiplying)

    one, other = torch.randn(3, 4, 3), torch.randn(3, 4, 3)
    assert found(torch.cat([one, one])) == []
    assert found(torch.cat([one, other[:1], other[:1], other[:1]])) == ["0.weight: 3 equal rows"]


def test_ambiguous_units_are_not_listed() -> None:
    """A view whose dimension is both kept and summed over, and a transposed convolution with groups."""
    halves = torch.randn(8, WIDTH)
    halves[1::2] = halves[1]
    product = Multiplying(halves, lambda x, w: w.view(4, 2 * WIDTH) @ torch.cat([x, x], 1).T)
    assert duplicates(nn.Sequential(product), torch.randn(BATCH, WIDTH), steps=Multiplying) == []
    alike = torch.randn(8, 1, 3).repeat(1, 4, 1)
    turned = Multiplying(alike, lambda x, w: F.conv_transpose1d(x, w, groups=2))
    assert duplicates(nn.Sequential(turned), torch.randn(BATCH, 8, 9), steps=Multiplying) == []


def test_a_weight_with_two_uses_needs_equal_units_in_both() -> None:
    """In a tied autoencoder, the weight's rows are units of the encoder, and its columns are units of the decoder."""

    class Tied(nn.Module):
        def __init__(self, *alike: int) -> None:
            super().__init__()
            values = torch.randn([1 if dim in alike else WIDTH for dim in range(2)])
            self.weight = nn.Parameter(values.expand(WIDTH, WIDTH).clone())

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight.T).tanh() @ self.weight

    def found(*alike: int) -> list[str]:
        return duplicates(lambda: nn.Sequential(Tied(*alike)), vectors, seeds=1, steps=Tied)

    assert found(0) == found(1) == []
    assert found(0, 1) == ["0.weight: 16 equal rows"]


def test_short_rows_and_tables_are_listed_only_if_all_are_equal() -> None:
    """Rows of zeros, such as a padding row, do not count. Single pairs of equal short rows or table rows are not listed."""

    class Looking(nn.Module):
        def __init__(self, table: Tensor, low: Tensor) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 2)
            self.low = nn.Linear(2, len(low), bias=False)
            self.table.weight.data.copy_(table)
            self.low.weight.data.copy_(low)

        def forward(self, ids: Tensor) -> Tensor:
            return self.low(self.layer(self.table(ids).tanh()).tanh())

    def found(table: Tensor, low: Tensor) -> list[str]:
        return duplicates(lambda: nn.Sequential(Looking(table, low)), torch.arange(9).reshape(3, 3), seeds=1)

    padded = torch.full((10, 8), 0.3)
    padded[0] = 0
    pairs, short_pairs = torch.randn(5, 8).repeat(2, 1), torch.randn(2, 2).repeat(2, 1)
    drawn, short = torch.randn(10, 8), torch.randn(4, 2)
    alike = torch.tensor([[1.0, 2.0]]).repeat(4, 1)
    one_zero = alike * torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    assert found(drawn, short) == []
    assert found(pairs, short_pairs) == []
    assert found(padded, short) == ["0.table.weight: 9 equal rows"]
    assert found(torch.full((10, 8), 0.3), alike) == ["0.table.weight: 10 equal rows", "0.low.weight: 4 equal rows"]
    assert found(drawn, one_zero) == ["0.low.weight: 3 equal rows"]
    # Two equal rows of two may be a design.
    assert found(drawn, one_zero[:3]) == []


def test_equal_units_among_others_are_counted() -> None:
    def faulty() -> nn.Module:
        model = tower()
        model[0].weight.data[1], model[0].weight.data[3] = model[0].weight.data[0], model[0].weight.data[2]
        model[2].weight.data[5] = model[2].weight.data[4]
        return model

    found = duplicates(faulty, vectors, seeds=1)
    assert list(found) == ["0.weight: 4 rows that equal another", "2.weight: 2 equal rows"]


@pytest.mark.parametrize("layers", [2, 3])
def test_cloned_layers_are_listed(layers: int) -> None:
    """Fault 14: ``nn.TransformerEncoder`` clones its layer. After a second draw, no weights are equal."""

    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def redrawn() -> nn.Module:
        model = encoder()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        return model

    weights = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    expected = [f"layers.{n}.{w} = layers.0.{w}" for n in range(1, layers) for w in weights]
    assert duplicates(encoder, sequences, seeds=2) == expected
    assert duplicates(encoder(), sequences) == expected
    assert duplicates(redrawn, sequences, seeds=2) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cloned_block_of_a_real_model_is_listed(name: str) -> None:
    """Ten model families have no equal weights. If a block is copied over its neighbor, every matrix in it is listed."""
    case = architecture(name)
    torch.manual_seed(0)
    model = case.build()
    assert duplicates(model, case.inputs(torch.Generator().manual_seed(0))) == []
    first, second = _twin_blocks(model)
    second.load_state_dict(first.state_dict())
    inside = {id(p) for p in second.parameters() if p.requires_grad and p.dim() > 1 and len(p.unique()) > 16}
    # The weights of a depthwise convolution are random and count. The decay rates of a state space model are constants.
    expected = {n for n, p in model.named_parameters() if id(p) in inside and not n.endswith("A_log")}
    found = duplicates(model, case.inputs(torch.Generator().manual_seed(0)))
    assert {text.partition(" = ")[0] for text in found} == expected


def _twin_blocks(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the largest pair of adjacent modules in a list with equal classes and shapes."""
    pairs = [
        (one, other)
        for stack in model.modules()
        if isinstance(stack, (nn.ModuleList, nn.Sequential))
        for one, other in pairwise(stack)
        if type(one) is type(other) and _shapes(one) == _shapes(other)
    ]
    return max(pairs, key=lambda pair: sum(p.numel() for p in pair[0].parameters()))


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [p.shape for p in module.parameters()]


class Designed(nn.Module):
    """A model with all kinds of parameters that are constant, zero or equal in two layers by design."""

    def __init__(self, mix: str = "plain") -> None:
        super().__init__()
        self.table = nn.Embedding(20, WIDTH, padding_idx=0)
        self.table.weight.data[7:9] = self.table.weight.data[6]  # tokens that were added, all at the mean
        self.positions = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.scales = nn.Parameter(torch.full((LENGTH, WIDTH), 1e-6))
        self.norm = nn.LayerNorm((LENGTH, WIDTH))
        self.rates = nn.ParameterList(torch.arange(1.0, WIDTH + 1).log().expand(LENGTH, -1).clone() for _ in range(2))
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.low, self.zero = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        nn.init.zeros_(self.zero.weight)
        self.eyes = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        for eye in self.eyes:
            nn.init.eye_(eye.weight)
        self.narrow = nn.Linear(1, 256)
        self.average = nn.Conv1d(LENGTH, LENGTH, 9, groups=LENGTH, padding=4)
        nn.init.constant_(self.average.weight, 1 / 9)
        self.frozen = nn.ModuleList(nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False) for _ in range(2))
        self.frozen[1].load_state_dict(self.frozen[0].state_dict())
        self.shared = nn.Parameter(self.inner.weight.data)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.positions
        x = x + self.scales * self.outer(self.inner(self.norm(x)).relu())
        for rate, eye, fixed in zip(self.rates, self.eyes, self.frozen):
            x = x * (-rate.exp()).exp() + fixed(eye(x).tanh())
        x = x + self.zero(self.low(x)) + self.average(x) + self.narrow(x[..., :1])[..., :WIDTH]
        return F.linear(x, self.shared) @ self.table.weight.T


def test_equality_by_design_is_not_listed() -> None:
    """Constant scales, zeros, decay rates, identities, averages, frozen copies, shared memory, added tokens."""
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 20
    assert duplicates(Designed, ids, seeds=3) == []


def test_constant_tables_and_copied_heads_are_listed() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 20)
            self.places = nn.Embedding(LENGTH, WIDTH)
            nn.init.ones_(self.places.weight)
            self.head.weight.data.copy_(self.table.weight)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.layer(self.table(ids) + self.places(ids % LENGTH)).tanh())

    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 20
    found = duplicates(Model, ids, seeds=1)
    assert list(found) == ["head.weight = table.weight", "places.weight: 6 equal rows"]


def test_copied_layers_are_listed_and_shared_ones_are_not() -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    copied = nn.Sequential(layer, nn.Tanh(), copy.deepcopy(layer), nn.Tanh())
    shared = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh())
    x = torch.randn(BATCH, WIDTH)
    assert duplicates(copied, x) == ["2.weight = 0.weight"]
    assert duplicates(shared, x) == []
    assert duplicates(copied, x, dtype="float64") == ["2.weight = 0.weight"]
    assert duplicates(copied, x, dtype="bfloat16") == ["2.weight = 0.weight"]
    for case in (models.TiedRnn, models.LstmLoop):
        assert duplicates(case, models.sequence, seeds=1, steps="time") == []


def ids(generator: torch.Generator) -> Tensor:
    return torch.randint(1, 40, (BATCH, LENGTH), generator=generator)


class Heads(nn.Module):
    """Applies one head to every state of a tower, as a detector with auxiliary losses does."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        head = nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.heads = nn.ModuleList([head] * layers)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for layer, head in zip(self.layers, self.heads):
            x = layer(x).tanh()
            found.append(head(x))
        return torch.stack(found)


def repeated_block(number: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    return nn.Sequential(nn.Linear(8, 8), nn.Sequential(*[block] * number), nn.Linear(8, 3))


def looped(layer: nn.Module) -> nn.Module:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(5):
                x = self.layer(x).tanh()
            return x

    return Loop()


def test_a_module_in_several_places_that_reads_its_own_results_is_listed() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert [*measure(lambda: repeated_block(4), x, seeds=2).duplicate_parameters] == [
        "1.1 and 2 more 1.*: the same module as 1.0, in series"
    ]
    activation, slope = nn.Tanh(), nn.PReLU()
    for build in (
        lambda: nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(8, 8), slope)]),
        lambda: repeated_block(2),
        lambda: Heads(4),
        lambda: looped(nn.Linear(8, 8)),
        lambda: nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(8, 8), activation)]),
    ):
        assert [*measure(build, x, seeds=1).duplicate_parameters] == []
