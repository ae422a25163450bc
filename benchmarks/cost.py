"""Cost of a measurement in training steps: ratios that are measured side by side in one run.

    python benchmarks/cost.py            # on CUDA where a GPU is available, else on the CPU
    python benchmarks/cost.py --device cpu --repeats 5
    python benchmarks/cost.py --tiny     # checks in a few seconds that the benchmark runs

A training step is one forward and backward pass with the gradients of all parameters, without an optimizer. The cost of
a measurement is given per seed, for four seeds of models that were built before, and for a finished module. Steps and
measurements alternate, and the median of their ratios is printed. Peak memory is measured in a separate process, relative
to the memory in use before the model is built.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pytest_trainability import measure

SEEDS = 4


def transformer(name: str, **settings: int) -> Callable[[], nn.Module]:
    """Return a factory of a model from transformers."""

    def build() -> nn.Module:
        # The requirements of the examples install a torchvision that may not fit this PyTorch.
        sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
        from torchvision_for_cpu import declare_torchvision_operators

        declare_torchvision_operators()
        import transformers

        config = getattr(transformers, f"{name}Config")(**settings)
        heads = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM"} | {
            n: f"{n}ForCausalLM" for n in ("Mamba", "Mixtral")
        }
        return getattr(transformers, heads.get(name, f"{name}ForImageClassification"))(config)

    return build


def text(batch: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(10, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def images(batch: int, size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    return {"pixel_values": pixels, "labels": torch.randint(10, (batch,), generator=generator)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "GPT-2, 12 × 384": (
        transformer("GPT2", vocab_size=1000, n_embd=384, n_head=6, n_positions=128, bos_token_id=0, eos_token_id=0),
        lambda: text(8, 128),
    ),
    "BERT, 12 × 384": (
        transformer("Bert", vocab_size=1000, hidden_size=384, intermediate_size=1536, num_attention_heads=6),
        lambda: text(8, 128),
    ),
    "ResNet-50, 96 px": (transformer("ResNet", num_labels=10), lambda: images(8, 96)),
    "ViT, 12 × 384": (
        transformer(
            "ViT",
            hidden_size=384,
            intermediate_size=1536,
            num_attention_heads=6,
            image_size=96,
            patch_size=8,
            num_labels=10,
        ),
        lambda: images(8, 96),
    ),
    "ConvNeXt-T, 96 px": (transformer("ConvNext", num_labels=10), lambda: images(8, 96)),
}


@dataclass
class Output:
    """The output of a model with its loss, as models of transformers return it."""

    loss: Tensor
    logits: Tensor


class Tower(nn.Module):
    """A tanh tower that classifies vectors."""

    def __init__(self, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        logits = self.head(self.layers(x))
        return Output(nn.functional.cross_entropy(logits, labels), logits)


def vectors(batch: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, width, generator=generator)
    return {"x": x, "labels": torch.randint(10, (batch,), generator=generator)}


TINY = {"tanh, 2 × 16": (lambda: Tower(2, 16), lambda: vectors(4, 16))}
"""Takes the place of the models with ``--tiny``."""


class Timer:
    """Wall time of a call, waiting for the device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, call: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def training_step(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    model(**inputs).loss.backward()


def to(inputs: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def time_ratios(name: str, device: str, repeats: int) -> dict[str, float]:
    """Return the training step in ms, and measurements per seed as multiples of it."""
    build, make = (MODELS | TINY)[name]
    timer = Timer(device)
    inputs = to(make(), device)
    model = build().to(device)

    def step() -> float:
        took = timer(lambda: training_step(model, inputs))
        model.zero_grad(set_to_none=True)
        return took

    def measured(exponents: int) -> float:
        drawn = [build().to(device) for _ in range(SEEDS)]
        return (
            timer(lambda: measure(lambda: drawn.pop(), inputs, seeds=SEEDS, exponents=exponents, device=device)) / SEEDS
        )

    kinds: dict[str, Callable[[], float]] = {
        "1 exponent": lambda: measured(1),
        "8 exponents": lambda: measured(8),
        "finished module": lambda: timer(lambda: measure(model, inputs)),
    }
    step()
    measure(build, inputs, seeds=1, device=device)
    steps: list[float] = []
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, measurement in kinds.items():
            before, took, after = [step(), step()], measurement(), [step(), step()]
            steps += before + after
            ratios[kind].append(took / statistics.fmean(before + after))
    return {
        "step": 1000 * statistics.median(steps),
        **{kind: statistics.median(found) for kind, found in ratios.items()},
    }


def peak_memory(name: str, what: str, device: str) -> float:
    """Return the peak memory of one training step or one measurement, in MB, in a separate process."""
    command = [sys.executable, __file__, "--peak", name, what, "--device", device]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(found.stdout.splitlines()[-1]))


def report_peak(name: str, what: str, device: str) -> None:
    """Run one training step or one measurement, and print its peak memory."""
    build, make = (MODELS | TINY)[name]
    # Libraries load and threads start before the memory in use is read.
    build()
    small = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    measure(small, torch.randn(4, 8))
    gc.collect()
    before = _resident()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    inputs = to(make(), device)
    if what == "step":
        training_step(build().to(device), inputs)
    else:
        measure(build, inputs, seeds=1, device=device)
    if device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(_resident("VmHWM") - before)


def _resident(entry: str = "VmRSS") -> float:
    """Return the process's resident memory in MB, or its peak; getrusage would also count the parent's peak."""
    found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="one small model, once: checks that the benchmark runs")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        report_peak(*options.peak, options.device)
        return
    import logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads; costs in training steps per seed"
    )
    print(f"{'model':<20}{'step':>9}{'1 exp.':>9}{'8 exp.':>9}{'finished':>10}{'peak memory':>13}")
    for name in TINY if options.tiny else MODELS:
        ratios = time_ratios(name, options.device, 1 if options.tiny else options.repeats)
        # Allocators may serve a tiny model from memory that the process holds already.
        step = peak_memory(name, "step", options.device) or math.nan
        memory = peak_memory(name, "measure", options.device) / step
        print(
            f"{name:<20}{ratios['step']:>6.0f} ms{ratios['1 exponent']:>9.2f}{ratios['8 exponents']:>9.2f}"
            f"{ratios['finished module']:>10.2f}{memory:>13.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
