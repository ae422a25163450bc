"""Log gain of well-known architectures, memory of recurrent layers, and presets on models of transformers.

python benchmarks/architectures.py --reference   # log gain of well-known architectures: the reference of the bounds
python benchmarks/architectures.py --memory      # log gain of recurrent layers, and loss of a task that requires memory
python benchmarks/architectures.py --zoo         # flags of all small models of transformers in tests/zoo.py
python benchmarks/architectures.py --tiny        # checks in a few seconds that all of these run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from torchvision_for_cpu import declare_torchvision_operators

declare_torchvision_operators()

import zoo
from faults import CLASSES, VOCAB, WIDTH, Case, Reader, he, lenet, lstm, rnn, sequence
from faults.training import trained

from pytest_trainability import TrainabilityFailure, measure

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


def report_tiny() -> None:
    """Run each report on one model and one seed."""
    report_reference(REFERENCE[:1])
    report_memory({name: RECURRENT[name] for name in [*RECURRENT][-1:]}, lengths=(10,), steps=5)
    report_zoo(zoo.CASES[:1], seeds=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", action="store_true", help="measure well-known architectures")
    parser.add_argument("--memory", action="store_true", help="train recurrent layers on sequences")
    parser.add_argument("--zoo", action="store_true", help="judge the models of transformers")
    parser.add_argument("--tiny", action="store_true", help="one model for each report: checks that they run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    reports: dict[Callable[[], None], bool] = {
        report_reference: given.reference,
        report_memory: given.memory,
        report_zoo: given.zoo,
        report_tiny: given.tiny,
    }
    for report, asked in reports.items():
        if asked:
            report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
