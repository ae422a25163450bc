"""The size of the states along the chain."""

from __future__ import annotations

import math

from ...engine.runs.common_needs import STATE_RMS, grows_by
from ...engine.runs.input_scale import input_causes, table_causes
from ...engine.runs.run import Need, Run
from ...records.causes import CauseRecord
from ..measure import declare

__all__ = ["STATE_CAUSES"]

GROWTH = math.log(4)
"""Growth of the states along the chain, in nats, from which on it explains large ones."""


def _state_causes(run: Run) -> tuple[CauseRecord, ...]:
    growth = [CauseRecord(is_growth=True)] if grows_by(run) > GROWTH else []
    return (*input_causes(run), *table_causes(run), *growth)


STATE_CAUSES: Need[tuple[CauseRecord, ...]] = Need("causes of large states", _state_causes, requires=(STATE_RMS,))
"""Whether the inputs, a table, or the growth from step to step make the states large."""


@declare("profile", scale="log", needs=[STATE_RMS], tolerance=0.1, recorded=["depth"], explained_by=STATE_CAUSES)
def activation_rms(run: Run) -> dict[str, float]:
    """Return ``√mean(x_l²)``, the root mean square of each state ``x_0 … x_L`` over batch, positions and channels.

    A state contains all tensors that cross the boundary between two steps, including skip connections. Tensors that no module
    reads or writes are not observed.

    It misleads about the backward pass: a default-initialized ReLU tower keeps its activations while its gradient vanishes.

    Returns:
        Activation units, by ``"input"`` for ``x_0`` and by step, in program order. NaN if no tensor of a state is observed.

    Source: Glorot & Bengio, AISTATS 2010; He et al., ICCV 2015.
    """
    names = ("input", *run.chain.names)
    return {name: run[STATE_RMS].root_mean_square(state) for name, state in zip(names, run.chain.cut.states)}


@declare("scalar", unit="nats", needs=[STATE_RMS], tolerance=0.3)
def forward_log_gain(run: Run) -> float:
    """Return ``ln rms(x_L) / rms(x_0)``, the log gain of the forward pass.

    It misleads about ``log_gain``, the log gain of the backward pass: a default-initialized ReLU tower keeps its activations
    because of its biases, while its gradient vanishes.

    Returns:
        Nats. ``-inf`` if the last state is zero, NaN if the first one is zero or one of the two is not observed.

    Source: Glorot & Bengio, AISTATS 2010; He et al., ICCV 2015.
    """
    first, last = (run[STATE_RMS].root_mean_square(run.chain.cut.states[index]) for index in (0, -1))
    return (
        math.log(last) - math.log(first) if first > 0 and last > 0 else (-math.inf if last == 0 < first else math.nan)
    )
