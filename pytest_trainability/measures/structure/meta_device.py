"""A model that is built on the meta device and initialized afterwards, beside the one that is built as usual."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...engine.isolation import derived_seed, seeded
from ...engine.runs.building import built
from ...engine.runs.requirements import require_factory
from ...engine.runs.run import Need, Run, Stage
from ...errors import InapplicableError
from ..measure import declare
from .allocation import allocated_as_nan, as_allocated, named_tensors

__all__ = ["META_DIFFERENCES"]


# By way of the meta device ----------------------------------------------------------------------------------------
def _materialized(run: Run) -> nn.Module:
    """Build the model on the meta device, give it memory, and initialize it by what it offers."""
    factory = run.recipe.model
    seeded(run.seed)
    try:
        with torch.device("meta"):
            model = factory()
    except Exception as error:
        msg = (
            "meta_device_differences needs a factory that builds on the meta device: with torch.device('meta'). It raised "
            f"{type(error).__name__}: {error}. Look for .item(), .tolist() and comparisons of values in a constructor."
        )
        raise InapplicableError(msg) from error
    initializers = list(_initializers(model))
    if not initializers:
        msg = (
            "meta_device_differences needs a model that can initialize itself: one with init_weights() or "
            f"initialize_weights(), or modules with reset_parameters(). {type(model).__name__} has neither."
        )
        raise InapplicableError(msg)
    seeded(derived_seed(run.seed, "meta device"))
    with allocated_as_nan():
        model.to_empty(device=run.capture.device)
        for initialize in initializers:
            _call(initialize)
    return model.to(dtype=run.recipe.dtype) if run.recipe.dtype is not None else model


def _initializers(module: nn.Module) -> Iterator[Callable[[], object]]:
    """Yield what initializes a module: one function for all that is in it, or else one for each part that has its own.

    ``init_weights`` (transformers, torchtitan) and ``initialize_weights`` are for all; ``reset_parameters`` is, as FSDP
    takes it, for the parameters that a module itself owns.
    """
    for name in ("init_weights", "initialize_weights"):
        initialize = getattr(module, name, None)
        if callable(initialize):
            yield initialize
            return
    for child in module.children():
        yield from _initializers(child)
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        yield reset


def _call(initialize: Callable[[], object]) -> None:
    try:
        with torch.no_grad():
            initialize()
    except Exception as error:
        name = getattr(initialize, "__qualname__", repr(initialize))
        msg = (
            f"meta_device_differences calls what initializes a model, without arguments, once it has memory. {name} raised "
            f"{type(error).__name__}: {error}"
        )
        raise InapplicableError(msg) from error


# Differences ------------------------------------------------------------------------------------------------------
def _differences(run: Run) -> list[str]:
    require_factory(run, "meta_device_differences")
    with built(run.recipe, run.seed, []) as (model, _):
        _require_weights(model)
        usual, ties = named_tensors(model), _ties(model)
    with built(run.recipe, derived_seed(run.seed, "another draw"), []) as (model, _):
        redrawn = named_tensors(model)
    model = _materialized(run)
    found, tied = named_tensors(model), _ties(model)
    differences = [(name, _difference(tensor, redrawn.get(name), found.get(name))) for name, tensor in usual.items()]
    differences += [(name, f"no longer tied to {first}") for name, first in ties.items() if tied.get(name) != first]
    differences += [(name, "left on the meta device") for name in _left_on_meta(model)]
    return [f"{name}: {difference}" for name, difference in differences if difference]


def _require_weights(model: nn.Module) -> None:
    """Refuse a model whose weights get their shapes in its first forward pass."""
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        msg = (
            "meta_device_differences needs a factory whose parameters have shapes when they are built: only those get memory "
            f"afterwards. {lazy[0]} of {type(model).__name__} gets its own in the first forward pass. Give the layer its number "
            "of inputs: nn.Linear(16, 4) in place of nn.LazyLinear(4)."
        )
        raise InapplicableError(msg)


META_DIFFERENCES: Need[list[str]] = Need("differences by the meta device", _differences, Stage.RERUN)
"""``"NAME: WHAT DIFFERS"``, in the model's order."""


