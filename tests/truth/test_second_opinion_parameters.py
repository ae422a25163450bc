"""Measures of losses, gradients, curvature and first steps, against their definitions written out once more.

Everything here is computed the long way, by nothing of the package: one backward pass a sample, a dense Hessian row by row, a
dense Jacobian and its singular values, a training loop as a user writes it. The models are those that the long way and the short
one are likely to disagree on: tied and frozen weights, zeros by design, parametrizations, checkpoints, losses of many kinds.
"""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from pytest_trainability import InapplicableError, TrainabilityFailure, at_least, measure, width_sweep

# Models -----------------------------------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high, *shape, seed=1):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def mlp(entering=5, units=6, leaving=3):
    layers = (nn.Linear(entering, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(), nn.Linear(units, leaving))
    return nn.Sequential(*layers)


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.block(self.table(tokens)))


class OfTwoInputs(nn.Module):
    """Takes keywords only; its loss is its own."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Bilinear(3, 4, 5), nn.Linear(5, 3)

    def forward(self, *, left, right, labels):
        logits = self.head(torch.tanh(self.mix(left, right)))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@dataclasses.dataclass
class Answer:
    loss: torch.Tensor
    prediction: torch.Tensor


class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, y):
        prediction = self.body(x)
        return Answer(F.mse_loss(prediction, y), prediction)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(3, 3, 2, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Cubic(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3 / 3 + x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x * x + 1)


class WithCubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(Cubic.apply(self.a(x)))


class ReZero(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 3)
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        for gate, layer in zip(self.gates, self.layers):
            x = x + gate * torch.tanh(layer(x))
        return self.head(x)


class Modulated(nn.Module):
    """A diffusion transformer's zeros: modulation and head."""

    def __init__(self):
        super().__init__()
        self.enter, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.modulation, self.norm = nn.Linear(2, 12), nn.LayerNorm(4, elementwise_affine=False)
        for zero in (*self.modulation.parameters(), *self.head.parameters()):
            nn.init.zeros_(zero)

    def forward(self, x, condition):
        x = self.enter(x)
        scale, shift, gate = self.modulation(condition).chunk(3, -1)
        x = x + gate * torch.tanh(self.layer(self.norm(x) * (1 + scale) + shift))
        return self.head(self.norm(x))


class Adapted(nn.Module):
    """A frozen backbone with an update of low rank."""

    def __init__(self):
        super().__init__()
        self.frozen, self.head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 3).requires_grad_(False)
        self.A, self.B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.B.weight)

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x) + self.B(self.A(x))))


def one_bias():
    model = mlp().requires_grad_(False)
    model[2].bias.requires_grad_(True)
    return model


def orthogonal():
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))


def weight_normed():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def ignoring(output, labels):
    return F.cross_entropy(output.flatten(0, 1), labels.flatten(), ignore_index=-100)


def with_penalty(output, labels):
    return F.cross_entropy(output, labels) + 0.1 * output.square().mean()


LABELS, SMOOTH = integers(3, 4), nn.CrossEntropyLoss(label_smoothing=0.1)
PARTLY = integers(7, 3, 5).masked_fill(integers(2, 3, 5, seed=2) == 1, -100)
MANY = (normal(4, 3, seed=2) > 0).double()

