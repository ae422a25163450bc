"""QR sweeps: growth rates from renormalized cotangents, against plain backward passes and dense Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from custom_functions import Blocked
from models import ARCHITECTURES, BATCH, LENGTH, WIDTH, Lambda, Mixer, moved, tower
from products import one_backward, one_of, some_cotangents
from torch import Tensor, nn

from pytest_trainability.engine.capture.chain import Chain
from pytest_trainability.engine.jacobian import qr_sweep as sweeps
from pytest_trainability.engine.jacobian.qr_sweep import (
    COARSEST,
    QRSweep,
    cotangents_at_once,
    is_round_off,
    qr_sweep,
    walk,
    working_precision,
)
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import Cotangents, random_cotangents
from pytest_trainability.errors import UsageError

BY_ID = {case.id: case for case in ARCHITECTURES}


# Against plain backward passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "unet", "lstm-loop", "add-outside", "encoder-decoder", "scaled-gradient"])
def test_sum_of_logarithms_is_the_norm_of_one_backward_pass(name: str) -> None:
    """Renormalizing at every step changes nothing: ln ‖u_0‖ - ln ‖u_L‖ of one plain backward pass."""
    cutting = models.cut_case(BY_ID[name], dtype=torch.float64)
    columns = some_cotangents(cutting.chain, 1)
    sums = qr_sweep(Trajectories(cutting.chain, Division(1)), columns).sums()
    start = math.sqrt(sum(float(c.square().sum()) for c in columns if c is not None))
    end = math.sqrt(sum(float(c.square().sum()) for c in one_backward(cutting.chain, columns) if c is not None))
    assert float(sums[0, 0]) == pytest.approx(math.log(end / start), abs=1e-10)


def test_gradients_below_the_range_of_float32_keep_their_logarithm() -> None:
    """The gradient of a plain backward pass through this tower underflows to zero in float32."""
    model = models.mlp(60, width=16, activation=lambda: torch.nn.LeakyReLU(0.01))
    for layer in model[::2]:
        torch.nn.init.normal_(layer.weight, std=1e-2)
    chain = models.cut(model, torch.randn(2, 16)).chain
    plain = one_backward(chain, some_cotangents(chain, 1))[0]
    assert float(plain.abs().max()) == 0.0
    sums = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 1)).sums()
    assert -400 < float(sums[0, 0]) < -100


@pytest.mark.parametrize("name", ["mlp", "unet", "complex-state", "mixed-complex-state", "densenet"])
def test_spectrum_equals_that_of_the_dense_jacobian(name: str) -> None:
    """QR of k cotangents measures volumes: Σ ln R_ii is half the log determinant of their Gram matrix, after minus before."""
    cutting = models.cut_case(BY_ID[name], dtype=torch.float64)
    chain = cutting.chain
    count = 4
    columns = some_cotangents(chain, count)
    logs = qr_sweep(Trajectories(chain, Division(1)), columns).sums()[0]

    def flat(state: Cotangents) -> Tensor:
        return torch.cat(
            [
                torch.view_as_real(c).reshape(count, -1) if c.is_complex() else c.reshape(count, -1)
                for c in state
                if c is not None
            ],
            1,
        )

    def log_volumes(rows: Tensor) -> list[float]:
        return [0.5 * float(torch.logdet(rows[: k + 1] @ rows[: k + 1].T)) for k in range(count)]

    before, after = log_volumes(flat(columns)), log_volumes(flat(one_by_one(chain, columns)))
    expected = [b - a for a, b in zip(before, after)]
    found = logs.cumsum(0).tolist()
    assert found == pytest.approx(expected, abs=1e-7)


def one_by_one(chain: Chain, columns: Cotangents) -> Cotangents:
    count = next(len(c) for c in columns if c is not None)
    found = [one_backward(chain, one_of(columns, i)) for i in range(count)]
    return [torch.cat(parts) for parts in zip(*found)]


def test_complex_states_have_two_real_dimensions_per_entry() -> None:
    """An isometry through a complex state has as many zero exponents as its input has real dimensions."""

    class Turn(torch.nn.Module):
        def __init__(self, *, first: bool, last: bool) -> None:
            super().__init__()
            self.angle = torch.nn.Parameter(torch.randn(1, 2))
            self.first, self.last = first, last

        def forward(self, x: Tensor) -> Tensor:
            z = torch.view_as_complex(x.reshape(-1, 2, 2)) if self.first else x
            z = z * torch.polar(torch.ones_like(self.angle), self.angle)
            return torch.view_as_real(z).flatten(1) if self.last else z

    torch.manual_seed(0)
    model = torch.nn.Sequential(*[Turn(first=i == 0, last=i == 2) for i in range(3)]).double()
    chain = models.cut(model, torch.randn(1, 4, dtype=torch.float64), "*").chain
    assert chain.shapes(1)[0][1] == torch.complex128
    sums = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 4)).sums()[0]
    assert sums.tolist() == pytest.approx([0.0] * 4, abs=1e-12)


def test_a_dead_step_has_minus_infinity_and_the_steps_before_it_nan() -> None:
    """A gradient that vanishes is neither an exception nor round-off."""
    model = models.mlp(4)
    with torch.no_grad():
        model[4].weight.zero_()
    chain = models.cut(model, torch.randn(2, models.WIDTH)).chain
    logs = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 1)).logs[:, 0, 0].tolist()
    assert math.isfinite(logs[3])
    assert logs[2] == -math.inf
    assert math.isnan(logs[1]) and math.isnan(logs[0])


@pytest.mark.parametrize("count", [1, 3])
def test_without_a_gradient_every_cotangent_has_vanished(count: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Lambda(Blocked.apply), nn.Linear(4, 4))
    chain = models.cut(model, torch.randn(1, 4), ["0", "1", "2"]).chain
    sweep = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, count))
    assert sweep.logs[0].isnan().all() and (sweep.logs[1] == -math.inf).all() and sweep.logs[2].isfinite().all()
    assert (sweep.sums() == -math.inf).all() and (sweep.running()[:2] == -math.inf).all()


@pytest.mark.parametrize("count", [1, 2])
def test_exponents_beyond_the_rank_of_a_bottleneck_are_minus_infinity(count: int) -> None:
    """They are not the logarithm of round-off."""
    model = torch.nn.Sequential(torch.nn.Linear(6, count), torch.nn.Linear(count, 6), torch.nn.Linear(6, 6))
    chain = models.cut(model, torch.randn(1, 6)).chain
    sums = qr_sweep(Trajectories(chain, Division(1)), some_cotangents(chain, 4)).sums()[0]
    assert [math.isfinite(value) for value in sums.tolist()] == [index < count for index in range(4)]


# Per sample ------------------------------------------------------------------------------------------------------


def one_sample(inputs: Any, index: int) -> Any:
    """Return the inputs of one sample."""
    if isinstance(inputs, Tensor):
        return inputs[index : index + 1]
    if isinstance(inputs, tuple):
        return tuple(one_sample(value, index) for value in inputs)
    return {key: one_sample(v, index) if isinstance(v, Tensor) else v for key, v in inputs.items()}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "name", ["mlp", "unet", "lstm-loop", "add-outside", "encoder-decoder", "batch-norm-eval", "views"]
)
def test_a_trajectory_of_the_batch_equals_that_of_its_sample_alone(name: str, count: int) -> None:
    """Each exponent of each sample is the same in the batch and alone."""
    case = BY_ID[name]
    model, inputs = models.build(case, dtype=torch.float64)
    steps = case.steps
    together = models.cut(model, inputs, steps).chain
    columns = random_cotangents(together, count, 3)
    sums = qr_sweep(Trajectories(together, Division(BATCH, 0)), columns).sums()
    for index in range(BATCH):
        alone = models.cut(model, one_sample(inputs, index), steps).chain
        own = [None if c is None else c[:, index : index + 1] for c in columns]
        expected = qr_sweep(Trajectories(alone, Division(1)), own).sums()
        torch.testing.assert_close(sums[index : index + 1], expected, rtol=0, atol=1e-9)


def test_a_trajectory_along_dimension_1_equals_that_of_its_sample_alone() -> None:
    """The same, with the batch as the second dimension of every state."""
    torch.manual_seed(0)
    model = moved(tower(lambda: Mixer(0))).double()
    inputs = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    names = ["1", "2", "3"]

    def chain_for(x: Tensor) -> Chain:
        return models.cut(model, x, names).chain

    together = chain_for(inputs)
    columns = random_cotangents(together, 2, 3)
    sums = qr_sweep(Trajectories(together, Division(BATCH, 1)), columns).sums()
    for index in range(BATCH):
        own = [None if c is None else c[:, :, index : index + 1] for c in columns]
        expected = qr_sweep(Trajectories(chain_for(inputs[index : index + 1]), Division(1)), own).sums()
        torch.testing.assert_close(sums[index : index + 1], expected, rtol=0, atol=1e-9)


def test_one_vanished_sample_does_not_hide_the_others() -> None:
    """One sample whose gradient vanishes leaves the others finite."""
    mask = torch.tensor([1.0, 0.0, 1.0])[:, None]
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Lambda(lambda x: x * mask), nn.Linear(WIDTH, WIDTH))
    chain = models.cut(model, torch.randn(3, WIDTH)).chain
    sums = qr_sweep(Trajectories(chain, Division(3)), random_cotangents(chain, 2, 0)).sums()
    assert sums[1].tolist() == [-math.inf, -math.inf]
    assert bool(torch.isfinite(sums[[0, 2]]).all())


# Averages --------------------------------------------------------------------------------------------------------


def plain_sweep(logs: list[list[float]], durations: tuple[float, ...] = (), active: tuple[int, ...] = ()) -> QRSweep:
    """Return a sweep of one cotangent with given logarithms, ``(L, trajectories)``."""
    chain = models.cut(models.mlp(len(logs)), torch.randn(len(logs[0]), WIDTH)).chain
    chain = replace(chain, durations=durations, active=active)
    return QRSweep(torch.tensor(logs, dtype=torch.float64)[:, :, None], Trajectories(chain, Division(len(logs[0]))))


def test_running_averages_start_at_the_last_step() -> None:
    found = plain_sweep([[1.0], [2.0], [6.0]]).running()
    assert found[:, 0, 0].tolist() == pytest.approx([3.0, 4.0, 6.0])


def test_averages_leave_out_warmup_and_alignment() -> None:
    found = plain_sweep([[100.0], [1.0], [2.0], [-100.0]])
    assert found.averages(1, 1).tolist() == [[1.5]]
    assert found.averages(1).tolist() == [[pytest.approx(-97 / 3)]]
    assert found.running(1, 1)[:, 0, 0].tolist() == pytest.approx([1.5, 1.5, 2.0, math.nan], nan_ok=True)


def test_averages_are_per_unit_of_time() -> None:
    """(1 + 2 + 6) / (0.5 + 0.5 + 2)."""
    assert plain_sweep([[1.0], [2.0], [6.0]], durations=(0.5, 0.5, 2.0)).averages().tolist() == [[3.0]]


def test_each_trajectory_is_averaged_over_the_steps_that_act_on_it() -> None:
    """The second sequence of a packed batch ends after two steps, and the third one after one step."""
    found = plain_sweep([[1.0, 5.0, 7.0], [2.0, 3.0, 0.0], [6.0, 0.0, 0.0]], active=(3, 2, 1))
    assert found.averages().tolist() == [[3.0], [4.0], [7.0]]
    assert found.averages(warmup=1).tolist() == [[4.0], [3.0]]
    assert found.averages(alignment=1).tolist() == [[1.5], [5.0]]


def test_sums_and_averages_of_a_vanished_cotangent_are_minus_infinity() -> None:
    found = plain_sweep([[math.nan, 1.0], [-math.inf, 1.0], [2.0, 1.0]])
    assert found.sums()[:, 0].tolist() == [-math.inf, 3.0]
    assert found.running()[:, 0, 0].tolist() == [-math.inf, -math.inf, 2.0]


# Round-off -------------------------------------------------------------------------------------------------------


def test_working_precision() -> None:
    """8 eps √n, without the root in half precision, and never more than a twentieth."""
    assert working_precision(2.0**-52, 100) == pytest.approx(80 * 2.0**-52)
    assert working_precision(2.0**-10, 100) == pytest.approx(8 * 2.0**-10)
    assert working_precision(2.0**-7, 100) == COARSEST


def test_cotangents_in_the_null_space_of_a_step_are_round_off() -> None:
    """A LayerNorm removes the mean of a cotangent. What remains of a constant cotangent is round-off, and nothing else is."""
    torch.manual_seed(0)
    chain = models.cut(
        nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64, elementwise_affine=False)), torch.randn(2, 64), "*"
    ).chain
    trajectories = Trajectories(chain, Division(2))
    constant = torch.stack([torch.ones(64), torch.randn(64)])[None]
    rates = next(walk(trajectories, [constant], torch.ones(2)))
    assert rates[0] == -math.inf and math.isfinite(rates[1])


def test_a_cotangent_in_the_null_space_of_a_step_leaves_the_next_one() -> None:
    """The first of two cotangents is constant, and a LayerNorm removes it. The second one takes nothing from its round-off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64, elementwise_affine=False))
    trajectories = Trajectories(models.cut(model, torch.randn(2, 64), "*").chain, Division(2))
    columns = torch.stack([torch.ones(2, 64), torch.randn(2, 64)])
    logs = qr_sweep(trajectories, [columns]).logs
    assert (logs[1, :, 0] == -math.inf).all() and logs[0, :, 0].isnan().all()
    # A LayerNorm ignores the part along the first cotangent, and QR removes it before the step: the rates are those alone.
    centred = columns[1:] - columns[1:].mean(dim=2, keepdim=True)
    alone = qr_sweep(trajectories, [centred]).logs
    torch.testing.assert_close(logs[:, :, 1:], alone, rtol=0, atol=1e-4)


