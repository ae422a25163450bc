"""One forward pass under hooks, its autograd graph, and the chain of states that it is cut into."""
