"""The attributes, checks and baselines of a result, and the companions of bounded measures: waking steps and the chance loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import Bound, TrainabilityFailure, UsageError, at_least, at_most, measure, within
from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.errors import BoundError
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.reports import BaselineRecord, CheckRecord


class Residual(nn.Module):
    """Its branch is zero at first, by design."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def residual() -> nn.Module:
    return nn.Sequential(Residual(), Residual(), nn.Linear(8, 3))


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(model[0].bias, -100.0)
    return model


X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
LOSS = {"loss": F.cross_entropy, "target": Y}


@pytest.mark.parametrize("name", ["gradient_norm", "relative_gradient_norm", "update_ratio"])
def test_zeros_by_design_are_not_judged(name: str) -> None:
    result = measure(residual, X, seeds=2, **LOSS)
    result.check(**{name: at_least(1e-9)})
    zero = result.gradient_norm["0.up.weight"].mean
    assert zero == 0, "the number itself stays what it is"


def test_dead_units_are_judged() -> None:
    result = measure(dead, X, seeds=2, **LOSS)
    with pytest.raises(AssertionError, match=r"3 of 4 outside, worst 0\.weight"):
        result.check(gradient_norm=at_least(1e-9))


def test_a_parameter_wakes_at_its_latest_step_over_seeds() -> None:
    """The latest step of all seeds: behind a head that is zero on every other seed everything takes one step more."""

    def sometimes() -> nn.Module:
        late = torch.initial_seed() % 2
        model = residual()
        if late:
            nn.init.zeros_(model[2].weight)
        return model

    result = measure(sometimes, X, seeds=2, **LOSS)
    assert sorted(result.waking_step["0.up.weight"].values) == [1, 2]
    with pytest.raises(AssertionError) as failure:
        result.check(gradient_norm=at_least(1e6))
    text = " ".join(str(failure.value).split())
    assert "parameters wake at optimizer step 1" in text and "*.down.weight (2)" in text.partition("step 2")[0]
    assert "4 parameters wake at optimizer step 2" in text and "*.up.weight (2)" in text.partition("step 2")[2]


