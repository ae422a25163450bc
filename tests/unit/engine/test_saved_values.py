"""Each kind of value that a model may change in its forward pass is afterwards what it was."""

from __future__ import annotations

import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from undisturbed import bits

from pytest_trainability import measure
from pytest_trainability.engine import saved_values as saved
from pytest_trainability.engine.isolation import ModelState, preserved_model
from pytest_trainability.errors import ModelError

WIDTH = 4
INPUTS = torch.linspace(-1, 1, 8 * WIDTH).reshape(8, WIDTH)


def loss(output: Tensor) -> Tensor:
    return output.square().mean()


class Changing(nn.Module):
    """Two layers, and a change of anything in the forward pass."""

    def __init__(self, prepare: Callable[[Any], object], change: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.change = change
        self.first, self.norm, self.last = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1)
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        self.change(self, x)
        return self.last(torch.tanh(self.norm(self.first(x))))


# What can be seen ------------------------------------------------------------------------------------------------
def seen(value: Any, met: set[int] | None = None) -> Any:
    """Return all that a user can see of a value and of what it holds, compared by identity and to the last bit."""
    met = set() if met is None else met
    if isinstance(value, Tensor):
        return seen_of_tensor(value, met)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in met:
        return id(value)
    met.add(id(value))
    if isinstance(value, torch.jit.ScriptModule):
        names = ("training", "calls", "names")
        return bits(value.state_dict()), [getattr(value, name) for name in names if hasattr(value, name)]
    found: list[Any] = [id(value), type(value)]
    if isinstance(value, dict):
        found += [(key, seen(held, met)) for key, held in value.items()]
    elif isinstance(value, (list, tuple, deque)):
        found += [seen(held, met) for held in value]
    elif isinstance(value, (set, frozenset)):
        found.append(sorted(map(repr, value)))
    elif isinstance(value, np.ndarray):
        found.append(bits(value))
    elif isinstance(value, (torch.Generator, np.random.RandomState)):
        found.append(bits(value.get_state()))
    elif isinstance(value, random.Random):
        found.append(value.getstate())
    elif isinstance(value, (np.random.Generator, np.random.BitGenerator)):
        found.append(repr(getattr(value, "bit_generator", value).state))
    if isinstance(value, (nn.Module, SimpleNamespace)) or hasattr(value, "__dataclass_fields__"):
        slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
        found += [(name, seen(getattr(value, name), met)) for name in slots if hasattr(value, name)]
    if hasattr(value, "__dict__"):
        found += [(name, seen(held, met)) for name, held in vars(value).items()]
    return found


def seen_of_tensor(tensor: Tensor, met: set[int]) -> Any:
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        return id(tensor), type(tensor)
    numbers = tensor.detach().clone() if tensor.data_ptr() or not tensor.numel() else None
    gradient = seen(tensor.grad, met) if tensor.is_leaf else None
    flags = tensor.requires_grad, tensor.is_leaf, tensor._version, tensor.stride()
    hooks = [list(table or ()) for table in (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)]
    return (
        id(tensor),
        tuple(tensor.shape),
        bits(numbers),
        gradient,
        flags,
        hooks,
        [(name, seen(v, met)) for name, v in vars(tensor).items()],
    )


# Cases -----------------------------------------------------------------------------------------------------------
Pair = namedtuple("Pair", "numbers steps")


class Guarded(list[Any]):
    """Counts what is written to it."""

    def append(self, item: Any) -> None:
        self.written = getattr(self, "written", 0) + 1
        super().append(item)

    def clear(self) -> None:
        raise NotImplementedError


class Ordered(OrderedDict[str, Any]):
    """Refuses to be written to but by its own method."""

    def note(self, name: str, item: Any) -> None:
        super().__setitem__(name, item)

    def __setitem__(self, name: str, item: Any) -> None:
        raise NotImplementedError


@dataclass
class Memory:
    numbers: Tensor = field(default_factory=lambda: torch.zeros(2))
    steps: list[int] = field(default_factory=list)
    calls: int = 0


@dataclass(slots=True)
class SlottedMemory(Memory):
    last: int = 0


