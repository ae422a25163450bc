"""Structural faults, found without looking at how large anything is."""