def test_a_whole_frame_in_the_null_space_of_a_step_vanishes() -> None:
    """A LayerNorm removes mean and length: its null space is spanned by a constant and by its own output."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64, eps=1e-12, elementwise_affine=False))
    x, columns = torch.randn(2, 64), torch.randn(2, 2, 64)
    columns[:, 0] = torch.stack([torch.ones(64), model(x)[0].detach()])
    logs = qr_sweep(Trajectories(models.cut(model, x, "*").chain, Division(2)), [columns]).logs
    assert logs[1, 0].tolist() == [-math.inf, -math.inf] and logs[0, 0].isnan().all()
    assert logs[:, 1].isfinite().all()


def test_a_step_that_shrinks_everything_is_not_round_off() -> None:
    """Factors far below the working precision, but the same for every cotangent."""
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(1e-12 * torch.eye(8))
    trajectories = Trajectories(
        models.cut(nn.Sequential(layer, nn.Identity()), torch.randn(2, 8), ["0"]).chain, Division(2)
    )
    assert is_round_off(trajectories, 1, torch.tensor([1e-12, 1e-12], dtype=torch.float64)).tolist() == [False, False]
    assert is_round_off(trajectories, 1, torch.tensor([1e-12, 1e-25], dtype=torch.float64)).tolist() == [False, True]
    assert is_round_off(trajectories, 1, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [False, False]


# Other properties ------------------------------------------------------------------------------------------------


def test_walk_does_not_depend_on_the_sizes_of_independent_samples() -> None:
    """Powers of two change no digit."""
    chain = models.cut_case(BY_ID["mlp"], dtype=torch.float64).chain
    trajectories, drawn = Trajectories(chain, Division(BATCH)), some_cotangents(chain, 1)
    equal = torch.stack(list(walk(trajectories, drawn, torch.ones(BATCH))))
    sized = torch.stack(list(walk(trajectories, drawn, torch.exp2(torch.arange(BATCH) * 10.0))))
    assert torch.allclose(equal, sized, rtol=0, atol=1e-14)


def test_exponents_do_not_depend_on_the_number_per_backward_pass() -> None:
    """Batched sums differ by a few units in the last place, over four steps."""
    chain = models.cut_case(BY_ID["unet"], dtype=torch.float64).chain
    joint, drawn = Trajectories(chain, Division(1)), some_cotangents(chain, 5)
    expected = qr_sweep(joint, drawn).sums()
    for at_once in (1, 2, 7):
        assert torch.allclose(qr_sweep(joint, drawn, at_once=at_once).sums(), expected, rtol=0, atol=1e-11)


def test_backward_passes_carry_the_number_of_cotangents_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default as many as fill the cache."""
    chain = models.cut(models.mlp(2, 3), torch.randn(2, 3)).chain
    given: list[int | None] = []
    whole = sweeps.pull_back

    def noted(*args: Any, at_once: int | None = None) -> Any:
        given.append(at_once)
        return whole(*args, at_once=at_once)

    monkeypatch.setattr(sweeps, "pull_back", noted)
    for at_once in (2, None):
        qr_sweep(Trajectories(chain, Division(2)), random_cotangents(chain, 3, 0), at_once=at_once)
    assert given == [2, 2] + [cotangents_at_once(chain)] * 2