CASES = {
    "labels of many kinds": (mlp, normal(4, 5), F.binary_cross_entropy_with_logits, MANY),
    "two samples": (mlp, normal(2, 5), SMOOTH, integers(3, 2)),
    "sum": (mlp, normal(4, 5), nn.CrossEntropyLoss(reduction="sum"), LABELS),
    "penalty": (mlp, normal(4, 5), with_penalty, LABELS),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), normal(4, 5), F.cross_entropy, LABELS),
    "tied, ignored labels": (TiedLanguageModel, integers(7, 3, 5), ignoring, PARTLY),
    "keywords": (OfTwoInputs, {"left": normal(4, 3), "right": normal(4, 4), "labels": LABELS}, None, None),
    "dataclass": (Answers, (normal(4, 5), normal(4, 3, seed=9)), None, None),
    "checkpoint": (Checkpointed, normal(4, 4), F.mse_loss, normal(4, 4, seed=5)),
    "LSTM": (Recurrent, normal(3, 4, 3), F.cross_entropy, integers(2, 3)),
    "custom function": (WithCubic, normal(4, 4), F.cross_entropy, LABELS),
    "orthogonal": (orthogonal, normal(4, 4), F.cross_entropy, LABELS),
    "ReZero": (ReZero, normal(4, 4), F.cross_entropy, LABELS),
    "adaLN-zero": (Modulated, (normal(4, 4), normal(4, 2, seed=8)), F.mse_loss, normal(4, 4, seed=5)),
    "LoRA": (Adapted, normal(4, 4), F.cross_entropy, LABELS),
    "one bias": (one_bias, normal(4, 5), F.cross_entropy, LABELS),
}


# The long way -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class LongWay:
    model: nn.Module
    inputs: object
    criterion: object
    target: object

    def run(self, sample=None):
        """Return outputs and loss, of one sample or of all."""
        rows = slice(None) if sample is None else slice(sample, sample + 1)
        if isinstance(self.inputs, dict):
            output = self.model(**{name: t[rows] for name, t in self.inputs.items()})
        else:
            given = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
            output = self.model(*(t[rows] for t in given))
        if self.criterion is None:
            loss = output["loss"] if isinstance(output, dict) else output.loss
            return (output["logits"] if isinstance(output, dict) else output.prediction), loss
        return output, self.criterion(output, self.target[rows])

    @property
    def parameters(self):
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def gradient(self, scalar, *, differentiable=False):
        """Differentiate by all trainable parameters; zeros where nothing depends on one."""
        if not scalar.requires_grad:
            return {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        keywords = {"allow_unused": True, "retain_graph": True, "create_graph": differentiable}
        found = torch.autograd.grad(scalar, list(self.parameters.values()), **keywords)
        return {n: torch.zeros_like(p) if t is None else t for t, (n, p) in zip(found, self.parameters.items())}

    def per_sample(self):
        count = len(self.target if self.target is not None else next(iter(_flat(self.inputs))))
        found = [self.gradient(self.run(sample)[1]) for sample in range(count)]
        return {name: torch.stack([g[name].flatten() for g in found]) for name in self.parameters}

    def hessian(self):
        with sdpa_kernel(SDPBackend.MATH):
            gradient = flattened(self.gradient(self.run()[1], differentiable=True))
            return torch.stack([flattened(self.gradient(entry)) for entry in gradient])

    def jacobian(self):
        return torch.stack([flattened(self.gradient(entry)) for entry in self.run()[0].flatten()])

    def train(self, make, steps):
        """Yield loss and gradients, each followed by an optimizer step."""
        optimizer = make(self.parameters.values())
        for _ in range(steps):
            loss = self.run()[1]
            gradients = self.gradient(loss)
            yield float(loss.detach()), gradients

            def closure():
                again = self.run()[1]
                for name, g in self.gradient(again).items():
                    self.parameters[name].grad = g
                return again.detach()

            closure()
            optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()


def _flat(inputs):
    return inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)


