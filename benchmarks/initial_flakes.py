"""How often the initial values of unchanged code are reported as changed, and how often a changed standard deviation is found.

    python benchmarks/initial_flakes.py                                # about 20 minutes, one process
    python benchmarks/initial_flakes.py --tiny                         # checks in a few seconds that the benchmark runs
    other/python benchmarks/initial_flakes.py --write there.pickle     # the same models with another version of torch
    python benchmarks/initial_flakes.py --there there.pickle

Models are built and not run, once per seed of a pool. Lists of seeds are drawn from the pool, become the rows that a baseline
stores, and are compared with the error probability that a baseline leaves for initial values:

- other seeds: two lists that share no seed;
- the same seeds with two threads;
- the same seeds with another version of torch, and other seeds with it.

Rates are printed with their upper 95 % limit (Clopper & Pearson, Biometrika 26, 404 (1934)). The limit accounts for the choice of
lists; the pool is a sample as well.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from alarms import Alarms
from flakes import CLASSES, MODELS, WIDTH
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pytest_trainability.checks.baselines import FALSE_ALARMS
from pytest_trainability.checks.initial_values import initial_changes, initial_rows
from pytest_trainability.init.description import describe
from pytest_trainability.measures import MEASURES, recorded_along
from pytest_trainability.records.tensors import TensorStatistics

TARGET = 1e-4
TOLERANCE = MEASURES["parameter_rms"].tolerance
ERROR = FALSE_ALARMS / (len(list(recorded_along("depth"))) + 1)
"""What a baseline of the default measures leaves for initial values."""
LARGER = {f"at {error:.0e}": error for error in (1e-2, 1e-3)}
"""Larger error probabilities, at which the same comparisons show whether the nominal rate is kept."""


class Special(nn.Module):
    """Parameters that are orthogonal, sparse, drawn once, of few numbers, or of entries that depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.orthogonal = nn.ParameterList([nn.init.orthogonal_(torch.empty(24, 24)) for _ in range(4)])
        self.gates = nn.ParameterList([torch.randn(1) for _ in range(6)])
        self.few = nn.ParameterList([torch.randn(5) for _ in range(6)])
        self.sparse = nn.Parameter(nn.init.sparse_(torch.empty(40, 40), 0.8))
        self.truncated = nn.Parameter(nn.init.trunc_normal_(torch.empty(64, 64)))
        self.heavy = nn.Parameter(torch.distributions.StudentT(5.0).sample((3000,)))
        self.shared_factor = nn.Parameter(torch.randn(30, 30) * (0.2 * torch.randn(())).exp())
        self.normalized = parametrizations.spectral_norm(nn.Linear(16, 16))
        self.register_buffer("table", torch.arange(24.0))
        self.register_buffer("features", torch.randn(64, 8))


def tower_of_blocks(init: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(16)]
        for layer in layers:
            init(layer.weight)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))

    return build


BUILDS: dict[str, Callable[[], nn.Module]] = {
    **{name: model.build for name, model in MODELS.items()},
    "special": Special,
    "xavier uniform": tower_of_blocks(nn.init.xavier_uniform_),
    "orthogonal": tower_of_blocks(nn.init.orthogonal_),
}

Described = Mapping[str, tuple[tuple[int, ...], TensorStatistics]]


@dataclass(frozen=True)
class Pool:
    """Statistics of the initial values by seed, and a digest of the generator after each build."""

    seeds: Sequence[Described]
    drawn: Sequence[str]


