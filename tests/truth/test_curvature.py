"""The largest curvature: against Hessians in closed form, dense ones, and another library's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import WIDTH, wrapped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pytest_trainability import measure
from pytest_trainability.engine.isolation import derived_seed
from pytest_trainability.engine.linalg.lanczos import TOLERANCE, largest_eigenvalue
from pytest_trainability.errors import InapplicableError, UsageError

F64 = torch.float64

FOUND = 1e-5
"""The residual is at most 1e-3 of the eigenvalue, and the error about its square over the relative gap to the next one, which
is larger than 0.1 in the models below (Parlett 1998, theorem 11.7.1)."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    size = len(eigenvalues)
    basis = torch.linalg.qr(normal(size, size, seed=seed))[0]
    return basis @ torch.diag(eigenvalues.to(F64)) @ basis.T


# Lanczos -----------------------------------------------------------------------------------------------------------

SPECTRA = [
    pytest.param(torch.linspace(0, 1, 60), id="evenly spread"),
    pytest.param(torch.cat([torch.linspace(-1, 0, 50), torch.tensor([3.0])]), id="outlier"),
    pytest.param(torch.linspace(-100, 1, 60), id="mostly negative"),
    pytest.param(torch.cat([torch.ones(20), 2 * torch.ones(20)]), id="two eigenvalues"),
    pytest.param(-torch.linspace(1, 2, 30), id="all negative"),
    pytest.param(torch.cat([torch.zeros(5), -torch.ones(5)]), id="none above zero"),
    pytest.param(torch.zeros(8), id="zero"),
    pytest.param(torch.full((8,), 2.5), id="multiple of the identity"),
    pytest.param(torch.tensor([-0.7]), id="one dimension"),
]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_lanczos_finds_the_largest_eigenvalue(spectrum):
    A = symmetric(spectrum)
    found = largest_eigenvalue(lambda v: A @ v, normal(len(spectrum), seed=1), tolerance=1e-10)
    # A few hundred roundings of the matrix's norm.
    assert abs(found.value - float(spectrum.max())) < 1e-13 * max(1.0, float(spectrum.abs().max()))
    assert found.products <= len(spectrum)
    assert found.asymmetry < 1e-14


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 1e-2, 1e-3])
def test_some_eigenvalue_lies_within_the_residual(tolerance):
    """It is the only thing that the residual promises; that it is the largest one, chance does."""
    for seed in range(20):
        spectrum = normal(80, seed=100 + seed)
        A = symmetric(spectrum, seed)
        found = largest_eigenvalue(lambda v, A=A: A @ v, normal(80, seed=seed), tolerance=tolerance)
        assert found.error <= tolerance * abs(found.value)
        assert float((spectrum - found.value).abs().min()) <= found.error + 1e-14


def test_without_orthogonality_to_all_vectors_the_largest_eigenvalue_is_the_same():
    """Paige (1980): what comes back are copies of what has converged."""
    A = symmetric(torch.cat([torch.linspace(-1, 1, 300), torch.tensor([1.02])]))
    start = normal(len(A), seed=1)
    all_kept, two = (largest_eigenvalue(lambda v: A @ v, start, kept=kept) for kept in (100, 2))
    assert 20 < two.products < 100
    assert abs(two.value - all_kept.value) < 1e-12
    assert abs(two.value - 1.02) < FOUND


def test_what_has_not_converged_is_no_number():
    A = symmetric(torch.linspace(0.99, 1, 400))
    found = largest_eigenvalue(lambda v: A @ v, normal(400, seed=1), tolerance=1e-9, most=10)
    assert found.products == 10 and math.isnan(found.value) and found.error > 1e-9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_no_number(value):
    found = largest_eigenvalue(lambda v: v * torch.tensor([1.0, value, 1.0], dtype=F64), normal(3))
    assert math.isnan(found.value)


