"""Steps through which a language model sees the token that it is to predict."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch
from torch import Tensor, finfo

from ...engine.isolation import preserved_model
from ...engine.runs.run import Need, Run, Stage
from ...engine.runs.state_hooks import visited_states
from ...engine.trees import tensors_in
from ...errors import InapplicableError
from ...records.causes import CauseRecord
from ..measure import declare
from .token_targets import CAUSAL_MODEL, TOKEN_TARGETS, TokenTargets, observed_losses

__all__ = ["LEAKED_TARGETS", "kept_positions"]

ROUND_OFF = 64
"""Relative change of states and scores, in units of the precision, up to which it is round-off."""


def kept_positions(samples: int, positions: int) -> Tensor:
    """Return which tokens stay, ``(samples, positions)``: those up to a position, which differs from sample to sample."""
    last = torch.linspace(1, positions - 1, samples).round() if samples > 1 else torch.tensor([(positions + 1) // 2])
    return torch.arange(positions) < last[:, None]


class _Comparison:
    """Compares two runs, in the second of which each step reads what it did in the first one at the kept positions."""

    def __init__(self, run: Run, targets: TokenTargets) -> None:
        self._run, self._targets = run, targets
        self._kept = kept_positions(targets.samples, targets.positions)
        self._states: dict[tuple[int, int], Tensor] = {}
        self.leaking: set[int] = set()
        self.output_leaks = self.loss_leaks = False

    def examine(self) -> None:
        """Run twice, and find out which steps leak, and whether the output and the loss do behind the last one."""
        run, targets = self._run, self._targets
        with preserved_model(run.capture.model), visited_states(run.capture, run.chain, self._record):
            before = observed_losses(run, run.capture.inputs)
        with preserved_model(run.capture.model), visited_states(run.capture, run.chain, self._restore):
            changed = targets.replaced(run.capture.inputs, self._kept)
            after = observed_losses(run, changed)
        scores = [targets.scores(observed.calls) for observed in (before, after)]
        counted = (self._kept[:, : targets.scored].to(scores[0].device)) & targets.counted.to(scores[0].device)
        self.loss_leaks = _differ(scores[0][counted], scores[1][counted])
        outputs = [self._output(observed.output) for observed in (before, after)]
        kept = self._kept.to(scores[0].device)
        self.output_leaks = self.loss_leaks and not (
            outputs[0] is not None and outputs[1] is not None and not _differ(outputs[0][kept], outputs[1][kept])
        )

    def _output(self, output: Any) -> Tensor | None:
        """Return the scores that the model itself returns, ``(samples, positions, classes)``; None if there are none."""
        shape = (self._targets.samples, self._targets.positions)
        found = (t for t in tensors_in(output) if t.is_floating_point() and t.dim() == 3)
        turned = (t.detach().transpose(0, 1) if self._targets.axis == 0 else t.detach() for t in found)
        return next((t for t in turned if tuple(t.shape[:2]) == shape), None)

    def _record(self, index: int, position: int, tensor: Tensor) -> None:
        self._states.setdefault((index, position), tensor.detach().clone())

    def _restore(self, index: int, position: int, tensor: Tensor) -> Tensor | None:
        known = self._states.get((index, position))
        if known is None or known.shape != tensor.shape:
            return None
        masks = [mask for mask in self._masks(tensor) if bool((known != tensor)[~mask].any())] or [*self._masks(tensor)]
        clean = [mask for mask in masks if not _differ(known[mask], tensor.detach()[mask])]
        if masks and not clean:
            self.leaking.add(index)
        return torch.where((clean or masks)[0], known, tensor) if masks else None

    def _masks(self, tensor: Tensor) -> list[Tensor]:
        """Return which entries of a state belong to kept positions, for each pair of dimensions that may count them."""
        sizes = (self._targets.samples, self._targets.positions)
        pairs = [p for p in permutations(range(tensor.dim()), 2) if (tensor.shape[p[0]], tensor.shape[p[1]]) == sizes]
        return [self._mask(tensor, *pair) for pair in pairs]

    def _mask(self, tensor: Tensor, samples: int, positions: int) -> Tensor:
        mask: Tensor = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
        rest = (1,) * (tensor.dim() - 2)
        mask.movedim((samples, positions), (0, 1)).copy_(self._kept.reshape(*self._kept.shape, *rest))
        return mask


def _differ(one: Tensor, other: Tensor) -> bool:
    size = float(one.double().norm())
    eps = finfo(one.dtype).eps if one.is_floating_point() else 0.0
    return float((one.double() - other.double()).norm()) > ROUND_OFF * eps * size


def _leaked_targets(run: Run) -> list[str]:
    targets = run[TOKEN_TARGETS]
    if targets is None or not targets.are_next:
        msg = (
            f"leaked_targets needs a cross-entropy whose targets are the tokens of the input, shifted by one position. "
            f"{type(run.capture.model).__name__} has no such loss. Do not request it."
        )
        raise InapplicableError(msg)
    comparison = _Comparison(run, targets)
    names: tuple[Any, ...] = ("input", *run.chain.names)
    comparison.examine()
    found = [names[index] for index in sorted(comparison.leaking)]
    return [*found, *(["output" if comparison.output_leaks else "loss"] if comparison.loss_leaks else [])]


# Masks and shifts belong to the code, and the comparison takes two forward passes.
LEAKED_TARGETS: Need[list[str]] = Need(
    "leaked targets",
    lambda run: run.of_first_seed(LEAKED_TARGETS.name, lambda: _leaked_targets(run)),
    Stage.RERUN,
    once=True,
)
"""Names of the steps that leak."""


def _leak_causes(run: Run) -> tuple[CauseRecord, ...]:
    """Return whether positions see the whole future, or only the next ones."""
    targets, leaking = run[TOKEN_TARGETS], run[LEAKED_TARGETS]
    if targets is None or not leaking:
        return ()
    if leaking == ["loss"]:
        text = "the loss asks each position for a token that it has read: scores and labels are not shifted by one position"
        return (CauseRecord(text),)
    is_kept = (torch.arange(targets.positions) < targets.positions - 1).expand(targets.samples, -1)
    before = targets.scores(observed_losses(run, run.capture.inputs).calls)
    after = targets.scores(observed_losses(run, targets.replaced(run.capture.inputs, is_kept)).calls)
    half = slice(0, targets.positions // 2)
    sees_all = _differ(before[:, half], after[:, half])
    seen = (
        "all later tokens: the causal mask has no effect" if sees_all else "the next tokens: the causal mask is shifted"
    )
    return (CauseRecord(f"positions see {seen}, first in {leaking[0]}"),)


LEAK_CAUSES: Need[tuple[CauseRecord, ...]] = Need(
    "causes of leaked targets", _leak_causes, Stage.RERUN, requires=(LEAKED_TARGETS,)
)
"""How far positions see."""


@declare("names", needs=[LEAKED_TARGETS], presumes=CAUSAL_MODEL, explained_by=LEAK_CAUSES)
def leaked_targets(run: Run) -> list[str]:
    """Return the steps through which a position sees later tokens, where the loss asks for the next token.

    The loss is recognized by its targets: a cross-entropy of class numbers that equal the integer input, shifted by one position.
    The model then runs twice in evaluation mode. In the second run all tokens behind a position are others, and each sample has
    another such position. Every step reads what it did in the first run up to this position. A step leaks if its result there
    differs by more than the round-off. ``"output"`` stands for what follows the last step, and ``"loss"`` for a loss that
    compares the scores of other positions.

    A preset asks for it only if the model also makes or holds a triangular mask. An encoder that a test gives such targets is not
    meant to be causal.

    The first seed decides for all, because masks and shifts belong to the code.

    It misleads if a step uses random numbers in evaluation mode.

    Returns:
        Names of steps in program order; ``"input"`` for what enters the first step. Empty for a causal model. Positions whose
        target is ignored do not count, such as those of a prefix.

    Raises:
        InapplicableError: There is no loss with such targets.

    Source: Vaswani et al., NeurIPS 2017, section 3.2.3, for the mask.
    """
    return run[LEAKED_TARGETS]
