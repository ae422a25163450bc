"""pytest-trainability: will this network train, and is that still true after this commit?

Public names are imported on first use, so that a pytest session without measurements does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checks.bounds import Bound, at_least, at_most, within
    from .dynamics.lyapunov import LyapunovExponents, lyapunov_spectrum
    from .engine.capture.rollout import Rollout
    from .engine.runs.run import Need, Run, Stage
    from .errors import (
        BaselineError,
        BoundError,
        CutError,
        InapplicableError,
        ModelError,
        ReportError,
        TrainabilityError,
        TrainabilityFailure,
        UsageError,
    )
    from .measurement import Measurement, add_measure, measure
    from .measurement.comparison import Comparison, compare
    from .measurement.cures import Cure
    from .measurement.initialization import Initialization, initialization
    from .measures.measure import Measure
    from .plugin.fixture import Trainability
    from .plugin.shared import TrainabilityFactory
    from .records.estimates import Estimate, Names, Profile, Spectrum, Steps
    from .records.initial_values import InitialValues
    from .scaling import Scaling, depth_sweep, width_sweep

_HOME = {
    "BaselineError": "errors",
    "Bound": "checks.bounds",
    "BoundError": "errors",
    "Comparison": "measurement.comparison",
    "Cure": "measurement.cures",
    "CutError": "errors",
    "Estimate": "records.estimates",
    "InapplicableError": "errors",
    "InitialValues": "records.initial_values",
    "Initialization": "measurement.initialization",
    "LyapunovExponents": "dynamics.lyapunov",
    "Measure": "measures.measure",
    "Measurement": "measurement",
    "ModelError": "errors",
    "Names": "records.estimates",
    "Need": "engine.runs.run",
    "Profile": "records.estimates",
    "ReportError": "errors",
    "Rollout": "engine.capture.rollout",
    "Run": "engine.runs.run",
    "Scaling": "scaling",
    "Spectrum": "records.estimates",
    "Stage": "engine.runs.run",
    "Steps": "records.estimates",
    "Trainability": "plugin.fixture",
    "TrainabilityError": "errors",
    "TrainabilityFactory": "plugin.shared",
    "TrainabilityFailure": "errors",
    "UsageError": "errors",
    "add_measure": "measurement",
    "at_least": "checks.bounds",
    "at_most": "checks.bounds",
    "compare": "measurement.comparison",
    "depth_sweep": "scaling",
    "initialization": "measurement.initialization",
    "lyapunov_spectrum": "dynamics.lyapunov",
    "measure": "measurement",
    "width_sweep": "scaling",
    "within": "checks.bounds",
}

__all__ = [
    "BaselineError",
    "Bound",
    "BoundError",
    "Comparison",
    "Cure",
    "CutError",
    "Estimate",
    "InapplicableError",
    "InitialValues",
    "Initialization",
    "LyapunovExponents",
    "Measure",
    "Measurement",
    "ModelError",
    "Names",
    "Need",
    "Profile",
    "ReportError",
    "Rollout",
    "Run",
    "Scaling",
    "Spectrum",
    "Stage",
    "Steps",
    "Trainability",
    "TrainabilityError",
    "TrainabilityFactory",
    "TrainabilityFailure",
    "UsageError",
    "add_measure",
    "at_least",
    "at_most",
    "compare",
    "depth_sweep",
    "initialization",
    "lyapunov_spectrum",
    "measure",
    "width_sweep",
    "within",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "init":
        return import_module(".init", __name__)
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "init"})
