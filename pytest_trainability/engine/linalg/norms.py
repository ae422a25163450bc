"""Euclidean norms in float64, and the numbers that a tensor stores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..torch_internals import is_packed

__all__ = ["are_finite", "as_complex", "as_float64", "as_real", "is_zero", "norm", "stored_values"]


_COMPRESSED = {torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
"""Layouts of sparse tensors that store their values in one dense tensor."""


def stored_values(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, detached; for a sparse tensor the stored values, with duplicate indices summed."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        return tensor.coalesce().values()
    if tensor.is_nested or tensor.layout in _COMPRESSED:
        return tensor.values()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def are_finite(tensor: Tensor) -> bool:
    """Return whether all numbers that a tensor stores are finite, as those of four bits always are."""
    values = stored_values(tensor)
    if is_packed(values):
        return True
    # PyTorch compares no numbers of eight bits.
    values = values.float() if values.element_size() == 1 else values
    # A sum is finite only if all entries are, and takes a small part of the time. That of large entries may overflow.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def is_zero(tensor: Tensor | None) -> bool:
    """Return whether all entries of a tensor are exactly zero, or there is none. Without any entry, nothing is missing."""
    if tensor is None:
        return True
    values = stored_values(tensor)
    if not tensor.numel():
        return False
    # The first row nearly always shows that a tensor is none of zeros.
    return not (bool(values[:1].any()) if values.dim() else False) and not bool(values.any())


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as real numbers with an additional last dimension (real, imaginary), and others unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_complex(pairs: Tensor) -> Tensor:
    """Return pairs (real, imaginary) in the last dimension as complex numbers: the inverse of :func:`as_real`.

    The numbers are copied. A view would need memory that begins at an even number of the storage.
    """
    return torch.view_as_complex(pairs.clone(memory_format=torch.contiguous_format))


def as_float64(tensor: Tensor) -> Tensor:
    """Return a real tensor in float64; a tensor on MPS, which has no float64, is moved to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def norm(tensor: Tensor, dim: int | None = None) -> Tensor:
    """Return the Euclidean norm in float64, in which squares of small numbers (1e-23) do not underflow.

    Args:
        tensor: Real or complex numbers of any shape, dense or sparse.
        dim: Dimension along which to compute norms; by default the norm of the whole tensor.

    Returns:
        A scalar on the device of the tensor (the CPU for MPS), or with ``dim`` the norms along it, on the CPU.
    """
    tensor = stored_values(tensor)
    if dim is None and tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel() > _BLOCK:
        # Several times faster, and as accurate while squares stay far from the ends of float32's range.
        length: Tensor = _norm_of_blocks(tensor.reshape(-1))
        if 1e-15 < float(length) < 1e15:
            return length
    if tensor.device.type == "mps":
        # MPS has no float64.
        tensor = tensor.cpu()
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    length = torch.linalg.vector_norm(tensor, dim=dim, dtype=wide)
    return length.double().cpu() if dim is not None else length.double()


_BLOCK = 1024
"""How many squares are summed in float32. Summing millions one after the other would lose a percent."""


def _norm_of_blocks(numbers: Tensor) -> Tensor:
    whole = len(numbers) - len(numbers) % _BLOCK
    length: Tensor = torch.linalg.vector_norm(
        torch.linalg.vector_norm(numbers[:whole].view(-1, _BLOCK), dim=1).double()
    )
    rest = numbers[whole:]
    return torch.hypot(length, torch.linalg.vector_norm(rest, dtype=torch.float64)) if len(rest) else length
