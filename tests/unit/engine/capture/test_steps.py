"""The choice of steps: automatically, or by class or name."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from models import ARCHITECTURES, Architecture
from torch import Tensor, nn

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import describe
from pytest_trainability.engine.jacobian.vjp import pull_back, random_cotangents
from pytest_trainability.errors import CutError, TrainabilityError, UsageError

BY_ID = {case.id: case for case in ARCHITECTURES}


def text(case: Architecture, steps: Any) -> str:
    return describe(models.cut_case(case, steps).chain.steps)


def names(case: Architecture, steps: Any) -> list[str]:
    return list(models.cut_case(case, steps).chain.names)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in ARCHITECTURES])
def test_automatic_steps(case: Architecture) -> None:
    """Steps are repeated blocks, or layers if there are no such blocks."""
    assert text(case, case.steps) == case.auto


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in ARCHITECTURES if c.layers])
def test_layers_are_steps(case: Architecture) -> None:
    """Each call of a module with a weight is a step, also if the weight is parametrized or the module is in a block."""
    assert text(case, "layers") == case.layers


@pytest.mark.parametrize("name", ["residual", "unet", "views", "shared-blocks", "integer-inputs", "early-loss"])
def test_blocks_equals_auto_if_there_are_blocks(name: str) -> None:
    """``"blocks"`` differs from ``"auto"`` only in that it does not fall back to layers."""
    assert text(BY_ID[name], "blocks") == BY_ID[name].auto


def test_a_class_selects_its_instances() -> None:
    """Instances of subclasses are included."""
    assert text(BY_ID["residual"], models.Branch) == "4 × Block"
    assert text(BY_ID["residual"], nn.Linear) == "10 × Linear"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.*", ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
        ("blocks.[13]", None),
        ("blocks.?", ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
        ("blocks.*.up", ["blocks.0.up", "blocks.1.up", "blocks.2.up", "blocks.3.up"]),
        ("**.down", ["blocks.0.down", "blocks.1.down", "blocks.2.down", "blocks.3.down"]),
        ("blocks.2", ["blocks.2"]),
        ("*", ["stem", "head"]),
        (["stem", "blocks.*", "head"], ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]),
        (["head", "stem"], ["stem", "head"]),
        (("blocks.0", "blocks.3"), ["blocks.0", "blocks.3"]),
    ],
    ids=str,
)
def test_names_and_globs_select_modules(pattern: Any, expected: list[str] | None) -> None:
    """``*`` and ``?`` stay within one level, the steps of a list are in program order, and brackets have no special meaning.

    The model itself has no name, so no pattern names it.
    """
    if expected is None:
        with pytest.raises(UsageError, match="It matches none"):
            names(BY_ID["residual"], pattern)
    else:
        assert names(BY_ID["residual"], pattern) == expected


@pytest.mark.parametrize(
    "pattern", ["blocks.**", "**", ["blocks.0", "blocks.0.up", "blocks.1.down", "blocks.1"]], ids=str
)
def test_steps_inside_steps_do_not_change_the_product(pattern: Any) -> None:
    """A gradient passes two steps that end at the same moment: the chain of nested steps has the product of the outer ones."""
    cutting = models.cut_case(BY_ID["residual"], pattern)
    columns: Any = random_cotangents(cutting.chain, 1, 0)
    for index in range(len(cutting.chain), 0, -1):
        columns = pull_back(cutting.chain, index, columns)
        assert any(c is not None and c.any() for c in columns), cutting.chain.names[index - 1]


def test_a_block_that_ends_with_its_last_layer_is_a_whole_step() -> None:
    """No operation follows the inner step: a Sequential in a Sequential, where both are steps."""
    model = nn.Sequential(*[nn.Sequential(nn.Tanh(), nn.Linear(4, 4)) for _ in range(3)])
    chain = models.cut(model, torch.randn(2, 4), "**").chain
    columns: Any = random_cotangents(chain, 1, 0)
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
        assert any(c is not None and c.any() for c in columns), chain.names[index - 1]


def test_a_second_tower_is_left_out_and_named() -> None:
    """Its blocks are not on the path of the signal of the first tower."""
    chain = models.cut_case(BY_ID["two-towers"], "layers").chain
    assert {name.split(".")[0] for name in chain.names} == {"left"}
    assert {call.path.split(".")[0] for call in chain.left_out} == {"right"}


def test_the_larger_of_two_separate_groups_is_the_chain() -> None:
    """There are two towers, of which the second one is deeper."""

    class Uneven(models.TwoTowers):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = self.left[:2], nn.ModuleList(models.Block() for _ in range(5))

    inputs = (torch.randn(3, models.WIDTH), torch.randn(3, models.WIDTH))
    chain = models.cut(Uneven(), inputs, models.Block).chain
    assert list(chain.names) == [f"right.{i}" for i in range(5)]


def test_alternating_blocks_are_one_kind() -> None:
    """Classes of blocks that alternate in one container are steps together."""

    class Other(models.Block):
        pass

    model = nn.Sequential(*[cls() for _ in range(3) for cls in (models.Block, Other)])
    assert describe(models.cut(model, torch.randn(2, models.WIDTH)).chain.steps) == "3 × Block + 3 × Other"


def test_blocks_are_preferred_to_their_stages() -> None:
    """The finer cut has the same number of live tensors."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(models.Block(), models.Block())

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    model = nn.Sequential(Stage(), Stage(), Stage(), nn.Linear(models.WIDTH, 2))
    assert describe(models.cut(model, torch.randn(2, models.WIDTH)).chain.steps) == "6 × Block"


