"""Unrolled recurrent layers: they compute the same as the fused kernel, and the model stays unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from processor import skipped_without_kernel
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from pytest_trainability import CutError, measure
from pytest_trainability.engine.capture.chain import Chain, graph_of
from pytest_trainability.engine.capture.recorder import Capture, capture
from pytest_trainability.engine.capture.recurrence import chain_along, choose_recurrence, find_recurrences
from pytest_trainability.engine.jacobian.vjp import pull_back
from pytest_trainability.engine.runs.ensemble import ALONG_TIME
from pytest_trainability.engine.trees import tensors_in

WIDTH, FEATURES, BATCH, LENGTH = 3, 4, 3, 5
LAYERS = (nn.RNN, nn.LSTM, nn.GRU)

# A kernel adds up products in another order: some units in the last place per layer and time step. The largest case has three
# layers of two directions over five steps, whose gradients add up thirty terms; values are of order one to ten.
ROUND_OFF = 1e3


class Around(nn.Module):
    """A model that calls a recurrent layer."""

    def __init__(self, layer: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = layer
        self.call = call

    def forward(self, *args: Tensor) -> Any:
        return self.call(self.layer, *args)


def layer(cls: type[nn.RNNBase], **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return cls(FEATURES, WIDTH, **{"dtype": torch.float64, **options})


def sequences(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape or (BATCH, LENGTH, FEATURES), generator=generator, dtype=torch.float64).to(dtype)


def capture_along_time(model: nn.Module, *args: Any) -> Capture:
    torch.manual_seed(5)
    return capture(model, args, {}, instruments=ALONG_TIME)


def chain_of_time(captured: Capture, name: str = "") -> Chain:
    return chain_along(choose_recurrence(captured, find_recurrences(captured, graph_of(captured)), name))


def inner_calls(captured: Capture) -> list[str]:
    return [call.path for call in captured.calls if call.inner]


def gradients(model: nn.Module, output: Any) -> list[Tensor | None]:
    """Return the gradients of a fixed random functional of the output."""
    generator = torch.Generator().manual_seed(3)
    loss = torch.zeros((), dtype=torch.float64)
    for tensor in tensors_in(output):
        if tensor.requires_grad:
            loss = loss + (tensor.double() * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def structure(tree: Any) -> Any:
    """Return containers, shapes, dtypes and flags of an output, without its values."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape), tree.dtype, tree.requires_grad
    return (
        type(tree).__name__,
        [structure(item) for item in tree] if isinstance(tree, (tuple, list)) else str(tree),
    )


def assert_as_fused(model: nn.Module, *args: Any, ulps: float = ROUND_OFF) -> Capture:
    """Run the model with and without instruments; compare outputs, gradients and the state of the generator."""
    torch.manual_seed(5)
    with skipped_without_kernel():
        expected = model(*args)
        drawn = torch.get_rng_state()
        slopes = gradients(model, expected)
    captured = capture_along_time(model, *args)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert structure(captured.output) == structure(expected)
    pairs = [*zip(tensors_in(captured.output), tensors_in(expected)), *zip(gradients(model, captured.output), slopes)]
    assert pairs
    for found, true in pairs:
        assert (found is None) == (true is None)
        if found is not None and true is not None:
            eps = torch.finfo(true.dtype).eps if true.is_floating_point() else 0.0
            error = float((found.detach().double() - true.detach().double()).abs().max())
            assert error <= ulps * eps * max(1.0, float(true.detach().double().abs().max()))
    return captured


# The same numbers ------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bias": False, "batch_first": True, "bidirectional": True},
    {"num_layers": 3, "dropout": 0.4},
    {"num_layers": 3, "dropout": 0.4, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "dropout": 1.0},
]


def label(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()) or "plain"


@pytest.mark.parametrize("options", OPTIONS, ids=label)
@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_unrolled_layers_equal_fused_layers(cls: type[nn.RNNBase], options: dict[str, Any]) -> None:
    """With layers, layouts, directions and dropout in train mode, whose masks are drawn in the order of the kernel."""
    captured = assert_as_fused(layer(cls, **options), sequences())
    length = LENGTH if options.get("batch_first") else BATCH
    ways = 2 * options.get("num_layers", 1) if options.get("bidirectional") else 1
    assert len(inner_calls(captured)) == ways * length


