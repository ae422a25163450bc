"""The record and the baseline entry of a measurement: what they say, and that writing them measures nothing."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import (
    Measurement,
    Rollout,
    TrainabilityFailure,
    UsageError,
    at_least,
    at_most,
    measure,
    within,
)
from pytest_trainability.checks.baseline_files import render_baselines, with_entry
from pytest_trainability.checks.baseline_values import Series
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.measurement.writing import check_record, entry
from pytest_trainability.measures import MEASURES
from pytest_trainability.records.reports import BaselineRecord, CheckRecord

X = torch.linspace(-1, 1, 32).reshape(4, 8)


class Counted(nn.Sequential):
    """Counts the forward passes of all its instances."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.passes += 1
        return super().forward(x)


def tower() -> nn.Module:
    return Counted(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())])


def broken() -> nn.Module:
    """One weight of the second layer is NaN."""
    model = tower()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    return model


def reported(model: Any, **options: Any) -> tuple[Measurement, list[CheckRecord], int]:
    """Measure a model; return the records that the session received so far, and the number of forward passes."""
    Counted.passes = 0
    records: list[CheckRecord] = []
    result = measure_in(
        Context(test="test_a.py::test_b", report=records.append, expects_baseline=True), model, X, seeds=2, **options
    )
    return result, records, Counted.passes


# Nothing is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "passes"), [(tower, 2), (broken, 4)], ids=["finite", "not finite"])
def test_a_measurement_is_reported_once(model: Callable[[], nn.Module], passes: int) -> None:
    """Where the gradient is not finite, each seed runs again to find out where that begins, before the record is written."""
    result, records, made = reported(model)
    assert (len(records), made) == (1, passes)
    written = check_record(result._seed_runs, result.name, result._context, (), bounded={}, baseline=None)
    assert Counted.passes == passes
    assert repr(written) == repr(records[0])  # NaN does not equal itself
    assert result.nonfinite is not None if model is broken else True
    # A value that was read is reported, as the test may assert on it. Nothing runs again.
    assert (len(records), Counted.passes) == (2 if model is broken else 1, passes)


def test_an_entry_is_written_from_known_readings() -> None:
    result, _, passes = reported(tower)
    found = entry(result._seed_runs, [MEASURES["log_gain"]], {"cpu": "old"})
    assert Counted.passes == passes
    assert found.measures == {"log_gain": Series("nats", "linear", {"": result.log_gain.values})}
    assert found.environment["cpu"] == "old" and found.environment["device"] == "cpu"
    assert found.conditions == {"chain": "4 × Linear", "frame": "per sample", "mode": "train", "output": "(4, 8)"}
    assert (found.seeds, len(found.draws)) == ((0, 1), 2)


# Causes -------------------------------------------------------------------------------------------------------------


def test_the_first_tensor_that_is_not_finite_is_named_as_the_cause() -> None:
    result, records, _ = reported(broken)
    assert records[-1].cause == ("first value that is not finite: parameter 2.weight",)
    with pytest.raises(TrainabilityFailure, match=r"first value that is not finite: parameter 2\.weight"):
        result.check(log_gain=within(5))
    assert records[-1].cause == ("first value that is not finite: parameter 2.weight",)


def test_a_cause_that_cannot_be_located_is_the_step_of_the_gradient() -> None:
    """The model cannot be built a second time."""
    left = [broken, broken]

    def build() -> nn.Module:
        return left.pop()()

    result, records, _ = reported(build)
    assert len(records) == 1
    first, cause = records[0].cause
    assert first == "the output is not finite: 32 of 32 entries (nan) on 2 of 2 seeds"
    assert cause.startswith("the gradient is not finite from 6 on")
    assert math.isnan(result.log_gain.mean)


