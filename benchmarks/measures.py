"""What each measure costs by itself, in training steps: ratios measured side by side in one run.

    python benchmarks/measures.py                      # CPU, or CUDA where there is one
    python benchmarks/measures.py --only sharpness ntk_condition_number

A training step is one forward and backward pass with the gradients of all parameters, without an optimizer. The cost of
a measure is the time per seed that reading it takes once a model has been measured without it. That is a run of its own:
the forward pass and the cut, about half a training step, are part of it, and are shared by all measures that are asked for
together. Steps and measurements take turns, and the median of the ratios is printed. A dash stands where the measure does
not apply.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cost import Timer, images, text, to, training_step, transformer
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure
from pytest_trainability.measures import MEASURES

Inputs = dict[str, Tensor]
SEEDS = 2


@dataclass
class Output:
    """As models of transformers return it."""

    loss: Tensor
    logits: Tensor


class Tower(nn.Module):
    """Classifies vectors."""

    def __init__(self, depth: int = 12, width: int = 256, classes: int = 10) -> None:
        super().__init__()
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        logits = self.head(self.layers(x))
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def vectors() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(32, 256, generator=generator), "labels": torch.randint(10, (32,), generator=generator)}


class Reader(nn.Module):
    """Reads sequences with an LSTM, and classifies them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        logits = self.head(self.rnn(x)[0][:, -1])
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def sequences() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(16, 50, 64, generator=generator), "labels": torch.randint(10, (16,), generator=generator)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs], dict[str, Any]]] = {
    "tanh, 12 × 256": (Tower, vectors, {}),
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
        # Batch statistics make samples interact, of which per-sample gradients know nothing.
        {"train": False},
    ),
    "LSTM, 50 steps": (Reader, sequences, {"steps": "time"}),
}
BUILDING = {"uninitialized_parameters", "meta_device_differences"}
"""They build models themselves, which is their cost; the others are given models that were built beforehand."""


def cost(name: str, model: str, device: str, repeats: int) -> float | None:
    """Return the cost of one measure in training steps per seed; None where it does not apply."""
    ratios = [ratio(name, *MODELS[model], device) for _ in range(repeats)]
    return None if None in ratios else statistics.median(ratios)


def ratio(
    name: str, build: Callable[[], nn.Module], make: Callable[[], Inputs], settings: dict[str, Any], device: str
) -> float | None:
    """Time one measure beside training steps before and after it."""
    timer, inputs = Timer(device), to(make(), device)
    model = build().to(device).train(settings.get("train", True))
    drawn = [] if name in BUILDING else [build().to(device) for _ in range(2 * SEEDS)]
    result = measure(lambda: drawn.pop() if drawn else build(), inputs, seeds=SEEDS, device=device, **settings)
    # Of the default measures, which are known already.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(MEASURES), default=list(MEASURES), metavar="MEASURE")
    given = parser.parse_args()
    threads = f", {torch.get_num_threads()} threads" if given.device == "cpu" else ""
    print(f"torch {torch.__version__}, {given.device}{threads}; training steps per seed\n")
    print("| measure | " + " | ".join(MODELS) + " |")
    print("|---|" + "---|" * len(MODELS))
    for name in given.only:
        costs = [cost(name, model, given.device, given.repeats) for model in MODELS]
        print(f"| `{name}` | " + " | ".join("–" if c is None else f"{c:.2g}" for c in costs) + " |", flush=True)


if __name__ == "__main__":
    main()
