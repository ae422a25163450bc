"""The forward pass: inputs, losses, and errors of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from models import BATCH, FLOATS, IDS, WIDTH, Tail
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pytest_trainability import measure
from pytest_trainability.engine.capture.recorder import Capture
from pytest_trainability.engine.runs.forward_pass import _sum, call_arguments, fingerprint, forward_pass, outlines
from pytest_trainability.errors import ModelError, TrainabilityError, UsageError
from pytest_trainability.measurement import DEFAULT_OPTIONS, Context, as_recipe


class Raising(nn.Module):
    """Raises."""

    def forward(self, x: Tensor) -> Tensor:
        msg = "no such luck"
        raise KeyError(msg)


def without_kernel(x: Tensor) -> Tensor:
    """Raise what PyTorch raises for an LSTM in bfloat16 on a processor without AVX-512."""
    msg = "could not create a primitive descriptor for an LSTM forward propagation primitive"
    raise RuntimeError(msg)


def raising_inputs(generator: torch.Generator) -> Tensor:
    msg = "no data"
    raise OSError(msg)


@pytest.mark.parametrize(
    ("model", "inputs", "settings", "error", "parts"),
    [
        pytest.param(
            lambda: Tail(lambda y: "text"),
            FLOATS,
            {},
            ModelError,
            ["the model must return a tensor, or a tuple, list, dict or dataclass with tensors", "Tail returned str."],
            id="no-tensor",
        ),
        pytest.param(
            lambda: Tail(lambda y: None),
            FLOATS,
            {},
            ModelError,
            ["the model must return a tensor", "Tail returned NoneType."],
            id="none",
        ),
        pytest.param(
            Raising,
            FLOATS,
            {},
            ModelError,
            ["the model must run on its inputs", "Raising (seed 0, cpu)", "(3, 6) float32", "KeyError: 'no such luck'"],
            id="model-raises",
        ),
        pytest.param(
            lambda: Tail(without_kernel),
            FLOATS,
            {},
            ModelError,
            [
                "Tail (seed 0, cpu)",
                "could not create a primitive descriptor for",
                "Measure in float32, without autocast",
            ],
            id="no-kernel-on-this-processor",
        ),
        pytest.param(
            models.mlp,
            {"input": FLOATS, "labels": IDS},
            {},
            ModelError,
            ["the model must run on its inputs", "TypeError", "keyword arguments"],
            id="wrong-arguments",
        ),
        pytest.param(
            models.mlp,
            torch.ones(2, 5),
            {},
            ModelError,
            ["the model must run on its inputs", "Sequential", "(2, 5) float32", "RuntimeError"],
            id="wrong-shape",
        ),
        pytest.param(
            models.mlp,
            torch.empty(0, WIDTH),
            {},
            UsageError,
            ["inputs must hold at least one element", "(0, 6)", "empty batch"],
            id="empty-batch",
        ),
        pytest.param(
            models.mlp,
            "text",
            {},
            UsageError,
            ["inputs must be a tensor, a tuple, a dict", "Got str."],
            id="text-inputs",
        ),
        pytest.param(models.mlp, None, {}, UsageError, ["inputs must be a tensor", "Got NoneType."], id="no-inputs"),
        pytest.param(
            models.mlp,
            FLOATS.to("meta"),
            {},
            TrainabilityError,
            ["inputs must", "meta"],
            id="inputs-on-meta",
        ),
        pytest.param(
            models.mlp,
            raising_inputs,
            {},
            TrainabilityError,
            ["inputs", "raising_inputs", "OSError: no data"],
            id="inputs-raise",
        ),
    ],
)
def test_an_error_says_what_to_do(refused, model, inputs, settings, error, parts) -> None:
    refused(model, inputs, settings, error, parts)


class Lightning(nn.Module):
    """Has a training step, like a LightningModule."""

    def __init__(self, pack: Callable[[Tensor], Any] = lambda loss: loss) -> None:
        super().__init__()
        self.layers = models.mlp()
        self.pack = pack

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        x, y = batch
        return self.pack(F.mse_loss(self(x), y))


@pytest.mark.parametrize("pack", [lambda loss: loss, lambda loss: {"loss": loss}], ids=["tensor", "dict"])
def test_training_step_gives_the_loss(pack: Callable[[Tensor], Any]) -> None:
    """The inputs are a batch of the trainer, and the module computes the loss itself."""
    result = measure(lambda: Lightning(pack), (FLOATS, torch.zeros_like(FLOATS)), seeds=2)
    expected = measure(lambda: Lightning().layers, FLOATS, loss=lambda y: y.square().mean(), seeds=2)
    assert result.steps.description == "4 × Linear"
    assert result.log_gain.values == expected.log_gain.values
    assert result.loss_log_gain.values == expected.loss_log_gain.values
    assert [e.values for e in result.gradient_norm.values()] == [e.values for e in expected.gradient_norm.values()]


def test_loss_of_the_output_is_used() -> None:
    """``output["loss"]``, as in transformers."""
    result = measure(lambda: models.EarlyLoss(models.Block), FLOATS, seeds=1)
    assert math.isfinite(result.loss_log_gain.mean)


def test_loss_and_target_may_be_functions_of_a_generator() -> None:
    """The loss is called with the output and the target, in this order."""
    result = measure(
        models.mlp,
        lambda g: torch.randn(BATCH, WIDTH, generator=g),
        target=lambda g: torch.randint(0, WIDTH, (BATCH,), generator=g),
        loss=F.cross_entropy,
        seeds=2,
    )
    assert len(set(result.loss_log_gain.values)) == 2


def test_a_model_that_does_not_fit_is_named() -> None:

    def too_large(y: Tensor) -> Tensor:
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)

    with pytest.raises(
        ModelError, match=r"Tail, one forward pass and what is measured must fit .* cpu ran out of memory"
    ):
        measure(lambda: Tail(too_large), FLOATS, seeds=1)


def test_changes_through_data_are_part_of_the_fingerprint() -> None:
    model = models.mlp()
    result = measure(model, FLOATS)
    model[0].weight.data.mul_(2)
    with pytest.raises(UsageError, match="have changed since"):
        _ = result.relative_gradient_norm


def test_a_loss_may_read_any_output() -> None:
    class Answer:
        def __init__(self, y: Tensor) -> None:
            self.y = y

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.layers(x))

    assert math.isfinite(measure(Model, torch.randn(3, 4), loss=lambda answer: answer.y.sum(), seeds=1).log_gain)


def test_a_compiled_model_runs_uncompiled() -> None:
    compiled = measure(lambda: torch.compile(models.mlp()), FLOATS, seeds=1)
    assert float(compiled.log_gain) == pytest.approx(float(measure(models.mlp, FLOATS, seeds=1).log_gain))


# Draws --------------------------------------------------------------------------------------------------------------


def run_with(model: nn.Module, inputs: Any, seed: int = 0, **options: Any) -> Capture:
    recipe = as_recipe(Context(), lambda: model, inputs, {**DEFAULT_OPTIONS, "device": "cpu", **options})
    return forward_pass(recipe, model, seed)


def test_the_seed_determines_inputs_and_masks() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
    draw = lambda generator: torch.randn(BATCH, WIDTH, generator=generator)  # noqa: E731
    one, again, other = (run_with(model, draw, seed) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, again.inputs) and torch.equal(one.output, again.output)
    assert not torch.equal(one.inputs, other.inputs)


def test_inputs_may_be_drawn_from_the_global_generator() -> None:
    """Users do, and the seed determines these draws, too."""
    draw = lambda generator: torch.randn(BATCH, WIDTH)  # noqa: E731
    one, again, other = (run_with(models.mlp(), draw, seed).inputs for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_float_inputs_and_targets_are_cast() -> None:
    found = run_with(
        nn.Linear(WIDTH, 2).double(), FLOATS, target=[FLOATS, IDS], loss=lambda y, t: y.sum(), dtype="float64"
    )
    assert found.inputs.dtype == torch.float64
    assert [tensor.dtype for tensor in found.target] == [torch.float64, torch.int64]
    assert found.device == torch.device("cpu")


def test_a_model_without_tensors_runs_where_its_inputs_are() -> None:
    found = run_with(nn.Tanh(), FLOATS)
    assert found.device == FLOATS.device and torch.equal(found.output.detach(), FLOATS.tanh())


def test_a_model_without_tensors_runs_on_the_requested_device() -> None:
    """The meta device stands for any device that is not that of the inputs."""
    recipe = as_recipe(Context(), nn.Tanh, FLOATS, {**DEFAULT_OPTIONS, "device": "cpu"})
    found = forward_pass(replace(recipe, device=torch.device("meta")), nn.Tanh(), 0)
    assert found.inputs.is_meta and found.device == torch.device("meta")


def test_the_traceback_of_a_model_begins_at_its_call() -> None:
    with pytest.raises(ModelError) as caught:
        run_with(Raising(), FLOATS)
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError) and cause.__traceback__ is not None
    assert "/pytest_trainability/engine/" not in cause.__traceback__.tb_frame.f_code.co_filename


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            lambda generator: 1 / 0,
            "target, given as a function, must take a torch.Generator and return tensors. `<lambda>` raised",
        ),
        (FLOATS.to("meta"), "target must hold numbers. A tensor in them lives on the meta device."),
    ],
    ids=["raises", "meta"],
)
def test_an_invalid_target_is_refused(target: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_with(models.mlp(), FLOATS, target=target, loss=F.mse_loss)
    assert message in str(caught.value)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_a_named_pair_is_inputs_and_target_where_the_loss_needs_one(loss: Any) -> None:
    labels = torch.zeros(len(FLOATS), dtype=torch.long)
    captured = run_with(models.mlp(), Pair(FLOATS, labels), loss=loss)
    assert "the batch is a pair: its second part is taken as the target of the loss" in captured.notes


@pytest.mark.parametrize(
    ("inputs", "way"),
    [
        (TensorDataset(FLOATS), "Hand in a DataLoader of the data set, which gives its first batch"),
        (iter([FLOATS]), "Hand in what it gives: next(iterator)."),
        ([[0.0, 1.0]], "Numbers become a tensor by torch.tensor(numbers)."),
        ((4, 8), "A random one has sizes: torch.randn(4, 8)."),
        ("4x8", "A random one has sizes: torch.randn(4, 8)."),
        (object(), "not in other objects."),
    ],
)
def test_inputs_without_tensors_are_refused_with_a_way_to_some(inputs: Any, way: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_with(models.mlp(), inputs)
    assert str(caught.value).endswith(way) or way in str(caught.value).partition("not in other objects. ")[2]


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (FLOATS, (FLOATS,), {}),
        ((FLOATS, IDS), (FLOATS, IDS), {}),
        ([FLOATS, IDS], ([FLOATS, IDS],), {}),
        ({"x": FLOATS}, (), {"x": FLOATS}),
        (Pair(FLOATS, IDS), (Pair(FLOATS, IDS),), {}),
    ],
    ids=["tensor", "tuple", "list", "dict", "named tuple"],
)
def test_arguments_that_inputs_stand_for(inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found, named = call_arguments(inputs)
    assert repr((found, dict(named))) == repr((args, kwargs))


# Fingerprints -------------------------------------------------------------------------------------------------------


class SparseFirst(nn.Module):
    """Multiplies its input, which may be sparse, by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.first if x.layout is torch.strided else torch.sparse.mm(x, self.first)
        return self.last(torch.tanh(product))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=["coo", "csr"])