@pytest.mark.parametrize("count", [1, 3])
def test_another_default_device_does_not_apply(count: int) -> None:
    """Rates and their averages are on the CPU."""
    chain = models.cut_case(BY_ID["unet"], dtype=torch.float64).chain
    trajectories, columns = Trajectories(chain, Division(BATCH)), random_cotangents(chain, count, 0)
    expected = qr_sweep(trajectories, columns).averages()
    with torch.device("meta"):
        found = qr_sweep(trajectories, random_cotangents(chain, count, 0)).averages()
    assert torch.equal(found, expected)


def test_more_exponents_than_dimensions_are_refused() -> None:
    chain = models.cut(models.mlp(2, 3), torch.randn(2, 3)).chain
    with pytest.raises(UsageError, match=r"dimensions of the last state, 3 per trajectory\. Got 4"):
        qr_sweep(Trajectories(chain, Division(2)), random_cotangents(chain, 4, 0))


def test_cotangents_at_once_fill_the_cache() -> None:
    """2^20 numbers on the CPU: of states with 2 · 512 numbers, 1024."""
    assert cotangents_at_once(models.cut(models.mlp(1, 512), torch.randn(2, 512)).chain) == 1024
    assert cotangents_at_once(models.cut(models.mlp(1, 2), torch.randn(2**20, 2)).chain) == 1


