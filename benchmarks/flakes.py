"""Rates of wrong verdicts on healthy models, for bounds and for baselines, next to the nominal rates.

    python benchmarks/flakes.py            # about eight minutes on two cores
    python benchmarks/flakes.py --quick    # about a minute
    python benchmarks/flakes.py --tiny     # checks in a few seconds that the benchmark runs
    python benchmarks/flakes.py --models "tanh tower" --checks 100000

Each model is measured on a pool of fresh seeds. Thousands of seed lists are then drawn from the pool, and go through the
functions that decide in a test: ``judge``, ``is_settled`` and ``compare``, with their defaults.

Bounds end exactly at the mean over the pool. This is the worst case: every verdict that is not marked as marginal is due to
chance. The nominal rate is 1 % over both sides. Baselines hold all that they record by default: measures, initial values, classes
of modules, and operations. They compare two lists that share no seed, and then the same seeds, measured again in a new process
with other kernels and another number of threads. Rates are printed with their upper 95 % limit (Clopper & Pearson, Biometrika 26,
404 (1934)). The limit accounts for the choice of lists; the pool is a sample as well.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from alarms import Alarms
from torch import Tensor, nn

from pytest_trainability import Bound, at_least, at_most, within
from pytest_trainability.checks.baseline_entries import Entry
from pytest_trainability.checks.baselines import compare
from pytest_trainability.checks.initial_values import initial_rows
from pytest_trainability.checks.module_changes import folded_modules
from pytest_trainability.checks.operation_changes import operation_rows
from pytest_trainability.checks.statistics import CONFIDENCE, Level, estimate
from pytest_trainability.checks.verdicts import is_settled, judge
from pytest_trainability.init.description import ModelDescription
from pytest_trainability.measurement import Context, measure_in
from pytest_trainability.measurement.readings import assemble, recorded
from pytest_trainability.measures import MEASURES, recorded_along

RECORDED = tuple(m.name for m in recorded_along("depth"))

TARGET = 1e-4
WIDTH, BATCH, CLASSES, VOCAB = 24, 4, 5, 50

# Healthy models ---------------------------------------------------------------------------------------------------


def tower(activation: Callable[[], nn.Module], variance: float, bias: float, *, depth: int = 20) -> nn.Module:
    """Build a plain tower of Gaussian weights, variance per input."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=math.sqrt(variance / WIDTH))
        nn.init.normal_(layer.bias, std=math.sqrt(bias))
    return nn.Sequential(*(part for layer in layers for part in (layer, activation())), nn.Linear(WIDTH, CLASSES))


class TransformerBlock(nn.Module):
    """A pre-LN block. The gradient of its key bias is zero up to round-off."""

    def __init__(self, width: int = WIDTH, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Transformer(nn.Module):
    """A small language model."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.Sequential(*(TransformerBlock() for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(ids)))).flatten(0, 1)


class ConvBlock(nn.Module):
    """A residual block of two normalized convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm_2(self.conv_2(torch.relu(self.norm_1(self.conv_1(x))))))


def resnet(depth: int = 8, channels: int = 6) -> nn.Module:
    """Build a BatchNorm ResNet without pooling."""
    stem = nn.Conv2d(3, channels, 3, padding=1)
    return nn.Sequential(
        stem, *(ConvBlock(channels) for _ in range(depth)), nn.Flatten(), nn.Linear(36 * channels, CLASSES)
    )


class DropBlock(nn.Module):
    """A residual block with dropout. Stochastic depth drops its branch for a fifth of the samples."""

    def __init__(self, drop: float = 0.2) -> None:
        super().__init__()
        self.drop = drop
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.bernoulli(torch.full((len(x), 1), 1 - self.drop)) / (1 - self.drop)
        return x + kept * self.down(F.dropout(F.gelu(self.up(self.norm(x))), 0.1, self.training))


