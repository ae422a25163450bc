"""Compare the numbers of all measures on fifteen models before and after a change of the code, bit for bit.

    python benchmarks/same_numbers.py --write before.json      # before the change
    python benchmarks/same_numbers.py --compare before.json    # after it: lists the differences; exit status 1 if there are any
    python benchmarks/same_numbers.py --tiny                   # two models, twice: checks that the benchmark runs

Numbers are written in hexadecimal: equal means equal to the last bit. Both runs must use the same machine, the same version of
torch and the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "examples")]

import torch
from faults import HEALTHY, Case
from torch import Tensor
from torchvision_for_cpu import declare_torchvision_operators

from pytest_trainability import InapplicableError, Rollout, TrainabilityError, measure
from pytest_trainability.measures import MEASURES

MODELS = (
    *("ReLU tower of 8 layers after He", "shallow tanh network", "dropout in training mode", "zero branches and head"),
    *("BatchNorm ResNet of 20 blocks", "stochastic depth", "LeNet of default weights", "FiLM"),
    *(
        "pre-LN GPT",
        "GPT with a mixture of experts",
        "encoder and decoder",
        "ViT with a class token",
        "transformers mixtral",
    ),
    *("LSTM with forget bias 1",),
)
TINY = ("shallow tanh network",)
"""Takes the place of the models with ``--tiny``."""
SEEDS = 2


def henon(x: Tensor) -> Tensor:
    """One step of the Hénon map."""
    return torch.stack([1 - 1.4 * x[..., 0] ** 2 + x[..., 1], 0.3 * x[..., 0]], -1)


def start(generator: torch.Generator) -> Tensor:
    """Draw initial states of the Hénon map."""
    return 0.1 * torch.rand(4, 2, generator=generator, dtype=torch.float64)


def settings_of(case: Case) -> dict[str, Any]:
    """Return the arguments of ``measure`` for a case."""
    return {"model": case.build, "exponents": 2, "device": "cpu", "train": True, **case.arguments}


def numbers(settings: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Return the values of every measure per seed, or the kind of error that it raises."""
    result = measure(seeds=seeds, **settings)
    found: dict[str, Any] = {"steps": list(result.steps)}
    for name, known in MEASURES.items():
        try:
            value = getattr(result, name)
        except TrainabilityError as error:
            # The text of an error may improve; its kind must not change.
            found[name] = "inapplicable" if isinstance(error, InapplicableError) else type(error).__name__
            continue
        if known.kind == "names":
            found[name] = list(value.names)
        elif known.kind == "scalar":
            found[name] = _hex(value.values)
        else:
            elements = {e.name: e for e in value} if known.kind == "spectrum" else dict(value)
            found[name] = {element: _hex(estimate.values) for element, estimate in elements.items()}
    return found


def _hex(values: tuple[float, ...]) -> list[str]:
    return [float(value).hex() for value in values]


def everything(models: Sequence[str] = MODELS, *, steps: int = 60, seeds: int = SEEDS) -> dict[str, Any]:
    """Return the numbers of all models, and of the Hénon map over some steps."""
    cases = {case.id: settings_of(case) for case in HEALTHY}
    missing = [name for name in models if name not in cases]
    assert not missing, f"unknown models: {missing}; known: {list(cases)}"
    chosen = {name: cases[name] for name in models}
    chosen["Hénon map"] = {"model": Rollout(henon, steps=steps), "inputs": start, "exponents": 2}
    found = {}
    for name, settings in chosen.items():
        print(name, file=sys.stderr)
        found[name] = numbers(settings, seeds)
    return found


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """List the differences of two trees."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in dict.fromkeys([*before, *after])
            for line in differences(before.get(key), after.get(key), f"{place} › {key}" if place else key)
        ]
    return [] if before == after else [f"{place}: {before} → {after}"]


def main() -> int:
    """Write the numbers, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument(
        "--tiny", action="store_true", help="two models, one seed, twice: checks that the benchmark runs"
    )
    arguments = parser.parse_args()
    if not (arguments.write or arguments.compare or arguments.tiny):
        parser.error("one of --write, --compare and --tiny is required")
    torch.set_num_threads(1)
    # transformers imports torchvision where it is installed.
    declare_torchvision_operators()
    tiny = partial(everything, TINY, steps=5, seeds=1)
    found = tiny() if arguments.tiny else everything()
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    if arguments.compare:
        before = json.loads(arguments.compare.read_text(encoding="utf-8"))
    elif arguments.tiny:
        before = tiny()
    else:
        return 0
    changed = differences(before, found)
    print(*changed, sep="\n", end="\n" if changed else "")
    count = sum(len(measures) for measures in found.values())
    print(f"{len(found)} models, {len(MEASURES)} measures, {count} values compared: {len(changed)} differ")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
