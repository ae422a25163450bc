"""Writing the initialization contract of a model, and checking what was written on other seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.isolation import default_device, preserved_world
from ..engine.runs.recipe import ModelSource
from ..init.words import failure_text
from ..init.writing import contract_of, rules_of, source_of
from .initialization import judge_contract, models_of
from .options import factory_name, refuse_no_model

__all__ = ["checked_contract", "checked_rules"]


def checked_contract(model: ModelSource, seeds: Sequence[int], name: str) -> tuple[str, str]:
    """Return the contract of a model, and why it does not hold on other seeds.

    Args:
        model: A factory without arguments, or a finished module, which has one seed and is not checked again.
        seeds: Seeds to read.
        name: Name of the dictionary.

    Returns:
        Source text, and the message of the failed check; empty if it holds.

    Raises:
        UsageError: The model is neither a module nor a factory, or has no parameters.
        ModelError: The model cannot be built, or a parameter holds no numbers.
    """
    contract, trouble = checked_rules(model, seeds)
    return source_of(contract, name), trouble


def checked_rules(model: ModelSource, seeds: Sequence[int]) -> tuple[dict[str, str], str]:
    """Return the rules of a model's contract, and why they do not hold on other seeds.

    Args:
        model: A factory without arguments, or a finished module, which has one seed and is not checked again.
        seeds: Seeds to read.

    Returns:
        Source text of the rules by pattern, and the message of the failed check; empty if they hold.

    Raises:
        UsageError: The model is neither a module nor a factory, or has no parameters.
        ModelError: The model cannot be built, or a parameter holds no numbers.
    """
    refuse_no_model(model)
    is_module = isinstance(model, torch.nn.Module)
    seeds = seeds[:1] if is_module else seeds
    with preserved_world(), default_device(torch.device("cpu")):
        contract = contract_of(models_of(model, seeds))
    others = seeds if is_module else [max(seeds) + 1 + i for i in range(len(seeds))]
    judgement = judge_contract(rules_of(contract), model, others)
    return contract, "" if judgement.holds else failure_text(judgement, factory_name(model))
