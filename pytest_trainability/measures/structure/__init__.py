"""Structural faults: copied, uninitialized and linear parts, NaN, interacting samples."""
