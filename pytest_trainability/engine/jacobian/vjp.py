"""Vector-Jacobian products: cotangents of a state, pulled back through one segment of the chain to the state before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ...errors import ModelError
from ..capture.chain import Chain
from ..capture.gradient_hooks import past_hooks, through_hooks
from ..capture.recorder import Edge, edge_of
from ..isolation import generator_of
from ..torch_internals import backward_skipped, changed_bases, lacks_gradient_of_base

__all__ = [
    "Cotangents",
    "backward",
    "barrier",
    "gaussian_state",
    "loss_cotangent",
    "pull_back",
    "quiet_batching",
    "random_cotangents",
]

# Note [Barrier at the inputs]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# `torch.autograd.grad` does not stop at an input if another input lies upstream of it. In
#
#     h = f(x); y = g(h) + k(x)        # segment with the inputs x and h
#
# the gradient of x would contain the path through f, which belongs to the segment before, and the product over all segments
# would count that path twice. A prehook on the node of each input therefore replaces what arrives there by undefined gradients
# for the duration of the call: autograd has collected the gradient of the input by then, and computes nothing behind it. It still
# visits the nodes behind. Training never calls a gradient hook or the backward pass of a custom function without a gradient, and
# the model's may not expect that: they are skipped there (`hooks_skipped_without_gradient`, `backward_skipped`).


Cotangents = list["Tensor | None"]
"""k cotangents of one state, as columns: for each edge of the state a tensor ``(k, *shape)``, or None for zero."""


def pull_back(chain: Chain, index: int, columns: Cotangents, *, at_once: int | None = None) -> Cotangents:
    """Apply ``J_lᵀ`` of segment ``l = index`` (1 … L) to k cotangents of state l.

    Only the nodes between the two states run, so that the product over all segments equals one backward pass, bit for bit. The
    cotangent of an edge that lies in both states passes unchanged, and the segment's contribution is added to it.

    Args:
        chain: The chain.
        index: Number of the segment, 1 … L.
        columns: Cotangents of state l: for each of its edges a tensor ``(k, *shape)``, or None for zero.
        at_once: Largest number of cotangents per backward pass; by default all of them.

    Returns:
        Cotangents of state l - 1: for each of its edges a tensor ``(k, *shape)``, or None for zero.

    Raises:
        ModelError: Not even one cotangent fits into the memory of the device.
    """
    segment = chain.cut.segments[index - 1]
    later, earlier = chain.cut.states[index], chain.cut.states[index - 1]
    roots: list[tuple[Edge, Tensor]] = []
    for i in segment.roots:
        column = columns[i]
        if column is not None and later[i] in chain.hooked and index < len(chain):
            roots += past_hooks(later[i], column)
        elif column is not None:
            roots.append((later[i], column))
    result: Cotangents = [None] * len(earlier)
    if roots and segment.inputs:
        outputs, carried = zip(*roots)
        found = _products(chain, outputs, [earlier[i] for i in segment.inputs], carried, at_once)
        for i, product in zip(segment.inputs, found):
            result[i] = product
    for i, j in segment.passing:
        skipped, added = columns[i], result[j]
        if skipped is not None and index == len(chain) and later[i] in chain.hooked:
            skipped = torch.stack([through_hooks(later[i], column) for column in skipped])
        result[j] = skipped if added is None else added if skipped is None else added + skipped
    return result


def _products(
    chain: Chain, outputs: Sequence[Edge], inputs: Sequence[Edge], columns: Sequence[Tensor], at_once: int | None = None
) -> list[Tensor | None]:
    count = len(columns[0])
    size = count if at_once is None else max(1, min(at_once, count))
    parts: list[Sequence[Tensor | None]] = []
    done = 0
    while done < count:
        chunk = [column[done : done + size] for column in columns]
        try:
            parts.append(_one_call(chain, outputs, inputs, chunk))
            done += size
        except torch.OutOfMemoryError:
            if size == 1:
                msg = (
                    "one cotangent must fit on the device in addition to the graph of one forward pass. It did not. Measure "
                    "with a smaller batch, or on the CPU (device='cpu', --trainability-device=cpu)."
                )
                raise ModelError(msg) from None
            size = math.ceil(size / 2)
            torch.cuda.empty_cache()
        except RuntimeError:
            if size == 1:
                raise
            # An operator without a batching rule, usually a custom autograd function: one cotangent after the other.
            size = 1
    return [None if part[0] is None else torch.cat([p for p in part if p is not None]) for part in zip(*parts)]


def _one_call(
    chain: Chain, outputs: Sequence[Edge], inputs: Sequence[Edge], columns: Sequence[Tensor]
) -> list[Tensor | None]:
    with barrier(chain, inputs) as passed:
        products = backward(
            [GradientEdge(*edge) for edge in outputs], [GradientEdge(*edge) for edge in inputs], columns
        )
    for i, (edge, product) in enumerate(zip(inputs, products)):
        # Autograd collects the gradient of an input after its hooks, but before them if the backward pass continues through it.
        if product is not None and edge in chain.hooked and edge[0] in passed:
            products[i] = torch.stack([through_hooks(edge, column) for column in product])
    return products


def backward(
    outputs: Sequence[Tensor] | Sequence[GradientEdge],
    inputs: Sequence[Tensor] | Sequence[GradientEdge],
    columns: Sequence[Tensor],
) -> list[Tensor | None]:
    """Pull k cotangents of the outputs, ``(k, *shape)`` each, back to the inputs in one backward pass, and keep the graph."""
    batched = len(columns[0]) > 1

    def gradients(inputs: Sequence[Tensor] | Sequence[GradientEdge]) -> Sequence[Tensor | None]:
        with quiet_batching():
            return torch.autograd.grad(
                outputs,
                inputs,
                list(columns) if batched else [column[0] for column in columns],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )

    try:
        found = gradients(inputs)
    except RuntimeError as error:
        if not lacks_gradient_of_base(error):
            raise
        found = gradients([*map(_as_edge, inputs), *changed_bases(map(_as_edge, outputs))])[: len(inputs)]
    return [g if g is None or batched else g.to_dense().unsqueeze(0) for g in found]


def _as_edge(end: Tensor | GradientEdge) -> GradientEdge:
    return torch.autograd.graph.get_gradient_edge(end) if isinstance(end, Tensor) else end


@contextmanager
def quiet_batching() -> Iterator[None]:
    """Suppress PyTorch's warnings about operators that are slow under vmap."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(batching rule|performance drop|vmap).*")
        yield


