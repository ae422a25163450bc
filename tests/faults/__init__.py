"""Faults beside their healthy twins, and healthy models that must not be flagged.

A fault and its twin come from the same builder, and differ in one argument. What they are fed can be learned, so that training
shows whether a fault trains worse. `FAULTS` come from published taxonomies and issues of real projects, `REPORTED` from public
bug reports, and `FURTHER` are of the same kinds. `UNSEEN` are two lists by someone who had not seen the code. Each declares what
a report on it ought to say.
"""

from .cases import CLASSES, LENGTH, VOCAB, WIDTH, Case, Right, group, half, sequence
from .convolutions import lenet
from .further import FURTHER
from .healthy import HEALTHY
from .judging import changed, flagged, holds, measured
from .more_healthy import MORE_HEALTHY
from .recurrent import Reader, lstm, rnn
from .reported import REPORTED, ReportedFault
from .reported_models import Scaled
from .taxonomies import FAULTS
from .towers import he
from .transformers import GPT, Attention, Layer, Mixture
from .unseen import UNSEEN

__all__ = [
    "CLASSES",
    "FAULTS",
    "FURTHER",
    "GPT",
    "HEALTHY",
    "LENGTH",
    "MORE_HEALTHY",
    "REPORTED",
    "SCORED",
    "UNSEEN",
    "VOCAB",
    "WIDTH",
    "Attention",
    "Case",
    "Layer",
    "Mixture",
    "Reader",
    "ReportedFault",
    "Right",
    "Scaled",
    "changed",
    "flagged",
    "group",
    "half",
    "he",
    "holds",
    "lenet",
    "lstm",
    "measured",
    "rnn",
    "sequence",
]

SCORED: tuple[Case, ...] = (
    *FAULTS,
    *(entry.flawed for entry in REPORTED if not entry.harmless),
    *FURTHER,
)
"""All faults of the benchmark that have a half; beside them, it scores those of `UNSEEN`."""
