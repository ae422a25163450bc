"""Looking after every seed: the sequence of intervals covers all the way, a clear case is settled soon, a close one not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from pytest_trainability import Bound, Profile, at_least, at_most, within
from pytest_trainability.checks.statistics import Level, estimate, seeds_to_settle
from pytest_trainability.checks.verdicts import is_settled

LONGEST = 64
NINETY = Level(0.9, LONGEST)


def half_widths(level: Level) -> np.ndarray:
    """Half-width in standard deviations of a sample by its size; infinite below two."""
    sizes = np.arange(2, LONGEST + 1)
    quantiles = stats.t.ppf((1 + np.array([level.at(int(n)) for n in sizes])) / 2, sizes - 1)
    return np.concatenate([[np.inf, np.inf], quantiles / np.sqrt(sizes)])


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda g, shape: g.normal(1.0, 2.0, shape), id="normal"),
        # the log gain of one random step is half the logarithm of a chi-square variable: skewed
        pytest.param(lambda g, shape: np.log(g.chisquare(16, shape)) / 2, id="log-chi-square"),
    ],
)
def test_the_sequence_covers_at_every_size_at_once(draw) -> None:
    """2 × 4,000 sequences of 64: at most a tenth may miss the mean anywhere, four standard deviations allowed."""
    sequences = 4000
    values = draw(np.random.default_rng(3), (sequences, LONGEST))
    mean = draw(np.random.default_rng(4), 10**6).mean()
    half = half_widths(NINETY)
    missed = np.zeros(sequences, dtype=bool)
    for n in range(2, LONGEST + 1):
        head = values[:, :n]
        missed |= np.abs(head.mean(1) - mean) > half[n] * head.std(1, ddof=1)
    alpha = 1 - NINETY.confidence
    assert missed.mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / sequences)
    # and the union over sizes does not give so much away that the intervals would be useless
    assert missed.mean() > alpha / 10


def test_an_interval_of_fixed_size_would_not_cover_at_every_size() -> None:
    """The planted fault: stopping when Student's interval says so is wrong far more often than it admits."""
    values = np.random.default_rng(3).normal(1.0, 2.0, (2000, LONGEST))
    half = half_widths(Level(0.9))
    missed = np.zeros(len(values), dtype=bool)
    for n in range(2, LONGEST + 1):
        missed |= np.abs(values[:, :n].mean(1) - 1.0) > half[n] * values[:, :n].std(1, ddof=1)
    assert missed.mean() > 0.25


def test_estimate_uses_the_level_of_its_size() -> None:
    values = [1.0, 1.5, 0.7, 1.1]
    sequence = estimate(values, level=Level(0.99, 4))
    fixed = estimate(values, level=Level(0.995))
    assert (sequence.low, sequence.high) == (fixed.low, fixed.high)


@pytest.mark.parametrize("ceiling", [2, 3, 4, 8, 100])
def test_the_error_is_spent_over_all_sizes(ceiling: int) -> None:
    level = Level(0.99, ceiling)
    assert math.fsum(1 - level.at(n) for n in range(2, ceiling + 1)) == pytest.approx(0.01)
    assert 1 - level.at(ceiling) == pytest.approx(0.005 if ceiling > 2 else 0.01)


def test_a_martingale_would_not_be_narrower() -> None:
    """Given the half of the error that the looks before the last share, and tuned for three seeds.

    It is the scale-invariant likelihood ratio with a Gaussian mixture over the effect (Wang & Ramdas, arXiv:2310.03722).
    """
    level = Level(0.99, 8)
    error = (1 - level.confidence) / 2
    c2 = error / math.sqrt(3)
    for n in range(2, 8):
        q = (error**2 * c2 / (n + c2)) ** (1 / n)
        room = (n + c2) * q - c2
        martingale = math.sqrt((1 - q) * (n + c2) / room * (n - 1) / n) if room > 0 else math.inf
        assert stats.t.ppf((1 + level.at(n)) / 2, n - 1) / math.sqrt(n) < martingale


def first_settled(values: Sequence[float], bound: Bound, level: Level) -> int | None:
    for n in range(1, len(values) + 1):
        if is_settled(estimate(values[:n], level=level), bound, level=level):
            return n
    return None


