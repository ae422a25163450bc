"""Whether a change of the code has changed a number: every measure on fifteen models, bit for bit.

    python benchmarks/same_numbers.py --write before.json      # before the change
    python benchmarks/same_numbers.py --compare before.json    # after it; lists what differs, and exits with 1

Numbers are written in hexadecimal, so that equal means equal to the last bit. Both runs must use one machine, one version of
torch and one number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from faults import HEALTHY, Case
from torch import Tensor

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
SEEDS = 2


def henon(x: Tensor) -> Tensor:
    """One step of the Hénon map."""
    return torch.stack([1 - 1.4 * x[..., 0] ** 2 + x[..., 1], 0.3 * x[..., 0]], -1)


def start(generator: torch.Generator) -> Tensor:
    """Draw where the Hénon map starts."""
    return 0.1 * torch.rand(4, 2, generator=generator, dtype=torch.float64)


def settings_of(case: Case) -> dict[str, Any]:
    """Return the model of a case and how it is measured."""
    return {"model": case.build, "exponents": 2, "device": "cpu", "train": True, **case.arguments}


def numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the values of every measure, per seed, or why there are none."""
    model, inputs = settings.pop("model"), settings.pop("inputs")
    result = measure(model, inputs, seeds=SEEDS, **settings)
    found: dict[str, Any] = {"steps": list(result.steps), "notes": list(result.notes)}
    for name, known in MEASURES.items():
        try:
            value = getattr(result, name)
        except TrainabilityError as error:
            # The text of an error may be bettered; its kind may not change.
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


def everything() -> dict[str, Any]:
    """Return the numbers of all models."""
    cases = {case.id: settings_of(case) for case in HEALTHY}
    missing = [name for name in MODELS if name not in cases]
    assert not missing, f"unknown models: {missing}; known: {list(cases)}"
    chosen = {name: cases[name] for name in MODELS}
    chosen["Hénon map"] = {"model": Rollout(henon, steps=60), "inputs": start, "exponents": 2}
    found = {}
    for name, settings in chosen.items():
        print(name, file=sys.stderr)
        found[name] = numbers(settings)
    return found


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """List where two trees differ."""
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = everything()
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    if not arguments.compare:
        return 0
    changed = differences(json.loads(arguments.compare.read_text(encoding="utf-8")), found)
    print(*changed, sep="\n", end="\n" if changed else "")
    count = sum(len(measures) for measures in found.values())
    print(f"{len(found)} models, {len(MEASURES)} measures, {count} values compared: {len(changed)} differ")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
