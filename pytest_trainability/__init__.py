"""pytest-trainability: will this network train, and is that still true after this commit?

The names below are loaded when they are first used, so that a pytest session that measures nothing pays for nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checks.bounds import Bound, at_least, at_most, within
    from .dynamics import LyapunovExponents, lyapunov_spectrum
    from .engine.rollout import Rollout
    from .errors import BaselineError, BoundError, CutError, ModelError, TrainabilityError, UsageError
    from .measurement import Measurement, TrainabilityFailure, measure
    from .plugin.fixture import Trainability
    from .records import Estimate, Names, Profile, Spectrum, Steps

_HOME = {
    "BaselineError": "errors",
    "Bound": "checks.bounds",
    "BoundError": "errors",
    "CutError": "errors",
    "Estimate": "records",
    "LyapunovExponents": "dynamics",
    "Measurement": "measurement",
    "ModelError": "errors",
    "Names": "records",
    "Profile": "records",
    "Rollout": "engine.rollout",
    "Spectrum": "records",
    "Steps": "records",
    "Trainability": "plugin.fixture",
    "TrainabilityError": "errors",
    "TrainabilityFailure": "measurement",
    "UsageError": "errors",
    "at_least": "checks.bounds",
    "at_most": "checks.bounds",
    "lyapunov_spectrum": "dynamics",
    "measure": "measurement",
    "within": "checks.bounds",
}

__all__ = [
    "BaselineError",
    "Bound",
    "BoundError",
    "CutError",
    "Estimate",
    "LyapunovExponents",
    "Measurement",
    "ModelError",
    "Names",
    "Profile",
    "Rollout",
    "Spectrum",
    "Steps",
    "Trainability",
    "TrainabilityError",
    "TrainabilityFailure",
    "UsageError",
    "at_least",
    "at_most",
    "lyapunov_spectrum",
    "measure",
    "within",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
