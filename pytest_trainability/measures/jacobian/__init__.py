"""Singular values of the chain's Jacobian."""
