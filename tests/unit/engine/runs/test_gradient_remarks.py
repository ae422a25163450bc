"""Remarks on gradients that stop between trained layers; none where nothing else trains the layers in front."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_trainability import measure

X = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A decoder behind an encoder that a penalty trains as well."""

    def __init__(self, *, stop: bool, penalty: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
        self.stop, self.penalty = stop, penalty

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.encoder(x)
        error = (self.decoder(z.detach() if self.stop else z) - x).square().mean()
        return {"loss": error + z.square().mean() if self.penalty else error}


def remarks(**how: bool) -> list[str]:
    found = measure(lambda: Pair(**how), X, seeds=2)
    return [text for text in found._seed_runs.common.cautions if "without a gradient" in text]


def test_a_stop_between_trained_layers_is_a_remark() -> None:
    assert remarks(stop=True) == [
        "decoder.0 reads a tensor without a gradient, computed from encoder: detach() in Pair"
    ]


def test_without_a_stop_there_is_no_remark() -> None:
    assert not remarks(stop=False)


def test_layers_without_any_gradient_are_the_matter_of_unused_parameters() -> None:
    assert not remarks(stop=True, penalty=False)


def test_a_model_that_fails_in_a_second_forward_pass_is_measured_all_the_same() -> None:
    class Once(Pair):
        runs = 0

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.runs += 1
            if self.runs > 1:
                raise RuntimeError("runs once")
            return super().forward(x)

    found = measure(lambda: Once(stop=True), X, seeds=2)
    assert found.log_gain.mean < 1
    assert not [text for text in found._seed_runs.common.cautions if "without a gradient" in text]
