"""Per-sample gradients: the gradient of the loss on each sample alone."""

from __future__ import annotations

import itertools
import math
import random
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.capture.recorder import Loss, evaluate
from ...engine.isolation import ModelState, derived_seed, generator_state, seeded
from ...engine.jacobian.trajectories import Trajectories
from ...engine.linalg.gram import at_once
from ...engine.linalg.norms import norm
from ...engine.linalg.outer_products import OuterProducts, dense, first_samples
from ...engine.runs.common_needs import PARAMETER_GRADIENTS
from ...engine.runs.forward_pass import call_arguments
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import without_compiler
from ...engine.trees import batch_size, is_float, map_tensors, tensors_in
from ...errors import InapplicableError
from .vector_products import ShiftedProducts, VectorProducts

__all__ = ["PER_SAMPLE", "ROUND_OFF", "PerSample"]


Gradients = dict[str, Tensor]
"""Gradients ``(samples, *shape)`` by parameter name, or ``shape`` for one sample."""
Factored = dict[str, Tensor | OuterProducts]
"""The same, where those of some weights are kept as outer products."""


ROUND_OFF = 16
"""A part of a sum counts as round-off if it is below this many times the working precision, relative to the whole sum."""


LARGE_RECURRENCE = 2**14
"""Weights of fused recurrent layers from which samples are differentiated one after the other. Vectorization takes the kernel
apart into time steps, each of which makes a matrix of the size of the weights for every sample."""
MOST_SHARED = 3
"""Largest number of shared tensors that are recognized: tensors with as many rows as there are samples by coincidence."""
SHARED_HINT = "If all samples share an input with as many rows as there are samples (a table), use another batch size."


@dataclass(frozen=True, slots=True)
class _Method:
    """How per-sample gradients of an architecture are computed. The first seed finds it, for all later ones."""

    shared: frozenset[int]
    """Numbers of the tensors that have as many rows as there are samples by coincidence."""
    is_random: bool
    """Whether the forward pass draws random numbers."""
    vectorized: bool
    """Whether ``torch.func.vmap`` differentiates several samples at once."""
    products: Mapping[str, torch.Size] = field(default_factory=dict)
    """Shapes of the products with the weights whose gradients are outer products, by name; only where it is vectorized."""


