"""Flagged faults, flagged healthy models, and faults that train worse than their healthy twins.

    python benchmarks/faults.py               # everything, in a few minutes on one core
    python benchmarks/faults.py --untrained   # flags only, in half a minute
    python benchmarks/faults.py 7 14 22       # some of the faults, by number
    python benchmarks/faults.py --reference   # log gain of well-known architectures: the reference of the bounds
    python benchmarks/faults.py --memory      # log gain of recurrent layers, and loss of a task that requires memory
    python benchmarks/faults.py --zoo         # flags of all small models of transformers in tests/zoo.py
    python benchmarks/faults.py --tiny        # checks in a few seconds that all of these run

The faults and the healthy models are those of ``tests/faults.py``. Two checks can flag a model: the preset of its family
(``pytest_trainability/checks/presets.py``) on eight seeds, and the comparison with the baseline of the healthy twin on the same
seeds, at the tolerances of the measures. The fault and its twin are then trained on a task that can be learned, for the same
number of steps at each of three learning rates; the best rate counts for each. The optimizer is SGD with momentum for
multi-layer perceptrons and convolutions, and Adam with clipped gradients for transformers and recurrent networks. The loss is
the mean over the last fifth of the steps. A fault trains worse if its loss exceeds its twin's by more than the margin on every
seed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from torchvision_for_cpu import declare_torchvision_operators

declare_torchvision_operators()

import zoo
from faults import (
    CLASSES,
    FAULTS,
    HEALTHY,
    VOCAB,
    WIDTH,
    Case,
    Reader,
    changed,
    flagged,
    he,
    lenet,
    lstm,
    measured,
    rnn,
    sequence,
)

from pytest_trainability import TrainabilityFailure, measure
from pytest_trainability.measurement import Measurement

MARGIN = 0.1
"""In nats: about the spread of the losses of healthy twins over seeds."""
UNREPEATABLE = {27}
"""Faults whose training differs from run to run: a parameter of ``torch.empty`` holds the previous content of the memory."""


@dataclass
class Sizes:
    """Numbers of seeds and steps; ``--tiny`` reduces them."""

    seeds: range = range(8)
    """Seeds of a measurement."""
    trained: tuple[int, ...] = (0, 1)
    """Seeds of training."""
    steps: int | None = None
    """Training steps; None for those of the family."""


SIZES = Sizes()


@dataclass(frozen=True)
class Budget:
    """Training of a family: optimizer, learning rates, steps, batch size and gradient clipping."""

    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    rates: tuple[float, ...]
    steps: int
    batch: int
    clip: float = math.inf


def sgd(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def adam(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate)


BUDGETS = {
    "mlp": Budget(sgd, (0.003, 0.01, 0.03), 200, 64),
    "cnn": Budget(sgd, (0.003, 0.01, 0.03), 60, 32),
    "transformer": Budget(adam, (3e-4, 1e-3, 3e-3), 80, 8, clip=1.0),
    "rnn": Budget(adam, (3e-4, 1e-3, 3e-3), 80, 32, clip=1.0),
}


# Training ---------------------------------------------------------------------------------------------------------


def trained(case: Case, seed: int, rate: float, *, steps: int | None = None) -> float:
    """Train one model; return the mean loss over the last fifth of the steps, or infinity where it is not finite."""
    budget = BUDGETS[case.family]
    count = SIZES.steps or steps or budget.steps
    torch.manual_seed(seed)
    model, losses = case.build(), []
    optimizer = budget.optimizer(model.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        losses.append(step(case, model, optimizer, budget, generator))
        if not math.isfinite(losses[-1]):
            return math.inf
    last = losses[-(count // 5) :]
    return sum(last) / len(last)


def step(
    case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, budget: Budget, generator: torch.Generator
) -> float:
    """Take one step on a fresh batch; return the score of the training, which is the loss by default."""
    inputs, labels = case.task(generator, batch=budget.batch)
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    assert case.loss is not None
    loss = case.loss(output, labels)
    score = loss if case.score is None else case.score(output.detach(), labels)
    optimizer.zero_grad()
    loss.backward()
    if case.rounded is not None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to(case.rounded).to(parameter.dtype)
    if math.isfinite(budget.clip):
        clip_grad_norm_(model.parameters(), budget.clip)
    optimizer.step()
    return float(score.detach())


@cache
def losses(case: Case) -> tuple[float, ...]:
    """Return the loss after training per seed, at the learning rate that is best on the first seed."""
    seed, *others = SIZES.trained
    first = {rate: trained(case, seed, rate) for rate in BUDGETS[case.family].rates}
    best = min(first, key=first.__getitem__)
    return (first[best], *(trained(case, other, best) for other in others))


def trains_worse(case: Case) -> bool:
    assert case.twin is not None
    return min(losses(case)) > max(losses(case.twin)) + MARGIN


# Flags ------------------------------------------------------------------------------------------------------------


@cache
def measurement(case: Case) -> Measurement:
    return measured(case, SIZES.seeds)


def flags_of(case: Case) -> tuple[list[str], list[str]]:
    """Return the measures that the preset flags, and the measures that differ from the baseline of the twin."""
    assert case.twin is not None
    found = measurement(case)
    return list(flagged(case, found)), list(changed(measurement(case.twin), found))


# The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The results of one fault."""

    case: Case
    preset: Sequence[str]
    baseline: Sequence[str]
    loss: float = math.nan
    twin: float = math.nan
    worse: bool | None = None
    """Whether the fault trains worse; None where it was not trained."""

    def __str__(self) -> str:
        verdict = {True: "worse", False: "no worse", None: ""}[self.worse]
        trained = "" if self.worse is None else f"{self.loss:6.2f} {self.twin:6.2f}  {verdict}"
        return (
            f"{self.case.number:>3} {self.case.id:<52} {', '.join(self.preset) or '–':<46} "
            f"{', '.join(self.baseline) or '–':<48} {trained}"
        ).rstrip()


