"""The same measurement on several seeds: running and cutting the model, and letting measures read the runs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..errors import CutError, ModelError, UsageError
from ..records import StepFacts, Steps
from .capture import Call, Capture
from .chain import Chain, chain_of, describe, graph_of
from .exponents import SWEEP
from .frames import Frame
from .framing import find_frame
from .graph import Graph, freed_in_order
from .isolation import digest, generator_state, preserved_world
from .recipe import Recipe, built, did_not_fit, outlines, recorded
from .recurrence import Recurrence, chain_along, choose_recurrence, find_recurrences, initial_states
from .rollout import Rollout
from .run import Need, Run, with_further
from .solvers import solver_steps
from .steps import choose_steps
from .trees import batch_size, tensors_in
from .unroll import Unrolling

__all__ = ["ALONG_TIME", "Ensemble", "Plan", "ensemble"]

ALONG_TIME = (initial_states, Unrolling, solver_steps)
"""What makes time steps visible."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the first seed's run decides for all: which calls are steps, and the frame."""

    calls: frozenset[tuple[str, int]]
    frame: Frame
    recurrence: str = ""
    """Name of the recurrence along time that is measured."""


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


def ensemble(
    recipe: Recipe,
    seeds: Sequence[int],
    needs: Iterable[Need[Any]],
    read: Callable[[Run], Mapping[str, Any]],
    *,
    known: Ensemble | None = None,
    enough: Callable[[Sequence[Mapping[str, Any]]], bool] = lambda readings: False,
) -> Ensemble:
    """Run the recipe once per seed and let ``read`` take its numbers from every run.

    Args:
        recipe: What to run.
        seeds: One run each, in this order.
        needs: What ``read`` wants of a run.
        read: Takes numbers from a run, which is gone afterwards.
        known: An earlier result of the same recipe: its steps and frame are taken.
        enough: Asked after each seed, with what was read so far, whether to stop.

    The seed alone determines weights, inputs, dropout and cotangents. Weights, inputs and cotangents are drawn on the
    CPU and moved, so that they are the same on every device.

    Raises:
        ModelError: The model cannot be built or run, or gives nothing to measure.
        CutError: Its graph cannot be taken apart as asked.
    """
    wanted = with_further(frozenset(needs))
    readings: list[Mapping[str, Any]] = []
    draws: list[str] = []
    previous: list[weakref.ref[nn.Module]] = []
    for seed in seeds:
        with preserved_world():
            if recipe.threads is not None and recipe.threads < torch.get_num_threads():
                torch.set_num_threads(recipe.threads)
            with built(recipe, seed, previous) as (model, drawn), freed_in_order() as nodes:
                known, reading, given, drew = _read_once(recipe.of(model), model, seed, wanted, read, known, nodes)
                readings.append(reading)
                draws.append(f"{digest(drawn, *given)} {drew}")
        if enough(readings):
            break
    assert known is not None, "there is at least one seed"
    return replace(known, seeds=tuple(seeds[: len(readings)]), readings=tuple(readings), draws=tuple(draws))


def _read_once(
    recipe: Recipe,
    model: nn.Module,
    seed: int,
    wanted: frozenset[Need[Any]],
    read: Callable[[Run], Mapping[str, Any]],
    known: Ensemble | None,
    nodes: list[Node],
) -> tuple[Ensemble, Mapping[str, Any], list[bytes], str]:
    """Run the model, cut its graph and let ``read`` take its numbers.

    Returns:
        What the runs have in common, what was read, outlines of the inputs, and a digest of what the forward pass drew.
    """
    along = _along_time(recipe, model)
    watching = dict.fromkeys(i for need in sorted(wanted, key=lambda n: n.name) for i in need.instruments)
    instruments = (*(() if along is None else ALONG_TIME), *watching)
    record = recorded(recipe, model, seed, instruments=instruments)
    drew = digest(generator_state(), generator_state(record.device))[:4]
    graph = graph_of(record)
    nodes += graph.nodes
    cutting = _cut(recipe, record, graph, along, known, seed)
    chain, first = cutting.chain, None
    _check_window(recipe, chain, seed)
    try:
        if known is None:
            frame, first = find_frame(chain, batch_size(record.inputs), seed)
            known = _described(recipe, record, graph, cutting, frame)
        run = Run(seed, recipe, record, graph, chain, known.plan.frame, cutting.recurrences, cutting.recurrence)
        if first is not None and recipe.exponents == 1:
            run.found[SWEEP] = first
        run.fulfil(wanted)
    except torch.OutOfMemoryError as error:
        raise ModelError(did_not_fit(model, record.device)) from error
    except RuntimeError as error:
        if type(error).__name__ == "CheckpointError" and along is not None:
            msg = (
                "checkpointed parts of the model cannot be measured along time: they are computed again as they were, without "
                "their time steps. Switch checkpointing off for the measurement; it does not change the numbers."
            )
            raise CutError(msg) from error
        if "modified by an inplace operation" not in str(error):
            raise
        msg = (
            f"the backward pass must find what the forward pass has kept. {type(model).__name__} overwrites some of it in "
            "place, a cache or a state mostly, and cannot be trained like that either. Replace it instead (state = ..., not "
            "state.copy_(...)), or wrap what the module's forward does in torch.autograd.graph.saved_tensors_hooks(torch.clone, "
            "lambda t: t)."
        )
        raise ModelError(msg) from error
    return known, read(run), list(outlines(record.inputs)), drew


