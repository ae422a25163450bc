"""Optimizer steps: with every kind of optimizer, without a trace on the model, and with clear errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability import Measure, Need, Run, Stage, measure
from pytest_trainability.engine.runs.objective import Objective
from pytest_trainability.engine.runs.training import Training, _adamw, changes, outputs_of_modules
from pytest_trainability.errors import InapplicableError, ModelError, UsageError
from pytest_trainability.measures import MEASURES

WIDTH, CLASSES, BATCH = 5, 3, 6
EVERYTHING = ("update_ratio", "loss_drop", "waking_step", "asleep_parameters")
LABELS = torch.arange(BATCH) % CLASSES


def vectors() -> Tensor:
    return torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH).sin()


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)
    )


def probe(model: Any = mlp, *measures: str, inputs: Any = None, **settings: Any) -> Any:
    given = {"inputs": vectors() if inputs is None else inputs, "loss": F.cross_entropy, "target": LABELS, **settings}
    return measure(model, measures=measures or EVERYTHING, **given)


def muon(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon([p for p in parameters if p.dim() == 2], lr=0.01)


def quasi_newton(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make an optimizer that evaluates the loss several times per step."""
    return torch.optim.LBFGS(parameters, max_iter=5, line_search_fn="strong_wolfe")


def groups(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Weights decay and biases do not, so that the function iterates over the parameters twice."""
    decaying = [p for p in parameters if p.dim() >= 2]
    rest = [p for p in parameters if p.dim() < 2]
    return torch.optim.AdamW([{"params": decaying}, {"params": rest, "weight_decay": 0.0}], lr=1e-2)


OPTIMIZERS = [
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adafactor,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.NAdam,
    quasi_newton,
    muon,
    groups,
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.__name__)
def test_optimizers_of_every_kind(optimizer):
    if optimizer is muon and not hasattr(torch.optim, "Muon"):
        pytest.skip("this version of torch has no Muon")
    found = probe(optimizer=optimizer, seeds=2)
    assert found.loss_drop > 0
    assert found.update_ratio.matching("*.weight") > 0
    assert all(step == 0 for step in found.waking_step.values())
    assert not found.asleep_parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_the_default_optimizer_takes_the_steps_of_adamw(dtype: torch.dtype) -> None:
    """One kernel computes them for the real types of common precision. Squares of rounded gradients differ by a few roundings."""
    parameters = [nn.Parameter(torch.linspace(-1, 1, 12).to(dtype)) for _ in range(2)]
    optimizer, another = _adamw(parameters[:1]), torch.optim.AdamW(parameters[1:], lr=1e-3)
    assert bool(optimizer.defaults["fused"]) == (dtype in {torch.float32, torch.float64})
    for step in range(1, 4):
        for parameter in parameters:
            parameter.grad = (torch.linspace(-2, 1, 12) * step).to(dtype)
        optimizer.step()
        another.step()
    torch.testing.assert_close(parameters[0], parameters[1], rtol=16 * torch.finfo(dtype).eps, atol=0)


def test_sparse_gradients():
    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(7, WIDTH, sparse=True), nn.Linear(WIDTH, CLASSES).requires_grad_(False))

    ids = torch.arange(BATCH) % 5
    found = probe(build, inputs=ids, optimizer=torch.optim.SparseAdam, steps=nn.Linear)
    assert found.update_ratio["0.weight"] > 0
    assert found.waking_step["0.weight"] == 0
    with pytest.raises(UsageError, match=r"AdamW.step raised RuntimeError(?s:.*)SparseAdam and SGD take them"):
        probe(build, inputs=ids, steps=nn.Linear)


def test_measures_are_the_same_alone_and_together():
    together = probe(mlp, *EVERYTHING, "sharpness", "gradient_norm", "lyapunov_max", seeds=2)
    alone = probe(mlp, "gradient_norm", seeds=2)
    for name in EVERYTHING[:3]:
        one, other = getattr(together, name), getattr(alone, name)
        values = (lambda x: {n: e.values for n, e in x.items()}) if name != "loss_drop" else (lambda x: x.values)
        assert values(one) == values(other)


def test_an_optimizer_is_made_only_if_a_measure_needs_it():
    made = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(len(parameters))
        return torch.optim.SGD(parameters, lr=0.1)

    probe(mlp, "waking_step", optimizer=optimizer)
    assert made == []  # all gradients are there at initialization: no step is needed
    probe(mlp, "update_ratio", optimizer=optimizer, seeds=2)
    assert made == [6, 6] * 2  # twice for each seed, to see that each is a new one


def test_an_existing_optimizer_is_refused():
    """It would keep its momentum from one training to the next, and is the user's own."""
    model = mlp()
    own = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for name in ("loss_drop", "update_ratio"):
        with pytest.raises(
            UsageError, match=r"must make a new optimizer each time it is called. `<lambda>` returned the same SGD"
        ):
            probe(model, name, optimizer=lambda _: own)
    assert not own.state


# Restored state ----------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Has all that training changes: weights, statistics, a counter, dropout, and an LSTM's flat weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.dropout = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2)
        self.lstm, self.head = nn.LSTM(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.calls = 0
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.lstm(self.dropout(self.norm(self.first(x)))[None])[0][0])


@pytest.mark.parametrize(
    "optimizer",
    [None, quasi_newton, lambda p: torch.optim.SGD(p, lr=1e30)],
    ids=["default", "quasi-Newton", "diverges"],
)
def test_a_finished_module_is_left_as_it_was(optimizer):
    torch.manual_seed(0)
    model = Counting()
    model.norm.weight.grad = torch.full((WIDTH,), 3.0)
    grad = model.norm.weight.grad
    model.first.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    probe(model, *EVERYTHING, "sharpness", optimizer=optimizer, steps="layers")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert model.calls == 0
    assert model.norm.weight.grad is grad and bool((grad == 3).all())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "norm.weight")
    assert not model.first.bias.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_an_optimizer_may_change_gradients_in_place():
    """Other measures still need the gradients of the run, so the optimizer gets copies."""

    def clipped(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        class Clipped(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                nn.utils.clip_grad_norm_(parameters, 1e-6)
                return super().step(closure)

        return Clipped(parameters, lr=0.1)

    measures = "update_ratio", "gradient_norm", "relative_gradient_norm"
    torch.manual_seed(0)
    model = mlp()
    one, other = (probe(model, *measures, optimizer=o).gradient_norm for o in (clipped, None))
    assert {n: e.values for n, e in one.items()} == {n: e.values for n, e in other.items()}


def test_existing_gradients_do_not_matter():
    model = mlp()
    clean = probe(model, "update_ratio")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    assert {n: e.values for n, e in probe(model, "update_ratio").update_ratio.items()} == {
        n: e.values for n, e in clean.update_ratio.items()
    }


# Numbers that are not finite ---------------------------------------------------------------------------------------


class Undefined(nn.Module):
    """The gradient of its first weight is NaN. Everything else is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.layers[0].weight.register_hook(lambda gradient: gradient * math.nan)

    def forward(self, x: Tensor) -> Tensor:
        if not bool(torch.isfinite(self.layers[0].weight).all()):
            msg = "probabilities must be finite"
            raise ValueError(msg)
        return self.layers(x)


def raising(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make an optimizer that refuses gradients that are not finite."""

    class Careful(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if any(not bool(p.grad.isfinite().all()) for group in self.param_groups for p in group["params"]):
                msg = "gradients must be finite"
                raise RuntimeError(msg)
            return super().step(closure)

    return Careful(parameters, lr=0.1)


@pytest.mark.parametrize("optimizer", [None, raising], ids=["steps", "refuses"])
def test_gradients_that_are_not_finite_give_nan_and_no_exception(optimizer):
    found = probe(Undefined, optimizer=optimizer)
    assert all(math.isnan(ratio) for ratio in found.update_ratio.values())
    assert math.isnan(found.loss_drop)
    assert all(step == 0 for step in found.waking_step.values())  # undefined is not zero


def test_a_parameter_whose_gradient_is_unknown_is_not_asleep():
    def build() -> nn.Module:
        model = Undefined()
        nn.init.zeros_(model.layers[2].weight)
        return model

    found = probe(build, "waking_step", "asleep_parameters", optimizer=lambda p: torch.optim.SGD(p, lr=math.inf))
    assert math.isnan(found.waking_step["layers.0.bias"])
    assert not found.asleep_parameters


# Errors ------------------------------------------------------------------------------------------------------------


def another(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make an optimizer of another model."""
    return torch.optim.SGD(mlp().parameters(), lr=0.1)


REFUSED: list[Any] = [
    (lambda p: torch.optim.SGD(p, lr=-1), "raised ValueError: Invalid learning rate"),
    (lambda p, rate: torch.optim.SGD(p, rate), "Bind further arguments in a lambda"),
    (lambda p: "sgd", "returned str"),
    (another, "`another` holds no parameter of Sequential"),
    pytest.param(
        lambda p: torch.optim.Muon(p),
        "2D",
        marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this version of torch has no Muon"),
    ),
]


@pytest.mark.parametrize(("optimizer", "said"), REFUSED)
def test_a_function_that_makes_no_optimizer_is_refused(optimizer, said):
    with pytest.raises(UsageError, match=f"optimizer must be a function of the parameters(?s:.*){said}"):
        probe(mlp, "update_ratio", optimizer=optimizer)


def test_a_model_that_does_not_run_after_a_step_is_named():
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.start = mlp(), None

        def forward(self, x: Tensor) -> Tensor:
            weight = self.layers[0].weight.detach()
            self.start = weight.clone() if self.start is None else self.start
            if not torch.equal(weight, self.start):
                msg = "weights have moved"
                raise RuntimeError(msg)
            return self.layers(x)

    with pytest.raises(
        ModelError, match=r"again after an optimizer step\. Once raised RuntimeError: weights have moved\."
    ):
        probe(Once, "loss_drop")


def test_the_drop_of_a_loss_needs_a_loss():
    with pytest.raises(InapplicableError, match="loss_drop needs a loss"):
        print(measure(mlp, vectors()).loss_drop)


def test_without_trainable_parameters_there_are_no_updates():
    model = mlp().requires_grad_(False)
    found = measure(model, vectors(), measures=["update_ratio", "waking_step", "asleep_parameters"])
    assert not found.update_ratio and not found.waking_step and not found.asleep_parameters
    with pytest.raises(InapplicableError, match="parameters to train"):
        print(measure(copy.deepcopy(model), vectors(), loss=torch.sum).loss_drop)


# Changes ------------------------------------------------------------------------------------------------------------


def test_changes_are_root_mean_squares_over_all_tensors_of_a_call():
    before = {"a": [torch.zeros(2), torch.zeros(2, 2)], "b": [torch.ones(3)], "c": [torch.ones(2)], "d": [], "e": []}
    after = {"a": [torch.tensor([3.0, 3.0]), torch.full((2, 2), 0.0)], "b": [torch.ones(3)], "c": [torch.ones(3)]}
    found = changes(before, after)
    assert found["a"] == pytest.approx(math.sqrt(2 * 9 / 6))
    assert found["b"] == 0
    assert math.isnan(found["c"]), "another shape"
    assert "d" not in found, "no elements"


def test_outputs_are_those_of_each_call_by_module():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Any:
            return self.layer(self.layer(x)), torch.arange(3)

    found = {}

    def provide(run: Run) -> float:
        found.update(outputs_of_modules(Objective.of(run)))
        return 0.0

    measure(
        Twice, vectors(), seeds=1, steps="layers", loss=lambda output: output[0].sum(), measures=[added_by(provide)]
    )
    assert list(found) == ["layer", "layer[1]", "output"]
    assert [len(tensors) for tensors in found.values()] == [1, 1, 1], "integers are no outputs"
    assert torch.equal(found["layer[1]"][0], found["output"][0])


def added_by(provide: Callable[[Run], float]) -> str:
    need = Need("provided", provide, Stage.RERUN)
    MEASURES["provided"] = Measure("provided", "scalar", "", "linear", frozenset({need}), lambda run: run[need])
    return "provided"


@pytest.fixture(autouse=True)
def only_registered_measures():
    yield
    MEASURES.pop("provided", None)


def test_steps_end_once_a_parameter_is_not_finite_and_leave_no_gradients():
    taken = []

    class Diverging(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            taken.append(len(taken))
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.inf if len(taken) == 2 else 0.5)

    def provide(run: Run) -> float:
        training = Training(Objective.of(run), lambda parameters: Diverging(parameters, lr=0.1))
        training.take(5)
        assert all(p.grad is None for p in training.parameters.values())
        return 0.0

    measure(mlp, vectors(), seeds=1, loss=F.cross_entropy, target=LABELS, measures=[added_by(provide)])
    assert taken == [0, 1]


def test_each_step_draws_new_masks_and_every_training_the_same():
    def provide(run: Run) -> float:
        training = Training.of(run)
        losses = []
        for step in (0, 1, 0):
            training.draw_anew(step)
            losses.append(float(training.loss().detach()))
        assert losses[0] == losses[2] != losses[1]
        return 0.0

    build = lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Dropout(0.5), nn.Linear(64, CLASSES))  # noqa: E731
    measure(build, vectors(), seeds=1, loss=F.cross_entropy, target=LABELS, measures=[added_by(provide)])


class Configured(nn.Module):
    """Has the methods of a LightningModule."""

    def __init__(self, pack: Any = lambda optimizer: optimizer, rate: float = 0.5) -> None:
        super().__init__()
        self.layers, self.pack, self.rate = nn.Linear(3, 3), pack, rate

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return self.pack(torch.optim.SGD(self.parameters(), lr=self.rate))


@pytest.mark.parametrize(
    "pack",
    [
        lambda optimizer: optimizer,
        lambda optimizer: [optimizer],
        lambda optimizer: ([optimizer], []),
        lambda optimizer: {"optimizer": optimizer, "lr_scheduler": None},
        lambda optimizer: [{"optimizer": optimizer}],
    ],
    ids=["optimizer", "list", "with schedulers", "dict", "list of dicts"],
)
def test_the_optimizer_of_a_lightning_module_takes_the_steps(pack: Any) -> None:
    found = measure(lambda: Configured(pack), torch.ones(2, 3), seeds=1).update_ratio
    given = measure(Configured, torch.ones(2, 3), seeds=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.5)).update_ratio
    assert [e.values for e in found.values()] == [e.values for e in given.values()]


def test_several_optimizers_of_a_lightning_module_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"it returned 2 optimizers, .* Pass optimizer=, a function of the parameters\."
    ):
        measure(lambda: Configured(lambda optimizer: [optimizer] * 2), torch.ones(2, 3), seeds=1).update_ratio  # noqa: B018


def test_a_method_with_arguments_or_without_a_training_step_is_no_configuration() -> None:
    """NanoGPT's method of the same name takes weight decay and learning rate."""

    class Other(nn.Linear):
        def configure_optimizers(self, weight_decay: float) -> Any:
            raise AssertionError

    assert measure(lambda: Other(3, 3), torch.ones(2, 3), seeds=1).update_ratio
