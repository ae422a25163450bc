"""Singular values of a chain: three routes to one answer, and what none of them can see."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import models
import pytest
import torch
import zoo
from models import ARCHITECTURES, BATCH, WIDTH, Architecture, Cutting
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pytest_trainability import measure
from pytest_trainability.engine.jacobian.jvp import push_forward
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import pull_back
from pytest_trainability.engine.linalg.bidiagonalization import Krylov, bidiagonalize, spread_of_squares
from pytest_trainability.engine.linalg.graded_products import Graded, log_singular_values
from pytest_trainability.engine.trees import batch_size
from pytest_trainability.errors import CutError
from pytest_trainability.measures.jacobian.singular_values import (
    DENSE,
    SingularValues,
    _all,
    _extreme,
    _product_of,
    singular_values,
)

F64 = torch.float64
ALL = ["jacobian_singular_values", "max_ftle", "condition_number", "numerical_rank", "isometry_gap"]
BACKWARD_ONLY = {"custom-function", "scaled-gradient", "scaled-skips"}
"""Their backward passes leave autograd, or are changed by hooks on the way."""


def trajectories_of(cutting: Cutting) -> Trajectories:
    return find_trajectories(cutting.chain, batch_size(cutting.inputs), 0)[0]


def dense(cutting: Cutting, trajectories: Trajectories) -> Tensor:
    """Pull the identity back: the Jacobian of each trajectory, (samples, n_L, n_0), from the standard basis."""
    chain = cutting.chain
    size = trajectories.dimensions(len(chain))
    columns = trajectories.as_columns(len(chain), torch.eye(size, dtype=F64).expand(trajectories.count, size, size))
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
    return trajectories.as_rows(0, columns, dtype=F64)


def every_way(cutting: Cutting, trajectories: Trajectories) -> dict[str, Callable[[], SingularValues]]:
    chain = cutting.chain
    wide = trajectories.dimensions(0) <= trajectories.dimensions(len(chain))
    return {
        "backward": lambda: _all(_product_of(trajectories, trajectories.count, forward=False), 0),
        "forward": lambda: _all(_product_of(trajectories, trajectories.count, forward=True), 0),
        "iterated": lambda: _extreme(_product_of(trajectories, trajectories.count, forward=wide), 0, 1),
    }


# Against the dense Jacobian ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.id)
def test_three_ways_to_the_values_of_the_dense_jacobian(case: Architecture) -> None:
    cutting = models.cut_case(case, dtype=F64)
    trajectories = trajectories_of(cutting)
    jacobian = dense(cutting, trajectories)
    expected = torch.linalg.svdvals(jacobian)
    squares = expected.square()
    spread = squares.var(dim=1, correction=0) / squares.mean(dim=1).square()
    for name, find in every_way(cutting, trajectories).items():
        if case.id in BACKWARD_ONLY and name != "backward":
            with pytest.raises(CutError, match=r"must itself be differentiable|must have no gradient hooks"):
                find()
            continue
        found = find()
        count = found.logs.shape[1]
        assert found.time.tolist() == [len(cutting.chain)] * trajectories.count
        # An SVD of the whole product is right to eps times its largest value; the iterative one to what it promises.
        error = (found.logs.exp() - expected[:, :count]).abs().amax(dim=1) / expected[:, 0]
        assert float(error.max()) < (1e-3 if name == "iterated" else 1e-13), name
        if name == "iterated":
            settled = ~found.smallest.isnan()
            assert torch.allclose(found.smallest[settled].exp(), expected[settled, -1], rtol=1e-3)
            # Two standard errors of the promised 5 % and some, where it is an estimate at all.
            assert bool(((found.spread - spread).abs() <= 3 * (0.05 * spread + 0.01)).all())
        else:
            assert count == min(jacobian.shape[1:])
            assert torch.allclose(found.spread, spread, rtol=1e-11)
            assert found.rank.tolist() == (expected > 1e-12 * expected[:, :1]).sum(dim=1).tolist()
            assert torch.equal(found.smallest, found.logs[:, -1])


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.id)
def test_pushing_is_the_transpose_of_pulling(case: Architecture) -> None:
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩ for every segment, with skips, several tensors and complex ones."""
    if case.id in BACKWARD_ONLY:
        pytest.skip("has no differentiable backward pass")
    chain = models.cut_case(case, dtype=F64).chain
    joint = Trajectories(chain, Division(1))
    generator = torch.Generator().manual_seed(3)
    for index in range(1, len(chain) + 1):
        v, u = (torch.randn(1, 2, joint.dimensions(i), generator=generator, dtype=F64) for i in (index - 1, index))
        pushed = push_forward(chain, index, joint.as_columns(index - 1, v))
        pulled = pull_back(chain, index, joint.as_columns(index, u))
        there = u[0] @ joint.as_rows(index, pushed)[0].T
        back = joint.as_rows(index - 1, pulled)[0] @ v[0].T
        assert torch.allclose(there, back, rtol=0, atol=1e-12 * float(there.abs().max()))


