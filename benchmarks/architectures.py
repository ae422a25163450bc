"""Log gain of well-known architectures, memory of recurrent layers, presets on models of transformers, and costs.

python benchmarks/architectures.py --reference   # log gain of well-known architectures: the reference of the bounds
python benchmarks/architectures.py --memory      # log gain of recurrent layers, and loss of a task that requires memory
python benchmarks/architectures.py --zoo         # flags of all small models of transformers in tests/zoo.py
python benchmarks/architectures.py --cost        # cost of the default measures on these, and on models of timm
python benchmarks/architectures.py --cost --record  # and the table of docs/cost.md
python benchmarks/architectures.py --tiny        # checks in a few seconds that all of these run

Costs are CPU time in training steps per seed, on four seeds and one thread, without building the model.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from torchvision_for_cpu import declare_torchvision_operators

declare_torchvision_operators()

import zoo
from faults import CLASSES, VOCAB, WIDTH, Case, Reader, he, lenet, lstm, rnn, sequence
from faults.pages import write_between
from faults.training import trained
from presets import SEEDS, Built

from pytest_trainability import TrainabilityFailure, measure
from pytest_trainability.engine.runs.objective import functional
from pytest_trainability.measurement import measure_in
from pytest_trainability.measurement.context import Context

# Well-known architectures -----------------------------------------------------------------------------------------


def alexnet() -> nn.Module:
    """Build AlexNet as torchvision does, with the framework's own weights."""
    pool = partial(nn.MaxPool2d, 3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool(), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool()),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), pool(), nn.AdaptiveAvgPool2d(6), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
        nn.Linear(4096, 1000),
    )


def vgg(*, initialized: bool) -> nn.Module:
    """Build the convolutions of VGG-16, a quarter as wide, with the framework's own weights or after He."""
    layers, channels = [], 3
    for width, count in ((16, 2), (32, 2), (64, 3), (128, 3), (128, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    if initialized:
        he(layer for layer in layers if isinstance(layer, nn.Conv2d))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, CLASSES))


