"""Records of what a step consists of: factors of its Jacobian, with the gain of each and the numbers that explain it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["BufferRecord", "FactorKind", "FactorRecord", "GateRecord", "SlopeRecord"]

FactorKind = Literal["weights", "gated", "entrywise", "normalization", "attention", "parallel", "layout", "other"]
"""Product with weights; gates that products with weights open, as in an LSTM; function of each entry; normalization; attention;
paths that are added, as a branch and its skip connection; entries in another place or shape; anything else."""


@dataclass(frozen=True, slots=True)
class SlopeRecord:
    """Slopes of a function that acts on each entry, measured over all entries."""

    rms: float
    low: float
    high: float
    zeros: float
    """Fraction of slopes that are zero."""

    @property
    def is_constant(self) -> bool:
        """Whether the function multiplies by one number."""
        return self.high - self.low <= 1e-3 * max(abs(self.high), abs(self.low))


@dataclass(frozen=True, slots=True)
class GateRecord:
    """A sigmoid that is nearly closed, or nearly open, and what is added in front of it."""

    mean: float
    """Mean of the sigmoid."""
    module: str = ""
    """Name of the module whose code adds a constant; empty for the model itself."""
    constant: float = 0.0
    """Number that the code adds; 0 for none."""
    bias: str = ""
    """Name of the bias; empty for none."""
    bias_mean: float = 0.0
    """Mean of the bias, or of the part of it that belongs to the gate."""
    part: int = 0
    parts: int = 1
    """Number of equal parts of the bias, and index of the part that belongs to the gate."""


@dataclass(frozen=True, slots=True)
class BufferRecord:
    """A buffer that the signal is multiplied with."""

    name: str
    rms: float
    """Root mean square of its entries."""
    row_sum: float = math.nan
    """Mean over the rows of the sum of a row's absolute values; NaN for a buffer of less than two dimensions."""


@dataclass(frozen=True, slots=True)
class FactorRecord:
    """One factor of the Jacobian of a step. See Note [Factors of a step] in engine/capture/factors.py."""

    step: int
    """Index of the step, from 0 on."""
    module: str
    """Name of the innermost module that performs all operations of the factor; empty for the model itself."""
    module_kind: str
    """Class of this module."""
    kind: FactorKind
    operations: tuple[str, ...]
    """Operators on the path of the signal, such as ``Addmm``, in program order."""
    gain: float
    """``ln ‖Jᵀu‖ / ‖u‖`` in nats, averaged over trajectories; ``-inf`` if nothing passes, NaN if nothing arrives."""
    is_whole_module: bool = False
    """Whether the module does nothing else to the signal."""
    parameters: tuple[str, ...] = ()
    """Names of the parameters that the operations read."""
    parameter_means: tuple[float, ...] = ()
    """Mean of each of them."""
    rewritten: tuple[str, ...] = ()
    """Names of those that the forward pass has written, as a data-dependent initialization does."""
    sensitivities: tuple[float, ...] = ()
    """For each of them the change of the gain, in nats per unit by which all of its entries grow; none where it is not known."""
    buffers: tuple[BufferRecord, ...] = ()
    """Buffers of the model that the signal is multiplied with."""
    zero_parameters: tuple[str, ...] = ()
    """Trained parameters of the model that are zero and no biases, among those whose names differ from these by numbers only."""
    weight: str = ""
    """Name of the weight that the signal is multiplied with, or of the gain of a normalization; empty for other kinds."""
    weight_rms: float = math.nan
    """Root mean square of the entries of this parameter, or of the weight that is computed from it if ``scaled_by`` is set."""
    scaled_by: str = ""
    """Name of the parameter that a computed weight is proportional to if ``weight`` is not, as with weight normalization."""
    products: tuple[tuple[str, float, int], ...] = ()
    """Name, root mean square and number of inputs of each weight, where a factor is more than one product and has no branches."""
    shift_of_one: str = ""
    """Name of the shift of a normalization whose entries are all one; empty for none."""
    fan_in: int = 0
    """Number of inputs of one unit of the weight."""
    bias: str = ""
    """Name of the bias that is added to a product with weights; empty for none."""
    bias_rms: float = math.nan
    """Root mean square of this bias."""
    product_rms: float = math.nan
    """Root mean square of the product without the bias, if weights are independent of the inputs; NaN if it is not known."""
    forget_bias: float = math.nan
    """Mean bias of an LSTM's forget gate, or of a GRU's update gate; NaN for other modules."""
    misplaced_bias: tuple[str, int] | None = None
    """Name of a bias of such a module that opens another gate and not this one, and index of its part; None if there is none."""
    gates: tuple[GateRecord, ...] = ()
    """Sigmoids that are nearly closed or open because of what is added in front of them."""
    slopes: SlopeRecord | None = None
    """Slopes of a function of each entry."""
    group_size: int = 0
    """Number of entries that a normalization normalizes together; 0 if unknown."""
    input_deviation: float = math.nan
    """Standard deviation of what a normalization normalizes, median over its groups; NaN if unknown."""
    eps: float = math.nan
    """Constant that a normalization adds to the variance; NaN if unknown."""
    branches: tuple[tuple[FactorRecord, ...], ...] = ()
    """Factors of each path of parallel ones; no factor for a skip connection that changes nothing."""
    branch_gains: tuple[float, ...] = ()
    """Gain of each of these paths alone."""