def row(case: Case, *, train: bool) -> Row:
    preset, baseline = flags_of(case)
    if not train or case.number in UNREPEATABLE:
        return Row(case, preset, baseline)
    assert case.twin is not None
    loss, twin = (sum(losses(c)) / len(SIZES.trained) for c in (case, case.twin))
    return Row(case, preset, baseline, loss, twin, trains_worse(case))


HEAD = f"{'#':>3} {'fault':<52} {'flagged by the preset':<46} {'moved from the baseline':<48} {'loss':>6} {'twin':>6}"


def report_faults(cases: Sequence[Case], *, train: bool) -> list[Row]:
    print(HEAD)
    rows = []
    for case in cases:
        rows.append(row(case, train=train))
        print(rows[-1], flush=True)
    return rows


def report_healthy(cases: Sequence[Case]) -> int:
    """Print the flagged healthy models, and return their number."""
    count = 0
    for case in cases:
        found = flagged(case, measurement(case))
        count += bool(found)
        if found:
            print(f"healthy and flagged: {case.id}: {', '.join(found)}", flush=True)
    return count


def summary(rows: Sequence[Row], healthy: int, healthy_flagged: int) -> str:
    preset = sum(bool(row.preset) for row in rows)
    either = sum(bool(row.preset or row.baseline) for row in rows)
    judged = [row for row in rows if row.worse is not None]
    worse = [row for row in judged if row.worse]
    parts = [
        f"faults flagged by the preset {preset} of {len(rows)}, by the preset or the baseline {either}",
        f"healthy models flagged {healthy_flagged} of {healthy}",
    ]
    if judged:
        known = sum(bool(row.preset or row.baseline) for row in worse)
        parts.append(f"trained worse {len(worse)} of {len(judged)} faults, of which {known} are flagged")
    return "; ".join(parts)


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
    layers: Mapping[str, Callable[[], nn.Module]] = RECURRENT, lengths: Sequence[int] = (20, 50, 100)
) -> None:
    """Print the log gain over the steps, and the loss of a task whose answer only the first step shows."""
    print(f"{'layer':<32} {'steps':>6} {'log gain, nats':>15} {'loss, nats':>11}")
    for name, build in layers.items():
        for length in lengths:
            case = Case(name, "rnn", build, partial(sequence, length=length), steps="time")
            gain = measure(build, seeds=2, **case.arguments).log_gain.mean
            loss = min(trained(case, 0, rate, steps=200) for rate in (1e-3, 3e-3, 1e-2))
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


TINY_FAULT, TINY_TWIN = 7, "shallow tanh network"


def report_tiny() -> None:
    """Run each report on one model, one seed and five steps of training."""
    SIZES.seeds, SIZES.trained, SIZES.steps = range(1), (0,), 5
    cases = [case for case in FAULTS if case.number == TINY_FAULT]
    rows = report_faults(cases, train=True)
    healthy = [case for case in HEALTHY if case.id == TINY_TWIN]
    print(summary(rows, len(healthy), report_healthy(healthy)))
    report_reference(REFERENCE[:1])
    report_memory({name: RECURRENT[name] for name in [*RECURRENT][-1:]}, lengths=(10,))
    report_zoo(zoo.CASES[:1], seeds=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="numbers of the faults; default: all")
    parser.add_argument("--untrained", action="store_true", help="do not train")
    parser.add_argument("--reference", action="store_true", help="measure well-known architectures instead")
    parser.add_argument("--memory", action="store_true", help="train recurrent layers on sequences instead")
    parser.add_argument("--zoo", action="store_true", help="judge the models of transformers instead")
    parser.add_argument("--tiny", action="store_true", help="one model for each report: checks that they run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    others: dict[Callable[[], None], bool] = {
        report_reference: given.reference,
        report_memory: given.memory,
        report_zoo: given.zoo,
        report_tiny: given.tiny,
    }
    for report, asked in others.items():
        if asked:
            report()
            return 0
    began = time.perf_counter()
    cases = [case for case in FAULTS if not given.numbers or case.number in given.numbers]
    rows = report_faults(cases, train=not given.untrained)
    healthy = () if given.numbers else HEALTHY
    print()
    print(summary(rows, len(healthy), report_healthy(healthy)))
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