def bottlenecks(*depths: int) -> nn.Module:
    """Build a ResNet of `transformers`, half as wide."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=32, hidden_sizes=[128, 256, 512, 1024], depths=list(depths))
    return ResNetForImageClassification(config)


def llama(*, width: int, layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    given = {"intermediate_size": 8 * width // 3, "num_attention_heads": width // 64, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=width, pad_token_id=None, **given))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, bos_token_id=1, eos_token_id=1))


def recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    return Reader(kind(WIDTH, WIDTH, batch_first=True))


def pictures(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, size, size, generator=generator)


def tokens(generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(2, VOCAB, (2, 32), generator=generator)}


def signal(generator: torch.Generator) -> Tensor:
    return torch.randn(8, 100, WIDTH, generator=generator)


Architecture = tuple[str, Callable[[], nn.Module], Callable[[torch.Generator], object], str]
"""A name, a factory, a function that draws inputs, and the argument ``steps`` of ``measure``."""

REFERENCE: tuple[Architecture, ...] = (
    ("LeNet-5, PyTorch's weights", lenet, partial(pictures, 16), "auto"),
    ("AlexNet, PyTorch's weights", alexnet, partial(pictures, 224), "auto"),
    ("VGG-16, PyTorch's weights", partial(vgg, initialized=False), partial(pictures, 64), "auto"),
    ("VGG-16, after He", partial(vgg, initialized=True), partial(pictures, 64), "auto"),
    ("ResNet-50", partial(bottlenecks, 3, 4, 6, 3), partial(pictures, 64), "auto"),
    ("ResNet-101", partial(bottlenecks, 3, 4, 23, 3), partial(pictures, 64), "auto"),
    ("ResNet-152", partial(bottlenecks, 3, 8, 36, 3), partial(pictures, 64), "auto"),
    ("GPT-2, 12 layers, width 768", gpt2, tokens, "auto"),
    ("Llama, 12 layers, width 256", partial(llama, width=256, layers=12), tokens, "auto"),
    ("Llama, 12 layers, width 1024", partial(llama, width=1024, layers=12), tokens, "auto"),
    ("nn.RNN, PyTorch's weights, 100 steps", partial(recurrent, nn.RNN), signal, "time"),
    ("nn.GRU, PyTorch's weights, 100 steps", partial(recurrent, nn.GRU), signal, "time"),
    ("nn.LSTM, PyTorch's weights, 100 steps", partial(recurrent, nn.LSTM), signal, "time"),
    ("nn.LSTM, forget bias 1, 100 steps", partial(lstm, 1.0), signal, "time"),
    ("nn.LSTM, forget bias 3, 100 steps", partial(lstm, 3.0), signal, "time"),
)


def report_reference(architectures: Sequence[Architecture] = REFERENCE) -> None:
    print(f"{'architecture':<40} {'steps':<28} {'log gain, nats':>15} {'per step':>9}")
    for name, build, inputs, steps in architectures:
        found = measure(build, inputs, seeds=2, steps=steps)
        gain = found.log_gain.mean
        print(f"{name:<40} {found.steps.description:<28} {gain:>+15.2f} {gain / len(found.steps):>+9.3f}", flush=True)


# Memory ---------------------------------------------------------------------------------------------------------------

RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "nn.GRU, PyTorch's weights": partial(recurrent, nn.GRU),
    "nn.LSTM, PyTorch's weights": partial(recurrent, nn.LSTM),
    "nn.LSTM, forget bias 1": partial(lstm, 1.0),
    "nn.LSTM, forget bias 2": partial(lstm, 2.0),
    "nn.LSTM, forget bias 3": partial(lstm, 3.0),
    "tanh, orthogonal, gain 0.8": partial(rnn, 0.8),
    "tanh, orthogonal, gain 0.9": partial(rnn, 0.9),
    "tanh, orthogonal, gain 1": partial(rnn, 1.0),
}


def report_memory(
    layers: Mapping[str, Callable[[], nn.Module]] = RECURRENT,
    lengths: Sequence[int] = (20, 50, 100),
    *,
    steps: int = 200,
) -> None:
    """Print the log gain over the steps, and the loss of a task whose answer only the first step shows."""
    print(f"{'layer':<32} {'steps':>6} {'log gain, nats':>15} {'loss, nats':>11}")
    for name, build in layers.items():
        for length in lengths:
            case = Case(name, "rnn", build, partial(sequence, length=length), steps="time")
            gain = measure(build, seeds=2, **case.arguments).log_gain.mean
            loss = min(trained(case, 0, rate, steps=steps) for rate in (1e-3, 3e-3, 1e-2))
            print(f"{name:<32} {length:>6} {gain:>+15.1f} {loss:>11.2f}", flush=True)


# Models of transformers ---------------------------------------------------------------------------------------------

CONVOLUTIONAL = {"convnext", "resnet", "mobilenet-v2", "efficientnet", "regnet", "poolformer"}


def report_zoo(models: Sequence[zoo.Case] = zoo.CASES, seeds: int = 4) -> None:
    """Print the models that the presets of their families flag, on four seeds."""
    count = 0
    for model in models:
        found = measure(model.build, model.inputs, seeds=seeds)
        try:
            found.check(preset="cnn" if model.id in CONVOLUTIONAL else "transformer")
        except TrainabilityFailure as failure:
            count += 1
            print(f"{model.id}: {failure}\n", flush=True)
    print(f"flagged {count} of {len(models)}")


# Cost ---------------------------------------------------------------------------------------------------------------

TIMM = (
    *("cait_xxs24_224", "convit_tiny", "convnext_atto", "deit_tiny_patch16_224", "dla46_c", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientnet_b0", "fastvit_t8", "ghostnet_050", "hgnetv2_b0", "hrnet_w18_small"),
    *("inception_next_atto", "levit_128s", "mobilenetv3_small_050", "mobileone_s0", "mobilevit_xxs", "pit_ti_224"),
    *("regnetx_002", "regnety_002", "resnet18", "rexnet_100", "starnet_s1", "vit_tiny_patch16_224"),
)
"""Small models of timm, most of them from a file of their own."""
PIXELS, IMAGES = 128, 2
"""Height and width of the images for models of timm, where they accept this size, and their number."""
SMALL_STEP = 100
"""Milliseconds of a training step below which the fixed cost of a measurement counts."""


@dataclass(frozen=True)
class Subject:
    """A model whose default measurement is timed."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    target: Tensor | None = None

    @property
    def loss(self) -> Callable[..., Tensor] | None:
        """The loss; None where the model computes its own one, or there is none."""
        return None if self.target is None else nn.functional.cross_entropy

    def training_step(self, model: nn.Module) -> None:
        """Run the model forward and backward."""
        model.zero_grad(set_to_none=True)
        output = model(**self.inputs) if isinstance(self.inputs, dict) else model(self.inputs)
        loss = getattr(output, "loss", None) if self.loss is None else self.loss(output, self.target)
        roots, weights = functional(output, loss, 0)
        torch.autograd.backward(roots, weights)


