"""Identity paths of residual steps, and the sums of their branches; closed forms are in tests/truth/test_branches.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import models
import pytest
import torch
from torch import Tensor, nn
from towers import F64

from pytest_trainability import measure
from pytest_trainability.measures.depth.residual_branches import (
    _as_tensors,
    _operands_of,
    _ratio,
    _Sizes,
    _zeros_for_none,
    skips_of,
)

WIDTH = 6


class Step(nn.Module):
    """A linear branch, and a way to combine it with the input."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.combine = nn.Linear(WIDTH, WIDTH), combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x, self.layer(x))


RESIDUAL = {
    "sum": lambda x, f: x + f,
    "reversed": lambda x, f: f + x,
    "difference": lambda x, f: x - f,
    "alpha": lambda x, f: torch.add(x, f, alpha=3),
    "view": lambda x, f: (x.view(-1) + f.view(-1)).view_as(x),
    "transposed": lambda x, f: (x.T + f.T).T,
    "slices": lambda x, f: x[:] + f,
    "copy": lambda x, f: x.clone() + f,
    "rectified": lambda x, f: torch.relu(x + f),
    "two branches": lambda x, f: x + f + torch.sin(f),
    "a number": lambda x, f: (x + f) + 1.0,
}
OTHERS = {
    "no skip": lambda x, f: f,
    "negative stream": lambda x, f: f - x,
    "stream with alpha": lambda x, f: torch.add(f, x, alpha=3),
    "scaled stream": lambda x, f: 2 * x + f,
    "post-normalization": lambda x, f: nn.functional.layer_norm(x + f, (WIDTH,)),
    "concatenation": lambda x, f: torch.cat([x[:, :3], f[:, 3:]], dim=1),
    "rectified before the sum": lambda x, f: torch.relu(x) + f,
    "broadcast": lambda x, f: x[:, :1] + f,
    "permuted between sums": lambda x, f: (x + f).T.reshape(-1, WIDTH) + f,
}


def skips(combine: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
    """Return the number of additions on each identity path of the middle one of three steps."""
    torch.manual_seed(0)
    chain = models.cut(
        nn.Sequential(*[Step(combine) for _ in range(3)]), torch.randn(WIDTH, WIDTH), ["0", "1", "2"]
    ).chain
    return [len(skip.additions) for skip in skips_of(chain, 2)]


@pytest.mark.parametrize("name", RESIDUAL)
def test_an_identity_path_passes_sums_and_moved_entries(name: str) -> None:
    assert skips(RESIDUAL[name]) == [2 if name in {"two branches", "a number"} else 1]


@pytest.mark.parametrize("name", OTHERS)
def test_steps_without_an_identity_path(name: str) -> None:
    assert skips(OTHERS[name]) == []


@pytest.mark.parametrize("name", ["sum", "reversed", "difference", "alpha", "transposed", "two branches"])
def test_a_cotangent_passes_an_identity_path_unchanged(name: str) -> None:
    chain = models.cut(
        nn.Sequential(*[Step(RESIDUAL[name]) for _ in range(3)]), torch.randn(WIDTH, WIDTH), ["0", "1", "2"]
    ).chain
    (skip,) = skips_of(chain, 2)
    cotangent = torch.randn(WIDTH, WIDTH)
    assert (skip.later, skip.earlier) == (0, 0)
    assert torch.equal(skip.pull_back(cotangent), cotangent)


class Scaled(nn.Module):
    """``x + factor · x``, with the factor as a parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * x


@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0, 0.0])
def test_ratio_and_share_of_a_scaled_branch(factor: float) -> None:
    """|a| and a² / (1 + a²). With a = -1 the branch cancels the skip, and no gradient arrives at the steps before."""
    model = nn.Sequential(*[Scaled(0.25) for _ in range(2)], Scaled(factor))
    x = torch.randn(4, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = measure(model, x, steps=["0", "1", "2"], measures=["branch_ratio", "branch_gradient_share"])
    assert found.branch_ratio["2"].mean == pytest.approx(abs(factor), rel=1e-14)
    assert found.branch_gradient_share["2"].mean == pytest.approx(factor**2 / (1 + factor**2), rel=1e-14)
    assert found.branch_ratio["0"].mean == pytest.approx(0.25, rel=1e-14)
    share = found.branch_gradient_share["0"].mean
    assert math.isnan(share) if factor == -1 else share == pytest.approx(1 / 17, rel=1e-12)


def test_a_model_without_residual_steps_has_neither() -> None:
    found = measure(models.mlp, torch.randn(3, models.WIDTH), seeds=1)
    assert len(found.branch_ratio) == len(found.branch_gradient_share) == 0


class Streams(nn.Module):
    """Two streams. The first one has the second one added, which a layer changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, streams: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = streams
        return first + second, torch.tanh(self.layer(second))


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Streams() for _ in range(3))
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        streams = self.first(x), self.second(x)
        for step in self.steps:
            streams = step(streams)
        return streams[0] + streams[1]


