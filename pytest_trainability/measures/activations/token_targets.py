"""Integer inputs of positions, and the integer targets that the loss compares the scores at each position with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...engine.isolation import preserved_model
from ...engine.runs.objective import Objective
from ...engine.runs.run import Need, Run, Stage
from ...engine.torch_internals import without_torch_functions
from ...engine.trees import carries_gradient, is_float, map_tensors, tensors_in

__all__ = [
    "CAUSAL_MODEL",
    "TOKEN_TARGETS",
    "UNORDERED_MODEL",
    "TokenTargets",
    "is_triangular",
    "observed_losses",
    "other_tokens",
]

FEWEST = 4
"""Number of positions, and of compared targets, below which an agreement may be a coincidence."""
LARGEST = 2**24
"""Largest number of entries of a tensor that may be a mask."""
DIAGONALS = (1, 0, 2)
"""Numbers of the first diagonal of a mask: behind each position, at it, and one further."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenTargets:
    """An integer input whose positions have a target each."""

    tokens: Tensor
    """The input, ``(samples, positions)`` or ``(positions, samples)``."""
    axis: int
    """Dimension that counts its positions."""
    call: int
    """Number of the cross-entropy that reads the targets, in the order of their calls."""
    scored: int
    """Number of positions with scores: all, or all but the last one."""
    counted: Tensor
    """Which targets are not ignored, ``(samples, scored)``."""
    are_next: bool
    """Whether the target of each position is the token at the next one."""
    has_mask: bool
    """Whether the model makes or holds a triangular mask."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.tokens.shape[1 - self.axis]

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.tokens.shape[self.axis]

    def replaced(self, inputs: Any, is_kept: Tensor) -> Any:
        """Return the inputs with other tokens where they are not kept.

        Args:
            inputs: The inputs of the model.
            is_kept: Booleans ``(samples, positions)``.
        """
        kept = is_kept.to(self.tokens.device).movedim(1, self.axis)
        others = torch.where(kept, self.tokens, other_tokens(self.tokens))

        def changed(tensor: Tensor) -> Tensor:
            same = tensor.shape == self.tokens.shape and torch.equal(tensor, self.tokens)
            return others.to(tensor.dtype) if same else tensor

        return map_tensors(inputs, changed)

    def scores(self, calls: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the scores of one run, ``(samples, scored, classes)``."""
        scores, _ = calls[self.call]
        rows = scores.movedim(1, -1).flatten(0, -2) if scores.dim() > 2 else scores
        return _by_sample(rows, self.samples, self.axis)


def other_tokens(tokens: Tensor) -> Tensor:
    """Return for each token another one of those that occur; the same if there is one only."""
    values, places = torch.unique(tokens, return_inverse=True)
    others: Tensor = values[(places + 1) % len(values)]
    return others


def is_triangular(mask: Tensor) -> bool:
    """Return whether the last two dimensions of a tensor are a mask of all entries above a diagonal, wherever this lies.

    Above it all entries are equal. None of those next to it has the same value, and some of those further below have another one.
    """
    if mask.dim() < 2 or mask.shape[-1] != mask.shape[-2] or not mask.shape[-1] >= FEWEST or mask.numel() > LARGEST:
        return False
    one = mask.detach().reshape(-1, *mask.shape[-2:])[0]
    if bool((one[2, 1] == one[0, -1]) & (one[1, 2] == one[-1, 0])):
        return False
    ranks = torch.arange(len(one), device=one.device)
    for turned in (one, one.T):
        above = turned[0, -1]
        for shift in DIAGONALS:
            distance = ranks - ranks[:, None] - shift
            is_edge = bool((turned[distance >= 0] == above).all()) and not bool((turned[distance == -1] == above).any())
            if is_edge and bool((turned[distance < -1] != above).any()):
                return True
    return False


class CrossEntropies(TorchFunctionMode):
    """Keeps the scores and the class numbers of every cross-entropy, and whether a triangular mask is used."""

    def __init__(self, *, looks_for_mask: bool) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.has_mask = False
        self.output: Any = None
        """Output of the model."""
        self._looks_for_mask = looks_for_mask

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in {F.cross_entropy, F.nll_loss}:
            scores = args[0] if args else kwargs["input"]
            target = args[1] if len(args) > 1 else kwargs["target"]
            if not is_float(target):
                self.calls.append((scores.detach(), target.detach()))
        result = func(*args, **kwargs)
        if self._looks_for_mask and not self.has_mask:
            with without_torch_functions():
                read_or_made = (t for t in tensors_in((args, kwargs, result)) if not carries_gradient(t))
                self.has_mask = kwargs.get("is_causal") is True or any(map(is_triangular, read_or_made))
        return result


