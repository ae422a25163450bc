"""Cost of exponents along time in training steps: ratios that are measured side by side in one run, on the CPU.

    python benchmarks/along_time.py                                         # 1,000 steps of an nn.LSTM, batches of 1 and 8
    python benchmarks/along_time.py --steps 100 --batch 1 --repeats 1 --loop-steps 5    # a quick look
    python benchmarks/along_time.py --tiny                                  # checks in a few seconds that the benchmark runs

A training step is a forward pass, a backward pass with the gradients of all parameters, and SGD: of the fused nn.LSTM, and of
the same layer unrolled in plain operations. A measurement is that of one seed, with the default measures, of a model that was
built before. They are compared with hand-written loops over the step map of one trajectory: most compute the Jacobian of every
step, its product with the frame, and QR; one avoids the Jacobian. The loops run on a few steps, and their time is scaled to all
steps. Each round runs all candidates in order and in reverse order, which cancels drift, and the median over rounds is printed.
Peak memory is measured in a separate process, relative to the memory in use before the model is built.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import jacrev, jvp, vmap
from torch.nn.functional import linear

from pytest_trainability import measure

EXPONENTS = 8
FUSED, UNROLLED = "training step, fused", "training step, unrolled"
ONE, SEVERAL = "measure, 1 exponent", f"measure, {EXPONENTS} exponents"

Map = Callable[[int, Tensor], Tensor]
"""A map from the number of a step and a state ``(n,)`` to the next state."""
Product = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
"""A function of the map of one step, a state ``(n,)`` and a frame ``Q`` of shape ``(n, k)`` that returns ``J Q``."""

PRODUCTS: dict[str, Product] = {
    "autograd.functional.jacobian": lambda step, z, Q: jacobian(step, z) @ Q,
    "torch.func.jacrev": lambda step, z, Q: jacrev(step)(z) @ Q,
    "torch.func.jvp, no Jacobian": lambda step, z, Q: vmap(lambda q: jvp(step, (z,), (q,))[1], 1, 1)(Q),
}


# Training steps and measurements ----------------------------------------------------------------------------------


def layer(width: int, steps: int, batch: int) -> tuple[nn.LSTM, Tensor]:
    torch.manual_seed(0)
    return nn.LSTM(width, width), torch.randn(steps, batch, width)


def fused(model: nn.LSTM, inputs: Tensor) -> Tensor:
    return model(inputs)[0]


def unrolled(model: nn.LSTM, inputs: Tensor) -> Tensor:
    h = c = inputs.new_zeros(inputs.shape[1], model.hidden_size)
    outputs = []
    for projected in linear(inputs, model.weight_ih_l0, model.bias_ih_l0).unbind():
        i, f, g, o = (projected + linear(h, model.weight_hh_l0, model.bias_hh_l0)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def train(forward: Callable[[nn.LSTM, Tensor], Tensor], model: nn.LSTM, inputs: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    forward(model, inputs).square().mean().backward()
    optimizer.step()


def measured(exponents: int, model: nn.LSTM, inputs: Tensor) -> None:
    drawn = [model]
    wanted = ["lyapunov_spectrum"]
    measure(lambda: drawn.pop(), inputs, seeds=1, steps="time", exponents=exponents, measures=wanted)


WORK: dict[str, Callable[[nn.LSTM, Tensor], None]] = {
    FUSED: partial(train, fused),
    UNROLLED: partial(train, unrolled),
    ONE: partial(measured, 1),
    SEVERAL: partial(measured, EXPONENTS),
}


# Hand-written loops -----------------------------------------------------------------------------------------------


def step_map(model: nn.LSTM, inputs: Tensor) -> Map:
    """Return the map of ``z = (h, c)`` for inputs ``(steps, width)``, with the layer's weights as constants."""
    cell = nn.LSTMCell(model.input_size, model.hidden_size, dtype=inputs.dtype).requires_grad_(False)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in model.state_dict().items()})

    def advance(number: int, z: Tensor) -> Tensor:
        return torch.cat(cell(inputs[number], tuple(z.chunk(2))))

    return advance


