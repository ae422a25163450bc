"""Gradients in another precision: everything is cast, and everything is restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import Capture, capture
from pytest_trainability.engine.runs.objective import Objective
from pytest_trainability.engine.runs.other_precision import (
    gradients_in_other_precision,
    gradients_under_other_roundings,
    other_precision,
)


class Casting(nn.Module):
    """Names types, as the code of libraries does, and notes the types that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.table = torch.ones(4)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x)).float() * self.table
        found = [x, x.softmax(-1, dtype=torch.float32), x.to(torch.bfloat16), torch.zeros(2), x.half(), x.double()]
        self.seen[:] = [t.dtype for t in found]
        return x.tanh()


def objective(model: nn.Module, x: Tensor) -> Objective:
    captured: Capture = capture(model, (x,), {})
    captured.inputs, captured.target = (x,), None
    return Objective(captured, lambda output: output.square().sum(), 0)


@pytest.mark.parametrize(("own", "other"), [("float32", "float64"), ("float64", "float32"), ("bfloat16", "float64")])
def test_the_whole_model_runs_in_the_other_type(own: str, other: str) -> None:
    model, x = Casting().to(getattr(torch, own)), torch.randn(6, 4).to(getattr(torch, own))
    assert other_precision(model) == getattr(torch, other)
    loss = objective(model, x)
    # Counters change as in every forward pass. The run that surrounds this one restores them.
    held = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    before = {name: (t.data_ptr(), t.dtype, t.clone()) for name, t in held.items()}
    found = gradients_in_other_precision(loss)
    assert found is not None
    assert {g.dtype for g in found.values() if g is not None} == {getattr(torch, other)}
    assert set(model.seen) == {getattr(torch, other)}
    for name, (pointer, dtype, value) in before.items():
        t = model.state_dict()[name]
        assert (t.data_ptr(), t.dtype) == (pointer, dtype) and torch.equal(t, value), name
    assert model.table.dtype == torch.float32 and loss.inputs[0] is x
    assert torch.get_default_dtype() == torch.float32


def test_the_gradient_is_the_same_up_to_its_precision() -> None:
    torch.manual_seed(0)
    loss = objective(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)), torch.randn(6, 4))
    own = loss.gradients()
    for other in (gradients_in_other_precision(loss), gradients_under_other_roundings(loss)):
        assert other is not None
        for name, gradient in own.items():
            assert gradient is not None
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-5, check_dtype=False)
            assert not torch.equal(other[name].to(gradient.dtype), gradient) or name.endswith("bias")


def test_other_roundings_are_drawn_on_the_cpu_whatever_the_default_device() -> None:
    """The default device of a run is the model's, and generators are those of the CPU."""
    torch.manual_seed(0)
    loss = objective(nn.Linear(4, 4), torch.randn(6, 4))
    expected = gradients_under_other_roundings(loss)
    with torch.device("meta"):
        found = gradients_under_other_roundings(loss)
    assert found is not None and expected is not None
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())  # type: ignore[arg-type]


class Refusing(nn.Module):
    """Has no kernel for float64."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if x.dtype == torch.float64:
            raise NotImplementedError
        return self.layer(x)


def test_a_model_that_does_not_run_in_the_other_type_keeps_its_own() -> None:
    model = Refusing()
    loss = objective(model, torch.randn(6, 4))
    assert gradients_in_other_precision(loss) is None
    assert model.layer.weight.dtype == torch.float32 and loss.inputs[0].dtype == torch.float32
    weight = model.layer.weight.detach().clone()
    assert gradients_under_other_roundings(loss) is not None
    assert torch.equal(model.layer.weight, weight)


def test_complex_parameters_are_cast_to_complex_ones() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex64) @ self.weight).abs()

    found = gradients_in_other_precision(objective(Complex(), torch.randn(6, 4)))
    assert found is not None
    assert found["weight"] is not None and found["weight"].dtype == torch.complex128
