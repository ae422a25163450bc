"""Cures: they are tried on copies, bring the failed measure inside its bound, and leave the user's model as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import TrainabilityFailure, at_least, measure, within
from pytest_trainability.measurement import Context, Measurement, measure_in
from pytest_trainability.measurement.cures import Cure


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def failed(build: Any, x: Tensor, bounds: dict[str, Any], **options: Any) -> tuple[Measurement, str]:
    """Return a measurement that does not hold, and the message."""
    result = measure(build, x, seeds=2, **options)
    with pytest.raises(TrainabilityFailure) as raised:
        result.check(**bounds)
    return result, str(raised.value)


def applied(cure: Cure, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def changed() -> nn.Module:
        model = build()
        cure.apply(model)
        return model

    return changed


def tower() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.Tanh())])


class Shrink(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1e-4 * x


def interrupted() -> nn.Module:
    layers: list[nn.Module] = []
    for number in range(6):
        layer = nn.Linear(32, 32)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layers += [layer, nn.ReLU(), *([Shrink()] if number == 2 else [])]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)
        for layer in (self.up, self.down):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def unnormalized() -> nn.Module:
    return nn.Sequential(*[Residual() for _ in range(12)])


def drawn_gains() -> nn.Module:
    layers = []
    for _ in range(6):
        norm = nn.LayerNorm(32)
        nn.init.normal_(norm.weight, std=0.02)
        layers += [nn.Linear(32, 32), nn.Tanh(), norm]
    return nn.Sequential(*layers)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 32, batch_first=True)
        for name, p in self.rnn.named_parameters():
            nn.init.zeros_(p) if "bias" in name else nn.init.orthogonal_(p)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.rnn(x)[0][:, -1]
        return found


class ScaledSkip(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + self.down(torch.relu(self.up(x)))


class InTheMiddle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = tower()[:8], tower()[:8]
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.orthogonal_(layer.weight, 1.1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(x) / 10000)
        return found


def two_layers(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Reader()
        model.rnn = kind(4, 32, num_layers=2, batch_first=True)  # type: ignore[assignment]
        for name, p in model.rnn.named_parameters():
            if "weight_hh" in name:
                nn.init.normal_(p, std=0.05)
        return model

    return build


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any], dict[str, Any], str]] = {
    "weights of a plain tower": (tower, inputs(4, 32), {"log_gain": within(2)}, {}, "nn.init.normal_(model[i].weight"),
    "a factor between layers": (
        interrupted,
        inputs(4, 32),
        {"log_gain": within(3)},
        {},
        "remove the factor 0.0001 in 6",
    ),
    "branches": (unnormalized, inputs(4, 32), {"log_gain": within(3)}, {}, "nn.init.normal_(model[i].down.weight"),
    "gains": (
        drawn_gains,
        inputs(4, 32),
        {"log_gain": within(9)},
        {"steps": "layers"},
        "nn.init.ones_(model[i].weight)",
    ),
    "a factor of skip connections": (
        lambda: nn.Sequential(*[ScaledSkip() for _ in range(12)]),
        inputs(4, 32),
        {"log_gain": within(8)},
        {},
        "remove the factor 2 in 0, 1, … (the skip connection)",
    ),
    "a factor in the code": (
        InTheMiddle,
        inputs(4, 32),
        {"log_gain": within(5)},
        {},
        "remove the factor 0.0001 (Div in InTheMiddle)",
    ),
    "two recurrent layers": (
        two_layers(nn.RNN),
        inputs(4, 20, 4),
        {"lyapunov_max": at_least(-0.2)},
        {"steps": "time"},
        "multiply rnn.weight_hh_l0, rnn.weight_hh_l1 by ",
    ),
    "two layers of gates": (
        two_layers(nn.GRU),
        inputs(4, 20, 4),
        {"lyapunov_max": at_least(-0.2)},
        {"steps": "time"},
        "a bias of the update gate of 2.94: the second third of rnn.bias_ih_l0, rnn.bias_ih_l1",
    ),
    "gates": (Reader, inputs(4, 30, 4), {"lyapunov_max": at_least(-0.1)}, {"steps": "time"}, "a forget bias of 3.37"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cure_brings_the_failed_measure_inside_its_bound(name: str) -> None:
    build, x, bounds, options, text = CASES[name]
    result, message = failed(build, x, bounds, **options)
    cures = result.cures()
    assert cures and any(cure.text.startswith(text) for cure in cures), [cure.text for cure in cures]
    ((measured, bound),) = bounds.items()
    for cure in cures:
        assert cure.measure == measured
        again = measure(applied(cure, build), x, seeds=2, **options)
        again.check(**{measured: bound})
        # The same seeds and the same change: the same number.
        assert getattr(again, measured).mean == cure.after
        assert getattr(result, measured).mean == cure.before
    assert "cure" in message and cures[0].text.split(",")[0] in " ".join(message.split())


def test_a_finished_module_is_not_changed() -> None:
    model = tower()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result, _ = failed(model, inputs(4, 32), {"log_gain": within(2)})
    assert result.cures()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_check_that_holds_has_no_cure() -> None:
    result = measure(tower, inputs(4, 32), seeds=2)
    result.check(log_gain=within(100))
    assert result.cures() == ()


def test_a_failure_that_growth_does_not_explain_has_no_cure() -> None:
    result, message = failed(tower, inputs(4, 32), {"saturated_fraction": at_least(0.9)})
    assert result.cures() == () and "cure" not in message


def test_a_bound_that_no_change_satisfies_has_no_cure() -> None:
    result, message = failed(tower, inputs(4, 32), {"log_gain": at_least(1e3)})
    assert result.cures() == () and "cure" not in message


def test_a_cure_of_another_model_is_refused() -> None:
    result, _ = failed(tower, inputs(4, 32), {"log_gain": within(2)})
    with pytest.raises(LookupError, match="must have the parameter"):
        result.cures()[0].apply(nn.Linear(2, 2))


def test_a_nan_is_no_growth() -> None:
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * math.nan

    result, message = failed(
        lambda: nn.Sequential(nn.Linear(4, 4), Nan(), nn.Linear(4, 4)), inputs(2, 4), {"log_gain": within(2)}
    )
    assert result.cures() == () and "cure" not in message


def test_a_module_that_cannot_be_copied_fails_without_a_cure() -> None:
    class Holder(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            raise TypeError("holds an open file")

    result, message = failed(Holder(*tower().children()), inputs(4, 32), {"log_gain": within(2)})
    assert result.cures() == () and "log_gain" in message and "likely cause" in message


def test_only_small_models_are_tried_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_trainability.measurement.result.SMALL", 10)
    _, message = failed(tower, inputs(4, 32), {"log_gain": within(2)})
    assert "likely cause" in message and "cure" not in message
    result = measure_in(Context(cure="show"), tower, inputs(4, 32), seeds=2)
    with pytest.raises(TrainabilityFailure, match="cure"):
        result.check(log_gain=within(2))
