"""Language models whose masks are right or wrong: exactly the wrong layers are named, and presets ask only models with a mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import InapplicableError, Measurement, TrainabilityFailure, measure
from pytest_trainability.checks.presets import find_preset

VOCAB, LENGTH, WIDTH = 13, 8, 16
Mask = Callable[[], "Tensor | None"]

IDS = torch.randint(VOCAB, (3, LENGTH + 1), generator=torch.Generator().manual_seed(0))
TOKENS, NEXT = IDS[:, :-1].contiguous(), IDS[:, 1:].contiguous()
BEHIND = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def right() -> Tensor:
    return torch.zeros(LENGTH, LENGTH).masked_fill(BEHIND, -torch.inf)


def lost() -> Tensor:
    """Return an empty mask: the function does not work in place."""
    mask = torch.zeros(LENGTH, LENGTH)
    mask.masked_fill(BEHIND, -torch.inf)
    return mask


def shifted() -> Tensor:
    return torch.full((LENGTH, LENGTH), -torch.inf).triu(2)


def none() -> None:
    return None


class Layer(nn.Module):
    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask, self.qkv, self.out = mask, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask())[:, 0])


class Model(nn.Module):
    def __init__(self, *masks: Mask, positions: bool = True, std: float = 1.0) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.register_buffer("positions", std * positions * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(Layer(mask) for mask in masks)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def token_loss(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-100)


def measured(
    *masks: Mask, target: Tensor = NEXT, loss: Callable[..., Tensor] = token_loss, **options: bool
) -> Measurement:
    return measure(lambda: Model(*masks, **options), TOKENS, target=target, loss=loss, seeds=1)


def preset(found: Measurement) -> set[str]:
    """Return the measures of the preset about tokens that do not hold."""
    bounds = {name: find_preset("transformer")[name] for name in ("leaked_targets", "order_blindness")}
    try:
        found.check(**bounds)
    except TrainabilityFailure:
        return {name for name, verdict in found._verdicts.items() if not verdict.holds}
    return set()


@pytest.mark.parametrize(
    ("masks", "names"),
    [
        ((right, right, right), []),
        ((right, lost, right), ["layers.1"]),
        ((lost, right, shifted), ["layers.0", "layers.2"]),
    ],
)
def test_the_leaking_layers_are_named(masks: tuple[Mask, ...], names: list[str]) -> None:
    found = measured(*masks)
    assert list(found.leaked_targets) == names
    assert preset(found) == ({"leaked_targets"} if names else set())


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (lost, "all later tokens: the causal mask has no effect"),
        (shifted, "the next tokens: the causal mask is shifted"),
    ],
)
def test_the_report_says_how_far_positions_see(mask: Mask, says: str) -> None:
    # Another layer makes a mask that is right, so that the model is known to be causal.
    with pytest.raises(TrainabilityFailure) as raised:
        measured(mask, right).check(leaked_targets=find_preset("transformer")["leaked_targets"])
    assert says in " ".join(str(raised.value).split())


def test_labels_that_are_not_shifted_leak_in_the_loss() -> None:
    def same_token(scores: Tensor, labels: Tensor) -> Tensor:
        return token_loss(scores[:, 1:], labels[:, :-1])

    assert list(measured(right, loss=same_token).leaked_targets) == ["loss"]


def test_an_encoder_is_not_asked_whatever_its_targets() -> None:
    found = measured(none, none)
    assert list(found.leaked_targets) == ["layers.0", "layers.1"]
    assert preset(measured(none, none)) == set()


def test_other_targets_do_not_apply() -> None:
    with pytest.raises(InapplicableError, match="shifted by one position"):
        _ = measured(right, target=TOKENS).leaked_targets


@pytest.mark.parametrize(("positions", "flagged"), [(True, set()), (False, {"order_blindness"})])
def test_tokens_with_targets_are_to_know_their_order(positions: bool, flagged: set[str]) -> None:
    assert preset(measured(none, target=TOKENS, positions=positions)) == flagged


def test_a_model_without_mixing_is_not_asked_for_the_order() -> None:
    assert preset(measured(target=TOKENS, positions=False)) == set()
