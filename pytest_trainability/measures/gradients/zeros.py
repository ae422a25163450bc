"""Parameters that are zero, as the reason why others get no gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...init.lint import exchanged_shifts
from ...records.causes import CauseRecord
from ...records.text import format_names

__all__ = ["zero_gains", "zero_twice"]


def zero_twice(zeros: Sequence[str], model: nn.Module) -> CauseRecord:
    """Return that parameters are zero, and never trained.

    Args:
        zeros: Their names.
        model: The model.
    """
    parameters = dict(model.named_parameters())
    what = "it multiplies" if len(zeros) == 1 else "they multiply"
    text = f"{format_names(zeros)}: zero, and never trained, as what {what}, or the slope behind, is zero as well"
    weights = [name for name in zeros if parameters[name].dim() > 1]
    deviations = tuple(parameters[name][0].numel() ** -0.5 for name in weights)
    gains = [name for name in zeros if parameters[name].dim() <= 1]
    shifts = exchanged_shifts(model, gains)
    return CauseRecord(
        text, drawn=tuple(weights), deviations=deviations, ones=tuple(gains), zeros=shifts, is_first=True
    )


def zero_gains(model: nn.Module) -> tuple[CauseRecord, ...]:
    """Return that nothing passes the normalizations whose gains are zero, where a model has any.

    Args:
        model: A model, some of whose parameters get no gradient.
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
    return (CauseRecord(text, ones=tuple(gains), zeros=exchanged_shifts(model, gains)),)