def observed_losses(run: Run, inputs: Any) -> CrossEntropies:
    """Return the scores and targets of each cross-entropy in a run in evaluation mode, and the output of the model.

    Args:
        run: The run, at stage ``RERUN``.
        inputs: Inputs to run the model on.
    """
    return _observed(run, inputs, looks_for_mask=False)


def _observed(run: Run, inputs: Any, *, looks_for_mask: bool) -> CrossEntropies:
    objective, observer = Objective.of(run), CrossEntropies(looks_for_mask=looks_for_mask)
    objective.inputs = inputs
    with preserved_model(run.capture.model):
        run.capture.model.eval()
        with torch.enable_grad(), observer:
            observer.output, _ = objective.outputs()
    return observer


def _token_targets(run: Run) -> TokenTargets | None:
    tokens = [t for t in tensors_in(run.capture.inputs) if _are_tokens(t)]
    if not tokens or run.capture.loss is None:
        return None
    observed = _observed(run, run.capture.inputs, looks_for_mask=True)
    found = [
        replace(candidate, has_mask=observed.has_mask)
        for call, (_, target) in enumerate(observed.calls)
        for tensor in tokens
        for axis in (1, 0)
        for candidate in _candidates(tensor, axis, call, target)
    ]
    return max(found, key=lambda candidate: candidate.are_next, default=None)


def _are_tokens(tensor: Tensor) -> bool:
    return not is_float(tensor) and tensor.dtype != torch.bool and tensor.dim() == 2 and len(torch.unique(tensor)) > 2


def _candidates(tokens: Tensor, axis: int, call: int, target: Tensor) -> Iterator[TokenTargets]:
    """Yield how targets belong to the positions of an input, if they do."""
    samples, positions = tokens.shape[1 - axis], tokens.shape[axis]
    scored = target.numel() // samples
    if positions < FEWEST or target.numel() != samples * scored or scored not in {positions, positions - 1}:
        return
    rows = tokens.movedim(axis, 1)
    aligned = _by_sample(target.flatten(), samples, axis)
    counted = aligned >= 0
    compared = counted[:, : positions - 1]
    after, here = (
        bool((aligned[:, : positions - 1] == other)[compared].all()) for other in (rows[:, 1:], rows[:, :-1])
    )
    if int(compared.sum()) >= FEWEST:
        yield TokenTargets(tokens, axis, call, scored, counted, after and not here, has_mask=False)


def _by_sample(rows: Tensor, samples: int, axis: int) -> Tensor:
    """Return rows of all positions, ``(samples * positions, …)``, as ``(samples, positions, …)``."""
    if axis == 1:
        return rows.reshape(samples, -1, *rows.shape[1:])
    return rows.reshape(-1, samples, *rows.shape[1:]).movedim(0, 1)


TOKEN_TARGETS: Need[TokenTargets | None] = Need("targets of tokens", _token_targets, Stage.RERUN)
"""The integer input whose positions have a target each, preferably the next token; None if there is none."""


def _is_causal_model(run: Run) -> bool:
    found = run[TOKEN_TARGETS]
    return found is not None and found.are_next and found.has_mask


# These needs do not list that of the targets, which are found in one more run: the first seed decides about the architecture.
CAUSAL_MODEL: Need[bool] = Need(
    "causal model",
    lambda run: run.of_first_seed(CAUSAL_MODEL.name, lambda: _is_causal_model(run)),
    Stage.RERUN,
    once=True,
)
"""Whether the loss asks for the next token, and the model makes or holds a causal mask."""


def _knows_other_positions(run: Run) -> bool:
    """Return whether scores at a position depend on the tokens elsewhere, in a model whose positions have targets of their own.

    A zero that is trained may become a position embedding: nothing is expected of such a model.
    """
    found = run[TOKEN_TARGETS]
    parameters = run.capture.model.parameters()
    if (
        found is None
        or found.are_next
        or any(p.requires_grad and p.dim() > 1 and not bool(p.any()) for p in parameters)
    ):
        return False
    return _scores_depend_on_others(run, found)


def _scores_depend_on_others(run: Run, found: TokenTargets) -> bool:
    is_kept = (torch.arange(found.positions) % 2 == 0).expand(found.samples, -1)
    before = found.scores(observed_losses(run, run.capture.inputs).calls)
    after = found.scores(observed_losses(run, found.replaced(run.capture.inputs, is_kept)).calls)
    if not (bool(before.isfinite().all()) and bool(after.isfinite().all())):
        return False
    kept = is_kept[:, : found.scored].to(before.device)
    return not torch.allclose(before[kept], after[kept], rtol=1e-4, atol=1e-4 * float(before.std(correction=0)))


UNORDERED_MODEL: Need[bool] = Need(
    "model of tokens",
    lambda run: run.of_first_seed(UNORDERED_MODEL.name, lambda: _knows_other_positions(run)),
    Stage.RERUN,
    once=True,
)
"""Whether each token has a target that depends on the others, so that the model ought to know their order."""
