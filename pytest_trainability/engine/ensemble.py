"""The same measurement on several seeds: building, placing and running models, and letting measures read the runs."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..errors import CutError, ModelError, TrainabilityError, UsageError
from ..records import StepFacts, Steps
from .capture import Call, Capture, Loss, capture
from .chain import Chain, chain_of, describe, graph_of
from .graph import Graph
from .isolation import derived_seed, digest, generator_state, preserved_model, preserved_world, seeded
from .steps import StepChoice, choose_steps
from .sweep import Frame, Sweep, find_frame, loss_cotangent, random_cotangents, sweep
from .trees import batch_size, carries_gradient, is_empty, map_tensors, tensors_in, to_tensor_like

__all__ = ["Ensemble", "Need", "Recipe", "Run", "choose_device", "ensemble"]

Need: TypeAlias = Literal["sweep", "loss_sweep", "parameter_gradients", "activations"]
"""What a measure may ask of a run."""

ModelSource: TypeAlias = "nn.Module | Callable[[], nn.Module]"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a measurement: model, inputs and how to run and cut it."""

    model: ModelSource
    inputs: Any
    target: Any
    loss: Loss | None
    steps: StepChoice
    exponents: int
    device: torch.device | None
    """None leaves a finished module where it is."""
    dtype: torch.dtype | None
    train: bool
    threads: int | None = None

    @property
    def fixed(self) -> bool:
        """Whether the model is a finished module, one draw of its weights."""
        return isinstance(self.model, nn.Module)


@dataclass(slots=True, eq=False)
class Run:
    """One seed's run, with what the measures need from it. It lives until they have read it."""

    seed: int
    record: Capture
    chain: Chain
    frame: Frame
    sweep: Sweep | None = None
    loss_sweep: Sweep | None = None
    parameter_gradients: dict[str, Tensor | None] = field(default_factory=dict)
    """By name; None where no path leads from the loss to the parameter. Frozen parameters are absent."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the first seed's run decides for all: which calls are steps, and the frame."""

    calls: frozenset[tuple[str, int]]
    frame: Frame


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What the runs of a measurement have in common, and what was read from each."""

    model_name: str
    """Class of the model."""
    steps: Steps
    mode: str
    device: str
    dtype: str
    facts: tuple[StepFacts, ...]
    """About the first seed's steps, for the likely cause of a failure."""
    notes: tuple[str, ...]
    plan: Plan
    seeds: tuple[int, ...]
    """Those that were run."""
    readings: tuple[Mapping[str, Any], ...]
    """What ``read`` took from each seed's run."""
    draws: tuple[str, ...]
    """Per seed, a digest of torch's generator once the model was built, and of the inputs' shapes and means: equal where as
    many numbers were drawn from the same seed for the same inputs. Behind it, one of the generators after the forward pass:
    equal where that drew as many, for dropout."""


