"""The second list: group D. Each fault follows what its builder names."""

from ...cases import Case
from .cnn import CASES as CNN
from .mlp import CASES as MLP
from .rnn import CASES as RNN
from .transformer import CASES as TRANSFORMER

__all__ = ["SECOND"]

SECOND: tuple[Case, ...] = (*MLP, *CNN, *TRANSFORMER, *RNN)
