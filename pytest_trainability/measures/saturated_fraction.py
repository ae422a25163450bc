"""How much of each activation function is flat where the model stands on it."""

from __future__ import annotations

from ..engine.activations import ACTIVATIONS
from ..engine.run import Run
from .measure import Measure


def saturated_fraction(run: Run) -> dict[str, float]:
    """Return the share of units whose activation is flat, ``|φ'(x)| < 0.01 max |φ'|``, averaged over samples.

    An activation is whatever acts on each entry alone with a bounded slope that depends on the entry: a module, or a
    function that a module calls. φ' is what autograd computes, at the values of the run and in their precision.

    It misleads where half of an activation is flat by design: one half is what a healthy ReLU has. What is written with
    several functions outside of a module of its own is not seen as a whole.

    Returns:
        Pure numbers from 0 to 1, by the path of the module, or the path of the module that calls the function and the
        function's name; in the order of their return. NaN where a slope is NaN.

    Source: Glorot & Bengio, AISTATS 2010, section 3; the threshold is ours.
    """
    return {name: slopes.saturated for name, slopes in run[ACTIVATIONS].items()}


MEASURE = Measure(
    "saturated_fraction", "profile", "", "linear", frozenset({ACTIVATIONS}), saturated_fraction, tolerance=0.05
)