class PerSample:
    """The gradients ``g_i = ∂loss(x_i)/∂w`` of the loss on each sample alone, by every parameter that the loss depends on.

    The first dimension of the inputs counts samples. Each sample goes through the model as a batch of one, with its own dropout
    masks. Tensors of inputs and target that have this dimension are split into rows; all samples share the others. A tensor may
    also have as many rows as there are samples by coincidence. It counts as shared if the model does not run on one more sample
    unless the tensor stays as it is.

    Raises:
        InapplicableError: The run has no loss or fewer than two samples; or samples interact; or the model does not run on one
            sample.
    """

    def __init__(self, run: Run) -> None:
        capture = run.capture
        self.seed, self.device, self.loss = run.seed, capture.device, capture.loss
        self.model, self.loss_module = capture.model, _LossModule(capture.model, capture.loss_function)
        self.batch = _Batch((capture.inputs, capture.target), batch_size(capture.inputs) or 0)
        known = dict(capture.model.named_parameters())
        used = [name for name, gradient in run[PARAMETER_GRADIENTS].items() if gradient is not None]
        self.parameters: dict[str, nn.Parameter] = {name: known[name] for name in used}
        self.size = sum(p.numel() for p in self.parameters.values())
        self.losses: dict[int, float] = {}
        """Loss of each sample alone, by the sample's number, as far as it has been computed."""
        self.is_random = False
        """Whether the forward pass draws random numbers."""
        self.vectorized = False
        """Whether ``torch.func.vmap`` differentiates several samples at once."""
        self.products: Mapping[str, torch.Size] = {}
        """Shapes of the products with the weights whose vectorized gradients are outer products, by name."""
        self._latest: tuple[int, Factored] | None = None
        self._require_loss_and_samples()
        self._state = ModelState(self.model)
        if self.parameters:
            # With other shapes, other tensors may have as many rows as there are samples. On some draws, a layer may be unused.
            name = f"{PER_SAMPLE.name} of {[tuple(t.shape) for t in self.batch.tensors]} by {[*self.parameters]}"
            method = run.of_first_seed(name, lambda: self._choose_method(run.trajectories))
            self.batch = self.batch.sharing(method.shared)
            self.is_random, self.vectorized, self.products = method.is_random, method.vectorized, method.products

    def chunks(self) -> Iterator[Factored]:
        """Yield the gradients of as many samples at a time as fit in memory.

        Raises:
            InapplicableError: The loss of the batch is neither a mean nor a sum of the samples' losses.
        """
        if not self.parameters:
            return
        step = at_once(len(self.batch), self.size)
        for first in range(0, len(self.batch), step):
            yield self.gradients(first, min(first + step, len(self.batch)))
        self.require_mean_or_sum()

    def gradients(self, first: int, last: int) -> Factored:
        """Return the gradients of samples ``first`` to ``last - 1``. The latest result is kept and returned again."""
        if self._latest is None or self._latest[0] != first:
            self._latest = None
            found = self._vectorized_gradients(first, last) if self.vectorized else None
            if found is None:
                self.vectorized = False
                single = [self.sample_gradient(sample) for sample in range(first, last)]
                found = {name: torch.stack([gradients[name] for gradients in single]) for name in self.parameters}
            self._latest = first, found
        return self._latest[1]

    def _vectorized_gradients(self, first: int, last: int) -> Factored | None:
        """Differentiate several samples at once; None if an operator does not support it."""
        # The import takes a tenth of a second, and is needed only here.
        from torch.func import functional_call, grad_and_value, vmap

        weights = {name: p.detach() for name, p in self.parameters.items()}
        multiplied = {name: weights.pop(name) for name in self.products}

        def loss(
            parameters: dict[str, Tensor], shifts: dict[str, Tensor], *rows: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            arguments = self.batch.with_rows([row.unsqueeze(0) for row in rows])
            named = {f"model.{name}": weight for name, weight in (parameters | multiplied).items()}
            with ShiftedProducts(multiplied, shifts) as watched:
                value: Tensor = functional_call(self.loss_module, named, arguments)
            return value, {name: watched.vectors[name] for name in multiplied}

        count, rows = last - first, self.batch.rows(slice(first, last))
        shifts = {name: w.new_zeros(count, *self.products[name]) for name, w in multiplied.items()}
        differentiated = grad_and_value(loss, argnums=(0, 1), has_aux=True)
        in_dims = (None, 0, *(0 for _ in rows))
        with self._isolated(first), torch.no_grad(), without_compiler():
            try:
                (found, cotangents), (losses, vectors) = vmap(differentiated, in_dims, randomness="different")(
                    weights, shifts, *rows
                )
            except Exception:  # of any type: the ordinary backward pass shows whether the model is at fault
                return None
        self.losses.update(zip(range(first, last), losses.tolist()))
        outer = {name: OuterProducts(cotangents[name].flatten(1), vectors[name].flatten(1)) for name in multiplied}
        return {name: outer[name] if name in outer else found[name] for name in self.parameters}

    def sample_gradient(self, sample: int) -> Gradients:
        """Return the gradient of one sample's loss, by an ordinary backward pass."""
        gradients, self.losses[sample] = self._backward(slice(sample, sample + 1))
        return gradients

    def batch_gradient(self) -> Gradients:
        """Return the gradient of the loss on all samples together, with the buffers that each sample's gradient is computed with.

        The run's own gradient may belong to other buffers: spectral normalization changes them in every forward pass.
        """
        return self._backward(slice(None))[0]

    def _backward(self, samples: slice, watched: AbstractContextManager[Any] | None = None) -> tuple[Gradients, float]:
        """Return the gradient of the loss on some samples as one batch, and the loss. The forward pass runs in a context."""
        arguments = self.batch.with_rows(self.batch.rows(samples))
        parameters = list(self.parameters.values())
        with self._isolated(samples.start or 0):
            with watched or nullcontext():
                loss = self.loss_module(*arguments)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, parameters)]
        return dict(zip(self.parameters, filled)), float(loss.detach())

    @contextmanager
    def _isolated(self, sample: int) -> Iterator[None]:
        """Draw the sample's own dropout masks inside the context, and restore the model afterwards."""
        seeded(derived_seed(self.seed, f"sample {sample}"))
        with self._state.kept(), _no_warnings():
            yield

    def _choose_method(self, trajectories: Trajectories) -> _Method:
        """Find shared tensors, and whether samples interact and can be differentiated together.

        Returns:
            How the gradients of this seed and of later ones are computed.

        Raises:
            InapplicableError: Samples interact, or the model does not run on one sample.
        """
        shared = self._shared_tensors()
        self.batch = self.batch.sharing(shared)
        self._require_independence(trajectories)
        self._compare_methods()
        return _Method(shared, self.is_random, self.vectorized, self.products)

    def _compare_methods(self) -> None:
        """Differentiate the first sample by both methods, and choose the vectorized one if the results are equal.

        Weights that multiply one vector per sample have outer products as gradients, unless they are used in other ways as well.

        If all samples fit in memory, they are differentiated together already, unless random numbers depend on how many they are.

        Raises:
            InapplicableError: The model does not run on one sample.
        """
        seeded(derived_seed(self.seed, "sample 0"))
        before, watched = _generator_states(self.device), VectorProducts(self.parameters)
        try:
            ordinary, self.losses[0] = self._backward(slice(0, 1), watched)
        except Exception as error:
            msg = (
                "Per-sample gradients need a model and a loss that run on one sample alone. On the first of "
                f"{len(self.batch)} samples, {type(self.model).__name__} (seed {self.seed}) raised {type(error).__name__}: "
                f"{error} Pass inputs whose first dimension counts samples. {SHARED_HINT}"
            )
            raise InapplicableError(msg) from error
        self.is_random = before != _generator_states(self.device)
        fused = (module for module in self.model.modules() if isinstance(module, nn.RNNBase))
        if sum(p.numel() for module in fused for p in module.parameters()) >= LARGE_RECURRENCE:
            return
        step = 1 if self.is_random else at_once(len(self.batch), self.size)
        # A product that was not seen makes a difference.
        for products in (watched.found, {}) if watched.found else ({},):
            self.products = products
            vectorized = self._vectorized_gradients(0, step)
            self.vectorized = vectorized is not None and _equal_gradients(
                ordinary, {name: dense(first_samples(gradient, 1))[0] for name, gradient in vectorized.items()}
            )
            if self.vectorized:
                self._latest = (0, vectorized) if vectorized is not None and step > 1 else None
                return

    def _shared_tensors(self) -> frozenset[int]:
        """Return the tensors that have as many rows as there are samples by coincidence; all samples share them."""
        split = sorted(self.batch.split)
        for number in range(min(len(split), MOST_SHARED + 1) if len(split) > 1 else 0):
            for shared in itertools.combinations(split, number):
                if self._runs_with_repeated_sample(self.batch.sharing(shared)):
                    return frozenset(shared)
        return frozenset()

    def _runs_with_repeated_sample(self, batch: _Batch) -> bool:
        """Whether the model and its loss run when the first sample is appended to the batch."""
        try:
            self._output(batch, batch.rows([*range(len(batch)), 0]))
        except Exception:  # of any type: a mask that is one row too short, for example
            return False
        return True

    def _output(self, batch: _Batch, rows: Sequence[Tensor]) -> Any:
        """Return the model's output for other rows, with the random numbers of the run."""
        seeded(derived_seed(self.seed, "forward"))
        inputs, target = batch.with_rows(rows)
        with self._state.kept(), _no_warnings():
            return evaluate(self.model, *call_arguments(inputs), target, self.loss_module.loss)[0]

    # Requirements

    def _require_loss_and_samples(self) -> None:
        if self.loss is None:
            msg = (
                "Per-sample gradients need a loss. This run has none. Hand one in: loss=F.cross_entropy with target=..., or "
                "labels for a model that computes its own."
            )
            raise InapplicableError(msg)
        if len(self.batch) < 2:
            msg = f"Per-sample gradients need at least two samples. The inputs hold {len(self.batch)}. Use a larger batch."
            raise InapplicableError(msg)

    def _require_independence(self, trajectories: Trajectories) -> None:
        interact = self._samples_interact()
        if interact or (interact is None and trajectories.count == 1):
            msg = (
                "Per-sample gradients need samples that do not interact. Those of "
                f"{type(self.model).__name__} in {'train' if self.model.training else 'eval'} mode (seed {self.seed}) do: by "
                "BatchNorm, by a softmax over the batch, or because the first dimension of the inputs is not the batch. Measure "
                f"with train=False, or pass inputs whose first dimension counts samples. {SHARED_HINT}"
            )
            raise InapplicableError(msg)

    def _samples_interact(self) -> bool | None:
        """Whether outputs of the first half of the samples change with the second half; None if this cannot be decided."""
        count = len(self.batch)
        half = -(-count // 2)
        rows = self.batch.rows(slice(None))
        others = [t[(torch.arange(count) % half).to(t.device)] for t in rows]
        if all(torch.equal(a, b) for a, b in zip(rows, others)):
            return None
        found = []
        for chosen in (rows, others):
            output = self._output(self.batch, chosen)
            found.append([t.detach() for t in tensors_in(output) if is_float(t)])
        agreements = [_first_samples_agree(a, b, count, half) for a, b in zip(*found)]
        return None if all(agrees is None for agrees in agreements) else False in agreements

    def require_mean_or_sum(self) -> None:
        """Require a loss that is a mean or a sum over samples, as far as its values show.

        A mean, weighted or not, lies between the smallest and the largest loss of a sample, and a sum equals the sum of the
        samples' losses. A contrastive loss is neither. If the forward pass draws random numbers, the values are not compared.

        Raises:
            InapplicableError: The batch's loss is neither, or the loss of a sample is infinite or NaN and the batch's is not.
        """
        values = list(self.losses.values())
        if self.loss is None or not bool(self.loss.isfinite()):
            return
        self._require_finite_losses()
        if self.is_random:
            return
        whole, total = float(self.loss.detach()), math.fsum(values)
        slack = 1e-2 * max(map(abs, values)) + 1e-2 * abs(whole)
        low, high = min(*values, total) - slack, max(*values, total) + slack
        if not low <= whole <= high:
            msg = (
                "Per-sample gradients need a loss that is a mean or a sum over samples. The batch's loss is "
                f"{whole:.4g} (seed {self.seed}), but the losses of single samples are between {min(values):.4g} and "
                f"{max(values):.4g}. A loss that compares samples, such as a contrastive one, has no per-sample gradients."
            )
            raise InapplicableError(msg)

    def _require_finite_losses(self) -> None:
        """Require a finite loss of every sample alone."""
        for sample, value in sorted(self.losses.items()):
            if not math.isfinite(value):
                msg = (
                    "Per-sample gradients need a finite loss of every sample alone. The batch's loss is finite, but that of "
                    f"sample {sample} (seed {self.seed}) is {value}: the loss compares samples, or the sample has no label. Pass "
                    "a loss that is a mean over samples, and samples with labels."
                )
                raise InapplicableError(msg)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppress warnings: the run has already shown those of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _generator_states(device: torch.device) -> tuple[object, ...]:
    """Return the states of all generators that a model may draw from."""
    numpy = sys.modules.get("numpy")
    drawn = () if numpy is None else numpy.random.get_state()
    # Arrays are compared by their bytes.
    return generator_state(), generator_state(device), random.getstate(), tuple(map(_as_bytes, drawn))


def _as_bytes(part: Any) -> object:
    return part.tobytes() if hasattr(part, "tobytes") else part


class _LossModule(nn.Module):
    """The loss of a model as a module, so that ``functional_call`` can replace the parameters."""

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs: Any, target: Any) -> Tensor:
        _, loss = evaluate(self.model, *call_arguments(inputs), target, self.loss)
        if loss is None:
            msg = "the loss of one sample carries no gradient"
            raise RuntimeError(msg)
        return loss


