"""Differences between a model that is built as usual and one that is built on the meta device and initialized afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ...engine.isolation import derived_seed, seeded
from ...engine.runs.allocation import allocated_as_nan, as_allocated, named_tensors
from ...engine.runs.building import built
from ...engine.runs.requirements import require_factory
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import is_lazy
from ...errors import InapplicableError
from ..measure import declare

__all__ = ["META_DIFFERENCES"]


# Building on the meta device --------------------------------------------------------------------------------------
def _materialized(run: Run) -> nn.Module:
    """Build the model on the meta device, allocate its memory, and call its own initializers."""
    factory = run.recipe.model
    seeded(run.seed)
    try:
        with torch.device("meta"):
            model = factory()
    except Exception as error:
        msg = (
            "meta_device_differences needs a factory that runs under torch.device('meta'). It raised "
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
            _call_initializer(initialize)
    return model.to(dtype=run.recipe.dtype) if run.recipe.dtype is not None else model


def _initializers(module: nn.Module) -> Iterator[Callable[[], object]]:
    """Yield the functions that initialize a module: one for the whole module, or else one for each part.

    ``init_weights`` (transformers, torchtitan) and ``initialize_weights`` initialize a whole module. ``reset_parameters``
    initializes the parameters that a module itself owns, as in FSDP.
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


def _call_initializer(initialize: Callable[[], object]) -> None:
    try:
        with torch.no_grad():
            initialize()
    except Exception as error:
        name = getattr(initialize, "__qualname__", repr(initialize))
        msg = (
            f"meta_device_differences needs an initializer without arguments that runs on allocated memory. {name} raised "
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
    """Require weights with known shapes: those of lazy modules get their shapes in the first forward pass."""
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        msg = (
            "meta_device_differences needs parameters whose shapes are known when the model is built. "
            f"{lazy[0]} of {type(model).__name__} gets its shape in the first forward pass. Give the layer its number of inputs: "
            "nn.Linear(16, 4) instead of nn.LazyLinear(4)."
        )
        raise InapplicableError(msg)


META_DIFFERENCES: Need[list[str]] = Need("differences by the meta device", _differences, Stage.RERUN)
"""``"NAME: DIFFERENCE"``, in the model's order."""


def _ties(model: nn.Module) -> dict[str, str]:
    """Return the first name of each tied parameter, by its other names."""
    firsts: dict[int, str] = {}
    return {
        name: firsts[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if firsts.setdefault(id(parameter), name) != name
    }


def _left_on_meta(model: nn.Module) -> Iterator[str]:
    """Yield the names of meta tensors that are neither parameters nor buffers: ``to_empty`` allocates no memory for them."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                yield f"{path}.{name}".lstrip(".")


def _difference(usual: Tensor, redrawn: Tensor | None, found: Tensor | None) -> str:
    """Describe how a tensor differs; empty if it does not.

    Args:
        usual: The tensor of a model that is built as usual.
        redrawn: The same for another seed. Entries that are equal in both are constants; the others are random draws.
        found: The tensor of the model that is built on the meta device.

    Returns:
        A few words, such as ``"another shape"``.
    """
    if found is None or found.shape != usual.shape:
        return "missing" if found is None else "another shape"
    left = as_allocated(found) & ~as_allocated(usual)
    if bool(left.any()):
        return "left as allocated" if bool(left.all()) else "left as allocated in part"
    constant = usual == (usual if redrawn is None or redrawn.shape != usual.shape else redrawn)
    if not usual.is_floating_point():
        return "other values" if bool((constant & (usual != found)).any()) else ""
    # A few draws are equal by coincidence, more of them in coarser types.
    coincidences = 4 + 8 * torch.finfo(usual.dtype).eps * usual.numel()
    wrong = constant & ~torch.isclose(found, usual, rtol=1e-5, atol=0.0, equal_nan=True)
    if bool(wrong.any()) and (bool(constant.all()) or int(wrong.sum()) > coincidences):
        return "other values"
    drawn = ~constant
    return difference_of_draws(usual[drawn], found[drawn])


SIGNIFICANCE = 1e-8
"""Probability that a test finds a difference between draws from one distribution."""
MIN_DRAWS = 8
"""Smallest number of draws whose distributions are compared."""


def difference_of_draws(usual: Tensor, found: Tensor) -> str:
    """Describe a significant difference of two draws: in scale, by an F test, or in the mean, by Welch's test.

    The variance of n heavy-tailed numbers fluctuates like that of fewer normal ones: for kurtosis κ, it has ``2n/(κ - 1)``
    degrees of freedom.

    Returns:
        A few words; empty if the draws do not differ significantly.

    Source: Layard, Journal of the American Statistical Association 68, 195 (1973).
    """
    from scipy import stats

    if usual.numel() < MIN_DRAWS:
        return ""
    (mean, variance, freedom), (other_mean, other_variance, other_freedom) = _moments(usual), _moments(found)
    if variance == 0 or other_variance == 0:
        return "another scale" if variance != other_variance else ""
    ratio = variance / other_variance
    tails = stats.f.sf(ratio, freedom, other_freedom), stats.f.cdf(ratio, freedom, other_freedom)
    if 2 * min(tails) < SIGNIFICANCE:
        return "another scale"
    error = ((variance + other_variance) / usual.numel()) ** 0.5
    return (
        "another mean"
        if 2 * stats.t.sf(abs(mean - other_mean) / error, min(freedom, other_freedom)) < SIGNIFICANCE
        else ""
    )


def _moments(numbers: Tensor) -> tuple[float, float, float]:
    """Return the mean, the variance, and the variance's degrees of freedom."""
    wide = numbers.double().cpu()
    deviations = wide - wide.mean()
    variance = float(deviations.square().sum()) / (len(wide) - 1)
    kurtosis = float((deviations**4).mean()) / variance**2 if variance > 0 else 3.0
    return float(wide.mean()), variance, max(1.0, 2 * (len(wide) - 1) / (max(kurtosis, 3.0) - 1))


@declare("names", needs=[META_DIFFERENCES])
def meta_device_differences(run: Run) -> list[str]:
    """Return the parameters and buffers that are initialized differently if the model is built on the meta device.

    Large models are built under ``torch.device("meta")``, get memory by ``to_empty``, and are then initialized by their
    ``init_weights()`` or ``initialize_weights()``, or by the ``reset_parameters()`` of their modules. Entries that do not
    depend on the seed must be equal. Random entries must have the same mean and variance, by Welch's test and an F test, each
    at a significance of 1e-8.

    It misleads for distributions that differ only in their shape, which is not compared.

    Returns:
        ``"NAME: left as allocated"``, ``"… left as allocated in part"``, ``"… missing"``, ``"… another shape"``, ``"… another
        scale"``, ``"… another mean"`` and ``"… other values"``, then ``"… no longer tied to NAME"``, then ``"… left on the meta
        device"``, each in the model's order.

    Raises:
        InapplicableError: The model is a finished module, cannot be built on the meta device, or cannot initialize itself.

    Source: NVIDIA/bionemo-framework, recipes#1368; Layard, Journal of the American Statistical Association 68, 195 (1973), for
    the test of variances.
    """
    return run[META_DIFFERENCES]