def flattened(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


def snr(rows):
    mean = rows.mean(0)
    return float(mean.norm() / ((rows - mean).square().sum() / (len(rows) - 1)).sqrt())


def prepared(case):
    build, inputs, criterion, target = CASES[case]
    torch.manual_seed(3)
    model = build().double()
    result = measure(model, inputs, loss=criterion, target=target)
    return LongWay(copy.deepcopy(model), inputs, criterion, target), result


def agree(found, expected, **tolerance):
    """Compare profiles by name; what the definition leaves undefined (0/0) must be NaN."""
    found = {name: value.mean for name, value in found.items()}
    assert found == pytest.approx({n: v for n, v in expected.items() if n in found}, nan_ok=True, **tolerance)
    return set(expected) - set(found)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


# In float64 both ways round a few hundred operations at 1e-16, and quotients of gradients lose some digits more: 1e-8 is ample
# and any other definition is off by much more. Sharpness is found to a residual of 1e-3, whose square is its error: 1e-4.


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_of_samples(case):
    long, result = prepared(case)
    assert result.initial_loss == pytest.approx(float(long.run()[1].detach()), rel=1e-12)
    rows = long.per_sample()
    # ReZero's layers and LoRA's A have no gradient: 0/0.
    assert agree(result.gradient_snr, {name: snr(part) for name, part in rows.items()}, rel=1e-8) == set()
    G = torch.cat(list(rows.values()), dim=1)
    K, count = G @ G.T, len(G)
    cosines = K / K.diag().sqrt().outer(K.diag().sqrt())
    others = ~torch.eye(count, dtype=torch.bool)
    assert result.gradient_confusion == pytest.approx(float(cosines[others].min()), rel=1e-8, abs=1e-10)
    trace = float((G - G.mean(0)).square().sum() / (count - 1))
    signal = float(K[others].mean())
    expected = trace / signal if signal > 0 else math.inf
    assert result.gradient_noise_scale == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_curvature_and_tangent_kernel(case):
    long, result = prepared(case)
    H = long.hessian()
    largest = float(torch.linalg.eigvalsh((H + H.T) / 2)[-1])
    assert result.sharpness == pytest.approx(largest, rel=1e-4)
    assert result.stable_learning_rate == pytest.approx(2 / largest, rel=1e-4)
    J = long.jacobian()
    values = torch.linalg.svdvals(J)
    rank = int((values > 1e-9 * values[0]).sum())
    expected = float(values[0] / values[-1]) ** 2 if rank == len(J) else math.inf
    # κ is known to eps κ, and so to six digits up to 1e9.
    assert result.ntk_condition_number == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_first_steps(case):
    long, result = prepared(case)
    before = {name: p.detach().clone() for name, p in long.parameters.items()}
    losses, woken, ratios = [], {}, {}
    for step, (loss, gradients) in enumerate(long.train(adamw, 11)):
        losses.append(loss)
        if step == 1:
            ratios = {n: float((p.detach() - before[n]).norm() / before[n].norm()) for n, p in long.parameters.items()}
        for name, g in gradients.items():
            if step <= 3 and bool((g != 0).any()):
                woken.setdefault(name, float(step))
    assert result.loss_drop == pytest.approx((losses[0] - losses[10]) / abs(losses[0]), rel=1e-8)
    left_out = agree(result.update_ratio, ratios, rel=1e-8)
    assert left_out == {name for name, w in before.items() if not bool((w != 0).any())}
    assert {name: at.mean for name, at in result.waking_step.items()} == {n: woken.get(n, math.inf) for n in before}
    assert set(result.asleep_parameters) == set(before) - set(woken)


OPTIMIZERS = {
    "L-BFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "Nesterov, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "groups": lambda p: torch.optim.AdamW([{"params": [q], "lr": 1e-3 * q.dim()} for q in p], weight_decay=0.1),
    "one of them": lambda p: torch.optim.SGD(list(p)[:1], lr=0.1),
    "lr=0": lambda p: torch.optim.SGD(p, lr=0.0),
    "decay alone": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=10.0),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.dim() == 2], lr=1e-2),
    "upwards": lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    if name == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this version of torch has no Muon")
    torch.manual_seed(0)
    model, x = mlp().double(), normal(4, 5)
    result = measure(model, x, loss=F.cross_entropy, target=LABELS, optimizer=OPTIMIZERS[name])
    long = LongWay(copy.deepcopy(model), x, F.cross_entropy, LABELS)
    before, losses, ratios = [p.detach().clone() for p in model.parameters()], [], {}
    for step, (loss, _) in enumerate(long.train(OPTIMIZERS[name], 11)):
        losses.append(loss)
        if step == 1:
            pairs = zip(long.parameters.items(), before)
            ratios = {n: float((p.detach() - old).norm() / old.norm()) for (n, p), old in pairs}
    assert agree(result.update_ratio, ratios, rel=1e-8) == set()
    assert result.loss_drop == pytest.approx((losses[0] - losses[10]) / losses[0], rel=1e-8, abs=1e-14)