def test_sparse_inputs_are_measured(layout: torch.layout) -> None:
    """Where no entry is zero, the numbers are those of the dense input."""
    dense = FLOATS + 2
    plain, sparse = (measure(SparseFirst, x, seeds=2) for x in (dense, dense.to_sparse(layout=layout)))
    assert sparse.log_gain.values == pytest.approx(plain.log_gain.values, rel=1e-5)
    norms = [[e.mean for e in result.gradient_norm.values()] for result in (sparse, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_nested_and_quantized_inputs_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, WIDTH), torch.ones(3, WIDTH)])
    with pytest.raises(UsageError, match=r"^inputs must be dense or sparse tensors\. Got a nested one\."):
        measure(models.mlp, nested, seeds=1)
    with pytest.raises(UsageError, match=r"Got a quantized one\. Pad or dequantize it\."):
        measure(models.mlp, torch.quantize_per_tensor(FLOATS, 0.1, 0, torch.qint8), seeds=1)


def test_outlines_are_shapes_and_rounded_means() -> None:
    tree = {"a": torch.tensor([1.0, 2.0]), "b": [torch.tensor([[3 + 4j]])], "c": torch.tensor([True, False])}
    assert list(outlines(tree)) == [b"(2,) 1.5", b"(1, 1) 5", b"(2,) 0.5"]
    close = {"a": torch.tensor([1.0, 2.0 + 1e-6])}
    assert next(outlines(close)) == b"(2,) 1.5"


