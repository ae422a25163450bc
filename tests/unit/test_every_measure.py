"""Properties that every measure has: it is a function of the seed, and the same on every device and in every request."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from structures import BATCH, WIDTH, architecture
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
    """Return the values of one measure, or the message if it is not applicable."""
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


STRUCTURAL = ["duplicate_parameters", "uninitialized_parameters", "meta_device_differences", "linear_steps"]


@pytest.mark.parametrize("name", ["gpt2", "convnext"])
def test_a_measure_does_not_depend_on_what_else_is_requested(name: str) -> None:
    """Also not the default measures, although some measures build the model again."""
    case = architecture(name)
    together = measure(case.build, case.inputs, seeds=2, measures=STRUCTURAL)
    apart = measure(case.build, case.inputs, seeds=2)
    for measured in (*STRUCTURAL, "gradient_norm", "activation_rms", "log_gain", "unused_parameters"):
        assert getattr(together, measured) == getattr(apart, measured)
    together.check(**dict.fromkeys(STRUCTURAL, (None, 0)))


def test_a_finished_module_is_left_unchanged() -> None:
    """Also its running statistics, in train mode."""
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure(model, torch.randn(BATCH, WIDTH), measures=["duplicate_parameters", "linear_steps"])
    assert found.frame == "joint"
    assert not found.duplicate_parameters
    assert not found.linear_steps
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