def choose_device(name: str | torch.device | None, *, fixed: bool, worker: int = 0) -> torch.device | None:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    ``auto`` is CUDA where there is one, else the CPU; a finished module stays where it is. ``cuda`` shares the GPUs out
    among xdist workers by their number.

    Raises:
        UsageError: There is no such device.
    """
    name = None if name is None else str(name)
    if name is None or name == "auto":
        if fixed:
            return None
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name == "cuda" and count:
        return torch.device("cuda", worker % count)
    if name in there and (number or kind != "cuda"):
        return torch.device(name)
    msg = f"the device must be auto, cpu, cuda, cuda:N or mps, and be there. Got {name!r}; this machine has {', '.join(there)}."
    raise UsageError(msg)


def ensemble(
    recipe: Recipe,
    seeds: Sequence[int],
    needs: Iterable[Need],
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
    wanted = frozenset(needs)
    readings: list[Mapping[str, Any]] = []
    draws: list[str] = []
    plan = None if known is None else known.plan
    common: dict[str, Any] | None = None
    previous: list[weakref.ref[nn.Module]] = []
    for seed in seeds:
        with preserved_world():
            if recipe.threads is not None and recipe.threads < torch.get_num_threads():
                torch.set_num_threads(recipe.threads)
            with _model(recipe, seed, previous) as (model, drawn):
                record = _record(recipe, model, seed, statistics="activations" in wanted)
                after = digest(generator_state(), generator_state(_place(model)))[:4]
                draws.append(f"{digest(drawn, *_outlines(record.inputs))} {after}")
                graph = graph_of(record)
                if plan is None:
                    calls = choose_steps(record, graph, recipe.steps)
                    chain = chain_of(record, graph, calls)
                    frame, first_sweep = find_frame(chain, batch_size(record.inputs), seed)
                    plan = Plan(frozenset((call.path, call.index) for call in calls), frame)
                    common = {**_common(recipe, record, chain), "facts": _facts(chain, graph)}
                else:
                    calls = _planned(plan, record, seed)
                    chain, first_sweep = chain_of(record, graph, calls), None
                del graph
                run = Run(seed, record, chain, plan.frame, sweep=first_sweep if recipe.exponents == 1 else None)
                try:
                    _fulfil(run, recipe, wanted)
                except torch.OutOfMemoryError as error:
                    raise ModelError(_out_of_memory(model, _device_of(record))) from error
                readings.append(read(run))
                del run, record, chain
        if enough(readings):
            break
    ran = tuple(seeds[: len(readings)])
    if known is not None:
        return replace(known, seeds=ran, readings=tuple(readings), draws=tuple(draws))
    assert plan is not None, "there is at least one seed"
    assert common is not None
    return Ensemble(**common, plan=plan, seeds=ran, readings=tuple(readings), draws=tuple(draws))


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


def _fulfil(run: Run, recipe: Recipe, wanted: frozenset[Need]) -> None:
    """Compute what the measures need, the parameter gradients last: that pass frees the graph."""
    if "sweep" in wanted and run.sweep is None:
        columns = random_cotangents(run.chain, recipe.exponents, run.seed)
        run.sweep = sweep(run.chain, run.frame, columns)
    if "loss_sweep" in wanted:
        if run.record.loss is None:
            msg = (
                "loss_log_gain needs a loss. Hand one in: loss=F.cross_entropy with target=..., or labels for a model "
                "that computes its own."
            )
            raise UsageError(msg)
        run.loss_sweep = sweep(run.chain, run.frame, loss_cotangent(run.chain, run.record.loss))
    if "parameter_gradients" in wanted:
        run.parameter_gradients = _parameter_gradients(run)


def _parameter_gradients(run: Run) -> dict[str, Tensor | None]:
    """Differentiate the loss, or a random unit functional of the output where there is none, by every parameter."""
    record = run.record
    names = {name: p for name, p in record.model.named_parameters() if p.requires_grad}
    if not names:
        return {}
    roots, weights = _functional(record, run.seed)
    found = torch.autograd.grad(roots, list(names.values()), weights, allow_unused=True)
    return dict(zip(names, found))


def _functional(record: Capture, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    if record.loss is not None:
        return [record.loss], [torch.ones_like(record.loss)]
    outputs = list({id(t): t for t in tensors_in(record.output) if carries_gradient(t)}.values())
    generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "functional"))
    drawn = [torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu") for t in outputs]
    norm = math.sqrt(sum(float(u.square().sum()) for u in drawn))
    return outputs, [(u / norm).to(device=t.device, dtype=t.dtype) for t, u in zip(outputs, drawn)]


# Building and running ---------------------------------------------------------------------------------------------


@contextmanager
def _model(recipe: Recipe, seed: int, previous: list[weakref.ref[nn.Module]]) -> Iterator[tuple[nn.Module, bytes]]:
    """Yield the model of one seed, placed and in the right mode, and the generator's state once it was built.

    The user's own model is left as it was.
    """
    drawn = b""
    with ExitStack() as stack:
        if isinstance(recipe.model, nn.Module):
            model = recipe.model
            _refuse_unmaterialized(model, fixed=True)
            stack.enter_context(preserved_model(model))
            if recipe.device not in {None, _place(model)} or recipe.dtype is not None:
                model = _copied(model)
        else:
            model = _build(recipe.model, seed)
            drawn = generator_state()
            _refuse_unmaterialized(model, fixed=False)
            if any(reference() is model for reference in previous):
                msg = (
                    "the factory must build a new model each time it is called. It returned the same object twice. Build "
                    "inside it (lambda: Net(width=64)), or hand in the module itself, which is measured as one draw."
                )
                raise UsageError(msg)
            # Someone else holds the model too: whatever the run changes must be put back.
            if sys.getrefcount(model) > _references_of_a_local():
                previous.append(weakref.ref(model))
                stack.enter_context(preserved_model(model))
        if recipe.device is not None or recipe.dtype is not None:
            try:
                model = model.to(device=recipe.device, dtype=recipe.dtype)
            except torch.OutOfMemoryError as error:
                raise ModelError(_out_of_memory(model, recipe.device)) from error
        if model.training != recipe.train:
            model.train(recipe.train)
        yield model, drawn


def _references_of_a_local() -> int:
    """Return what ``sys.getrefcount`` says of an object that one local variable holds."""
    alone = object()
    return sys.getrefcount(alone)


def _build(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    seeded(seed)
    name = getattr(factory, "__name__", type(factory).__name__)
    try:
        model: object = factory()
    except Exception as error:
        msg = f"the factory must build a model when called without arguments. `{name}` raised {type(error).__name__}: {error}"
        if isinstance(error, TypeError) and isinstance(factory, type):
            msg += f" Give it its arguments in a lambda: lambda: {name}(...)."
        raise ModelError(msg) from error
    if not isinstance(model, nn.Module):
        msg = f"the factory must return a torch.nn.Module. `{name}` returned {type(model).__name__}."
        raise ModelError(msg)
    return model


def _copied(model: nn.Module) -> nn.Module:
    # Tensors that the model keeps from its last run cannot be copied with their history.
    kept = [
        t
        for module in model.modules()
        for t in vars(module).values()
        if isinstance(t, Tensor) and t.grad_fn is not None
    ]
    try:
        return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})
    except Exception as error:
        msg = (
            "a finished module is copied before it is moved or cast, and must be one that can be. Copying "
            f"{type(model).__name__} raised {type(error).__name__}: {error} Hand in a factory, or leave out device= and dtype=."
        )
        raise ModelError(msg) from error


def _refuse_unmaterialized(model: nn.Module, *, fixed: bool) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            if not fixed:
                continue
            what = "has no shape yet (a lazy module)"
        elif parameter.is_meta:
            what = "lives on the meta device"
        else:
            continue
        msg = (
            f"the parameters of a model must hold numbers. {name!r} {what}. Materialize it first: run the model "
            "once, or load its weights; a lazy module may also come as a factory."
        )
        raise ModelError(msg)


def _place(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _device_of(record: Capture) -> torch.device:
    return _place(record.model)


def _record(recipe: Recipe, model: nn.Module, seed: int, *, statistics: bool) -> Capture:
    """Draw the inputs, run the model on them and compute the loss."""
    device = _place(model)
    inputs, target = _inputs(recipe, seed, device)

    def restart() -> None:
        seeded(derived_seed(seed, "forward"))

    restart()
    args, kwargs = _arguments(inputs)
    try:
        with _uncompiled():
            record = capture(
                model, args, kwargs, target=target, loss=recipe.loss, statistics=statistics, restart=restart
            )
    except TrainabilityError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(_out_of_memory(model, device)) from error
    except Exception as error:
        raise ModelError(_did_not_run(model, inputs, seed, device, error)) from _without_own_frames(error)
    if record.loss is None and not any(True for _ in tensors_in(record.output)):
        msg = (
            f"the model must return a tensor, or a tuple, list, dict or dataclass with tensors in it. "
            f"{type(model).__name__} returned {type(record.output).__name__}."
        )
        raise ModelError(msg)
    record.inputs = inputs
    return record


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    return text if text.endswith((".", "!", "?")) else text + "."


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled models as they were written: a compiled region hides its steps. Without a compiler nothing is loaded."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _without_own_frames(error: Exception) -> Exception:
    """Let the traceback of a model's error begin where the model is called."""
    here, trace = str(Path(__file__).parent), error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(here):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _inputs(recipe: Recipe, seed: int, device: torch.device) -> tuple[Any, Any]:
    seeded(derived_seed(seed, "inputs"))
    generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "inputs"))

    def made(given: Any, what: str) -> Any:
        if callable(given) and not isinstance(given, (Tensor, Mapping)):
            try:
                given = given(generator)
            except Exception as error:
                name = getattr(recipe.inputs if what == "inputs" else recipe.target, "__name__", "It")
                msg = (
                    f"{what}, given as a function, must be one that takes a torch.Generator and makes tensors. `{name}` "
                    f"raised {type(error).__name__}: {error}"
                )
                raise UsageError(msg) from error
        if any(tensor.is_meta for tensor in tensors_in(given)):
            msg = f"{what} must hold numbers. A tensor of them lives on the meta device."
            raise UsageError(msg)
        return map_tensors(given, lambda t: to_tensor_like(t, device=device, dtype=recipe.dtype))

    inputs, target = made(recipe.inputs, "inputs"), made(recipe.target, "target")
    if not any(True for _ in tensors_in(inputs)):
        msg = (
            "inputs must be a tensor, a tuple, a dict, or a function of a torch.Generator that makes one, with at least "
            f"one tensor in it. Got {type(inputs).__name__}."
        )
        raise UsageError(msg)
    if is_empty(inputs):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
        msg = f"inputs must hold at least one element in every tensor. Got shapes {shapes}: an empty batch cannot be measured."
        raise UsageError(msg)
    return inputs, target


