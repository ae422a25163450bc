"""Further faults, of the kinds of the taxonomies and of the reports, by family."""

from ..cases import Case
from .cnn import CASES as CNN
from .mlp import CASES as MLP
from .rnn import CASES as RNN
from .transformer import CASES as TRANSFORMER

__all__ = ["FURTHER"]

FURTHER: tuple[Case, ...] = (*MLP, *CNN, *TRANSFORMER, *RNN)
