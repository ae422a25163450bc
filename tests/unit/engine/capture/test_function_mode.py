"""Observers of functions: what they observe, who called it, and names for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from pytest_trainability.engine.capture.function_mode import FunctionObserver, numbered
from pytest_trainability.engine.capture.recorder import Capture, Recorder, capture
from pytest_trainability.measures.activations.activation_calls import observe_activations
from pytest_trainability.measures.structure.linearity import LINEAR_STEPS


class Tanhs(FunctionObserver):
    """Collects the caller of each ``tanh``."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.callers: list[tuple[str, bool]] = []

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(func, "__name__", "") == "tanh":
            self.callers.append((self.path, self.caller is not None))
        return func(*args, **kwargs)


class Around(nn.Module):
    """Calls ``tanh`` itself and in two submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.act = models.Branch(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.act(self.branch(x)))


def observed(instruments: tuple[Any, ...] = (Tanhs,), **settings: Any) -> Capture:
    return capture(Around(), (torch.ones(2, models.WIDTH),), {}, instruments=instruments, **settings)


def test_functions_are_observed_with_the_module_that_calls_them() -> None:
    """The model itself goes by its class name."""
    assert observed().watched[Tanhs].callers == [("branch", True), ("act", True), ("Around", True)]


def test_the_loss_is_not_part_of_the_model() -> None:
    """Observers are active during the forward pass only. Outside of all modules, the caller is named loss."""
    found = observed(loss=lambda y: torch.tanh(y).sum())
    assert len(found.watched[Tanhs].callers) == 3
    with Tanhs(Recorder(found)) as observer:
        torch.tanh(torch.ones(1))
    assert observer.callers == [("loss", False)]


class Names(FunctionObserver):
    """Collects the names of all functions."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.names: list[str] = []

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **kwargs)


class Asking(nn.Module):
    """Reads attributes of its input, and computes with one of them."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape == x.size() and x.dim() and x.requires_grad and x.device.type == "cpu" and len(x)
        return x.T.tanh()


def test_only_functions_that_compute_are_observed() -> None:
    """Neither attributes that the model reads nor what recorder, observers and other instruments compute."""
    x = torch.ones(2, models.WIDTH)
    for instruments in (
        (Names,),
        (observe_activations, *LINEAR_STEPS.instruments, Names),
        (Names, observe_activations, *LINEAR_STEPS.instruments),
    ):
        seen = capture(Asking(), (x,), {}, instruments=instruments).watched[Names].names
        assert seen == ["__get__", "tanh"]


def test_an_observer_changes_no_result() -> None:
    torch.manual_seed(0)
    model, x = Around(), torch.ones(2, models.WIDTH)
    assert torch.equal(capture(model, (x,), {}, instruments=(Tanhs,)).output, model(x))


def test_a_subclass_must_define_what_happens_at_a_call() -> None:
    with pytest.raises(NotImplementedError):
        observed(instruments=(FunctionObserver,))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["a", "b"], ["a", "b"]),
        (["a", "b", "a", "a"], ["a[0]", "b", "a[1]", "a[2]"]),
        (["a", "a", "b", "b"], ["a[0]", "a[1]", "b[0]", "b[1]"]),
    ],
)
def test_repeated_names_are_numbered(names: list[str], expected: list[str]) -> None:
    assert numbered(names) == expected
