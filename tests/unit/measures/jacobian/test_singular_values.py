"""Singular values of a chain by three methods, against the dense Jacobian; and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import models
import pytest
import torch
import zoo
from custom_functions import Detached
from models import ARCHITECTURES, BATCH, WIDTH, Architecture, Cutting
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pytest_trainability import measure
from pytest_trainability.engine.jacobian.chain_product import ChainProduct
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import pull_back
from pytest_trainability.engine.trees import batch_size
from pytest_trainability.errors import CutError
from pytest_trainability.measures.jacobian import singular_values as singular
from pytest_trainability.measures.jacobian.singular_values import (
    DENSE,
    SingularValues,
    _all,
    _extreme,
    _factored,
    singular_values,
)

F64 = torch.float64
ALL = ["jacobian_singular_values", "max_ftle", "condition_number", "numerical_rank", "isometry_gap"]
BACKWARD_ONLY = {"custom-function", "scaled-gradient", "scaled-skips"}
"""Architectures whose backward passes leave autograd, or are changed by hooks."""


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


def every_method(cutting: Cutting, trajectories: Trajectories) -> dict[str, Callable[[], SingularValues]]:
    chain = cutting.chain
    wide = trajectories.dimensions(0) <= trajectories.dimensions(len(chain))
    return {
        "backward": lambda: _all(ChainProduct.of(trajectories, trajectories.count, forward=False), 0),
        "forward": lambda: _all(ChainProduct.of(trajectories, trajectories.count, forward=True), 0),
        "iterated": lambda: _extreme(ChainProduct.of(trajectories, trajectories.count, forward=wide), 0, 1),
    }


# Against the dense Jacobian ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.id)
def test_all_methods_give_the_values_of_the_dense_jacobian(case: Architecture) -> None:
    cutting = models.cut_case(case, dtype=F64)
    trajectories = trajectories_of(cutting)
    jacobian = dense(cutting, trajectories)
    expected = torch.linalg.svdvals(jacobian)
    squares = expected.square()
    spread = squares.var(dim=1, correction=0) / squares.mean(dim=1).square()
    for name, find in every_method(cutting, trajectories).items():
        if case.id in BACKWARD_ONLY and name != "backward":
            with pytest.raises(CutError, match=r"must itself be differentiable|must have no gradient hooks"):
                find()
            continue
        found = find()
        count = found.logs.shape[1]
        assert found.time.tolist() == [len(cutting.chain)] * trajectories.count
        # An SVD of the whole product is accurate to eps times its largest value, the iterative method to its tolerance.
        error = (found.logs.exp() - expected[:, :count]).abs().amax(dim=1) / expected[:, 0]
        assert float(error.max()) < (1e-3 if name == "iterated" else 1e-13), name
        if name == "iterated":
            settled = ~found.smallest.isnan()
            assert torch.allclose(found.smallest[settled].exp(), expected[settled, -1], rtol=1e-3)
            # Three standard errors of at most 5 % plus 0.01, if it is an estimate.
            assert bool(((found.spread - spread).abs() <= 3 * (0.05 * spread + 0.01)).all())
        else:
            assert count == min(jacobian.shape[1:])
            assert torch.allclose(found.spread, spread, rtol=1e-11)
            assert found.rank.tolist() == (expected > 1e-12 * expected[:, :1]).sum(dim=1).tolist()
            assert torch.equal(found.smallest, found.logs[:, -1])


# Both ends large ---------------------------------------------------------------------------------------------------


def residual(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*[models.Block(width, width) for _ in range(3)])


def test_large_states_use_the_iterative_method() -> None:
    """Both end states have more than 512 numbers: values that converge are accurate to the tolerance."""
    width = DENSE + 8
    result = measure(residual(width), torch.randn(1, width), seeds=1, exponents=2, dtype="float64", measures=ALL)
    torch.manual_seed(0)
    cutting = models.cut(residual(width)().double(), torch.randn(1, width, dtype=F64))
    assert len(result.jacobian_singular_values) == 2
    exact = _all(ChainProduct.of(Trajectories(cutting.chain, Division(1)), 1, forward=False), 0)
    found = singular_values(Trajectories(cutting.chain, Division(1)), 0, 2)
    assert torch.allclose(found.logs, exact.logs[:, :2], rtol=0, atol=1e-3)
    assert torch.allclose(found.spread, exact.spread, rtol=0.15)
    # A residual network is so well conditioned that the smallest value converges, too: its rank is full.
    assert torch.allclose(found.smallest, exact.smallest, rtol=0, atol=1e-3)
    assert found.rank.tolist() == exact.rank.tolist() == [width]
    assert result.max_ftle >= result.lyapunov_max.mean
    assert result.numerical_rank == width and 1 < result.condition_number < 100


def test_no_more_values_are_iterated_than_there_are() -> None:
    """Three dimensions grow to five: five values are wanted, and a block of three vectors finds all three."""
    cutting = models.cut(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5)).double(), torch.randn(2, 3, dtype=F64))
    trajectories = trajectories_of(cutting)
    found = _extreme(ChainProduct.of(trajectories, 2, forward=True), 0, 5)
    expected = torch.linalg.svdvals(dense(cutting, trajectories))
    torch.testing.assert_close(found.logs.exp(), expected, rtol=1e-3, atol=0)


def test_values_that_do_not_converge_are_nan() -> None:
    """ReLU layers have singular values of zero, which a Krylov space cannot count."""
    width = DENSE + 8
    model = lambda: nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(width, width), nn.ReLU())])  # noqa: E731
    result = measure(model, torch.randn(2, width), seeds=1, measures=ALL)
    assert math.isnan(result.condition_number.mean) and math.isnan(result.numerical_rank.mean)
    assert math.isfinite(result.max_ftle.mean) and math.isfinite(result.isometry_gap.mean)


def test_bottleneck_between_large_states_is_rank_deficient() -> None:
    """A state with fewer dimensions bounds the rank."""
    width = DENSE + 8
    layers = [nn.Linear(a, b) for a, b in [(width, 40), (40, 40), (40, width)]]
    result = measure(nn.Sequential(*layers), torch.randn(2, width), measures=ALL)
    assert result.condition_number == math.inf and math.isnan(result.numerical_rank.mean)


def test_small_first_state_before_a_large_last_one() -> None:
    """A generator network: as many products with J itself as there are inputs."""
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
    # Other measures change by the rounding of other kernels only.
    assert abs(result.lyapunov_max - plain.lyapunov_max.mean) < 1e-5


class Once(Detached):
    """Doubles, with a backward pass that is marked as not differentiable."""

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
    """Large states need products with J, and raise. Small ones need backward passes only."""
    large = nn.Sequential(*[Custom(function, DENSE + 1) for _ in range(3)])
    with pytest.raises(CutError, match="is not the step's Jacobian"):
        measure(large, torch.randn(2, DENSE + 1), measures=["max_ftle"])
    small = nn.Sequential(*[Custom(function, 8) for _ in range(3)])
    assert measure(small, torch.randn(2, 8), measures=["max_ftle"]).max_ftle > 0


# The largest value alone --------------------------------------------------------------------------------------------


def of_lstm(**options: object) -> dict[str, float]:
    """Return the largest exponent by both methods, for an LSTM with 160 numbers per state and trajectory."""
    torch.manual_seed(0)
    lstm = nn.LSTM(8, 80, batch_first=True).double()
    x = result_inputs(3, 12, 8)
    found = measure(lstm, x, steps="time", measures=["max_ftle", "jacobian_singular_values"], **options)
    return {"alone": float(found.max_ftle), "of all": math.log(float(found.jacobian_singular_values[0])) / 12}


def test_the_largest_value_alone_is_that_of_all_values() -> None:
    """The error of a singular value is about the square of the residual, which is below a thousandth."""
    found = of_lstm()
    assert found["alone"] == pytest.approx(found["of all"], abs=1e-3 / 12)
    assert found["alone"] != found["of all"]


def test_it_takes_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some blocks of four vectors in both directions, instead of 160 vectors and as many triangular factors as steps."""
    blocks = []
    original = singular.bidiagonalize
    monkeypatch.setattr(singular, "bidiagonalize", lambda *a, **k: blocks.append(original(*a, **k)) or blocks[-1])
    of_lstm()
    (found,) = blocks
    assert found.basis.shape[1] <= 32
    assert float(found.asymmetry.max()) < 1e-12


