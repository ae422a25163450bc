"""What a command measures: the arguments that name the model, its inputs, targets, loss, steps and seeds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..plugin.subject_options import MODEL, SUBJECT_OPTIONS
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
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    for option in SUBJECT_OPTIONS:
        parser.add_argument(
            f"--{option.name}",
            dest=option.key,
            action="append" if option.several else "store",
            default=[] if option.several else option.default,
            metavar=option.metavar,
            help=option.text,
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