def test_weight_normalization_has_the_curvature_of_differences():
    """PyTorch's kernel for it has a wrong second derivative: differences of gradients tell."""
    torch.manual_seed(3)
    model, x = weight_normed().double(), normal(4, 4)
    result = measure(model, x, loss=F.cross_entropy, target=LABELS)
    long = LongWay(copy.deepcopy(model), x, F.cross_entropy, LABELS)
    w = nn.utils.parameters_to_vector(long.model.parameters()).detach()
    step, rows = 1e-5, []
    for direction in torch.eye(len(w), dtype=torch.float64):
        sides = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(w + sign * step * direction, long.model.parameters())
            sides.append(flattened(long.gradient(long.run()[1])))
        rows.append((sides[0] - sides[1]) / (2 * step))
    H = torch.stack(rows)
    # Differences are off by step² and by eps / step, 1e-10 both.
    assert result.sharpness == pytest.approx(float(torch.linalg.eigvalsh((H + H.T) / 2)[-1]), rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (lambda o, y: F.nll_loss(o.log_softmax(1), y), LABELS),
        (lambda o, y: -o.log_softmax(1).gather(1, y[:, None]).mean(), LABELS),
        (lambda o, y: (o.logsumexp(1) - o.gather(1, y[:, None])[:, 0]).mean(), LABELS),
        (lambda o, y: -o.softmax(1).log().gather(1, y[:, None]).mean(), LABELS),
        (SMOOTH, LABELS),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)), LABELS),
        (F.cross_entropy, normal(4, 3, seed=4).softmax(1)),
        (F.binary_cross_entropy_with_logits, MANY),
        (F.multilabel_soft_margin_loss, MANY),
        (lambda o, y: -(y * F.logsigmoid(o) + (1 - y) * F.logsigmoid(-o)).mean(), MANY),
    ],
)
def test_excess_loss_of_every_way_to_write_a_cross_entropy(loss, target):
    torch.manual_seed(0)
    model, x = mlp().double(), normal(4, 5)
    expected = float(loss(model(x), target).detach()) - math.log(2 if target is MANY else 3)
    assert measure(model, x, loss=loss, target=target).excess_loss == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "focal", "regression"])
def test_excess_loss_refuses_what_no_guess_is_known_for(reduction):
    def focal(output, labels):
        each = F.cross_entropy(output, labels, reduction="none")
        return ((1 - (-each).exp()) ** 2 * each).mean()

    losses = {"sum": nn.CrossEntropyLoss(reduction="sum"), "focal": focal, "regression": F.mse_loss}
    target = normal(4, 3) if reduction == "regression" else LABELS
    result = measure(mlp().double(), normal(4, 5), loss=losses[reduction], target=target)
    advice = r"the loss is a sum\. Reduce it by mean" if reduction == "sum" else r"pass the number of classes"
    with pytest.raises(InapplicableError, match=advice):
        _ = result.excess_loss


@pytest.mark.parametrize("case", ["ReZero", "adaLN-zero", "LoRA"])
def test_zeros_by_design_hold_bounds_on_gradients(case):
    _, result = prepared(case)
    result.check(gradient_norm=at_least(1e-9), relative_gradient_norm=at_least(1e-9), update_ratio=at_least(1e-9))


def test_zeros_by_accident_do_not():
    """In front of dead units, in them, and directly behind them, where nothing but zeros comes in."""
    dead = mlp().double()
    dead[1] = nn.ReLU()
    nn.init.constant_(dead[0].bias, -100.0)
    result = measure(dead, normal(4, 5), loss=F.cross_entropy, target=LABELS)
    with pytest.raises(
        TrainabilityFailure, match=r"3 of 6 outside, worst 0\.weight 0 and 1 more \*\.weight, 0\.bias 0"
    ):
        result.check(gradient_norm=at_least(1e-9))
    assert tuple(result.asleep_parameters) == ("0.weight", "0.bias", "2.weight")


