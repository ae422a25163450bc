"""The empirical tangent kernel: linear models and wide networks, whose kernels are known, and dense Jacobians of small ones."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import models
import pytest
import torch
from torch import Tensor, nn
from towers import F64, linear

from pytest_trainability import measure
from pytest_trainability.engine.isolation import derived_seed
from pytest_trainability.engine.runs.ensemble import ensemble
from pytest_trainability.measures.loss.tangent_kernel import TANGENT_KERNEL, main_output

WANTED = ["ntk_condition_number"]


def kernel_of(model, inputs, *, train=True, steps="auto") -> Tensor:
    """Return the kernel of the first seed."""
    recipe = models.recipe(model, inputs, steps=steps, train=train)
    found = ensemble(recipe, (0,), [TANGENT_KERNEL], lambda run: {"matrix": run[TANGENT_KERNEL].matrix})
    return found.readings[0]["matrix"]


def dense_jacobian(model: nn.Module, inputs) -> Tensor:
    """Differentiate output after output, on a copy of the model: `(outputs, parameters)`."""
    args, kwargs = models.arguments(copy.deepcopy(inputs))
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs = main_output(model(*args, **kwargs), None).flatten()
    rows = []
    for output in outputs:
        found = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters)]))
    return torch.stack(rows)


# Linear models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [3, 200], ids=["every output", "one functional a sample"])
def test_linear_model(outputs):
    """f = W x has Θ = X Xᵀ ⊗ I: κ is the square of X's condition number, whichever functional of the outputs is taken."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 9, generator=generator, dtype=F64)
    model = linear(torch.randn(outputs, 9, generator=generator, dtype=F64))
    truth = float(torch.linalg.cond(x)) ** 2
    # float64 eigenvalues are good to 18 eps λ_max: of λ_min that is 18 eps κ.
    assert float(measure(model, x, measures=WANTED).ntk_condition_number) == pytest.approx(truth, rel=1e-14 * truth)
    # float32 rows of J are X's, rounded: singular values are off by 6e-8 of the largest, relatively 6e-8 √κ, and doubled.
    single = measure(model, x, dtype="float32", measures=WANTED).ntk_condition_number
    assert float(single) == pytest.approx(truth, rel=4 * 6e-8 * math.sqrt(truth))


def test_linear_model_with_a_bias():
    """The bias adds one to every entry of X Xᵀ."""
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=F64)
    model = nn.Linear(7, 2, dtype=F64)
    truth = float(torch.linalg.cond(x @ x.T + 1))
    assert float(measure(model, x, measures=WANTED).ntk_condition_number) == pytest.approx(truth, rel=1e-14 * truth)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e5])
def test_float32_resolves_a_tenth_of_its_square(condition):
    """κ(Θ) is the square of J's: up to 1e10 of it is measured, not rounded away."""
    generator = torch.Generator().manual_seed(4)
    U, V = (torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=F64)).Q for _ in range(2))
    x = U @ torch.diag(torch.logspace(0, -math.log10(condition), 8, dtype=F64)) @ V
    result = measure(linear(torch.ones(1, 8, dtype=F64)), x, dtype="float32", measures=WANTED)
    # x itself is rounded: its smallest singular value moves by 6e-8 √8 at most, and κ by twice as much, relatively.
    assert float(result.ntk_condition_number) == pytest.approx(condition**2, rel=2 * 6e-8 * math.sqrt(8) * condition)


# Wide networks ---------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """`f(x) = Σ_j a_j relu(w_j · x) / √m`, everything N(0, 1)."""

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(width, entering, dtype=F64))
        self.a = nn.Parameter(torch.randn(width, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w.T) @ self.a[:, None] / math.sqrt(len(self.a))


def test_wide_relu_network():
    """Θ tends to the arc-cosine kernels of order one and zero (Cho & Saul 2009; Jacot et al. 2018).

    Θ(x, x') = ‖x‖ ‖x'‖ (sin θ + (π − θ) cos θ)/2π + x·x' (π − θ)/2π.
    """
    width, batch = 40_000, 6
    x = torch.randn(batch, 5, generator=torch.Generator().manual_seed(2), dtype=F64)
    x = x / x.norm(dim=1, keepdim=True)
    cosine = (x @ x.T).clamp(-1, 1)
    theta = cosine.acos()
    truth = (theta.sin() + (math.pi - theta) * cosine + (math.pi - theta) * cosine) / (2 * math.pi)
    found = kernel_of(lambda: Wide(5, width), x)
    # Means over the width of relu(u) relu(v), of second moment at most E relu(u)⁴ = 3/2, and a² 1[u > 0] 1[v > 0] cos θ, at most
    # E a⁴ / 2 = 3/2; 21 entries stay within 4.5 standard deviations each.
    tolerance = 4.5 * 2 * math.sqrt(1.5 / width)
    assert tolerance < 0.06
    assert (found - truth).abs().max() < tolerance
    # Weyl: eigenvalues move by ‖E‖ at most.
    values, moved = torch.linalg.eigvalsh(truth), float(torch.linalg.matrix_norm(found - truth, 2))
    low, high = (values[-1] - moved) / (values[0] + moved), (values[-1] + moved) / (values[0] - moved)
    result = measure(lambda: Wide(5, width), x, seeds=1, measures=WANTED)
    assert 0 < low < float(result.ntk_condition_number) < high


# Dense -----------------------------------------------------------------------------------------------------------

SMALL = [
    "mlp",
    "conv-tower",
    "add-outside",
    "encoder-decoder",
    "gru-loop",
    "tied-rnn",
    "inplace-stream",
    "spectral-norm",
    "custom-function",
    "scaled-gradient",
    "tuple-output",
    "dict-output",
    "keyword-inputs",
    "integer-inputs",
    "complex-state",
    "batch-norm",
    "batch-norm-eval",
    "frozen-backbone",
    "two-towers",
]


@pytest.mark.parametrize("case", [c for c in models.ARCHITECTURES if c.id in SMALL], ids=lambda case: case.id)
def test_against_the_dense_jacobian(case):
    model, inputs = models.build(case, dtype=F64)
    if case.id == "spectral-norm":
        # Its power iteration goes on at every run: there must be nothing left to iterate.
        model.eval()
    J = dense_jacobian(model, inputs)
    found = kernel_of(model, inputs, train=model.training, steps=case.steps)
    # float64: at most 1e4 products of entries that are good to 1e-14 each, beside the largest entry.
    assert (found - J @ J.T).abs().max() < 1e-12 * (J @ J.T).abs().max()


def test_dropout_masks_are_those_of_the_run():
    """Two readings of one seed agree, and differ from another seed's."""

    def read(seeds):
        return measure(
            lambda: nn.Sequential(models.Block(), models.Dropped()),
            models.vectors()(torch.Generator().manual_seed(0)),
            seeds=seeds,
            measures=WANTED,
        )

    assert read([0]).ntk_condition_number.values == read([0]).ntk_condition_number.values
    assert read([0]).ntk_condition_number.values != read([1]).ntk_condition_number.values


def gpt2(**settings) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 60, "n_positions": 16}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **dropout, **settings)).double()


