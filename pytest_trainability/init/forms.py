"""What the initial values of each parameter and buffer look like, such as constant, normal or tied to another one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from ..errors import UsageError
from ..records.initial_values import Form, InitialValues
from ..records.names import template
from ..records.text import format_number
from .check import pooled
from .laws import Law
from .places import Place, tensors_of
from .reading import look_of
from .recognition import NOT_FINITE, Seen, eval_rule, recognized, see
from .rules import Copied, Drawn, Fixed, Orthogonal, Rule, ZeroRow
from .statistics import TensorStatistics
from .writing import rule_texts

__all__ = ["forms_of"]

SPARSE = 0.05
"""Share of zeros from which entries without a known distribution are called sparse."""

_Look = tuple[Form, str]


def forms_of(models: Iterable[tuple[int, nn.Module]]) -> dict[str, InitialValues]:
    """Return what the initial values of each parameter and floating buffer look like.

    Parameters that differ by a number, such as those of the layers of a network, share a form where one agrees with all of them.

    Args:
        models: Seed and model, one after the other. A model is not kept.

    Returns:
        Forms by name: parameters, then buffers, in the model's order. A tensor with several names is tied to its first one.

    Raises:
        UsageError: The models have different parameters.
    """
    known: dict[str, Seen] = {}
    parameters: tuple[str, ...] | None = None
    for seed, model in models:
        tensors = tensors_of(model)
        if parameters not in {None, tuple(tensors.parameters)}:
            msg = f"the models of all seeds must have the same parameters. That of seed {seed} has others than the first one."
            raise UsageError(msg)
        parameters = tuple(tensors.parameters)
        see(tensors, known, buffers=True)
    rules = {name: eval_rule(text) for name, text in _texts(known).items()}
    return {name: _values(name, known, rules, is_parameter=name in (parameters or ())) for name in known}


def _texts(known: Mapping[str, Seen]) -> dict[str, str]:
    """Return the text of the rule of each parameter. One that is not drawn again is judged by its first draw."""
    groups: dict[str, dict[str, Seen]] = defaultdict(dict)
    for name, seen in known.items():
        if seen.entries and not seen.trouble and seen.is_same_for_all_seeds and not seen.statistics.is_constant:
            groups[template(name)][name] = seen.of_first_seed()
    texts = rule_texts(known)
    for group in groups.values():
        common = recognized(list(group.values()))
        for name, seen in group.items():
            texts[name] = next(iter(common or recognized([seen])), texts[name])
    return texts


def _values(name: str, known: Mapping[str, Seen], rules: Mapping[str, Rule], *, is_parameter: bool) -> InitialValues:
    seen = known[name]
    first = known[seen.shared_with or name]
    whole = pooled(first.whole) if first.whole and not first.trouble else None
    form, text = _look(seen, whole, rules[name])
    redrawn = len(first.entries) > 1 and not first.trouble and not first.is_same_for_all_seeds
    if len(first.entries) > 1 and not redrawn and form in {*_DRAWN, "orthogonal"}:
        text += ", not drawn again between seeds"
    rms = whole.rms if whole is not None else math.nan
    return InitialValues(
        name=name,
        kind="parameter" if is_parameter else "buffer",
        shape=seen.place.shape,
        dtype=seen.dtype,
        form=form,
        text=text,
        rms=rms,
        mean=whole.mean if whole is not None else math.nan,
        outlier=whole.largest / rms if whole is not None and rms else math.nan,
        redrawn=redrawn,
    )


_DRAWN = ("normal", "truncated normal", "uniform")


def _look(seen: Seen, whole: TensorStatistics | None, rule: Rule) -> _Look:
    """Return the form, and its description."""
    if seen.shared_with:
        return "tied", f"tied to {seen.shared_with}"
    if seen.trouble == NOT_FINITE:
        worst = max(seen.whole, key=lambda s: s.not_finite)
        return "not finite", f"{worst.not_finite:,} of {worst.count:,} entries are NaN or infinite"
    if whole is None:
        return "unknown", seen.trouble
    if whole.is_constant:
        return "constant", f"constant {format_number(whole.mean)}"
    if len(seen.diagonals) == len(seen.whole) and not isinstance(rule, Fixed):
        return "identity-like", f"near {format_number(seen.diagonals[0])} × identity"
    return _look_of_rule(rule, seen.place) or _look_without_rule(seen, whole)


def _look_of_rule(rule: Rule, place: Place) -> _Look | None:
    if isinstance(rule, ZeroRow):
        found = _look_of_rule(rule.rule, place)
        return None if found is None else (found[0], f"{found[1]}, row {rule.row} zero")
    if isinstance(rule, Copied):
        return "copied", f"the same entries as {rule.of}"
    if isinstance(rule, Orthogonal):
        return "orthogonal", f"orthogonal, gain {format_number(rule.gain)}"
    if isinstance(rule, Fixed):
        name = rule.text.removeprefix("init.").partition("(")[0]
        return cast("Form", name), name
    return _look_of_law(rule.law(place)) if isinstance(rule, Drawn) else None


def _look_of_law(law: Law) -> _Look:
    kind = cast("Form", law.kind)
    span = f"within ±{format_number(law.high)}"
    if not math.isclose(law.low, -law.high):
        span = f"from {format_number(law.low)} to {format_number(law.high)}"
    if kind == "uniform":
        return kind, f"uniform {span}"
    mean = f", mean {format_number(law.mean)}" if law.mean else ""
    return kind, f"{kind}, std {format_number(law.std)}{mean}" + (f", {span}" if math.isfinite(law.high) else "")


def _look_without_rule(seen: Seen, whole: TensorStatistics) -> _Look:
    if whole.zeros >= SPARSE * whole.count:
        others = whole.rms * math.sqrt(whole.count / (whole.count - whole.zeros))
        return "sparse", f"{100 * whole.zeros / whole.count:.3g} % zeros, rms of the others {format_number(others)}"
    if seen.is_same_for_all_seeds:
        return "table", f"{look_of(whole)}, the same on all seeds"
    return "unknown", look_of(whole)