class Cancelling(nn.Module):
    """Returns a tensor with a gradient, and one whose gradient cancels to zero exactly."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        straight_through = x + (x.sign() - x).detach()
        return torch.tanh(x), straight_through - straight_through


class Product(nn.Module):
    """Multiplies its arguments. The second one is zero, so that only its own gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.layer(pair[0] * pair[1])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_frame_is_round_off_although_its_first_cotangent_vanishes_exactly(count: int) -> None:
    """QR leaves round-off where the cotangents are zero, and the first step lets nothing but this round-off pass."""
    torch.manual_seed(0)
    model = nn.Sequential(Cancelling(), Product()).double()
    chain = models.cut(model, torch.randn(1, WIDTH, dtype=torch.float64), ["0", "1"]).chain
    sums = qr_sweep(Trajectories(chain, Division(1)), random_cotangents(chain, count, 0)).sums()
    assert (sums == -math.inf).all()


def test_a_step_that_shrinks_below_the_range_of_float16_keeps_its_rate() -> None:
    """Renormalizing multiplies by 3e5, which float16 cannot hold, although the product is of size 1."""

    def rates(dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(32, 32, bias=False) for _ in range(4)])
        for layer in model:
            nn.init.normal_(layer.weight, std=3e-6)
        chain = models.cut(model.to(dtype), torch.randn(2, 32).to(dtype), "layers").chain
        return qr_sweep(Trajectories(chain, Division(2)), random_cotangents(chain, 1, 0)).logs

    # Entries of 1e-5 are multiples of 6e-8 in float16: within 1 %.
    torch.testing.assert_close(rates(torch.float16), rates(torch.float32), atol=0.01, rtol=0)


