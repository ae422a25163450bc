"""Whether the model still tells its inputs apart."""

from __future__ import annotations

from ..engine.run import Run
from ..engine.similarity import SIMILARITIES
from .measure import Measure


def sample_similarity(run: Run) -> dict[str, float]:
    """Return the mean cosine between samples in each state, and between the tokens of a sample: 1 is collapsed.

    ``mean over b ≠ c of x_b·x_c / (‖x_b‖ ‖x_c‖)``. Tokens are told apart in states of three or more dimensions whose last
    one counts channels, by the parameters that they were computed with: sequences and the patches of an image, not the
    pixels of a convolution. Of a state of several tensors it is the average by their numbers of entries. Vectors of zeros
    have no direction, and are left out.

    It misleads where all samples share a large mean, such as a bias or a class token: the cosine is not centered.

    Returns:
        Pure numbers from -1 to 1, 0 for independent samples: ``"input"``, then by step, each followed by its tokens (``"h.3
        tokens"``) where there are any. Samples are left out of a batch of one, tokens along time. NaN where no module reads or
        writes the state, or fewer than two vectors have a direction; the input is left out then, for an initial state of zeros
        is given. So are states that are no vectors, such as a loss. Empty where states are not made of samples.

    Source: Poole et al., NeurIPS 2016, eq. 7 (correlation map); Dong, Cordonnier & Loukas, ICML 2021 (tokens).
    """
    return run[SIMILARITIES]


MEASURE = Measure(
    "sample_similarity", "profile", "", "linear", frozenset({SIMILARITIES}), sample_similarity, tolerance=0.05
)
