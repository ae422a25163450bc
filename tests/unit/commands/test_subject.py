"""Arguments that name a model, its inputs, its targets and its loss."""

from __future__ import annotations

import argparse

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_trainability.commands.subject import Subject, add_subject_arguments, subject
from pytest_trainability.errors import UsageError


def of(*words: str) -> Subject:
    parser = argparse.ArgumentParser()
    add_subject_arguments(parser)
    return subject(parser.parse_args(words))


def test_all_parts_are_named() -> None:
    found = of("torch.nn:Identity", "--input", "4x8", "--target", "ids:4<3", "--loss", "cross_entropy")
    generator = torch.Generator()
    assert found.build is nn.Identity and found.name == "Identity"
    assert found.inputs(generator).shape == (4, 8) and found.targets(generator).max() < 3
    assert found.loss_function is functional.cross_entropy
    assert (found.input, found.target, found.loss) == (("4x8",), ("ids:4<3",), "cross_entropy")


def test_targets_and_loss_may_be_missing() -> None:
    found = of("torch.nn:Identity", "--input", "4x8")
    assert found.targets is None and found.loss_function is None


def test_a_loss_may_be_a_place() -> None:
    assert (
        of("torch.nn:Identity", "--input", "4x8", "--loss", "torch.nn.functional:l1_loss").loss_function
        is functional.l1_loss
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["torch.nn:Identity"],
            r"'torch.nn:Identity' declares no inputs, and none are given. Write --input 8x3x224x224",
        ),
        (["torch.nn:Identity", "--input", "4y8"], "inputs must be sizes such as 8x3x224x224"),
        (
            ["torch.nn:Identity", "--input", "4x8", "--loss", "cros_entropy"],
            r"the loss must be a function of torch.nn.functional, .* Got 'cros_entropy'. Nearest: .*cross_entropy",
        ),
        (["torch.nn:Idntity", "--input", "4x8"], "the model must exist: 'torch.nn:Idntity'.*Nearest: Identity"),
    ],
)
def test_what_names_nothing_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        of(*words)