class _Batch:
    """A tree of tensors, some of which have one row per sample."""

    def __init__(self, tree: Any, count: int, shared: Collection[int] = ()) -> None:
        self.tree, self.count = tree, count
        self.tensors: list[Tensor] = []
        map_tensors(tree, lambda t: self.tensors.append(t) or t)  # type: ignore[func-returns-value]
        as_long = {number for number, t in enumerate(self.tensors) if t.dim() > 0 and len(t) == count}
        self.split = as_long - set(shared)
        """Numbers of the tensors that have one row per sample."""

    def __len__(self) -> int:
        return self.count

    def sharing(self, shared: Collection[int]) -> _Batch:
        """Return the same batch, with some tensors shared by all samples although they have as many rows as there are samples."""
        return _Batch(self.tree, self.count, shared)

    def rows(self, samples: slice | list[int]) -> list[Tensor]:
        """Return the rows of some samples, of every tensor that has one row per sample."""
        return [t.detach()[samples] for number, t in enumerate(self.tensors) if number in self.split]

    def with_rows(self, rows: Sequence[Tensor]) -> Any:
        """Return a copy of the tree with other rows. It is a copy because the model may change its inputs in place."""
        remaining, numbers = iter(rows), itertools.count()
        return map_tensors(
            self.tree, lambda t: (next(remaining) if next(numbers) in self.split else t.detach()).clone()
        )


