"""Initial values of parameters and buffers."""