# Both ends large ---------------------------------------------------------------------------------------------------


def residual(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*[models.Block(width, width) for _ in range(3)])


def test_large_states_are_iterated() -> None:
    """More than 512 numbers at both ends: what is settled is right to what is promised, the rest is NaN."""
    width = DENSE + 8
    result = measure(residual(width), torch.randn(1, width), seeds=1, exponents=2, dtype="float64", measures=ALL)
    torch.manual_seed(0)
    cutting = models.cut(residual(width)().double(), torch.randn(1, width, dtype=F64))
    assert len(result.jacobian_singular_values) == 2
    exact = _all(_product_of(Trajectories(cutting.chain, Division(1)), 1, forward=False), 0)
    found = singular_values(Trajectories(cutting.chain, Division(1)), 0, 2)
    assert torch.allclose(found.logs, exact.logs[:, :2], rtol=0, atol=1e-3)
    assert torch.allclose(found.spread, exact.spread, rtol=0.15)
    # A residual net is so well conditioned that the smallest value is settled, too: its rank is full.
    assert torch.allclose(found.smallest, exact.smallest, rtol=0, atol=1e-3)
    assert found.rank.tolist() == exact.rank.tolist() == [width]
    assert result.max_ftle >= result.lyapunov_max.mean
    assert result.numerical_rank == width and 1 < result.condition_number < 100


def test_what_is_not_settled_is_nan() -> None:
    """ReLU layers: zeros among the singular values, which no Krylov space can count."""
    width = DENSE + 8
    model = lambda: nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(width, width), nn.ReLU())])  # noqa: E731
    result = measure(model, torch.randn(2, width), seeds=1, measures=ALL)
    assert math.isnan(result.condition_number.mean) and math.isnan(result.numerical_rank.mean)
    assert math.isfinite(result.max_ftle.mean) and math.isfinite(result.isometry_gap.mean)


def test_bottleneck_between_large_states_is_rank_deficient() -> None:
    """Counting dimensions is enough."""
    width = DENSE + 8
    layers = [nn.Linear(a, b) for a, b in [(width, 40), (40, 40), (40, width)]]
    result = measure(nn.Sequential(*layers), torch.randn(2, width), measures=ALL)
    assert result.condition_number == math.inf and math.isnan(result.numerical_rank.mean)


def test_small_first_state_before_a_large_last_one() -> None:
    """A generator: products with J itself, as many as there are inputs."""
    make = lambda: nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 900))  # noqa: E731
    result = measure(make, torch.randn(3, 6), seeds=1, dtype="float64", measures=ALL)
    torch.manual_seed(0)
    model = make().double()
    assert len(result.jacobian_singular_values) == result.numerical_rank == 6
    jacobian = torch.autograd.functional.jacobian(model, result_inputs(3, 6))
    values = torch.stack([torch.linalg.svdvals(jacobian[i, :, i]) for i in range(3)]).log().mean(dim=0).exp()
    found = [s.mean for s in measure(model, result_inputs(3, 6), measures=ALL).jacobian_singular_values]
    assert found == pytest.approx(values.tolist(), rel=1e-12)


def result_inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9), dtype=F64)


class Attending(nn.Module):
    """Fused attention, whose backward pass PyTorch cannot differentiate."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.scaled_dot_product_attention(*self.mix(x).unsqueeze(1).chunk(3, dim=-1)).squeeze(1)


def test_fused_attention_is_replaced_for_the_run() -> None:
    model = nn.Sequential(*[Attending() for _ in range(3)])
    x = torch.randn(2, 70, 8, generator=torch.Generator().manual_seed(0))
    result = measure(model, x, measures=["max_ftle"])
    plain = measure(model, x)
    assert result.max_ftle >= result.lyapunov_max.mean
    # The other measures see other kernels' rounding, no more.
    assert abs(result.lyapunov_max - plain.lyapunov_max.mean) < 1e-5


class Detached(torch.autograd.Function):
    """Its backward pass leaves autograd without a word."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad.detach()


