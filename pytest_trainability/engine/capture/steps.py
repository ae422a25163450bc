"""The choice of the calls that are steps of a chain: automatically, or by class or name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import torch
from torch import nn

from ...errors import CutError, UsageError
from ..modules import ByModule, children_of, modules_of, named_modules_of
from .chain import beginning, results
from .graph import Graph
from .recorder import Call, Capture
from .weights import WeightLayers

__all__ = ["StepChoice", "choose_steps"]


StepChoice: TypeAlias = "str | type[nn.Module] | Sequence[str]"


# Note [Which blocks are steps]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Automatic steps are the calls of a repeated block: a residual block, a transformer layer, a time step written as a module. No
# list of class names is needed. A candidate is a composite class (a module with children, not a container), or several classes
# that alternate in one container, with these properties:
# - It is called several times, at least three times or twice as layers of a stack.
# - Its modules hold a substantial share of the weights outside the embeddings and the head.
# - Few tensors are live after each of its calls. A layer has one live tensor after it, but two in its attention, because the
#   skip around it is live as well. A U-Net of four levels has up to four.
#
# Candidates are nested: stages contain blocks, and blocks contain attention. Of two nested candidates that hold the same
# weights, `_beats` keeps the better cut. Candidates that run one after the other, such as the layers of an encoder and of a
# decoder, form one chain together. Without a repeated block, the layers with weights are the steps.

FEWEST_CALLS = 3
"""Smallest number of calls of a repeated block. Two are enough for the layers of a stack."""
FEW_LIVE, MANY_LIVE = 4, 16
"""Largest number of live tensors after a block: the first value is tried first (residual streams, a U-Net of four levels),
then the second one (diffusion U-Nets)."""
SAME_LIVE = 0.45
"""Largest difference between two average numbers of live tensors that counts as none. The layers of an encoder-decoder have one
in the encoder and two in the decoder."""
MOST = 0.5
"""Smallest share of the weights outside embeddings and head that all blocks must hold together."""
SUBSTANTIAL = 0.15
"""Smallest share of these weights that each kind of block must hold. The other half of an encoder-decoder does, the
convolutional front end of a speech model does not."""
HEAD_LAYERS = 3
"""Largest number of weight layers after the last block that count as a head."""


def choose_steps(capture: Capture, graph: Graph, steps: StepChoice) -> list[Call]:
    """Return the calls that are steps, in the order of their return.

    Args:
        capture: One run.
        graph: Its autograd graph.
        steps: ``"auto"``, ``"blocks"``, ``"layers"``, a module class, a glob over module names (``"encoder.layer.*"``; ``*``
            stays within one level, ``**`` does not), or a list of names and globs.

    Raises:
        CutError: The model calls no such module.
        UsageError: ``steps`` is of another kind, or matches no module.
    """
    calls = capture.calls
    if isinstance(steps, type) and issubclass(steps, nn.Module):
        chosen = [call for call in calls if isinstance(call.module, steps)]
        return chosen or _none_called(capture, f"instance of {steps.__name__}")
    if isinstance(steps, str):
        weights = WeightLayers(capture, graph)
        if steps == "auto":
            return _blocks(capture, graph, weights) or _layers(calls, weights) or _no_step(capture)
        if steps == "blocks":
            return _blocks(capture, graph, weights) or _no_block(capture)
        if steps == "layers":
            return _layers(calls, weights) or _no_step(capture)
        return _named(capture, [steps])
    if isinstance(steps, Sequence) and steps and all(isinstance(name, str) for name in steps):
        return _named(capture, list(steps))
    msg = (
        "steps must be 'auto', 'blocks', 'layers', 'time', a module class, a glob over module names or a list of "
        f"names. Got {steps!r}."
    )
    raise UsageError(msg)


def _no_step(capture: Capture) -> list[Call]:
    model = capture.model
    if isinstance(model, torch.jit.ScriptModule):
        cure = "Calls inside a scripted module are not visible: measure the model before torch.jit."
    elif len(capture.calls) <= 1:
        cure = "It calls no submodule. Put each step into an nn.Module that the model calls."
    else:
        cure = "Name the steps: steps=SomeModuleClass, steps='layers.*' or steps=['stem', 'body', 'head']."
    msg = (
        f"a chain needs steps: a block that is called at least {FEWEST_CALLS} times, or layers with weights. "
        f"{type(model).__name__} called neither. {cure}"
    )
    raise CutError(msg)


def _no_block(capture: Capture) -> list[Call]:
    msg = (
        f"steps='blocks' needs a composite module class that is called at least {FEWEST_CALLS} times and holds most of the "
        f"weights. {type(capture.model).__name__} has none. Try steps='layers', or name the class: steps=SomeModuleClass."
    )
    raise CutError(msg)


def _none_called(capture: Capture, what: str) -> list[Call]:
    seen = dict.fromkeys(type(call.module).__name__ for call in capture.calls)
    msg = f"the model must call the steps. It called no {what}. It called {', '.join(seen)}."
    raise CutError(msg)


_KINDS = ("auto", "blocks", "layers", "time")


# By name ------------------------------------------------------------------------------------------------
def _named(capture: Capture, patterns: Sequence[str]) -> list[Call]:
    paths = [path for path, _ in named_modules_of(capture.model) if path]
    expressions = [_expression(pattern) for pattern in patterns]
    for pattern, expression in zip(patterns, expressions):
        if not any(expression.fullmatch(path) for path in paths):
            near = difflib.get_close_matches(pattern, [*_KINDS, *paths], n=3, cutoff=0.4)
            hint = f" Nearest: {', '.join(map(repr, near))}." if near else ""
            msg = (
                f"steps={pattern!r} must match a module of {type(capture.model).__name__}. It matches none.{hint} "
                "`[name for name, _ in model.named_modules()]` lists all names."
            )
            raise UsageError(msg)
    chosen = [call for call in capture.calls if call.path and any(e.fullmatch(call.path) for e in expressions)]
    return chosen or _none_called(capture, f"module that matches {', '.join(map(repr, patterns))}")


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    meaning = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def _layers(calls: Sequence[Call], weights: WeightLayers) -> list[Call]:
    """Return the calls of weight layers; without any, those of modules with weights that act entry by entry."""
    return [c for c in calls if c.module in weights] or [c for c in calls if weights.owns_weight(c.module)]


# Repeated blocks -------------------------------------------------------------------------------------------------
@dataclass(slots=True, eq=False)
class _Family:
    """Composite classes that count as one kind of block, and their calls."""

    classes: frozenset[type]
    calls: list[Call]
    stacked: bool = False
    """Whether all its modules are direct members of containers, like the layers of a stack."""
    share: float = 0.0
    """Share of the weights outside embeddings and head."""
    live: float = 0.0
    """Average number of tensors that are live after a call."""

    @property
    def repeated(self) -> bool:
        """Whether it is called often enough: at least three times, or twice as layers of a stack."""
        return len(self.calls) >= (2 if self.stacked else FEWEST_CALLS)

    def surrounds(self, other: _Family) -> bool:
        """Whether most calls of ``other`` are made inside calls of this family."""
        inside = sum(_inside(call, self.classes) for call in other.calls)
        return 2 * inside > len(other.calls)


def _inside(call: Call, classes: frozenset[type]) -> bool:
    parent = call.parent
    while parent is not None:
        if type(parent.module) in classes:
            return True
        parent = parent.parent
    return False


def _blocks(capture: Capture, graph: Graph, weights: WeightLayers) -> list[Call]:
    """Return the calls of repeated blocks, or nothing. See Note [Which blocks are steps]."""
    families = [family for family in _families(capture) if len(family.calls) > 1]
    reading = [call for family in families for call in family.calls if call.inputs]
    earliest = sorted(reading, key=lambda call: call.start)[:1]
    for family in families:
        family.share = _share(capture, family.calls, weights)
    for limit in (FEW_LIVE, MANY_LIVE):
        candidates = [
            f for f in families if f.share >= SUBSTANTIAL and _measure_live(capture, graph, f, earliest) <= limit
        ]
        candidates = _stacks([f for f in candidates if not _is_beaten(f, candidates)])
        repeated = any(family.repeated for family in candidates)
        calls = [call for call in capture.calls if any(type(call.module) in f.classes for f in candidates)]
        # A block inside a block of the same chain is part of the outer one.
        classes = frozenset(cls for family in candidates for cls in family.classes)
        calls = [call for call in calls if not _inside(call, classes)]
        if repeated and _share(capture, calls, weights) >= MOST:
            return calls
    return []


def _stacks(families: Iterable[_Family]) -> list[_Family]:
    """Return families that run one after the other, such as encoder and decoder, with the largest share of weights first.

    Families that run between the blocks of another one (patch embeddings, downsampling) are part of the path between its steps.
    """
    kept: list[_Family] = []
    for family in sorted(families, key=lambda f: -f.share):
        if all(
            family.calls[0].start >= other.calls[-1].end or family.calls[-1].end <= other.calls[0].start
            for other in kept
        ):
            kept.append(family)
    return kept


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_container(module: nn.Module) -> bool:
    """Whether the module is a container, or a subclass of one that does not override ``forward``."""
    return isinstance(module, _CONTAINERS) and type(module).forward in {cls.forward for cls in _CONTAINERS}


def _families(capture: Capture) -> list[_Family]:
    """Group the calls of composite modules by class. Classes that alternate in one container also form one family together."""
    by_class: dict[type, list[Call]] = {}
    for call in capture.calls:
        module = call.module
        if call.path and not _is_container(module) and any(True for _ in module.children()):
            by_class.setdefault(type(module), []).append(call)
    merged: dict[type, set[type]] = {cls: {cls} for cls in by_class}
    for container in modules_of(capture.model):
        if _is_container(container):
            classes = _alternating(container, by_class)
            union = set().union(*(merged[cls] for cls in classes)) if classes else set()
            for cls in union:
                merged[cls] = union
    groups = {frozenset(group) for group in merged.values()} | {frozenset({cls}) for cls in by_class}
    ordered = sorted(groups, key=lambda group: (-len(group), sorted(cls.__qualname__ for cls in group)))
    containers = (module for module in modules_of(capture.model) if _is_container(module))
    members = ByModule((child, True) for container in containers for child in children_of(container))
    families = [_Family(group, [c for c in capture.calls if type(c.module) in group]) for group in ordered]
    for family in families:
        family.stacked = all(call.module in members for call in family.calls)
    return families


def _alternating(container: nn.Module, known: Iterable[type]) -> list[type]:
    """Return the known classes of a container's members if they alternate, which means that a class returns after another one."""
    members: list[type] = []
    pending = list(children_of(container))
    while pending:
        member = pending.pop(0)
        if _is_container(member):
            pending = [*children_of(member), *pending]
        elif type(member) in known:
            members.append(type(member))
    turns = [cls for index, cls in enumerate(members) if index == 0 or members[index - 1] is not cls]
    return list(dict.fromkeys(members)) if len(members) >= FEWEST_CALLS and len(turns) > len(set(turns)) else []


