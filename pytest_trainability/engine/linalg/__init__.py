"""Numerical linear algebra on plain tensors; nothing here knows an autograd graph."""
