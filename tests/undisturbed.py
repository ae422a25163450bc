"""What a user can see of a model and of the process, as values that are compared to the last bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["bits", "look_around", "look_at"]


def bits(value: Any) -> Any:
    """Return a value that compares equal to the last bit, NaN included."""
    if isinstance(value, Tensor):
        flat = value.detach().clone().contiguous().reshape(-1)
        return value.dtype, tuple(value.shape), flat.view(torch.uint8).tolist() if flat.numel() else []
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    return value


def look_at(model: nn.Module) -> dict[str, Any]:
    """Return everything that a user can see of a model."""
    seen: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in {"_parameters", "_buffers"}:
                seen[f"{path}.{name}"] = {k: (id(v), bits(v)) for k, v in value.items() if v is not None}
            elif name == "_modules" or name.endswith("_hooks"):
                seen[f"{path}.{name}"] = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, Tensor):
                seen[f"{path}.{name}"] = id(value), bits(value)
            else:
                seen[f"{path}.{name}"] = repr(value)
    for name, p in model.named_parameters():
        seen[f"{name}.grad"] = None if p.grad is None else (id(p.grad), bits(p.grad))
        seen[f"{name}.requires_grad"] = p.requires_grad
        seen[f"{name}.hooks"] = repr(p._backward_hooks)
    return seen


def look_around() -> dict[str, Any]:
    """Return the global state that a model can change or depend on."""
    return {
        "torch": bits(torch.get_rng_state()),
        "random": random.getstate(),
        "numpy": bits(np.random.get_state()),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "precision": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
        "global hooks": len(torch.nn.modules.module._global_forward_hooks),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
