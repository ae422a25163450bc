"""Records of why a bound does not hold where the growth of gradients along the chain does not explain it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CauseRecord"]


@dataclass(frozen=True, slots=True)
class CauseRecord:
    """Why a bound of a measure does not hold, and what might change that."""

    text: str = ""
    """What the report prints; empty if only the growth along the chain is to be explained."""
    weights: tuple[str, ...] = ()
    """Names of parameters with an unusual scale."""
    factors: tuple[float, ...] = ()
    """For each of them the factor that would give it the usual scale."""
    rms: tuple[float, ...] = ()
    """Root mean square of each of them."""
    ones: tuple[str, ...] = ()
    """Names of parameters that might be one instead."""
    zeros: tuple[str, ...] = ()
    """Names of parameters that might be zero instead."""
    filled: tuple[str, ...] = ()
    """Names of parameters that might have another value instead."""
    values: tuple[float, ...] = ()
    """Such values for all of them, the most likely one first."""
    in_order: tuple[str, ...] = ()
    """Names of those among the drawn ones and the ones that are zero, in the order in which the forward pass reads them, if a
    change of some of them may suffice. The last ones may be zero by design."""
    adding: tuple[str, ...] = ()
    """Names of the modules whose code adds a constant; an empty name for the model itself."""
    constants: tuple[float, ...] = ()
    """For each of them the number that it adds."""
    drawn: tuple[str, ...] = ()
    """Names of weights that are to be drawn anew."""
    deviations: tuple[float, ...] = ()
    """For each of them the standard deviation to draw it with."""
    module: str = ""
    """Name of a module in front of which a normalization might help; empty for none."""
    multiplier: str = ""
    """Name of a module that multiplies by an unusual factor; empty for none, and for the model itself."""
    factor: float = 1.0
    """This factor."""
    is_inline: bool = False
    """Whether the module, or the model if it has no name, does more than multiply."""
    function: str = ""
    """Name of a PyTorch function that is to be left out, such as ``softmax``; empty for none."""
    callers: tuple[str, ...] = ()
    """Names of the modules whose code calls it; an empty name for the model itself."""
    calls: tuple[int, ...] = ()
    """For each of them the index of the call among those of this function in the module's code."""
    normalizations: tuple[str, ...] = ()
    """Names of normalizations whose ε is to be the usual one."""
    padding: tuple[str, ...] = ()
    """Names of tables whose padding row is not zero."""
    input_mean: float = 0.0
    input_deviation: float = 0.0
    """Mean and standard deviation of the model's inputs if these are not standardized; 0 otherwise."""
    is_first: bool = False
    """Whether the report prints it before the growth along the chain."""
    is_growth: bool = False
    """Whether states grow or shrink from step to step, so that the steps explain the failure."""