def loop(advance: Map, z: Tensor, steps: int, exponents: int, product: Product) -> Tensor:
    """Return ``ln |diag R_t|`` with ``J_t Q_{t-1} = Q_t R_t``; shape ``(steps, k)``."""
    Q = torch.eye(len(z), exponents, dtype=z.dtype)
    logs = []
    for number in range(steps):
        step = partial(advance, number)
        Q, R = torch.linalg.qr(product(step, z, Q))
        logs.append(R.diagonal().abs().log())
        z = step(z)
    return torch.stack(logs)


def transposed_loop(advance: Map, z: Tensor, steps: int, exponents: int) -> Tensor:
    """Return ``ln |diag R_t|`` with ``J_tᵀ Q_t = Q_{t-1} R_t``, from the last step to the first, as a backward pass does."""
    jacobians = []
    for number in range(steps):
        step = partial(advance, number)
        jacobians.append(jacobian(step, z))
        z = step(z)
    Q = torch.eye(len(z), exponents, dtype=z.dtype)
    logs = []
    for J in reversed(jacobians):
        Q, R = torch.linalg.qr(J.T @ Q)
        logs.append(R.diagonal().abs().log())
    return torch.stack(logs[::-1])


def by_clvlib(advance: Map, z: Tensor, steps: int, exponents: int) -> Tensor:
    """Return the result of :func:`loop`, computed by clvlib, which requires the whole Jacobian: ``jacrev`` computes it."""
    from clvlib.pytorch import lyap_exp_from_ic

    times = torch.arange(steps + 1, dtype=z.dtype)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        _, _, _, R, _ = lyap_exp_from_ic(
            lambda t, z: advance(round(t), z),
            lambda t, z: jacrev(partial(advance, round(t)))(z),
            z,
            times,
            stepper="discrete",
            n_lyap=exponents,
        )
    return R[1:].diagonal(dim1=1, dim2=2).abs().log()


def without_clvlib() -> str:
    """Return why clvlib cannot be run; empty where it can."""
    try:
        import clvlib.pytorch  # noqa: F401
    except ImportError as error:
        return f"{error} (pip install clvlib tqdm)"
    return ""


# Time -------------------------------------------------------------------------------------------------------------


