"""Elements that bounds on gradients and branches judge, and those that are zero by algebra, or by design and waking."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import at_least, measure
from pytest_trainability.checks.judged_elements import (
    judged_elements,
    not_judged_texts,
    selected_elements,
    untrained_text,
)
from pytest_trainability.errors import BoundError
from pytest_trainability.records.estimates import Estimate, Profile
from pytest_trainability.records.gradient_classes import GradientClasses

INF = math.inf


def profile(**values: tuple[float, ...]) -> Profile:
    return Profile(
        {n.replace("_", "."): Estimate(mean=v[0], low=v[0], high=v[0], values=v, name=n) for n, v in values.items()}
    )


def classes(**labels: str) -> GradientClasses:
    """Return classes that are the same on two seeds."""
    return GradientClasses({name.replace("_", "."): (label, label) for name, label in labels.items()})


WAKES = "waking at step 1"
CLASSES = classes(h_0_up=WAKES, h_0_down="signal", h_1_up="dead", h_1_down="signal", head="signal")


def test_parameters_that_wake_are_excluded() -> None:
    value = profile(h_0_up=(0.0, 0.0), h_0_down=(1.0, 1.0), h_1_up=(0.0, 0.0), head=(1.0, 1.0))
    assert list(judged_elements("gradient", value, CLASSES)) == ["h.0.down", "h.1.up", "head"]


def test_branches_are_excluded_if_all_their_parameters_wake() -> None:
    """A branch stays if it is dead, so that some of its parameters never get a gradient, or if it has no parameters."""
    value = profile(h_0=(0.0, 0.0), h_1=(0.0, 0.0), h_2=(0.0, 0.0))
    assert list(judged_elements("branch", value, CLASSES)) == ["h.1", "h.2"]
    # If all branches are excluded, nothing is left to judge.
    assert not judged_elements("branch", profile(h_0=(0.0, 0.0)), CLASSES)
    # A branch stays if it is zero on one seed only, or NaN.
    for values in ((0.0, 0.1), (math.nan, math.nan)):
        assert list(judged_elements("branch", profile(h_0=values), CLASSES)) == ["h.0"]


def test_later_calls_of_a_shared_block_are_excluded_with_the_first() -> None:
    """Step ``cell[3]`` is the fourth call of ``cell``, and has its parameters."""
    value = profile(**{"cell": (0.0,), "cell[3]": (0.0,), "other": (1.0,)})
    assert list(judged_elements("branch", value, classes(cell_weight=WAKES))) == ["other"]
    assert list(judged_elements("branch", value, classes(cell_weight="dead"))) == ["cell", "cell[3]", "other"]


def test_without_classes_everything_is_judged() -> None:
    value = profile(h_0=(0.0, 0.0))
    assert judged_elements("branch", value, None) is value
    assert list(not_judged_texts({"branch_ratio": ("branch", value)}, None)) == []


def test_excluded_elements_are_named() -> None:
    bounded = {
        "gradient_norm": ("gradient", profile(head=(1.0, 1.0))),
        "branch_ratio": ("branch", profile(h_0=(0.0, 0.0))),
    }
    assert list(not_judged_texts(bounded, CLASSES)) == [
        "1 parameter wakes at optimizer step 1 and is excluded from bounds on gradients and updates: h.0.up",
        "1 branch is zero and wakes later, excluded from the bound on branch_ratio: h.0",
    ]
    assert list(not_judged_texts({"log_gain": ("", profile(head=(1.0, 1.0)))}, CLASSES)) == []
    # If all parameters wake later, all are judged and there is no note.
    assert list(not_judged_texts({"gradient_norm": ("gradient", profile(h_0_up=(0.0, 0.0)))}, CLASSES)) == []


def test_parameters_that_are_zero_by_algebra_are_excluded() -> None:
    value = profile(key_bias=(5e-10, 4e-10), key_weight=(1.0, 1.0), relative=(INF, INF))
    found = classes(key_bias="zero by algebra", key_weight="signal", relative="signal")
    assert list(judged_elements("gradient", value, found)) == ["key.weight", "relative"]
    assert list(judged_elements("update", value, found)) == ["key.weight", "relative"]
    # The ratio of a parameter that is zero is infinite, and no bound judges it.
    assert list(judged_elements("ratio", value, found)) == ["key.weight"]
    # If nothing else is left, it is judged: it satisfies a lower bound.
    assert list(judged_elements("ratio", profile(relative=(INF, INF)), found)) == ["relative"]
    assert list(not_judged_texts({"gradient_norm": ("gradient", value)}, found)) == [
        "1 gradient is zero by algebra and excluded from bounds on gradients and updates: key.bias"
    ]


def test_a_weight_that_is_zero_by_algebra_is_judged_as_zero() -> None:
    """The round-off in its place may be larger than the bound."""
    value = profile(router=(6e-9, 5e-9), head=(1.0, 1.0))
    judged = judged_elements("gradient", value, classes(router="zero by algebra, a weight", head="signal"))
    assert isinstance(judged, Profile)
    assert judged["router"].mean == 0 and judged["router"].values == (0, 0)


@pytest.mark.parametrize("label", ["dead", "waking at step 1, not by design", "zero, an optimizer step was not finite"])
def test_zeros_that_no_design_explains_are_judged(label: str) -> None:
    value = profile(weight=(0.0, 0.0), head=(1.0, 1.0))
    found = classes(weight=label, head="signal")
    assert set(judged_elements("gradient", value, found)) == {"weight", "head"}
    assert untrained_text(found) == "1 of 2 parameters get no gradient at initialization: weight"


def test_the_counts_are_those_of_the_block_with_the_largest_share() -> None:
    labels = {"stem": ("signal",), "h.0.w": ("dead",), "h.1.w": ("waking at step 1",), "h.2.w": ("dead",)}
    found = GradientClasses(labels, {"3 × Block": ("h.0.w", "h.1.w", "h.2.w")})
    text = "2 of 3 parameters of the 3 × Block get no gradient at initialization, and not by design: "
    assert untrained_text(found) == f"{text}h.*.w (2)"
    first = GradientClasses({"a": ("dead", "dead"), "b": ("signal", "dead"), "c": ("signal", "signal")})
    assert untrained_text(first, ["b"]) == "up to 2 of 3 parameters get no gradient at initialization: b, a"


def test_a_parameter_that_is_dead_on_one_seed_is_judged() -> None:
    value = profile(weight=(0.0, 0.0), head=(1.0, 1.0))
    found = GradientClasses({"weight": ("zero by algebra", "dead"), "head": ("signal", "signal")})
    assert set(judged_elements("gradient", value, found)) == {"weight", "head"}


# On real models ----------------------------------------------------------------------------------------------------

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
LOSS = {"loss": F.cross_entropy, "target": torch.tensor([0, 1, 2, 0, 1, 2])}


class Block(nn.Module):
    def __init__(self, *, dead: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        if dead:
            nn.init.constant_(self.up.bias, -100.0)
            nn.init.zeros_(self.down.bias)
        else:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def blocks(*, dead: bool) -> nn.Module:
    return nn.Sequential(Block(dead=False), Block(dead=dead), nn.Linear(8, 3))


@pytest.mark.parametrize("name", ["branch_ratio", "branch_gradient_share", "gradient_snr"])
def test_zero_initialized_branches_need_no_exceptions(name: str) -> None:
    result = measure(lambda: blocks(dead=False), X, steps=Block, seeds=2, **LOSS)
    result.check(**{name: at_least(1e-9)})


@pytest.mark.parametrize("name", ["branch_ratio", "branch_gradient_share"])
def test_a_dead_branch_fails_next_to_one_that_wakes(name: str) -> None:
    result = measure(lambda: blocks(dead=True), X, steps=Block, seeds=2, **LOSS)
    with pytest.raises(AssertionError, match=f"^{name} .* must ") as failure:
        result.check(**{name: at_least(1e-9)})
    text = " ".join(str(failure.value).split())
    assert "1 branch is zero and wakes later" in text and "must be ≥ 1e-09: 1e-09 outside 1 " in text


def test_patterns_of_a_bound_select_elements() -> None:
    value = profile(a_weight=(1.0,), a_bias=(1.0,), b_weight=(1.0,))
    found = selected_elements("gradient_norm", value, at_least(0, matching="*.weight", excluding="b.*"))
    assert isinstance(found, Profile) and list(found) == ["a.weight"]
    assert selected_elements("gradient_norm", value, at_least(0)) is value


def test_a_pattern_that_selects_nothing_is_refused() -> None:
    value = profile(a_weight=(1.0,))
    with pytest.raises(BoundError, match=r"^the bound of gradient_norm: No name matches .* Nearest: a\.weight"):
        selected_elements("gradient_norm", value, at_least(0, excluding="*.wieght"))
    with pytest.raises(BoundError, match=r"^the bound of log_gain has patterns of names .* is no profile by name\.$"):
        selected_elements("log_gain", value["a.weight"], at_least(0, excluding="*"))