def test_the_stream_is_the_tensor_that_was_created_first() -> None:
    """Both operands of the sum are tensors of the state before the step."""
    chain = models.cut(TwoStreams(), torch.randn(3, WIDTH), ["steps.0", "steps.1", "steps.2"]).chain
    assert len(chain.cut.states[1]) == 2
    (skip,) = skips_of(chain, 2)
    assert (skip.later, skip.earlier) == (0, 0)


def test_zeros_are_made_on_the_device_of_the_state() -> None:
    chain = models.cut(nn.Sequential(Scaled(0.5), Scaled(0.5)), torch.randn(3, WIDTH, dtype=F64), ["0", "1"]).chain
    with torch.device("meta"):
        (zeros,) = _zeros_for_none(chain, [None])
    assert zeros.device == torch.device("cpu") and zeros.dtype == F64
    assert zeros.shape == (1, 3, WIDTH) and not zeros.any()


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        (lambda x, f: (x - f) + f, 0.0),
        (lambda x, f: torch.add(x - f, f, alpha=3), 2.0),
        (lambda x, f: torch.sub(x, f, alpha=2) - f, 3.0),
        (lambda x, f: x + f * (torch.ones(()) + 1.0 - 0.5), 1.5),
    ],
    ids=["cancelled", "added three times", "subtracted three times", "a sum of constants"],
)
def test_branches_are_added_with_their_signs_and_factors(
    combine: Callable[[Tensor, Tensor], Tensor], expected: float
) -> None:
    """In units of the layer's output, whose orthogonal weight keeps the norm of the stream."""

    def build() -> nn.Module:
        model = nn.Sequential(*[Step(combine) for _ in range(3)]).double()
        for step in model:
            nn.init.orthogonal_(step.layer.weight)
            nn.init.zeros_(step.layer.bias)
        return model

    x = torch.randn(4, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = measure(build, x, seeds=1, steps=["0", "1", "2"], measures=["branch_ratio"]).branch_ratio
    assert [ratio.mean for ratio in found.values()] == pytest.approx([expected] * 3, rel=1e-12)


# Sums ------------------------------------------------------------------------------------------------------------


def test_branches_are_summed_and_not_measured_one_by_one() -> None:
    """Two branches that cancel each other; the stream is the first operand and then the second one."""
    sizes, stream, branch = _Sizes((0, 1)), torch.full((4,), 3.0), torch.ones(4)
    sizes.look(stream, branch)
    assert math.isnan(sizes.branch_square)
    sizes.look(-branch, stream + branch)
    assert (sizes.stream_square, sizes.branch_square) == (36.0, 0.0)


def test_a_broadcast_branch_counts_for_every_entry() -> None:
    sizes = _Sizes((0,))
    sizes.look(torch.ones(2, 3), torch.tensor(2.0))
    assert (sizes.stream_square, sizes.branch_square) == pytest.approx((6, 24), rel=1e-15)


@pytest.mark.parametrize(
    ("squares", "expected"),
    [([(4.0, 1.0)], 0.5), ([(4.0, 1.0), (5.0, 8.0)], 1.0), ([(0.0, 1.0)], math.inf), ([(0.0, 0.0)], math.nan)],
    ids=["one", "two streams", "no stream", "neither"],
)
def test_ratio_of_sums_of_squares(squares: list[tuple[float, float]], expected: float) -> None:
    found = _ratio(_Sizes((0,), stream_square=stream, branch_square=branch) for stream, branch in squares)
    assert found == pytest.approx(expected, nan_ok=True)


def test_operands_of_an_addition() -> None:
    x, y, count = torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.int64)
    left, right = _operands_of((x, y), {}) or (None, None)
    assert left is x and right is y
    assert _operands_of((x,), {"other": 2.0}) == (x, 2.0)
    assert _operands_of((1,), {"other": x}) == (1, x)
    assert _operands_of((x, count), {}) is None
    assert _operands_of((1, 2), {}) is None
    assert _operands_of((x, "text"), {}) is None


def test_a_number_becomes_a_tensor_like_the_other_operand() -> None:
    left, right = _as_tensors(2, torch.ones(3, dtype=F64, requires_grad=True))
    assert left.dtype == F64 and left.dim() == 0 and not right.requires_grad