class Slotted(Changing):
    __slots__ = ("calls", "fresh")


class Averaged(nn.Module):
    """Replaces its buffer, as a moving average without ``no_grad`` in many models."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.calls = 0
        self.names = ["a"]

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + x.detach().mean(0)
        self.calls += 1
        self.names.append("b")
        return x


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def hold(value: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda m: setattr(m, "held", value())


def buffer(value: Callable[[], Tensor]) -> Callable[[Any], None]:
    return lambda m: m.register_buffer("held", value())


def hide(value: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda m: m.__dict__.update(held=value())


def grow(m: Any, x: Tensor) -> None:
    m.held.data = torch.cat([m.held.data, torch.ones(1)])


def use(m: Any, x: Tensor) -> None:
    (m.held * x).sum().backward()


def parametrize_once(register: Callable[[nn.Module], object]) -> Callable[[Any, Tensor], None]:
    return lambda m, x: None if hasattr(m.first, "parametrizations") else register(m.first) and None


def parametrize_bias_too(m: Any, x: Tensor) -> None:
    if "bias" not in m.first.parametrizations:
        parametrize.register_parametrization(m.first, "bias", Halved())


def view_before_base(m: Any) -> None:
    base = torch.zeros(1)
    m.register_buffer("view", base.expand(3))
    m.register_buffer("base", base)


def share_memory(m: Any) -> None:
    m.register_buffer("flat", torch.arange(WIDTH * WIDTH, dtype=torch.float32))
    m.first.weight.data = m.flat.view(WIDTH, WIDTH)


CASES: dict[str, tuple[Callable[[Any], object], Callable[[Any, Tensor], object]]] = {
    # Memory
    "a buffer of one entry that grows": (buffer(lambda: torch.zeros(1)), grow),
    "a buffer of two entries that grows": (buffer(lambda: torch.zeros(2)), grow),
    "a buffer that is resized": (buffer(lambda: torch.zeros(2)), lambda m, x: m.held.resize_(m.held.numel() + 1)),
    "a buffer that is transposed": (buffer(lambda: torch.arange(6.0).view(2, 3)), lambda m, x: m.held.t_()),
    "a buffer whose memory is freed": (buffer(lambda: torch.ones(3)), lambda m, x: m.held.untyped_storage().resize_(0)),
    "a buffer of other memory": (buffer(lambda: torch.ones(3)), lambda m, x: m.held.set_(torch.zeros(5))),
    "a buffer that is cast": (
        buffer(lambda: torch.ones(3)),
        lambda m, x: setattr(m.held, "data", m.held.data.double()),
    ),
    "the sign of zero": (buffer(lambda: torch.zeros(3)), lambda m, x: m.held.neg_()),
    "an expanded view before its base": (view_before_base, lambda m, x: m.base.add_(1)),
    "an expanded view": (hold(lambda: torch.zeros(1).expand(3)), lambda m, x: m.held[:1].add_(1)),
    "parameters in one flat buffer": (share_memory, lambda m, x: m.flat.mul_(0.9)),
    # Autograd
    "requires_grad of a buffer": (buffer(lambda: torch.ones(2)), lambda m, x: m.held.requires_grad_()),
    "requires_grad of an attribute": (hold(lambda: torch.ones(2)), lambda m, x: m.held.requires_grad_()),
    "the gradient of an attribute": (hold(lambda: torch.ones(WIDTH, requires_grad=True)), use),
    "a buffer that joins the graph": (buffer(lambda: torch.ones(WIDTH)), lambda m, x: m.held.add_(m.first(x).mean(0))),
    "a hook of a parameter": (hold(list), lambda m, x: m.first.weight.register_hook(lambda gradient: gradient)),
    "a second hook": (
        lambda m: m.first.weight.register_hook(lambda gradient: gradient),
        lambda m, x: m.first.weight.register_hook(lambda gradient: gradient),
    ),
    "a hook after accumulation": (
        hold(list),
        lambda m, x: m.first.weight.register_post_accumulate_grad_hook(lambda parameter: None),
    ),
    "an attribute of a parameter": (
        lambda m: setattr(m.first.weight, "steps", [1]),
        lambda m, x: (m.first.weight.steps.append(2), setattr(m.first.weight, "note", "seen")),
    ),
    # Containers
    "a tensor in a tuple": (hold(lambda: (torch.zeros(1),)), lambda m, x: m.held[0].add_(1)),
    "a tensor in a named tuple": (
        hold(lambda: Pair(torch.zeros(2), [1])),
        lambda m, x: (m.held.numbers.add_(1), m.held.steps.append(2)),
    ),
    "a tensor in tuples in lists": (hold(lambda: [(torch.zeros(1),)]), lambda m, x: m.held[0][0].add_(1)),
    "a tensor in a frozen set": (hold(lambda: frozenset([torch.zeros(1)])), lambda m, x: next(iter(m.held)).add_(1)),
    "a list with methods of its own": (hold(lambda: Guarded([1])), lambda m, x: m.held.append(2)),
    "a dictionary with methods of its own": (hold(lambda: Ordered()), lambda m, x: m.held.note("step", torch.ones(1))),
    "a dictionary that is named as hooks": (
        lambda m: setattr(m, "own_hooks", {"steps": [1], "numbers": torch.zeros(1)}),
        lambda m, x: (m.own_hooks["steps"].append(2), m.own_hooks["numbers"].add_(1), m.own_hooks.update(new=1)),
    ),
    "a set that is named as hooks": (lambda m: setattr(m, "own_hooks", {1}), lambda m, x: m.own_hooks.add(2)),
    "several containers": (
        hold(lambda: {"counts": Counter("ab"), "lists": defaultdict(list, a=[1]), "window": deque([1], maxlen=2)}),
        lambda m, x: (m.held["counts"].update("bc"), m.held["lists"]["b"].append(1), m.held["window"].append(x)),
    ),
    "a namespace": (
        hold(lambda: SimpleNamespace(calls=0, numbers=torch.zeros(1))),
        lambda m, x: (m.held.numbers.add_(1), setattr(m.held, "calls", 1), setattr(m.held, "new", 1)),
    ),
    "a dataclass": (
        hold(Memory),
        lambda m, x: (m.held.numbers.add_(1), m.held.steps.append(1), setattr(m.held, "calls", m.held.calls + 1)),
    ),
    "a dataclass with slots": (
        hold(SlottedMemory),
        lambda m, x: (m.held.numbers.add_(1), m.held.steps.append(1), setattr(m.held, "last", m.held.last + 1)),
    ),
    "an array": (hold(lambda: np.zeros(2)), lambda m, x: m.held.__iadd__(1)),
    "an array that is resized": (hold(lambda: np.zeros(2)), lambda m, x: m.held.resize(3, refcheck=False)),
    # Generators
    "a generator of torch": (
        hold(lambda: torch.Generator().manual_seed(1)),
        lambda m, x: torch.rand(1, generator=m.held),
    ),
    "a generator of Python": (hold(lambda: random.Random(1)), lambda m, x: m.held.random()),
    "a generator of numpy": (hold(lambda: np.random.default_rng(1)), lambda m, x: m.held.random()),
    "a bit generator of numpy": (hold(lambda: np.random.MT19937(1)), lambda m, x: m.held.random_raw()),
    "an older generator of numpy": (hold(lambda: np.random.RandomState(1)), lambda m, x: m.held.rand()),
    # Modules
    "a module in a list": (hold(lambda: [nn.BatchNorm1d(WIDTH)]), lambda m, x: m.held[0](x)),
    "a module in the dictionary": (hide(lambda: nn.BatchNorm1d(WIDTH)), lambda m, x: m.held(x)),
    "a scripted module": (hold(lambda: torch.jit.script(Averaged())), lambda m, x: (m.held(x), m.held.eval())),
    "a scripted normalization": (hold(lambda: torch.jit.script(nn.BatchNorm1d(WIDTH))), lambda m, x: m.held(x)),
    "a scripted module in a list": (hold(lambda: [torch.jit.script(Averaged())]), lambda m, x: m.held[0](x)),
    "another class": (hold(list), lambda m, x: setattr(m.norm, "__class__", nn.BatchNorm2d) or m.norm.__class__),
    "weight normalization": (hold(list), parametrize_once(parametrizations.weight_norm)),
    "orthogonal weights": (hold(list), parametrize_once(parametrizations.orthogonal)),
    "spectral normalization": (hold(list), parametrize_once(parametrizations.spectral_norm)),
    "another parametrization": (
        hold(list),
        parametrize_once(lambda layer: parametrize.register_parametrization(layer, "weight", Halved())),
    ),
    "a second parametrization": (lambda m: parametrizations.weight_norm(m.first), parametrize_bias_too),
    "a parametrization that is removed": (
        lambda m: parametrizations.weight_norm(m.first),
        lambda m, x: (
            parametrize.remove_parametrizations(m.first, "weight") if parametrize.is_parametrized(m.first) else None
        ),
    ),
}
BREAKING = {"another class", "a buffer whose memory is freed"}
"""Cases after whose change the forward pass fails, or the process ends when the buffer is read."""


def changing(case: str) -> Changing:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit")  # deprecated
        return Changing(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_what_a_model_changes_is_restored_several_times(case: str) -> None:
    model = changing(case)
    before, state = seen(model), ModelState(model)
    for _ in range(2):
        with state.kept():
            CASES[case][1](model, INPUTS)
            assert seen(model) != before
        assert seen(model) == before


@pytest.mark.parametrize("case", [case for case in CASES if case not in BREAKING])
def test_a_measured_model_is_restored_and_can_run(case: str) -> None:
    model = changing(case)
    before = seen(model)
    measure(model, INPUTS, loss=loss, measures=("gradient_norm", "loss_drop"))
    assert seen(model) == before
    assert model(INPUTS).isfinite().all()


def test_slots_of_a_module_are_restored() -> None:
    """Filled ones and empty ones."""
    model = Slotted(lambda m: setattr(m, "calls", 0), lambda m, x: (setattr(m, "calls", 1), setattr(m, "fresh", 1)))
    measure(model, INPUTS)
    assert model.calls == 0 and not hasattr(model, "fresh")


def test_a_lazy_model_that_its_factory_keeps_is_lazy_again() -> None:
    kept = nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d(), nn.Linear(WIDTH, 1))
    before = seen(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "under heavy development"
        measure(lambda: kept, INPUTS, seeds=1)
    assert seen(kept) == before
    assert kept(torch.ones(5, WIDTH + 1)).shape == (5, 1)


def test_gradients_of_tensors_and_parameters_come_back_together() -> None:
    """A gradient that the model also keeps as an attribute, and that is cast with its parameter."""
    model = nn.Sequential(nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    model.kept = model[0].weight.grad
    before = seen(model)
    with preserved_model(model):
        model.double()
        model(torch.ones(1, 2).double()).sum().backward()
        model[0].weight.grad = None
    assert seen(model) == before
    assert model.kept is model[0].weight.grad


def sparse(size: int) -> Tensor:
    return torch.eye(size).to_sparse()


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])


def quantized(size: int) -> Tensor:
    return torch.quantize_per_tensor(torch.ones(size), 0.5, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # "in beta state"
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: sparse(2), lambda tensor: setattr(tensor, "data", sparse(3))),
        (lambda: sparse(2), lambda tensor: tensor.mul_(2)),
        (nested, lambda tensor: tensor.mul_(2)),
        (lambda: quantized(2), lambda tensor: setattr(tensor, "data", quantized(3))),
    ],
    ids=["sparse, other entries", "sparse, other numbers", "nested", "quantized"],
)
def test_tensors_whose_memory_cannot_be_compared_are_restored(
    make: Callable[[], Tensor], change: Callable[[Tensor], object]
) -> None:
    """Several times."""
    model = nn.Linear(1, 1)
    model.register_buffer("held", make())
    before, state = repr(model.held), ModelState(model)
    for _ in range(2):
        with state.kept():
            change(model.held)
            assert repr(model.held) != before
        assert repr(model.held) == before


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("size", [3, 5000, 5001])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_numbers_are_compared_to_the_last_bit(dtype: torch.dtype, size: int, offset: int) -> None:
    """Many of them are read as wider integers, which need not fit the place or the number of entries."""
    numbers = torch.zeros(size + offset, dtype=dtype)[offset:]
    numbers[0] = torch.nan
    others = numbers.clone()
    assert saved._are_equal(numbers, others)
    others[-1] = -0.0
    assert not saved._are_equal(numbers, others)
    assert saved._are_equal(others, others.clone())


def test_memory_that_is_freed_is_not_read() -> None:
    """A model may free it until it is needed, and bring it back in the run."""
    model = nn.Linear(1, 1)
    model.register_buffer("held", torch.ones(3))
    model.held.untyped_storage().resize_(0)
    with preserved_model(model):
        model.held.untyped_storage().resize_(12)
        model.held.fill_(2)
    assert model.held.shape == (3,) and model.held.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("left", [0, 8])
def test_memory_that_several_tensors_share_and_that_is_freed_comes_back(left: int) -> None:
    """Also if a part of it is left, and whichever tensor is restored first."""
    model, flat = nn.Linear(1, 1), torch.arange(8.0)
    for name, part in {"first": flat[:3], "all": flat, "last": flat[3:]}.items():
        model.register_buffer(name, part)
    before = seen(model)
    with preserved_model(model):
        flat.untyped_storage().resize_(left)
    assert seen(model) == before
    flat[0] = 5
    assert model.first[0] == model.all[0] == 5


def test_a_view_that_joins_the_graph_gets_its_numbers_back() -> None:
    """PyTorch cannot take a view out of a graph. This is no reason to fail."""
    model = nn.Linear(2, 2)
    model.register_buffer("part", torch.zeros(4)[:2])
    with preserved_model(model):
        model.part.add_(model.bias)
    assert model.part.tolist() == [0, 0]


# What is left alone ----------------------------------------------------------------------------------------------
class Counted:
    """An object of a class of its own."""

    def __init__(self) -> None:
        self.calls, self.steps, self.norm = 0, [1], nn.BatchNorm1d(WIDTH)


def test_what_other_objects_hold_stays_as_the_run_has_left_it() -> None:
    """As the docs say. Which object it is comes back."""
    model = nn.Linear(WIDTH, WIDTH)
    model.counted = counted = Counted()
    with preserved_model(model):
        counted.calls += 1
        counted.steps.append(2)
        model.counted = None
    assert model.counted is counted
    assert (counted.calls, counted.steps) == (1, [1, 2])


def test_activations_that_a_model_keeps_are_not_copied() -> None:
    """They are no state of the model, and may be large."""
    model = nn.Linear(WIDTH, WIDTH)
    model.kept = model(INPUTS)
    assert not any(part.value is model.kept for part in saved.saved_values(model))
    model.register_buffer("held", model(INPUTS))
    assert any(part.value is model.held for part in saved.saved_values(model))


def test_generators_of_the_process_are_left_to_others() -> None:
    """A model that keeps one does not hide that numbers were drawn."""
    model = nn.Linear(1, 1)
    model.held = [torch.default_generator, random.getstate.__self__, np.random.get_state.__self__]
    assert not any(isinstance(part, saved.SavedGenerator) for part in saved.saved_values(model))
    model.own = random.Random(1)
    assert sum(isinstance(part, saved.SavedGenerator) for part in saved.saved_values(model)) == 1
    model.system = random.SystemRandom()  # has no state
    assert sum(isinstance(part, saved.SavedGenerator) for part in saved.saved_values(model)) == 1


def test_arrays_that_cannot_be_written_and_files_are_not_copied(tmp_path: Any) -> None:
    model = nn.Linear(1, 1)
    model.constant = np.ones(2)
    model.constant.flags.writeable = False
    model.file = np.memmap(tmp_path / "numbers", dtype=np.float32, mode="w+", shape=(2,))
    assert not any(isinstance(part, saved.SavedArray) for part in saved.saved_values(model))


def test_objects_that_pretend_to_be_of_another_class_are_asked_nothing() -> None:
    class Pretending:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            raise RuntimeError

    model = nn.Linear(1, 1)
    model.__dict__["held"] = Pretending()
    before = model.weight.detach().clone()
    with preserved_model(model):
        model.weight.data.zero_()
    assert torch.equal(model.weight, before)


def test_cycles_and_shared_values_are_saved_once() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model.held = [model, {"again": model[0]}]
    model.held.append(model.held)
    model[0].parent = (model,)
    values = [part.value for part in saved.saved_values(model)]
    assert len(values) == len({id(value) for value in values})
    assert sum(value is model[0] for value in values) == 1


# Whatever happens ------------------------------------------------------------------------------------------------
class Unruly:
    """A key that cannot be hashed once it is told so."""

    refuses = False

    def __hash__(self) -> int:
        if self.refuses:
            msg = "no hash"
            raise TypeError(msg)
        return 1


class Everything(nn.Module):
    """Makes all changes of the cases, and then raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(changing(case) for case in CASES)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        for part, (_, change) in zip(self.parts, CASES.values()):
            change(part, x)
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_everything_is_restored_after_an_error_of_the_forward_pass(error: BaseException) -> None:
    model = Everything(error)
    before = seen(model)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ModelError):
        measure(model, INPUTS, loss=loss)
    assert seen(model) == before