def _outlines(inputs: Any) -> Iterator[bytes]:
    """Tell inputs apart by what arithmetic does not change: their shapes and rounded means."""
    for tensor in tensors_in(inputs):
        values = tensor.detach()
        mean = float((values.abs() if values.is_complex() else values).float().mean())
        yield f"{tuple(values.shape)} {mean:.4g}".encode()


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), inputs
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return inputs, {}
    return (inputs,), {}


def _out_of_memory(model: nn.Module, device: torch.device | None) -> str:
    return (
        f"{type(model).__name__}, one forward pass and what is measured must fit on the device. {device} ran out of memory. "
        "Measure with a smaller batch, or on the CPU (device='cpu', --trainability-device=cpu)."
    )


def _did_not_run(model: nn.Module, inputs: Any, seed: int, device: torch.device, error: Exception) -> str:
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(inputs))
    hint = ""
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = (
            " A dict of inputs is handed over as keyword arguments, a tuple as positional ones, anything else as one."
        )
    return (
        f"the model must run on its inputs. {type(model).__name__} (seed {seed}, {device}) with inputs {shapes} raised "
        f"{type(error).__name__}: {_sentence(error)}{hint}"
    )


# What is said about a measurement ---------------------------------------------------------------------------------


def _common(recipe: Recipe, record: Capture, chain: Chain) -> dict[str, Any]:
    left_out = [call for call in chain.left_out if type(call.module) in {type(step.module) for step in chain.steps}]
    parent = left_out[0].path.rpartition(".")[0] if left_out else ""
    where = f" ({parent})" if parent else ""
    parameters = list(record.model.parameters())
    dtype = parameters[0].dtype if parameters else next(tensors_in(record.inputs)).dtype
    return {
        "model_name": type(record.model).__name__,
        "steps": Steps(chain.names, describe(chain.steps), describe(left_out) + where if left_out else ""),
        "mode": "train" if record.model.training else "eval",
        "device": str(_device_of(record)),
        "dtype": str(dtype).removeprefix("torch."),
        "notes": tuple(_notes(recipe, record, chain)),
    }


