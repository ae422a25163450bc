"""Classes of gradients: why a parameter has no gradient at initialization.

A class is a text. Parameters with a signal are most, and are left out of a list of classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = [
    "BALANCED",
    "CANCELLED",
    "CANCELLED_WEIGHT",
    "DEAD",
    "FROZEN",
    "SIGNAL",
    "UNKNOWN",
    "UNUSED",
    "GradientClasses",
    "ShareWithoutGradient",
    "kind_of",
    "listed",
    "waking",
    "without_names",
]

SIGNAL = "signal"
"""The gradient is more than round-off, however small."""
CANCELLED = "zero by algebra"
"""The gradient is the round-off of a sum that cancels. The parameter has at most one dimension, such as a bias of a key."""
CANCELLED_WEIGHT = "zero by algebra, a weight"
"""The same for a parameter of two or more dimensions, also after the optimizer steps."""
BALANCED = "zero on this draw"
"""The terms that the gradient is the sum of cancel. But the loss depends on the parameter, and another draw or more steps give it
a gradient. It has at most one dimension."""
DEAD = "dead"
"""The gradient is exactly zero, and still is after the optimizer steps. It is no sum of terms that are not zero."""
UNUSED = "unused"
"""The loss has no path to the parameter."""
FROZEN = "frozen"
"""The parameter does not require a gradient."""
UNKNOWN = "zero, an optimizer step was not finite"
"""The gradient is zero, and whether it wakes is not known."""

_WAKING = "waking at step "
_BLOCKED = ", not by design"
_HARMLESS = frozenset({SIGNAL, CANCELLED, BALANCED, FROZEN})
_MOVABLE = _HARMLESS - {FROZEN}
_ORDER = (SIGNAL, "waking", "waking not by design", CANCELLED, BALANCED, DEAD, UNUSED, FROZEN, "unknown")


def waking(step: int, *, by_design: bool) -> str:
    """Return the class of a parameter without a gradient at initialization that gets one after some optimizer steps.

    Args:
        step: Number of optimizer steps.
        by_design: Whether a zero-initialized branch, gate or layer explains the zero.
    """
    return f"{_WAKING}{step}{'' if by_design else _BLOCKED}"


def kind_of(label: str) -> str:
    """Return the class without details: one word for all optimizer steps, and one for vectors and weights.

    >>> kind_of("waking at step 2"), kind_of("zero by algebra, a weight")
    ('waking', 'zero by algebra')
    """
    if label == UNKNOWN:
        return "unknown"
    return "waking" if label.startswith(_WAKING) else label.partition(",")[0]


def listed(classes: Mapping[str, str]) -> list[str]:
    """Return a line ``NAME: CLASS`` for each parameter without a signal.

    >>> listed({"key.bias": "zero by algebra", "key.weight": "signal"})
    ['key.bias: zero by algebra']
    """
    return [f"{name}: {label}" for name, label in classes.items() if label != SIGNAL]


def without_names(lines: Iterable[str]) -> dict[str, str]:
    """Return classes by name from the lines of :func:`listed`.

    >>> without_names(["key.bias: zero by algebra"])
    {'key.bias': 'zero by algebra'}
    """
    return {name: label for name, _, label in (line.rpartition(": ") for line in lines)}


@dataclass(frozen=True, slots=True)
class GradientClasses:
    """The class of every parameter's gradient, on every seed.

    >>> classes = GradientClasses.of([["key.bias: zero by algebra"]], ["key.weight", "key.bias"])
    >>> classes.counts_text(), classes.not_judged()
    ('gradients: 1 signal, 1 zero by algebra', ['key.bias'])
    """

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By name, one class per seed."""
    blocks: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Parameters of each repeated block, by a description such as ``12 × Block``."""

    @classmethod
    def of(
        cls,
        readings: Sequence[Sequence[str]],
        parameters: Iterable[str],
        blocks: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> GradientClasses:
        """Return the classes from the lines of each seed.

        Args:
            readings: For each seed, the lines of :func:`listed`.
            parameters: Names of further parameters, which have a signal where no line names them.
            blocks: Parameters of each repeated block, by its description.
        """
        seeds = [without_names(lines) for lines in readings]
        names = dict.fromkeys([*parameters, *(name for found in seeds for name in found)])
        return cls({name: tuple(found.get(name, SIGNAL) for found in seeds) for name in names}, blocks)

    def by_label(self) -> dict[str, list[str]]:
        """Return the parameters of each class, without those that have a signal on every seed, are frozen or unused.

        If seeds differ, the first class without a signal counts.
        """
        found: dict[str, list[str]] = {}
        for name, labels in self.labels.items():
            label = next((label for label in labels if label != SIGNAL), SIGNAL)
            if label not in {SIGNAL, FROZEN, UNUSED}:
                found.setdefault(label, []).append(name)
        return found

    def step(self, name: str) -> int:
        """Return the largest number of optimizer steps, over seeds, after which a parameter wakes; 0 if it does not."""
        steps = (label.removeprefix(_WAKING).partition(",")[0] for label in self.labels.get(name, ()) if _wakes(label))
        return max(map(int, steps), default=0)

    def wakes(self, name: str) -> bool:
        """Whether the parameter has a signal or wakes by design on every seed, and wakes on at least one."""
        labels = self.labels.get(name, ())
        return any(map(_wakes, labels)) and all(label == SIGNAL or _wakes_by_design(label) for label in labels)

    def is_cancelled(self, name: str) -> bool:
        """Whether the gradient is a sum that cancels on at least one seed, and harmless on every seed."""
        labels = self.labels.get(name, ())
        cancels = CANCELLED in labels or BALANCED in labels
        return cancels and all(label in _MOVABLE or _wakes_by_design(label) for label in labels)

    def is_cancelled_weight(self, name: str) -> bool:
        """Whether the parameter is a weight whose gradient is zero by algebra on at least one seed, and stays so."""
        return CANCELLED_WEIGHT in self.labels.get(name, ())

    def is_round_off(self, name: str, seed: int) -> bool:
        """Whether the gradient is a sum that cancels on the seed with this number."""
        return name in self.labels and kind_of(self.labels[name][seed]) in {CANCELLED, BALANCED}

    def not_judged(self) -> list[str]:
        """Return the parameters that bounds on gradients do not judge: zero by algebra, or zero by design and waking."""
        return [name for name in self.labels if self.wakes(name) or self.is_cancelled(name)]

    def moves(self, names: Collection[str]) -> bool:
        """Whether there are parameters of these names, and an optimizer can move all of them within a few steps."""
        own = [label for name in names for label in self.labels.get(name, ())]
        return bool(own) and all(label in _MOVABLE or _wakes(label) for label in own)

    def move_by_design(self, names: Iterable[str]) -> bool:
        """Whether each of these parameters has a signal, wakes by design, or is zero by algebra without harm, on every seed."""
        own = [self.labels.get(name, (UNKNOWN,)) for name in names]
        return all(label in {SIGNAL, CANCELLED} or _wakes_by_design(label) for labels in own for label in labels)

    def trainable(self) -> list[str]:
        """Return the parameters that are not frozen."""
        return [name for name, labels in self.labels.items() if FROZEN not in labels]

    def without_gradient(self) -> list[str]:
        """Return the trainable parameters that get no gradient on at least one seed, and not by design."""
        return [name for name, labels in self.labels.items() if any(map(gets_none, labels))]

    def largest_shares(self) -> list[ShareWithoutGradient]:
        """Return for each seed the share of parameters without a gradient: of the whole model or of a repeated block."""
        groups = {"": self.trainable(), **self.blocks}
        seeds = range(len(next(iter(self.labels.values()), ())))
        return [max((self._share(*group, seed) for group in groups.items()), key=lambda s: s.share) for seed in seeds]

    def _share(self, block: str, names: Iterable[str], seed: int) -> ShareWithoutGradient:
        labels = {name: self.labels[name][seed] for name in names if name in self.labels}
        return ShareWithoutGradient.of(labels, block)

    def are_harmless(self) -> bool:
        """Whether every gradient is a signal, the parameter is frozen, or it is a bias whose gradient is a sum that cancels."""
        return all(label in _HARMLESS for labels in self.labels.values() for label in labels)

    def counts_text(self) -> str:
        """Return the numbers of parameters by class as text; empty if all have a signal, except frozen ones.

        If seeds differ, the first one without a signal counts.
        """
        first = (next((label for label in labels if label != SIGNAL), SIGNAL) for labels in self.labels.values())
        counts = Counter(kind_of(label) + (" not by design" if label.endswith(_BLOCKED) else "") for label in first)
        if not counts.keys() - {SIGNAL, FROZEN}:
            return ""
        return "gradients: " + ", ".join(f"{counts[kind]} {kind}" for kind in _ORDER if counts[kind])


@dataclass(frozen=True, slots=True)
class ShareWithoutGradient:
    """Parameters of a model, or of its repeated block, that get no gradient, and not by design."""

    names: tuple[str, ...]
    """Those without a gradient."""
    judged: int
    """Number of all that count. Biases whose gradient is a sum that cancels do not."""
    by_design: int
    """Number of others that are zero at initialization and wake by design."""
    block: str = ""
    """Description of the repeated block; empty for the whole model."""

    @classmethod
    def of(cls, labels: Mapping[str, str], block: str = "") -> ShareWithoutGradient:
        """Return the share of trainable parameters.

        Args:
            labels: Their classes by name.
            block: Description of the repeated block.
        """
        judged = {name: label for name, label in labels.items() if label not in {CANCELLED, BALANCED, FROZEN}}
        names = tuple(name for name, label in judged.items() if gets_none(label))
        return cls(names, len(judged), sum(map(_wakes_by_design, judged.values())), block)

    @property
    def share(self) -> float:
        """Number of parameters without a gradient over the number of those that count; 1 if none counts."""
        return len(self.names) / self.judged if self.judged else 1.0


def gets_none(label: str) -> bool:
    """Return whether a trainable parameter of this class gets no gradient, and not by design.

    >>> [gets_none(label) for label in ("signal", "zero by algebra", "waking at step 1", "dead", "unused")]
    [False, False, False, True, True]
    """
    return label not in _HARMLESS and not _wakes_by_design(label)


def _wakes(label: str) -> bool:
    return label.startswith(_WAKING)


def _wakes_by_design(label: str) -> bool:
    return _wakes(label) and not label.endswith(_BLOCKED)
