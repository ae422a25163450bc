"""What half precision flushes and overflows: known exponents, real casts, and a real scaled backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
import zoo
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure
from pytest_trainability.engine.isolation import derived_seed
from pytest_trainability.measures.gradients.half_precision import entries, loss_scale

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
WIDTH, BATCH = 16, 8


# One tensor ------------------------------------------------------------------------------------------------------

EDGES = {
    "float16": [2.0**-24, 2.0**-25, math.nextafter(2.0**-25, 1), 2.0**-26, 65504.0, 65519.0, 65520.0, 65536.0, 1e30],
    "bfloat16": [2.0**-133, 2.0**-134, 1.0001 * 2.0**-134, 2.0**-135, 3.3895e38, 3.396e38, 3.397e38],
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", TYPES)
def test_edges_of_the_types_are_those_of_a_cast(name: str, sign: int) -> None:
    """Right at half of the smallest subnormal, and halfway beyond the largest finite number, ties go to even."""
    values = sign * torch.tensor(EDGES[name], dtype=torch.float32)
    cast, found = values.to(TYPES[name]), entries(values)
    underflow = {"float16": -25, "bfloat16": -134}[name]
    assert found.flushed(underflow) == int((cast == 0).sum()) > 0
    assert found.overflowing[list(TYPES).index(name)] == int(cast.isinf().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_cast_of_all_sizes(dtype: torch.dtype) -> None:
    """Entries from 2^-60 to 2^60, a third of them zero: each counts as the cast says, under every scale."""
    torch.manual_seed(0)
    values = (torch.randn(4000, dtype=torch.float64) * torch.exp2(torch.linspace(-60, 60, 4000).double())).to(dtype)
    values[::3] = 0
    found = entries(values)
    assert found.nonzero == int((values != 0).sum())
    assert found.number == 4000
    for exponent in (-20, -1, 0, 1, 7, 30):
        cast = (values.double() * 2.0**exponent).to(torch.float16)
        assert found.flushed(-25 - exponent) == int(((cast == 0) & (values != 0)).sum())
    for number, half in enumerate(TYPES.values()):
        assert found.overflowing[number] == int(values.to(half).isinf().sum())
    scaled = entries(values.double() * 2.0**100, exponent=100)
    assert torch.equal(scaled.counts, found.counts)
    assert scaled.largest == found.largest


def test_sparse_and_complex_gradients() -> None:
    """Of an embedding's sparse gradient the absent rows are zeros; a complex number is two."""
    rows = torch.tensor([[1.0, 2.0], [3.0, -2.0], [1e-9, 1e6]])
    sparse = torch.sparse_coo_tensor([[1, 1, 3]], rows, (5, 2), check_invariants=True)
    found = entries(sparse)
    assert (found.number, found.nonzero, found.flushed(-25), found.overflowing) == (10, 3, 1, (1, 0))
    found = entries(torch.tensor([1e-9 + 1j, 1e6 + 0j]))
    assert (found.number, found.nonzero, found.flushed(-25), found.overflowing) == (4, 3, 1, (1, 0))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        pytest.param([1.0, 2.0], 1.0, id="none-needed"),
        pytest.param([0.0, 0.0], 1.0, id="zeros"),
        pytest.param([2.0**-25], 2.0, id="a-tie-is-flushed"),
        pytest.param([1.01 * 2.0**-25], 1.0, id="just-kept"),
        pytest.param([2.0**-30, 1.0], 64.0, id="half-of-two-is-more-than-one-per-cent"),
        pytest.param([2.0**-40, *[1.0] * 99], 1.0, id="one-of-a-hundred-may-go"),
        pytest.param([2.0**-40, *[1.0] * 98], math.inf, id="room-for-fifteen-and-sixteen-needed"),
        pytest.param([2.0**-39, *[1.0] * 98], 2.0**15, id="room-for-fifteen-and-fifteen-needed"),
        pytest.param([2.0**-60, 100.0], math.inf, id="none-exists"),
        pytest.param([65519.0], 1.0, id="largest-finite"),
        pytest.param([65520.0], 0.5, id="too-large"),
        pytest.param([2.0**20], 2.0**-5, id="a-power-of-two-that-is-too-large"),
        pytest.param([1e-60], math.inf, id="no-scale-is-that-large"),
        pytest.param([1e40], 2.0**-117, id="beyond-float32"),
        pytest.param([math.inf, 1.0], math.nan, id="infinite-already"),
        pytest.param([math.nan, 1.0], math.nan, id="nan-already"),
    ],
)
def test_the_smallest_loss_scale(values: list[float], scale: float) -> None:
    found = loss_scale([entries(torch.tensor(values, dtype=torch.float64))])
    assert found == pytest.approx(scale, rel=0, abs=0, nan_ok=True)


