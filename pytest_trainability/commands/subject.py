"""What a command measures: the arguments that name the model, its inputs, targets, loss, steps and seeds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .plugins import load_measures

if TYPE_CHECKING:
    from ..sources.requests import Request

__all__ = ["add_subject_arguments", "subject"]


def add_subject_arguments(parser: argparse.ArgumentParser, *, seeds: int) -> None:
    """Add the arguments that name what is measured.

    Args:
        parser: The parser of the command.
        seeds: Number of seeds that the command draws by default, for the help. The value of the option is None then.
    """
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:build (a factory, a class or a module), hf:MODEL_TYPE or hf-tiny:MODEL_TYPE (of transformers, from "
        "the configuration), timm:NAME or torchvision:NAME. Nothing is downloaded.",
    )
    parser.add_argument(
        "--input",
        dest="inputs",
        action="append",
        default=[],
        metavar="INPUT",
        help="8x3x224x224 (normal numbers), 'ids:4x128<50257' (whole numbers below 50257), mask:4x128 (ones), or MODULE:NAME of "
        "a batch, a DataLoader or a function. Once for each argument of the model; its name may stand before, as in "
        "'input_ids=ids:4x128<50257' (default: what the model declares).",
    )
    parser.add_argument(
        "--target",
        dest="targets",
        action="append",
        default=[],
        metavar="TARGET",
        help="Second argument of the loss, in the same forms, such as 'ids:8<1000' for 8 labels of 1000 classes.",
    )
    parser.add_argument(
        "--loss",
        default="",
        metavar="LOSS",
        help="cross_entropy, mse, nn.CrossEntropyLoss, 'nn.CrossEntropyLoss(label_smoothing=0.1)' or MODULE:NAME (default: the "
        "loss of the model, else a random functional of its output).",
    )
    parser.add_argument(
        "--steps",
        default="auto",
        metavar="STEPS",
        help="auto, blocks, layers, time, or a pattern of names of modules (default: auto).",
    )
    parser.add_argument("--seeds", default=None, metavar="SEEDS", help=f"Such as 8, 0-7 or 0,3,5 (default: {seeds}).")


def subject(options: argparse.Namespace) -> Request:
    """Return what the arguments name. Modules are imported under the seed that a test module is imported under.

    Measures of installed plugins are loaded as well.

    Raises:
        UsageError: As in :func:`~pytest_trainability.sources.requests.requested`.
    """
    from ..engine.isolation import derived_seed, seeded_unless_seeded
    from ..sources.requests import requested

    load_measures()
    with seeded_unless_seeded(derived_seed(0, "module")):
        return requested(options.model, inputs=options.inputs, targets=options.targets, loss=options.loss)
