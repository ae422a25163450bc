"""What the runs of all seeds have in common: steps, mode, device, notes, and facts about each step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...records.estimates import Steps
from ...records.reports import StepFacts
from ..capture.chain import Chain, describe
from ..capture.graph import Graph
from ..capture.recorder import Call, Capture
from ..capture.recurrence import Recurrence
from ..jacobian.trajectories import Division
from ..trees import batch_size, tensors_in
from .recipe import Recipe

__all__ = ["Ensemble", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the first seed's run decides for all: which calls are steps, and how states are divided into trajectories."""

    calls: frozenset[tuple[str, int]]
    division: Division
    recurrence: str = ""
    """Name of the recurrence along time that is measured."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """A run's chain, and where it comes from."""

    chain: Chain
    calls: Sequence[Call]
    """Those that were chosen; not all need lie on the chain."""
    recurrences: Sequence[Recurrence] = ()
    """Along time: all that there are."""
    recurrence: Recurrence | None = None
    """The one that was chosen."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What the runs of a measurement have in common, and what was read from each."""

    model_name: str
    """Class of the model."""
    steps: Steps
    mode: str
    device: str
    dtype: str
    along: str
    """``"depth"`` or ``"time"``."""
    time: float | None
    """Time that the chain spans; None where steps are counted."""
    facts: tuple[StepFacts, ...]
    """About the first seed's steps, for the likely cause of a failure."""
    notes: tuple[str, ...]
    plan: Plan
    seeds: tuple[int, ...] = ()
    """Those that were run."""
    readings: tuple[Mapping[str, Any], ...] = ()
    """What ``read`` took from each seed's run."""
    draws: tuple[str, ...] = ()
    """Per seed, a digest of torch's generator once the model was built, and of the inputs' shapes and means: equal where as
    many numbers were drawn from the same seed for the same inputs. Behind it, one of the generators after the forward pass:
    equal where that drew as many, for dropout."""


# What is said about a measurement ---------------------------------------------------------------------------------
def described(recipe: Recipe, capture: Capture, graph: Graph, cutting: Cutting, division: Division) -> Ensemble:
    """Say what all runs have in common, from the first one; nothing has been read yet."""
    chain, chosen = cutting.chain, cutting.recurrence
    parameters = list(capture.model.parameters())
    dtype = parameters[0].dtype if parameters else next(tensors_in(capture.inputs)).dtype
    notes = [*_notes(recipe, capture, chain), *capture.notes]
    if chosen is not None:
        notes += _notes_on_time(chosen, chain, capture.device)
    return Ensemble(
        model_name=type(capture.model).__name__,
        steps=Steps(chain.names, describe(chain.steps), _left_out(cutting)),
        mode="train" if capture.model.training else "eval",
        device=str(capture.device),
        dtype=str(dtype).removeprefix("torch."),
        along=chain.along,
        time=sum(chain.durations) if chain.durations else None,
        facts=_facts(chain, graph),
        notes=tuple(notes),
        plan=Plan(
            frozenset((call.path, call.index) for call in cutting.calls),
            division,
            chosen.name if chosen is not None else "",
        ),
    )


def _left_out(cutting: Cutting) -> str:
    chain, chosen = cutting.chain, cutting.recurrence
    if chosen is not None:
        others = [f"steps='time:{recurrence.name}'" for recurrence in cutting.recurrences if recurrence is not chosen]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return f"other recurrences, {', '.join(others[:3])}{more}" if others else ""
    calls = [call for call in chain.left_out if type(call.module) in {type(step.module) for step in chain.steps}]
    parent = calls[0].path.rpartition(".")[0] if calls else ""
    return (describe(calls) + (f" ({parent})" if parent else "")) if calls else ""