def subject_of_timm(name: str) -> Subject:
    import timm

    cfg = timm.get_pretrained_cfg(name)
    size = cfg.input_size[-1] if cfg.fixed_input_size else PIXELS
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(IMAGES, 3, size, size, generator=generator)
    target = torch.randint(CLASSES, (IMAGES,), generator=generator)
    return Subject(f"{name} (timm)", partial(timm.create_model, name, num_classes=CLASSES), pixels, target)


def subject_of_zoo(case: zoo.Case) -> Subject:
    return Subject(case.id, case.build, case.inputs(torch.Generator().manual_seed(0)))


class Stopwatch:
    """Divides the time of a measurement into its parts, and counts the runs of its models.

    Args:
        build: Factory of the model.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.factory = Built(build)
        self.parts = Counter[str]()
        """Seconds by part, without those of builds."""
        self.runs = Counter[torch.dtype]()
        """Forward passes by the type of the first parameter."""
        self._part, self._since, self._built = "", time.process_time(), 0.0

    def build(self) -> nn.Module:
        """Build a model that counts its runs."""
        model = self.factory()
        model.register_forward_pre_hook(lambda module, _: self.runs.update([next(module.parameters()).dtype]))
        return model

    def watch(self, model: str, kind: str, text: str) -> None:
        """Begin another part; the receiver of ``Context.watch``."""
        now = time.process_time()
        self.parts[self._part] += now - self._since - (self.factory.seconds - self._built)
        self._part, self._since, self._built = text if kind == "now" else "", now, self.factory.seconds


@dataclass(frozen=True)
class DefaultCost:
    """Cost of the default measures of one model, per seed."""

    model: str
    step: float
    """Milliseconds of a training step."""
    ratio: float
    """Training steps that a measurement takes."""
    chain: str
    """Number of steps, and their division into trajectories."""
    runs: float
    """Forward passes."""
    other: float
    """Forward passes in another precision."""
    parts: Mapping[str, float]
    """Training steps that parts of the measurement take, the longest first."""

    def __str__(self) -> str:
        where = ", ".join(f"{name} {steps:.2f}" for name, steps in [*self.parts.items()][:3])
        passes = f"{self.runs:.1f} ({self.other:.1f})"
        return f"{self.model:<30}{self.step:>7.0f} ms{self.ratio:>7.2f} {self.chain:<16}{passes:<11}{where}"


def default_cost(subject: Subject, seeds: int = SEEDS) -> DefaultCost:
    """Measure the default measures of a model, between training steps."""
    model = subject.build()

    def step() -> float:
        began = time.process_time()
        subject.training_step(model)
        return time.process_time() - began

    step()
    before = [step(), step()]
    model.zero_grad(set_to_none=True)
    gc.collect()
    watch = Stopwatch(subject.build)
    began = time.process_time()
    found = measure_in(
        Context(watch=watch.watch),
        watch.build,
        subject.inputs,
        target=subject.target,
        loss=subject.loss,
        seeds=seeds,
        device="cpu",
    )
    seconds = time.process_time() - began - watch.factory.seconds
    alone = statistics.fmean([*before, step(), step()])
    dtype = next(model.parameters()).dtype
    other = sum(count for kind, count in watch.runs.items() if kind != dtype)
    parts = {name or "the rest": took / seeds / alone for name, took in watch.parts.most_common()}
    return DefaultCost(
        subject.name,
        1000 * alone,
        seconds / seeds / alone,
        f"{len(found.steps)} {found.frame}",
        sum(watch.runs.values()) / seeds,
        other / seeds,
        parts,
    )


def report_cost(subjects: Sequence[Callable[[], Subject]], seeds: int = SEEDS, *, record: bool = False) -> None:
    """Print the cost of the default measures on each model, where their time goes, and the medians.

    Args:
        subjects: Functions that make the models.
        seeds: Number of seeds.
        record: Whether to write the table of docs/cost.md.
    """
    # The first measurement of a process imports modules.
    default_cost(Subject("", partial(nn.Sequential, nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(4, 4)), 1)
    print(f"{'model':<30}{'step':>10}{'steps':>7} {'chain':<16}{'forward':<11}training steps by part")
    costs = []
    for subject in subjects:
        given = subject()
        try:
            costs.append(default_cost(given, seeds))
        except Exception as error:
            print(f"{given.name:<30} {type(error).__name__}: {error}", flush=True)
            continue
        print(costs[-1], flush=True)
    for summary, _ in groups(costs):
        print(summary)
    if record:
        write_between(ROOT / "docs" / "cost.md", "architectures", table_of_costs(costs))


def groups(costs: Sequence[DefaultCost]) -> Iterator[tuple[str, list[DefaultCost]]]:
    """Yield the models with long and with short training steps, the slowest first, and a line about them."""
    for what, chosen in (
        (f"training steps of at least {SMALL_STEP} ms", [c for c in costs if c.step >= SMALL_STEP]),
        ("shorter training steps", [c for c in costs if c.step < SMALL_STEP]),
    ):
        if chosen:
            ratios = [cost.ratio for cost in chosen]
            summary = f"{len(chosen)} models, median {statistics.median(ratios):.1f}, at most {max(ratios):.1f}"
            yield f"{what}: {summary}", sorted(chosen, key=lambda cost: -cost.ratio)


def table_of_costs(costs: Sequence[DefaultCost], slowest: int = 6) -> str:
    """Return the medians, and the slowest models with what they take, as text of a page."""
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} thread, {SEEDS} seeds, {date.today().isoformat()}:"]
    for summary, chosen in groups(costs):
        lines += ["", f"{summary[0].upper()}{summary[1:]}. The slowest:", ""]
        lines += [
            "| model | training step | cost | chain | forward passes (in another precision) | where the time goes |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for c in chosen[:slowest]:
            where = ", ".join(f"{name} {steps:.1f}" for name, steps in [*c.parts.items()][:3])
            lines.append(
                f"| {c.model} | {c.step:.0f} ms | {c.ratio:.1f} | {c.chain} | {c.runs:.1f} ({c.other:.1f}) | {where} |"
            )
    return "\n".join(lines)


SUBJECTS: tuple[Callable[[], Subject], ...] = (
    *(partial(subject_of_zoo, case) for case in zoo.CASES),
    *(partial(subject_of_timm, name) for name in TIMM),
)
"""Functions that make the models of which :func:`report_cost` prints the cost."""


def report_tiny() -> None:
    """Run each report on one model and one seed."""
    report_reference(REFERENCE[:1])
    report_memory({name: RECURRENT[name] for name in [*RECURRENT][-1:]}, lengths=(10,), steps=5)
    report_zoo(zoo.CASES[:1], seeds=1)
    report_cost(SUBJECTS[:1], seeds=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", action="store_true", help="measure well-known architectures")
    parser.add_argument("--memory", action="store_true", help="train recurrent layers on sequences")
    parser.add_argument("--zoo", action="store_true", help="judge the models of transformers")
    parser.add_argument("--cost", action="store_true", help="time the default measures")
    parser.add_argument("--record", action="store_true", help="with --cost: write the table of docs/cost.md")
    parser.add_argument("--tiny", action="store_true", help="one model for each report: checks that they run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    reports: dict[Callable[[], None], bool] = {
        report_reference: given.reference,
        report_memory: given.memory,
        report_zoo: given.zoo,
        partial(report_cost, SUBJECTS, record=given.record): given.cost,
        report_tiny: given.tiny,
    }
    for report, asked in reports.items():
        if asked:
            report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
