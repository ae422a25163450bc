"""Gradients of the loss on every sample alone."""

from __future__ import annotations

import itertools
import math
import random
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.capture.recorder import Loss, evaluate
from ...engine.isolation import derived_seed, generator_state, preserved_model, seeded
from ...engine.jacobian.trajectories import Trajectories
from ...engine.linalg.gram import at_once
from ...engine.linalg.norms import norm
from ...engine.runs.common_needs import PARAMETER_GRADIENTS
from ...engine.runs.forward_pass import call_arguments
from ...engine.runs.run import Need, Run, Stage
from ...engine.trees import batch_size, is_float, map_tensors, tensors_in
from ...errors import InapplicableError

__all__ = ["PER_SAMPLE", "PerSample"]


Gradients = dict[str, Tensor]
"""By parameter, ``(samples, *shape)``."""


ROUND_OFF = 16
"""What is smaller than so many times the working precision, beside what it is part of, is round-off."""


MOST_SHARED = 3
"""So many inputs that have a row for every sample by accident are recognized."""
SHARED = (
    "Where another input, the same for all samples (a table, say), has as many rows as there are samples by accident, use "
    "another batch size."
)


class PerSample:
    """The gradient of the loss on each sample alone, ``g_i = ∂loss(x_i)/∂w``, by every parameter that the loss depends on.

    Samples are what the first dimension of the inputs counts. Each goes through the model as a batch of one, with dropout masks
    of its own. Tensors of inputs and target that have this dimension are cut, all others are handed on; so are those that have
    as many rows by accident, without which as they are the model does not run on one sample more.

    Raises:
        InapplicableError: There is no answer: no loss, one sample only, samples that interact, a model that does not run
            on one alone.
    """

    def __init__(self, run: Run) -> None:
        capture = run.capture
        self.seed, self.device, self.loss = run.seed, capture.device, capture.loss
        self.model, self.step = capture.model, _Step(capture.model, run.recipe.loss)
        self.samples = _Samples((capture.inputs, capture.target), batch_size(capture.inputs) or 0)
        known = dict(capture.model.named_parameters())
        used = [name for name, gradient in run[PARAMETER_GRADIENTS].items() if gradient is not None]
        self.parameters: dict[str, nn.Parameter] = {name: known[name] for name in used}
        self.size = sum(p.numel() for p in self.parameters.values())
        self.losses: dict[int, float] = {}
        self.draws = False
        """Whether the forward pass draws random numbers."""
        self.together = False
        """Whether several samples can be differentiated at once."""
        self._latest: tuple[int, Gradients] | None = None
        self._require_samples()
        if self.parameters:
            self._tell_shared()
            self._require_independence(run.trajectories)
            self._try()

    def chunks(self) -> Iterator[Gradients]:
        """Yield the gradients of as many samples at a time as fit in memory.

        Raises:
            InapplicableError: The loss of the batch is neither a mean nor a sum of the samples' own.
        """
        if not self.parameters:
            return
        step = at_once(len(self.samples), self.size)
        for first in range(0, len(self.samples), step):
            yield self.gradients(first, min(first + step, len(self.samples)))
        self.require_mean_or_sum()

    def gradients(self, first: int, last: int) -> Gradients:
        """Return the gradients of the samples from ``first`` to before ``last``; the latest are kept."""
        if self._latest is None or self._latest[0] != first:
            self._latest = None
            found = self._together(first, last) if self.together else None
            if found is None:
                self.together = False
                alone = [self._alone(sample) for sample in range(first, last)]
                found = {name: torch.stack([gradients[name] for gradients in alone]) for name in self.parameters}
            self._latest = first, found
        return self._latest[1]

    def _together(self, first: int, last: int) -> Gradients | None:
        """Differentiate several samples at once; None where some operator cannot."""
        # It takes a tenth of a second to load, which only those pay who ask.
        from torch.func import functional_call, grad_and_value, vmap

        def loss(parameters: dict[str, Tensor], *rows: Tensor) -> Tensor:
            given = self.samples.joined([row.unsqueeze(0) for row in rows])
            value: Tensor = functional_call(self.step, parameters, given)
            return value

        parameters = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        rows = self.samples.rows(slice(first, last))
        in_dims = (None, *(0 for _ in rows))
        with self._undisturbed(first), torch.no_grad():
            try:
                found, losses = vmap(grad_and_value(loss), in_dims, randomness="different")(parameters, *rows)
            except Exception:  # whatever it is: one after the other tells whether it is the model's fault
                return None
        self.losses.update(zip(range(first, last), losses.tolist()))
        return {name: found[f"model.{name}"] for name in self.parameters}

    def _alone(self, sample: int) -> Gradients:
        """Differentiate one sample, by an ordinary backward pass."""
        gradients, self.losses[sample] = self._differentiated(slice(sample, sample + 1))
        return gradients

    def of_batch(self) -> Gradients:
        """Return the gradient of the loss on all samples together, in the state in which each alone is differentiated.

        That of the run may be of another: spectral normalization takes a step at every forward pass.
        """
        return self._differentiated(slice(None))[0]

    def _differentiated(self, chosen: slice) -> tuple[Gradients, float]:
        """Differentiate the loss on some samples; return its value, too."""
        given = self.samples.joined(self.samples.rows(chosen))
        parameters = list(self.parameters.values())
        with self._undisturbed(chosen.start or 0):
            loss = self.step(*given)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, parameters)]
        return dict(zip(self.parameters, dense)), float(loss.detach())

    @contextmanager
    def _undisturbed(self, sample: int) -> Iterator[None]:
        """Give a sample its own dropout masks, and leave no trace in the model for the next."""
        seeded(derived_seed(self.seed, f"sample {sample}"))
        with preserved_model(self.model), _silent():
            yield

    def _try(self) -> None:
        """Differentiate the first sample both ways: the fast one is taken where both are the same.

        Raises:
            InapplicableError: The model does not run on one sample.
        """
        seeded(derived_seed(self.seed, "sample 0"))
        before = _generators(self.device)
        try:
            alone = self._alone(0)
        except Exception as error:
            msg = (
                "the model and its loss must run on one sample alone for it to have a gradient of its own. On the first of "
                f"{len(self.samples)} {type(self.model).__name__} (seed {self.seed}) raised {type(error).__name__}: {error} "
                f"Hand in inputs whose first dimension counts samples. {SHARED}"
            )
            raise InapplicableError(msg) from error
        self.draws = before != _generators(self.device)
        together = self._together(0, 1)
        self.together = together is not None and _same(alone, together)

    def _tell_shared(self) -> None:
        """Find out which tensors have as many rows as there are samples by accident, and hand them on as they are."""
        cut = sorted(self.samples.cut)
        for number in range(min(len(cut), MOST_SHARED + 1) if len(cut) > 1 else 0):
            for shared in itertools.combinations(cut, number):
                samples = self.samples.sharing(shared)
                if self._runs_on_more(samples):
                    self.samples = samples
                    return

    def _runs_on_more(self, samples: _Samples) -> bool:
        """Whether the model and its loss run when the first sample comes once more."""
        try:
            self._output(samples, samples.rows([*range(len(samples)), 0]))
        except Exception:  # whatever it is: a mask that is one row too long, for instance
            return False
        return True

    def _output(self, samples: _Samples, rows: Sequence[Tensor]) -> Any:
        """Return what the model answers to other rows, all with the same random numbers."""
        seeded(derived_seed(self.seed, "forward"))
        inputs, target = samples.joined(rows)
        with preserved_model(self.model), _silent():
            return evaluate(self.model, *call_arguments(inputs), target, self.step.loss)[0]

    # Whether there is an answer

    def _require_samples(self) -> None:
        if self.loss is None:
            msg = (
                "per-sample gradients must be those of a loss. This run has none. Hand one in: loss=F.cross_entropy with "
                "target=..., or labels for a model that computes its own."
            )
            raise InapplicableError(msg)
        if len(self.samples) < 2:
            msg = f"gradients of two samples at least must be there to differ. The inputs hold {len(self.samples)}: use more."
            raise InapplicableError(msg)

    def _require_independence(self, trajectories: Trajectories) -> None:
        interact = self._interact()
        if interact or (interact is None and trajectories.count == 1):
            msg = (
                "samples must not interact for each to have a gradient of its own. Those of "
                f"{type(self.model).__name__} in {'train' if self.model.training else 'eval'} mode (seed {self.seed}) do: by "
                "BatchNorm, a softmax over the batch, or because the first dimension of the inputs is not the batch. Measure "
                f"with train=False, or hand in inputs whose first dimension counts samples. {SHARED}"
            )
            raise InapplicableError(msg)

    def _interact(self) -> bool | None:
        """Whether outputs of the first half change when the other samples do; None where neither can tell."""
        count = len(self.samples)
        half = -(-count // 2)
        rows = self.samples.rows(slice(None))
        others = [t[(torch.arange(count) % half).to(t.device)] for t in rows]
        if all(torch.equal(a, b) for a, b in zip(rows, others)):
            return None
        found = []
        for chosen in (rows, others):
            output = self._output(self.samples, chosen)
            found.append([t.detach() for t in tensors_in(output) if is_float(t)])
        told = [_first_samples_agree(a, b, count, half) for a, b in zip(*found)]
        return None if all(same is None for same in told) else False in told

    def require_mean_or_sum(self) -> None:
        """See that the loss is one of samples, as far as its values can tell.

        The batch's lies between the smallest and the largest of its samples where it is a mean, however weighted, and on their
        sum where it is one. A contrastive loss does not. Random numbers make it another loss.
        """
        values = list(self.losses.values())
        if self.loss is None or not bool(self.loss.isfinite()):
            return
        self._require_numbers()
        if self.draws:
            return
        whole, total = float(self.loss.detach()), math.fsum(values)
        slack = 1e-2 * max(map(abs, values)) + 1e-2 * abs(whole)
        low, high = min(*values, total) - slack, max(*values, total) + slack
        if not low <= whole <= high:
            msg = (
                "the loss must be a mean or a sum over samples for each to have a gradient of its own. Of the batch it is "
                f"{whole:.4g} (seed {self.seed}), of its samples alone between {min(values):.4g} and {max(values):.4g}: a "
                "contrastive loss, mostly. It has no per-sample gradients."
            )
            raise InapplicableError(msg)

    def _require_numbers(self) -> None:
        """The loss of the batch is a number: that of each sample must be one, too."""
        for sample, value in sorted(self.losses.items()):
            if not math.isfinite(value):
                msg = (
                    "the loss of every sample alone must be a number for it to have a gradient of its own. Of the batch it is "
                    f"one, of sample {sample} alone (seed {self.seed}) it is {value}: a loss that compares samples, or a sample "
                    "without a label. Hand in a loss that is a mean over samples, and samples that have one."
                )
                raise InapplicableError(msg)


@contextmanager
def _silent() -> Iterator[None]:
    """Show no warnings: what a model has to say it has said when it ran."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _generators(device: torch.device) -> tuple[object, ...]:
    """Return the states of all generators that a model may draw from."""
    numpy = sys.modules.get("numpy")
    drawn = "" if numpy is None else repr(numpy.random.get_state())
    return generator_state(), generator_state(device), random.getstate(), drawn


class _Step(nn.Module):
    """The loss of a model as a module, so that the parameters can be handed in."""

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs: Any, target: Any) -> Tensor:
        _, loss = evaluate(self.model, *call_arguments(inputs), target, self.loss)
        if loss is None:
            msg = "the loss of one sample carries no gradient"
            raise RuntimeError(msg)
        return loss


class _Samples:
    """A tree of tensors, some of which have one row per sample."""

    def __init__(self, tree: Any, count: int, shared: Collection[int] = ()) -> None:
        self.tree, self.count = tree, count
        self.tensors: list[Tensor] = []
        map_tensors(tree, lambda t: self.tensors.append(t) or t)  # type: ignore[func-returns-value]
        as_long = {number for number, t in enumerate(self.tensors) if t.dim() > 0 and len(t) == count}
        self.cut = as_long - set(shared)
        """Numbers of the tensors that have one row per sample."""

    def __len__(self) -> int:
        return self.count

    def sharing(self, shared: Collection[int]) -> _Samples:
        """Return the same tree with some tensors that have as many rows but are the same for all samples."""
        return _Samples(self.tree, self.count, shared)

    def rows(self, chosen: slice | list[int]) -> list[Tensor]:
        """Return these rows of all tensors that have some."""
        return [t.detach()[chosen] for number, t in enumerate(self.tensors) if number in self.cut]

    def joined(self, rows: Sequence[Tensor]) -> Any:
        """Return the tree with other rows, in copies, for the model may change them in place."""
        remaining, numbers = iter(rows), itertools.count()
        return map_tensors(self.tree, lambda t: (next(remaining) if next(numbers) in self.cut else t.detach()).clone())


def _same(found: Gradients, other: Gradients) -> bool:
    """Whether gradients are the same up to round-off."""
    whole = math.sqrt(sum(float(norm(g)) ** 2 for g in found.values()))
    for name, gradient in found.items():
        eps = torch.finfo(gradient.dtype).eps
        difference = float(norm(gradient - other[name]))
        # A gradient that cancels, such as that of a bias of keys, is all round-off.
        if not difference <= math.sqrt(eps) * float(norm(gradient)) + ROUND_OFF * eps * whole:
            return False
    return True


def _first_samples_agree(a: Tensor, b: Tensor, count: int, half: int) -> bool | None:
    """Whether the first samples' parts of two tensors are the same; None where the tensors cannot be divided into samples."""
    told = None
    for axis in range(min(a.dim(), 2)):
        if a.shape == b.shape and a.shape[axis] and a.shape[axis] % count == 0:
            part = a.shape[axis] // count * half
            left, right = a.narrow(axis, 0, part), b.narrow(axis, 0, part)
            told = told or _close(left, right)
    return told


def _close(left: Tensor, right: Tensor) -> bool:
    """Whether entries are the same up to round-off of those that are numbers."""
    numbers = left[left.isfinite()]
    usual = float(norm(numbers)) / math.sqrt(max(1, numbers.numel()))
    tolerance = math.sqrt(torch.finfo(left.dtype).eps) * usual
    return bool(torch.isclose(left, right, rtol=0, atol=tolerance, equal_nan=True).all())


PER_SAMPLE = Need("per-sample gradients", PerSample, Stage.RERUN, requires=(PARAMETER_GRADIENTS,))
"""Those of the loss on each sample alone."""
