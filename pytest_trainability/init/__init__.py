"""Initial values of parameters and buffers: their statistics."""