def test_float32_vectors_find_it_to_their_precision():
    A = symmetric(torch.cat([torch.linspace(-1, 1, 300), torch.tensor([2.0])])).float()
    found = largest_eigenvalue(lambda v: A @ v, normal(len(A), seed=1).float(), tolerance=1e-5)
    # 2^-24 for each of the products' 301 terms at worst, 2^-24 times its square root in practice.
    assert abs(found.value - 2) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("below", [1e2, 1e3, 1e4, 1e6])
def test_beside_a_large_negative_eigenvalue_it_is_found_or_unknown(below, dtype):
    """What is an ordinary residual of -1e6 is no residual of 1: its round-off must be left out of the other."""
    spectrum = torch.linspace(0.1, 1, 300, dtype=dtype)
    spectrum[0] = -below
    found = [largest_eigenvalue(lambda v: spectrum * v, normal(300, seed=s).to(dtype)).value for s in range(4)]
    known = [value for value in found if not math.isnan(value)]
    # The gap to the next one is 0.003: the error is at most the residual. What is as small as last bits of -1e6 is zero to it.
    assert all(abs(value - 1) < max(TOLERANCE, 5 * torch.finfo(dtype).eps * below) for value in known)
    assert len(known) == len(found) or (dtype is torch.float32 and below > 1e2)


def test_a_map_that_is_not_symmetric_is_told():
    A = symmetric(torch.linspace(0, 1, 30))
    A[0, 1:] *= 1.1
    found = largest_eigenvalue(lambda v: A @ v, normal(30, seed=1), tolerance=1e-8)
    assert found.asymmetry > TOLERANCE


# Closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("singular_values", [(3.0, 1.0, 0.5), (2.0, 2.0, 0.1)], ids=["simple", "double"])
def test_linear_regression(singular_values, dtype):
    """`mean (x W - y)²` over n samples and m outputs has the Hessian `2/(n m) XᵀX ⊗ 1`, wherever W is."""
    n, m = 12, 4
    X = torch.linalg.qr(normal(n, 3))[0] * torch.tensor(singular_values, dtype=F64)
    found = measure(
        lambda: nn.Linear(3, m, bias=False),
        X.to(dtype),
        target=normal(n, m, seed=1, dtype=dtype),
        loss=F.mse_loss,
        dtype=dtype,
        seeds=2,
        measures=["sharpness", "stable_learning_rate"],
    )
    exact = 2 * max(singular_values) ** 2 / (n * m)
    # Three different eigenvalues: the third vector, and the second, spans all of an invariant subspace. What is left is
    # round-off, some tens of the dtype's.
    precision = 100 * torch.finfo(dtype).eps
    assert all(abs(value / exact - 1) < precision for value in found.sharpness.values)
    assert all(abs(value * exact / 2 - 1) < precision for value in found.stable_learning_rate.values)


@pytest.mark.parametrize(("factor", "converges"), [(0.99, True), (1.01, False)])
def test_gradient_descent_on_a_quadratic_stays_below_the_stable_learning_rate(factor, converges):
    torch.manual_seed(0)
    model = nn.Linear(5, 1, dtype=F64)
    inputs, target = normal(20, 5), normal(20, 1, seed=1)
    rate = factor * float(measure(model, inputs, target=target, loss=F.mse_loss).stable_learning_rate)
    best = float(
        F.mse_loss(torch.hstack([inputs, torch.ones(20, 1, dtype=F64)]) @ _least_squares(inputs, target), target)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    excess = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), target)
        excess.append(float(loss.detach()) - best)
        loss.backward()
        optimizer.step()
    # Along the sharpest direction each step multiplies the excess by (1 - 2 factor)²: in 200 steps e^-8 or e^7.9.
    if converges:
        assert excess[-1] < 1e-2 * excess[200]
    else:
        assert excess[-1] > 1e2 * excess[200]


def _least_squares(inputs: Tensor, target: Tensor) -> Tensor:
    return torch.linalg.lstsq(torch.hstack([inputs, torch.ones(len(inputs), 1, dtype=F64)]), target).solution


class Coefficients(nn.Module):
    """The loss is `½ Σ a_i w_i²`, whatever comes in."""

    def __init__(self, a: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(a), 1, dtype=F64))
        self.a = torch.tensor(a, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) + 0.5 * (self.a * self.w[:, 0] ** 2).sum()


