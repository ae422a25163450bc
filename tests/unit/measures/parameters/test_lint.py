"""The measure of unusual initial values: its lines, and its place in every preset."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pytest_trainability import initialization, measure
from pytest_trainability.checks.presets import PRESETS
from pytest_trainability.engine.runs.run import with_dependencies
from pytest_trainability.measures.parameters.initial_values import DESCRIPTION
from pytest_trainability.measures.parameters.lint import UNUSUAL


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 16)
        nn.init.normal_(self.norm.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x))


def test_lines_name_the_parameter_and_the_reason() -> None:
    (line,) = measure(Net, torch.randn(4, 16), seeds=1).unusual_parameters
    assert line.startswith("norm.weight: the gain of a normalization is drawn around 0 (std 0.0")


def test_every_preset_allows_none() -> None:
    assert {bounds["unusual_parameters"].high for bounds in PRESETS.values()} == {0}


class SeededInside(nn.Module):
    """A layer that draws from its own generator, a buffer that is never written, and a layer that is drawn as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.fixed = nn.Linear(16, 16), nn.Linear(16, 16)
        nn.init.normal_(self.fixed.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        self.register_buffer("scale", torch.empty(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(self.usual(x))


LINES = (
    "fixed.weight: drawn, but the same on two builds with different seeds: a generator is seeded inside",
    "scale: its memory was allocated and never written: it holds what was there before",
)


def test_what_further_builds_show_is_listed() -> None:
    result = measure(SeededInside, torch.randn(4, 16), seeds=2, measures=["unusual_parameters"])
    assert tuple(result.unusual_parameters) == LINES
    assert initialization(SeededInside, seeds=2).unusual == LINES


def test_a_generator_that_the_global_one_seeds_is_drawn_again() -> None:
    class Derived(SeededInside):
        def __init__(self) -> None:
            super().__init__()
            own = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
            nn.init.normal_(self.fixed.weight, std=0.1, generator=own)
            nn.init.zeros_(self.scale)

    assert initialization(Derived).unusual == ()
    assert list(measure(Derived, torch.randn(4, 16), seeds=1).unusual_parameters) == []


def test_a_factory_that_seeds_the_generator_is_one_line() -> None:
    def build() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16))

    (line,) = initialization(build).unusual
    assert line.startswith("0.weight: drawn, but the same")
    assert line.endswith("(and so are all 4 drawn parameters)")
    assert list(measure(build, torch.randn(4, 16), seeds=2).unusual_parameters) == [line]


def test_copies_and_checkpoints_are_not_drawn() -> None:
    trained = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))

    def loaded() -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        model[0].load_state_dict(trained[0].state_dict())
        return model

    for build in (lambda: copy.deepcopy(trained), loaded):
        assert initialization(build).unusual == ()
        assert list(measure(build, torch.randn(4, 16), seeds=1).unusual_parameters) == []


def test_a_finished_module_and_a_factory_of_one_model_are_built_once() -> None:
    model = SeededInside()
    nn.init.zeros_(model.scale)
    for source in (model, lambda: model):
        assert list(measure(source, torch.randn(4, 16), seeds=1).unusual_parameters) == []
        assert initialization(source, seeds=1).unusual == ()


def test_further_builds_leave_the_generators_alone_and_one_decides_for_all_seeds() -> None:
    built = []

    def build() -> nn.Module:
        built.append(torch.initial_seed())
        return Net()

    inputs, state = torch.randn(4, 16), torch.get_rng_state()
    result = measure(build, inputs, seeds=3, measures=["unusual_parameters"])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(result.unusual_parameters) == 1
    # A draw for each seed; for the first one, another in memory that is filled with NaN, and one from another seed.
    assert sorted(seed for seed in built if seed < 3) == [0, 0, 1, 2]
    assert len(built) == 5


def test_the_description_is_provided_before_it_is_read() -> None:
    assert with_dependencies(frozenset({UNUSUAL})) == {UNUSUAL, DESCRIPTION}