def _share(capture: Capture, calls: Sequence[Call], weights: WeightLayers) -> float:
    """Return the share of the weights outside embeddings and head that the modules of the calls hold."""
    if not calls:
        return 0.0
    held = {p: p.numel() for call in calls for p in call.module.parameters()}
    outside: set[nn.Parameter] = set()
    for module in modules_of(capture.model):
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            outside.update(module.parameters())
    last = max(call.end for call in calls)
    after = [call for call in _layers(capture.calls, weights) if call.start >= last]
    if len(after) <= HEAD_LAYERS:
        outside.update(p for call in after for p in call.module.parameters())
    body = sum(p.numel() for p in capture.model.parameters() if p not in outside)
    return sum(size for p, size in held.items() if p not in outside) / body if body else 0.0


def _measure_live(capture: Capture, graph: Graph, family: _Family, earliest: Sequence[Call]) -> float:
    """Return the largest number of tensors that are live after a call of a family, and set the average, ``family.live``.

    A tensor is live if it carries the signal that entered the earliest block of any kind and is read later. For the attention of
    a layer, that includes the skip around it.
    """
    for origin in filter(None, (earliest, family.calls)):
        try:
            x0, moment, _, _ = beginning(capture, graph, origin, 0)
            moments = [moment, *(call.end for call in family.calls if call.end > moment)]
            cut = graph.cut(x0, moments, results(capture, graph, family.calls[-1]), bypasses=False)
        except CutError:
            continue
        if counts := [len(state) for state in cut.states[1:]]:
            family.live = fmean(counts)
            return max(counts)
    return float("inf")


