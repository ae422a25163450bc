"""Cost of each measure by itself, in training steps: ratios that are measured side by side in one run.

    python benchmarks/measures.py                      # on CUDA where a GPU is available, else on the CPU
    python benchmarks/measures.py --only sharpness ntk_condition_number
    python benchmarks/measures.py --only my_measure --record    # also writes the rows into benchmarks/costs.json
    python benchmarks/measures.py --tiny               # checks in a few seconds that the benchmark runs

A training step is one forward and backward pass with the gradients of all parameters, without an optimizer. The cost of
a measure is the time per seed that reading it takes once a model has been measured without it. That is a separate run:
the forward pass and the cut, about half a training step, are part of it, and are shared by all measures that are requested
together. Steps and measurements alternate, and the median of the ratios is printed. A dash means that the measure does
not apply. Each measure is first read of a tiny model: what it imports once per process is not part of its cost.

``make generated`` writes the table of ``docs/measures/index.md`` from ``benchmarks/costs.json``. One text says there for all rows
under which conditions they were measured. So single rows can be recorded under the same conditions only, and all rows together
under any.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from cost import Output, Timer, Tower, images, text, to, training_step, transformer, vectors
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure
from pytest_trainability.measures import MEASURES, declared_measures

Inputs = dict[str, Tensor]
Model = tuple[Callable[[], nn.Module], Callable[[], Inputs], dict[str, Any]]
"""A factory, a function that draws a batch, and arguments of ``measure``."""
Row = Sequence[float | None]
"""The cost of one measure, by model."""
COSTS = Path(__file__).with_name("costs.json")
SEEDS = 2


class Reader(nn.Module):
    """A classifier that reads sequences with an LSTM."""

    def __init__(self, features: int = 64, units: int = 128) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(features, units, batch_first=True), nn.Linear(units, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        logits = self.head(self.rnn(x)[0][:, -1])
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def sequences(batch: int = 16, steps: int = 50, features: int = 64) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, steps, features, generator=generator)
    return {"x": x, "labels": torch.randint(10, (batch,), generator=generator)}


MODELS: dict[str, Model] = {
    "tanh, 12 × 256": (lambda: Tower(12, 256), lambda: vectors(32, 256), {}),
    "GPT-2, 4 × 128": (
        transformer(
            "GPT2", vocab_size=1000, n_embd=128, n_head=4, n_layer=4, n_positions=64, bos_token_id=0, eos_token_id=0
        ),
        lambda: text(8, 64),
        {},
    ),
    "Mixtral, 4 × 128": (
        transformer(
            "Mixtral",
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_local_experts=4,
        ),
        lambda: text(8, 64),
        {},
    ),
    "ResNet-26, 64 px": (
        transformer("ResNet", num_labels=10, depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=32),
        lambda: images(8, 64),
        # Batch statistics make samples interact, and the measures by sample require that they do not.
        {"train": False},
    ),
    "LSTM, 50 steps": (Reader, sequences, {"steps": "time"}),
}
TINY: dict[str, Model] = {"tanh, 2 × 16": (lambda: Tower(2, 16), lambda: vectors(4, 16), {})}
"""Takes the place of the models with ``--tiny``."""
TINY_MEASURES = ("log_gain", "gradient_norm", "attention_entropy", "uninitialized_parameters")
"""A number, a profile, one that does not apply to the tiny model, and one that builds models."""
BUILDING = {"uninitialized_parameters", "meta_device_differences"}
"""Measures that build models themselves: this is their cost. For the others models are built before."""


def cost(name: str, model: Model, device: str, repeats: int) -> float | None:
    """Return the cost of one measure in training steps per seed; None where it does not apply."""
    for tiny in TINY.values():
        ratio(name, *tiny, device)
    ratios = [found for _ in range(repeats) if (found := ratio(name, *model, device)) is not None]
    return statistics.median(ratios) if len(ratios) == repeats else None


def ratio(
    name: str, build: Callable[[], nn.Module], make: Callable[[], Inputs], settings: dict[str, Any], device: str
) -> float | None:
    """Time one measure, and training steps before and after it."""
    timer, inputs = Timer(device), to(make(), device)
    model = build().to(device).train(settings.get("train", True))
    drawn = [] if name in BUILDING else [build().to(device) for _ in range(2 * SEEDS)]
    result = measure(lambda: drawn.pop() if drawn else build(), inputs, seeds=SEEDS, device=device, **settings)
    # The default measures are known already.
    result._seed_runs.values.pop(name, None)

    def steps() -> list[float]:
        return [timer(lambda: training_step(model, inputs)) for _ in range(3)]

    before = steps()
    try:
        took = timer(lambda: getattr(result, name))
    except InapplicableError:
        return None
    empty = MEASURES[name].kind == "profile" and not len(getattr(result, name))
    return None if empty else took / SEEDS / statistics.median(before + steps())


# The recorded costs -----------------------------------------------------------------------------------------------

_CONDITIONS = re.compile(r"`(?P<command>python benchmarks/measures\.py[^`]*)` measured it \((?P<machine>torch [^;]*)")
"""Where the text of ``costs.json`` names the command and the machine."""


def machine(device: str) -> str:
    """Return the conditions that costs depend on: version of torch, device and number of threads."""
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return f"torch {torch.__version__}, {device}{threads}"


def refuse_to_mix(recorded: Mapping[str, Any], names: Collection[str], models: Sequence[str], where: str) -> None:
    """Refuse to merge rows of these measures where the recorded rows that stay were measured otherwise.

    Args:
        recorded: Contents of ``costs.json``.
        names: The measures whose rows are to be merged.
        models: The models that they are measured on.
        where: The machine, as :func:`machine` returns it.

    Raises:
        SystemExit: The models, or the machine of the other rows, are not the same.
    """
    if recorded["models"] != list(models):
        msg = f"The recorded costs must be those of {list(models)}. Got {recorded['models']}."
        raise SystemExit(msg)
    before = " ".join(_conditions(recorded)["machine"].split())
    if before != where and not known(recorded["costs"]) <= {*names}:
        msg = (
            f"All rows must be measured under the same conditions. The recorded ones have {before}, this machine has {where}. "
            "Measure all measures, or set OMP_NUM_THREADS and install that version of torch."
        )
        raise SystemExit(msg)


def merged(recorded: Mapping[str, Any], rows: Mapping[str, Row], where: str, command: str) -> dict[str, Any]:
    """Return the recorded costs with the measured rows. New rows are appended; rows of removed measures are dropped.

    Args:
        recorded: Contents of ``costs.json``.
        rows: The cost of each measured measure, by model.
        where: The machine, as :func:`machine` returns it.
        command: The command that measured the rows; noted where they replace all others.
    """
    costs = recorded["costs"] | {name: [_rounded(c) for c in row] for name, row in rows.items()}
    conditions = recorded["conditions"]
    if known(recorded["costs"]) <= rows.keys():
        found = _conditions(recorded)
        between = conditions[found.end("command") : found.start("machine")]
        conditions = (
            conditions[: found.start("command")] + command + between + where + conditions[found.end("machine") :]
        )
    still_there = known(costs)
    kept = {name: row for name, row in costs.items() if name in still_there}
    return {**recorded, "conditions": conditions, "costs": kept}


def known(costs: Mapping[str, Row]) -> set[str]:
    """Return the measures among the rows that still exist."""
    return {m.name for m in declared_measures()} & costs.keys()


def _conditions(recorded: Mapping[str, Any]) -> re.Match[str]:
    found = _CONDITIONS.search(recorded["conditions"])
    if found is None:
        msg = "The conditions of the costs must read `python benchmarks/measures.py …` measured it (torch …; …)."
        raise SystemExit(msg)
    return found


def _rounded(cost: float | None) -> float | None:
    """Keep the two digits that are printed."""
    return None if cost is None else float(f"{cost:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(MEASURES), metavar="MEASURE", help="default: all measures")
    parser.add_argument(
        "--record", nargs="?", type=Path, const=COSTS, metavar="FILE", help="merge the rows into a file (costs.json)"
    )
    parser.add_argument("--tiny", action="store_true", help="one small model, once: checks that the benchmark runs")
    given = parser.parse_args()
    if given.tiny and given.record == COSTS:
        parser.error(f"the costs of a tiny model must not be recorded in {COSTS.name}. Name another file.")
    models, repeats = (TINY, 1) if given.tiny else (MODELS, given.repeats)
    names = given.only or (TINY_MEASURES if given.tiny else [m.name for m in declared_measures()])
    where = machine(given.device)
    recorded = json.loads(given.record.read_text(encoding="utf-8")) if given.record else {}
    if given.record:
        refuse_to_mix(recorded, names, list(models), where)
    print(f"{where}; training steps per seed\n")
    print("| measure | " + " | ".join(models) + " |")
    print("|---|" + "---|" * len(models))
    rows: dict[str, Row] = {}
    for name in names:
        rows[name] = row = [cost(name, model, given.device, repeats) for model in models.values()]
        print(f"| `{name}` | " + " | ".join("–" if c is None else f"{c:.2g}" for c in row) + " |", flush=True)
    if given.record:
        command = f"python benchmarks/measures.py --repeats {repeats} --record"
        text = json.dumps(merged(recorded, rows, where, command), indent=1, ensure_ascii=False)
        given.record.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
