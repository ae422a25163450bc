"""The same work done by this project, by hand and by other packages: ratios of the processor's time within one run.

    OMP_NUM_THREADS=1 python benchmarks/race.py             # what is installed; packages that are not are named and left out
    OMP_NUM_THREADS=1 python benchmarks/race.py --record    # also writes docs/race.md and benchmarks/race.json
    OMP_NUM_THREADS=1 python benchmarks/race.py --check     # a few rows in seconds: fails when a ratio has grown by half
    OMP_NUM_THREADS=1 python benchmarks/race.py --record-checked    # records the rows that --check compares
    OMP_NUM_THREADS=1 python benchmarks/race.py --tiny      # checks in a few seconds that the benchmark runs

The other packages need an environment of their own, with torch, numpy, scipy and pytest:

    python -m venv .venv-competitors
    .venv-competitors/bin/pip install torch numpy scipy pytest curvlinops-for-pytorch pyhessian clvlib
    .venv-competitors/bin/pip install pytest-torch torchtest2 torchmortem syndset

A ratio is the time of this project divided by that of the other: below 1, this project is ahead. Both build their models.
Each round runs all in order and in reverse order, and the ratio is the median over rounds. The rounds are run twice, and the
spread is the larger of the two ratios divided by the smaller one. A growth exponent is the slope of a straight line through
the logarithms of the times over those of the sizes. Peak memory is that of a separate process, relative to what it holds
after the work on the smallest size.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from along_time import _resident, by_clvlib, loop, step_map
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import chain_of, graph_of
from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.steps import choose_steps
from pytest_trainability.engine.jacobian.qr_sweep import qr_sweep
from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories
from pytest_trainability.engine.jacobian.vjp import random_cotangents

RECORD, PAGE = Path(__file__).with_name("race.json"), ROOT / "docs" / "race.md"
OURS, ALONE = "pytest-trainability", "its engine alone"
ROUNDS, PASSES = 1, 2
LEAST = 0.03
"""Seconds of the processor that one reading takes at least."""
GROWN = 1.5
"""A ratio that has grown by this factor fails the check."""
TRIES = 3
"""The check measures a row again that seems to have grown: other work on the machine may have disturbed it."""
RECORDED = 9
"""Measurements of each checked row whose median is recorded, with the smallest and the largest one."""
SHIFTED = 1.35
"""Factor by which the ratio of two hand-written loops differs on a processor whose ratios are not compared with recorded ones."""
Size: TypeAlias = "Mapping[str, int]"
Entrants: TypeAlias = "dict[str, Callable[[], object]]"


@dataclass(frozen=True)
class Contest:
    """The same work of several sizes.

    Attributes:
        work: What everyone computes.
        entrants: Function of a size that returns the work by name, this project first.
        base: The size from which each axis changes one number.
        axes: Numbers by axis.
        packages: Modules by the name of the entrant that needs it.
        checked: Size of the row that ``--check`` measures; None for none, as where a package is needed.
        why: Why this project is not ahead where it is not.
    """

    work: str
    entrants: Callable[[Size], Entrants]
    base: dict[str, int]
    axes: dict[str, tuple[int, ...]]
    packages: dict[str, str] = field(default_factory=dict)
    checked: dict[str, int] | None = None
    why: str = ""

    def sizes(self) -> Iterator[Size]:
        """Yield the base, and what the axes make of it, each size once."""
        found = [self.base, *({**self.base, axis: n} for axis, numbers in self.axes.items() for n in numbers)]
        yield from {json.dumps(size): size for size in found}.values()

    def present(self, size: Size) -> Entrants:
        """Return the entrants that are installed."""
        absent = {name for name, module in self.packages.items() if find_spec(module) is None}
        return {name: call for name, call in self.entrants(size).items() if name not in absent}


# Chains of blocks -------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A layer of a tanh perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


def perceptron(size: Size) -> nn.Sequential:
    return nn.Sequential(*[Layer(size["width"]) for _ in range(size["depth"])])


def transformer(size: Size) -> nn.Sequential:
    width = size["width"]
    block = partial(nn.TransformerEncoderLayer, width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(*[block() for _ in range(size["depth"])])


def batch(size: Size) -> Tensor:
    shape = (size["batch"], *((size["length"],) if "length" in size else ()), size["width"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def frame(x: Tensor, exponents: int) -> Tensor:
    """Return random orthonormal vectors ``(batch, state, k)``."""
    drawn = torch.randn(len(x), x[0].numel(), exponents, generator=torch.Generator().manual_seed(1))
    return torch.linalg.qr(drawn)[0]


def by_measure(build: Callable[[Size], nn.Sequential], size: Size) -> list[float]:
    wanted = ["lyapunov_spectrum"]
    found = measure(
        partial(build, size),
        batch(size),
        seeds=size["seeds"],
        exponents=size["exponents"],
        measures=wanted,
        steps="blocks",
    )
    return [exponent.mean for exponent in found.lyapunov_spectrum]


def by_engine(build: Callable[[Size], nn.Sequential], size: Size) -> list[float]:
    """Return the exponents that the engine finds, without the rest of a measurement."""
    total = torch.zeros(size["exponents"], dtype=torch.float64)
    for seed in range(size["seeds"]):
        torch.manual_seed(seed)
        captured = capture(build(size), (batch(size),), {})
        graph = graph_of(captured)
        cut = chain_of(captured, graph, choose_steps(captured, graph, "blocks"))
        trajectories = Trajectories(cut, Division(size["batch"]))
        total += qr_sweep(trajectories, random_cotangents(cut, size["exponents"], seed)).averages().mean(0)
    return (total / size["seeds"]).tolist()


def by_dense_jacobians(block: nn.Module, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the products of a block with a frame, by the Jacobian of each sample, and the next state."""

    def flat(z: Tensor) -> Tensor:
        return block(z.view(1, *x.shape[1:])).flatten()

    # PyTorch has no batched rule for its other kernels of attention, and would loop over the rows.
    with sdpa_kernel(SDPBackend.MATH):
        J = vmap(jacrev(flat))(x.flatten(1))
    return lambda Q: J.transpose(1, 2) @ Q, block(x)