def test_a_fingerprint_changes_with_any_tensor_of_the_recipe() -> None:
    def of(model: Any, **changes: Any) -> tuple[str, ...]:
        options = {**DEFAULT_OPTIONS, "target": FLOATS, "loss": F.mse_loss}
        return fingerprint(
            as_recipe(Context(), model, changes.get("inputs", FLOATS), {**options, **changes.get("options", {})})
        )

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    before = of(model)
    assert len(before) == 2 + 4 + 3 and of(model) == before
    assert of(model, inputs=FLOATS + 1) != before
    assert of(model, options={"target": FLOATS + 1}) != before
    model[1].running_mean.add_(1)
    assert of(model) != before
    assert len(of(lambda: model)) == 2, "a factory holds no tensors"


def test_sums_of_short_types_do_not_overflow() -> None:
    """The sum of 300 ones in an eight-bit integer is 44, and that of many halves is infinite."""
    for dtype in (torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.bool):
        assert float(_sum(torch.ones(70_000, dtype=dtype))) == 70_000


LABELS = torch.zeros(BATCH, dtype=torch.long)


@pytest.mark.parametrize("pack", [tuple, list])
def test_a_batch_of_inputs_and_labels_is_split_for_a_loss(pack: Callable[[Any], Any]) -> None:
    """So does a loader give it."""
    found = measure(models.mlp, pack((FLOATS, LABELS)), loss=F.cross_entropy, seeds=2)
    expected = measure(models.mlp, FLOATS, target=LABELS, loss=F.cross_entropy, seeds=2)
    assert found.initial_loss.values == expected.initial_loss.values
    assert any("second part is taken as the target" in note for note in found.notes)
    assert not any("target" in note for note in expected.notes)


class TwoInputs(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = models.mlp()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(x if y is None else x + y)


def test_a_pair_is_two_arguments_where_the_model_takes_two() -> None:
    result = measure(TwoInputs, (FLOATS, FLOATS), loss=lambda output, target=None: output.square().mean(), seeds=1)
    expected = measure(models.mlp, 2 * FLOATS, loss=lambda output: output.square().mean(), seeds=1)
    assert result.initial_loss.values == expected.initial_loss.values


def test_numpy_arrays_are_measured_as_tensors() -> None:
    result = measure(models.mlp, FLOATS.double().numpy(), target=LABELS.numpy(), loss=F.cross_entropy, seeds=1)
    expected = measure(models.mlp, FLOATS, target=LABELS, loss=F.cross_entropy, seeds=1)
    assert result.initial_loss.values == expected.initial_loss.values


def test_tensors_in_unknown_objects_are_refused_by_name() -> None:
    class Graph:
        def __init__(self) -> None:
            self.x = FLOATS

    with pytest.raises(UsageError, match=r"Got tuple of Graph\. Tensors are found in tuples, .*register_pytree_node"):
        measure(models.mlp, (Graph(),), seeds=1)
