"""The learning rate at which the first step of gradient descent is as long as the parameters themselves."""

from __future__ import annotations

import math

from ...engine.capture.chain import dependent_nodes
from ...engine.capture.multipliers import Amplifier, amplifiers
from ...engine.capture.operators import operator_name
from ...engine.linalg.norms import norm
from ...engine.runs.common_needs import GRADIENT_NORMS
from ...engine.runs.run import Need, Run
from ...errors import InapplicableError
from ...records.causes import CauseRecord
from ...records.text import format_number
from ..measure import declare

__all__: list[str] = []

LARGE = 1e3
"""Factor from which on an operation behind the last layer explains large gradients."""


def _rate_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return which operation behind the last layers multiplies the gradient by large numbers, and which parameter makes them."""
    names = {id(p): name for name, p in run.capture.model.named_parameters(remove_duplicate=False)}
    found = list(amplifiers(run.graph, dependent_nodes(run.capture, run.graph), run.capture.roots, least=LARGE))
    if not found:
        return ()
    # A square of large numbers is large as well: the operation that reads the parameter has made them.
    largest = max(found, key=lambda one: (id(one.parameter) in names, one.factor))
    place = run.graph.place[largest.node]
    where = run.capture.place_of(place) if run.capture.call_at(place) is not None else "the loss"
    text = f"{operator_name(largest.node)} in {where} multiplies the gradient by {format_number(largest.factor)}"
    if id(largest.parameter) not in names:
        return (CauseRecord(text, is_first=True),)
    name, value = names[id(largest.parameter)], _start(largest)
    filled = (name,) if value is not None else ()
    text += f": {_origin_text(largest, name)}"
    return (CauseRecord(text, filled=filled, values=() if value is None else (value,), is_first=True),)


def _origin_text(found: Amplifier, name: str) -> str:
    assert found.parameter is not None
    entries = found.parameter.detach().double().flatten()
    is_constant = bool((entries == entries[0]).all())
    value = format_number(float(entries.mean())) + ("" if is_constant else " on average")
    through = f", through {' × '.join(found.operators)}" if found.operators else ""
    what = "divisor" if operator_name(found.node) == "Div" else "other operand"
    return f"its {what} comes from {name}, which is {value}{through}"


def _start(found: Amplifier) -> float | None:
    """Return the value with which a parameter leaves the gradient as it is: that of a factor, or of its logarithm."""
    return 1.0 if not found.operators else 0.0 if "Exp" in found.operators else None


RATE_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of large gradients", _rate_causes)
"""What multiplies the gradient between the loss and the last layers."""


@declare(
    "scalar",
    scale="log",
    needs=[GRADIENT_NORMS],
    tolerance=0.3,
    explained_by_growth=-1,
    explained_by=RATE_CAUSES,
)
def largest_learning_rate(run: Run) -> float:
    """Return ``‖w‖₂ / ‖∂loss/∂w‖₂`` over all parameters that have a gradient, together.

    At this learning rate, the first step of plain gradient descent is as long as the vector of all parameters: it replaces them.
    It does not depend on how the parameters are divided among layers, and small parameters, such as a LayerScale, count little.

    It misleads for optimizers that divide by the size of the gradient, such as Adam, whose steps do not depend on it.

    Returns:
        Units of squared weight per unit of loss; ``inf`` if the gradient is zero.

    Raises:
        InapplicableError: The gradient is not finite, no parameter has one, or all of these parameters are zero.

    Source: You, Gitman & Ginsburg, arXiv:1708.03888 (2017), whose trust ratio is this number for one layer.
    """
    norms = run[GRADIENT_NORMS]
    parameters = dict(run.capture.model.named_parameters())
    above = math.hypot(*(float(norm(parameters[name])) for name in norms))
    below = math.hypot(*norms.values())
    if not above or not math.isfinite(below):
        what = "parameters that get a gradient and are not all zero" if not above else "a finite gradient"
        msg = f"largest_learning_rate needs {what}. The measure nonfinite lists what is NaN or infinite."
        raise InapplicableError(msg)
    return above / below if below else math.inf
