"""Inputs that a model declares."""

from __future__ import annotations

import torch
from torch import nn

from pytest_trainability.sources.declared import declared_inputs

GENERATOR = torch.Generator()


class Declaring(nn.Linear):
    """Declares its inputs as a Lightning module or a model of timm does."""

    def __init__(self, **declared: object) -> None:
        super().__init__(3, 3)
        for name, value in declared.items():
            setattr(self, name, value)


def test_a_lightning_module_has_an_example() -> None:
    example = torch.ones(2, 3)
    inputs = declared_inputs(Declaring(example_input_array=example))
    assert inputs is not None and inputs(GENERATOR) is example


def test_an_example_that_the_factory_makes_holds_numbers() -> None:
    inputs = declared_inputs(lambda: Declaring(example_input_array=torch.ones(2, 3)))
    assert inputs is not None and inputs(GENERATOR).device.type == "cpu"


def test_a_model_of_timm_has_the_size_of_its_images() -> None:
    inputs = declared_inputs(Declaring(default_cfg={"input_size": (3, 8, 8)}))
    assert inputs is not None and inputs(GENERATOR).shape == (4, 3, 8, 8)


def test_other_models_declare_nothing() -> None:
    assert declared_inputs(nn.Linear(3, 3)) is None
    assert declared_inputs(lambda: 1 / 0) is None


class Dummies(nn.Linear):
    """Declares its inputs by a property, which may raise an error."""

    def __init__(self, *, dummies: object = None) -> None:
        super().__init__(3, 3)
        self.dummies = dummies

    @property
    def dummy_inputs(self) -> object:
        if isinstance(self.dummies, Exception):
            raise self.dummies
        return self.dummies


def test_other_models_may_have_dummy_inputs() -> None:
    example = {"x": torch.ones(2, 3)}
    for dummies in (example, lambda: example):
        inputs = declared_inputs(Dummies(dummies=dummies))
        assert inputs is not None and inputs(GENERATOR) is example
    assert declared_inputs(Dummies()) is None
    assert declared_inputs(Dummies(dummies=NotImplementedError())) is None
