"""A plugin of pytest-trainability that adds a measure, cuts an architecture of its own, and tells environments apart.

    pip install ./examples/plugin                               # found by its entry point, or
    pytest -p pytest_trainability_kurtosis                      # where the module can be imported

pytest loads this module in every session of a machine where it is installed. So torch and pytest-trainability are imported in the
hooks, which are called when a test measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_trainability import Measure, Run


def pytest_trainability_measures() -> list[Measure]:
    """Add ``gradient_kurtosis``."""
    from pytest_trainability import Measure
    from pytest_trainability.engine.runs.common_needs import PARAMETER_GRADIENTS

    def gradient_kurtosis(run: Run) -> dict[str, float]:
        """Return ``E(g - E g)⁴ / Var(g)²`` over the entries of each parameter's gradient: 3 for Gaussian ones.

        Large values are gradients that a few entries dominate, which clipping by norm and low precision treat badly.

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

    return [
        Measure(
            name="gradient_kurtosis",
            kind="profile",
            unit="",
            scale="log",
            needs=frozenset({PARAMETER_GRADIENTS}),
            read=gradient_kurtosis,
            tolerance=0.3,
        )
    ]


def pytest_trainability_steps(model: nn.Module) -> str | None:
    """Cut the two-stream networks of this project, whose blocks come in pairs, at the pairs."""
    return "pairs.*" if type(model).__name__ == "TwoStreamNet" else None


def pytest_trainability_environment() -> Mapping[str, str]:
    """Keep baselines of machines with and without oneDNN, whose convolutions round differently, apart."""
    import torch

    return {"onednn": "yes" if torch.backends.mkldnn.is_available() else "no"}
