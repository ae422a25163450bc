"""Leaks of linear maps along positions, which are known in closed form, and of causal layers, which are exactly zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import InapplicableError, measure

BATCH, LENGTH, WIDTH = 3, 6, 256


class Mixing(nn.Module):
    """Mixes positions by a matrix, and rotates channels."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix, self.linear = matrix, nn.Linear(WIDTH, WIDTH)
        nn.init.orthogonal_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,bjc->bic", self.matrix, self.linear(x))


def leaks(model, inputs, **options):
    result = measure(model, inputs, measures=["causal_leak"], **options)
    return {name: estimate.mean for name, estimate in result.causal_leak.items()}


def expected(matrix: Tensor) -> float:
    """Return the leak for channels without number: a Gaussian cotangent has the same norm at every position."""
    squares, later, total = matrix.square(), 0.0, 0.0
    for end in range(1, len(matrix)):
        later += float(squares[:end, end:].sum())
        total += float(squares[:end].sum())
    return (later / total) ** 0.5


X = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
ONES = torch.ones(LENGTH, LENGTH)
MATRICES = {
    "mean": ONES / LENGTH,
    "reversed": torch.eye(LENGTH).flip(0),
    "one ahead": torch.eye(LENGTH) + torch.diag(torch.ones(LENGTH - 1), 1),
    "a little": ONES.tril() + 0.01 * ONES.triu(1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_leaks_of_linear_maps(name):
    matrix = MATRICES[name]
    found = leaks(
        lambda: nn.Sequential(Mixing(torch.eye(LENGTH)), Mixing(matrix), Mixing(ONES.tril())), X, steps=Mixing
    )
    # The squared norm of 768 Gaussian numbers has a relative standard deviation of √(2 / 768) = 5 %.
    assert found == {"0": 0, "1": pytest.approx(expected(matrix), rel=0.1), "2": 0}


def test_a_step_whose_input_is_read_again_later():
    """The input of the second step is still part of the state after it."""

    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (Mixing(m) for m in (torch.eye(LENGTH), ONES / LENGTH, ONES.tril()))

        def forward(self, x):
            x = self.first(x)
            return self.third(self.second(x)) + x

    found = leaks(Skipping, X, steps=Mixing)
    assert found == {"first": 0, "second": pytest.approx(expected(ONES / LENGTH), rel=0.1), "third": 0}


def test_a_memory_of_another_length_is_not_the_sequence():
    """It passes by the steps of a decoder, all of whose positions may read it. The last step ends it."""

    class Reading(nn.Module):
        def __init__(self, matrix):
            super().__init__()
            self.mixing = Mixing(matrix)

        def forward(self, x, memory):
            return self.mixing(x) + memory.mean(1, keepdim=True)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(WIDTH, WIDTH)
            self.layers = nn.ModuleList(Reading(m) for m in (ONES.tril(), ONES / LENGTH, ONES.tril()))

        def forward(self, x):
            memory = self.encoder(x[:, ::2])
            for layer in self.layers:
                x = layer(x, memory)
            return x

    found = leaks(Decoder, X, steps=Reading)
    assert found == {"layers.0": 0, "layers.1": pytest.approx(expected(ONES / LENGTH), rel=0.1)}


@pytest.mark.parametrize("causal", [True, False])
def test_attention(causal):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)

        def forward(self, x):
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if causal else None
            return self.layer(x, src_mask=mask, is_causal=causal)

    found = leaks(lambda: nn.Sequential(Layer(), Layer()), X[..., :16], steps=Layer)
    assert [*found] == ["0", "1"]
    assert all((leak == 0) == causal for leak in found.values())


@pytest.mark.parametrize("causal", [True, False])
def test_convolutions_whose_last_dimension_counts_positions(causal):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(5, 5, 3, padding=2 if causal else 1)

        def forward(self, x):
            return self.conv(x)[..., : x.shape[-1]].tanh()

    found = leaks(lambda: nn.Sequential(Layer(), Layer()), torch.randn(4, 5, 9), steps=Layer)
    assert [*found] == ["0", "1"]
    assert all((leak == 0) == causal for leak in found.values())


def test_round_off_of_fourier_transforms_is_no_leak():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.kernel = nn.Linear(5, 5), nn.Parameter(torch.randn(7))

        def forward(self, x):
            spectrum = torch.fft.rfft(self.linear(x), n=32, dim=1) * torch.fft.rfft(self.kernel, n=32)[:, None]
            return torch.fft.irfft(spectrum, n=32, dim=1)[:, : x.shape[1]]

    assert leaks(lambda: nn.Sequential(Layer(), Layer()), torch.randn(4, 9, 5), steps=Layer) == {"0": 0, "1": 0}


def test_states_without_positions():
    with pytest.raises(InapplicableError, match=r"^causal_leak needs states of samples, positions and channels"):
        leaks(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4))