def _ties(model: nn.Module) -> dict[str, str]:
    """Return for each parameter's further names its first one."""
    firsts: dict[int, str] = {}
    return {
        name: firsts[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if firsts.setdefault(id(parameter), name) != name
    }


def _left_on_meta(model: nn.Module) -> Iterator[str]:
    """Yield tensors that are neither parameters nor buffers, to which nobody gives memory."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                yield f"{path}.{name}".lstrip(".")


def _difference(usual: Tensor, redrawn: Tensor | None, found: Tensor | None) -> str:
    """Say in what a tensor differs; empty where it does not.

    Args:
        usual: As the factory makes it.
        redrawn: As it makes it from another seed: what is the same in both is designed, the rest is drawn.
        found: As it is initialized afterwards.
    """
    if found is None or found.shape != usual.shape:
        return "missing" if found is None else "another shape"
    left = as_allocated(found) & ~as_allocated(usual)
    if bool(left.any()):
        return "left as allocated" if bool(left.all()) else "left as allocated in part"
    designed = usual == (usual if redrawn is None or redrawn.shape != usual.shape else redrawn)
    if not usual.is_floating_point():
        return "other values" if bool((designed & (usual != found)).any()) else ""
    # A few draws agree by accident, the more the coarser their type.
    accidents = 4 + 8 * torch.finfo(usual.dtype).eps * usual.numel()
    wrong = designed & ~torch.isclose(found, usual, rtol=1e-5, atol=0.0, equal_nan=True)
    if bool(wrong.any()) and (bool(designed.all()) or int(wrong.sum()) > accidents):
        return "other values"
    drawn = ~designed
    return _drawn_otherwise(usual[drawn], found[drawn])


CHANCE = 1e-8
"""Probability that a test finds a difference where there is none."""
FEW = 8
"""Numbers below which nothing is said of their distribution."""


def _drawn_otherwise(usual: Tensor, found: Tensor) -> str:
    """Say in what two draws differ more than chance allows: in scale, by an F test, or in the mean, by Welch's.

    Variances of heavy-tailed numbers vary as those of fewer normal ones do: with kurtosis κ, ``2n/(κ - 1)`` degrees of
    freedom.

    Source: Layard, Journal of the American Statistical Association 68, 195 (1973).
    """
    from scipy import stats

    if usual.numel() < FEW:
        return ""
    (mean, variance, freedom), (other_mean, other_variance, other_freedom) = _moments(usual), _moments(found)
    if variance == 0 or other_variance == 0:
        return "another scale" if variance != other_variance else ""
    ratio = variance / other_variance
    tails = stats.f.sf(ratio, freedom, other_freedom), stats.f.cdf(ratio, freedom, other_freedom)
    if 2 * min(tails) < CHANCE:
        return "another scale"
    error = ((variance + other_variance) / usual.numel()) ** 0.5
    return (
        "another mean" if 2 * stats.t.sf(abs(mean - other_mean) / error, min(freedom, other_freedom)) < CHANCE else ""
    )


def _moments(numbers: Tensor) -> tuple[float, float, float]:
    """Return mean, variance, and the degrees of freedom of the latter."""
    wide = numbers.double().cpu()
    deviations = wide - wide.mean()
    variance = float(deviations.square().sum()) / (len(wide) - 1)
    kurtosis = float((deviations**4).mean()) / variance**2 if variance > 0 else 3.0
    return float(wide.mean()), variance, max(1.0, 2 * (len(wide) - 1) / (max(kurtosis, 3.0) - 1))


@declare("names", needs=[META_DIFFERENCES])
def meta_device_differences(run: Run) -> list[str]:
    """Return the parameters and buffers that come out otherwise by way of the meta device.

    That is how large models are built: under ``torch.device("meta")``, then ``to_empty``, then initialized by what the
    model offers: its ``init_weights()`` or ``initialize_weights()``, or the ``reset_parameters()`` of its modules. What does
    not depend on the seed must come out the same, and what is drawn with the same mean and standard deviation (Welch's
    test and an F test, each wrong with a probability of 1e-8). It misleads where two distributions differ in their
    shape only.

    Returns:
        ``"NAME: left as allocated"`` (``… in part``), ``"… another scale"``, ``"… another mean"``, ``"… other
        values"``, ``"… no longer tied to NAME"``, ``"… left on the meta device"``, in the model's order.

    Raises:
        InapplicableError: The model is a finished module, cannot be built on the meta device, or cannot initialize
        itself.

    Source: NVIDIA/bionemo-framework, recipes#1368; Layard, Journal of the American Statistical Association 68, 195 (1973), for
    the test of variances.
    """
    return run[META_DIFFERENCES]