class Ending(nn.Module):
    """A tower whose output is changed at its end, behind the chain."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers, self.end = tower(), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.layers(x))


def test_an_infinite_output_is_noted_and_is_the_first_cause_of_any_failure() -> None:
    """Whatever the bound, and although every gradient along the chain is finite."""
    text = "the output is not finite: 32 of 32 entries (inf, -inf) on 2 of 2 seeds"
    result, records, _ = reported(lambda: Ending(lambda y: y / 0))
    assert result.notes[0] == text
    result.check(log_gain=within(50))
    assert records[-1].holds and records[-1].cautions == (text,) and text not in records[-1].notes
    for bounds in ({"log_gain": at_least(50)}, {"linear_steps": at_least(50)}):
        with pytest.raises(
            TrainabilityFailure, match=re.escape("the output is not finite: 32 of 32 entries")
        ) as failure:
            result.check(**bounds)
        lines = [line.split() for line in str(failure.value).splitlines()]
        assert [line[:2] for line in lines if "finite:" in line] == [["likely", "cause"]], "it is said once"
        assert records[-1].cause[0] == text


def test_an_infinite_loss_is_noted() -> None:
    result, records, _ = reported(tower, loss=lambda y: y.sum() / 0)
    assert sorted(re.findall(r"-?inf", result.notes[0])) in (["-inf"], ["inf"], ["-inf", "inf"])
    assert re.sub(r"\(.*\)", "()", result.notes[0]) == "the loss is not finite () on 2 of 2 seeds"
    assert records[-1].cautions[0] == records[-1].cause[0] == result.notes[0]


def test_masked_scores_are_noted_and_are_no_cause() -> None:
    """Entries that are -inf next to finite ones, where the loss is finite."""
    mask = torch.eye(4, 8).bool()
    result, records, _ = reported(lambda: Ending(lambda y: {"scores": y.masked_fill(mask, -math.inf), "y": y}))
    assert result.notes[0] == "output['scores'] is not finite: 4 of 32 entries (-inf) on 2 of 2 seeds"
    assert records[-1].cautions == result.notes and records[-1].cause == ()


def test_remarks_count_all_seeds_that_are_drawn() -> None:
    """Seeds that are drawn later, for a baseline, count as well."""
    context = Context()

    def build() -> nn.Module:
        return Ending(lambda y: y / 0) if torch.initial_seed() > 2 else Ending(lambda y: y)

    result = measure_in(context, build, X, seeds=5, until={"log_gain": within(1000)})
    result.check(log_gain=within(1000))
    assert result.notes == ()
    result.complete()
    assert result.notes == ("the output is not finite: 32 of 32 entries (inf, -inf) on 2 of 5 seeds",)


def test_a_changed_baseline_names_an_infinite_output_as_the_cause() -> None:
    baseline = BaselineRecord("changed", "f.json", "test_b", ())
    context = Context(baseline=lambda *_: baseline)
    result = measure_in(context, lambda: Ending(lambda y: y / 0), X, seeds=1)
    with pytest.raises(TrainabilityFailure, match=r"likely cause +the output is not finite"):
        result.check_baseline()


def test_more_seeds_may_be_the_first_that_are_not_finite() -> None:
    """The bound is settled by finite seeds. The remaining ones, drawn for a baseline, are not finite."""
    records: list[CheckRecord] = []

    def build() -> nn.Module:
        return broken() if torch.initial_seed() > 3 else tower()

    context = Context(report=records.append)
    result = measure_in(context, build, X, seeds=5, until={"log_gain": within(1000)})
    result.check(log_gain=within(1000))
    assert len(result.seeds) < 5 and records[-1].cause == ()
    with pytest.raises(TrainabilityFailure, match=r"first value that is not finite: parameter 2\.weight"):
        result.complete()
    assert records[-1].cause == ("first value that is not finite: parameter 2.weight",)


def test_only_failures_of_growth_have_a_cause() -> None:
    """A plain assert may follow a measurement without verdicts, so that a notable gain is explained."""
    result, records, _ = reported(tower)
    assert abs(result.log_gain.mean) < 5 and records[-1].cause == ()
    with pytest.raises(TrainabilityFailure, match="every step multiplies the gradient"):
        result.check(log_gain=at_least(0))
    with pytest.raises(TrainabilityFailure) as failure:
        result.check(forward_log_gain=at_least(1e3))
    assert "multiplies the gradient" not in str(failure.value)
    _, records, _ = reported(lambda: nn.Sequential(*(tower() for _ in range(4))))
    assert records[-1].log_gain < -5 and records[-1].cause[0].startswith("every step multiplies the gradient by")


def test_a_change_from_the_baseline_has_no_cause_along_the_chain() -> None:
    """The gradient shrinks, which would explain a failed bound. It shrank in the baseline, too."""
    result, _, _ = reported(lambda: nn.Sequential(*(tower() for _ in range(4))))

    def causes(baseline: BaselineRecord | None) -> tuple[str, ...]:
        written = check_record(result._seed_runs, result.name, result._context, (), bounded={}, baseline=baseline)
        return written.cause

    assert causes(None)[0].startswith("every step multiplies the gradient by ")
    assert causes(BaselineRecord("changed", "f.json", "test_b", ())) == ()


# The band of a bound ------------------------------------------------------------------------------------------------


def growing(rate: float, steps: int, dt: float | None = None) -> Rollout:
    """Multiply by ``exp(rate)`` at each step, which takes a time of ``dt``."""
    return Rollout(lambda x: math.exp(rate) * x, steps=steps, dt=dt)


START = torch.ones(2, 3, dtype=torch.float64)


def leaves_band(model: nn.Module, bounds: dict[str, Any], **options: Any) -> str:
    records: list[CheckRecord] = []
    result = measure_in(Context(report=records.append), model, START, **options)
    with pytest.raises(TrainabilityFailure):
        result.check(**bounds)
    return records[-1].leaves_band


def test_the_step_that_leaves_the_band_of_the_log_gain() -> None:
    # Steps of 0.1 nats: 0.3 is in the band, 0.4 is not.
    assert leaves_band(growing(0.1, 10), {"log_gain": at_most(0.35)}) == "at step[6], 4 of 10 steps from the output"
    assert leaves_band(growing(-0.1, 10), {"log_gain": at_least(-0.35)}) == "at step[6], 4 of 10 steps from the output"


def test_a_bound_on_the_exponent_is_a_band_over_all_steps() -> None:
    # Ten steps of 0.035 nats each make the same band.
    assert (
        leaves_band(growing(0.1, 10), {"lyapunov_max": at_most(0.035)}) == "at step[6], 4 of 10 steps from the output"
    )


def test_a_bound_on_the_exponent_per_time_is_a_band_over_the_time_of_the_chain() -> None:
    # Ten steps of 0.2 take a time of 2: 0.175 nats per time are 0.35 nats, and 0.35 per time would be 0.7.
    bounds = {"lyapunov_max": at_most(0.175)}
    assert leaves_band(growing(0.1, 10, dt=0.2), bounds) == "at step[6], 4 of 10 steps from the output"


@pytest.mark.parametrize("excluded", ["warmup", "alignment"])
def test_an_exponent_that_excludes_steps_gives_no_band(excluded: str) -> None:
    assert leaves_band(growing(0.1, 10), {"lyapunov_max": at_most(0.035)}, **{excluded: 2}) == ""
    assert leaves_band(growing(0.1, 10), {"log_gain": at_most(0.35)}, **{excluded: 2}) != ""


def test_bounds_that_hold_or_bound_something_else_give_no_band() -> None:
    bounds = {"log_gain": at_most(5), "activation_rms": at_most(1e-9)}
    assert leaves_band(growing(0.1, 10), bounds) == ""


# Cautions -----------------------------------------------------------------------------------------------------------


def test_parameters_without_a_gradient_are_named() -> None:
    class Unused(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
            self.spare = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(count))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    for count, text in [
        (1, "1 parameter gets no gradient at all: spare.0"),
        (2, "2 parameters get no gradient at all"),
    ]:
        _, records, _ = reported(lambda count=count: Unused(count))
        assert records[-1].cautions[0].startswith(text)
    assert reported(tower)[1][-1].cautions == ()


def test_a_chain_of_one_step_is_a_caution() -> None:
    """A green verdict on the head alone says nothing about the body, so that the remark is printed without ``-v``."""
    _, records, _ = reported(lambda: nn.Linear(8, 8))
    assert records[-1].cautions[0].startswith("the chain has one step only")


def test_calls_that_are_not_on_the_chain_are_named() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                x = layer(x.detach() if index == 2 else x).tanh()
            return x

    _, records, _ = reported(Cut)
    assert records[-1].cautions[-1] == "not on the chain: 3 × Linear (layers)"


# Entries ------------------------------------------------------------------------------------------------------------


def test_a_plugin_cannot_replace_a_key_of_the_environment() -> None:
    result = measure(tower, X, seeds=1)
    with pytest.raises(UsageError, match=r"pytest_trainability_environment returned 'torch'\. Rename it"):
        entry(result._seed_runs, [], {"torch": "nightly", "zebra": "1"})


def test_the_number_of_steps_of_a_solver_is_no_condition() -> None:
    """It may differ between machines. Units are per time."""
    result = measure(growing(0.1, 10, dt=0.2), START)
    found = entry(result._seed_runs, [MEASURES["lyapunov_max"]], {})
    assert result.steps.description == "10 × step"
    assert found.conditions["chain"] == "step"
    (series,) = found.measures.values()
    assert isinstance(series, Series) and series.unit == "nats/time"


def test_the_record_says_what_was_measured() -> None:
    records: list[CheckRecord] = []
    context = Context(test="test_a.py::test_b", name="second", report=records.append, reproduce="pytest test_a.py")
    result = measure_in(
        context,
        tower,
        X,
        seeds=3,
        train=False,
        dtype="float64",
        device="cpu",
        name="net",
        loss=F.mse_loss,
        target=X,
        until={"log_gain": within(1000)},
    )
    (record,) = records
    assert (record.test, record.name, record.model) == ("test_a.py::test_b", "second", "net")
    assert (record.steps, record.step_names, record.along) == ("4 × Linear", ("0", "2", "4", "6"), "depth")
    assert (record.frame, record.mode, record.device, record.dtype) == ("per sample", "eval", "cpu", "float64")
    assert (record.seeds, record.seeds_requested, record.fixed) == (result.seeds, (0, 1, 2), False)
    log_gain = result.log_gain
    assert (record.log_gain, record.log_gain_low, record.log_gain_high) == (log_gain.mean, log_gain.low, log_gain.high)
    assert record.growth == tuple(e.mean for e in result.growth_rate.values())
    assert (record.seconds, record.reproduce) == (result.seconds, "pytest test_a.py")
    assert CheckRecord.from_plain(record.to_plain()) == record
    finished = reported(tower())[1][-1]
    assert (finished.fixed, finished.seeds, finished.seeds_requested) == (True, (0,), (0,))


class Stage(nn.Module):
    """Eight parameters. Another activation and width than those of its neighbours."""

    def __init__(self, number: int) -> None:
        super().__init__()
        inner = 4 + number % 5
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, inner), nn.Linear(inner, 4)
        self.last = nn.LayerNorm(4)
        self.activation = (torch.tanh, torch.sin, F.silu)[number % 3]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.down(self.activation(self.up(self.norm(x)))))


NAMES: dict[str, Callable[[int], str]] = {
    "numbers": str,
    "numbers inside": "stage{}".format,
    "letters": lambda i: f"encoder_stage_{chr(97 + i % 20)}{chr(97 + i // 20)}",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_baseline_of_a_thousand_parameters_is_small(kind: str) -> None:
    """On eight seeds, with the operations of 125 stages. Two seeds are measured; four times as many have as many digits."""

    def build() -> nn.Module:
        return nn.Sequential(OrderedDict((NAMES[kind](i), Stage(i)) for i in range(125)))

    result = measure_in(Context(expects_baseline=True), build, torch.randn(2, 4), seeds=2, device="cpu")
    measured = result._entry(result._recorded_measures(where="here"))
    assert len(list(build().parameters())) == 1000
    found = replace(
        measured,
        seeds=tuple(range(8)),
        draws=4 * measured.draws,
        measures={
            name: replace(m, values={e: 4 * row for e, row in m.values.items()}) if isinstance(m, Series) else m
            for name, m in measured.measures.items()
        },
        initial={pattern: replace(row, draws=4 * row.draws) for pattern, row in measured.initial.items()},
    )
    assert found.operations and found.modules and found.initial
    assert (len(found.initial) < 60) == (kind != "letters")
    text = render_baselines(with_entry({}, "test_a", "", found))
    assert len(text.encode()) < 300_000
