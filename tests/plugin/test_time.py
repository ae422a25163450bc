"""Chains along time in whole sessions: the report, baselines, rollouts, and the same numbers in workers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.pytester import Pytester, RunResult

SUITE = """
import math
import pytest, torch
from torch import nn
from pytest_trainability import Rollout, at_least, at_most, within

def sequences(generator):
    return torch.randn(4, 60, 8, generator=generator)

def rnn(gain=0.7):
    layer = nn.RNN(8, 16, batch_first=True)
    nn.init.orthogonal_(layer.weight_hh_l0, gain=gain)
    return layer

@pytest.mark.trainability(memory_horizon=at_least(2), recurrence_lyapunov_max=at_most(0))
def test_lstm(trainability):
    trainability(lambda: nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True), sequences, steps="time", seeds=2)

@pytest.mark.trainability(log_gain=within(5))
def test_rnn(trainability):
    trainability(rnn, sequences, steps="time", seeds=2)

def test_baseline(trainability):
    trainability(rnn, sequences, steps="time", seeds=4).check_baseline()

def test_pendulum(trainability):
    def step(state):
        angle, momentum = state.unbind(-1)
        momentum = momentum + 0.9 * torch.sin(angle)
        return torch.stack([angle + momentum, momentum], dim=-1)

    state = torch.rand(4, 2, generator=torch.Generator().manual_seed(0)).double()
    result = trainability(Rollout(step, steps=50, dt=0.5), state, exponents=2, name="pendulum")
    result.check(lyapunov_max=within(0.5))
    assert abs(sum(result.lyapunov_spectrum)) < 1e-9
"""


@pytest.fixture
def suite(project: Pytester) -> Pytester:
    project.makepyfile(test_suite=SUITE)
    return project


def test_the_report(suite: Pytester) -> None:
    result = suite.runpytest("--trainability-baseline=new", "-p", "no:xdist")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *log_gain       -*nats, must lie in [[]-5, 5]:*outside",
            "E *along time     RNN[[]59] *RNN[[]0]",
            "E *leaves band    at RNN[[]*], * of 60 steps from the output",
            "E *likely cause   every step multiplies the gradient by*",
            "*Tanh in RNN has slopes of rms 0.*",
            "*recurrent weights of rms 0.* over 16 inputs in RNN:*",
            "*test_lstm *60 × LSTM*log gain*nats",
            "*test_rnn *60 × RNN*log gain*nats",
            "*test_pendulum*pendulum*50 × step*log gain*nats",
        ]
    )
    begin = next(i for i, line in enumerate(result.outlines) if re.fullmatch("=+ trainability =+", line))
    end = next(i for i, line in enumerate(result.outlines) if "short test summary" in line)
    assert max(len(line) for line in result.outlines[begin:end] if "reproduce" not in line) <= 80


def test_other_recurrences_of_a_bidirectional_layer_are_listed(suite: Pytester) -> None:
    """A green report also lists them, because the measures do not cover them."""
    result = suite.runpytest("-k", "lstm", "-p", "no:xdist")
    result.assert_outcomes(passed=1)
    text = " ".join(" ".join(result.outlines).split())
    assert "other recurrences, steps='time:l0_reverse', steps='time:l1', steps='time:l1_reverse'" in text


def baseline_test_after(suite: Pytester, old: str, new: str) -> RunResult:
    """Change the suite, and run the test with the baseline."""
    test = suite.path / "test_suite.py"
    test.write_text(test.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return suite.runpytest("-k", "baseline", "-p", "no:xdist")


def test_baseline_along_time_is_small_and_holds(suite: Pytester) -> None:
    suite.runpytest("--trainability-baseline=new", "-k", "baseline", "-p", "no:xdist").assert_outcomes(passed=1)
    (path,) = suite.path.glob("__trainability__/*.json")
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert "growth_rate" not in json.dumps(json.loads(text))
    assert "lyapunov_max" in text
    suite.runpytest("-k", "baseline", "-p", "no:xdist").assert_outcomes(passed=1)
    result = baseline_test_after(suite, "gain=0.7", "gain=0.8")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *log_gain *→*", "E *lyapunov_max *→* nats/step*"])


def test_longer_sequence_is_a_change(suite: Pytester) -> None:
    """Other inputs are other draws, and four seeds do not suffice to detect the change; the length of the chain shows it."""
    suite.runpytest("--trainability-baseline=new", "-k", "baseline", "-p", "no:xdist").assert_outcomes(passed=1)
    result = baseline_test_after(suite, "randn(4, 60, 8", "randn(4, 80, 8")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *chain *gone: 60 × RNN", "E *chain *new: 80 × RNN"])


def test_marker_refuses_arguments_of_the_fixture(project: Pytester) -> None:
    project.makepyfile("""
        import pytest

        @pytest.mark.trainability(steps="time")
        def test_it(trainability): ...
        """)
    result = project.runpytest("-p", "no:xdist")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*'steps' is an argument of the fixture: trainability(model, inputs, steps='time')."])


def test_a_worker_finds_the_same_numbers(suite: Pytester) -> None:
    pytest.importorskip("xdist")

    def numbers(*arguments: str) -> list[str]:
        lines = suite.runpytest("--trainability-baseline=new", *arguments).outlines
        return sorted(" ".join(line.split()[1:]) for line in lines if re.match(r"  [✔○✘x] ", line))

    alone = numbers("-p", "no:xdist")
    assert len(alone) == 4
    assert alone == numbers("-n1")
