"""Faults by someone who had not seen the code, on which no threshold was chosen: the lists C and D."""

from dataclasses import replace

from ..cases import Case
from .first import FIRST
from .second import SECOND

__all__ = ["UNSEEN"]

UNSEEN: tuple[Case, ...] = (
    *(replace(case, unseen="C") for case in FIRST),
    *(replace(case, unseen="D") for case in SECOND),
)
"""Places, causes and kinds of cures are those of the authors, in the names of these models."""
