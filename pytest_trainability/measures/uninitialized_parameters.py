"""Parameters and buffers that nobody has given values."""

from __future__ import annotations

from ..engine.allocation import UNINITIALIZED
from ..engine.run import Run
from .measure import Measure


def uninitialized_parameters(run: Run) -> list[str]:
    """Return the parameters and buffers that hold, all or partly, what memory held when they were allocated.

    The factory builds the model once more while PyTorch fills every allocation with NaN (integers with the largest
    number, truth values with True); what comes out so, and does not in zeroed memory, was never written to. It misleads
    where values are loaded later on, behind the factory, and where memory does not come from PyTorch (``numpy.empty``).
    Integers and truth values count only if none of them was written to. Parameters of lazy modules, which have no values
    yet, are left out.

    Returns:
        Names of parameters, then of buffers, in the model's order.

    Raises:
        InapplicableError: The model is a finished module, which cannot be built again.

    Source: pytorch/torchtitan#2450.
    """
    return run[UNINITIALIZED]


MEASURE = Measure(
    "uninitialized_parameters", "names", "", "linear", frozenset({UNINITIALIZED}), uninitialized_parameters
)
