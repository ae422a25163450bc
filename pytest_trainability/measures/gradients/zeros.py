"""Parameters that are zero, as the reason why others get no gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from ...engine.runs.run import Need, Run
from ...engine.torch_internals import leaf_of
from ...init.lint import exchanged_shifts
from ...records.causes import CauseRecord
from ...records.text import format_names

__all__ = ["FIRST_READINGS", "zero_gains", "zero_twice"]


def _first_readings(run: Run) -> Mapping[str, int]:
    place, consumers = run.graph.place, run.graph.consumers()
    moments = {
        id(leaf): min(place[reader] for reader, _ in consumers[node])
        for node in run.graph.nodes
        if (leaf := leaf_of(node)) is not None and node in consumers
    }
    return {name: moments[id(p)] for name, p in run.capture.model.named_parameters() if id(p) in moments}


FIRST_READINGS: Need[Mapping[str, int]] = Need("first readings of parameters", _first_readings)
"""Place in program order of the first operation that reads each parameter that the loss has a path to, by name."""


def zero_twice(zeros: Sequence[str], model: nn.Module, read: Mapping[str, int] = MappingProxyType({})) -> CauseRecord:
    """Return that parameters are zero, and never trained.

    Args:
        zeros: Their names.
        model: The model.
        read: Place in program order of the first reading of each parameter.
    """
    parameters = dict(model.named_parameters())
    zeros = _in_order(zeros, read)
    what = "it multiplies" if len(zeros) == 1 else "they multiply"
    text = f"{format_names(zeros)}: zero, and never trained, as what {what}, or the slope behind, is zero as well"
    weights = [name for name in zeros if parameters[name].dim() > 1]
    deviations = tuple(parameters[name][0].numel() ** -0.5 for name in weights)
    gains = [name for name in zeros if parameters[name].dim() <= 1]
    return CauseRecord(
        text,
        drawn=tuple(weights),
        deviations=deviations,
        ones=tuple(gains),
        zeros=exchanged_shifts(model, gains),
        in_order=tuple(zeros),
        is_first=True,
    )


def zero_gains(model: nn.Module, read: Mapping[str, int] = MappingProxyType({})) -> tuple[CauseRecord, ...]:
    """Return that nothing passes the normalizations whose gains are zero, where a model has any.

    Args:
        model: A model, some of whose parameters get no gradient.
        read: Place in program order of the first reading of each parameter.
    """
    norms = ((path, module) for path, module in model.named_modules() if "Norm" in type(module).__name__)
    gains = [
        f"{path}.{name}" if path else name
        for path, module in norms
        for name, p in module.named_parameters(recurse=False)
        if "bias" not in name and p.requires_grad and p.dim() <= 1 and not bool(p.detach().any())
    ]
    if not gains:
        return ()
    text = f"{format_names(gains)}: the gain of a normalization is zero, so that nothing passes it; 1 is usual"
    shifts = exchanged_shifts(model, gains)
    return (CauseRecord(text, ones=tuple(gains), zeros=shifts, in_order=_in_order(gains, read)),)


def _in_order(names: Sequence[str], read: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: read.get(name, math.inf)))
