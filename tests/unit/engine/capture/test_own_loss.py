"""The loss that a model computes itself: which output is beyond doubt, and training steps of Lightning modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.capture.own_loss import call_training_step, named_loss, only_scalar, picker
from pytest_trainability.errors import ModelError

X = torch.ones(4, 3)


def outputs() -> tuple[Tensor, Tensor, nn.Parameter]:
    """Return logits, a loss of them, and a parameter that neither depends on."""
    logits = nn.Linear(3, 2)(X)
    return logits, logits.square().mean(), nn.Parameter(torch.ones(()))


LOGITS, LOSS, TEMPERATURE = outputs()
HIDDEN = LOGITS.tanh()


@pytest.mark.parametrize(
    ("output", "place"),
    [
        (LOSS, ""),
        ((LOGITS, LOSS), "[1]"),
        ({"x": LOGITS, "total": LOSS}, "['total']"),
        ((LOGITS, LOGITS.argmax(), LOSS), "[2]"),
        # A temperature is no loss, and neither is a penalty that does not depend on the output.
        ((LOGITS, TEMPERATURE.exp()), None),
        ((LOGITS, HIDDEN, LOSS), None),
        # Which of two it is, is not clear.
        ((LOGITS, LOSS, LOSS * 2), None),
        ((LOGITS, LOSS.detach()), None),
        (LOGITS, None),
        (LOSS.reshape(1), None),
        (None, None),
    ],
)
def test_the_only_scalar_that_depends_on_all_of_the_output_is_the_loss(output: Any, place: str | None) -> None:
    assert only_scalar(output) == place
    if place is not None:
        assert picker(place)(output) is LOSS


def test_a_named_loss_carries_a_gradient() -> None:
    found = named_loss({"loss": LOSS}, of_training_step=False)
    assert found is not None and torch.equal(found, LOSS)
    assert named_loss({"loss": LOSS.detach()}, of_training_step=False) is None
    assert named_loss(LOSS, of_training_step=False) is None
    assert named_loss(LOSS, of_training_step=True) is not None


class Net(nn.Module):
    """Returns its output and its loss, as nanoGPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(3, 3), nn.Tanh())])

    def forward(self, x: Tensor, y: Tensor) -> Any:
        z = self.layers(x)
        return z, F.cross_entropy(z, y)


@pytest.mark.parametrize("part", [lambda out: out, lambda out: out[1]], ids=["output and loss", "loss"])
def test_a_returned_loss_is_differentiated_and_reported(part: Callable[[Any], Any]) -> None:
    class Returning(Net):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            return part(super().forward(x, y))

    batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    found = measure(Returning, batch, seeds=2)
    expected = measure(Net, batch, loss=lambda output: output[1], seeds=2)
    for name in ("gradient_norm", "update_ratio", "gradient_snr"):
        values = [getattr(result, name) for result in (found, expected)]
        assert [e.values for e in values[0].values()] == [e.values for e in values[1].values()], name
    assert found.initial_loss.values == expected.initial_loss.values
    assert any("is taken as its loss" in note for note in found.notes)


class Lightning(nn.Module):
    """Has the methods of a LightningModule."""

    automatic_optimization = True

    def training_step(self, batch: Any) -> Any:
        return batch


def test_a_training_step_may_take_the_batch_alone() -> None:
    class WithIndex(Lightning):
        def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
            return batch, batch_idx

    assert call_training_step(Lightning(), "batch") == "batch"
    assert call_training_step(WithIndex(), "batch") == ("batch", 0)


def test_manual_optimization_is_refused_with_a_way_out() -> None:
    class Manual(Lightning):
        automatic_optimization = False

    with pytest.raises(ModelError, match=r"^the training_step .* Manual optimizes manually .* loss= with target=\.$"):
        call_training_step(Manual(), "batch")


def test_a_training_step_that_uses_the_trainer_is_refused_with_a_way_out() -> None:
    class Trained(Lightning):
        def training_step(self, batch: Any) -> Any:
            msg = "Trained is not attached to a `Trainer`."
            raise RuntimeError(msg)

    with pytest.raises(ModelError, match=r"must run without a Trainer\. That of Trained uses self\.trainer"):
        call_training_step(Trained(), "batch")


def test_another_error_of_a_training_step_is_its_own() -> None:
    class Broken(Lightning):
        def training_step(self, batch: Any) -> Any:
            raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match=r"^shapes$"):
        call_training_step(Broken(), "batch")
