"""A model with its data: the terms in which faults and healthy models are described, and tasks that can be learned."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

Build = Callable[[], nn.Module]
BuildTwin = Callable[[bool], nn.Module]
"""Builds the flawed model if its argument is true, else the healthy twin."""
Task = Callable[[torch.Generator], tuple[Any, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Family = Literal["mlp", "cnn", "transformer", "rnn"]

WIDTH = 64
CLASSES = 10
VOCAB = 32
LENGTH = 16


@dataclass(frozen=True)
class Right:
    """What a report on a fault ought to say. It is written from the fault, before any report is read."""

    place: tuple[str, ...]
    """Patterns of the names of modules and parameters that are at fault, or of their classes."""
    cause: str = ""
    """Regular expression of an explanation; what a baseline says about a right parameter or module counts as well."""
    cure: bool = False
    """Whether other weights, gains or biases, a normalization or a factor removed would mend the fault."""
    visible: bool = True
    """Whether anything about the model is wrong before training."""


@dataclass(frozen=True)
class Case:
    """One model with what it is fed.

    `task` draws inputs and labels; models that compute their loss take the labels with their inputs, and have no `loss`.
    """

    id: str
    family: Family
    build: Build
    task: Task
    loss: Loss | None = F.cross_entropy
    steps: str = "auto"
    number: int | None = None
    """In the list of faults; None for a healthy model."""
    twin: Case | None = None
    """The same without the fault; None for a healthy model."""
    caught_by: tuple[str, ...] = ()
    """Measures that ought to catch it; "baseline" stands for a comparison with the twin."""
    score: Loss | None = None
    """What training is judged by, where it is not the loss; in nats."""
    rounded: torch.dtype | None = None
    """Type that gradients pass through in training."""
    dtype: str | None = None
    """Type that the model is measured in; None for the type of its weights."""
    train: bool = True
    """Whether the model is measured in training mode."""
    right: Right | None = None
    """What a report ought to say; None for a healthy model."""
    unseen: Literal["", "C", "D"] = ""
    """The list that it is on, if it was written by someone who had not seen the code."""

    def inputs(self, generator: torch.Generator) -> Any:
        """Draw what the model is fed."""
        return self.task(generator)[0]

    def labels(self, generator: torch.Generator) -> Tensor:
        """Draw the labels of what the generator has drawn from its seed on."""
        return self.task(torch.Generator().manual_seed(generator.initial_seed()))[1]

    @property
    def arguments(self) -> dict[str, Any]:
        """What `measure` takes beside the seeds."""
        given: dict[str, Any] = {"inputs": self.inputs, "steps": self.steps, "name": self.id}
        given |= {"dtype": self.dtype, "train": self.train}
        return given | ({"loss": self.loss, "target": self.labels} if self.loss is not None else {})


def half(case: Case) -> Literal["A", "B"]:
    """Return the half of a fault, by a hash of its name: thresholds may be chosen on A, and B is reported beside it."""
    return "AB"[hashlib.sha256(case.id.encode()).digest()[0] % 2]  # type: ignore[return-value]


def group(case: Case) -> Literal["A", "B", "C", "D"]:
    """Return the list of an unseen fault, on which no threshold may be chosen before it has been scored; else the half."""
    return case.unseen or half(case)


def twins(
    name: str,
    family: Family,
    build: BuildTwin,
    task: Task,
    right: Right,
    *,
    loss: Loss | None = F.cross_entropy,
    **changes: Any,
) -> Case:
    """Return a fault with its healthy twin, which differ in the argument of `build` only."""
    healthy = Case(f"{name}, twin", family, partial(build, False), task, loss, **changes)
    return replace(healthy, id=name, build=partial(build, True), twin=healthy, right=right)


# Tasks ------------------------------------------------------------------------------------------------------------


def _fixed(*shape: int) -> Tensor:
    """Draw what defines a task, the same for all seeds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(12345 + shape[0]))


def vectors(
    generator: torch.Generator, *, batch: int = 16, scale: float = 1.0, shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw four clusters a class, in a space of eight dimensions that no hyperplanes divide; about unit variance."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    which = torch.randint(4, (batch,), generator=generator)
    centers = _fixed(CLASSES * 4, 8) @ _fixed(8, WIDTH) / math.sqrt(8)
    noise = torch.randn(batch, WIDTH, generator=generator)
    standard = math.sqrt(0.9) * centers[4 * labels + which] + math.sqrt(0.1) * noise
    return scale * standard + shift, labels


def images(
    generator: torch.Generator, *, batch: int = 12, size: int = 8, scale: float = 1.0, shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw gratings of ten wave vectors, of any phase, in noise; unit variance."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    angle = math.pi * (labels % 5) / 5
    rate = 0.8 + 0.9 * (labels // 5)
    phase = 2 * math.pi * torch.rand(batch, generator=generator)
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    wave = torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y
    grating = math.sqrt(2) * torch.sin(rate[:, None, None] * wave + phase[:, None, None])
    noise = torch.randn(batch, 3, size, size, generator=generator)
    standard = math.sqrt(0.8) * grating[:, None] + math.sqrt(0.2) * noise
    return scale * standard + shift, labels


bytes_of_vectors = partial(vectors, scale=64.0, shift=127.5)
bytes_of_images = partial(images, scale=64.0, shift=127.5)


def _walk(generator: torch.Generator, batch: int, length: int) -> Tensor:
    """Draw walks on a ring of tokens whose step is drawn once each: the next token follows from the two before it."""
    start, stride = torch.randint(VOCAB, (2, batch, 1), generator=generator)
    stride = 1 + stride % 4
    return (start + stride * torch.arange(length)) % VOCAB


def text(generator: torch.Generator, *, batch: int = 4) -> tuple[Tensor, Tensor]:
    walk = _walk(generator, batch, LENGTH + 1)
    return walk[:, :-1], walk[:, 1:]


def labelled_text(generator: torch.Generator, *, batch: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the same for models that shift their labels and compute their loss."""
    walk = _walk(generator, batch, LENGTH)
    return {"input_ids": walk, "labels": walk}, walk


def fields(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw four numbers of rows of a table, and labels that have nothing to do with them."""
    draw = partial(torch.randint, generator=generator)
    return draw(100, (32, 4)), draw(CLASSES, (32,))


def translation(generator: torch.Generator, *, batch: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    """Draw a walk as source, and the walk backward as target."""
    source = _walk(generator, batch, LENGTH)
    target = source.flip(1)
    return {"source": source, "target": target[:, :-1]}, target[:, 1:]


def sequence(generator: torch.Generator, *, batch: int = 8, length: int = 100) -> tuple[Tensor, Tensor]:
    """Draw a vector of some class, then noise only; the label is asked for at the end."""
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    signal = torch.randn(batch, length, WIDTH, generator=generator)
    signal[:, 1:] *= 0.1
    signal[:, 0] = _fixed(CLASSES, WIDTH)[labels]
    return signal, labels


many_tokens = partial(text, batch=8)


def conditioned(draw: Task, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Add a condition to what is drawn."""
    inputs, labels = draw(generator)
    return (inputs, torch.randn(len(labels), WIDTH, generator=generator)), labels


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over all positions."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def of_probabilities(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a model that has applied the softmax itself."""
    return F.nll_loss(probabilities.clamp_min(1e-30).log(), labels)
