"""Faults written after public issues by someone who had not seen the code: group C, on which no threshold was chosen."""

from dataclasses import replace

from ..cases import Case
from .cnn import CASES as CNN
from .mlp import CASES as MLP
from .rnn import CASES as RNN
from .transformer import CASES as TRANSFORMER

__all__ = ["UNSEEN"]

UNSEEN: tuple[Case, ...] = tuple(replace(case, unseen=True) for case in (*MLP, *CNN, *TRANSFORMER, *RNN))
"""Each follows the issues that its builder names."""