def _notes_on_time(chosen: Recurrence, chain: Chain, device: torch.device) -> Iterator[str]:
    if chain.steps[0] is not chosen.calls[0]:
        yield "the chain begins with the second step: what the first one starts from cannot be told from other tensors"
    if chain.steps[-1] is not chosen.calls[-1]:
        yield "the chain ends before the last step: what that carries on cannot be told from other tensors"
    if chosen.sequences > 1:
        yield (
            f"{chosen.name!r} is run on {chosen.sequences} sequences that do not depend on each other, or its gradient is cut by "
            ".detach(): the longest stretch is measured"
        )
    module = chosen.calls[0].module
    if isinstance(module, nn.RNNBase) and module.training and module.dropout and device.type != "cpu":
        yield f"{chosen.name!r} draws other dropout masks than its fused kernel does"


def _notes(recipe: Recipe, capture: Capture, chain: Chain) -> Iterator[str]:
    if recipe.fixed and list(capture.model.parameters()):
        yield "a finished module is one draw of its weights; hand in a factory to average over seeds"
    if len(chain) == 1:
        yield "the chain has one step only: its growth rate says little about depth"
    if before := _before(capture, chain):
        yield f"before the chain begins, with weights of their own: {before}"
    if chain.along == "depth" and any(isinstance(c.module, (nn.RNNBase, nn.RNNCellBase)) for c in capture.calls):
        yield "the model is recurrent, and was taken apart along depth: steps='time' does so along time"
    if not capture.inputs_carry_gradient and chain.along == "depth":
        yield "the model does not take inputs that require grad: the first state starts at the first parameter"
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in capture.model.modules())
    if batch_norm and batch_size(capture.inputs) == 1 and capture.device.type == "cpu":
        yield (
            "BatchNorm on a batch of one: PyTorch 2.13 on the CPU can compute a wrong gradient here; use two samples "
            "or more"
        )


def _before(capture: Capture, chain: Chain) -> str:
    """Name the layers with weights that the signal passes before the first step: a stem. Embeddings stand there by nature."""
    calls = [
        call
        for call in capture.calls
        if call.end <= chain.steps[0].start
        and not isinstance(call.module, (nn.Embedding, nn.EmbeddingBag))
        and any(p.dim() >= 2 for p in call.module.parameters(recurse=False))
    ]
    names = list(dict.fromkeys(call.path for call in calls))
    names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        if chain.along == "depth"
        else ""
    )


def _facts(chain: Chain, graph: Graph) -> tuple[StepFacts, ...]:
    known: dict[nn.Module, StepFacts] = {}
    facts = []
    for name, call, names in zip(chain.names, chain.steps, chain.operations(graph)):
        if call.module not in known:
            known[call.module] = _step_facts(call, recurrent=chain.along == "time")
        facts.append(replace(known[call.module], name=name, operations=names))
    return tuple(facts)


def _step_facts(call: Call, *, recurrent: bool) -> StepFacts:
    """Return what a step's module says, before name and operations."""
    module = call.module
    weights = {path: p for path, p in module.named_parameters() if p.dim() >= 2}
    carrying = [p for path, p in weights.items() if recurrent and "weight_hh" in path]
    largest = max(carrying or weights.values(), key=lambda p: p.numel(), default=None)
    fan_in = 0 if largest is None else math.prod(largest.shape[1:])
    return StepFacts(
        "",
        call.kind,
        math.nan if largest is None else _standard_deviation(largest),
        fan_in,
        len(weights),
        (),
        recurrent,
        _forget_bias(module) if recurrent else math.nan,
    )


def _forget_bias(module: nn.Module) -> float:
    if not isinstance(module, (nn.LSTM, nn.LSTMCell)) or not module.bias:
        return math.nan
    biases = [p.detach() for path, p in module.named_parameters() if path.startswith("bias_")]
    return sum(float(p.chunk(4)[1].float().mean()) for p in biases) / (len(biases) / 2)


def _standard_deviation(weight: Tensor) -> float:
    values = weight.detach()
    return float((values if values.is_complex() else values.float()).std(correction=0))
