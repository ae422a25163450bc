"""Graphs so deep that freeing them by recursion kills the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHAIN = """
import sys
import torch
from pytest_trainability.engine.capture.graph import Graph, freed_in_order

def seen():
    y = torch.ones(2, requires_grad=True)
    for _ in range(100_000):
        y = y * 1.0
    return Graph([(y.grad_fn, 0)])

def run(nodes):
    graph = seen()
    nodes += graph.nodes
    if "fails" in sys.argv:
        raise ValueError

try:
    if "in order" in sys.argv:
        with freed_in_order() as nodes:
            run(nodes)
    else:
        run([])
except ValueError:
    pass
print("alive")
"""


def outcome(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHAIN, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("arguments", [("in order",), ("in order", "fails")], ids=" ".join)
def test_a_deep_graph_is_freed(arguments):
    found = outcome(*arguments)
    assert (found.returncode, found.stdout) == (0, "alive\n"), found.stderr


def test_why_the_order_matters():
    """When this fails, PyTorch has learned to free what Python has seen, and `freed_in_order` may go."""
    assert outcome().returncode != 0