def sharpness_of(model, inputs=None, loss=torch.mean, **settings):
    inputs = normal(3, 2) if inputs is None else inputs
    return measure(
        model,
        inputs,
        loss=loss,
        steps=settings.pop("steps", [""]),
        measures=["sharpness", "stable_learning_rate"],
        **settings,
    )


def test_it_is_the_algebraically_largest_eigenvalue():
    found = sharpness_of(Coefficients([-9.0, 0.5, 2.0]), steps=Coefficients)
    assert abs(found.sharpness - 2) < 1e-12
    assert abs(found.stable_learning_rate - 1) < 1e-12


def test_where_the_loss_curves_down_in_all_directions_no_rate_is_too_large():
    found = sharpness_of(Coefficients([-9.0, -0.5]), steps=Coefficients)
    assert abs(found.sharpness.values[0] + 0.5) < 1e-12
    assert math.isnan(found.sharpness)  # it has no logarithm
    assert found.stable_learning_rate == math.inf


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    found = measure(
        nn.Linear(3, 2), normal(4, 3).float(), loss=torch.sum, measures=["sharpness", "stable_learning_rate"]
    )
    assert found.sharpness == 0
    assert found.stable_learning_rate == math.inf


# Dense Hessians ----------------------------------------------------------------------------------------------------


def dense(model: nn.Module, loss: Callable[[nn.Module], Tensor], seed: int = 0) -> Tensor:
    """Differentiate the gradient entry by entry; a parameter that is used twice counts once."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    torch.manual_seed(derived_seed(seed, "forward"))
    gradients = torch.autograd.grad(loss(model), parameters, create_graph=True)
    entries = torch.cat([_real(g).reshape(-1) for g in gradients])
    rows = [torch.autograd.grad(e, parameters, retain_graph=True, materialize_grads=True) for e in entries]
    return torch.stack([torch.cat([_real(part).reshape(-1) for part in row]) for row in rows]).detach()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class Attention(nn.Module):
    """One layer of attention, by the fused kernel, and a head that shares the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = self.norm(x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True))
        return x @ self.embedding.weight.T


class PlainAttention(Attention):
    """The same, spelled out."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        scores = self.q(x) @ self.k(x).mT / 2
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        return self.norm(x + scores.softmax(-1) @ self.v(x)) @ self.embedding.weight.T


class ComplexLayer(nn.Module):
    """Mixes a spectrum by a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.complex128) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=5).tanh()


