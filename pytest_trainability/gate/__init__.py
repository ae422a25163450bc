"""Tests that are written as tables of ``trainability.toml`` or ``pyproject.toml``: reading and validating them."""
