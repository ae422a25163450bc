"""The options that say what is measured: on the command line of pytest, and as arguments of commands."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODEL", "SUBJECT_OPTIONS", "SubjectOption"]

MODEL = (
    "package.module:build (a factory, a class or a module), hf:MODEL_TYPE or hf-tiny:MODEL_TYPE (of transformers, from the "
    "configuration), timm:NAME or torchvision:NAME. Nothing is downloaded."
)
"""What names a model."""


@dataclass(frozen=True, slots=True)
class SubjectOption:
    """An option beyond the model."""

    name: str
    """Name of the option of commands."""
    key: str
    """Name of the argument that it sets, in :func:`~pytest_trainability.sources.requests.requested`."""
    pytest_name: str
    """Name of the option of pytest, behind ``--trainability-``."""
    metavar: str
    text: str
    several: bool = False
    """Whether it may be given several times."""
    default: str = ""
    """Value of one that is not given, if there is one value only."""


SUBJECT_OPTIONS = (
    SubjectOption(
        "input",
        "inputs",
        "input",
        "INPUT",
        "8x3x224x224 (normal numbers), 'ids:4x128<50257' (whole numbers below 50257), mask:4x128 (ones), or MODULE:NAME of a "
        "batch, a DataLoader or a function. Once for each argument of the model; its name may stand before, as in "
        "'input_ids=ids:4x128<50257' (default: what the model declares).",
        several=True,
    ),
    SubjectOption(
        "target",
        "targets",
        "targets",
        "TARGET",
        "Second argument of the loss, in the same forms, such as 'ids:8<1000' for 8 labels of 1000 classes.",
        several=True,
    ),
    SubjectOption(
        "loss",
        "loss",
        "loss",
        "LOSS",
        "cross_entropy, mse, nn.CrossEntropyLoss, 'nn.CrossEntropyLoss(label_smoothing=0.1)' or MODULE:NAME (default: the loss "
        "of the model, else a random functional of its output).",
    ),
    SubjectOption(
        "steps",
        "steps",
        "steps",
        "STEPS",
        "auto, blocks, layers, time, or a pattern of names of modules (default: auto).",
        default="auto",
    ),
)
"""All of them, in the order of the help."""
