"""Which tokens stay when a model is examined for leaks."""

from __future__ import annotations

import pytest

from pytest_trainability.measures.activations.leaked_targets import kept_positions


@pytest.mark.parametrize(("samples", "positions"), [(1, 7), (2, 4), (4, 16), (9, 5)])
def test_some_tokens_stay_and_some_change_in_every_sample(samples: int, positions: int) -> None:
    kept = kept_positions(samples, positions)
    assert kept.shape == (samples, positions)
    assert bool(kept[:, 0].all()) and not bool(kept[:, -1].any())
    # Once a token changes, all later ones do.
    assert bool((kept[:, :-1] | ~kept[:, 1:]).all())


def test_samples_have_different_ends() -> None:
    assert len({*kept_positions(4, 16).sum(1).tolist()}) == 4
