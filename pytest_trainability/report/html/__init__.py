"""The HTML report: one self-contained file, and one check as a fragment for notebooks."""

from .page import page, panel

__all__ = ["page", "panel"]
