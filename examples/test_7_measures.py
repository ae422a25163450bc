"""Other measures: presets, structure, isometry, size sweeps and curvature, each with a suitable model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import at_least, at_most, within

WIDTH = 64


# A preset is a set of bounds that healthy models of a family satisfy. Start with it if you have no bounds yet.
@pytest.mark.trainability(preset="transformer")
def test_gpt2_keeps_the_preset(trainability):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=32, n_embd=64, n_head=4, n_layer=6, bos_token_id=0, eos_token_id=0
    )
    ids = torch.randint(10, 256, (4, 32))
    gpt2 = trainability(lambda: transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})
    # The untrained model guesses among 256 tokens, and attends to all earlier tokens about equally.
    gpt2.check(excess_loss=within(0.1), attention_entropy=at_least(0.9))
    # In a residual stream every block adds a small change.
    assert gpt2.branch_ratio.max < 1 or gpt2.branch_ratio.argmax == "transformer.h.0"


# `nn.TransformerEncoder(layer, n)` copies the layer: all n layers start with the same weights. This test fails.
@pytest.mark.broken_on_purpose
@pytest.mark.trainability(duplicate_parameters=at_most(0))
def test_cloned_layers(trainability):
    trainability(cloned_layers, torch.randn(4, 8, WIDTH))


def cloned_layers() -> nn.Module:
    """Return an encoder, built as in PyTorch's documentation."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True), 4)


# Bounds on gradients need no list of exceptions: parameters whose gradient is zero by design, and not after the first
# step, are not judged.
def test_zero_head_wakes(trainability):
    net = trainability(zero_head, torch.randn(16, WIDTH), target=torch.arange(16) % 4, loss=F.cross_entropy)
    net.check(gradient_norm=at_least(1e-6), asleep_parameters=at_most(0))
    assert net.waking_step["0.weight"] == 1
    # With a head of zeros the loss is exactly the chance loss.
    assert net.initial_loss == pytest.approx(math.log(4))


def zero_head() -> nn.Module:
    """Return a classifier whose last layer is initialized with zeros."""
    head = nn.Linear(WIDTH, 4)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), head)


# Orthogonal weights keep all lengths at any depth. Gaussian weights keep them on average, and lose most directions.
@pytest.mark.parametrize("orthogonal", [True, False], ids=["orthogonal", "gaussian"])
def test_dynamical_isometry(trainability, *, orthogonal: bool):
    chain = trainability(lambda: linear_tower(orthogonal=orthogonal), torch.randn(2, WIDTH))
    if orthogonal:
        chain.check(condition_number=at_most(1.001), isometry_gap=at_most(1e-6))
    else:
        # Pennington, Schoenholz & Ganguli 2017: the squared singular values spread in proportion to depth.
        assert 15 < chain.isometry_gap < 25
        assert chain.max_ftle > chain.lyapunov_max


def linear_tower(depth: int = 20, *, orthogonal: bool) -> nn.Module:
    """Return linear layers of gain one."""
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(depth)]
    for layer in layers:
        if orthogonal:
            nn.init.orthogonal_(layer.weight)
        else:
            nn.init.normal_(layer.weight, std=WIDTH**-0.5)
    return nn.Sequential(*layers)


# Scaling of a measure with width: a coordinate check that can fail.
def test_activations_do_not_grow_with_width(trainability):
    scaling = trainability.width_sweep(mlp, [32, 64, 128], torch.randn(16, 8))
    scaling.check(within(0.15))


def mlp(width: int) -> nn.Module:
    """Return an MLP with the initialization of He et al."""
    layers = [nn.Linear(8, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False), nn.ReLU()]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers)


# The largest learning rate at which gradient descent is stable: measured, then tried.
def test_stable_learning_rate(trainability):
    x, y = torch.randn(32, 8), torch.randn(32, 1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    regression = trainability(lambda: nn.Linear(8, 1), x, target=y, loss=loss, seeds=1)
    largest = float(regression.stable_learning_rate)
    slower = trainability(
        lambda: nn.Linear(8, 1),
        x,
        target=y,
        loss=loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5 * largest),
        name="slower",
    )
    slower.check(loss_drop=at_least(0.1))
