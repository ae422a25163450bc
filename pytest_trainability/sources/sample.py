"""A model that is built once, for all questions about its structure: what it declares, and its layers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import nn

__all__ = ["Sample"]


class Sample:
    """The model of a factory, or a finished module. It is built when it is asked for, and only once.

    Args:
        source: A factory, or a module.
        model: A model of the factory that has been built already.
    """

    def __init__(self, source: Any, model: nn.Module | None = None) -> None:
        self.source = source
        if model is not None or isinstance(source, nn.Module):
            self.model = source if model is None else model

    @cached_property
    def model(self) -> nn.Module | None:
        """The model, on the meta device if its factory allows that; None if the factory fails or builds something else.

        A factory that raises an error will raise it again where it is shown.
        """
        for device in ("meta", "cpu"):
            try:
                with torch.device(device):
                    model = self.source()
            except (Exception, SystemExit):
                continue
            return model if isinstance(model, nn.Module) else None
        return None

    @classmethod
    def of(cls, source: Any) -> Sample:
        """Return the sample of a factory or module; a sample itself.

        Args:
            source: A factory, a module or a sample.
        """
        return source if isinstance(source, cls) else cls(source)
