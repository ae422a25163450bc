"""Slopes of activation functions: the derivatives of all activations in a run, at the values of the run."""

from __future__ import annotations

from dataclasses import dataclass

from ...engine.capture.function_mode import numbered
from ...engine.runs.run import Need, Run
from ..measure import declare
from .activation_calls import ActivationCall, observe_activations
from .idle_units import IDLE_CAUSES
from .unit_axes import Layout

__all__ = ["ACTIVATIONS", "Slopes"]


@dataclass(frozen=True, slots=True)
class Slopes:
    """Shares of saturated and dead units in one call of an activation with the derivative φ'."""

    saturated: float
    """Share of entries with ``|φ'|`` below 1 % of its maximum; NaN if a slope is NaN."""
    dead: float
    """Share of units with φ' = 0 in the whole batch; NaN if a slope is NaN."""


def _slopes_by_name(run: Run) -> dict[str, Slopes]:
    """Return the slopes of each call of an activation, with the dead units along the dimensions that count units."""
    calls: list[ActivationCall] = run.capture.watched[observe_activations].found
    layout = Layout(run.graph.nodes)
    slopes = {}
    for name, call in zip(numbered([call.name for call in calls]), calls):
        entries = tuple(range(1, len(call.shape)))
        units = layout.unit_axes(call.input, call.shape)
        slopes[name] = Slopes(call.saturated, call.dead[units if units in call.dead and units else entries])
    return slopes


ACTIVATIONS = Need("activations", _slopes_by_name, instruments=(observe_activations,))
""":class:`Slopes` of each call of an activation whose input carries a gradient, in the order of their return.

The name of a module is its path. The name of a function is the path of the calling module and the function's own name
(``"layers.0 relu"``). Repeated calls are numbered.
"""


@declare("profile", needs=[ACTIVATIONS], tolerance=0.05, explained_by=IDLE_CAUSES)
def saturated_fraction(run: Run) -> dict[str, float]:
    """Return the share of saturated entries of each activation, with ``|φ'(x)| < 0.01 max |φ'|``, over all samples.

    An activation is a module or a function that acts elementwise, with a bounded slope that depends on the value. Autograd
    computes φ' at the values of the run, in their precision.

    It misleads for activations that are half flat by design: a healthy ReLU has a value of one half. An activation that consists
    of several functions is recognized only if it is a separate module.

    Returns:
        Pure numbers from 0 to 1, by the path of the module, or by the path of the calling module and the function's name
        (``"layers.0 relu"``), in the order of their return. NaN if a slope is NaN.

    Source: Glorot & Bengio, AISTATS 2010, section 3; the threshold is ours.
    """
    return {name: slopes.saturated for name, slopes in run[ACTIVATIONS].items()}


@declare("profile", needs=[ACTIVATIONS], tolerance=0.05, explained_by=IDLE_CAUSES)
def dead_fraction(run: Run) -> dict[str, float]:
    """Return the share of units of each activation with ``φ'(x) = 0`` in the whole batch, at every position.

    A unit has separate weights: a neuron, a feature of a sequence, a channel of an image. The gradients of the nearest parameters
    that the activation's input depends on show which dimension counts units. If no parameter shows it, each entry of a sample is
    a unit.

    It misleads on small batches: a healthy ReLU unit is off in all of n independent samples with probability 2⁻ⁿ. A slope
    that underflows to zero in the precision of the run counts as zero.

    Returns:
        Pure numbers from 0 to 1, with the names and the order of ``saturated_fraction``. NaN if a slope is NaN.

    Source: Lu, Shin, Su & Karniadakis, Commun. Comput. Phys. 28, 1671 (2020), who count dead networks instead of dead units.
    """
    return {name: slopes.dead for name, slopes in run[ACTIVATIONS].items()}
