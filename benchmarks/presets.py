"""Cost of each preset in training steps per seed, beyond building the model: ratios measured side by side in one run.

    python benchmarks/presets.py                     # every model with the preset of its family
    python benchmarks/presets.py --only GPT-2 --each # and each measure of the preset by itself
    python benchmarks/presets.py --record            # every model, and the table of docs/cost.md
    python benchmarks/presets.py --tiny              # checks in a few seconds that the benchmark runs

A training step is one forward and backward pass with the gradients of all parameters. Steps and measurements alternate, and the
median of their ratios is printed. Time is that of the processor, so that other work on the machine does not count. The time in
the model's factory is subtracted.
The last row is a network of two layers, whose cost in milliseconds is what a measurement costs at least.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from cost import MODELS, Tower, text, to, training_step, transformer, vectors
from faults.pages import write_between
from torch import Tensor, nn

from pytest_trainability.checks.bounds import Bound
from pytest_trainability.checks.presets import find_preset
from pytest_trainability.measurement import measure_in
from pytest_trainability.measurement.context import Context

PAGE = ROOT / "docs" / "cost.md"
SEEDS = 4
SHORT = 10
"""Milliseconds of a training step below which a cost is given in milliseconds."""


class Reader(nn.Module):
    """An LSTM over vectors, and a head on its last output."""

    def __init__(self, width: int = 256, classes: int = 10) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, classes)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        from cost import Output

        logits = self.head(self.lstm(x)[0][:, -1])
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def sequences(batch: int, length: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, width, generator=generator)
    return {"x": x, "labels": torch.randint(10, (batch,), generator=generator)}


MIXTRAL = transformer(
    "Mixtral", vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
)  # fmt: skip
SUBJECTS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], dict[str, Tensor]], dict[str, Any]]] = {
    "GPT-2, 12 × 384": ("transformer", *MODELS["GPT-2, 12 × 384"], {}),
    "BERT, 12 × 384": ("transformer", *MODELS["BERT, 12 × 384"], {}),
    "ViT, 12 × 384": ("transformer", *MODELS["ViT, 12 × 384"], {}),
    "Mixtral, 4 × 128": ("transformer", MIXTRAL, lambda: text(8, 128), {}),
    "ResNet-50, 96 px": ("cnn", *MODELS["ResNet-50, 96 px"], {}),
    "ConvNeXt-T, 96 px": ("cnn", *MODELS["ConvNeXt-T, 96 px"], {}),
    "LSTM, 200 steps": ("rnn", lambda: Reader(), lambda: sequences(32, 200, 256), {"steps": "time"}),
    "tanh, 2 × 16": ("mlp", lambda: Tower(2, 16), lambda: vectors(4, 16), {}),
}
"""Family, factory, inputs and settings by the name of a model."""


class Built:
    """A factory that knows how long it took."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build, self.seconds, self.calls = build, 0.0, 0

    def __call__(self) -> nn.Module:
        began = time.process_time()
        model = self.build()
        self.seconds += time.process_time() - began
        self.calls += 1
        return model


def measurement(
    build: Callable[[], nn.Module], inputs: Any, bounds: Mapping[str, Bound], settings: dict[str, Any]
) -> tuple[float, float]:
    """Return the seconds of a measurement per seed, without those of its builds, and the number of builds per seed.

    Every seed is drawn, also if fewer settle the bounds.
    """
    factory = Built(build)
    # Otherwise the first full collection, which visits all objects of the imported libraries, comes at some point below.
    gc.collect()
    began = time.process_time()
    measure_in(Context(), factory, inputs, seeds=SEEDS, until=bounds, **settings).complete()
    return (time.process_time() - began - factory.seconds) / SEEDS, factory.calls / SEEDS


@dataclass(frozen=True)
class Cost:
    """Cost of the measures of one model, per seed."""

    model: str
    measures: str
    step: float
    """Milliseconds of a training step."""
    ratio: float
    """Training steps that a measurement takes."""
    time: float
    """Milliseconds of a measurement."""
    builds: float
    """Number of builds."""

    def __str__(self) -> str:
        numbers = f"{self.step:>7.0f} ms{self.ratio:>8.2f}{self.time:>9.0f} ms{self.builds:>8.2f}"
        return f"{self.model:<20}{self.measures:<26}{numbers}"


def costs(name: str, repeats: int, *, each: bool) -> Iterator[Cost]:
    """Yield the costs of one model: those of its preset, of the default measures, and of each measure by itself."""
    family, build, make, settings = SUBJECTS[name]
    inputs = to(make(), "cpu")
    model = build()

    def step() -> float:
        began = time.process_time()
        training_step(model, inputs)
        return time.process_time() - began

    preset = find_preset(family)
    kinds: dict[str, Mapping[str, Bound]] = {family: preset, "default": {}}
    if each:
        kinds |= {measure: {measure: bound} for measure, bound in preset.items()}
    step()
    for kind, bounds in kinds.items():
        ratios, took, steps, builds = [], [], [], 0.0
        for _ in range(repeats):
            before = [step(), step()]
            seconds, builds = measurement(build, inputs, bounds, settings)
            alone = statistics.fmean([*before, step(), step()])
            ratios.append(seconds / alone)
            took.append(1000 * seconds)
            steps.append(1000 * alone)
        yield Cost(name, kind, *map(statistics.median, (steps, ratios, took)), builds)


def table(found: Sequence[Cost]) -> str:
    """Return the costs as a table of a page."""
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, {SEEDS} seeds:",
        "",
        "| model | training step | preset | cost of the preset | default measures |",
        "|---|---|---|---|---|",
    ]
    for of_preset, default in zip(found[::2], found[1::2]):
        small = of_preset.step < SHORT
        cost, other = (f"{c.time:.0f} ms" if small else f"{c.ratio:.1f}" for c in (of_preset, default))
        lines.append(
            f"| {of_preset.model} | {of_preset.step:.{1 if small else 0}f} ms | {of_preset.measures} | {cost} | {other} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--each", action="store_true", help="also each measure of the preset by itself")
    parser.add_argument("--record", action="store_true", help="write the table of docs/cost.md")
    parser.add_argument("--tiny", action="store_true", help="one small model, once: checks that the benchmark runs")
    options = parser.parse_args()
    if options.record and (options.only or options.each or options.tiny):
        parser.error("--record takes every model with its preset")
    import logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {SEEDS} seeds, costs per seed")
    print(f"{'model':<20}{'measures':<26}{'step':>10}{'steps':>8}{'time':>12}{'builds':>8}")
    names = ["tanh, 2 × 16"] if options.tiny else [name for name in SUBJECTS if options.only in name]
    # The first measurements of a process import modules.
    list(costs("tanh, 2 × 16", 1, each=False))
    measure_in(Context(), lambda: Reader(4), sequences(2, 3, 4), seeds=1, until=find_preset("rnn"), steps="time")
    found = []
    for name in names:
        for cost in costs(name, 1 if options.tiny else options.repeats, each=options.each):
            print(cost, flush=True)
            found.append(cost)
    if options.record:
        write_between(PAGE, "presets", table(found))


if __name__ == "__main__":
    main()