@contextmanager
def barrier(chain: Chain, inputs: Sequence[Edge]) -> Iterator[set[Node]]:
    """Stop every gradient at the inputs. See Note [Barrier at the inputs].

    Yields:
        The set of nodes at which a gradient was stopped.
    """
    stopped: set[Node] = set()
    if len(inputs) < 2:
        yield stopped
        return

    def stop_at(node: Node) -> Callable[[tuple[Tensor | None, ...]], tuple[None, ...]]:
        def stop(arriving: tuple[Tensor | None, ...]) -> tuple[None, ...]:
            stopped.add(node)
            return (None,) * len(arriving)

        return stop

    handles = [node.register_prehook(stop_at(node)) for node in dict.fromkeys(node for node, _ in inputs)]
    try:
        with backward_skipped(chain.custom):
            yield stopped
    finally:
        for handle in handles:
            handle.remove()


# Cotangents ------------------------------------------------------------------------------------------------------
def random_cotangents(chain: Chain, count: int, seed: int) -> Cotangents:
    """Draw Gaussian cotangents of the last state on the CPU, each from a separate generator.

    The first k cotangents are the same however many are drawn, on every device and, up to rounding, in every dtype.

    Returns:
        For each edge of the last state a tensor ``(count, *shape)`` with its dtype and device.
    """
    drawn = [gaussian_state(chain, len(chain), generator_of(seed, f"cotangent {number}")) for number in range(count)]
    return [torch.stack(columns) for columns in zip(*drawn)]


def gaussian_state(chain: Chain, index: int, generator: torch.Generator) -> list[Tensor]:
    """Draw one Gaussian cotangent of state ``index`` (0 … L) in single precision on the CPU, and move it to dtype and device."""
    state = []
    for (shape, dtype), device in zip(chain.shapes(index), chain.devices(index)):
        single = torch.complex64 if dtype.is_complex else torch.float32
        column = torch.randn(shape, generator=generator, dtype=single, device="cpu")
        state.append(column.to(device=device, dtype=dtype))
    return state


def loss_cotangent(chain: Chain, loss: Tensor) -> Cotangents:
    """Return the gradient of the loss with respect to the last state, as one cotangent: ``(1, *shape)`` or None for each edge."""
    edges = chain.cut.states[-1]
    seed = torch.ones((1, *loss.shape), dtype=loss.dtype, device=loss.device)
    root = edge_of(loss)
    if root in edges:
        return [seed if edge == root else None for edge in edges]
    return list(_products(chain, [root], edges, [seed]))
