"""Short training runs: whether a model trains worse than its twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from .cases import Case

MARGIN = 0.1
"""In nats: about the spread of the losses of healthy twins over seeds."""


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


def trained(case: Case, seed: int, rate: float, *, steps: int | None = None) -> float:
    """Train one model; return the mean loss over the last fifth of the steps, or infinity where it is not finite."""
    budget = BUDGETS[case.family]
    count = steps or budget.steps
    torch.manual_seed(seed)
    model, losses = case.build(), []
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = budget.optimizer(parameters, rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        losses.append(step(case, model, optimizer, budget, generator))
        if not math.isfinite(losses[-1]):
            return math.inf
    last = losses[-max(count // 5, 1) :]
    return sum(last) / len(last)


def step(
    case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, budget: Budget, generator: torch.Generator
) -> float:
    """Take one step on a fresh batch; return the score of the training, which is the loss by default."""
    inputs, labels = _batch(case, generator, budget.batch)
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    loss = output.mean() if case.loss is None else case.loss(output, labels)
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


def _batch(case: Case, generator: torch.Generator, size: int) -> tuple[object, torch.Tensor]:
    """Draw a batch of a size, or of the task's size if it has one only."""
    try:
        return case.task(generator, batch=size)  # type: ignore[call-arg]
    except TypeError:
        return case.task(generator)


@cache
def losses(case: Case, seeds: tuple[int, ...] = (0, 1), steps: int | None = None) -> tuple[float, ...]:
    """Return the loss after training per seed, at the learning rate that is best on the first seed."""
    seed, *others = seeds
    first = {rate: trained(case, seed, rate, steps=steps) for rate in BUDGETS[case.family].rates}
    best = min(first, key=first.__getitem__)
    return (first[best], *(trained(case, other, best, steps=steps) for other in others))


def trains_worse(case: Case, seeds: tuple[int, ...] = (0, 1), steps: int | None = None) -> bool:
    """Return whether the loss exceeds the twin's by more than the margin on every seed."""
    assert case.twin is not None
    return min(losses(case, seeds, steps)) > max(losses(case.twin, seeds, steps)) + MARGIN
