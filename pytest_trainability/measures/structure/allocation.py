"""Uninitialized parameters and buffers."""

from __future__ import annotations

from ...engine.runs.allocation import UNWRITTEN
from ...engine.runs.requirements import require_factory
from ...engine.runs.run import Run
from ..measure import declare


@declare("names", needs=[UNWRITTEN])
def uninitialized_parameters(run: Run) -> list[str]:
    """Return the parameters and buffers that were allocated, but not completely written.

    The factory builds the model again while PyTorch fills new memory with NaN (integers with the largest one, booleans with
    True). An entry was never written if it has this value, and does not have it when the model is built in zeroed memory. A
    tensor of integers or booleans counts only if none of its entries was written. Parameters of lazy modules, which have no
    values yet, are omitted.

    It misleads if values are loaded after the factory has returned, and for memory that does not come from PyTorch
    (``numpy.empty``).

    Returns:
        Names of parameters, then of buffers, in the model's order.

    Raises:
        InapplicableError: The model is a finished module, which cannot be built again.

    Source: pytorch/torchtitan#2450.
    """
    require_factory(run, "uninitialized_parameters")
    return run[UNWRITTEN]