# Gradients of models ---------------------------------------------------------------------------------------------


def tower(*, depth: int = 4, width: int = WIDTH, gain: float = 1.0) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers = [nn.Linear(width, width) for _ in range(depth)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=gain / math.sqrt(width))
        return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())])

    return build


def vectors(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=generator)


def power_of(exponent: int) -> Callable[[Tensor], Tensor]:
    """Return a loss of a size that half precision minds."""
    return lambda output: output.square().mean() * 2.0**exponent


def real_gradients(build: Callable[[], nn.Module], inputs: Any, loss: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw the model and its inputs as a measurement does with seed 0, and differentiate by plain PyTorch."""
    torch.manual_seed(0)
    model = build().to(dtype)
    given = inputs(torch.Generator().manual_seed(derived_seed(0, "inputs")))
    if isinstance(given, dict):
        output = model(**{n: t.to(dtype) if t.is_floating_point() else t for n, t in given.items()})
    else:
        output = model(given.to(dtype))
    (output.loss if loss is None else loss(output)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def bert() -> nn.Module:
    """Build one without dropout, whose masks a plain run draws otherwise."""
    model = next(c for c in zoo.CASES if c.id == "bert").build()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def words(generator: torch.Generator) -> Any:
    return next(c for c in zoo.CASES if c.id == "bert").inputs(generator)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Tanh())


def pictures(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=generator)


MODELS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "tanh": (tower(), vectors, power_of(-20)),
    "tanh, large": (tower(gain=8.0), vectors, power_of(22)),
    "batch norm": (conv, pictures, power_of(-16)),
    "bert": (bert, words, None),
}


def is_zero_by_algebra(name: str) -> bool:
    """Whether a gradient is zero but for round-off: in front of a normalization by the mean, or of a softmax over keys."""
    return name == "0.bias" or name.endswith("key.bias")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", MODELS)
def test_fractions_are_those_of_a_real_cast(case: str, dtype: torch.dtype) -> None:
    """Of every parameter, entry for entry: the fractions equal those of ``.half()`` and ``.bfloat16()``.

    Round-off is no loss: gradients that are zero by algebra lose nothing, though the cast flushes all of them. In float64 no
    other entry is round-off to two digits; in float32 entries a ten-thousandth of the others are, one in a thousand at most.
    """
    build, inputs, loss = MODELS[case]
    found = measure(build, inputs, loss=loss, seeds=1, dtype=dtype, device="cpu")
    expected_zero, expected_infinite = {}, {}
    for name, gradient in real_gradients(build, inputs, loss, dtype).items():
        by_algebra = case in {"batch norm", "bert"} and is_zero_by_algebra(name)
        for kind, half in TYPES.items():
            cast, nonzero = gradient.to(half), gradient != 0
            expected_infinite[f"{kind} gradient of {name}"] = float(cast.isinf().double().mean())
            if nonzero.any():
                flushed = int(((cast == 0) & nonzero).sum())
                assert not by_algebra or kind == "bfloat16" or flushed == nonzero.sum()
                expected_zero[f"{kind} gradient of {name}"] = 0 if by_algebra else flushed / int(nonzero.sum())
    of_parameters = found.underflow_fraction.matching(*expected_zero)
    tolerance = 1e-3 if dtype is torch.float32 else 0
    assert {name: e.mean for name, e in of_parameters.items()} == pytest.approx(expected_zero, rel=0, abs=tolerance)
    of_parameters = found.overflow_fraction.matching(*expected_infinite)
    assert {name: e.mean for name, e in of_parameters.items()} == expected_infinite
    assert found.underflow_fraction.matching("float16 *").max > 0 or "large" in case
    assert found.overflow_fraction.matching("float16 gradient *").max > 0 or "large" not in case
    assert found.underflow_fraction.matching("bfloat16 *").max == 0


def test_round_off_needs_no_scale() -> None:
    """A BERT whose gradients are about 1e-3 needs no scale, for all that those of its keys' biases are about 1e-11."""

    def loss(output: Any) -> Tensor:
        return output.loss * 2.0**10

    found = measure(bert, words, loss=loss, seeds=2)
    assert found.gradient_norm.matching("*key.bias").max < 1e-5
    assert found.smallest_loss_scale == 1
    assert found.underflow_fraction.max <= 0.01


def test_states_are_those_of_a_real_run() -> None:
    """Of every state and its gradient: what ``retain_grad`` keeps, cast."""
    loss = power_of(30)
    found = measure(tower(gain=8.0), lambda g: 3e4 * vectors(g), loss=loss, seeds=1, device="cpu")
    torch.manual_seed(0)
    model = tower(gain=8.0)()
    x = (3e4 * vectors(torch.Generator().manual_seed(derived_seed(0, "inputs")))).requires_grad_()
    states = {"input": x}
    for number, layer in enumerate(model):
        x = layer(x)
        states[f"state after {number}"] = x
    for state in states.values():
        state.retain_grad()
    loss(x).backward()
    assert list(found.growth_rate) == ["0", "2", "4", "6"]
    for name in ("input", *(f"state after {step}" for step in found.growth_rate)):
        state, gradient = states[name], states[name].grad
        assert found.overflow_fraction[f"float16 {name}"].mean == float(state.half().isinf().double().mean())
        cast = gradient.half()
        assert found.overflow_fraction[f"float16 gradient of {name}"].mean == float(cast.isinf().double().mean())
        if (gradient != 0).any():
            share = int(((cast == 0) & (gradient != 0)).sum()) / int((gradient != 0).sum())
            assert found.underflow_fraction[f"float16 gradient of {name}"].mean == share
    assert found.overflow_fraction["float16 state after 0"] > 0.5
    assert found.overflow_fraction["float16 gradient of state after 6"] > 0


@pytest.mark.parametrize(("value", "share"), [(65519.0, 0.0), (65520.0, 1.0)])
def test_a_state_at_the_edge_of_float16(value: float, share: float) -> None:
    """Halfway beyond the largest finite number, 65504, ties go to even, which is infinite."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Identity(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(value * torch.eye(4))
    found = measure(model, torch.ones(2, 4), steps=["0", "2"], measures=["overflow_fraction"], device="cpu")
    assert (torch.full((), value).half().isinf()) == bool(share)
    assert found.overflow_fraction["float16 state after 0"] == share


def test_all_tensors_of_a_state_count() -> None:
    """Two streams, one of which the loss all but ignores: half of each state's gradient is flushed."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.left(a), self.right(b)

    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Pair() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            a, b = x, 2 * x
            for block in self.blocks:
                a, b = block(a, b)
            return a.mean() + 1e-12 * b.mean()

    found = measure(Streams, vectors, loss=lambda output: output, seeds=1, steps=Pair, measures=["underflow_fraction"])
    states = found.underflow_fraction.matching("float16 gradient of state after *")
    assert len(states) == 3
    assert all(share == 0.5 for share in states.values())


def test_numbers_that_are_subnormal_already_are_lost() -> None:
    """A loss times 1e-42 leaves float32 a few digits of its gradients, or none: they are small, and no round-off."""
    found = measure(
        tower(), vectors, loss=lambda y: (y * 1e-22).sum() * 1e-20, seeds=1, measures=["underflow_fraction"]
    )
    shares = found.underflow_fraction.matching("float16 *")
    assert len(shares) > 8
    assert all(share == 1 for share in shares.values())


@pytest.mark.parametrize("deviation", [2.0**-24, 2.0**-22])
def test_gaussian_gradients(deviation: float) -> None:
    """Entries N(0, σ²): the share is erf(2^-25 / (σ √2)).

    The loss is an inner product with Gaussian numbers, which are then the gradient of the last state; of n = 20000
    entries a share p is known to sqrt(p (1 - p) / n).
    """
    numbers = torch.randn(200, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * deviation
    model = nn.Linear(100, 100, bias=False, dtype=torch.float64)
    found = measure(model, torch.randn(200, 100, dtype=torch.float64), loss=lambda output: (output * numbers).sum())
    share = math.erf(2.0**-25 / (deviation * math.sqrt(2)))
    (name,) = (n for n in found.underflow_fraction if n.startswith("float16 gradient of state after"))
    tolerance = 4 * math.sqrt(share * (1 - share) / numbers.numel())
    assert found.underflow_fraction[name].mean == pytest.approx(share, abs=tolerance)


def test_what_float32_itself_has_lost_is_lost() -> None:
    """Sixty layers of gain 0.03 lose 210 nats: float32's gradients of the first layers are zero, and all is lost."""
    found = measure(tower(depth=60, gain=0.03), vectors, loss=power_of(0), seeds=1, device="cpu")
    assert found.gradient_norm["40.weight"] == 0
    assert found.underflow_fraction["float16 gradient of 40.weight"] == 1
    assert found.underflow_fraction["bfloat16 gradient of 40.weight"] == 1
    assert found.underflow_fraction["bfloat16 gradient of 118.weight"] == 0
    assert found.smallest_loss_scale == math.inf
    wide = measure(tower(depth=60, gain=0.03), vectors, loss=power_of(0), seeds=1, device="cpu", dtype="float64")
    assert wide.underflow_fraction["float16 gradient of 0.weight"] == 1


def test_gradients_that_are_zero_by_design_lose_nothing() -> None:
    """Behind a head of zeros every gradient is zero: there is nothing to flush, and no scale is needed."""

    def build() -> nn.Module:
        head = nn.Linear(WIDTH, 10)
        nn.init.zeros_(head.weight)
        return nn.Sequential(*tower()(), head)

    how: dict[str, Any] = {"target": torch.arange(BATCH), "loss": F.cross_entropy, "seeds": 2}
    found = measure(build, vectors, measures=["underflow_fraction", "overflow_fraction", "smallest_loss_scale"], **how)
    named = {"8.weight", "8.bias", "state after 8", "state after 6"}
    assert {n.removeprefix("float16 gradient of ") for n in found.underflow_fraction.matching("float16 *")} <= named
    assert found.smallest_loss_scale == 1
    found.check(underflow_fraction=(None, 0.01), overflow_fraction=(None, 0), smallest_loss_scale=(None, 1))


def test_gradients_are_left_to_who_asks_for_them_too() -> None:
    """The pass that counts keeps the graph: norms and growth are bit for bit what they are without it."""
    case = next(c for c in zoo.CASES if c.id == "gpt2")
    names = ["underflow_fraction", "overflow_fraction", "smallest_loss_scale", "loss_log_gain"]
    plain = measure(case.build, case.inputs, seeds=2, measures=["loss_log_gain"])
    found = measure(case.build, case.inputs, seeds=2, measures=names)
    for name in ("gradient_norm", "activation_rms", "log_gain", "loss_log_gain"):
        assert getattr(plain, name) == getattr(found, name)
    assert plain.underflow_fraction == found.underflow_fraction
    assert found.overflow_fraction.max == 0


def test_skips_are_states_too() -> None:
    """Where a skip passes a boundary, both tensors are counted; every state of a U-Net has its gradient."""
    found = measure(models.UNet, models.images, loss=power_of(0), seeds=1, measures=["overflow_fraction"])
    names = {f"float16 gradient of state after {step}" for step in found.growth_rate}
    assert names <= set(found.underflow_fraction)


# A real backward pass in half precision --------------------------------------------------------------------------


def test_the_scale_that_is_found_saves_a_real_backward_pass_in_half_precision() -> None:
    """Float16 on the CPU: without a scale most gradients are zero, with the smallest one hardly any.

    Weights of standard deviation 1/√16 and a loss times 2^-24 leave entries about 2^-32.
    """
    loss = power_of(-24)
    found = measure(tower(), vectors, loss=loss, seeds=1, device="cpu")
    scale = found.smallest_loss_scale.mean
    assert 1 < scale < math.inf
    assert found.underflow_fraction.matching("float16 *").max > 0.5

    def zeros(scale: float) -> tuple[float, bool]:
        torch.manual_seed(0)
        model = tower()().half()
        generator = torch.Generator().manual_seed(derived_seed(0, "inputs"))
        output = model(vectors(generator).half())
        (loss(output.float()) * scale).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        return float((gradients == 0).double().mean()), bool(gradients.isfinite().all())

    lost, _ = zeros(1.0)
    assert lost > 0.5
    # Every tensor loses 1 % at most of float32's numbers; cotangents that are rounded on the way add some.
    lost, finite = zeros(scale)
    assert lost < 0.02
    assert finite
    assert not zeros(2.0**45)[1]


def test_a_gap_that_is_wider_than_float16_cannot_be_saved() -> None:
    """One parameter with gradients about 2^20 beside one with 2^-40: sixty binary orders; float16 has forty."""

    class Gap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.large, self.small = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x).tanh()
            return self.large(h).mean() * 2.0**20 + self.small(h).mean() * 2.0**-40

    found = measure(Gap, vectors, loss=lambda output: output, seeds=2)
    assert found.smallest_loss_scale == math.inf
    assert found.overflow_fraction["float16 gradient of large.weight"] > 0
    assert found.underflow_fraction["float16 gradient of small.weight"] == 1


def test_a_gradient_that_is_nan_has_no_share() -> None:
    found = measure(tower(), vectors, loss=lambda output: (output * math.nan).sum(), seeds=1)
    assert math.isnan(found.underflow_fraction.max.mean)
    assert math.isnan(found.overflow_fraction["float16 gradient of 0.weight"].mean)
    assert math.isnan(found.smallest_loss_scale.mean)


@pytest.mark.parametrize("name", ["underflow_fraction", "smallest_loss_scale"])
def test_without_a_loss_gradients_have_no_size(name: str) -> None:
    found = measure(tower(), vectors, seeds=1, measures=["overflow_fraction"])
    assert set(found.overflow_fraction.matching("float16 *")) == {
        "float16 input",
        *(f"float16 state after {step}" for step in found.growth_rate),
    }
    with pytest.raises(InapplicableError, match="need a loss"):
        getattr(found, name)


def test_tied_parameters_count_once() -> None:
    case = next(c for c in zoo.CASES if c.id == "gpt2")
    found = measure(case.build, case.inputs, seeds=1)
    assert "float16 gradient of transformer.wte.weight" in found.underflow_fraction
    assert "float16 gradient of lm_head.weight" not in found.underflow_fraction


def test_along_time() -> None:
    """Of an LSTM's loop each time step has a state, and that a gradient."""
    found = measure(models.LstmLoop, models.sequence, loss=power_of(-20), seeds=1, steps="time")
    assert all(f"float16 gradient of state after {step}" in found.underflow_fraction for step in found.growth_rate)
