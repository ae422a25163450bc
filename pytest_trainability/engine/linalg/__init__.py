"""Numerical linear algebra on plain tensors, without autograd graphs."""