def test_all_parameters_are_judged_where_all_wake_later() -> None:
    """Of a product `a b` one factor is zero on every other seed, and the other one on the others: both wake by design."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.full((8, 1), float(i == torch.initial_seed() % 2))) for i in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.a) * (x @ self.b)

    loss = {"loss": lambda output: (output - 1).square().mean()}
    result = measure(Product, X, seeds=2, steps=Product, **loss)
    assert {name: max(step.values) for name, step in result.waking_step.items()} == {"a": 1, "b": 1}
    with pytest.raises(AssertionError, match="2 of 2 outside, worst a 0, b 0"):
        result.check(gradient_norm=at_least(1e-9))


def test_a_failure_names_the_parameters_that_were_not_judged() -> None:
    result = measure(residual, X, seeds=2, **LOSS)
    with pytest.raises(AssertionError) as failure:
        result.check(gradient_norm=at_least(1e6))
    assert "parameters wake at optimizer step 1 and are excluded from bounds on gradients and updates:" in " ".join(
        str(failure.value).split()
    )
    assert "*.up.weight (2)" in str(failure.value)
    (record,) = (list(names) for title, *names in result._to_record([]).lists if title == "waking at step 1")
    assert record == ["0.up.weight", "0.up.bias", "1.up.weight", "1.up.bias"]


def test_all_parameters_are_judged_where_no_optimizer_step_can_be_taken() -> None:
    def model() -> nn.Module:
        # AdamW, which probes where no optimizer is given, takes no sparse gradients.
        tower = nn.Sequential(nn.Embedding(5, 8, sparse=True), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        nn.init.constant_(tower[1].bias, -100.0)
        return tower

    result = measure(model, torch.tensor([0, 1, 2, 3, 4, 0]), seeds=2, **LOSS)
    with pytest.raises(AssertionError, match=r"^gradient_norm 0 \(0.weight\) must be ≥ 1e-09\n"):
        result.check(gradient_norm=at_least(1e-9))


def test_a_failed_initial_loss_comes_with_the_chance_loss() -> None:
    result = measure(lambda: nn.Linear(8, 3), X * 50, seeds=2, **LOSS)
    with pytest.raises(AssertionError, match=r"\(a guess among 3 classes costs 1\.099\)"):
        result.check(initial_loss=at_most(1.2))


def test_without_classes_there_is_no_chance_loss() -> None:
    result = measure(lambda: nn.Linear(8, 1), X, seeds=2, loss=lambda y: y.square().mean())
    result.check(initial_loss=within(0, 5))
    with pytest.raises(AssertionError, match=r"initial_loss +\d") as failure:
        result.check(initial_loss=at_most(0))
    assert "guess" not in str(failure.value)


# Attributes ---------------------------------------------------------------------------------------------------------


def test_attributes_describe_the_measurement() -> None:
    result = measure(residual, X, seeds=2, dtype="float64", device="cpu", train=False, **LOSS)
    assert (result.name, result.seeds, result.frame) == ("residual", (0, 1), "per sample")
    assert (result.mode, result.device, result.dtype) == ("eval", "cpu", "float64")
    assert len(result.steps) >= 2 and result.notes == () and result.seconds > 0
    assert repr(result).startswith(
        f"<residual: {result.steps}, per sample, eval mode, cpu, gradient of the loss, log gain "
    )


def test_measures_are_attributes_and_nothing_else_is() -> None:
    result = measure(residual, X, seeds=1, **LOSS)
    assert {"log_gain", "dead_fraction", "check", "steps"} <= set(dir(result))
    with pytest.raises(AttributeError, match=r"has no attribute 'log_gian'. Did you mean 'log_gain'\?"):
        _ = result.log_gian
    with pytest.raises(AttributeError, match=r"has no attribute 'qqq'\. dir\(\) of it lists all measures\.$"):
        _ = result.qqq
    assert not hasattr(result, "_log_gain")


def test_reading_a_further_measure_reports_it_to_the_session_once() -> None:
    reports: list[CheckRecord] = []
    result = measure_in(Context(report=reports.append), residual, X, seeds=2, **LOSS)
    first, again = result.forward_log_gain, result.forward_log_gain
    assert first is again and len(reports) == 2


# check --------------------------------------------------------------------------------------------------------------


def test_a_check_needs_a_bound() -> None:
    with pytest.raises(BoundError, match=r"check\(\) needs a bound, such as log_gain=within\(3\), or preset=\."):
        measure(residual, X, seeds=1, **LOSS).check()


def test_all_violations_stand_in_one_failure() -> None:
    result = measure(residual, X, seeds=2, **LOSS)
    with pytest.raises(TrainabilityFailure, match=r"^log_gain \S+ must be ≥ 1000; initial_loss fails, too\n"):
        result.check(log_gain=at_least(1e3), initial_loss=at_most(0), activation_rms=at_least(0))


def test_bounds_take_precedence_over_those_of_a_preset() -> None:
    result = measure(residual, X, seeds=2, **LOSS)
    with pytest.raises(TrainabilityFailure, match="log_gain"):
        result.check(preset="mlp", log_gain=at_least(1e3))
    bounds = {"log_gain": within(1e3)}
    result._verdicts.clear()
    result.check(preset="mlp", **bounds)
    assert result._verdicts["log_gain"].high == 1e3 and len(result._verdicts) > 1


def test_an_error_names_the_test() -> None:
    result = measure_in(Context(test="test_a.py::test_b"), residual, X, seeds=1, **LOSS)
    with pytest.raises(BoundError, match=r"check\(\) in test_a\.py::test_b: unknown measure 'log_gian'"):
        result.check(log_gian=within(3))
    with pytest.raises(BoundError, match=r"check\(\) in test_a\.py::test_b: .*log_gain"):
        result.check(log_gain="wide")
    with pytest.raises(BoundError, match=r"check\(\) in test_a\.py::test_b: preset.*'resnet'"):
        result.check(preset="resnet")


def test_verdicts_of_all_checks_stand_in_the_record() -> None:
    reports: list[CheckRecord] = []
    result = measure_in(Context(report=reports.append), residual, X, seeds=2, **LOSS)
    result.check(log_gain=within(1e3))
    result.check(gradient_norm=at_most(1e6))
    result.check(log_gain=within(1e4))
    assert [(v.measure, v.high) for v in reports[-1].verdicts] == [("log_gain", 1e4), ("gradient_norm", 1e6)]


def test_a_measure_without_value_holds_only_where_its_bound_allows_it() -> None:
    result = measure(residual, X, seeds=2, **LOSS)
    if_any = Bound(low=1, if_any=True)
    result.check(attention_entropy=if_any)
    assert "attention_entropy" not in result._bounds
    with pytest.raises(AssertionError, match="nothing was measured"):
        result.check(attention_entropy=at_least(1))


def test_where_all_branches_are_zero_by_design_there_is_no_verdict() -> None:
    def zero() -> nn.Module:
        model = residual()
        for block in model[:2]:
            nn.init.zeros_(block.down.bias)
        return model

    result = measure(zero, X, seeds=2, steps=Residual, **LOSS)
    result.check(branch_ratio=at_least(1e-9))
    assert result._verdicts == {} and "branch_ratio" in result._bounds


# check_baseline -----------------------------------------------------------------------------------------------------


def compared(holds: bool, calls: list[Any]) -> Context:
    def baseline(
        name: str, entry: Entry, tolerances: Mapping[str, float], with_settings: Callable[[Entry], Entry]
    ) -> BaselineRecord:
        calls.append((name, entry, tolerances, with_settings))
        return BaselineRecord(status="same" if holds else "missing", file="b.json", entry="residual, cpu float32")

    return Context(test="test_a.py::test_b", baseline=baseline, tolerances={"log_gain": 0.25, "gradient_norm": 0.5})


def test_a_baseline_is_compared_with_all_seeds_measures_and_tolerances() -> None:
    calls: list[Any] = []
    bounds = {"log_gain": within(1e3), "initial_loss": within(1e3)}
    result = measure_in(compared(True, calls), residual, X, seeds=8, until=bounds, **LOSS)
    result.check(**bounds)
    assert len(result.seeds) < 8
    result.check_baseline("forward_log_gain", log_gain=0.125)
    ((name, entry, tolerances, _),) = calls
    assert (name, entry.seeds) == ("residual", tuple(range(8)))
    recorded = {"log_gain", "growth_rate", "activation_rms", "gradient_norm", "unused_parameters", "gradient_classes"}
    assert set(entry.measures) == {*recorded, "initial_loss", "forward_log_gain"}
    assert (tolerances["log_gain"], tolerances["gradient_norm"]) == (0.125, 0.5)
    assert tolerances["forward_log_gain"] == MEASURES["forward_log_gain"].tolerance


def test_measures_that_only_the_command_line_bounds_are_not_recorded() -> None:
    calls: list[Any] = []
    context = replace(compared(True, calls), bounded_on_command_line_only=frozenset({"initial_loss"}))
    result = measure_in(context, residual, X, seeds=2, **LOSS)
    result.check(initial_loss=within(1e3), forward_log_gain=within(1e3), attention_entropy=Bound(low=0, if_any=True))
    result.check_baseline()
    assert "forward_log_gain" in calls[0][1].measures
    assert "initial_loss" not in calls[0][1].measures and "attention_entropy" not in calls[0][1].measures


def test_constants_in_the_code_are_read_where_the_comparison_asks_for_them() -> None:
    calls: list[Any] = []
    result = measure_in(compared(True, calls), lambda: nn.Sequential(residual(), nn.Softmax(-1)), X, seeds=2)
    result.check_baseline()
    ((_, entry, _, with_settings),) = calls
    assert entry.settings is None
    assert with_settings(entry).settings == result.baseline_entry().settings == {"1": "softmax(dim=-1)"}


def test_constants_that_cannot_be_found_are_left_out() -> None:
    """The inputs have changed, so that another run would not be of the same measurement."""
    x = X.clone()
    result = measure(lambda: nn.Sequential(residual(), nn.Softmax(-1)), x, seeds=2)
    entry = result._entry([MEASURES["log_gain"]])
    x.zero_()
    assert result.with_settings(entry) == entry


def test_a_changed_baseline_fails() -> None:
    result = measure_in(compared(False, []), residual, X, seeds=2, **LOSS)
    with pytest.raises(TrainabilityFailure):
        result.check_baseline()


@pytest.mark.parametrize(
    ("tolerances", "error", "message"),
    [
        ({"log_gian": 0.1}, BoundError, r"check_baseline\(\) in test_a\.py::test_b: unknown measure 'log_gian'"),
        ({"log_gain": -1.0}, UsageError, "log_gain"),
    ],
)
def test_an_invalid_tolerance_is_refused(tolerances: dict[str, float], error: type[Exception], message: str) -> None:
    result = measure_in(compared(True, []), residual, X, seeds=1, **LOSS)
    with pytest.raises(error, match=message):
        result.check_baseline(**tolerances)


def test_a_bound_with_nothing_to_judge_says_why_and_names_no_weights() -> None:
    """Frozen parameters and an absent recurrence are no matter of weights that are too small."""

    def frozen() -> nn.Module:
        return nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(16, 16), nn.Tanh())]).requires_grad_(False)

    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TrainabilityFailure) as raised:
        measure(frozen, x, seeds=1).check(gradient_norm=at_least(1e-6))
    text = " ".join(str(raised.value).split())
    assert "nothing was measured, must be ≥ 1e-06: no parameter gets a gradient, because all are frozen" in text
    assert "likely cause" not in text

    def tower() -> nn.Module:
        return frozen().requires_grad_(True)

    with pytest.raises(TrainabilityFailure) as raised:
        measure(tower, x, seeds=1).check(recurrence_lyapunov_max=within(1))
    text = " ".join(str(raised.value).split())
    assert "it has no recurrence" in text and "likely cause" not in text