class Recurrent(nn.Module):
    """An LSTM, by its fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _mlp(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), *extra, nn.Tanh(), nn.Linear(5, 3))


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3))


def _half_frozen() -> nn.Module:
    model = _mlp()
    model[0].weight.requires_grad_(False)
    return model


LABELS = torch.tensor([0, 2, 1, 0, 2, 2])
IDS = torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(3))


def cross_entropy(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS[: len(output)])


def next_token(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


MODELS = [
    pytest.param(_mlp, normal(6, 4), cross_entropy, id="mlp"),
    pytest.param(lambda: _mlp(nn.BatchNorm1d(5)), normal(6, 4), cross_entropy, id="batch normalization"),
    pytest.param(lambda: _mlp(nn.Dropout(0.4)), normal(6, 4), cross_entropy, id="dropout"),
    pytest.param(_convolutions, normal(6, 1, 6, 6), cross_entropy, id="convolutions"),
    pytest.param(lambda: nn.Sequential(ComplexLayer(), ComplexLayer()), normal(4, 5), torch.var, id="complex weights"),
    pytest.param(Recurrent, normal(5, 4, 3), cross_entropy, id="lstm"),
]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("build", "inputs", "loss"), MODELS)
def test_it_is_the_largest_eigenvalue_of_the_dense_hessian(build, inputs, loss, dtype):
    if dtype == torch.float32 and any(p.is_complex() for p in build().parameters()):
        pytest.skip("casting does not change complex weights")
    torch.manual_seed(0)
    model = build()
    if not any(p.is_complex() for p in model.parameters()):
        model.to(F64)
    exact = float(torch.linalg.eigvalsh(dense(model, lambda m: loss(m(inputs))))[-1])
    if dtype != F64:
        model.to(dtype)
    found = measure(model, inputs.to(dtype), loss=loss, measures=["sharpness"])
    assert abs(found.sharpness / exact - 1) < FOUND


def test_fused_attention_and_tied_weights():
    torch.manual_seed(0)
    model, plain = Attention().double(), PlainAttention().double()
    plain.load_state_dict(model.state_dict())
    exact = float(torch.linalg.eigvalsh(dense(plain, lambda m: next_token(m(IDS))))[-1])
    found = measure(model, IDS, loss=next_token, steps=nn.Linear)
    assert abs(found.sharpness / exact - 1) < FOUND


@pytest.mark.parametrize("old", [True, False], ids=["old", "parametrization"])
def test_the_kernel_of_weight_normalization_is_not_asked_for_second_derivatives(old):
    """PyTorch 2.13's are wrong by a few percent; what it computes is differentiated in its place."""
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    torch.manual_seed(0)
    model, inputs = wrapped(norm)().double(), normal(3, WIDTH)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def plain(*_: object) -> Tensor:
        x = inputs
        bias, gain, direction = (
            [p for n, p in parameters.items() if n.endswith(end)]
            for end in ("bias", ("g", "original0"), ("v", "original1"))
        )
        for b, g, v in zip(bias, gain, direction):
            x = torch.tanh(x @ (g * v / v.norm(dim=1, keepdim=True)).T + b)
        return x.square().mean()

    gradients = torch.autograd.grad(plain(), list(parameters.values()), create_graph=True)
    rows = [
        torch.cat([part.reshape(-1) for part in torch.autograd.grad(e, list(parameters.values()), retain_graph=True)])
        for e in torch.cat([g.reshape(-1) for g in gradients])
    ]
    exact = float(torch.linalg.eigvalsh(torch.stack(rows))[-1])
    found = measure(model, inputs, loss=lambda output: output.square().mean(), measures=["sharpness"])
    assert abs(found.sharpness / exact - 1) < FOUND


def test_sparse_gradients():
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Linear(4, 7)).double()
        found.append(measure(model, IDS, loss=next_token, steps=nn.Linear).sharpness.mean)
    # Sums in another order.
    assert abs(found[0] / found[1] - 1) < 1e-12


def test_frozen_parameters_do_not_count():
    torch.manual_seed(0)
    model, inputs = _half_frozen().double(), normal(6, 4)
    trainable = copy.deepcopy(model).requires_grad_()
    rest = dense(trainable, lambda m: cross_entropy(m(inputs)))[20:, 20:]
    found = measure(model, inputs, loss=cross_entropy, measures=["sharpness"])
    assert abs(found.sharpness / float(torch.linalg.eigvalsh(rest)[-1]) - 1) < FOUND


def test_a_transformer_of_a_library():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2, attn_implementation="sdpa", loss_type="ForCausalLM"
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    plain = transformers.GPT2LMHeadModel(copy.deepcopy(config)).double().eval()
    plain.load_state_dict(model.state_dict())
    plain.set_attn_implementation("eager")
    exact = float(torch.linalg.eigvalsh(dense(plain, lambda m: m(input_ids=IDS, labels=IDS).loss))[-1])
    found = measure(model, {"input_ids": IDS, "labels": IDS}, train=False, steps="layers", measures=["sharpness"])
    assert abs(found.sharpness / exact - 1) < FOUND


@pytest.mark.parametrize(("build", "inputs"), [(_mlp, normal(6, 4)), (_convolutions, normal(6, 1, 6, 6))])
def test_another_library_finds_the_same(build, inputs):
    curvlinops = pytest.importorskip("curvlinops")
    from scipy.sparse.linalg import eigsh

    torch.manual_seed(0)
    model, loss = build().double(), nn.CrossEntropyLoss()
    hessian = curvlinops.HessianLinearOperator(model, loss, list(model.parameters()), [(inputs, LABELS)])
    (theirs,) = eigsh(hessian.to_scipy(), k=1, which="LA", return_eigenvectors=False)
    ours = measure(model, inputs, target=LABELS, loss=loss, measures=["sharpness"]).sharpness
    assert abs(ours / float(theirs) - 1) < FOUND