class Once(Detached):
    """Says so."""

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


class Custom(nn.Module):
    """A residual block around a custom function."""

    def __init__(self, function: type[torch.autograd.Function], width: int) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function.apply(self.layer(x))


@pytest.mark.parametrize("function", [Detached, Once])
def test_backward_pass_that_cannot_be_differentiated(function: type[torch.autograd.Function]) -> None:
    """Half of a Jacobian must not pass for the whole; where the last state is small, nothing of the kind is needed."""
    large = nn.Sequential(*[Custom(function, DENSE + 1) for _ in range(3)])
    with pytest.raises(CutError, match="is not the step's Jacobian"):
        measure(large, torch.randn(2, DENSE + 1), measures=["max_ftle"])
    small = nn.Sequential(*[Custom(function, 8) for _ in range(3)])
    assert measure(small, torch.randn(2, 8), measures=["max_ftle"]).max_ftle > 0


@pytest.mark.parametrize("place", range(3))
def test_every_step_is_asked(place: int) -> None:
    """One backward pass of three that cannot be differentiated is enough, wherever it is."""
    width = DENSE + 1
    steps = [Custom(Detached, width) if i == place else nn.Linear(width, width) for i in range(3)]
    with pytest.raises(CutError, match=f"step '{place}' is not the step's Jacobian"):
        measure(nn.Sequential(*steps), torch.randn(2, width), steps=["0", "1", "2"], seeds=1, measures=["max_ftle"])


# As a measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_transformers(name: str) -> None:
    """Both ends have 576 numbers. Post-LN blocks lose two directions per token, which the iterative method cannot count."""
    pytest.importorskip("transformers")
    case = next(c for c in zoo.CASES if c.id == name)
    result = measure(case.build, lambda generator: case.inputs(generator), seeds=1, measures=ALL)
    assert result.max_ftle > result.lyapunov_max.mean
    assert result.isometry_gap > 0 and math.isnan(result.condition_number.mean)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_read_at_once_or_later(dtype: str) -> None:
    """Beside the default measures or by a repeated run: the same numbers."""
    model = lambda: nn.Sequential(*[models.Block() for _ in range(3)])  # noqa: E731
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    at_once = measure(model, x, seeds=2, dtype=dtype, measures=ALL)
    later = measure(model, x, seeds=2, dtype=dtype)
    for name in ALL[1:]:
        assert getattr(at_once, name).values == getattr(later, name).values
    assert [s.values for s in at_once.jacobian_singular_values] == [s.values for s in later.jacobian_singular_values]
    assert at_once.numerical_rank == WIDTH
    exact = measure(model, x, seeds=2, dtype="float64", measures=ALL)
    # A bfloat16 has 8 bits.
    close = {"float32": 1e-5, "float64": 0.0, "bfloat16": 0.1}[dtype]
    assert at_once.condition_number.mean == pytest.approx(exact.condition_number.mean, rel=close, abs=1e-300)


def test_joint_trajectory_of_a_batch_norm_and_a_loss() -> None:
    """One Jacobian of the whole batch; a loss changes nothing, for it comes after the last state."""
    case = next(c for c in ARCHITECTURES if c.id == "batch-norm")
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    result = measure(case.build, x, seeds=1, measures=ALL)
    with_loss = measure(case.build, x, loss=lambda y: y.square().mean(), seeds=1, measures=ALL)
    assert result.frame == "joint" and len(result.jacobian_singular_values) == BATCH * WIDTH
    assert with_loss.max_ftle.values == result.max_ftle.values


def test_only_so_many_trajectories_are_looked_at() -> None:
    """4096 columns together, the first samples; with fewer than that, all."""
    chain = models.cut(models.mlp(1, 128), torch.randn(40, 128)).chain
    assert len(singular_values(Trajectories(chain, Division(40)), 0).logs) == 32


