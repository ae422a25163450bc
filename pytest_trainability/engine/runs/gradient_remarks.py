"""Remarks on layers that read what other trained layers have computed, without its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from torch import nn

from ...records.text import format_names
from ..capture.recorder import Call
from ..capture.stopped_gradients import StoppedGradient, StoppedGradientObserver
from ..modules import named_modules_of
from ..torch_internals import leaf_of
from .forward_pass import forward_pass
from .run import Need, Run, Stage

__all__ = ["STOPPED_GRADIENTS"]


def _remarks(run: Run) -> tuple[str, ...]:
    if not any(_may_read_without_gradient(call) for call in run.capture.calls):
        return ()
    # A remark must not end a measurement.
    with suppress(Exception):
        again = forward_pass(run.recipe, run.capture.model, run.seed, instruments=(StoppedGradientObserver,))
        observer: StoppedGradientObserver = again.watched[StoppedGradientObserver]
        return tuple(_texts(run, observer.found))
    return ()


def _may_read_without_gradient(call: Call) -> bool:
    """Return whether a trained layer reads floating-point numbers, none of which carries a gradient."""
    is_layer = any(p.requires_grad and p.dim() > 1 for p in call.module.parameters(recurse=False))
    return is_layer and call.reads_without_gradient and not call.inputs and bool(call.outputs)


def _texts(run: Run, found: dict[str, StoppedGradient]) -> Iterator[str]:
    """Yield a remark for each place where a gradient stops that its layers would get, besides another one that they get.

    A layer that gets no gradient at all is the matter of ``unused_parameters``.
    """
    reached = {id(leaf) for node in run.graph.nodes if (leaf := leaf_of(node)) is not None}
    modules = {path or type(run.capture.model).__name__: module for path, module in named_modules_of(run.capture.model)}

    def is_trained(path: str) -> bool:
        module = modules.get(path, nn.Module())
        return any(p.requires_grad and id(p) in reached for p in module.parameters(recurse=False))

    readers: dict[StoppedGradient, list[str]] = {}
    for path, stop in found.items():
        if is_trained(path) and any(map(is_trained, stop.sources)):
            readers.setdefault(stop, []).append(path)
    for stop, paths in readers.items():
        yield (
            f"{format_names(paths)} read{'s' if len(paths) == 1 else ''} a tensor without a gradient, computed from "
            f"{' and '.join(stop.sources)}: {stop.function} in {stop.path}"
        )


STOPPED_GRADIENTS: Need[tuple[str, ...]] = Need("stopped gradients", _remarks, Stage.RERUN)
"""Remarks on gradients that stop between trained layers, from one more forward pass where that may be."""
