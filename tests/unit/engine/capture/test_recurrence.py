"""Recurrences: which calls are time steps, and which state they carry, against Jacobians written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from loops import (
    BATCH,
    CASES,
    FEATURES,
    LENGTH,
    WIDTH,
    Case,
    Elman,
    Loop,
    OfDict,
    assert_is_reference,
    assert_one_backward,
    built,
    calls_of,
    capture_along_time,
    cell,
    cut,
    dict_loop,
    every_second,
    fused,
    inputs,
    layer_after_layer,
    looped,
    lstm_loop,
    recurrences,
    translator,
    truncated,
    two_cells,
    two_lengths,
    zeros,
)
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import describe
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.trees import tensors_in
from pytest_trainability.errors import CutError, UsageError

BY_ID = {case.id: case for case in models.ARCHITECTURES}


# The chain -------------------------------------------------------------------------------------------------------
def parameter(case: Case) -> Any:
    marks = [pytest.mark.xfail(strict=True, reason=case.bug, raises=case.raises)] if case.bug else []
    return pytest.param(case, id=case.id, marks=marks)


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_the_chain_is_the_one_written_by_hand(case: Case) -> None:
    """Compare names, number of steps, number of trajectories, the Jacobian of the whole chain, and every exponent."""
    model, x = built(case)
    chain = cut(model, x, name=case.name)
    assert chain.names == case.steps
    assert chain.along == "time"
    assert_one_backward(chain)
    assert find_trajectories(chain, len(x), 0)[0].count == BATCH
    with torch.no_grad():
        # The reference has a separate autograd graph.
        whole = inputs(BATCH, LENGTH, FEATURES)
    assert_is_reference(chain, [case.by_hand(model, whole[b : b + 1]) for b in range(BATCH)])


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if case.id != "checkpointed"])
def test_recording_changes_no_output(case: Case) -> None:
    """Instruments only observe. Fused layers agree to round-off, because they are computed in plain operations."""
    model, x = built(case)
    torch.manual_seed(5)
    expected = model(x)
    torch.testing.assert_close(capture_along_time(model, x).output, expected, rtol=1e-13, atol=1e-14)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


# Which recurrence ------------------------------------------------------------------------------------------------
def names_of(model: nn.Module, *args: Any) -> list[tuple[str, int, int]]:
    return [(r.name, len(r), r.sequences) for r in recurrences(capture_along_time(model, *args))]


@pytest.mark.parametrize("name", ["lstm-loop", "gru-loop", "tied-rnn", "shared-blocks"])
def test_each_call_of_a_recurrent_module_is_a_step(name: str) -> None:
    """Steps are named by the number of the call."""
    found = models.cut_case(BY_ID[name], "time").chain.names
    assert len(found) == 4
    assert [part.rpartition("[")[2] for part in found] == ["0]", "1]", "2]", "3]"]


def test_the_outermost_of_nested_modules_is_recurrent() -> None:
    """A cell made of layers is the step, not its layers."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.a(x))

    def run(model: Any, x: Tensor) -> Tensor:
        for _ in range(5):
            x = model.cell(x)
        return x

    assert describe(models.cut(Loop(run, cell=Cell()), torch.randn(2, 4), "time").chain.steps) == "5 × Cell"


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (looped(two_lengths, long=cell, short=cell), [("long", 4, 1), ("short", 2, 1)]),
        (looped(two_cells, a=lambda: nn.LSTMCell(4, 3), b=lambda: nn.LSTMCell(3, 3)), [("b", 4, 1)]),
        (looped(layer_after_layer, a=cell, b=lambda: cell(WIDTH)), [("a", 4, 1), ("b", 4, 1)]),
        (looped(every_second, fast=lambda: cell(7), slow=lambda: cell(3)), [("fast", 4, 1)]),
        (
            looped(translator, encoder=lambda: nn.LSTM(4, 3), decoder=lambda: nn.LSTM(4, 3)),
            [("encoder", 2, 1), ("decoder", 2, 1)],
        ),
        (looped(lambda m, x: m.rnn(x)[0] + m.rnn(-x)[0], rnn=fused), [("rnn", 4, 2)]),
        (looped(truncated, cell=cell), [("cell", 3, 2)]),
    ],
    ids=["two-lengths", "take-turns", "layer-after-layer", "every-second", "encoder-decoder", "siamese", "truncated"],
)
def test_all_recurrences_are_found(build: Callable[[], nn.Module], expected: list[tuple[str, int, int]]) -> None:
    """They are in the order in which they begin, with their lengths and the number of independent sequences."""
    torch.manual_seed(0)
    assert names_of(build().double(), inputs(BATCH, LENGTH, FEATURES)) == expected


def test_a_module_inside_a_recurrent_one_is_not_a_separate_recurrence() -> None:
    model = Loop(dict_loop, cell=OfDict()).double()
    assert names_of(model, inputs(BATCH, LENGTH, FEATURES)) == [("cell", LENGTH, 1)]


def test_modules_that_take_turns_can_be_chosen_by_either_name() -> None:
    torch.manual_seed(0)
    model = Loop(two_cells, a=nn.LSTMCell(FEATURES, WIDTH), b=nn.LSTMCell(WIDTH, WIDTH)).double()
    x = inputs(BATCH, LENGTH, FEATURES)
    assert cut(model, x, name="a").names == cut(model, x, name="b").names == calls_of("b")


