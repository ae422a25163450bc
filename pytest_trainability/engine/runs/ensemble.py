"""The same measurement on several seeds: running and cutting the model, and letting measures read the runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from ...errors import CutError, ModelError, UsageError
from ..capture.chain import Chain, chain_of, graph_of
from ..capture.fused_rnn import Unrolling
from ..capture.graph import Graph, freed_in_order
from ..capture.initial_states import initial_states
from ..capture.ode_solvers import solver_steps
from ..capture.recorder import Call, Capture
from ..capture.recurrence import chain_along, choose_recurrence, find_recurrences
from ..capture.rollout import Rollout
from ..capture.steps import choose_steps
from ..isolation import digest, generator_state, preserved_world
from ..jacobian.sample_independence import find_trajectories
from ..jacobian.trajectories import Trajectories
from ..trees import batch_size
from .building import built
from .description import Cutting, Ensemble, Plan, described
from .forward_pass import forward_pass, outlines
from .recipe import Recipe, did_not_fit
from .run import Need, Run, with_dependencies

__all__ = ["ALONG_TIME", "ensemble"]


ALONG_TIME = (initial_states, Unrolling, solver_steps)
"""What makes time steps visible."""


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
        known: An earlier result of the same recipe: its steps and its division into trajectories are taken.
        enough: Decides after each seed, from what was read so far, whether to stop.

    The seed alone determines weights, inputs, dropout and cotangents. Weights, inputs and cotangents are drawn on the
    CPU and moved, so that they are the same on every device.

    Raises:
        ModelError: The model cannot be built or run, or gives nothing to measure.
        CutError: Its graph cannot be taken apart as asked.
    """
    wanted = with_dependencies(frozenset(needs))
    readings: list[Mapping[str, Any]] = []
    draws: list[str] = []
    previous: list[weakref.ref[nn.Module]] = []
    for seed in seeds:
        with preserved_world():
            if recipe.threads is not None and recipe.threads < torch.get_num_threads():
                torch.set_num_threads(recipe.threads)
            with built(recipe, seed, previous) as (model, drawn), freed_in_order() as nodes:
                known, reading, given, drew = _read_once(
                    recipe.for_model(model), model, seed, wanted, read, known, nodes
                )
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
    capture = forward_pass(recipe, model, seed, instruments=instruments)
    drew = digest(generator_state(), generator_state(capture.device))[:4]
    graph = graph_of(capture)
    nodes += graph.nodes
    cutting = _cut(recipe, capture, graph, along, known, seed)
    chain, first = cutting.chain, None
    _check_window(recipe, chain, seed)
    try:
        if known is None:
            trajectories, first = find_trajectories(chain, batch_size(capture.inputs), seed)
            known = described(recipe, capture, graph, cutting, trajectories.division)
        run = Run(
            seed,
            recipe,
            capture,
            graph,
            Trajectories(chain, known.plan.division),
            cutting.recurrences,
            cutting.recurrence,
            time_instruments=ALONG_TIME if along is not None else (),
            first_sweep=first,
        )
        run.fulfil(wanted)
    except torch.OutOfMemoryError as error:
        raise ModelError(did_not_fit(model, capture.device)) from error
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
    return known, read(run), list(outlines(capture.inputs)), drew


def _cut(
    recipe: Recipe, capture: Capture, graph: Graph, along: str | None, known: Ensemble | None, seed: int
) -> Cutting:
    if along is None:
        calls = _chosen(capture, graph, recipe) if known is None else _planned(known.plan, capture, seed)
        return Cutting(chain_of(capture, graph, calls), calls)
    recurrences = find_recurrences(capture, graph)
    chosen = choose_recurrence(capture, recurrences, along if known is None else known.plan.recurrence)
    return Cutting(chain_along(chosen), chosen.calls, recurrences, chosen)


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


def _planned(plan: Plan, capture: Capture, seed: int) -> list[Call]:
    """Return the calls of this run that are steps; stochastic depth may have left some out.

    Raises:
        CutError: None of them was made.
    """
    calls = [call for call in capture.calls if (call.path, call.index) in plan.calls]
    if not calls:
        msg = (
            f"every seed must take a step of the first one's. Seed {seed} takes none: are all layers dropped at random? "
            "Measure with train=False, or name steps that are always taken."
        )
        raise CutError(msg)
    return calls


def _chosen(capture: Capture, graph: Graph, recipe: Recipe) -> list[Call]:
    try:
        return choose_steps(capture, graph, recipe.steps)
    except UsageError as error:
        if not recipe.steps_from_plugin:
            raise
        msg = (
            "what pytest_trainability_steps of a plugin returns must be steps of the model. "
            f"It returned {recipe.steps!r}: {error}"
        )
        raise UsageError(msg) from None
