"""Which tensors a model trains in the graph without having registered them: known for each model from how it is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from pytest_trainability import at_most, measure

WIDTH = 4
INPUTS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))


def unregistered(model: Any, inputs: Any = INPUTS, **options: Any) -> list[str]:
    result = measure(model, inputs, seeds=1, measures=["unregistered_parameters"], **options)
    return list(result.unregistered_parameters)


class Holder(nn.Module):
    """Two layers, of which the second is held as an argument says, and read as another one says."""

    def __init__(self, hold: Callable[[nn.Module], None], read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        hold(self)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, torch.tanh(self.first(x)))


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, bias=False)


def set_to(make: Callable[[], Any]) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model, "held", make())


def in_dict(model: nn.Module) -> None:
    model.__dict__["held"] = linear()


def as_buffer(model: nn.Module) -> None:
    model.register_buffer("held", torch.randn(WIDTH, WIDTH, requires_grad=True))


class Helper:
    """No module."""

    def __init__(self) -> None:
        self.layer = linear()


SHAPE = f"({WIDTH}, {WIDTH})"
UNSET = "in an attribute set without registration: assign the module with self.NAME = ..."

HELD = {
    "list": (
        set_to(lambda: [linear()]),
        lambda m, h: m.held[0](h),
        f"held[0].weight: {SHAPE} in a plain list: use nn.ModuleList",
    ),
    "tuple": (
        set_to(lambda: (None, linear())),
        lambda m, h: m.held[1](h),
        f"held[1].weight: {SHAPE} in a plain tuple: use nn.ModuleList",
    ),
    "dict": (
        set_to(lambda: {"b": linear()}),
        lambda m, h: m.held["b"](h),
        f"held['b'].weight: {SHAPE} in a plain dict: use nn.ModuleDict",
    ),
    "nested": (
        set_to(lambda: {"b": [nn.Sequential(linear())]}),
        lambda m, h: m.held["b"][0](h),
        f"held['b'][0].0.weight: {SHAPE} in a plain dict: use nn.ModuleDict",
    ),
    "list of parameters": (
        set_to(lambda: [nn.Parameter(torch.randn(WIDTH, WIDTH))]),
        lambda m, h: h @ m.held[0],
        f"held[0]: {SHAPE} in a plain list: use nn.ParameterList",
    ),
    "dict of tensors": (
        set_to(lambda: {0: torch.randn(WIDTH, WIDTH, requires_grad=True)}),
        lambda m, h: h @ m.held[0],
        f"held[0]: {SHAPE} in a plain dict: use nn.ParameterDict",
    ),
    "tensor": (
        set_to(lambda: torch.randn(WIDTH, WIDTH, requires_grad=True)),
        lambda m, h: h @ m.held,
        f"held: {SHAPE} in a plain tensor: use nn.Parameter",
    ),
    "buffer": (
        as_buffer,
        lambda m, h: h @ m.held,
        f"held: {SHAPE} in a buffer, which no optimizer trains: use nn.Parameter",
    ),
    "object": (
        set_to(Helper),
        lambda m, h: m.held.layer(h),
        f"held.layer.weight: {SHAPE} in a Helper, which is no nn.Module: derive it from nn.Module",
    ),
    "past registration": (in_dict, lambda m, h: m.held(h), f"held.weight: {SHAPE} {UNSET}"),
}


@pytest.mark.parametrize(("hold", "read", "expected"), HELD.values(), ids=HELD)
def test_a_layer_that_no_module_registers_is_named_with_its_holder(hold, read, expected):
    assert unregistered(lambda: Holder(hold, read)) == [expected]
    assert unregistered(Holder(hold, read)) == [expected]


def test_a_child_of_a_registered_module_has_its_full_path():
    inner = partial(Holder, set_to(lambda: [linear()]), lambda m, h: m.held[0](h))
    found = unregistered(lambda: nn.Sequential(nn.Sequential(inner()), nn.Linear(WIDTH, 2)))
    assert found == [f"0.0.held[0].weight: {SHAPE} in a plain list: use nn.ModuleList"]


class Listed(nn.Module):
    def __init__(self, container: Callable[[list[nn.Module]], Any], layers: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)
        self.hidden = container([nn.Linear(WIDTH, WIDTH) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)


def test_twelve_layers_in_a_list_are_listed_in_their_order_and_a_module_list_is_not():
    found = unregistered(lambda: Listed(list, 12))
    assert [name.split(":")[0] for name in found] == [f"hidden[{i}].{p}" for i in range(12) for p in ("weight", "bias")]
    assert found[1] == f"hidden[0].bias: ({WIDTH},) in a plain list: use nn.ModuleList"
    assert unregistered(lambda: Listed(nn.ModuleList)) == []


class Rebuilding(nn.Module):
    """Builds a layer in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Sequential(Again(), Again())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Again(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear(WIDTH, WIDTH, bias=False)(x) + nn.Linear(WIDTH, WIDTH, bias=False)(x)


def test_parameters_that_the_model_does_not_hold_are_named_by_the_module_that_reads_them():
    reason = f"{SHAPE} that the model does not hold: make it an attribute"
    assert unregistered(Rebuilding) == [
        f"{module} reads a parameter[{number}]: {reason}" for module in ("second.0", "second.1") for number in (0, 1)
    ]


def test_a_layer_that_the_first_forward_pass_keeps_in_a_list_is_found():
    def read(model: Any, h: Tensor) -> Tensor:
        model.held = model.held or [linear()]
        return model.held[0](h)

    expected = [f"held[0].weight: {SHAPE} in a plain list: use nn.ModuleList"]
    assert unregistered(lambda: Holder(set_to(list), read)) == expected


# No false alarms --------------------------------------------------------------------------------------------------
class Distance(nn.Module):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.scale * (output - target)).square().mean()