@pytest.mark.parametrize("reason", ["small", "not differentiable", "shrinking"])
def test_all_values_are_computed_where_the_largest_alone_is_not_safe(reason: str) -> None:
    """Few values, a backward pass that leaves autograd, and steps that shorten every vector to less than a twentieth."""
    width = 8 if reason == "small" else 70
    torch.manual_seed(0)
    step = {"not differentiable": partial(Custom, Detached, width)}.get(reason, partial(nn.Linear, width, width))
    model = nn.Sequential(*[step() for _ in range(3)]).double()
    if reason == "shrinking":
        model.load_state_dict({name: 0.01 * weight for name, weight in model.state_dict().items()})
    result = measure(
        model, result_inputs(2, width), steps=["0", "1", "2"], measures=["max_ftle", "jacobian_singular_values"]
    )
    assert float(result.max_ftle) == pytest.approx(math.log(float(result.jacobian_singular_values[0])) / 3, rel=1e-12)


@pytest.mark.parametrize("place", range(3))
def test_every_step_is_checked(place: int) -> None:
    """One of three steps cannot be differentiated, at any place."""
    width = DENSE + 1
    steps = [Custom(Detached, width) if i == place else nn.Linear(width, width) for i in range(3)]
    with pytest.raises(CutError, match=f"step '{place}' is not the step's Jacobian"):
        measure(nn.Sequential(*steps), torch.randn(2, width), steps=["0", "1", "2"], seeds=1, measures=["max_ftle"])