MEASURES = ("excess_loss", "gradient_snr", "gradient_confusion", "ntk_condition_number", "sharpness", "update_ratio")
MORE = ("loss_drop", "waking_step", "asleep_parameters", "duplicate_parameters", "uninitialized_parameters")


class Drawing(nn.Module):
    """Draws in its forward pass, counts, normalizes, has a zero gate and gradients of its own."""

    def __init__(self):
        super().__init__()
        self.table, self.drop, self.norm = nn.Embedding(9, 8), nn.Dropout(0.2), nn.BatchNorm1d(8)
        self.inner, self.gate, self.head = nn.Linear(8, 8), nn.Parameter(torch.zeros(1)), nn.Linear(8, 9)
        self.calls = 0

    def forward(self, tokens):
        self.calls += 1
        x = self.drop(self.table(tokens))
        x = self.norm(x + self.gate * torch.tanh(self.inner(x)))
        return self.head(x)


def numbers(value):
    if hasattr(value, "items"):
        return {name: str(element.values) for name, element in value.items()}
    return (value.names, value.counts) if hasattr(value, "names") else str(value.values)


def test_numbers_depend_on_nothing_else_that_is_asked_for():
    tokens, labels = integers(9, 6), integers(9, 6, seed=2)
    asked = [name for name in (*MEASURES, *MORE) if not name.startswith(("gradient_snr", "gradient_confusion"))]

    def begun(**arguments):
        return measure(Drawing, tokens, loss=F.cross_entropy, target=labels, seeds=2, **arguments)

    together, backwards = begun(measures=asked), begun()
    found = {name: numbers(getattr(backwards, name)) for name in reversed(asked)}
    assert {name: numbers(getattr(together, name)) for name in asked} == found
    torch.rand(7)
    assert {name: numbers(getattr(begun(measures=[name]), name)) for name in asked} == found


def test_a_finished_module_is_left_as_it_was():
    model, tokens, labels = Drawing(), integers(9, 6), integers(9, 6, seed=2)
    F.cross_entropy(model(tokens), labels).backward()
    model.inner.weight.grad = None
    model.norm.eval()
    model.table.weight.requires_grad_(False)

    def state():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        gradients = {n: p.grad for n, p in model.named_parameters()}
        flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        return (
            {name: t.detach().clone() for name, t in tensors.items()},
            {name: None if g is None else g.clone() for name, g in gradients.items()},
            [flags, [p.requires_grad for p in model.parameters()], model.calls, list(map(id, gradients.values()))],
            torch.get_rng_state(),
        )

    before = state()
    result = measure(model, tokens, loss=F.cross_entropy, target=labels)
    for name in ("excess_loss", "ntk_condition_number", "sharpness", "update_ratio", "loss_drop", "waking_step"):
        getattr(result, name)
    after = state()
    for old, new in zip(before[:2], after[:2]):
        assert all(new[n] is None if t is None else torch.equal(t, new[n]) for n, t in old.items())
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])


def test_changes_by_training_and_their_exponents():
    """A sweep's values are those of a user's own loop, and its slopes those of polyfit, seed by seed."""
    widths, x, labels = [8, 16, 32], normal(6, 5), integers(3, 6)

    def build(width):
        return mlp(units=width).double()

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.3)

    arguments = {"loss": F.cross_entropy, "target": labels, "optimizer": sgd, "seeds": 2}
    sweep = width_sweep(build, widths, x, after_steps=2, measure="activation_change", **arguments)
    own = np.zeros((2, 3))
    for seed in range(2):
        for index, width in enumerate(widths):
            torch.manual_seed(seed)
            model = build(width)
            start, optimizer = model(x).detach(), sgd(model.parameters())
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(model(x), labels).backward()
                optimizer.step()
            own[seed, index] = float((model(x).detach() - start).square().mean().sqrt())
    assert pytest.approx(own, rel=1e-8) == np.array([value["4"].values for value in sweep.values]).T
    slopes = [np.polyfit(np.log(widths), np.log(values), 1)[0] for values in own]
    assert sweep.slope["4"].values == pytest.approx(slopes, rel=1e-7)
