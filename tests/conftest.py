"""What all tests share: sessions of pytest inside a test, in a project of their own."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

# A session inside a test forgets the modules that it was the first to import: numpy cannot be imported twice, and what
# torch.autograd loads at its first batched call takes half a second.
import numpy as np  # noqa: F401
import pytest
import scipy.special  # noqa: F401
import torch
import torch.fx.experimental.symbolic_shapes
from torchvision_for_cpu import declare_torchvision_operators

import pytest_trainability.measurement  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.pytester import Pytester

with suppress(ImportError):
    import hypothesis  # noqa: F401 - its plugin does so at the end of every session

pytest_plugins = "pytester"

# transformers imports torchvision where it finds it, as it does beside timm.
declare_torchvision_operators()

SMALL_NETS = '''
import torch
from torch import nn


def tower(depth=6, width=8):
    """A factory of a tanh tower that PyTorch's default weights let vanish."""
    return lambda: nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())])


net = tower()
images = torch.linspace(-1, 1, 32).reshape(4, 8)
'''


@pytest.fixture
def project(pytester: Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pytester]:
    """An empty project with a module of small towers, on a terminal of 80 columns, whatever runs these tests.

    A session in this process computes with one thread, as one in another process does.
    """
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    # Tests run in the order in which they stand, and load no numpy, where pytest-randomly is installed.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pytester.makepyfile(small_nets=SMALL_NETS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pytester
    torch.set_num_threads(threads)