@dataclass(frozen=True, slots=True)
class _Cutting:
    """A run's chain, and where it comes from."""

    chain: Chain
    calls: Sequence[Call]
    """Those that were chosen; not all need lie on the chain."""
    recurrences: Sequence[Recurrence] = ()
    """Along time: all that there are."""
    recurrence: Recurrence | None = None
    """The one that was chosen."""


def _cut(
    recipe: Recipe, record: Capture, graph: Graph, along: str | None, known: Ensemble | None, seed: int
) -> _Cutting:
    if along is None:
        calls = _chosen(record, graph, recipe) if known is None else _planned(known.plan, record, seed)
        return _Cutting(chain_of(record, graph, calls), calls)
    recurrences = find_recurrences(record, graph)
    chosen = choose_recurrence(record, recurrences, along if known is None else known.plan.recurrence)
    return _Cutting(chain_along(chosen), chosen.calls, recurrences, chosen)


def _along_time(recipe: Recipe, model: nn.Module) -> str | None:
    """Return the name of the recurrence that is asked for, empty for whichever is longest; None where depth is."""
    if isinstance(recipe.steps, str):
        kind, _, name = recipe.steps.partition(":")
        if kind == "time":
            return name
        if kind == "auto" and isinstance(model, Rollout):
            return ""
    return None


def _check_window(recipe: Recipe, chain: Chain, seed: int) -> None:
    """See that a step is left to average over.

    Raises:
        UsageError: None is.
    """
    if recipe.warmup + recipe.alignment >= len(chain):
        msg = (
            "warmup and alignment must leave a step to average over. "
            f"Got {recipe.warmup} and {recipe.alignment} for a chain of {len(chain)} (seed {seed})."
        )
        raise UsageError(msg)


def _planned(plan: Plan, record: Capture, seed: int) -> list[Call]:
    """Return the calls of this run that are steps; stochastic depth may have left some out.

    Raises:
        CutError: None of them was made.
    """
    calls = [call for call in record.calls if (call.path, call.index) in plan.calls]
    if not calls:
        msg = (
            f"every seed must take a step of the first one's. Seed {seed} takes none: are all layers dropped at random? "
            "Measure with train=False, or name steps that are always taken."
        )
        raise CutError(msg)
    return calls


# What is said about a measurement ---------------------------------------------------------------------------------


def _described(recipe: Recipe, record: Capture, graph: Graph, cutting: _Cutting, frame: Frame) -> Ensemble:
    """Say what all runs have in common, from the first one; nothing has been read yet."""
    chain, chosen = cutting.chain, cutting.recurrence
    parameters = list(record.model.parameters())
    dtype = parameters[0].dtype if parameters else next(tensors_in(record.inputs)).dtype
    notes = [*_notes(recipe, record, chain), *record.notes]
    if chosen is not None:
        notes += _notes_on_time(chosen, chain, record.device)
    return Ensemble(
        model_name=type(record.model).__name__,
        steps=Steps(chain.names, describe(chain.steps), _left_out(cutting)),
        mode="train" if record.model.training else "eval",
        device=str(record.device),
        dtype=str(dtype).removeprefix("torch."),
        along=chain.along,
        time=sum(chain.durations) if chain.durations else None,
        facts=_facts(chain, graph),
        notes=tuple(notes),
        plan=Plan(
            frozenset((call.path, call.index) for call in cutting.calls),
            frame,
            chosen.name if chosen is not None else "",
        ),
    )


def _left_out(cutting: _Cutting) -> str:
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
    if chosen.runs > 1:
        yield (
            f"{chosen.name!r} is run on {chosen.runs} sequences that do not depend on each other, or its gradient is cut by "
            ".detach(): the longest stretch is measured"
        )
    module = chosen.calls[0].module
    if isinstance(module, nn.RNNBase) and module.training and module.dropout and device.type != "cpu":
        yield f"{chosen.name!r} draws other dropout masks than its fused kernel does"


def _notes(recipe: Recipe, record: Capture, chain: Chain) -> Iterator[str]:
    if recipe.fixed and list(record.model.parameters()):
        yield "a finished module is one draw of its weights; hand in a factory to average over seeds"
    if len(chain) == 1:
        yield "the chain has one step only: its growth rate says little about depth"
    if before := _before(record, chain):
        yield f"before the chain begins, with weights of their own: {before}"
    if chain.along == "depth" and any(isinstance(c.module, (nn.RNNBase, nn.RNNCellBase)) for c in record.calls):
        yield "the model is recurrent, and was taken apart along depth: steps='time' does so along time"
    if not record.inputs_carry_gradient and chain.along == "depth":
        yield "the model does not take inputs that require grad: the first state starts at the first parameter"
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in record.model.modules())
    if batch_norm and batch_size(record.inputs) == 1 and record.device.type == "cpu":
        yield (
            "BatchNorm on a batch of one: PyTorch 2.13 on the CPU can compute a wrong gradient here; use two samples "
            "or more"
        )


def _before(record: Capture, chain: Chain) -> str:
    """Name the layers with weights that the signal passes before the first step: a stem. Embeddings stand there by nature."""
    calls = [
        call
        for call in record.calls
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


def _chosen(record: Capture, graph: Graph, recipe: Recipe) -> list[Call]:
    try:
        return choose_steps(record, graph, recipe.steps)
    except UsageError as error:
        if not recipe.told:
            raise
        msg = (
            "what pytest_trainability_steps of a plugin returns must be steps of the model. "
            f"It returned {recipe.steps!r}: {error}"
        )
        raise UsageError(msg) from None


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