def change_and_refuse(model: Everything, part: Changing, item: Unruly) -> None:
    with preserved_model(model):
        model(INPUTS)
        part.unruly.clear()
        part.first.weight.detach().add_(1)
        item.refuses = True


@pytest.mark.parametrize("place", [0, len(CASES) // 2, len(CASES) - 1])
def test_all_else_is_restored_if_one_part_cannot_be(place: int) -> None:
    """The error names the part, and what the model can do."""
    model = Everything()
    item = Unruly()
    model.parts[place].unruly = OrderedDict({item: 1})
    before = [seen(part) for number, part in enumerate(model.parts) if number != place]
    version = model.parts[place].first.weight._version
    with pytest.raises(ModelError, match=r"'unruly' of Changing did not: TypeError: no hash\. .* A factory") as caught:
        change_and_refuse(model, model.parts[place], item)
    assert isinstance(caught.value.__cause__, TypeError)
    assert [seen(part) for number, part in enumerate(model.parts) if number != place] == before
    assert model.parts[place].first.weight._version == version


def test_items_of_sets_and_keys_of_dictionaries_are_not_hashed_again() -> None:
    model, item = nn.Linear(1, 1), Unruly()
    model.held = [{item}, {item: 1}]
    with preserved_model(model):
        for container in model.held:
            container.clear()
        item.refuses = True
    assert [len(container) for container in model.held] == [1, 1]


def test_an_error_of_the_model_comes_before_one_of_restoring() -> None:
    """The latter is a note of it, in Pythons that have notes."""
    model, item = nn.Linear(1, 1), Unruly()
    model.held = OrderedDict({item: 1})

    def fail() -> None:
        with preserved_model(model):
            model.held.clear()
            item.refuses = True
            raise KeyError

    with pytest.raises(KeyError) as caught:
        fail()
    notes = getattr(caught.value, "__notes__", ["'held' of Linear"])
    assert len(notes) == 1 and "'held' of Linear" in notes[0]


@pytest.mark.parametrize("part", range(4))
def test_all_is_restored_if_the_user_interrupts_the_restoring(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives once, in one part of the model's state."""
    model = nn.BatchNorm1d(WIDTH)
    model.held = [1]
    before, state = seen(model), ModelState(model)
    kind = type(state._saved[part])
    original, left = kind.restore, [state._saved[part]]

    def interrupted(self: Any) -> None:
        if self in left:
            left.clear()
            raise KeyboardInterrupt
        original(self)

    def run() -> None:
        with state.kept():
            model(INPUTS)
            model.held.append(2)

    monkeypatch.setattr(kind, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not left and seen(model) == before
