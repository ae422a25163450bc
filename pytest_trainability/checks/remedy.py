"""A change of a model that may be tried on a copy of it, and its words: what to write in the model's code."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ..records.names import with_stars
from ..records.text import format_number
from .factor_groups import places

__all__ = ["SAME_SIZE", "Remedy", "indexed"]

FEW = 3
"""Number of forms of names up to which each is written with its scale."""
_ORDINALS = ("first", "second", "third", "fourth")
SAME_SIZE = 1.3
"""Largest ratio of the scales of weights that are written as one."""

RemedyKind: TypeAlias = (
    'Literal["scale", "ones", "zeros", "draw", "orthogonal gates", "forget bias", "output", "layer norm", "standard inputs",'
    ' "several", "padding", "eps", "shift", "update bias", "inline", "sum", "gate bias", "function", "other gate", "fill"]'
)


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of a model that may be tried on a copy of it."""

    kind: RemedyKind
    targets: tuple[str, ...]
    """Names of the parameters that it changes, or of the modules for ``output``, ``inline``, ``sum``, ``function``, ``eps`` and
    ``layer norm``."""
    factors: tuple[float, ...] = ()
    """For each target the factor by which it is multiplied; for ``forget bias`` the new mean, for ``draw`` the standard
    deviation, for ``fill`` the value of all entries, for ``inline`` and ``sum`` the number that the code of the module multiplies
    with or adds, for ``orthogonal gates`` the number of gates. For ``standard inputs`` the mean and the standard deviation, for
    ``gate bias`` the index of the part that is filled, the number of parts and the value, for ``function`` the index of the call
    in the code of the module, for ``other gate`` the index of the part where the bias is now."""
    rms: tuple[float, ...] = ()
    """Root mean square of each parameter before the change."""
    adjustable: bool = False
    """Whether all factors may be raised to the same power until the gain is right."""
    is_minimal: bool = False
    """Whether the smallest power that satisfies the bound is wanted, rather than a log gain of zero."""
    is_estimate: bool = False
    """Whether its factors would be right if gains were powers of the weights, and may be adjusted if they do not suffice."""
    is_fallback: bool = False
    """Whether it is tried only if no other change helps, as nothing says that what it changes is at fault."""
    function: str = ""
    """Name of the PyTorch function that ``function`` leaves out."""
    parts: tuple[Remedy, ...] = ()
    """For ``several`` the changes that are made together."""
    in_order: tuple[str, ...] = ()
    """Names of its targets in the order in which the forward pass reads them, if a change of some of them may suffice. The last
    ones are the first that stay as they are."""
    note: str = ""
    """Reason or source, in a few words."""

    def to_the_power(self, exponent: float) -> Remedy:
        """Return the remedy with every factor raised to a power."""
        factors = tuple(f * exponent if self.kind == "shift" else f**exponent for f in self.factors)
        return replace(self, factors=factors)

    def by_other_names(self, names: Mapping[str, str]) -> Remedy:
        """Return the remedy for the parameters from which weights are computed, in place of these, whose size is another one."""
        note = self.note or "a weight that is computed from parameters cannot be drawn"
        return replace(self, targets=tuple(names.get(name, name) for name in self.targets), rms=(), note=note)

    def without(self, names: Collection[str]) -> Remedy:
        """Return the remedy for the other parameters."""
        kept = [index for index, name in enumerate(self.targets) if name not in names]
        if len(kept) == len(self.targets):
            return self
        targets = tuple(self.targets[index] for index in kept)
        factors, rms = (tuple(v[index] for index in kept if index < len(v)) for v in (self.factors, self.rms))
        if self.kind == "gate bias":
            factors = self.factors  # They hold for all targets.
        parts = tuple(part for one in self.parts if (part := one.without(names)).targets)
        in_order = tuple(name for name in self.in_order if name not in names)
        return replace(self, targets=targets, factors=factors, rms=rms, parts=parts, in_order=in_order)

    def without_zeros(self, names: Collection[str]) -> Remedy:
        """Return the remedy without some of the zeros that are in order, and without the shifts of gains among them."""
        modules = {name.rpartition(".")[0] for name in names}
        shifts = {n for n in self.targets if n not in self.in_order and n.rpartition(".")[0] in modules}
        return self.without({*names} | shifts)

    def adds_nothing_to(self, other: Remedy) -> bool:
        """Return whether another remedy does the same to some of the targets, or has this one as a part."""
        if self.kind == other.kind and {*other.targets} <= {*self.targets}:
            return self.kind != "gate bias" or self.factors == other.factors
        return other.kind == "several" and {*self.targets} < {*other.targets}

    @property
    def text(self) -> str:
        """What to write in the model's code."""
        note = f" ({self.note})" if self.note else ""
        return _TEXTS[self.kind](self) + note


