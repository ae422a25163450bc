"""Cost of each preset in training steps per seed, beyond building the model: ratios measured side by side in one run.

    python benchmarks/presets.py                     # every model with the preset of its family
    python benchmarks/presets.py --only GPT-2 --each # and each measure of the preset by itself
    python benchmarks/presets.py --tiny              # checks in a few seconds that the benchmark runs

A training step is one forward and backward pass with the gradients of all parameters. Steps and measurements alternate, and the
median of their ratios is printed. Time is that of the processor, so that other work on the machine does not count. The time in
the model's factory is subtracted.
The last row is a network of two layers, whose cost in milliseconds is what a measurement costs at least.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from cost import MODELS, Tower, text, to, training_step, transformer, vectors
from torch import Tensor, nn

from pytest_trainability.checks.bounds import Bound
from pytest_trainability.checks.presets import find_preset
from pytest_trainability.measurement import measure_in
from pytest_trainability.measurement.context import Context

SEEDS = 4


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
    began = time.process_time()
    measure_in(Context(), factory, inputs, seeds=SEEDS, until=bounds, **settings).complete()
    return (time.process_time() - began - factory.seconds) / SEEDS, factory.calls / SEEDS


def costs(name: str, repeats: int, *, each: bool) -> None:
    """Print the costs of one model."""
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
        kinds |= {name: {name: bound} for name, bound in preset.items()}
    step()
    for kind, bounds in kinds.items():
        measurement(build, inputs, bounds, settings)
        ratios, took, steps = [], [], []
        for _ in range(repeats):
            before = [step(), step()]
            seconds, builds = measurement(build, inputs, bounds, settings)
            alone = statistics.fmean([*before, step(), step()])
            ratios.append(seconds / alone)
            took.append(1000 * seconds)
            steps.append(1000 * alone)
        print(
            f"{name:<20}{kind:<26}{statistics.median(steps):>7.0f} ms{statistics.median(ratios):>8.2f}"
            f"{statistics.median(took):>9.0f} ms{builds:>8.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--each", action="store_true", help="also each measure of the preset by itself")
    parser.add_argument("--tiny", action="store_true", help="one small model, once: checks that the benchmark runs")
    options = parser.parse_args()
    import logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {SEEDS} seeds, costs per seed")
    print(f"{'model':<20}{'measures':<26}{'step':>10}{'steps':>8}{'time':>12}{'builds':>8}")
    names = ["tanh, 2 × 16"] if options.tiny else [name for name in SUBJECTS if options.only in name]
    for name in names:
        costs(name, 1 if options.tiny else options.repeats, each=options.each)


if __name__ == "__main__":
    main()
