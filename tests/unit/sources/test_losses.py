"""Losses that are named by text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pytest_trainability import UsageError
from pytest_trainability.sources.losses import cross_entropy, named_loss, needs_target, suits_torch


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("mse", F.mse_loss),
        ("mse_loss", F.mse_loss),
        ("F.mse_loss", F.mse_loss),
        ("torch.nn.functional.cross_entropy", F.cross_entropy),
        ("binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits),
        ("torch.nn.functional:mse_loss", F.mse_loss),
    ],
)
def test_functions(text: str, loss: object) -> None:
    assert named_loss(text) is loss


def test_classes() -> None:
    assert isinstance(named_loss("nn.CrossEntropyLoss"), nn.CrossEntropyLoss)
    assert isinstance(named_loss("MSE"), nn.MSELoss)
    loss = named_loss("torch.nn.CrossEntropyLoss(label_smoothing=0.1)")
    assert isinstance(loss, nn.CrossEntropyLoss) and loss.label_smoothing == 0.1


def test_cross_entropy_takes_scores_of_tokens() -> None:
    scores, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    expected = F.cross_entropy(scores.transpose(1, 2), targets)
    loss = named_loss("cross_entropy")
    torch.testing.assert_close(loss(scores, targets), expected)
    torch.testing.assert_close(loss(SimpleNamespace(logits=scores), targets), expected)
    torch.testing.assert_close(loss(scores.transpose(1, 2), targets), expected)
    torch.testing.assert_close(loss(scores[0], targets[0]), F.cross_entropy(scores[0], targets[0]))


def test_where_torch_means_the_same() -> None:
    scores, tokens = torch.randn(2, 7, 7), torch.randint(7, (2, 7))
    assert suits_torch(scores[0], tokens[0]) and suits_torch(torch.randn(2, 7, 3, 3), torch.randint(7, (2, 3, 3)))
    # torch would take the first dimension after that of the samples for the classes.
    assert not suits_torch(scores, tokens)
    assert not suits_torch(SimpleNamespace(logits=scores[0]), tokens[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cross_entropi", "torch has no loss 'cross_entropi'. Did you mean 'cross_entropy'?"),
        ("nn.Linear", "torch has no loss 'nn.Linear'."),
        ("relu", "torch has no loss 'relu'."),
        ("mse(reduction='sum')", "a function such as mse must be named without arguments"),
        ("nn.MSELoss(reduce_it=1)", 'the loss "nn.MSELoss(reduce_it=1)" must be a class that takes its arguments'),
        ("3", "the loss must be cross_entropy, mse, nn.CrossEntropyLoss or MODULE:NAME"),
        ("no_such_module:loss", "the loss must be importable"),
    ],
)
def test_other_texts_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_loss(text)
    assert said.replace('"', "'") in str(caught.value).replace('"', "'")


def test_losses_that_need_a_target() -> None:
    assert (
        needs_target(F.mse_loss) and needs_target(nn.CrossEntropyLoss()) and needs_target(named_loss("cross_entropy"))
    )
    assert not needs_target(lambda output: output.sum()) and not needs_target(lambda output, target=None: output.sum())
    assert not needs_target(max)  # has no signature that says so


@pytest.mark.parametrize("output", [{"out": torch.ones(2, 3), "aux": torch.ones(2, 3)}, (torch.ones(2, 3),)])
def test_an_output_without_scores_is_refused_with_a_way_out(output: object) -> None:
    with pytest.raises(TypeError, match=r"it takes a tensor, or an output with logits\. Got .* MODULE:NAME$") as caught:
        cross_entropy(output, torch.zeros(2, dtype=torch.long))
    assert ("dict with out, aux" in str(caught.value)) == isinstance(output, dict)


def test_a_mapping_with_logits_has_scores() -> None:
    scores, target = torch.randn(2, 3), torch.zeros(2, dtype=torch.long)
    assert cross_entropy({"logits": scores}, target) == cross_entropy(scores, target)