class ZeroBlock(nn.Module):
    """A Fixup block: the last layer of the branch starts at zero, and the gradients of its other layers are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Recurrence(nn.Module):
    """A loop over an LSTM cell with forget bias 1."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.cell.bias_ih[WIDTH : 2 * WIDTH] += 1

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), WIDTH)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


def vectors(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(BATCH, *shape, generator=generator)


def classes(count: int = BATCH, of: int = CLASSES) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(of, (count,), generator=generator)


CLASS_OF_EACH = classes()
DROPS = "dropped depth"


@dataclass(frozen=True)
class Model:
    """A factory, and functions that draw inputs and targets: weights, inputs and targets are new for each seed."""

    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    target: Callable[[torch.Generator], Tensor] = CLASS_OF_EACH


MODELS = {
    "tanh tower": Model(lambda: tower(nn.Tanh, 1.760955, 0.05), vectors(WIDTH)),
    "ReLU tower": Model(lambda: tower(nn.ReLU, 2.0, 0.0), vectors(WIDTH)),
    "transformer": Model(
        Transformer, lambda g: torch.randint(VOCAB, (BATCH, 6), generator=g), classes(6 * BATCH, VOCAB)
    ),
    "ResNet": Model(resnet, vectors(3, 6, 6)),
    DROPS: Model(lambda: nn.Sequential(*(DropBlock() for _ in range(8)), nn.Linear(WIDTH, CLASSES)), vectors(WIDTH)),
    "zero branches": Model(
        lambda: nn.Sequential(*(ZeroBlock() for _ in range(8)), nn.Linear(WIDTH, CLASSES)), vectors(WIDTH)
    ),
    "LSTM, 16 steps": Model(Recurrence, vectors(16, WIDTH)),
}

# Pools of seeds ---------------------------------------------------------------------------------------------------

Reading = Mapping[str, Any]


@dataclass(frozen=True)
class Pool:
    """What baselines record, by seed: readings of the measures, digests of the draws, initial values, classes, operations."""

    environment: Mapping[str, str]
    readings: Sequence[Reading]
    draws: Sequence[str]
    descriptions: Sequence[ModelDescription]
    operations: Sequence[Mapping[str, tuple[str, ...]]]

    def of_first(self, count: int) -> Pool:
        """Return the pool of the first seeds only."""
        parts = (self.readings, self.draws, self.descriptions, self.operations)
        return Pool(self.environment, *(part[:count] for part in parts))

    def generator(self, *numbers: int) -> random.Random:
        """Return a generator that is specific to this model."""
        return random.Random(f"{self.draws[0]} {numbers}")


def with_other_masks(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a factory whose models draw other dropout masks, as another version of torch or another device does."""

    def draw(module: nn.Module, args: tuple[Any, ...]) -> None:
        torch.rand(7)

    def built() -> nn.Module:
        model = build()
        model.register_forward_pre_hook(draw)
        return model

    return built


def measure_seeds(name: str, seeds: Sequence[int], threads: int = 1, other_masks: bool = False) -> Pool:
    """Measure a model on some seeds, as a test does."""
    torch.set_num_threads(threads)
    model = MODELS[name]
    if other_masks:
        model = replace(model, build=with_other_masks(model.build))
    found = measure_in(
        Context(expects_baseline=True),
        model.build,
        model.inputs,
        target=model.target,
        loss=F.cross_entropy,
        seeds=seeds,
        steps="auto",
        exponents=1,
        device="cpu",
        dtype=None,
        train=True,
        name=name,
        measures=RECORDED,
    )
    entry = found._entry([MEASURES[measure] for measure in RECORDED])
    readings = [{m: found._seed_runs.readings[m][i] for m in RECORDED} for i in range(len(seeds))]
    return Pool(
        entry.environment, readings, entry.draws, found._seed_runs.descriptions(), found._seed_runs.operations()
    )


def entry_of(pool: Pool, picked: Sequence[int]) -> Entry:
    """Return the baseline entry of these seeds."""
    measures = {m: recorded(MEASURES[m], [pool.readings[i][m] for i in picked]) for m in RECORDED}
    descriptions = [pool.descriptions[i] for i in picked]
    return Entry(
        pool.environment,
        {},
        tuple(picked),
        tuple(pool.draws[i] for i in picked),
        measures,
        initial=initial_rows([{n: (d.shapes[n], v) for n, v in d.values.items()} for d in descriptions]),
        modules=folded_modules(descriptions[0].modules),
        operations=operation_rows([pool.operations[i] for i in picked]),
    )


@contextmanager
def other_kernels() -> Iterator[str]:
    """Let processes that start in this context use the kernels of an older machine; yield the settings."""
    before = dict(os.environ)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads block other processes on a busy machine
    kernels = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    os.environ.update(kernels)
    try:
        yield ", ".join(f"{name}={value}" for name, value in kernels.items())
    finally:
        os.environ.clear()
        os.environ.update(before)


# Bounds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoundRates:
    """Results for a bound that ends at the mean: shares of the runs, and numbers of seeds."""

    covered: float
    """Share of intervals that contain the mean."""
    above: float
    """Share of verdicts that the value lies above the mean and that are not marginal."""
    below: float
    seeds: float
    """Mean number of seeds drawn."""
    clear: float
    """Mean number of seeds drawn for a bound that is ten standard deviations away on both sides."""


def draw_until_settled(drawn: Sequence[Reading], bound: Bound, level: Level) -> list[float]:
    """Return the log gains of the seeds that ``Measurement.run`` draws until the bound is settled."""
    values = [reading["log_gain"] for reading in drawn]
    for count in range(1, len(values)):
        if level.ceiling and is_settled(estimate(values[:count], level=level), bound, level=level):
            return values[:count]
    return values


def bound_rates(pool: Pool, level: Level, count: int, runs: int) -> BoundRates:
    """Judge a log gain by a bound that ends at its mean, and by one that is far away."""
    generator = pool.generator(count)
    gains = [reading["log_gain"] for reading in pool.readings]
    mean, spread = statistics.fmean(gains), statistics.stdev(gains)
    end, wide = at_least(mean), within(mean - 10 * spread, mean + 10 * spread)
    covered = above = below = seeds = clear = 0
    for _ in range(runs):
        # The mean of the pool serves as the true mean: samples are drawn from a finite population.
        drawn = generator.sample(pool.readings, count)
        values = draw_until_settled(drawn, end, level)
        value = estimate(values, level=level)
        verdict = judge("log_gain", value, end, level=level)
        covered += value.low <= mean <= value.high
        above += verdict.holds and not verdict.marginal
        below += not verdict.holds and not verdict.marginal
        seeds += len(values)
        clear += len(draw_until_settled(drawn, wide, level))
    return BoundRates(covered / runs, above / runs, below / runs, seeds / runs, clear / runs)


def profile_rate(pool: Pool, measure: str, level: Level, count: int, runs: int) -> float:
    """Return how often a profile fails, and is not marginal, if the mean of its worst element lies at the end of the bound."""
    generator = pool.generator(count)
    m = MEASURES[measure]
    means = [e.mean for e in assemble(m, [reading[measure] for reading in pool.readings], level).values()]
    bound = at_least(min(means)) if m.scale == "log" else at_most(max(means))
    wrong = 0
    for _ in range(runs):
        drawn = [reading[measure] for reading in generator.sample(pool.readings, count)]
        for stop in range(1 if level.ceiling else count, count + 1):
            value = assemble(m, drawn[:stop], level)
            if stop < count and is_settled(value, bound, level=level):
                break
        verdict = judge(measure, value, bound, scale=m.scale, level=level)
        wrong += not verdict.holds and not verdict.marginal
    return wrong / runs


# Baselines --------------------------------------------------------------------------------------------------------

TOLERANCES = {m.name: m.tolerance for m in MEASURES.values()}
NO_TOLERANCE = dict.fromkeys(TOLERANCES, 0.0)
OF_MODEL = TOLERANCES["parameter_rms"]
"""Tolerance of initial values."""
STRICTER = "no tolerance"


def alarms(old: Pool, new: Pool | None, count: int, checks: int, part: int) -> Alarms:
    """Compare lists of seeds with other lists of the same pool, or with the same lists of another pool."""
    generator = old.generator(count, part)
    found = Alarms((STRICTER,), checks)
    for _ in range(checks):
        picked = generator.sample(range(len(old.readings)), count if new else 2 * count)
        before, after = entry_of(old, picked[:count]), entry_of(new or old, picked[-count:])
        # A tolerance can only remove changes.
        if compare(before, after, NO_TOLERANCE):
            found.flagged_by[STRICTER] += 1
            found.note(change.measure for change in compare(before, after, TOLERANCES))
    return found


def largest_difference(old: Pool, new: Pool) -> str:
    """Return the largest difference of one seed between two pools, in tolerances, as text."""
    largest, where = 0.0, ""
    for index in range(len(old.readings)):
        for change in compare(entry_of(old, [index]), entry_of(new, [index]), NO_TOLERANCE):
            size = abs(change.shift) / (TOLERANCES.get(change.measure, OF_MODEL) or math.nan)
            if not size <= largest:
                largest, where = size, f"{change.measure} {change.element}"
    return f"{largest:.1e} of the tolerance  {where}"


# The tables -------------------------------------------------------------------------------------------------------


class Workers:
    """Processes that measure and compare in parts. They inherit the environment at the time of their creation."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))

    def pool(self, name: str, seeds: Sequence[int], threads: int = 1, other_masks: bool = False) -> Pool:
        parts = [seeds[first : first + 50] for first in range(0, len(seeds), 50)]
        pools = list(self._executor.map(measure_seeds, repeat(name), parts, repeat(threads), repeat(other_masks)))
        names = ("readings", "draws", "descriptions", "operations")
        return Pool(pools[0].environment, *([x for p in pools for x in getattr(p, name)] for name in names))

    def call(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        return list(self._executor.map(function, *zip(*tasks)))


def print_bounds(workers: Workers, pools: Mapping[str, Pool], runs: int) -> None:
    """Print the tables of bounds, for numbers and for profiles."""
    fixed = Level(CONFIDENCE)
    print(f"\nBounds that end at the mean: verdicts by chance in {runs} runs, nominal {1 - CONFIDENCE:.2%} in all")
    print(f"{'':<24}{'mean in':>17}{'judged':>16}{'':>9}{'seeds drawn, bound':>20}")
    print(f"{'log_gain':<16}{'seeds':<8}{'interval':>17}{'below':>8}{'above':>8}{'sum':>9}{'close':>12}{'clear':>8}")
    kinds = [(fixed, 4), (fixed, 8), (Level(CONFIDENCE, 8), 8), (Level(CONFIDENCE, 32), 32)]
    tasks = [(pool, level, count, runs) for pool in pools.values() for level, count in kinds]
    rates = workers.call(bound_rates, tasks)
    rows = [(name, level, count) for name in pools for level, count in kinds]
    for (name, level, count), r in zip(rows, rates):
        seeds = f"{'≤ ' if level.ceiling else ''}{count}"
        print(
            f"{name:<16}{seeds:<8}{r.covered:>17.2%}{r.below:>8.2%}{r.above:>8.2%}{r.below + r.above:>9.2%}"
            f"{r.seeds:>12.1f}{r.clear:>8.1f}"
        )
    print(
        "\nProfiles whose worst element lies at the end of the bound: failures that are not marginal, nominal "
        f"{(1 - CONFIDENCE) / 2:.2%}"
    )
    kinds = [(fixed, 4), (fixed, 8), (Level(CONFIDENCE, 8), 8)]
    measures = ("growth_rate", "gradient_norm")
    print(f"{'seeds':<16}" + "".join(f"{m:>18}{'8':>8}{'≤ 8':>8}" for m in (f"{m} 4" for m in measures)))
    tasks = [
        (pool, measure, level, count, runs // 4)
        for pool in pools.values()
        for measure in measures
        for level, count in kinds
    ]
    found = iter(workers.call(profile_rate, tasks))
    for name in pools:
        print(f"{name:<16}" + "".join(f"{next(found):>18.2%}{next(found):>8.2%}{next(found):>8.2%}" for _ in measures))


def print_alarms(workers: Workers, pairs: Mapping[str, tuple[Pool, Pool | None]], checks: int) -> None:
    """Print a row per model and number of seeds, and their sum."""
    total = Alarms((STRICTER,))
    print(f"{'model':<16}{'seeds':<6}{total.head}")
    parts = 4
    rows = [(name, count) for name in pairs for count in (4, 8)]
    tasks = [(*pairs[name], count, checks // parts, part) for name, count in rows for part in range(parts)]
    found = workers.call(alarms, tasks)
    for row, (name, count) in enumerate(rows):
        one = Alarms((STRICTER,))
        for part in found[row * parts : (row + 1) * parts]:
            one += part
        total += one
        print(f"{name:<16}{count:<6}{one}")
    print(f"{'all':<22}{total}   target {TARGET:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and checks")
    parser.add_argument("--tiny", action="store_true", help="one model, smallest sizes: checks that the benchmark runs")
    parser.add_argument("--seeds", type=int, help="seeds of a pool")
    parser.add_argument("--checks", type=int, help="comparisons with a baseline, per model and number of seeds")
    parser.add_argument("--models", nargs="*", choices=MODELS, metavar="NAME", help="some of " + ", ".join(MODELS))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    names = options.models or ([DROPS] if options.tiny else list(MODELS))
    seeds = options.seeds or (64 if options.tiny else 150 if options.quick else 1600)
    checks = options.checks or (32 if options.tiny else 600 if options.quick else 8000)
    options.processes = 1 if options.tiny else options.processes
    began = time.perf_counter()
    print(f"python benchmarks/flakes.py {' '.join(sys.argv[1:])}".strip())
    print(
        f"torch {torch.__version__}, cpu {torch.backends.cpu.get_cpu_capability()}, {options.processes} processes of 1 "
        f"thread; {seeds} seeds per model",
        flush=True,
    )
    workers = Workers(options.processes)
    pools = {name: workers.pool(name, range(seeds)) for name in names}
    print(f"pools measured in {time.perf_counter() - began:.0f} s", flush=True)
    print_bounds(workers, pools, checks)
    print("\nBaselines of unchanged code, other seeds: comparisons that report a change", flush=True)
    print_alarms(workers, {name: (pool, None) for name, pool in pools.items()}, checks)
    again = seeds // 8
    with other_kernels() as kernels:
        elsewhere = Workers(1)
        others = {name: elsewhere.pool(name, range(again), 2) for name in pools}
    print(f"\nBaselines of unchanged code, the same {again} seeds in fresh processes, 2 threads, {kernels}")
    firsts = {name: pool.of_first(again) for name, pool in pools.items()}
    print_alarms(workers, {name: (firsts[name], others[name]) for name in pools}, checks // 8)
    print("\nand the largest difference of any seed")
    for name in pools:
        print(f"{name:<16}{largest_difference(firsts[name], others[name])}")
    if DROPS in pools:
        print("\nBaselines of unchanged code, the same weights and inputs with other masks of dropout")
        masked = workers.pool(DROPS, range(2 * again), other_masks=True)
        # Another version of torch draws other masks.
        masked = replace(masked, environment={**masked.environment, "torch": "another"})
        print_alarms(workers, {DROPS: (pools[DROPS].of_first(2 * again), masked)}, checks)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