def test_functionals_of_a_language_model():
    """4 × 5 × 60 outputs are too many: the kernel is the dense one between one direction for all samples."""
    torch.manual_seed(0)
    model = gpt2()
    ids = torch.randint(0, 60, (4, 5), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "labels": ids}
    found = kernel_of(model, inputs)
    generator = torch.Generator().manual_seed(derived_seed(0, "direction of the outputs"))
    direction = torch.randn(1, 5, 60, generator=generator, dtype=F64).flatten()
    V = torch.block_diag(*[direction[None] / direction.norm()] * 4)
    J = dense_jacobian(model, {"input_ids": ids})
    dense = J @ J.T
    truth = V @ dense @ V.T
    assert (found - truth).abs().max() < 1e-12 * truth.abs().max()
    assert float(measure(model, inputs, measures=WANTED).ntk_condition_number) == pytest.approx(
        float(torch.linalg.cond(truth)), rel=1e-10
    )


def test_outputs_are_the_logits_or_the_first_tensor():
    """Not the loss, not what comes behind, and nothing without a gradient."""
    loss, hidden, logits = (torch.ones(shape, requires_grad=True) * 1 for shape in ((), (2, 3), (2, 4)))
    assert main_output({"loss": loss, "hidden": hidden, "logits": logits}, loss) is logits
    assert main_output({"loss": loss[None], "hidden": hidden}, loss) is hidden
    assert main_output((loss, torch.ones(2, 3), hidden, logits), loss) is hidden
    assert main_output(loss, loss) is None
    # A loss in another shape, or a part of it.
    one = loss[None]
    assert main_output((one, logits), one[0]) is logits
    assert main_output(SimpleNamespace(loss=one), loss) is None
    assert main_output((logits.mean().reshape(1), logits), loss) is logits
    assert main_output((logits[:1, 0],), loss) is not None


# Singular --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("last", "copies"),
    [
        pytest.param(nn.Softmax(dim=-1), 1, id="softmax outputs sum to one"),
        pytest.param(nn.LayerNorm(5, elementwise_affine=False), 1, id="normalized outputs sum to zero"),
        pytest.param(nn.Identity(), 2, id="every sample comes twice"),
    ],
)
def test_singular_kernels_are_infinitely_ill_conditioned(dtype, last, copies):
    """Round-off is no eigenvalue."""
    torch.manual_seed(0)
    model = nn.Sequential(*models.mlp(6, 16), nn.Linear(16, 5), last)
    x = torch.randn(6, 16).repeat(copies, 1)
    assert math.isinf(float(measure(model, x, dtype=dtype, measures=WANTED).ntk_condition_number))


def test_a_coarse_layer_under_a_fine_head_is_coarse():
    """Two samples that bfloat16 hardly tells apart: what its rounding leaves is no eigenvalue, though the head is float32."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.bfloat16()).float().tanh())

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    x[1] = x[0] + 1e-2
    assert math.isinf(float(measure(Mixed, x, seeds=1, measures=WANTED).ntk_condition_number))


def test_more_outputs_than_parameters():
    model = nn.Linear(2, 2, bias=False)
    assert math.isinf(float(measure(model, torch.randn(5, 2), measures=WANTED).ntk_condition_number))


def test_no_output_depends_on_a_parameter():
    """Three layers of zeros: each is multiplied by what is zero."""
    layers = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(3)])
    for layer in layers:
        nn.init.zeros_(layer.weight)
    assert math.isnan(float(measure(layers, torch.randn(3, 2), measures=WANTED).ntk_condition_number))
