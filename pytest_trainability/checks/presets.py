"""Presets: sets of bounds for families of models, for tests without bounds of their own.

Each bound has a reason that does not depend on one model: the range of healthy networks of the family, and the failure
beyond it. A network with a reason to lie elsewhere gives its own bound, which overrides that of the preset.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import replace

from ..errors import BoundError
from .bounds import Bound, at_least, at_most, within
from .judged_elements import COVERAGE

__all__ = ["PRESETS", "find_preset"]


_SLOWEST = math.log(1e-3)
"""Smallest log gain along depth, nats: the first layer learns a thousand times slower than the last. PyTorch's default weights
lose 0.9 nats per layer before ReLU. LeNet (-5.8) and AlexNet (-5.6) are inside, VGG-16 without initialization (-13) is not."""


_PLAIN_GROWTH = math.log(20)
"""Largest log gain of networks without normalization, nats. In a plain or scaled residual network the gradient grows only by
the accident of one draw, sqrt(5L/4N) nats for L ReLU layers of N units (0.9 nats for 40 layers of 64 units). Sustained growth
is chaos: the distance of close inputs and the gradient grow exponentially."""


_ROUND_OFF = math.log(2**23)
"""Largest absolute log gain, nats, before the gradient at one end of the chain drowns in the float32 round-off, 2^-23, of the
gradient at the other end. This limit bounds:

- decay along time. A tighter bound would exclude an LSTM with a forget bias of 1, which forgets 0.2 nats per step by design.
- growth of networks with normalization. Growth does less harm there, because the gradient of a normalized weight is inversely
  proportional to the weight. Batch normalization adds 0.17 to 0.35 nats per block (ResNet-152: 8.6). The first normalization
  of a transformer amplifies an embedding of std 0.02 by 3.9 nats, and a zero class token by more.