def took(call: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def side_by_side(kinds: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each kind takes in each round: the mean of one run in order and one in reverse order."""
    for kind in kinds.values():
        kind()
    # Everything that is loaded by now stays: the collections before each timing need not look at it again.
    gc.freeze()
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        passed = [(name, kind()) for order in (kinds, [*kinds][::-1]) for name in order for kind in [kinds[name]]]
        for name in kinds:
            found[name].append(statistics.fmean(seconds for other, seconds in passed if other == name))
    return found


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[to]))


def timed(name: str, model: nn.LSTM, inputs: Tensor) -> float:
    own = deepcopy(model)
    return took(lambda: WORK[name](own, inputs))


def print_cost(width: int, steps: int, batch: int, loop_steps: int, rounds: int) -> None:
    model, inputs = layer(width, steps, batch)
    advance, z = step_map(model, inputs[:, 0]), torch.zeros(2 * width)
    scale = steps * batch / loop_steps

    def scaled(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: scale * took(call)

    kinds: dict[str, Callable[[], float]] = {name: partial(timed, name, model, inputs) for name in WORK}
    for name, product in PRODUCTS.items():
        kinds[f"loop, {name} *"] = scaled(partial(loop, advance, z, loop_steps, EXPONENTS, product))
    missing = without_clvlib()
    if not missing:
        kinds["clvlib, torch.func.jacrev *"] = scaled(partial(by_clvlib, advance, z, loop_steps, EXPONENTS))
    times = side_by_side(kinds, rounds)
    print(f"\n{steps} steps of nn.LSTM({width}, {width}), batch {batch}; median of {rounds} rounds")
    print(f"{'':<38}{'time':>10}{'× fused':>10}{'× unrolled':>12}{f'× {EXPONENTS} exponents':>15}")
    for name in kinds:
        ratios = [ratio(times, name, reference) for reference in (FUSED, UNROLLED, SEVERAL)]
        print(
            f"{name:<38}{1000 * statistics.median(times[name]):>7.0f} ms{ratios[0]:>10.2f}{ratios[1]:>12.2f}{ratios[2]:>15.2f}"
        )
    if missing:
        print(f"{'clvlib':<38}   skipped: {missing}")
    print(
        f"* {EXPONENTS} exponents of one trajectory over {loop_steps} steps, × {steps / loop_steps:g}"
        + (f" × {batch} trajectories, one after the other" if batch > 1 else ""),
        flush=True,
    )


def print_linearity(width: int, lengths: Sequence[int], batch: int, rounds: int) -> None:
    model, inputs = layer(width, max(lengths), batch)
    names = [UNROLLED, ONE, SEVERAL]
    kinds = {f"{name}, {n}": partial(timed, name, model, inputs[:n]) for n in lengths for name in names}
    times = side_by_side(kinds, rounds)
    print(f"\nms per time step, batch {batch}; median of {rounds} rounds")
    print(f"{'steps':<26}" + "".join(f"{n:>9}" for n in lengths) + f"{'grows as':>16}")
    for name in names:
        seconds = [statistics.median(times[f"{name}, {n}"]) for n in lengths]
        power = slope([math.log(n) for n in lengths], [math.log(s) for s in seconds])
        each = "".join(f"{1000 * s / n:>9.3f}" for s, n in zip(seconds, lengths))
        print(f"{name:<26}{each}{f'steps^{power:.2f}':>16}", flush=True)
    for name in names[1:]:
        ratios = (ratio(times, f"{name}, {n}", f"{UNROLLED}, {n}") for n in lengths)
        print(
            f"{name.removeprefix('measure, ') + ' × unrolled':<26}" + "".join(f"{r:>9.2f}" for r in ratios), flush=True
        )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    return statistics.linear_regression(x, y).slope if len(x) > 1 else math.nan


# Memory -----------------------------------------------------------------------------------------------------------


def print_memory(names: Sequence[str], width: int, steps: int, batch: int) -> None:
    found = {name: peak_memory(name, width, steps, batch) for name in names}
    heading = f"peak memory, {steps} steps, batch {batch}"
    print(f"\n{heading:<38}{'':>10}{'× fused':>10}{'× unrolled':>12}")
    for name, megabytes in found.items():
        # Allocators may serve a tiny model from memory that the process holds already.
        fused, unrolled = (megabytes / (found.get(reference) or math.nan) for reference in (FUSED, UNROLLED))
        print(f"{name:<38}{megabytes:>7.0f} MB{fused:>10.2f}{unrolled:>12.2f}")


def peak_memory(name: str, width: int, steps: int, batch: int) -> float:
    """Return the peak memory of one training step or one measurement, in MB, in a separate process."""
    command = [sys.executable, __file__, "--peak", name, str(width), str(steps), str(batch)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(found.stdout.splitlines()[-1]))


def report_peak(name: str, width: int, steps: int, batch: int) -> None:
    """Run one training step or one measurement, and print its peak memory."""
    # Libraries load and threads start before the memory in use is read.
    WORK[name](*layer(width, 4, batch))
    gc.collect()
    before = _resident()
    WORK[name](*layer(width, steps, batch))
    print(_resident("VmHWM") - before)


def _resident(entry: str = "VmRSS") -> float:
    """Return the process's resident memory in MB, or its peak; getrusage would also count the parent's peak."""
    found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


# Agreement --------------------------------------------------------------------------------------------------------

WIDTH, STEPS, TINY_STEPS, COMPARED, SHARPENED = 8, 1000, 12, 3, 4.0
"""A small layer in float64. Its larger recurrent weights separate the exponents and align frames within few steps."""
SAME_MATRICES, SAME_DIRECTION, OTHER_DIRECTION = 1e-9, 1e-4, 10.0
"""Tolerances. In nats per step: the same products from the same frame, and the same direction from another frame. In nats: the
other direction, whose sums over part of the trajectory differ by a few nats at its ends."""


def print_agreement(steps: int = STEPS) -> bool:
    """Print the first exponents by all methods, and return whether they agree; a quarter of the steps is left out at each end."""
    torch.manual_seed(0)
    left_out = steps // 4
    model, inputs = nn.LSTM(WIDTH, WIDTH, dtype=torch.float64), torch.randn(steps, 1, WIDTH, dtype=torch.float64)
    model.weight_hh_l0.data *= SHARPENED
    advance, z = step_map(model, inputs[:, 0]), torch.zeros(2 * WIDTH, dtype=torch.float64)
    ours = measure(
        model,
        inputs,
        steps="time",
        exponents=COMPARED,
        warmup=left_out,
        alignment=left_out,
        measures=["lyapunov_spectrum"],
    ).lyapunov_spectrum
    logs = {f"loop, {name}": loop(advance, z, steps, COMPARED, product) for name, product in PRODUCTS.items()}
    if not without_clvlib():
        logs["clvlib, torch.func.jacrev"] = by_clvlib(advance, z, steps, COMPARED)
    backward = "loop, transposed and from the end"
    logs[backward] = transposed_loop(advance, z, steps, COMPARED)
    found = {"measure": torch.tensor([exponent.mean for exponent in ours], dtype=torch.float64)}
    found |= {name: each[left_out : steps - left_out].mean(dim=0) for name, each in logs.items()}
    print(
        f"\nfirst {COMPARED} exponents, nats per step: nn.LSTM({WIDTH}, {WIDTH}) in float64, recurrent weights × {SHARPENED:g}, "
        f"{steps} steps without the first and last {left_out}"
    )
    for name, exponents in found.items():
        print(f"{name:<38}" + "".join(f"{exponent:>12.6f}" for exponent in exponents))
    first, *others = (exponents for name, exponents in found.items() if name not in {"measure", backward})
    compared = {
        "forward methods with each other": (max(_apart(first, other) for other in others), SAME_MATRICES),
        "measure and the transposed loop": (_apart(found["measure"], found[backward]), SAME_DIRECTION),
        "measure and the forward methods": (_apart(found["measure"], first), OTHER_DIRECTION / (steps - 2 * left_out)),
    }
    for name, (apart, tolerance) in compared.items():
        verdict = "agree" if apart <= tolerance else "DISAGREE"
        print(f"{name:<38}{verdict}: at most {apart:.1e} apart, tolerance {tolerance:g}", flush=True)
    return all(apart <= tolerance for apart, tolerance in compared.values())


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000, help="time steps; also an eighth to twice as many")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--loop-steps", type=int, default=20, help="steps of the hand-written loops and of clvlib")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, once: checks that the benchmark runs")
    parser.add_argument("--peak", nargs=4, metavar=("WHAT", "WIDTH", "STEPS", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        name, *sizes = options.peak
        report_peak(name, *map(int, sizes))
        return 0
    if options.tiny:
        options.width, options.steps, options.batch, options.repeats, options.loop_steps = 8, 8, [1], 1, 2
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads")
    agree = print_agreement(TINY_STEPS if options.tiny else STEPS)
    for batch in options.batch:
        print_cost(options.width, options.steps, batch, min(options.loop_steps, options.steps), options.repeats)
        print_memory([FUSED] if options.tiny else [*WORK], options.width, options.steps, batch)
    lengths = [options.steps * times // 8 for times in ([8] if options.tiny else [1, 2, 4, 8, 16])]
    print_linearity(options.width, lengths, options.batch[0], options.repeats)
    # Frames do not align within a few steps.
    return 0 if agree or options.tiny else 1


if __name__ == "__main__":
    sys.exit(main())