def _notes(recipe: Recipe, record: Capture, chain: Chain) -> Iterator[str]:
    if recipe.fixed:
        yield "a finished module is one draw of its weights; hand in a factory to average over seeds"
    if len(chain) == 1:
        yield "the chain has one step only: its growth rate says little about depth"
    if not record.inputs_carry_gradient:
        yield "the model does not take inputs that require grad: the first state starts at the first parameter"
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in record.model.modules())
    if batch_norm and batch_size(record.inputs) == 1 and _device_of(record).type == "cpu":
        yield (
            "BatchNorm on a batch of one: PyTorch 2.13 on the CPU can compute a wrong gradient here; use two samples "
            "or more"
        )


def _facts(chain: Chain, graph: Graph) -> tuple[StepFacts, ...]:
    operations = chain.operations(graph)
    return tuple(
        _step_facts(name, call.module, names) for name, call, names in zip(chain.names, chain.steps, operations)
    )


def _step_facts(name: str, module: nn.Module, operations: frozenset[str]) -> StepFacts:
    weights = [p for p in module.parameters() if p.dim() >= 2]
    largest = max(weights, key=lambda p: p.numel(), default=None)
    fan_in = 0 if largest is None else math.prod(largest.shape[1:])
    return StepFacts(
        name,
        type(module).__name__,
        math.nan if largest is None else _standard_deviation(largest),
        fan_in,
        len(weights),
        tuple(sorted(operations)),
    )


def _standard_deviation(weight: Tensor) -> float:
    values = weight.detach()
    return float((values if values.is_complex() else values.float()).std(correction=0))