"""


_LARGEST_ACTIVATION = 20.0
"""Largest RMS of an activation. Standardized inputs have RMS 1, and a residual stream with L branches of RMS 1 has RMS sqrt(L):
20 allows 400 branches. Bytes that are not standardized (147) and embeddings of std 30 are outside."""


_WORST_GUESS = 5.0
"""Largest excess of the initial loss over that of equal scores, nats. Scores of standard deviation s cost s²/2 nats. A linear
layer with PyTorch's default weights on a stream of RMS 4 costs less than 3. A larger excess means confident wrong predictions
before training."""


_MOST_IDLE = 0.9
"""Largest share of dead or saturated units. ReLU is flat for half of its inputs, and by chance for two thirds. A batch of a few
samples leaves half of the units of a deep network without a sample on their active side. If nine in ten units of a layer are
dead or saturated, a bias or the scale of the inputs has caused it."""


_LEAST_SPREAD = 0.1
"""Smallest entropy of routing as a share of its maximum, 0 if all tokens choose the same experts. A router of random weights
prefers experts by chance, as its tokens have a part in common: others on each seed. If the scores of experts deviate as much
between their means as over tokens, it has 0.55 to 0.75 on average, with a deviation over seeds of up to 0.3. If the means deviate
twice as much, from which on a preference is explained, it has 0.33 to 0.5, and the mean of four seeds still exceeds 0.1 on 99 of
100 draws, for 4 experts or more. If the bias of the favored experts is four deviations of the scores above that of the others, a
router of 2 of 8 experts has less than 0.1."""


_LEAST_ATTENTION = 0.25
"""Smallest entropy of attention as a share of its maximum. Normal logits of standard deviation 5 have a quarter, for any number
of keys from two to thousands: a query attends to the equivalent of the fourth root of n keys, two of 16, and half of the queries
give one of 16 keys four fifths of the weight. Standard queries and keys have a deviation of 1 and more than three quarters, and
8 without 1/√64. Attention to cosines times 10 is sharp on purpose: with 16 features, it has a deviation of 2.5 and one half."""


_RIGHT_GRADIENT = 0.05
"""Largest relative error of a gradient. A lost factor of 1.1 costs 0.09; what computes in float32 inside is far below."""


_BLIND = 0.9999
"""Largest blindness to the order of tokens. Only 1 means blind: with relative positions healthy models have 0.9 and more."""


_SMALLEST_RATE = 1e-6
"""Smallest learning rate in use, and lower bound of the one at which the first step of gradient descent replaces all parameters.
Healthy networks with a mean loss have 4e-4 and more, and a sum over a batch divides this by the number of its terms. A loss in
units of 10¹⁰, such as the likelihood of a Gaussian of standard deviation 1e-9, is outside: no rate trains the network then."""


_NONE = at_most(0)


_ALWAYS = {
    "nonfinite": _NONE,
    "uninitialized_parameters": _NONE,
    "unregistered_parameters": _NONE,
    "unusual_parameters": _NONE,
    "duplicate_parameters": _NONE,
    "linear_steps": _NONE,
    "squashed_scores": _NONE,
    "idle_normalizations": _NONE,
    "unnormalized_attention": _NONE,
    "activation_rms": at_most(_LARGEST_ACTIVATION),
    "excess_loss": at_most(_WORST_GUESS),
    "untrained_fraction": COVERAGE,
    "asleep_parameters": _NONE,
    "largest_learning_rate": at_least(_SMALLEST_RATE),
    "backward_error": at_most(_RIGHT_GRADIENT),
}
"""Bounds of every family. ``backward_error`` is asked of models with custom autograd functions only."""


_TOKENS = {"leaked_targets": _NONE, "order_blindness": at_most(_BLIND)}
"""Asked of models whose loss gives each token a target: of those that predict the next one and have a causal mask, or of those
whose scores depend on other positions."""


_USED = {"unused_parameters": _NONE}
"""A parameter without a path to the loss is a bug or should be frozen. Transformers of libraries are exempt, because they carry
parameters for other uses: mask tokens, poolers, experts that receive no token of the batch."""


_AWAKE = {"dead_fraction": at_most(_MOST_IDLE), "saturated_fraction": at_most(_MOST_IDLE)}
"""Transformers are exempt: GELU and SiLU are rarely flat behind a normalization, and the search for dead units takes as long as
all other measures together."""


_ALONE = {"interacting_samples": _NONE}
"""The output of a sample must not depend on the other samples of the batch. Families that commonly use batch normalization are
exempt."""


_SPREAD = {"attention_entropy": at_least(_LEAST_ATTENTION), "expert_usage": at_least(_LEAST_SPREAD)}
"""Attention and routing must not concentrate at initialization."""


PRESETS: dict[str, dict[str, Bound]] = {
    "mlp": {"log_gain": within(_SLOWEST, _PLAIN_GROWTH), **_ALWAYS, **_USED, **_AWAKE},
    "cnn": {"log_gain": within(_SLOWEST, _ROUND_OFF), **_ALWAYS, **_USED, **_AWAKE},
    "transformer": {"log_gain": within(_SLOWEST, _ROUND_OFF), **_ALWAYS, **_SPREAD, **_ALONE, **_TOKENS},
    "rnn": {"log_gain": within(-_ROUND_OFF, _PLAIN_GROWTH), **_ALWAYS, **_USED, **_ALONE},
}
"""Bounds by the name of the family and the name of the measure."""


def find_preset(name: str, *, where: str = "") -> dict[str, Bound]:
    """Return the bounds of a preset.

    Args:
        name: Name of the family.
        where: Place of the name, named in the message.

    Returns:
        Bounds by the name of the measure. They hold if there is nothing to judge.

    Raises:
        BoundError: There is no preset of this name. The message names the closest one.
    """
    if isinstance(name, str) and name in PRESETS:
        return {measure: replace(bound, if_any=True) for measure, bound in PRESETS[name].items()}
    near = difflib.get_close_matches(str(name).lower(), PRESETS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(map(repr, PRESETS))
    msg = f"{where}: unknown preset {name!r}." if where else f"Unknown preset {name!r}."
    msg += f"{hint} Presets: {known}."
    raise BoundError(msg)
