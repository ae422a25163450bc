"""Fixtures for sessions of pytest inside a test."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

# A session inside a test unloads the modules that it imports first. numpy cannot be imported twice, and the modules that
# torch.autograd loads at its first batched call take half a second.
import numpy as np  # noqa: F401
import pytest
import scipy.special  # noqa: F401
import torch
import torch._dynamo  # noqa: F401 - the first step of an optimizer imports it
from torch.fx.experimental import symbolic_shapes  # noqa: F401
from torchvision_for_cpu import declare_torchvision_operators

import pytest_trainability.measurement  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.pytester import Pytester

with suppress(ImportError):
    import hypothesis  # noqa: F401 - its plugin imports it at the end of every session

pytest_plugins = "pytester"

# transformers imports torchvision where it is installed, as it is together with timm. With PyTorch 2.6 it cannot be imported
# twice either.
declare_torchvision_operators()
with suppress(ImportError):
    import torchvision  # noqa: F401


def pytest_collection_finish() -> None:
    """Take all modules and tests out of garbage collections: each would look at them again, and none of them is garbage."""
    if "hypothesis" in sys.modules:
        # When it first runs, it asks the collector what refers to its generator, and must find itself.
        from hypothesis import find, settings, strategies

        find(strategies.just(0), lambda _: True, settings=settings(database=None))
    gc.freeze()


SMALL_NETS = '''
import torch
from torch import nn


def tower(depth=6, width=8):
    """Return a factory of a tanh tower with PyTorch's default weights, through which gradients vanish."""
    return lambda: nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())])


net = tower()
images = torch.linspace(-1, 1, 32).reshape(4, 8)
'''


OF_CI = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "CI_PROJECT_DIR")
"""Variables of CI services. A session that sees them would write to the summary of the job that runs the tests."""


@pytest.fixture
def pytester(pytester: Pytester, monkeypatch: pytest.MonkeyPatch) -> Pytester:
    """Sessions inside a test: independent of the session that runs the test, and of other plugins."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "NO_COLOR", "FORCE_COLOR", *OF_CI):
        monkeypatch.delenv(name, raising=False)
    # pytest-randomly would shuffle the tests, and load numpy.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Tests write a module twice within a second, and with as many characters: Python would take it for the compiled one.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return pytester


@pytest.fixture
def project(pytester: Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pytester]:
    """An empty project with a module of small towers.

    A session in this process computes with one thread as well, and prints what it would print outside of CI: there pytest does
    not shorten the lines of its last summary.
    """
    pytester.makepyfile(small_nets=SMALL_NETS)
    for variable in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(variable, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pytester
    torch.set_num_threads(threads)
