"""Where samples of a batch influence each other."""

from __future__ import annotations

from ..engine.interaction import INTERACTING_STEPS
from ..engine.run import Run
from .measure import Measure


def interacting_samples(run: Run) -> list[str]:
    """Return the steps across which samples interact: ``∂x_l[a] / ∂x_{l-1}[b] ≠ 0`` for some samples ``a ≠ b``.

    It misleads where samples are meant to interact: BatchNorm in training mode is listed, and so is everything that looks at the
    whole batch on purpose. What comes before the first state and after the last one (a softmax over the batch in the loss) is
    not looked at. Samples are what lies along the batch's dimension: of a graph network's batch these are nodes.

    Returns:
        Names of steps in program order; none for a batch of one. It is looked at in any case, for the frame may be
        ``"per sample"`` where one sample reads others that do not read it. ``"NAME: BatchNorm"`` where the step has one,
        ``"NAME: not finite"`` where its Jacobian holds NaN or infinity, so that nobody can tell.

    Raises:
        InapplicableError: The states cannot be divided into samples.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "use backprop to chart dependencies".
    """
    return run[INTERACTING_STEPS]


MEASURE = Measure("interacting_samples", "names", "", "linear", frozenset({INTERACTING_STEPS}), interacting_samples)