ALWAYS = Level(0.99, 8)


@pytest.mark.parametrize(("mean", "bound"), [(-14.4, within(5)), (0.2, within(20)), (-60.0, at_least(-5))])
def test_a_clear_case_is_settled_after_two_or_three_seeds(mean: float, bound: Bound) -> None:
    generator = np.random.default_rng(0)
    found = [first_settled(generator.normal(mean, 0.1, 8).tolist(), bound, ALWAYS) for _ in range(200)]
    assert set(found) <= {2, 3}


def test_a_close_case_is_not_settled() -> None:
    """The mean on the bound's end: whichever side it is said to be on would be wrong. 1 % may be, over all looks."""
    generator = np.random.default_rng(1)
    found = [first_settled(generator.normal(5.0, 1.0, 8).tolist(), within(5), ALWAYS) for _ in range(1000)]
    wrong = sum(n is not None for n in found)
    assert wrong <= 10 + 4 * math.sqrt(10)


def test_one_seed_settles_nothing_but_what_is_not_finite() -> None:
    assert not is_settled(estimate([0.0], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([-math.inf], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([math.nan], level=ALWAYS), within(5), level=ALWAYS)
    # a gradient of zero is a logarithm that is not finite, and no other seed averages it away
    assert is_settled(estimate([0.0], scale="log", level=ALWAYS), at_least(1e-6), level=ALWAYS)


def test_the_same_value_twice_settles() -> None:
    assert is_settled(estimate([3.0, 3.0], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([5.0, 5.0], level=ALWAYS), within(5), level=ALWAYS)
    assert is_settled(estimate([7.0, 7.0], level=ALWAYS), within(5), level=ALWAYS)


def profile(*elements: Sequence[float]) -> Profile:
    return Profile({f"w{i}": estimate(values, level=ALWAYS, name=f"w{i}") for i, values in enumerate(elements)})


TIGHT_IN, LOOSE_IN, TIGHT_OUT = (0.0, 0.001, 0.002), (0.0, 1.0, -1.0), (9.0, 9.001, 9.002)


def test_a_profile_is_settled_when_every_element_is_inside_or_one_is_outside() -> None:
    assert is_settled(profile(TIGHT_IN, TIGHT_IN), within(5), level=ALWAYS)
    assert not is_settled(profile(TIGHT_IN, LOOSE_IN), within(5), level=ALWAYS)
    assert is_settled(profile(LOOSE_IN, TIGHT_OUT), within(5), level=ALWAYS)


def test_an_outsider_among_many_must_stand_out_further() -> None:
    """The one that is outside was chosen among all: each gets its share of the error."""
    barely = (6.0, 6.01, 6.02)
    alone = estimate(barely, level=ALWAYS)
    assert alone.low > 5.7
    bound = at_most(alone.low - 0.01)
    assert is_settled(profile(barely), bound, level=ALWAYS)
    assert not is_settled(profile(barely, *[LOOSE_IN] * 99), bound, level=ALWAYS)


@pytest.mark.parametrize("level", [Level(0.99), ALWAYS], ids=["fixed", "sequence"])
def test_the_seeds_that_would_settle_a_marginal_case(level: Level) -> None:
    values = [4.0, 5.0, 4.4, 4.8]
    e = estimate(values, level=level)
    needed = seeds_to_settle(e, 5.0, level=level)
    spread = float(np.std(values, ddof=1))
    half = [stats.t.ppf((1 + level.up_to(n).at(n)) / 2, n - 1) * spread / math.sqrt(n) for n in (needed - 1, needed)]
    assert half[0] >= 5.0 - e.mean > half[1]


def test_a_mean_on_the_end_is_never_settled() -> None:
    assert seeds_to_settle(estimate([4.0, 6.0]), 5.0, level=Level()) == math.inf


def test_seeds_that_would_settle_a_scale_are_counted_in_logarithms() -> None:
    logs = [math.log(v) for v in (1e-6, 3e-6, 2e-6)]
    linear = seeds_to_settle(estimate(logs), math.log(1e-6), level=Level())
    scaled = seeds_to_settle(estimate([1e-6, 3e-6, 2e-6], scale="log"), 1e-6, level=Level())
    assert scaled == linear
