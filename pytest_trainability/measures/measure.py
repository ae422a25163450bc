"""The type of a measure, and the decorator that declares one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ..engine.runs.run import Need, Run, Stage
from ..errors import UsageError
from ..records.causes import CauseRecord

__all__ = ["Along", "ExplainedByGrowth", "Kind", "Measure", "Reading", "Scale", "ZeroByDesign", "declare"]

Kind: TypeAlias = Literal["scalar", "spectrum", "profile", "names"]
Scale: TypeAlias = Literal["linear", "log"]
Along: TypeAlias = Literal["depth", "time"]
ExplainedByGrowth: TypeAlias = Literal[-1, 0, 1]
ZeroByDesign: TypeAlias = Literal["", "gradient", "ratio", "update", "branch"]
Reading: TypeAlias = "float | Sequence[float] | Mapping[str, float] | Sequence[str]"


@dataclass(frozen=True, slots=True)
class Measure:
    """A quantity that is read from one run of the model per seed.

    Args:
        name: Noun that names the quantity: the attribute of a result and the keyword of a bound.
        kind: Type of one reading. ``"scalar"``: a float. ``"spectrum"``: a list of floats, which are averaged over seeds one by
            one and then sorted. ``"profile"``: floats by name. ``"names"``: a list with the names of faulty parts.
        unit: Unit that reports print; empty for a pure number.
        scale: Whether values are averaged over seeds arithmetically (``"linear"``) or by their logarithms (``"log"``, for
            positive quantities whose ratios matter).
        needs: The needs that ``read`` takes from the run.
        read: Function that returns the reading of one run.
        tolerance: Largest change from a baseline that still passes: in the measure's unit, or in nats of the ratio for
            ``scale="log"``. With 0, the default, every change fails that exceeds the precision of the stored value.
        element: Name of one element of a spectrum, for reports.
        explained_by_growth: Whether growth of gradients along the chain can cause a failed bound: 1 for a measure that increases
            with the log gain, -1 for one that decreases with it, 0 (the default) for one that does not depend on it. Where it
            can, a report names the growth as the likely cause.
        zero_by_design: Which elements of a profile are zero where a model starts at zero by design (a zero-initialized branch).
            ``"gradient"``: an element by parameter is zero or undefined while the parameter's gradient is zero. ``"update"``:
            the same, except that weight decay alone can make it positive. ``"ratio"``: the same as ``"gradient"``, divided by the
            size of the parameter, and infinite where that is zero. ``"branch"``: an element by residual step is zero
            while its branch is. Bounds skip such elements if their parameters get a gradient within a few optimizer steps, and
            elements by parameter whose gradient is zero by algebra; see ``gradient_classes``. It requires ``kind="profile"``.
            Empty, the default: bounds judge every element.
        measured_with: Name of another measure that is read whenever this one is bounded and the other one applies to the model:
            its value is needed for the verdict, or shows what this one should be. Empty, the default, for no such measure.
        recorded: Chains, ``"depth"`` or ``"time"``, for which every baseline holds this measure, bounded or not.
        if_empty: Why a profile or spectrum has no element, for the report of a bound that has nothing to judge: a sentence
            without a full stop. Empty, the default, for no reason, or for frozen parameters where elements are parameters.
        presumes: Need that says whether the model is meant to satisfy a bound: a preset bounds the measure only then, and a bound
            of the user in any case. All other needs must have the stage ``RERUN``, and are not computed if it is False. None, the
            default, for a measure that presets ask of every model.
        explained_by: Need that explains a value outside of its bound: a tuple of
            :class:`~pytest_trainability.records.causes.CauseRecord`, from one more run after a failure. None, the default, for no
            explanation.
        holds_by_seed: Whether a bound on an element ought to hold on each seed alone, because a value outside is a fault that no
            other draw removes, such as a derivative that is wrong. A failure is not marginal then if some element is outside
            on all seeds, however much its values differ. False by default: the mean over seeds is judged.

    Raises:
        UsageError: An argument is not one of the values above, ``zero_by_design`` is set for another kind than a profile, or
            ``presumes`` for needs of an earlier stage than ``RERUN``.
    """

    name: str
    kind: Kind
    unit: str
    scale: Scale
    needs: frozenset[Need[Any]]
    read: Callable[[Run], Reading]
    tolerance: float = 0.0
    element: str = "exponent"
    explained_by_growth: ExplainedByGrowth = 0
    zero_by_design: ZeroByDesign = ""
    measured_with: str = ""
    recorded: frozenset[Along] = frozenset()
    if_empty: str = ""
    presumes: Need[bool] | None = None
    explained_by: Need[tuple[CauseRecord, ...]] | None = None
    holds_by_seed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(self.needs))
        object.__setattr__(self, "recorded", frozenset(self.recorded))
        self._require_known("kind", get_args(Kind))
        self._require_known("scale", get_args(Scale))
        self._require_known("explained_by_growth", get_args(ExplainedByGrowth))
        self._require_known("zero_by_design", get_args(ZeroByDesign))
        if not all(isinstance(need, Need) for need in self.needs) or not callable(self.read):
            msg = f"Measure {self.name!r}: needs must hold Need objects, and read must be a function of a Run."
            raise UsageError(msg)
        if not self.recorded <= {*get_args(Along)}:
            msg = f"Measure {self.name!r}: recorded must hold 'depth', 'time' or both. Got {sorted(self.recorded)}."
            raise UsageError(msg)
        if self.zero_by_design and self.kind != "profile":
            msg = (
                f"Measure {self.name!r}: zero_by_design needs kind='profile', whose elements are parameters or steps. "
                f"Got kind={self.kind!r}."
            )
            raise UsageError(msg)
        if self.presumes is not None and any(need.stage is not Stage.RERUN for need in self.needs):
            msg = f"Measure {self.name!r}: presumes requires that all needs have the stage RERUN."
            raise UsageError(msg)

    @property
    def reads_built_model_only(self) -> bool:
        """Whether the measure has needs, and all of them read the model before its forward pass."""
        return bool(self.needs) and all(need.stage is Stage.BUILD for need in self.needs)

    def _require_known(self, argument: str, known: tuple[object, ...]) -> None:
        value = getattr(self, argument)
        if value not in known:
            choices = ", ".join(map(repr, known))
            msg = f"Measure {self.name!r}: {argument} must be one of {choices}. Got {value!r}."
            raise UsageError(msg)


def declare(
    kind: Kind,
    *,
    unit: str = "",
    scale: Scale = "linear",
    needs: Collection[Need[Any]] = (),
    tolerance: float = 0.0,
    element: str = "exponent",
    explained_by_growth: ExplainedByGrowth = 0,
    zero_by_design: ZeroByDesign = "",
    measured_with: str = "",
    recorded: Collection[Along] = (),
    if_empty: str = "",
    presumes: Need[bool] | None = None,
    explained_by: Need[tuple[CauseRecord, ...]] | None = None,
    holds_by_seed: bool = False,
) -> Callable[[Callable[[Run], Reading]], Measure]:
    """Return a decorator that turns a function of a run into a measure with the function's name.

    The arguments and their defaults are those of :class:`Measure`.

    >>> @declare("scalar", unit="parameters")
    ... def parameter_count(run):
    ...     return sum(p.numel() for p in run.capture.model.parameters())
    >>> parameter_count.name, parameter_count.unit
    ('parameter_count', 'parameters')

    Returns:
        The decorator. It replaces the function by a :class:`Measure`, whose ``read`` is the function.

    Raises:
        UsageError: An argument is one that :class:`Measure` refuses. The decorator raises it.
    """

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
            if_empty=if_empty,
            presumes=presumes,
            explained_by=explained_by,
            holds_by_seed=holds_by_seed,
        )

    return declared