# As a measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_transformers(name: str) -> None:
    """Both end states have 576 numbers. Post-LN blocks lose two directions per token, which the iterative method cannot count."""
    pytest.importorskip("transformers")
    case = next(c for c in zoo.CASES if c.id == name)
    result = measure(case.build, lambda generator: case.inputs(generator), seeds=1, measures=ALL)
    assert result.max_ftle > result.lyapunov_max.mean
    assert result.isometry_gap > 0 and math.isnan(result.condition_number.mean)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_measured_at_once_or_later(dtype: str) -> None:
    """Measured together with the default measures or in a repeated run, the numbers are the same."""
    model = lambda: nn.Sequential(*[models.Block() for _ in range(3)])  # noqa: E731
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    at_once = measure(model, x, seeds=2, dtype=dtype, measures=ALL)
    later = measure(model, x, seeds=2, dtype=dtype)
    for name in ALL[1:]:
        assert getattr(at_once, name).values == getattr(later, name).values
    assert [s.values for s in at_once.jacobian_singular_values] == [s.values for s in later.jacobian_singular_values]
    assert at_once.numerical_rank == WIDTH
    exact = measure(model, x, seeds=2, dtype="float64", measures=ALL)
    # A bfloat16 has a precision of 8 bits.
    close = {"float32": 1e-5, "float64": 0.0, "bfloat16": 0.1}[dtype]
    assert at_once.condition_number.mean == pytest.approx(exact.condition_number.mean, rel=close, abs=1e-300)


def test_joint_trajectory_of_a_batch_norm_and_a_loss() -> None:
    """One Jacobian of the whole batch; a loss changes nothing, because it comes after the last state."""
    case = next(c for c in ARCHITECTURES if c.id == "batch-norm")
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    result = measure(case.build, x, seeds=1, measures=ALL)
    with_loss = measure(case.build, x, loss=lambda y: y.square().mean(), seeds=1, measures=ALL)
    assert result.frame == "joint" and len(result.jacobian_singular_values) == BATCH * WIDTH
    assert with_loss.max_ftle.values == result.max_ftle.values


def test_trajectories_are_limited_to_4096_columns() -> None:
    """128 columns for each of the first 32 samples."""
    chain = models.cut(models.mlp(1, 128), torch.randn(40, 128)).chain
    assert len(singular_values(Trajectories(chain, Division(40)), 0).logs) == 32


def test_packed_sequences_end_when_they_end() -> None:
    """The exponent of a sample is averaged over the steps that act on it."""
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


