"""Lyapunov exponents of iterated maps and flows."""