def _equal_gradients(found: Gradients, other: Gradients) -> bool:
    """Whether gradients are equal up to round-off."""
    whole = math.sqrt(sum(float(norm(g)) ** 2 for g in found.values()))
    for name, gradient in found.items():
        eps = torch.finfo(gradient.dtype).eps
        difference = float(norm(gradient - other[name]))
        # A gradient that cancels, such as that of attention's key bias, consists of round-off.
        if not difference <= math.sqrt(eps) * float(norm(gradient)) + ROUND_OFF * eps * whole:
            return False
    return True


def _first_samples_agree(a: Tensor, b: Tensor, count: int, half: int) -> bool | None:
    """Whether two tensors agree on their first ``half`` of ``count`` samples; None if they cannot be divided into samples."""
    agrees = None
    for axis in range(min(a.dim(), 2)):
        if a.shape == b.shape and a.shape[axis] and a.shape[axis] % count == 0:
            part = a.shape[axis] // count * half
            left, right = a.narrow(axis, 0, part), b.narrow(axis, 0, part)
            agrees = agrees or _are_close(left, right)
    return agrees


def _are_close(left: Tensor, right: Tensor) -> bool:
    """Whether all entries are equal up to round-off at the RMS of the finite ones, NaN and infinity included."""
    finite = left[left.isfinite()]
    rms = float(norm(finite)) / math.sqrt(max(1, finite.numel()))
    tolerance = math.sqrt(torch.finfo(left.dtype).eps) * rms
    return bool(torch.isclose(left, right, rtol=0, atol=tolerance, equal_nan=True).all())


PER_SAMPLE = Need("per-sample gradients", PerSample, Stage.RERUN, requires=(PARAMETER_GRADIENTS,))
"""The :class:`PerSample` gradients of the run's batch."""
