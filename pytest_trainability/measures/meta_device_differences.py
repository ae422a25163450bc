"""What becomes of an initialization that goes by way of the meta device."""

from __future__ import annotations

from ..engine.materialization import META_DIFFERENCES
from ..engine.run import Run
from .measure import Measure


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


MEASURE = Measure(
    "meta_device_differences", "names", "", "linear", frozenset({META_DIFFERENCES}), meta_device_differences
)