# Round-off instead of zero -----------------------------------------------------------------------------------------


class OneElement(nn.Module):
    """A layer, and a normalization of groups of one element: its output does not depend on its input."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(16, 16), norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.layer(x)))


class ByHand(nn.Module):
    """The same normalization, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (16, 1))
        centered = groups - groups.mean(-1, keepdim=True)
        return (centered * (groups.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(16, 16), ByHand], ids=["GroupNorm", "by hand"])
def test_round_off_of_a_normalization_of_one_element_is_no_exponent(
    norm: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(16, 16), OneElement(norm()), nn.Linear(16, 16)).to(dtype)
    chain = models.cut(tower, torch.randn(8, 16, dtype=dtype), "layers").chain
    logs = qr_sweep(Trajectories(chain, Division(8)), some_cotangents(chain, 1)).logs
    assert bool((logs[-1] == -math.inf).any(dim=0).all()), "nothing passes the step behind the normalization"


@pytest.mark.parametrize("scale", [1e-5, 1e-12, 1e-25])
def test_a_step_that_only_shrinks_is_measured(scale: float) -> None:
    """Products with a small Jacobian add up."""

    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * scale

    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(16, 16), Small(), nn.Linear(16, 16))
    chain = models.cut(tower, torch.randn(8, 16), "layers").chain
    logs = qr_sweep(Trajectories(chain, Division(8)), some_cotangents(chain, 1)).logs
    assert logs[-1].mean() == pytest.approx(math.log(scale), abs=2.0)


def test_a_backward_pass_that_ignores_what_arrives_is_no_round_off() -> None:
    """It returns the same for every cotangent, while round-off is unrelated from one to the next."""

    class Ignores(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1e-6

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return torch.full_like(g, 1e-6)

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Ignores.apply(x)  # type: ignore[no-any-return,no-untyped-call]

    tower = nn.Sequential(nn.Linear(16, 16), Layer(), nn.Linear(16, 16))
    chain = models.cut(tower, torch.randn(8, 16), "layers").chain
    assert qr_sweep(Trajectories(chain, Division(8)), some_cotangents(chain, 1)).logs.isfinite().all()
