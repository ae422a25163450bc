"""Bounds for a family of models, for whoever has none of their own.

Each bound states a reason that does not depend on one model: where a healthy network of the family can lie, and what
breaks beyond. A network that has a reason to lie elsewhere gives that bound itself, which goes before the preset's.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import replace

from ..errors import BoundError
from .bounds import Bound, at_least, at_most, within

__all__ = ["PRESETS", "find_preset"]


_SLOWEST = math.log(1e-3)
"""Nats: the first layer learns a thousand times slower than the last. PyTorch's default weights lose 0.9 nats a layer in front
of ReLU, so that LeNet (-5.8) and AlexNet (-5.6) are still inside, and a VGG-16 that was not initialized (-13) is not."""


_PLAIN_GROWTH = math.log(20)
"""Nats: nothing in a plain or scaled residual network grows, except by the accident of one draw, sqrt(5L/4N) nats for L ReLU
layers of N units (0.9 for 40 of 64). Sustained growth is chaos: two close inputs, and the gradients, part exponentially."""


_ROUND_OFF = math.log(2**23)
"""Nats: what the gradient at one end of the chain is worth is lost in the round-off of float32 at the other, 2^-23. Along time
more is not asked for: an LSTM with a forget bias of 1 forgets 0.2 nats a step by design. Nor is it of networks that normalize,
for which growth is less harm: a normalized weight has a gradient as large as it is small. Batch normalization adds 0.17 to
0.35 nats a block (ResNet-152 8.6). The first normalization of a transformer blows an embedding of std 0.02 up by 3.9 nats, and
a class token that is zero by more."""


_LARGEST_ACTIVATION = 20.0
"""Standardized inputs have an RMS of 1, and a stream to which L branches of that size are added one of sqrt(L): 20 is left to
400 of them. Bytes that nobody has standardized (147) and embeddings of std 30 lie beyond."""


_WORST_GUESS = 5.0
"""Nats above that of equal scores. Scores of standard deviation s cost s²/2 more, and those of a linear layer of PyTorch's
default weights on a stream that has grown to an RMS of 4 cost less than 3: one that is worse is sure of what it cannot know."""


_MOST_IDLE = 0.9
"""Share of units. ReLU is flat for half of its inputs, by chance for two thirds, and a batch of a few samples leaves half of the
units of a deep network without a single one that they answer to; a layer of which nine in ten are dead or saturated has been
pushed there by a bias or by the scale of what comes in."""


_LEAST_SPREAD = 0.5
"""Entropy, as a share of what it can be: at one half a query attends to as good as the square root of the keys that there are, or
a router uses, of E experts of which each token chooses k, as good as √(kE). Weights of any common initialization leave attention
above 0.8, and a router without a preference is above 0.8 on some hundred tokens."""


_NONE = at_most(0)


_ALWAYS = {
    "nonfinite": _NONE,
    "uninitialized_parameters": _NONE,
    "duplicate_parameters": _NONE,
    "linear_steps": _NONE,
    "activation_rms": at_most(_LARGEST_ACTIVATION),
    "excess_loss": at_most(_WORST_GUESS),
}


_USED = {"unused_parameters": _NONE}
"""A parameter that no path leads to is a bug, or ought to be frozen. Not so in libraries' transformers, which carry parameters
for other uses than the one that is measured: mask tokens, poolers, experts that no token of the batch is sent to."""


_AWAKE = {"dead_fraction": at_most(_MOST_IDLE), "saturated_fraction": at_most(_MOST_IDLE)}
"""Not of transformers: GELU and SiLU are hardly ever flat behind a normalization, and the search for them takes as long as all
the rest."""


_ALONE = {"interacting_samples": _NONE}
"""What a sample's output is must not depend on who else is in the batch, where no batch normalization is at home."""


_SPREAD = {"attention_entropy": at_least(_LEAST_SPREAD), "expert_usage": at_least(_LEAST_SPREAD)}


PRESETS: dict[str, dict[str, Bound]] = {
    "mlp": {"log_gain": within(_SLOWEST, _PLAIN_GROWTH), **_ALWAYS, **_USED, **_AWAKE},
    "cnn": {"log_gain": within(_SLOWEST, _ROUND_OFF), **_ALWAYS, **_USED, **_AWAKE},
    "transformer": {"log_gain": within(_SLOWEST, _ROUND_OFF), **_ALWAYS, **_SPREAD, **_ALONE},
    "rnn": {"log_gain": within(-_ROUND_OFF, _PLAIN_GROWTH), **_ALWAYS, **_USED, **_ALONE},
}
"""Bounds by measure, by family."""


def find_preset(name: str, *, where: str = "") -> dict[str, Bound]:
    """Return the bounds of a family.

    Args:
        name: Of the family.
        where: It was asked for; the message says so.

    Returns:
        Bounds by the name of the measure; they hold where there is nothing to judge.

    Raises:
        BoundError: There is none of that name; the message gives the nearest one.
    """
    if isinstance(name, str) and name in PRESETS:
        return {measure: replace(bound, if_any=True) for measure, bound in PRESETS[name].items()}
    near = difflib.get_close_matches(str(name).lower(), PRESETS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(map(repr, PRESETS))
    msg = f"{where}: unknown preset {name!r}." if where else f"Unknown preset {name!r}."
    msg += f"{hint} Presets: {known}."
    raise BoundError(msg)