def test_values_of_a_jacobian_that_is_not_finite_are_nan() -> None:
    model = models.mlp(3)
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    result = measure(model, torch.randn(2, WIDTH), measures=ALL)
    for name in ALL[1:]:
        assert math.isnan(getattr(result, name).mean), name


# Limits ------------------------------------------------------------------------------------------------------------


def linear_trajectories(first: int, last: int, samples: int = 6) -> Trajectories:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(first, last), nn.Linear(last, last)).double()
    cutting = models.cut(model, torch.randn(samples, first, dtype=F64))
    return Trajectories(cutting.chain, Division(samples))


@pytest.mark.parametrize(
    ("first", "last", "rows", "used", "values"),
    [
        # All values are computed if an end has up to 4 dimensions; the columns are those of this end, the last one if both have.
        (6, 4, 24, 6, 4),
        (6, 4, 23, 5, 4),
        (4, 6, 23, 5, 4),
        (4, 3, 12, 4, 3),
        (4, 4, 3, 1, 4),
        # Otherwise one value for each of four trajectories, or for one if an end has more than 8 dimensions.
        (5, 5, 3, 4, 1),
        (8, 8, 3, 4, 1),
        (8, 9, 3, 1, 1),
        (9, 8, 3, 1, 1),
    ],
)
def test_large_states_have_fewer_trajectories(
    monkeypatch: pytest.MonkeyPatch, first: int, last: int, rows: int, used: int, values: int
) -> None:
    """With limits of 4 and 8 dimensions instead of 512 and 16384, so that the models are small."""
    for name, limit in (("DENSE", 4), ("LARGE", 8), ("ROWS", rows)):
        monkeypatch.setattr(f"pytest_trainability.measures.jacobian.singular_values.{name}", limit)
    assert singular_values(linear_trajectories(first, last), 0).logs.shape == (used, values)


def test_a_last_state_at_the_limit_needs_backward_passes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_trainability.measures.jacobian.singular_values.DENSE", 8)
    for width, applies in ((8, True), (9, False)):
        model = nn.Sequential(*[Custom(Once, width) for _ in range(3)])
        if applies:
            assert measure(model, torch.randn(2, width), measures=["max_ftle"]).max_ftle > 0
        else:
            with pytest.raises(CutError, match="at most 8 numbers per trajectory"):
                measure(model, torch.randn(2, width), measures=["max_ftle"])


def test_directions_beyond_the_rank_of_every_trajectory_are_dropped() -> None:
    """Two of six directions come through the last layer. The others are not carried further."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)).double()
    with torch.no_grad():
        model[1].weight[2:] = 0
    cutting = models.cut(model, torch.randn(3, 6, dtype=F64))
    product = ChainProduct.of(Trajectories(cutting.chain, Division(3)), 3, forward=False)
    frame = torch.linalg.qr(product.draw(6, 0, "basis")[0].mT).Q.mT.expand(3, 6, 6)
    basis, triangular = _factored(product, 2, frame)
    assert basis.shape == (3, 2, 6) and triangular.shape == (3, 2, 6)


def test_large_states_without_finite_values_are_nan() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    cutting = models.cut(model, torch.randn(4, 5, dtype=F64))
    found = _extreme(ChainProduct.of(Trajectories(cutting.chain, Division(4)), 3, forward=True), 0, 2)
    assert found.logs.shape == (3, 2) and found.smallest.shape == found.rank.shape == found.spread.shape == (3,)
    assert all(bool(t.isnan().all()) for t in (found.logs, found.smallest, found.rank, found.spread))
    assert found.time.tolist() == [2, 2, 2]


def test_there_are_as_many_values_as_the_smaller_end_has_dimensions_and_they_are_numbered() -> None:
    for widths, count in (((3, 6, 6), 3), ((6, 6, 2), 2)):
        first, middle, last = widths

        def build(first: int = first, middle: int = middle, last: int = last) -> nn.Module:
            return nn.Sequential(nn.Linear(first, middle), nn.Linear(middle, last))

        x = torch.randn(2, first, generator=torch.Generator().manual_seed(0))
        found = measure(build, x, seeds=1, steps="layers", dtype="float64").jacobian_singular_values
        assert [element.name for element in found] == [f"singular value {i}" for i in range(1, count + 1)]
        assert all(element.mean > 0 for element in found)
