"""What a measure is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ..engine.run import Need, Run
from ..errors import UsageError

__all__ = ["Kind", "Measure", "Reading", "Scale"]

Kind: TypeAlias = Literal["scalar", "spectrum", "profile", "names"]
Scale: TypeAlias = Literal["linear", "log"]
Reading: TypeAlias = "float | Sequence[float] | Mapping[str, float] | Sequence[str]"


@dataclass(frozen=True, slots=True)
class Measure:
    """One quantity, read from one run per seed.

    Args:
        name: A noun of the quantity: the attribute of a result and the keyword of a bound.
        kind: ``"scalar"`` reads a float, ``"spectrum"`` floats that are averaged over seeds one by one and then sorted,
            ``"profile"`` floats by name, ``"names"`` what is at fault.
        unit: As printed; empty for a pure number.
        scale: ``"log"`` averages logarithms over seeds: for positive quantities whose ratio matters.
        needs: What the run must provide.
        read: Takes the number from the run.
        element: What the elements of a spectrum are.
        tolerance: By how much it may differ from a baseline, in its unit; of a ``"log"`` scale in nats of ratio.
    """

    name: str
    kind: Kind
    unit: str
    scale: Scale
    needs: frozenset[Need[Any]]
    read: Callable[[Run], Reading]
    tolerance: float = 0.0
    element: str = "exponent"

    def __post_init__(self) -> None:
        for what, value, known in (("kind", self.kind, get_args(Kind)), ("scale", self.scale, get_args(Scale))):
            if value not in known:
                msg = f"the {what} of a measure must be one of {', '.join(map(repr, known))}. That of {self.name!r} is {value!r}."
                raise UsageError(msg)
        object.__setattr__(self, "needs", frozenset(self.needs))
        if not all(isinstance(need, Need) for need in self.needs) or not callable(self.read):
            msg = (
                f"a measure must have needs that are Needs, and a function that reads a Run. {self.name!r} has others."
            )
            raise UsageError(msg)