def _is_beaten(family: _Family, candidates: Iterable[_Family]) -> bool:
    """Whether another candidate is the better way to cut the same weights."""
    return any(_beats(other, family) for other in candidates if other is not family and other.repeated)


def _beats(other: _Family, family: _Family) -> bool:
    """Return whether ``other``, around or inside ``family``, is the better cut of the two.

    In this order: the more general family (the two kinds of block of a hybrid together beat each alone), the one that holds the
    weights, the one that is repeated, and then the better cut (see ``_cuts_better``).
    """
    if family.classes < other.classes:
        return True
    if other.classes < family.classes:
        return False
    is_outer = other.surrounds(family)
    if not is_outer and not family.surrounds(other):
        return False
    outer, inner = (other, family) if is_outer else (family, other)
    if inner.share < MOST * outer.share:
        return is_outer
    if not is_outer and not family.repeated:
        return True
    return _cuts_better(other, family, is_outer=is_outer)


def _cuts_better(other: _Family, family: _Family, *, is_outer: bool) -> bool:
    """Return whether ``other`` leaves fewer tensors live, among equals has more calls, or among equals is the outer one.

    A residual block leaves fewer tensors live than its convolutions. A block has more calls than its stage. A layer is outside of
    its attention.
    """
    if abs(other.live - family.live) > SAME_LIVE:
        return other.live < family.live
    return (len(other.calls), is_outer) > (len(family.calls), not is_outer)