def test_packed_sequences_end_when_they_end() -> None:
    """A sample's exponent is over the steps that act on it."""
    torch.manual_seed(0)
    lstm = nn.LSTM(WIDTH, 4, batch_first=True)
    x = torch.randn(2, 6, WIDTH)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 3]), batch_first=True)
    both = measure(lstm, (packed,), steps="time", measures=["max_ftle"])
    alone = [
        measure(lstm, (x[i : i + 1, :length],), steps="time", measures=["max_ftle"]).max_ftle.mean
        for i, length in enumerate([6, 3])
    ]
    assert both.frame == "per sample"
    assert both.max_ftle.mean == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_what_is_not_finite_is_nan() -> None:
    model = models.mlp(3)
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    result = measure(model, torch.randn(2, WIDTH), measures=ALL)
    for name in ALL[1:]:
        assert math.isnan(getattr(result, name).mean), name


# Graded matrices ---------------------------------------------------------------------------------------------------


@cache
def rotation(size: int, seed: int) -> Tensor:
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return torch.linalg.qr(drawn).Q


@pytest.mark.parametrize(
    "logs",
    [
        pytest.param([0.0, -1.0, -2.0, -3.0], id="ordinary"),
        pytest.param([0.0, 0.0, 0.0, 0.0], id="equal"),
        pytest.param([1e4, 1e4, 0.0, 0.0, -1e4, -1e4 - 1e-3], id="pairs far apart"),
        pytest.param([-30.0 * i for i in range(60)], id="evenly over 1800 nats"),
        pytest.param([-5.0 * (i // 3) for i in range(180)], id="triples over 300 nats"),
        pytest.param([-2.0 * i for i in range(400)], id="many over 800 nats"),
    ],
)
def test_rows_scaled_by_logarithms(logs: list[float]) -> None:
    """diag(e^d) times an orthogonal matrix has the singular values e^d, whatever their range, in whatever order they come."""
    order = torch.randperm(len(logs), generator=torch.Generator().manual_seed(1))
    d = torch.tensor(logs, dtype=F64)
    found = log_singular_values(Graded(d[order][None], rotation(len(logs), 2)[None]))[0]
    # Right to eps of the logarithm itself, and of each value.
    assert torch.allclose(found, d, rtol=4e-16, atol=1e-12)


def test_rows_in_all_directions_need_many_factorizations() -> None:
    """Unit rows that are not orthogonal, 3 nats apart: no few steps part them. The sum is the logarithm of the determinant."""
    size = 500
    U = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=F64)
    U = U / U.norm(dim=1, keepdim=True)
    d = torch.linspace(0, -1500, size, dtype=F64)
    found = log_singular_values(Graded(d[None], U[None]))[0]
    expected = float(d.sum() + torch.linalg.slogdet(U).logabsdet)
    # 375000 nats to eps, and 500 values, each right to some 500 eps.
    assert abs(math.fsum(found.tolist()) - expected) < 375000 * 2.2e-16 * 10 + size * size * 2.2e-16 * 10


def test_product_of_triangular_factors_over_a_wide_range() -> None:
    """Turned back and forth between graded factors of 100 nats each: 10 of them are one of 1000."""
    d = torch.linspace(0, -100, 12, dtype=F64)
    one = rotation(12, 3)
    factors = [torch.diag(d.exp())] * 10
    product = Graded.identity(1, 12, torch.device("cpu")).times((one @ factors[0])[None])
    for factor in factors[1:]:
        product = product.times(factor[None])
    # The first turn mixes rows of different size: left of it, the nine diagonal ones; right of it, one.
    found = log_singular_values(product)[0]
    plain = torch.linalg.svdvals(torch.linalg.matrix_power(factors[0], 9) @ one @ factors[0]).log()
    assert not torch.allclose(found, plain, rtol=0, atol=1e-6)
    assert math.isclose(float(found.sum()), 10 * float(d.sum()), rel_tol=1e-13)
    assert found.tolist() == sorted(found.tolist(), reverse=True)


def test_zero_rows_and_what_is_not_finite() -> None:
    rows = torch.eye(3, dtype=F64).expand(2, 3, 3).clone()
    logs = torch.tensor([[1.0, -math.inf, 2.0], [1.0, math.nan, 2.0]], dtype=F64)
    rows[0, 1] = 0
    found = log_singular_values(Graded(logs, rows))
    assert found[0].tolist() == pytest.approx([2.0, 1.0, -math.inf])
    assert bool(found[1].isnan().all())


# Bidiagonalization -------------------------------------------------------------------------------------------------


def krylov(matrix: Tensor, block: int = 1, limit: int = 100) -> tuple[Krylov, float]:
    generator = torch.Generator().manual_seed(11)

    def draw(count: int) -> Tensor:
        return torch.randn(1, count, matrix.shape[1], generator=generator, dtype=F64)

    def there(v: Tensor) -> Tensor:
        return v @ matrix.T

    def back(u: Tensor) -> Tensor:
        return u @ matrix

    found = bidiagonalize(there, back, draw(block), block, tolerance=1e-3, noise=1e-13, limit=limit)
    return found, float(spread_of_squares(there, back, found, lambda attempt: draw(16), attempts=4)[0])


def gaussian(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5), dtype=F64) / math.sqrt(columns)


MATRICES = {
    "gaussian": gaussian(300, 300),
    "tall": gaussian(500, 200),
    "perturbed identity": torch.eye(300, dtype=F64) + 0.2 * gaussian(300, 300),
    "deep": torch.linalg.matrix_power(gaussian(300, 300), 6),
    "near isometry": rotation(300, 4) * torch.linspace(1, 1.01, 300, dtype=F64),
}


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("name", MATRICES)
def test_extreme_values_of_a_dense_matrix(name: str, block: int) -> None:
    matrix = MATRICES[name]
    expected = torch.linalg.svdvals(matrix)
    squares = expected.square()
    found, spread = krylov(matrix, block)
    assert torch.allclose(found.largest[0], expected[:block], rtol=1e-3)
    if not bool(found.smallest.isnan()):
        assert torch.allclose(found.smallest, expected[-1:], rtol=1e-3)
    if name != "tall":
        assert bool(found.smallest.isnan()) == (name in {"gaussian", "deep"})
    exact = float(squares.var(correction=0) / squares.mean().square())
    assert abs(spread - exact) < 2 * (0.05 * exact + 0.01)
    if name == "near isometry":
        # Vectors of fixed length: the error is a part of the spread itself, not of one.
        assert abs(spread - exact) < 0.3 * exact


def test_isometry_is_seen_at_once() -> None:
    """One step exhausts the space: all singular values are equal, however many are asked for."""
    found, spread = krylov(rotation(100, 6) * 0.25, block=3)
    assert found.largest[0].tolist() == pytest.approx([0.25] * 3, rel=1e-12)
    assert float(found.smallest[0]) == pytest.approx(0.25, rel=1e-12)
    assert abs(spread) < 1e-12


def test_too_few_steps_are_not_passed_off_as_an_answer() -> None:
    found, _ = krylov(MATRICES["gaussian"], limit=4)
    assert bool(found.largest.isnan().all()) and bool(found.smallest.isnan().all())


def test_zero_singular_values_leave_the_smallest_open() -> None:
    found, _ = krylov(rotation(100, 6) * (torch.arange(100) % 2))
    assert float(found.largest[0, 0]) == pytest.approx(1, rel=1e-12)
    assert bool(found.smallest.isnan().all())


def test_what_probes_hardly_meet_is_no_estimate() -> None:
    """Three values of 600 hold nine tenths of the fourth powers: 16 probes tell the spread to no 5 %, and say so."""
    squares = torch.cat([torch.ones(597), torch.full((3,), 144.0)]).double()
    A = torch.diag(squares.sqrt())
    nothing = torch.zeros(1, dtype=F64)
    found = Krylov(
        torch.ones(1, 1, dtype=F64), torch.ones(1, dtype=F64), torch.zeros(1, 1, 600, dtype=F64), nothing, nothing
    )
    generator = torch.Generator().manual_seed(0)

    def draw(attempt: int) -> Tensor:
        return torch.randn(1, 16, 600, generator=generator, dtype=F64)

    assert math.isnan(float(spread_of_squares(lambda v: v @ A.T, lambda u: u @ A, found, draw, attempts=1)))
    # With enough of them it is one: a probe's ‖AᵀA g‖² varies by sqrt(2/3) of its mean.
    generator = torch.Generator().manual_seed(0)
    exact = float(squares.var(correction=0) / squares.mean().square())
    spread = float(spread_of_squares(lambda v: v @ A.T, lambda u: u @ A, found, draw, attempts=400))
    assert spread == pytest.approx(exact, rel=2 * 0.05)
