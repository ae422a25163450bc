"""False alarms and power of the tests of an initialization contract.

    python benchmarks/contract_errors.py            # about fifteen minutes on one core
    python benchmarks/contract_errors.py --power    # the table of docs/initialization.md, in a second
    python benchmarks/contract_errors.py --tiny     # checks in a few seconds that the benchmark runs

A check compares each probability with 1e-6 divided by the number of tests. Such rates cannot be counted. What is counted is how
often a probability is below 0.1, 0.01, … for tensors that keep their rule: at most that often, if the probabilities are bounds.
The last lines count failures of whole models.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from scipy.stats import binom, norm
from torch import Tensor, nn

from pytest_trainability import init
from pytest_trainability.init.check import FALSE_ALARM, check_models, probabilities_of
from pytest_trainability.init.rules import Rule

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)
TESTS = (100, 10_000)
"""Numbers of tests of a model in the table of power."""

Fill = Callable[[Tensor], Tensor]
RULES: dict[str, tuple[Rule, Fill]] = {
    "normal": (init.normal(std=0.02), lambda t: nn.init.normal_(t, std=0.02)),
    "normal, mean 1": (init.normal(std=0.02, mean=1.0), lambda t: nn.init.normal_(t, 1.0, 0.02)),
    "truncated at 2 std": (
        init.truncated_normal(std=0.02, a=-0.04, b=0.04),
        lambda t: nn.init.trunc_normal_(t, std=0.02, a=-0.04, b=0.04),
    ),
    "truncated far out": (init.truncated_normal(std=0.02), lambda t: nn.init.trunc_normal_(t, std=0.02)),
    "uniform": (init.uniform(-0.1, 0.1), lambda t: nn.init.uniform_(t, -0.1, 0.1)),
    "kaiming_uniform": (init.kaiming_uniform(a=math.sqrt(5)), lambda t: nn.init.kaiming_uniform_(t, a=math.sqrt(5))),
    "orthogonal": (init.orthogonal(), lambda t: nn.init.orthogonal_(t.float()).to(t.dtype)),
}
SHAPES = ((3,), (3, 5), (20, 30), (300, 40))
LARGE = ((1000, 1000),)
"""Shapes at which rounding matters, and few are drawn."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class OneParameter(nn.Module):
    """A model with one parameter."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def drawn(rule: Rule, fill: Fill, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Yield each kind of test and its probability, for a tensor that was drawn as the rule says, on two seeds."""
    models = (OneParameter(fill(torch.empty(shape, dtype=dtype))) for _ in range(2))
    yield from probabilities_of({"weight": rule}, enumerate(models))


def rates(rule: Rule, fill: Fill, shape: tuple[int, ...], dtype: torch.dtype, draws: int) -> dict[str, list[int]]:
    """Return for each kind of test how often its probability is below each level."""
    below: dict[str, Counter[float]] = {}
    for _ in range(draws):
        for kind, probability in drawn(rule, fill, shape, dtype):
            counts = below.setdefault(kind, Counter())
            counts.update(level for level in LEVELS if probability < level)
            counts[-1.0] += 1
    return {kind: [counts[level] for level in (-1.0, *LEVELS)] for kind, counts in below.items()}


def is_too_often(count: int, of: int, level: float) -> bool:
    """Return whether chance explains the count with a probability of at most 1e-6."""
    return bool(binom.sf(count - 1, of, level) < 1e-6)


def least_error(entries: int, tests: int, kurtosis: float = 3.0, power: float = 0.99) -> float:
    """Return the relative error of a standard deviation that is found with this probability."""
    limit = float(norm.isf(FALSE_ALARM / tests / 2)) + float(norm.isf(1 - power))
    return limit * math.sqrt((kurtosis - 1) / (4 * entries))


def print_power() -> None:
    print("| entries × seeds | normal, 100 tests | normal, 10,000 tests | uniform, 100 tests | uniform, 10,000 tests |")
    print("|---|---|---|---|---|")
    for exponent in range(3, 10):
        cells = (100 * least_error(10**exponent, tests, kurtosis) for kurtosis in (3.0, 1.8) for tests in TESTS)
        print(f"| 10^{exponent} | {' | '.join(f'{cell:.2g} %' for cell in cells)} |")


def print_rates(draws: int) -> int:
    """Print the rates of all rules, shapes and types; return the number of rates that are too high."""
    wrong = 0
    print(f"{'rule':20} {'shape':12} {'type':9} {'test':9}" + "".join(f"{level:>10g}" for level in LEVELS))
    for name, (rule, fill) in RULES.items():
        for dtype in DTYPES:
            for shape in (*SHAPES, *LARGE):
                if len(shape) == 1 and ("kaiming" in name or name == "orthogonal"):
                    continue
                count = max(draws // 50, 1) if shape in LARGE else draws
                for kind, (of, *below) in rates(rule, fill, shape, dtype, count).items():
                    bad = [is_too_often(n, of, level) for n, level in zip(below, LEVELS, strict=True)]
                    wrong += sum(bad)
                    cells = "".join(f"{n / of:>9.2g}{'!' if b else ' '}" for n, b in zip(below, bad, strict=True))
                    kind_of_type = str(dtype).removeprefix("torch.")
                    print(f"{name:20} {shape!s:12} {kind_of_type:9} {kind:9}{cells}")
    return wrong


def print_models(count: int) -> int:
    """Check healthy models of 42 parameters with all rules; return the number of failures."""
    rules = {key(name) + ".**": rule for name, (rule, _) in RULES.items()}
    failed = 0
    for _ in range(count):
        models = (nn.ModuleDict({key(name): layers(fill) for name, (_, fill) in RULES.items()}) for _ in range(2))
        failed += not check_models(rules, enumerate(models)).holds
    print(f"{failed} of {count} healthy models fail")
    return failed


def key(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)


def layers(fill: Fill) -> nn.Module:
    return nn.ModuleList(OneParameter(fill(torch.empty(40, 50))) for _ in range(6))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="A few draws.")
    parser.add_argument("--power", action="store_true", help="Print the table of power only.")
    parser.add_argument("--draws", type=int, default=400, help="Tensors of each rule, shape and type.")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    print_power()
    if options.power:
        return 0
    draws = 4 if options.tiny else options.draws
    wrong = print_rates(draws)
    failed = print_models(2 if options.tiny else draws // 4)
    print(f"{wrong} rates are higher than chance explains")
    return int(bool(wrong or failed))


if __name__ == "__main__":
    sys.exit(main())