# Words ------------------------------------------------------------------------------------------------------------


def _code(names: Sequence[str]) -> str:
    """Return names as code, such as ``blocks[i].proj.weight``."""
    forms = [form for form, _, _ in with_stars(names, names)]
    return ", ".join(indexed(form) for form in forms)


def _each(function: str, names: Sequence[str]) -> str:
    """Return a call of a function for each form of names."""
    return "; ".join(f"{function}({indexed(form)})" for form, _, _ in with_stars(names, names))


def indexed(form: str) -> str:
    """Return a dotted name with its numbers and stars as indices.

    >>> indexed("blocks.*.proj.weight"), indexed("0.weight")
    ('blocks[i].proj.weight', 'model[0].weight')
    """
    written = ""
    for part in form.split("."):
        if part == "*" or part.isdecimal():
            written = f"{written or 'model'}[{'i' if part == '*' else part}]"
        else:
            written += f".{part}" if written else part
    return written


def _scale_text(remedy: Remedy) -> str:
    is_one = len({format_number(f, 2) for f in remedy.factors}) == 1
    if not remedy.rms and is_one:
        return f"multiply {_code(remedy.targets)} by {format_number(remedy.factors[0])}"
    forms = _forms(remedy.targets)
    groups: dict[str, list[float]] = {}
    for form, rms, factor in zip(forms, remedy.rms, remedy.factors):
        groups.setdefault(form, []).append(rms * factor)
    alike = 0 < len(groups) <= FEW and all(max(sizes) < SAME_SIZE * min(sizes) for sizes in groups.values())
    if not (is_one or alike):
        each = [f"{name} × {format_number(f)}" for name, f in zip(remedy.targets, remedy.factors)]
        return "rescale " + ", ".join(each[:4]) + (f" and {len(each) - 4} more" if len(each) > 4 else "")
    stds = {form: math.sqrt(sum(size**2 for size in sizes) / len(sizes)) for form, sizes in groups.items()}
    lines = [f"nn.init.normal_({indexed(form)}, std={format_number(std)})" for form, std in stds.items()]
    return "; ".join(lines) + (f", {format_number(remedy.factors[0])} times as large as now" if is_one else "")


def _forms(names: Sequence[str]) -> list[str]:
    """Return for each name the form, with stars for numbers, that it belongs to."""
    return [next(form for form, _, _ in with_stars(names, names) if _fits(form, name)) for name in names]


def _draw_text(remedy: Remedy) -> str:
    groups = dict(reversed([*zip(_forms(remedy.targets), remedy.factors)]))
    lines = [f"nn.init.normal_({indexed(form)}, std={format_number(d)})" for form, d in reversed(groups.items())]
    more = f" and {len(lines) - FEW} more" if len(lines) > FEW else ""
    return f"draw each anew: {'; '.join(lines[:FEW])}{more}"


def _one_each(remedy: Remedy) -> Iterator[tuple[str, float, float]]:
    """Yield the first parameter of each form, its mean, and what is added to it."""
    seen: set[str] = set()
    for form, mean, delta in zip(_forms(remedy.targets), remedy.rms, remedy.factors):
        if form not in seen:
            seen.add(form)
            yield form, mean, delta


