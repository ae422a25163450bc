"""What holds for every measure of the registry."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import InapplicableError, Measurement, measure
from pytest_trainability.measures import MEASURES


class Block(nn.Module):
    """Attention and a feed-forward layer, before a norm each; the second branch is zero at first."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.down(self.up(self.norm2(x)).relu())


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def read(name: str, device: str) -> object:
    """Return the values of one measure, or why it has none."""
    generator = torch.Generator().manual_seed(0)
    result = measure(
        Classifier,
        torch.randint(11, (6, 4), generator=generator),
        target=torch.randint(5, (6,), generator=generator),
        loss=F.cross_entropy,
        seeds=2,
        device=device,
        dtype="float64",
    )
    return values(result, name)


def values(result: Measurement, name: str) -> object:
    try:
        found = getattr(result, name)
    except InapplicableError as error:
        return str(error)
    if MEASURES[name].kind == "names":
        return tuple(found.names)
    if MEASURES[name].kind == "scalar":
        return {"": found.values}
    if MEASURES[name].kind == "spectrum":
        return {e.name: e.values for e in found}
    return {n: e.values for n, e in found.items()}


reference = cache(read)


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_measure_is_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(99)
    first = reference(name, "cpu")
    torch.rand(7)
    # Through text, for which NaN equals NaN.
    assert repr(read(name, "cpu")) == repr(first)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine")
@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_measure_is_the_same_on_cuda(name: str) -> None:
    on_cpu, on_cuda = reference(name, "cpu"), read(name, "cuda")
    if not isinstance(on_cpu, dict) or not isinstance(on_cuda, dict):
        assert on_cpu == on_cuda
        return
    assert on_cpu.keys() == on_cuda.keys()
    for element, expected in on_cpu.items():
        # Float64 throughout: what differs is the order of sums. Iterative methods stop at a thousandth.
        assert on_cuda[element] == pytest.approx(expected, rel=2e-3, abs=1e-9, nan_ok=True), element
