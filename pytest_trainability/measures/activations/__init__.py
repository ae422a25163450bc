"""Activations: size, similarity between samples, slopes, attention, routing."""
