"""Rules of an initialization contract: what the parameters and buffers of a model must be.

>>> from pytest_trainability import init
>>> contract = {"*.bias": init.zeros(), "**": init.normal(std=0.02)}
>>> contract["**"]
init.normal(std=0.02)
"""

from .families import (
    anything,
    constant,
    copied,
    default_bias,
    dirac,
    identity,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    normal,
    ones,
    orthogonal,
    packed,
    tied,
    truncated_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from .rules import Rule

__all__ = [
    "Rule",
    "anything",
    "constant",
    "copied",
    "default_bias",
    "dirac",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "normal",
    "ones",
    "orthogonal",
    "packed",
    "tied",
    "truncated_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
