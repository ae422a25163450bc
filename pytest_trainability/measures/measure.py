"""What a measure is, and how one is declared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ..engine.runs.run import Need, Run
from ..errors import UsageError

__all__ = ["Kind", "Measure", "Reading", "Scale", "declare"]

Kind: TypeAlias = Literal["scalar", "spectrum", "profile", "names"]
Scale: TypeAlias = Literal["linear", "log"]
Along: TypeAlias = Literal["depth", "time"]
ZeroByDesign: TypeAlias = Literal["", "gradient", "update", "branch"]
Reading: TypeAlias = "float | Sequence[float] | Mapping[str, float] | Sequence[str]"


@dataclass(frozen=True, slots=True)
class Measure:
    """One quantity, read from one run per seed.

    Args:
        name: A noun of the quantity: the attribute of a result and the keyword of a bound.
        kind: ``"scalar"`` reads a float, ``"spectrum"`` floats that are averaged over seeds one by one and then sorted,
            ``"profile"`` floats by name, ``"names"`` a list of names of what is at fault.
        unit: As printed; empty for a pure number.
        scale: ``"log"`` averages logarithms over seeds: for positive quantities whose ratio matters.
        needs: What the run must provide.
        read: Takes the number from the run.
        tolerance: By how much it may differ from a baseline, in its unit; for a ``"log"`` scale in nats of ratio.
        element: What the elements of a spectrum are called.
        explained_by_growth: Whether growth along the chain can explain a failed bound: 1 for a measure that increases with the
            log gain, -1 for one that decreases with it, 0 for one that has nothing to do with it.
        zero_by_design: ``"gradient"`` for a measure by parameter that is zero or undefined while a parameter's gradient is zero,
            ``"update"`` for one that weight decay alone can make positive, ``"branch"`` for one by residual step that is zero while
            its branch is. Bounds do not judge the elements that get a gradient within a few optimizer steps.
        measured_with: Name of a measure that is read, where it can be, whenever this one has a bound: to judge it, or to say what
            its value should be.
        recorded: Along which chains every baseline holds this measure, bounded or not.

    Raises:
        UsageError: An argument is not one of the values above.
    """

    name: str
    kind: Kind
    unit: str
    scale: Scale
    needs: frozenset[Need[Any]]
    read: Callable[[Run], Reading]
    tolerance: float = 0.0
    element: str = "exponent"
    explained_by_growth: Literal[-1, 0, 1] = 0
    zero_by_design: ZeroByDesign = ""
    measured_with: str = ""
    recorded: frozenset[Along] = frozenset()

    def __post_init__(self) -> None:
        for what, value, known in (
            ("kind", self.kind, get_args(Kind)),
            ("scale", self.scale, get_args(Scale)),
            ("explained_by_growth", self.explained_by_growth, (-1, 0, 1)),
            ("zero_by_design", self.zero_by_design, get_args(ZeroByDesign)),
        ):
            if value not in known:
                msg = f"the {what} of a measure must be one of {', '.join(map(repr, known))}. That of {self.name!r} is {value!r}."
                raise UsageError(msg)
        object.__setattr__(self, "needs", frozenset(self.needs))
        object.__setattr__(self, "recorded", frozenset(self.recorded))
        if not all(isinstance(need, Need) for need in self.needs) or not callable(self.read):
            msg = (
                f"a measure must have needs that are Needs, and a function that reads a Run. {self.name!r} has others."
            )
            raise UsageError(msg)
        if not self.recorded <= {*get_args(Along)}:
            msg = f"recorded must hold 'depth', 'time' or both. That of {self.name!r} is {sorted(self.recorded)}."
            raise UsageError(msg)


def declare(
    kind: Kind,
    *,
    unit: str = "",
    scale: Scale = "linear",
    needs: Collection[Need[Any]] = (),
    tolerance: float = 0.0,
    element: str = "exponent",
    explained_by_growth: Literal[-1, 0, 1] = 0,
    zero_by_design: ZeroByDesign = "",
    measured_with: str = "",
    recorded: Collection[Along] = (),
) -> Callable[[Callable[[Run], Reading]], Measure]:
    """Declare the function below as a measure of its name; the arguments are those of :class:`Measure`."""

    def declared(read: Callable[[Run], Reading]) -> Measure:
        return Measure(
            read.__name__,
            kind,
            unit,
            scale,
            frozenset(needs),
            read,
            tolerance=tolerance,
            element=element,
            explained_by_growth=explained_by_growth,
            zero_by_design=zero_by_design,
            measured_with=measured_with,
            recorded=frozenset(recorded),
        )

    return declared
