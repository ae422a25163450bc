"""Growth of gradients along the chain."""