@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": 2},
        {"proj_size": 2, "bias": False},
        {"proj_size": 1, "num_layers": 3, "bidirectional": True, "dropout": 0.3, "bias": False},
    ],
    ids=label,
)
def test_a_projected_lstm_equals_the_fused_one(options: dict[str, Any]) -> None:
    """The hidden state is narrower than the cell. Weights are in groups of five, or of three without biases."""
    captured = assert_as_fused(layer(nn.LSTM, **options), sequences())
    if not options.get("bidirectional"):
        shapes = sorted(tuple(shape) for shape, _ in chain_of_time(captured).shapes(1))
        assert shapes == [(LENGTH, 2), (LENGTH, WIDTH)]


def test_a_relu_rnn_equals_the_fused_one() -> None:
    assert_as_fused(layer(nn.RNN, nonlinearity="relu", num_layers=2), sequences())


@pytest.mark.parametrize("lengths", [(5, 3, 1), (1, 5, 2), (1, 1, 1), (4, 4, 4)], ids=str)
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (nn.RNN, {"num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 3, "dropout": 0.4, "proj_size": 2}),
        (nn.GRU, {"num_layers": 2, "dropout": 0.4, "bidirectional": True}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else label(value),
)
def test_packed_sequences_equal_fused_ones(
    cls: type[nn.RNNBase], options: dict[str, Any], lengths: Sequence[int]
) -> None:
    """They may be sorted or not, have a single step, or have equal lengths."""

    def call(rnn: nn.Module, x: Tensor) -> Any:
        return rnn(pack_padded_sequence(x, list(lengths), batch_first=True, enforce_sorted=False))

    assert_as_fused(Around(layer(cls, batch_first=True, **options), call), sequences())


def test_packed_inputs_and_initial_states_of_a_model() -> None:
    """A packed sequence is the input of the model. Initial states are sorted with it."""
    x = sequences()
    packed = pack_sequence([x[0, :1], x[1, :3], x[2, :2]], enforce_sorted=False)
    assert isinstance(packed, PackedSequence)
    assert_as_fused(layer(nn.GRU, num_layers=2), packed)
    states = sequences(4, BATCH, WIDTH)
    assert_as_fused(layer(nn.LSTM, num_layers=2, bidirectional=True), packed, (states, states.flip(1)))


@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_inputs_without_a_batch_dimension_equal_fused_ones(cls: type[nn.RNNBase]) -> None:
    """With and without an initial state."""
    for options in ({}, {"num_layers": 2, "bidirectional": True, "batch_first": True}):
        rnn = layer(cls, **options)
        x, h = sequences(LENGTH, FEATURES), sequences(4 if options else 1, WIDTH)
        assert_as_fused(rnn, x)
        assert_as_fused(rnn, x, (h, -h) if cls is nn.LSTM else h)


@pytest.mark.parametrize("shape", [(1, BATCH), (LENGTH, 1), (1, 1)], ids=["one-step", "one-sample", "one-of-both"])
def test_the_shortest_sequences_equal_fused_ones(shape: tuple[int, int]) -> None:
    for cls in LAYERS:
        captured = assert_as_fused(layer(cls, num_layers=2), sequences(*shape, FEATURES))
        assert len(chain_of_time(captured)) == shape[0]


def test_an_initial_state_may_depend_on_a_parameter() -> None:
    """A learned initial state keeps its gradient, and is the first state of the chain."""
    h0 = nn.Parameter(sequences(2, BATCH, WIDTH))

    class Learned(nn.Module):
        def __init__(self, *, expanded: bool) -> None:
            super().__init__()
            self.rnn = layer(nn.GRU, num_layers=2)
            self.h0 = nn.Parameter(h0.detach()[:, :1]) if expanded else h0

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x, self.h0.expand(-1, x.shape[1], -1).contiguous())

    for expanded in (False, True):
        model = Learned(expanded=expanded)
        captured = assert_as_fused(model, sequences(LENGTH, BATCH, FEATURES))
        chain = chain_of_time(captured)
        assert len(chain) == LENGTH
        assert [tuple(shape) for shape, _ in chain.shapes(0)] == [(BATCH, WIDTH)] * 2


def test_a_subclass_that_calls_its_base_class_equals_the_fused_one() -> None:
    class Scaled(nn.LSTM):
        def forward(self, x: Tensor, hx: Any = None) -> Any:
            output, state = super().forward(2 * x, hx)
            return output + 1, state

    torch.manual_seed(0)
    captured = assert_as_fused(Scaled(FEATURES, WIDTH, dtype=torch.float64), sequences())
    assert {call.inner for call in captured.calls if call.inner} == {"Scaled"}


def _weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated it, models in the field use it
        return nn.utils.weight_norm(layer(nn.LSTM), "weight_hh_l0")


class Centred(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean()


def _parametrized() -> nn.Module:
    rnn = layer(nn.GRU)
    parametrize.register_parametrization(rnn, "weight_hh_l0", Centred())
    return rnn


def _partly_frozen() -> nn.Module:
    rnn = layer(nn.LSTM, num_layers=2)
    rnn.weight_hh_l0.requires_grad_(False)
    return rnn


@pytest.mark.parametrize(
    "build",
    [
        _weight_normed,
        lambda: parametrizations.weight_norm(layer(nn.LSTM), "weight_hh_l0"),
        lambda: parametrizations.orthogonal(layer(nn.RNN), "weight_hh_l0"),
        _parametrized,
        _partly_frozen,
    ],
    ids=["weight-norm", "parametrized-weight-norm", "orthogonal", "own-parametrization", "partly-frozen"],
)
def test_parametrized_weights_equal_fused_ones(build: Callable[[], nn.Module]) -> None:
    """The weights of the kernel are then not parameters, and their gradients flow on."""
    captured = assert_as_fused(build(), sequences())
    assert len(inner_calls(captured)) == BATCH


def test_a_frozen_layer_carries_the_signal() -> None:
    model = nn.Sequential(
        layer(nn.LSTM).requires_grad_(False), Around(nn.Linear(WIDTH, 2).double(), lambda m, x: m(x[0]))
    )
    captured = assert_as_fused(model, sequences())
    assert len(chain_of_time(captured)) == BATCH


def test_a_kernel_that_a_module_calls_itself_is_unrolled() -> None:
    """The steps belong to the module that calls ``torch.gru``."""
    rnn = layer(nn.GRU)

    def call(rnn: Any, x: Tensor) -> Any:
        zeros = x.new_zeros(1, x.shape[1], WIDTH)
        return torch.gru(x, zeros, rnn._flat_weights, True, 1, 0.0, True, False, False)

    captured = assert_as_fused(Around(rnn, call), sequences())
    assert len(inner_calls(captured)) == BATCH


def test_a_kernel_with_another_signature_is_not_unrolled() -> None:
    """It runs fused if it is called by keyword. No inner steps are recorded, rather than wrong ones."""

    def call(rnn: Any, x: Tensor) -> Any:
        options = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": True}
        zeros = x.new_zeros(1, x.shape[1], WIDTH)
        return torch.gru(x, zeros, rnn._flat_weights, **options, bidirectional=False, batch_first=False)

    captured = assert_as_fused(Around(layer(nn.GRU), call), sequences())
    assert inner_calls(captured) == []


def test_a_layer_without_a_gradient_runs_fused() -> None:
    """A layer under no_grad has no steps. The layer after it is measured."""

    class TwoStage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed, self.rnn = layer(nn.LSTM, batch_first=True), nn.GRU(WIDTH, 2, batch_first=True).double()

        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                features, _ = self.fixed(x)
            return self.rnn(features)

    captured = assert_as_fused(TwoStage(), sequences())
    assert set(inner_calls(captured)) == {"rnn"}
    assert len(chain_of_time(captured)) == LENGTH


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_half_precision_equals_fused_ones_to_its_round_off(cls: type[nn.RNNBase], dtype: torch.dtype) -> None:
    """A kernel rounds once, and plain operations round at each: some eps per operation. A gradient sums twenty of them."""
    captured = assert_as_fused(layer(cls, num_layers=2, dtype=dtype), sequences(dtype=dtype), ulps=20)
    assert {own for _, own in chain_of_time(captured).shapes(1)} == {dtype}


@pytest.mark.parametrize(
    "cls",
    [
        nn.RNN,
        nn.LSTM,
        nn.GRU,
    ],
    ids=lambda cls: cls.__name__,
)
def test_autocast_is_fused(cls: type[nn.RNNBase]) -> None:
    def call(rnn: nn.Module, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return rnn(x)

    model = Around(layer(cls, dtype=torch.float32), call)
    # Numbers are those of bfloat16, of whatever type they come back.
    eps = torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps
    assert_as_fused(model, sequences(dtype=torch.float32), ulps=20 * eps)


def test_a_checkpointed_layer_is_refused() -> None:
    """The backward pass runs a checkpointed layer again, without the instruments."""

    def call(rnn: nn.Module, x: Tensor) -> Any:
        return checkpoint(lambda y: rnn(y)[0], x, use_reentrant=False)

    with pytest.raises(CutError, match="checkpointed parts of the model cannot be measured along time"):
        measure(Around(layer(nn.LSTM, batch_first=True), call), sequences(), steps="time")


# The same chain --------------------------------------------------------------------------------------------------


def _jacobian(chain: Chain) -> Tensor:
    """Return the Jacobian of a chain with one tensor per state: the identity, pulled back."""
    ((shape, dtype),) = chain.shapes(len(chain))
    columns: Any = [torch.eye(shape.numel(), dtype=dtype).reshape(-1, *shape)]
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
    return columns[0].reshape(shape.numel(), -1)


@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu"}, {"bias": False}], ids=label)
def test_the_chain_has_the_jacobian_of_the_kernel(options: dict[str, Any]) -> None:
    """The product of the unrolled steps equals ∂h_T/∂h_0 by the backward pass of the fused kernel."""
    rnn, x = layer(nn.RNN, **options), sequences(LENGTH, BATCH, FEATURES)
    h0 = torch.zeros(1, BATCH, WIDTH, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda h: rnn(x, h)[1], h0).reshape(BATCH * WIDTH, -1)
    found = _jacobian(chain_of_time(capture_along_time(rnn, x)))
    # Five products of 9 × 9 matrices, with entries of order one.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "way"), [("layer.l0", 0), ("layer.l0_reverse", 1)])
def test_the_chain_of_one_direction_has_the_jacobian_of_the_kernel(name: str, way: int) -> None:
    """Each direction of a bidirectional layer is a separate recurrence, which does not depend on the other one."""
    rnn, x = layer(nn.GRU, bidirectional=True), sequences(LENGTH, BATCH, FEATURES)
    h0 = torch.zeros(2, BATCH, WIDTH, dtype=torch.float64)
    whole = torch.autograd.functional.jacobian(lambda h: rnn(x, h)[1], h0)
    expected = whole[way, :, :, way].reshape(BATCH * WIDTH, -1)
    captured = capture_along_time(Around(rnn, lambda m, y: m(y)[0]), x)
    chain = chain_of_time(captured, name)
    torch.testing.assert_close(_jacobian(chain), expected, rtol=1e-12, atol=1e-13)
    assert chain.names == tuple(f"{name}[{t}]" for t in range(LENGTH))


def test_every_direction_of_every_layer_is_a_recurrence() -> None:
    captured = capture_along_time(
        Around(layer(nn.LSTM, num_layers=2, bidirectional=True), lambda m, x: m(x)), sequences()
    )
    found = find_recurrences(captured, graph_of(captured))
    assert [r.name for r in found] == ["layer.l0", "layer.l0_reverse", "layer.l1", "layer.l1_reverse"]
    assert [(len(r), r.sequences) for r in found] == [(BATCH, 1)] * 4


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_state_is_that_of_all_layers(num_layers: int) -> None:
    """One time step of a stack of layers is one step of the chain. Its state is ``(h, c)`` of each layer."""
    chain = chain_of_time(capture_along_time(layer(nn.LSTM, num_layers=num_layers), sequences(LENGTH, BATCH, FEATURES)))
    for index in range(LENGTH + 1):
        assert [tuple(shape) for shape, _ in chain.shapes(index)] == [(BATCH, WIDTH)] * (2 * num_layers)


@pytest.mark.parametrize("read", ["first", "middle", "last", "cell", "mean", "state"])
def test_the_chain_does_not_depend_on_what_the_loss_reads(read: str) -> None:
    """The recurrence is the same for all outputs of the layer that the model may use."""
    readers: dict[str, Callable[[Any], Tensor]] = {
        "first": lambda out: out[0][0],
        "middle": lambda out: out[0][2],
        "last": lambda out: out[0][-1],
        "cell": lambda out: out[1][1],
        "mean": lambda out: out[0].mean(0),
        "state": lambda out: out[1][0],
    }
    model = Around(layer(nn.LSTM), lambda m, x: readers[read](m(x)))
    chain = chain_of_time(capture_along_time(model, sequences(LENGTH, BATCH, FEATURES)))
    assert len(chain) == LENGTH
    assert len(chain.cut.states[-1]) == 2


# No harm ---------------------------------------------------------------------------------------------------------


def test_measuring_leaves_the_model_as_it_was() -> None:
    """Parameters, gradients, hooks, flags and generators stay the same for a layer that has all of them."""

    def note(*_: Any) -> None:
        calls.append(1)

    calls: list[int] = []
    torch.manual_seed(0)
    model = Around(layer(nn.LSTM, num_layers=2, dropout=0.5, batch_first=True), lambda m, x: m(x)[0])
    parametrizations.weight_norm(model.layer, "weight_hh_l1")
    model.layer.register_forward_hook(note)
    model.eval()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    held = {name: (p, p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None}
    hooks = [
        (list(module._forward_hooks), list(module._forward_pre_hooks), module.training) for module in model.modules()
    ]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    drawn = torch.get_rng_state()
    x = sequences()
    before = model(x)
    result = measure(model, x, steps="time", measures=["spectral_radius", "recurrence_lyapunov_max"])
    assert len(result.steps) == LENGTH and len(calls) == 2
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        was, gradient, values = held[name]
        assert parameter is was and parameter.grad is gradient and torch.equal(gradient, values)
    assert hooks == [
        (list(module._forward_hooks), list(module._forward_pre_hooks), module.training) for module in model.modules()
    ]
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(model(x), before)
    assert type(torch.lstm).__name__ == "builtin_function_or_method"


def test_the_function_mode_is_left_after_an_error() -> None:
    """If the model raises, later calls of the kernels are not intercepted."""

    def call(rnn: nn.Module, x: Tensor) -> Any:
        rnn(x)
        msg = "no"
        raise ValueError(msg)

    rnn = layer(nn.GRU)
    with pytest.raises(ValueError, match="no"):
        capture_along_time(Around(rnn, call), sequences())
    assert torch.overrides._get_current_function_mode() is None
    assert not rnn._forward_hooks and not rnn._forward_pre_hooks


@pytest.mark.parametrize("train", [True, False])
def test_same_seed_same_numbers(train: bool) -> None:
    """Dropout between layers depends on the seed, and is drawn in train mode only."""

    def factory() -> nn.Module:
        return nn.LSTM(FEATURES, WIDTH, num_layers=2, dropout=0.5)

    results = [measure(factory, sequences(), steps="time", seeds=2, train=train, dtype="float64") for _ in range(2)]
    assert results[0].log_gain.values == results[1].log_gain.values


# Packed sequences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(5, 3, 1), (2, 5, 4), (1, 1, 2)], ids=str)
@pytest.mark.parametrize(("cls", "size"), [(nn.GRU, WIDTH), (nn.LSTM, 2 * WIDTH)], ids=["GRU", "LSTM"])
def test_packed_exponents_are_those_of_the_steps_of_each_sample(
    cls: type[nn.RNNBase], size: int, lengths: tuple[int, ...]
) -> None:
    """The sum of all exponents is a log determinant for any cotangents: the average over samples that are measured alone."""
    rnn, x = layer(cls, batch_first=True), sequences()

    def call(rnn: nn.Module, x: Tensor) -> Any:
        return rnn(pack_padded_sequence(x, list(lengths), batch_first=True, enforce_sorted=False))[1]

    found = measure(Around(rnn, call), x, steps="time", exponents=size)
    alone = [measure(rnn, x[i : i + 1, :n], steps="time", exponents=size) for i, n in enumerate(lengths)]
    expected = sum(sum(map(float, one.lyapunov_spectrum)) for one in alone) / len(lengths)
    assert found.frame == "per sample"
    # Log determinants of at most five 6 × 6 matrices, whose condition numbers are below 1e4.
    assert sum(map(float, found.lyapunov_spectrum)) == pytest.approx(expected, abs=1e-9)


def test_packed_reverse_direction_acts_on_short_samples_last() -> None:
    """In the reverse direction, short sequences begin late. Their exponents are averaged over the same number of steps."""
    lengths = (4, 2, 1)
    rnn, x = layer(nn.GRU, batch_first=True, bidirectional=True), sequences()

    def call(rnn: nn.Module, x: Tensor) -> Any:
        return rnn(pack_padded_sequence(x, list(lengths), batch_first=True))[1]

    found = measure(Around(rnn, call), x, steps="time:layer.l0_reverse", exponents=WIDTH)
    plain = nn.GRU(FEATURES, WIDTH, batch_first=True).double()
    plain.load_state_dict(
        {key.removesuffix("_reverse"): value for key, value in rnn.state_dict().items() if key.endswith("_reverse")}
    )
    alone = [measure(plain, x[i : i + 1, :n].flip(1), steps="time", exponents=WIDTH) for i, n in enumerate(lengths)]
    expected = sum(sum(map(float, one.lyapunov_spectrum)) for one in alone) / len(lengths)
    assert sum(map(float, found.lyapunov_spectrum)) == pytest.approx(expected, abs=1e-9)


def test_packed_growth_rates_count_the_active_samples() -> None:
    """The growth rate of a scalar linear recurrence is known in closed form for any active samples."""
    rnn = nn.RNN(1, 1, nonlinearity="relu", bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(0.5)
        rnn.weight_ih_l0.fill_(1.0)

    def call(rnn: nn.Module, x: Tensor) -> Any:
        return rnn(pack_padded_sequence(x, [2, 6, 3], batch_first=True, enforce_sorted=False))[1]

    x = torch.ones(3, 6, 1, dtype=torch.float64)
    result = measure(Around(rnn, call), x, steps="time", measures=["lyapunov_history", "memory_horizon"])
    log_half = -0.6931471805599453
    # One multiplication per step, which rounds once.
    shares = [share * log_half for share in (1, 1, 2 / 3, 1 / 3, 1 / 3, 1 / 3)]
    assert [float(rate) for rate in result.growth_rate.values()] == pytest.approx(shares, abs=1e-14)
    assert float(result.log_gain) == pytest.approx(sum(shares), abs=1e-14)
    assert [float(rate) for rate in result.lyapunov_history.values()] == pytest.approx([log_half] * 6, abs=1e-14)
    assert float(result.lyapunov_max) == pytest.approx(log_half, abs=1e-14)
    for warmup, alignment in ((3, 0), (0, 4), (2, 3)):
        part = measure(Around(rnn, call), x, steps="time", warmup=warmup, alignment=alignment)
        assert float(part.lyapunov_max) == pytest.approx(log_half, abs=1e-14)


def test_steps_of_other_samples_do_not_change_a_packed_sample() -> None:
    """The state of a sequence that is over stays the same, so that its gain does not change."""
    rnn, x = layer(nn.RNN, batch_first=True), sequences()

    def call(rnn: nn.Module, x: Tensor) -> Any:
        return rnn(pack_padded_sequence(x, [1, 1, 5], batch_first=True, enforce_sorted=False))[1]

    chain = chain_of_time(capture_along_time(Around(rnn, call), x))
    assert chain.active == (None, 1, 1, 1, 1)
    drawn = torch.randn(1, BATCH, WIDTH, dtype=torch.float64)
    columns: Any = [drawn]
    for index in range(LENGTH, 1, -1):
        columns = pull_back(chain, index, columns)
        # The longest sequence comes first.
        assert torch.equal(columns[0][0, 1:], drawn[0, 1:])