def _fits(form: str, name: str) -> bool:
    parts, others = form.split("."), name.split(".")
    return len(parts) == len(others) and all(a == b or (a == "*" and b.isdecimal()) for a, b in zip(parts, others))


def _by_factor(remedy: Remedy) -> dict[float, list[str]]:
    """Return the targets by their factor."""
    found: dict[float, list[str]] = {}
    for name, factor in zip(remedy.targets, remedy.factors):
        found.setdefault(factor, []).append(name)
    return found


def _gates_text(remedy: Remedy) -> str:
    """Return the loop over the gates of one weight, or of the weights of all layers."""
    names, gates = _code(remedy.targets), f"chunk({remedy.factors[0]:.0f})"
    if len(remedy.targets) == 1:
        return f"orthogonal weights for each gate: for w in {names}.{gates}: nn.init.orthogonal_(w)"
    return f"orthogonal weights for each gate: for w in ({names}): for gate in w.{gates}: nn.init.orthogonal_(gate)"


def _gate_bias_text(remedy: Remedy) -> str:
    part, parts, value = remedy.factors
    chunk = f".chunk({parts:.0f})[{part:.0f}]" if parts > 1 else ""
    names = [f"{indexed(form)}{chunk}" for form, _, _ in with_stars(remedy.targets, remedy.targets)]
    if value:
        return "; ".join(f"nn.init.constant_({name}, {format_number(value)})" for name in names)
    return "; ".join(f"nn.init.zeros_({name})" for name in names)


_TEXTS: dict[str, Callable[[Remedy], str]] = {
    "scale": _scale_text,
    "ones": lambda remedy: _each("nn.init.ones_", remedy.targets),
    "fill": lambda remedy: "; ".join(
        f"nn.init.constant_({indexed(name)}, {format_number(value)})"
        for name, value in zip(remedy.targets, remedy.factors)
    ),
    "orthogonal gates": _gates_text,
    "forget bias": lambda remedy: (
        f"a forget bias of {format_number(remedy.factors[0])}: the second quarter of {_code(remedy.targets)}"
    ),
    "output": lambda remedy: f"remove the factor {format_number(1 / remedy.factors[0])} in {places(remedy.targets)}",
    "inline": lambda remedy: (
        f"remove the factor {format_number(remedy.factors[0])}"
        + (f" in {places(remedy.targets)}" if any(remedy.targets) else "")
    ),
    "sum": lambda remedy: (
        f"remove the constant {format_number(remedy.factors[0])} that is added"
        + (f" in {places(remedy.targets)}" if any(remedy.targets) else "")
    ),
    "gate bias": _gate_bias_text,
    "other gate": lambda remedy: "; ".join(
        f"exchange the second part of {_code(names)} with the {_ORDINALS[round(part)]}"
        for part, names in _by_factor(remedy).items()
    ),
    "function": lambda remedy: (
        f"remove the {remedy.function}" + (f" in {places(remedy.targets)}" if any(remedy.targets) else "")
    ),
    "update bias": lambda remedy: (
        f"a bias of the update gate of {format_number(remedy.factors[0])}: the second third of {_code(remedy.targets)}"
    ),
    "layer norm": lambda remedy: f"add a LayerNorm before {places(remedy.targets)}",
    "draw": _draw_text,
    "padding": lambda remedy: "; ".join(
        f"nn.init.zeros_({indexed(name)}[{indexed(name.rpartition('.')[0])}.padding_idx])" for name in remedy.targets
    ),
    "eps": lambda remedy: f"eps={format_number(remedy.factors[0])} in {places(remedy.targets)}",
    "shift": lambda remedy: "; ".join(
        f"start {indexed(name)} from {format_number(mean + delta)} instead of {format_number(mean)} on average"
        for name, mean, delta in _one_each(remedy)
    ),
    "several": lambda remedy: "; ".join(part.text for part in remedy.parts),
    "zeros": lambda remedy: _each("nn.init.zeros_", remedy.targets),
    "standard inputs": lambda remedy: (
        f"standardize the inputs: (x - {format_number(remedy.factors[0])}) / {format_number(remedy.factors[1])}"
    ),
}