def by_columns(block: nn.Module, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the products of a block with a frame, by one backward pass for each column, and the next state."""
    x = x.requires_grad_()
    with torch.enable_grad():
        y = block(x)

    def product(Q: Tensor) -> Tensor:
        columns = [torch.autograd.grad(y, x, q.view(y.shape), retain_graph=True)[0].flatten(1) for q in Q.unbind(-1)]
        return torch.stack(columns, -1)

    return product, y.detach()


def by_hand(
    products: Callable[[nn.Module, Tensor], tuple[Callable[[Tensor], Tensor], Tensor]],
    build: Callable[[Size], nn.Sequential],
    size: Size,
) -> list[float]:
    """Return the exponents of a textbook loop: a product with each block from the last to the first, then QR."""
    total = torch.zeros(size["exponents"])
    for seed in range(size["seeds"]):
        torch.manual_seed(seed)
        model, x, found = build(size).requires_grad_(False), batch(size), []
        with torch.no_grad():
            for block in model:
                product, x = products(block, x)
                found.append(product)
            Q = frame(x, size["exponents"])
            for product in reversed(found):
                Q, R = torch.linalg.qr(product(Q))
                total += R.diagonal(dim1=1, dim2=2).abs().log().mean(0)
    return (total / size["seeds"] / size["depth"]).tolist()


def chain(build: Callable[[Size], nn.Sequential], size: Size) -> Entrants:
    return {
        OURS: partial(by_measure, build, size),
        ALONE: partial(by_engine, build, size),
        "dense Jacobian per block, jacrev": partial(by_hand, by_dense_jacobians, build, size),
        "QR loop, one autograd.grad per column": partial(by_hand, by_columns, build, size),
    }


# Time -------------------------------------------------------------------------------------------------------------


def recurrence(size: Size) -> tuple[nn.LSTM, Tensor]:
    torch.manual_seed(0)
    return nn.LSTM(size["width"], size["width"]), torch.randn(size["time"], size["batch"], size["width"])


def over_trajectories(size: Size, exponents_of: Callable[..., Tensor]) -> list[float]:
    """Return the mean exponents over the trajectories of a batch, one after the other."""
    model, inputs = recurrence(size)
    found = [
        exponents_of(step_map(model, one), torch.zeros(2 * size["width"]), size["time"], size["exponents"])
        for one in inputs.unbind(1)
    ]
    return torch.stack(found).mean((0, 1)).tolist()


def along_time(size: Size) -> Entrants:
    def ours() -> list[float]:
        model, inputs = recurrence(size)
        wanted = ["lyapunov_spectrum"]
        found = measure(model, inputs, steps="time", exponents=size["exponents"], measures=wanted)
        return [exponent.mean for exponent in found.lyapunov_spectrum]

    return {
        OURS: ours,
        "dense Jacobian per step, jacrev": partial(
            over_trajectories, size, partial(loop, product=lambda step, z, Q: jacrev(step)(z) @ Q)
        ),
        "clvlib, Jacobian by jacrev": partial(over_trajectories, size, by_clvlib),
    }


# Curvature --------------------------------------------------------------------------------------------------------


def classifier(size: Size) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*perceptron(size), nn.Linear(size["width"], 10))


def labels(size: Size) -> Tensor:
    return torch.randint(10, (size["batch"],), generator=torch.Generator().manual_seed(2))


def curvature(size: Size) -> Entrants:
    def ours() -> float:
        model = classifier(size)
        found = measure(model, batch(size), target=labels(size), loss=cross_entropy, measures=["sharpness"])
        return found.sharpness.mean

    return {OURS: ours, "PyHessian": partial(by_pyhessian, size), "curvlinops and scipy": partial(by_curvlinops, size)}


def by_pyhessian(size: Size) -> float:
    from pyhessian import hessian

    found = hessian(classifier(size), cross_entropy, data=(batch(size), labels(size)), cuda=False)
    return float(found.eigenvalues(maxIter=100, tol=1e-3, top_n=1)[0][0])


def by_curvlinops(size: Size) -> float:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    model = classifier(size)
    parameters = [*model.parameters()]
    data = [(batch(size), labels(size))]
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False)
    return float(eigsh(H.to_scipy(), k=1, which="LA", tol=1e-3, return_eigenvectors=False)[0])


# Whole checks -----------------------------------------------------------------------------------------------------

WHOLE = {"pytest-torch": "pytest_torch", "torchtest2": "torchtest2", "torchmortem": "torchmortem", "syndset": "syndset"}
CASES = (
    "shallow network of default weights",
    "LeNet of default weights",
    "LayerScale 1e-6",
    "torch.nn.LSTM of default weights",
)
"""Healthy models of ``tests/faults``: a perceptron, a convolutional network, a transformer and a recurrent network."""


def whole_check(name: str, size: Size) -> Entrants:
    """Return the preset of this project on one seed, and other packages as their READMEs call them."""
    from competitors import PACKAGES, Setting
    from faults import HEALTHY, flagged, measured

    case = next(case for case in HEALTHY if case.id == name)

    def other(package: str) -> None:
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            list(PACKAGES[package](Setting(case, 0)))

    ours: Entrants = {OURS: lambda: list(flagged(case, measured(case, range(1))))}
    return ours | {package: partial(other, package) for package in WHOLE}


# All contests -----------------------------------------------------------------------------------------------------

FIXED = (
    "a measurement also computes the default measures and the classes of gradients, restores the model and the generators, and "
    "finds the steps and the trajectories: some 20 ms for any model, and some more for each step; its engine also follows in "
    "float64 which directions have vanished into round-off, which the loops do not"
)
CONTESTS = {
    "perceptron": Contest(
        "the leading Lyapunov exponents of the backward pass of a tanh perceptron, by sample",
        partial(chain, perceptron),
        {"depth": 16, "width": 128, "batch": 16, "exponents": 8, "seeds": 1},
        {"depth": (8, 32), "width": (64, 256), "batch": (4, 64), "exponents": (1, 32), "seeds": (3,)},
        checked={"depth": 16, "width": 64, "batch": 16, "exponents": 8, "seeds": 1},
        why=f"{FIXED}; with few products to compute, these are most of the time",
    ),
    "transformer": Contest(
        "the same of transformer blocks",
        partial(chain, transformer),
        {"depth": 6, "width": 32, "length": 8, "batch": 4, "exponents": 4, "seeds": 1},
        {"depth": (3, 12), "width": (16, 64), "length": (4, 16)},
        checked={"depth": 3, "width": 32, "length": 8, "batch": 4, "exponents": 4, "seeds": 1},
        why=f"{FIXED}; a block has a dozen operators here, whose Jacobian of few numbers is cheap",
    ),
    "along time": Contest(
        "the leading Lyapunov exponents of an nn.LSTM along time, for each sequence of a batch",
        along_time,
        {"time": 100, "width": 32, "batch": 1, "exponents": 4},
        {"time": (50, 200), "width": (16, 64), "batch": (2, 4), "exponents": (1, 16)},
        {"clvlib, Jacobian by jacrev": "clvlib"},
        checked={"time": 25, "width": 16, "batch": 2, "exponents": 4},
        why="the others are given the map of one step, and compute nothing else",
    ),
    "curvature": Contest(
        "the largest eigenvalue of the loss's Hessian, to a relative residual of a thousandth",
        curvature,
        {"depth": 4, "width": 64, "batch": 32},
        {"depth": (2, 8), "width": (128, 256), "batch": (8, 128)},
        {"PyHessian": "pyhessian", "curvlinops and scipy": "curvlinops"},
        why="the default measures are part of the time, and so is a check that the products are those of the Hessian",
    ),
    **{
        f"whole check: {name}": Contest(
            "everything that the package checks, one model",
            partial(whole_check, name),
            {},
            {},
            WHOLE,
            why="the preset measures more; what each package finds is in the comparison",
        )
        for name in CASES
    },
}


# Time and memory --------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Times and ratios of one size.

    Attributes:
        milliseconds: Median time by entrant.
        ratios: Time of this project divided by that of the other, and its spread, by the other's name.
        alone: The same of the engine alone.
        failed: Class of the exception by entrant that raised one.
    """

    milliseconds: dict[str, float]
    ratios: dict[str, tuple[float, float]]
    alone: dict[str, tuple[float, float]]
    failed: dict[str, str]


def race(entrants: Entrants, rounds: int, passes: int = PASSES, least: float = LEAST) -> Row:
    """Run all entrants alternately, each reading for at least some seconds of the processor."""
    failed = {name: error for name, call in entrants.items() if name != OURS and (error := failure(call))}
    kinds = {name: call for name, call in entrants.items() if name not in failed}
    # Everything that is loaded by now stays: the collections before each reading need not look at it again.
    gc.freeze()
    # Short work is repeated until its time can be read.
    counts = {name: max(1, math.ceil(least / max(took(call, 1), 1e-6))) for name, call in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds * passes):
        both = [(name, took(kinds[name], counts[name])) for order in (1, -1) for name in [*kinds][::order]]
        for name in kinds:
            times[name].append(statistics.fmean(seconds for other, seconds in both if other == name))
    others = [name for name in kinds if name not in {OURS, ALONE}]
    ratios = {name: ratio(times[OURS], times[name], passes) for name in others}
    alone = {name: ratio(times[ALONE], times[name], passes) for name in others if ALONE in times}
    return Row({name: 1000 * statistics.median(found) for name, found in times.items()}, ratios, alone, failed)


def ratio(ours: Sequence[float], other: Sequence[float], passes: int) -> tuple[float, float]:
    """Return the median ratio of two lists of times, and the ratio of the larger to the smaller one of the passes."""
    both = [a / b for a, b in zip(ours, other)]
    size = len(both) // passes
    of_passes = [statistics.median(both[first : first + size]) for first in range(0, len(both), size)]
    return statistics.median(both), max(of_passes) / min(of_passes)


def failure(call: Callable[[], object]) -> str:
    """Return the class of the exception that a package raises; empty for none. It may not be made for this model."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return ""


def took(call: Callable[[], object], count: int) -> float:
    """Return the seconds of the processor that a call takes, as the mean of a number of calls."""
    gc.collect()
    began = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - began) / count


def peak_memory(contest: str, entrant: str) -> float:
    """Return the peak memory of the work at the base size in MB, in a separate process."""
    command = [sys.executable, __file__, "--peak", contest, entrant]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else math.nan


def print_peak(contest: Contest, entrant: str) -> None:
    """Run one entrant at the base size, and print its peak memory in MB."""
    smallest = {axis: min(number, *contest.axes.get(axis, (number,))) for axis, number in contest.base.items()}
    contest.entrants(smallest)[entrant]()
    gc.collect()
    before = _resident()
    contest.entrants(contest.base)[entrant]()
    print(_resident("VmHWM") - before)


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the growth exponent."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, seconds)]).slope


# Tables -----------------------------------------------------------------------------------------------------------


def label(size: Size) -> str:
    return ", ".join(f"{axis} {number}" for axis, number in size.items())


def differing(contest: Contest, size: Size) -> str:
    """Return what differs from the base."""
    return label({axis: number for axis, number in size.items() if number != contest.base[axis]}) or "as above"


def tables(name: str, contest: Contest, rows: Mapping[str, Row], memory: Mapping[str, float]) -> Iterator[str]:
    """Yield the tables of one contest: ratios, growth exponents, and where this project is not ahead."""
    known = next(iter(rows.values()))
    names = [*known.ratios]
    columns = [OURS, *([ALONE] if known.alone else []), *names]
    yield f"### {name[0].upper()}{name[1:]}\n"
    yield f"Work: {contest.work}." + (f" Base: {label(contest.base)}." if contest.base else "") + "\n"
    yield f"| size | {OURS} | {' | '.join(names)} |"
    yield f"|---|{'---|' * (1 + len(names))}"
    for size in contest.sizes():
        row = rows[json.dumps(size)]
        cells = [cell(row, n) for n in names]
        yield f"| {differing(contest, size)} | {row.milliseconds[OURS]:.0f} ms | {' | '.join(cells)} |"
    if memory:
        alone = memory[OURS]
        cells = [f"{alone / memory[n]:.2f}" if memory.get(n) else "–" for n in names]
        yield f"| peak memory | {alone:.0f} MB | {' | '.join(cells)} |"
    yield ""
    if contest.axes:
        yield f"| growth exponent in | {' | '.join(columns)} |"
        yield f"|---|{'---|' * len(columns)}"
        for axis, numbers in contest.axes.items():
            sizes = sorted({contest.base[axis], *numbers})
            found = [rows[json.dumps({**contest.base, axis: number})].milliseconds for number in sizes]
            cells = [f"{slope(sizes, [one[n] for one in found]):.2f}" for n in columns]
            yield f"| {axis} ({', '.join(map(str, sizes))}) | {' | '.join(cells)} |"
        yield ""
    yield from not_ahead(contest, rows, names)


def cell(row: Row, other: str) -> str:
    """Return the ratio of a measurement, its spread, and the ratio of the engine alone."""
    if other not in row.ratios:
        return "–"
    found, spread = row.ratios[other]
    alone = f"; alone {row.alone[other][0]:.2f}" if other in row.alone else ""
    return f"{found:.2f} (× {spread:.2f}){alone}"


def not_ahead(contest: Contest, rows: Mapping[str, Row], names: Sequence[str]) -> Iterator[str]:
    """Yield where this project is not ahead, and why; and what could not be compared."""
    for other in names:
        behind = {
            "Not ahead": [size for size in contest.sizes() if rows[json.dumps(size)].ratios.get(other, (0.0,))[0] > 1],
            "With the engine alone not ahead": [
                size for size in contest.sizes() if rows[json.dumps(size)].alone.get(other, (0.0,))[0] > 1
            ],
        }
        for who, sizes in behind.items():
            if sizes:
                where = "; ".join(differing(contest, size) for size in sizes) if contest.base else "this model"
                yield f"- {who} of {other}: {where}."
    if any(found > 1 for row in rows.values() for found, _ in row.ratios.values()):
        yield f"- Why: {contest.why}."
    failed = {f"{other} raised {error}" for row in rows.values() for other, error in row.failed.items()}
    yield from (f"- Left out: {text}." for text in sorted(failed))
    yield ""


def conditions() -> str:
    """Return date, environment and versions."""
    versions = {"torch": "torch", "PyHessian": "pyhessian", "curvlinops": "curvlinops-for-pytorch", "clvlib": "clvlib"}
    versions |= {name: name for name in WHOLE}
    known = {name: installed_version(package) for name, package in versions.items()}
    found = [f"{name} {number}" for name, number in known.items() if number]
    missing = [name for name, number in known.items() if not number]
    python = ".".join(map(str, sys.version_info[:3]))
    text = f"{time.strftime('%Y-%m-%d')}, Python {python}, one thread, cpu: {', '.join(found)}."
    return text + (f" Not installed and left out: {', '.join(missing)}." if missing else "")


def installed_version(package: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# Check ------------------------------------------------------------------------------------------------------------


def checked_rows(contests: Mapping[str, Contest]) -> dict[str, float]:
    """Return the ratios of the rows that the check compares, which need no other package."""
    found = {}
    for name, contest in contests.items():
        if contest.checked is not None:
            entrants = {n: call for n, call in contest.entrants(contest.checked).items() if n not in contest.packages}
            ratios = race(entrants, 1, 1).ratios
            found |= {f"{name}, {label(contest.checked)}, {other}": value for other, (value, _) in ratios.items()}
    return found


def grown(recorded: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """Return the rows whose ratio has grown by half, each as text."""
    return [
        f"{name}: {found[name]:.3f} of the other's time, recorded {old:.3f}, more than {GROWN} times as much"
        for name, old in recorded.items()
        if name in found and found[name] > GROWN * old
    ]


def shifted(recorded: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """Return pairs of hand-written loops whose own ratio is another one than when it was recorded, each as text.

    This project is no part of such a ratio. It differs where the processor multiplies matrices at another speed, relative to
    that of Python.
    """
    lines = []
    for one, other in itertools.combinations(sorted(recorded.keys() & found.keys()), 2):
        if contest_of(one) == contest_of(other):
            now, then = found[one] / found[other], recorded[one] / recorded[other]
            if not 1 / SHIFTED <= now / then <= SHIFTED:
                lines.append(f"{one} by {other.rpartition(', ')[2]}: {now:.3f}, recorded {then:.3f}")
    return lines


def contest_of(row: str) -> str:
    """Return the contest of a row of the check."""
    return row.partition(", ")[0]


def check(path: Path) -> int:
    """Compare the ratios of a few rows with the recorded ones.

    Args:
        path: The file of recorded ratios.

    Returns:
        The exit status: 1 if a ratio has grown by half, or a recorded row is not measured. Where the hand-written loops compare
        with each other in another way than when they were recorded, a ratio that has grown is printed and does not count.
    """
    recorded = {
        name: median for name, (median, _, _) in json.loads(path.read_text(encoding="utf-8"))["checked"].items()
    }
    least: dict[str, float] = {}
    for _ in range(TRIES):
        now = checked_rows(CONTESTS)
        least = {name: min(value, least.get(name, math.inf)) for name, value in now.items()}
        if not grown(recorded, least):
            break
    for name, value in least.items():
        print(f"{value:.3f}  (recorded {recorded.get(name, math.nan):.3f})  {name}")
    failures, others = grown(recorded, least), shifted(recorded, now)
    print("\n".join(failures) or "no ratio has grown by half")
    if failures and others:
        print("not judged: the other loops compare in another way on this processor", *others, sep="\n")
        failures = []
    absent = [f"{name}: not measured" for name in recorded.keys() - least.keys()]
    print(*absent, sep="\n", end="\n" if absent else "")
    return 1 if failures or absent else 0


# Command line -----------------------------------------------------------------------------------------------------


def run(name: str, rounds: int, *, memory: bool, least: float = LEAST) -> tuple[str, dict[str, Any]]:
    """Run a contest; return its tables, and its ratios with their spread by size and entrant."""
    contest, rows, ratios = CONTESTS[name], {}, {}
    for size in contest.sizes():
        rows[json.dumps(size)] = row = race(contest.present(size), rounds, least=least)
        ratios[label(size) or "one size"] = {n: [round(r, 4), round(s, 2)] for n, (r, s) in row.ratios.items()}
    peaks = {n: peak_memory(name, n) for n in contest.present(contest.base)} if memory and contest.base else {}
    text = "\n".join(tables(name, contest, rows, peaks))
    print(text, flush=True)
    return text, ratios


def record(name: str, text: str, ratios: Mapping[str, Any]) -> None:
    """Write the tables of a contest into the page, and its ratios into the file that the check reads."""
    from faults.pages import write_between

    write_between(PAGE, f"race: {name}", f"{text.rstrip()}\n\n{conditions()}")
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"checked": {}, "ratios": {}}
    contest = CONTESTS[name]
    kept = {row: value for row, value in found["checked"].items() if contest_of(row) != name}
    found["checked"] = kept | repeated_rows({name: contest})
    found["ratios"][name] = {"conditions": conditions(), **ratios}
    write_record(found, RECORD)


def write_record(found: Mapping[str, Any], path: Path) -> None:
    """Write the file that the check reads."""
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def repeated_rows(contests: Mapping[str, Contest]) -> dict[str, list[float]]:
    """Return the median, the smallest and the largest one of several measurements of each row that the check compares."""
    runs = [checked_rows(contests) for _ in range(RECORDED)]
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: [round(f(v), 4) for f in (statistics.median, min, max)] for name, v in values.items()}


def record_checked(path: Path = RECORD) -> None:
    """Record the rows of the check alone, and print how much they vary."""
    found = json.loads(path.read_text(encoding="utf-8"))
    found["checked"] = repeated_rows(CONTESTS)
    write_record(found, path)
    for name, (median, smallest, largest) in found["checked"].items():
        print(f"{median:.2f}, from {smallest / median:.2f} to {largest / median:.2f} of it: {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CONTESTS, metavar="CONTEST", help="default: all contests")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--record", action="store_true", help="write docs/race.md and benchmarks/race.json")
    parser.add_argument(
        "--check", nargs="?", type=Path, const=RECORD, metavar="FILE", help="compare a few rows with FILE"
    )
    parser.add_argument("--record-checked", action="store_true", help="record the rows of --check alone")
    parser.add_argument(
        "--tiny", action="store_true", help="one size of one contest, once: checks that the benchmark runs"
    )
    parser.add_argument("--peak", nargs=2, metavar=("CONTEST", "ENTRANT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.peak:
        print_peak(CONTESTS[given.peak[0]], given.peak[1])
        return 0
    if given.check:
        return check(given.check)
    print(conditions(), "\n")
    if given.record_checked:
        record_checked()
        return 0
    if given.tiny:
        size = {"depth": 3, "width": 4, "batch": 2, "exponents": 1, "seeds": 1}
        CONTESTS["perceptron"] = replace(CONTESTS["perceptron"], base=size, axes={"depth": (4,)})
        run("perceptron", 1, memory=False, least=0)
        return 0
    for name in given.only or CONTESTS:
        text, ratios = run(name, given.rounds, memory=True)
        if given.record:
            record(name, text, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
