"""Where layers read what other layers have computed without its gradient, and healthy stops that are none of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.distributions import Normal

from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.stopped_gradients import NO_GRAD, StoppedGradient, StoppedGradientObserver


class Model(nn.Module):
    """An encoder, a decoder, and what lies between them."""

    def __init__(self, between: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.table = nn.Embedding(16, 8)
        self.target = nn.Linear(8, 8).requires_grad_(False)
        self.decoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.cell = nn.RNNCell(8, 8)
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x)
        found: Tensor = self.between(self, x, z)
        return found.square().mean() + z.square().mean()


def found(between: Callable[[Any, Tensor, Tensor], Tensor]) -> dict[str, StoppedGradient]:
    captured = capture(Model(between), (torch.randn(4, 8),), {}, instruments=(StoppedGradientObserver,))
    observer: StoppedGradientObserver = captured.watched[StoppedGradientObserver]
    return observer.found


def normal(z: Tensor) -> Any:
    return Normal(z, 1.0)


def under_no_grad(z: Tensor) -> Tensor:
    with torch.no_grad():
        return 2 * z


@pytest.mark.parametrize(
    ("between", "function"),
    [
        (lambda model, x, z: model.decoder(z.detach()), "detach()"),
        (lambda model, x, z: model.decoder(z.data), ".data"),
        (lambda model, x, z: model.decoder(normal(z).sample()), NO_GRAD),
        (lambda model, x, z: model.decoder(under_no_grad(z)), NO_GRAD),
        (lambda model, x, z: model.decoder(F.relu(z.detach()) + 1), "detach()"),
        (lambda model, x, z: F.linear(z.detach(), model.decoder[0].weight), "detach()"),
        (lambda model, x, z: model.decoder(z.detach() + x.detach()), "detach()"),
    ],
    ids=["detach", "data", "sample", "no_grad", "functions behind it", "in the model itself", "sum with an input"],
)
def test_a_layer_that_reads_results_of_a_layer_without_their_gradient(
    between: Callable[[Any, Tensor, Tensor], Tensor], function: str
) -> None:
    ((reader, stop),) = found(between).items()
    assert reader == ("decoder.0" if "linear" not in between.__code__.co_names else "Model")
    assert (stop.function, stop.path, stop.sources) == (function, "Model", ("encoder.2",))


@pytest.mark.parametrize(
    "between",
    [
        lambda model, x, z: model.decoder(z),
        lambda model, x, z: model.decoder(normal(z).rsample()),
        lambda model, x, z: model.decoder(z + (z.round() - z).detach()),
        lambda model, x, z: model.decoder(F.gumbel_softmax(z, hard=True)),
        lambda model, x, z: model.decoder(x.detach()),
        lambda model, x, z: model.decoder(torch.randn(4, 8)),
        lambda model, x, z: model.decoder(torch.sin(torch.arange(32.0)).reshape(4, 8)),
        lambda model, x, z: model.decoder((z > 0).float()),
        lambda model, x, z: model.decoder(F.one_hot(z.argmax(-1), 8).float()),
        lambda model, x, z: model.decoder(model.table(z.argmax(-1))),
        lambda model, x, z: model.decoder(z) - z.detach(),
        lambda model, x, z: model.decoder(z * z.std().detach()),
        lambda model, x, z: z - model.target(z.detach()),
        lambda model, x, z: model.cell(x, z.detach()),
        lambda model, x, z: model.normed(z),
    ],
    ids=[
        *("plain", "reparametrized", "straight through", "Gumbel", "detached input", "noise", "positions", "mask"),
        *("class", "token", "target of the loss", "detached factor", "frozen target network", "state cut off"),
        "spectral norm",
    ],
)
def test_healthy_stops_are_not_noted(between: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    assert not found(between)


def test_layers_that_run_without_a_graph_are_the_sources() -> None:
    def between(model: Any, x: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = model.encoder(x)
        return model.decoder(hidden)  # type: ignore[no-any-return]

    assert found(between)["decoder.0"].sources == ("encoder.0",)
