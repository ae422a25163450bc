"""A plugin of pytest-trainability that adds a measure, chooses the steps of an architecture, and keeps environments apart.

    pip install ./examples/plugin                               # pytest finds it by its entry point, or
    pytest -p pytest_trainability_kurtosis                      # where the module can be imported

pytest loads this module in every session of a machine where it is installed. The hooks therefore import torch and
pytest-trainability inside their bodies: pytest calls them only in sessions that measure something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_trainability.measures import Measure, Run


def pytest_trainability_measures() -> list[Measure]:
    """Add ``gradient_kurtosis``."""
    from pytest_trainability.measures import PARAMETER_GRADIENTS, declare

    @declare(
        "profile",
        scale="log",
        needs=[PARAMETER_GRADIENTS],
        tolerance=0.3,
        # A gradient of zero has no kurtosis. Bounds skip it where the zero is one by design.
        zero_by_design="gradient",
    )
    def gradient_kurtosis(run: Run) -> dict[str, float]:
        """Return ``E(g - E g)⁴ / Var(g)²`` over the entries of each parameter's gradient: 3 for Gaussian entries.

        A large value means that a few entries dominate the gradient. Clipping by norm and low precision handle such gradients
        badly.

        Returns:
            A pure number by parameter name; NaN where all entries are equal. Parameters with fewer than 16 entries, frozen and
            unused ones are left out.
        """
        found = {}
        for name, gradient in run[PARAMETER_GRADIENTS].items():
            if gradient is not None and gradient.numel() >= 16:
                centered = gradient.double() - gradient.double().mean()
                found[name] = float(centered.pow(4).mean() / centered.square().mean().square())
        return found

    return [gradient_kurtosis]


def pytest_trainability_steps(model: nn.Module) -> str | None:
    """Return the steps of the two-stream networks of this project: their blocks come in pairs, and each pair is a step."""
    return "pairs.*" if type(model).__name__ == "TwoStreamNet" else None


def pytest_trainability_environment() -> Mapping[str, str]:
    """Keep the baselines of machines with and without oneDNN apart: their convolutions round differently."""
    import torch

    return {"onednn": "yes" if torch.backends.mkldnn.is_available() else "no"}
