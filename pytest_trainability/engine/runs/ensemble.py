"""The same measurement on several seeds: run the model, cut its graph, and let measures read the run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from traceback import walk_tb
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from ...errors import CutError, ModelError, TrainabilityError, UsageError
from ..capture.chain import Chain, chain_of, graph_of
from ..capture.fused_rnn import Unrolling
from ..capture.graph import Graph, freed_in_order
from ..capture.initial_states import initial_states
from ..capture.ode_solvers import solver_steps
from ..capture.recorder import Call, Capture, Instrument
from ..capture.recurrence import chain_along, choose_recurrence, find_recurrences
from ..capture.rollout import Rollout
from ..capture.steps import choose_steps
from ..isolation import default_device, derived_seed, digest, generator_state, other_draws, preserved_world
from ..jacobian.sample_independence import find_trajectories
from ..jacobian.skips import log_gain_without_skips
from ..jacobian.trajectories import Trajectories
from ..torch_internals import arose_in_backward, is_unsupported_here
from ..trees import batch_size
from .building import built, device_of
from .description import Cutting, Ensemble, Plan, described
from .finiteness import NotFinite, entries_not_finite
from .forward_pass import forward_pass, outlines
from .gradient_remarks import STOPPED_GRADIENTS
from .gradient_terms import TermObserver, observe_terms
from .recipe import NO_KERNEL, Recipe, did_not_fit, sentence
from .run import Need, Run, Stage, with_dependencies

__all__ = ["ALONG_TIME", "ensemble"]


ALONG_TIME: tuple[Instrument, ...] = (initial_states, Unrolling, solver_steps)
"""Instruments that make time steps visible."""

Read = Callable[[Run], Mapping[str, Any]]


def ensemble(
    recipe: Recipe,
    seeds: Sequence[int],
    needs: Iterable[Need[Any]],
    read: Read,
    *,
    known: Ensemble | None = None,
    built_only: bool = False,
    enough: Callable[[Sequence[Mapping[str, Any]]], bool] = lambda readings: False,
) -> Ensemble:
    """Run the recipe once per seed, and read every run.

    The seed alone determines weights, inputs, dropout and cotangents. Weights, inputs and cotangents are drawn on the CPU and
    then moved, so that they are the same on every device.

    Args:
        recipe: Settings of the measurement.
        seeds: Seeds to run, in this order.
        needs: Needs that ``read`` reads.
        read: Function that returns the readings of a run, which does not exist afterwards.
        known: Earlier result for the same recipe, whose steps and division into trajectories are used again.
        built_only: Whether ``read`` reads the built model only. With an earlier result, there is no forward pass then.
        enough: Function of all readings so far that decides after each seed whether to stop.

    Returns:
        The description of the runs, with the readings of each seed. If Ctrl-C ends the first runs of a recipe after some seeds,
        it describes those and is marked as interrupted.

    Raises:
        ModelError: The model cannot be built or run, or its output carries no gradient.
        CutError: The autograd graph cannot be cut into the chosen steps.
        UsageError: The inputs cannot be made, or ``warmup`` and ``alignment`` leave no step.
    """
    wanted = with_dependencies(frozenset(needs))
    readings: list[Mapping[str, Any]] = []
    draws: list[str] = []
    not_finite: list[tuple[NotFinite, ...]] = []
    previous: list[weakref.ref[nn.Module]] = []
    device = (
        recipe.device
        or (device_of(recipe.model) if isinstance(recipe.model, nn.Module) else None)
        or torch.device("cpu")
    )
    interrupted, first = False, known is None
    try:
        for number, seed in enumerate(seeds, 1):
            recipe.watch("seed", f"{number} of {len(seeds)}")
            with preserved_world(), default_device(device):
                if recipe.threads is not None and recipe.threads < torch.get_num_threads():
                    torch.set_num_threads(recipe.threads)
                recipe.watch("now", "building and running the model")
                with built(recipe, seed, previous) as (model, drawn), freed_in_order() as nodes:
                    before = Run(seed, recipe.for_model(model), Capture(model))
                    before.fulfil(frozenset(need for need in wanted if need.stage is Stage.BUILD))
                    if known is not None and built_only:
                        readings.append(read(before))
                        continue
                    known, reading, capture, drew = _read_once(before, wanted, read, known, nodes)
                    not_finite.append(entries_not_finite(capture))
                    draws.append(f"{digest(drawn, *outlines(capture.inputs))} {drew}")
                    readings.append(reading)
                    del capture
            if enough(readings):
                break
    except KeyboardInterrupt:
        interrupted = first and len(readings) == len(draws) > 0
        if not interrupted:
            raise
    finally:
        recipe.watch("end", "")
    assert known is not None, "there is at least one seed"
    if not draws:
        return replace(known, readings=tuple(readings))
    return replace(
        known,
        seeds=tuple(seeds[: len(readings)]),
        readings=tuple(readings),
        draws=tuple(draws),
        not_finite=tuple(not_finite),
        interrupted=interrupted,
    )


def _read_once(
    before: Run, needs: frozenset[Need[Any]], read: Read, known: Ensemble | None, nodes: list[Node]
) -> tuple[Ensemble, Mapping[str, Any], Capture, str]:
    """Run and cut the model, and read the run.

    Args:
        before: The run before its forward pass.
        needs: Needs that ``read`` reads.
        read: Function that returns the readings of a run.
        known: Description of earlier runs.
        nodes: Receives all nodes of the graph.

    Returns:
        The description of all runs, the readings, the forward pass, and a digest of the generators after it.
    """
    recipe, model, seed = before.recipe, before.capture.model, before.seed
    along = _recurrence_name(recipe, model)
    with _translated_errors(model, device_of(model), along):
        cut = _capture_and_cut(recipe, model, seed, along, needs, known, nodes)
        capture, cutting, first_sweep = cut.capture, cut.cutting, None
        is_first = known is None
        if known is None:
            with _observed(cut):
                trajectories, first_sweep = find_trajectories(cutting.chain, batch_size(capture.inputs), seed)
            if first_sweep is None and observe_terms in capture.watched:
                # The pass ended where samples interact. That of the joint chain is observed instead.
                capture.watched[observe_terms].forget_random_cotangents()
            skipped = log_gain_without_skips(trajectories, first_sweep, seed) if along is None else None
            known = described(recipe, capture, cut.graph, cutting, trajectories.division, skipped)
        run = Run(
            seed,
            recipe,
            capture,
            cut.graph,
            Trajectories(cutting.chain, known.plan.division),
            cutting.recurrences,
            cutting.recurrence,
            time_instruments=ALONG_TIME if along is not None else (),
            first_sweep=first_sweep,
            findings=known.plan.findings_about(model),
        )
        run.fulfil(needs | {STOPPED_GRADIENTS} if is_first else needs, built=before)
        if is_first:
            known = replace(known, cautions=(*known.cautions, *run[STOPPED_GRADIENTS]))
        return known, read(run), capture, cut.drew


@dataclass(frozen=True, slots=True)
class _CapturedAndCut:
    capture: Capture
    graph: Graph
    cutting: Cutting
    drew: str
    """Digest of the generators after the forward pass."""


def _observed(cut: _CapturedAndCut) -> AbstractContextManager[None]:
    """Return a context in which the passes of random cotangents are observed, if a need has asked for that."""
    observer: TermObserver | None = cut.capture.watched.get(observe_terms)
    if observer is None or cut.cutting.chain.along == "time":
        return nullcontext()
    return observer.random_cotangents(cut.capture.model, cut.graph)


def _capture_and_cut(
    recipe: Recipe,
    model: nn.Module,
    seed: int,
    along: str | None,
    needs: frozenset[Need[Any]],
    known: Ensemble | None,
    nodes: list[Node],
) -> _CapturedAndCut:
    """Run the model under the instruments of all needs, and cut its graph.

    Args:
        recipe: Settings of the measurement.
        model: The model, already built and placed.
        seed: Seed of the run.
        along: Name of the recurrence to cut along; None to cut along depth.
        needs: Needs, whose instruments observe the forward pass.
        known: Description of earlier runs, whose steps are taken again.
        nodes: Receives all nodes of the graph, so that they are freed in order whatever happens.

    Returns:
        The captured run, its graph, and the chain.
    """
    observing = dict.fromkeys(i for need in sorted(needs, key=lambda n: n.name) for i in need.instruments)
    instruments = (*(() if along is None else ALONG_TIME), *observing)
    capture = forward_pass(
        recipe, model, seed, instruments=instruments, places=None if known is None else known.plan.places
    )
    others = other_draws(derived_seed(seed, "forward"))
    drew = digest(generator_state(), generator_state(capture.device), *([others] if others else []))[:4]
    graph = graph_of(capture)
    nodes += graph.nodes
    cutting = _cut(recipe, capture, graph, along, known, seed)
    _refuse_empty_window(recipe, cutting.chain, seed)
    return _CapturedAndCut(capture, graph, cutting, drew)


@contextmanager
def _translated_errors(model: nn.Module, device: torch.device | None, along: str | None) -> Iterator[None]:
    """Raise errors of backward passes as errors that name the model and say what to do.

    Raises:
        ModelError: The device ran out of memory, PyTorch has no kernel for an operation on this processor, the model overwrote
            a tensor that the backward pass needs, or the model's own code in a backward pass raised.
        CutError: A checkpointed part of the model was computed again without its time steps.
    """
    try:
        yield
    except TrainabilityError:
        raise
    except Exception as error:
        translated = _translated(error, model, device, along)
        if translated is None:
            raise
        raise translated from error


def _translated(
    error: Exception, model: nn.Module, device: torch.device | None, along: str | None
) -> TrainabilityError | None:
    """Return the error to raise instead of one of PyTorch or of the model; None for other errors."""
    name = type(model).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError(did_not_fit(model, device))
    if type(error).__name__ == "CheckpointError" and along is not None:
        return CutError(
            "checkpointed parts of the model cannot be measured along time, because their second computation has no time "
            "steps. Switch checkpointing off for the measurement; it does not change the numbers."
        )
    if is_unsupported_here(error):
        return ModelError(f"the backward pass of {name} raised {type(error).__name__}: {sentence(error)} {NO_KERNEL}")
    if isinstance(error, RuntimeError) and "modified by an inplace operation" in str(error):
        return ModelError(
            f"the backward pass needs tensors of the forward pass as they were. {name} overwrites one in place, usually a cache "
            "or a state, and cannot be trained like that either. Replace it instead (state = ..., not state.copy_(...)), or run "
            "the module's forward inside torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t)."
        )
    if isinstance(error, RuntimeError) and "backward through the graph a second time" in str(error):
        return ModelError(
            f"the graph of the forward pass must still exist when it is measured. {name} frees it: it calls backward() or "
            "autograd.grad() inside forward(). Where the output or the loss depends on that gradient, as a penalty or force "
            "does, pass create_graph=True: without it, no parameter learns from the gradient. Otherwise move the call out of "
            "forward(), or pass retain_graph=True. If it does not, an object among the inputs, such as a cache of keys and "
            "values, holds tensors of an earlier run: measure without it."
        )
    if arose_in_backward(error):
        advice = (
            "The solver of its differential equation failed on the way back. Loosen its tolerances (rtol, atol) or fix its step, "
            "or use odeint instead of odeint_adjoint."
            if _is_of_solver(error)
            else "Check the backward methods of torch.autograd.Function and the gradient hooks that the model uses."
        )
        return ModelError(
            f"the backward pass of {name} must run. It raised {type(error).__name__}: {sentence(error)} {advice}"
        )
    return None


def _is_of_solver(error: Exception) -> bool:
    """Return whether an error was raised by torchdiffeq, which solves the adjoint equation in the backward pass."""
    return any(
        frame.f_globals.get("__name__", "").startswith("torchdiffeq.") for frame, _ in walk_tb(error.__traceback__)
    )


def _cut(
    recipe: Recipe, capture: Capture, graph: Graph, along: str | None, known: Ensemble | None, seed: int
) -> Cutting:
    """Return the graph cut along depth or time, into the steps of earlier runs where there are any."""
    if along is None:
        calls = _chosen(capture, graph, recipe) if known is None else _planned(known.plan, capture, seed)
        return Cutting(chain_of(capture, graph, calls), calls)
    recurrences = find_recurrences(capture, graph)
    chosen = choose_recurrence(capture, recurrences, along if known is None else known.plan.recurrence)
    return Cutting(chain_along(chosen), chosen.calls, recurrences, chosen)


def _recurrence_name(recipe: Recipe, model: nn.Module) -> str | None:
    """Return the name of the recurrence to cut along; empty for the longest one, and None to cut along depth."""
    if isinstance(recipe.steps, str):
        kind, _, name = recipe.steps.partition(":")
        if kind == "time":
            return name
        if kind == "auto" and isinstance(model, Rollout):
            return ""
    return None


def _refuse_empty_window(recipe: Recipe, chain: Chain, seed: int) -> None:
    """Require a step that neither ``warmup`` nor ``alignment`` excludes.

    Raises:
        UsageError: All steps are excluded.
    """
    if recipe.warmup + recipe.alignment >= len(chain):
        msg = (
            "warmup and alignment must leave a step to average over. "
            f"Got {recipe.warmup} and {recipe.alignment} for a chain of {len(chain)} (seed {seed})."
        )
        raise UsageError(msg)


def _planned(plan: Plan, capture: Capture, seed: int) -> list[Call]:
    """Return the calls of this run that are steps of the first one; with stochastic depth some may be missing.

    Raises:
        CutError: All are missing.
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
    """Return the calls that are steps by the recipe.

    Raises:
        UsageError: The step choice, of the user or of a plugin, does not fit the model.
        CutError: No call can be a step.
    """
    try:
        return choose_steps(capture, graph, recipe.steps)
    except UsageError as error:
        if not recipe.steps_from_plugin:
            raise
        msg = (
            "the hook pytest_trainability_steps of a plugin must return steps of the model. "
            f"It returned {recipe.steps!r}: {error}"
        )
        raise UsageError(msg) from None