# Errors ----------------------------------------------------------------------------------------------------------


class Weightless(nn.Module):
    """A model without layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class FusedRnn(nn.Module):
    """The time steps are inside one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Detached(models.Tower):
    """The path is cut in the middle."""

    def body(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x).detach()
        return self.blocks[1](x)


@pytest.mark.parametrize(
    ("model", "steps", "error", "parts"),
    [
        pytest.param(
            Weightless,
            "auto",
            CutError,
            ["a chain needs steps", "called at least 3 times", "Weightless called neither", "It calls no submodule"],
            id="nothing-repeats",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)),
            "blocks",
            CutError,
            ["steps='blocks' needs", "Sequential has none", "Try steps='layers'"],
            id="no-block",
        ),
        pytest.param(
            Weightless, "layers", CutError, ["a chain needs steps", "Weightless called neither"], id="no-layer"
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
            "time",
            CutError,
            ["steps='time' needs a recurrence", "Sequential has none", "call it in a loop"],
            id="no-time",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
            nn.Conv2d,
            CutError,
            ["the model must call the steps", "It called no instance of Conv2d", "It called Linear, Tanh, Sequential."],
            id="class-not-called",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
            "layer.*",
            UsageError,
            ["steps='layer.*' must match a module of Sequential", "It matches none", "named_modules()"],
            id="no-match",
        ),
        pytest.param(
            lambda: models.Tower(models.Block),
            "block.*",
            UsageError,
            ["steps='block.*' must match a module of Tower", "Nearest: 'blocks."],
            id="misspelt",
        ),
        pytest.param(
            lambda: models.Tower(models.Block),
            ["stem", "tail"],
            UsageError,
            ["steps='tail' must match a module of Tower"],
            id="one-name-of-a-list",
        ),
        pytest.param(Weightless, 3, UsageError, ["steps must be 'auto', 'blocks', 'layers'", "Got 3."], id="number"),
        pytest.param(Weightless, [], UsageError, ["steps must be 'auto'", "Got []."], id="empty-list"),
        pytest.param(Weightless, ["a", 1], UsageError, ["steps must be", "Got ['a', 1]."], id="mixed-list"),
        pytest.param(
            Weightless, int, UsageError, ["steps must be", "a module class", "<class 'int'>"], id="other-class"
        ),
        pytest.param(
            lambda: models.Tower(models.Block),
            "",
            UsageError,
            ["steps='' must match a module of Tower"],
            id="empty-name",
        ),
        pytest.param(
            lambda: Detached(models.Block),
            ["stem", "blocks.0"],
            CutError,
            [
                "the signal must flow from step 'stem' through step 'blocks.0' to the output",
                ".detach()",
                "repair the path",
            ],
            id="cut-path",
        ),
    ],
)
def test_steps_that_do_not_exist_are_refused(
    model: Any, steps: Any, error: type[TrainabilityError], parts: list[str]
) -> None:
    """Messages say what is expected, what was found and what to do."""
    width = models.WIDTH if model().__class__.__name__ in {"Tower", "Detached"} else 4
    shape = (2, 3, 4) if model is FusedRnn else (2, width)
    with pytest.raises(error) as caught:
        models.cut(model(), torch.randn(*shape), steps)
    for part in parts:
        assert part in str(caught.value)
    assert "  " not in str(caught.value)


def test_two_layers_of_a_stack_are_blocks() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    assert str(measure(Two, torch.randn(2, 3, 8), seeds=1).steps) == "2 × TransformerEncoderLayer"


class Greedy(nn.Module):
    """A block that cuts the gradient of what enters it, as in greedy layerwise training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = models.Block(), models.Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.detach()))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_that_cut_the_gradient_have_steps_behind_the_last_cut(count: int) -> None:
    model = nn.Sequential(*[Greedy() for _ in range(count)], nn.Linear(models.WIDTH, 2))
    result = measure(model, torch.randn(2, models.WIDTH))
    assert 1 <= len(result.steps) <= 4
    assert all(name.startswith((f"{count - 1}.", str(count))) for name in result.steps)