def test_parameters_of_the_loss_are_no_part_of_the_model():
    hidden = Distance()
    for loss in (Distance(), Distance().forward, lambda output, target: hidden(output, target)):
        assert unregistered(linear, target=torch.zeros_like(INPUTS), loss=loss) == []


def test_a_model_that_computes_its_own_loss_owns_what_that_loss_reads():
    def read(model: Any, h: Tensor) -> Any:
        return SimpleNamespace(loss=model.held[0](h, torch.zeros_like(h)))

    found = unregistered(lambda: Holder(set_to(lambda: [Distance()]), read))
    assert found == [f"held[0].scale: ({WIDTH},) in a plain list: use nn.ModuleList"]


def test_tensors_of_the_inputs_belong_to_the_user():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()

        def forward(self, x: Tensor, other: Any) -> Tensor:
            return other.encoder(self.layer(x))

    assert unregistered(Reads, (INPUTS, SimpleNamespace(encoder=linear()))) == []
    assert unregistered(linear, INPUTS.clone().requires_grad_()) == []
    assert unregistered(linear, nn.Parameter(INPUTS.clone())) == []


class Force(nn.Module):
    """Differentiates an energy with respect to a displacement, a leaf that it makes and keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.displacement = torch.zeros_like(x).requires_grad_()
        energy = self.energy(x + self.displacement).sum()
        return torch.autograd.grad(energy, self.displacement, create_graph=True)[0] + self.energy(self.displacement + x)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


def changed(change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = plain()
        return change(model) or model

    return build


def tied(model: Any) -> None:
    model[2].weight = model[0].weight


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + w.T


class Ensemble(nn.Module):
    """Runs a module with copies of its own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()
        self.alias = [self.net]

    def forward(self, x: Tensor) -> Tensor:
        doubled = {name: 2 * parameter for name, parameter in self.net.named_parameters()}
        return torch.func.functional_call(self.net, doubled, (x,)) + self.alias[0](x)


class Teacher(nn.Module):
    """Keeps a frozen network out of its parameters, by a list."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = plain(), [plain().requires_grad_(requires_grad=False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) - self.teacher[0](x)


HEALTHY = {
    "plain": plain,
    "tied": changed(tied),
    "weight norm": changed(lambda m: parametrizations.weight_norm(m[0]) and None),
    "spectral norm": changed(lambda m: parametrizations.spectral_norm(m[0]) and None),
    "orthogonal": changed(lambda m: parametrizations.orthogonal(m[2]) and None),
    "own parametrization": changed(
        lambda m: parametrize.register_parametrization(m[0], "weight", Symmetric()) and None
    ),
    "hooked spectral norm": changed(lambda m: nn.utils.spectral_norm(m[0]) and None),
    "functional call and alias": Ensemble,
    "frozen teacher in a list": Teacher,
    "force": Force,
    "scripted": lambda: nn.Sequential(linear(), torch.jit.script(linear()), linear()),
    "attention": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY)
def test_no_healthy_model_is_listed(build):
    inputs = INPUTS[None] if build is HEALTHY["attention"] else INPUTS
    assert unregistered(build, inputs, loss=lambda y: y.square().mean()) == []


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_initial_states_that_the_engine_makes_are_not_listed(kind):
    inputs = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    assert unregistered(lambda: kind(WIDTH, WIDTH, batch_first=True), inputs, steps="time") == []


def test_a_model_that_sets_requires_grad_on_its_inputs_is_not_listed():
    class Sets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = plain()

        def forward(self, x: Tensor) -> Tensor:
            x.requires_grad = True
            return self.layer(x)

    assert unregistered(Sets) == []


def test_a_low_rank_adapter_beside_a_frozen_layer_is_registered():
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = linear().requires_grad_(requires_grad=False)
            self.A, self.B = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.zeros(WIDTH, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + F.linear(F.linear(x, self.A), self.B)

    assert unregistered(lambda: nn.Sequential(LowRank(), nn.Tanh(), LowRank())) == []


@pytest.mark.parametrize("preset", ["mlp", "cnn", "transformer", "rnn"])
def test_every_preset_fails_on_layers_in_a_list(preset):
    result = measure(lambda: Listed(list), INPUTS, seeds=1)
    with pytest.raises(AssertionError, match=r"(?s)unregistered_parameters.*hidden\[\*\]\.weight"):
        result.check(preset=preset)
    measure(lambda: Listed(nn.ModuleList), INPUTS, seeds=1).check(unregistered_parameters=at_most(0))