@pytest.mark.parametrize("length", [1, 2, LENGTH])
def test_directions_and_layers_are_separate_recurrences(length: int) -> None:
    torch.manual_seed(0)
    x = inputs(BATCH, length, FEATURES)
    two_ways = Loop(lambda m, x: m.rnn(x)[0], rnn=fused(bidirectional=True)).double()
    assert names_of(two_ways, x) == [("rnn.l0", length, 1), ("rnn.l0_reverse", length, 1)]
    layers = Loop(lambda m, x: m.b(m.a(x)[0])[0], a=fused(), b=fused(WIDTH)).double()
    assert names_of(layers, x) == [("a", length, 1), ("b", length, 1)]


def lockstep(model: Any, x: Tensor) -> Tensor:
    h = g = zeros(x)
    for t in range(x.shape[1]):
        h, g = model.cell(x[:, t], h), model.cell(-x[:, t], g)
    return h + g


def tied_stack(model: Any, x: Tensor) -> Tensor:
    h = g = zeros(x)
    for t in range(x.shape[1]):
        h = model.cell(x[:, t], h)
        g = model.cell(h, g)
    return g


@pytest.mark.parametrize(("run", "width"), [(lockstep, FEATURES), (tied_stack, WIDTH)], ids=["lockstep", "tied-stack"])
def test_a_cell_that_serves_two_streams_is_followed_through_time(run: Callable[..., Tensor], width: int) -> None:
    """Two sequences in parallel, or two layers with the same weights: each has one step per time step."""
    torch.manual_seed(0)
    model = Loop(run, cell=cell(width)).double()
    assert len(cut(model, inputs(BATCH, LENGTH, width))) >= LENGTH - 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 5)),
        lambda: Loop(lambda m, x: m.cell(x[:, 0]), cell=cell()),
        lambda: Loop(lambda m, x: m.cell(x[:, 1], m.cell(x[:, 0]).detach()), cell=cell()),
    ],
    ids=["feed-forward", "one-call", "detached"],
)
def test_a_model_without_a_recurrence_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(CutError, match=r"steps='time' needs a recurrence: .*has none that the output depends on"):
        measure(build().double(), inputs(BATCH, LENGTH, FEATURES), steps="time")


def test_a_state_that_is_not_visible_is_refused() -> None:
    """An object that is not a container hides its tensors, so that no step has a visible state at both ends."""

    class Opaque:
        def __init__(self, h: Tensor) -> None:
            self.h = h

    class OfObject(Elman):
        def forward(self, x: Tensor, state: Opaque) -> Opaque:
            return Opaque(self.next(x, state.h))

    def run(model: Any, x: Tensor) -> Tensor:
        state = Opaque(zeros(x))
        for t in range(x.shape[1]):
            state = model.cell(x[:, t], state)
        return state.h

    with pytest.raises(
        CutError, match=r"a state must be carried through at least two time steps.*pass the state to the module"
    ):
        measure(Loop(run, cell=OfObject()).double(), inputs(BATCH, LENGTH, FEATURES), steps="time")


class Halving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


def test_a_last_state_that_the_model_discards_is_part_of_the_chain() -> None:
    """Its node, of a custom function, has no reader. Before PyTorch 2.13 it is freed with its tensor, unless that is held."""

    class Cell(nn.Module):
        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            mixed = x + state
            return 3 * mixed, Halving.apply(mixed)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Cell()

        def forward(self, x: Tensor) -> Tensor:
            output = state = torch.zeros_like(x[:, 0])
            for entry in x.unbind(1):
                output, state = self.cell(entry, state)
            return output

    result = measure(Model(), torch.randn(2, 5, 3), steps="time", dtype="float64")
    assert len(result.steps) == 5
    assert float(result.log_gain) == pytest.approx(5 * math.log(1 / 2), rel=1e-12)


def test_an_unknown_name_is_refused_with_all_names() -> None:
    model = Loop(two_lengths, long=cell(), short=cell()).double()
    with pytest.raises(
        UsageError, match=r"steps='time:cell' must name a recurrence of Loop. It has 'time:long', 'time:short'"
    ):
        measure(model, inputs(BATCH, LENGTH, FEATURES), steps="time:cell")


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_sequences(length: int) -> None:
    """A fused layer is a recurrence with a single step, too. A loop must call its module at least twice."""
    torch.manual_seed(0)
    x = inputs(BATCH, length, FEATURES)
    assert (
        measure(nn.LSTM(FEATURES, WIDTH, batch_first=True).double(), x, steps="time").steps.names[-1].startswith("LSTM")
    )
    loop = Loop(lstm_loop, cell=nn.LSTMCell(FEATURES, WIDTH)).double()
    if length == 1:
        with pytest.raises(CutError, match="needs a recurrence"):
            measure(loop, x, steps="time")
    else:
        assert measure(loop, x, steps="time").steps.names == calls_of("cell", 0, 2)


def test_all_parameters_of_unrolled_layers_have_gradients() -> None:
    """All parameters of an encoder-decoder have gradients, and these are finite."""
    torch.manual_seed(0)
    model = Loop(translator, encoder=nn.LSTM(4, 3, batch_first=True), decoder=nn.LSTM(4, 3, batch_first=True)).double()
    result = measure(model, inputs(BATCH, LENGTH, FEATURES), steps="time")
    assert not list(result.unused_parameters)
    assert len(result.gradient_norm) == len(list(model.parameters()))
    assert all(0 < float(g) < math.inf for g in result.gradient_norm.values())
    assert list(tensors_in(model(inputs(BATCH, LENGTH, FEATURES))))
