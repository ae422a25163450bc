"""The first list: group C. Each fault follows the issues that its builder names."""

from ...cases import Case
from .cnn import CASES as CNN
from .mlp import CASES as MLP
from .rnn import CASES as RNN
from .transformer import CASES as TRANSFORMER

__all__ = ["FIRST"]

FIRST: tuple[Case, ...] = (*MLP, *CNN, *TRANSFORMER, *RNN)