# Where there is no answer ------------------------------------------------------------------------------------------


class Once(torch.autograd.Function):
    """A square whose backward says that it cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Detached(Once):
    """One whose backward cannot be differentiated, and does not say so."""

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0].detach() * gradient


class Honest(Once):
    """One whose backward can be differentiated."""

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Fused(torch.autograd.Function):
    """Half the mean square, whose gradient is computed in the forward pass, as fused cross-entropies do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x / x.numel())
        return x.square().mean() / 2

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0].detach() * gradient


class Square(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + self.function.apply(layer(x)).relu()
        return x


@pytest.mark.parametrize(
    ("function", "said"), [(Once, "is not symmetric"), (Detached, "is not symmetric|differs from the change")]
)
def test_a_backward_that_cannot_be_differentiated_is_told(function, said):
    with pytest.raises(InapplicableError, match=said):
        print(measure(lambda: Square(function), normal(3, 4).float(), loss=torch.var, measures=["sharpness"]).sharpness)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_one_that_can_is_believed(dtype):
    torch.manual_seed(0)
    model, inputs = Square(Honest).to(F64), normal(3, 4)
    exact = float(torch.linalg.eigvalsh(dense(model, lambda m: m(inputs).var()))[-1])
    found = measure(model.to(dtype), inputs.to(dtype), loss=torch.var, measures=["sharpness"])
    assert abs(found.sharpness / exact - 1) < FOUND


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_fused_loss_leaves_a_symmetric_matrix_that_is_not_the_hessian(dtype):
    with pytest.raises(InapplicableError, match="differs from the change of the gradient"):
        print(measure(_mlp, normal(6, 4), loss=Fused.apply, dtype=dtype, measures=["sharpness"]).sharpness)


def test_without_a_loss_there_is_no_hessian():
    with pytest.raises(InapplicableError, match="sharpness needs a loss"):
        print(measure(_mlp, normal(3, 4).float()).sharpness)


def test_without_parameters_there_is_no_hessian():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]).requires_grad_(False)
    with pytest.raises(UsageError, match="parameters to train"):
        print(measure(model, normal(3, 4).float(), loss=torch.sum).stable_learning_rate)


def test_where_an_operator_has_no_second_derivative_it_is_named():
    def ctc(output: Tensor) -> Tensor:
        return F.ctc_loss(output.log_softmax(-1), torch.tensor([[1, 2]]), (5,), (2,))

    with pytest.raises(InapplicableError, match=r"differentiated twice(?s:.*)_ctc_loss_backward is not implemented"):
        print(measure(_mlp, normal(5, 4).float(), loss=ctc).sharpness)


def test_undefined_weights_have_no_curvature():
    model = _mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    found = measure(model, normal(6, 4).float(), loss=cross_entropy, measures=["sharpness", "stable_learning_rate"])
    assert math.isnan(found.sharpness)
    assert math.isnan(found.stable_learning_rate)


# Manners -----------------------------------------------------------------------------------------------------------


def test_it_is_the_same_at_once_and_later_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = _mlp(nn.BatchNorm1d(5), nn.Dropout(0.3))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    inputs = normal(6, 4).float()
    at_once = measure(model, inputs, loss=cross_entropy, measures=["sharpness", "loss_drop", "gradient_norm"])
    later = measure(model, inputs, loss=cross_entropy)
    assert at_once.sharpness.values == later.sharpness.values
    assert at_once.gradient_norm.values
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert bool((model[0].weight.grad == 1).all())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")


def test_it_is_a_function_of_the_seed():
    def draw(seed: int) -> float:
        return measure(
            _mlp, normal(6, 4).float(), loss=cross_entropy, seeds=[seed], measures=["sharpness"]
        ).sharpness.mean

    assert draw(0) == draw(0) != draw(1)