def pool_of(name: str, seeds: int, threads: int = 1) -> Pool:
    """Build a model once per seed."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found, drawn = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = BUILDS[name]()
        drawn.append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())
        description = describe(model)
        found.append({n: (description.shapes[n], v) for n, v in description.values.items()})
    torch.set_num_threads(before)
    return Pool(found, drawn)


def alarms(old: Pool, new: Pool, count: int, checks: int, *, same_seeds: bool) -> Alarms:
    """Compare lists of seeds of one pool with other or the same seeds of another pool, or of the same one."""
    generator = random.Random(f"{old.drawn[0]} {count} {same_seeds}")
    found = Alarms(tuple(LARGER), checks)
    for _ in range(checks):
        picked = generator.sample(range(len(new.seeds)), count if same_seeds else 2 * count)
        first, second = picked[:count], picked[-count:]
        repeatable = same_seeds and all(old.drawn[i] == new.drawn[i] for i in picked)
        rows = initial_rows([old.seeds[i] for i in first]), initial_rows([new.seeds[i] for i in second])
        how = {"repeatable": repeatable, "tolerance": TOLERANCE}
        changes = list(initial_changes(*rows, error=ERROR, **how))
        found.note(change.element or "names" for change in changes)
        found.flagged_by.update(name for name, e in LARGER.items() if any(initial_changes(*rows, error=e, **how)))
    return found


def print_alarms(
    title: str, pools: Mapping[str, Pool], others: Mapping[str, Pool], counts: Sequence[int], checks: int, **how: bool
) -> Alarms:
    """Print a row per model and number of seeds, and their sum."""
    total = Alarms(tuple(LARGER))
    print(f"\n{title}\n{'model':<16}{'seeds':<6}{total.head}", flush=True)
    for name, pool in pools.items():
        for count in counts:
            if name == "special" and count == 1 and not how["same_seeds"]:
                # Fewer than four seeds cannot show that entries depend on each other, as those of a shared factor.
                continue
            one = alarms(pool, others[name], count, checks, same_seeds=how["same_seeds"])
            total += one
            print(f"{name:<16}{count:<6}{one}", flush=True)
    print(f"{'all':<22}{total}   target {TARGET:.0e}", flush=True)
    return total


def power(seeds: int, factor: float, trials: int) -> float:
    """Return the share of comparisons that name the matrix of 100,000 entries whose standard deviation is off by a factor."""

    def build(std: float) -> Described:
        tensors = {"w": std * torch.randn(250, 400), **{f"other.{i}": torch.randn(10, 10 + i) for i in range(50)}}
        model = nn.ParameterDict({name.replace(".", "_"): tensor for name, tensor in tensors.items()})
        description = describe(model)
        return {n: (description.shapes[n], v) for n, v in description.values.items()}

    found = 0
    for trial in range(trials):
        torch.manual_seed(trial)
        rows = [initial_rows([build(std) for _ in range(seeds)]) for std in (1.0, factor)]
        changes = initial_changes(*rows, repeatable=False, error=ERROR, tolerance=TOLERANCE)
        found += any(change.element == "w" for change in changes)
    return found / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="one model, smallest sizes: checks that the benchmark runs")
    parser.add_argument("--seeds", type=int, help="seeds of a pool")
    parser.add_argument("--checks", type=int, help="comparisons per model and number of seeds")
    parser.add_argument("--write", type=Path, metavar="FILE", help="build the pools only, and write them to a file")
    parser.add_argument("--there", type=Path, metavar="FILE", help="pools that another version of torch has written")
    options = parser.parse_args()
    names = ["tanh tower"] if options.tiny else list(BUILDS)
    seeds = options.seeds or (40 if options.tiny else 300)
    checks = options.checks or (10 if options.tiny else 1000)
    began = time.perf_counter()
    torch.set_num_threads(1)
    print(f"python benchmarks/initial_flakes.py {' '.join(sys.argv[1:])}".strip())
    print(f"torch {torch.__version__}; {seeds} seeds per model; nominal error {ERROR:.1e}", flush=True)
    pools = {name: pool_of(name, seeds) for name in names}
    print(f"pools built in {time.perf_counter() - began:.0f} s", flush=True)
    if options.write:
        options.write.write_bytes(pickle.dumps((torch.__version__, pools)))
        return
    print_alarms("Other seeds", pools, pools, (1, 8), checks, same_seeds=False)
    again = max(seeds // 4, 8)
    threads = {name: pool_of(name, again, threads=2) for name in names}
    print_alarms("The same seeds with two threads", pools, threads, (1, 8), checks // 10, same_seeds=True)
    if options.there:
        version, there = pickle.loads(options.there.read_bytes())
        same = [
            sum(a == b for a, b in zip(pools[name].drawn, there[name].drawn)) / len(there[name].drawn) for name in names
        ]
        print(
            f"\ntorch {version}: the share of seeds that leave the same generator is {min(same):.2f} to {max(same):.2f}"
        )
        print_alarms("The same seeds with it", pools, there, (1, 8), checks // 10, same_seeds=True)
        print_alarms("Other seeds with it", pools, there, (8,), checks // 3, same_seeds=False)
    trials = 3 if options.tiny else 200
    shares = {count: power(count, 1.02, trials) for count in (1, 8)}
    print(f"\nA standard deviation off by 2 % in one matrix of 100,000 entries among 51 is found in {trials} trials")
    print(", ".join(f"with {count} seeds: {share:.0%}" for count, share in shares.items()))
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
